//! The ring against a list of everything that ever happened; and the feed of a real store.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::ring::{Before, Bounds, Cut, Ring, WatcherId};
use super::{EventId, InvalidEventId};
use crate::store::replicator::{Frame, Op};
use crate::types::{Ballot, Key, ShardId, StorageId, Value};

const SHARDS: [&str; 2] = ["one", "two"];
const KEYS: [&str; 4] = ["a", "ab", "b", "ba"];
const PREFIXES: [&[&str]; 5] = [&[""], &["a"], &["ab"], &["a", "b"], &["c"]];
const KEPT_FOR: Duration = Duration::from_secs(10);

fn shard(n: usize) -> ShardId {
    ShardId::parse("", SHARDS[n]).unwrap()
}

fn frame(at: (usize, usize), op: Op, upd: i64, ballot: i64) -> Frame {
    let (shard, key) = (shard(at.0), Key::parse(KEYS[at.1]).unwrap());
    Frame { shard, seq: 0, key, op, upd: Ballot(upd), ballot: Ballot(ballot) }
}

fn put(at: (usize, usize), upd: i64) -> Frame {
    frame(at, Op::Put(Value::from(upd.to_string().into_bytes())), upd, upd)
}

const NOTHING: Before = Before::Shown { ballot: Ballot::ZERO, upd: Ballot::ZERO };

fn bounds() -> Bounds {
    Bounds { events_max: 8, bytes_max: 1 << 20, shards_max: 2, watchers_max: 4, prefixes_max: 6, kept_for: KEPT_FOR }
}

fn versions(ring: &mut Ring<u32>, id: WatcherId) -> Result<Vec<i64>, Cut> {
    Ok(ring.take(id, 100, 1 << 20)?.events.iter().map(|event| event.upd.0).collect())
}

fn watch(ring: &mut Ring<u32>, on: usize, prefix: &str) -> WatcherId {
    ring.watch(&shard(on), vec![prefix.to_owned()], None, 0).unwrap().0
}

#[test]
fn what_is_chosen_again_or_late_is_no_change() {
    let mut ring = Ring::new(bounds(), 100);
    let id = watch(&mut ring, 0, "");
    let shown = |ballot, upd| Before::Shown { ballot: Ballot(ballot), upd: Ballot(upd) };
    // The first are told what the key showed; the ring knows it of the others.
    ring.push(&frame((0, 0), Op::Del, 5, 9), shown(5, 5));
    ring.push(&put((0, 0), 4), shown(9, 5));
    assert_eq!(versions(&mut ring, id), Ok(vec![]));
    ring.push(&put((0, 0), 10), shown(9, 5));
    ring.push(&put((0, 0), 10), Before::Unknown);
    ring.push(&frame((0, 0), Op::Del, 10, 12), Before::Unknown);
    ring.push(&put((0, 0), 11), Before::Unknown);
    ring.push(&put((0, 0), 13), Before::Unknown);
    assert_eq!(versions(&mut ring, id), Ok(vec![10, 13]));
    // A row whose first round this node missed is news, whatever its ballot.
    ring.push(&frame((0, 1), Op::Del, 3, 20), NOTHING);
    assert_eq!(versions(&mut ring, id), Ok(vec![3]));
}

#[test]
fn changes_that_concern_nobody_overrun_nobody() {
    let mut ring = Ring::new(bounds(), 0);
    let (idle, slow) = (watch(&mut ring, 0, "b"), watch(&mut ring, 0, "a"));
    for upd in 1..=20 {
        ring.push(&put((0, 0), upd), NOTHING);
    }
    assert!(!ring.is_pending(idle) && ring.is_pending(slow));
    assert_eq!(versions(&mut ring, idle), Ok(vec![]));
    assert_eq!(versions(&mut ring, slow), Err(Cut::Overrun));
    ring.push(&put((0, 2), 21), NOTHING);
    assert_eq!(versions(&mut ring, idle), Ok(vec![21]));
    assert_eq!(ring.audit().0, 8);
}

#[test]
fn a_bell_rings_once_for_all_that_waits() {
    let mut ring = Ring::new(bounds(), 0);
    for (bell, prefix) in [(1, "a"), (2, "ab"), (3, "")] {
        ring.watch(&shard(0), vec![prefix.to_owned()], None, bell).unwrap();
    }
    let mut rung = |frame| {
        let mut bells = ring.push(&frame, NOTHING);
        bells.sort_unstable();
        bells
    };
    assert_eq!(rung(put((0, 0), 1)), [1, 3]);
    assert_eq!(rung(put((0, 1), 2)), [2]);
    assert_eq!(rung(put((1, 0), 3)), [] as [u32; 0]);
    assert_eq!(ring.close().len(), 3);
}

#[test]
fn who_cannot_be_told_in_full_begins_again() {
    let mut ring = Ring::new(bounds(), 0);
    let (there, elsewhere) = (watch(&mut ring, 0, "a"), watch(&mut ring, 0, "b"));
    ring.push(&put((0, 0), 1), NOTHING);
    let since = ring.take(there, 10, 1000).unwrap().upto;
    ring.push(&put((0, 1), 2), Before::Unknown);
    assert_eq!(versions(&mut ring, there), Err(Cut::Lost));
    assert_eq!(versions(&mut ring, elsewhere), Ok(vec![]));
    let (again, resumed) = ring.watch(&shard(0), vec!["a".to_owned()], Some(since), 0).unwrap();
    assert!(!resumed, "what happened since is not known");
    ring.begin_now(again);
    ring.push(&put((0, 1), 3), NOTHING);
    assert_eq!(versions(&mut ring, again), Ok(vec![3]));
    ring.audit();
}

#[test]
fn every_bound_is_kept_and_room_is_given_back() {
    let mut ring = Ring::new(bounds(), 0);
    let prefixes = |count: usize| (0..count).map(|n| n.to_string()).collect::<Vec<_>>();
    let (first, _) = ring.watch(&shard(0), prefixes(6), None, 0).unwrap();
    assert_eq!(ring.watch(&shard(0), prefixes(1), None, 0).unwrap_err().max, 6);
    assert_eq!(ring.watchers(), 1);
    ring.set_prefixes(first, prefixes(3)).unwrap();
    let (second, _) = ring.watch(&shard(1), prefixes(1), None, 0).unwrap();
    let third = ShardId::parse("", "three").unwrap();
    assert_eq!(ring.watch(&third, prefixes(1), None, 0).unwrap_err().what, "watched shards");
    ring.push(&put((1, 0), 1), NOTHING);
    ring.leave(second, Duration::from_secs(1));
    assert_eq!(ring.audit().0, 1, "kept for those who come back");
    // The one that nobody watches gives way.
    ring.watch(&third, prefixes(1), None, 0).unwrap();
    assert_eq!(ring.audit().0, 0);
    for _ in 0..2 {
        ring.watch(&third, prefixes(1), None, 0).unwrap();
    }
    assert_eq!(ring.watch(&third, prefixes(1), None, 0).unwrap_err().what, "watchers");
    let value = Value::from(vec![0; 600_000]);
    for upd in 1..5 {
        ring.push(&frame((0, 0), Op::Put(value.clone()), upd, upd), NOTHING);
        assert!(ring.audit().1 <= bounds().bytes_max);
    }
}

/// A shard that nobody watches is not written down, so an id from before is good for nothing once it is forgotten.
#[test]
fn an_id_outlives_its_watcher_for_a_while_only() {
    let mut ring = Ring::new(bounds(), 0);
    let id = watch(&mut ring, 0, "");
    let since = ring.begin_now(id);
    ring.leave(id, Duration::ZERO);
    let resumes = |ring: &mut Ring<u32>| {
        let (id, resumed) = ring.watch(&shard(0), vec![String::new()], Some(since), 0).unwrap();
        ring.leave(id, Duration::ZERO);
        resumed
    };
    ring.push(&put((0, 0), 1), NOTHING);
    ring.expire(KEPT_FOR - Duration::from_millis(1));
    assert!(resumes(&mut ring));
    ring.expire(KEPT_FOR);
    assert!(!ring.is_recording());
    assert!(!resumes(&mut ring));
}

#[test]
fn ids_are_read_as_they_are_written() {
    let id = EventId { storage_id: StorageId(0xf3), number: u64::MAX };
    assert_eq!(id.to_string().parse(), Ok(id));
    for wrong in
        ["", "1", ".", "00000000000000f3", "00000000000000f3.", "f3.1", "00000000000000f3.-1", "00000000000000f3.+1"]
    {
        assert_eq!(wrong.parse::<EventId>(), Err(InvalidEventId), "{wrong:?}");
    }
    for wrong in ["00000000000000f3.18446744073709551616", "00000000000000g3.1", "+0000000000000f3.1", "0.1.2"] {
        assert_eq!(wrong.parse::<EventId>(), Err(InvalidEventId), "{wrong:?}");
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// A write, the same chosen again, or one that comes late; and whether nobody can say what was there.
    Write {
        at: (usize, usize),
        unknown: bool,
    },
    Again {
        at: (usize, usize),
    },
    Late {
        at: (usize, usize),
    },
    Watch {
        on: usize,
        prefixes: usize,
        since: Option<usize>,
    },
    Take {
        watcher: usize,
        events_max: usize,
    },
    Begin {
        watcher: usize,
    },
    Leave {
        watcher: usize,
    },
    Pass {
        seconds: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let at = || (0..SHARDS.len(), 0..KEYS.len());
    prop_oneof![
        8 => (at(), prop::bool::weighted(0.03)).prop_map(|(at, unknown)| Step::Write { at, unknown }),
        2 => at().prop_map(|at| Step::Again { at }),
        1 => at().prop_map(|at| Step::Late { at }),
        3 => (0..SHARDS.len(), 0..PREFIXES.len(), prop::option::of(0..100_usize))
            .prop_map(|(on, prefixes, since)| Step::Watch { on, prefixes, since }),
        6 => (0..4_usize, 1..4_usize).prop_map(|(watcher, events_max)| Step::Take { watcher, events_max }),
        1 => (0..4_usize).prop_map(|watcher| Step::Begin { watcher }),
        1 => (0..4_usize).prop_map(|watcher| Step::Leave { watcher }),
        1 => (0..8_u64).prop_map(|seconds| Step::Pass { seconds }),
    ]
}

/// One change, as it was: shard, key, version.
type Change = (usize, usize, i64);

struct Reader {
    id: WatcherId,
    on: usize,
    prefixes: usize,
    /// How many changes of all there were when it began, or up to which it has read.
    read: usize,
}

/// Everything that ever happened, and who has read how far.
struct Model {
    ring: Ring<u32>,
    /// Ballot and version that each key shows.
    shown: BTreeMap<(usize, usize), (i64, i64)>,
    changes: Vec<Change>,
    readers: Vec<Reader>,
    /// Ids that a watcher was given, with the changes that they stand for.
    given: Vec<(u64, usize)>,
    clock: i64,
    now: Duration,
}

impl Model {
    fn concerns(&self, reader: (usize, usize), change: &Change) -> bool {
        let (on, prefixes) = reader;
        change.0 == on && PREFIXES[prefixes].iter().any(|prefix| KEYS[change.1].starts_with(prefix))
    }

    fn write(&mut self, at: (usize, usize), unknown: bool) {
        self.clock += 1;
        let before = self.before(at);
        self.shown.insert(at, (self.clock, self.clock));
        self.changes.push((at.0, at.1, self.clock));
        self.ring.push(&put(at, self.clock), if unknown { Before::Unknown } else { before });
    }

    fn before(&self, at: (usize, usize)) -> Before {
        let (ballot, upd) = self.shown.get(&at).copied().unwrap_or_default();
        Before::Shown { ballot: Ballot(ballot), upd: Ballot(upd) }
    }

    fn again(&mut self, at: (usize, usize)) {
        let before = self.before(at);
        let Some((ballot, upd)) = self.shown.get_mut(&at) else { return };
        self.clock += 1;
        *ballot = self.clock;
        let bells = self.ring.push(&frame(at, Op::Del, *upd, *ballot), before);
        assert!(bells.is_empty());
    }

    fn late(&mut self, at: (usize, usize)) {
        let Some((_, upd)) = self.shown.get(&at).copied() else { return };
        let before = self.before(at);
        let bells = self.ring.push(&put(at, upd - 1), before);
        assert!(bells.is_empty());
    }

    fn watch(&mut self, on: usize, prefixes: usize, since: Option<usize>) {
        let since = since.and_then(|n| self.given.get(n % self.given.len().max(1)).copied());
        let wanted = PREFIXES[prefixes].iter().map(|prefix| (*prefix).to_owned()).collect();
        let Ok((id, resumed)) = self.ring.watch(&shard(on), wanted, since.map(|(number, _)| number), 0) else {
            return;
        };
        let read = if resumed {
            since.unwrap().1
        } else {
            self.given.push((self.ring.begin_now(id), self.changes.len()));
            self.changes.len()
        };
        self.readers.push(Reader { id, on, prefixes, read });
    }

    /// What is taken is what concerns the reader, each once, in order, without a gap.
    fn take(&mut self, watcher: usize, events_max: usize) {
        if self.readers.is_empty() {
            return;
        }
        let place = watcher % self.readers.len();
        let Reader { id, on, prefixes, read } = self.readers[place];
        let unread: Vec<(usize, Change)> = self.changes.iter().copied().enumerate().skip(read).collect();
        let mine = unread.iter().filter(|(_, change)| self.concerns((on, prefixes), change));
        let mine: Vec<(usize, Change)> = mine.copied().collect();
        match self.ring.take(id, events_max, 1 << 20) {
            Ok(taken) => {
                let got: Vec<i64> = taken.events.iter().map(|event| event.upd.0).collect();
                let expected: Vec<i64> = mine.iter().map(|(_, change)| change.2).take(got.len()).collect();
                assert_eq!(got, expected, "taken of {mine:?}");
                assert!(got.len() <= events_max);
                let upto = if taken.more {
                    mine.get(got.len().wrapping_sub(1)).map_or(read, |(n, _)| n + 1)
                } else {
                    assert_eq!(got.len(), mine.len(), "something is missing");
                    self.changes.len()
                };
                self.readers[place].read = upto;
                self.given.push((taken.upto, upto));
            }
            Err(Cut::Stopping) => panic!("it does not stop"),
            Err(_) => {
                // Something that it had not looked at is gone, or was not known.
                assert!(!unread.is_empty(), "cut off with everything read");
                self.ring.leave(id, self.now);
                self.readers.remove(place);
            }
        }
    }

    fn live(&mut self, step: Step) {
        let reader = |watcher: usize, model: &Self| (!model.readers.is_empty()).then(|| watcher % model.readers.len());
        match step {
            Step::Write { at, unknown } => self.write(at, unknown),
            Step::Again { at } => self.again(at),
            Step::Late { at } => self.late(at),
            Step::Watch { on, prefixes, since } => self.watch(on, prefixes, since),
            Step::Take { watcher, events_max } => self.take(watcher, events_max),
            Step::Begin { watcher } => {
                if let Some(place) = reader(watcher, self) {
                    self.given.push((self.ring.begin_now(self.readers[place].id), self.changes.len()));
                    self.readers[place].read = self.changes.len();
                }
            }
            Step::Leave { watcher } => {
                if let Some(place) = reader(watcher, self) {
                    self.ring.leave(self.readers.remove(place).id, self.now);
                }
            }
            Step::Pass { seconds } => {
                self.now += Duration::from_secs(seconds);
                self.ring.expire(self.now);
            }
        }
        let (events, _) = self.ring.audit();
        assert!(events <= bounds().events_max);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]
    #[test]
    fn every_watcher_sees_its_changes_once_and_in_order_or_is_told(steps in prop::collection::vec(step(), 1..120)) {
        let mut model = Model {
            ring: Ring::new(bounds(), 1_000),
            shown: BTreeMap::new(),
            changes: Vec::new(),
            readers: Vec::new(),
            given: Vec::new(),
            clock: 1,
            now: Duration::ZERO,
        };
        for step in steps {
            model.live(step);
        }
        for watcher in 0..model.readers.len() {
            model.take(watcher, 100);
        }
    }
}
