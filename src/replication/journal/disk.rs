//! All that the journal does to its directory, in one place: so that a test can write down what was done and in which
//! order, and make from it every disk that a crash could have left.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Advice, FallocateFlags};

/// Opens a file to read and write, made if need be and emptied if it was there.
pub(super) fn create(path: &Path) -> io::Result<File> {
    let file = File::options().create(true).truncate(true).read(true).write(true).open(path)?;
    note(|| Did::Create(path.to_owned()));
    Ok(file)
}

/// Gives a file this size, its blocks reserved where the file system can.
pub(super) fn reserve(file: &File, path: &Path, bytes: u64) -> io::Result<()> {
    if let Err(error) = rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
        let error = io::Error::from(error);
        if error.kind() != io::ErrorKind::Unsupported {
            return Err(error);
        }
        file.set_len(bytes)?;
    }
    note(|| Did::Resize(path.to_owned(), bytes));
    Ok(())
}

/// Writes at a place.
pub(super) fn write_at(file: &File, path: &Path, bytes: &[u8], at: u64) -> io::Result<()> {
    file.write_all_at(bytes, at)?;
    note(|| Did::Write(path.to_owned(), at, bytes.to_owned()));
    Ok(())
}

/// Makes a file's bytes, and its size, durable.
pub(super) fn sync(file: &File, path: &Path) -> io::Result<()> {
    file.sync_data()?;
    note(|| Did::Sync(path.to_owned()));
    Ok(())
}

/// Makes the entries of a directory durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()?;
    note(|| Did::SyncDirectory(path.to_owned()));
    Ok(())
}

/// Takes a file away.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    note(|| Did::Remove(path.to_owned()));
    Ok(())
}

/// Gives a file another name.
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    note(|| Did::Rename(from.to_owned(), to.to_owned()));
    Ok(())
}

/// Makes durable what a process that died wrote to a file and perhaps never synced, and has it read from the disk
/// next: after a sync that failed, memory claims to hold what the disk does not.
pub(super) fn settle(file: &File, path: &Path) -> io::Result<()> {
    sync(file, path)?;
    // Advice: where it is not taken, what was synced above is read from memory.
    let _ = rustix::fs::fadvise(file, 0, None, Advice::DontNeed);
    Ok(())
}

/// Makes a directory, if need be, and its entry durable.
pub(super) fn create_directory(path: &Path) -> io::Result<()> {
    for synced in crate::store::create_directory(path)? {
        note(|| Did::SyncDirectory(synced));
    }
    Ok(())
}

/// What was done, in the order in which it was.
#[derive(Debug, Clone)]
#[cfg_attr(not(test), allow(dead_code, reason = "only a test reads what was written down"))]
pub(super) enum Did {
    Create(std::path::PathBuf),
    Resize(std::path::PathBuf, u64),
    Write(std::path::PathBuf, u64, Vec<u8>),
    Sync(std::path::PathBuf),
    SyncDirectory(std::path::PathBuf),
    Remove(std::path::PathBuf),
    Rename(std::path::PathBuf, std::path::PathBuf),
}

#[cfg(not(test))]
fn note(_: impl FnOnce() -> Did) {}

#[cfg(test)]
pub(super) use record::{note, recorded};

#[cfg(test)]
mod record {
    use std::cell::RefCell;

    use super::Did;

    thread_local! {
        static DONE: RefCell<Option<Vec<Did>>> = const { RefCell::new(None) };
    }

    pub(in super::super) fn note(did: impl FnOnce() -> Did) {
        DONE.with_borrow_mut(|done| {
            if let Some(done) = done {
                done.push(did());
            }
        });
    }

    /// Writes down from now on; returns what was done since the last time.
    pub(in super::super) fn recorded() -> Vec<Did> {
        DONE.with_borrow_mut(|done| done.replace(Vec::new())).unwrap_or_default()
    }
}
