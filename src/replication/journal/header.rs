//! Who a disk is: the node header, in two slots written in turn, so that a torn write leaves the other.
//!
//! ```text
//!   slot (4 KiB, twice):  magic · checksum · length · generation · body (MessagePack map)
//! ```

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{JournalError, io, sync_directory};
use crate::cluster::memory::PeerMemory;
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
    #[serde(default)]
    barred: Option<String>,
    #[serde(default)]
    peers: PeerMemory,
}

/// The node header of an open data directory.
#[derive(Debug)]
pub struct Header {
    path: PathBuf,
    file: File,
    generation: u64,
    body: Body,
}

impl Header {
    /// Reads the header of `directory`, or makes one for a new disk.
    pub(super) fn open(directory: &Path, fresh_storage_id: u64) -> Result<Self, JournalError> {
        let path = directory.join("node");
        let exists = path.try_exists().map_err(io("look for", &path))?;
        let mut options = File::options();
        let file =
            options.create(true).truncate(false).read(true).write(true).open(&path).map_err(io("open", &path))?;
        if exists {
            let length = file.metadata().map_err(io("read", &path))?.len();
            let newest = [0, 1].into_iter().filter_map(|slot| read_slot(&file, slot)).max_by_key(|(at, _)| *at);
            match newest {
                Some((generation, body)) => return Ok(Self { path, file, generation, body }),
                // Created, and the process died before the first write returned: nothing was ever promised.
                None if length == 0 => {}
                None => return Err(JournalError::HeaderLost(path)),
            }
        }
        let body = Body {
            format: FORMAT,
            storage_id: StorageId(fresh_storage_id),
            boot: 0,
            ceiling: Ballot::ZERO,
            epoch: 1,
            position: 0,
            barred: None,
            peers: PeerMemory::default(),
        };
        let mut header = Self { path, file, generation: 0, body };
        header.write()?;
        sync_directory(directory)?;
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

    /// Why this disk must not vote, if so.
    #[must_use]
    pub fn barred(&self) -> Option<&str> {
        self.body.barred.as_deref()
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

    fn write(&mut self) -> Result<(), JournalError> {
        self.generation += 1;
        let body = rmp_serde::to_vec_named(&self.body).map_err(|error| JournalError::Encoding(error.to_string()))?;
        if body.len() > SLOT_BYTES - PREFIX_BYTES {
            return Err(JournalError::Encoding(format!("a node header of {} bytes", body.len())));
        }
        let mut slot = Vec::with_capacity(PREFIX_BYTES + body.len());
        slot.extend_from_slice(MAGIC);
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
        slot.extend_from_slice(&checksum(self.generation, &body).to_le_bytes());
        slot.extend_from_slice(&length.to_le_bytes());
        slot.extend_from_slice(&self.generation.to_le_bytes());
        slot.extend_from_slice(&body);
        let at = (self.generation % 2) * SLOT_BYTES as u64;
        self.file.write_all_at(&slot, at).map_err(io("write", &self.path))?;
        self.file.sync_all().map_err(io("sync", &self.path))
    }
}

fn checksum(generation: u64, body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&generation.to_le_bytes()), body)
}

fn read_slot(file: &File, slot: u64) -> Option<(u64, Body)> {
    let mut prefix = [0; PREFIX_BYTES];
    let at = slot * SLOT_BYTES as u64;
    file.read_exact_at(&mut prefix, at).ok()?;
    let (magic, rest) = prefix.split_first_chunk::<8>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (generation, _) = rest.split_first_chunk::<8>()?;
    let length = u32::from_le_bytes(*length) as usize;
    if magic != MAGIC || length > SLOT_BYTES - PREFIX_BYTES {
        return None;
    }
    let mut body = vec![0; length];
    file.read_exact_at(&mut body, at + PREFIX_BYTES as u64).ok()?;
    let generation = u64::from_le_bytes(*generation);
    if checksum(generation, &body) != u32::from_le_bytes(*sum) {
        return None;
    }
    Some((generation, rmp_serde::from_slice(&body).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_write_leaves_the_slot_before() {
        let dir = tempfile::tempdir().unwrap();
        let mut header = Header::open(dir.path(), 7).unwrap();
        header.begin_boot(Ballot(10), 1, None).unwrap();
        header.begin_boot(Ballot(20), 2, None).unwrap();
        let at = (header.generation % 2) * SLOT_BYTES as u64;
        header.file.write_all_at(b"torn", at + 30).unwrap();
        let again = Header::open(dir.path(), 8).unwrap();
        assert_eq!((again.storage_id(), again.ceiling(), again.boot()), (StorageId(7), Ballot(10), 1));
        header.file.write_all_at(b"torn", (1 - header.generation % 2) * SLOT_BYTES as u64 + 30).unwrap();
        assert!(matches!(Header::open(dir.path(), 8), Err(JournalError::HeaderLost(_))));
    }
}
