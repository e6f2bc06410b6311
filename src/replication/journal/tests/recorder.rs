//! The operating system's disk, and a list of what was done to it: from which every disk can be made that a crash could
//! have left.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::disk::{Disk, File, Kind, Lock, OsDisk};

/// What was done, in the order in which it was.
#[derive(Debug, Clone)]
pub(super) enum Did {
    Create(PathBuf),
    Resize(PathBuf, u64),
    Write(PathBuf, u64, Vec<u8>),
    Sync(PathBuf),
    SyncDirectory(PathBuf),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf),
}

thread_local! {
    static DONE: RefCell<Option<Vec<Did>>> = const { RefCell::new(None) };
    /// What a file is called now that was opened under another name.
    static RENAMED: RefCell<BTreeMap<PathBuf, PathBuf>> = const { RefCell::new(BTreeMap::new()) };
}

/// Writes down what this thread does from now on; returns what it did since the last time.
pub(super) fn recorded() -> Vec<Did> {
    DONE.with_borrow_mut(|done| done.replace(Vec::new())).unwrap_or_default()
}

fn note(did: impl FnOnce() -> Did) {
    DONE.with_borrow_mut(|done| {
        if let Some(done) = done {
            done.push(did());
        }
    });
}

#[derive(Debug)]
pub(super) struct Recorder;

#[derive(Debug)]
struct Recorded {
    file: Box<dyn File>,
    path: PathBuf,
}

impl Recorder {
    fn watch(path: &Path, file: Box<dyn File>) -> Box<dyn File> {
        Box::new(Recorded { file, path: path.to_owned() })
    }
}

impl Recorded {
    fn name(&self) -> PathBuf {
        RENAMED.with_borrow(|renamed| renamed.get(&self.path).unwrap_or(&self.path).clone())
    }
}

impl Disk for Recorder {
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let file = OsDisk.create(path)?;
        RENAMED.with_borrow_mut(|renamed| renamed.remove(path));
        note(|| Did::Create(path.to_owned()));
        Ok(Self::watch(path, file))
    }
    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        Ok(Self::watch(path, OsDisk.open(path)?))
    }
    fn kind(&self, path: &Path) -> io::Result<Option<Kind>> {
        OsDisk.kind(path)
    }
    fn is_link(&self, path: &Path) -> io::Result<bool> {
        OsDisk.is_link(path)
    }
    fn names(&self, directory: &Path) -> io::Result<Vec<String>> {
        OsDisk.names(directory)
    }
    fn create_directories(&self, path: &Path) -> io::Result<()> {
        OsDisk.create_directories(path)
    }
    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        OsDisk.sync_directory(path)?;
        note(|| Did::SyncDirectory(path.to_owned()));
        Ok(())
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        OsDisk.remove(path)?;
        note(|| Did::Remove(path.to_owned()));
        Ok(())
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        OsDisk.rename(from, to)?;
        RENAMED.with_borrow_mut(|renamed| renamed.insert(from.to_owned(), to.to_owned()));
        note(|| Did::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }
    fn lock(&self, path: &Path) -> io::Result<Option<Lock>> {
        OsDisk.lock(path)
    }
    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        OsDisk.free_bytes(path)
    }
    fn sqlite_vfs(&self) -> Option<&str> {
        None
    }
}

impl File for Recorded {
    fn bytes(&self) -> io::Result<u64> {
        self.file.bytes()
    }
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.file.read_at(buffer, at)
    }
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_at(bytes, at)?;
        note(|| Did::Write(self.name(), at, bytes.to_owned()));
        Ok(())
    }
    fn reserve(&self, bytes: u64) -> io::Result<()> {
        self.file.reserve(bytes)?;
        note(|| Did::Resize(self.name(), bytes));
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        self.file.sync()?;
        note(|| Did::Sync(self.name()));
        Ok(())
    }
    fn forget_cached(&self) {
        self.file.forget_cached();
    }
}
