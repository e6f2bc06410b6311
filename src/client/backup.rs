//! What a backup is made of: the shards there are, and a copy of each as a stream of bytes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::Request;
use hyper::body::Incoming;
use hyper::header::CONTENT_LENGTH;
use serde::{Deserialize, Deserializer};

use super::wire::{self, Body, Sender};
use super::{Error, Problem};
use crate::types::{Namespace, Org, ShardId};

/// How long a node may take before the first byte of a copy: it waits for its turn, compares the shard with other
/// nodes' and copies it on its own disk.
pub const COPY_BEGINS_WITHIN: Duration = Duration::from_secs(15 * 60);
/// How long the next bytes of a copy may take.
const PIECE_WITHIN: Duration = Duration::from_secs(60);

/// What there is to back up.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Copyable {
    /// The cluster's id.
    pub cluster: String,
    /// The node that answers.
    pub node: String,
    /// Its program's version.
    pub version: String,
    /// The shards, sorted.
    #[serde(deserialize_with = "named")]
    pub shards: Vec<ShardId>,
}

fn named<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ShardId>, D::Error> {
    #[derive(Deserialize)]
    struct Named {
        org: Org,
        namespace: Namespace,
    }
    let named: Vec<Named> = Vec::deserialize(deserializer)?;
    Ok(named.into_iter().map(|Named { org, namespace }| ShardId { org, namespace }).collect())
}

/// A copy of a shard on its way: an SQLite database. Dropping it ends it.
#[derive(Debug)]
pub struct Copy {
    socket: PathBuf,
    body: Incoming,
    bytes: u64,
    received: u64,
    _sender: Sender,
}

/// Asks for a copy; none where there is no such shard.
pub(super) async fn start(socket: &Path, request: Request<Body>) -> Result<Option<Copy>, Error> {
    let begin = async {
        let mut sender = wire::connect(socket).await?;
        let sent = wire::send(&mut sender, request).await;
        let response = sent.map_err(|(error, _)| broken(socket, &error))?;
        if !response.status().is_success() {
            let problem = wire::whole(socket, "backup", response).await?.problem();
            return if is_no_shard(&problem) { Ok(None) } else { Err(Error::Problem(problem)) };
        }
        let length = response.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let bytes = length.ok_or_else(|| Error::Unreadable("a copy that does not say how long it is".to_owned()))?;
        Ok(Some(Copy { socket: socket.to_owned(), body: response.into_body(), bytes, received: 0, _sender: sender }))
    };
    let late = |_| Err(broken(socket, &format!("nothing came for {}", humantime::format_duration(COPY_BEGINS_WITHIN))));
    tokio::time::timeout(COPY_BEGINS_WITHIN, begin).await.unwrap_or_else(late)
}

/// An older node knows no copies at all, which is another matter.
fn is_no_shard(problem: &Problem) -> bool {
    problem.status == 404 && problem.detail.starts_with("there is no shard")
}

fn broken(socket: &Path, why: &(impl std::fmt::Display + ?Sized)) -> Error {
    wire::broken(socket, "backup", why)
}

impl Copy {
    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next bytes; none after the last. A copy that breaks off is an error.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let frame = tokio::time::timeout(PIECE_WITHIN, self.body.frame()).await;
            let late =
                |_| broken(&self.socket, &format!("nothing came for {}", humantime::format_duration(PIECE_WITHIN)));
            match frame.map_err(late)? {
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else { continue };
                    self.received += data.len() as u64;
                    return Ok(Some(data));
                }
                Some(Err(error)) => return Err(broken(&self.socket, &error)),
                None if self.received == self.bytes => return Ok(None),
                None => {
                    let Self { received, bytes, .. } = self;
                    return Err(broken(&self.socket, &format!("it ended after {received} of {bytes} bytes")));
                }
            }
        }
    }
}
