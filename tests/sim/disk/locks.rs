//! The locks that SQLite's connections hold on databases and on their shared memory. See
//! <https://www.sqlite.org/lockingv3.html> and <https://www.sqlite.org/walformat.html#wal_locks>.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use super::tree::Ino;
use super::vfs::Memory;

/// How far a connection has a database file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    None,
    Shared,
    Reserved,
    Pending,
    Exclusive,
}

/// Another connection is in the way.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Busy;

/// Slots of a lock in the shared memory.
const SLOTS: usize = 8;

/// Every lock on every database, by the number of the handle that holds it.
#[derive(Debug, Default)]
pub(super) struct SqliteLocks {
    files: BTreeMap<Ino, BTreeMap<u64, Level>>,
    shared: BTreeMap<Ino, SharedMemory>,
}

#[derive(Debug, Default)]
struct SharedMemory {
    memory: Arc<Memory>,
    users: BTreeSet<u64>,
    /// Of each slot, who holds it, and whether alone.
    slots: [BTreeMap<u64, bool>; SLOTS],
}

impl SqliteLocks {
    pub(super) fn clear(&mut self) {
        self.files.clear();
        self.shared.clear();
    }

    fn others(&self, ino: Ino, handle: u64) -> impl Iterator<Item = Level> {
        let holders = self.files.get(&ino).into_iter().flatten();
        holders.filter(move |(other, _)| **other != handle).map(|(_, level)| *level)
    }

    /// Raises a connection's lock on a file.
    pub(super) fn lock(&mut self, ino: Ino, handle: u64, want: Level) -> Result<(), Busy> {
        let has = self.files.get(&ino).and_then(|holders| holders.get(&handle)).copied().unwrap_or(Level::None);
        if has >= want {
            return Ok(());
        }
        let most = self.others(ino, handle).max().unwrap_or(Level::None);
        let (gets, outcome) = match want {
            Level::None => return Ok(()),
            Level::Shared if most >= Level::Pending => return Err(Busy),
            Level::Reserved if most >= Level::Reserved => return Err(Busy),
            Level::Pending | Level::Exclusive if most >= Level::Reserved => return Err(Busy),
            // Waits for the readers to leave, and lets no new ones in.
            Level::Pending | Level::Exclusive if most == Level::Shared => (Level::Pending, Err(Busy)),
            _ => (want, Ok(())),
        };
        self.files.entry(ino).or_default().insert(handle, gets);
        outcome
    }

    /// Lowers it.
    pub(super) fn unlock(&mut self, ino: Ino, handle: u64, to: Level) {
        if let Some(holders) = self.files.get_mut(&ino) {
            if to == Level::None {
                holders.remove(&handle);
            } else if let Some(level) = holders.get_mut(&handle) {
                *level = to.min(*level);
            }
        }
    }

    /// Whether anybody is about to write to a file.
    pub(super) fn is_reserved(&self, ino: Ino) -> bool {
        self.files.get(&ino).into_iter().flatten().any(|(_, level)| *level >= Level::Reserved)
    }

    /// The memory that the connections to a database share.
    pub(super) fn memory(&mut self, ino: Ino, handle: u64) -> Arc<Memory> {
        let shared = self.shared.entry(ino).or_default();
        shared.users.insert(handle);
        shared.memory.clone()
    }

    pub(super) fn lock_slots(&mut self, ino: Ino, handle: u64, slots: Range<usize>, alone: bool) -> Result<(), Busy> {
        let slots = self.shared.get_mut(&ino).and_then(|shared| shared.slots.get_mut(slots)).ok_or(Busy)?;
        let is_in_the_way = |(other, is_alone): (&u64, &bool)| *other != handle && (alone || *is_alone);
        if slots.iter().any(|slot| slot.iter().any(is_in_the_way)) {
            return Err(Busy);
        }
        slots.iter_mut().for_each(|slot| _ = slot.insert(handle, alone));
        Ok(())
    }

    pub(super) fn unlock_slots(&mut self, ino: Ino, handle: u64, slots: Range<usize>) {
        if let Some(slots) = self.shared.get_mut(&ino).and_then(|shared| shared.slots.get_mut(slots)) {
            slots.iter_mut().for_each(|slot| _ = slot.remove(&handle));
        }
    }

    /// A connection leaves the shared memory: whether it was the last.
    pub(super) fn leave(&mut self, ino: Ino, handle: u64) -> bool {
        let Some(shared) = self.shared.get_mut(&ino) else { return false };
        shared.users.remove(&handle);
        shared.slots.iter_mut().for_each(|slot| _ = slot.remove(&handle));
        let is_last = shared.users.is_empty();
        if is_last {
            self.shared.remove(&ino);
        }
        is_last
    }
}
