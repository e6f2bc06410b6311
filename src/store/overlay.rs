//! Committed frames on their way into a shard file: one overlay per shard, read before the file by every read.
//!
//! ```text
//!  on_commit --insert--> slots (by key, newest frame) --take, first come first served--> applier --COMMIT--> file
//!                          ^ reads                                                          |
//!                          +------------------- finish: removed unless replaced since ------+
//! ```
//!
//! Every frame gets a number as it arrives. A slot remembers the number of its *first* frame that is not in the file
//! yet, so that "everything committed up to number n is in the file" is one comparison, however often keys are
//! rewritten meanwhile.
//!
//! Beside them are the mutations that this node accepted on its own: shown to its clients above everything committed until
//! their version or a higher one is committed, never applied, and unknown to whoever asks what was agreed on.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use super::digest::Sum;
use super::replicator::{Frame, Op};
use super::rows::StoredRow;
use crate::types::{Ballot, Key};

/// What a frame costs in memory beside its key and value, roughly.
const FRAME_OVERHEAD_BYTES: u64 = 160;

/// What all overlays of a manager hold together.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// Frames that ever arrived; the number of the latest.
    pub(super) arrived: AtomicU64,
    /// Frames waiting for their file.
    pub(super) frames: AtomicU64,
    /// Their size in memory, in bytes.
    pub(super) bytes: AtomicU64,
}

/// One frame that waits for its file.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) op: Op,
    pub(super) upd: Ballot,
    pub(super) ballot: Ballot,
    /// Set once it is known that the file holds nothing newer, which stays true for as long as this is in its slot.
    pub(super) tops_file: AtomicBool,
}

impl Pending {
    pub(super) fn to_stored(&self) -> StoredRow {
        StoredRow { op: self.op.clone(), upd: self.upd, ballot: self.ballot }
    }

    /// What it adds to the digest where the file, of this GC floor, holds nothing of `key`.
    pub(super) fn sum(&self, floor: Ballot, key: &Key) -> Sum {
        Sum::above(floor, key.as_str(), self.upd, self.op != Op::Del)
    }

    pub(super) fn is_above_file(&self) -> bool {
        self.tops_file.load(Ordering::Relaxed)
    }

    pub(super) fn set_above_file(&self) {
        self.tops_file.store(true, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Slot {
    pending: Arc<Pending>,
    /// Number of the first frame of this key that is not in the file.
    since: u64,
    in_flight: bool,
}

#[derive(Debug, Default)]
struct Slots {
    by_key: BTreeMap<Key, Slot>,
    /// Slots not in flight by `since`; an entry whose number is no longer its slot's is void.
    waiting: VecDeque<(u64, Key)>,
    /// The lowest `since` of the batch in flight.
    in_flight: Option<u64>,
    /// Number of the last batch taken.
    batch: u64,
    /// Number of the last frame that arrived here.
    last: u64,
    /// Batches that have left for the file.
    departed: u64,
    /// Accepted here and not committed, each of a version above everything committed of its key.
    own: BTreeMap<Key, Arc<Pending>>,
}

impl Slots {
    fn skip_void(&mut self) {
        while let Some((since, key)) = self.waiting.front() {
            if self.by_key.get(key).is_some_and(|slot| slot.since == *since && !slot.in_flight) {
                return;
            }
            self.waiting.pop_front();
        }
    }

    /// The lowest number of a frame that is not in the file.
    fn floor(&mut self) -> u64 {
        self.skip_void();
        let waiting = self.waiting.front().map_or(u64::MAX, |(since, _)| *since);
        waiting.min(self.in_flight.unwrap_or(u64::MAX))
    }
}

/// Frames taken for one transaction.
#[derive(Debug)]
pub(super) struct Batch {
    /// Rises from batch to batch of a shard, across restarts too.
    pub(super) number: u64,
    pub(super) frames: Vec<(Key, Arc<Pending>)>,
    since: Vec<u64>,
}

/// Who looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Eyes {
    /// A client: sees what this node accepted on its own, too.
    Client,
    /// The protocol: sees what is committed.
    Protocol,
}

/// Part of an overlay as it was at one moment.
#[derive(Debug)]
pub(super) struct Excerpt {
    pub(super) frames: Vec<(Key, Arc<Pending>)>,
    /// False where the range goes on after the last frame.
    pub(super) complete: bool,
    /// No batch after this one had been taken: a file snapshot that holds none either is of the same moment.
    pub(super) batch: u64,
}

/// The overlay of one shard.
#[derive(Debug)]
pub(super) struct Overlay {
    slots: Mutex<Slots>,
    moved: Condvar,
    moved_async: Notify,
    backlog: Arc<Backlog>,
}

fn weight(key: &Key, op: &Op) -> u64 {
    let value = op.value().map_or(0, |value| value.as_bytes().len());
    FRAME_OVERHEAD_BYTES + u64::try_from(key.as_str().len() + value).unwrap_or(u64::MAX / 2)
}

impl Overlay {
    pub(super) fn new(backlog: Arc<Backlog>) -> Self {
        Self { slots: Mutex::default(), moved: Condvar::new(), moved_async: Notify::new(), backlog }
    }

    /// Takes a frame unless one as new is here, and does `also` at the very moment that reads see it. True where the applier
    /// has something new to do.
    pub(super) fn insert(&self, frame: &Frame, also: impl FnOnce()) -> bool {
        let mut slots = self.slots.lock();
        let slots = &mut *slots;
        let pending = |above| Pending {
            op: frame.op.clone(),
            upd: frame.upd,
            ballot: frame.ballot,
            tops_file: AtomicBool::new(above),
        };
        let number = self.backlog.arrived.fetch_add(1, Ordering::SeqCst) + 1;
        if slots.own.get(&frame.key).is_some_and(|own| own.upd <= frame.upd) {
            slots.own.remove(&frame.key);
        }
        if let Some(slot) = slots.by_key.get_mut(&frame.key) {
            if frame.ballot <= slot.pending.ballot {
                return false;
            }
            if frame.upd < slot.pending.upd {
                tracing::warn!(shard = %frame.shard, "a later round carries an earlier version: left out");
                return false;
            }
            self.backlog.bytes.fetch_sub(weight(&frame.key, &slot.pending.op), Ordering::Relaxed);
            slot.pending = Arc::new(pending(slot.pending.is_above_file()));
            if slot.in_flight {
                slot.in_flight = false;
                slot.since = number;
                slots.waiting.push_back((number, frame.key.clone()));
            }
        } else {
            let slot = Slot { pending: Arc::new(pending(false)), since: number, in_flight: false };
            slots.by_key.insert(frame.key.clone(), slot);
            slots.waiting.push_back((number, frame.key.clone()));
            self.backlog.frames.fetch_add(1, Ordering::Relaxed);
        }
        slots.last = number;
        self.backlog.bytes.fetch_add(weight(&frame.key, &frame.op), Ordering::Relaxed);
        also();
        true
    }

    /// Shows clients a mutation that this node accepted on its own, which is above everything committed in the file, and does
    /// `also` at that very moment. False where something as new is here.
    pub(super) fn show(&self, key: &Key, op: Op, upd: Ballot, also: impl FnOnce()) -> bool {
        let mut slots = self.slots.lock();
        let committed = slots.by_key.get(key).map(|slot| slot.pending.upd);
        if committed.max(slots.own.get(key).map(|own| own.upd)).is_some_and(|newest| newest >= upd) {
            return false;
        }
        let pending = Pending { op, upd, ballot: upd, tops_file: AtomicBool::new(true) };
        slots.own.insert(key.clone(), Arc::new(pending));
        also();
        true
    }

    /// Shows it no more, where it is still the one of `upd`, and does `also` at that very moment.
    pub(super) fn hide(&self, key: &Key, upd: Ballot, also: impl FnOnce()) {
        let mut slots = self.slots.lock();
        if slots.own.get(key).is_some_and(|own| own.upd == upd) {
            slots.own.remove(key);
            also();
        }
    }

    /// The version of what this node accepted on its own, where that is shown.
    pub(super) fn own_version(&self, key: &Key) -> Option<Ballot> {
        self.slots.lock().own.get(key).map(|own| own.upd)
    }

    /// Whether something accepted here is shown.
    pub(super) fn has_own(&self) -> bool {
        !self.slots.lock().own.is_empty()
    }

    pub(super) fn get(&self, eyes: Eyes, key: &Key) -> Option<Arc<Pending>> {
        self.look(eyes, key).0
    }

    /// The key's frame, and how many batches have left the overlay: what was here when the number was the same is in
    /// the file, or here still.
    pub(super) fn look(&self, eyes: Eyes, key: &Key) -> (Option<Arc<Pending>>, u64) {
        let slots = self.slots.lock();
        let own = slots.own.get(key).filter(|_| eyes == Eyes::Client);
        let shown = own.or_else(|| slots.by_key.get(key).map(|slot| &slot.pending));
        (shown.map(Arc::clone), slots.departed)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.lock().by_key.is_empty()
    }

    /// At most `limit` frames from `start` on and before `end`, in key order; does `also` at the moment that they are of.
    pub(super) fn excerpt(
        &self,
        eyes: Eyes,
        start: &str,
        end: Option<&str>,
        limit: usize,
        also: impl FnOnce(),
    ) -> Excerpt {
        let slots = self.slots.lock();
        also();
        let nothing = end.is_some_and(|end| end <= start);
        let bounds = (Bound::Included(start), end.map_or(Bound::Unbounded, Bound::Excluded));
        let range = (!nothing).then(|| slots.by_key.range::<str, _>(bounds)).into_iter().flatten();
        let own = (!nothing && eyes == Eyes::Client).then(|| slots.own.range::<str, _>(bounds)).into_iter().flatten();
        let (mut range, mut own) = (range.map(|(key, slot)| (key, &slot.pending)).peekable(), own.peekable());
        let mut next = || match (range.peek(), own.peek()) {
            (Some((key, _)), Some((above, _))) if key < above => range.next(),
            (Some((key, _)), Some((above, _))) if key == above => range.next().and(own.next()),
            (Some(_), None) => range.next(),
            (_, _) => own.next(),
        };
        let mut frames = Vec::new();
        while frames.len() < limit
            && let Some((key, pending)) = next()
        {
            frames.push((key.clone(), Arc::clone(pending)));
        }
        Excerpt { frames, complete: next().is_none(), batch: slots.batch }
    }

    /// Learns the number of the last batch in the file.
    pub(super) fn resume_batches(&self, batch: u64) {
        let mut slots = self.slots.lock();
        slots.batch = slots.batch.max(batch);
    }

    /// Takes the oldest frames for one transaction; none where nothing waits. One batch is in flight at a time.
    pub(super) fn take(&self, frames_max: usize, bytes_max: u64) -> Option<Batch> {
        let mut slots = self.slots.lock();
        let slots = &mut *slots;
        debug_assert!(slots.in_flight.is_none(), "one batch at a time");
        let mut batch = Batch { number: slots.batch + 1, frames: Vec::new(), since: Vec::new() };
        let mut bytes = 0;
        while batch.frames.len() < frames_max && bytes < bytes_max {
            slots.skip_void();
            let Some((since, key)) = slots.waiting.pop_front() else { break };
            let Some(slot) = slots.by_key.get_mut(&key) else { continue };
            slot.in_flight = true;
            bytes += weight(&key, &slot.pending.op);
            batch.frames.push((key, Arc::clone(&slot.pending)));
            batch.since.push(since);
        }
        slots.in_flight = Some(*batch.since.first()?);
        slots.batch = batch.number;
        Some(batch)
    }

    /// The batch is in the file: its frames leave, except those replaced by a newer one meanwhile.
    pub(super) fn finish(&self, batch: &Batch) {
        let mut slots = self.slots.lock();
        for (key, pending) in &batch.frames {
            if slots.by_key.get(key).is_some_and(|slot| slot.in_flight && slot.pending.ballot == pending.ballot) {
                slots.by_key.remove(key);
                self.backlog.frames.fetch_sub(1, Ordering::Relaxed);
                self.backlog.bytes.fetch_sub(weight(key, &pending.op), Ordering::Relaxed);
            }
        }
        slots.departed += 1;
        slots.in_flight = None;
        drop(slots);
        self.wake();
    }

    /// The batch did not get into the file: its frames wait again, before all others.
    pub(super) fn put_back(&self, batch: &Batch) {
        let mut slots = self.slots.lock();
        let slots = &mut *slots;
        for ((key, _), since) in batch.frames.iter().zip(&batch.since).rev() {
            if let Some(slot) = slots.by_key.get_mut(key) {
                slot.in_flight = false;
                slot.since = *since;
                slots.waiting.push_front((*since, key.clone()));
            }
        }
        slots.in_flight = None;
    }

    /// Makes those who wait look at the shard's state again.
    pub(super) fn wake(&self) {
        drop(self.slots.lock());
        self.moved.notify_all();
        self.moved_async.notify_waiters();
    }

    /// Number of the last frame that arrived here.
    pub(super) fn last(&self) -> u64 {
        self.slots.lock().last
    }

    /// Whether every frame up to `number` is in the file.
    pub(super) fn is_past(&self, number: u64) -> bool {
        self.slots.lock().floor() > number
    }

    /// Blocks until every frame up to `number` is in the file, or `give_up` says why not to wait.
    pub(super) fn wait_past<E>(&self, number: u64, give_up: impl Fn() -> Result<(), E>) -> Result<(), E> {
        /// How often to ask `give_up` when nobody wakes us.
        const LOOK_AGAIN: Duration = Duration::from_secs(1);
        let mut slots = self.slots.lock();
        while slots.floor() <= number {
            give_up()?;
            self.moved.wait_for(&mut slots, LOOK_AGAIN);
        }
        Ok(())
    }

    /// The same without blocking a thread.
    pub(super) async fn wait_past_async<E>(&self, number: u64, give_up: impl Fn() -> Result<(), E>) -> Result<(), E> {
        loop {
            let moved = self.moved_async.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            if self.is_past(number) {
                return Ok(());
            }
            give_up()?;
            moved.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::{ShardId, Value};

    fn overlay() -> Overlay {
        Overlay::new(Arc::default())
    }

    fn frame(name: &str, ballot: i64) -> Frame {
        let (shard, key) = (ShardId::parse("", "a").unwrap(), Key::parse(name).unwrap());
        let op = Op::Put(Value::from(ballot.to_string().into_bytes()));
        Frame { shard, seq: 0, key, op, upd: Ballot(ballot), ballot: Ballot(ballot) }
    }

    fn ballot(overlay: &Overlay, name: &str) -> Option<i64> {
        overlay.get(Eyes::Protocol, &Key::parse(name).unwrap()).map(|pending| pending.ballot.0)
    }

    #[test]
    fn a_frame_that_replaced_one_in_flight_stays() {
        let overlay = overlay();
        assert!(overlay.insert(&frame("k", 1), || ()));
        let batch = overlay.take(9, 999).unwrap();
        assert!(overlay.insert(&frame("k", 2), || ()));
        overlay.finish(&batch);
        assert_eq!(ballot(&overlay, "k"), Some(2));
        assert!(overlay.is_past(1) && !overlay.is_past(2));
        let batch = overlay.take(9, 999).unwrap();
        assert_eq!(batch.frames[0].1.ballot, Ballot(2));
        overlay.finish(&batch);
        assert!(overlay.is_empty() && overlay.is_past(2) && overlay.take(9, 999).is_none());
        assert_eq!(overlay.backlog.frames.load(Ordering::Relaxed), 0);
        assert_eq!(overlay.backlog.bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_failed_batch_is_not_past_though_its_frames_were_replaced() {
        let overlay = overlay();
        overlay.insert(&frame("k", 1), || ());
        overlay.insert(&frame("l", 2), || ());
        let batch = overlay.take(1, 999).unwrap();
        overlay.insert(&frame("k", 3), || ());
        overlay.put_back(&batch);
        assert!(!overlay.is_past(1), "frame 1 is in no file, nor is the one that replaced it");
        let batch = overlay.take(1, 999).unwrap();
        assert_eq!(batch.frames[0].1.ballot, Ballot(3));
        overlay.finish(&batch);
        assert!(overlay.is_past(1) && !overlay.is_past(2));
        overlay.finish(&overlay.take(9, 999).unwrap());
        assert!(overlay.is_empty() && overlay.is_past(3));
    }

    #[test]
    fn older_frames_are_not_taken() {
        let overlay = overlay();
        overlay.insert(&frame("k", 5), || ());
        assert!(!overlay.insert(&frame("k", 5), || ()) && !overlay.insert(&frame("k", 4), || ()));
        assert_eq!(ballot(&overlay, "k"), Some(5));
    }

    proptest! {
        /// Frames into a file that is a map, with batches that fail: "past" is said of what the file holds, and only
        /// of that, and file and overlay together always hold the newest.
        #[test]
        fn past_means_in_the_file(steps in prop::collection::vec((0..6_u8, 0..5_usize), 1..120)) {
            let overlay = overlay();
            let names = ["a", "b", "c", "d", "e"];
            let mut file: BTreeMap<Key, i64> = BTreeMap::new();
            let mut arrived: Vec<(Key, i64)> = Vec::new();
            let mut flying: Option<Batch> = None;
            for (step, n) in steps {
                match (step, flying.take()) {
                    (0..=2, batch) => {
                        let frame = frame(names[n], i64::try_from(arrived.len()).unwrap() + 1);
                        overlay.insert(&frame, || ());
                        arrived.push((frame.key, frame.ballot.0));
                        flying = batch;
                    }
                    (3, None) => flying = overlay.take(n + 1, u64::MAX),
                    (4, Some(batch)) => overlay.put_back(&batch),
                    (5, Some(batch)) => {
                        file.extend(batch.frames.iter().map(|(key, pending)| (key.clone(), pending.ballot.0)));
                        overlay.finish(&batch);
                    }
                    (_, batch) => flying = batch,
                }
                for (number, (key, ballot)) in arrived.iter().enumerate() {
                    let stored = file.get(key).copied().unwrap_or(0);
                    prop_assert!(!overlay.is_past(u64::try_from(number).unwrap() + 1)
                        || arrived[..=number].iter().all(|(key, ballot)| file.get(key).is_some_and(|at| at >= ballot)));
                    let seen = overlay.get(Eyes::Protocol, key).map_or(0, |pending| pending.ballot.0).max(stored);
                    prop_assert!(seen >= *ballot);
                }
            }
            if let Some(batch) = flying {
                overlay.put_back(&batch);
            }
            while let Some(batch) = overlay.take(2, u64::MAX) {
                overlay.finish(&batch);
            }
            prop_assert!(overlay.is_empty() && overlay.is_past(u64::MAX - 1));
            prop_assert_eq!(overlay.backlog.bytes.load(Ordering::Relaxed), 0);
        }
    }
}
