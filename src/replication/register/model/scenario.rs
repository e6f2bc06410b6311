//! A small world's size: who asks for what, and how often what may go wrong.

use std::rc::Rc;
use std::time::Duration;

use super::faults::Fault;
use crate::replication::register::Body;
use crate::store::update::{Change, Condition, Update};
use crate::types::{Ballot, Value};

/// The largest value of these worlds.
pub(super) const VALUE_BYTES_MAX: usize = 1 << 10;

/// How often each thing may happen that need not. A message that is never delivered is a lost one: that is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Budget {
    /// SIGKILL or power loss, with an immediate restart.
    pub(super) crashes: u8,
    /// A node's patience ends: steps without an answer begin anew, back-offs end.
    pub(super) ticks: u8,
    /// A message is delivered and stays to be delivered again.
    pub(super) duplicates: u8,
    /// The clients of a node give up.
    pub(super) expiries: u8,
    /// A node asks about what it accepted and never heard of again.
    pub(super) settles: u8,
    /// A node's memory of promises is full, and it forgets.
    pub(super) forgets: u8,
    /// Somebody sets out to forget deletions.
    pub(super) collections: u8,
    /// A row that one node has and another missed is sent to it.
    pub(super) repairs: u8,
}

/// One client, which asks for one thing after the other.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) node: usize,
    pub(super) script: Vec<Rc<Update>>,
}

#[derive(Debug, Clone)]
pub(super) struct Scenario {
    pub(super) name: &'static str,
    pub(super) voters: usize,
    /// The voters that take their place, as bits, where there is a change; nodes of higher numbers are new.
    pub(super) next: Option<u8>,
    /// Of the new voters, and of the old, those who compare rows, as bits.
    pub(super) scan: (u8, u8),
    pub(super) clients: Vec<Client>,
    /// The nodes whose fsync takes time, as bits; that of the others is over at once.
    pub(super) slow_disks: u8,
    /// The nodes that may crash, as bits.
    pub(super) mortal: u8,
    /// How far node 1's clock is ahead of the others'.
    pub(super) ahead: Duration,
    /// Which messages are never delivered: from whom, to whom, what.
    pub(super) lost: fn(usize, usize, &Body) -> bool,
    /// The nodes whose messages to themselves take their time, as everybody's do, as bits: the key's file is being
    /// opened. The others hear themselves at once.
    pub(super) deaf: u8,
    /// The nodes whose patience may end, as bits.
    pub(super) impatient: u8,
    /// How far ahead of the clock ceilings are set.
    pub(super) ceiling_lead: Duration,
    /// Whether a node keeps the token that it was granted.
    pub(super) tokens: bool,
    /// Whether outboxes have so much to hand on that these writes never have their turn.
    pub(super) full_outboxes: bool,
    /// Whether an Accept asks for a later ballot along with it.
    pub(super) asks_next: bool,
    /// Whether others are told of what is chosen.
    pub(super) commits: bool,
    /// The nodes that hold the value "5" in the beginning, as bits: it was chosen before.
    pub(super) seeded: u8,
    /// Whether a node behind another's floor may adopt it.
    pub(super) adopts: bool,
    pub(super) budget: Budget,
    pub(super) fault: Option<Fault>,
}

impl Scenario {
    /// Three voters with fast disks, tokens, and nobody who asks.
    pub(super) fn new(name: &'static str) -> Self {
        Self {
            name,
            voters: 3,
            next: None,
            scan: (u8::MAX, u8::MAX),
            clients: Vec::new(),
            slow_disks: 0,
            mortal: 0b111,
            impatient: 0b111,
            ahead: Duration::ZERO,
            lost: |_, _, _| false,
            deaf: 0,
            ceiling_lead: Duration::from_millis(500),
            tokens: true,
            full_outboxes: false,
            asks_next: true,
            commits: true,
            seeded: 0,
            adopts: false,
            budget: Budget::default(),
            fault: None,
        }
    }

    /// Adds a client on `node`.
    pub(super) fn client(mut self, node: usize, script: impl IntoIterator<Item = Update>) -> Self {
        self.clients.push(Client { node, script: script.into_iter().map(Rc::new).collect() });
        self
    }

    /// Lets these take the voters' place.
    pub(super) fn next(self, next: u8) -> Self {
        Self { next: Some(next), ..self }
    }

    /// Only these of the new voters compare rows, with these of the old.
    pub(super) fn scan(self, new: u8, old: u8) -> Self {
        Self { scan: (new, old), ..self }
    }

    /// How many nodes there are, voters or not.
    pub(super) fn nodes(&self) -> usize {
        self.voters.max(8 - self.next.unwrap_or_default().leading_zeros() as usize)
    }

    pub(super) fn slow_disks(self, slow_disks: u8) -> Self {
        Self { slow_disks, ..self }
    }

    pub(super) fn impatient(self, impatient: u8) -> Self {
        Self { impatient, ..self }
    }

    pub(super) fn mortal(self, mortal: u8) -> Self {
        Self { mortal, ..self }
    }

    pub(super) fn ahead(self, millis: u64) -> Self {
        Self { ahead: Duration::from_millis(millis), ..self }
    }

    pub(super) fn lost(self, lost: fn(usize, usize, &Body) -> bool) -> Self {
        Self { lost, ..self }
    }

    pub(super) fn deaf(self, deaf: u8) -> Self {
        Self { deaf, ..self }
    }

    /// Ceilings just high enough, so that every round has to move them.
    pub(super) fn tight_ceilings(self) -> Self {
        Self { ceiling_lead: Duration::ZERO, ..self }
    }

    pub(super) fn without_tokens(self) -> Self {
        Self { tokens: false, ..self }
    }

    pub(super) fn full_outboxes(self) -> Self {
        Self { full_outboxes: true, ..self }
    }

    /// Nothing is promised along with a vote.
    pub(super) fn without_grants(self) -> Self {
        Self { asks_next: false, ..self }
    }

    pub(super) fn without_commits(self) -> Self {
        Self { commits: false, ..self }
    }

    /// These hold the value "5" in the beginning.
    pub(super) fn seeded(self, seeded: u8) -> Self {
        Self { seeded, ..self }
    }

    pub(super) fn adopting(self) -> Self {
        Self { adopts: true, ..self }
    }

    pub(super) fn budget(mut self, set: impl FnOnce(&mut Budget)) -> Self {
        set(&mut self.budget);
        self
    }

    pub(super) fn fault(self, fault: Option<Fault>) -> Self {
        Self { fault, ..self }
    }

    /// The first number of a client's updates.
    pub(super) fn first_number(&self, client: usize) -> usize {
        self.clients[..client].iter().map(|client| client.script.len()).sum()
    }
}

/// Adds one to the counter.
pub(super) fn increment() -> Update {
    Update::always(Change::Add(1))
}

/// Replaces the value on this node alone, to be handed on later. Its version is given when it is asked for.
pub(super) fn local(value: &'static str) -> Update {
    Update { condition: Condition::Below(Ballot::ZERO), change: Change::Put(Value::from(value)) }
}

/// Deletes it.
pub(super) fn del() -> Update {
    Update::del()
}

/// Reads through a quorum.
pub(super) fn read() -> Update {
    Update::read()
}

/// Replaces one value by another.
pub(super) fn cas(from: &'static str, to: &'static str) -> Update {
    Update { condition: Condition::ValueIs(Value::from(from)), change: Change::Put(Value::from(to)) }
}

/// Takes a key that nobody has.
pub(super) fn take(value: &'static str) -> Update {
    Update { condition: Condition::Absent, change: Change::Put(Value::from(value)) }
}
