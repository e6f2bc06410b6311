//! The journal: what makes a vote survive. One per node, for all shards together: a batch of entries is one checksummed
//! write and one `fdatasync`.
//!
//! ```text
//!  <data>/.outrigger/lock            held while a process has the directory open
//!                    node            who this disk is: two checksummed slots, one after the other  header.rs
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
//! The header knows the first batch still needed and the newest segment, so that a segment gone from either end is
//! missed like one from the middle. Opening syncs what it reads before it relies on it: a process that died may have
//! written it and never come to the sync.
//!
//! After a failed write or sync the journal is poisoned, and the header says so: what the page cache now claims to hold
//! may not be on the disk, and no later process can tell.

mod header;
mod segment;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use header::Header;
pub use writer::{JournalWriter, Submission, WriterEvent};

use super::register::{Address, Durable, Entry, LocalWrite, Lsn, Record, Restored};
use crate::disk::{self, Disk, Lock, OsDisk};
use crate::types::{Ballot, ShardId, StorageId};

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

/// Bytes preallocated for each segment, by default.
pub const SEGMENT_BYTES: u64 = 32 * 1024 * 1024;

/// How a journal behaves.
#[derive(Debug, Clone)]
pub struct JournalConfig {
    /// The data directory.
    pub data_dir: PathBuf,
    /// Bytes preallocated for each segment; a larger batch gets a segment of its own size.
    pub segment_bytes: u64,
    /// What an append waits for.
    pub durability: Durability,
    /// Where the files are.
    pub disk: Arc<dyn Disk>,
    /// A disk that must not vote any more becomes another one, in whose place others may put it. Where there are no others
    /// it stays barred.
    pub may_start_over: bool,
}

impl JournalConfig {
    /// The defaults, at `data_dir`.
    #[must_use]
    pub fn at(data_dir: impl AsRef<Path>) -> Self {
        let data_dir = data_dir.as_ref().to_owned();
        Self {
            data_dir,
            segment_bytes: SEGMENT_BYTES,
            durability: Durability::Fsync,
            disk: OsDisk::shared(),
            may_start_over: false,
        }
    }
}

/// Why the journal cannot go on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JournalError {
    /// Another process has the data directory.
    #[error("{0} is in use by another process; give each node a data directory of its own")]
    Locked(PathBuf),
    /// The way to the journal leads elsewhere.
    #[error(
        "{0} is a symbolic link, and none is followed inside the data directory: let [node] data_dir itself be one, or mount a \
         volume there"
    )]
    Linked(PathBuf),
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
        "{0}: the node header is gone, or neither slot of it is readable; this disk no longer knows what it promised. \
         Restore the file, or move the data directory away to start as a new disk"
    )]
    HeaderLost(PathBuf),
    /// Intact, and not to be read by this version.
    #[error("{path}: {what} is of a later version; start the version that wrote it")]
    Newer {
        /// Where.
        path: PathBuf,
        /// What.
        what: &'static str,
    },
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
    /// Writes that this node accepted on its own, where nothing as new is known to be chosen.
    pub outbox: Vec<(Address, LocalWrite)>,
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
    _lock: Lock,
}

impl Journal {
    /// Opens the journal of a data directory, or makes it; reads everything back.
    pub fn open(config: JournalConfig, fresh_storage_id: u64) -> Result<(Self, Recovered), JournalError> {
        let directory = config.data_dir.join(DIRECTORY);
        if config.disk.is_link(&directory).map_err(io("look at", &directory))? {
            return Err(JournalError::Linked(directory));
        }
        disk::create_directory(&*config.disk, &directory).map_err(io("create", &directory))?;
        let lock = lock(&*config.disk, &directory, &config.data_dir)?;
        let files = segment::find(&*config.disk, &directory)?;
        let mut header = Header::open(&*config.disk, &directory, fresh_storage_id, !files.is_empty())?;
        let found = read_needed(&*config.disk, &directory, files, &header)?;
        let mut damage = header.barred().map(str::to_owned);
        if let Some(found) = find_damage(&directory, &found, &header) {
            damage.get_or_insert(found);
        }
        let mut replay = Replay::default();
        found.iter().flat_map(|scanned| &scanned.batches).for_each(|entries| replay.take(entries));
        if let Some(why) = damage.take_if(|_| config.may_start_over) {
            drop(found);
            return Self::start_over(config, directory, lock, &header, fresh_storage_id, &why, replay);
        }
        // Past every number in sight, be it behind damage: no segment takes the place of another.
        let unused = found.iter().map(segment::Scanned::unused_number).chain(header.kept_from());
        let next_number = unused.max().unwrap_or(1).max(header.position().saturating_add(1));
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

    /// As another disk, which has promised nothing. What is chosen is so whoever knows it, and what this node's clients wrote
    /// without a quorum is theirs still: that is all that it takes along.
    fn start_over(
        config: JournalConfig,
        directory: PathBuf,
        lock: Lock,
        was: &Header,
        fresh_storage_id: u64,
        why: &str,
        replay: Replay,
    ) -> Result<(Self, Recovered), JournalError> {
        tracing::error!(why, given_up = %was.storage_id(), "this disk must not vote: it starts over as another one");
        give_up(&*config.disk, &directory, was.storage_id())?;
        let mut header = Header::displaced_from(&*config.disk, &directory, fresh_storage_id, why)?;
        header.begin_boot(Ballot::ZERO, 0, None)?;
        let Recovered { chosen, outbox, .. } = replay.finish(Ballot::ZERO);
        let segments = Vec::new();
        let mut journal =
            Self { config, directory, header, segments, current: None, next_number: 1, poisoned: None, _lock: lock };
        let written: Vec<_> =
            outbox.iter().map(|(address, write)| Entry::Local(address.clone(), write.clone())).collect();
        if !written.is_empty() {
            journal.append(&written, Lsn(0))?;
        }
        Ok((journal, Recovered { chosen, outbox, ..Recovered::default() }))
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

    fn create_segment(&mut self, room: usize) -> Result<segment::Segment, JournalError> {
        let bytes = self.config.segment_bytes.max(room as u64);
        let create = |bytes| segment::Segment::create(&*self.config.disk, &self.directory, self.next_number, bytes);
        let created = match create(bytes) {
            // What little room there is does for a while, and leaves some to the shard files.
            Err(JournalError::Full { .. }) => create(SEGMENT_BYTES_MIN.min(bytes).max(room as u64)),
            created => created,
        }?;
        self.header.begin_segment(self.next_number)?;
        Ok(created)
    }

    /// Gives up every segment that begins before batch `number`: all in them is applied and durable in its shard, or
    /// written again since.
    pub fn drop_before(&mut self, number: u64) -> Result<(), JournalError> {
        if self.segments.first().is_none_or(|oldest| oldest.first >= number) {
            return Ok(());
        }
        let kept = self.segments.iter().map(|closed| closed.first).find(|first| *first >= number);
        let current = self.current.as_ref().map(segment::Segment::first);
        // Noted first: of files being removed, a crash may bring back any.
        self.header.keep_from(kept.or(current).unwrap_or(self.next_number))?;
        while let Some(closed) = self.segments.first().filter(|closed| closed.first < number) {
            self.config.disk.remove(&closed.path).map_err(io("remove", &closed.path))?;
            self.segments.remove(0);
        }
        self.config.disk.sync_directory(&self.directory).map_err(io("sync", &self.directory))
    }

    /// The number that the next batch will have.
    #[must_use]
    pub fn next_number(&self) -> u64 {
        self.next_number
    }
}

/// Puts all that made this disk what it was aside, for somebody to look at: header and segments.
fn give_up(disk: &dyn Disk, directory: &Path, was: StorageId) -> Result<(), JournalError> {
    let aside = directory.join(format!("given-up-{was}"));
    disk::create_directory(disk, &aside).map_err(io("create", &aside))?;
    for (_, path) in segment::find(disk, directory)? {
        let Some(name) = path.file_name() else { continue };
        disk.rename(&path, &aside.join(name)).map_err(io("rename", &path))?;
    }
    // Last: as long as it is here it says that this disk must not vote.
    let header = directory.join(Header::NAME);
    disk.rename(&header, &aside.join(Header::NAME)).map_err(io("rename", &header))?;
    disk.sync_directory(&aside).map_err(io("sync", &aside))?;
    disk.sync_directory(directory).map_err(io("sync", directory))
}

/// Reads the segments that are still needed. The others were given up, and came back in a crash or were never removed.
fn read_needed(
    disk: &dyn Disk,
    directory: &Path,
    files: Vec<(u64, PathBuf)>,
    header: &Header,
) -> Result<Vec<segment::Scanned>, JournalError> {
    let kept_from = header.kept_from().unwrap_or(0);
    let (given_up, needed): (Vec<_>, Vec<_>) = files.into_iter().partition(|(first, _)| *first < kept_from);
    for (_, path) in &given_up {
        disk.remove(path).map_err(io("remove", path))?;
    }
    if !given_up.is_empty() {
        disk.sync_directory(directory).map_err(io("sync", directory))?;
    }
    needed.into_iter().map(|(first, path)| segment::read(disk, path, first)).collect()
}

/// What is missing of a journal, or spoilt.
fn find_damage(directory: &Path, found: &[segment::Scanned], header: &Header) -> Option<String> {
    let mut expected = header.kept_from();
    for scanned in found {
        if let Some(missing) = expected.filter(|expected| *expected != scanned.first) {
            let path = scanned.path.display();
            return Some(format!("{path} begins at batch {} where {missing} belongs", scanned.first));
        }
        if scanned.damage.is_some() {
            return scanned.damage.clone();
        }
        expected = Some(scanned.next_number());
    }
    let is_gone =
        |newest: &u64| header.kept_from() <= Some(*newest) && found.iter().all(|scanned| scanned.first < *newest);
    if let Some(newest) = header.newest_segment().filter(is_gone) {
        return Some(format!("{}: the segment that begins at batch {newest} is gone", directory.display()));
    }
    let (last, position) = (expected.unwrap_or(1).saturating_sub(1), header.position());
    (last < position).then(|| format!("the journal ends at batch {last}, its header knows of {position}"))
}

/// Folds entries, in order, into what is pending, what is chosen, what is refused, and what waits in the outbox.
#[derive(Default)]
#[cfg_attr(test, derive(Debug, Clone))]
pub(super) struct Replay {
    pub(super) ceiling: Ballot,
    pub(super) pending: HashMap<Address, Record>,
    pub(super) chosen: HashMap<Address, Record>,
    pub(super) outbox: HashMap<Address, LocalWrite>,
    pub(super) refused: HashMap<ShardId, Ballot>,
}

impl Replay {
    pub(super) fn take(&mut self, entries: &[Entry]) {
        for entry in entries {
            match entry {
                Entry::Ceiling(ceiling) => self.ceiling = self.ceiling.max(*ceiling),
                Entry::Accepted(address, record) => {
                    self.pending.insert(address.clone(), record.clone());
                }
                Entry::Chosen(address, record) => self.choose(address, record.clone()),
                Entry::Local(address, write) => {
                    // The later ones of a key are the newer ones.
                    if self.chosen.get(address).is_none_or(|chosen| chosen.upd < write.upd) {
                        self.outbox.insert(address.clone(), write.clone());
                    }
                }
                Entry::Committed(address, ballot) => {
                    if let Some(record) = self.pending.get(address).filter(|record| record.ballot == *ballot) {
                        self.choose(address, record.clone());
                    }
                }
                Entry::Dropped(address, ballot) => {
                    if self.pending.get(address).is_some_and(|pending| pending.ballot <= *ballot) {
                        self.pending.remove(address);
                    }
                }
                Entry::Refused(shard, upto) => {
                    let refused = self.refused.entry(shard.clone()).or_default();
                    *refused = (*refused).max(*upto);
                }
            }
        }
    }

    fn choose(&mut self, address: &Address, record: Record) {
        if self.outbox.get(address).is_some_and(|write| write.upd <= record.upd) {
            self.outbox.remove(address);
        }
        if self.pending.get(address).is_some_and(|pending| pending.ballot <= record.ballot) {
            self.pending.remove(address);
        }
        if self.chosen.get(address).is_none_or(|known| known.ballot < record.ballot) {
            self.chosen.insert(address.clone(), record);
        }
    }

    pub(super) fn finish(self, header_ceiling: Ballot) -> Recovered {
        let ceiling = self.ceiling.max(header_ceiling);
        let restored = Restored { ceiling, pending: self.pending.into_iter().collect(), refused: self.refused };
        let (chosen, outbox) = (self.chosen.into_iter().collect(), self.outbox.into_iter().collect());
        Recovered { restored, chosen, outbox, damage: None }
    }
}

fn lock(disk: &dyn Disk, directory: &Path, data_dir: &Path) -> Result<Lock, JournalError> {
    let path = directory.join("lock");
    disk.lock(&path).map_err(io("lock", &path))?.ok_or_else(|| JournalError::Locked(data_dir.to_owned()))
}
