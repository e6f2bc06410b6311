//! Who may vote, in which epoch, and what a majority of them is. Pure: no tokio, no I/O, no clocks, no randomness.
//!
//! A [`Membership`] is one configuration of the cluster (DESIGN §5): its members, and which of them vote. Everything that
//! needs counting votes asks it, and its answers depend on the configuration alone, **never** on who happens to be alive: a
//! quorum of those present is no quorum.
//!
//! ```text
//!   [cluster] voters ──► epoch 1, sorted ──► slot_of(node, disk)     who proposes under which number
//!                          │ change.rs   ├──► quorums()              who decides, together
//!                          ▼             └──► home(shard, key)       whom to send a contended key to
//!                        epoch 2 (joint), 3, ...
//! ```
//!
//! A member is a *disk*: a node that comes back with another one is another member, with another slot. Epoch 1 alone does
//! not name disks: whichever a voter comes with first is meant, and its peers remember which that was.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::placement::{PINS_MAX, Placement};
use crate::types::{Key, NodeId, ShardId, Slot, StorageId};

/// The most voters in one configuration. More would make every write wait for dozens of disks; it also bounds the
/// hello, which carries the list.
pub const VOTERS_MAX: usize = 255;
/// The most members, voters and observers together: their list travels and is stored as one value.
pub const MEMBERS_MAX: usize = 1024;

/// The number of the configuration of a node that has not heard of any.
pub const NO_EPOCH: u64 = 0;
/// The number of the configuration that the `voters` list of the configuration file makes.
pub const FIRST_EPOCH: u64 = 1;

/// Why something makes no configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMembership {
    /// Nobody could ever agree.
    #[error("the list of voters is empty: name at least this node")]
    NoVoters,
    /// More than [`VOTERS_MAX`].
    #[error("{0} voters, more than {VOTERS_MAX}")]
    TooManyVoters(usize),
    /// More than [`MEMBERS_MAX`].
    #[error("{0} members, more than {MEMBERS_MAX}")]
    TooManyMembers(usize),
    /// A name that would have two votes, or a slot that two would issue ballots under.
    #[error("{0} stands twice")]
    Twice(String),
    /// A voter that is no member.
    #[error("slot {0} votes and belongs to nobody")]
    NotAMember(usize),
    /// A shard pinned to nobody, or to somebody without a vote.
    #[error("{0} is pinned to who does not vote")]
    Pinned(ShardId),
    /// More than [`PINS_MAX`].
    #[error("{0} shards are pinned, more than {PINS_MAX}")]
    TooManyPins(usize),
    /// Nobody would hold anything.
    #[error("a replication factor of 0: each shard needs at least one replica")]
    NoReplicas,
    /// Epochs start at 1.
    #[error("epoch 0: epochs start at {FIRST_EPOCH}")]
    NoEpoch,
    /// Not what a configuration is written as.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
}

/// A node on one disk, and the number it proposes under.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name.
    pub node: NodeId,
    /// Its number among the replicas and in its ballots.
    pub slot: Slot,
    /// Its data directory; none in epoch 1 as long as nobody has written down with which it came.
    pub storage_id: Option<StorageId>,
}

impl Member {
    /// Its slot, as what names it among the replicas.
    #[must_use]
    pub fn replica(&self) -> usize {
        self.slot.replica()
    }

    /// True for this node on this disk.
    #[must_use]
    pub fn is(&self, node: &NodeId, disk: StorageId) -> bool {
        self.node == *node && self.storage_id.is_none_or(|known| known == disk)
    }
}

/// One configuration. While a change of voters is under way it is *joint*: what decides is a majority of those who voted so
/// far and one of those who will.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked", into = "Unchecked")]
pub struct Membership {
    pub(super) epoch: u64,
    /// In the order of their slots.
    pub(super) members: Vec<Member>,
    /// Who votes, and on what.
    pub(super) now: Placement,
    /// While it is joint, who will.
    pub(super) next: Option<Placement>,
    /// Where the search for a free slot begins: the longer ago one was in use the better.
    pub(super) next_slot: u16,
}

/// What a [`Membership`] is written and read as.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    epoch: u64,
    members: Vec<Member>,
    now: Placement,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next: Option<Placement>,
    next_slot: u16,
}

impl TryFrom<Unchecked> for Membership {
    type Error = InvalidMembership;
    fn try_from(read: Unchecked) -> Result<Self, Self::Error> {
        let Unchecked { epoch, members, now, next, next_slot } = read;
        Self { epoch, members, now, next, next_slot }.checked()
    }
}

impl From<Membership> for Unchecked {
    fn from(membership: Membership) -> Self {
        let Membership { epoch, members, now, next, next_slot } = membership;
        Self { epoch, members, now, next, next_slot }
    }
}

/// How many of `count` make a majority: any two majorities of the same set share a member.
#[must_use]
pub fn majority(count: usize) -> usize {
    count / 2 + 1
}

/// Which replicas decide together, each named by its slot: a majority of them, or, while a change of voters is under way, a
/// majority of the old *and* one of the new (joint consensus; Ongaro, "Consensus: Bridging Theory and Practice", 2014,
/// section 4.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quorums(Vec<BTreeSet<usize>>);

impl Quorums {
    /// A majority of these decides. Of nobody, nobody ever decides.
    #[must_use]
    pub fn majority_of(replicas: impl IntoIterator<Item = usize>) -> Self {
        Self(vec![replicas.into_iter().collect()])
    }

    /// What decides here and what decides there, together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0.into_iter().chain(other.0).collect())
    }

    /// True where those for which `has` holds decide.
    pub fn is_met(&self, has: impl Fn(usize) -> bool) -> bool {
        self.0
            .iter()
            .all(|replicas| replicas.iter().filter(|replica| has(**replica)).count() >= majority(replicas.len()))
    }

    /// Everybody who has a vote.
    #[must_use]
    pub fn replicas(&self) -> BTreeSet<usize> {
        self.0.iter().flatten().copied().collect()
    }

    /// How far those for which `has` holds are from deciding, for a person: "1 of 3 voters, 2 needed".
    pub fn tell(&self, has: impl Fn(usize) -> bool) -> String {
        self.tell_of("voters", has)
    }

    /// The same where they are the replicas of this shard: "1 of 3 replicas of acme/pay, 2 needed".
    pub fn tell_on(&self, shard: &ShardId, has: impl Fn(usize) -> bool) -> String {
        if shard.is_system() { self.tell(has) } else { self.tell_of(&format!("replicas of {shard}"), has) }
    }

    fn tell_of(&self, what: &str, has: impl Fn(usize) -> bool) -> String {
        let each = self.0.iter().map(|replicas| {
            let there = replicas.iter().filter(|replica| has(**replica)).count();
            format!("{there} of {} {what}, {} needed", replicas.len(), majority(replicas.len()))
        });
        each.collect::<Vec<_>>().join(", and ")
    }
}

impl Membership {
    /// That of a node that has not heard of any: nobody decides.
    #[must_use]
    pub fn unknown() -> Self {
        Self { epoch: NO_EPOCH, members: Vec::new(), now: Placement::default(), next: None, next_slot: 0 }
    }

    /// The configuration that the `voters` list makes, in whatever order it names them. A voter's slot is its place in the
    /// sorted list, so that nodes with the same list agree on it without a word.
    pub fn epoch_one(mut voters: Vec<NodeId>) -> Result<Self, InvalidMembership> {
        voters.sort_unstable();
        let next_slot = u16::try_from(voters.len()).map_err(|_| InvalidMembership::TooManyVoters(voters.len()))?;
        let member = |(node, number)| Slot::new(number).map(|slot| Member { node, slot, storage_id: None });
        let members: Vec<_> = voters.into_iter().zip(0..).filter_map(member).collect();
        let mut names = members.iter().zip(members.iter().skip(1));
        if let Some((twice, _)) = names.find(|(a, b)| a.node == b.node) {
            return Err(InvalidMembership::Twice(twice.node.to_string()));
        }
        let now = Placement { voters: (0..members.len()).collect(), ..Placement::default() };
        Self { epoch: FIRST_EPOCH, members, now, next: None, next_slot }.checked()
    }

    pub(super) fn checked(mut self) -> Result<Self, InvalidMembership> {
        self.members.sort_unstable_by_key(|member| member.slot);
        if self.epoch < FIRST_EPOCH {
            return Err(InvalidMembership::NoEpoch);
        }
        if self.members.len() > MEMBERS_MAX {
            return Err(InvalidMembership::TooManyMembers(self.members.len()));
        }
        let mut pairs = self.members.iter().zip(self.members.iter().skip(1));
        if let Some((twice, _)) = pairs.find(|(a, b)| a.slot == b.slot) {
            return Err(InvalidMembership::Twice(format!("slot {}", twice.replica())));
        }
        if let Some(unusable) = self.members.iter().find(|member| Slot::new(member.slot.number()).is_none()) {
            return Err(InvalidMembership::Unreadable(format!("slot {}", unusable.replica())));
        }
        std::iter::once(&self.now).chain(&self.next).try_for_each(|placement| self.check(placement))?;
        Ok(self)
    }

    fn check(&self, placement: &Placement) -> Result<(), InvalidMembership> {
        let Placement { voters, replication_factor, pins } = placement;
        if voters.is_empty() {
            return Err(InvalidMembership::NoVoters);
        }
        if voters.len() > VOTERS_MAX {
            return Err(InvalidMembership::TooManyVoters(voters.len()));
        }
        let mut names = BTreeSet::new();
        for slot in voters {
            let member = self.member(*slot).ok_or(InvalidMembership::NotAMember(*slot))?;
            if !names.insert(&member.node) {
                return Err(InvalidMembership::Twice(member.node.to_string()));
            }
        }
        if *replication_factor == Some(0) {
            return Err(InvalidMembership::NoReplicas);
        }
        if pins.len() > PINS_MAX {
            return Err(InvalidMembership::TooManyPins(pins.len()));
        }
        let is_sound = |pinned: &BTreeSet<usize>| !pinned.is_empty() && pinned.is_subset(voters);
        match pins.iter().find(|(_, pinned)| !is_sound(pinned)) {
            Some((shard, _)) => Err(InvalidMembership::Pinned(shard.clone())),
            None => Ok(()),
        }
    }

    /// The same, with so many replicas of each shard; none for all voters.
    pub fn with_replication_factor(mut self, factor: Option<usize>) -> Result<Self, InvalidMembership> {
        self.now.replication_factor = factor;
        self.checked()
    }

    /// The configuration as the value of the register that holds it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // Encoding plain fields into memory has no way to fail; if it found one, nobody would install the empty value.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads such a value.
    pub fn decode(value: &[u8]) -> Result<Self, InvalidMembership> {
        serde_json::from_slice(value).map_err(|error| InvalidMembership::Unreadable(error.to_string()))
    }

    /// The configuration's number.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// True while a change of voters is under way.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        self.next.is_some()
    }

    /// True where a change of voters, from its beginning to its end, leads from that configuration to this: nothing was
    /// missed.
    #[must_use]
    pub fn follows_on(&self, before: &Self) -> bool {
        self.epoch == before.epoch || (self.epoch == before.epoch + 1 && self.is_joint() != before.is_joint())
    }

    /// Everybody, in the order of their slots.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The member that proposes under this number.
    #[must_use]
    pub fn member(&self, slot: usize) -> Option<&Member> {
        self.members.iter().find(|member| member.replica() == slot)
    }

    /// Those who have a vote, in the order of their slots: while it is joint, those of before and those of after.
    pub fn voters(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| self.is_voter(member.replica()))
    }

    /// The names of those who have a vote, sorted, each once.
    #[must_use]
    pub fn voter_names(&self) -> Vec<NodeId> {
        self.voters().map(|member| member.node.clone()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The names of those who voted before a change that is under way, sorted.
    #[must_use]
    pub fn old_voter_names(&self) -> Vec<NodeId> {
        let old = self.members.iter().filter(|member| self.now.voters.contains(&member.replica()));
        old.map(|member| member.node.clone()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The slots of those who voted before a change that is under way.
    #[must_use]
    pub fn old_voters(&self) -> &BTreeSet<usize> {
        &self.now.voters
    }

    /// Who votes, and on what, until a change that is under way is done.
    #[must_use]
    pub fn placement(&self) -> &Placement {
        &self.now
    }

    /// Who votes, and on what, from now on, or will once the change that is under way is done.
    #[must_use]
    pub fn next_placement(&self) -> &Placement {
        self.next.as_ref().unwrap_or(&self.now)
    }

    /// The slots of those who vote from now on, or will once the change that is under way is done.
    #[must_use]
    pub fn new_voters(&self) -> &BTreeSet<usize> {
        &self.next_placement().voters
    }

    /// True where the vote of this slot counts from now on, or will once the change that is under way is done.
    #[must_use]
    pub fn will_vote(&self, slot: usize) -> bool {
        self.new_voters().contains(&slot)
    }

    /// True where the vote of this slot counts.
    #[must_use]
    pub fn is_voter(&self, slot: usize) -> bool {
        self.now.voters.contains(&slot) || self.next.as_ref().is_some_and(|next| next.voters.contains(&slot))
    }

    /// The number under which `node` proposes from this disk. `None` where that is no member, or where the node has come with
    /// another one since.
    #[must_use]
    pub fn slot_of(&self, node: &NodeId, disk: StorageId) -> Option<Slot> {
        self.newest(node).filter(|newest| newest.is(node, disk)).map(|newest| newest.slot)
    }

    /// The disk with which `node` came last, where that is written down.
    #[must_use]
    pub fn newest_disk(&self, node: &NodeId) -> Option<StorageId> {
        self.newest(node)?.storage_id
    }

    /// A node has one disk that votes at most, and one that is to, or may, take its place.
    fn newest(&self, node: &NodeId) -> Option<&Member> {
        let votes_already = |member: &&Member| self.now.voters.contains(&member.replica());
        let has_vote = |member: &&Member| self.is_voter(member.replica());
        let of_node = self.members.iter().filter(|member| member.node == *node);
        of_node.min_by_key(|member| (has_vote(member), votes_already(member)))
    }

    /// Which of them decide, by their slots.
    #[must_use]
    pub fn quorums(&self) -> Quorums {
        self.deciding(|placement| placement.voters.clone())
    }

    /// A majority of these, and while it is joint a majority of those that are next.
    pub(super) fn deciding(&self, of: impl Fn(&Placement) -> BTreeSet<usize>) -> Quorums {
        let quorums = Quorums::majority_of(of(&self.now));
        match &self.next {
            Some(next) => quorums.and(Quorums::majority_of(of(next))),
            None => quorums,
        }
    }

    /// The replica that proposals for a contended key had best go to, so that they queue there instead of colliding: the
    /// best of those that `is_fit` says can take them. A hint, never needed for safety, and the same on every node that
    /// finds the same ones fit, of every version and on every platform (see `score`). None where none is fit.
    #[must_use]
    pub fn home(&self, shard: &ShardId, key: &Key, is_fit: impl Fn(&Member) -> bool) -> Option<&Member> {
        let fit = self.voters().filter(|member| self.is_replica(shard, member.replica()) && is_fit(member));
        fit.max_by_key(|member| (score(&member.node, shard, key.as_str()), member.slot))
    }
}

/// The rendezvous hash (Thaler and Ravishankar, "A Name-Based Mapping Scheme for Rendezvous", 1996) of one replica
/// for one key, or for a whole shard where that is empty: the highest score wins, and a replica that goes or comes moves only the keys it won or wins.
///
/// FNV-1a over node, org, namespace and key, each followed by the byte `0xff`, which no UTF-8 text holds, so that no
/// two different tuples read alike; then the finisher of SplitMix64, as FNV alone leaves the high bits of similar
/// names similar. All nodes must agree on it: changing it is a change of the wire format.
pub(super) fn score(node: &NodeId, shard: &ShardId, key: &str) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut hash = OFFSET;
    for part in [node.as_str(), shard.org.as_str(), shard.namespace.as_str(), key] {
        for byte in part.bytes().chain([0xff]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(PRIME);
        }
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::parse(name).unwrap()
    }

    fn slot(membership: &Membership, name: &str) -> Option<Slot> {
        membership.slot_of(&node(name), StorageId(1))
    }

    fn membership(names: &[&str]) -> Membership {
        Membership::epoch_one(names.iter().map(|name| node(name)).collect()).unwrap()
    }

    fn shard() -> ShardId {
        ShardId::parse("acme", "payments").unwrap()
    }

    #[test]
    fn slots_follow_the_names_and_not_the_order_of_the_list() {
        let one = membership(&["c", "a", "b"]);
        assert_eq!(one, membership(&["a", "b", "c"]));
        assert_eq!(one.epoch(), 1);
        let slots: Vec<_> = ["a", "b", "c"].iter().map(|n| slot(&one, n).unwrap().number()).collect();
        assert_eq!(slots, [0, 1, 2]);
        assert_eq!(slot(&one, "d"), None);
        assert!(one.is_voter(2) && !one.is_voter(3));
    }

    #[test]
    fn lists_that_make_no_configuration_are_refused() {
        assert_eq!(Membership::epoch_one(vec![]), Err(InvalidMembership::NoVoters));
        let twice = Membership::epoch_one(vec![node("b"), node("a"), node("b")]);
        assert_eq!(twice, Err(InvalidMembership::Twice("b".to_owned())));
        let many = (0..=VOTERS_MAX).map(|n| node(&format!("n{n}"))).collect();
        assert_eq!(Membership::epoch_one(many), Err(InvalidMembership::TooManyVoters(VOTERS_MAX + 1)));
    }

    #[test]
    fn what_is_read_back_is_checked_again() {
        let good = r#"{"epoch":1,"members":[{"node":"a","slot":0,"storage_id":null},{"node":"b","slot":1,"storage_id":null}],"now":{"voters":[0,1]},"next_slot":2}"#;
        assert_eq!(String::from_utf8(membership(&["b", "a"]).encode()).unwrap(), good);
        assert_eq!(Membership::decode(good.as_bytes()), Ok(membership(&["a", "b"])));
        for (from, to) in [
            ("\"voters\":[0,1]", "\"voters\":[]"),
            ("\"voters\":[0,1]", "\"voters\":[0,2]"),
            ("\"next_slot\"", "\"next\":{\"voters\":[]},\"next_slot\""),
            ("\"voters\":[0,1]", "\"voters\":[0,1],\"replication_factor\":0"),
            ("\"voters\":[0,1]", "\"voters\":[0,1],\"pins\":[[{\"o\":\"a\",\"n\":\"b\"},[2]]]"),
            ("\"voters\":[0,1]", "\"voters\":[0,1],\"of_a_later_version\":1"),
            ("\"epoch\":1", "\"epoch\":0"),
            ("\"slot\":1", "\"slot\":0"),
            ("\"slot\":1", "\"slot\":4095"),
            ("\"b\"", "\"a\""),
        ] {
            assert!(Membership::decode(good.replace(from, to).as_bytes()).is_err(), "{to}");
        }
    }

    #[test]
    fn the_score_never_changes() {
        // Pinned: nodes of different versions must name the same home.
        assert_eq!(score(&node("a"), &shard(), "wf/payments/a/1"), 8_521_506_985_278_308_345);
    }

    #[test]
    fn nobody_decides_for_nobody() {
        assert!(!Quorums::majority_of([]).is_met(|_| true));
        let joint = Quorums::majority_of(0..3).and(Quorums::majority_of([0, 1, 3, 4, 5]));
        assert!(joint.is_met(|replica| [0, 1, 3].contains(&replica)) && !joint.is_met(|replica| replica < 3));
        assert_eq!(joint.replicas(), (0..6).collect());
        assert_eq!(joint.tell(|replica| replica < 3), "3 of 3 voters, 2 needed, and 2 of 5 voters, 3 needed");
    }

    #[test]
    fn homes_are_spread_and_move_little() {
        let three = membership(&["a", "b", "c"]);
        let four = membership(&["a", "b", "c", "d"]);
        let mut homes = BTreeMap::<NodeId, usize>::new();
        let mut moved = 0;
        for n in 0..3_000 {
            let key = Key::parse(&format!("k{n}")).unwrap();
            let home = three.home(&shard(), &key, |_| true).unwrap();
            let later = four.home(&shard(), &key, |_| true).unwrap();
            assert!(later == home || later.node == node("d"), "a key moved between nodes that were there before");
            assert_eq!(
                four.home(&shard(), &key, |member| member.node.as_str() != "d"),
                Some(home),
                "as if d were not there"
            );
            moved += usize::from(later != home);
            *homes.entry(home.node.clone()).or_default() += 1;
        }
        assert!(homes.len() == 3 && homes.values().all(|&count| (900..1_100).contains(&count)), "{homes:?}");
        assert!((650..850).contains(&moved), "{moved}");
    }

    proptest! {
        #[test]
        fn any_two_quorums_intersect(size in 1_usize..=9, first in any::<u16>(), second in any::<u16>()) {
            let voters: Vec<_> = (0..size).map(|n| node(&format!("n{n}"))).collect();
            let quorum = majority(size);
            let pick = |bits: u16| -> BTreeSet<_> {
                voters.iter().enumerate().filter(|(n, _)| bits >> n & 1 == 1).map(|(_, v)| v.clone()).collect()
            };
            let (first, second) = (pick(first), pick(second));
            prop_assert!(quorum <= size);
            if first.len() >= quorum && second.len() >= quorum {
                prop_assert!(!first.is_disjoint(&second));
            }
            // And it is the least such number: one fewer, and two halves could each go on alone.
            prop_assert!(2 * (quorum - 1) <= size);
        }

        #[test]
        fn what_decides_jointly_meets_both_what_decided_before_and_what_will(
            old in prop::collection::btree_set(0_usize..6, 1..6),
            new in prop::collection::btree_set(0_usize..6, 1..6),
            first in 0_u8..64, second in 0_u8..64
        ) {
            let has = |bits: u8| move |replica: usize| bits >> replica & 1 == 1;
            let (old, new) = (Quorums::majority_of(old), Quorums::majority_of(new));
            let joint = old.clone().and(new.clone());
            prop_assert_eq!(joint.is_met(has(first)), old.is_met(has(first)) && new.is_met(has(first)));
            if joint.is_met(has(first)) && (old.is_met(has(second)) || new.is_met(has(second))) {
                prop_assert!(first & second != 0, "two that share nobody");
            }
        }

        #[test]
        fn slots_are_unique(names in prop::collection::btree_set("[a-z][a-z0-9-]{0,8}", 1..40)) {
            let voters: Vec<_> = names.iter().map(|name| node(name)).collect();
            let membership = Membership::epoch_one(voters.clone()).unwrap();
            let slots: BTreeSet<_> = voters.iter().map(|v| membership.slot_of(v, StorageId(1)).unwrap()).collect();
            prop_assert_eq!(slots.len(), voters.len());
        }

        #[test]
        fn the_home_is_a_replica_whatever_the_list_s_order(
            names in prop::collection::btree_set("[a-z][a-z0-9-]{0,8}", 1..8), key in "[a-z/]{1,20}"
        ) {
            let mut voters: Vec<_> = names.iter().map(|name| node(name)).collect();
            let key = Key::parse(&key).unwrap();
            let membership = Membership::epoch_one(voters.clone()).unwrap();
            voters.reverse();
            let other = Membership::epoch_one(voters).unwrap();
            let home = membership.home(&shard(), &key, |_| true).unwrap();
            prop_assert_eq!(Some(home), other.home(&shard(), &key, |_| true));
            prop_assert!(membership.voters().any(|voter| voter == home));
        }
    }
}
