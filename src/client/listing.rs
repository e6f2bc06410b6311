//! Listings: a page at a time, or all of it as a stream of lines.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::Request;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, HeaderValue};
use serde::{Deserialize, Deserializer};

use super::wire::{self, Body, Sender};
use super::{Error, Problem};
use crate::types::{Ballot, KEY_BYTES_LIMIT, VALUE_BYTES_LIMIT};

/// The longest line of a stream, in bytes: the largest value in base64, the longest key with every byte escaped.
pub(super) const LINE_BYTES_MAX: usize = VALUE_BYTES_LIMIT / 3 * 4 + 6 * KEY_BYTES_LIMIT + 1024;

/// One key of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Item {
    /// The key inside its shard.
    pub key: String,
    /// Its value; absent where only keys were asked for.
    #[serde(default, deserialize_with = "base64_bytes")]
    pub value: Option<Bytes>,
    /// Its version.
    pub upd: Ballot,
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Page {
    /// In key order.
    pub items: Vec<Item>,
    /// What to ask for with `after` next; absent on the last page.
    pub next: Option<String>,
}

fn base64_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Bytes>, D::Error> {
    let text: Option<String> = Option::deserialize(deserializer)?;
    let bytes = text.map(|text| STANDARD.decode(text)).transpose().map_err(serde::de::Error::custom)?;
    Ok(bytes.map(Bytes::from))
}

/// A listing on its way. Dropping it ends the stream.
#[derive(Debug)]
pub struct Listing {
    socket: PathBuf,
    within: Duration,
    body: Incoming,
    unread: BytesMut,
    /// How much of `unread` is known to hold no line's end.
    searched: usize,
    _sender: Sender,
}

pub(super) async fn start(socket: &Path, mut request: Request<Body>, within: Duration) -> Result<Listing, Error> {
    request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/x-ndjson"));
    let begin = async {
        let mut sender = wire::connect(socket).await?;
        let sent = wire::send(&mut sender, request).await;
        let response = sent.map_err(|(error, _)| wire::broken(socket, "list", &error))?;
        if !response.status().is_success() {
            return Err(Error::Problem(wire::whole(socket, "list", response).await?.problem()));
        }
        Ok(Listing {
            socket: socket.to_owned(),
            within,
            body: response.into_body(),
            unread: BytesMut::new(),
            searched: 0,
            _sender: sender,
        })
    };
    tokio::time::timeout(within, begin).await.unwrap_or_else(|_| Err(late(socket, within)))
}

fn late(socket: &Path, within: Duration) -> Error {
    wire::broken(socket, "list", &format!("nothing came for {}", humantime::format_duration(within)))
}

impl Listing {
    /// The next item; `None` after the last. An error ends the listing: it is incomplete.
    pub async fn next(&mut self) -> Result<Option<Item>, Error> {
        loop {
            if let Some(line) = self.take_line() {
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return parse_line(&line).map(Some);
            }
            if self.unread.len() > LINE_BYTES_MAX {
                return Err(Error::Unreadable(format!("a line has more than {LINE_BYTES_MAX} bytes")));
            }
            let frame = tokio::time::timeout(self.within, self.body.frame()).await;
            match frame.map_err(|_| late(&self.socket, self.within))? {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.unread.extend_from_slice(data);
                    }
                }
                Some(Err(error)) => return Err(wire::broken(&self.socket, "list", &error)),
                None if self.unread.is_empty() => return Ok(None),
                None => {
                    let rest = std::mem::take(&mut self.unread);
                    self.searched = 0;
                    return parse_line(&rest).map(Some);
                }
            }
        }
    }

    fn take_line(&mut self) -> Option<BytesMut> {
        let end = self.unread.iter().skip(self.searched).position(|byte| *byte == b'\n');
        let Some(end) = end else {
            self.searched = self.unread.len();
            return None;
        };
        let line = self.unread.split_to(self.searched + end + 1);
        self.searched = 0;
        Some(line)
    }
}

/// An item, or the problem that cut the stream short after its head had already promised success.
fn parse_line(line: &[u8]) -> Result<Item, Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Line {
        Item(Item),
        Problem(Problem),
    }
    match serde_json::from_slice(line) {
        Ok(Line::Item(item)) => Ok(item),
        Ok(Line::Problem(problem)) if problem.status != 0 => Err(Error::Problem(problem)),
        _ => Err(Error::Unreadable(format!("a line of {} bytes is not an item", line.len()))),
    }
}
