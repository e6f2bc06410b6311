//! All that the program does to files, but for what SQLite does itself: so that a test can write down what was done, or
//! take the disk's place and do what disks do - forget what was never synced, tear a write, fill up, fail, rot.
//!
//! ```text
//!   journal, store, node ──► Disk ──► OsDisk: the operating system's
//!                                └──► a test's own; SQLite goes to the same through its VFS
//! ```
//!
//! A write is durable after the [`File::sync`] behind it has returned, a name after [`Disk::sync_directory`].

use std::any::Any;
use std::fmt::Debug;
use std::fs::{self, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Advice, FallocateFlags};

/// What holds a lock for as long as it is kept.
pub type Lock = Box<dyn Any + Send + Sync>;

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file of this many bytes.
    File(u64),
    /// A directory.
    Directory,
    /// Something else: a socket, a device.
    Other,
}

/// Files and directories by their paths.
pub trait Disk: Debug + Send + Sync + 'static {
    /// Opens a file to read and write, made if need be and emptied if it was there.
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>>;

    /// Opens a file that is there, to read and write.
    fn open(&self, path: &Path) -> io::Result<Box<dyn File>>;

    /// What is at `path`; none where nothing is. Follows links.
    fn kind(&self, path: &Path) -> io::Result<Option<Kind>>;

    /// The names in a directory, in no order.
    fn names(&self, directory: &Path) -> io::Result<Vec<String>>;

    /// Makes a directory and those above it. Says nothing of their durability; see [`create_directory`].
    fn create_directories(&self, path: &Path) -> io::Result<()>;

    /// Makes the entries of a directory durable.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;

    /// Takes a file away.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Gives a file another name, whose former holder is gone.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Locks a file, made if need be, for this process alone; none where another holds it. A process that dies lets go.
    fn lock(&self, path: &Path) -> io::Result<Option<Lock>>;

    /// The bytes that a file may still take where `path`, which is there, lies.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;

    /// The name under which SQLite knows this disk; none for its own way to the operating system.
    fn sqlite_vfs(&self) -> Option<&str>;
}

/// An open file.
pub trait File: Debug + Send + Sync {
    /// Its size.
    fn bytes(&self) -> io::Result<u64>;

    /// Fills `buffer` from `at` on; [`io::ErrorKind::UnexpectedEof`] where the file ends before.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()>;

    /// Writes all of `bytes` from `at` on.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;

    /// Makes the file at least this long, zeros at its end, with its blocks reserved where that can be done.
    fn reserve(&self, bytes: u64) -> io::Result<()>;

    /// Makes its bytes and its size durable.
    fn sync(&self) -> io::Result<()>;

    /// Has it read from the disk next, not from memory: after a sync that failed, memory claims to hold what the disk
    /// does not. Advice, to which a disk may be deaf.
    fn forget_cached(&self);
}

/// Directories are made for their owner, whom their group may read: whoever else is on the machine has to ask at the socket.
const DIRECTORY_MODE: u32 = 0o750;

/// The operating system's files.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsDisk;

impl OsDisk {
    /// To be shared.
    #[must_use]
    pub fn shared() -> Arc<dyn Disk> {
        Arc::new(Self)
    }
}

impl Disk for OsDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let file = fs::File::options().create(true).truncate(true).read(true).write(true).open(path)?;
        Ok(Box::new(OsFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        Ok(Box::new(OsFile(fs::File::options().read(true).write(true).open(path)?)))
    }

    fn kind(&self, path: &Path) -> io::Result<Option<Kind>> {
        match fs::metadata(path) {
            Ok(found) if found.is_file() => Ok(Some(Kind::File(found.len()))),
            Ok(found) if found.is_dir() => Ok(Some(Kind::Directory)),
            Ok(_) => Ok(Some(Kind::Other)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(directory)? {
            // What is not named in UTF-8 is not ours.
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn create_directories(&self, path: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        fs::File::open(path)?.sync_all()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Lock>> {
        let file = fs::File::options().create(true).truncate(false).write(true).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let found = rustix::fs::statvfs(path)?;
        Ok(found.f_bavail * found.f_frsize)
    }

    fn sqlite_vfs(&self) -> Option<&str> {
        None
    }
}

#[derive(Debug)]
struct OsFile(fs::File);

impl File for OsFile {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, at)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, at)
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.0, FallocateFlags::empty(), 0, bytes).map_err(io::Error::from) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => self.0.set_len(bytes.max(self.bytes()?)),
            done => done,
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn forget_cached(&self) {
        // Advice: where it is not taken, what was synced before is read from memory.
        let _ = rustix::fs::fadvise(&self.0, 0, None, Advice::DontNeed);
    }
}

/// All bytes of a file.
pub fn read(file: &dyn File) -> io::Result<Vec<u8>> {
    let bytes = usize::try_from(file.bytes()?).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut content = vec![0; bytes];
    file.read_at(&mut content, 0)?;
    Ok(content)
}

/// Makes a directory and those above it, where they are not there yet, and their entries durable: a file that was synced
/// is lost all the same where the way to it was not.
pub fn create_directory(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    let is_new = |path: &&Path| !path.as_os_str().is_empty() && matches!(disk.kind(path), Ok(None));
    let new = path.ancestors().take_while(is_new).count();
    disk.create_directories(path)?;
    // The nearest always: a process that died may have made this one and not come to the sync.
    for parent in path.ancestors().skip(1).take(new.max(1)) {
        let parent = if parent.as_os_str().is_empty() { PathBuf::from(".") } else { parent.to_owned() };
        match disk.sync_directory(&parent) {
            // One that is not ours to read was there before, and is its owner's to keep.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && new == 0 => {}
            done => done?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// Others could read the shard files past all rules of access, as the umask lets them.
    #[test]
    fn what_is_made_is_not_open_to_others() {
        let dir = tempfile::tempdir().unwrap();
        OsDisk.create_directories(&dir.path().join("data/org")).unwrap();
        for made in ["data", "data/org"] {
            let mode = fs::metadata(dir.path().join(made)).unwrap().permissions().mode();
            assert_eq!(mode & 0o007, 0, "{made}: {mode:o}");
        }
    }
}
