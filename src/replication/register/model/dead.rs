//! Messages that change nothing any more, whenever they arrive: without them there are far fewer states.

use std::rc::Rc;

use super::faults::Fault;
use super::world::{Packet, World};
use crate::replication::register::Body;
use crate::replication::register::round::Phase;
use crate::types::Ballot;

impl World {
    /// An answer to a question that its proposer does not ask any more changes nothing, now or ever: ballots are never
    /// asked about twice.
    pub(super) fn is_dead(&self, to: usize, body: &Body) -> bool {
        let queue = self.nodes[to].proposer.keys.values().next();
        let round = queue.and_then(|queue| queue.round.as_ref());
        match (body, round.map(|round| (round.ballot, &round.phase))) {
            (Body::Promised { ballot, .. }, Some((asked, Phase::Preparing(_)))) => *ballot != asked,
            (Body::Held { round, .. }, Some((asked, Phase::Reading(_)))) => *round != asked,
            (Body::Accepted { ballot, .. }, Some((asked, Phase::Accepting(_)))) => *ballot != asked,
            (Body::Refused { ballot, .. }, Some((asked, Phase::Preparing(_) | Phase::Accepting(_)))) => {
                *ballot != asked
            }
            (Body::Promised { .. } | Body::Held { .. } | Body::Accepted { .. } | Body::Refused { .. }, _) => true,
            _ => false,
        }
    }

    /// A question that its acceptor can only refuse, whose asker does not care any more, changes nothing either. What an
    /// acceptor refuses it refuses for ever, unless it crashes before that is on its disk, or a fault makes it forget.
    fn is_moot(&self, packet: &Packet) -> bool {
        let Packet { from, to, message, .. } = packet;
        let forgetful = self.left.crashes > 0 || self.scenario.fault.is_some_and(Fault::forgets);
        let node = &self.nodes[*to];
        let refuses = |ballot: Ballot| !forgetful && node.acceptor.effective(&message.address, &node.known()) > ballot;
        let asks = |ballot: Ballot| {
            let round = self.nodes[*from].proposer.keys.values().next().and_then(|queue| queue.round.as_ref());
            round.is_some_and(|round| round.ballot == ballot)
        };
        match &message.body {
            Body::Prepare { ballot, .. } => !asks(*ballot) && refuses(*ballot),
            Body::Accept { record, .. } => !asks(record.ballot) && refuses(record.ballot),
            Body::Read { round, .. } => !asks(*round),
            Body::Commit { ballot } => !forgetful && node.known().ballot() >= *ballot,
            Body::Chosen { record } => !forgetful && node.known().ballot() >= record.ballot,
            _ => false,
        }
    }

    pub(super) fn forget_dead_messages(&mut self, n: usize) {
        let network = std::mem::take(&mut self.network);
        let touched = |packet: &Packet| packet.to == n || packet.from == n;
        let is_dead = |packet: &Packet| packet.to == n && self.is_dead(n, &packet.message.body);
        let alive = |packet: &Rc<Packet>| !(is_dead(packet) || touched(packet) && self.is_moot(packet));
        let network = network.into_iter().filter(alive).collect();
        self.network = network;
    }
}
