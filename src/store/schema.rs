//! How a shard file is opened and what it holds beside the rows.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension};

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::error::Error;
use super::{files, queries};
use crate::disk::Disk;
use crate::messagepack;
use crate::types::Ballot;

/// How long SQLite waits for a lock that another program holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// The format that this version writes; it refuses a higher one.
const FORMAT: i64 = 1;
/// A log that is used anew is cut to this size, in bytes.
const WAL_BYTES_KEPT: i64 = 4 * 1024 * 1024;
/// Prepared statements that a connection keeps.
const STATEMENTS_MAX: usize = 32;

const TABLES: [(&str, &str); 4] = [
    ("kv", "CREATE TABLE kv(key TEXT PRIMARY KEY, value BLOB NOT NULL, upd INTEGER NOT NULL)"),
    ("tombstone", "CREATE TABLE tombstone(key TEXT PRIMARY KEY, upd INTEGER NOT NULL)"),
    ("outrigger_meta", "CREATE TABLE outrigger_meta(key TEXT PRIMARY KEY, value NOT NULL)"),
    ("outrigger_ballot", "CREATE TABLE outrigger_ballot(key TEXT PRIMARY KEY, ballot INTEGER NOT NULL)"),
];

/// In the meta table of a file that holds all of its shard, as far as its node was told of it.
const WHOLE: &str = "whole";

/// The facts that a shard file keeps about itself.
#[derive(Debug)]
pub(super) struct Meta {
    /// Everything up to here that is absent was deleted and has been forgotten.
    pub(super) gc_floor: Ballot,
    /// The number of the last batch of frames applied: tells a reader which batches its snapshot holds.
    pub(super) batch: u64,
    /// The digest of the rows; none where it has to be built from them.
    pub(super) digest: Option<Digest>,
    /// It was found in the file.
    pub(super) is_digest_saved: bool,
}

/// The digest as the meta table keeps it. The first transaction that changes rows takes it out: so one that is there is of
/// the file's rows, whatever a crash left of the file.
#[derive(Debug, Serialize, Deserialize)]
struct SavedDigest<D> {
    /// Of [`Digest`]'s numbers: another version may count otherwise.
    format: u8,
    digest: D,
}

/// Another than this is passed over.
const DIGEST_FORMAT: u8 = 2;

/// Opens the one connection that writes, creating file, directories and tables as needed. Tables that are there, be
/// they another program's, stay as they are.
pub(super) fn open_writer(disk: &dyn Disk, root: &Path, path: &Path) -> Result<(Connection, Meta), Error> {
    let fresh = matches!(disk.kind(path), Ok(None));
    let directory = path.parent().unwrap_or(root);
    if fresh {
        disk.create_directories(directory).map_err(|source| Error::io("creating", directory, source))?;
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut conn = connect(disk, path, flags)?;
    create_tables(&mut conn).map_err(Error::sqlite("creating the tables of", path))?;
    check_format(&conn, path)?;
    let meta = read_meta(&conn, fresh).map_err(Error::sqlite("reading", path))?;
    if fresh {
        files::sync_directory(disk, directory)?;
        files::sync_directory(disk, root)?;
    }
    conn.pragma_update(None, "journal_size_limit", WAL_BYTES_KEPT).map_err(Error::sqlite("opening", path))?;
    Ok((conn, meta))
}

/// Opens a connection that only reads. It never checkpoints, so it never waits for the writer nor makes it wait.
pub(super) fn open_reader(disk: &dyn Disk, path: &Path) -> Result<Connection, Error> {
    let conn = connect(disk, path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    conn.pragma_update(None, "query_only", true).map_err(Error::sqlite("opening", path))?;
    queries::add_functions(&conn).map_err(Error::sqlite("opening", path))?;
    Ok(conn)
}

fn read_meta(conn: &Connection, fresh: bool) -> rusqlite::Result<Meta> {
    let gc_floor = Ballot(meta(conn, "gc_floor")?);
    let batch = u64::try_from(meta(conn, "batch")?).unwrap_or(0);
    let saved = saved_digest(conn, gc_floor)?;
    let is_digest_saved = saved.is_some();
    let digest = saved.or_else(|| fresh.then(|| Digest::new(gc_floor)));
    Ok(Meta { gc_floor, batch, digest, is_digest_saved })
}

fn saved_digest(conn: &Connection, gc_floor: Ballot) -> rusqlite::Result<Option<Digest>> {
    let mut get = conn.prepare("SELECT value FROM outrigger_meta WHERE key = 'digest' AND typeof(value) = 'blob'")?;
    let saved: Option<Vec<u8>> = get.query_row([], |row| row.get(0)).optional()?;
    let saved = saved.and_then(|bytes| messagepack::decode::<SavedDigest<Digest>>(&bytes).ok());
    let saved = saved.filter(|saved| saved.format == DIGEST_FORMAT);
    Ok(saved.map(|saved| saved.digest).filter(|digest| digest.summary().floor == gc_floor))
}

/// Takes the digest out, as the rows change.
pub(super) fn drop_digest(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute("DELETE FROM outrigger_meta WHERE key = 'digest'", []).map(drop)
}

/// Keeps the digest of the rows as they are.
pub(super) fn save_digest(conn: &Connection, digest: &Digest) -> rusqlite::Result<()> {
    let saved = SavedDigest { format: DIGEST_FORMAT, digest };
    let bytes =
        rmp_serde::to_vec_named(&saved).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    conn.execute("INSERT OR REPLACE INTO outrigger_meta(key, value) VALUES('digest', ?1)", [bytes]).map(drop)
}

/// Whether the file says that it holds all of its shard.
pub(super) fn is_whole(conn: &Connection) -> rusqlite::Result<bool> {
    Ok(meta(conn, WHOLE)? != 0)
}

/// Has it say so.
pub(super) fn mark_whole(conn: &Connection) -> rusqlite::Result<()> {
    set_meta(conn, WHOLE, 1)
}

/// Has it say so no more.
pub(super) fn unmark_whole(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute("DELETE FROM outrigger_meta WHERE key = ?1", [WHOLE]).map(drop)
}

fn connect(disk: &dyn Disk, path: &Path, flags: OpenFlags) -> Result<Connection, Error> {
    files::refuse_links(disk, path)?;
    let open = || {
        let conn = match disk.sqlite_vfs() {
            Some(vfs) => Connection::open_with_flags_and_vfs(path, flags, vfs)?,
            None => Connection::open_with_flags(path, flags)?,
        };
        conn.busy_timeout(BUSY_TIMEOUT)?;
        conn.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
        let mode: String = conn.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
        // SQLite swallows the errors of checkpoints that it starts by itself; a failed fsync must not pass unseen.
        conn.execute_batch(
            "PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON; PRAGMA wal_autocheckpoint = 0; \
             PRAGMA cache_size = -1024;",
        )?;
        Ok((conn, mode))
    };
    let (conn, mode) = open().map_err(Error::sqlite("opening", path))?;
    if mode != "wal" {
        let why = format!("its journal mode stays {mode:?}, want \"wal\"; is it on a network file system?");
        return Err(Error::UnusableFile { path: path.to_owned(), why });
    }
    Ok(conn)
}

fn create_tables(conn: &mut Connection) -> rusqlite::Result<()> {
    if missing_tables(conn)?.is_empty() {
        return Ok(());
    }
    let tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    for create in missing_tables(&tx)? {
        tx.execute_batch(create)?;
    }
    tx.execute("INSERT INTO outrigger_meta(key, value) VALUES('format', ?1) ON CONFLICT DO NOTHING", [FORMAT])?;
    tx.execute("INSERT INTO outrigger_meta(key, value) VALUES('epoch', 0) ON CONFLICT DO NOTHING", [])?;
    tx.commit()
}

fn missing_tables(conn: &Connection) -> rusqlite::Result<Vec<&'static str>> {
    let mut find = conn.prepare("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1 COLLATE NOCASE")?;
    let mut missing = Vec::new();
    for (name, create) in TABLES {
        if !find.exists([name])? {
            missing.push(create);
        }
    }
    Ok(missing)
}

fn check_format(conn: &Connection, path: &Path) -> Result<(), Error> {
    let format = meta(conn, "format").map_err(Error::sqlite("reading the format of", path))?;
    if format > FORMAT {
        let why = format!("format {format} is newer than this version's {FORMAT}; use the version that wrote it");
        return Err(Error::UnusableFile { path: path.to_owned(), why });
    }
    Ok(())
}

/// A number of the meta table; 0 where it was never set.
pub(super) fn meta(conn: &Connection, key: &str) -> rusqlite::Result<i64> {
    let mut get = conn.prepare_cached("SELECT value FROM outrigger_meta WHERE key = ?1")?;
    Ok(get.query_row([key], |row| row.get(0)).optional()?.unwrap_or(0))
}

/// Sets a number of the meta table.
pub(super) fn set_meta(conn: &Connection, key: &str, value: i64) -> rusqlite::Result<()> {
    conn.prepare_cached("INSERT OR REPLACE INTO outrigger_meta(key, value) VALUES(?1, ?2)")?
        .execute((key, value))
        .map(drop)
}
