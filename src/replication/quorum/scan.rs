//! What a joint epoch waits for (DESIGN §5, step 3): each of a majority of the new voters has compared its rows with a
//! majority of the old ones, after both had installed that epoch and nothing that the old one had voted for before was
//! open there any more. From then on whatever was chosen under the old epoch is known to a majority of the new voters.
//!
//! It also promises nothing any more that those may have promised otherwise: a round of the old epoch that got as far as a
//! vote or two is not of those that are settled, and that vote must stay below all that the new voters choose. (Without:
//! an old voter that is away, with such a vote at a ballot of a clock ahead of others, brings it back when those it was
//! prepared with are gone, and undoes what was acknowledged since.)
//!
//! Every new voter compares on its own as soon as it has installed the joint epoch; who drives the change asks each with
//! whom it is done. The answer is memory: after a restart a voter compares again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::catch_up::{Error, With};
use super::{Input, Rooms};
use crate::cluster::membership::{Member, Membership};
use crate::types::{Ballot, ShardId};
use futures_util::stream::{FuturesUnordered, StreamExt};

/// How long after a failed comparison the next is tried.
const RETRY: Duration = Duration::from_millis(500);

/// With which old voters this node has compared its rows.
#[derive(Debug, Clone, Default)]
pub(super) struct Scanned {
    /// In this joint epoch.
    pub(super) epoch: u64,
    /// Their slots.
    pub(super) with: BTreeSet<usize>,
}

/// Compares in every joint epoch in which this node is among the new voters. Ends with the driver.
pub(super) async fn follow(rooms: Rooms) {
    let mut changes = rooms.membership.subscribe();
    loop {
        let membership = changes.borrow_and_update().clone();
        let me = rooms.me();
        let scanning = async {
            scan(&membership, me, &rooms).await;
            std::future::pending::<()>().await;
        };
        // Whoever registers meanwhile changes nothing for those who compare.
        let is_another = |now: &Membership| now.epoch() != membership.epoch() || rooms.me() != me;
        tokio::select! {
            () = scanning => {}
            changed = changes.wait_for(is_another) => if changed.is_err() {
                return;
            },
        }
    }
}

async fn scan(membership: &Membership, me: Option<usize>, rooms: &Rooms) {
    let epoch = membership.epoch();
    *rooms.scanned.lock() = Scanned { epoch, with: BTreeSet::new() };
    if !membership.is_joint() || !me.is_some_and(|me| membership.new_voters().contains(&me)) {
        return;
    }
    rooms.copies.none_given_up().await;
    let old = membership.voters().filter(|voter| membership.old_voters().contains(&voter.replica()));
    let mut comparing: FuturesUnordered<_> = old.map(|old| compare(old, membership, me, rooms)).collect();
    while let Some(slot) = comparing.next().await {
        rooms.scanned.lock().with.insert(slot);
        tracing::info!(epoch, slot, "rows compared with a voter of the old epoch");
    }
}

/// Tries until it is done; returns the old voter's slot.
async fn compare(old: &Member, membership: &Membership, me: Option<usize>, rooms: &Rooms) -> usize {
    let epoch = membership.epoch();
    loop {
        let compared = if me == Some(old.replica()) {
            settle_inherited(rooms, epoch, old.replica()).await
        } else {
            compare_with(old, membership, me, rooms).await
        };
        match compared {
            Ok(()) => return old.replica(),
            Err(error) => {
                tracing::debug!(peer = %old.node, epoch, %error, "comparing for a change of voters failed; it is tried again");
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn compare_with(old: &Member, membership: &Membership, me: Option<usize>, rooms: &Rooms) -> Result<(), Error> {
    let comes_here = |shard: &ShardId| {
        let is_new = || me.is_some_and(|me| membership.new_replicas(shard).contains(&me));
        membership.moves(shard) && membership.old_replicas(shard).contains(&old.replica()) && is_new()
    };
    let ceiling = With::new(&old.node, rooms).scan(membership.epoch(), old.replica(), comes_here).await?;
    promise_above(rooms, ceiling).await
}

/// Waits until nothing is open here that this node, as the voter of that slot, had voted for before the joint epoch.
pub(super) async fn settle_inherited(rooms: &Rooms, epoch: u64, slot: usize) -> Result<(), Error> {
    rooms.settled(|done| Input::Inherited { epoch, slot, done }, Error::OtherEpoch { epoch, slot }).await
}

/// Promises nothing up to this ballot from now on, also after a restart.
async fn promise_above(rooms: &Rooms, ballot: Ballot) -> Result<(), Error> {
    rooms.ask(|done| Input::PromiseAbove { ballot, done }).await?.ok_or(Error::Ahead(ballot))
}

/// Whether a new voter has compared with an old one.
pub(super) fn has_compared(scanned: &BTreeMap<usize, Scanned>, epoch: u64, new: usize, old: usize) -> bool {
    scanned.get(&new).is_some_and(|scanned| scanned.epoch == epoch && scanned.with.contains(&old))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::change::VoterChange;
    use crate::types::{NodeId, StorageId};

    #[test]
    fn a_new_voter_is_level_once_it_has_compared_with_a_majority_of_the_old_in_this_epoch() {
        let node = |name: &str| NodeId::parse(name).unwrap();
        let three = Membership::epoch_one(["a", "b", "c"].map(node).to_vec()).unwrap();
        let four = three.register(&node("d"), StorageId(4)).unwrap().unwrap();
        let joint = four.begin(&VoterChange::Add(node("d"))).unwrap().unwrap();
        let with = |epoch, slots: &[usize]| Scanned { epoch, with: slots.iter().copied().collect() };
        let scanned = BTreeMap::from([
            (0, with(2, &[0, 2])),
            (1, with(2, &[1])),
            (2, with(1, &[0, 1, 2])),
            (3, with(2, &[1, 2])),
            (9, with(2, &[0, 1, 2])),
        ]);
        let has = |new, old| has_compared(&scanned, 2, new, old);
        let level = joint.new_voters().iter().filter(|new| joint.is_level(**new, has));
        assert_eq!(level.copied().collect::<Vec<_>>(), [0, 3]);
    }
}
