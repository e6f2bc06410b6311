//! What changed, for those who watch: the latest changes of the shards that are watched, in memory, and every watcher's
//! place among them.
//!
//! ```text
//!   on_commit ─► overlay (reads see it) ─► Feed::push ─► Ring ─► bells of those it concerns
//!                                                          ▲
//!   Watch::take, at the watcher's own pace ────────────────┘
//! ```
//!
//! A frame enters the ring under the lock of its shard's overlay, and so does the mark at which a snapshot is taken
//! ([`Watch::begin_now`]): each change is in the snapshot or comes after it, never in both, never in neither.
//!
//! The ring is bounded. A watcher that it has run past is told so, and begins again with a snapshot; nothing is kept for it.
//! A shard is recorded from its first watcher on until [`KEPT_FOR`] after its last: a node that nobody watches pays nothing.
//!
//! Absent on purpose: what happened before a restart. The ring is memory, and numbers begin anywhere, so that an
//! [`EventId`] of another life of this process is never taken for one of this one's.

mod ring;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use metrics::{Counter, Gauge, counter, gauge};
use parking_lot::Mutex;
use tokio::sync::Notify;

pub(in crate::store) use self::ring::Before;
use self::ring::{Bounds, Full, Ring, WatcherId};
pub use self::ring::{Cut, Event, Taken};
use super::error::Error;
use super::replicator::{Frame, Op, Rejection};
use crate::clock::Clock;
use crate::telemetry;
use crate::types::{Ballot, Key, ShardId, StorageId};

/// The most changes kept, of all shards together.
pub const FEED_EVENTS_MAX: usize = 65_536;
/// Their size in memory, in bytes, at most.
pub const FEED_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The most watchers at once. Fewer than the socket has places, so that requests find some.
pub const WATCHERS_MAX: usize = 1_536;
/// The most prefixes that all watchers watch together.
pub const WATCHED_PREFIXES_MAX: usize = 16_384;
/// The most shards whose changes are kept.
pub const RECORDED_SHARDS_MAX: usize = 4_096;
/// How long a shard's changes are kept once nobody watches it.
pub const KEPT_FOR: Duration = Duration::from_secs(10 * 60);

const BOUNDS: Bounds = Bounds {
    events_max: FEED_EVENTS_MAX,
    bytes_max: FEED_BYTES_MAX,
    shards_max: RECORDED_SHARDS_MAX,
    watchers_max: WATCHERS_MAX,
    prefixes_max: WATCHED_PREFIXES_MAX,
    kept_for: KEPT_FOR,
};

/// Names a place in a node's feed: `<storage id>.<number>`. Only that node, as long as it runs, can go on from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventId {
    /// Of the node's disk.
    pub storage_id: StorageId,
    /// Everything up to this event was seen.
    pub number: u64,
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.storage_id, self.number)
    }
}

/// What was given is no [`EventId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("want an id as events have it, such as 00f3a1b2c4d5e6f7.4611686018427387904")]
pub struct InvalidEventId;

impl FromStr for EventId {
    type Err = InvalidEventId;

    fn from_str(text: &str) -> Result<Self, InvalidEventId> {
        let (storage_id, number) = text.split_once('.').ok_or(InvalidEventId)?;
        let is_written = |text: &str, digit: fn(&u8) -> bool| !text.is_empty() && text.bytes().all(|byte| digit(&byte));
        if storage_id.len() != 16 || !is_written(storage_id, u8::is_ascii_hexdigit) {
            return Err(InvalidEventId);
        }
        if !is_written(number, u8::is_ascii_digit) {
            return Err(InvalidEventId);
        }
        let storage_id = StorageId::try_from(storage_id.to_owned()).map_err(|_| InvalidEventId)?;
        Ok(Self { storage_id, number: number.parse().map_err(|_| InvalidEventId)? })
    }
}

/// The changes of one node's shards.
pub struct Feed {
    ring: Mutex<Ring<Arc<Notify>>>,
    is_recording: AtomicBool,
    storage_id: AtomicU64,
    clock: Arc<dyn Clock>,
    watchers: Gauge,
    events: Counter,
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").field("watchers", &self.ring.lock().watchers()).finish_non_exhaustive()
    }
}

impl Feed {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        // Half of all numbers are left to count.
        let first = rand::random::<u64>() >> 1;
        Arc::new(Self {
            ring: Mutex::new(Ring::new(BOUNDS, first)),
            is_recording: AtomicBool::new(false),
            storage_id: AtomicU64::new(rand::random()),
            clock,
            watchers: gauge!(telemetry::WATCHERS),
            events: counter!(telemetry::WATCH_EVENTS),
        })
    }

    /// Whose disk this is, which ids begin with; chance where nobody says.
    pub fn set_storage_id(&self, id: StorageId) {
        self.storage_id.store(id.0, Ordering::Relaxed);
    }

    /// Ends every watch: each is told that the node stops.
    pub fn close(&self) {
        let bells = self.ring.lock().close();
        bells.iter().for_each(|bell| bell.notify_one());
    }

    /// The id of the place after event `number`.
    #[must_use]
    pub fn id(&self, number: u64) -> EventId {
        EventId { storage_id: StorageId(self.storage_id.load(Ordering::Relaxed)), number }
    }

    /// Adds a watcher of the keys of `shard` under any of `prefixes`: one that goes on after `since`, where all that
    /// happened since is still here, or that begins now. `bell` rings whenever there is something new to take.
    ///
    /// [`Rejection::Busy`] where there are too many.
    pub fn watch(
        self: &Arc<Self>,
        shard: &ShardId,
        prefixes: Vec<String>,
        since: Option<EventId>,
        bell: Arc<Notify>,
    ) -> Result<Watch, Error> {
        let ours = since.filter(|since| *since == self.id(since.number)).map(|since| since.number);
        let mut ring = self.ring.lock();
        let (id, resumed) = ring.watch(shard, prefixes, ours, Arc::clone(&bell)).map_err(busy)?;
        self.is_recording.store(true, Ordering::Release);
        drop(ring);
        self.watchers.increment(1.0);
        Ok(Watch { feed: Arc::clone(self), id, resumed, bell })
    }

    /// Whether [`Feed::push`] has to be told what the key showed before this frame.
    pub(super) fn has_to_be_told(&self, frame: &Frame) -> bool {
        self.is_recording.load(Ordering::Acquire) && self.ring.lock().has_to_be_told(frame)
    }

    /// Takes in a committed frame, under the lock of its shard's overlay.
    pub(super) fn push(&self, frame: &Frame, before: Before) {
        if self.is_recording.load(Ordering::Acquire) {
            let bells = self.ring.lock().push(frame, before);
            bells.iter().for_each(|bell| bell.notify_one());
        }
    }

    /// Takes in what this node accepted on its own and shows from now on, under the lock of its shard's overlay.
    pub(super) fn push_own(&self, shard: &ShardId, key: &Key, op: &Op, upd: Ballot) {
        if self.is_recording.load(Ordering::Acquire) {
            let bells = self.ring.lock().push_own(shard, key, op, upd);
            bells.iter().for_each(|bell| bell.notify_one());
        }
    }

    /// Those who watch the key begin again: it shows something else, and what is not known. Under the same lock.
    pub(super) fn lose_track(&self, shard: &ShardId, key: &Key) {
        if self.is_recording.load(Ordering::Acquire) {
            let bells = self.ring.lock().lose_track(shard, key);
            bells.iter().for_each(|bell| bell.notify_one());
        }
    }

    /// Whether anybody watches the shard.
    #[must_use]
    pub fn is_watched(&self, shard: &ShardId) -> bool {
        self.ring.lock().is_watched(shard)
    }

    /// The shards that somebody watches.
    #[must_use]
    pub fn watched(&self) -> Vec<ShardId> {
        self.ring.lock().watched()
    }

    /// Rows went that nobody told of: the watchers of the shard begin again.
    pub(super) fn lose_shard(&self, shard: &ShardId) {
        let bells = self.ring.lock().lose_shard(shard);
        bells.iter().for_each(|bell| bell.notify_one());
    }

    /// Forgets what nobody has watched for long.
    pub(super) fn expire(&self) {
        let mut ring = self.ring.lock();
        ring.expire(self.clock.now().monotonic);
        self.is_recording.store(ring.is_recording(), Ordering::Release);
    }
}

fn busy(full: Full) -> Error {
    let Full { what, max } = full;
    Rejection::Busy(format!("this node has all of the {max} {what} that it may have; try again later")).into()
}

/// One watcher's place in the feed. Dropping it ends the watch.
#[derive(Debug)]
pub struct Watch {
    feed: Arc<Feed>,
    id: WatcherId,
    resumed: bool,
    bell: Arc<Notify>,
}

impl Watch {
    /// Whether it goes on where it was asked to. Otherwise it began now, and wants a snapshot first.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// Begins at this moment, whatever was missed until now. For a snapshot: called where its moment is.
    pub fn begin_now(&self) -> EventId {
        let number = self.feed.ring.lock().begin_now(self.id);
        self.feed.id(number)
    }

    /// Watches other prefixes from now on.
    pub fn set_prefixes(&self, prefixes: Vec<String>) -> Result<(), Error> {
        self.feed.ring.lock().set_prefixes(self.id, prefixes).map_err(busy)
    }

    /// Waits until there is something to take.
    pub async fn changed(&self) {
        // A bell that rang before it was listened to is heard all the same.
        while !self.feed.ring.lock().is_pending(self.id) {
            self.bell.notified().await;
        }
    }

    /// Whether the node ends all watches: said without taking anything.
    pub fn check_open(&self) -> Result<(), Cut> {
        if self.feed.ring.lock().is_closed() { Err(Cut::Stopping) } else { Ok(()) }
    }

    /// The next events: at most `events_max`, and none further once they have `bytes_max` bytes together. After an error
    /// there are no more.
    pub fn take(&self, events_max: usize, bytes_max: usize) -> Result<Taken, Cut> {
        let taken = self.feed.ring.lock().take(self.id, events_max, bytes_max);
        match &taken {
            Ok(taken) => self.feed.events.increment(taken.events.len() as u64),
            Err(cut) => counter!(telemetry::WATCHES_CUT, "reason" => reason(*cut)).increment(1),
        }
        taken
    }

    /// The id of the place after event `number`.
    #[must_use]
    pub fn event_id(&self, number: u64) -> EventId {
        self.feed.id(number)
    }
}

fn reason(cut: Cut) -> &'static str {
    match cut {
        Cut::Overrun => "overrun",
        Cut::Lost => "lost",
        Cut::Stopping => "stopping",
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let now = self.feed.clock.now().monotonic;
        self.feed.ring.lock().leave(self.id, now);
        self.feed.watchers.decrement(1.0);
    }
}
