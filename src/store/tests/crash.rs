//! What a crash leaves of a shard. Whatever becomes of the writes after `sync_all` returned, every frame committed before
//! is there, the file is sound, and what came later is there in order or not at all.
//!
//! The files are taken as they are before and after some more commits; the difference, in blocks of 512 bytes, are the
//! writes that were never synced. Each prefix of them, each one missing, each one half written and some random choices
//! make the disks of a crash. The index of the log (`-shm`) is memory, and never there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

const BLOCK: usize = 512;
const KEYS: i64 = 8;

pub(super) type Image = BTreeMap<PathBuf, Vec<u8>>;

/// In memory where that is to be had: hundreds of disks are made and synced.
pub(super) fn fast_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// A store and the ballot of its last commit. Each commit writes `ballot` under one of a few keys.
struct Run {
    dir: tempfile::TempDir,
    manager: Arc<Manager>,
    last: i64,
}

impl Run {
    fn start() -> Self {
        let dir = fast_dir();
        let manager = Manager::new(dir.path()).unwrap();
        // Something else carries durability, so that commits are not synced one by one.
        manager.with_replicator(Arc::new(Durable));
        Self { dir, manager, last: 0 }
    }

    /// Commits frames in as many transactions, some of them of many pages.
    fn commit(&mut self, frames: i64, bytes: usize) {
        let shard = self.manager.open(&id("", "a")).unwrap();
        for _ in 0..frames {
            self.last += 1;
            let mut value = self.last.to_le_bytes().to_vec();
            value.resize(8 + bytes, 7);
            let name = format!("k{}", self.last % KEYS);
            commit(&self.manager, &frame(&id("", "a"), &name, Op::Put(Value::from(value)), self.last, self.last));
            shard.wait_applied();
        }
    }

    /// The files as they are; without the index of the log.
    fn image(&self) -> Image {
        let files = fs::read_dir(self.dir.path().join("_")).unwrap().map(|entry| entry.unwrap().path());
        let files = files.filter(|path| !path.to_string_lossy().ends_with("-shm"));
        files.map(|path| (path.file_name().unwrap().into(), fs::read(path).unwrap())).collect()
    }
}

/// Says that it keeps what it accepted; never asked here.
struct Durable;

#[async_trait::async_trait]
impl crate::store::replicator::Replicator for Durable {
    async fn propose(&self, _: crate::store::replicator::Proposal) -> crate::store::replicator::Decision {
        crate::store::replicator::Decision::Timeout
    }
    fn subscribe(&self, _: Arc<dyn Subscriber>) {}
    fn is_durable(&self) -> bool {
        true
    }
    async fn close(&self) {}
}

/// The blocks in which a later image differs.
fn blocks(before: &Image, after: &Image) -> Vec<(PathBuf, usize)> {
    let mut blocks = Vec::new();
    for (path, now) in after {
        let then = before.get(path).map_or(&[][..], Vec::as_slice);
        let differs = |at: &usize| then.get(*at..now.len().min(at + BLOCK)) != now.get(*at..now.len().min(at + BLOCK));
        blocks.extend((0..now.len()).step_by(BLOCK).filter(differs).map(|at| (path.clone(), at)));
    }
    blocks
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kept {
    Lost,
    Whole,
    Torn,
}

/// The earlier image with what of the later one got there.
fn laid(before: &Image, after: &Image, blocks: &[(PathBuf, usize)], kept: impl Fn(usize) -> Kept) -> Image {
    let mut image = before.clone();
    for (n, (path, at)) in blocks.iter().enumerate() {
        let now = &after[path];
        let length = match kept(n) {
            Kept::Lost => continue,
            Kept::Whole => BLOCK.min(now.len() - at),
            Kept::Torn => BLOCK.min(now.len() - at) / 2,
        };
        let file = image.entry(path.clone()).or_default();
        file.resize(file.len().max(at + length), 0);
        file[*at..at + length].copy_from_slice(&now[*at..at + length]);
    }
    image
}

/// The images that a crash could leave between two.
fn images(before: &Image, after: &Image, rng: &mut StdRng) -> Vec<Image> {
    let blocks = blocks(before, after);
    assert!(!blocks.is_empty());
    let make = |kept: &dyn Fn(usize) -> Kept| laid(before, after, &blocks, kept);
    let when = |is: bool| if is { Kept::Whole } else { Kept::Lost };
    let mut images = vec![make(&|_| Kept::Lost), make(&|_| Kept::Whole)];
    for one in 0..blocks.len() {
        images.push(make(&|n| when(n <= one)));
        images.push(make(&|n| when(n != one)));
        images.push(make(&|n| if n == one { Kept::Torn } else { when(n < one) }));
        images.push(make(&|n| if n == one { Kept::Torn } else { Kept::Whole }));
        let choice: Vec<Kept> =
            blocks.iter().map(|_| [Kept::Lost, Kept::Whole, Kept::Torn][rng.random_range(0..3)]).collect();
        images.push(make(&|n| choice[n]));
    }
    images.sort();
    images.dedup();
    images
}

/// Opens an image: sound, as of one of the commits from `synced` to `last`, and open to more.
fn check(image: &Image, synced: i64, last: i64) {
    let dir = fast_dir();
    fs::create_dir_all(dir.path().join("_")).unwrap();
    for (path, bytes) in image {
        fs::write(dir.path().join("_").join(path), bytes).unwrap();
    }
    let manager = Manager::new(dir.path()).unwrap();
    let shard = manager.open(&id("", "a")).unwrap();
    let held = |n: i64| {
        let value = value_of(&shard, &format!("k{n}"))?;
        Some(i64::from_le_bytes(value[..8].try_into().unwrap()))
    };
    let found: Vec<Option<i64>> = (0..KEYS).map(held).collect();
    let as_of = |commit: i64| -> Vec<Option<i64>> {
        (0..KEYS).map(|key| (0..KEYS).map(|back| commit - back).find(|n| *n > 0 && n % KEYS == key)).collect()
    };
    assert!((synced..=last).any(|commit| found == as_of(commit)), "{found:?} is not of {synced}..={last}");
    assert_eq!(shard.digest().unwrap(), digest_of_rows(&shard), "a digest of other rows was trusted");
    commit(&manager, &put(&id("", "a"), "later", "v", last + 1));
    shard.wait_applied();
    assert_eq!(shard.digest().unwrap(), digest_of_rows(&shard));
    assert_eq!(value_of(&shard, "later").unwrap(), b"v");
    drop(shard);
    drop(manager);
    assert_eq!(integrity(&dir.path().join("_/a.db")), "ok");
}

pub(super) fn integrity(path: &Path) -> String {
    let conn = rusqlite::Connection::open(path).unwrap();
    conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap()
}

#[test]
fn nothing_synced_is_lost_whatever_becomes_of_what_came_after() {
    let (mut run, mut rng, mut count) = (Run::start(), StdRng::seed_from_u64(1), 0);
    // Twice through: the second time the log is used anew from its beginning.
    for (synced, more, bytes) in [(10, 3, 40), (6, 2, 9_000), (5, 3, 40)] {
        run.commit(synced, 100);
        run.manager.sync_all().unwrap();
        let (before, safe) = (run.image(), run.last);
        run.commit(more, bytes);
        for image in images(&before, &run.image(), &mut rng) {
            check(&image, safe, run.last);
            count += 1;
        }
    }
    assert!(count > 200, "only {count} images");
}

/// A checkpoint syncs the log before it writes to the file: however little of that writing got there, the log has it.
#[test]
fn a_checkpoint_cut_short_loses_nothing() {
    let (mut run, mut rng) = (Run::start(), StdRng::seed_from_u64(2));
    run.commit(5, 100);
    run.manager.sync_all().unwrap();
    run.commit(5, 6_000);
    let before = run.image();
    run.manager.sync_all().unwrap();
    let after = run.image();
    // First the digest gets into the log, and the log is synced; only then is anything written to the file.
    let log = Path::new("a.db-wal");
    let mut between = before.clone();
    between.insert(log.to_owned(), after[log].clone());
    for image in images(&before, &between, &mut rng) {
        check(&image, run.last - 5, run.last);
    }
    for image in images(&between, &after, &mut rng) {
        check(&image, run.last, run.last);
    }
}

/// A process that was killed left an index of the log that fits no longer, or none.
#[test]
fn the_index_of_the_log_is_never_trusted_after_a_crash() {
    let mut run = Run::start();
    run.commit(9, 100);
    run.manager.sync_all().unwrap();
    let (image, index) = (run.image(), fs::read(run.dir.path().join("_/a.db-shm")).unwrap());
    for index in [None, Some(Vec::new()), Some(vec![0; index.len()]), Some(vec![0xff; index.len()]), Some(index)] {
        let mut image = image.clone();
        image.extend(index.map(|index| (PathBuf::from("a.db-shm"), index)));
        check(&image, run.last, run.last);
    }
}
