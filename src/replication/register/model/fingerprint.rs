//! Two states are one to the search where no future can tell them apart: 128 bits of everything that decides, without
//! what only measures (deadlines, counts, back-off) and with places in the journal relative to what is on disk.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};

use super::node::{Effect, Node};
use crate::replication::register::acceptor::{Acceptor, KeyState};
use crate::replication::register::proposer::{KeyQueue, Proposer};
use crate::replication::register::round::{Attempt, Carried, Pending, Phase, Round, Tally};
use crate::replication::register::{Address, Entry, Lsn};
use crate::store::StoredRow;
use crate::store::replicator::Decision;
use crate::store::update::{Outcome, Row};
use crate::types::{Ballot, ShardId};

/// A fast hasher of 128 bits; the keys are the search's own, so nobody attacks it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fingerprint(u128);

impl Default for Fingerprint {
    fn default() -> Self {
        Self(0x243f_6a88_85a3_08d3_1319_8a2e_0370_7344)
    }
}

impl Fingerprint {
    pub(super) fn of(value: &impl Hash) -> u128 {
        let mut print = Self::default();
        value.hash(&mut print);
        print.done()
    }

    pub(super) fn done(self) -> u128 {
        let mixed = (self.0 ^ (self.0 >> 59)).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        mixed ^ (mixed >> 67)
    }
}

impl Hasher for Fingerprint {
    fn finish(&self) -> u64 {
        self.done() as u64
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        let mixed = (self.0 ^ u128::from(word)).wrapping_mul(0xda94_2042_e4dd_58b5_9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 64);
    }

    fn write_u8(&mut self, word: u8) {
        self.write_u64(u64::from(word));
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_i64(&mut self, word: i64) {
        self.write_u64(word as u64);
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }
}

/// Hashes a map by key. These worlds have one key, so that there is no order to tell.
fn by_key<V>(map: &HashMap<Address, V>, into: &mut Fingerprint, mut each: impl FnMut(&V, &mut Fingerprint)) {
    assert!(map.len() <= 1, "these worlds have one key");
    into.write_usize(map.len());
    for value in map.values() {
        each(value, into);
    }
}

pub(super) fn of_node(node: &Node) -> u128 {
    let mut into = Fingerprint::default();
    let durable = node.sealed.durable.lsn();
    acceptor(&node.acceptor, durable, &mut into);
    proposer(&node.proposer, &mut into);
    by_key(&node.stored, &mut into, stored);
    for (lsn, effects) in &node.sealed.waiting {
        relative(*lsn, durable).hash(&mut into);
        for effect in effects {
            match effect {
                Effect::Send(to, message) => (0_u8, to, &message.body).hash(&mut into),
                Effect::Commit(commit) => (1_u8, &commit.record).hash(&mut into),
                Effect::Accepted(id, upd) => (2_u8, id, upd).hash(&mut into),
            }
        }
    }
    node.disk.ceiling.hash(&mut into);
    by_key(&node.disk.pending, &mut into, |record, into| record.hash(into));
    by_key(&node.disk.chosen, &mut into, |record, into| record.hash(into));
    by_key(&node.disk.outbox, &mut into, |write, into| write.hash(into));
    node.outbox.print(&mut into);
    for entry in &node.unsynced {
        hash_entry(entry, &mut into);
    }
    for (ballot, decisions) in &node.waiting {
        ballot.hash(&mut into);
        for (id, decision) in decisions {
            id.hash(&mut into);
            hash_decision(decision, &mut into);
        }
    }
    (&node.pulls, node.wall, node.installed, node.gc_floor).hash(&mut into);
    refused(&node.disk.refused, &mut into);
    into.done()
}

fn relative(lsn: Lsn, durable: Lsn) -> u64 {
    lsn.0.saturating_sub(durable.0)
}

fn hash_entry(entry: &Entry, into: &mut Fingerprint) {
    match entry {
        Entry::Accepted(_, record) => (0_u8, record).hash(into),
        Entry::Chosen(_, record) => (1_u8, record).hash(into),
        Entry::Committed(_, ballot) => (2_u8, ballot).hash(into),
        Entry::Ceiling(ceiling) => (3_u8, ceiling).hash(into),
        Entry::Local(_, write) => (4_u8, write).hash(into),
        Entry::Refused(_, upto) => (5_u8, upto).hash(into),
        Entry::Dropped(_, ballot) => (6_u8, ballot).hash(into),
    }
}

fn stored(row: &StoredRow, into: &mut Fingerprint) {
    (row.ballot, row.upd, &row.op).hash(into);
}

fn acceptor(acceptor: &Acceptor, durable: Lsn, into: &mut Fingerprint) {
    (acceptor.floor, acceptor.ceiling).hash(into);
    acceptor.ceilings_appended.iter().for_each(|(ceiling, lsn)| (ceiling, relative(*lsn, durable)).hash(into));
    by_key(&acceptor.keys, into, |KeyState { promised, pending }, into| {
        promised.hash(into);
        if let Some(pending) = pending {
            (&pending.record, relative(pending.lsn, durable), pending.chosen).hash(into);
        }
    });
    by_key(&acceptor.lineages, into, |lineage, into| lineage.hash(into));
    refused(&acceptor.refused, into);
}

fn refused(refused: &HashMap<ShardId, Ballot>, into: &mut Fingerprint) {
    assert!(refused.len() <= 1, "these worlds have one shard");
    refused.values().next().hash(into);
}

fn proposer(proposer: &Proposer, into: &mut Fingerprint) {
    // The next ballot tells all that the clock knows.
    proposer.clock.clone().issue(0).hash(into);
    by_key(&proposer.tokens, into, |token, into| {
        (token.next, token.base.ballot, &token.base.lineage, &token.base.record).hash(into);
    });
    by_key(&proposer.keys, into, |KeyQueue { round, waiting }, into| {
        for pending in waiting {
            hash_pending(pending, into);
        }
        0xff_u8.hash(into);
        if let Some(round) = round {
            hash_round(round, into);
        }
    });
}

fn hash_pending(pending: &Pending, into: &mut Fingerprint) {
    (pending.id, pending.settles).hash(into);
}

fn hash_round(round: &Round, into: &mut Fingerprint) {
    (round.ballot, &round.held, round.updates.len()).hash(into);
    for pending in &round.updates {
        hash_pending(pending, into);
    }
    if let Some(attempt) = &round.attempt {
        hash_attempt(attempt, into);
    }
    match &round.phase {
        Phase::BackingOff => 0_u8.hash(into),
        Phase::Reading(tally) => hash_tally(1, tally, into),
        Phase::Preparing(tally) => hash_tally(2, tally, into),
        Phase::Accepting(ballotting) => {
            (3_u8, &ballotting.record, &ballotting.votes, &ballotting.refused, ballotting.next).hash(into);
            match &ballotting.carried {
                Carried::Write(attempt, index) => {
                    index.hash(into);
                    hash_attempt(attempt, into);
                }
                Carried::Answers(outcomes) => hash_outcomes(outcomes, into),
            }
        }
    }
}

fn hash_tally(phase: u8, tally: &Tally, into: &mut Fingerprint) {
    (phase, &tally.votes, &tally.refused).hash(into);
}

fn hash_attempt(attempt: &Attempt, into: &mut Fingerprint) {
    attempt.tries.len().hash(into);
    for one in &attempt.tries {
        (one.upd, &one.ballots).hash(into);
        hash_outcomes(&one.outcomes, into);
    }
}

fn hash_outcomes(outcomes: &[(Pending, Outcome)], into: &mut Fingerprint) {
    outcomes.len().hash(into);
    for (pending, outcome) in outcomes {
        hash_pending(pending, into);
        hash_outcome(outcome, into);
    }
}

pub(super) fn hash_outcome(outcome: &Outcome, into: &mut Fingerprint) {
    let row = |row: &Option<Row>, into: &mut Fingerprint| match row {
        None => 0_u8.hash(into),
        Some(row) => (1_u8, row.value.as_bytes(), row.upd).hash(into),
    };
    std::mem::discriminant(&outcome.verdict).hash(into);
    row(&outcome.before, into);
    row(&outcome.after, into);
}

fn hash_decision(decision: &Decision, into: &mut Fingerprint) {
    match decision {
        Decision::Accept(outcome) => hash_outcome(outcome, into),
        Decision::Reject(_) => 1_u8.hash(into),
        Decision::Timeout => 2_u8.hash(into),
    }
}
