//! Deletions that are remembered, and how they are forgotten.

use super::*;
use crate::store::digest::Summary;

fn del(name: &str, upd: i64, ballot: i64) -> Frame {
    frame(&id("", "a"), name, Op::Del, upd, ballot)
}

fn opened(dir: &std::path::Path) -> (Arc<Manager>, Arc<Shard>) {
    let manager = Manager::new(dir).unwrap();
    let shard = manager.open(&id("", "a")).unwrap();
    (manager, shard)
}

fn rows_in_file(shard: &Shard, table: &str) -> Vec<String> {
    let file = rusqlite::Connection::open(shard.path()).unwrap();
    let mut rows = file.prepare(&format!("SELECT key FROM {table} ORDER BY key")).unwrap();
    let keys = rows.query_map([], |row| row.get(0)).unwrap();
    keys.collect::<Result<_, _>>().unwrap()
}

/// One whose deletion is at the floor, one above it, one that was chosen again above it, and rows of both ages.
fn fill(manager: &Arc<Manager>) {
    let shard = id("", "a");
    for frame in [put(&shard, "old", "v", 5), put(&shard, "new", "v", 500), put(&shard, "gone", "v", 6)] {
        commit(manager, &frame);
    }
    for frame in [del("gone", 100, 100), del("later", 101, 101), del("again", 90, 300), del("twice", 80, 95)] {
        commit(manager, &frame);
    }
}

#[test]
fn what_is_not_above_the_floor_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let (manager, shard) = opened(dir.path());
    fill(&manager);
    let before = shard.digest().unwrap();
    assert_eq!(shard.raise_floor(Ballot(100), &[]).unwrap(), 2);
    assert_eq!(rows_in_file(&shard, "tombstone"), ["again", "later"], "what was chosen again counts as that round");
    assert_eq!(rows_in_file(&shard, "outrigger_ballot"), ["again"]);
    assert_eq!(rows_in_file(&shard, "kv"), ["new", "old"]);
    let after = shard.digest().unwrap();
    assert_eq!(after, digest_of_rows(&shard));
    assert!(before.summary().agrees(&after.summary()), "live rows are the same");
    let counted = shard.tombstones().unwrap();
    assert_eq!((counted.count, counted.oldest), (1, Some(Ballot(101))));
    let known = |name: &str| shard.known(&key(name)).unwrap();
    assert_eq!((known("gone").row, known("gone").ballot()), (None, Ballot(100)));
    assert_eq!(known("again").ballot(), Ballot(300));
    assert_eq!(known("old").ballot(), Ballot(5));
    // What comes late does not bring it back.
    commit(&manager, &put(&id("", "a"), "gone", "late", 99));
    assert_eq!(value_of(&shard, "gone"), None);
    shard.wait_applied();
    assert_eq!((value_of(&shard, "gone"), shard.digest().unwrap()), (None, after));
    assert_eq!(shard.raise_floor(Ballot(100), &[]).unwrap(), 0, "once is enough");
    assert_eq!(shard.raise_floor(Ballot(50), &[]).unwrap(), 0, "it only rises");
    assert_eq!(shard.gc_floor(), Ballot(100));
}

#[test]
fn the_floor_and_the_digest_outlive_the_process() {
    for is_clean in [true, false] {
        let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (manager, shard) = opened(dir.path());
        fill(&manager);
        shard.raise_floor(Ballot(100), &[]).unwrap();
        let digest = shard.digest().unwrap();
        if is_clean {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(manager.close()).unwrap();
        }
        std::fs::create_dir(copy.path().join("_")).unwrap();
        for entry in std::fs::read_dir(dir.path().join("_")).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), copy.path().join("_").join(entry.file_name())).unwrap();
        }
        let (_manager, shard) = opened(copy.path());
        assert_eq!((shard.gc_floor(), shard.digest().unwrap()), (Ballot(100), digest));
        assert_eq!(shard.digest().unwrap(), digest_of_rows(&shard));
    }
}

/// Nodes that forgot at different floors, and one that forgot more than it had to, hold the same.
#[test]
fn what_lies_below_the_floor_is_not_compared() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ((first, one), (second, other)) = (opened(one.path()), opened(other.path()));
    fill(&first);
    fill(&second);
    // There it was never chosen again.
    commit(&second, &del("again", 90, 90));
    let of = |shard: &Shard| -> Summary { shard.digest().unwrap().summary() };
    one.raise_floor(Ballot(100), &[]).unwrap();
    assert!(of(&one).agrees(&of(&other)), "between floors live rows alone are compared");
    other.raise_floor(Ballot(100), &[]).unwrap();
    assert_eq!(of(&one), of(&other));
    commit(&second, &del("more", 700, 700));
    assert!(!of(&one).agrees(&of(&other)), "above it they are");
}

#[test]
fn more_than_goes_into_one_transaction_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let (manager, shard) = opened(dir.path());
    for n in 0..20_000 {
        commit(&manager, &del(&format!("k{n:05}"), 1 + n % 10, 1 + n % 10));
    }
    commit(&manager, &del("kept", 1_000, 1_000));
    assert_eq!(shard.raise_floor(Ballot(100), &[]).unwrap(), 20_000);
    assert_eq!(rows_in_file(&shard, "tombstone"), ["kept"]);
    assert_eq!(shard.digest().unwrap(), digest_of_rows(&shard));
}

/// What was deleted while this node was behind goes with the floor, unless it is newer here.
#[test]
fn rows_that_were_deleted_elsewhere_go_if_they_are_not_newer() {
    let dir = tempfile::tempdir().unwrap();
    let (manager, shard) = opened(dir.path());
    fill(&manager);
    shard.raise_floor(Ballot(100), &["old", "new", "never"].map(key)).unwrap();
    assert_eq!((value_of(&shard, "old"), value_of(&shard, "new").is_some()), (None, true));
    assert_eq!(shard.digest().unwrap(), digest_of_rows(&shard));
}

/// What two replicas compare before they forget: rows of versions up to there, whatever came since.
#[test]
fn old_rows_are_compared_apart_from_new_ones() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ((first, one), (second, other)) = (opened(one.path()), opened(other.path()));
    fill(&first);
    fill(&second);
    commit(&second, &put(&id("", "a"), "newest", "v", 900));
    commit(&second, &del("deleted lately", 901, 901));
    let old = |shard: &Shard, above: i64| shard.digest_of_old(Ballot(above), Ballot(400)).unwrap();
    assert_eq!(old(&one, 0), old(&other, 0));
    commit(&second, &del("old", 399, 399));
    assert_eq!(old(&one, 0).differing(&old(&other, 0)).iter().collect::<Vec<_>>(), [bucket_of("old")]);
    // One of them has forgotten already.
    commit(&first, &del("old", 399, 399));
    one.raise_floor(Ballot(100), &[]).unwrap();
    assert_ne!(old(&one, 0), old(&other, 0));
    assert_eq!(old(&one, 100), old(&other, 100));
}
