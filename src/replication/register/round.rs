//! One round of one key, as values: votes in, verdicts out. [`Proposer`](super::Proposer) drives it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::message::Refusal;
use super::record::{Descent, Lineage, Record, Vote};
use crate::cluster::membership::Quorums;
use crate::cluster::placement::Electors;
use crate::store::replicator::Op;
use crate::store::update::{Outcome, Row, Update, Verdict};
use crate::types::Ballot;

/// Names one client's update within a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// A client's update on its way.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    pub(super) id: OpId,
    pub(super) update: Update,
    /// When its client stops waiting.
    pub(super) deadline: Duration,
    /// There is no client: the node settles a record of its own, and must hear itself.
    pub(super) settles: bool,
}

/// The highest vote of a majority, with what it takes to build on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Base {
    pub(super) ballot: Ballot,
    pub(super) lineage: Lineage,
    /// The record's version and effect; none where the key was never written.
    pub(super) record: Option<(Ballot, Op)>,
    /// Chosen for certain (rule 4).
    pub(super) proven: bool,
    /// Some replica knows so already.
    pub(super) flagged: bool,
}

/// Votes of distinct voters for one question.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    pub(super) votes: BTreeMap<usize, Vote>,
    pub(super) refused: BTreeMap<usize, Refusal>,
}

impl Tally {
    pub(super) fn add(&mut self, voter: usize, vote: Vote) {
        self.votes.insert(voter, vote);
    }

    /// What a majority holds, once there is one and `required` is in it. `held` fills in the effect that votes left out.
    pub(super) fn base(&self, quorums: &Quorums, required: Option<usize>, held: Option<&Record>) -> Option<Base> {
        if !quorums.is_met(|voter| self.votes.contains_key(&voter))
            || required.is_some_and(|voter| !self.votes.contains_key(&voter))
        {
            return None;
        }
        let highest = self.votes.values().max_by_key(|vote| (vote.ballot(), matches!(vote, Vote::Record { .. })))?;
        let ballot = highest.ballot();
        let alike = || self.votes.values().filter(|vote| vote.ballot() == ballot);
        let Vote::Record { upd, .. } = highest else {
            // A majority without a record, at the highest floor: nothing is chosen above it.
            return Some(Base { ballot, lineage: Lineage::default(), record: None, proven: true, flagged: true });
        };
        let ops = alike().filter_map(|vote| match vote {
            Vote::Record { op, .. } => op.as_ref(),
            Vote::Absent(_) => None,
        });
        let held = held.filter(|held| held.upd == *upd).map(|held| &held.op);
        let op = ops.chain(held).next()?.clone();
        let flagged = alike().any(Vote::is_chosen);
        let is_alike = |voter| self.votes.get(&voter).is_some_and(|vote| vote.ballot() == ballot);
        let proven = flagged || quorums.is_met(is_alike);
        // A replica that has forgotten the lineage of a committed row sends an empty one: take the longest.
        let lineage = alike().filter_map(|vote| match vote {
            Vote::Record { lineage, .. } => Some(lineage),
            Vote::Absent(_) => None,
        });
        let lineage = lineage.max_by_key(|lineage| lineage.len()).cloned().unwrap_or_default();
        Some(Base { ballot, lineage, record: Some((*upd, op)), proven, flagged })
    }
}

impl Base {
    /// The version of the key's last change: that of its record, or the GC floor below which deletions are forgotten.
    fn version(&self) -> Ballot {
        self.record.as_ref().map_or(self.ballot, |(upd, _)| *upd)
    }

    fn row(&self) -> Option<Row> {
        let (upd, op) = self.record.as_ref()?;
        Some(Row { value: op.value()?.clone(), upd: *upd })
    }

    /// What a new record that builds on this one carries.
    pub(super) fn descendants(&self) -> Lineage {
        Lineage::on(self.ballot, &self.lineage)
    }

    /// The same mutation in a new round: completes it, keeping its version.
    pub(super) fn again(&self, ballot: Ballot) -> Option<Record> {
        let (upd, op) = self.record.clone()?;
        Some(Record { ballot, upd, op, lineage: self.descendants() })
    }
}

/// Updates with their outcomes, as evaluated one after the other on one base.
#[derive(Debug, Clone)]
pub(super) struct Folded {
    pub(super) outcomes: Vec<(Pending, Outcome)>,
    /// What they leave together, and its version; none where nothing is written.
    pub(super) written: Option<(Ballot, Op)>,
}

/// Evaluates `updates` in order on `base`, as the round of `ballot` would write them. Its version belongs to what the
/// last of them leaves; what that overwrote never was a row, and a condition on it must not hold later.
pub(super) fn fold(updates: Vec<Pending>, base: &Base, ballot: Ballot, value_bytes_max: usize) -> Folded {
    let (mut row, mut version) = (base.row(), base.version());
    let mut outcomes: Vec<(Pending, Outcome)> = Vec::with_capacity(updates.len());
    for pending in updates {
        let outcome = pending.update.evaluate(row, version, ballot, value_bytes_max);
        row = outcome.after.clone();
        if outcome.verdict == Verdict::Written {
            version = pending.update.version(ballot);
        }
        outcomes.push((pending, outcome));
    }
    let Some(last) = outcomes.iter().rposition(|(_, outcome)| outcome.verdict == Verdict::Written) else {
        return Folded { outcomes, written: None };
    };
    for (at, (_, outcome)) in outcomes.iter_mut().enumerate().take(last + 1) {
        let after = outcome.after.as_mut().filter(|_| at < last);
        for row in outcome.before.as_mut().into_iter().chain(after).filter(|row| row.upd == ballot) {
            row.upd = ballot.overwritten();
        }
    }
    Folded { outcomes, written: Some((version, row.map_or(Op::Del, |row| Op::Put(row.value)))) }
}

/// One evaluation of a round's updates, sent out to be voted on.
#[derive(Debug, Clone)]
pub(super) struct Try {
    pub(super) upd: Ballot,
    /// Every ballot under which it was sent out.
    pub(super) ballots: Vec<Ballot>,
    pub(super) outcomes: Vec<(Pending, Outcome)>,
}

/// Every try of the same updates, oldest first. A try that a majority bypassed is kept: where a minority accepted it,
/// another proposer may still find it and build on it, until something later is chosen. At most one takes effect, as a
/// later one is built on a base that bypasses those before.
#[derive(Debug, Clone, Default)]
pub(super) struct Attempt {
    pub(super) tries: Vec<Try>,
}

/// What a new majority tells of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// The base is this try itself, or builds on it: once the base is chosen, so is the try.
    TookEffect(usize),
    /// No try is in the base: what is written on it now is the only one to count.
    Bypassed,
    /// The lineage is too short to tell.
    Unknown,
}

impl Attempt {
    /// Rule 4: looks at every ballot that went out, never at the latest alone.
    pub(super) fn fate(&self, base: &Base) -> Fate {
        let mut fate = Fate::Bypassed;
        for (index, one) in self.tries.iter().enumerate() {
            // A version that is kept from round to round does not tell which of them wrote it.
            let is_own = one.ballots.contains(&one.upd);
            if is_own && base.record.as_ref().is_some_and(|(upd, _)| *upd == one.upd) {
                return Fate::TookEffect(index);
            }
            for ballot in one.ballots.iter().filter(|ballot| **ballot <= base.ballot) {
                // Absent as of a floor: what became of rounds before it has been forgotten.
                let descent = match base.record {
                    Some(_) => base.lineage.descent(base.ballot, *ballot),
                    None => Descent::Unknown,
                };
                match descent {
                    Descent::Descends => return Fate::TookEffect(index),
                    Descent::Unknown => fate = Fate::Unknown,
                    Descent::Bypassed => {}
                }
            }
        }
        fate
    }

    /// The updates themselves, to be evaluated again.
    pub(super) fn updates(&self) -> Vec<Pending> {
        let latest = self.tries.last().map(|one| one.outcomes.as_slice()).unwrap_or_default();
        latest.iter().map(|(pending, _)| pending.clone()).collect()
    }

    /// The outcomes of the try that took effect.
    pub(super) fn outcomes(mut self, took_effect: usize) -> Vec<(Pending, Outcome)> {
        if took_effect < self.tries.len() { self.tries.swap_remove(took_effect).outcomes } else { Vec::new() }
    }

    fn is_idle(&self) -> bool {
        self.tries.last().is_none_or(|one| one.outcomes.is_empty())
    }

    fn expire(&mut self, late: impl Fn(&Pending) -> bool) -> Vec<OpId> {
        let expired = self.updates().into_iter().filter(|pending| late(pending)).map(|pending| pending.id).collect();
        for one in &mut self.tries {
            one.outcomes.retain(|(pending, _)| !late(pending));
        }
        expired
    }
}

/// What becomes of the clients once a record is chosen.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) enum Carried {
    /// This try of theirs took effect.
    Write(Attempt, usize),
    /// They wrote nothing, and their answer stands on the record.
    Answers(Vec<(Pending, Outcome)>),
}

/// A record that was sent out to be voted on.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Ballotting {
    pub(super) record: Record,
    /// Who said yes, and whether they granted the token.
    pub(super) votes: BTreeMap<usize, bool>,
    pub(super) refused: BTreeMap<usize, Refusal>,
    /// The later ballot asked for along with it.
    pub(super) next: Ballot,
    pub(super) carried: Carried,
}

/// Where a round stands.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) enum Phase {
    /// Lost to another; waits a random while.
    BackingOff,
    /// Asks what is held, promising nothing: all updates are reads.
    Reading(Tally),
    /// Asks for promises.
    Preparing(Tally),
    /// Asks for votes.
    Accepting(Ballotting),
}

/// A round in flight.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Round {
    /// Who decides.
    pub(super) electors: Arc<Electors>,
    /// Names it in messages.
    pub(super) ballot: Ballot,
    pub(super) phase: Phase,
    /// Updates not yet evaluated, or to be evaluated again.
    pub(super) updates: Vec<Pending>,
    /// An earlier write of this round whose fate is open.
    pub(super) attempt: Option<Attempt>,
    /// What this node held when the round began.
    pub(super) held: Option<Record>,
    /// How often it began anew.
    pub(super) tries: u32,
    /// When it begins anew unless it got on.
    pub(super) step_deadline: Duration,
}

impl Round {
    /// Gives up the votes asked for, so that a new ballot can be tried: what was sent out may yet be chosen.
    pub(super) fn recall(&mut self) {
        let Phase::Accepting(ballotting) = std::mem::replace(&mut self.phase, Phase::BackingOff) else { return };
        match ballotting.carried {
            Carried::Write(attempt, _) => self.attempt = Some(attempt),
            Carried::Answers(outcomes) => self.updates.extend(outcomes.into_iter().map(|(pending, _)| pending)),
        }
    }

    /// Takes out the clients whose deadline has passed: those whose write may be out, and those who wrote nothing.
    pub(super) fn expire(&mut self, now: Duration) -> (Vec<OpId>, Vec<OpId>) {
        let late = |pending: &Pending| pending.deadline <= now;
        let mut nothing: Vec<OpId> =
            self.updates.extract_if(.., |pending| late(pending)).map(|pending| pending.id).collect();
        let mut unknown = self.attempt.as_mut().map(|attempt| attempt.expire(late)).unwrap_or_default();
        if let Phase::Accepting(Ballotting { carried, .. }) = &mut self.phase {
            match carried {
                Carried::Write(attempt, _) => unknown.extend(attempt.expire(late)),
                Carried::Answers(outcomes) => {
                    nothing
                        .extend(outcomes.extract_if(.., |(pending, _)| late(pending)).map(|(pending, _)| pending.id));
                }
            }
        }
        (unknown, nothing)
    }

    /// True where nobody waits for it any more.
    pub(super) fn is_idle(&self) -> bool {
        let is_accepting = match &self.phase {
            Phase::Accepting(Ballotting { carried: Carried::Write(attempt, _), .. }) => !attempt.is_idle(),
            Phase::Accepting(Ballotting { carried: Carried::Answers(outcomes), .. }) => !outcomes.is_empty(),
            _ => false,
        };
        self.updates.is_empty() && self.attempt.as_ref().is_none_or(Attempt::is_idle) && !is_accepting
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Value;

    /// A local write was tried again under another ballot, folded with an increment. Its first record was then found, completed
    /// by another node: the version was the same, and the increment was taken for done.
    #[test]
    fn a_version_kept_from_round_to_round_does_not_tell_which_of_them_wrote_it() {
        let one = |upd, ballot| Try { upd: Ballot(upd), ballots: vec![Ballot(ballot)], outcomes: Vec::new() };
        let attempt = |upd, ballot| Attempt { tries: vec![one(upd, ballot)] };
        let base = |upd, lineage: &[i64]| Base {
            ballot: Ballot(40),
            lineage: Lineage(lineage.iter().copied().map(Ballot).collect()),
            record: Some((Ballot(upd), Op::Put(Value::from("v")))),
            proven: true,
            flagged: true,
        };
        assert_eq!(attempt(5, 30).fate(&base(5, &[20, 0])), Fate::Bypassed, "written by round 20");
        assert_eq!(attempt(5, 30).fate(&base(5, &[30, 0])), Fate::TookEffect(0));
        assert_eq!(attempt(5, 30).fate(&base(5, &[])), Fate::Unknown);
        assert_eq!(attempt(30, 30).fate(&base(30, &[])), Fate::TookEffect(0), "a version of its own does");
    }
}
