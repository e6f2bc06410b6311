//! Who a disk is: the node header, in two slots. A change is written to the older slot and, once that is synced, to the
//! other: whatever was acknowledged is there twice, so that neither a torn write nor one damaged slot loses it.
//!
//! ```text
//!   slot (64 KiB, twice):  magic · checksum · length · generation · body (MessagePack map)
//! ```

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::segment::settle;
use super::{JournalError, io};
use crate::cluster::memory::PeerMemory;
use crate::disk::{Disk, File};
use crate::messagepack;
use crate::types::{Ballot, StorageId};

const MAGIC: &[u8; 8] = b"OUTRNODE";
const SLOT_BYTES: usize = 64 * 1024;
const PREFIX_BYTES: usize = 24;
const FORMAT: u16 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Body {
    format: u16,
    storage_id: StorageId,
    boot: u64,
    ceiling: Ballot,
    epoch: u64,
    position: u64,
    /// The first batch that is still needed; 0 in a header of before this was noted.
    #[serde(default)]
    kept_from: u64,
    /// The batch that the newest segment begins with; 0 where there is none.
    #[serde(default)]
    newest_segment: u64,
    #[serde(default)]
    barred: Option<String>,
    /// Why this disk is not the one that its node's name stands for in epoch 1.
    #[serde(default)]
    displaced: Option<String>,
    #[serde(default)]
    peers: PeerMemory,
}

/// The node header of an open data directory.
#[derive(Debug)]
pub struct Header {
    path: PathBuf,
    file: Box<dyn File>,
    generation: u64,
    body: Body,
}

impl Header {
    /// Its file's name.
    pub(super) const NAME: &str = "node";

    /// Reads the header of `directory`, or makes one for a new disk: one without a journal.
    pub(super) fn open(
        disk: &dyn Disk,
        directory: &Path,
        fresh_storage_id: u64,
        has_journal: bool,
    ) -> Result<Self, JournalError> {
        let path = directory.join(Self::NAME);
        if disk.kind(&path).map_err(io("look for", &path))?.is_some() {
            return Self::read(disk, path);
        }
        if has_journal {
            return Err(JournalError::HeaderLost(path));
        }
        Self::create(disk, directory, path, fresh_storage_id, None)
    }

    /// Makes one for a disk that takes the place of one that must not vote any more, for this reason.
    pub(super) fn displaced_from(
        disk: &dyn Disk,
        directory: &Path,
        fresh_storage_id: u64,
        why: &str,
    ) -> Result<Self, JournalError> {
        Self::create(disk, directory, directory.join(Self::NAME), fresh_storage_id, Some(why.to_owned()))
    }

    fn read(disk: &dyn Disk, path: PathBuf) -> Result<Self, JournalError> {
        let file = disk.open(&path).map_err(io("open", &path))?;
        settle(&*file).map_err(io("sync", &path))?;
        match [0, 1].into_iter().filter_map(|slot| read_slot(&*file, slot)).max_by_key(|(at, _)| *at) {
            Some((_, body)) if body.format > FORMAT => Err(JournalError::Newer { path, what: "the node header" }),
            Some((generation, body)) => Ok(Self { path, file, generation, body }),
            None => Err(JournalError::HeaderLost(path)),
        }
    }

    /// Under another name until it is whole and durable: a header that is there was written once.
    fn create(
        disk: &dyn Disk,
        directory: &Path,
        path: PathBuf,
        fresh_storage_id: u64,
        displaced: Option<String>,
    ) -> Result<Self, JournalError> {
        let unfinished = directory.join("node.new");
        let file = disk.create(&unfinished).map_err(io("create", &unfinished))?;
        // All of its room at once: a full disk must not keep a node from noting down that it may not vote.
        file.reserve(2 * SLOT_BYTES as u64).map_err(io("reserve room in", &unfinished))?;
        let body = Body {
            format: FORMAT,
            storage_id: StorageId(fresh_storage_id),
            boot: 0,
            ceiling: Ballot::ZERO,
            epoch: 1,
            position: 0,
            kept_from: 1,
            newest_segment: 0,
            barred: None,
            displaced,
            peers: PeerMemory::default(),
        };
        let mut header = Self { path: unfinished, file, generation: 0, body };
        header.write()?;
        disk.rename(&header.path, &path).map_err(io("rename", &header.path))?;
        header.path = path;
        disk.sync_directory(directory).map_err(io("sync", directory))?;
        Ok(header)
    }

    pub(super) fn begin_boot(
        &mut self,
        ceiling: Ballot,
        position: u64,
        damage: Option<String>,
    ) -> Result<(), JournalError> {
        self.body.boot += 1;
        self.body.ceiling = self.body.ceiling.max(ceiling);
        self.body.position = self.body.position.max(position);
        self.body.barred = damage;
        self.write()
    }

    /// This disk's name.
    #[must_use]
    pub fn storage_id(&self) -> StorageId {
        self.body.storage_id
    }

    /// How often the directory was opened.
    #[must_use]
    pub fn boot(&self) -> u64 {
        self.body.boot
    }

    /// The highest ceiling noted here; the journal may hold a higher one.
    #[must_use]
    pub fn ceiling(&self) -> Ballot {
        self.body.ceiling
    }

    /// The last batch noted here; the journal may hold later ones.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.body.position
    }

    /// The first batch that is still needed, where that is known.
    pub(super) fn kept_from(&self) -> Option<u64> {
        (self.body.kept_from > 0).then_some(self.body.kept_from)
    }

    /// The batch that the newest segment begins with, if there is a segment.
    pub(super) fn newest_segment(&self) -> Option<u64> {
        (self.body.newest_segment > 0).then_some(self.body.newest_segment)
    }

    /// Notes that batches before this one are no longer needed.
    pub(super) fn keep_from(&mut self, number: u64) -> Result<(), JournalError> {
        self.body.kept_from = number;
        self.write()
    }

    /// Notes that there is a segment that begins with this batch.
    pub(super) fn begin_segment(&mut self, number: u64) -> Result<(), JournalError> {
        if self.body.newest_segment == number {
            return Ok(());
        }
        self.body.newest_segment = number;
        self.write()
    }

    /// Why this disk must not vote, if so.
    #[must_use]
    pub fn barred(&self) -> Option<&str> {
        self.body.barred.as_deref()
    }

    /// Why this disk is not the one that its node's name stands for in epoch 1, if so.
    #[must_use]
    pub fn displaced(&self) -> Option<&str> {
        self.body.displaced.as_deref()
    }

    /// Makes it durable that it is not.
    pub fn displace(&mut self, why: &str) -> Result<(), JournalError> {
        self.body.displaced = Some(why.to_owned());
        self.write()
    }

    /// What is remembered of the peers' disks.
    #[must_use]
    pub fn peers(&self) -> &PeerMemory {
        &self.body.peers
    }

    /// Makes what is remembered of the peers' disks durable.
    pub fn set_peers(&mut self, peers: PeerMemory) -> Result<(), JournalError> {
        self.body.peers = peers;
        self.write()
    }

    /// Makes it durable that this disk must not vote.
    pub fn bar(&mut self, why: &str) -> Result<(), JournalError> {
        self.body.barred = Some(why.to_owned());
        self.write()
    }

    /// Into both slots, the older first; the second only once the first is on the disk.
    fn write(&mut self) -> Result<(), JournalError> {
        let body = rmp_serde::to_vec_named(&self.body).map_err(|error| JournalError::Encoding(error.to_string()))?;
        if body.len() > SLOT_BYTES - PREFIX_BYTES {
            return Err(JournalError::Encoding(format!("a node header of {} bytes", body.len())));
        }
        self.write_older_slot(&body)?;
        self.write_older_slot(&body)
    }

    fn write_older_slot(&mut self, body: &[u8]) -> Result<(), JournalError> {
        self.generation += 1;
        let mut slot = Vec::with_capacity(PREFIX_BYTES + body.len());
        slot.extend_from_slice(MAGIC);
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
        slot.extend_from_slice(&checksum(self.generation, body).to_le_bytes());
        slot.extend_from_slice(&length.to_le_bytes());
        slot.extend_from_slice(&self.generation.to_le_bytes());
        slot.extend_from_slice(body);
        let at = (self.generation % 2) * SLOT_BYTES as u64;
        self.file.write_at(&slot, at).map_err(io("write", &self.path))?;
        self.file.sync().map_err(io("sync", &self.path))
    }
}

fn checksum(generation: u64, body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&generation.to_le_bytes()), body)
}

fn read_slot(file: &dyn File, slot: u64) -> Option<(u64, Body)> {
    let mut prefix = [0; PREFIX_BYTES];
    let at = slot * SLOT_BYTES as u64;
    file.read_at(&mut prefix, at).ok()?;
    let (magic, rest) = prefix.split_first_chunk::<8>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (generation, _) = rest.split_first_chunk::<8>()?;
    let length = u32::from_le_bytes(*length) as usize;
    if magic != MAGIC || length > SLOT_BYTES - PREFIX_BYTES {
        return None;
    }
    let mut body = vec![0; length];
    file.read_at(&mut body, at + PREFIX_BYTES as u64).ok()?;
    let generation = u64::from_le_bytes(*generation);
    if checksum(generation, &body) != u32::from_le_bytes(*sum) {
        return None;
    }
    Some((generation, messagepack::decode(&body).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::OsDisk;

    fn open(dir: &tempfile::TempDir) -> Result<Header, JournalError> {
        Header::open(&OsDisk, dir.path(), 8, false)
    }

    fn harm(header: &Header, slot: u64) {
        header.file.write_at(b"harm", slot * SLOT_BYTES as u64 + 30).unwrap();
    }

    /// The last change was in one slot only: harming that one brought back what was before, such as the right to vote.
    #[test]
    fn one_harmed_slot_loses_nothing() {
        for slot in [0, 1] {
            let dir = tempfile::tempdir().unwrap();
            let mut header = Header::open(&OsDisk, dir.path(), 7, false).unwrap();
            header.begin_boot(Ballot(10), 1, None).unwrap();
            header.bar("its disk forgot").unwrap();
            harm(&header, slot);
            let mut again = open(&dir).unwrap();
            assert_eq!((again.storage_id(), again.ceiling(), again.boot()), (StorageId(7), Ballot(10), 1));
            assert_eq!(again.barred(), Some("its disk forgot"));
            again.keep_from(5).unwrap();
            harm(&header, 1 - slot);
            assert_eq!(open(&dir).unwrap().kept_from(), Some(5));
            harm(&header, slot);
            assert!(matches!(open(&dir), Err(JournalError::HeaderLost(_))));
        }
    }

    /// A header that was cut to nothing, or was gone, made a new disk of one that had promised things.
    #[test]
    fn a_lost_header_is_not_a_new_disk() {
        let dir = tempfile::tempdir().unwrap();
        let header = Header::open(&OsDisk, dir.path(), 7, false).unwrap();
        std::fs::File::options().write(true).truncate(true).open(&header.path).unwrap();
        assert!(matches!(open(&dir), Err(JournalError::HeaderLost(_))));
        std::fs::remove_file(&header.path).unwrap();
        assert!(matches!(Header::open(&OsDisk, dir.path(), 8, true), Err(JournalError::HeaderLost(_))));
    }

    /// The first write of all was in place: one torn by a crash left a node that could not start until someone came.
    #[test]
    fn a_header_that_was_never_finished_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("node.new"), b"OUTRNODE torn").unwrap();
        assert_eq!(open(&dir).unwrap().storage_id(), StorageId(8));
    }

    /// The format was written and never looked at.
    #[test]
    fn a_header_of_a_later_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut header = open(&dir).unwrap();
        header.body.format = FORMAT + 1;
        header.write().unwrap();
        assert!(matches!(open(&dir), Err(JournalError::Newer { .. })));
    }
}
