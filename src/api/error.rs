//! The one table from what went wrong to what each dialect says about it.
//!
//! A row names the HTTP status, the stable problem type, whether something may have been written, the RESP error
//! word, the exit code of the command-line client, and the label of the error's metric. Both dialects and the metrics
//! read this table and nothing else.

use std::io::ErrorKind;

use axum::http::StatusCode;
use serde::Serialize;

use crate::cluster::change::ChangeError;
use crate::store::error::Error as StoreError;
use crate::store::replicator::Rejection;
use crate::types::{Ballot, InvalidInput};

/// What every problem type starts with; the rest is [`Row::label`].
pub const PROBLEM_TYPE_PREFIX: &str = "urn:outrigger:problem:";
/// How many seconds a client is told to wait before it tries again.
pub const RETRY_AFTER_SECONDS: u32 = 1;

/// Every row's label: the values that the `error` label of the errors' metric can have.
pub(super) const LABELS: &[&str] = &[
    "condition-failed",
    "change-refused",
    "frame-rejected",
    "no-quorum",
    "timeout",
    "too-large",
    "invalid-request",
    "disk-full",
    "busy",
    "not-found",
    "method-not-allowed",
    "slow-client",
    "unsupported-media-type",
    "not-supported",
    "unhealthy",
    "internal",
    "token-needed",
    "token-unknown",
    "forbidden",
    "quota-exceeded",
    "rate-limited",
];

/// Whether a failed request may have changed something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Written {
    /// Nothing was written, and nothing will be by this request.
    No,
    /// It may be visible now, later or never. A retry is safe.
    Unknown,
}

impl Written {
    /// `no` or `unknown`, as a problem's `written` says it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Unknown => "unknown",
        }
    }
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// The row is not what the request wanted it to be.
    #[error("the condition does not hold{}", current.map_or_else(|| ": the key has no value".to_owned(), |upd| format!(": the current version is {upd}")))]
    ConditionFailed {
        /// The version there; none where the key has no value.
        current: Option<Ballot>,
    },
    /// A change of the cluster that cannot be, as things are.
    #[error("{0}")]
    ChangeRefused(String),
    /// The replicas would not have it.
    #[error("{0}")]
    Rejected(String),
    /// No majority answers, which was known before anything was stored.
    #[error("{0}")]
    NoQuorum(String),
    /// The answer did not come in time.
    #[error("{}", timeout_detail(*.0))]
    Timeout(Written),
    /// A key, a value, a body or an answer over its bound.
    #[error("{0}")]
    TooLarge(String),
    /// A name, key, parameter, header or body that cannot be read.
    #[error("{0}")]
    Invalid(String),
    /// This node's disk is full.
    #[error("{0}")]
    DiskFull(String),
    /// Draining, or a queue is full.
    #[error("{0}")]
    Busy(String),
    /// The key has no value.
    #[error("{0}")]
    NotFound(String),
    /// The path exists, the method does not.
    #[error("{0}")]
    MethodNotAllowed(String),
    /// The client took too long to send its request.
    #[error("{0}")]
    SlowClient(String),
    /// A body of a media type that is not understood.
    #[error("{0}")]
    UnsupportedMediaType(String),
    /// Part of the interface, but not built yet.
    #[error("{0}")]
    NotSupported(String),
    /// This node cannot serve quorum operations now.
    #[error("{0}")]
    Unhealthy(String),
    /// Who asks is not known, and did not show a token.
    #[error("{0}")]
    TokenNeeded(String),
    /// What was shown as a token is none.
    #[error("{0}")]
    TokenUnknown(String),
    /// Who asks is known, and may not.
    #[error("{0}")]
    Forbidden(String),
    /// The org has stored all that it may.
    #[error("{0}")]
    QuotaExceeded(String),
    /// The org asks for more per second than it may.
    #[error("{0}")]
    RateLimited(String),
    /// The store failed.
    #[error("{detail}")]
    Internal {
        /// What failed.
        detail: String,
        /// A write that fails half-way may still take effect.
        written: Written,
    },
}

fn timeout_detail(written: Written) -> &'static str {
    match written {
        Written::No => "no answer in time",
        Written::Unknown => "no answer in time: the outcome is unknown, it may yet be accepted; a retry is safe",
    }
}

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The HTTP status.
    pub status: StatusCode,
    /// The last part of the problem's type, and the label of the metric.
    pub label: &'static str,
    /// The problem's title: the same for every occurrence.
    pub title: &'static str,
    /// Whether something may have been written.
    pub written: Written,
    /// The first word of the RESP error.
    pub resp: &'static str,
    /// True where the answer says when to try again.
    pub retry_after: bool,
    /// What a command-line client exits with: 2 bad usage, 69 no quorum or no node, 1 otherwise.
    pub exit: u8,
}

/// The table's rows with nothing written; the `written` of those that may have is set in [`ApiError::row`].
const fn row(
    status: StatusCode,
    label: &'static str,
    title: &'static str,
    resp: &'static str,
    retry_after: bool,
    exit: u8,
) -> Row {
    Row { status, label, title, written: Written::No, resp, retry_after, exit }
}

impl ApiError {
    /// The error's row of the table.
    #[must_use]
    #[rustfmt::skip]
    pub fn row(&self) -> Row {
        use StatusCode as S;
        match self {
            Self::ConditionFailed { .. } => row(S::PRECONDITION_FAILED, "condition-failed", "The condition does not hold", "ERR", false, 1),
            Self::ChangeRefused(_) => row(S::CONFLICT, "change-refused", "The cluster cannot be changed like that", "ERR", false, 1),
            Self::Rejected(_) => row(S::CONFLICT, "frame-rejected", "The replicas rejected the write", "REJECTED", false, 1),
            Self::NoQuorum(_) => row(S::SERVICE_UNAVAILABLE, "no-quorum", "No quorum within reach", "NOQUORUM", true, 69),
            Self::Timeout(written) => Row { written: *written, ..row(S::GATEWAY_TIMEOUT, "timeout", "No answer in time", "TIMEOUT", false, 69) },
            Self::TooLarge(_) => row(S::PAYLOAD_TOO_LARGE, "too-large", "Too large", "ERR", false, 2),
            Self::Invalid(_) => row(S::BAD_REQUEST, "invalid-request", "The request cannot be read", "ERR", false, 2),
            Self::DiskFull(_) => row(S::INSUFFICIENT_STORAGE, "disk-full", "The disk of this node is full", "DISKFULL", false, 1),
            Self::Busy(_) => row(S::SERVICE_UNAVAILABLE, "busy", "Shutting down or overloaded", "BUSY", true, 69),
            Self::NotFound(_) => row(S::NOT_FOUND, "not-found", "Not found", "ERR", false, 1),
            Self::MethodNotAllowed(_) => row(S::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed", "ERR", false, 1),
            Self::SlowClient(_) => row(S::REQUEST_TIMEOUT, "slow-client", "The client was too slow", "ERR", false, 1),
            Self::UnsupportedMediaType(_) => row(S::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", "Unsupported media type", "ERR", false, 1),
            Self::NotSupported(_) => row(S::NOT_IMPLEMENTED, "not-supported", "Not supported yet", "ERR", false, 1),
            Self::Unhealthy(_) => row(S::SERVICE_UNAVAILABLE, "unhealthy", "This node cannot serve quorum operations", "NOQUORUM", true, 69),
            Self::TokenNeeded(_) => row(S::UNAUTHORIZED, "token-needed", "A token is needed", "NOAUTH", false, 1),
            Self::TokenUnknown(_) => row(S::UNAUTHORIZED, "token-unknown", "The token is unknown", "WRONGPASS", false, 1),
            Self::Forbidden(_) => row(S::FORBIDDEN, "forbidden", "Not allowed", "NOPERM", false, 1),
            Self::QuotaExceeded(_) => row(S::INSUFFICIENT_STORAGE, "quota-exceeded", "The org has stored all that it may", "QUOTA", false, 1),
            Self::RateLimited(_) => row(S::TOO_MANY_REQUESTS, "rate-limited", "Too many requests of this org", "BUSY", true, 69),
            Self::Internal { written, .. } => Row { written: *written, ..row(S::INTERNAL_SERVER_ERROR, "internal", "The store failed", "ERR", false, 1) },
        }
    }

    /// Translates what the store says. `on_failure` is what holds where the store broke or ran out of time:
    /// [`Written::No`] for reads, [`Written::Unknown`] for writes.
    #[must_use]
    pub fn from_store(error: StoreError, on_failure: Written) -> Self {
        match error {
            StoreError::Closed => Self::Busy("the store is closed: this node is shutting down".to_owned()),
            StoreError::Invalid(why) => why.into(),
            StoreError::Rejected(why) => why.into(),
            StoreError::Timeout => Self::Timeout(on_failure),
            StoreError::Unsettled => Self::NoQuorum(error.to_string()),
            StoreError::Stalled(_) => Self::SlowClient(error.to_string()),
            StoreError::Io { ref source, .. } if source.kind() == ErrorKind::StorageFull => {
                Self::DiskFull(error.to_string())
            }
            other => Self::Internal { detail: other.to_string(), written: on_failure },
        }
    }

    /// Tells a read's client that there is no quorum, where the read needed one and could not get it in time.
    #[must_use]
    pub fn timeout_as_no_quorum(self) -> Self {
        match self {
            Self::Timeout(_) => Self::NoQuorum("no quorum answered in time to settle this key".to_owned()),
            other => other,
        }
    }

    /// The error as one RESP error line, without the leading `-` and the line's end.
    #[must_use]
    pub fn resp_line(&self) -> String {
        let mut line = format!("{} {self}", self.row().resp);
        if line.contains(['\r', '\n']) {
            line = line.replace(['\r', '\n'], " ");
        }
        line
    }

    /// The error as an RFC 9457 problem.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let row = self.row();
        Problem {
            kind: format!("{PROBLEM_TYPE_PREFIX}{}", row.label),
            title: row.title,
            status: row.status.as_u16(),
            detail: self.to_string(),
            written: row.written,
        }
    }
}

impl From<InvalidInput> for ApiError {
    fn from(why: InvalidInput) -> Self {
        if why.is_too_large() { Self::TooLarge(why.to_string()) } else { Self::Invalid(why.to_string()) }
    }
}

impl From<ChangeError> for ApiError {
    fn from(why: ChangeError) -> Self {
        match why {
            ChangeError::Refused(..) | ChangeError::NotLost(_) => Self::ChangeRefused(why.to_string()),
            ChangeError::Unavailable(why) => Self::Unhealthy(why),
        }
    }
}

impl From<Rejection> for ApiError {
    fn from(why: Rejection) -> Self {
        match why {
            Rejection::Refused(why) => Self::Rejected(why),
            Rejection::NoQuorum(why) => Self::NoQuorum(why),
            Rejection::Busy(why) => Self::Busy(why),
            Rejection::DiskFull(why) => Self::DiskFull(why),
        }
    }
}

/// The body of an HTTP error: RFC 9457 `application/problem+json`, with `written` added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Stable: [`PROBLEM_TYPE_PREFIX`] and the row's label.
    #[serde(rename = "type")]
    pub kind: String,
    /// The same for every occurrence of the type.
    pub title: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// What happened this time.
    pub detail: String,
    /// Whether something may have been written.
    pub written: Written,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> String {
        "because".to_owned()
    }

    /// INTERFACES' outcome table, row by row: error, HTTP status, problem, RESP line, written, `Retry-After`, exit.
    #[test]
    #[rustfmt::skip]
    fn every_outcome_is_told_as_the_interface_says() {
        let rows = [
            (ApiError::ConditionFailed { current: None }, 412, "condition-failed", "ERR", "no", false, 1),
            (ApiError::from(ChangeError::NotLost("because")), 409, "change-refused", "ERR", "no", false, 1),
            (ApiError::from(ChangeError::Unavailable(some())), 503, "unhealthy", "NOQUORUM", "no", true, 69),
            (ApiError::from(Rejection::Refused(some())), 409, "frame-rejected", "REJECTED", "no", false, 1),
            (ApiError::from(Rejection::NoQuorum(some())), 503, "no-quorum", "NOQUORUM", "no", true, 69),
            (ApiError::from(Rejection::Busy(some())), 503, "busy", "BUSY", "no", true, 69),
            (ApiError::from(Rejection::DiskFull(some())), 507, "disk-full", "DISKFULL", "no", false, 1),
            (ApiError::from_store(StoreError::Timeout, Written::Unknown), 504, "timeout", "TIMEOUT", "unknown", false, 69),
            (ApiError::from_store(StoreError::Timeout, Written::No), 504, "timeout", "TIMEOUT", "no", false, 69),
            (ApiError::from_store(StoreError::Unsettled, Written::No), 503, "no-quorum", "NOQUORUM", "no", true, 69),
            (ApiError::from_store(StoreError::Closed, Written::Unknown), 503, "busy", "BUSY", "no", true, 69),
            (ApiError::from(InvalidInput::ValueTooLarge { bytes: 2, max: 1 }), 413, "too-large", "ERR", "no", false, 2),
            (ApiError::from(InvalidInput::KeyTooLarge { bytes: 2, max: 1 }), 413, "too-large", "ERR", "no", false, 2),
            (ApiError::from(InvalidInput::EmptyKey), 400, "invalid-request", "ERR", "no", false, 2),
            (ApiError::NotFound(some()), 404, "not-found", "ERR", "no", false, 1),
            (ApiError::MethodNotAllowed(some()), 405, "method-not-allowed", "ERR", "no", false, 1),
            (ApiError::SlowClient(some()), 408, "slow-client", "ERR", "no", false, 1),
            (ApiError::UnsupportedMediaType(some()), 415, "unsupported-media-type", "ERR", "no", false, 1),
            (ApiError::NotSupported(some()), 501, "not-supported", "ERR", "no", false, 1),
            (ApiError::Unhealthy(some()), 503, "unhealthy", "NOQUORUM", "no", true, 69),
            (ApiError::TokenNeeded(some()), 401, "token-needed", "NOAUTH", "no", false, 1),
            (ApiError::TokenUnknown(some()), 401, "token-unknown", "WRONGPASS", "no", false, 1),
            (ApiError::Forbidden(some()), 403, "forbidden", "NOPERM", "no", false, 1),
            (ApiError::QuotaExceeded(some()), 507, "quota-exceeded", "QUOTA", "no", false, 1),
            (ApiError::RateLimited(some()), 429, "rate-limited", "BUSY", "no", true, 69),
            (ApiError::from_store(StoreError::Stalled(std::time::Duration::MAX), Written::No), 408, "slow-client", "ERR", "no", false, 1),
            (ApiError::from_store(StoreError::Callback(some()), Written::Unknown), 500, "internal", "ERR", "unknown", false, 1),
            (ApiError::from_store(StoreError::Callback(some()), Written::No), 500, "internal", "ERR", "no", false, 1),
        ];
        for (error, status, label, resp, written, retry_after, exit) in rows {
            let row = error.row();
            assert_eq!((row.status.as_u16(), row.label, row.resp), (status, label, resp), "{error:?}");
            assert_eq!((row.written.as_str(), row.retry_after, row.exit), (written, retry_after, exit), "{error:?}");
            assert!(LABELS.contains(&row.label), "{error:?} is not counted");
            let problem = serde_json::to_value(error.problem()).unwrap();
            assert_eq!(problem["type"], format!("urn:outrigger:problem:{label}"));
            assert_eq!(problem["status"], status);
            assert_eq!(problem["written"], written);
            assert_eq!(problem["detail"], error.to_string());
            assert!(error.resp_line().starts_with(&format!("{resp} ")));
        }
    }

    #[test]
    fn a_full_disk_is_told_apart_from_a_broken_one() {
        let io = |kind: ErrorKind| StoreError::Io {
            doing: "write",
            path: "shard.db".into(),
            source: std::sync::Arc::new(kind.into()),
        };
        assert_eq!(ApiError::from_store(io(ErrorKind::StorageFull), Written::Unknown).row().resp, "DISKFULL");
        assert_eq!(ApiError::from_store(io(ErrorKind::Other), Written::Unknown).row().label, "internal");
    }

    #[test]
    fn a_reply_never_holds_a_second_line() {
        assert_eq!(ApiError::Rejected("a\r\n+OK".to_owned()).resp_line(), "REJECTED a  +OK");
    }
}
