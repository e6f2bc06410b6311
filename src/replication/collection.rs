//! Which deletions to forget, and when all replicas have turned out to hold what makes that safe (rule 10).
//!
//! ```text
//!   a deletion older than twice the grace ─► G := now − grace ─► every replica refuses ≤ G ─► old rows compared ─► floor := G
//! ```
//!
//! A shard is collected at most about once in the grace, as all of its rows are read for it on every replica. So a deletion
//! is remembered for one to two times the grace, and for as long as a replica is away.
//!
//! **Comparing.** Two replicas are alike up to G where they hold the same rows of versions up to there. Rows are replaced
//! meanwhile by newer ones, on each replica at another moment, so that all at once are hardly ever alike under load. But what
//! has been alike once in one look, bucket by bucket, was all there, and stays so: nothing new is chosen up to G, and rows
//! only give way to later ones, which are chosen above G.
//!
//! Pure: `quorum/collect.rs` asks.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::Now;
use crate::store::Tombstones;
use crate::store::digest::{Buckets, Digest, Summary};
use crate::types::{Ballot, ShardId};

/// Looks of one comparison of old rows.
pub const LOOKS_MAX: usize = 6;
/// Shards whose deletions are counted in one turn; a count looks at each deletion.
const COUNTED_AT_ONCE_MAX: usize = 64;

/// What is known of the deletions of all shards.
#[derive(Debug)]
pub struct Schedule {
    grace: Duration,
    shards: BTreeMap<ShardId, Known>,
}

#[derive(Debug)]
struct Known {
    /// What summed up the deletions when they were counted.
    sum: u64,
    tombstones: Tombstones,
    /// No try before then.
    not_before: Duration,
}

impl Schedule {
    /// One by which deletions are remembered for at least `grace`.
    #[must_use]
    pub fn new(grace: Duration) -> Self {
        Self { grace, shards: BTreeMap::new() }
    }

    /// Takes note of the shards that remember deletions; hands back some whose deletions are to be counted.
    pub fn keep(&mut self, remembering: &BTreeMap<ShardId, Summary>) -> Vec<ShardId> {
        self.shards.retain(|shard, _| remembering.contains_key(shard));
        let is_known = |shard: &ShardId, sum: u64| self.shards.get(shard).is_some_and(|known| known.sum == sum);
        let changed = remembering.iter().filter(|(shard, summary)| !is_known(shard, summary.sum.dead));
        changed.map(|(shard, _)| shard.clone()).take(COUNTED_AT_ONCE_MAX).collect()
    }

    /// The deletions of a shard were counted after they had this sum.
    pub fn count(&mut self, shard: ShardId, sum: u64, tombstones: Tombstones) {
        let not_before = self.shards.get(&shard).map_or(Duration::ZERO, |known| known.not_before);
        self.shards.insert(shard, Known { sum, tombstones, not_before });
    }

    /// The shards whose time has come, and the floor that theirs is to be raised to.
    #[must_use]
    pub fn due(&self, now: Now) -> (Vec<ShardId>, Ballot) {
        let ago = |graces: u32| now.wall.saturating_sub(nanos(self.grace * graces));
        let is_due = |known: &Known| {
            known.not_before <= now.monotonic && known.tombstones.oldest.is_some_and(|oldest| oldest.nanos() < ago(2))
        };
        let due = self.shards.iter().filter(|(_, known)| is_due(known)).map(|(shard, _)| shard.clone());
        // A ballot that no round has: who finds his own in a lineage takes it for a record's.
        (due.collect(), Ballot(ago(1)).overwritten())
    }

    /// Leaves a shard alone until then.
    pub fn put_off(&mut self, shard: &ShardId, until: Duration) {
        if let Some(known) = self.shards.get_mut(shard) {
            known.not_before = until;
        }
    }

    /// All deletions that are remembered, as last counted.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.shards.values().map(|known| known.tombstones.count).sum()
    }

    /// How old the oldest of them is.
    #[must_use]
    pub fn age(&self, now: Now) -> Duration {
        let oldest = self.shards.values().filter_map(|known| known.tombstones.oldest).min();
        let nanos = oldest.map_or(0, |oldest| now.wall.saturating_sub(oldest.nanos()));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
    }
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// Old rows of all replicas, compared until each bucket has been alike on all of them once.
#[derive(Debug, Default)]
pub struct Agreement(Buckets);

impl Agreement {
    /// Takes one look at all replicas; whether each is now known to hold everything.
    pub fn look(&mut self, replicas: &[Digest]) -> bool {
        let differing = |pair: &[Digest]| match pair {
            [one, other] => one.differing(other),
            _ => Buckets::default(),
        };
        let differing = replicas.windows(2).map(differing).fold(Buckets::default(), |all, some| all.or(&some));
        self.0 = self.0.or(&differing.not());
        self.0 == Buckets::all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::digest::{Sum, bucket_of};

    fn shard(name: &str) -> ShardId {
        ShardId::parse("acme", name).unwrap()
    }

    fn at(seconds: u64) -> Now {
        Now { wall: i64::try_from(seconds).unwrap() * 1_000_000_000, monotonic: Duration::from_secs(seconds) }
    }

    fn remembering(shards: &[(&str, u64)]) -> BTreeMap<ShardId, Summary> {
        let summary = |dead| Summary { sum: Sum { live: 0, dead }, floor: Ballot::ZERO };
        shards.iter().map(|(name, dead)| (shard(name), summary(*dead))).collect()
    }

    fn digest(rows: &[(&str, i64)]) -> Digest {
        let mut digest = Digest::new(Ballot::ZERO);
        for (key, upd) in rows {
            digest.add(bucket_of(key), Sum::of(key, Ballot(*upd), true));
        }
        digest
    }

    #[test]
    fn a_deletion_is_remembered_for_one_to_two_times_the_grace() {
        let mut schedule = Schedule::new(Duration::from_secs(100));
        assert_eq!(schedule.keep(&remembering(&[("a", 1)])), [shard("a")]);
        schedule.count(shard("a"), 1, Tombstones { count: 2, oldest: Some(Ballot(at(1_000).wall)) });
        assert_eq!((schedule.total(), schedule.age(at(1_050))), (2, Duration::from_secs(50)));
        assert_eq!(schedule.due(at(1_190)).0, []);
        let (due, floor) = schedule.due(at(1_201));
        assert_eq!(due, [shard("a")]);
        assert!(floor.nanos() <= at(1_101).wall && floor.nanos() > at(1_100).wall);
        assert!(floor.0 & 0xfff == 0xfff, "nobody's ballot");
        schedule.put_off(&shard("a"), Duration::from_secs(1_300));
        assert_eq!((schedule.due(at(1_299)).0, schedule.due(at(1_300)).0.len()), (Vec::new(), 1));
    }

    /// A count looks at every deletion: it is not made twice for nothing.
    #[test]
    fn deletions_are_counted_again_once_they_have_changed() {
        let mut schedule = Schedule::new(Duration::from_secs(100));
        schedule.count(shard("a"), 1, Tombstones { count: 2, oldest: Some(Ballot(7)) });
        assert_eq!(schedule.keep(&remembering(&[("a", 1)])), []);
        assert_eq!(schedule.keep(&remembering(&[("a", 2), ("b", 5)])), [shard("a"), shard("b")]);
        assert_eq!(schedule.keep(&remembering(&[("b", 5)])), [shard("b")]);
        assert_eq!(schedule.total(), 0, "all of the other are forgotten");
        let many: Vec<String> = (0..200).map(|n| format!("s{n}")).collect();
        let many: Vec<_> = many.iter().map(|name| (name.as_str(), 1)).collect();
        assert_eq!(schedule.keep(&remembering(&many)).len(), COUNTED_AT_ONCE_MAX);
    }

    /// Rows that are replaced on one replica after the other never were alike all at once.
    #[test]
    fn what_was_alike_once_counts() {
        assert_ne!(bucket_of("k"), bucket_of("l"));
        let whole = || digest(&[("k", 1), ("l", 2)]);
        let without =
            |key: &str| digest(&[("k", 1), ("l", 2)].into_iter().filter(|row| row.0 != key).collect::<Vec<_>>());
        let mut agreement = Agreement::default();
        assert!(!agreement.look(&[whole(), without("k"), whole()]));
        assert!(!agreement.look(&[whole(), whole(), without("k")]), "not by looks that differ in the same place");
        assert!(agreement.look(&[whole(), without("l"), whole()]), "l was alike before, and k is now");
    }

    #[test]
    fn one_replica_agrees_with_itself() {
        assert!(Agreement::default().look(&[digest(&[("k", 1)])]));
    }
}
