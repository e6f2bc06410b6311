//! One client's connection, in either dialect, and the kinds of what goes wrong on it.

use std::path::PathBuf;

use bytes::Bytes;
use outrigger::client::{self, Client};
use outrigger::token::Token;
use outrigger::types::ShardId;

use super::Protocol;
use super::resp::Resp;
use crate::cli::Failure;

/// Where and how to connect.
pub(super) struct Target {
    /// For HTTP, with the shard and all options.
    pub(super) builder: client::Builder,
    pub(super) socket: PathBuf,
    pub(super) token: Option<Token>,
    pub(super) shard: ShardId,
    pub(super) protocol: Protocol,
    pub(super) quorum_reads: bool,
}

impl Target {
    /// Connects with its first request.
    pub(super) fn connection(&self) -> Connection {
        match self.protocol {
            // Boxed: it is far larger than the other.
            Protocol::Http => Connection::Http(Box::new(self.builder.clone().build())),
            Protocol::Resp => {
                Connection::Resp(Resp::new(&self.socket, &self.shard, self.token.clone(), self.quorum_reads))
            }
        }
    }
}

/// A connection, or one that is opened again with the next request.
pub(super) enum Connection {
    Http(Box<Client>),
    Resp(Resp),
}

impl Connection {
    /// False where the key has no value.
    pub(super) async fn get(&mut self, key: &str) -> Result<bool, Failed> {
        match self {
            Self::Http(client) => Ok(client.get(key).await?.is_some()),
            Self::Resp(resp) => resp.get(key).await,
        }
    }

    pub(super) async fn put(&mut self, key: &str, value: Bytes) -> Result<(), Failed> {
        match self {
            Self::Http(client) => Ok(client.put(key, value).await.map(drop)?),
            Self::Resp(resp) => resp.set(key, &value).await,
        }
    }

    /// Gives up the connection; the client of HTTP does so itself when a request is given up.
    pub(super) fn close(&mut self) {
        if let Self::Resp(resp) = self {
            resp.close();
        }
    }
}

/// What kind of thing went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Busy,
    NoQuorum,
    Timeout,
    Rejected,
    DiskFull,
    Connection,
    Other,
}

impl Kind {
    pub(super) const ALL: [Self; 7] =
        [Self::Busy, Self::NoQuorum, Self::Timeout, Self::Rejected, Self::DiskFull, Self::Connection, Self::Other];

    /// Its name, for people and, with `_` for blanks, in JSON.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::NoQuorum => "no quorum",
            Self::Timeout => "timeout",
            Self::Rejected => "rejected",
            Self::DiskFull => "disk full",
            Self::Connection => "connection",
            Self::Other => "other",
        }
    }

    /// True where the node or its quorum was out of reach.
    pub(super) fn is_unavailable(self) -> bool {
        match self {
            Self::Busy | Self::NoQuorum | Self::Timeout | Self::Connection => true,
            Self::Rejected | Self::DiskFull | Self::Other => false,
        }
    }

    /// By the last part of a problem's type.
    fn of_problem(label: &str) -> Self {
        match label {
            "busy" => Self::Busy,
            "no-quorum" => Self::NoQuorum,
            "timeout" => Self::Timeout,
            "frame-rejected" => Self::Rejected,
            "disk-full" => Self::DiskFull,
            _ => Self::Other,
        }
    }

    /// By the first word of an error of RESP.
    pub(super) fn of_resp(word: &str) -> Self {
        match word {
            "BUSY" => Self::Busy,
            "NOQUORUM" => Self::NoQuorum,
            "TIMEOUT" => Self::Timeout,
            "REJECTED" => Self::Rejected,
            "DISKFULL" => Self::DiskFull,
            _ => Self::Other,
        }
    }
}

/// A request that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failed {
    pub(super) kind: Kind,
    pub(super) reason: String,
}

impl From<client::Error> for Failed {
    fn from(error: client::Error) -> Self {
        let kind = match &error {
            client::Error::NotReachable { .. } | client::Error::Broken { .. } | client::Error::WatchEnded { .. } => {
                Kind::Connection
            }
            client::Error::Problem(problem) => Kind::of_problem(problem.kind.rsplit(':').next().unwrap_or_default()),
            client::Error::Unreadable(_) | client::Error::Invalid(_) | client::Error::MalformedRequest { .. } => {
                Kind::Other
            }
        };
        Self { kind, reason: error.to_string() }
    }
}

impl From<Failed> for Failure {
    fn from(failed: Failed) -> Self {
        if failed.kind.is_unavailable() { Self::Unavailable(failed.reason) } else { Self::Other(failed.reason) }
    }
}

#[cfg(test)]
mod tests {
    use outrigger::api::error::{ApiError, PROBLEM_TYPE_PREFIX, Written};

    use super::*;

    /// The node's own table of errors comes to the same kinds in both dialects.
    #[test]
    fn both_dialects_name_the_same_kinds() {
        let text = String::new;
        for (error, kind) in [
            (ApiError::Busy(text()), Kind::Busy),
            (ApiError::NoQuorum(text()), Kind::NoQuorum),
            (ApiError::Timeout(Written::Unknown), Kind::Timeout),
            (ApiError::Rejected(text()), Kind::Rejected),
            (ApiError::DiskFull(text()), Kind::DiskFull),
            (ApiError::TooLarge(text()), Kind::Other),
        ] {
            let row = error.row();
            assert_eq!((Kind::of_problem(row.label), Kind::of_resp(row.resp)), (kind, kind), "{row:?}");
            assert_eq!(kind.is_unavailable(), row.exit == 69, "{row:?}");
        }
        assert!(PROBLEM_TYPE_PREFIX.ends_with(':'));
    }
}
