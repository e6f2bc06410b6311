//! From one configuration of the cluster to the next (DESIGN §5). Pure: no tokio, no I/O, no clocks, no randomness.
//!
//! ```text
//!   epoch e ── register ──► epoch e, one observer more               a disk gets its slot; nobody's vote changes
//!   epoch e ── begin ─────► epoch e+1, joint ── finish ──► epoch e+2
//! ```
//!
//! Each arrow is one conditional write of the register that holds the configuration: two nodes that change it at once
//! cannot both succeed. When `finish` may be written is not said here: the new voters must have what the old ones chose
//! before, which `replication/quorum/scan.rs` sees to.

use std::collections::BTreeSet;

use super::membership::{MEMBERS_MAX, Member, Membership, VOTERS_MAX};
use super::placement::{PINS_MAX, Placement};
use crate::types::{NodeId, ShardId, Slot, StorageId};

/// What epochs leave out when somebody decides alone who votes: whoever still goes by the old ones, and by such as follow from
/// them, has a lower one.
const EPOCHS_FORCED: u64 = 1000;

/// What the text of a change begins with that names a shard.
pub(super) const MOVE: &str = "move ";

/// A change of who votes, and on what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VoterChange {
    /// This observer votes from now on.
    Add(NodeId),
    /// This voter does not vote any more. An observer is struck off the list.
    Remove(NodeId),
    /// In the place of a voter votes the disk that the same node came back with, or another observer.
    Replace {
        /// The voter.
        node: NodeId,
        /// Who votes in its place; none for the same node on its new disk.
        with: Option<NodeId>,
    },
    /// So many voters replicate each shard; none for all of them.
    Factor(Option<usize>),
    /// These voters replicate this shard before all others; none for those that the hash names.
    Move {
        /// It.
        shard: ShardId,
        /// Their names.
        to: Vec<NodeId>,
    },
}

/// What was given as a replication factor and is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no replication factor: want a number of voters from 1 to {VOTERS_MAX}, as in 3, or \"all\"")]
pub struct InvalidFactor(String);

impl VoterChange {
    /// True where this node is to replicate what it did not, by the wish of who asked for the change.
    #[must_use]
    pub fn needs(&self, newcomer: &NodeId) -> bool {
        match self {
            Self::Add(node) | Self::Replace { node, with: None } | Self::Replace { with: Some(node), .. } => {
                node == newcomer
            }
            Self::Move { to, .. } => to.contains(newcomer),
            Self::Remove(_) | Self::Factor(_) => false,
        }
    }

    /// The change to the replication factor that people write as a number of voters or as `all`.
    pub fn factor(text: &str) -> Result<Self, InvalidFactor> {
        if text == "all" {
            return Ok(Self::Factor(None));
        }
        let number = text.parse().ok().filter(|number| (1..=VOTERS_MAX).contains(number));
        number.map(|number| Self::Factor(Some(number))).ok_or_else(|| InvalidFactor(text.to_owned()))
    }
}

impl std::fmt::Display for VoterChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Add(node) => write!(f, "add {node}"),
            Self::Remove(node) => write!(f, "remove {node}"),
            Self::Replace { node, with: None } => write!(f, "replace the disk of {node}"),
            Self::Replace { node, with: Some(other) } => write!(f, "replace {node} with {other}"),
            Self::Factor(None) => write!(f, "replicate every shard on all voters"),
            Self::Factor(Some(factor)) => write!(f, "replicate every shard on {factor} voters"),
            Self::Move { shard, to } if to.is_empty() => write!(f, "{MOVE}{shard} back"),
            Self::Move { shard, to } => write!(f, "{MOVE}{shard} to {}", names(to)),
        }
    }
}

/// Why a change cannot be begun: nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Nobody of that name.
    #[error(
        "{0} is no member of this cluster; start it with a seed and the key of this cluster, and try again (members: {1})"
    )]
    Unknown(NodeId, String),
    /// Nobody of that name, to be removed.
    #[error("{0} is no member of this cluster (members: {1})")]
    NoMember(NodeId, String),
    /// It is no voter.
    #[error("{0} is no voter (voters: {1})")]
    NotAVoter(NodeId, String),
    /// Nobody would be left.
    #[error("{0} is the last voter: without it nobody could decide anything; add another before")]
    LastVoter(NodeId),
    /// One at a time.
    #[error("another change of voters is under way (epoch {0}); try again when it is done")]
    UnderWay(u64),
    /// There is nothing to put in its place.
    #[error("{0} runs on the disk that votes for it; there is no other to replace it with")]
    NoOtherDisk(NodeId),
    /// More than [`VOTERS_MAX`].
    #[error("there are {VOTERS_MAX} voters already, as many as there may be")]
    TooMany,
    /// Every voter has every shard.
    #[error(
        "every voter replicates every shard, so none can be moved; see `outrigger cluster replication-factor --help`"
    )]
    Everywhere,
    /// More replicas than each shard has.
    #[error("{0} nodes are named, and each shard has {1} replicas")]
    TooManyReplicas(usize, usize),
    /// More than [`PINS_MAX`].
    #[error("{0} shards are pinned already, as many as there may be; move some back (`migrate --back`)")]
    TooManyPins(usize),
    /// The cluster's own.
    #[error("{0} is the cluster's own, which every voter replicates")]
    OwnShard(ShardId),
    /// Nobody would hold anything.
    #[error("each shard needs at least one replica")]
    NoReplicas,
    /// A node that knows of no configuration has none to change.
    #[error("this node has not heard of the cluster's configuration yet; try again when it has joined")]
    NotJoined,
}

/// Why a change was not begun, or could not be ended yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// It cannot be, as things are.
    #[error("cannot {0}: {1}")]
    Refused(VoterChange, Refused),
    /// There is nothing to recover from, or nobody to recover as.
    #[error("cannot recover: {0}")]
    NotLost(&'static str),
    /// No majority answers, or this node has other things to do; what was tried may have been done all the same.
    #[error("{0}")]
    Unavailable(String),
}

impl Membership {
    /// The configuration with the disks written down by which its voters are known, as far as they are.
    #[must_use]
    pub fn with_disks(&self, disk_of: impl Fn(&NodeId) -> Option<StorageId>) -> Self {
        let mut known = self.clone();
        for member in &mut known.members {
            member.storage_id = member.storage_id.or_else(|| disk_of(&member.node));
        }
        known
    }

    /// Gives `node` on this disk a slot, without a vote; `None` where it has one and is the newest of that name. Who of the
    /// same name was there before it, without a vote, is struck off.
    pub fn register(&self, node: &NodeId, disk: StorageId) -> Result<Option<Self>, Refused> {
        if self.epoch == 0 {
            return Err(Refused::NotJoined);
        }
        let own = self.members.iter().find(|member| member.node == *node && member.storage_id == Some(disk));
        let own_slot = own.map(|own| own.slot);
        let mut next = self.clone();
        next.members
            .retain(|member| member.node != *node || Some(member.slot) == own_slot || self.is_voter(member.replica()));
        if own_slot.is_none() {
            if next.members.len() >= MEMBERS_MAX
                && let Some(oldest) = next.members.iter().position(|member| !next.is_voter(member.replica()))
            {
                next.members.remove(oldest);
            }
            let slot = next.take_slot().ok_or(Refused::TooMany)?;
            next.members.push(Member { node: node.clone(), slot, storage_id: Some(disk) });
            next.members.sort_unstable_by_key(|member| member.slot);
        }
        Ok((next != *self).then_some(next))
    }

    /// A slot that nobody has, and nobody has had for as long as there are others.
    fn take_slot(&mut self) -> Option<Slot> {
        let taken: BTreeSet<u16> = self.members.iter().map(|member| member.slot.number()).collect();
        let from = self.next_slot;
        let slot =
            (from..=u16::MAX).chain(0..from).filter_map(Slot::new).find(|slot| !taken.contains(&slot.number()))?;
        self.next_slot = slot.number() + 1;
        Some(slot)
    }

    /// The joint configuration that begins a change, or what an observer's removal leaves; `None` where all is as wished.
    pub fn begin(&self, change: &VoterChange) -> Result<Option<Self>, Refused> {
        if self.epoch == 0 {
            return Err(Refused::NotJoined);
        }
        if self.is_joint() {
            return Err(Refused::UnderWay(self.epoch));
        }
        let mut next = self.now.clone();
        match change {
            VoterChange::Add(node) => {
                if self.voter_of(node).is_some() {
                    return Ok(None);
                }
                if next.voters.len() >= VOTERS_MAX {
                    return Err(Refused::TooMany);
                }
                next.voters.insert(self.observer_of(node).ok_or_else(|| self.unknown_node(node))?);
            }
            VoterChange::Remove(node) => {
                let Some(slot) = self.voter_of(node) else { return self.strike(node).map(Some) };
                if next.voters.len() == 1 {
                    return Err(Refused::LastVoter(node.clone()));
                }
                next.remove(slot);
            }
            VoterChange::Replace { node, with } => {
                let slot = self.known_voter(node)?;
                let other = match with {
                    None => self.observer_of(node).ok_or_else(|| Refused::NoOtherDisk(node.clone()))?,
                    Some(other) => self.observer_of(other).ok_or_else(|| self.unknown_node(other))?,
                };
                next.exchange(slot, other);
            }
            VoterChange::Factor(Some(0)) => return Err(Refused::NoReplicas),
            VoterChange::Factor(factor) => next.replication_factor = *factor,
            VoterChange::Move { shard, to } => self.pin(&mut next, shard, to)?,
        }
        Ok((next != self.now).then(|| Self { epoch: self.epoch + 1, next: Some(next), ..self.clone() }))
    }

    /// What an observer's removal leaves.
    fn strike(&self, node: &NodeId) -> Result<Self, Refused> {
        let mut left = self.clone();
        left.members.retain(|member| member.node != *node);
        if left == *self { Err(Refused::NoMember(node.clone(), self.member_names())) } else { Ok(left) }
    }

    fn pin(&self, next: &mut Placement, shard: &ShardId, to: &[NodeId]) -> Result<(), Refused> {
        if shard.is_system() {
            return Err(Refused::OwnShard(shard.clone()));
        }
        if to.is_empty() {
            next.pins.remove(shard);
            return Ok(());
        }
        if next.is_everywhere() {
            return Err(Refused::Everywhere);
        }
        let pinned = to.iter().map(|node| self.known_voter(node)).collect::<Result<BTreeSet<_>, _>>()?;
        if pinned.len() > next.copies() {
            return Err(Refused::TooManyReplicas(pinned.len(), next.copies()));
        }
        next.pins.insert(shard.clone(), pinned);
        if next.pins.len() > PINS_MAX { Err(Refused::TooManyPins(PINS_MAX)) } else { Ok(()) }
    }

    /// What a joint configuration ends in: the new voters alone. Who voted and does so no longer is an observer from now on,
    /// except a disk in whose place its node has another.
    #[must_use]
    pub fn finish(&self) -> Option<Self> {
        let now = self.next.clone()?;
        let mut next = Self { epoch: self.epoch + 1, now, next: None, ..self.clone() };
        let newest =
            |member: &Member| member.storage_id.is_none() || self.newest_disk(&member.node) == member.storage_id;
        next.members.retain(|member| newest(member) || next.now.voters.contains(&member.replica()));
        Some(next)
    }

    /// An observer that is not connected, to be struck off the list if that lasts.
    #[must_use]
    pub fn absent_observer(&self, is_connected: impl Fn(usize) -> bool) -> Option<VoterChange> {
        let observers = self.members.iter().filter(|member| !self.is_voter(member.replica()));
        let absent = observers
            .into_iter()
            .find(|member| !is_connected(member.replica()) && self.voter_of(&member.node).is_none());
        absent.map(|absent| VoterChange::Remove(absent.node.clone()))
    }

    /// The configuration in which `node` on this disk decides alone, whatever the others say: the way out where a majority
    /// is lost for good. What only they had is lost with them.
    #[must_use]
    pub fn forced(&self, node: &NodeId, disk: StorageId) -> Option<Self> {
        let mut alone = self.register(node, disk).ok()?.unwrap_or_else(|| self.clone());
        let slot = alone.members.iter().rev().find(|member| member.is(node, disk)).map(Member::replica)?;
        alone.epoch += EPOCHS_FORCED;
        alone.members.retain(|member| member.replica() == slot);
        alone.members.iter_mut().for_each(|member| member.storage_id = Some(disk));
        let replication_factor = alone.now.replication_factor;
        let now = Placement { voters: BTreeSet::from([slot]), replication_factor, ..Placement::default() };
        (alone.now, alone.next) = (now, None);
        Some(alone)
    }

    /// The change that is due without anybody asking for it: a voter that is not connected, and whose node came back with
    /// another disk, which is.
    #[must_use]
    pub fn lost_disk(&self, is_connected: impl Fn(usize) -> bool) -> Option<VoterChange> {
        let mut gone = self.voters().filter(|voter| !is_connected(voter.replica()));
        let lost = gone.find(|voter| self.observer_of(&voter.node).is_some_and(&is_connected))?;
        Some(VoterChange::Replace { node: lost.node.clone(), with: None })
    }

    fn voter_of(&self, node: &NodeId) -> Option<usize> {
        self.voters().find(|voter| voter.node == *node).map(Member::replica)
    }

    fn known_voter(&self, node: &NodeId) -> Result<usize, Refused> {
        self.voter_of(node).ok_or_else(|| Refused::NotAVoter(node.clone(), names(&self.voter_names())))
    }

    fn observer_of(&self, node: &NodeId) -> Option<usize> {
        let of_node = self.members.iter().rev().filter(|member| member.node == *node).map(Member::replica);
        of_node.into_iter().find(|slot| !self.is_voter(*slot))
    }

    fn unknown_node(&self, node: &NodeId) -> Refused {
        Refused::Unknown(node.clone(), self.member_names())
    }

    fn member_names(&self) -> String {
        let members: BTreeSet<_> = self.members.iter().map(|member| member.node.clone()).collect();
        names(&members.into_iter().collect::<Vec<_>>())
    }
}

fn names(nodes: &[NodeId]) -> String {
    nodes.iter().map(NodeId::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cluster::membership::majority;

    fn node(name: &str) -> NodeId {
        NodeId::parse(name).unwrap()
    }

    fn three() -> Membership {
        let first = Membership::epoch_one(["a", "b", "c"].map(node).to_vec()).unwrap();
        first.with_disks(|node| Some(StorageId(u64::from(node.as_str().as_bytes()[0]))))
    }

    fn names_of(membership: &Membership) -> Vec<String> {
        membership.voter_names().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_observer_gets_a_slot_of_its_own_and_then_a_vote() {
        let four = three().register(&node("d"), StorageId(4)).unwrap().unwrap();
        assert_eq!((four.epoch(), four.slot_of(&node("d"), StorageId(4)).unwrap().number()), (1, 3));
        assert_eq!(names_of(&four), ["a", "b", "c"]);
        assert_eq!(four.register(&node("d"), StorageId(4)), Ok(None));
        let joint = four.begin(&VoterChange::Add(node("d"))).unwrap().unwrap();
        assert!(joint.is_joint() && joint.epoch() == 2);
        assert!(!joint.quorums().is_met(|slot| [0, 3].contains(&slot)) && joint.quorums().is_met(|slot| slot < 3));
        assert_eq!(joint.begin(&VoterChange::Remove(node("a"))), Err(Refused::UnderWay(2)));
        let done = joint.finish().unwrap();
        assert_eq!((done.epoch(), names_of(&done)), (3, ["a", "b", "c", "d"].map(str::to_owned).to_vec()));
        assert_eq!(done.begin(&VoterChange::Add(node("d"))), Ok(None), "it votes");
        assert_eq!(done.finish(), None);
    }

    #[test]
    fn a_node_on_another_disk_is_another_member_and_takes_the_old_one_s_place() {
        let back = three().register(&node("c"), StorageId(990)).unwrap().unwrap();
        assert_eq!(back.newest_disk(&node("c")), Some(StorageId(990)));
        assert_eq!(back.lost_disk(|slot| slot != 2), Some(VoterChange::Replace { node: node("c"), with: None }));
        assert_eq!(back.lost_disk(|slot| slot != 3), None, "it is not there");
        assert_eq!(back.lost_disk(|_| true), None);
        // Lost again before it voted: the disk between is forgotten, its slot not given to the next.
        let again = back.register(&node("c"), StorageId(991)).unwrap().unwrap();
        assert_eq!(again.members().len(), 4);
        assert_eq!(again.slot_of(&node("c"), StorageId(991)).unwrap().number(), 4);
        let joint = again.begin(&VoterChange::Replace { node: node("c"), with: None }).unwrap().unwrap();
        let done = joint.finish().unwrap();
        assert_eq!(names_of(&done), ["a", "b", "c"]);
        assert_eq!(done.slot_of(&node("c"), StorageId(u64::from(b'c'))), None);
        assert!(done.is_voter(4) && !done.is_voter(2));
    }

    #[test]
    fn what_cannot_be_changed_is_refused() {
        let three = three();
        assert!(matches!(three.begin(&VoterChange::Add(node("x"))), Err(Refused::Unknown(..))));
        assert!(matches!(three.begin(&VoterChange::Remove(node("x"))), Err(Refused::NoMember(..))));
        let replace = |name: &str, with: Option<&str>| VoterChange::Replace { node: node(name), with: with.map(node) };
        assert!(matches!(three.begin(&replace("x", None)), Err(Refused::NotAVoter(..))));
        assert_eq!(three.begin(&replace("a", None)), Err(Refused::NoOtherDisk(node("a"))));
        assert!(matches!(three.begin(&replace("a", Some("x"))), Err(Refused::Unknown(..))));
        let one = Membership::epoch_one(vec![node("a")]).unwrap();
        assert_eq!(one.begin(&VoterChange::Remove(node("a"))), Err(Refused::LastVoter(node("a"))));
        assert_eq!(Membership::unknown().begin(&VoterChange::Add(node("a"))), Err(Refused::NotJoined));
        let four = three.register(&node("d"), StorageId(4)).unwrap().unwrap();
        let left = four.begin(&VoterChange::Remove(node("d"))).unwrap().unwrap();
        assert_eq!((left.epoch(), left.members().len()), (1, 3), "an observer goes without a change of votes");
    }

    #[test]
    fn a_voter_that_is_removed_keeps_its_slot_until_it_is_gone_for_long() {
        let joint = three().begin(&VoterChange::Remove(node("a"))).unwrap().unwrap();
        let two = joint.finish().unwrap();
        assert_eq!((names_of(&two), two.members().len()), (["b", "c"].map(str::to_owned).to_vec(), 3));
        assert_eq!(two.absent_observer(|_| true), None);
        let strike = two.absent_observer(|slot| slot != 0).unwrap();
        let struck = two.begin(&strike).unwrap().unwrap();
        assert_eq!((struck.epoch(), struck.members().len()), (3, 2));
        assert_eq!(three().absent_observer(|_| false), None, "voters stay");
    }

    #[test]
    fn one_that_is_left_may_decide_alone() {
        let back = three().register(&node("c"), StorageId(990)).unwrap().unwrap();
        let alone = back.forced(&node("a"), StorageId(u64::from(b'a'))).unwrap();
        assert_eq!((alone.epoch(), names_of(&alone)), (1001, vec!["a".to_owned()]));
        assert!(alone.quorums().is_met(|slot| slot == 0));
        let new = back.forced(&node("c"), StorageId(990)).unwrap();
        assert!(new.quorums().is_met(|slot| slot == 3));
    }

    #[test]
    fn slots_are_used_again_only_after_all_others() {
        let mut membership = three();
        for disk in 0..5000 {
            membership = membership.register(&node("d"), StorageId(1000 + disk)).unwrap().unwrap();
            let slot = membership.slot_of(&node("d"), StorageId(1000 + disk)).unwrap().number();
            assert_eq!(u64::from(slot), 3 + disk % (4095 - 3), "{disk}");
        }
    }

    proptest! {
        /// What decides in an epoch meets what decides in the next, whatever is changed and in whatever order.
        #[test]
        fn quorums_of_neighbouring_epochs_meet(steps in prop::collection::vec((0_u8..4, 0_usize..6), 1..30)) {
            let mut membership = three();
            for (kind, which) in steps {
                let name = node(["a", "b", "c", "d", "e", "f"][which]);
                let next = match kind {
                    0 => membership.register(&name, StorageId(which as u64 + 50)).unwrap(),
                    1 => membership.finish(),
                    2 => membership.begin(&VoterChange::Add(name)).ok().flatten(),
                    _ => membership.begin(&VoterChange::Remove(name)).ok().flatten(),
                };
                let Some(next) = next else { continue };
                prop_assert!(next.clone().checked().is_ok());
                prop_assert_eq!(Membership::decode(&next.encode()), Ok(next.clone()));
                for (one, other) in [(&membership, &next), (&next, &membership)] {
                    // The fewest of one that decide there; without them nothing of the other may.
                    let few: BTreeSet<usize> = [one.old_voters(), one.new_voters()].into_iter()
                        .flat_map(|voters| voters.iter().copied().take(majority(voters.len()))).collect();
                    prop_assert!(one.quorums().is_met(|slot| few.contains(&slot)));
                    prop_assert!(!other.quorums().is_met(|slot| !few.contains(&slot)));
                }
                membership = next;
            }
        }
    }
}
