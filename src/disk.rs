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
use std::os::unix::fs::{DirBuilderExt as _, FileExt, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Advice, FallocateFlags, OFlags};
use rustix::io::Errno;

/// Of directories that are made: what is in them is their owner's alone.
const PRIVATE_DIRECTORY: u32 = 0o700;

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

    /// What is at `path`; none where nothing is. Follows links, see [`Disk::is_link`].
    fn kind(&self, path: &Path) -> io::Result<Option<Kind>>;

    /// Whether `path` itself is a symbolic link, be there something at its end or not. Files are not opened through one.
    fn is_link(&self, path: &Path) -> io::Result<bool>;

    /// The names in a directory, in no order.
    fn names(&self, directory: &Path) -> io::Result<Vec<String>>;

    /// Makes a directory, into which its owner alone may look, and those above it, as the process makes any. Says
    /// nothing of their durability; see [`create_directory`].
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
        let mut options = fs::File::options();
        options.create(true).truncate(true).read(true).write(true);
        Ok(Box::new(OsFile(open_itself(&mut options, path)?)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        Ok(Box::new(OsFile(open_itself(fs::File::options().read(true).write(true), path)?)))
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

    fn is_link(&self, path: &Path) -> io::Result<bool> {
        match fs::symlink_metadata(path) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
            found => Ok(found?.is_symlink()),
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
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::create_dir_all(parent)?;
        }
        match fs::DirBuilder::new().mode(PRIVATE_DIRECTORY).create(path) {
            // One that was there keeps its mode: it may be a volume's, which is not ours to change.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            done => done,
        }
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
        let file = open_itself(fs::File::options().create(true).truncate(false).write(true), path)?;
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

/// Opens what is at `path`, and nothing that it leads to.
pub fn open_itself(options: &mut fs::OpenOptions, path: &Path) -> io::Result<fs::File> {
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    options.custom_flags(flags).open(path).map_err(|error| match error.raw_os_error() {
        Some(code) if code == Errno::LOOP.raw_os_error() => {
            io::Error::other("it is a symbolic link, and none is followed inside the data directory")
        }
        _ => error,
    })
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
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn directories_are_made_for_their_owner_alone_and_left_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let (parent, made) = (dir.path().join("lib"), dir.path().join("lib/data"));
        create_directory(&OsDisk, &made).unwrap();
        assert_eq!(mode(&made), 0o700);
        assert_ne!(mode(&parent), 0o700, "others may have to pass through it");
        fs::set_permissions(&made, fs::Permissions::from_mode(0o750)).unwrap();
        create_directory(&OsDisk, &made).unwrap();
        assert_eq!(mode(&made), 0o750);
        symlink(&made, dir.path().join("link")).unwrap();
        create_directory(&OsDisk, &dir.path().join("link")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(create_directory(&OsDisk, &dir.path().join("file")).is_err());
    }

    #[test]
    fn no_file_is_opened_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (there, link) = (dir.path().join("there"), dir.path().join("link"));
        fs::write(&there, "kept").unwrap();
        symlink(&there, &link).unwrap();
        assert!(OsDisk.is_link(&link).unwrap() && !OsDisk.is_link(&there).unwrap());
        assert!(!OsDisk.is_link(&dir.path().join("nothing")).unwrap());
        let refused = [OsDisk.open(&link).map(drop), OsDisk.create(&link).map(drop), OsDisk.lock(&link).map(drop)];
        for refused in refused {
            assert!(refused.unwrap_err().to_string().contains("symbolic link"));
        }
        assert_eq!(fs::read(&there).unwrap(), b"kept");
        assert!(OsDisk.open(&there).is_ok());
    }
}
