//! What can go wrong in the store.

use std::path::PathBuf;
use std::sync::Arc;

use super::replicator::Rejection;
use crate::types::InvalidInput;

/// An error of the store. Cheap to clone: a poisoned shard repeats its first one to every later caller.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A method ran after the manager or the shard was closed.
    #[error("store: closed")]
    Closed,
    /// A name, key or value that cannot be stored. Nothing was written.
    #[error(transparent)]
    Invalid(#[from] InvalidInput),
    /// The replicator refused the write. Nothing was written.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The write's outcome is unknown: it may be visible now, later or never. A retry is safe.
    #[error("timeout: the outcome of the write is unknown")]
    Timeout,
    /// A restart left this key's last write undecided, and no quorum has settled it yet.
    #[error("the last write of this key before the restart is not settled yet: no quorum answers")]
    Unsettled,
    /// The operating system refused something.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        source: Arc<std::io::Error>,
    },
    /// SQLite refused something.
    #[error("{doing} {path}: {source}")]
    Sqlite {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        source: Arc<rusqlite::Error>,
    },
    /// A row written by another program that this one cannot hold, such as a key that is not UTF-8.
    #[error("{path}: unreadable row: {why}")]
    UnreadableRow {
        /// The shard file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file that cannot serve as a shard: of a newer format, or without a write-ahead log.
    #[error("{path}: cannot be opened as a shard: {why}")]
    UnusableFile {
        /// The shard file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// What the callback of a list returned to end it.
    #[error("list callback: {0}")]
    Callback(String),
    /// A list's rows were not taken in time: for as long as it is open, its shard's log cannot start over.
    #[error(
        "the list ended before its last row, as its rows were not taken within {0:?}: read faster, or page by page"
    )]
    Stalled(std::time::Duration),
}

impl Error {
    /// What happened, without the file that it happened to: for those who are told how a node is, but not whose data it has.
    #[must_use]
    pub fn without_path(&self) -> String {
        let (what, path) = match self {
            Self::Io { path, .. } | Self::Sqlite { path, .. } => (self.to_string(), path),
            Self::UnreadableRow { path, .. } | Self::UnusableFile { path, .. } => (self.to_string(), path),
            other => return other.to_string(),
        };
        // The source may repeat it.
        what.replace(&path.display().to_string(), "a shard's file")
    }
}
