//! What a shard holds, in a few bytes: sums by which two nodes find the rows in which they differ without showing each
//! other all of them.
//!
//! ```text
//!   row (key, upd, live or deleted) ──SHA-256──► a number, added to its key's bucket: one of 1024, by CRC-32C
//!   buckets ──sum──► a shard's summary ──hashed with its name, sum──► the root over all shards
//! ```
//!
//! A sum knows no order and takes rows out as well as in, so that it is kept up with every row written (AdHash: Bellare
//! and Micciancio, "A New Paradigm for Collision-Free Hashing", 1997; 64 bits find every accident, and nobody is promised
//! protection from a node that lies). Nothing in it depends on a machine or a process: nodes that hold the same rows have
//! the same sums.
//!
//! **What counts as the same** is the key, its version and whether it is deleted: not the value, which follows from the
//! version, nor the round that chose it, as a later round may have chosen the same again on some nodes only.
//!
//! **Deletions are summed apart from live rows**, and only those above the shard's GC floor: each node forgets those below
//! it at a moment of its own, and some later than others. Between two floors the sums of deletions say nothing: they are
//! compared only where floors are equal. Live rows always are. A deletion that one of two nodes missed shows all the same
//! where there was something to delete, and is brought as soon as the floors agree where there was not.
//!
//! Pure: what keeps it beside the rows is in `writer.rs` and `compare.rs`.

use serde::{Deserialize, Serialize};

use super::replicator::Op;
use super::rows::StoredRow;
use crate::types::{Ballot, Key, ShardId};

/// Parts into which the keys of a shard are spread. One differing key among a million costs all of these sums, and the
/// keys of one bucket: a thousand of each.
pub const BUCKETS: usize = 1024;

/// Which part a key belongs to.
#[must_use]
pub fn bucket_of(key: &str) -> u16 {
    // Made for spreading, and some ten times faster than SHA-256: a scan for one bucket asks it of every key.
    u16::try_from(crc32c::crc32c(key.as_bytes()) as usize % BUCKETS).unwrap_or_default()
}

/// The sums of some rows: a commutative group, so that rows come and go in any order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sum {
    /// Of live rows.
    #[serde(rename = "l")]
    pub live: u64,
    /// Of deletions still remembered.
    #[serde(rename = "d")]
    pub dead: u64,
}

impl Sum {
    /// That of one row.
    #[must_use]
    pub fn of(key: &str, upd: Ballot, is_live: bool) -> Self {
        // No key holds a NUL, so no two rows read the same.
        let number = hash(&[key.as_bytes(), &[0, u8::from(is_live)], &upd.0.to_le_bytes()]);
        if is_live { Self { live: number, dead: 0 } } else { Self { live: 0, dead: number } }
    }

    /// That of one row in a shard with this GC floor: none where it is a deletion that is forgotten, or may be.
    #[must_use]
    pub fn above(floor: Ballot, key: &str, upd: Ballot, is_live: bool) -> Self {
        if is_live || upd > floor { Self::of(key, upd, is_live) } else { Self::default() }
    }

    /// That of what is stored of a key in a shard with this GC floor.
    #[must_use]
    pub fn of_stored(floor: Ballot, key: &str, stored: Option<&StoredRow>) -> Self {
        stored.map_or_else(Self::default, |row| Self::above(floor, key, row.upd, row.op != Op::Del))
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { live: self.live.wrapping_add(other.live), dead: self.dead.wrapping_add(other.dead) }
    }

    /// This without the other.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self { live: self.live.wrapping_sub(other.live), dead: self.dead.wrapping_sub(other.dead) }
    }
}

fn hash(parts: &[&[u8]]) -> u64 {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    parts.iter().for_each(|part| context.update(part));
    let bytes = context.finish();
    bytes.as_ref().iter().take(8).fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

/// A shard's rows as one sum, with the floor below which it has forgotten deletions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Of all rows.
    #[serde(rename = "s")]
    pub sum: Sum,
    /// The GC floor.
    #[serde(rename = "f")]
    pub floor: Ballot,
}

impl Summary {
    /// Whether both are of the same rows, as far as can be told.
    #[must_use]
    pub fn agrees(&self, other: &Self) -> bool {
        agree(self.sum, other.sum, self.floor == other.floor)
    }

    /// What it adds to the root. A shard without rows adds nothing, so that one that was merely opened does not count.
    fn in_root(&self, shard: &ShardId) -> u64 {
        if self.sum == Sum::default() {
            return 0;
        }
        let Sum { live, dead } = self.sum;
        let (org, namespace) = (shard.org.as_str().as_bytes(), shard.namespace.as_str().as_bytes());
        hash(&[org, &[0], namespace, &[0], &live.to_le_bytes(), &dead.to_le_bytes()])
    }
}

fn agree(one: Sum, other: Sum, floors_agree: bool) -> bool {
    one.live == other.live && (one.dead == other.dead || !floors_agree)
}

/// All shards of a node in one number. It says nothing of floors: between two of them roots differ, and a comparison that
/// then finds nothing is all that comes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Root(pub u64);

impl Root {
    /// A shard that held `before` holds `after` now.
    pub fn exchange(&mut self, shard: &ShardId, before: Option<&Summary>, after: Option<&Summary>) {
        if before != after {
            let adds = |summary: Option<&Summary>| summary.map_or(0, |summary| summary.in_root(shard));
            self.0 = self.0.wrapping_sub(adds(before)).wrapping_add(adds(after));
        }
    }
}

impl<'a> FromIterator<(&'a ShardId, &'a Summary)> for Root {
    fn from_iter<I: IntoIterator<Item = (&'a ShardId, &'a Summary)>>(shards: I) -> Self {
        Self(shards.into_iter().fold(0, |root, (shard, summary)| root.wrapping_add(summary.in_root(shard))))
    }
}

/// A shard's sums, by bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Sparse", into = "Sparse")]
pub struct Digest {
    floor: Ballot,
    sums: Vec<Sum>,
}

impl Digest {
    /// That of no rows.
    #[must_use]
    pub fn new(floor: Ballot) -> Self {
        Self { floor, sums: vec![Sum::default(); BUCKETS] }
    }

    /// Takes in a row, or what has changed of one.
    pub fn add(&mut self, bucket: u16, change: Sum) {
        if let Some(sum) = self.sums.get_mut(usize::from(bucket)) {
            *sum = sum.plus(change);
        }
    }

    /// Takes in the rows of another.
    pub fn merge(&mut self, other: &Self) {
        for (sum, more) in self.sums.iter_mut().zip(&other.sums) {
            *sum = sum.plus(*more);
        }
    }

    /// The floor is `floor` now, which takes out the rows of `gone`.
    pub fn raise(&mut self, floor: Ballot, gone: &Self) {
        self.floor = floor;
        for (sum, less) in self.sums.iter_mut().zip(&gone.sums) {
            *sum = sum.minus(*less);
        }
    }

    /// All of it in one sum.
    #[must_use]
    pub fn summary(&self) -> Summary {
        Summary { sum: self.sums.iter().fold(Sum::default(), |all, sum| all.plus(*sum)), floor: self.floor }
    }

    /// The GC floor.
    #[must_use]
    pub fn floor(&self) -> Ballot {
        self.floor
    }

    /// The buckets in which the other holds other rows, as far as can be told.
    #[must_use]
    pub fn differing(&self, other: &Self) -> Buckets {
        let pairs = (0..).zip(self.sums.iter().zip(&other.sums));
        let differ = |(one, another): (&Sum, &Sum)| !agree(*one, *another, self.floor == other.floor);
        pairs.filter(|(_, sums)| differ(*sums)).map(|(bucket, _)| bucket).collect()
    }
}

/// How a digest is written: without the buckets that hold nothing.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Sparse(Ballot, Vec<(u16, u64, u64)>);

impl From<Digest> for Sparse {
    fn from(digest: Digest) -> Self {
        let sums = (0..).zip(&digest.sums).filter(|(_, sum)| **sum != Sum::default());
        Self(digest.floor, sums.map(|(bucket, sum)| (bucket, sum.live, sum.dead)).collect())
    }
}

impl TryFrom<Sparse> for Digest {
    type Error = NoSuchBucket;

    fn try_from(Sparse(floor, sums): Sparse) -> Result<Self, Self::Error> {
        let mut digest = Self::new(floor);
        for (bucket, live, dead) in sums {
            let sum = digest.sums.get_mut(usize::from(bucket)).ok_or(NoSuchBucket(bucket))?;
            *sum = Sum { live, dead };
        }
        Ok(digest)
    }
}

/// A number that names no bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("bucket {0} of {BUCKETS}")]
pub struct NoSuchBucket(u16);

const WORD_BITS: usize = u64::BITS as usize;

/// Some buckets.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<u16>", into = "Vec<u16>")]
pub struct Buckets([u64; BUCKETS / WORD_BITS]);

impl Buckets {
    /// Whether it is one of them.
    #[must_use]
    pub fn contains(&self, bucket: u16) -> bool {
        let (word, bit) = place(bucket);
        self.0.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Each, from the lowest on.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        (0..).take(BUCKETS).filter(|bucket| self.contains(*bucket))
    }

    /// Those that are among the others, too.
    #[must_use]
    pub fn and(&self, others: &Self) -> Self {
        self.iter().filter(|bucket| others.contains(*bucket)).collect()
    }

    /// Those that are among either.
    #[must_use]
    pub fn or(&self, others: &Self) -> Self {
        self.iter().chain(others.iter()).collect()
    }

    /// All the others.
    #[must_use]
    pub fn not(&self) -> Self {
        Self(self.0.map(|word| !word))
    }

    /// All of them.
    #[must_use]
    pub fn all() -> Self {
        Self::default().not()
    }

    /// A bit for each bucket, from the lowest of the first byte on.
    #[must_use]
    pub fn to_bits(&self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Whether a key is in one of them.
    #[must_use]
    pub fn hold(&self, key: &Key) -> bool {
        self.contains(bucket_of(key.as_str()))
    }
}

fn place(bucket: u16) -> (usize, u64) {
    (usize::from(bucket) / WORD_BITS, 1 << (usize::from(bucket) % WORD_BITS))
}

impl FromIterator<u16> for Buckets {
    fn from_iter<I: IntoIterator<Item = u16>>(buckets: I) -> Self {
        let mut some = Self::default();
        for bucket in buckets {
            let (word, bit) = place(bucket);
            some.0.get_mut(word).into_iter().for_each(|word| *word |= bit);
        }
        some
    }
}

impl From<Buckets> for Vec<u16> {
    fn from(buckets: Buckets) -> Self {
        buckets.iter().collect()
    }
}

impl TryFrom<Vec<u16>> for Buckets {
    type Error = NoSuchBucket;

    fn try_from(buckets: Vec<u16>) -> Result<Self, Self::Error> {
        match buckets.iter().find(|bucket| usize::from(**bucket) >= BUCKETS) {
            Some(bucket) => Err(NoSuchBucket(*bucket)),
            None => Ok(buckets.into_iter().collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn digest(rows: &BTreeMap<String, (i64, bool)>) -> Digest {
        let mut digest = Digest::new(Ballot::ZERO);
        for (key, (upd, is_live)) in rows {
            digest.add(bucket_of(key), Sum::of(key, Ballot(*upd), *is_live));
        }
        digest
    }

    /// Nodes of different machines and versions compare these numbers.
    #[test]
    fn the_numbers_are_the_same_everywhere() {
        assert_eq!(bucket_of("wf/payments/a/1"), 267);
        assert_eq!(Sum::of("k", Ballot(7), true), Sum { live: 0x7fb4_917e_c643_4205, dead: 0 });
        assert_eq!(Sum::of("k", Ballot(7), false), Sum { live: 0, dead: 0x46ea_ab4d_77c4_93ba });
    }

    #[test]
    fn keys_are_spread_over_all_buckets() {
        let mut counts = [0; BUCKETS];
        for n in 0..100 * BUCKETS {
            counts[usize::from(bucket_of(&format!("wf/orders/{n:06}")))] += 1;
        }
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(*least >= 50 && *most <= 200, "{least}..{most} of 100");
    }

    #[test]
    fn deletions_are_compared_where_floors_agree() {
        let rows = BTreeMap::from([("a".to_owned(), (1, true)), ("b".to_owned(), (2, false))]);
        let forgot = BTreeMap::from([("a".to_owned(), (1, true))]);
        let (remembers, mut forgets) = (digest(&rows), digest(&forgot));
        assert!(!remembers.summary().agrees(&forgets.summary()));
        assert_eq!(remembers.differing(&forgets).iter().collect::<Vec<_>>(), [bucket_of("b")]);
        forgets.floor = Ballot(2);
        assert!(remembers.summary().agrees(&forgets.summary()));
        assert!(remembers.differing(&forgets).is_empty());
        forgets.add(bucket_of("c"), Sum::of("c", Ballot(3), true));
        assert!(!remembers.summary().agrees(&forgets.summary()));
        assert_eq!(remembers.differing(&forgets).iter().collect::<Vec<_>>(), [bucket_of("c")]);
    }

    #[test]
    fn the_root_tells_shards_apart_and_passes_over_empty_ones() {
        let [one, other] = ["one", "other"].map(|name| ShardId::parse("acme", name).unwrap());
        let summary = digest(&BTreeMap::from([("a".to_owned(), (1, true))])).summary();
        let root = |shards: &[(&ShardId, &Summary)]| shards.iter().copied().collect::<Root>();
        assert_ne!(root(&[(&one, &summary)]), root(&[(&other, &summary)]));
        assert_eq!(root(&[(&one, &summary), (&other, &Summary::default())]), root(&[(&one, &summary)]));
        let both = [(&one, &summary), (&other, &summary)];
        assert_eq!(root(&both), both.iter().rev().copied().collect::<Root>());
    }

    #[test]
    fn no_bucket_beyond_the_last_is_taken() {
        let last = u16::try_from(BUCKETS).unwrap();
        assert_eq!(Buckets::try_from(vec![0, last]), Err(NoSuchBucket(last)));
        assert_eq!(Digest::try_from(Sparse(Ballot::ZERO, vec![(last, 1, 2)])), Err(NoSuchBucket(last)));
    }

    type Rows = BTreeMap<String, (i64, bool)>;

    fn rows() -> impl Strategy<Value = Rows> {
        prop::collection::btree_map("[a-e]{1,4}", (0..4_i64, any::<bool>()), 0..60)
    }

    proptest! {
        /// Rows written, replaced and taken out in any order leave the sums that the rows left have.
        #[test]
        fn kept_up_is_the_same_as_built_anew(
            steps in prop::collection::vec(("[a-c]{1,2}", 1..1000_i64, any::<bool>()), 0..200)
        ) {
            let (mut kept, mut rows) = (Digest::new(Ballot::ZERO), Rows::new());
            for (key, upd, is_live) in steps {
                let new = Sum::of(&key, Ballot(upd), is_live);
                let old = rows.insert(key.clone(), (upd, is_live));
                let old = old.map_or_else(Sum::default, |(upd, is_live)| Sum::of(&key, Ballot(upd), is_live));
                kept.add(bucket_of(&key), new.minus(old));
            }
            prop_assert_eq!(kept, digest(&rows));
        }

        #[test]
        fn buckets_differ_exactly_where_rows_do(one in rows(), other in rows()) {
            let keys = one.keys().chain(other.keys());
            let differ: Buckets = keys.filter(|key| one.get(*key) != other.get(*key)).map(|key| bucket_of(key)).collect();
            prop_assert_eq!(digest(&one).differing(&digest(&other)), differ);
            prop_assert_eq!(digest(&one).summary().agrees(&digest(&other).summary()), one == other);
        }

        #[test]
        fn a_digest_survives_the_way_through_bytes(rows in rows(), buckets in prop::collection::vec(0..1024_u16, 0..9)) {
            let digest = digest(&rows);
            let bytes = rmp_serde::to_vec_named(&digest).unwrap();
            prop_assert_eq!(crate::messagepack::decode::<Digest>(&bytes).unwrap(), digest);
            let buckets: Buckets = buckets.into_iter().collect();
            let bytes = rmp_serde::to_vec_named(&buckets).unwrap();
            prop_assert_eq!(crate::messagepack::decode::<Buckets>(&bytes).unwrap(), buckets);
        }
    }
}
