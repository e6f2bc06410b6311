//! A copy of a shard, of one moment, to be read away.
//!
//! ```text
//!   overlay ─► file ─► one read transaction: SQLite's backup API ─► a file of its own, without a name ─► its reader
//! ```
//!
//! The copy is made on this node's disk first, at the disk's pace, so that a slow reader keeps nothing of the shard: no
//! transaction, no log that grows. Its name is taken away before it is read, so that whatever becomes of the reader the
//! room comes back; a name left by a process that died is taken away at the next start.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};

use super::error::Error;
use super::files;
use super::replicator::Rejection;
use super::schema;
use super::shard::Inner;
use crate::disk::{self, Disk, File};

/// A copy is not begun where it would leave less than this free on the disk, in bytes: the shards need room to grow.
pub const COPY_ROOM_KEPT_BYTES: u64 = 64 * 1024 * 1024;
/// How many pages are copied before the copier looks whether anybody still wants it.
const PAGES_AT_ONCE: i32 = 256;
/// The directory for copies under way, inside the store's, which names no org.
const DIRECTORY: &str = ".outrigger";
const PREFIX: &str = "copy-";

/// Numbers the copies of this process.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// A shard as it was at one moment: an SQLite database that needs no log, to be read. Dropping it gives its room back.
#[derive(Debug)]
pub struct ShardCopy {
    file: Box<dyn File>,
    bytes: u64,
}

impl ShardCopy {
    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Fills `buffer` from `at` on. Blocking.
    pub fn read_at(&self, buffer: &mut [u8], at: u64) -> Result<(), Error> {
        self.file.read_at(buffer, at).map_err(|source| Error::io("reading a copy in", Path::new(DIRECTORY), source))
    }
}

/// Takes away what copies of a former process left.
pub(super) fn clear(disk: &dyn Disk, root: &Path) {
    let directory = root.join(DIRECTORY);
    if disk.is_link(&directory).unwrap_or(true) {
        return;
    }
    for name in disk.names(&directory).unwrap_or_default() {
        if name.starts_with(PREFIX)
            && let Err(error) = disk.remove(&directory.join(&name))
        {
            tracing::warn!(%error, name, "an unfinished copy of a shard stays on the disk");
        }
    }
}

/// Copies the file of `shard` as it is now. Ends with [`Error::Closed`] once `is_wanted` says no.
pub(super) fn copy(shard: &Inner, root: &Path, is_wanted: &dyn Fn() -> bool) -> Result<ShardCopy, Error> {
    let disk = &*shard.disk;
    check_room(disk, root, &shard.path)?;
    let directory = root.join(DIRECTORY);
    disk::create_directory(disk, &directory).map_err(|source| Error::io("creating", &directory, source))?;
    let path = directory.join(format!("{PREFIX}{}.db", NUMBER.fetch_add(1, Ordering::Relaxed)));
    let made = Named { disk, path };
    // A connection of its own: those that are lent belong to readers who take microseconds.
    let from = schema::open_reader(disk, &shard.path)?;
    fill(&from, &made, is_wanted).map_err(|error| match error {
        Error::Sqlite { ref source, .. } if is_full(source) => Rejection::DiskFull(error.to_string()).into(),
        error => error,
    })?;
    let file = disk.open(&made.path).map_err(|source| Error::io("opening", &made.path, source))?;
    let bytes = file.bytes().map_err(|source| Error::io("looking at", &made.path, source))?;
    Ok(ShardCopy { file, bytes })
}

fn check_room(disk: &dyn Disk, root: &Path, path: &Path) -> Result<(), Error> {
    let bytes = files::bytes_on_disk(disk, path);
    let free = disk.free_bytes(root).map_err(|source| Error::io("looking for room in", root, source))?;
    if free >= bytes.saturating_add(COPY_ROOM_KEPT_BYTES) {
        return Ok(());
    }
    let why = format!(
        "a copy of {} takes {bytes} bytes beside it for a while, and {COPY_ROOM_KEPT_BYTES} are to stay free; there are {free}",
        path.display()
    );
    Err(Rejection::DiskFull(why).into())
}

fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
}

/// Copies all pages, in one read transaction, and makes the copy do without a log.
fn fill(from: &Connection, to: &Named<'_>, is_wanted: &dyn Fn() -> bool) -> Result<(), Error> {
    let failed = || Error::sqlite("copying a shard to", &to.path);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || {
        let conn = match to.disk.sqlite_vfs() {
            Some(vfs) => Connection::open_with_flags_and_vfs(&to.path, flags, vfs)?,
            None => Connection::open_with_flags(&to.path, flags)?,
        };
        // Nobody needs half a copy after a crash.
        conn.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -1024;")?;
        Ok(conn)
    };
    let mut conn = open().map_err(failed())?;
    let snapshot = from.unchecked_transaction().map_err(failed())?;
    let backup = Backup::new(&snapshot, &mut conn).map_err(failed())?;
    loop {
        match backup.step(PAGES_AT_ONCE).map_err(failed())? {
            StepResult::Done => break,
            _ if !is_wanted() => return Err(Error::Closed),
            StepResult::More => {}
            _ => return Err(Rejection::Busy(format!("{} is locked by another program", to.path.display())).into()),
        }
    }
    drop(backup);
    // That was true of this node's copy, among its peers; who restores it compares it with theirs.
    schema::unmark_whole(&conn).map_err(failed())?;
    let mode: String = conn.query_row("PRAGMA journal_mode = DELETE", [], |row| row.get(0)).map_err(failed())?;
    if mode != "delete" {
        let why = format!("its journal mode stays {mode:?}, want \"delete\"");
        return Err(Error::UnusableFile { path: to.path.clone(), why });
    }
    conn.close().map_err(|(_, error)| failed()(error))
}

/// A file whose name goes with this.
struct Named<'a> {
    disk: &'a dyn Disk,
    path: PathBuf,
}

impl Drop for Named<'_> {
    fn drop(&mut self) {
        // Where it was never made there is nothing to take away.
        let _ = self.disk.remove(&self.path);
    }
}
