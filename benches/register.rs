//! What the pure register costs: one write, from the proposal to the chosen record, on three replicas without a disk or
//! a network. Run with `cargo bench --bench register`.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::large_futures, reason = "a bench")]

use std::collections::VecDeque;
use std::time::Duration;

use divan::Bencher;
use outrigger::clock::{HybridClock, Now};
use outrigger::cluster::membership::Quorums;
use outrigger::replication::journal::{Durability, Journal, JournalConfig};
use outrigger::replication::register::{
    Acceptor, AcceptorConfig, Action, Address, Body, Durable, Learned, Lsn, Message, OpId, Proposer, ProposerConfig,
    Restored, Sealed,
};
use outrigger::store::update::Update;
use outrigger::store::{Stored, StoredRow};
use outrigger::types::{Ballot, Key, ShardId, Slot, Value};

fn main() {
    divan::main();
}

const VOTERS: usize = 3;

struct World {
    proposer: Proposer,
    acceptors: Vec<(Acceptor, Stored)>,
    address: Address,
    now: Now,
    /// Opens every seal: no disk is measured here.
    durable: Durable,
    next_op: u64,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config =
            JournalConfig { segment_bytes: 1 << 16, durability: Durability::Os, ..JournalConfig::at(dir.path()) };
        let (mut journal, _) = Journal::open(config, 1).unwrap();
        let durable = journal.append(&[], Lsn(u64::MAX)).unwrap();
        let clock = HybridClock::new(Slot::new(0).unwrap(), Duration::from_secs(10), Ballot::ZERO);
        let mut proposer = Proposer::new(ProposerConfig::new(0, Quorums::majority_of(0..VOTERS), 1), clock);
        proposer.set_reachable((0..VOTERS).collect());
        let acceptor = || (Acceptor::new(AcceptorConfig::default(), Restored::default()), Stored::default());
        let address = Address { shard: ShardId::parse("acme", "orders").unwrap(), key: Key::parse("k").unwrap() };
        let now = Now { wall: 1_700_000_000_000_000_000, monotonic: Duration::ZERO };
        Self { proposer, acceptors: (0..VOTERS).map(|_| acceptor()).collect(), address, now, durable, next_op: 0 }
    }

    /// One write; returns when it is chosen and applied everywhere.
    fn write(&mut self, value: Value) {
        self.next_op += 1;
        let deadline = self.now.monotonic + Duration::from_secs(2);
        self.proposer.propose(self.address.clone(), OpId(self.next_op), Update::put(value), deadline);
        let mut messages: VecDeque<(usize, Message)> = VecDeque::new();
        loop {
            for action in self.proposer.take_actions() {
                match action {
                    Action::Start(address) => {
                        let (acceptor, stored) = &self.acceptors[0];
                        let held = acceptor.peek(&address, stored);
                        self.proposer.start(self.now, &address, held);
                    }
                    Action::Ask { message, .. } => messages.extend((0..VOTERS).map(|to| (to, message.clone()))),
                    Action::Chosen { record, .. } => return self.commit(record.ballot),
                    Action::Decide(..) | Action::Contended(_) => unreachable!("nothing contends"),
                }
            }
            let Some((to, message)) = messages.pop_front() else { continue };
            let (acceptor, stored) = &mut self.acceptors[to];
            let Message { address, body } = message;
            let sealed = match body {
                Body::Prepare { ballot, holds } => {
                    acceptor.on_prepare(self.now, &address, ballot, holds, stored).unwrap()
                }
                Body::Accept { record, next } => acceptor.on_accept(self.now, &address, record, next, stored).unwrap(),
                _ => unreachable!("a write prepares and accepts"),
            };
            let body = open(sealed, self.durable);
            self.proposer.on_message(self.now, to, Message { address, body });
        }
    }

    fn commit(&mut self, ballot: Ballot) {
        for (acceptor, stored) in &mut self.acceptors {
            let Learned::Commit(commit) = acceptor.on_commit(&self.address, ballot, stored) else { continue };
            let commit = open(commit, self.durable);
            let record = commit.record.clone();
            stored.row = Some(StoredRow { op: record.op, upd: record.upd, ballot: record.ballot });
            acceptor.on_applied(&commit);
            // The journal would take these.
            drop(acceptor.take_entries());
        }
    }
}

fn open<T>(sealed: Sealed<T>, durable: Durable) -> T {
    sealed.open(durable).unwrap_or_else(|_| unreachable!("this proof opens everything"))
}

/// Same node, same key, in a row: the token of the write before saves the prepare.
#[divan::bench]
fn write_with_token(bencher: Bencher) {
    let mut world = World::new();
    let value = Value::from(vec![b'v'; 256]);
    bencher.bench_local(|| world.write(value.clone()));
}

/// The token has expired: prepare, then accept.
#[divan::bench]
fn write_with_prepare(bencher: Bencher) {
    let mut world = World::new();
    let value = Value::from(vec![b'v'; 256]);
    bencher.bench_local(|| {
        world.now.monotonic += Duration::from_secs(1);
        world.now.wall += 1_000_000_000;
        world.proposer.on_tick(world.now);
        world.write(value.clone());
    });
}
