//! Where shard files lie, and how they are found, made durable and copied.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::Error;
use crate::types::{Namespace, Org, ShardId};

const EXTENSION: &str = ".db";

/// `<root>/<org>/<namespace>.db`.
pub(super) fn shard_path(root: &Path, shard: &ShardId) -> PathBuf {
    root.join(shard.org.as_str()).join(format!("{}{EXTENSION}", shard.namespace))
}

/// The write-ahead log beside a shard file.
pub(super) fn wal_path(db: &Path) -> PathBuf {
    let mut name = db.as_os_str().to_owned();
    name.push("-wal");
    PathBuf::from(name)
}

/// The orgs that have a shard file under `root`, sorted. What is not named like one is left alone.
pub(super) fn orgs(root: &Path) -> Result<Vec<Org>, Error> {
    let mut orgs = Vec::new();
    for name in names_in(root)? {
        let Ok(org) = Org::parse(&name) else { continue };
        if org.as_str() == name && root.join(&name).is_dir() && !shards_of(root, &org)?.is_empty() {
            orgs.push(org);
        }
    }
    orgs.sort();
    Ok(orgs)
}

/// The shards of `org` that have a file under `root`, sorted; none where the org has no directory.
pub(super) fn shards_of(root: &Path, org: &Org) -> Result<Vec<ShardId>, Error> {
    let directory = root.join(org.as_str());
    let mut shards: Vec<ShardId> = names_in(&directory)?
        .into_iter()
        .filter(|name| directory.join(name).is_file())
        .filter_map(|name| Namespace::parse(name.strip_suffix(EXTENSION)?).ok())
        .map(|namespace| ShardId { org: org.clone(), namespace })
        .collect();
    shards.sort();
    Ok(shards)
}

fn names_in(directory: &Path) -> Result<Vec<String>, Error> {
    let failed = |source| Error::io("listing", directory, source);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}

/// Makes a directory and those above it, where they are not there yet, and their entries durable: a file that was synced
/// is lost all the same where the way to it was not. Returns the directories that were synced for it.
pub fn create_directory(path: &Path) -> io::Result<Vec<PathBuf>> {
    let is_new = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
    let new = path.ancestors().take_while(is_new).count();
    fs::create_dir_all(path)?;
    // The nearest always: a process that died may have made this one and not come to the sync.
    let parents = path.ancestors().skip(1).take(new.max(1));
    let parents = parents.map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
    let mut synced = Vec::new();
    for parent in parents {
        match File::open(parent).and_then(|directory| directory.sync_all()) {
            // One that is not ours to read was there before, and is its owner's to keep.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && new == 0 => {}
            done => done.map(|()| synced.push(parent.to_owned()))?,
        }
    }
    Ok(synced)
}

/// Makes a directory's entries durable.
pub(super) fn sync_directory(directory: &Path) -> Result<(), Error> {
    File::open(directory)
        .and_then(|handle| handle.sync_all())
        .map_err(|source| Error::io("syncing directory", directory, source))
}

/// Makes the write-ahead log of `db` durable. SQLite keeps one for as long as the database is open.
///
/// Only the log may be opened like this: closing any descriptor of the database file would drop the locks that SQLite
/// holds on it for this process (`fcntl` locks belong to the process, not to the descriptor).
pub(super) fn sync_wal(db: &Path) -> Result<(), Error> {
    let path = wal_path(db);
    File::open(&path).and_then(|wal| wal.sync_all()).map_err(|source| Error::io("syncing", &path, source))
}

/// Sizes of a shard file and its log together, in bytes.
pub(super) fn bytes_on_disk(db: &Path) -> u64 {
    [db, &wal_path(db)].into_iter().filter_map(|path| fs::metadata(path).ok()).map(|meta| meta.len()).sum()
}

/// True where the file system of `path` has next to no room beyond `bytes`.
pub(super) fn is_out_of_room(path: &Path, bytes: usize) -> bool {
    /// What a small transaction and its index pages may take.
    const ROOM_BYTES_MIN: u64 = 64 * 1024;
    let wanted = u64::try_from(bytes).unwrap_or(u64::MAX / 4) * 2 + ROOM_BYTES_MIN;
    let directory = path.ancestors().skip(1).find_map(|directory| rustix::fs::statvfs(directory).ok());
    directory.is_some_and(|fs| fs.f_bavail * fs.f_frsize < wanted)
}

/// Copies the file `src` to `dst` and makes the copy durable: its bytes and its directory entry. Returns the bytes
/// copied.
///
/// For a shard file, checkpoint and close the shard first: the log beside it is not copied, and a program that reads
/// a database file behind SQLite's back drops the locks its own process holds on it.
pub fn copy_file(dst: impl AsRef<Path>, src: impl AsRef<Path>) -> io::Result<u64> {
    let dst = dst.as_ref();
    let bytes = fs::copy(src, dst)?;
    File::options().write(true).open(dst)?.sync_all()?;
    let parent = dst.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()?;
    Ok(bytes)
}

impl Error {
    pub(super) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { doing, path: path.to_owned(), source: Arc::new(source) }
    }

    pub(super) fn sqlite(doing: &'static str, path: &Path) -> impl FnOnce(rusqlite::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Sqlite { doing, path, source: Arc::new(source) }
    }
}
