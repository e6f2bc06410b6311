//! Who waits until everything of a shard that this node had accepted is committed here. Nothing is hurried for them: a
//! record's own proposer commits it, and where that has gone it is completed as any stale one.

use std::collections::HashMap;

use tokio::sync::oneshot;

use super::{Core, Effect};
use crate::clock::Now;
use crate::replication::quorum::level::Voters;
use crate::replication::register::Address;
use crate::types::{Ballot, ShardId};

/// How many may wait at once; further ones are turned away.
const SETTLING_MAX: usize = 64;

/// All who wait.
#[derive(Debug, Default)]
pub(super) struct Settling(Vec<Open>);

/// The records that one of them waits for. What commits a key at the ballot or above settles it: a later record builds
/// on what was chosen before.
#[derive(Debug)]
struct Open {
    records: HashMap<Address, Ballot>,
    done: oneshot::Sender<()>,
}

impl Settling {
    /// Takes note of a commit; returns those who have nothing left to wait for.
    pub(super) fn settled(&mut self, address: &Address, ballot: Ballot) -> Vec<oneshot::Sender<()>> {
        for open in &mut self.0 {
            if open.records.get(address).is_some_and(|record| *record <= ballot) {
                open.records.remove(address);
            }
        }
        let is_over = |open: &mut Open| open.records.is_empty() || open.done.is_closed();
        self.0.extract_if(.., is_over).map(|open| open.done).collect()
    }
}

impl Core {
    /// Says so once everything of `shard` that was accepted here up to that ballot, and before this moment, is visible.
    pub(super) fn settle_upto(&mut self, now: Now, shard: &ShardId, upto: Ballot, done: oneshot::Sender<()>) {
        let records = self.acceptor.pending_of(shard).filter(|(_, ballot)| *ballot <= upto).collect();
        self.settle_records(now, records, done);
    }

    /// Says so once each of these records, or a later one of its key, is visible.
    pub(super) fn settle_records(&mut self, now: Now, records: HashMap<Address, Ballot>, done: oneshot::Sender<()>) {
        self.settling.0.retain(|open| !open.done.is_closed());
        if records.is_empty() {
            self.say_settled(now, done);
        } else if self.settling.0.len() < SETTLING_MAX {
            self.settling.0.push(Open { records, done });
        }
    }

    /// What was committed a moment ago is visible once it is durable.
    pub(super) fn say_settled(&mut self, now: Now, done: oneshot::Sender<()>) {
        let sealed = self.acceptor.after_all(Effect::Done(done));
        self.take(now, sealed);
    }

    /// Who makes a majority now.
    pub(super) fn voters(&self) -> Voters {
        let peers = self.peers.iter().filter(|(slot, peer)| peer.votes() && self.membership().is_voter(**slot));
        let peers = peers.map(|(slot, peer)| (*slot, peer.node.clone())).collect();
        Voters { me: self.me.filter(|_| self.barred.is_none()), peers, membership: self.membership().clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Key;

    #[test]
    fn a_commit_at_or_above_the_record_settles_it_and_one_below_does_not() {
        let address = |key: &str| Address { shard: ShardId::parse("", "a").unwrap(), key: Key::parse(key).unwrap() };
        let (done, mut waits) = oneshot::channel();
        let records = HashMap::from([(address("k"), Ballot(5)), (address("l"), Ballot(7))]);
        let mut settling = Settling(vec![Open { records, done }]);
        assert!(settling.settled(&address("k"), Ballot(4)).is_empty());
        assert!(settling.settled(&address("l"), Ballot(9)).is_empty());
        assert!(settling.settled(&address("l"), Ballot(9)).is_empty(), "a key counts once");
        assert!(waits.try_recv().is_err());
        let over = settling.settled(&address("k"), Ballot(5));
        assert_eq!((over.len(), settling.0.len()), (1, 0));
    }
}
