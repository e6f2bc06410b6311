//! A copy that is given up, and the mark of a whole one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::crash::{Image, fast_dir, integrity};
use super::*;
use crate::clock::{ManualClock, OsClock};
use crate::disk::{Disk, File, Kind, Lock, OsDisk};
use crate::store::digest::Root;
use crate::store::replicator::Rejection;
use crate::store::{Error, ListQuery, StoreConfig};

/// Time enough on any machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn a() -> ShardId {
    id("", "a")
}

fn store() -> (tempfile::TempDir, Arc<Manager>) {
    let dir = fast_dir();
    let manager = Manager::new(dir.path()).unwrap();
    (dir, manager)
}

/// Commits `k` and has it in the file, which stays closed.
fn fill(manager: &Arc<Manager>, shard: &ShardId) {
    commit(manager, &put(shard, "k", "v", 5));
    manager.sync_all().unwrap();
}

fn names(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir.join("_")).unwrap().map(|entry| entry.unwrap().file_name().into()).collect()
}

#[test]
fn a_discarded_shard_is_as_if_it_had_never_been() {
    let (dir, manager) = store();
    fill(&manager, &id("", "kept"));
    manager.summaries().unwrap();
    let (root, bytes) = (manager.root().unwrap(), manager.stored_bytes(&a().org).unwrap());
    fill(&manager, &a());
    commit(&manager, &frame(&a(), "dead", Op::Del, 6, 6));
    manager.sync_all().unwrap();
    assert_ne!(manager.root().unwrap(), root);
    assert!(manager.remembering().contains_key(&a()));

    assert!(manager.discard(&a(), || true).unwrap());
    assert_eq!(names(dir.path()).iter().filter(|name| name.to_string_lossy().starts_with("a.")).count(), 0);
    assert_eq!(manager.root().unwrap(), root);
    assert!(!manager.exists(&a()) && manager.cached(&a()).is_none() && manager.remembering().is_empty());
    assert_eq!(manager.shards_of(&a().org).unwrap(), [id("", "kept")]);
    assert_eq!(manager.summaries().unwrap().into_keys().collect::<Vec<_>>(), [id("", "kept")]);
    assert_eq!(manager.stored_bytes(&a().org).unwrap(), bytes);
    assert!(manager.discard(&a(), || true).unwrap(), "there is none any more");
    assert!(!manager.exists(&a()));

    commit(&manager, &put(&a(), "new", "w", 7));
    manager.sync_all().unwrap();
    let shard = manager.open(&a()).unwrap();
    assert_eq!((value_of(&shard, "k"), value_of(&shard, "new").unwrap()), (None, b"w".to_vec()));
    assert_eq!(shard.digest().unwrap(), digest_of_rows(&shard));
    assert_eq!(manager.root().unwrap(), manager.summaries().unwrap().iter().collect::<Root>());
}

/// An org whose last shard went is none any more.
#[test]
fn an_org_without_shards_is_not_named() {
    let (_dir, manager) = store();
    fill(&manager, &id("acme", "a"));
    assert_eq!(manager.orgs().unwrap().len(), 1);
    assert!(manager.discard(&id("acme", "a"), || true).unwrap());
    assert!(manager.orgs().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_use_stays() {
    let (dir, clock) = (fast_dir(), ManualClock::new(1_700_000_000_000_000_000));
    // A list under way counts its waiting by this clock: one moved on by IDLE_EVICT_AFTER once used up all of that, and the
    // list ended as too slow wherever its thread had to wait again.
    let idle_evict_after = Duration::from_secs(1);
    let config = StoreConfig { idle_evict_after, ..StoreConfig::at(dir.path()) };
    let manager = Manager::with_config(config, clock.clone()).unwrap();
    fill(&manager, &a());
    let stays = |why: &str| {
        assert!(!manager.discard(&a(), || true).unwrap(), "{why}");
        assert_eq!(value_of(&manager.open(&a()).unwrap(), "k").unwrap(), b"v", "{why}");
    };
    let shard = manager.open(&a()).unwrap();
    stays("held");
    shard.close().await.unwrap();
    stays("held, though closed: it may have readers");
    drop(shard);

    manager.show(&a(), &key("own"), &Op::Put(Value::from("w")), Ballot(9));
    stays("an own write is shown");
    manager.hide(&a(), &key("own"), Ballot(9));

    manager.unsettle(&a(), &key("other"));
    stays("a key is unsettled");
    manager.settle(&a(), &key("other"));

    assert!(!manager.discard(&a(), || false).unwrap(), "it may not go");
    // What came after that was asked was lost where it was in the file by the time that the file went.
    let comes_meanwhile = || {
        commit(&manager, &put(&a(), "meanwhile", "w", 9));
        manager.sync_all().unwrap();
        true
    };
    assert!(!manager.discard(&a(), comes_meanwhile).unwrap(), "a frame came meanwhile");
    assert_eq!(value_of(&manager.open(&a()).unwrap(), "meanwhile").unwrap(), b"w");

    let watch = manager.feed().watch(&a(), vec![String::new()], None, Arc::default()).unwrap();
    let seen = watch.begin_now();
    stays("watched");
    drop(watch);

    // A list goes on when nobody holds the shard any more, and even after it was closed.
    for n in 0..4 {
        let big = Op::Put(Value::from(vec![7; 512 * 1024]));
        commit(&manager, &frame(&a(), &format!("big{n}"), big, 10 + n, 10 + n));
    }
    let shard = manager.open(&a()).unwrap();
    shard.wait_applied();
    let mut rows = shard.rows(ListQuery::prefix("")).await.unwrap();
    let mut listed = rows.next().await.unwrap().unwrap().len();
    drop(shard);
    assert!(!manager.discard(&a(), || true).unwrap(), "listed");
    clock.advance(idle_evict_after);
    manager.evict_idle();
    assert_eq!(manager.open_shard_count(), 0);
    assert!(!manager.discard(&a(), || true).unwrap(), "listed, and closed");
    while let Some(portion) = rows.next().await.unwrap() {
        listed += portion.len();
    }
    assert_eq!(listed, 6);

    let discarded = async {
        // The list's thread is perhaps not gone yet.
        while !manager.discard(&a(), || true).unwrap() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, discarded).await.expect("nobody uses it any more");
    // What was kept of its changes is no story to go on in.
    let watch = manager.feed().watch(&a(), vec![String::new()], Some(seen), Arc::default()).unwrap();
    assert!(!watch.is_resumed());
}

/// A file that has room for nothing: frames wait in memory.
#[test]
fn frames_on_their_way_keep_a_shard() {
    let dir = fast_dir();
    let disk = Arc::new(Stepped::default());
    let manager = Manager::with_config(config(dir.path(), &disk), OsClock::shared()).unwrap();
    disk.is_full.store(1, Ordering::SeqCst);
    commit(&manager, &put(&id("other", "a"), "k", "v", 5));
    assert!(matches!(manager.sync_all(), Err(Error::Rejected(Rejection::DiskFull(_)))));
    assert!(!manager.discard(&id("other", "a"), || true).unwrap());
    disk.is_full.store(0, Ordering::SeqCst);
    manager.open(&id("other", "a")).unwrap().wait_applied();
    assert_eq!(value_of(&manager.open(&id("other", "a")).unwrap(), "k").unwrap(), b"v");
}

/// The operating system's disk, with the files of one org as they were before each change of their names.
#[derive(Debug, Default)]
struct Stepped {
    watched: Mutex<Option<PathBuf>>,
    steps: Mutex<Vec<Step>>,
    /// A frame is committed here at each step.
    busy: Mutex<Option<Arc<Manager>>>,
    is_full: AtomicU64,
}

#[derive(Debug)]
struct Step {
    before: Image,
    is_sync: bool,
}

fn config(root: &Path, disk: &Arc<Stepped>) -> StoreConfig {
    StoreConfig { disk: Arc::clone(disk) as Arc<dyn Disk>, ..StoreConfig::at(root) }
}

/// The files of a directory, without the index of the log, which is memory.
fn image(dir: &Path) -> Image {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| !path.to_string_lossy().ends_with("-shm"));
    files.map(|path| (path.file_name().unwrap().into(), fs::read(path).unwrap())).collect()
}

impl Stepped {
    fn step(&self, is_sync: bool) {
        if let Some(dir) = &*self.watched.lock() {
            self.steps.lock().push(Step { before: image(dir), is_sync });
        }
        if let Some(manager) = &*self.busy.lock() {
            let n = self.steps.lock().len();
            commit(manager, &put(&a(), &format!("step{n}"), "v", 100));
        }
    }
}

impl Disk for Stepped {
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        OsDisk.create(path)
    }
    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        OsDisk.open(path)
    }
    fn kind(&self, path: &Path) -> io::Result<Option<Kind>> {
        OsDisk.kind(path)
    }
    fn is_link(&self, path: &Path) -> io::Result<bool> {
        OsDisk.is_link(path)
    }
    fn names(&self, directory: &Path) -> io::Result<Vec<String>> {
        OsDisk.names(directory)
    }
    fn create_directories(&self, path: &Path) -> io::Result<()> {
        if self.is_full.load(Ordering::SeqCst) == 1 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        OsDisk.create_directories(path)
    }
    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.step(true);
        OsDisk.sync_directory(path)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step(false);
        OsDisk.remove(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        OsDisk.rename(from, to)
    }
    fn lock(&self, path: &Path) -> io::Result<Option<Lock>> {
        OsDisk.lock(path)
    }
    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        OsDisk.free_bytes(path)
    }
    fn sqlite_vfs(&self) -> Option<&str> {
        None
    }
}

/// Every disk that a crash could leave: after a name was taken away and before the directory was synced, it is gone or not.
fn crashes(first: &Image, steps: &[Step], last: &Image) -> Vec<Image> {
    let (mut named, mut images) = (first.clone(), vec![first.clone()]);
    for (seen, is_sync) in steps.iter().map(|step| (&step.before, step.is_sync)).chain([(last, false)]) {
        named.extend(seen.clone());
        let gone: Vec<_> = named.iter().filter(|(name, _)| !seen.contains_key(*name)).collect();
        for choice in 0..1_u32 << gone.len() {
            let back = gone.iter().enumerate().filter(|(n, _)| choice & (1 << n) != 0);
            let back = back.map(|(_, (name, bytes))| ((*name).clone(), (*bytes).clone()));
            images.push(seen.clone().into_iter().chain(back).collect());
        }
        if is_sync {
            named = seen.clone();
        }
    }
    images.sort();
    images.dedup();
    images
}

const ROWS: i64 = 40;

/// Starts on what a crash left: all of the shard, or nothing; and a frame that comes then is beside that alone.
fn check(image: &Image) -> bool {
    let dir = fast_dir();
    fs::create_dir_all(dir.path().join("_")).unwrap();
    for (path, bytes) in image {
        fs::write(dir.path().join("_").join(path), bytes).unwrap();
    }
    let is_there = image.contains_key(Path::new("a.db"));
    assert!(is_there || image.is_empty(), "a log without its file would be the next file's: {:?}", image.keys());
    let manager = Manager::new(dir.path()).unwrap();
    assert_eq!((manager.exists(&a()), manager.is_whole(&a()).unwrap()), (is_there, is_there));
    assert_eq!(manager.exists(&a()), is_there, "asking makes no file");
    commit(&manager, &put(&a(), "later", "w", ROWS + 1));
    manager.sync_all().unwrap();
    assert_eq!(manager.is_whole(&a()).unwrap(), is_there);
    let shard = manager.open(&a()).unwrap();
    assert_eq!(shard.stats().unwrap().keys, if is_there { 1 + u64::try_from(ROWS).unwrap() } else { 1 });
    assert_eq!(shard.digest().unwrap(), digest_of_rows(&shard));
    drop((shard, manager));
    assert_eq!(integrity(&dir.path().join("_/a.db")), "ok");
    is_there
}

fn fill_and_mark(manager: &Arc<Manager>) {
    for n in 1..=ROWS {
        commit(manager, &put(&a(), &format!("k{n}"), "v", n));
    }
    manager.sync_all().unwrap();
    manager.mark_whole(&a()).unwrap();
}

/// Discards at `dir`, of which every crash on the way is tried.
fn crash_at_each_step(dir: &Path, open: bool) {
    let disk = Arc::new(Stepped::default());
    let manager = Manager::with_config(config(dir, &disk), OsClock::shared()).unwrap();
    if open {
        manager.open(&a()).unwrap();
    }
    let first = image(&dir.join("_"));
    *disk.watched.lock() = Some(dir.join("_"));
    assert!(manager.discard(&a(), || true).unwrap());
    *disk.watched.lock() = None;
    let (steps, last) = (std::mem::take(&mut *disk.steps.lock()), image(&dir.join("_")));
    assert!(last.is_empty() && steps.last().unwrap().is_sync, "gone, and durably");
    let found: Vec<bool> = crashes(&first, &steps, &last).iter().map(check).collect();
    assert!(found.contains(&true) && found.contains(&false), "{found:?}");
}

#[test]
fn a_crash_at_any_step_leaves_all_or_nothing() {
    let (dir, manager) = store();
    fill_and_mark(&manager);
    // A process that died: all that was committed since the last checkpoint is in the log alone.
    let left = image(&dir.path().join("_"));
    assert!(!left[Path::new("a.db-wal")].is_empty());
    drop(manager);
    crash_at_each_step(dir.path(), true);
    for open in [true, false] {
        let dir = fast_dir();
        fs::create_dir_all(dir.path().join("_")).unwrap();
        left.iter().for_each(|(name, bytes)| fs::write(dir.path().join("_").join(name), bytes).unwrap());
        crash_at_each_step(dir.path(), open);
    }
}

/// A log that another program holds cannot be brought into the file, and must not go before that.
#[test]
fn a_file_that_another_program_reads_stays_whole() {
    let (dir, manager) = store();
    fill_and_mark(&manager);
    let theirs = rusqlite::Connection::open(dir.path().join("_/a.db")).unwrap();
    theirs.execute_batch("BEGIN; SELECT count(*) FROM kv").unwrap();
    commit(&manager, &put(&a(), "later", "w", ROWS + 1));
    manager.sync_all().unwrap();
    assert!(matches!(manager.discard(&a(), || true), Err(Error::Rejected(Rejection::Busy(_)))));
    assert_eq!(manager.open(&a()).unwrap().stats().unwrap().keys, u64::try_from(ROWS).unwrap() + 1);
    drop(theirs);
    assert!(manager.discard(&a(), || true).unwrap());
}

#[test]
fn frames_committed_at_every_step_begin_the_next_file() {
    let dir = fast_dir();
    let disk = Arc::new(Stepped::default());
    let manager = Manager::with_config(config(dir.path(), &disk), OsClock::shared()).unwrap();
    fill(&manager, &a());
    // Closed first: what comes as long as it is being closed keeps it.
    drop(manager);
    let manager = Manager::with_config(config(dir.path(), &disk), OsClock::shared()).unwrap();
    *disk.watched.lock() = Some(dir.path().join("_"));
    *disk.busy.lock() = Some(Arc::clone(&manager));
    assert!(manager.discard(&a(), || true).unwrap());
    (*disk.busy.lock(), *disk.watched.lock()) = (None, None);
    let steps = disk.steps.lock().len();
    assert!(steps >= 3);
    manager.sync_all().unwrap();
    let shard = manager.open(&a()).unwrap();
    assert_eq!((value_of(&shard, "k"), shard.stats().unwrap().keys), (None, u64::try_from(steps).unwrap()));
    assert_eq!(value_of(&shard, &format!("step{steps}")).unwrap(), b"v");
}

/// Frames, reads and discards of one shard at once: a discard takes the frames up to some moment within the call, and none
/// after that; and what it took does not come back.
#[test]
fn no_frame_is_lost_to_a_discard_beside_it() {
    const KEYS: i64 = 4;
    const ROUNDS: usize = 60;
    let (dir, manager) = store();
    manager.summaries().unwrap();
    let (committed, is_over, clock) = (AtomicI64::new(0), AtomicU64::new(0), OsClock::shared());
    let deadline = clock.now().monotonic + PATIENCE;
    let number = |shard: &Shard, n: i64| {
        let row = shard.read(&key(&format!("k{n}"))).unwrap();
        row.map_or(0, |row| i64::from_le_bytes(row.value.as_bytes().try_into().unwrap()))
    };
    let mut rounds = 0;
    while rounds < ROUNDS {
        assert!(clock.now().monotonic < deadline, "only {rounds} rounds with a discard");
        is_over.store(0, Ordering::SeqCst);
        let first = committed.load(Ordering::SeqCst) + 1;
        let discarded = std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in first..first + 30 {
                    let op = Op::Put(Value::from(n.to_le_bytes().to_vec()));
                    commit(&manager, &frame(&a(), &format!("k{}", n % KEYS), op, n, n));
                    committed.store(n, Ordering::SeqCst);
                    while n % 3 == 0 && manager.apply_backlog() > 0 {
                        std::thread::yield_now();
                    }
                }
                is_over.store(1, Ordering::SeqCst);
            });
            scope.spawn(|| {
                while is_over.load(Ordering::SeqCst) == 0 {
                    let shard = manager.open(&a()).unwrap();
                    let before = number(&shard, 1);
                    assert!(number(&shard, 1) >= before, "held, it goes nowhere");
                    drop(shard);
                    std::thread::yield_now();
                }
            });
            let discarder = scope.spawn(|| {
                let mut last = None;
                while is_over.load(Ordering::SeqCst) == 0 {
                    let before = committed.load(Ordering::SeqCst);
                    if manager.discard(&a(), || true).unwrap() {
                        last = Some((before, committed.load(Ordering::SeqCst) + 1));
                    }
                }
                last
            });
            discarder.join().unwrap()
        });
        let Some((before, after)) = discarded else { continue };
        rounds += 1;
        manager.sync_all().unwrap();
        let (last, shard) = (committed.load(Ordering::SeqCst), manager.open(&a()).unwrap());
        // In the order of their commits: those that went, then those that are there.
        let found: Vec<_> = (last - KEYS + 1..=last).map(|newest| (newest, number(&shard, newest % KEYS))).collect();
        assert!(found.iter().all(|(newest, found)| found == newest || *found == 0), "older ones came back: {found:?}");
        assert!(found.is_sorted_by_key(|(_, found)| *found > 0), "one between went: {found:?}");
        for (newest, found) in found {
            assert!(
                if found == 0 { newest <= after } else { newest > before },
                "{newest} is {found}: {before}..{after}"
            );
        }
        assert_eq!(shard.digest().unwrap(), digest_of_rows(&shard));
        assert_eq!(manager.root().unwrap(), manager.summaries().unwrap().iter().collect::<Root>());
    }
    drop(manager);
    assert_eq!(integrity(&dir.path().join("_/a.db")), "ok");
}

#[test]
fn the_mark_is_of_one_file_and_goes_with_it() {
    let (dir, manager) = store();
    manager.mark_whole(&a()).unwrap();
    assert!(!manager.is_whole(&a()).unwrap() && !manager.exists(&a()), "no file is made for it");
    fill(&manager, &a());
    assert!(!manager.is_whole(&a()).unwrap());
    manager.mark_whole(&a()).unwrap();
    assert!(manager.is_whole(&a()).unwrap());
    // A backup is of this shard, and not this node's copy of it.
    let copy = manager.open(&a()).unwrap().copy(&|| true).unwrap();
    let mut bytes = vec![0; usize::try_from(copy.bytes()).unwrap()];
    copy.read_at(&mut bytes, 0).unwrap();
    fs::create_dir(dir.path().join("restored")).unwrap();
    fs::write(dir.path().join("restored/a.db"), bytes).unwrap();
    assert!(!manager.is_whole(&id("restored", "a")).unwrap());
    assert_eq!(value_of(&manager.open(&id("restored", "a")).unwrap(), "k").unwrap(), b"v");
    drop(manager);

    let manager = Manager::new(dir.path()).unwrap();
    assert!(manager.is_whole(&a()).unwrap() && manager.open_shard_count() == 0);
    assert!(manager.discard(&a(), || true).unwrap());
    assert!(!manager.is_whole(&a()).unwrap());
    fill(&manager, &a());
    assert!(!manager.is_whole(&a()).unwrap());
    manager.mark_whole(&id("restored", "a")).unwrap();
    assert!(manager.is_whole(&id("restored", "a")).unwrap() && manager.open_shard_count() == 1);
}
