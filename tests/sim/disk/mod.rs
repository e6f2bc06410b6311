//! A disk in memory: as cruel as POSIX allows, and the same for the same seed.
//!
//! ```text
//!   node ──► mount(): Disk, File ──┐
//!        └──► SQLite ──► vfs ──────┴──► State: what is seen ─► log of changes ─sync─► what is durable
//!   world ──► crash, faults, snapshot, digest ────┘
//! ```
//!
//! A process reads what was written. A loss of power leaves what completed syncs cover, and of the rest whatever chance
//! gives: each block of 512 bytes, each size and each name by itself, in any order, a block perhaps torn. A sync returns
//! at once and is done when the time that [`SimDisk::take_debt`] tells has passed, which `outrigger::blocking` is told too:
//! it lets that time pass before anybody hears of what was done. Until then a loss of power may come before it.

mod content;
mod crash;
mod faults;
mod locks;
#[cfg(test)]
mod tests;
mod tree;
mod vfs;

use std::fmt::{self, Debug, Formatter};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use outrigger::disk::{Disk, File, Kind, Lock};
use parking_lot::Mutex;
use rustix::io::Errno;

use content::PAGE_BYTES;
pub(crate) use faults::{Class, Snapshot};
use tree::{Body, Ino, Life, State};
pub(crate) use vfs::seed_sqlite;

/// The platter, which outlives those who mount it.
#[derive(Debug, Clone)]
pub(crate) struct SimDisk {
    shared: Arc<Shared>,
}

struct Shared {
    now: Arc<dyn Fn() -> Duration + Send + Sync>,
    state: Mutex<State>,
}

impl Debug for Shared {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl SimDisk {
    /// An empty disk. All its chances come from `seed`; `now` never goes back.
    pub(crate) fn new(seed: u64, now: Arc<dyn Fn() -> Duration + Send + Sync>) -> Self {
        Self { shared: Arc::new(Shared { now, state: Mutex::new(State::new(seed)) }) }
    }

    fn now(&self) -> Duration {
        (self.shared.now)()
    }

    /// The disk as one process has it, until the next crash. Several may have it at once.
    pub(crate) fn mount(&self) -> Arc<dyn Disk> {
        let mut state = self.shared.state.lock();
        let life = state.number();
        state.alive.insert(life);
        drop(state);
        Arc::new(Mount(vfs::Slot::occupy(|slot| Mounted { shared: self.shared.clone(), life, slot })))
    }

    /// The time from now until all that was asked of the disk so far is done; none when it is.
    pub(crate) fn take_debt(&self) -> Duration {
        let now = self.now();
        self.shared.state.lock().busy_until.saturating_sub(now)
    }
}

/// One process's way to the disk.
struct Mounted {
    shared: Arc<Shared>,
    life: Life,
    slot: &'static vfs::Slot,
}

/// What an operation does, as far as faults tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    Look,
    Change,
}

impl Mounted {
    fn now(&self) -> Duration {
        (self.shared.now)()
    }

    /// Does something to the disk, unless this process is dead.
    fn with<T>(&self, doing: Doing, act: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let now = self.now();
        let mut state = self.shared.state.lock();
        state.advance(now);
        state.burn_fuse(doing);
        if !state.alive.contains(&self.life) {
            return Err(Errno::IO.into());
        }
        state.busy_until = state.busy_until.max(now) + state.faults.op_takes;
        act(&mut state)
    }

    fn handle(self: &Arc<Self>, state: &mut State, ino: Ino) -> SimFile {
        state.opened(ino);
        SimFile { mounted: self.clone(), ino, number: state.number() }
    }

    fn open(self: &Arc<Self>, path: &Path) -> io::Result<SimFile> {
        self.with(Doing::Look, |state| {
            let ino = state.find(path)?;
            state.file(ino)?;
            Ok(self.handle(state, ino))
        })
    }

    fn open_or_make(self: &Arc<Self>, path: &Path) -> io::Result<SimFile> {
        self.with(Doing::Change, |state| {
            let ino = state.find_or_make(path)?;
            state.file(ino)?;
            Ok(self.handle(state, ino))
        })
    }

    /// A file without a name.
    fn open_unnamed(self: &Arc<Self>) -> io::Result<SimFile> {
        self.with(Doing::Change, |state| {
            let ino = state.add(Body::File(content::FileBody::default()));
            Ok(self.handle(state, ino))
        })
    }

    fn kind(&self, path: &Path) -> io::Result<Option<Kind>> {
        self.with(Doing::Look, |state| match state.find(path) {
            Ok(ino) => Ok(Some(match &state.inode(ino)?.body {
                Body::File(file) => Kind::File(file.seen.size),
                Body::Directory(_) => Kind::Directory,
            })),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error),
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.with(Doing::Change, |state| state.remove(path))
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.with(Doing::Change, |state| {
            let ino = state.find(path)?;
            state.fail_sync_of(None)?;
            state.sync_directory(self.now(), ino)
        })
    }

    /// As SQLite does for a log that it made, deaf to how it went: so no fault is spent on it.
    fn sync_directory_of(&self, path: &Path) {
        let Some(parent) = path.parent() else { return };
        let synced = self.with(Doing::Change, |state| {
            let ino = state.find(parent)?;
            state.sync_directory(self.now(), ino)
        });
        drop(synced);
    }
}

struct Mount(Arc<Mounted>);

impl Debug for Mount {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mount").field("life", &self.0.life).finish_non_exhaustive()
    }
}

impl Disk for Mount {
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let file = self.0.open_or_make(path)?;
        file.resize(0)?;
        Ok(Box::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        Ok(Box::new(self.0.open(path)?))
    }

    fn kind(&self, path: &Path) -> io::Result<Option<Kind>> {
        self.0.kind(path)
    }

    /// Nobody makes one here.
    fn is_link(&self, _: &Path) -> io::Result<bool> {
        Ok(false)
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<String>> {
        self.0.with(Doing::Look, |state| {
            let ino = state.find(directory)?;
            Ok(state.directory(ino)?.seen.keys().cloned().collect())
        })
    }

    fn create_directories(&self, path: &Path) -> io::Result<()> {
        self.0.with(Doing::Change, |state| state.make_directories(path))
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.0.sync_directory(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.remove(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.with(Doing::Change, |state| state.rename(from, to))
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Lock>> {
        let file = self.0.open_or_make(path)?;
        let is_mine = self.0.with(Doing::Look, |state| {
            let holder = *state.locks.entry(file.ino).or_insert(file.number);
            Ok(holder == file.number)
        })?;
        Ok(is_mine.then(|| Box::new(Locked(file)) as Lock))
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.0.with(Doing::Look, |state| {
            state.find(path)?;
            Ok(state.free_pages() * PAGE_BYTES as u64)
        })
    }

    fn sqlite_vfs(&self) -> Option<&str> {
        Some(self.0.slot.name())
    }
}

/// A lock on a file, held open.
struct Locked(SimFile);

impl Drop for Locked {
    fn drop(&mut self) {
        let mut state = self.0.mounted.shared.state.lock();
        // After a crash another may hold it.
        if state.locks.get(&self.0.ino) == Some(&self.0.number) {
            state.locks.remove(&self.0.ino);
        }
    }
}

/// An open file.
struct SimFile {
    mounted: Arc<Mounted>,
    ino: Ino,
    number: u64,
}

impl Debug for SimFile {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimFile").field("ino", &self.ino).finish_non_exhaustive()
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut state = self.mounted.shared.state.lock();
        if state.alive.contains(&self.mounted.life) {
            state.closed(self.ino);
        }
    }
}

impl SimFile {
    /// As many bytes as there are, zeros behind them: how many there were.
    fn read_some(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.mounted.with(Doing::Look, |state| {
            let file = state.file(self.ino)?;
            let end = at + buffer.len() as u64;
            if file.bad.iter().any(|bad| bad.start < end && at < bad.end) {
                return Err(Errno::IO.into());
            }
            file.seen.read(buffer, at);
            Ok(file.seen.size.saturating_sub(at).min(buffer.len() as u64) as usize)
        })
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        self.mounted.with(Doing::Change, |state| {
            let round = state.issued;
            state.change(self.ino, |file| file.resize(round, size))
        })
    }
}

impl File for SimFile {
    fn bytes(&self) -> io::Result<u64> {
        self.mounted.with(Doing::Look, |state| Ok(state.file(self.ino)?.seen.size))
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        match self.read_some(buffer, at)? {
            all if all == buffer.len() => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.mounted.with(Doing::Change, |state| {
            let round = state.issued;
            // What fails may have been done in part.
            let (written, outcome) = state.fail_write_of(self.ino, bytes.len(), at)?;
            if written > 0 {
                let bytes = bytes.get(..written).unwrap_or(bytes);
                state.change(self.ino, |file| file.write(round, bytes, at))?;
            }
            outcome
        })
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        self.mounted.with(Doing::Change, |state| {
            let round = state.issued;
            if state.file(self.ino)?.wants_reserved(bytes) > state.free_pages() {
                return Err(Errno::NOSPC.into());
            }
            state.change(self.ino, |file| file.reserve(round, bytes))
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.mounted.with(Doing::Change, |state| {
            state.fail_sync_of(Some(self.ino))?;
            let (number, lies) = (state.begin_sync(self.mounted.now()), state.faults.lies);
            let completed = state.completed;
            let file = state.file(self.ino)?;
            if !lies {
                file.sync(number);
            }
            file.settle(completed);
            Ok(())
        })
    }

    fn forget_cached(&self) {
        let forgotten = self.mounted.with(Doing::Look, |state| {
            let is_deaf = state.faults.deaf;
            let file = state.file(self.ino)?;
            if !is_deaf {
                file.forget();
            }
            Ok(())
        });
        // Advice, which the dead do not give.
        drop(forgotten);
    }
}
