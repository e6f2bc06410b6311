//! A shard's digest beside its file, and what two nodes tell each other of it.
//!
//! ```text
//!   apply: the digest in memory changes with the rows; one in the file is taken out in the same transaction
//!   sync, close: the digest goes into the file
//!   open: taken from there; where there is none (a crash came before the end) built from the rows when first asked for
//! ```
//!
//! It is built while the shard goes on: from a snapshot, with what is applied meanwhile added to it in the end. What is
//! shown to a peer includes the frames in memory that the file has not got yet, so that nodes on which reads see the same
//! rows agree, however far their files are behind.
//!
//! A program that changes rows of a file that Outrigger has had makes its digest wrong, as nothing tells of it; one that
//! has to should delete the row `digest` of `outrigger_meta`.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher as _, RandomState};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::applier;
use super::core::Core;
use super::digest::{BUCKETS, Buckets, Digest, Root, Sum, Summary, bucket_of};
use super::error::Error;
use super::overlay::Eyes;
use super::queries::{self, End, Range, Want};
use super::replicator::Rejection;
use super::schema;
use super::shard::{Inner, Shard};
use super::writer::Fault;
use crate::telemetry;
use crate::types::{Ballot, Key, ShardId};

/// From so many buckets on, all rows are read as they lie in the file: to read the versions of a few keys in key order
/// means to jump to another page for each, which costs as much as forty rows read on the way.
const MANY_BUCKETS: usize = BUCKETS / 32;
/// Pairs found by one scan of a shard: each has a snapshot of its own.
pub const PAIRS_PER_SCAN_MAX: usize = 32_768;
const BUCKET_BITS: u64 = BUCKETS as u64 - 1;

/// How often a digest is begun anew because a write failed meanwhile.
const BUILDS_MAX: usize = 3;

/// What the writer of a file knows of its digest.
#[derive(Debug, Default)]
pub(super) enum Tracked {
    /// Nothing.
    #[default]
    Unknown,
    /// What has changed since the snapshot from which it is being built.
    Building(Digest),
    /// All of it.
    Known(Digest),
}

impl Tracked {
    pub(super) fn known(&self) -> Option<&Digest> {
        match self {
            Self::Known(digest) => Some(digest),
            Self::Unknown | Self::Building(_) => None,
        }
    }

    /// Rows were written that changed these buckets by so much.
    pub(super) fn change(&mut self, changes: &[(u16, Sum)]) {
        if let Self::Building(digest) | Self::Known(digest) = self {
            changes.iter().for_each(|(bucket, change)| digest.add(*bucket, *change));
        }
    }

    /// The floor rose, which takes out the rows of `gone`. What is being built begins anew: it is counted by another floor.
    pub(super) fn raise(&mut self, floor: Ballot, gone: &Digest) {
        match self {
            Self::Known(digest) => digest.raise(floor, gone),
            Self::Unknown | Self::Building(_) => *self = Self::Unknown,
        }
    }

    /// Learns what was in the snapshot. Whatever came in between, such as a failed write, has made it worthless.
    fn complete(&mut self, mut built: Digest) {
        if let Self::Building(changes) = self {
            built.merge(changes);
            *self = Self::Known(built);
        }
    }
}

/// The summaries of all shards, open or not, as their files are; none where it is not known.
#[derive(Debug, Default)]
pub(super) struct Summaries {
    all: Mutex<All>,
    /// Every shard with a file is in it: looked for once, as later ones come through [`Summaries::set`].
    is_complete: AtomicBool,
}

/// Of these the root follows; it is kept up with each, as it is asked for every second.
#[derive(Debug, Default)]
struct All {
    by_shard: HashMap<ShardId, Option<Summary>>,
    /// How many of them are none.
    unknown: usize,
    /// Of the others.
    root: Root,
}

impl Summaries {
    pub(super) fn set(&self, shard: &ShardId, summary: Option<Summary>) {
        let mut all = self.all.lock();
        let All { by_shard, unknown, root } = &mut *all;
        let before = match by_shard.get_mut(shard) {
            Some(known) => {
                *unknown -= usize::from(known.is_none());
                std::mem::replace(known, summary)
            }
            None => by_shard.insert(shard.clone(), summary).flatten(),
        };
        *unknown += usize::from(summary.is_none());
        root.exchange(shard, before.as_ref(), summary.as_ref());
    }

    /// There is no such shard here any more.
    pub(super) fn forget(&self, shard: &ShardId) {
        let mut all = self.all.lock();
        if let Some(before) = all.by_shard.remove(shard) {
            all.unknown -= usize::from(before.is_none());
            all.root.exchange(shard, before.as_ref(), None);
        }
    }

    fn get(&self, shard: &ShardId) -> Option<Summary> {
        self.all.lock().by_shard.get(shard).copied().flatten()
    }

    /// Those of the shards that remember deletions, where that is known.
    pub(super) fn remembering(&self) -> BTreeMap<ShardId, Summary> {
        let all = self.all.lock();
        let known = all.by_shard.iter().filter_map(|(shard, summary)| Some((shard, (*summary)?)));
        known.filter(|(_, summary)| summary.sum.dead != 0).map(|(shard, summary)| (shard.clone(), summary)).collect()
    }

    pub(super) fn root(&self) -> Option<Root> {
        if !self.is_complete.load(Ordering::Acquire) {
            return None;
        }
        let all = self.all.lock();
        (all.unknown == 0).then_some(all.root)
    }
}

#[cfg(test)]
impl Summaries {
    pub(super) fn complete(&self) {
        self.is_complete.store(true, Ordering::Release);
    }
}

impl Core {
    /// All shards by one number, as their files are now; none before [`Core::summarize`] has seen all of them, or where
    /// one has to be built anew.
    pub(super) fn root(&self) -> Option<Root> {
        self.summaries.root()
    }

    /// What `shard` holds, as reads see it; `open` opens it where that is not known yet. Blocking.
    pub(super) fn summarize(
        &self,
        shard: &ShardId,
        open: impl FnOnce() -> Result<std::sync::Arc<Shard>, Error>,
    ) -> Result<Summary, Error> {
        let waits = || self.known(shard).is_some_and(|state| !state.overlay.is_empty());
        match self.summaries.get(shard).filter(|_| !waits()) {
            Some(summary) => Ok(summary),
            None => Ok(open()?.digest()?.summary()),
        }
    }

    /// The same of all these, which are all there are. A file that cannot be used is named in the log and left out: it must
    /// not keep the others from being compared, and where a peer has that shard the comparison of it fails by itself.
    pub(super) fn summarize_all(
        self: &std::sync::Arc<Self>,
        shards: Vec<ShardId>,
        open: impl Fn(&ShardId) -> Result<std::sync::Arc<Shard>, Error>,
    ) -> Result<BTreeMap<ShardId, Summary>, Error> {
        applier::run_inline(self);
        let mut summaries = BTreeMap::new();
        for shard in shards {
            self.leave_to_applier(&shard);
            if !self.exists(&shard) {
                // Discarded since it was listed: opened now, it would come back as an empty one.
                continue;
            }
            match self.summarize(&shard, || open(&shard)) {
                Ok(summary) => drop(summaries.insert(shard, summary)),
                Err(error) if Fault::of(&*self.config.disk, &error) == Fault::Fatal && !self.is_closed() => {
                    tracing::error!(%shard, %error, "a shard that cannot be read is compared with nobody; move its file away");
                }
                Err(error) => return Err(error),
            }
        }
        self.summaries.is_complete.store(true, Ordering::Release);
        Ok(summaries)
    }

    /// Waits until the frames of a shard that is not open are in its file, as after a start. Opened before that it could not
    /// be closed again, and after a hundred of them no further one could be opened.
    fn leave_to_applier(&self, shard: &ShardId) {
        let Some(state) = self.known(shard).filter(|state| state.current.read().is_none()) else { return };
        let is_hopeless = || state.poisoned().is_err() || state.stuck().is_some() || self.is_closed();
        // Where they cannot get there, opening it tells why.
        let _ = state.overlay.wait_past(state.overlay.last(), || if is_hopeless() { Err(()) } else { Ok(()) });
    }
}

/// How far a shard's pairs have been listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Place {
    /// Not begun.
    #[default]
    Start,
    /// In key order, up to this key.
    Key(Option<Key>),
    /// As the rows of this table lie in the file, from this one on.
    Row(Table, i64),
    /// All of them.
    End,
}

/// A table of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// The live ones.
    Live,
    /// Deletions.
    Dead,
}

/// The versions of many keys in 16 bytes each. Of a key only a hash is kept, which is another each time, so that what two
/// keys with the same one hide in one comparison is found in the next.
#[derive(Debug, Default)]
pub struct Versions {
    hasher: RandomState,
    /// The buckets whose rows are all here.
    pub buckets: Buckets,
    /// By hash, whose last bits are the bucket, then by version.
    rows: Vec<(u64, Ballot)>,
}

impl Versions {
    /// Of no rows yet, out of these buckets.
    #[must_use]
    pub fn out_of(buckets: Buckets) -> Self {
        Self { buckets, ..Self::default() }
    }

    /// Adds some rows, and leaves out whole buckets where that makes too many. Once all are added they are to be sorted.
    pub fn add(&mut self, pairs: &[(Key, Ballot)], rows_max: usize) {
        let rows = pairs.iter().map(|(key, upd)| (self.hash(key), *upd));
        let rows: Vec<_> = rows.filter(|(hash, _)| self.buckets.contains(bucket_in(*hash))).collect();
        self.rows.extend(rows);
        while self.rows.len() > rows_max {
            let half = self.buckets.len() / 2;
            self.buckets = self.buckets.iter().take(half).collect();
            let buckets = &self.buckets;
            self.rows.retain(|(hash, _)| buckets.contains(bucket_in(*hash)));
        }
    }

    /// All rows are here.
    pub fn sort(&mut self) {
        self.rows.sort_unstable();
    }

    fn hash(&self, key: &Key) -> u64 {
        (self.hasher.hash_one(key.as_str()) & !BUCKET_BITS) | u64::from(bucket_of(key.as_str()))
    }

    /// The version of `key`, `None` within where there is none; `None` outside where its bucket was left out.
    #[must_use]
    pub fn of(&self, key: &Key) -> Option<Option<Ballot>> {
        let hash = self.hash(key);
        self.buckets.contains(bucket_in(hash)).then(|| {
            let after = self.rows.partition_point(|(other, _)| *other <= hash);
            self.rows.get(..after)?.last().filter(|(other, _)| *other == hash).map(|(_, upd)| *upd)
        })
    }
}

fn bucket_in(hash: u64) -> u16 {
    u16::try_from(hash & BUCKET_BITS).unwrap_or_default()
}

impl Shard {
    /// The pairs of these buckets, deletions included, from `place` on, which moves: about `limit` at a time, and first of
    /// all what waits in memory. What is written after the first call may be missing; a key may come twice, once in an
    /// older version. Blocking.
    pub fn next_pairs(&self, buckets: &Buckets, place: &mut Place, limit: usize) -> Result<Vec<(Key, Ballot)>, Error> {
        match place {
            Place::Start if buckets.len() >= MANY_BUCKETS && self.inner.has_rowids()? => {
                *place = Place::Row(Table::Live, i64::MIN);
                let excerpt = Range::new("", None).of(Eyes::Protocol, &self.inner.state.overlay, usize::MAX, || ());
                let pairs = excerpt.frames.into_iter().map(|(key, pending)| (key, pending.upd));
                Ok(pairs.filter(|(key, _)| buckets.hold(key)).collect())
            }
            Place::Start => {
                *place = Place::Key(None);
                self.next_pairs(buckets, place, limit)
            }
            Place::Key(after) => {
                let pairs = self.pairs(buckets, after.as_ref(), limit)?;
                *place = match pairs.last() {
                    Some((key, _)) if pairs.len() == limit => Place::Key(Some(key.clone())),
                    _ => Place::End,
                };
                Ok(pairs)
            }
            Place::Row(table, from) => {
                let _one = self.inner.comparing.lock();
                let table = *table;
                let (pairs, next) =
                    self.inner.query("listing", |conn| queries::lying(conn, table, *from, buckets, limit))?;
                *place = match (next, table) {
                    (Some(row), _) => Place::Row(table, row),
                    (None, Table::Live) => Place::Row(Table::Dead, i64::MIN),
                    (None, Table::Dead) => Place::End,
                };
                Ok(pairs)
            }
            Place::End => Ok(Vec::new()),
        }
    }

    /// The versions of all rows of these buckets, of as many buckets as have no more than `rows_max`; of none where there
    /// are so few that keys are better looked up one by one. Blocking.
    pub fn versions(&self, buckets: &Buckets, rows_max: usize) -> Result<Versions, Error> {
        let mut versions = Versions::default();
        if buckets.len() < MANY_BUCKETS {
            return Ok(versions);
        }
        versions.buckets = buckets.clone();
        let mut place = Place::Start;
        while place != Place::End && !versions.buckets.is_empty() {
            versions.add(&self.next_pairs(buckets, &mut place, PAIRS_PER_SCAN_MAX)?, rows_max);
        }
        versions.sort();
        Ok(versions)
    }

    /// Up to `limit` keys of these buckets after `after` with their versions, deletions included, in key order.
    /// Blocking: it looks at every key.
    pub fn pairs(&self, buckets: &Buckets, after: Option<&Key>, limit: usize) -> Result<Vec<(Key, Ballot)>, Error> {
        let _one = self.inner.comparing.lock();
        let mut pairs: Vec<(Key, Ballot)> = Vec::new();
        let mut range = Range::new("", after);
        while pairs.len() < limit {
            let wanted = limit - pairs.len();
            let end = self.inner.scan(&range, Want::Pairs(buckets), wanted.saturating_add(1), |item| {
                pairs.push((item.key, item.upd));
                if pairs.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            match end {
                End::Whole => break,
                End::Excerpt(key) => range = Range::new("", Some(&key)),
            }
        }
        Ok(pairs)
    }

    /// Up to `limit` keys after `after`, in key order, whose record was voted for again since its version was first written,
    /// with the ballot of the latest of those votes: what the digest does not show. The first call, without `after`, waits
    /// for all that was committed before it. Blocking.
    pub fn raised(&self, after: Option<&Key>, limit: usize) -> Result<Vec<(Key, Ballot)>, Error> {
        if after.is_none() {
            self.inner.flush()?;
        }
        self.inner.query("listing", |conn| queries::raised(conn, after, limit))
    }

    /// The digest of all rows as reads see them at this moment. Blocking: after a crash it is built from the rows first.
    pub fn digest(&self) -> Result<Digest, Error> {
        let core = self.inner.check()?;
        for _ in 0..BUILDS_MAX {
            if let Some(digest) = self.inner.digest()? {
                return Ok(digest);
            }
            self.inner.build_digest()?;
            self.with_writer(|writer| core.summaries.set(self.id(), writer.summary()));
        }
        Err(Rejection::Busy(format!("{}: writes fail while it is being compared", self.path().display())).into())
    }
}

impl Inner {
    /// Another program may have made the tables without: they lie in key order.
    fn has_rowids(&self) -> Result<bool, Error> {
        self.query("looking at", queries::has_rowids)
    }

    /// None where it has to be built.
    fn digest(&self) -> Result<Option<Digest>, Error> {
        let writer = self.writer.lock();
        // While this lock is held no frame gets from memory into the file, so the two belong together.
        let excerpt = Range::new("", None).of(Eyes::Protocol, &self.state.overlay, usize::MAX, || ());
        let digest = writer.as_ref().ok_or(Error::Closed)?.digest_above(&excerpt);
        drop(writer);
        self.noticed(digest)
    }

    /// Builds it from the rows, one builder at a time.
    fn build_digest(&self) -> Result<(), Error> {
        let _one = self.comparing.lock();
        let reader = self.readers.lend()?;
        let failed = || Error::sqlite("comparing the rows of", &self.path);
        let built = reader.run(|conn| {
            let snapshot = conn.unchecked_transaction().map_err(failed())?;
            let mut writer = self.writer.lock();
            let digest = writer.as_mut().ok_or(Error::Closed)?.digest();
            if digest.known().is_some() {
                return Ok(());
            }
            // The first read is the snapshot's moment; from then on changes are counted.
            schema::meta(&snapshot, "batch").map_err(failed())?;
            let gc_floor = self.gc_floor();
            *digest = Tracked::Building(Digest::new(gc_floor));
            drop(writer);
            tracing::info!(shard = %self.state.id, "its digest is built from its rows");
            metrics::counter!(telemetry::DIGESTS_BUILT).increment(1);
            let built = queries::digest(&snapshot, gc_floor).map_err(failed())?;
            self.writer.lock().as_mut().ok_or(Error::Closed)?.digest().complete(built);
            Ok(())
        });
        self.noticed(built)
    }
}
