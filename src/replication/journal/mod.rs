//! The journal: what makes a vote survive. One per node, for all shards together: a batch of entries is one checksummed
//! write and one `fdatasync`.
//!
//! ```text
//!  <data>/.outrigger/lock            held while a process has the directory open
//!                    node            who this disk is: two checksummed slots, written in turn      header.rs
//!                    journal-…N.log  segments of batches, preallocated                             segment.rs
//!
//!  segment:  [batch n][batch n+1]...[zeros]       batch: magic · length · checksum · number · entries (MessagePack)
//! ```
//!
//! Batches are numbered without a gap, and batch *n+1* is written only after the sync of batch *n* has returned. So a
//! bad batch with a good later one behind it was acknowledged once: that is damage, reported, never skipped. A bad last
//! batch is a torn write that nobody was told of, and is cut off; should it have been more, peers remember a higher
//! position of this disk and say so in their hello.
//!
//! After a failed write or sync the journal is poisoned, and the header says so: what the page cache now claims to hold
//! may not be on the disk, and no process can tell. What a killed process wrote without syncing is synced by the next,
//! before it counts.

mod header;
mod segment;
mod writer;

use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use header::Header;
pub use writer::{JournalWriter, Submission, WriterEvent};

use super::register::{Address, Durable, Entry, Lsn, Record, Restored};
use crate::types::Ballot;

/// The directory within the data directory that is this room's; no org can be called so.
pub const DIRECTORY: &str = ".outrigger";

/// Bytes of a segment on a disk too full for one of the configured size.
pub const SEGMENT_BYTES_MIN: u64 = 1024 * 1024;

/// What an accepted frame waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The disk: survives power loss.
    Fsync,
    /// The kernel: survives the process.
    Os,
}

/// How a journal behaves.
#[derive(Debug, Clone)]
pub struct JournalConfig {
    /// The data directory.
    pub data_dir: PathBuf,
    /// Bytes preallocated for each segment; a larger batch gets a segment of its own size.
    pub segment_bytes: u64,
    /// What an append waits for.
    pub durability: Durability,
}

/// Why the journal cannot go on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JournalError {
    /// Another process has the data directory.
    #[error("{0} is in use by another process; give each node a data directory of its own")]
    Locked(PathBuf),
    /// The disk is full. Nothing of this batch was written.
    #[error("no room for another journal segment in {path}: {source}")]
    Full {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: Arc<std::io::Error>,
    },
    /// The system refused something; after a write or sync that failed, nothing more is written.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: Arc<std::io::Error>,
    },
    /// The node header is there and cannot be read.
    #[error(
        "{0}: neither slot of the node header is readable; this disk no longer knows what it promised. \
         Restore the file, or move the data directory away to start as a new disk"
    )]
    HeaderLost(PathBuf),
    /// Entries could not be encoded.
    #[error("encoding a journal batch: {0}")]
    Encoding(String),
}

fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> JournalError {
    let path = path.to_owned();
    move |source| JournalError::Io { doing, path, source: Arc::new(source) }
}

/// What opening a journal found.
#[derive(Debug, Default)]
pub struct Recovered {
    /// What the acceptor begins with.
    pub restored: Restored,
    /// Records known to be chosen that may not be in their shard files: to be applied again.
    pub chosen: Vec<(Address, Record)>,
    /// Damage outside a torn tail: this node must not vote.
    pub damage: Option<String>,
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    config: JournalConfig,
    directory: PathBuf,
    header: Header,
    segments: Vec<segment::Closed>,
    /// None until the first batch: a node on a full disk starts all the same, and says so when it has to write.
    current: Option<segment::Segment>,
    next_number: u64,
    poisoned: Option<JournalError>,
    _lock: File,
}

impl Journal {
    /// Opens the journal of a data directory, or makes it; reads everything back.
    pub fn open(config: JournalConfig, fresh_storage_id: u64) -> Result<(Self, Recovered), JournalError> {
        let directory = config.data_dir.join(DIRECTORY);
        fs::create_dir_all(&directory).map_err(io("create", &directory))?;
        let lock = lock(&directory, &config.data_dir)?;
        let mut header = Header::open(&directory, fresh_storage_id)?;
        let found = segment::read_all(&directory)?;
        let mut replay = Replay::default();
        let mut damage = header.barred().map(str::to_owned);
        // A killed process may have left a batch in the page cache alone; what is read from now on is on the disk.
        if config.durability == Durability::Fsync {
            found.iter().try_for_each(segment::Scanned::sync)?;
        }
        let mut expected: Option<u64> = None;
        for scanned in &found {
            if let Some(missing) = expected.filter(|expected| *expected != scanned.first) {
                let path = scanned.path.display();
                damage
                    .get_or_insert_with(|| format!("{path} begins at batch {} where {missing} belongs", scanned.first));
            }
            if let Some(found) = &scanned.damage {
                damage.get_or_insert_with(|| found.clone());
            }
            scanned.batches.iter().for_each(|batch| replay.take(&batch.entries));
            expected = Some(scanned.next_number());
        }
        let mut next_number = expected.unwrap_or(1);
        if next_number <= header.position() {
            let (last, position) = (next_number - 1, header.position());
            damage.get_or_insert_with(|| format!("the journal ends at batch {last}, its header knows of {position}"));
            next_number = position + 1;
        }
        let mut recovered = replay.finish(header.ceiling());
        recovered.damage.clone_from(&damage);
        header.begin_boot(recovered.restored.ceiling, next_number - 1, damage)?;
        // A segment that never got a whole batch has the new one's name, and is the new one now.
        let segments = found.into_iter().filter(|scanned| scanned.first < next_number);
        let segments = segments.map(segment::Scanned::close).collect();
        let journal =
            Self { config, directory, header, segments, current: None, next_number, poisoned: None, _lock: lock };
        Ok((journal, recovered))
    }

    /// Who this disk is.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// To change what this disk remembers of its peers.
    pub fn header_mut(&mut self) -> &mut Header {
        &mut self.header
    }

    /// The number of the last durable batch.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.next_number - 1
    }

    /// Bytes of all segments.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let current = self.current.as_ref().map_or(0, segment::Segment::bytes);
        self.segments.iter().map(|closed| closed.bytes).sum::<u64>() + current
    }

    /// How many segments are closed.
    #[must_use]
    pub fn closed_segments(&self) -> usize {
        self.segments.len()
    }

    /// Writes one batch and makes it durable. Entries up to `lsn` are in it and in those before.
    pub fn append(&mut self, entries: &[Entry], lsn: Lsn) -> Result<Durable, JournalError> {
        if let Some(error) = &self.poisoned {
            return Err(error.clone());
        }
        let (batch, durability) = (segment::encode(self.next_number, entries)?, self.config.durability);
        let current = match &mut self.current {
            Some(current) if current.has_room(batch.len()) => current,
            _ => self.begin_segment(batch.len())?,
        };
        let written = current.write(&batch, durability);
        written.inspect_err(|error| self.poisoned = Some(error.clone()))?;
        self.next_number += 1;
        Ok(Durable::synced(lsn))
    }

    /// Begins a new segment with `room` bytes at least, so that those before can be given up once nothing of them is
    /// needed.
    pub fn rotate(&mut self, room: usize) -> Result<(), JournalError> {
        self.begin_segment(room).map(drop)
    }

    fn begin_segment(&mut self, room: usize) -> Result<&mut segment::Segment, JournalError> {
        let fresh = self.current.take_if(|current| current.is_empty() && current.has_room(room));
        let next = match fresh {
            Some(fresh) => fresh,
            None => self.create_segment(room)?,
        };
        // One without a batch had the new one's name, and is the new one now.
        let last = self.current.take().filter(|last| !last.is_empty());
        self.segments.extend(last.map(segment::Segment::close));
        Ok(self.current.insert(next))
    }

    fn create_segment(&self, room: usize) -> Result<segment::Segment, JournalError> {
        let bytes = self.config.segment_bytes.max(room as u64);
        let create = |bytes| segment::Segment::create(&self.directory, self.next_number, bytes);
        match create(bytes) {
            // What little room there is does for a while, and leaves some to the shard files.
            Err(JournalError::Full { .. }) => create(SEGMENT_BYTES_MIN.min(bytes).max(room as u64)),
            created => created,
        }
    }

    /// Gives up every segment that begins before batch `number`: all in them is applied and durable in its shard, or
    /// written again since.
    pub fn drop_before(&mut self, number: u64) -> Result<(), JournalError> {
        while let Some(closed) = self.segments.first().filter(|closed| closed.first < number) {
            fs::remove_file(&closed.path).map_err(io("remove", &closed.path))?;
            self.segments.remove(0);
        }
        sync_directory(&self.directory)
    }

    #[cfg(test)]
    fn current_first(&self) -> u64 {
        self.current.as_ref().unwrap().first()
    }

    #[cfg(test)]
    fn current_end(&self) -> u64 {
        self.current.as_ref().unwrap().end()
    }

    /// The number that the next batch will have.
    #[must_use]
    pub fn next_number(&self) -> u64 {
        self.next_number
    }
}

/// Folds entries, in order, into what is pending and what is chosen.
#[derive(Default)]
struct Replay {
    ceiling: Ballot,
    pending: HashMap<Address, Record>,
    chosen: HashMap<Address, Record>,
}

impl Replay {
    fn take(&mut self, entries: &[Entry]) {
        for entry in entries {
            match entry {
                Entry::Ceiling(ceiling) => self.ceiling = self.ceiling.max(*ceiling),
                Entry::Accepted(address, record) => {
                    self.pending.insert(address.clone(), record.clone());
                }
                Entry::Chosen(address, record) => self.choose(address, record.clone()),
                Entry::Committed(address, ballot) => {
                    if let Some(record) = self.pending.get(address).filter(|record| record.ballot == *ballot) {
                        self.choose(address, record.clone());
                    }
                }
            }
        }
    }

    fn choose(&mut self, address: &Address, record: Record) {
        if self.pending.get(address).is_some_and(|pending| pending.ballot <= record.ballot) {
            self.pending.remove(address);
        }
        if self.chosen.get(address).is_none_or(|known| known.ballot < record.ballot) {
            self.chosen.insert(address.clone(), record);
        }
    }

    fn finish(self, header_ceiling: Ballot) -> Recovered {
        let ceiling = self.ceiling.max(header_ceiling);
        let restored = Restored { ceiling, pending: self.pending.into_iter().collect() };
        Recovered { restored, chosen: self.chosen.into_iter().collect(), damage: None }
    }
}

fn lock(directory: &Path, data_dir: &Path) -> Result<File, JournalError> {
    let path = directory.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(io("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(JournalError::Locked(data_dir.to_owned())),
        Err(TryLockError::Error(error)) => Err(io("lock", &path)(error)),
    }
}

fn sync_directory(path: &Path) -> Result<(), JournalError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(io("sync", path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::replication::register::Lineage;
    use crate::store::replicator::Op;
    use crate::types::{Key, ShardId, Value};

    fn config(dir: &Path) -> JournalConfig {
        JournalConfig { data_dir: dir.to_owned(), segment_bytes: 16 * 1024, durability: Durability::Fsync }
    }

    fn address(key: &str) -> Address {
        Address { shard: ShardId::parse("acme", "payments").unwrap(), key: Key::parse(key).unwrap() }
    }

    fn record(ballot: i64) -> Record {
        let op = Op::Put(Value::from(vec![b'v'; 100]));
        Record { ballot: Ballot(ballot), upd: Ballot(ballot), op, lineage: Lineage::default() }
    }

    fn accepted(key: &str, ballot: i64) -> Entry {
        Entry::Accepted(address(key), record(ballot))
    }

    fn open(dir: &Path) -> (Journal, Recovered) {
        Journal::open(config(dir), 1).unwrap()
    }

    /// Where the current segment's file is, and how many bytes of it are batches.
    fn tail(journal: &Journal) -> (PathBuf, u64) {
        (journal.directory.join(format!("journal-{:016x}.log", journal.current_first())), journal.current_end())
    }

    #[test]
    fn what_was_appended_is_there_again() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, recovered) = open(dir.path());
        assert!(recovered.restored.pending.is_empty());
        journal.append(&[Entry::Ceiling(Ballot(90)), accepted("a", 10), accepted("b", 11)], Lsn(3)).unwrap();
        journal.append(&[Entry::Committed(address("a"), Ballot(10))], Lsn(4)).unwrap();
        journal.append(&[Entry::Chosen(address("c"), record(12)), accepted("a", 13)], Lsn(6)).unwrap();
        drop(journal);
        let (journal, recovered) = open(dir.path());
        assert_eq!((journal.header().boot(), journal.position()), (2, 3));
        assert_eq!(recovered.restored.ceiling, Ballot(90));
        let mut pending: Vec<_> =
            recovered.restored.pending.iter().map(|(a, r)| (a.key.as_str(), r.ballot.0)).collect();
        pending.sort_unstable();
        assert_eq!(pending, [("a", 13), ("b", 11)]);
        let mut chosen: Vec<_> = recovered.chosen.iter().map(|(a, r)| (a.key.as_str(), r.ballot.0)).collect();
        chosen.sort_unstable();
        assert_eq!(chosen, [("a", 10), ("c", 12)]);
        assert_eq!(recovered.damage, None);
    }

    /// A rotation followed by a batch too large for the fresh segment listed that segment twice: giving it up the
    /// second time failed, and the node stopped voting.
    #[test]
    fn rotating_twice_without_a_batch_between_is_harmless() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(dir.path());
        journal.append(&[accepted("a", 10)], Lsn(1)).unwrap();
        journal.rotate(0).unwrap();
        let entries: Vec<_> = (0..200).map(|n| accepted(&format!("k{n}"), 20 + n)).collect();
        journal.append(&entries, Lsn(201)).unwrap();
        journal.rotate(0).unwrap();
        journal.rotate(0).unwrap();
        assert_eq!(journal.closed_segments(), 2);
        journal.append(&[accepted("b", 900)], Lsn(202)).unwrap();
        journal.drop_before(3).unwrap();
        assert_eq!(journal.closed_segments(), 0);
        drop(journal);
        let (_, recovered) = open(dir.path());
        assert_eq!((recovered.restored.pending.len(), recovered.damage), (1, None));
    }

    /// Opening made a whole segment: a node whose disk was full did not come up to say so.
    #[test]
    fn opening_takes_no_room() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open(dir.path());
        assert_eq!(journal.bytes(), 0);
    }

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let (_journal, _) = open(dir.path());
        assert!(matches!(Journal::open(config(dir.path()), 2), Err(JournalError::Locked(_))));
    }

    #[test]
    fn a_tail_cut_at_any_byte_loses_only_the_batch_that_was_never_acknowledged() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(dir.path());
        journal.append(&[accepted("a", 10)], Lsn(1)).unwrap();
        let (path, start) = tail(&journal);
        journal.append(&[accepted("b", 11)], Lsn(2)).unwrap();
        let (_, end) = tail(&journal);
        drop(journal);
        let whole = fs::read(&path).unwrap();
        let header = fs::read(dir.path().join(DIRECTORY).join("node")).unwrap();
        for cut in start..end {
            let mut torn = whole.clone();
            torn[usize::try_from(cut).unwrap()..].fill(0);
            let kept = torn == whole;
            for entry in fs::read_dir(dir.path().join(DIRECTORY)).unwrap() {
                fs::remove_file(entry.unwrap().path()).unwrap();
            }
            fs::write(dir.path().join(DIRECTORY).join("node"), &header).unwrap();
            fs::write(&path, &torn).unwrap();
            let (mut journal, recovered) = open(dir.path());
            assert_eq!(recovered.damage, None, "cut at {cut}");
            assert_eq!(recovered.restored.pending.len(), if kept { 2 } else { 1 }, "cut at {cut}");
            journal.append(&[accepted("c", 12)], Lsn(1)).unwrap();
            drop(journal);
            let (_, recovered) = open(dir.path());
            assert_eq!(recovered.damage, None, "reopened after a cut at {cut}");
            assert_eq!(recovered.restored.pending.len(), if kept { 3 } else { 2 });
        }
    }

    #[test]
    fn damage_before_the_end_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(dir.path());
        journal.append(&[accepted("a", 10)], Lsn(1)).unwrap();
        let (path, start) = tail(&journal);
        for n in 0..2 {
            journal.append(&[accepted("a", 20 + n)], Lsn(2)).unwrap();
        }
        drop(journal);
        File::options().write(true).open(&path).unwrap().write_all_at(b"x", start + 60).unwrap();
        let (journal, recovered) = open(dir.path());
        assert!(recovered.damage.unwrap().contains("is damaged, yet batch"));
        drop(journal);
        let (_, recovered) = open(dir.path());
        assert!(recovered.damage.is_some(), "a disk once found damaged stays so");
    }

    #[test]
    fn a_missing_segment_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(dir.path());
        journal.append(&[accepted("a", 10)], Lsn(1)).unwrap();
        drop(journal);
        let (journal, _) = open(dir.path());
        let first = journal.segments[0].path.clone();
        drop(journal);
        fs::remove_file(first).unwrap();
        let (_, recovered) = open(dir.path());
        // The newer segment still begins where the lost one ended, but the accepted record is gone for good only if
        // nobody dropped it on purpose; dropping is always from the front, so this is what dropping looks like.
        assert_eq!(recovered.restored.pending.len(), 0);
        for entry in fs::read_dir(dir.path().join(DIRECTORY)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "log") {
                fs::remove_file(path).unwrap();
            }
        }
        let (_, recovered) = open(dir.path());
        assert!(recovered.damage.unwrap().contains("its header knows of"));
    }

    /// After a failed sync only the memory of the process knew: the next one read the page cache, which holds what the
    /// disk may not, and voted on it.
    #[tokio::test]
    async fn a_disk_whose_write_failed_stays_barred() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(dir.path());
        let lost = std::io::Error::from_raw_os_error(5);
        journal.poisoned = Some(io("sync", dir.path())(lost));
        let (events, mut told) = tokio::sync::mpsc::unbounded_channel();
        let writer = JournalWriter::spawn(journal, crate::clock::OsClock::shared(), events).unwrap();
        writer.submit(Submission::Append { entries: vec![accepted("a", 10)], lsn: Lsn(1), rotate: false });
        assert!(matches!(told.recv().await, Some(WriterEvent::Failed(_))));
        drop(writer);
        let (_, recovered) = open(dir.path());
        assert!(recovered.damage.unwrap().contains("sync"));
    }

    #[test]
    fn segments_roll_over_and_are_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(dir.path());
        for n in 0..300 {
            journal.append(&[accepted("a", 10 + n)], Lsn(1)).unwrap();
        }
        assert!(journal.closed_segments() > 1);
        let keep = journal.next_number();
        journal.rotate(0).unwrap();
        journal.append(&[accepted("a", 400)], Lsn(2)).unwrap();
        journal.drop_before(keep).unwrap();
        assert_eq!(journal.closed_segments(), 0);
        drop(journal);
        let (_, recovered) = open(dir.path());
        assert_eq!(recovered.restored.pending[0].1.ballot, Ballot(400));
        assert_eq!(recovered.damage, None);
    }
}
