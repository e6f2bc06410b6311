//! Deletions that are remembered, and how they are forgotten.
//!
//! A deletion is remembered as a row of `tombstone`, for an older write of its key that arrives late must not bring the key
//! back. It may be forgotten once the shard's GC floor is at or above its ballot: from then on absence itself says "deleted,
//! as of the floor". Who may raise the floor is for the replicator to decide; here it is raised, and in the same transaction
//! the first deletions go. The rest follows in transactions of bounded size: nobody counts what lies below the floor.
//!
//! A deletion that a later round chose again stays: it counts as that round, which is above the floor.

use std::sync::atomic::Ordering;

use rusqlite::Connection;

use super::digest::{Digest, Sum, bucket_of};
use super::error::Error;
use super::queries;
use super::shard::{Inner, Shard};
use crate::types::{Ballot, Key};

/// Deletions forgotten in one transaction.
const DROPPED_AT_ONCE_MAX: usize = 8_192;

const SUMMED: &str = "SELECT key, upd FROM tombstone WHERE upd > ?1 AND upd <= ?2";
const DROPPABLE: &str = "\
    SELECT key FROM tombstone AS t WHERE key > ?1 AND upd <= ?2 \
    AND NOT EXISTS (SELECT 1 FROM outrigger_ballot AS b WHERE b.key = t.key AND b.ballot > ?2) ORDER BY key LIMIT ?3";
/// Another program may have left a deletion beside a row, whose ballot it then is.
const DROP_BALLOT: &str = "\
    DELETE FROM outrigger_ballot WHERE key = ?1 AND NOT EXISTS (SELECT 1 FROM kv WHERE key = ?1)";

/// The deletions that a shard's file remembers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tombstones {
    /// How many there are above the GC floor.
    pub count: u64,
    /// The version of the oldest of them.
    pub oldest: Option<Ballot>,
}

/// What one transaction forgot.
#[derive(Debug, Default)]
pub(super) struct Dropped {
    pub(super) rows: u64,
    /// The last of them, where there may be more.
    pub(super) upto: Option<String>,
}

impl Shard {
    /// The deletions that the file remembers. Blocking: it looks at each.
    pub fn tombstones(&self) -> Result<Tombstones, Error> {
        self.inner.check()?;
        let floor = self.gc_floor();
        self.inner.query("counting the deletions of", |conn| {
            let mut count =
                conn.prepare_cached("SELECT count(*), CAST(min(upd) AS INTEGER) FROM tombstone WHERE upd > ?1")?;
            count.query_row([floor.0], |row| {
                let count: i64 = row.get(0)?;
                let oldest: Option<i64> = row.get(1)?;
                Ok(Tombstones { count: u64::try_from(count).unwrap_or(0), oldest: oldest.map(Ballot) })
            })
        })
    }

    /// The digest of the live rows of versions up to `upto`, and of the deletions above `above` and up to there: with
    /// everything committed before the call, and in part what is committed meanwhile. Blocking: it reads all rows.
    pub fn digest_of_old(&self, above: Ballot, upto: Ballot) -> Result<Digest, Error> {
        self.inner.check()?;
        self.inner.flush()?;
        let _one = self.inner.comparing.lock();
        self.inner.query("comparing the old rows of", |conn| {
            let snapshot = conn.unchecked_transaction()?;
            let mut digest = queries::digest_of_live(&snapshot, above, upto)?;
            sum(&snapshot, above, upto, &mut digest)?;
            Ok(digest)
        })
    }

    /// Raises the GC floor to `floor`, and forgets the deletions up to there; returns how many. The caller knows that
    /// everything chosen up to there is in this shard, but for live rows that were deleted since: these it names in
    /// `forgotten`, and they go too, if they are not newer. Nothing happens where the floor is as high already. Blocking.
    pub fn raise_floor(&self, floor: Ballot, forgotten: &[Key]) -> Result<u64, Error> {
        let core = self.inner.check()?;
        self.inner.flush()?;
        let mut dropped = match self.with_writer(|writer| self.inner.raise(writer, floor, forgotten)) {
            None => return Err(Error::Closed),
            Some(raised) => match self.inner.noticed(raised)? {
                None => return Ok(0),
                Some(dropped) => dropped,
            },
        };
        if !forgotten.is_empty() {
            core.feed.lose_shard(self.id());
        }
        self.with_writer(|writer| core.summaries.set(self.id(), writer.summary()));
        let mut rows = dropped.rows;
        while let Some(after) = dropped.upto.take() {
            let more = self.with_writer(|writer| writer.drop_tombstones(&after)).ok_or(Error::Closed)?;
            dropped = self.inner.noticed(more)?;
            rows += dropped.rows;
        }
        Ok(rows)
    }
}

impl Inner {
    /// None where the floor is as high already. Whoever finds nothing where there was a row knows the floor by then: so it
    /// is shown before the row is gone. That is true, too, where the file then cannot be written.
    fn raise(
        &self,
        writer: &mut super::writer::Writer,
        floor: Ballot,
        forgotten: &[Key],
    ) -> Result<Option<Dropped>, Error> {
        if floor <= writer.gc_floor() {
            return Ok(None);
        }
        self.gc_floor.fetch_max(floor.0, Ordering::SeqCst);
        writer.raise_floor(floor, forgotten).map(Some)
    }
}

/// Adds the deletions above `above` and up to `upto` to `digest`.
pub(super) fn sum(conn: &Connection, above: Ballot, upto: Ballot, digest: &mut Digest) -> rusqlite::Result<()> {
    let mut statement = conn.prepare_cached(SUMMED)?;
    let mut rows = statement.query([above.0, upto.0])?;
    while let Some(row) = rows.next()? {
        // What is no key can be read by nobody, so it is not compared either.
        let Ok(key) = row.get_ref(0)?.as_str() else { continue };
        digest.add(bucket_of(key), Sum::of(key, queries::version(row.get_ref(1)?), false));
    }
    Ok(())
}

/// Drops some of the deletions that a shard with this floor need not remember, in key order after `after`.
pub(super) fn drop_some(conn: &Connection, floor: Ballot, after: &str) -> rusqlite::Result<Dropped> {
    let limit = i64::try_from(DROPPED_AT_ONCE_MAX).unwrap_or(i64::MAX);
    let mut find = conn.prepare_cached(DROPPABLE)?;
    let found = find.query_map((after, floor.0, limit), |row| row.get::<_, String>(0))?;
    let keys: Vec<String> = found.collect::<rusqlite::Result<_>>()?;
    let mut drop_row = conn.prepare_cached("DELETE FROM tombstone WHERE key = ?1")?;
    let mut drop_ballot = conn.prepare_cached(DROP_BALLOT)?;
    for key in &keys {
        drop_row.execute([key])?;
        drop_ballot.execute([key])?;
    }
    let (rows, is_full) = (keys.len() as u64, keys.len() == DROPPED_AT_ONCE_MAX);
    Ok(Dropped { rows, upto: keys.into_iter().next_back().filter(|_| is_full) })
}
