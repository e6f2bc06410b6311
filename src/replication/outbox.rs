//! Writes that this node accepted on its own, on their way to the quorum (rule 9): pure.
//!
//! ```text
//!   put ─► (fsync) ─► on_durable: shown here, answered ─► next: proposed as "if the current version is below mine"
//!                                                            │
//!     retried after a while ◄── decided: unknown, no quorum ─┤
//!                                                            ▼
//!   on_chosen: something of its version or above is chosen, by whomever ─► gone
//! ```
//!
//! One write of each key: a later one takes the place of an earlier one, which it supersedes wherever both would arrive.
//! While the earlier one is being proposed the later one waits, so that a key's writes arrive in order. What ends a write is
//! that its version or a higher one is known to be chosen, whoever had it chosen and whatever its proposer was told.
//!
//! Absent on purpose: promises and votes. What is here is nobody's vote, and no acceptor looks at it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::register::{Address, Entry, LocalWrite, OpId};
use crate::store::replicator::{Decision, Rejection};
use crate::types::Ballot;

/// The most that [`OutboxBounds::entries_max`] may be: all of them are written again when the journal begins a segment.
pub const OUTBOX_ENTRIES_LIMIT: usize = 1_000_000;
/// The most that [`OutboxBounds::bytes_max`] may be, for the same reason.
pub const OUTBOX_BYTES_LIMIT: usize = 1 << 30;
/// Writes proposed at once.
pub const DRAINED_AT_ONCE: usize = 256;
/// How long a write that could not be proposed, or whose fate is unknown, is left alone.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// What a write costs in memory beside its key and value, roughly, in bytes.
const ENTRY_OVERHEAD_BYTES: usize = 256;

/// How much it may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutboxBounds {
    /// Keys with a write.
    pub entries_max: usize,
    /// Bytes of shards' names, keys and values, with what it costs to keep them.
    pub bytes_max: usize,
}

impl Default for OutboxBounds {
    fn default() -> Self {
        Self { entries_max: 10_000, bytes_max: 64 << 20 }
    }
}

/// How writes left it, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OutboxCounts {
    /// Chosen.
    pub drained: u64,
    /// Lost to a newer version that was chosen.
    pub superseded: u64,
    /// Lost to a later write of the same key here.
    pub replaced: u64,
}

#[derive(Debug, Clone)]
struct Waiting {
    write: LocalWrite,
    is_durable: bool,
    /// The highest version known to be chosen: an earlier write of the key may be on its way to the disk still.
    chosen: Ballot,
    /// The proposal under way for this key, of this write or of one that it took the place of.
    proposed: Option<OpId>,
    /// Its place among those due.
    due: Option<Duration>,
}

/// How a write ended that nothing chosen had ended before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overtaken {
    /// Which key.
    pub address: Address,
    /// The version that it had.
    pub upd: Ballot,
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub struct Outbox {
    bounds: OutboxBounds,
    waiting: HashMap<Address, Waiting>,
    bytes: usize,
    versions: BTreeSet<Ballot>,
    /// Durable and not being proposed, by when they are due and how old they are.
    due: BTreeMap<(Duration, Ballot), Address>,
    proposed: HashMap<OpId, (Address, Ballot)>,
    counts: OutboxCounts,
}

fn weight(address: &Address, write: &LocalWrite) -> usize {
    let Address { shard, key } = address;
    let names = shard.org.as_str().len() + shard.namespace.as_str().len() + key.as_str().len();
    ENTRY_OVERHEAD_BYTES + names + write.op.weight()
}

impl Outbox {
    /// An empty one.
    #[must_use]
    pub fn new(bounds: OutboxBounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// How many keys have a write here.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// True where nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// What they take up, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The version of the oldest, which is the time at which it was accepted.
    #[must_use]
    pub fn oldest(&self) -> Option<Ballot> {
        self.versions.first().copied()
    }

    /// Counts since the start.
    #[must_use]
    pub fn counts(&self) -> OutboxCounts {
        self.counts
    }

    /// The keys whose writes wait.
    pub fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.waiting.keys()
    }

    /// The key's write.
    #[must_use]
    pub fn get(&self, address: &Address) -> Option<&LocalWrite> {
        self.waiting.get(address).map(|waiting| &waiting.write)
    }

    /// Whether there is room for one more.
    pub fn check_room(&self, address: &Address, value_bytes: usize) -> Result<(), Rejection> {
        let OutboxBounds { entries_max, bytes_max } = self.bounds;
        let (entries, replaced) = match self.waiting.get(address) {
            Some(waiting) => (self.len(), weight(address, &waiting.write)),
            None => (self.len() + 1, 0),
        };
        let empty = LocalWrite { upd: Ballot::ZERO, op: crate::store::replicator::Op::Del };
        let bytes = self.bytes.saturating_sub(replaced) + weight(address, &empty) + value_bytes;
        if entries <= entries_max && bytes <= bytes_max {
            return Ok(());
        }
        let (len, held) = (self.len(), self.bytes);
        Err(Rejection::Busy(format!(
            "{len} local writes of {held} bytes wait for a quorum, of {entries_max} and {bytes_max} bytes at most; try \
             again once one is in reach"
        )))
    }

    /// Takes one in, whose key has a chosen row of version `chosen`, zero where there is none. It is neither shown nor proposed
    /// before it is durable.
    pub fn put(&mut self, address: Address, write: LocalWrite, chosen: Ballot) {
        self.insert(address, write, false, chosen);
    }

    /// Takes in what a restart found on the disk. Bounds are not looked at: it was accepted once.
    pub fn restore(&mut self, address: &Address, write: LocalWrite) {
        let upd = write.upd;
        self.insert(address.clone(), write, true, Ballot::ZERO);
        self.put_off(address, upd, Duration::ZERO);
    }

    fn insert(&mut self, address: Address, write: LocalWrite, is_durable: bool, chosen: Ballot) {
        let earlier = self.waiting.get(&address).map(|waiting| waiting.write.upd);
        if earlier.is_some_and(|earlier| earlier >= write.upd) {
            return;
        }
        let earlier = self.remove(&address);
        self.counts.replaced += u64::from(earlier.is_some());
        let (known, proposed) = earlier.map_or((Ballot::ZERO, None), |earlier| (earlier.chosen, earlier.proposed));
        let chosen = chosen.max(known);
        self.versions.insert(write.upd);
        self.bytes += weight(&address, &write);
        self.waiting.insert(address, Waiting { write, is_durable, chosen, proposed, due: None });
    }

    /// Learns that a write is on the disk. True where it is to be shown: nothing as new is known to be chosen.
    pub fn on_durable(&mut self, address: &Address, upd: Ballot) -> bool {
        let Some(waiting) = self.waiting.get_mut(address) else { return false };
        if upd <= waiting.chosen {
            return false;
        }
        if waiting.write.upd == upd {
            waiting.is_durable = true;
            self.put_off(address, upd, Duration::ZERO);
        }
        true
    }

    /// Learns that a version of the key is chosen and visible here. True where the key's write has ended by that.
    pub fn on_chosen(&mut self, address: &Address, upd: Ballot) -> bool {
        let Some(waiting) = self.waiting.get_mut(address) else { return false };
        waiting.chosen = waiting.chosen.max(upd);
        let mine = waiting.write.upd;
        if upd < mine {
            return false;
        }
        self.end(address, upd == mine);
        true
    }

    /// The oldest writes that are due, as many as may be proposed now. Each is to be followed by [`Outbox::propose`].
    #[must_use]
    pub fn next(&self, now: Duration) -> Vec<(Address, LocalWrite)> {
        let room = DRAINED_AT_ONCE.saturating_sub(self.proposed.len());
        let due = self.due.iter().take_while(|((due, _), _)| *due <= now).take(room);
        due.filter_map(|(_, address)| Some((address.clone(), self.get(address)?.clone()))).collect()
    }

    /// Learns that the key's write is being proposed.
    pub fn propose(&mut self, address: &Address, id: OpId) {
        let Some(waiting) = self.waiting.get_mut(address) else { return };
        let upd = waiting.write.upd;
        waiting.proposed = Some(id);
        if let Some(due) = waiting.due.take() {
            self.due.remove(&(due, upd));
        }
        self.proposed.insert(id, (address.clone(), upd));
    }

    /// Learns how a proposal of it ended. A write that was overtaken by something that is not a row here, such as a
    /// deletion since forgotten, ends by this alone, and comes back.
    pub fn decided(&mut self, now: Duration, id: OpId, decision: &Decision) -> Option<Overtaken> {
        let (address, upd) = self.proposed.remove(&id)?;
        let waiting = self.waiting.get_mut(&address).filter(|waiting| waiting.proposed == Some(id))?;
        waiting.proposed = None;
        let (mine, is_over) = (waiting.write.upd, matches!(decision, Decision::Accept(_)));
        if is_over && mine == upd {
            self.end(&address, false);
            return Some(Overtaken { address, upd });
        }
        self.put_off(&address, mine, if is_over { Duration::ZERO } else { now + RETRY_AFTER });
        None
    }

    /// Every write, for a journal that gives up its old segments.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        self.waiting.iter().map(|(address, waiting)| Entry::Local(address.clone(), waiting.write.clone())).collect()
    }

    fn put_off(&mut self, address: &Address, upd: Ballot, until: Duration) {
        let Some(waiting) = self.waiting.get_mut(address) else { return };
        if waiting.is_durable && waiting.proposed.is_none() && waiting.due.is_none() {
            waiting.due = Some(until);
            self.due.insert((until, upd), address.clone());
        }
    }

    fn end(&mut self, address: &Address, is_drained: bool) {
        if self.remove(address).is_some() {
            *(if is_drained { &mut self.counts.drained } else { &mut self.counts.superseded }) += 1;
        }
    }

    fn remove(&mut self, address: &Address) -> Option<Waiting> {
        let gone = self.waiting.remove(address)?;
        self.versions.remove(&gone.write.upd);
        self.bytes -= weight(address, &gone.write);
        if let Some(due) = gone.due {
            self.due.remove(&(due, gone.write.upd));
        }
        Some(gone)
    }

    /// All that decides what it does next, but for time, for those who compare states.
    #[cfg(test)]
    pub(super) fn print(&self, into: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        let mut all: Vec<_> = self.waiting.iter().collect();
        all.sort_by_key(|(_, waiting)| waiting.write.upd);
        for (address, Waiting { write, is_durable, chosen, proposed, due }) in all {
            (address, write, is_durable, chosen, proposed, due.is_some()).hash(into);
        }
        let proposed: BTreeMap<_, _> = self.proposed.iter().map(|(id, (_, upd))| (id, upd)).collect();
        proposed.hash(into);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::replicator::Op;
    use crate::store::update::{Outcome, Verdict};
    use crate::types::{Key, ShardId, Value};

    fn address(key: &str) -> Address {
        Address { shard: ShardId::parse("", "a").unwrap(), key: Key::parse(key).unwrap() }
    }

    fn write(upd: i64) -> LocalWrite {
        LocalWrite { upd: Ballot(upd), op: Op::Put(Value::from(upd.to_string().into_bytes())) }
    }

    fn accept(verdict: Verdict) -> Decision {
        Decision::Accept(Outcome { verdict, before: None, after: None })
    }

    const NOW: Duration = Duration::from_secs(9);

    fn due(outbox: &Outbox, now: Duration) -> Vec<i64> {
        outbox.next(now).iter().map(|(_, write)| write.upd.0).collect()
    }

    #[test]
    fn a_write_is_proposed_once_it_is_durable_oldest_first_and_gone_once_it_is_chosen() {
        let mut outbox = Outbox::default();
        for (key, upd) in [("b", 2), ("a", 1)] {
            outbox.put(address(key), write(upd), Ballot::ZERO);
        }
        assert!(due(&outbox, NOW).is_empty());
        assert!(outbox.on_durable(&address("b"), Ballot(2)) && outbox.on_durable(&address("a"), Ballot(1)));
        assert_eq!((due(&outbox, NOW), outbox.oldest()), (vec![1, 2], Some(Ballot(1))));
        outbox.propose(&address("a"), OpId(1));
        assert_eq!(due(&outbox, NOW), [2]);
        assert!(outbox.on_chosen(&address("a"), Ballot(1)));
        assert_eq!(outbox.decided(NOW, OpId(1), &accept(Verdict::Written)), None, "that is known already");
        assert!(!outbox.on_chosen(&address("b"), Ballot(1)), "an older version ends nothing");
        assert!(outbox.on_chosen(&address("b"), Ballot(3)));
        assert!(outbox.is_empty() && outbox.bytes() == 0 && outbox.oldest().is_none() && due(&outbox, NOW).is_empty());
        assert_eq!(outbox.counts(), OutboxCounts { drained: 1, superseded: 1, replaced: 0 });
    }

    #[test]
    fn a_proposal_of_unknown_fate_is_tried_again_after_a_while() {
        let mut outbox = Outbox::default();
        outbox.restore(&address("a"), write(1));
        for (id, decision) in
            [Decision::Timeout, Decision::Reject(Rejection::NoQuorum(String::new()))].iter().enumerate()
        {
            let now = NOW * u32::try_from(id).unwrap();
            assert_eq!(due(&outbox, now), [1]);
            outbox.propose(&address("a"), OpId(id as u64));
            assert_eq!(outbox.decided(now, OpId(id as u64), decision), None);
            assert!(due(&outbox, now).is_empty());
        }
        outbox.propose(&address("a"), OpId(7));
        let overtaken = outbox.decided(NOW, OpId(7), &accept(Verdict::ConditionFailed));
        assert_eq!(overtaken, Some(Overtaken { address: address("a"), upd: Ballot(1) }));
        assert!(outbox.is_empty() && due(&outbox, NOW * 9).is_empty());
    }

    #[test]
    fn a_later_write_of_the_key_takes_the_place_of_the_earlier_and_waits_for_its_proposal() {
        let mut outbox = Outbox::default();
        outbox.restore(&address("a"), write(1));
        outbox.propose(&address("a"), OpId(1));
        outbox.put(address("a"), write(2), Ballot::ZERO);
        assert!(outbox.on_durable(&address("a"), Ballot(2)));
        assert!(due(&outbox, NOW).is_empty(), "the first is under way");
        assert!(!outbox.on_chosen(&address("a"), Ballot(1)));
        assert_eq!(outbox.decided(NOW, OpId(1), &accept(Verdict::Written)), None);
        assert_eq!((due(&outbox, NOW), outbox.len()), (vec![2], 1));
        outbox.put(address("a"), write(1), Ballot::ZERO);
        assert_eq!(due(&outbox, NOW), [2], "an older one never comes back");
    }

    /// Chosen meanwhile, a newer version had already left memory for its file when the older write was to be shown.
    #[test]
    fn what_was_overtaken_before_it_was_durable_is_not_shown() {
        let mut outbox = Outbox::default();
        outbox.put(address("a"), write(1), Ballot::ZERO);
        outbox.put(address("a"), write(5), Ballot::ZERO);
        assert!(!outbox.on_chosen(&address("a"), Ballot(3)));
        assert!(!outbox.on_durable(&address("a"), Ballot(1)));
        assert!(outbox.on_durable(&address("a"), Ballot(5)));
        assert!(outbox.on_chosen(&address("a"), Ballot(6)));
        assert!(!outbox.on_durable(&address("a"), Ballot(5)));
        // Though a later write of the key has come since.
        outbox.put(address("a"), write(9), Ballot(6));
        assert!(!outbox.on_durable(&address("a"), Ballot(5)));
        assert!(outbox.on_durable(&address("a"), Ballot(9)));
    }

    #[test]
    fn it_is_bounded_and_a_key_s_second_write_takes_no_second_place() {
        let mut outbox = Outbox::new(OutboxBounds { entries_max: 2, bytes_max: 2 * ENTRY_OVERHEAD_BYTES + 10 });
        for key in ["a", "b"] {
            outbox.check_room(&address(key), 1).unwrap();
            outbox.put(address(key), write(1), Ballot::ZERO);
        }
        assert!(matches!(outbox.check_room(&address("c"), 1), Err(Rejection::Busy(_))));
        outbox.check_room(&address("b"), 1).unwrap();
        assert!(matches!(outbox.check_room(&address("b"), 100), Err(Rejection::Busy(_))));
        outbox.on_chosen(&address("a"), Ballot(1));
        outbox.check_room(&address("c"), 1).unwrap();
    }
}
