//! The voting half of a node: promises, pending records, the ceiling and the floor (rules 1-3, 5, 8).

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::message::{Address, Body, Message, Refusal};
use super::record::{Lineage, LocalWrite, Record, Vote};
use super::rules::{self, BrokenRule};
use super::sealed::{Durable, Lsn, Sealed};
use crate::clock::Now;
use crate::store::Stored;
use crate::types::{Ballot, ShardId};

/// How an acceptor behaves.
#[derive(Debug, Clone)]
pub struct AcceptorConfig {
    /// How far ahead of the clock the durable ceiling is set.
    pub ceiling_lead: Duration,
    /// Ballots further ahead of the clock than this are refused.
    pub max_skew: Duration,
    /// Promises remembered before the oldest raise the floor instead.
    pub promises_max: usize,
    /// Lineages of committed records remembered, so that a retry can tell its fate.
    pub lineages_max: usize,
}

impl Default for AcceptorConfig {
    fn default() -> Self {
        Self {
            ceiling_lead: Duration::from_millis(500),
            max_skew: Duration::from_secs(10),
            promises_max: 65_536,
            lineages_max: 65_536,
        }
    }
}

/// What the acceptor writes to the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// A vote.
    #[serde(rename = "a")]
    Accepted(Address, Record),
    /// A record learnt to be chosen, complete.
    #[serde(rename = "h")]
    Chosen(Address, Record),
    /// The record of this ballot, journalled before, is chosen.
    #[serde(rename = "c")]
    Committed(Address, Ballot),
    /// No ballot above this was promised, granted, issued or accepted.
    #[serde(rename = "l")]
    Ceiling(Ballot),
    /// A write that this node accepted on its own, until its version or a higher one is chosen.
    #[serde(rename = "o")]
    Local(Address, LocalWrite),
    /// No ballot up to this is promised or accepted any more for keys of this shard.
    #[serde(rename = "r")]
    Refused(ShardId, Ballot),
    /// The vote of this ballot counts no more: others decide on its key now.
    #[serde(rename = "d")]
    Dropped(Address, Ballot),
}

/// A chosen record on its way into its shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Which key.
    pub address: Address,
    /// The record.
    pub record: Record,
}

/// What came of learning that a record is chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Learned {
    /// It is applied, or on its way, or superseded here.
    Known,
    /// It may be applied once its vote here is on disk.
    Commit(Sealed<Commit>),
    /// The record is not here: it must be pulled.
    Missing,
}

/// What a restart found in the journal.
#[derive(Debug, Clone, Default)]
pub struct Restored {
    /// The highest durable ceiling.
    pub ceiling: Ballot,
    /// Records not known to be chosen.
    pub pending: Vec<(Address, Record)>,
    /// Up to which ballot each of these shards refuses everything.
    pub refused: HashMap<ShardId, Ballot>,
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Pending {
    pub(super) record: Record,
    pub(super) lsn: Lsn,
    pub(super) chosen: bool,
    pub(super) since: Duration,
}

#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct KeyState {
    pub(super) promised: Ballot,
    pub(super) pending: Option<Pending>,
}

/// The acceptor of one node, for all its keys.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct Acceptor {
    config: AcceptorConfig,
    pub(super) floor: Ballot,
    /// Durable.
    pub(super) ceiling: Ballot,
    /// Appended and not durable yet, with their places: both rise.
    pub(super) ceilings_appended: VecDeque<(Ballot, Lsn)>,
    pub(super) keys: HashMap<Address, KeyState>,
    pub(super) promises: VecDeque<(Ballot, Address)>,
    /// Ballots up to these are refused for keys of these shards; see `refusals.rs`.
    pub(super) refused: HashMap<ShardId, Ballot>,
    pub(super) lineages: HashMap<Address, (Ballot, Lineage)>,
    lineage_order: VecDeque<(Ballot, Address)>,
    pending: usize,
    pending_bytes: usize,
    appended: Lsn,
    durable: Lsn,
    entries: Vec<Entry>,
}

impl Acceptor {
    /// Begins where the journal ended: everything that may have been promised before is refused from now on (rule 2).
    #[must_use]
    pub fn new(config: AcceptorConfig, restored: Restored) -> Self {
        let mut acceptor = Self {
            config,
            floor: restored.ceiling,
            ceiling: restored.ceiling,
            ceilings_appended: VecDeque::new(),
            keys: HashMap::new(),
            promises: VecDeque::new(),
            refused: restored.refused,
            lineages: HashMap::new(),
            lineage_order: VecDeque::new(),
            pending: restored.pending.len(),
            pending_bytes: restored.pending.iter().map(|(_, record)| record.op.weight()).sum(),
            appended: Lsn(0),
            durable: Lsn(0),
            entries: Vec::new(),
        };
        for (address, record) in restored.pending {
            let pending = Pending { record, lsn: Lsn(0), chosen: false, since: Duration::ZERO };
            acceptor.keys.insert(address, KeyState { promised: Ballot::ZERO, pending: Some(pending) });
        }
        acceptor
    }

    /// Everything at or below this is refused: promises made up to there may have been forgotten.
    #[must_use]
    pub fn floor(&self) -> Ballot {
        self.floor
    }

    /// The durable ceiling.
    #[must_use]
    pub fn ceiling(&self) -> Ballot {
        self.ceiling
    }

    /// Bytes of values among the pending records.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// How many records are accepted and not yet applied.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// Hands over what is to be journalled, with the place after the last entry.
    pub fn take_entries(&mut self) -> (Vec<Entry>, Lsn) {
        (std::mem::take(&mut self.entries), self.appended)
    }

    /// True where entries wait for the journal.
    #[must_use]
    pub fn has_entries(&self) -> bool {
        !self.entries.is_empty()
    }

    /// Learns that the journal is durable up to a place.
    pub fn on_durable(&mut self, durable: Durable) {
        self.durable = self.durable.max(durable.lsn());
        while let Some((ceiling, _)) = self.ceilings_appended.pop_front_if(|(_, lsn)| *lsn <= durable.lsn()) {
            self.ceiling = ceiling;
        }
    }

    /// Moves the ceiling on along with a batch that is about to be written anyway, so that few ballots wait for a
    /// write of the ceiling alone.
    pub fn extend_ceiling(&mut self, now: Now) {
        let last = self.ceilings_appended.back().map_or(self.ceiling, |(ceiling, _)| *ceiling);
        if last.0 < now.wall.saturating_add(nanos(self.config.ceiling_lead) / 2) {
            self.append_ceiling(self.led(now));
        }
    }

    /// Seals `inner` until `ballot` is under the durable ceiling.
    pub fn seal<T>(&mut self, ballot: Ballot, now: Now, inner: T) -> Sealed<T> {
        Sealed::new(self.cover(ballot, now), inner)
    }

    /// Refuses every ballot up to this from now on, as if it had promised so for all keys; sealed until that is durable.
    pub fn raise_floor<T>(&mut self, ballot: Ballot, now: Now, inner: T) -> Sealed<T> {
        self.floor = self.floor.max(ballot);
        self.seal(ballot, now, inner)
    }

    /// Seals `inner` until everything appended so far is durable.
    pub fn after_all<T>(&self, inner: T) -> Sealed<T> {
        Sealed::new(self.appended, inner)
    }

    /// Has a write noted that this node accepts on its own, and seals `inner` until it is durable, its version under the
    /// ceiling. It is no vote: nothing that this acceptor says changes by it.
    pub fn note<T>(&mut self, now: Now, address: &Address, write: LocalWrite, inner: T) -> Sealed<T> {
        let covered = self.cover(write.upd, now);
        let lsn = self.append(Entry::Local(address.clone(), write));
        Sealed::new(lsn.max(covered), inner)
    }

    /// Looks at a message of this node as it leaves: an error says which rule it breaks.
    pub fn check_leaving(&self, message: &Message) -> Result<(), BrokenRule> {
        rules::check_leaving(message, self.ceiling, |address, ballot| {
            let pending = self.keys.get(address).and_then(|state| state.pending.as_ref());
            pending.is_some_and(|pending| pending.record.ballot == ballot && pending.lsn > self.durable)
        })
    }

    /// What this acceptor holds of a key, for the proposer on the same node: its version and its effect.
    #[must_use]
    pub fn peek(&self, address: &Address, stored: &Stored) -> Option<Record> {
        let pending = self.keys.get(address).and_then(|state| state.pending.as_ref());
        let newer = pending.filter(|pending| stored.ballot() < pending.record.ballot);
        match (newer, &stored.row) {
            (Some(pending), _) => Some(pending.record.clone()),
            (None, Some(row)) => Some(Record {
                ballot: row.ballot,
                upd: row.upd,
                op: row.op.clone(),
                lineage: self.lineage(address, row.ballot),
            }),
            (None, None) => None,
        }
    }

    /// Rule 1.
    pub fn on_prepare(
        &mut self,
        now: Now,
        address: &Address,
        ballot: Ballot,
        holds: Option<Ballot>,
        stored: &Stored,
    ) -> Result<Sealed<Body>, BrokenRule> {
        if self.is_ahead(ballot, now) {
            return Ok(self.refuse(ballot, Refusal::ClockAhead, Ballot::ZERO));
        }
        let effective = self.effective(address, stored);
        let state = self.keys.get(address);
        // A proposer may ask again for what it was promised: a lost answer, or the token of rule 5.
        let again = state.is_some_and(|state| {
            state.promised == ballot && state.pending.as_ref().is_none_or(|pending| pending.record.ballot < ballot)
        }) && stored.ballot() < ballot
            && ballot > self.refused_upto(address, stored);
        if ballot <= effective && !again {
            return Ok(self.refuse(ballot, Refusal::Outbid, effective));
        }
        self.promise(address, ballot)?;
        let (vote, on_disk) = self.vote(address, holds, stored);
        let covered = self.cover(ballot, now);
        Ok(Sealed::new(covered.max(on_disk), Body::Promised { ballot, vote }))
    }

    /// Rule 3, and the granting half of rule 5.
    pub fn on_accept(
        &mut self,
        now: Now,
        address: &Address,
        record: Record,
        next: Option<Ballot>,
        stored: &Stored,
    ) -> Result<Sealed<Body>, BrokenRule> {
        let ballot = record.ballot;
        if self.is_ahead(ballot, now) {
            return Ok(self.refuse(ballot, Refusal::ClockAhead, Ballot::ZERO));
        }
        if let Some(again) = self.acknowledge_again(now, address, &record, stored)? {
            return Ok(again);
        }
        let effective = self.effective(address, stored);
        let is_promised = self.keys.get(address).is_some_and(|state| state.promised == ballot)
            && effective == ballot
            && ballot > self.refused_upto(address, stored);
        if ballot <= effective && !is_promised {
            return Ok(self.refuse(ballot, Refusal::Outbid, effective));
        }
        let granted = next.filter(|next| *next > ballot && !self.is_ahead(*next, now));
        self.cover(granted.unwrap_or(ballot), now);
        let lsn = self.append(Entry::Accepted(address.clone(), record.clone()));
        self.promise(address, granted.unwrap_or(ballot))?;
        self.set_pending(address, Pending { record, lsn, chosen: false, since: now.monotonic });
        Ok(Sealed::new(lsn, Body::Accepted { ballot, granted: granted.is_some() }))
    }

    /// Answers a Read: what is held, once all of it is on disk (rule 6).
    pub fn on_read(&self, address: &Address, round: Ballot, holds: Option<Ballot>, stored: &Stored) -> Sealed<Body> {
        let (vote, on_disk) = self.vote(address, holds, stored);
        Sealed::new(on_disk, Body::Held { round, vote })
    }

    /// Learns that the record of `ballot` is chosen.
    pub fn on_commit(&mut self, address: &Address, ballot: Ballot, stored: &Stored) -> Learned {
        if stored.ballot() >= ballot {
            return Learned::Known;
        }
        let Some(pending) = self.keys.get_mut(address).and_then(|state| state.pending.as_mut()) else {
            return Learned::Missing;
        };
        if pending.record.ballot < ballot {
            return Learned::Missing;
        }
        if pending.chosen || pending.record.ballot > ballot {
            return Learned::Known;
        }
        pending.chosen = true;
        let commit = Sealed::new(pending.lsn, Commit { address: address.clone(), record: pending.record.clone() });
        self.append(Entry::Committed(address.clone(), ballot));
        Learned::Commit(commit)
    }

    /// Rule 8: takes in a record known to be chosen, whatever was promised, unless it is of a key whose deletion has been
    /// forgotten since. It never becomes a vote of its own.
    pub fn install(&mut self, now: Now, address: &Address, record: Record, stored: &Stored) -> Option<Sealed<Commit>> {
        let pending = self.keys.get_mut(address).and_then(|state| state.pending.as_mut());
        let known = pending.as_ref().is_some_and(|p| p.chosen && p.record.ballot >= record.ballot);
        if known || stored.ballot() >= record.ballot {
            return None;
        }
        let voted = pending.map(|pending| (pending.record.ballot, pending.lsn));
        let lsn = self.append(Entry::Chosen(address.clone(), record.clone()));
        if voted.is_none_or(|(ballot, _)| ballot <= record.ballot) {
            // One that was voted for here is on the disk from then on.
            let on_disk = voted.filter(|(ballot, _)| *ballot == record.ballot).map_or(lsn, |(_, lsn)| lsn);
            let pending = Pending { record: record.clone(), lsn: on_disk, chosen: true, since: now.monotonic };
            self.set_pending(address, pending);
        }
        Some(Sealed::new(lsn, Commit { address: address.clone(), record }))
    }

    /// Learns that a chosen record is in its shard, so that it need not be kept here.
    pub fn on_applied(&mut self, commit: &Commit) {
        let Commit { address, record } = commit;
        self.remember_lineage(address, record);
        self.on_stored(address, record.ballot);
    }

    /// Learns that the shard holds a record as new as `ballot`: what is older here is superseded. After a restart that
    /// is how a record ends whose commit reached the shard file and not the journal.
    pub fn on_stored(&mut self, address: &Address, ballot: Ballot) {
        let Some(state) = self.keys.get_mut(address) else { return };
        if state.pending.as_ref().is_some_and(|pending| pending.record.ballot <= ballot) {
            let gone = state.pending.take().map_or(0, |pending| pending.record.op.weight());
            self.pending -= 1;
            self.pending_bytes = self.pending_bytes.saturating_sub(gone);
        }
        if state.pending.is_none() && state.promised <= ballot {
            self.keys.remove(address);
        }
    }

    /// Lets votes go that count no more, as others decide on the keys of these shards now, who know what became of them: were one of
    /// them there still when this node decides again, it might be above what was chosen meanwhile.
    /// Returns the keys, and what was voted for. What is known to be chosen stays until it is applied.
    pub fn let_go(&mut self, decides: impl Fn(&ShardId) -> bool) -> Vec<(Address, Ballot)> {
        let is_vain = |address: &Address, pending: &Pending| !pending.chosen && !decides(&address.shard);
        let mut gone = Vec::new();
        for (address, state) in &mut self.keys {
            let Some(pending) = state.pending.take_if(|pending| is_vain(address, pending)) else { continue };
            self.pending -= 1;
            self.pending_bytes = self.pending_bytes.saturating_sub(pending.record.op.weight());
            gone.push((address.clone(), pending.record.ballot));
        }
        for (address, ballot) in &gone {
            self.append(Entry::Dropped(address.clone(), *ballot));
        }
        gone
    }

    /// Some keys whose record has been pending since before `before`, at most `limit` (rule 7).
    pub fn stale(&self, before: Duration, limit: usize) -> Vec<Address> {
        let stale = |state: &KeyState| state.pending.as_ref().is_some_and(|p| !p.chosen && p.since <= before);
        self.keys.iter().filter(|(_, state)| stale(state)).map(|(address, _)| address.clone()).take(limit).collect()
    }

    /// The keys of `shard` with a pending record, and its ballot.
    pub fn pending_of<'a>(&'a self, shard: &'a ShardId) -> impl Iterator<Item = (Address, Ballot)> + 'a {
        let of_shard = self.keys.iter().filter(move |(address, _)| address.shard == *shard);
        of_shard.filter_map(|(address, state)| Some((address.clone(), state.pending.as_ref()?.record.ballot)))
    }

    /// Every pending record's key and ballot.
    pub fn all_pending(&self) -> impl Iterator<Item = (Address, Ballot)> {
        self.keys.iter().filter_map(|(address, state)| Some((address.clone(), state.pending.as_ref()?.record.ballot)))
    }

    /// Every pending record and every refusal, for a journal that gives up its old segments.
    pub fn kept_entries(&self) -> Vec<Entry> {
        let entry = |(address, state): (&Address, &KeyState)| {
            let Pending { record, chosen, .. } = state.pending.as_ref()?;
            let (address, record) = (address.clone(), record.clone());
            Some(if *chosen { Entry::Chosen(address, record) } else { Entry::Accepted(address, record) })
        };
        let refused = self.refused.iter().map(|(shard, upto)| Entry::Refused(shard.clone(), *upto));
        self.keys.iter().filter_map(entry).chain(refused).collect()
    }

    pub(super) fn effective(&self, address: &Address, stored: &Stored) -> Ballot {
        let state = self.keys.get(address);
        let promised = state.map_or(Ballot::ZERO, |state| state.promised);
        let accepted = state.and_then(|state| state.pending.as_ref()).map_or(Ballot::ZERO, |p| p.record.ballot);
        promised.max(accepted).max(stored.ballot()).max(self.refused_upto(address, stored))
    }

    fn vote(&self, address: &Address, holds: Option<Ballot>, stored: &Stored) -> (Vote, Lsn) {
        let pending = self.keys.get(address).and_then(|state| state.pending.as_ref());
        match (pending, &stored.row) {
            (Some(pending), _) if stored.ballot() < pending.record.ballot => {
                (Vote::of_record(&pending.record, pending.chosen, holds), pending.lsn)
            }
            (_, Some(row)) => (Vote::of_row(row, self.lineage(address, row.ballot), holds), Lsn(0)),
            (_, None) => (Vote::Absent(stored.floor), Lsn(0)),
        }
    }

    fn acknowledge_again(
        &mut self,
        now: Now,
        address: &Address,
        record: &Record,
        stored: &Stored,
    ) -> Result<Option<Sealed<Body>>, BrokenRule> {
        let again = Body::Accepted { ballot: record.ballot, granted: false };
        if let Some(pending) = self.keys.get(address).and_then(|state| state.pending.as_ref())
            && pending.record.ballot == record.ballot
        {
            // Learnt from a row, a record may be here before its Accept, and without its lineage.
            if !pending.record.is_same_vote(record) {
                return Err(BrokenRule::TwoRecords { address: address.clone(), ballot: record.ballot });
            }
            let on_disk = pending.lsn;
            return Ok(Some(Sealed::new(on_disk.max(self.cover(record.ballot, now)), again)));
        }
        let is_committed = stored.row.as_ref().is_some_and(|row| row.ballot == record.ballot);
        Ok(is_committed.then(|| Sealed::new(self.cover(record.ballot, now), again)))
    }

    fn refuse(&self, ballot: Ballot, why: Refusal, above: Ballot) -> Sealed<Body> {
        Sealed::new(Lsn(0), Body::Refused { ballot, above, why })
    }

    fn promise(&mut self, address: &Address, ballot: Ballot) -> Result<(), BrokenRule> {
        if ballot <= self.floor {
            return Err(BrokenRule::BelowFloor { address: address.clone(), ballot, floor: self.floor });
        }
        let state = self.keys.entry(address.clone()).or_default();
        if state.promised >= ballot {
            return Ok(());
        }
        state.promised = ballot;
        self.promises.push_back((ballot, address.clone()));
        while self.promises.len() > self.config.promises_max {
            self.forget_oldest_promise();
        }
        Ok(())
    }

    /// Forgetting a promise raises the floor to it, so that it stays kept (rule 2).
    pub(super) fn forget_oldest_promise(&mut self) {
        let Some((ballot, address)) = self.promises.pop_front() else { return };
        let Some(state) = self.keys.get_mut(&address).filter(|state| state.promised == ballot) else { return };
        self.floor = self.floor.max(ballot);
        state.promised = Ballot::ZERO;
        if state.pending.is_none() {
            self.keys.remove(&address);
        }
    }

    pub(super) fn set_pending(&mut self, address: &Address, pending: Pending) {
        let state = self.keys.entry(address.clone()).or_default();
        self.pending_bytes += pending.record.op.weight();
        if let Some(replaced) = state.pending.replace(pending) {
            self.pending_bytes = self.pending_bytes.saturating_sub(replaced.record.op.weight());
        } else {
            self.pending += 1;
        }
    }

    fn lineage(&self, address: &Address, ballot: Ballot) -> Lineage {
        let known = self.lineages.get(address).filter(|(of, _)| *of == ballot);
        known.map_or_else(Lineage::default, |(_, lineage)| lineage.clone())
    }

    fn remember_lineage(&mut self, address: &Address, record: &Record) {
        if self.lineages.get(address).is_some_and(|(of, _)| *of >= record.ballot) {
            return;
        }
        self.lineages.insert(address.clone(), (record.ballot, record.lineage.clone()));
        self.lineage_order.push_back((record.ballot, address.clone()));
        while self.lineage_order.len() > self.config.lineages_max {
            let Some((ballot, address)) = self.lineage_order.pop_front() else { break };
            if self.lineages.get(&address).is_some_and(|(of, _)| *of == ballot) {
                self.lineages.remove(&address);
            }
        }
    }

    pub(super) fn append(&mut self, entry: Entry) -> Lsn {
        self.entries.push(entry);
        self.appended = Lsn(self.appended.0 + 1);
        self.appended
    }

    fn append_ceiling(&mut self, ceiling: Ballot) -> Lsn {
        let lsn = self.append(Entry::Ceiling(ceiling));
        self.ceilings_appended.push_back((ceiling, lsn));
        lsn
    }

    /// The place after which `ballot` is under the durable ceiling; extends the ceiling where it is not yet.
    fn cover(&mut self, ballot: Ballot, now: Now) -> Lsn {
        if ballot <= self.ceiling {
            return Lsn(0);
        }
        let appended = self.ceilings_appended.iter().find(|(ceiling, _)| ballot <= *ceiling).map(|(_, lsn)| *lsn);
        appended.unwrap_or_else(|| self.append_ceiling(ballot.max(self.led(now))))
    }

    fn led(&self, now: Now) -> Ballot {
        Ballot(now.wall.saturating_add(nanos(self.config.ceiling_lead)))
    }

    fn is_ahead(&self, ballot: Ballot, now: Now) -> bool {
        ballot.nanos().saturating_sub(now.wall) > nanos(self.config.max_skew)
    }
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}
