//! The acceptor's and learner's side: votes given, chosen records committed and made visible.

use super::{Core, Effect, PULLS_MAX};
use crate::clock::Now;
use crate::replication::register::{Address, Body, Commit, Learned, Lineage, Message, OpId, Record, Refusal, Sealed};
use crate::store::replicator::Frame;
use crate::store::{Stored, StoredRow};
use crate::types::{Ballot, NodeId, ShardId};

impl Core {
    /// What a message to the acceptor or learner of this node comes to.
    pub(super) fn on_message(&mut self, now: Now, from: usize, message: Message, stored: &Stored) {
        let Message { address, body } = message;
        if let Body::Prepare { ballot, .. } | Body::Accept { record: Record { ballot, .. }, .. } = &body
            && let Some(why) = self.refusal(&address.shard)
        {
            let body = Body::Refused { ballot: *ballot, above: Ballot::ZERO, why };
            return self.send(now, from, Message { address, body });
        }
        let answer = match body {
            Body::Prepare { ballot, holds } => self.acceptor.on_prepare(now, &address, ballot, holds, stored),
            Body::Accept { record, next } => self.acceptor.on_accept(now, &address, record, next, stored),
            Body::Read { round, holds } if self.barred.is_none() && self.me.is_some() => {
                Ok(self.acceptor.on_read(&address, round, holds, stored))
            }
            // From one that has not heard yet that it is not used here any more.
            Body::Commit { .. } if !self.is_told_of(&address.shard) && !self.rooms.copies.is_used(&address.shard) => {
                return;
            }
            Body::Commit { ballot } => {
                self.pass_on(now, from, &address, ballot);
                return match self.acceptor.on_commit(&address, ballot, stored) {
                    Learned::Known => {}
                    Learned::Commit(commit) => self.take(now, commit.map(Effect::Commit)),
                    // What cannot be stored must not be heaped up in memory either.
                    Learned::Missing if !self.has_room() => self.missed = true,
                    Learned::Missing => self.send(now, from, Message { address, body: Body::Pull { ballot } }),
                };
            }
            Body::Pull { ballot } => return self.on_pull(now, from, address, ballot, stored),
            Body::Chosen { .. } if !self.has_room() => {
                self.missed = true;
                return;
            }
            Body::Chosen { record } => {
                self.install(now, &address, record, stored);
                return;
            }
            Body::Propose { id, update, within_ms } => {
                return self.propose_for(now, from, id, address, update, within_ms);
            }
            Body::Decided { id, decision, ballot } => {
                if stored.ballot() < ballot && !self.is_told_of(&address.shard) {
                    // It may not have heard yet that this node is to be told of the shard.
                    self.send(now, from, Message { address: address.clone(), body: Body::Pull { ballot } });
                }
                return self.decided_at_home(now, OpId(id), address, decision, ballot, stored);
            }
            Body::Read { .. }
            | Body::Promised { .. }
            | Body::Held { .. }
            | Body::Accepted { .. }
            | Body::Refused { .. } => return,
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(broken) => return self.bar(broken.to_string()),
        };
        let epoch = self.membership().epoch();
        let answer = answer.map(|body| {
            self.metrics.clock_ahead(&body);
            Effect::Send { epoch, to: from, message: Message { address, body } }
        });
        self.take(now, answer);
    }

    /// Why this node does not vote on the keys of the shard just now.
    fn refusal(&self, shard: &ShardId) -> Option<Refusal> {
        if self.barred.is_some() || !self.decides_on(shard) {
            return Some(Refusal::Barred);
        }
        (self.disk.full().is_some() || self.is_overloaded()).then_some(Refusal::Full)
    }

    fn decides_on(&self, shard: &ShardId) -> bool {
        self.me.is_some_and(|me| self.proposer.electors(shard).replicas.contains(&me))
    }

    /// Whether this node is told of all that is chosen in the shard, used here or not.
    fn is_told_of(&self, shard: &ShardId) -> bool {
        shard.is_system() || self.decides_on(shard)
    }

    /// Tells observers of what another observer had chosen: they are not connected with each other.
    fn pass_on(&mut self, now: Now, from: usize, address: &Address, ballot: Ballot) {
        let membership = self.membership();
        let observes = |slot: &usize| !membership.is_voter(*slot);
        if !observes(&from) || !self.is_home(&address.shard, |peer| peer.votes()) {
            return;
        }
        let follows = |node: &NodeId| self.rooms.copies.is_followed_by(node, &address.shard);
        let others = self.peers.iter().filter(|(slot, peer)| **slot != from && observes(slot) && follows(&peer.node));
        for to in others.map(|(slot, _)| *slot).collect::<Vec<_>>() {
            self.send(now, to, Message { address: address.clone(), body: Body::Commit { ballot } });
        }
    }

    fn on_pull(&mut self, now: Now, from: usize, address: Address, ballot: Ballot, stored: &Stored) {
        match stored.row.as_ref().filter(|row| row.ballot >= ballot) {
            Some(row) => self.send(now, from, chosen(address, row)),
            // Deleted since, and forgotten: that is for the next comparison to tell.
            None if stored.ballot() >= ballot => {}
            // Chosen, but not on this disk yet: answered when it is.
            None if self.pulls.len() < PULLS_MAX => {
                let pulled = self.pulls.entry(address).or_default().entry(from).or_default();
                *pulled = ballot.max(*pulled);
            }
            None => {}
        }
    }

    fn answer_pulls(&mut self, now: Now, address: &Address, record: &Record) {
        let Some(pulling) = self.pulls.get_mut(address) else { return };
        let answered: Vec<usize> =
            pulling.extract_if(.., |_, ballot| *ballot <= record.ballot).map(|(to, _)| to).collect();
        if pulling.is_empty() {
            self.pulls.remove(address);
        }
        let row = StoredRow { op: record.op.clone(), upd: record.upd, ballot: record.ballot };
        for to in answered {
            self.send(now, to, chosen(address.clone(), &row));
        }
    }

    /// Commits a record that is chosen, from this node's own vote or from what the round brought.
    pub(super) fn learn(&mut self, now: Now, address: &Address, record: Record, stored: &Stored) {
        match self.acceptor.on_commit(address, record.ballot, stored) {
            Learned::Commit(commit) => self.take(now, commit.map(Effect::Commit)),
            Learned::Known | Learned::Missing => {
                self.install(now, address, record, stored);
            }
        }
    }

    /// Takes in a record that others know to be chosen; false where it is here already.
    pub(super) fn install(&mut self, now: Now, address: &Address, record: Record, stored: &Stored) -> bool {
        let commit = self.acceptor.install(now, address, record, stored);
        commit.map(|commit| self.take(now, commit.map(Effect::Commit))).is_some()
    }

    pub(super) fn take(&mut self, now: Now, sealed: Sealed<Effect>) {
        if let Some(effect) = self.sealed.push(sealed) {
            self.effect(now, effect);
        }
    }

    pub(super) fn effect(&mut self, now: Now, effect: Effect) {
        if self.is_stale(&effect) {
            return;
        }
        match effect {
            Effect::Send { to, message, .. } => match self.acceptor.check_leaving(&message) {
                Ok(()) => self.send(now, to, message),
                Err(broken) => self.bar(broken.to_string()),
            },
            Effect::Commit(commit) => self.commit(now, &commit),
            Effect::Accepted(accepted) => self.accepted(now, accepted),
            Effect::Done(done) => {
                // Whoever waited for it has gone: so be it.
                let _ = done.send(());
            }
        }
    }

    pub(super) fn send(&mut self, now: Now, to: usize, message: Message) {
        let stamp = self.stamp(now);
        match self.peers.get_mut(&to) {
            Some(peer) => peer.queue(message, stamp, &*self.rooms.transport),
            None if self.me == Some(to) => self.local.push_back(message),
            // Struck off the list meanwhile.
            None => {}
        }
    }

    /// A chosen record is on this disk: makes it visible, and tells who waits.
    pub(super) fn commit(&mut self, now: Now, commit: &Commit) {
        self.publish(commit);
        self.acceptor.on_applied(commit);
        let Commit { address, record } = commit;
        self.inherited_settled(address, record.ballot);
        self.see_configuration(now, address, record);
        self.settled(now, address, record.ballot);
        self.answer_pulls(now, address, record);
        let Some(waiting) = self.waiting.get_mut(address) else { return };
        let ready: Vec<_> = waiting.extract_if(.., |waiting| waiting.ballot <= record.ballot).collect();
        if waiting.is_empty() {
            self.waiting.remove(address);
        }
        for (id, decision) in ready.into_iter().flat_map(|ready| ready.decisions) {
            self.decide(now, id, decision, record.ballot);
        }
    }

    pub(super) fn publish(&mut self, commit: &Commit) {
        self.seq += 1;
        let Commit { address: Address { shard, key }, record } = commit;
        let Record { ballot, upd, op, .. } = record.clone();
        self.outbox.on_chosen(&commit.address, upd);
        let frame = Frame { shard: shard.clone(), seq: self.seq, key: key.clone(), op, upd, ballot };
        for subscriber in self.rooms.subscribers.read().iter() {
            subscriber.on_commit(&frame);
        }
    }

    pub(super) fn settled(&mut self, now: Now, address: &Address, ballot: Ballot) {
        for done in self.settling.settled(address, ballot) {
            self.say_settled(now, done);
        }
        if self.unsettled.get(address).is_some_and(|open| *open <= ballot) {
            self.unsettled.remove(address);
            self.has_news |= self.unsettled.is_empty();
            self.rooms.manager.settle(&address.shard, &address.key);
        }
    }
}

pub(super) fn chosen(address: Address, row: &StoredRow) -> Message {
    let StoredRow { op, upd, ballot } = row.clone();
    let record = Record { ballot, upd, op, lineage: Lineage::default() };
    Message { address, body: Body::Chosen { record } }
}
