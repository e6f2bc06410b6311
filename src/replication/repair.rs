//! Which rows to ask a peer for, and when to look.
//!
//! ```text
//!   root (gossip) ─► summaries of shards ─► digests of those that differ ─► keys of buckets that differ ─► rows newer there
//! ```
//!
//! Each node asks for itself, so that two that differ both end with the newer row of every key. What is written while they
//! compare makes buckets differ that hold nothing to be fetched. So a comparison looks again, some times, at the digests of
//! what differed in all looks so far: what is left in the end is what the peer has missed, and it will fetch that.
//!
//! Where much was missed, listing rows is what costs, and who is ahead would list them in vain. So who is level already
//! lets a newcomer go first, and who fetches rows shows its digests when it has them.
//!
//! Pure: `quorum/catch_up.rs` asks and installs.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::store::digest::{Buckets, Digest, Root, Summary};
use crate::types::{Ballot, Key, ShardId};

/// Looks of one comparison.
pub const LOOKS_MAX: u32 = 3;
/// Keys in one request for rows.
pub const KEYS_PER_REQUEST_MAX: usize = 4096;
/// Bytes of keys in one request for rows, below what the transport takes, with room for the longest key.
const KEY_BYTES_PER_REQUEST: usize = crate::transport::REQUEST_BYTES_MAX / 2;
/// What a key takes on the wire beside its text, at most.
const KEY_OVERHEAD_BYTES: usize = 8;

/// How long roots may go on differing while they change, as under load, or not be known, before rows are compared all the
/// same.
const MOVING_MAX: Duration = Duration::from_secs(30);
/// How long after a comparison the next may come, at first and at most.
const PAUSE_MIN: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// One comparison of all rows with one peer's.
#[derive(Debug, Default)]
pub struct Comparison {
    looks: u32,
    /// What has differed in every look so far.
    differing: BTreeMap<ShardId, Buckets>,
    /// What differs in this one.
    found: BTreeMap<ShardId, Buckets>,
}

/// What a look has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// All that is here is there, and the other way round.
    Same,
    /// Look again a moment later.
    Again,
    /// The peer has missed something.
    Different,
}

impl Comparison {
    /// The shards whose digests to ask for, by the summaries of both sides: those that differ, and those whose GC floor is
    /// higher there. A shard that one side has not is empty there.
    #[must_use]
    pub fn begin(mine: &BTreeMap<ShardId, Summary>, theirs: &BTreeMap<ShardId, Summary>) -> Vec<ShardId> {
        let none = Summary::default();
        let differ = |mine: &Summary, theirs: &Summary| !mine.agrees(theirs) || theirs.floor > mine.floor;
        let mut differing: Vec<_> =
            theirs.iter().filter(|(shard, theirs)| differ(mine.get(*shard).unwrap_or(&none), theirs)).collect();
        differing.extend(mine.iter().filter(|(shard, mine)| !theirs.contains_key(*shard) && !mine.agrees(&none)));
        differing.into_iter().map(|(shard, _)| shard.clone()).collect()
    }

    /// The shards to look into again.
    #[must_use]
    pub fn shards(&self) -> Vec<ShardId> {
        self.differing.keys().cloned().collect()
    }

    /// Whether rows are to be fetched: what comes after the first look is told like all that is chosen.
    #[must_use]
    pub fn is_first_look(&self) -> bool {
        self.looks == 0
    }

    /// The buckets of `shard` whose keys to ask for, by the digests of both sides.
    pub fn buckets(&mut self, shard: &ShardId, mine: &Digest, theirs: &Digest) -> Buckets {
        let mut buckets = mine.differing(theirs);
        if self.looks > 0 {
            buckets = self.differing.get(shard).map_or_else(Buckets::default, |before| buckets.and(before));
        }
        if !buckets.is_empty() {
            self.found.insert(shard.clone(), buckets.clone());
        }
        buckets
    }

    /// All shards were looked into, and what was newer there fetched.
    pub fn end_look(&mut self) -> Next {
        self.differing = std::mem::take(&mut self.found);
        self.looks += 1;
        match self.differing.is_empty() {
            true => Next::Same,
            false if self.looks < LOOKS_MAX => Next::Again,
            false => Next::Different,
        }
    }
}

/// Whether a row is to be fetched that a peer has in version `theirs`. Where there is none here, all versions up to the GC
/// floor were deleted, and forgotten (rule 8).
#[must_use]
pub fn is_missed(theirs: Ballot, mine: Option<Ballot>, gc_floor: Ballot) -> bool {
    mine.map_or(theirs > gc_floor, |mine| mine < theirs)
}

/// Whether a row that is here in the round `mine` was deleted and forgotten by a peer whose GC floor is above ours, and who
/// has the key in version `theirs`: up to its floor it has everything that was chosen, or what came after that.
#[must_use]
pub fn is_forgotten(mine: Ballot, theirs: Option<Ballot>, floor: Ballot) -> bool {
    theirs.is_none() && mine <= floor
}

/// Keys, as many as one request may name.
#[must_use]
pub fn portions(keys: Vec<Key>) -> Vec<Vec<Key>> {
    let mut portions: Vec<Vec<Key>> = Vec::new();
    let mut bytes = 0;
    for key in keys {
        bytes += key.as_str().len() + KEY_OVERHEAD_BYTES;
        match portions.last_mut().filter(|some| some.len() < KEYS_PER_REQUEST_MAX && bytes <= KEY_BYTES_PER_REQUEST) {
            Some(some) => some.push(key),
            None => {
                bytes = key.as_str().len() + KEY_OVERHEAD_BYTES;
                portions.push(vec![key]);
            }
        }
    }
    portions
}

/// What is thought of one peer's rows by the roots that gossip brings, which are a second or two old.
#[derive(Debug, Default)]
pub struct Doubt {
    /// Both roots, when last looked at, where both were known and differed.
    last: Option<(Root, Root)>,
    /// When they began to, or since when rows were last compared.
    since: Option<Duration>,
    /// When rows were last compared, and what the roots were then.
    compared: Option<(Duration, Option<(Root, Root)>)>,
    /// How long after that they are left alone where the roots are still the same.
    pause: Duration,
}

/// What a look at two roots tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Both hold the same rows.
    Same,
    /// Nothing yet.
    Unsure,
    /// Rows are to be compared, now.
    Compare,
}

impl Doubt {
    /// Looks at both roots, none where one is not known, about once a second. Rows are compared where both roots stand
    /// still and differ; where they have not been the same for long; and where the last comparison found the peer not
    /// `in_step`: each time after a pause that grows as long as it comes to nothing.
    pub fn look(&mut self, now: Duration, in_step: bool, mine: Option<Root>, theirs: Option<Root>) -> Seen {
        if mine.is_some() && mine == theirs {
            *self = Self::default();
            return Seen::Same;
        }
        let roots = mine.zip(theirs);
        let is_still = roots.is_some() && std::mem::replace(&mut self.last, roots) == roots;
        let is_long = now.saturating_sub(*self.since.get_or_insert(now)) >= MOVING_MAX;
        let is_new = is_still && self.compared.is_none_or(|(_, then)| then != roots);
        if is_new {
            self.pause = PAUSE_MIN;
        }
        let is_early = self.compared.is_some_and(|(at, _)| now < at + self.pause);
        if is_early || (in_step && !is_still && !is_long) {
            return Seen::Unsure;
        }
        if !is_new {
            self.pause = (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        }
        self.compared = Some((now, roots));
        self.since = None;
        Seen::Compare
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::replication::wire::{self, Answer, PAIRS_PER_ANSWER_MAX, Request};
    use crate::store::StoredRow;
    use crate::store::digest::{Sum, bucket_of};
    use crate::store::replicator::Op;

    fn shard(name: &str) -> ShardId {
        ShardId::parse("acme", name).unwrap()
    }

    fn row(upd: i64, is_live: bool) -> StoredRow {
        let op = if is_live { Op::Put("v".into()) } else { Op::Del };
        StoredRow { op, upd: Ballot(upd), ballot: Ballot(upd) }
    }

    /// A node: its shards, each with its GC floor.
    #[derive(Debug, Clone, Default)]
    struct Node(BTreeMap<ShardId, (Ballot, BTreeMap<Key, StoredRow>)>);

    impl Node {
        fn rows(&mut self, shard: &ShardId) -> &mut BTreeMap<Key, StoredRow> {
            &mut self.0.entry(shard.clone()).or_default().1
        }

        fn floor(&self, shard: &ShardId) -> Ballot {
            self.0.get(shard).map_or(Ballot::ZERO, |(floor, _)| *floor)
        }

        fn digest(&self, shard: &ShardId) -> Digest {
            let Some((floor, rows)) = self.0.get(shard) else { return Digest::new(Ballot::ZERO) };
            let mut digest = Digest::new(*floor);
            for (key, row) in rows {
                digest.add(bucket_of(key.as_str()), Sum::of_stored(*floor, key.as_str(), Some(row)));
            }
            digest
        }

        fn summaries(&self) -> BTreeMap<ShardId, Summary> {
            self.0.keys().map(|shard| (shard.clone(), self.digest(shard).summary())).collect()
        }

        /// Looks once, and the first time fetches from `peer` what is newer there; the bytes that this takes.
        fn look(&mut self, peer: &Self, comparison: &mut Comparison, shards: Vec<ShardId>) -> usize {
            let mut bytes = 0;
            for shard in shards {
                let theirs = peer.digest(&shard);
                let buckets = comparison.buckets(&shard, &self.digest(&shard), &theirs);
                bytes += size(&Request::Digest(shard.clone())) + size(&Answer::Digest(theirs));
                let is_behind = peer.floor(&shard) > self.floor(&shard);
                if !comparison.is_first_look() || (buckets.is_empty() && !is_behind) {
                    continue;
                }
                let (floor, mine) = self.0.entry(shard.clone()).or_default();
                let theirs = peer.0.get(&shard).map(|(_, rows)| rows.clone()).unwrap_or_default();
                let pairs: Vec<_> = theirs.iter().filter(|(key, _)| buckets.hold(key)).collect();
                bytes += size(&Request::Pairs(shard.clone(), buckets.clone()));
                for some in pairs.chunks(PAIRS_PER_ANSWER_MAX) {
                    bytes += size(&Answer::Pairs(some.iter().map(|(key, row)| ((*key).clone(), row.upd)).collect()));
                }
                let missed =
                    pairs.iter().filter(|(key, row)| is_missed(row.upd, mine.get(*key).map(|row| row.upd), *floor));
                for keys in portions(missed.map(|(key, _)| (*key).clone()).collect()) {
                    assert!(keys.len() <= KEYS_PER_REQUEST_MAX);
                    for key in &keys {
                        mine.insert(key.clone(), theirs[key].clone());
                    }
                    bytes += size(&Request::Rows(shard.clone(), keys));
                }
                if peer.floor(&shard) > *floor {
                    *floor = peer.floor(&shard);
                    let theirs = |key: &Key| theirs.get(key).map(|row| row.upd);
                    mine.retain(|key, row| match row.op {
                        Op::Del => row.ballot > *floor,
                        Op::Put(_) => !buckets.hold(key) || !is_forgotten(row.ballot, theirs(key), *floor),
                    });
                }
            }
            bytes
        }

        /// A whole comparison while nothing else happens: what it comes to, and what it takes apart from the rows.
        fn compare(&mut self, peer: &Self) -> (Next, usize) {
            let (mut comparison, theirs) = (Comparison::default(), peer.summaries());
            let bytes = size(&Request::Shards) + size(&Answer::Shards(theirs.clone().into_iter().collect()));
            let shards = Comparison::begin(&self.summaries(), &theirs);
            let mut all = bytes + self.look(peer, &mut comparison, shards);
            loop {
                match comparison.end_look() {
                    Next::Again => {
                        let shards = comparison.shards();
                        all += self.look(peer, &mut comparison, shards);
                    }
                    ended => return (ended, all),
                }
            }
        }
    }

    fn size(message: &impl serde::Serialize) -> usize {
        wire::encode(message).unwrap().len()
    }

    /// One key in a million is found in much less than a million keys.
    #[test]
    fn what_it_costs_follows_what_differs() {
        let orders = shard("orders");
        let mut one = Node::default();
        for n in 0..200_000 {
            one.rows(&orders).insert(Key::parse(&format!("wf/orders/{n:016}")).unwrap(), row(1 << 60, true));
        }
        let mut other = one.clone();
        let (next, same) = other.compare(&one);
        assert_eq!(next, Next::Same);
        assert!(same < 200, "{same} bytes where nothing differs");
        one.rows(&orders).insert(Key::parse("wf/orders/0000000000000007").unwrap(), row(1 << 61, true));
        let (next, single) = other.compare(&one);
        assert_eq!((next, one.0 == other.0), (Next::Same, true));
        assert!(single < 100_000, "{single} bytes for one key of 200,000");
    }

    #[test]
    fn a_peer_that_has_missed_something_is_not_in_step() {
        let (mut one, mut other) = (Node::default(), Node::default());
        one.rows(&shard("orders")).insert(Key::parse("k").unwrap(), row(7, true));
        assert_eq!(one.compare(&other).0, Next::Different);
        assert_eq!(other.compare(&one).0, Next::Same);
        assert_eq!(one.compare(&other).0, Next::Same);
    }

    /// What is written between two looks lies in other buckets, mostly.
    #[test]
    fn what_is_on_its_way_does_not_count() {
        let orders = shard("orders");
        let (mut one, mut comparison) = (Node::default(), Comparison::default());
        let keys: Vec<Key> = (0..3).map(|n| Key::parse(&format!("k{n}")).unwrap()).collect();
        one.rows(&orders).insert(keys[0].clone(), row(1, true));
        let mut other = one.clone();
        one.rows(&orders).insert(keys[1].clone(), row(2, true));
        one.look(&other, &mut comparison, vec![orders.clone()]);
        assert_eq!(comparison.end_look(), Next::Again);
        other.rows(&orders).insert(keys[1].clone(), row(2, true));
        one.rows(&orders).insert(keys[2].clone(), row(3, true));
        let shards = comparison.shards();
        one.look(&other, &mut comparison, shards);
        assert_eq!(comparison.end_look(), Next::Same);
    }

    /// Deletions that one node has forgotten already are neither fetched nor do they keep two nodes from being in step; the
    /// other forgets them too, and with them what it has not heard was deleted.
    #[test]
    fn what_was_forgotten_below_the_floor_stays_forgotten() {
        let orders = shard("orders");
        let (mut remembers, mut forgot) = (Node::default(), Node::default());
        remembers.rows(&orders).insert(Key::parse("stale").unwrap(), row(4, true));
        remembers.rows(&orders).insert(Key::parse("newer").unwrap(), row(9, true));
        for key in ["live", "deleted"] {
            remembers.rows(&orders).insert(Key::parse(key).unwrap(), row(5, key == "live"));
        }
        forgot.0.insert(orders.clone(), (Ballot(6), BTreeMap::new()));
        forgot.rows(&orders).insert(Key::parse("live").unwrap(), row(5, true));
        assert_eq!(forgot.compare(&remembers).0, Next::Different, "the other has to give up a row");
        let held = |node: &mut Node| node.rows(&orders).keys().map(|key| key.to_string()).collect::<Vec<_>>();
        assert_eq!(held(&mut forgot), ["live", "newer"]);
        assert_eq!((remembers.compare(&forgot).0, forgot.compare(&remembers).0), (Next::Same, Next::Same));
        assert_eq!(remembers.0, forgot.0);
        assert!(!is_missed(Ballot(6), None, Ballot(6)) && is_missed(Ballot(7), None, Ballot(6)));
    }

    #[test]
    fn roots_that_stand_still_and_differ_are_acted_upon() {
        let at = |seconds| Duration::from_secs(seconds);
        let (one, other) = (Some(Root(1)), Some(Root(2)));
        let mut doubt = Doubt::default();
        assert_eq!(doubt.look(at(0), true, one, one), Seen::Same);
        assert_eq!(doubt.look(at(1), true, one, other), Seen::Unsure, "the peer's is a second old");
        assert_eq!(doubt.look(at(2), true, one, other), Seen::Compare);
        // It came to nothing: less and less often.
        let seen: Vec<u64> = (3..300).filter(|n| doubt.look(at(*n), true, one, other) == Seen::Compare).collect();
        assert_eq!(seen[..5], [4, 8, 16, 32, 64]);
        assert!(seen.windows(2).all(|pair| pair[1] - pair[0] <= 60), "{seen:?}");
        assert_eq!(doubt.look(at(301), true, one, one), Seen::Same);
        assert_eq!(doubt.look(at(302), true, other, one), Seen::Unsure);
        assert_eq!(doubt.look(at(303), true, other, one), Seen::Compare, "forgotten once they were the same");
    }

    #[test]
    fn roots_that_move_are_left_alone_for_a_while() {
        let mut doubt = Doubt::default();
        let mut look = |n, in_step| doubt.look(Duration::from_secs(n), in_step, Some(Root(n)), Some(Root(n + 1)));
        let seen: Vec<u64> = (1..100).filter(|n| look(*n, true) == Seen::Compare).collect();
        assert_eq!(seen, [31, 62, 93]);
        assert_eq!(look(101, false), Seen::Compare, "what is known to differ is not left alone");
        // What stands still after all that is looked into at once.
        let (one, other) = (Some(Root(1)), Some(Root(2)));
        let seen: Vec<u64> =
            (102..110).filter(|n| doubt.look(Duration::from_secs(*n), true, one, other) == Seen::Compare).collect();
        assert_eq!(seen, [103, 105, 109]);
    }

    /// A shard that has to be built anew has no root before it is compared; a peer of another version may tell none.
    #[test]
    fn without_a_root_rows_are_compared_now_and_then() {
        let mut doubt = Doubt::default();
        let mut look = |n| match n % 2 {
            0 => doubt.look(Duration::from_secs(n), true, None, Some(Root(1))),
            _ => doubt.look(Duration::from_secs(n), true, Some(Root(2)), None),
        };
        let seen: Vec<u64> = (0..100).filter(|n| look(*n) == Seen::Compare).collect();
        assert_eq!(seen, [30, 61, 92]);
    }

    fn node() -> impl Strategy<Value = Node> {
        // Versions are unique in a cluster, so one is of one mutation.
        let row = |upd: i64| row(upd, upd % 3 > 0);
        let rows = prop::collection::btree_map("[a-d]{1,3}", (1..50_i64).prop_map(row), 0..40);
        prop::collection::btree_map("[a-c]", rows, 0..3).prop_map(|shards| {
            let key = |(key, row): (String, StoredRow)| (Key::parse(&key).unwrap(), row);
            let rows = |(name, rows): (String, BTreeMap<_, _>)| {
                (shard(&name), (Ballot::ZERO, rows.into_iter().map(key).collect()))
            };
            Node(shards.into_iter().map(rows).collect())
        })
    }

    proptest! {
        /// However three nodes differ, once each has compared with each other all hold the newest of every row.
        #[test]
        fn all_end_with_the_newest_rows(nodes in [node(), node(), node()]) {
            let mut nodes = nodes;
            let mut newest: BTreeMap<(ShardId, Key), StoredRow> = BTreeMap::new();
            for (shard, key, row) in
                nodes.iter().flat_map(|n| n.0.iter().flat_map(|(s, (_, rows))| rows.iter().map(move |(k, r)| (s, k, r))))
            {
                let best = newest.entry((shard.clone(), key.clone())).or_insert_with(|| row.clone());
                if row.upd > best.upd {
                    *best = row.clone();
                }
            }
            for one in 0..3 {
                for other in (0..3).filter(|other| *other != one) {
                    let peer = nodes[other].clone();
                    nodes[one].compare(&peer);
                }
            }
            for one in 0..3 {
                let peer = nodes[(one + 1) % 3].clone();
                prop_assert_eq!(nodes[one].compare(&peer).0, Next::Same);
                let held = nodes[one].0.iter().flat_map(|(shard, (_, rows))| {
                    rows.iter().map(|(key, row)| ((shard.clone(), key.clone()), row.clone()))
                });
                prop_assert_eq!(held.collect::<BTreeMap<_, _>>(), newest.clone());
            }
        }
    }
}
