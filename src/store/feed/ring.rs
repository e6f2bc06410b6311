//! The latest changes of the shards that are watched, and who has read how far: pure.
//!
//! ```text
//!   push ──► order (all shards, oldest first: what goes first when room is short)
//!        └─► channel of the shard: [17 put a][19 del b][20 put a]   floor 16: an id from there on can go on here
//!                                              ▲ next of a watcher      index: prefix ──► watchers
//! ```
//!
//! A watcher is a place in its shard's channel and nothing more. One that has read all that concerns it is in no place:
//! changes under other prefixes cost it nothing, and cannot overrun it.
//!
//! Whether a frame is a change is decided here: a version above the one that its key showed before. The channel knows that
//! of every key it holds an event of; of any other it is told ([`Before`]). Where nobody can tell, what the channel holds
//! is no whole story any more, and its watchers begin again with a snapshot.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use crate::store::replicator::{Frame, Op};
use crate::types::{Ballot, Key, ShardId};

/// What an event costs in memory beside its key and value, roughly, in bytes.
const EVENT_OVERHEAD_BYTES: usize = 256;
/// The most events that one read looks at, whether or not they concern the reader.
const SCAN_EVENTS_MAX: usize = 1_024;

/// How much a ring may hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Events of all shards together.
    pub(super) events_max: usize,
    /// Their size in memory, in bytes.
    pub(super) bytes_max: usize,
    /// Shards whose events are kept.
    pub(super) shards_max: usize,
    pub(super) watchers_max: usize,
    /// Prefixes of all watchers together.
    pub(super) prefixes_max: usize,
    /// How long the events of a shard are kept once nobody watches it.
    pub(super) kept_for: Duration,
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// This node's count of changes: rises from event to event.
    pub number: u64,
    /// Which key.
    pub key: Key,
    /// What became of it.
    pub op: Op,
    /// Its version from now on.
    pub upd: Ballot,
}

impl Event {
    /// Bytes of its key and value.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.key.as_str().len() + self.op.weight()
    }

    fn cost(&self) -> usize {
        EVENT_OVERHEAD_BYTES + self.bytes()
    }
}

/// The version that a key showed before a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Before {
    /// This one. Zero where it had none.
    Shown { ballot: Ballot, upd: Ballot },
    /// Nobody could tell.
    Unknown,
}

/// Names a watcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct WatcherId(u64);

/// Why a watcher is given no further event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Cut {
    /// Events went before it had read them.
    #[error("this watcher was overrun: it reads more slowly than its keys change, and what it had not read is gone")]
    Overrun,
    /// What changed cannot be told in full.
    #[error("this node lost track of what changed in the shard")]
    Lost,
    /// The node stops.
    #[error("this node is shutting down")]
    Stopping,
}

/// Why nobody more can watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full {
    pub(super) what: &'static str,
    pub(super) max: usize,
}

/// Some events, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// At most as many as asked for; none where nothing concerns the watcher.
    pub events: Vec<Event>,
    /// Everything up to this number has been read.
    pub upto: u64,
    /// There may be more.
    pub more: bool,
}

/// What of a key's latest event in a channel.
#[derive(Debug, Clone, Copy)]
struct Latest {
    number: u64,
    ballot: Ballot,
    upd: Ballot,
}

/// One shard.
#[derive(Debug, Default)]
struct Channel {
    events: VecDeque<Event>,
    latest: HashMap<Key, Latest>,
    /// Every change after this number is in `events`.
    floor: u64,
    index: Index,
    watchers: usize,
    /// Since when nobody watches.
    idle_since: Duration,
}

/// Who has to be told of a change: watchers by prefix, prefixes by their length.
#[derive(Debug, Default)]
struct Index(BTreeMap<usize, HashMap<String, Vec<WatcherId>>>);

impl Index {
    fn add(&mut self, prefix: &str, id: WatcherId) {
        self.0.entry(prefix.len()).or_default().entry(prefix.to_owned()).or_default().push(id);
    }

    fn remove(&mut self, prefix: &str, id: WatcherId) {
        let Some(of_length) = self.0.get_mut(&prefix.len()) else { return };
        if let Some(ids) = of_length.get_mut(prefix) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                of_length.remove(prefix);
            }
        }
        if of_length.is_empty() {
            self.0.remove(&prefix.len());
        }
    }

    fn of(&self, key: &str) -> impl Iterator<Item = WatcherId> {
        let heads = self.0.range(..=key.len()).filter_map(|(length, by_prefix)| by_prefix.get(key.get(..*length)?));
        heads.flatten().copied()
    }
}

#[derive(Debug)]
struct Watcher<B> {
    shard: ShardId,
    prefixes: Vec<String>,
    /// The first event that it has not looked at; none where nothing is left that concerns it.
    next: Option<u64>,
    is_lost: bool,
    bell: B,
}

/// All channels and watchers. `B` is what wakes a watcher.
#[derive(Debug)]
pub(super) struct Ring<B> {
    bounds: Bounds,
    /// The number of the latest event.
    last: u64,
    channels: HashMap<ShardId, Channel>,
    watchers: HashMap<WatcherId, Watcher<B>>,
    /// Which channel's first event is the oldest of all.
    order: VecDeque<ShardId>,
    bytes: usize,
    prefixes: usize,
    next_watcher: u64,
    is_closed: bool,
}

impl<B: Clone> Ring<B> {
    /// One that holds nothing, and counts from `last` on.
    pub(super) fn new(bounds: Bounds, last: u64) -> Self {
        Self {
            bounds,
            last,
            channels: HashMap::new(),
            watchers: HashMap::new(),
            order: VecDeque::new(),
            bytes: 0,
            prefixes: 0,
            next_watcher: 0,
            is_closed: false,
        }
    }

    pub(super) fn watchers(&self) -> usize {
        self.watchers.len()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Whether events of any shard are kept.
    pub(super) fn is_recording(&self) -> bool {
        !self.channels.is_empty()
    }

    pub(super) fn is_watched(&self, shard: &ShardId) -> bool {
        self.channels.get(shard).is_some_and(|channel| channel.watchers > 0)
    }

    pub(super) fn watched(&self) -> Vec<ShardId> {
        let watched = self.channels.iter().filter(|(_, channel)| channel.watchers > 0);
        let mut shards: Vec<_> = watched.map(|(shard, _)| shard.clone()).collect();
        // In an order that is the same each time, as a simulated world has to be.
        shards.sort_unstable();
        shards
    }

    /// Whether [`Ring::push`] has to be told what the key showed before this frame.
    pub(super) fn has_to_be_told(&self, frame: &Frame) -> bool {
        self.channels.get(&frame.shard).is_some_and(|channel| !channel.latest.contains_key(&frame.key))
    }

    /// Takes in a committed frame; hands back the bells of those whom it concerns and who were waiting.
    pub(super) fn push(&mut self, frame: &Frame, before: Before) -> Vec<B> {
        let Some(channel) = self.channels.get_mut(&frame.shard) else { return Vec::new() };
        let known = channel.latest.get_mut(&frame.key);
        let before = known.as_ref().map_or(before, |l| Before::Shown { ballot: l.ballot, upd: l.upd });
        let Before::Shown { ballot, upd } = before else { return self.lose_track(&frame.shard, &frame.key) };
        if frame.ballot <= ballot || frame.upd <= upd {
            // Late, or chosen again: nothing that a client would see.
            if let Some(latest) = known.filter(|_| frame.upd == upd) {
                latest.ballot = latest.ballot.max(frame.ballot);
            }
            return Vec::new();
        }
        self.add(&frame.shard, &frame.key, &frame.op, Latest { number: 0, ballot: frame.ballot, upd: frame.upd })
    }

    /// Takes in what this node accepted on its own: it is above whatever the key showed before. When it is committed it is no
    /// change any more, nor is what is committed before it.
    pub(super) fn push_own(&mut self, shard: &ShardId, key: &Key, op: &Op, upd: Ballot) -> Vec<B> {
        let channel = self.channels.get(shard);
        let ballot = channel.and_then(|channel| channel.latest.get(key)).map_or(Ballot::ZERO, |latest| latest.ballot);
        self.add(shard, key, op, Latest { number: 0, ballot, upd })
    }

    fn add(&mut self, shard: &ShardId, key: &Key, op: &Op, latest: Latest) -> Vec<B> {
        let Some(channel) = self.channels.get_mut(shard) else { return Vec::new() };
        self.last += 1;
        let number = self.last;
        let event = Event { number, key: key.clone(), op: op.clone(), upd: latest.upd };
        channel.latest.insert(key.clone(), Latest { number, ..latest });
        self.bytes += event.cost();
        channel.events.push_back(event);
        self.order.push_back(shard.clone());
        let mut bells = Vec::new();
        for id in channel.index.of(key.as_str()) {
            if let Some(watcher) = self.watchers.get_mut(&id)
                && watcher.next.is_none()
            {
                watcher.next = Some(number);
                bells.push(watcher.bell.clone());
            }
        }
        while self.order.len() > self.bounds.events_max || self.bytes > self.bounds.bytes_max {
            self.drop_oldest();
        }
        bells
    }

    fn drop_oldest(&mut self) {
        let Some(channel) = self.order.pop_front().and_then(|shard| self.channels.get_mut(&shard)) else { return };
        let Some(event) = channel.events.pop_front() else { return };
        self.bytes -= event.cost();
        channel.floor = event.number;
        if channel.latest.get(&event.key).is_some_and(|latest| latest.number == event.number) {
            channel.latest.remove(&event.key);
        }
    }

    /// What may be a change or not: whoever it concerns begins again, and so does who had unread events here.
    pub(super) fn lose_track(&mut self, shard: &ShardId, key: &Key) -> Vec<B> {
        self.forget_story(shard);
        let Some(channel) = self.channels.get(shard) else { return Vec::new() };
        let ids: Vec<_> = channel.index.of(key.as_str()).collect();
        self.lose(ids)
    }

    /// Any key of the shard may have changed: all its watchers begin again.
    pub(super) fn lose_shard(&mut self, shard: &ShardId) -> Vec<B> {
        self.forget_story(shard);
        let of_shard = self.watchers.iter().filter(|(_, watcher)| watcher.shard == *shard);
        let ids: Vec<_> = of_shard.map(|(id, _)| *id).collect();
        self.lose(ids)
    }

    /// What was kept of a shard is no whole story any more: nobody goes on in it.
    fn forget_story(&mut self, shard: &ShardId) {
        self.last += 1;
        self.forget_events(shard);
        if let Some(channel) = self.channels.get_mut(shard) {
            channel.floor = self.last;
        }
    }

    fn lose(&mut self, ids: Vec<WatcherId>) -> Vec<B> {
        let mut bells = Vec::new();
        for id in ids {
            if let Some(watcher) = self.watchers.get_mut(&id) {
                watcher.is_lost = true;
                bells.push(watcher.bell.clone());
            }
        }
        bells
    }

    fn forget_events(&mut self, shard: &ShardId) {
        let Some(channel) = self.channels.get_mut(shard) else { return };
        channel.latest.clear();
        // The order of all shards' events is long, and this may happen with every frame.
        if channel.events.is_empty() {
            return;
        }
        self.bytes -= channel.events.drain(..).map(|event| event.cost()).sum::<usize>();
        self.order.retain(|other| other != shard);
    }

    /// Adds a watcher of the keys of `shard` under any of `prefixes`. True where it goes on after `since`; else it begins
    /// now, and has missed what was before. Its shard's events are kept from now on.
    pub(super) fn watch(
        &mut self,
        shard: &ShardId,
        prefixes: Vec<String>,
        since: Option<u64>,
        bell: B,
    ) -> Result<(WatcherId, bool), Full> {
        if self.watchers.len() >= self.bounds.watchers_max {
            return Err(Full { what: "watchers", max: self.bounds.watchers_max });
        }
        if !self.channels.contains_key(shard) {
            if self.channels.len() >= self.bounds.shards_max {
                self.drop_longest_idle()?;
            }
            // An id from before cannot be as high: what happened since nobody wrote down.
            self.last += 1;
            let channel = Channel { floor: self.last, ..Channel::default() };
            self.channels.insert(shard.clone(), channel);
        }
        self.next_watcher += 1;
        let id = WatcherId(self.next_watcher);
        let watcher = Watcher { shard: shard.clone(), prefixes: Vec::new(), next: None, is_lost: false, bell };
        self.watchers.insert(id, watcher);
        let last = self.last;
        let mut resumed = None;
        if let Some(channel) = self.channels.get_mut(shard) {
            channel.watchers += 1;
            resumed = since.filter(|since| (channel.floor..=last).contains(since));
        }
        if let Err(full) = self.set_prefixes(id, prefixes) {
            self.leave(id, Duration::ZERO);
            return Err(full);
        }
        if let Some(since) = resumed {
            self.go_back(id, since);
        }
        Ok((id, resumed.is_some()))
    }

    fn go_back(&mut self, id: WatcherId, since: u64) {
        let Some(watcher) = self.watchers.get_mut(&id) else { return };
        let Some(channel) = self.channels.get(&watcher.shard) else { return };
        let missed = channel.events.partition_point(|event| event.number <= since);
        watcher.next = channel.events.get(missed).map(|event| event.number);
    }

    /// Has a watcher look at other prefixes from now on.
    pub(super) fn set_prefixes(&mut self, id: WatcherId, prefixes: Vec<String>) -> Result<(), Full> {
        let Some(watcher) = self.watchers.get_mut(&id) else { return Ok(()) };
        let Some(channel) = self.channels.get_mut(&watcher.shard) else { return Ok(()) };
        let wanted = self.prefixes - watcher.prefixes.len() + prefixes.len();
        if wanted > self.bounds.prefixes_max {
            return Err(Full { what: "watched prefixes", max: self.bounds.prefixes_max });
        }
        self.prefixes = wanted;
        watcher.prefixes.iter().for_each(|prefix| channel.index.remove(prefix, id));
        prefixes.iter().for_each(|prefix| channel.index.add(prefix, id));
        watcher.prefixes = prefixes;
        Ok(())
    }

    /// Has a watcher begin now, whatever it has missed; the number of the latest event.
    pub(super) fn begin_now(&mut self, id: WatcherId) -> u64 {
        if let Some(watcher) = self.watchers.get_mut(&id) {
            watcher.next = None;
            watcher.is_lost = false;
        }
        self.last
    }

    /// Whether [`Ring::take`] has something to say.
    pub(super) fn is_pending(&self, id: WatcherId) -> bool {
        self.is_closed || self.watchers.get(&id).is_none_or(|watcher| watcher.next.is_some() || watcher.is_lost)
    }

    /// The next events that concern a watcher: at most `events_max`, and no further one once they have `bytes_max` bytes
    /// of keys and values together.
    pub(super) fn take(&mut self, id: WatcherId, events_max: usize, bytes_max: usize) -> Result<Taken, Cut> {
        if self.is_closed {
            return Err(Cut::Stopping);
        }
        let Some(watcher) = self.watchers.get_mut(&id) else { return Err(Cut::Lost) };
        let Some(channel) = self.channels.get(&watcher.shard) else { return Err(Cut::Lost) };
        if watcher.is_lost {
            return Err(Cut::Lost);
        }
        let Some(next) = watcher.next else {
            return Ok(Taken { events: Vec::new(), upto: self.last, more: false });
        };
        if next <= channel.floor {
            return Err(Cut::Overrun);
        }
        let start = channel.events.partition_point(|event| event.number < next);
        let (mut events, mut bytes, mut upto) = (Vec::new(), 0, next - 1);
        let mut rest = channel.events.range(start..);
        for event in rest.by_ref().take(SCAN_EVENTS_MAX) {
            upto = event.number;
            if watcher.prefixes.iter().any(|prefix| event.key.as_str().starts_with(prefix.as_str())) {
                bytes += event.bytes();
                events.push(event.clone());
                if events.len() >= events_max || bytes >= bytes_max {
                    break;
                }
            }
        }
        watcher.next = rest.next().map(|event| event.number);
        let more = watcher.next.is_some();
        Ok(Taken { events, upto: if more { upto } else { self.last }, more })
    }

    /// A watcher goes, at `now`.
    pub(super) fn leave(&mut self, id: WatcherId, now: Duration) {
        // Giving prefixes back never fails.
        let _ = self.set_prefixes(id, Vec::new());
        let Some(watcher) = self.watchers.remove(&id) else { return };
        if let Some(channel) = self.channels.get_mut(&watcher.shard) {
            channel.watchers -= 1;
            channel.idle_since = now;
        }
    }

    /// Forgets the events of shards that nobody has watched for long.
    pub(super) fn expire(&mut self, now: Duration) {
        let kept_for = self.bounds.kept_for;
        let is_over = |channel: &Channel| channel.watchers == 0 && now.saturating_sub(channel.idle_since) >= kept_for;
        let over: Vec<_> = self.channels.iter().filter(|(_, c)| is_over(c)).map(|(shard, _)| shard.clone()).collect();
        for shard in over {
            self.drop_channel(&shard);
        }
    }

    fn drop_longest_idle(&mut self) -> Result<(), Full> {
        let idle = self.channels.iter().filter(|(_, channel)| channel.watchers == 0);
        let longest = idle.min_by_key(|(shard, channel)| (channel.idle_since, *shard)).map(|(shard, _)| shard.clone());
        let shard = longest.ok_or(Full { what: "watched shards", max: self.bounds.shards_max })?;
        self.drop_channel(&shard);
        Ok(())
    }

    fn drop_channel(&mut self, shard: &ShardId) {
        self.forget_events(shard);
        self.channels.remove(shard);
    }

    /// Ends every watch, now and from now on; hands back all bells.
    pub(super) fn close(&mut self) -> Vec<B> {
        self.is_closed = true;
        self.watchers.values().map(|watcher| watcher.bell.clone()).collect()
    }
}

#[cfg(test)]
impl<B> Ring<B> {
    /// How many events there are, and their cost, counted anew and as it is kept.
    pub(super) fn audit(&self) -> (usize, usize) {
        let events = || self.channels.values().flat_map(|channel| &channel.events);
        let cost = events().map(Event::cost).sum();
        assert_eq!((self.order.len(), self.bytes), (events().count(), cost));
        let latest: usize = self.channels.values().map(|channel| channel.latest.len()).sum();
        assert!(latest <= self.order.len(), "{latest} keys remembered of {} events", self.order.len());
        (self.order.len(), cost)
    }
}
