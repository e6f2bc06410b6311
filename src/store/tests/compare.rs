//! Digests beside the rows that they are of.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::store::compare::Summaries;
use crate::store::digest::{Sum, Summary};

fn close(manager: &Manager) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(manager.close()).unwrap();
}

fn saved(shard: &Shard) -> Option<Digest> {
    shard.with_writer(|writer| writer.digest().known().cloned()).unwrap()
}

#[test]
fn a_digest_is_kept_through_a_good_end() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    let shard = manager.open(&id("", "a")).unwrap();
    for (n, name) in (1..).zip(["a", "b", "c"]) {
        commit(&manager, &put(&id("", "a"), name, "v", n));
    }
    commit(&manager, &frame(&id("", "a"), "b", Op::Del, 9, 9));
    let digest = shard.digest().unwrap();
    assert_eq!(digest, digest_of_rows(&shard));
    close(&manager);
    let manager = Manager::new(dir.path()).unwrap();
    let shard = manager.open(&id("", "a")).unwrap();
    assert_eq!(saved(&shard), Some(digest), "not built anew");
}

/// Every shard that was merely opened, as all are once after a start, got its digest written again, and its file synced.
#[test]
fn a_digest_that_is_in_the_file_is_not_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = Vec::new();
    for life in 0..3 {
        let manager = Manager::new(dir.path()).unwrap();
        if life == 0 {
            commit(&manager, &put(&id("", "a"), "k", "v", 1));
        }
        let shard = manager.open(&id("", "a")).unwrap();
        assert_eq!(shard.digest().unwrap(), digest_of_rows(&shard));
        close(&manager);
        bytes.push(std::fs::read(dir.path().join("_/a.db")).unwrap());
    }
    assert!(bytes.iter().all(|later| *later == bytes[0]));
}

/// A digest was told from a stale one by the number of the file's last batch. But a batch that was taken before the file
/// was open counted from one again, so that after two restarts a stale digest was trusted, and hid from the peers for good
/// what had been written since. Found by the simulated world.
#[test]
fn a_digest_of_earlier_rows_is_not_trusted_though_batches_count_anew() {
    let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::create_dir(copy.path().join("_")).unwrap();
    for life in 1..4 {
        let manager = Manager::new(dir.path()).unwrap();
        // As a journal does that is replayed, while the file is not open.
        commit(&manager, &put(&id("", "a"), "k", "v", life));
        manager.open(&id("", "a")).unwrap().wait_applied();
        for name in ["_/a.db", "_/a.db-wal"] {
            std::fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
        }
        close(&manager);
    }
    let crashed = Manager::new(copy.path()).unwrap();
    let shard = crashed.open(&id("", "a")).unwrap();
    assert_eq!(saved(&shard), None);
    assert_eq!(shard.digest().unwrap(), digest_of_rows(&shard));
}

/// A file that was not closed.
#[test]
fn a_digest_of_earlier_rows_is_not_trusted() {
    let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let manager = Manager::new(dir.path()).unwrap();
    let shard = manager.open(&id("", "a")).unwrap();
    commit(&manager, &put(&id("", "a"), "k", "v", 1));
    manager.sync_all().unwrap();
    commit(&manager, &put(&id("", "a"), "l", "v", 2));
    shard.wait_applied();
    std::fs::create_dir(copy.path().join("_")).unwrap();
    for name in ["_/a.db", "_/a.db-wal"] {
        std::fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
    }
    let crashed = Manager::new(copy.path()).unwrap();
    let crashed_shard = crashed.open(&id("", "a")).unwrap();
    assert_eq!(saved(&crashed_shard), None);
    assert_eq!(crashed_shard.digest().unwrap(), shard.digest().unwrap());
    assert_eq!(crashed_shard.digest().unwrap(), digest_of_rows(&crashed_shard));
    commit(&crashed, &put(&id("", "a"), "k", "w", 3));
    crashed_shard.wait_applied();
    assert_eq!(crashed_shard.digest().unwrap(), digest_of_rows(&crashed_shard));
}

/// The tables may be another program's: with a deletion beside a row, a key that is no text, a version that is none.
#[test]
fn rows_of_another_program_are_summed_as_they_are_read() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("_")).unwrap();
    let file = rusqlite::Connection::open(dir.path().join("_/a.db")).unwrap();
    file.execute_batch(
        "CREATE TABLE kv(key TEXT PRIMARY KEY, value BLOB NOT NULL, upd INTEGER NOT NULL);
         CREATE TABLE tombstone(key TEXT PRIMARY KEY, upd INTEGER NOT NULL);
         INSERT INTO kv VALUES('both', 'v', 7), ('odd', 'v', 'yesterday'), ('plain', 'v', 5);
         INSERT INTO tombstone VALUES('both', 3), ('gone', 4);",
    )
    .unwrap();
    drop(file);
    let manager = Manager::new(dir.path()).unwrap();
    let shard = manager.open(&id("", "a")).unwrap();
    let before = shard.digest().unwrap();
    for (n, name) in (100..).zip(["both", "odd", "gone", "plain"]) {
        commit(&manager, &frame(&id("", "a"), name, Op::Del, n, n));
    }
    shard.wait_applied();
    assert_ne!(shard.digest().unwrap(), before);
    assert_eq!(shard.digest().unwrap(), digest_of_rows(&shard), "nothing is left of what was there");
}

#[test]
fn a_digest_is_built_while_writes_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    let shard = manager.open(&id("", "a")).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 1.. {
                let op = if n % 7 == 0 { Op::Del } else { Op::Put(Value::from("v")) };
                commit(&manager, &frame(&id("", "a"), &format!("k{}", n * 31 % 500), op, n, n));
                if n % 50 == 0 {
                    shard.wait_applied();
                }
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        for _ in 0..50 {
            shard.with_writer(|writer| *writer.digest() = Default::default());
            shard.digest().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    shard.wait_applied();
    assert!(saved(&shard).is_some());
    assert_eq!(shard.digest().unwrap(), digest_of_rows(&shard));
}

/// Two nodes that saw the same frames in another order agree, shard by shard and in all; whatever their files have got.
#[test]
fn nodes_with_the_same_rows_agree() {
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (one, other) = (Manager::new(dir.path()).unwrap(), Manager::new(other_dir.path()).unwrap());
    assert_eq!(one.root(), None, "not looked for yet");
    let shards = ["a", "b", "c"].map(|name| id("acme", name));
    let frame = |n: i64| {
        let op = if n % 3 == 0 { Op::Del } else { Op::Put(Value::from("v")) };
        frame(&shards[usize::try_from(n % 2).unwrap()], &format!("k{}", n % 11), op, n, n)
    };
    (1..60).for_each(|n| commit(&one, &frame(n)));
    (1..60).rev().for_each(|n| commit(&other, &frame(n)));
    let holds = shards.each_ref().map(|shard| other.open(shard).unwrap());
    let summaries = one.summaries().unwrap();
    assert_eq!(summaries.len(), 2);
    for (shard, summary) in &summaries {
        assert!(other.summaries().unwrap()[shard].agrees(summary));
    }
    for manager in [&one, &other] {
        manager.sync_all().unwrap();
    }
    assert!(one.root().is_some());
    assert_eq!(one.root(), other.root(), "a shard without rows does not count");
    drop(holds);
    commit(&one, &put(&shards[2], "k", "v", 99));
    one.sync_all().unwrap();
    assert_ne!(one.root(), other.root());
    // Closed and opened, it is the same.
    let root = one.root();
    close(&one);
    let again = Manager::new(dir.path()).unwrap();
    again.summaries().unwrap();
    assert_eq!(again.root(), root);
}

/// As after a start, when the journal was replayed: shards were opened faster than their frames got into their files, and
/// those could not be closed, so that comparing rows failed as busy, time and again.
#[test]
fn more_shards_than_may_be_open_are_summed_while_frames_wait_for_them() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    let shards: Vec<_> = (0..4 * crate::store::OPEN_SHARDS_MAX).map(|n| id("", &format!("s{n:04}"))).collect();
    // The applier begins at the other end.
    for (n, shard) in (1..).zip(shards.iter().rev()) {
        commit(&manager, &put(shard, "k", "v", n));
    }
    let summaries = manager.summaries().unwrap();
    assert_eq!(summaries.keys().collect::<Vec<_>>(), shards.iter().collect::<Vec<_>>());
    close(&manager);
}

/// One file that is no database kept all others of its node from being compared, and the node from ever being ready.
#[test]
fn a_file_that_cannot_be_read_does_not_stand_in_the_others_way() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    commit(&manager, &put(&id("acme", "a"), "k", "v", 1));
    close(&manager);
    std::fs::write(manager.shard_path(&id("acme", "junk")), [0x5a; 9000]).unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    let summaries = manager.summaries().unwrap();
    assert_eq!(summaries.keys().collect::<Vec<_>>(), [&id("acme", "a")]);
    assert!(manager.open(&id("acme", "junk")).is_err(), "who asks for it is told");
    close(&manager);
}

#[test]
fn the_root_that_is_kept_up_is_that_of_all_summaries() {
    let (a, b) = (id("", "a"), id("", "b"));
    let of = |n: i64| Summary { sum: Sum::of("k", Ballot(n), true), floor: Ballot::ZERO };
    let summaries = Summaries::default();
    assert_eq!(summaries.root(), None, "not all were looked for");
    summaries.complete();
    let steps = [(&a, Some(of(1))), (&b, Some(of(1))), (&a, Some(of(2))), (&b, None), (&b, None), (&b, Some(of(3)))];
    let mut all = std::collections::BTreeMap::new();
    for (shard, summary) in steps {
        summaries.set(shard, summary);
        all.insert(shard, summary);
        let known: Option<Vec<_>> = all.iter().map(|(shard, summary)| Some((*shard, summary.as_ref()?))).collect();
        assert_eq!(summaries.root(), known.map(|known| known.into_iter().collect()));
    }
}
