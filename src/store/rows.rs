//! The shapes in which rows leave the store, and the one rule by which a mutation replaces a row.

use super::replicator::Op;
use super::update::Row;
use crate::types::{Ballot, Key, Value};

/// The most items one [`Page`] may hold.
pub const PAGE_ITEMS_MAX: usize = 10_000;
/// The default for [`PageQuery::bytes_max`].
pub const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A committed row as the protocol sees it: deletions included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRow {
    /// What the key was left with.
    pub op: Op,
    /// The version that clients see.
    pub upd: Ballot,
    /// The round that chose it: `upd`, unless a later round chose the same mutation again.
    pub ballot: Ballot,
}

impl StoredRow {
    /// The row as a client sees it: none for a deletion.
    #[must_use]
    pub fn into_row(self) -> Option<Row> {
        match self.op {
            Op::Put(value) => Some(Row { value, upd: self.upd }),
            Op::Del => None,
        }
    }
}

/// All that a shard knows of one key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stored {
    /// Its row, be it a deletion.
    pub row: Option<StoredRow>,
    /// The shard's GC floor: where there is no row, all up to here was deleted, and the deletion has been forgotten.
    pub floor: Ballot,
}

impl Stored {
    /// The round of what is known: absence counts as the floor.
    #[must_use]
    pub fn ballot(&self) -> Ballot {
        self.row.as_ref().map_or(self.floor, |row| row.ballot)
    }
}

/// Whether a mutation of (`ballot`, `upd`) replaces what is stored: only a later round does, a version never sinks, and
/// where nothing is stored everything up to the GC floor was a deletion since forgotten.
pub(super) fn supersedes(ballot: Ballot, upd: Ballot, stored: Option<&StoredRow>, gc_floor: Ballot) -> bool {
    match stored {
        Some(row) => ballot > row.ballot && upd >= row.upd,
        None => ballot > gc_floor,
    }
}

/// Which rows a page holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageQuery {
    /// Only keys that begin with this; every key where it is empty.
    pub prefix: String,
    /// Only keys after this one.
    pub after: Option<Key>,
    /// The most items, 1 to [`PAGE_ITEMS_MAX`]; what is outside counts as the nearest of the two.
    pub limit: usize,
    /// Leave values out.
    pub keys_only: bool,
    /// The most bytes of keys and values together; a first item larger than that is still returned.
    pub bytes_max: usize,
}

impl PageQuery {
    /// The first 1000 rows under `prefix`, values included.
    #[must_use]
    pub fn prefix(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), after: None, limit: 1_000, keys_only: false, bytes_max: PAGE_BYTES_MAX }
    }
}

/// One live row of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Its key.
    pub key: Key,
    /// Its value; none where the query asked for keys only.
    pub value: Option<Value>,
    /// Its version.
    pub upd: Ballot,
}

impl Item {
    pub(super) fn bytes(&self) -> usize {
        self.key.as_str().len() + self.value.as_ref().map_or(0, |value| value.as_bytes().len())
    }
}

/// Some rows of a shard in key order, all as they were at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// The rows.
    pub items: Vec<Item>,
    /// Where to go on: the [`PageQuery::after`] of the next page. None at the end.
    pub next: Option<Key>,
}

/// What a shard amounts to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShardStats {
    /// Live keys.
    pub keys: u64,
    /// Size of the file and its write-ahead log on disk, in bytes.
    pub bytes: u64,
    /// The highest version of any row, deletions included.
    pub last_upd: Ballot,
    /// Deletions that its file remembers.
    pub tombstones: u64,
}
