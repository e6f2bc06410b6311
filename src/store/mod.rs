//! Per-(org, namespace) SQLite shards.

pub mod error;
pub mod replicator;
pub mod update;

pub use error::Error;
/// A committed row as the protocol sees it: deletions included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRow {
    /// What the key was left with.
    pub op: replicator::Op,
    /// The version that clients see.
    pub upd: crate::types::Ballot,
    /// The round that chose it: `upd`, unless a later round chose the same mutation again.
    pub ballot: crate::types::Ballot,
}
