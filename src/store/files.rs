//! Where shard files lie, and how they are found, made durable and copied.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::Error;
use crate::disk::{Disk, Kind};
use crate::types::{Namespace, Org, ShardId};

const EXTENSION: &str = ".db";

/// `<root>/<org>/<namespace>.db`.
pub(super) fn shard_path(root: &Path, shard: &ShardId) -> PathBuf {
    root.join(shard.org.as_str()).join(format!("{}{EXTENSION}", shard.namespace))
}

/// The write-ahead log beside a shard file.
pub(super) fn wal_path(db: &Path) -> PathBuf {
    beside(db, "-wal")
}

/// Whatever SQLite may keep beside it: logs, and the index of one.
fn companions(db: &Path) -> [PathBuf; 3] {
    [wal_path(db), beside(db, "-journal"), beside(db, "-shm")]
}

fn beside(db: &Path, suffix: &str) -> PathBuf {
    let mut name = db.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Whether the file is all there is: nothing beside it holds what it lacks.
pub(super) fn is_alone(disk: &dyn Disk, db: &Path) -> bool {
    companions(db).iter().all(|path| matches!(disk.kind(path), Ok(None | Some(Kind::File(0)))))
}

/// Removes a shard file that [is alone](is_alone) and that nobody has open: first what is beside it, durably, so that
/// there is never a log that the next file of this name would be taken to belong to.
pub(super) fn remove(disk: &dyn Disk, db: &Path) -> Result<(), Error> {
    let is_there = |path: &Path| !matches!(disk.kind(path), Ok(None));
    let take_away = |path: &Path| disk.remove(path).map_err(|source| Error::io("removing", path, source));
    let directory = db.parent().unwrap_or(db);
    for path in companions(db).iter().filter(|path| is_there(path)) {
        take_away(path)?;
    }
    // SQLite does not sync what it removes as it closes.
    sync_directory(disk, directory)?;
    take_away(db)?;
    sync_directory(disk, directory)
}

/// The orgs that have a shard file under `root`, sorted. What is not named like one is left alone.
pub(super) fn orgs(disk: &dyn Disk, root: &Path) -> Result<Vec<Org>, Error> {
    let mut orgs = Vec::new();
    for name in names_in(disk, root)? {
        let Ok(org) = Org::of_any(&name) else { continue };
        if org.as_str() == name && !shards_of(disk, root, &org)?.is_empty() {
            orgs.push(org);
        }
    }
    orgs.sort();
    Ok(orgs)
}

/// The shards of `org` that have a file under `root`, sorted; none where the org has no directory.
pub(super) fn shards_of(disk: &dyn Disk, root: &Path, org: &Org) -> Result<Vec<ShardId>, Error> {
    let directory = root.join(org.as_str());
    let mut shards: Vec<ShardId> = names_in(disk, &directory)?
        .into_iter()
        .filter(|name| refuse_links(disk, &directory.join(name)).is_ok())
        .filter(|name| matches!(disk.kind(&directory.join(name)), Ok(Some(Kind::File(_)))))
        .filter_map(|name| Namespace::parse(name.strip_suffix(EXTENSION)?).ok())
        .map(|namespace| ShardId { org: org.clone(), namespace })
        .collect();
    shards.sort();
    Ok(shards)
}

/// Refuses a shard's file that is a symbolic link, or lies in a directory that is one: whoever could make a link in the data
/// directory would have this program write wherever it may. The data directory itself may be one, of the operator's.
pub(super) fn refuse_links(disk: &dyn Disk, db: &Path) -> Result<(), Error> {
    for path in [db.parent().unwrap_or(db), db] {
        if disk.is_link(path).map_err(|source| Error::io("looking at", path, source))? {
            let why =
                "it is a symbolic link, and none is followed inside the data directory; mount a volume there instead";
            return Err(Error::UnusableFile { path: path.to_owned(), why: why.to_owned() });
        }
    }
    Ok(())
}

fn names_in(disk: &dyn Disk, directory: &Path) -> Result<Vec<String>, Error> {
    match disk.names(directory) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(Vec::new()),
        names => names.map_err(|source| Error::io("listing", directory, source)),
    }
}

/// Makes a directory's entries durable.
pub(super) fn sync_directory(disk: &dyn Disk, directory: &Path) -> Result<(), Error> {
    disk.sync_directory(directory).map_err(|source| Error::io("syncing directory", directory, source))
}

/// Makes the write-ahead log of `db` durable. SQLite keeps one for as long as the database is open.
///
/// Only the log may be opened like this: closing any descriptor of the database file would drop the locks that SQLite
/// holds on it for this process (`fcntl` locks belong to the process, not to the descriptor).
pub(super) fn sync_wal(disk: &dyn Disk, db: &Path) -> Result<(), Error> {
    let path = wal_path(db);
    disk.open(&path).and_then(|wal| wal.sync()).map_err(|source| Error::io("syncing", &path, source))
}

/// Sizes of a shard file and its log together, in bytes.
pub(super) fn bytes_on_disk(disk: &dyn Disk, db: &Path) -> u64 {
    let bytes = |path: &Path| match disk.kind(path) {
        Ok(Some(Kind::File(bytes))) => bytes,
        _ => 0,
    };
    bytes(db) + bytes(&wal_path(db))
}

/// True where the file system of `path` has next to no room beyond `bytes`.
pub(super) fn is_out_of_room(disk: &dyn Disk, path: &Path, bytes: usize) -> bool {
    /// What a small transaction and its index pages may take.
    const ROOM_BYTES_MIN: u64 = 64 * 1024;
    let wanted = u64::try_from(bytes).unwrap_or(u64::MAX / 4) * 2 + ROOM_BYTES_MIN;
    let free = path.ancestors().skip(1).find_map(|directory| disk.free_bytes(directory).ok());
    free.is_some_and(|free| free < wanted)
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
