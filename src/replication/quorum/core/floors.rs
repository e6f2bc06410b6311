//! The core's part in forgetting deletions (rule 10): it refuses, settles, and vouches for that.

use super::Core;
use crate::clock::Now;
use crate::cluster::membership::Member;
use crate::replication::quorum::floors::{Floors, Replicas};
use crate::replication::quorum::peers::Peer;
use crate::types::{Key, ShardId};

/// Stands for a whole shard where its home is looked for.
const ALL_KEYS: &str = "tombstones";

impl Core {
    /// Whoever asks for what can't be had is told by the end of his waiting.
    pub(super) fn on_floors(&mut self, now: Now, asked: Floors) {
        match asked {
            Floors::Replicas { shard, reply } => {
                // Whoever asked and has gone needs no answer.
                let _ = reply.send(self.all_replicas(&shard));
            }
            Floors::Refuse { shard, floor, epoch, done } => {
                let is_known = epoch.is_none_or(|epoch| epoch == self.membership().epoch());
                // One from the time to come would keep everybody out until then.
                let is_past = floor.nanos() < now.wall;
                // A write of this node's clients that has yet to be handed on would be lost to a deletion that nobody knows of.
                let is_handed_on = epoch.is_none() || self.outbox.oldest().is_none_or(|oldest| oldest > floor);
                if is_known
                    && is_past
                    && is_handed_on
                    && !self.disk.is_dead()
                    && self.acceptor.refuse_upto(&shard, floor)
                {
                    self.settle_upto(now, &shard, floor, done);
                }
            }
            Floors::Vouch { shard, floor, epoch, done } => {
                let is_same = epoch == self.membership().epoch() && self.barred.is_none();
                if is_same && self.acceptor.is_settled(&shard, floor) {
                    self.say_settled(now, done);
                }
            }
            Floors::Refusals { reply } => {
                // As above.
                let _ = reply.send(self.acceptor.refusing());
            }
            Floors::Raised { shard, floor } => self.acceptor.on_floor(&shard, floor),
        }
    }

    /// True where this node, of the replicas of a shard, is the one that does once what all of them could; a hint. `is_fit` says
    /// which others could.
    pub(super) fn is_home(&self, shard: &ShardId, is_fit: impl Fn(&Peer) -> bool) -> bool {
        let is_fit = |member: &Member| self.peers.get(&member.replica()).is_none_or(&is_fit);
        let home = Key::parse(ALL_KEYS).ok().and_then(|key| self.membership().home(shard, &key, is_fit));
        home.is_some_and(|home| self.me == Some(home.replica()))
    }

    /// All other replicas of a shard, where this one is its home, and all can be asked.
    fn all_replicas(&self, shard: &ShardId) -> Option<Replicas> {
        let membership = self.membership();
        let is_home = self.is_home(shard, |_| true);
        // Observers take the floor over when they compare rows.
        let electors = self.proposer.electors(shard);
        let others = electors.replicas.iter().filter(|slot| Some(**slot) != self.me);
        let peers: Option<Vec<&Peer>> = others.map(|slot| self.peers.get(slot).filter(|peer| peer.votes())).collect();
        let is_settled = self.barred.is_none() && !membership.is_joint();
        let is_going = self.closing.is_some() || self.is_retiring;
        let peers = peers.filter(|_| is_home && is_settled && !is_going)?;
        Some(Replicas { peers: peers.into_iter().map(|peer| peer.node.clone()).collect(), epoch: membership.epoch() })
    }
}
