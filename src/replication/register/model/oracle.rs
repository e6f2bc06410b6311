//! What must hold in every state, told by somebody who sees all disks and all clients at once.
//!
//! * **One value per ballot**: no two records are ever sent out to be voted on under one ballot.
//! * **Agreement**: once a majority's disks hold a ballot, every record sent out under a higher one builds on it.
//! * **Persist before reply**: what a message says of its sender is on the sender's disk when it leaves.
//! * **Local state**: a node commits chosen records only, and its ballots and versions only rise.
//! * **Local writes**: the last writer by clock wins, and an acknowledged one is never lost to a crash.
//! * **Linearizability** of what clients were told, whatever became of those who were not told: no acknowledged write is
//!   lost, no increment counts twice, reads never go back, a Reject never took effect. Each newly chosen value counts as
//!   one more read at that moment, so that a wrong one is seen before a client stumbles on it.

use std::hash::Hash;
use std::rc::Rc;

use super::collection::is_floor;
use super::fingerprint::{Fingerprint, hash_outcome};
use super::scenario::VALUE_BYTES_MAX;
use crate::cluster::membership::Quorums;
use crate::replication::journal::Replay;
use crate::replication::register::{Body, LocalWrite, Record, Vote};
use crate::store::StoredRow;
use crate::store::replicator::Decision;
use crate::store::update::{Outcome, Row, Update, Verdict};
use crate::types::{Ballot, Value};

/// What a client knows of its update.
#[derive(Debug, Clone)]
enum Status {
    /// Not answered, or answered "unknown", or its node died: it may take effect at any time, or never.
    Open,
    Done(Outcome),
    /// It never takes effect.
    Rejected,
}

#[derive(Debug, Clone)]
struct Call {
    /// The update's number in the scenario.
    number: usize,
    update: Rc<Update>,
    status: Status,
    /// The updates that had been answered before this one was asked for, as bits.
    after: u32,
    /// The highest version of a local write that its node had acknowledged by then.
    above: Ballot,
}

/// A write of one node alone.
#[derive(Debug, Clone)]
struct Own {
    n: usize,
    write: LocalWrite,
    is_acknowledged: bool,
}

/// A record sent out to be voted on, and whose disks have held it.
#[derive(Debug, Clone)]
struct Asked {
    record: Rc<Record>,
    /// Who decides on it.
    deciding: Quorums,
    disks: u8,
}

#[derive(Debug, Clone)]
pub(super) struct Oracle {
    /// False where a fault is to be caught by what clients are told, or would read of what was chosen just then.
    watches_inside: bool,
    calls: Vec<Call>,
    own: Vec<Own>,
    /// By ballot.
    asked: Vec<Asked>,
    /// The new voters, once the change to them is over. What a majority of them holds by then is as good as chosen, in
    /// whichever epoch it was asked for: nobody can decide without one of them any more.
    successors: Option<Quorums>,
    /// What the key holds in the beginning.
    first: Option<Row>,
    pub(super) violation: Option<String>,
}

impl Oracle {
    pub(super) fn new(watches_inside: bool) -> Self {
        Self {
            watches_inside,
            calls: Vec::new(),
            own: Vec::new(),
            asked: Vec::new(),
            successors: None,
            first: None,
            violation: None,
        }
    }

    /// This was chosen before, and is on these disks.
    pub(super) fn begin_with(&mut self, record: Record, deciding: Quorums, disks: u8) {
        let row = |value: &Value| Row { value: value.clone(), upd: record.upd };
        self.first = record.op.value().map(row);
        self.asked.push(Asked { record: Rc::new(record), deciding, disks });
    }

    pub(super) fn hash(&self, into: &mut Fingerprint) {
        for call in &self.calls {
            (call.number, call.after, call.above).hash(into);
            match &call.status {
                Status::Open => 0_u8.hash(into),
                Status::Done(outcome) => hash_outcome(outcome, into),
                Status::Rejected => 1_u8.hash(into),
            }
        }
        for own in &self.own {
            (own.write.upd, own.is_acknowledged).hash(into);
        }
        for asked in &self.asked {
            (asked.record.ballot, asked.disks).hash(into);
        }
    }

    pub(super) fn violated(&mut self, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            self.violation = Some(what());
        }
    }

    pub(super) fn inside(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if self.watches_inside && !holds {
            self.violated(what);
        }
    }

    /// A client asks.
    pub(super) fn on_call(&mut self, number: usize, n: usize, update: Rc<Update>) {
        let done = self.calls.iter().filter(|call| matches!(call.status, Status::Done(_)));
        let after = done.fold(0, |bits, call| bits | 1 << call.number);
        let own = self.own.iter().filter(|own| own.n == n && own.is_acknowledged).map(|own| own.write.upd);
        let above = own.max().unwrap_or_default();
        self.calls.push(Call { number, update, status: Status::Open, after, above });
        // Where calls stand must not depend on the order in which independent ones were made.
        self.calls.sort_by_key(|call| call.number);
    }

    /// A client is answered.
    pub(super) fn on_decision(&mut self, number: usize, decision: Decision) {
        let Some(call) = self.calls.iter_mut().find(|call| call.number == number) else { return };
        if !matches!(call.status, Status::Open) {
            return self.violated(|| format!("update {number} was decided twice"));
        }
        let written = match &decision {
            Decision::Accept(Outcome { verdict: Verdict::Written, after: Some(row), .. }) => Some(row.upd),
            _ => None,
        };
        let above = call.above;
        match decision {
            Decision::Accept(outcome) => call.status = Status::Done(outcome),
            Decision::Reject(_) => call.status = Status::Rejected,
            Decision::Timeout => {}
        }
        if let Some(older) = written.filter(|written| *written < above) {
            self.violated(|| format!("last writer: update {number} got version {older}, below an earlier {above}"));
        }
        if !self.is_linearizable(None) {
            let told = self.told();
            self.violated(|| format!("linearizability: {told}"));
        }
    }

    /// Node `n` accepts a write on its own.
    pub(super) fn on_local(&mut self, n: usize, write: LocalWrite) {
        self.own.push(Own { n, write, is_acknowledged: false });
        self.own.sort_by_key(|own| own.write.upd);
    }

    /// And says so.
    pub(super) fn on_accepted(&mut self, upd: Ballot) {
        self.own.iter_mut().filter(|own| own.write.upd == upd).for_each(|own| own.is_acknowledged = true);
    }

    /// Node `n` holds on to its local write of this version, if any.
    pub(super) fn on_outbox(&mut self, n: usize, held: Option<Ballot>) {
        let newest = self.asked.iter().filter(|asked| self.is_held(asked)).map(|asked| asked.record.upd).max();
        let safe = held.max(newest).unwrap_or_default();
        let own = self.own.iter().filter(|own| own.n == n && own.is_acknowledged).map(|own| own.write.upd);
        if let Some(lost) = own.max().filter(|upd| *upd > safe) {
            self.violated(|| format!("local writes: the acknowledged one of version {lost} is lost"));
        }
    }

    /// The last writer by clock wins: versions rise from what is chosen to what is chosen, and a local write is chosen under
    /// its own version, above nothing newer.
    fn check_last_writer(&mut self, record: &Record) {
        let record_of = |ballot: Ballot| self.asked.iter().find(|asked| asked.record.ballot == ballot);
        let base = record.lineage.0.first().and_then(|base| record_of(*base)).map(|base| base.record.upd);
        let own = self.own.iter().find(|own| own.write.op == record.op).map(|own| own.write.upd);
        let before = self.asked.iter().filter(|asked| self.is_held(asked) && asked.record.ballot < record.ballot);
        let before = before.map(|asked| asked.record.upd).max();
        if let Some(newer) = before.filter(|before| *before > record.upd) {
            let upd = record.upd;
            self.violated(|| format!("last writer: version {upd} is chosen after {newer}"));
        }
        if let (Some(own), Some(base)) = (own, base.filter(|base| own.is_some_and(|own| *base > own))) {
            self.violated(|| format!("last writer: the local write of {own} is chosen above {base}"));
        }
    }

    /// A record is sent out to be voted on by `deciding`.
    pub(super) fn on_asked(&mut self, record: &Record, deciding: Quorums) {
        match self.asked.binary_search_by_key(&record.ballot, |asked| asked.record.ballot) {
            Ok(at) => {
                let alike = *self.asked[at].record == *record;
                self.inside(alike, || format!("one value per ballot: {} was sent out for two", record.ballot));
            }
            Err(at) => {
                self.asked.insert(at, Asked { record: Rc::new(record.clone()), deciding, disks: 0 });
                for chosen in self.chosen() {
                    self.agree(record.ballot, chosen);
                }
            }
        }
    }

    /// A vote has reached the disk of node `n`.
    pub(super) fn on_vote(&mut self, n: usize, ballot: Ballot) {
        let Some(asked) = self.asked.iter_mut().find(|asked| asked.record.ballot == ballot) else { return };
        let before = asked.clone();
        asked.disks |= 1 << n;
        let after = asked.clone();
        if self.is_held(&after) && !self.is_held(&before) {
            self.on_chosen(&after.record);
        }
    }

    /// A change of voters is over.
    pub(super) fn on_succeeded(&mut self, successors: Quorums) {
        let before = self.chosen();
        self.successors = Some(successors);
        for asked in self.asked.clone().iter().filter(|asked| !before.contains(&asked.record.ballot)) {
            if self.is_held(asked) {
                self.on_chosen(&asked.record);
            }
        }
    }

    fn on_chosen(&mut self, record: &Record) {
        let (ballot, value) = (record.ballot, record.op.value().cloned());
        for later in self.asked.iter().map(|asked| asked.record.ballot).filter(|b| *b > ballot).collect::<Vec<_>>() {
            self.agree(later, ballot);
        }
        self.check_last_writer(record);
        let is_highest = self.chosen().last() == Some(&ballot);
        if is_highest && !self.is_linearizable(Some(&value)) {
            let told = self.told();
            self.violated(|| format!("the value chosen now, {value:?}, does not follow: {told}"));
        }
    }

    /// A record is taken for chosen.
    pub(super) fn on_learnt(&mut self, ballot: Ballot) {
        let is_chosen = self.is_chosen(ballot);
        self.inside(is_chosen, || format!("local state: {ballot} is taken for chosen, and is not"));
    }

    /// Node `n` makes a record visible.
    pub(super) fn on_commit(&mut self, n: usize, record: &Record, before: Option<&StoredRow>) {
        self.on_learnt(record.ballot);
        let Some(row) = before.filter(|row| row.ballot <= record.ballot) else { return };
        let rises = row.upd <= record.upd && (row.upd != record.upd || row.op == record.op);
        self.inside(rises, || format!("local state: node {n} goes from version {} to {}", row.upd, record.upd));
    }

    /// A message leaves node `n`, whose disk is `disk`.
    pub(super) fn on_sent(&mut self, n: usize, body: &Body, disk: &Replay) {
        let covered = |ballot: Ballot| ballot <= disk.ceiling;
        let knows_chosen = |ballot: Ballot| disk.chosen.values().any(|record| record.ballot >= ballot);
        let holds = |ballot: Ballot| {
            let voted = self.asked.iter().any(|asked| asked.record.ballot == ballot && asked.disks & 1 << n != 0);
            voted || knows_chosen(ballot)
        };
        let vote_holds = |vote: &Vote| match vote {
            Vote::Absent(_) => true,
            Vote::Record { ballot, .. } => holds(*ballot),
        };
        let persisted = match body {
            Body::Prepare { ballot, .. } => covered(*ballot),
            Body::Accept { record, .. } => covered(record.ballot),
            Body::Promised { ballot, vote } => covered(*ballot) && vote_holds(vote),
            Body::Held { vote, .. } => vote_holds(vote),
            // A row that was learnt as chosen bars lower ballots by itself, after a restart too.
            Body::Accepted { ballot, .. } => knows_chosen(*ballot) || covered(*ballot) && holds(*ballot),
            _ => true,
        };
        self.inside(persisted, || format!("persist before reply: node {n} says {body:?}, and its disk does not"));
    }

    pub(super) fn is_chosen(&self, ballot: Ballot) -> bool {
        self.chosen().contains(&ballot)
    }

    fn chosen(&self) -> Vec<Ballot> {
        self.asked.iter().filter(|asked| self.is_held(asked)).map(|asked| asked.record.ballot).collect()
    }

    /// Whether those who decide hold it.
    fn is_held(&self, asked: &Asked) -> bool {
        let is_met = |quorums: &Quorums| quorums.is_met(|node| asked.disks & 1 << node != 0);
        is_met(&asked.deciding) || self.successors.as_ref().is_some_and(is_met)
    }

    fn agree(&mut self, later: Ballot, chosen: Ballot) {
        let base_of = |ballot: Ballot| {
            let asked = self.asked.iter().find(|asked| asked.record.ballot == ballot)?;
            asked.record.lineage.0.first().copied()
        };
        let mut at = Some(later);
        while let Some(ballot) = at.filter(|ballot| *ballot > chosen && !is_floor(*ballot)) {
            at = base_of(ballot);
        }
        // What builds on absence as of a floor builds on all that came before that.
        let builds_on = later <= chosen || at.is_some_and(|at| at == chosen || at > chosen && is_floor(at));
        self.inside(builds_on, || format!("agreement: {chosen} is chosen, and {later} does not build on it"));
    }

    /// Is there an order of the updates, in keeping with who was answered before whom asked, that explains every
    /// answer, and `seen` as what a read finds now?
    fn is_linearizable(&self, seen: Option<&Option<Value>>) -> bool {
        self.explain(0, self.first.as_ref(), seen)
    }

    fn explain(&self, placed: u32, row: Option<&Row>, seen: Option<&Option<Value>>) -> bool {
        let done = self.calls.iter().filter(|call| matches!(call.status, Status::Done(_)));
        let answered = done.fold(0, |bits, call| bits | 1 << call.number);
        if answered & !placed == 0 && seen.is_none_or(|seen| seen.as_ref() == row.map(|row| &row.value)) {
            return true;
        }
        let next = self.calls.iter().filter(|call| placed & 1 << call.number == 0 && call.after & !placed == 0);
        next.filter(|call| !matches!(call.status, Status::Rejected)).any(|call| {
            let outcome =
                call.update.evaluate(row.cloned(), Ballot::ZERO, Ballot(i64::from(placed) + 1), VALUE_BYTES_MAX);
            let fits = match &call.status {
                Status::Done(told) => same(told, &outcome),
                _ => true,
            };
            fits && self.explain(placed | 1 << call.number, outcome.after.as_ref(), seen)
        })
    }

    /// The clients' story, for people.
    fn told(&self) -> String {
        let value = |row: &Option<Row>| row.as_ref().map_or("nothing".to_owned(), |row| format!("{:?}", row.value));
        let tell = |call: &Call| {
            let what = match &call.status {
                Status::Open => "open".to_owned(),
                Status::Done(outcome) => {
                    format!("{:?}, {} -> {}", outcome.verdict, value(&outcome.before), value(&outcome.after))
                }
                Status::Rejected => "rejected".to_owned(),
            };
            format!("#{} {:?}: {what} (after {:b})", call.number, call.update.change, call.after)
        };
        self.calls.iter().map(tell).collect::<Vec<_>>().join("; ")
    }
}

fn same(told: &Outcome, outcome: &Outcome) -> bool {
    let value = |row: &Option<Row>| row.as_ref().map(|row| row.value.clone());
    told.verdict == outcome.verdict
        && value(&told.before) == value(&outcome.before)
        && value(&told.after) == value(&outcome.after)
}
