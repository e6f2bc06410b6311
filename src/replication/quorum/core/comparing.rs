//! Whose rows are compared with ours, and what came of it.

use tokio::task::Id;

use super::Core;
use crate::clock::Now;
use crate::replication::quorum::catch_up::catch_up;
use crate::replication::quorum::peers::{Link, Peer};
use crate::replication::repair::Seen;
use crate::store::digest::Root;
use crate::types::NodeId;

impl Core {
    /// Compares rows with a peer's from now on, in place of what was under way with it.
    pub(super) fn catch_up(&mut self, index: usize, node: NodeId) {
        let is_level = self.status().level().is_ok();
        let Some(peer) = self.peers.get_mut(&index).filter(|peer| peer.is_live() && peer.link != Link::Forgot) else {
            return;
        };
        peer.stop_comparing();
        peer.comparing = Some(tokio::spawn(catch_up(index, node, self.rooms.clone(), is_level)).abort_handle());
    }

    /// Compares rows with everybody again, as some may have been missed while connected.
    pub(super) fn compare_anew(&mut self) {
        for index in self.peers.keys().copied().collect::<Vec<_>>() {
            let Some(peer) = self.peers.get_mut(&index) else { continue };
            if peer.is_live() && peer.link != Link::Forgot {
                peer.not_compared();
                let node = peer.node.clone();
                self.catch_up(index, node);
            }
        }
    }

    /// What a peer had and this node had missed is here.
    pub(super) fn caught_up(&mut self, peer: usize, task: Id, rows: u64) {
        let Some(peer) = self.compared_by(peer, task) else { return };
        if !peer.caught_up || rows > 0 {
            tracing::info!(peer = %peer.node, rows, "caught up");
        }
        peer.caught_up = true;
        peer.is_levelled = true;
        self.has_news = true;
        if self.is_level_since_it_gained() {
            self.rooms.copies.set_level(true);
        }
    }

    /// True where rows have been compared, since this node came to replicate what it does, with so many voters that they include
    /// a majority of the replicas of any shard.
    fn is_level_since_it_gained(&self) -> bool {
        let is_level = |peer: &Peer| peer.caught_up && peer.is_levelled;
        let has = |slot| self.me == Some(slot) || self.peers.get(&slot).is_some_and(is_level);
        self.membership().placement().is_enough(has)
    }

    /// All rows were compared: both have the same, or the peer has missed some.
    pub(super) fn compared(&mut self, peer: usize, task: Id, same: bool) {
        let Some(peer) = self.compared_by(peer, task) else { return };
        tracing::debug!(peer = %peer.node, same, "all rows were compared");
        peer.in_step = same;
        self.has_news = true;
    }

    /// The peer, unless what is said is of a comparison over a connection that has since been lost, which says nothing.
    fn compared_by(&mut self, peer: usize, task: Id) -> Option<&mut Peer> {
        let peer = self.peers.get_mut(&peer)?;
        let is_current = peer.comparing.as_ref().is_some_and(|current| current.id() == task);
        is_current.then_some(peer)
    }

    /// Looks at the roots of all rows here, and on those peers that hold the same shards.
    pub(super) fn look(&mut self, now: Now, mine: Option<Root>, theirs: &[(NodeId, Option<Root>)]) {
        let even: Vec<NodeId> = {
            let holding = self.rooms.holding();
            self.peers.values().map(|peer| peer.node.clone()).filter(|node| holding.is_even(node)).collect()
        };
        for node in even {
            let theirs = theirs.iter().find(|(of, _)| *of == node).and_then(|(_, root)| *root);
            self.look_at(now, &node, mine, theirs);
        }
    }

    /// Looks at the roots of what both this node and that peer hold.
    pub(super) fn look_at(&mut self, now: Now, node: &NodeId, mine: Option<Root>, theirs: Option<Root>) {
        let Some(index) = self.index(node) else { return };
        let Some(peer) = self.peers.get_mut(&index) else { return };
        let is_comparing = peer.comparing.as_ref().is_some_and(|task| !task.is_finished());
        if is_comparing || !peer.caught_up {
            return;
        }
        match peer.doubt.look(now.monotonic, peer.in_step, mine, theirs) {
            Seen::Same => {
                self.has_news |= !peer.in_step;
                peer.in_step = true;
            }
            Seen::Unsure => {}
            Seen::Compare => self.catch_up(index, node.clone()),
        }
    }
}
