//! One file of the journal: batches one after the other, then zeros.
//!
//! ```text
//!   0        4        8        12       16               24
//!   | magic  | length | crc32c |  zero  |  batch number  | entries … | padding to 8 |
//! ```
//!
//! The checksum covers number and entries. Integers are little-endian.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FallocateFlags;

use super::{Durability, JournalError, io, sync_directory};
use crate::replication::register::Entry;

const MAGIC: [u8; 4] = *b"OUTJ";
const PREFIX_BYTES: usize = 24;
const ALIGNMENT: usize = 8;

/// A segment that is no longer written.
#[derive(Debug)]
pub(super) struct Closed {
    pub(super) path: PathBuf,
    /// The number of its first batch.
    pub(super) first: u64,
    pub(super) bytes: u64,
}

/// The segment being written.
#[derive(Debug)]
pub(super) struct Segment {
    path: PathBuf,
    file: File,
    first: u64,
    end: u64,
    capacity: u64,
}

impl Segment {
    /// Makes a segment whose first batch will be `first`, with `capacity` bytes of disk reserved.
    pub(super) fn create(directory: &Path, first: u64, capacity: u64) -> Result<Self, JournalError> {
        let path = directory.join(format!("journal-{first:016x}.log"));
        // One of this name can only be left from a start that wrote no batch.
        let file = File::options().create(true).truncate(true).read(true).write(true).open(&path);
        let file = file.map_err(|error| full_or_io("create", &path, error))?;
        if let Err(error) = rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, capacity) {
            let error = std::io::Error::from(error);
            if error.kind() != std::io::ErrorKind::Unsupported {
                // Best effort: what remains is an empty file, reused by the next try.
                let _ = fs::remove_file(&path);
                return Err(full_or_io("reserve room in", &path, error));
            }
            file.set_len(capacity).map_err(io("extend", &path))?;
        }
        file.sync_all().map_err(io("sync", &path))?;
        sync_directory(directory)?;
        Ok(Self { path, file, first, end: 0, capacity })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.end == 0
    }

    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.end + bytes as u64 <= self.capacity
    }

    pub(super) fn bytes(&self) -> u64 {
        self.capacity
    }

    #[cfg(test)]
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    #[cfg(test)]
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    pub(super) fn write(&mut self, batch: &[u8], durability: Durability) -> Result<(), JournalError> {
        self.file.write_all_at(batch, self.end).map_err(io("write", &self.path))?;
        if durability == Durability::Fsync {
            self.file.sync_data().map_err(io("sync", &self.path))?;
        }
        self.end += batch.len() as u64;
        Ok(())
    }

    pub(super) fn close(self) -> Closed {
        Closed { path: self.path, first: self.first, bytes: self.capacity }
    }
}

fn full_or_io(doing: &'static str, path: &Path, error: std::io::Error) -> JournalError {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            JournalError::Full { path: path.to_owned(), source: Arc::new(error) }
        }
        _ => io(doing, path)(error),
    }
}

/// The bytes of one batch.
pub(super) fn encode(number: u64, entries: &[Entry]) -> Result<Vec<u8>, JournalError> {
    let mut batch = vec![0; PREFIX_BYTES];
    rmp_serde::encode::write_named(&mut batch, entries).map_err(|error| JournalError::Encoding(error.to_string()))?;
    let length = batch.len() - PREFIX_BYTES;
    let length_field = u32::try_from(length).map_err(|_| JournalError::Encoding(format!("{length} bytes at once")))?;
    let body = batch.get(PREFIX_BYTES..).unwrap_or_default();
    let prefix = [
        MAGIC.as_slice(),
        &length_field.to_le_bytes(),
        &checksum(number, body).to_le_bytes(),
        &[0; 4],
        &number.to_le_bytes(),
    ]
    .concat();
    batch.splice(..PREFIX_BYTES, prefix);
    batch.resize(batch.len().next_multiple_of(ALIGNMENT), 0);
    Ok(batch)
}

fn checksum(number: u64, body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&number.to_le_bytes()), body)
}

/// A batch read back.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) number: u64,
    pub(super) entries: Vec<Entry>,
}

/// A segment read back.
#[derive(Debug)]
pub(super) struct Scanned {
    pub(super) path: PathBuf,
    pub(super) first: u64,
    pub(super) batches: Vec<Batch>,
    pub(super) damage: Option<String>,
    bytes: u64,
}

impl Scanned {
    /// The number that follows its last good batch.
    pub(super) fn next_number(&self) -> u64 {
        self.first + self.batches.len() as u64
    }

    /// Makes sure that what was read is on the disk.
    pub(super) fn sync(&self) -> Result<(), JournalError> {
        File::open(&self.path).and_then(|file| file.sync_all()).map_err(io("sync", &self.path))
    }

    pub(super) fn close(self) -> Closed {
        Closed { path: self.path, first: self.first, bytes: self.bytes }
    }
}

/// Reads every segment of a directory, in order.
pub(super) fn read_all(directory: &Path) -> Result<Vec<Scanned>, JournalError> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(io("list", directory))? {
        let path = entry.map_err(io("list", directory))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let number = name.strip_prefix("journal-").and_then(|rest| rest.strip_suffix(".log"));
        if let Some(first) = number.and_then(|hex| u64::from_str_radix(hex, 16).ok()) {
            paths.push((first, path));
        }
    }
    paths.sort();
    let mut scanned = Vec::with_capacity(paths.len());
    for (first, path) in paths {
        let bytes = fs::read(&path).map_err(io("read", &path))?;
        scanned.push(scan(path, first, &bytes));
    }
    Ok(scanned)
}

fn scan(path: PathBuf, first: u64, bytes: &[u8]) -> Scanned {
    let (mut at, mut batches, mut damage) = (0, Vec::new(), None);
    let mut expected = first;
    while let Some((batch, length)) = decode(bytes.get(at..).unwrap_or_default()) {
        if batch.number != expected {
            damage = Some(format!("{}: batch {} where {expected} belongs", path.display(), batch.number));
            break;
        }
        expected += 1;
        at += length;
        batches.push(batch);
    }
    if damage.is_none()
        && let Some(later) = later_batch(bytes, at, expected)
    {
        let path = path.display();
        damage = Some(format!("{path}: batch {expected} at byte {at} is damaged, yet batch {later} follows it"));
    }
    Scanned { path, first, batches, damage, bytes: bytes.len() as u64 }
}

fn decode(bytes: &[u8]) -> Option<(Batch, usize)> {
    let (magic, rest) = bytes.split_first_chunk::<4>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let (_, rest) = rest.split_first_chunk::<4>()?;
    let (number, rest) = rest.split_first_chunk::<8>()?;
    if *magic != MAGIC {
        return None;
    }
    let length = u32::from_le_bytes(*length) as usize;
    let body = rest.get(..length)?;
    let number = u64::from_le_bytes(*number);
    if checksum(number, body) != u32::from_le_bytes(*sum) {
        return None;
    }
    let entries = rmp_serde::from_slice(body).ok()?;
    Some((Batch { number, entries }, (PREFIX_BYTES + length).next_multiple_of(ALIGNMENT)))
}

/// The number of a good batch at or after `at` that is not before `expected`.
fn later_batch(bytes: &[u8], at: usize, expected: u64) -> Option<u64> {
    let mut at = at;
    while at + PREFIX_BYTES <= bytes.len() {
        let rest = bytes.get(at..)?;
        if rest.starts_with(&MAGIC)
            && let Some((batch, _)) = decode(rest)
            && batch.number >= expected
        {
            return Some(batch.number);
        }
        at += ALIGNMENT;
    }
    None
}
