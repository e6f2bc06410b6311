//! Which voters replicate which shard (DESIGN §5). Pure: no tokio, no I/O, no clocks, no randomness.
//!
//! ```text
//!   all voters, or ── replication_factor R ──► the R best by rendezvous hash ── pins ──► those named come first
//! ```
//!
//! Replicas vote on their shard's keys and hold all its rows; a majority of *them* decides. A voter that is no replica of a
//! shard is to it what an observer is: it proposes, and holds a copy only where its application uses one. The shard of the
//! cluster's own registers is replicated by every voter.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::membership::{Membership, Quorums, majority, score};
use crate::types::{NodeId, ShardId};

/// Shards whose replicas are named; more would make the configuration, which is one value, large.
pub const PINS_MAX: usize = 1024;

/// Who votes, and on what.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// Those who vote, by their slots.
    pub voters: BTreeSet<usize>,
    /// How many of them replicate each shard; none for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication_factor: Option<usize>,
    /// Who replicates a shard before all others, whatever the hash says.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", with = "pairs")]
    pub pins: BTreeMap<ShardId, BTreeSet<usize>>,
}

/// A map whose keys are no text, as a list of pairs.
mod pairs {
    use std::collections::{BTreeMap, BTreeSet};

    use serde::{Deserialize, Deserializer, Serializer};

    use crate::types::ShardId;

    type Pins = BTreeMap<ShardId, BTreeSet<usize>>;

    pub(super) fn serialize<S: Serializer>(pins: &Pins, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(pins)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Pins, D::Error> {
        Ok(Vec::<(ShardId, BTreeSet<usize>)>::deserialize(from)?.into_iter().collect())
    }
}

impl Placement {
    /// How many replicas each shard has.
    #[must_use]
    pub fn copies(&self) -> usize {
        self.replication_factor.map_or(self.voters.len(), |factor| factor.clamp(1, self.voters.len().max(1)))
    }

    /// True where every voter replicates every shard.
    #[must_use]
    pub fn is_everywhere(&self) -> bool {
        self.copies() >= self.voters.len()
    }

    /// How many of the voters may be missing while the others are sure to have a majority of the replicas of *every* shard,
    /// whichever those are.
    #[must_use]
    pub fn spare(&self) -> usize {
        self.copies().saturating_sub(majority(self.copies()))
    }

    /// True where those for which `has` holds include a majority of the replicas of *every* shard, whichever those are.
    pub fn is_enough(&self, has: impl Fn(usize) -> bool) -> bool {
        self.voters.iter().filter(|slot| !has(**slot)).count() <= self.spare()
    }

    /// Another disk votes in the place of one, on the same shards.
    pub(super) fn exchange(&mut self, old: usize, new: usize) {
        for slots in std::iter::once(&mut self.voters).chain(self.pins.values_mut()) {
            if slots.remove(&old) {
                slots.insert(new);
            }
        }
    }

    /// Votes no more.
    pub(super) fn remove(&mut self, slot: usize) {
        self.voters.remove(&slot);
        self.pins.retain(|_, pinned| {
            pinned.remove(&slot);
            !pinned.is_empty()
        });
    }
}

impl Membership {
    /// Who replicates `shard` by this placement: those it is pinned to, then the best by rendezvous hash (see `score`).
    fn placed(&self, placement: &Placement, shard: &ShardId) -> BTreeSet<usize> {
        if placement.is_everywhere() || shard.is_system() {
            return placement.voters.clone();
        }
        let pinned = placement.pins.get(shard);
        let rank = |slot: &usize| {
            let is_pinned = pinned.is_some_and(|pinned| pinned.contains(slot));
            (is_pinned, self.member(*slot).map_or(0, |member| score(&member.node, shard, "")), *slot)
        };
        let mut voters: Vec<usize> = placement.voters.iter().copied().collect();
        voters.sort_by_cached_key(|slot| std::cmp::Reverse(rank(slot)));
        voters.into_iter().take(placement.copies()).collect()
    }

    /// Who has replicated `shard` until a change that is under way.
    #[must_use]
    pub fn old_replicas(&self, shard: &ShardId) -> BTreeSet<usize> {
        self.placed(self.placement(), shard)
    }

    /// Who replicates it from now on, or will once the change that is under way is done.
    #[must_use]
    pub fn new_replicas(&self, shard: &ShardId) -> BTreeSet<usize> {
        self.placed(self.next_placement(), shard)
    }

    /// The names of those who replicate it, sorted: while a change is under way, those of before and of after.
    #[must_use]
    pub fn replica_names(&self, shard: &ShardId) -> Vec<NodeId> {
        let mut replicas = self.old_replicas(shard);
        replicas.extend(self.new_replicas(shard));
        self.names_of(&replicas)
    }

    /// The names of the members with these slots, sorted, each once.
    #[must_use]
    pub fn names_of(&self, slots: &BTreeSet<usize>) -> Vec<NodeId> {
        let members = slots.iter().filter_map(|slot| self.member(*slot));
        members.map(|member| member.node.clone()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Which of the replicas of `shard` decide, by their slots.
    #[must_use]
    pub fn quorums_on(&self, shard: &ShardId) -> Quorums {
        self.deciding(|placement| self.placed(placement, shard))
    }

    /// True for who has, or will have, a vote on the keys of `shard`.
    #[must_use]
    pub fn is_replica(&self, shard: &ShardId, slot: usize) -> bool {
        self.is_voter(slot)
            && ((self.is_everywhere() && !self.is_joint())
                || self.old_replicas(shard).contains(&slot)
                || self.new_replicas(shard).contains(&slot))
    }

    /// True where every voter replicates every shard, before and after a change that is under way.
    #[must_use]
    pub fn is_everywhere(&self) -> bool {
        self.placement().is_everywhere() && self.next_placement().is_everywhere()
    }

    /// True where a change is under way in which this shard gets other replicas.
    #[must_use]
    pub fn moves(&self, shard: &ShardId) -> bool {
        self.is_joint() && self.old_replicas(shard) != self.new_replicas(shard)
    }

    /// The shards that a change which is under way moves, where that can be told without knowing all shards: where nothing
    /// changes but what is pinned.
    #[must_use]
    pub fn moved_pins(&self) -> Option<Vec<&ShardId>> {
        let (now, next) = (self.placement(), self.next_placement());
        if now.voters != next.voters || now.replication_factor != next.replication_factor {
            return None;
        }
        let named: BTreeSet<&ShardId> = now.pins.keys().chain(next.pins.keys()).collect();
        Some(named.into_iter().filter(|shard| self.moves(shard)).collect())
    }

    /// True where those new voters that have compared their rows with these old ones know everything that was chosen before
    /// the change: for every shard that moves, a majority of its new replicas have compared with a majority of its old.
    #[must_use]
    pub fn is_scanned(&self, has_compared: impl Fn(usize, usize) -> bool) -> bool {
        if let Some(moved) = self.moved_pins() {
            return moved.into_iter().all(|shard| {
                let (old, new) = (self.old_replicas(shard), self.new_replicas(shard));
                let old = Quorums::majority_of(old);
                Quorums::majority_of(new).is_met(|new| old.is_met(|old| has_compared(new, old)))
            });
        }
        self.next_placement().is_enough(|new| self.is_level(new, &has_compared))
    }

    /// True where a new voter has compared its rows with so many of the old ones that they include a majority of the old
    /// replicas of any shard.
    #[must_use]
    pub fn is_level(&self, new: usize, has_compared: impl Fn(usize, usize) -> bool) -> bool {
        self.placement().is_enough(|old| has_compared(new, old))
    }

    /// True where this new voter has to replicate the shard, which it has not replicated before.
    #[must_use]
    pub fn gains(&self, slot: usize, shard: &ShardId) -> bool {
        self.new_replicas(shard).contains(&slot) && !self.old_replicas(shard).contains(&slot)
    }

    /// True where this new voter may have to replicate what it has not replicated before.
    #[must_use]
    pub fn may_gain(&self, slot: usize) -> bool {
        match self.moved_pins() {
            Some(moved) => self.is_joint() && moved.into_iter().any(|shard| self.gains(slot, shard)),
            None if self.is_everywhere() => self.will_vote(slot) && !self.old_voters().contains(&slot),
            None => self.will_vote(slot),
        }
    }

    /// What is missing, if those that are there could not decide on every shard that a change moves, whichever those are, and
    /// on the configuration.
    #[must_use]
    pub fn cannot_decide(&self, is_there: impl Fn(usize) -> bool) -> Option<String> {
        let quorums = self.quorums();
        if !quorums.is_met(&is_there) {
            return Some(quorums.tell(is_there));
        }
        if let Some(moved) = self.moved_pins() {
            let on = moved.into_iter().map(|shard| (shard, self.quorums_on(shard)));
            let mut stuck = on.filter(|(_, quorums)| !quorums.is_met(&is_there));
            return stuck.next().map(|(shard, quorums)| quorums.tell_on(shard, &is_there));
        }
        [self.placement(), self.next_placement()].into_iter().find_map(|placement| {
            let there = placement.voters.iter().filter(|slot| is_there(**slot)).count();
            let (copies, all, spare) = (placement.copies(), placement.voters.len(), placement.spare());
            (!placement.is_enough(&is_there)).then(|| {
                format!(
                    "{there} of {all} voters; with {copies} replicas of each shard no more than {spare} may be away"
                )
            })
        })
    }
}

/// Who decides on the keys of one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Electors {
    /// Which of them decide together.
    pub quorums: Quorums,
    /// All of them, by their slots.
    pub replicas: BTreeSet<usize>,
}

impl From<Quorums> for Electors {
    fn from(quorums: Quorums) -> Self {
        Self { replicas: quorums.replicas(), quorums }
    }
}

/// Who decides on each shard, as of one configuration.
#[derive(Debug, Clone)]
pub struct Electorate {
    /// Every voter.
    voters: Arc<Electors>,
    /// Asked where not every voter replicates every shard.
    placing: Option<Arc<Membership>>,
}

impl Electorate {
    /// That of this configuration.
    #[must_use]
    pub fn of(membership: &Membership) -> Self {
        let placing = (!membership.is_everywhere()).then(|| Arc::new(membership.clone()));
        Self { voters: Arc::new(membership.quorums().into()), placing }
    }

    /// Who decides on this shard.
    #[must_use]
    pub fn on(&self, shard: &ShardId) -> Arc<Electors> {
        match &self.placing {
            None => self.voters.clone(),
            Some(membership) => Arc::new(membership.quorums_on(shard).into()),
        }
    }

    /// How far those that are there are from deciding on this shard, and who is away, for a person.
    pub fn tell(&self, shard: &ShardId, is_there: impl Fn(usize) -> bool) -> String {
        let electors = self.on(shard);
        let told = electors.quorums.tell_on(shard, &is_there);
        let away = electors.replicas.iter().copied().filter(|slot| !is_there(*slot)).collect();
        let away = self.placing.as_ref().map(|membership| membership.names_of(&away)).unwrap_or_default();
        let names: Vec<&str> = away.iter().map(NodeId::as_str).collect();
        if names.is_empty() { told } else { format!("{told}; away: {}", names.join(", ")) }
    }
}

impl From<Quorums> for Electorate {
    /// The same on every shard.
    fn from(quorums: Quorums) -> Self {
        Self { voters: Arc::new(quorums.into()), placing: None }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cluster::change::VoterChange;
    use crate::types::StorageId;

    const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

    fn node(name: &str) -> NodeId {
        NodeId::parse(name).unwrap()
    }

    fn shard(name: &str) -> ShardId {
        ShardId::parse("acme", name).unwrap()
    }

    fn cluster(voters: usize, factor: Option<usize>) -> Membership {
        let names = NAMES.iter().take(voters).map(|name| node(name)).collect();
        let first = Membership::epoch_one(names).unwrap();
        let first = first.with_disks(|node| Some(StorageId(u64::from(node.as_str().as_bytes()[0]))));
        first.with_replication_factor(factor).unwrap()
    }

    #[test]
    fn shards_are_spread_over_the_voters_and_few_move_when_one_comes() {
        let (four, five) = (cluster(4, Some(3)), cluster(5, Some(3)));
        let (mut held, mut moved) = ([0; 5], 0);
        for n in 0..2_000 {
            let shard = shard(&format!("n{n}"));
            let (before, after) = (four.old_replicas(&shard), five.old_replicas(&shard));
            assert_eq!((before.len(), after.len()), (3, 3));
            assert!(after.is_subset(&before.iter().copied().chain([4]).collect()), "moved between the old ones");
            moved += usize::from(before != after);
            after.into_iter().for_each(|slot| held[slot] += 1);
        }
        assert!(held.iter().all(|held| (1_100..1_300).contains(held)), "{held:?}");
        assert!((1_100..1_300).contains(&moved), "three in five: {moved}");
    }

    #[test]
    fn every_voter_replicates_the_cluster_s_own_shard_and_all_where_there_are_no_more_than_the_factor() {
        let five = cluster(5, Some(3));
        assert_eq!(five.old_replicas(&ShardId::system()), (0..5).collect());
        assert!(!five.is_everywhere() && cluster(3, Some(3)).is_everywhere() && cluster(2, Some(5)).is_everywhere());
        assert_eq!(cluster(2, Some(5)).old_replicas(&shard("x")), (0..2).collect());
        assert!(five.is_replica(&ShardId::system(), 4) && !five.is_replica(&ShardId::system(), 5));
    }

    #[test]
    fn a_pinned_shard_is_where_it_is_pinned_and_elsewhere_by_hash() {
        let five = cluster(5, Some(3));
        let shard = shard("x");
        let before = five.old_replicas(&shard);
        let other = (0..5).find(|slot| !before.contains(slot)).unwrap();
        let to = vec![node(NAMES[other])];
        let joint = five.begin(&VoterChange::Move { shard: shard.clone(), to: to.clone() }).unwrap().unwrap();
        assert!(joint.moves(&shard) && joint.moved_pins() == Some(vec![&shard]));
        let done = joint.finish().unwrap();
        let after = done.old_replicas(&shard);
        let told: BTreeSet<_> = joint.replica_names(&shard).into_iter().collect();
        assert_eq!(told, before.union(&after).map(|slot| node(NAMES[*slot])).collect(), "those of before and of after");
        assert_eq!(done.replica_names(&shard).len(), 3);
        assert!(after.contains(&other) && after.len() == 3 && after.intersection(&before).count() == 2);
        assert_eq!(done.begin(&VoterChange::Move { shard: shard.clone(), to }), Ok(None), "it is there");
        let back = done.begin(&VoterChange::Move { shard: shard.clone(), to: Vec::new() }).unwrap().unwrap();
        assert_eq!(back.finish().unwrap().old_replicas(&shard), before);
        // It goes with its node to another disk, and away with it.
        let gone = done.begin(&VoterChange::Remove(node(NAMES[other]))).unwrap().unwrap().finish().unwrap();
        assert!(gone.placement().pins.is_empty());
    }

    #[test]
    fn what_is_scanned_is_told_by_those_that_may_be_missing() {
        let joint = cluster(5, Some(3)).begin(&VoterChange::Factor(Some(5))).unwrap().unwrap();
        let all_but = |olds: &'static [usize]| move |_, old| !olds.contains(&old);
        assert!(joint.is_scanned(all_but(&[3])) && !joint.is_scanned(all_but(&[3, 4])));
        assert!(joint.is_scanned(|new, _| new < 3) && !joint.is_scanned(|new, _| new < 2));
    }

    proptest! {
        /// On every shard, what decides in an epoch meets what decides in the next, whatever is changed.
        #[test]
        fn quorums_of_neighbouring_epochs_meet_on_every_shard(
            factor in prop::option::of(1_usize..5), steps in prop::collection::vec((0_u8..5, 0_usize..6), 1..25)
        ) {
            let mut membership = cluster(3, factor);
            for (kind, which) in steps {
                let name = node(NAMES[which]);
                let next = match kind {
                    0 => membership.register(&name, StorageId(which as u64 + 50)).unwrap(),
                    1 => membership.finish(),
                    2 => membership.begin(&VoterChange::Add(name)).ok().flatten(),
                    3 => membership.begin(&VoterChange::Move { shard: shard("x"), to: vec![name] }).ok().flatten(),
                    _ => membership.begin(&VoterChange::Remove(name)).ok().flatten(),
                };
                let Some(next) = next else { continue };
                prop_assert_eq!(Membership::decode(&next.encode()), Ok(next.clone()));
                for shard in [shard("x"), shard("y"), ShardId::system()] {
                    for (one, other) in [(&membership, &next), (&next, &membership)] {
                        let few: BTreeSet<usize> = [one.old_replicas(&shard), one.new_replicas(&shard)].into_iter()
                            .flat_map(|replicas| { let n = majority(replicas.len()); replicas.into_iter().take(n) }).collect();
                        prop_assert!(one.quorums_on(&shard).is_met(|slot| few.contains(&slot)));
                        prop_assert!(!other.quorums_on(&shard).is_met(|slot| !few.contains(&slot)));
                    }
                }
                membership = next;
            }
        }

        /// What `is_scanned` takes for enough is enough on every shard.
        #[test]
        fn enough_for_all_is_enough_for_each(
            factor in prop::option::of(1_usize..5), later in prop::option::of(1_usize..5), pairs in any::<u64>()
        ) {
            let Some(joint) = cluster(5, factor).begin(&VoterChange::Factor(later)).unwrap() else { return Ok(()) };
            // Mostly done, as otherwise it never is.
            let has = |new: usize, old: usize| (pairs >> (new * 5 + old)) & 1 == 1 || (pairs >> (32 + old)) & 1 == 1;
            if joint.is_scanned(has) {
                for n in 0..20 {
                    let shard = shard(&format!("n{n}"));
                    let old = Quorums::majority_of(joint.old_replicas(&shard));
                    let new = Quorums::majority_of(joint.new_replicas(&shard));
                    prop_assert!(new.is_met(|new| old.is_met(|old| has(new, old))), "{}", shard);
                }
            }
        }
    }
}
