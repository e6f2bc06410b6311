//! Every disk that a crash could leave of a real workload's writes: what was acknowledged is there, what was never
//! written is not, and nothing is called damage that a crash alone did. And the reverse: whatever happens to what was
//! synced is reported.
//!
//! The workload runs on a real directory while [`recorder`](super::recorder) writes down what it does. That is replayed
//! on a model of a disk that keeps its promises and no more: a file's bytes are there after its sync, a directory's
//! entries after its own; before that each block of 512 bytes, each size and each entry may or may not have got there, in any order, and one
//! block may be half written.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::recorder::{Did, recorded};
use super::*;
use crate::cluster::memory::{Figures, PeerMemory};
use crate::types::{NodeId, StorageId};

const BLOCK: usize = 512;
/// Random choices of what got there, per moment of a crash.
const RANDOM_IMAGES: usize = 6;

/// One thing that a disk does as a whole or not at all.
#[derive(Debug, Clone)]
enum Atom {
    Block { inode: usize, at: usize, bytes: Vec<u8> },
    Size { inode: usize, bytes: usize },
    Link { name: PathBuf, inode: usize },
    Unlink { name: PathBuf },
    Rename { from: PathBuf, to: PathBuf },
}

impl Atom {
    fn is_of_file(&self, file: usize) -> bool {
        matches!(self, Self::Block { inode, .. } | Self::Size { inode, .. } if *inode == file)
    }

    fn is_of_directory(&self) -> bool {
        !matches!(self, Self::Block { .. } | Self::Size { .. })
    }
}

/// What is on the disk for good, and what may have got there.
#[derive(Debug, Clone, Default)]
struct Disk {
    inodes: Vec<Vec<u8>>,
    names: BTreeMap<PathBuf, usize>,
    pending: Vec<Atom>,
    /// As the process sees it.
    seen: BTreeMap<PathBuf, usize>,
}

impl Disk {
    fn take(&mut self, did: &Did) {
        match did {
            Did::Create(path) => match self.seen.get(path) {
                Some(inode) => self.pending.push(Atom::Size { inode: *inode, bytes: 0 }),
                None => {
                    let inode = self.inodes.len();
                    self.inodes.push(Vec::new());
                    self.seen.insert(path.clone(), inode);
                    self.pending.push(Atom::Link { name: path.clone(), inode });
                }
            },
            Did::Resize(path, bytes) => {
                let bytes = usize::try_from(*bytes).unwrap();
                self.pending.push(Atom::Size { inode: self.seen[path], bytes });
            }
            Did::Write(path, at, bytes) => self.write(self.seen[path], usize::try_from(*at).unwrap(), bytes),
            Did::Sync(path) => {
                let inode = self.seen[path];
                self.settle(|atom| atom.is_of_file(inode));
            }
            Did::SyncDirectory(_) => self.settle(Atom::is_of_directory),
            Did::Remove(path) => {
                self.seen.remove(path);
                self.pending.push(Atom::Unlink { name: path.clone() });
            }
            Did::Rename(from, to) => {
                let inode = self.seen.remove(from).unwrap();
                self.seen.insert(to.clone(), inode);
                self.pending.push(Atom::Rename { from: from.clone(), to: to.clone() });
            }
        }
    }

    fn write(&mut self, inode: usize, mut at: usize, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let length = (BLOCK - at % BLOCK).min(bytes.len());
            self.pending.push(Atom::Block { inode, at, bytes: bytes[..length].to_vec() });
            bytes = &bytes[length..];
            at += length;
        }
    }

    fn settle(&mut self, is: impl Fn(&Atom) -> bool) {
        let (now, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending).into_iter().partition(is);
        self.pending = later;
        now.iter().for_each(|atom| self.apply(atom));
    }

    fn apply(&mut self, atom: &Atom) {
        match atom {
            Atom::Block { inode, at, bytes } => {
                let file = &mut self.inodes[*inode];
                file.resize(file.len().max(at + bytes.len()), 0);
                file[*at..at + bytes.len()].copy_from_slice(bytes);
            }
            Atom::Size { inode, bytes } => self.inodes[*inode].resize(*bytes, 0),
            Atom::Link { name, inode } => drop(self.names.insert(name.clone(), *inode)),
            Atom::Unlink { name } => drop(self.names.remove(name)),
            Atom::Rename { from, to } => {
                // Where the first name never got there, neither does the second.
                if let Some(inode) = self.names.remove(from) {
                    self.names.insert(to.clone(), inode);
                }
            }
        }
    }

    /// What of the pending atoms `kept` says, as files.
    fn image(&self, kept: impl Fn(usize) -> Kept) -> Image {
        let mut disk = self.clone();
        for (n, atom) in self.pending.iter().enumerate() {
            match (kept(n), atom) {
                (Kept::Lost, _) => {}
                (Kept::Torn, Atom::Block { inode, at, bytes }) => {
                    let half = bytes[..bytes.len() / 2].to_vec();
                    disk.apply(&Atom::Block { inode: *inode, at: *at, bytes: half });
                }
                _ => disk.apply(atom),
            }
        }
        disk.names.iter().map(|(name, inode)| (name.clone(), disk.inodes[*inode].clone())).collect()
    }

    /// The disks that a crash at this moment could leave.
    fn images(&self, rng: &mut StdRng) -> Vec<Image> {
        let count = self.pending.len();
        let kept = |is: bool| if is { Kept::Whole } else { Kept::Lost };
        let mut images = vec![self.image(|_| Kept::Lost)];
        for one in 0..count {
            images.push(self.image(|n| kept(n <= one)));
            images.push(self.image(|n| kept(n != one)));
            images.push(self.image(|n| kept(n == one)));
            images.push(self.image(|n| if n == one { Kept::Torn } else { Kept::Whole }));
            images.push(self.image(|n| if n == one { Kept::Torn } else { kept(n < one) }));
        }
        if count > 2 {
            for _ in 0..RANDOM_IMAGES {
                let choice: Vec<Kept> = (0..count)
                    .map(|_| [Kept::Lost, Kept::Whole, Kept::Whole, Kept::Torn][rng.random_range(0..4)])
                    .collect();
                images.push(self.image(|n| choice[n]));
            }
        }
        images.sort();
        images.dedup();
        images
    }
}

#[derive(Debug, Clone, Copy)]
enum Kept {
    Lost,
    Whole,
    Torn,
}

type Image = Vec<(PathBuf, Vec<u8>)>;

/// What a journal must say of itself when it is opened.
#[derive(Debug, Clone, Default, PartialEq)]
struct State {
    batches: BTreeMap<u64, Vec<Entry>>,
    next: u64,
    noted_ceiling: Ballot,
    boot: u64,
    barred: Option<String>,
    peers: PeerMemory,
}

/// The same, as it shows.
#[derive(Debug, Clone, PartialEq)]
struct Shown {
    position: u64,
    ceiling: Ballot,
    pending: BTreeMap<Address, Record>,
    chosen: BTreeMap<Address, Record>,
    outbox: BTreeMap<Address, LocalWrite>,
    refused: BTreeMap<ShardId, Ballot>,
    damage: Option<String>,
    peers: PeerMemory,
}

impl State {
    fn shown(&self) -> Shown {
        let (mut ceiling, mut outbox, mut refused) = (self.noted_ceiling, BTreeMap::new(), BTreeMap::new());
        let (mut pending, mut chosen) = (BTreeMap::new(), BTreeMap::new());
        for entry in self.batches.values().flatten() {
            match entry {
                Entry::Ceiling(to) => ceiling = ceiling.max(*to),
                Entry::Accepted(address, record) => drop(pending.insert(address.clone(), record.clone())),
                Entry::Committed(address, _) => drop(chosen.insert(address.clone(), pending.remove(address).unwrap())),
                Entry::Chosen(address, record) => drop(chosen.insert(address.clone(), record.clone())),
                Entry::Local(address, write) => drop(outbox.insert(address.clone(), write.clone())),
                Entry::Refused(shard, upto) => drop(refused.insert(shard.clone(), *upto)),
                Entry::Dropped(address, _) => drop(pending.remove(address)),
            }
            outbox.retain(|address, write: &mut LocalWrite| {
                chosen.get(address).is_none_or(|chosen: &Record| chosen.upd < write.upd)
            });
        }
        let (damage, peers) = (self.barred.clone(), self.peers.clone());
        Shown { position: self.next - 1, ceiling, pending, chosen, outbox, refused, damage, peers }
    }
}

fn shown(journal: &Journal, recovered: &Recovered) -> Shown {
    Shown {
        position: journal.position(),
        ceiling: recovered.restored.ceiling,
        pending: recovered.restored.pending.iter().cloned().collect(),
        chosen: recovered.chosen.iter().cloned().collect(),
        outbox: recovered.outbox.iter().cloned().collect(),
        refused: recovered.restored.refused.iter().map(|(shard, upto)| (shard.clone(), *upto)).collect(),
        damage: recovered.damage.clone(),
        peers: journal.header().peers().clone(),
    }
}

/// A workload: what it did, step by step, and what it may rely on after each.
struct Run {
    dir: tempfile::TempDir,
    journal: Option<Journal>,
    state: State,
    steps: Vec<(Vec<Did>, State)>,
}

impl Run {
    fn start() -> Self {
        let state = State { next: 1, ..State::default() };
        let mut run = Self { dir: fast_dir(), journal: None, state, steps: Vec::new() };
        recorded();
        run.open();
        run
    }

    fn done(&mut self) {
        self.steps.push((recorded(), self.state.clone()));
    }

    fn open(&mut self) {
        self.journal = None;
        let (journal, recovered) = open(self.dir.path());
        self.state.boot += 1;
        self.state.noted_ceiling = recovered.restored.ceiling;
        assert_eq!(shown(&journal, &recovered), self.state.shown());
        self.journal = Some(journal);
        self.done();
    }

    fn journal(&mut self) -> &mut Journal {
        self.journal.as_mut().unwrap()
    }

    fn append(&mut self, entries: Vec<Entry>) {
        self.journal().append(&entries, Lsn(1)).unwrap();
        self.state.batches.insert(self.state.next, entries);
        self.state.next += 1;
        self.done();
    }

    /// As the driver does: what is still needed is repeated in a new segment, then those before are given up.
    fn compact(&mut self) {
        let before = self.state.next;
        self.journal().rotate(0).unwrap();
        self.done();
        let now = self.state.shown();
        let pending = now.pending.into_iter().map(|(address, record)| Entry::Accepted(address, record));
        let outbox = now.outbox.into_iter().map(|(address, write)| Entry::Local(address, write));
        let refused = now.refused.into_iter().map(|(shard, upto)| Entry::Refused(shard, upto));
        let kept = pending.chain(refused).chain(outbox);
        self.append(std::iter::once(Entry::Ceiling(now.ceiling)).chain(kept).collect());
        self.journal().drop_before(before).unwrap();
        self.state.batches.retain(|number, _| *number >= before);
        self.done();
    }

    fn remember(&mut self, position: u64) {
        let figures = Figures { storage_id: StorageId(5), run: 1, ceiling: Ballot(7), position };
        let _ = self.state.peers.observe(&NodeId::parse("b").unwrap(), &figures);
        // Which run it was is not written down.
        self.state.peers = rmp_serde::from_slice(&rmp_serde::to_vec_named(&self.state.peers).unwrap()).unwrap();
        let peers = self.state.peers.clone();
        self.journal().header_mut().set_peers(peers).unwrap();
        self.done();
    }

    fn bar(&mut self) {
        self.journal().header_mut().bar("forgot").unwrap();
        self.state.barred = Some("forgot".to_owned());
        self.done();
    }
}

/// In memory where that is to be had: thousands of disks are made and synced.
fn fast_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn big(key: &str, ballot: i64, bytes: usize) -> Entry {
    let op = Op::Put(Value::from(vec![u8::try_from(ballot % 251).unwrap(); bytes]));
    let record = Record { ballot: Ballot(ballot), upd: Ballot(ballot), op, lineage: Lineage::default() };
    Entry::Accepted(address(key), record)
}

fn own(key: &str, upd: i64) -> Entry {
    Entry::Local(address(key), LocalWrite { upd: Ballot(upd), op: record(upd).op })
}

fn workload() -> Run {
    let mut run = Run::start();
    run.append(vec![Entry::Ceiling(Ballot(1_000)), accepted("a", 10), accepted("b", 11)]);
    run.append(vec![Entry::Committed(address("a"), Ballot(10)), big("c", 12, 1_500)]);
    // What this node accepts alone: one that is superseded, one that is drained, one that stays to the end.
    run.append(vec![own("a", 9), own("d", 13), own("h", 14), own("h", 20)]);
    run.remember(3);
    run.append(vec![Entry::Refused(address("a").shard, Ballot(9))]);
    run.append(vec![Entry::Chosen(address("d"), record(13))]);
    run.open();
    run.append(vec![big("e", 14, 9_000)]);
    run.append(vec![big("e", 15, 9_000), Entry::Ceiling(Ballot(2_000))]);
    run.compact();
    run.append(vec![accepted("f", 16), accepted("dropped", 17), Entry::Refused(address("a").shard, Ballot(10))]);
    run.append(vec![Entry::Dropped(address("dropped"), Ballot(17))]);
    run.open();
    run.open();
    run.append(vec![Entry::Committed(address("f"), Ballot(16))]);
    // Several segments at once, so that a crash may take away any of them first.
    run.append(vec![big("e", 17, 15_000)]);
    run.append(vec![big("e", 18, 15_000)]);
    run.compact();
    run.remember(9);
    run.append(vec![big("g", 19, 20_000)]);
    run.bar();
    run.open();
    run
}

/// Puts an image in the place of whatever is in the directory.
fn lay(run: &Run, directory: &Path, image: &Image) {
    let _ = fs::remove_dir_all(directory.join(DIRECTORY));
    fs::create_dir_all(directory.join(DIRECTORY)).unwrap();
    for (path, bytes) in image {
        fs::write(directory.join(path.strip_prefix(run.dir.path()).unwrap()), bytes).unwrap();
    }
}

#[test]
fn every_disk_that_a_crash_could_leave_is_opened_with_all_that_was_acknowledged() {
    let run = workload();
    let (directory, mut rng, mut images) = (fast_dir(), StdRng::seed_from_u64(1), 0);
    let (mut disk, mut before) = (Disk::default(), State { next: 1, ..State::default() });
    for (step, (dids, after)) in run.steps.iter().enumerate() {
        for moment in 0..=dids.len() {
            for image in disk.images(&mut rng) {
                lay(&run, directory.path(), &image);
                check(directory.path(), &before, after, &format!("step {step}, moment {moment}"));
                images += 1;
            }
            if let Some(did) = dids.get(moment) {
                disk.take(did);
            }
        }
        before = after.clone();
    }
    assert!(images > 1_000, "only {images} images");
}

/// The journal is as it was before the step or after it, and goes on.
fn check(directory: &Path, before: &State, after: &State, at: &str) {
    let (mut journal, recovered) = open(directory);
    let found = shown(&journal, &recovered);
    assert!([before.shown(), after.shown()].contains(&found), "{at}: {found:?} is neither {before:?} nor {after:?}");
    let boot = journal.header().boot();
    assert!((before.boot + 1..=after.boot + 1).contains(&boot), "{at}: boot {boot}");
    let (storage_id, next) = (journal.header().storage_id(), journal.next_number());
    journal.append(&[accepted("z", 9_000)], Lsn(1)).unwrap();
    drop(journal);
    let (journal, recovered) = open(directory);
    let mut expected = found;
    expected.position = next;
    expected.pending.insert(address("z"), record(9_000));
    assert_eq!(shown(&journal, &recovered), expected, "{at}, one batch later");
    assert_eq!(journal.header().storage_id(), storage_id, "{at}");
}

/// A small journal of several segments, closed.
fn small() -> Run {
    let mut run = Run::start();
    run.append(vec![Entry::Ceiling(Ballot(1_000)), accepted("a", 10)]);
    run.append(vec![accepted("b", 11)]);
    run.remember(3);
    run.append(vec![Entry::Refused(address("a").shard, Ballot(9))]);
    run.open();
    run.append(vec![Entry::Committed(address("a"), Ballot(10))]);
    run.append(vec![accepted("c", 12), accepted("d", 13)]);
    run.journal().rotate(0).unwrap();
    run.remember(4);
    run.append(vec![accepted("e", 14)]);
    run.append(vec![accepted("f", 15)]);
    run.append(vec![accepted("g", 16)]);
    run.journal = None;
    run
}

fn files(run: &Run) -> Image {
    let list = fs::read_dir(run.dir.path().join(DIRECTORY)).unwrap();
    let mut image: Image =
        list.map(|entry| entry.unwrap().path()).map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    image.sort();
    image.retain(|(path, _)| !path.ends_with("lock"));
    image
}

/// Opens a harmed image: that must say so, or show all, or all up to batch `cut` where the harm reaches from the batch
/// after it to the end of the journal.
fn verdict(run: &Run, directory: &Path, image: &Image, harmed: &str, cut: Option<u64>) {
    lay(run, directory, image);
    match Journal::open(config(directory), 1) {
        Err(JournalError::HeaderLost(_)) => {}
        Err(error) => panic!("{harmed}: {error}"),
        Ok((_, recovered)) if recovered.damage.is_some() => {}
        Ok((journal, recovered)) => {
            let found = shown(&journal, &recovered);
            let cut = cut.and_then(|last| run.steps.iter().rfind(|(_, state)| state.next == last + 1));
            let is_harmless = found == run.state.shown() || cut.is_some_and(|(_, state)| found == state.shown());
            assert!(is_harmless, "{harmed} was skipped in silence: {found:?}");
        }
    }
}

/// One bit of every byte, every block and every page of what was synced: reported, or nothing is lost by it. Only a
/// harm that reaches to the last batch of all cannot be told from a write that was never finished; what peers remember
/// tells it.
#[test]
fn no_harm_to_what_was_synced_is_passed_over() {
    let run = small();
    let (directory, whole) = (fast_dir(), files(&run));
    assert_eq!(whole.len(), 4, "three segments and the header");
    let newest = whole.iter().rposition(|(path, _)| path.extension().is_some()).unwrap();
    let (mut reported_or_harmless, first) = (0, run.state.next - 3);
    for file in 0..whole.len() {
        let (path, bytes) = &whole[file];
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let used = bytes.len() - bytes.iter().rev().take_while(|byte| **byte == 0).count();
        let starts = if file == newest { starts(bytes) } else { vec![usize::MAX] };
        let mut harm = |what: &str, from: usize, to: usize, change: &dyn Fn(&mut [u8])| {
            let mut image = whole.clone();
            change(&mut image[file].1[from..to]);
            let touched = starts.iter().rposition(|start| *start <= from).filter(|_| to > *starts.last().unwrap());
            let cut = touched.map(|n| first + u64::try_from(n).unwrap() - 1);
            verdict(&run, directory.path(), &image, &format!("{name}: {what} {from}..{to}"), cut);
            reported_or_harmless += 1;
        };
        for at in (0..used + 32).filter(|at| bytes[*at..].iter().take(8).any(|byte| *byte != 0) || *at >= used) {
            harm("a bit in", at, at + 1, &|bytes| bytes[0] ^= 1 << (at % 8));
        }
        for size in [BLOCK, 4096] {
            for at in (0..used).step_by(size) {
                harm("zeros in", at, (at + size).min(bytes.len()), &|bytes| bytes.fill(0));
                harm("ones in", at, (at + size).min(bytes.len()), &|bytes| bytes.fill(0xff));
            }
        }
    }
    assert!(reported_or_harmless > 1_500, "only {reported_or_harmless} harms");
}

/// Where the batches of a segment begin.
fn starts(bytes: &[u8]) -> Vec<usize> {
    (0..bytes.len()).filter(|at| bytes[*at..].starts_with(b"OUTJ")).collect()
}

#[test]
fn no_lost_file_is_passed_over() {
    let run = small();
    let (directory, whole) = (fast_dir(), files(&run));
    for lost in 0..whole.len() {
        let mut image = whole.clone();
        let (path, _) = image.remove(lost);
        verdict(&run, directory.path(), &image, &format!("the loss of {}", path.display()), None);
    }
}

/// A process that was killed between a write and its sync left the batch in memory alone; the next process told others
/// of it, and lost it with the power.
#[test]
fn what_opening_relies_on_is_synced() {
    let mut run = Run::start();
    run.append(vec![accepted("a", 10)]);
    run.append(vec![accepted("b", 11)]);
    // Everything but the last sync.
    let mut killed: Vec<_> = run.steps.iter().flat_map(|(dids, _)| dids.clone()).collect();
    let mut disk = Disk::default();
    assert!(matches!(killed.pop(), Some(Did::Sync(_))));
    killed.iter().for_each(|did| disk.take(did));
    assert!(!disk.pending.is_empty());
    run.open();
    run.steps.last().unwrap().0.iter().for_each(|did| disk.take(did));
    assert!(disk.pending.is_empty(), "{:?}", disk.pending);
    let lost_power = fast_dir();
    lay(&run, lost_power.path(), &disk.image(|_| Kept::Lost));
    let (_, recovered) = open(lost_power.path());
    assert_eq!((recovered.restored.pending.len(), recovered.damage), (2, None));
}

/// The directory's own entry was never synced: the power's loss could take the whole journal.
#[test]
fn the_way_to_the_journal_is_synced() {
    let dir = fast_dir();
    recorded();
    let data = dir.path().join("var").join("data");
    drop(open(&data));
    let done = recorded();
    let synced = |path: &Path| done.iter().any(|did| matches!(did, Did::SyncDirectory(of) if of == path));
    for path in [dir.path(), &dir.path().join("var"), &data] {
        assert!(synced(path), "{}: {done:?}", path.display());
    }
}
