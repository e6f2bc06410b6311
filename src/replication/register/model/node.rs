//! One node of these worlds, with what its disk holds.

use std::time::Duration;

use super::change::{self, Installed, OLD};
use super::faults::Fault;
use super::fingerprint;
use super::scenario::{Scenario, VALUE_BYTES_MAX};
use crate::clock::{HybridClock, Now};
use crate::replication::journal::Replay;
use crate::replication::outbox::Outbox;
use crate::replication::register::{
    Acceptor, AcceptorConfig, Address, Body, Commit, Entry, Lineage, Lsn, Message, OpId, Proposer, ProposerConfig,
    Record, Restored, SealedQueue,
};
use crate::store::replicator::{Decision, Op};
use crate::store::{Stored, StoredRow};
use crate::types::{Ballot, Key, ShardId, Slot, Value};

/// Where wall clocks begin. Time passes only where a step says so; else ballots rise by counting alone.
pub(super) const WALL: i64 = 1 << 30;
pub(super) const FOREVER: Duration = Duration::from_secs(1_000_000_000);

thread_local! {
    static ADDRESS: Address = Address { shard: ShardId::parse("", "default").unwrap(), key: Key::parse("k").unwrap() };
}

pub(super) fn address() -> Address {
    ADDRESS.with(Clone::clone)
}

/// What waits for a node's disk.
#[derive(Debug, Clone)]
pub(super) enum Effect {
    Send(usize, Message),
    Commit(Commit),
    /// A local write of this version is on the disk; who waits for it.
    Accepted(OpId, Ballot),
}

/// One node, with what its disk holds.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) acceptor: Acceptor,
    pub(super) proposer: Proposer,
    /// The shard file.
    pub(super) stored: std::collections::HashMap<Address, StoredRow>,
    pub(super) gc_floor: Ballot,
    pub(super) sealed: SealedQueue<Effect>,
    pub(super) outbox: Outbox,
    /// The journal, as a restart would read it.
    pub(super) disk: Replay,
    pub(super) unsynced: Vec<Entry>,
    pub(super) lsn: Lsn,
    /// Whom to answer once the record of this ballot is visible.
    pub(super) waiting: Vec<(Ballot, Vec<(OpId, Decision)>)>,
    /// Who pulls, and the round that it was told of.
    pub(super) pulls: Vec<(usize, Ballot)>,
    /// Which epoch it is in.
    pub(super) installed: Installed,
    pub(super) wall: i64,
    pub(super) monotonic: Duration,
    pub(super) print: u128,
}

impl Node {
    /// One that has just been made; it may have heard of what was chosen before.
    pub(super) fn new(scenario: &Scenario, slot: usize) -> Self {
        let (acceptor, proposer) = cores(scenario, slot, Restored::default(), Ballot::ZERO);
        let mut node = Self {
            acceptor,
            proposer,
            stored: std::collections::HashMap::new(),
            gc_floor: Ballot::ZERO,
            sealed: SealedQueue::default(),
            outbox: Outbox::default(),
            disk: Replay::default(),
            unsynced: Vec::new(),
            lsn: Lsn(0),
            waiting: Vec::new(),
            pulls: Vec::new(),
            installed: Installed::FIRST,
            wall: WALL + if slot == 1 { scenario.ahead.as_nanos() as i64 } else { 0 },
            monotonic: Duration::ZERO,
            print: 0,
        };
        node.seed(scenario.seeded & 1 << slot != 0);
        node.print = fingerprint::of_node(&node);
        node
    }

    pub(super) fn now(&self) -> Now {
        Now { wall: self.wall, monotonic: self.monotonic }
    }

    pub(super) fn row(&self) -> Option<StoredRow> {
        self.stored.values().next().cloned()
    }

    /// Begins with what was chosen before, if it has heard of it. All clocks are past that.
    fn seed(&mut self, has_it: bool) {
        if has_it {
            let record = seed();
            self.proposer.observe(self.now(), record.ballot);
            let row = StoredRow { op: record.op.clone(), upd: record.upd, ballot: record.ballot };
            self.stored.insert(address(), row);
            self.disk.chosen.insert(address(), record);
        }
    }

    pub(super) fn known(&self) -> Stored {
        Stored { row: self.row(), floor: self.gc_floor }
    }

    /// What the acceptor is told of it where it votes.
    pub(super) fn known_by(&self, fault: Option<Fault>) -> Stored {
        let floor = if fault == Some(Fault::AbsentLowest) { Ballot::ZERO } else { self.gc_floor };
        Stored { floor, ..self.known() }
    }
}

pub(super) fn cores(scenario: &Scenario, slot: usize, restored: Restored, floor: Ballot) -> (Acceptor, Proposer) {
    let config = AcceptorConfig { ceiling_lead: scenario.ceiling_lead, ..AcceptorConfig::default() };
    let slot_number = Slot::new(u16::try_from(slot).unwrap()).unwrap();
    let mut proposing = ProposerConfig::new(slot, change::quorums(scenario, OLD), 1);
    proposing.value_bytes_max = VALUE_BYTES_MAX;
    proposing.token_life = if scenario.tokens { FOREVER } else { Duration::ZERO };
    let mut proposer = Proposer::new(proposing, HybridClock::new(slot_number, Duration::from_secs(10), floor));
    proposer.set_reachable((0..scenario.nodes()).collect());
    (Acceptor::new(config, restored), proposer)
}

/// What was chosen before the world begins, where something was.
pub(super) fn seed() -> Record {
    let ballot = Ballot::at(WALL, Slot::new(0).unwrap());
    Record { ballot, upd: ballot, op: Op::Put(Value::from("5")), lineage: Lineage(vec![Ballot::ZERO]) }
}

/// What the driver answers to a pull.
pub(super) fn chosen(row: &StoredRow) -> Message {
    let StoredRow { op, upd, ballot } = row.clone();
    Message {
        address: address(),
        body: Body::Chosen { record: Record { ballot, upd, op, lineage: Lineage::default() } },
    }
}
