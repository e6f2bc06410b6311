//! What the manager remembers of a shard whether or not its file is open.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use super::error::Error;
use super::overlay::{Backlog, Overlay};
use super::queries::Range;
use super::replicator::Rejection;
use super::shard::Shard;
use crate::types::{Key, ShardId};

#[derive(Debug)]
pub(super) struct ShardState {
    pub(super) id: ShardId,
    pub(super) overlay: Overlay,
    /// There was no file when this was made: until something leaves the overlay, that holds everything.
    pub(super) began_empty: bool,
    unsettled: Mutex<BTreeSet<Key>>,
    unsettled_count: AtomicUsize,
    /// The open shard.
    pub(super) current: RwLock<Option<Arc<Shard>>>,
    /// One more for each handle of the file that is alive: of the open shard, and of closed ones that somebody still reads.
    pub(super) handles: Arc<()>,
    /// How often the file was given up.
    pub(super) discards: AtomicU64,
    /// Held while the file is being opened, closed or given up, so that none overtakes the other.
    pub(super) changing: Mutex<()>,
    /// In the applier's queue or hands.
    pub(super) is_queued: AtomicBool,
    last_used: AtomicU64,
    poison: OnceLock<Error>,
    /// Why frames wait for longer than they should, such as a full disk.
    stuck: Mutex<Option<Stuck>>,
}

/// Why a shard's frames wait.
#[derive(Debug, Clone)]
pub(super) struct Stuck {
    pub(super) is_full: bool,
    pub(super) why: String,
}

impl From<Stuck> for Error {
    fn from(Stuck { is_full, why }: Stuck) -> Self {
        Self::Rejected(if is_full { Rejection::DiskFull(why) } else { Rejection::Busy(why) })
    }
}

impl ShardState {
    pub(super) fn new(id: ShardId, backlog: Arc<Backlog>, began_empty: bool) -> Self {
        Self {
            id,
            began_empty,
            overlay: Overlay::new(backlog),
            unsettled: Mutex::default(),
            unsettled_count: AtomicUsize::new(0),
            current: RwLock::default(),
            handles: Arc::default(),
            discards: AtomicU64::new(0),
            changing: Mutex::default(),
            is_queued: AtomicBool::new(false),
            last_used: AtomicU64::new(0),
            poison: OnceLock::new(),
            stuck: Mutex::default(),
        }
    }

    /// Counts as a use at `now`.
    pub(super) fn touch(&self, now: Duration) {
        self.last_used.fetch_max(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(super) fn last_used(&self) -> Duration {
        Duration::from_nanos(self.last_used.load(Ordering::Relaxed))
    }

    /// Keeps the first error for good, and wakes those who wait for the shard.
    pub(super) fn poison(&self, error: &Error) {
        if self.poison.set(error.clone()).is_ok() {
            tracing::error!(shard = %self.id, %error, "the shard failed and is given up");
        }
        self.overlay.wake();
    }

    /// The first error that spoilt this shard.
    pub(super) fn poisoned(&self) -> Result<(), Error> {
        self.poison.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    pub(super) fn set_stuck(&self, stuck: Option<Stuck>) {
        let is_stuck = stuck.is_some();
        *self.stuck.lock() = stuck;
        if is_stuck {
            self.overlay.wake();
        }
    }

    pub(super) fn stuck(&self) -> Option<Stuck> {
        self.stuck.lock().clone()
    }

    pub(super) fn unsettle(&self, keys: impl IntoIterator<Item = Key>) {
        let mut unsettled = self.unsettled.lock();
        unsettled.extend(keys);
        self.unsettled_count.store(unsettled.len(), Ordering::Release);
    }

    pub(super) fn settle(&self, key: &Key) {
        if self.unsettled_count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut unsettled = self.unsettled.lock();
        unsettled.remove(key);
        self.unsettled_count.store(unsettled.len(), Ordering::Release);
    }

    pub(super) fn is_settled(&self, key: &Key) -> bool {
        self.unsettled_count.load(Ordering::Acquire) == 0 || !self.unsettled.lock().contains(key)
    }

    /// Whether no key of `range`, up to `last` where it is given, is unsettled.
    pub(super) fn is_range_settled(&self, range: &Range, last: Option<&Key>) -> bool {
        if self.unsettled_count.load(Ordering::Acquire) == 0 {
            return true;
        }
        let unsettled = self.unsettled.lock();
        let first = unsettled
            .range::<str, _>((std::ops::Bound::Included(range.start.as_str()), std::ops::Bound::Unbounded))
            .next();
        first.is_none_or(|first| {
            range.end.as_ref().is_some_and(|end| first.as_str() >= end.as_str())
                || last.is_some_and(|last| first > last)
        })
    }

    /// Waits until everything committed before the call is in the file.
    pub(super) fn flush(&self) -> Result<(), Error> {
        self.overlay.wait_past(self.overlay.last(), || {
            self.poisoned()?;
            match self.stuck() {
                Some(stuck) => Err(stuck.into()),
                None => Ok(()),
            }
        })
    }

    /// Whether something is stored, or on its way.
    pub(super) fn has_content(&self) -> bool {
        self.current.read().is_some() || self.is_owed()
    }

    /// Whether memory holds rows that the file does not.
    fn is_owed(&self) -> bool {
        !self.overlay.is_empty() || self.overlay.has_own()
    }

    /// True where memory holds a row that the file does not, or knows of a key that is not settled.
    pub(super) fn has_pending(&self) -> bool {
        self.is_owed() || self.unsettled_count.load(Ordering::Acquire) > 0
    }

    /// True where forgetting this state would lose nothing.
    pub(super) fn is_idle(&self) -> bool {
        self.current.read().is_none()
            && !self.has_pending()
            && self.poison.get().is_none()
            && !self.is_queued.load(Ordering::Acquire)
    }
}
