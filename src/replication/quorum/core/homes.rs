//! Keys that many nodes write at once (the end of rule 4): their updates go to one home proposer, where they queue and
//! fold instead of colliding. A hint: safety never depends on who proposes.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::{Core, Reply, Waiting};
use crate::clock::Now;
use crate::cluster::membership::Member;
use crate::replication::quorum::clients::AtHome;
use crate::replication::quorum::peers::Peer;
use crate::replication::register::{Address, Body, Message, OpId};
use crate::store::Stored;
use crate::store::replicator::{Decision, Rejection};
use crate::store::update::Update;
use crate::types::{Ballot, NodeId};

/// How long a key counts as contended after a round for it lost, at first. Each time that it is contended again soon after
/// that, it counts as such for twice as long: every end of it is a moment at which all collide anew.
const CONTENDED_FOR_MIN: Duration = Duration::from_secs(1);
/// And at most.
const CONTENDED_FOR_MAX: Duration = Duration::from_secs(60);
/// Forwarded updates remembered of each peer.
const FORWARDED_MAX: usize = 4096;
/// Keys remembered as contended.
const CONTENDED_KEYS_MAX: usize = 4096;

/// The keys whose rounds lost lately.
#[derive(Debug, Default)]
pub(super) struct Contended(HashMap<Address, Mark>);

#[derive(Debug, Clone, Copy)]
struct Mark {
    /// How long it counts.
    period: Duration,
    /// Until when it does.
    until: Duration,
}

impl Mark {
    /// When there is nothing left to learn from it.
    fn forgotten(self) -> Duration {
        self.until + self.period
    }
}

impl Contended {
    pub(super) fn mark(&mut self, now: Duration, address: Address) {
        if self.0.len() >= CONTENDED_KEYS_MAX {
            self.0.retain(|_, mark| mark.forgotten() > now);
        }
        let period = match self.0.get(&address) {
            Some(mark) if now < mark.until => mark.period,
            Some(mark) if now < mark.forgotten() => (mark.period * 2).min(CONTENDED_FOR_MAX),
            _ => CONTENDED_FOR_MIN,
        };
        if self.0.len() < CONTENDED_KEYS_MAX || self.0.contains_key(&address) {
            self.0.insert(address, Mark { period, until: now + period });
        }
    }

    fn is_marked(&self, now: Duration, address: &Address) -> bool {
        self.0.get(address).is_some_and(|mark| mark.until > now)
    }
}

/// The updates that peers have forwarded here, the latest of each: one that comes twice must not be made twice.
#[derive(Debug, Default)]
pub(super) struct Forwarded(HashMap<usize, BTreeSet<u64>>);

impl Forwarded {
    /// Whether it was not seen before. A peer's numbers rise, restarts included.
    fn is_new(&mut self, from: usize, number: u64) -> bool {
        let seen = self.0.entry(from).or_default();
        if seen.len() >= FORWARDED_MAX && seen.first().is_some_and(|oldest| number < *oldest) {
            // Older than all that is remembered: nobody waits for it any more.
            return false;
        }
        let is_new = seen.insert(number);
        if seen.len() > FORWARDED_MAX {
            seen.pop_first();
        }
        is_new
    }
}

impl Core {
    /// The replica that an update of this key had better go to, where that is another one and in reach.
    pub(super) fn busier_home(&self, now: Now, address: &Address) -> Option<usize> {
        if !self.contended.is_marked(now.monotonic, address) {
            return None;
        }
        // Where the home cannot be had, or will not for long, all go to the next best: they would collide here.
        let is_fit = |member: &Member| match self.peers.get(&member.replica()) {
            Some(peer) => peer.votes() && !peer.is_leaving,
            None => self.me == Some(member.replica()),
        };
        let home = self.membership().home(&address.shard, &address.key, is_fit)?.replica();
        Some(home).filter(|home| self.me != Some(*home))
    }

    /// Takes note of the peers to which nothing had better be forwarded.
    pub(super) fn avoid(&mut self, nodes: &[NodeId]) {
        for peer in self.peers.values_mut() {
            peer.is_leaving = nodes.contains(&peer.node);
        }
    }

    pub(super) fn forward(
        &mut self,
        now: Now,
        home: usize,
        address: Address,
        id: OpId,
        update: Update,
        within: Duration,
    ) {
        self.metrics.forwarded += 1;
        if let Some(client) = self.clients.get_mut(id) {
            client.at_home = Some(AtHome { home, address: address.clone(), update: update.clone() });
        }
        let within_ms = u32::try_from(within.as_millis()).unwrap_or(u32::MAX);
        self.send(now, home, Message { address, body: Body::Propose { id: id.0, update, within_ms } });
    }

    /// Proposes a forwarded update here after all: its home has done nothing of it and will not.
    fn take_back(&mut self, id: OpId) {
        let Some(client) = self.clients.get_mut(id) else { return };
        let deadline = client.deadline;
        if let Some(AtHome { address, update, .. }) = client.at_home.take() {
            self.proposer.propose(address, id, update, deadline);
        }
    }

    /// Proposes here what was to be forwarded and never left this node.
    pub(super) fn take_back_unsent(&mut self) -> bool {
        let unsent: Vec<u64> = self.peers.values_mut().flat_map(Peer::take_unsent).collect();
        unsent.iter().for_each(|id| self.take_back(OpId(*id)));
        !unsent.is_empty()
    }

    /// Ends what was forwarded to a home whose connection is lost: no answer will come, and what became of it is unknown.
    pub(super) fn home_lost(&mut self, now: Now, home: usize) {
        self.take_back_unsent();
        for id in self.clients.at_home(home) {
            self.decide(now, id, Decision::Timeout, Ballot::ZERO);
        }
    }

    /// Proposes an update for another replica's client.
    pub(super) fn propose_for(
        &mut self,
        now: Now,
        from: usize,
        number: u64,
        address: Address,
        update: Update,
        within_ms: u32,
    ) {
        if !self.forwarded.is_new(from, number) {
            return;
        }
        if let Some(rejection) = self.unfit(update.is_read()) {
            return self.decide_for(now, from, number, address, Decision::Reject(rejection), Ballot::ZERO);
        }
        let within = Duration::from_millis(u64::from(within_ms));
        let reply = Reply::Peer { peer: from, number, address: address.clone() };
        let (id, deadline) = self.admit(now, reply, within, update.is_read());
        self.proposer.propose(address, id, update, deadline);
    }

    /// Tells another replica what became of an update that it had forwarded here.
    pub(super) fn decide_for(
        &mut self,
        now: Now,
        to: usize,
        id: u64,
        address: Address,
        decision: Decision,
        ballot: Ballot,
    ) {
        if ballot > Ballot::ZERO {
            // Whatever the answer stands on must be visible there before its client is told.
            self.send(now, to, Message { address: address.clone(), body: Body::Commit { ballot } });
        }
        self.send(now, to, Message { address, body: Body::Decided { id, decision, ballot } });
    }

    /// What became of an update that this node had forwarded.
    pub(super) fn decided_at_home(
        &mut self,
        now: Now,
        id: OpId,
        address: Address,
        decision: Decision,
        ballot: Ballot,
        stored: &Stored,
    ) {
        if matches!(decision, Decision::Reject(Rejection::Busy(_) | Rejection::NoQuorum(_) | Rejection::DiskFull(_))) {
            // That is how things are there, not here: it may be leaving, or cut off from the others.
            return self.take_back(id);
        }
        if let Some(client) = self.clients.get_mut(id) {
            client.at_home = None;
        }
        if stored.ballot() >= ballot {
            return self.decide(now, id, decision, ballot);
        }
        self.waiting.entry(address).or_default().push(Waiting { ballot, decisions: vec![(id, decision)] });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Key, ShardId};

    /// A key that all nodes write at all times was fought over every second.
    #[test]
    fn a_key_contended_again_and_again_counts_as_such_for_longer_and_longer() {
        let address = Address { shard: ShardId::parse("", "a").unwrap(), key: Key::parse("k").unwrap() };
        let mut contended = Contended::default();
        let seconds = Duration::from_secs;
        let mut now = seconds(100);
        for period in [1, 2, 4, 8, 16, 32, 60, 60] {
            // Those who lose in the same moment count once.
            contended.mark(now, address.clone());
            contended.mark(now, address.clone());
            assert!(contended.is_marked(now + seconds(period) - Duration::from_millis(1), &address), "{period}");
            now += seconds(period);
            assert!(!contended.is_marked(now, &address), "{period}");
        }
        now += seconds(60);
        contended.mark(now, address.clone());
        assert!(!contended.is_marked(now + seconds(1), &address), "long ago is forgotten");
    }

    /// A forwarded increment that came twice counted twice.
    #[test]
    fn what_comes_twice_is_new_once() {
        let mut forwarded = Forwarded::default();
        assert!(forwarded.is_new(1, 7) && forwarded.is_new(2, 7) && forwarded.is_new(1, 6));
        assert!(!forwarded.is_new(1, 7) && !forwarded.is_new(1, 6));
        assert!((10..10 + FORWARDED_MAX as u64).all(|number| forwarded.is_new(1, number)));
        assert!(!forwarded.is_new(1, 7), "nor when it comes so late that it was forgotten");
        assert!(forwarded.is_new(1, 100_000));
    }
}
