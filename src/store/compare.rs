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
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::applier;
use super::core::Core;
use super::digest::{Buckets, Digest, Root, Sum, Summary};
use super::error::Error;
use super::queries::{self, End, Range, Want};
use super::replicator::Rejection;
use super::schema;
use super::shard::{Inner, Shard};
use crate::telemetry;
use crate::types::{Ballot, Key, ShardId};

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
    by_shard: Mutex<HashMap<ShardId, Option<Summary>>>,
    /// Every shard with a file is in it: looked for once, as later ones come through [`Summaries::set`].
    is_complete: AtomicBool,
}

impl Summaries {
    pub(super) fn set(&self, shard: &ShardId, summary: Option<Summary>) {
        let mut by_shard = self.by_shard.lock();
        match by_shard.get_mut(shard) {
            Some(known) => *known = summary,
            None => drop(by_shard.insert(shard.clone(), summary)),
        }
    }

    fn get(&self, shard: &ShardId) -> Option<Summary> {
        self.by_shard.lock().get(shard).copied().flatten()
    }

    fn root(&self) -> Option<Root> {
        if !self.is_complete.load(Ordering::Acquire) {
            return None;
        }
        let by_shard = self.by_shard.lock();
        if by_shard.values().any(Option::is_none) {
            return None;
        }
        Some(by_shard.iter().filter_map(|(shard, summary)| Some((shard, summary.as_ref()?))).collect())
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

    /// The same of all these, which are all there are.
    pub(super) fn summarize_all(
        self: &std::sync::Arc<Self>,
        shards: Vec<ShardId>,
        open: impl Fn(&ShardId) -> Result<std::sync::Arc<Shard>, Error>,
    ) -> Result<BTreeMap<ShardId, Summary>, Error> {
        applier::run_inline(self);
        let mut summaries = BTreeMap::new();
        for shard in shards {
            self.leave_to_applier(&shard);
            let summary = self.summarize(&shard, || open(&shard))?;
            summaries.insert(shard, summary);
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

impl Shard {
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
    /// None where it has to be built.
    fn digest(&self) -> Result<Option<Digest>, Error> {
        let writer = self.writer.lock();
        // While this lock is held no frame gets from memory into the file, so the two belong together.
        let excerpt = Range::new("", None).of(&self.state.overlay, usize::MAX, || ());
        let digest = writer.as_ref().ok_or(Error::Closed)?.digest_above(&excerpt, self.gc_floor);
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
            *digest = Tracked::Building(Digest::new(self.gc_floor));
            drop(writer);
            tracing::info!(shard = %self.state.id, "its digest is built from its rows");
            metrics::counter!(telemetry::DIGESTS_BUILT).increment(1);
            let built = queries::digest(&snapshot, self.gc_floor).map_err(failed())?;
            self.writer.lock().as_mut().ok_or(Error::Closed)?.digest().complete(built);
            Ok(())
        });
        self.noticed(built)
    }
}
