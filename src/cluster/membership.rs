//! Who may vote, in which epoch, and what a majority of them is. Pure: no tokio, no I/O, no clocks, no randomness.
//!
//! A [`Membership`] is one voter configuration (DESIGN §5). Everything that needs counting votes asks it, and its
//! answers depend on the configuration alone, **never** on who happens to be alive: a quorum of those present is no
//! quorum.
//!
//! ```text
//!   [cluster] voters ──► Membership { epoch 1, sorted } ──► slot_of(node)        place in the list
//!                                                      ├──► replicas(shard)      who stores it, and whose votes count
//!                                                      ├──► quorum()             majority of all voters
//!                                                      └──► home(shard, key)     whom to send a contended key to
//! ```

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::types::{Key, NodeId, ShardId, Slot};

/// The most voters in one configuration. More would make every write wait for dozens of disks; it also bounds the
/// hello, which carries the list.
pub const VOTERS_MAX: usize = 255;

/// The number of the configuration that the `voters` list of the configuration file makes.
pub const FIRST_EPOCH: u64 = 1;

/// Why a list of voters makes no configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMembership {
    /// Nobody could ever agree.
    #[error("the list of voters is empty: name at least this node")]
    NoVoters,
    /// More than [`VOTERS_MAX`].
    #[error("{0} voters, more than {VOTERS_MAX}")]
    TooManyVoters(usize),
    /// A name that would have two votes.
    #[error("the list of voters names {0} twice")]
    Twice(NodeId),
    /// Epochs start at 1.
    #[error("epoch 0: epochs start at {FIRST_EPOCH}")]
    NoEpoch,
}

/// One voter configuration: never empty, sorted by name, no name twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked", into = "Unchecked")]
pub struct Membership {
    epoch: u64,
    voters: Vec<NodeId>,
}

/// What a [`Membership`] is written and read as.
#[derive(Serialize, Deserialize)]
struct Unchecked {
    epoch: u64,
    voters: Vec<NodeId>,
}

impl TryFrom<Unchecked> for Membership {
    type Error = InvalidMembership;
    fn try_from(read: Unchecked) -> Result<Self, Self::Error> {
        Self::new(read.epoch, read.voters)
    }
}

impl From<Membership> for Unchecked {
    fn from(membership: Membership) -> Self {
        Self { epoch: membership.epoch, voters: membership.voters }
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
        let each = self.0.iter().map(|replicas| {
            let there = replicas.iter().filter(|replica| has(**replica)).count();
            format!("{there} of {} voters, {} needed", replicas.len(), majority(replicas.len()))
        });
        each.collect::<Vec<_>>().join(", and ")
    }
}

impl Membership {
    /// The configuration that the `voters` list makes, in whatever order it names them.
    pub fn epoch_one(voters: Vec<NodeId>) -> Result<Self, InvalidMembership> {
        Self::new(FIRST_EPOCH, voters)
    }

    fn new(epoch: u64, mut voters: Vec<NodeId>) -> Result<Self, InvalidMembership> {
        voters.sort_unstable();
        if epoch < FIRST_EPOCH {
            return Err(InvalidMembership::NoEpoch);
        }
        if voters.is_empty() {
            return Err(InvalidMembership::NoVoters);
        }
        if voters.len() > VOTERS_MAX {
            return Err(InvalidMembership::TooManyVoters(voters.len()));
        }
        let mut pairs = voters.iter().zip(voters.iter().skip(1));
        if let Some((twice, _)) = pairs.find(|(a, b)| a == b) {
            return Err(InvalidMembership::Twice(twice.clone()));
        }
        Ok(Self { epoch, voters })
    }

    /// The configuration's number.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The voters, sorted by name.
    #[must_use]
    pub fn voters(&self) -> &[NodeId] {
        &self.voters
    }

    /// True where `node`'s vote counts.
    #[must_use]
    pub fn is_voter(&self, node: &NodeId) -> bool {
        self.voters.binary_search(node).is_ok()
    }

    /// The proposer number of a voter: its place in the sorted list, so that nodes with the same list agree on it
    /// without a word. `None` for a node that is no voter.
    #[must_use]
    pub fn slot_of(&self, node: &NodeId) -> Option<Slot> {
        let place = self.voters.binary_search(node).ok()?;
        u16::try_from(place).ok().and_then(Slot::new)
    }

    /// How many voters must agree: a majority of all of them.
    #[must_use]
    pub fn quorum(&self) -> usize {
        majority(self.voters.len())
    }

    /// Which of them decide, by their slots.
    #[must_use]
    pub fn quorums(&self) -> Quorums {
        Quorums::majority_of(0..self.voters.len())
    }

    /// The nodes that store `shard` and whose votes on it count, sorted: in this version every voter stores every
    /// shard. Callers count their quorum as [`majority`] of what this returns.
    #[must_use]
    pub fn replicas(&self, _shard: &ShardId) -> &[NodeId] {
        &self.voters
    }

    /// The replica that proposals for a contended key had best go to, so that they queue there instead of colliding: the
    /// best of those that `is_fit` says can take them. A hint, never needed for safety, and the same on every node that
    /// finds the same ones fit, of every version and on every platform (see `score`). None where none is fit.
    #[must_use]
    pub fn home(&self, shard: &ShardId, key: &Key, is_fit: impl Fn(&NodeId) -> bool) -> Option<&NodeId> {
        let fit = self.replicas(shard).iter().filter(|node| is_fit(node));
        fit.max_by_key(|node| (score(node, shard, key), *node))
    }
}

/// The rendezvous hash (Thaler and Ravishankar, "A Name-Based Mapping Scheme for Rendezvous", 1996) of one replica
/// for one key: the highest score wins, and a replica that goes or comes moves only the keys it won or wins.
///
/// FNV-1a over node, org, namespace and key, each followed by the byte `0xff`, which no UTF-8 text holds, so that no
/// two different tuples read alike; then the finisher of SplitMix64, as FNV alone leaves the high bits of similar
/// names similar. All nodes must agree on it: changing it is a change of the wire format.
fn score(node: &NodeId, shard: &ShardId, key: &Key) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut hash = OFFSET;
    for part in [node.as_str(), shard.org.as_str(), shard.namespace.as_str(), key.as_str()] {
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
        let slots: Vec<_> = ["a", "b", "c"].iter().map(|n| one.slot_of(&node(n)).unwrap().number()).collect();
        assert_eq!(slots, [0, 1, 2]);
        assert_eq!(one.slot_of(&node("d")), None);
        assert!(one.is_voter(&node("b")) && !one.is_voter(&node("d")));
    }

    #[test]
    fn lists_that_make_no_configuration_are_refused() {
        assert_eq!(Membership::epoch_one(vec![]), Err(InvalidMembership::NoVoters));
        let twice = Membership::epoch_one(vec![node("b"), node("a"), node("b")]);
        assert_eq!(twice, Err(InvalidMembership::Twice(node("b"))));
        let many = (0..=VOTERS_MAX).map(|n| node(&format!("n{n}"))).collect();
        assert_eq!(Membership::epoch_one(many), Err(InvalidMembership::TooManyVoters(VOTERS_MAX + 1)));
    }

    #[test]
    fn what_is_read_back_is_checked_again() {
        let text = serde_json::to_string(&membership(&["b", "a"])).unwrap();
        assert_eq!(serde_json::from_str::<Membership>(&text).unwrap(), membership(&["a", "b"]));
        for bad in [r#"{"epoch":1,"voters":[]}"#, r#"{"epoch":0,"voters":["a"]}"#, r#"{"epoch":1,"voters":["a","a"]}"#]
        {
            assert!(serde_json::from_str::<Membership>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_score_never_changes() {
        // Pinned: nodes of different versions must name the same home.
        let key = Key::parse("wf/payments/a/1").unwrap();
        assert_eq!(score(&node("a"), &shard(), &key), 8_521_506_985_278_308_345);
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
            assert!(later == home || *later == node("d"), "a key moved between nodes that were there before");
            assert_eq!(four.home(&shard(), &key, |node| node.as_str() != "d"), Some(home), "as if d were not there");
            moved += usize::from(later != home);
            *homes.entry(home.clone()).or_default() += 1;
        }
        assert!(homes.len() == 3 && homes.values().all(|&count| (900..1_100).contains(&count)), "{homes:?}");
        assert!((650..850).contains(&moved), "{moved}");
    }

    proptest! {
        #[test]
        fn any_two_quorums_intersect(size in 1_usize..=9, first in any::<u16>(), second in any::<u16>()) {
            let voters: Vec<_> = (0..size).map(|n| node(&format!("n{n}"))).collect();
            let membership = Membership::epoch_one(voters.clone()).unwrap();
            let pick = |bits: u16| -> BTreeSet<_> {
                voters.iter().enumerate().filter(|(n, _)| bits >> n & 1 == 1).map(|(_, v)| v.clone()).collect()
            };
            let (first, second) = (pick(first), pick(second));
            prop_assert!(membership.quorum() <= size);
            if first.len() >= membership.quorum() && second.len() >= membership.quorum() {
                prop_assert!(!first.is_disjoint(&second));
            }
            // And it is the least such number: one fewer, and two halves could each go on alone.
            prop_assert!(2 * (membership.quorum() - 1) <= size);
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
            let slots: BTreeSet<_> = voters.iter().map(|v| membership.slot_of(v).unwrap()).collect();
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
            prop_assert!(membership.replicas(&shard()).contains(home));
        }
    }
}
