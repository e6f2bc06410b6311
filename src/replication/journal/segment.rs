//! One file of the journal: batches one after the other, then zeros.
//!
//! ```text
//!   0        4        8        12       16               24
//!   | magic  | length | crc32c |  zero  |  batch number  | entries … | padding to 8 |
//! ```
//!
//! The checksum covers number and entries. Integers are little-endian.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Durability, JournalError, io};
use crate::disk::{self, Disk, File};
use crate::messagepack;
use crate::replication::register::Entry;

const MAGIC: [u8; 4] = *b"OUTJ";
const PREFIX_BYTES: usize = 24;
const ALIGNMENT: usize = 8;
/// Batches are numbered far below this; what bears a higher number is no batch.
const NUMBER_MAX: u64 = u64::MAX / 2;

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
    file: Box<dyn File>,
    first: u64,
    end: u64,
    capacity: u64,
}

impl Segment {
    /// Makes a segment whose first batch will be `first`, with `capacity` bytes of disk reserved.
    pub(super) fn create(disk: &dyn Disk, directory: &Path, first: u64, capacity: u64) -> Result<Self, JournalError> {
        let path = directory.join(file_name(first));
        // One of this name can only be left from a start that wrote no batch.
        let file = disk.create(&path).map_err(|error| full_or_io("create", &path, error))?;
        if let Err(error) = file.reserve(capacity) {
            // Best effort: what remains is an empty file, reused by the next try.
            let _ = disk.remove(&path);
            return Err(full_or_io("reserve room in", &path, error));
        }
        file.sync().map_err(io("sync", &path))?;
        disk.sync_directory(directory).map_err(io("sync", directory))?;
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

    pub(super) fn first(&self) -> u64 {
        self.first
    }

    #[cfg(test)]
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    pub(super) fn write(&mut self, batch: &[u8], durability: Durability) -> Result<(), JournalError> {
        self.file.write_at(batch, self.end).map_err(io("write", &self.path))?;
        if durability == Durability::Fsync {
            self.file.sync().map_err(io("sync", &self.path))?;
        }
        self.end += batch.len() as u64;
        Ok(())
    }

    pub(super) fn close(self) -> Closed {
        Closed { path: self.path, first: self.first, bytes: self.capacity }
    }
}

fn file_name(first: u64) -> String {
    format!("journal-{first:016x}.log")
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

/// A segment read back.
#[derive(Debug)]
pub(super) struct Scanned {
    pub(super) path: PathBuf,
    pub(super) first: u64,
    /// The entries of each good batch, from `first` on.
    pub(super) batches: Vec<Vec<Entry>>,
    pub(super) damage: Option<String>,
    /// The highest number of a good batch behind damage.
    highest_behind: u64,
    bytes: u64,
}

impl Scanned {
    /// The number that follows its last good batch.
    pub(super) fn next_number(&self) -> u64 {
        self.first + self.batches.len() as u64
    }

    /// A number that no batch of it has, nor any after.
    pub(super) fn unused_number(&self) -> u64 {
        self.next_number().max(self.highest_behind.saturating_add(1))
    }

    pub(super) fn close(self) -> Closed {
        Closed { path: self.path, first: self.first, bytes: self.bytes }
    }
}

/// The segments of a directory, in order: the number of each one's first batch, and its file.
pub(super) fn find(disk: &dyn Disk, directory: &Path) -> Result<Vec<(u64, PathBuf)>, JournalError> {
    let mut paths = Vec::new();
    for name in disk.names(directory).map_err(io("list", directory))? {
        let number = name.strip_prefix("journal-").and_then(|rest| rest.strip_suffix(".log"));
        let first = number.and_then(|hex| u64::from_str_radix(hex, 16).ok());
        // One name for each number: another that reads as the same is not ours.
        if let Some(first) = first.filter(|first| *first <= NUMBER_MAX && file_name(*first) == name) {
            paths.push((first, directory.join(name)));
        }
    }
    paths.sort();
    Ok(paths)
}

/// Reads a segment from the disk, what a process that died left in memory written to it first.
pub(super) fn read(disk: &dyn Disk, path: PathBuf, first: u64) -> Result<Scanned, JournalError> {
    let file = disk.open(&path).map_err(io("open", &path))?;
    settle(&*file).map_err(io("sync", &path))?;
    let bytes = disk::read(&*file).map_err(io("read", &path))?;
    scan(path, first, &bytes)
}

/// Makes durable what a process that died wrote to a file and perhaps never synced, and has it read from the disk
/// next.
pub(super) fn settle(file: &dyn File) -> std::io::Result<()> {
    file.sync()?;
    file.forget_cached();
    Ok(())
}

fn scan(path: PathBuf, first: u64, bytes: &[u8]) -> Result<Scanned, JournalError> {
    let (mut at, mut batches, mut damage) = (0, Vec::new(), None);
    let mut expected = first;
    while let Some(found) = find_at(bytes, at) {
        if found.number != expected {
            damage = Some(format!("{}: batch {} where {expected} belongs", path.display(), found.number));
            break;
        }
        let Ok(entries) = messagepack::decode(found.body) else {
            return Err(JournalError::Newer { path, what: "a batch" });
        };
        batches.push(entries);
        expected += 1;
        at += found.length;
    }
    let later = later_batches(bytes, at, expected);
    if let Some((nearest, _)) = later {
        let path = path.display();
        damage.get_or_insert_with(|| {
            format!("{path}: batch {expected} at byte {at} is damaged, yet batch {nearest} follows it")
        });
    }
    let highest_behind = later.map_or(0, |(_, highest)| highest);
    Ok(Scanned { path, first, batches, damage, highest_behind, bytes: bytes.len() as u64 })
}

/// A batch whose checksum is right.
struct Found<'a> {
    number: u64,
    body: &'a [u8],
    length: usize,
}

fn find_at(bytes: &[u8], at: usize) -> Option<Found<'_>> {
    let (magic, rest) = bytes.get(at..)?.split_first_chunk::<4>()?;
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
    if number > NUMBER_MAX || checksum(number, body) != u32::from_le_bytes(*sum) {
        return None;
    }
    Some(Found { number, body, length: (PREFIX_BYTES + length).next_multiple_of(ALIGNMENT) })
}

/// The numbers of the nearest and the highest good batch at or after `at` that are not before `expected`.
fn later_batches(bytes: &[u8], at: usize, expected: u64) -> Option<(u64, u64)> {
    let mut found: Option<(u64, u64)> = None;
    let mut at = at;
    while at + PREFIX_BYTES <= bytes.len() {
        let batch = find_at(bytes, at).filter(|batch| batch.number >= expected);
        if let Some(Found { number, length, .. }) = batch {
            found = Some(found.map_or((number, number), |(nearest, highest)| (nearest, highest.max(number))));
            at += length;
        } else {
            at += ALIGNMENT;
        }
    }
    found
}
