//! Who is there and whose votes count: meeting a peer, losing it, and being barred oneself.

use std::collections::BTreeSet;

use tokio::sync::oneshot;

use super::{Core, Effect};
use crate::clock::Now;
use crate::cluster::hello::Hello;
use crate::cluster::memory::Standing;
use crate::replication::quorum::peers::{Link, Peer, Stamp};
use crate::types::NodeId;

impl Core {
    pub(super) fn on_up(&mut self, now: Now, node: &NodeId, hello: &[u8]) {
        let Some(index) = self.index(node) else { return };
        if let Some(accused) = self.rooms.greeter.accused() {
            self.bar(accused);
        }
        let memories = self.disk.remember(self.rooms.greeter.take_unsaved());
        let standing = self.rooms.greeter.standing(node);
        let Some(Some(peer)) = self.peers.get_mut(index) else { return };
        if let Ok(hello) = Hello::decode(hello) {
            peer.storage_id = Some(hello.storage_id);
            peer.set_skew(hello.wall.saturating_sub(now.wall));
        }
        peer.not_compared();
        peer.link = match (standing, memories) {
            (Standing::Forgot { reason }, _) => {
                tracing::error!(peer = %node, reason, "the votes of this peer do not count: its disk has forgotten");
                Link::Forgot
            }
            (Standing::Good, Some(needed)) => Link::Meeting(needed),
            (Standing::Good, None) => Link::Up,
        };
        tracing::debug!(peer = %node, "peer found");
        if peer.link != Link::Forgot {
            self.catch_up(index, node.clone());
        }
        self.correct_time();
        self.update_reachable();
        let known: Vec<_> = self.unmet.extract_if(.., |(unmet, _)| *unmet == index).collect();
        for (_, met) in known {
            self.meet(now, node, met);
        }
    }

    /// Says so once everything chosen before this moment is visible, to a peer that is told what is chosen from now on.
    pub(super) fn meet(&mut self, now: Now, node: &NodeId, met: oneshot::Sender<()>) {
        let Some(index) = self.index(node).filter(|_| !self.disk.is_dead()) else { return };
        if self.peers.get(index).is_some_and(|peer| peer.as_ref().is_some_and(Peer::is_live)) {
            let sealed = self.acceptor.after_all(Effect::Done(met));
            self.take(now, sealed);
        } else {
            self.unmet.push((index, met));
        }
    }

    /// Rule 12: stops voting for good, and says so.
    pub(super) fn bar(&mut self, why: String) {
        if self.barred.is_some() {
            return;
        }
        tracing::error!(why, "this node stops voting");
        self.disk.bar(&why);
        self.barred = Some(why);
        self.update_reachable();
    }

    pub(in crate::replication::quorum) fn bar_at_start(&mut self, damage: Option<String>) {
        if let Some(why) = damage {
            self.bar(why);
        }
    }

    pub(super) fn update_reachable(&mut self) {
        self.has_news = true;
        self.proposer.set_reachable(if self.barred.is_some() { BTreeSet::new() } else { self.reachable() });
    }

    /// The replicas whose votes can be had now.
    pub(super) fn reachable(&self) -> BTreeSet<usize> {
        let votes = |(replica, peer): (usize, &Option<Peer>)| {
            peer.as_ref().map_or(self.barred.is_none(), Peer::votes).then_some(replica)
        };
        self.peers.iter().enumerate().filter_map(votes).collect()
    }

    pub(super) fn live(&self) -> usize {
        self.peers.iter().flatten().filter(|peer| peer.is_live()).count()
    }

    pub(super) fn stamp(&self, now: Now) -> Stamp {
        Stamp { epoch: self.config.membership.epoch(), wall: now.wall }
    }

    pub(super) fn index(&self, node: &NodeId) -> Option<usize> {
        self.config.membership.voters().iter().position(|voter| voter == node)
    }
}
