//! Watching a shard: its changes as they come, and what they add up to.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::Method;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, HeaderName, HeaderValue};
use serde::Deserialize;

use super::listing::{Item, LINE_BYTES_MAX};
use super::wire::{self, Body, Sender};
use super::{Builder, Error, Problem, Versioned};
use crate::types::Ballot;

/// A node says something every few seconds, if only that nothing happened. One that is silent for this long is not waited
/// for any longer.
pub const WATCH_SILENCE_MAX: Duration = Duration::from_secs(30);

/// What a watch tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// What was told so far is void: from here to [`Change::SnapshotEnd`] come all rows that there are. Comes first, unless
    /// the watch goes on where an earlier one was; and after a reconnection that took too long to go on.
    Snapshot,
    /// The snapshot is complete. What comes after it has happened since.
    SnapshotEnd,
    /// A key has this value.
    Put {
        /// The key inside its shard.
        key: String,
        /// Its value.
        value: Bytes,
        /// Its version.
        upd: Ballot,
    },
    /// A key has no value any more.
    Del {
        /// The key inside its shard.
        key: String,
        /// The version of its deletion.
        upd: Ballot,
    },
}

/// A watch under way, over a connection of its own. Dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    options: Builder,
    path: String,
    within: Duration,
    id: Option<String>,
    connection: Option<Connection>,
}

#[derive(Debug)]
struct Connection {
    body: Incoming,
    events: Events,
    _sender: Sender,
}

impl Watch {
    /// Begins; `path` is that of the request, with its query.
    pub(super) async fn start(
        options: Builder,
        path: String,
        within: Duration,
        since: Option<&str>,
    ) -> Result<Self, Error> {
        let mut watch = Self { options, path, within, id: since.map(str::to_owned), connection: None };
        watch.resume().await?;
        Ok(watch)
    }

    /// Where to go on: everything up to here was returned by [`Watch::next`]. None within a snapshot, of which a half is
    /// nothing to go on from. Good for the same node, until that restarts; with any other, a snapshot comes first.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// Connects again, and goes on after [`Watch::id`]: with what was missed, or with a snapshot where that is not known any
    /// more.
    pub async fn resume(&mut self) -> Result<(), Error> {
        self.connection = None;
        let mut request = self.options.begin(Method::GET, &self.path).header(ACCEPT, "text/event-stream");
        if let Some(id) = &self.id {
            let id = HeaderValue::from_str(id).map_err(|_| Error::Unreadable(format!("{id:?} is no event's id")))?;
            request = request.header(HeaderName::from_static("last-event-id"), id);
        }
        let request = request.body(Body::default()).map_err(|why| Error::malformed_request(&self.path, &why))?;
        let begin = async {
            let mut sender = wire::connect(&self.options.socket).await?;
            let sent = wire::send(&mut sender, request).await;
            let response = sent.map_err(|(error, _)| self.ended(&error))?;
            if !response.status().is_success() {
                return Err(Error::Problem(wire::whole(&self.options.socket, "watch", response).await?.problem()));
            }
            Ok(Connection { body: response.into_body(), events: Events::default(), _sender: sender })
        };
        let begun = tokio::time::timeout(self.within, begin).await;
        self.connection = Some(begun.unwrap_or_else(|_| Err(self.ended(&"no answer in time")))?);
        Ok(())
    }

    /// Waits for the next change. An error ends the connection; [`Watch::resume`] makes another. Dropping the future loses
    /// nothing.
    pub async fn next(&mut self) -> Result<Change, Error> {
        match self.told().await {
            Ok(change) => Ok(change),
            Err(error) => {
                self.connection = None;
                Err(error)
            }
        }
    }

    async fn told(&mut self) -> Result<Change, Error> {
        loop {
            let Some(connection) = &mut self.connection else { return Err(self.ended(&"it has ended")) };
            while let Some(event) = connection.events.next()? {
                if let Some(id) = event.id {
                    self.id = Some(id);
                }
                if let Some(change) = read(&event.name, &event.data)? {
                    if change == Change::Snapshot {
                        self.id = None;
                    }
                    return Ok(change);
                }
            }
            match tokio::time::timeout(WATCH_SILENCE_MAX, connection.body.frame()).await {
                Err(_) => {
                    let silence = humantime::format_duration(WATCH_SILENCE_MAX);
                    return Err(self.ended(&format!("nothing came for {silence}")));
                }
                Ok(None) => return Err(self.ended(&"the node closed the connection")),
                Ok(Some(Err(error))) => return Err(self.ended(&error)),
                Ok(Some(Ok(frame))) => {
                    if let Some(data) = frame.data_ref() {
                        connection.events.unread.extend_from_slice(data);
                    }
                }
            }
        }
    }

    fn ended(&self, why: &dyn std::fmt::Display) -> Error {
        Error::WatchEnded { socket: self.options.socket.clone(), reason: why.to_string() }
    }
}

/// What an event tells; none where it is of a kind that only a later version knows.
fn read(name: &str, data: &[u8]) -> Result<Option<Change>, Error> {
    fn json<'a, T: Deserialize<'a>>(data: &'a [u8]) -> Result<T, Error> {
        serde_json::from_slice(data).map_err(|why| Error::Unreadable(why.to_string()))
    }
    Ok(Some(match name {
        "snapshot" => Change::Snapshot,
        "snapshot-end" => Change::SnapshotEnd,
        "put" => {
            let Item { key, value, upd } = json(data)?;
            Change::Put { key, value: value.unwrap_or_default(), upd }
        }
        "del" => {
            let Item { key, upd, .. } = json(data)?;
            Change::Del { key, upd }
        }
        "error" => return Err(Error::Problem(json::<Problem>(data)?)),
        _ => return Ok(None),
    }))
}

/// One of the Server-Sent Events.
#[derive(Debug, Default, PartialEq, Eq)]
struct SentEvent {
    name: String,
    data: Vec<u8>,
    id: Option<String>,
}

/// Cuts what was read into events.
#[derive(Debug, Default)]
struct Events {
    unread: BytesMut,
    /// How much of `unread` is known to hold no line's end.
    searched: usize,
    half: SentEvent,
}

impl Events {
    fn next(&mut self) -> Result<Option<SentEvent>, Error> {
        while let Some(line) = self.take_line()? {
            if line.is_empty() {
                return Ok(Some(std::mem::take(&mut self.half)));
            }
            let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
            let (field, value) = line.split_at(colon);
            let value = value.strip_prefix(b":").unwrap_or(value);
            let value = value.strip_prefix(b" ").unwrap_or(value);
            match field {
                b"event" => self.half.name = String::from_utf8_lossy(value).into_owned(),
                b"id" => self.half.id = Some(String::from_utf8_lossy(value).into_owned()),
                b"data" => {
                    if !self.half.data.is_empty() {
                        self.half.data.push(b'\n');
                    }
                    self.half.data.extend_from_slice(value);
                    check_bytes(self.half.data.len())?;
                }
                // A comment, or what only a later version knows.
                _ => {}
            }
        }
        Ok(None)
    }

    fn take_line(&mut self) -> Result<Option<BytesMut>, Error> {
        let end = self.unread.iter().skip(self.searched).position(|byte| *byte == b'\n');
        let Some(end) = end else {
            self.searched = self.unread.len();
            check_bytes(self.unread.len())?;
            return Ok(None);
        };
        let mut line = self.unread.split_to(self.searched + end + 1);
        self.searched = 0;
        line.truncate(line.len() - 1);
        if line.last() == Some(&b'\r') {
            line.truncate(line.len() - 1);
        }
        Ok(Some(line))
    }
}

fn check_bytes(bytes: usize) -> Result<(), Error> {
    if bytes > LINE_BYTES_MAX {
        return Err(Error::Unreadable(format!("an event has more than {LINE_BYTES_MAX} bytes")));
    }
    Ok(())
}

/// What the changes of a watch add up to: the rows under its prefix, as its node has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mirror {
    rows: BTreeMap<String, Versioned>,
    /// A snapshot that is not complete yet.
    incoming: Option<BTreeMap<String, Versioned>>,
    is_whole: bool,
}

impl Mirror {
    /// Takes in a change. A snapshot takes the place of all rows at once, when it is complete.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Snapshot => self.incoming = Some(BTreeMap::new()),
            Change::SnapshotEnd => {
                if let Some(rows) = self.incoming.take() {
                    (self.rows, self.is_whole) = (rows, true);
                }
            }
            Change::Put { key, value, upd } => {
                self.incoming.as_mut().unwrap_or(&mut self.rows).insert(key, Versioned { value, upd });
            }
            Change::Del { key, .. } => {
                self.incoming.as_mut().unwrap_or(&mut self.rows).remove(&key);
            }
        }
    }

    /// The rows by key.
    #[must_use]
    pub fn rows(&self) -> &BTreeMap<String, Versioned> {
        &self.rows
    }

    /// False until a first snapshot was complete: before that there are no rows, or only those that changed.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(pieces: &[&str]) -> Vec<SentEvent> {
        let (mut events, mut found) = (Events::default(), Vec::new());
        for piece in pieces {
            events.unread.extend_from_slice(piece.as_bytes());
            while let Some(event) = events.next().unwrap() {
                found.push(event);
            }
        }
        found
    }

    #[test]
    fn events_are_cut_wherever_the_bytes_are() {
        let text = "event: put\nid: a.1\ndata: {\"k\":1}\n\n:\nid:a.2\r\n\r\ndata: x\ndata:y\nnew: 1\n\nevent: half";
        let event = |name: &str, id: Option<&str>, data: &str| SentEvent {
            name: name.to_owned(),
            data: data.as_bytes().to_vec(),
            id: id.map(str::to_owned),
        };
        let expected = [event("put", Some("a.1"), "{\"k\":1}"), event("", Some("a.2"), ""), event("", None, "x\ny")];
        assert_eq!(events(&[text]), expected);
        for cut in 0..text.len() {
            assert_eq!(events(&[&text[..cut], &text[cut..]]), expected, "cut at {cut}");
        }
    }

    #[test]
    fn an_event_without_end_is_not_waited_for() {
        let mut events = Events::default();
        events.unread.resize(LINE_BYTES_MAX + 1, b'x');
        assert!(matches!(events.next(), Err(Error::Unreadable(_))));
    }

    #[test]
    fn a_snapshot_replaces_the_mirror_at_once() {
        let put = |key: &str, upd| Change::Put { key: key.to_owned(), value: Bytes::new(), upd: Ballot(upd) };
        let mut mirror = Mirror::default();
        let keys = |mirror: &Mirror| mirror.rows().keys().cloned().collect::<Vec<_>>().join(" ");
        for (change, expected, is_whole) in [
            (Change::Snapshot, "", false),
            (put("a", 1), "", false),
            (Change::SnapshotEnd, "a", true),
            (put("b", 2), "a b", true),
            (Change::Del { key: "a".to_owned(), upd: Ballot(3) }, "b", true),
            (Change::Snapshot, "b", true),
            (put("c", 4), "b", true),
            // Cut off half-way, and begun again.
            (Change::Snapshot, "b", true),
            (put("d", 5), "b", true),
            (Change::SnapshotEnd, "d", true),
        ] {
            mirror.apply(change);
            assert_eq!((keys(&mirror).as_str(), mirror.is_whole()), (expected, is_whole));
        }
    }
}
