//! What can go wrong between a client and its node.

use std::fmt;
use std::path::PathBuf;

use hyper::StatusCode;
use serde::Deserialize;

use crate::types::InvalidInput;

/// Why an operation has no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens at the socket. Nothing was sent.
    #[error("no node answers at the socket {}: {reason}", socket.display())]
    NotReachable {
        /// The path that was tried.
        socket: PathBuf,
        /// What the system said.
        reason: std::io::Error,
    },
    /// The node answered with an error.
    #[error("{0}")]
    Problem(Problem),
    /// The request left, but no whole answer came: a write may or may not have happened. A retry is safe for `put` and
    /// `del`.
    #[error("{tried} over the socket {}: {reason}; whether it happened is unknown", socket.display())]
    Broken {
        /// The path.
        socket: PathBuf,
        /// The operation.
        tried: &'static str,
        /// What happened.
        reason: String,
    },
    /// A watch's connection ended. Whatever happens from then on is told to who goes on with the watch's last id.
    #[error("the watch over the socket {} ended: {reason}", socket.display())]
    WatchEnded {
        /// The path.
        socket: PathBuf,
        /// What happened.
        reason: String,
    },
    /// The answer is not one that this client understands.
    #[error("the node's answer cannot be read: {0}")]
    Unreadable(String),
    /// A name or key that no node would take. Nothing was sent.
    #[error("{0}")]
    Invalid(#[from] InvalidInput),
    /// A request that HTTP cannot carry. Nothing was sent.
    #[error("cannot ask for {path}: {reason}")]
    MalformedRequest {
        /// The path asked for.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Error {
    pub(super) fn malformed_request(path: &str, why: &hyper::http::Error) -> Self {
        Self::MalformedRequest { path: path.to_owned(), reason: why.to_string() }
    }

    /// True where the node or its quorum was out of reach: worth another try elsewhere or later.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::NotReachable { .. } | Self::Broken { .. } | Self::WatchEnded { .. } => true,
            Self::Problem(problem) => matches!(
                StatusCode::from_u16(problem.status),
                Ok(StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
            ),
            Self::Unreadable(_) | Self::Invalid(_) | Self::MalformedRequest { .. } => false,
        }
    }

    /// True where the request itself is at fault, so that it will fail wherever it is sent.
    #[must_use]
    pub fn is_bad_request(&self) -> bool {
        match self {
            Self::Invalid(_) | Self::MalformedRequest { .. } => true,
            Self::Problem(problem) => matches!(
                StatusCode::from_u16(problem.status),
                Ok(StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE)
            ),
            Self::NotReachable { .. } | Self::Broken { .. } | Self::WatchEnded { .. } | Self::Unreadable(_) => false,
        }
    }
}

/// A node's error, as RFC 9457 lays it out.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Problem {
    /// Stable name of this kind of problem, to be compared with.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// The same for every occurrence of the kind.
    #[serde(default)]
    pub title: String,
    /// The HTTP status.
    #[serde(default)]
    pub status: u16,
    /// What happened this time.
    #[serde(default)]
    pub detail: String,
    /// Whether a write may have happened nevertheless; absent where the answer did not come from a node.
    #[serde(default)]
    pub written: Option<Written>,
}

/// Whether something may have been written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Written {
    /// Nothing was, and nothing will be by this request.
    No,
    /// It may yet be.
    Unknown,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.title.is_empty() { "the node answered with an error" } else { &self.title })?;
        if !self.detail.is_empty() && self.detail != self.title {
            write!(f, ": {}", self.detail)?;
        }
        write!(f, " (HTTP {}", self.status)?;
        if self.written == Some(Written::Unknown) {
            f.write_str(", outcome unknown")?;
        }
        f.write_str(")")
    }
}
