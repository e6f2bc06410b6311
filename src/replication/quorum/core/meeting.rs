//! Who is there and whose votes count: meeting a peer, losing it, and being barred oneself.

use std::collections::BTreeSet;

use tokio::sync::oneshot;

use super::{Core, Effect};
use crate::clock::Now;
use crate::cluster::hello::Hello;
use crate::cluster::memory::Standing;
use crate::replication::quorum::peers::{Link, Stamp};
use crate::types::{NodeId, Slot, StorageId};

impl Core {
    pub(super) fn on_up(&mut self, now: Now, node: &NodeId, hello: &[u8]) {
        if let Some(accused) = self.rooms.greeter.accused() {
            self.bar(accused);
        }
        if self.me.is_some() && self.rooms.greeter.slot().is_none() {
            self.displaced();
        }
        // Of the disk that was there, if another is now.
        self.note_votes();
        // The transport has decoded it before it said that the peer is there.
        let Ok(hello) = Hello::decode(hello) else { return };
        self.connected.insert(node.clone(), hello.storage_id);
        self.rooms.greeter.met(node, hello.storage_id);
        self.configuration.reconnected(node);
        self.see_epoch(now, node, hello.epoch);
        if hello.slot.is_none() {
            // It may have one by what is known here.
            self.tell_configuration(now, node);
        }
        self.connect(now, node, hello.storage_id, Some(hello.wall));
        let known: Vec<_> = self.unmet.extract_if(.., |(unmet, _)| unmet == node).collect();
        for (_, met) in known {
            self.meet(now, node, met);
        }
    }

    /// What is connected, with this disk, may be a member: then it is met in its place.
    pub(super) fn connect(&mut self, now: Now, node: &NodeId, disk: StorageId, wall: Option<i64>) {
        let memories = self.disk.remember(self.rooms.greeter.take_unsaved());
        let Some(index) = self.index(node) else { return };
        let standing = self.rooms.greeter.standing(node);
        let Some(peer) = self.peers.get_mut(&index) else { return };
        peer.storage_id = Some(disk);
        if let Some(wall) = wall {
            peer.set_skew(wall.saturating_sub(now.wall));
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
    }

    /// Remembers how far the disks of those must be that have voted.
    pub(super) fn note_votes(&mut self) {
        for peer in self.peers.values_mut() {
            if let (Some(at), Some(disk)) = (peer.voted.take(), peer.storage_id) {
                self.rooms.greeter.voted(&peer.node, disk, at);
            }
        }
    }

    /// This disk is not the one that its node's name stands for: it votes for nothing and proposes nothing until it has got
    /// a slot of its own.
    fn displaced(&mut self) {
        let Some(why) = self.rooms.greeter.displaced() else { return };
        tracing::error!(why, "this node came back on another disk");
        self.disk.displace(why);
        self.find_own_slot();
        self.rooms.copies.set_holds_all(&self.rooms.holding());
        self.update_reachable();
    }

    /// Says so once everything chosen before this moment is visible, to a peer that is told what is chosen from now on.
    pub(super) fn meet(&mut self, now: Now, node: &NodeId, met: oneshot::Sender<()>) {
        if self.disk.is_dead() {
            return;
        }
        if self.connected.contains_key(node) {
            let sealed = self.acceptor.after_all(Effect::Done(met));
            self.take(now, sealed);
        } else {
            self.unmet.retain(|(_, met)| !met.is_closed());
            self.unmet.push((node.clone(), met));
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
        let may_ask = self.barred.is_none() && self.me.is_some();
        self.proposer.set_reachable(if may_ask { self.reachable() } else { BTreeSet::new() });
    }

    /// The replicas whose votes can be had now.
    pub(super) fn reachable(&self) -> BTreeSet<usize> {
        let peers = self.peers.iter().filter(|(_, peer)| peer.votes()).map(|(slot, _)| *slot);
        peers.chain(self.me.filter(|_| self.barred.is_none())).collect()
    }

    /// That a quorum is missing, if it is, and what of it.
    pub(super) fn no_quorum(&self) -> Option<String> {
        self.missing_voters().map(|why| format!("no quorum: {why}"))
    }

    /// What is missing of a quorum, if anything is.
    pub(super) fn missing_voters(&self) -> Option<String> {
        let (quorums, reachable) = (self.membership().quorums(), self.reachable());
        let lacks = !quorums.is_met(|slot| reachable.contains(&slot));
        let forgot = self.peers.values().filter(|peer| peer.link == Link::Forgot).map(|peer| peer.node.as_str());
        let forgot: Vec<&str> = forgot.collect();
        lacks.then(|| {
            let mut why = format!("in reach: {}", quorums.tell(|slot| reachable.contains(&slot)));
            if !forgot.is_empty() {
                why.push_str("; forgotten by their disks: ");
                why.push_str(&forgot.join(", "));
                why.push_str(". Bring the old disks back, or see `outrigger cluster recover --help`");
            }
            why
        })
    }

    /// With whom rows are still to be compared before this node has what a quorum has, if with anybody.
    pub(super) fn not_compared(&self) -> Option<String> {
        let quorums = self.membership().quorums();
        let has = |slot| self.me == Some(slot) || self.peers.get(&slot).is_some_and(|peer| peer.caught_up);
        (!quorums.is_met(has)).then(|| format!("comparing rows with the other replicas: {}", quorums.tell(has)))
    }

    pub(super) fn live(&self) -> usize {
        self.peers.values().filter(|peer| peer.is_live()).count()
    }

    pub(super) fn stamp(&self, now: Now) -> Stamp {
        Stamp { epoch: self.membership().epoch(), wall: now.wall }
    }

    /// The slot of the member that is connected as `node`.
    pub(super) fn index(&self, node: &NodeId) -> Option<usize> {
        self.membership().slot_of(node, *self.connected.get(node)?).map(Slot::replica)
    }
}
