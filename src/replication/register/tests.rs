//! The pure register under every order, loss, duplication and crash that a seed draws: several nodes, one key, clients
//! that increment, compare and read. Checked at the end: one value per ballot, no acknowledged write lost, no increment
//! counted twice, reads never behind what was acknowledged before they began.

use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::clock::{HybridClock, Now};
use crate::cluster::membership::Quorums;
use crate::store::replicator::{Decision, Op, Rejection};
use crate::store::update::{Change, Condition, Update, Verdict};
use crate::store::{Stored, StoredRow};
use crate::types::{Ballot, Key, ShardId, Slot, Value};

const STEP: Duration = Duration::from_millis(1);

fn address() -> Address {
    Address { shard: ShardId::parse("", "default").unwrap(), key: Key::parse("k").unwrap() }
}

/// One node with a disk that keeps what was synced.
struct Node {
    acceptor: Acceptor,
    proposer: Proposer,
    stored: Stored,
    sealed: SealedQueue<Effect>,
    unsynced: Vec<Entry>,
    synced: Vec<Entry>,
    lsn: Lsn,
    waiting: Vec<(Ballot, Vec<(OpId, Decision)>)>,
}

enum Effect {
    Send(usize, Message),
    Commit(Commit),
}

struct World {
    nodes: Vec<Node>,
    network: Vec<(usize, usize, Message)>,
    now: Now,
    decided: HashMap<OpId, Decision>,
    asked: HashMap<OpId, i64>,
    acknowledged: i64,
    attempted: i64,
    next_op: u64,
    chosen: HashMap<Ballot, Record>,
}

fn node(slot: usize, restored: Restored, voters: usize) -> (Acceptor, Proposer) {
    let clock =
        HybridClock::new(Slot::new(u16::try_from(slot).unwrap()).unwrap(), Duration::from_secs(10), restored.ceiling);
    let mut proposer =
        Proposer::new(ProposerConfig::new(slot, Quorums::majority_of(0..voters), slot as u64 + 1), clock);
    proposer.set_reachable((0..voters).collect());
    (Acceptor::new(AcceptorConfig { promises_max: 8, ..AcceptorConfig::default() }, restored), proposer)
}

impl World {
    fn new(voters: usize) -> Self {
        let nodes = (0..voters).map(|slot| {
            let (acceptor, proposer) = node(slot, Restored::default(), voters);
            Node {
                acceptor,
                proposer,
                stored: Stored::default(),
                sealed: SealedQueue::default(),
                unsynced: Vec::new(),
                synced: Vec::new(),
                lsn: Lsn(0),
                waiting: Vec::new(),
            }
        });
        Self {
            nodes: nodes.collect(),
            network: Vec::new(),
            now: Now { wall: 1_000_000_000_000, monotonic: Duration::ZERO },
            decided: HashMap::new(),
            asked: HashMap::new(),
            acknowledged: 0,
            attempted: 0,
            next_op: 0,
            chosen: HashMap::new(),
        }
    }

    fn propose(&mut self, n: usize, update: Update) -> OpId {
        self.next_op += 1;
        let id = OpId(self.next_op);
        self.attempted += i64::from(!update.is_read());
        self.asked.insert(id, self.acknowledged);
        let deadline = self.now.monotonic + Duration::from_secs(3);
        self.nodes[n].proposer.propose(address(), id, update, deadline);
        self.pump(n);
        id
    }

    /// Does what a node's cores ask for, up to what needs the disk.
    fn pump(&mut self, n: usize) {
        loop {
            let actions = self.nodes[n].proposer.take_actions();
            if actions.is_empty() {
                break;
            }
            for action in actions {
                self.act(n, action);
            }
        }
        let (entries, lsn) = self.nodes[n].acceptor.take_entries();
        self.nodes[n].unsynced.extend(entries);
        self.nodes[n].lsn = lsn;
    }

    fn act(&mut self, n: usize, action: Action) {
        let now = self.now;
        let voters = self.nodes.len();
        let node = &mut self.nodes[n];
        match action {
            Action::Start(address) => {
                let held = node.acceptor.peek(&address, &node.stored);
                node.proposer.start(now, &address, held);
            }
            Action::Ask { ballot, message } => {
                for to in 0..voters {
                    let sealed = self.nodes[n].acceptor.seal(ballot, now, Effect::Send(to, message.clone()));
                    self.take(n, sealed);
                }
            }
            Action::Chosen { address, record, announce, decisions } => {
                let known = self.chosen.entry(record.ballot).or_insert_with(|| record.clone());
                assert_eq!((&known.op, known.upd), (&record.op, record.upd), "one value per ballot");
                if announce {
                    for to in (0..voters).filter(|to| *to != n) {
                        let body = Body::Commit { ballot: record.ballot };
                        self.network.push((n, to, Message { address: address.clone(), body }));
                    }
                }
                self.nodes[n].waiting.push((record.ballot, decisions));
                self.learn(n, record);
            }
            Action::Decide(id, decision) => self.decide(id, decision),
            Action::Contended(_) => {}
        }
    }

    fn learn(&mut self, n: usize, record: Record) {
        let now = self.now;
        let node = &mut self.nodes[n];
        let stored = node.stored.clone();
        let commit = match node.acceptor.on_commit(&address(), record.ballot, &stored) {
            Learned::Commit(commit) => Some(commit),
            Learned::Known | Learned::Missing => node.acceptor.install(now, &address(), record, &stored),
        };
        match commit {
            Some(commit) => self.take(n, commit.map(Effect::Commit)),
            None => self.answer(n),
        }
    }

    fn take(&mut self, n: usize, sealed: Sealed<Effect>) {
        if let Some(effect) = self.nodes[n].sealed.push(sealed) {
            self.effect(n, effect);
        }
    }

    fn effect(&mut self, n: usize, effect: Effect) {
        match effect {
            Effect::Send(to, message) => self.network.push((n, to, message)),
            Effect::Commit(commit) => {
                let node = &mut self.nodes[n];
                let Record { ballot, upd, op, .. } = commit.record.clone();
                if node.stored.row.as_ref().is_none_or(|row| row.ballot < ballot) {
                    assert!(node.stored.row.as_ref().is_none_or(|row| row.upd <= upd), "a row's version only rises");
                    node.stored.row = Some(StoredRow { op, upd, ballot });
                }
                node.acceptor.on_applied(&commit);
                self.answer(n);
            }
        }
    }

    fn answer(&mut self, n: usize) {
        let stored = self.nodes[n].stored.ballot();
        let (ready, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.nodes[n].waiting).into_iter().partition(|(ballot, _)| *ballot <= stored);
        self.nodes[n].waiting = waiting;
        for (id, decision) in ready.into_iter().flat_map(|(_, decisions)| decisions) {
            self.decide(id, decision);
        }
    }

    fn decide(&mut self, id: OpId, decision: Decision) {
        if let Decision::Accept(outcome) = &decision {
            let number = |row: &Option<crate::store::update::Row>| {
                row.as_ref().map_or(0, |row| std::str::from_utf8(row.value.as_bytes()).unwrap().parse::<i64>().unwrap())
            };
            assert!(number(&outcome.before) >= self.asked[&id], "{id:?} saw less than was acknowledged before it");
            if outcome.verdict == Verdict::Written {
                self.acknowledged += 1;
            }
            assert!(number(&outcome.after) >= self.acknowledged.min(number(&outcome.after)));
        }
        assert!(self.decided.insert(id, decision).is_none(), "{id:?} decided twice");
    }

    fn sync(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        node.synced.append(&mut node.unsynced);
        let durable = Durable::synced(node.lsn);
        node.acceptor.on_durable(durable);
        let effects: Vec<Effect> = node.sealed.release(durable).collect();
        for effect in effects {
            self.effect(n, effect);
        }
        self.pump(n);
    }

    fn deliver(&mut self, at: usize, keep: bool) {
        if self.network.is_empty() {
            return;
        }
        let at = at % self.network.len();
        let (from, to, message) = if keep { self.network[at].clone() } else { self.network.swap_remove(at) };
        let now = self.now;
        let node = &mut self.nodes[to];
        let stored = node.stored.clone();
        let Message { address, body } = message;
        let reply = match body {
            Body::Prepare { ballot, holds } => {
                Some(node.acceptor.on_prepare(now, &address, ballot, holds, &stored).unwrap())
            }
            Body::Accept { record, next } => {
                Some(node.acceptor.on_accept(now, &address, record, next, &stored).unwrap())
            }
            Body::Read { round, holds } => Some(node.acceptor.on_read(&address, round, holds, &stored)),
            Body::Commit { ballot } => {
                match node.acceptor.on_commit(&address, ballot, &stored) {
                    Learned::Commit(commit) => self.take(to, commit.map(Effect::Commit)),
                    Learned::Missing => self.network.push((to, from, Message { address, body: Body::Pull { ballot } })),
                    Learned::Known => {}
                }
                return self.pump(to);
            }
            Body::Pull { ballot } => {
                if let (Some(row), Some(record)) = (&stored.row, node.acceptor.peek(&address, &stored))
                    && row.ballot == record.ballot
                    && row.ballot >= ballot
                {
                    self.network.push((to, from, Message { address, body: Body::Chosen { record } }));
                }
                None
            }
            Body::Chosen { record } => {
                self.learn(to, record);
                return self.pump(to);
            }
            body => {
                node.proposer.on_message(now, from, Message { address, body });
                return self.pump(to);
            }
        };
        if let Some(reply) = reply {
            let reply = reply.map(|body| Effect::Send(from, Message { address: super::tests::address(), body }));
            self.take(to, reply);
        }
        self.pump(to);
    }

    /// SIGKILL: memory and what was not synced are gone; the clients of the node never hear.
    fn crash(&mut self, n: usize) {
        let voters = self.nodes.len();
        let mut restored = Restored::default();
        let mut pending: HashMap<Address, Record> = HashMap::new();
        let mut stored = Stored::default();
        let mut apply = |record: &Record| {
            if stored.ballot() < record.ballot {
                stored.row = Some(StoredRow { op: record.op.clone(), upd: record.upd, ballot: record.ballot });
            }
        };
        for entry in &self.nodes[n].synced {
            match entry {
                Entry::Refused(..) | Entry::Dropped(..) => {}
                Entry::Ceiling(ceiling) => restored.ceiling = restored.ceiling.max(*ceiling),
                Entry::Accepted(address, record) => drop(pending.insert(address.clone(), record.clone())),
                Entry::Chosen(_, record) => apply(record),
                Entry::Local(..) => {}
                Entry::Committed(address, ballot) => {
                    if let Some(record) = pending.get(address).filter(|record| record.ballot == *ballot) {
                        apply(record);
                    }
                }
            }
        }
        pending.retain(|_, record| stored.ballot() < record.ballot);
        restored.pending = pending.into_iter().collect();
        let floor = restored.ceiling;
        let (acceptor, proposer) = node(n, restored, voters);
        let node = &mut self.nodes[n];
        (node.acceptor, node.proposer, node.stored) = (acceptor, proposer, stored);
        (node.sealed, node.lsn) = (SealedQueue::default(), Lsn(0));
        node.unsynced.clear();
        node.waiting.clear();
        self.now.wall = self.now.wall.max(floor.0);
    }

    fn tick(&mut self, by: Duration) {
        self.now.monotonic += by;
        self.now.wall += i64::try_from(by.as_nanos()).unwrap();
        for n in 0..self.nodes.len() {
            self.nodes[n].proposer.on_tick(self.now);
            self.pump(n);
        }
    }

    /// Heals everything and lets it come to rest.
    fn settle(&mut self) {
        for _ in 0..20_000 {
            for n in 0..self.nodes.len() {
                self.sync(n);
            }
            if !self.network.is_empty() {
                self.deliver(0, false);
            } else if self.nodes.iter().any(|node| node.proposer.is_busy()) {
                self.tick(STEP);
            } else {
                return;
            }
        }
        panic!("a healed world does not come to rest");
    }

    /// What a linearizable read on `n` finds in a healed world.
    fn read(&mut self, n: usize) -> i64 {
        self.settle();
        let id = self.propose(n, Update::read());
        self.settle();
        let Some(Decision::Accept(outcome)) = self.decided.get(&id) else { panic!("{:?}", self.decided.get(&id)) };
        let value = outcome.after.as_ref().map(|row| row.value.clone()).unwrap_or(Value::from("0"));
        std::str::from_utf8(value.as_bytes()).unwrap().parse().unwrap()
    }
}

#[derive(Debug, Clone)]
enum Event {
    Increment(usize),
    Read(usize),
    Deliver(usize),
    Duplicate(usize),
    Lose(usize),
    Sync(usize),
    Crash(usize),
    Tick(u64),
}

fn event(voters: usize) -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0..voters).prop_map(Event::Increment),
        1 => (0..voters).prop_map(Event::Read),
        24 => any::<usize>().prop_map(Event::Deliver),
        2 => any::<usize>().prop_map(Event::Duplicate),
        2 => any::<usize>().prop_map(Event::Lose),
        8 => (0..voters).prop_map(Event::Sync),
        1 => (0..voters).prop_map(Event::Crash),
        3 => (0_u64..600).prop_map(Event::Tick),
    ]
}

fn run(voters: usize, events: &[Event]) {
    let mut world = World::new(voters);
    for event in events {
        match *event {
            Event::Increment(n) => drop(world.propose(n, Update::always(Change::Add(1)))),
            Event::Read(n) => drop(world.propose(n, Update::read())),
            Event::Deliver(at) => world.deliver(at, false),
            Event::Duplicate(at) => world.deliver(at, true),
            Event::Lose(at) if !world.network.is_empty() => {
                let at = at % world.network.len();
                world.network.swap_remove(at);
            }
            Event::Lose(_) => {}
            Event::Sync(n) => world.sync(n),
            Event::Crash(n) => world.crash(n),
            Event::Tick(ms) => world.tick(Duration::from_millis(ms)),
        }
    }
    for n in 0..voters {
        let read = world.read(n);
        assert!(read >= world.acknowledged, "{} increments acknowledged, {read} found", world.acknowledged);
        assert!(read <= world.attempted, "{} increments asked for, {read} counted", world.attempted);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn no_acknowledged_write_is_lost_and_none_counts_twice(events in prop::collection::vec(event(3), 1..400)) {
        run(3, &events);
    }

    #[test]
    fn five_voters(events in prop::collection::vec(event(5), 1..300)) {
        run(5, &events);
    }
}

#[test]
fn a_lone_node_agrees_with_itself() {
    run(1, &[Event::Increment(0), Event::Crash(0), Event::Increment(0), Event::Sync(0), Event::Deliver(0)]);
}

#[test]
fn a_key_rewritten_by_one_node_costs_one_round_trip() {
    let mut world = World::new(3);
    for expected in 1..=3 {
        world.propose(0, Update::always(Change::Add(1)));
        assert_eq!(world.read(0), expected);
    }
    assert!(world.nodes[0].proposer.counts().token >= 1, "{:?}", world.nodes[0].proposer.counts());
}

fn record(ballot: i64) -> Record {
    let (op, lineage) = (Op::Put(Value::from("v")), Lineage::on(Ballot(5), &Lineage::default()));
    Record { ballot: Ballot(ballot), upd: Ballot(ballot), op, lineage }
}

/// A row fetched from a peer carries no lineage; the Accept of the same round, overtaken by it, was taken for another
/// record under one ballot, and the node stopped voting for good.
#[test]
fn an_accept_that_arrives_after_its_row_is_no_conflict() {
    let now = Now { wall: 1_000_000, monotonic: Duration::ZERO };
    let (mut acceptor, _) = node(0, Restored::default(), 3);
    let row = Record { lineage: Lineage::default(), ..record(4096) };
    let installed = acceptor.install(now, &address(), row.clone(), &Stored::default()).expect("it is new");
    let late = acceptor.on_accept(now, &address(), record(4096), None, &Stored::default()).expect("no conflict");
    let durable = Durable::synced(acceptor.take_entries().1);
    assert_eq!(late.open(durable), Ok(Body::Accepted { ballot: Ballot(4096), granted: false }));
    // And the other way round.
    assert!(acceptor.install(now, &address(), row, &Stored::default()).is_none());
    let other = Record { op: Op::Del, ..record(4096) };
    assert!(
        acceptor.on_accept(now, &address(), other, None, &Stored::default()).is_err(),
        "what differs is still noticed"
    );
    assert!(installed.open(durable).is_ok());
}

/// Rules 1 to 3, as they are checked where messages leave: nothing above the durable ceiling gets out, and no vote that is
/// not on the disk, whoever forgot to wait.
#[test]
fn nothing_leaves_that_a_crash_would_take_back() {
    let now = Now { wall: 1_000_000, monotonic: Duration::ZERO };
    let (mut acceptor, _) = node(0, Restored::default(), 3);
    let ballot = Ballot(4096);
    let message = |body| Message { address: address(), body };
    let accepted = message(Body::Accepted { ballot, granted: false });
    let promised = acceptor.on_prepare(now, &address(), ballot, None, &Stored::default()).unwrap();
    let leaving =
        [message(Body::Prepare { ballot, holds: None }), message(Body::Accept { record: record(4096), next: None })];
    for message in leaving.iter().chain([&accepted]) {
        let broken = acceptor.check_leaving(message).unwrap_err();
        assert_eq!(broken, BrokenRule::AboveCeiling { ballot, ceiling: Ballot::ZERO });
    }
    let durable = Durable::synced(acceptor.take_entries().1);
    acceptor.on_durable(durable);
    assert_eq!(acceptor.check_leaving(&message(promised.open(durable).unwrap())), Ok(()));
    assert!(leaving.iter().all(|message| acceptor.check_leaving(message).is_ok()));

    let sealed = acceptor.on_accept(now, &address(), record(4096), None, &Stored::default()).unwrap();
    assert_eq!(acceptor.check_leaving(&accepted), Err(BrokenRule::NotDurable { address: address(), ballot }));
    let durable = Durable::synced(acceptor.take_entries().1);
    acceptor.on_durable(durable);
    assert_eq!(acceptor.check_leaving(&message(sealed.open(durable).unwrap())), Ok(()));
}

/// Of two ceilings appended one after the other only the second was remembered, so the first did not count once it was
/// durable: a node that checked itself by it took its own promises for broken ones.
#[test]
fn a_ceiling_counts_once_it_is_durable_though_a_higher_one_is_on_its_way() {
    let now = Now { wall: 1_000_000, monotonic: Duration::ZERO };
    let (mut acceptor, _) = node(0, Restored::default(), 3);
    let far = now.wall + Duration::from_secs(2).as_nanos() as i64;
    let promised = acceptor.on_prepare(now, &address(), Ballot(4096), None, &Stored::default()).unwrap();
    let first = Durable::synced(acceptor.take_entries().1);
    let higher = acceptor.on_prepare(now, &address(), Ballot(far), None, &Stored::default()).unwrap();
    acceptor.on_durable(first);
    assert!(acceptor.ceiling() >= Ballot(4096) && acceptor.ceiling() < Ballot(far));
    assert_eq!(acceptor.check_leaving(&Message { address: address(), body: promised.open(first).unwrap() }), Ok(()));
    assert!(higher.open(first).is_err());
}

/// A key whose round was never begun, as its shard file could not be opened, was remembered for good: its open record
/// was never asked about again, and under steady load none of its clients was served any more.
#[test]
fn a_round_that_could_not_begin_is_begun_again() {
    let (_, mut proposer) = node(0, Restored::default(), 3);
    let at = |ms| Now { wall: 1_000_000, monotonic: Duration::from_millis(ms) };
    proposer.settle(address(), OpId(1), at(10).monotonic);
    assert_eq!(proposer.take_actions(), [Action::Start(address())]);
    proposer.on_tick(at(20));
    assert!(!proposer.is_busy());
    proposer.take_actions();
    proposer.settle(address(), OpId(2), at(50).monotonic);
    assert_eq!(proposer.take_actions(), [Action::Start(address())], "asked about again");

    let why = Rejection::Busy("no file".to_owned());
    proposer.propose(address(), OpId(3), Update::read(), at(90).monotonic);
    proposer.not_begun(&address(), &why);
    let refused = |id| Action::Decide(OpId(id), Decision::Reject(why.clone()));
    assert_eq!(proposer.take_actions(), [refused(2), refused(3)]);
    proposer.propose(address(), OpId(4), Update::read(), at(90).monotonic);
    assert_eq!(proposer.take_actions(), [Action::Start(address())]);
}

/// Two writes folded into one round had one version: the first writer's "if still mine" then overwrote the second's
/// value unseen.
#[test]
fn a_write_that_another_overwrote_in_the_same_round_has_a_version_of_its_own() {
    let mut world = World::new(3);
    world.propose(0, Update::put(Value::from("10")));
    let folded: Vec<_> = ["20", "30"].map(|value| world.propose(0, Update::put(Value::from(value)))).into();
    let read = world.propose(0, Update::read());
    world.settle();
    let [first, second] = [folded[0], folded[1]].map(|id| match &world.decided[&id] {
        Decision::Accept(outcome) => outcome.after.clone().unwrap(),
        other => panic!("{other:?}"),
    });
    assert!(first.upd < second.upd, "{first:?} {second:?}");
    let swap = Update { condition: Condition::UpdIs(first.upd), change: Change::Put(Value::from("40")) };
    let swap = world.propose(1, swap);
    world.settle();
    let Decision::Accept(outcome) = &world.decided[&swap] else { panic!("{:?}", world.decided[&swap]) };
    assert_eq!((&outcome.verdict, outcome.before.as_ref()), (&Verdict::ConditionFailed, Some(&second)));
    let Decision::Accept(outcome) = &world.decided[&read] else { panic!("{:?}", world.decided[&read]) };
    assert_eq!(outcome.after.as_ref(), Some(&second));
}

/// What a round had prepared by one epoch's quorum and not yet sent off went out in the next one's name. Two changes later
/// nothing of what was chosen since would be known to it.
#[test]
fn nothing_that_was_to_be_asked_before_a_change_of_voters_is_asked_after_it() {
    let (_, mut proposer) = node(0, Restored::default(), 3);
    let at = |ms| Now { wall: 1_000_000, monotonic: Duration::from_millis(ms) };
    proposer.propose(address(), OpId(1), Update::always(Change::Add(1)), at(1000).monotonic);
    proposer.take_actions();
    proposer.start(at(0), &address(), None);
    proposer.set_electorate(at(1), Quorums::majority_of(0..3));
    assert_eq!(proposer.take_actions(), []);
    proposer.on_tick(at(2));
    let actions = proposer.take_actions();
    assert!(matches!(&actions[..], [Action::Ask { message, .. }] if matches!(message.body, Body::Prepare { .. })));
}

/// What an old voter may have promised binds a new one that compared its rows with it: nothing below is voted for any more,
/// and not after a restart either.
#[test]
fn a_raised_floor_is_a_promise_for_every_key() {
    let now = Now { wall: 1_000_000, monotonic: Duration::ZERO };
    let (mut acceptor, _) = node(0, Restored::default(), 3);
    let sealed = acceptor.raise_floor(Ballot(8192), now, ());
    let durable = Durable::synced(acceptor.take_entries().1);
    acceptor.on_durable(durable);
    assert!(sealed.open(durable).is_ok() && acceptor.ceiling() >= Ballot(8192));
    let restarted =
        Acceptor::new(AcceptorConfig::default(), Restored { ceiling: acceptor.ceiling(), ..Restored::default() });
    for mut acceptor in [acceptor, restarted] {
        let refused = |sealed: Sealed<Body>| matches!(sealed.open(durable), Ok(Body::Refused { above, .. }) if above >= Ballot(8192));
        assert!(refused(acceptor.on_prepare(now, &address(), Ballot(8192), None, &Stored::default()).unwrap()));
        assert!(refused(acceptor.on_accept(now, &address(), record(4096), None, &Stored::default()).unwrap()));
    }
}

/// A vote that stayed on a node which replicated its shard no more would be there when it does again, above what the others
/// chose meanwhile.
#[test]
fn votes_that_count_no_more_are_gone_for_good_and_what_is_chosen_stays() {
    let now = Now { wall: 1_000_000, monotonic: Duration::ZERO };
    let (mut acceptor, _) = node(0, Restored::default(), 3);
    let _ = acceptor.on_accept(now, &address(), record(4096), None, &Stored::default()).unwrap();
    let _ = acceptor.take_entries();
    assert!(acceptor.let_go(|_| true).is_empty());
    assert_eq!(acceptor.let_go(|_| false), [(address(), Ballot(4096))]);
    assert_eq!((acceptor.pending(), acceptor.pending_bytes(), acceptor.kept_entries()), (0, 0, Vec::new()));
    let (entries, lsn) = acceptor.take_entries();
    assert_eq!(entries, [Entry::Dropped(address(), Ballot(4096))]);
    let durable = Durable::synced(lsn);
    acceptor.on_durable(durable);
    let promised = acceptor.on_prepare(now, &address(), Ballot(8192), None, &Stored::default()).unwrap();
    assert!(matches!(promised.open(durable), Ok(Body::Promised { vote: Vote::Absent(_), .. })));

    let _ = acceptor.on_accept(now, &address(), record(12288), None, &Stored::default()).unwrap();
    let _ = acceptor.on_commit(&address(), Ballot(12288), &Stored::default());
    assert!(acceptor.let_go(|_| false).is_empty());
    assert_eq!(acceptor.pending(), 1);
}
