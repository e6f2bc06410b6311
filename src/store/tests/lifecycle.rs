//! Opening, closing, evicting.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::clock::ManualClock;
use crate::store::replicator::Rejection;
use crate::store::{Error, IDLE_EVICT_AFTER, OPEN_SHARDS_MAX, PageQuery, StoreConfig};

const WALL: i64 = 1_700_000_000_000_000_000;

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_opens_get_one_object() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    let opens: Vec<_> = (0..32)
        .map(|n| {
            let manager = Arc::clone(&manager);
            tokio::spawn(async move {
                if n % 2 == 0 { manager.get(&id("", "a")).await } else { manager.open(&id("", "a")) }
            })
        })
        .collect();
    let first = manager.get(&id("", "a")).await.unwrap();
    for open in opens {
        assert!(Arc::ptr_eq(&open.await.unwrap().unwrap(), &first));
    }
    assert_eq!(manager.open_shard_count(), 1);
}

#[tokio::test]
async fn everything_is_closed_after_close() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    let shard = manager.get(&id("", "a")).await.unwrap();
    shard.put("k", "v").await.unwrap();
    manager.close().await.unwrap();
    manager.close().await.unwrap();
    assert_eq!(manager.open_shard_count(), 0);
    assert!(matches!(manager.get(&id("", "a")).await, Err(Error::Closed)));
    assert!(matches!(manager.open(&id("", "b")), Err(Error::Closed)));
    assert!(matches!(manager.find(&id("", "a")).await, Err(Error::Closed)));
    assert!(matches!(manager.orgs(), Err(Error::Closed)));
    assert!(matches!(manager.sync_all(), Err(Error::Closed)));
    assert!(manager.cached(&id("", "a")).is_none());
    assert!(matches!(shard.put("k", "w").await, Err(Error::Closed)));
    assert!(matches!(shard.get("k").await, Err(Error::Closed)));
    assert!(matches!(shard.page(&PageQuery::prefix("")), Err(Error::Closed)));
    shard.close().await.unwrap();
    // The log was folded into the file.
    assert!(!dir.path().join("_/a.db-wal").exists());
}

#[tokio::test]
async fn a_closed_shard_opens_anew() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    let old = manager.get(&id("", "a")).await.unwrap();
    commit(&manager, &put(&id("", "a"), "k", "v", 5));
    old.close().await.unwrap();
    old.close().await.unwrap();
    assert!(matches!(old.get("k").await, Err(Error::Closed)));
    let new = manager.get(&id("", "a")).await.unwrap();
    assert!(!Arc::ptr_eq(&old, &new));
    assert_eq!(value_of(&new, "k").unwrap(), b"v");
    // The handle of the closed one does not close the new one.
    old.close().await.unwrap();
    assert_eq!(value_of(&new, "k").unwrap(), b"v");
}

#[tokio::test]
async fn idle_shards_are_closed_and_others_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new(WALL);
    let manager = Manager::with_config(StoreConfig::at(dir.path()), clock.clone()).unwrap();
    for namespace in ["idle", "used", "held"] {
        manager.get(&id("", namespace)).await.unwrap().put("k", "v").await.unwrap();
    }
    manager.cached(&id("", "idle")).unwrap().unsettle([key("k")]);
    let held = manager.get(&id("", "held")).await.unwrap();
    clock.advance(IDLE_EVICT_AFTER / 2);
    assert!(manager.cached(&id("", "used")).is_some());
    clock.advance(IDLE_EVICT_AFTER / 2 - Duration::from_nanos(1));
    manager.evict_idle();
    assert_eq!(manager.open_shard_count(), 3);
    clock.advance(Duration::from_nanos(1));
    manager.evict_idle();
    assert_eq!(manager.open_shard_count(), 2);
    assert!(manager.cached(&id("", "idle")).is_none());
    assert!(!dir.path().join("_/idle.db-wal").exists());
    // Who held one across the eviction goes on with it.
    assert_eq!(value_of(&held, "k").unwrap(), b"v");
    assert!(Arc::ptr_eq(&held, &manager.get(&id("", "held")).await.unwrap()));
    // What was unsettled stays so.
    let reopened = manager.get(&id("", "idle")).await.unwrap();
    assert!(matches!(reopened.get("k").await, Err(Error::Unsettled)));
    reopened.settle(&key("k"));
    assert_eq!(value_of(&reopened, "k").unwrap(), b"v");
}

#[tokio::test]
async fn a_shard_with_frames_to_apply_is_not_evicted() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new(WALL);
    let manager = Manager::with_config(StoreConfig::at(dir.path()), clock.clone()).unwrap();
    let shard = manager.get(&id("", "a")).await.unwrap();
    let hold = shard.hold_applier();
    commit(&manager, &put(&id("", "a"), "k", "v", 5));
    clock.advance(IDLE_EVICT_AFTER * 2);
    manager.evict_idle();
    assert_eq!(manager.open_shard_count(), 1);
    assert_eq!(manager.apply_backlog(), 1);
    drop(hold);
    manager.sync_all().unwrap();
    assert_eq!(manager.apply_backlog(), 0);
    assert_eq!(value_of(&shard, "k").unwrap(), b"v");
}

#[tokio::test]
async fn open_files_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    let name = |n: usize| id("", &format!("n{n}"));
    for n in 0..OPEN_SHARDS_MAX + 3 {
        manager.get(&name(n)).await.unwrap();
        assert!(manager.open_shard_count() <= OPEN_SHARDS_MAX);
    }
    assert!(manager.cached(&name(0)).is_none(), "the least recently used goes first");
    assert!(manager.cached(&name(OPEN_SHARDS_MAX)).is_some());

    let mut held = Vec::new();
    for n in 0..OPEN_SHARDS_MAX {
        held.push(manager.get(&name(n)).await.unwrap());
    }
    let refused = manager.get(&name(OPEN_SHARDS_MAX)).await;
    assert!(matches!(refused, Err(Error::Rejected(Rejection::Busy(_)))), "{refused:?}");
    // Frames still get through: the applier never stands still.
    commit(&manager, &put(&name(OPEN_SHARDS_MAX), "k", "v", 5));
    manager.sync_all().unwrap();
    drop(held);
    let shard = manager.get(&name(OPEN_SHARDS_MAX)).await.unwrap();
    assert_eq!(value_of(&shard, "k").unwrap(), b"v");
    manager.evict_idle();
    assert_eq!(manager.open_shard_count(), OPEN_SHARDS_MAX);
}

#[tokio::test]
async fn a_checkpoint_leaves_all_in_the_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    let shard = manager.get(&id("", "a")).await.unwrap();
    commit(&manager, &put(&id("", "a"), "k", "v", 5));
    shard.checkpoint().await.unwrap();
    assert_eq!(std::fs::metadata(dir.path().join("_/a.db-wal")).unwrap().len(), 0);
    let copy = dir.path().join("copy.db");
    assert!(std::process::Command::new("cp").arg(shard.path()).arg(&copy).status().unwrap().success());
    let copied = rusqlite::Connection::open(&copy).unwrap();
    assert_eq!(copied.query_row("SELECT count(*) FROM kv", [], |row| row.get::<_, i64>(0)).unwrap(), 1);
}

/// A process killed right after `sync_all` leaves the files as they are then: they must hold everything, those of
/// shards closed meanwhile included.
#[tokio::test]
async fn after_sync_all_the_files_alone_hold_everything() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    for n in 0..3_000_i64 {
        commit(&manager, &put(&id("", ["a", "b", "c"][usize::try_from(n % 3).unwrap()]), &format!("k{n}"), "v", n + 1));
    }
    manager.get(&id("", "c")).await.unwrap().close().await.unwrap();
    manager.sync_all().unwrap();

    let image = tempfile::tempdir().unwrap();
    let copied = std::process::Command::new("cp").arg("-r").arg(dir.path().join("_")).arg(image.path()).status();
    assert!(copied.unwrap().success());
    let after_crash = Manager::new(image.path()).unwrap();
    for namespace in ["a", "b", "c"] {
        let shard = after_crash.get(&id("", namespace)).await.unwrap();
        assert_eq!(shard.stats().unwrap().keys, 1_000, "{namespace}");
    }
}

/// `sync_all` may not wait for what comes after it: under endless rewriting of one key it would never return.
#[tokio::test(flavor = "multi_thread")]
async fn sync_all_ends_while_keys_are_rewritten() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = {
        let (manager, stop) = (Arc::clone(&manager), Arc::clone(&stop));
        std::thread::spawn(move || {
            let mut n = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                n += 1;
                commit(&manager, &put(&id("", "a"), "hot", "v", n));
            }
        })
    };
    let syncing = Arc::clone(&manager);
    tokio::task::spawn_blocking(move || (0..5).for_each(|_| syncing.sync_all().unwrap())).await.unwrap();
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.join().unwrap();
}

#[test]
fn the_log_is_used_anew_instead_of_growing() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    let shard = manager.open(&id("", "a")).unwrap();
    for n in 1..=48 {
        commit(&manager, &frame(&id("", "a"), "k", Op::Put(Value::from(vec![0; 1024 * 1024])), n, n));
        shard.wait_applied();
    }
    let mib = std::fs::metadata(dir.path().join("_/a.db-wal")).unwrap().len() / (1024 * 1024);
    assert!(mib < 24, "{mib} MiB of log after 48 MiB written");
}
