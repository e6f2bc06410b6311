//! The one connection that writes a shard file: frames in, one transaction per batch; all checkpoints.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, ErrorCode, TransactionBehavior, ffi};

use super::compare::Tracked;
use super::digest::{Digest, Sum, Summary, bucket_of};
use super::error::Error;
use super::overlay::{Batch, Excerpt, Pending};
use super::replicator::Op;
use super::rows::supersedes;
use super::schema::Meta;
use super::tombstones::{self, Dropped};
use super::{files, queries, schema};
use crate::disk::Disk;
use crate::types::{Ballot, Key};

/// After about this many bytes of log it is copied back into the file. Its length would not tell: it is used anew from
/// its beginning without shrinking.
const WAL_BYTES_SOFT_MAX: u64 = 16 * 1024 * 1024;
/// What a frame or a commit adds to the log beside its value, roughly: a page of the table and one of its index.
const WAL_BYTES_PER_FRAME: u64 = 8 * 1024;

const UPSERT: &str = "INSERT INTO kv(key, value, upd) VALUES(?1, ?2, ?3) \
    ON CONFLICT(key) DO UPDATE SET value = excluded.value, upd = excluded.upd";

/// What a failed write means for its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// No room: the frames wait until there is some.
    Full,
    /// Something that passes, such as another program's lock: try again.
    Passing,
    /// The handle can no longer be trusted.
    Fatal,
}

impl Fault {
    pub(super) fn of(disk: &dyn Disk, error: &Error) -> Self {
        match error {
            Error::Sqlite { source, path, .. } => Self::of_sqlite(disk, source, path),
            Error::Io { source, path, .. } => match source.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::Full,
                _ if source.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) => Self::Passing,
                _ if files::is_out_of_room(disk, path, 0) => Self::Full,
                _ => Self::Fatal,
            },
            Error::Rejected(_) => Self::Passing,
            _ => Self::Fatal,
        }
    }

    fn of_sqlite(disk: &dyn Disk, error: &rusqlite::Error, path: &Path) -> Self {
        let Some(error) = error.sqlite_error() else { return Self::Fatal };
        match (error.code, error.extended_code) {
            (ErrorCode::DiskFull, _) => Self::Full,
            (ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::OutOfMemory, _) => Self::Passing,
            // A failed sync leaves pages marked clean that are not on the disk, whatever its reason.
            (_, ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC) => Self::Fatal,
            (ErrorCode::SystemIoFailure | ErrorCode::CannotOpen, _) if files::is_out_of_room(disk, path, 0) => {
                Self::Full
            }
            (ErrorCode::CannotOpen, _) => Self::Passing,
            _ => Self::Fatal,
        }
    }
}

#[derive(Debug)]
pub(super) struct Writer {
    conn: Connection,
    disk: Arc<dyn Disk>,
    path: PathBuf,
    syncs_commits: bool,
    /// Something was written since the last [`Writer::sync`].
    is_unsynced: bool,
    /// The entries of file and log are durable.
    is_entered: bool,
    /// Log written since the last checkpoint, in bytes, roughly.
    logged: u64,
    gc_floor: Ballot,
    digest: Tracked,
    /// The file holds it.
    is_digest_saved: bool,
    /// The file may hold one, which the next change of its rows takes out.
    may_hold_digest: bool,
}

impl Writer {
    pub(super) fn new(conn: Connection, meta: Meta, disk: Arc<dyn Disk>, path: PathBuf) -> Self {
        Self {
            conn,
            disk,
            path,
            syncs_commits: false,
            // What an earlier process left in the log was perhaps never synced.
            is_unsynced: true,
            is_entered: false,
            logged: 0,
            gc_floor: meta.gc_floor,
            is_digest_saved: meta.is_digest_saved,
            may_hold_digest: true,
            digest: meta.digest.map_or(Tracked::Unknown, Tracked::Known),
        }
    }

    /// Applies a batch in one transaction; durable on return if `durable`.
    pub(super) fn apply(&mut self, batch: &Batch, durable: bool) -> Result<(), Error> {
        let applied = self.try_apply(batch, durable).map_err(Error::sqlite("writing", &self.path));
        match applied {
            Ok(changes) => self.digest.change(&changes),
            Err(error) => {
                if Fault::of(&*self.disk, &error) == Fault::Fatal {
                    // Whether it is in the file is not known.
                    self.digest = Tracked::Unknown;
                }
                return Err(error);
            }
        }
        (self.is_digest_saved, self.may_hold_digest) = (false, false);
        if durable {
            self.enter()?;
        }
        let values = batch.frames.iter().filter_map(|(_, pending)| pending.op.value());
        let values: usize = values.map(|value| value.as_bytes().len()).sum();
        let commits = u64::try_from(batch.frames.len() + 1).unwrap_or(u64::MAX / WAL_BYTES_PER_FRAME);
        self.logged += commits * WAL_BYTES_PER_FRAME + u64::try_from(values).unwrap_or(0);
        if self.logged > WAL_BYTES_SOFT_MAX {
            self.checkpoint_passive()?;
        }
        Ok(())
    }

    fn try_apply(&mut self, batch: &Batch, durable: bool) -> rusqlite::Result<Vec<(u16, Sum)>> {
        if self.syncs_commits != durable {
            self.conn.pragma_update(None, "synchronous", if durable { "FULL" } else { "NORMAL" })?;
            self.syncs_commits = durable;
        }
        self.is_unsynced = true;
        let tx = self.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut changes = Vec::with_capacity(batch.frames.len());
        for (key, pending) in &batch.frames {
            changes.push((bucket_of(key.as_str()), apply_one(&tx, key, pending, self.gc_floor)?));
        }
        if self.may_hold_digest {
            schema::drop_digest(&tx)?;
        }
        schema::set_meta(&tx, "batch", i64::try_from(batch.number).unwrap_or(i64::MAX))?;
        tx.commit().map(|()| changes)
    }

    pub(super) fn gc_floor(&self) -> Ballot {
        self.gc_floor
    }

    /// From now on absence means `floor`. In the same transaction the live rows of `forgotten` go that are not newer than
    /// that, and the first of the deletions that need not be remembered any more; [`Writer::drop_tombstones`] goes on after
    /// the returned key. Durable on return.
    pub(super) fn raise_floor(&mut self, floor: Ballot, forgotten: &[Key]) -> Result<Dropped, Error> {
        self.is_unsynced = true;
        let raised = self.try_raise_floor(floor, forgotten).map_err(Error::sqlite("writing", &self.path));
        let (gone, dropped) = raised.inspect_err(|error| {
            if Fault::of(&*self.disk, error) == Fault::Fatal {
                self.digest = Tracked::Unknown;
            }
        })?;
        self.gc_floor = floor;
        self.digest.raise(floor, &gone);
        (self.is_digest_saved, self.may_hold_digest) = (false, false);
        self.sync()?;
        Ok(dropped)
    }

    fn try_raise_floor(&mut self, floor: Ballot, forgotten: &[Key]) -> rusqlite::Result<(Digest, Dropped)> {
        let (before, may_hold_digest) = (self.gc_floor, self.may_hold_digest);
        let tx = self.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut gone = Digest::new(before);
        for key in forgotten {
            let stored = queries::point(&tx, key)?.filter(|row| row.op != Op::Del && row.ballot <= floor);
            if let Some(row) = stored {
                gone.add(bucket_of(key.as_str()), Sum::of(key.as_str(), row.upd, true));
                tx.prepare_cached("DELETE FROM kv WHERE key = ?1")?.execute([key.as_str()])?;
                tx.prepare_cached("DELETE FROM outrigger_ballot WHERE key = ?1")?.execute([key.as_str()])?;
            }
        }
        tombstones::sum(&tx, before, floor, &mut gone)?;
        if may_hold_digest {
            schema::drop_digest(&tx)?;
        }
        schema::set_meta(&tx, "gc_floor", floor.0)?;
        let dropped = tombstones::drop_some(&tx, floor, "")?;
        tx.commit().map(|()| (gone, dropped))
    }

    /// Drops some more of the deletions that need not be remembered, after this key.
    pub(super) fn drop_tombstones(&mut self, after: &str) -> Result<Dropped, Error> {
        self.is_unsynced = true;
        let floor = self.gc_floor;
        let mut run = || {
            let tx = self.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let dropped = tombstones::drop_some(&tx, floor, after)?;
            tx.commit().map(|()| dropped)
        };
        let dropped = run().map_err(Error::sqlite("writing", &self.path))?;
        self.logged += dropped.rows * WAL_BYTES_PER_FRAME;
        if self.logged > WAL_BYTES_SOFT_MAX {
            self.checkpoint_passive()?;
        }
        Ok(dropped)
    }

    /// The digest of the file's rows, where it is known, in one sum.
    pub(super) fn summary(&self) -> Option<Summary> {
        self.digest.known().map(Digest::summary)
    }

    pub(super) fn digest(&mut self) -> &mut Tracked {
        &mut self.digest
    }

    /// The digest of the rows as reads see them: the file's, with `excerpt` of the overlay above it. None while the
    /// file's is not known.
    pub(super) fn digest_above(&self, excerpt: &Excerpt) -> Result<Option<Digest>, Error> {
        let gc_floor = self.gc_floor;
        let Some(mut digest) = self.digest.known().cloned() else { return Ok(None) };
        for (key, pending) in &excerpt.frames {
            let stored = queries::point(&self.conn, key).map_err(Error::sqlite("reading", &self.path))?;
            if supersedes(pending.ballot, pending.upd, stored.as_ref(), gc_floor) {
                let change = pending.sum(gc_floor, key).minus(Sum::of_stored(gc_floor, key.as_str(), stored.as_ref()));
                digest.add(bucket_of(key.as_str()), change);
            }
        }
        Ok(Some(digest))
    }

    /// Keeps the digest in the file, where the next process finds it, unless rows change before.
    fn save_digest(&mut self) -> Result<(), Error> {
        let Some(digest) = self.digest.known().filter(|_| !self.is_digest_saved) else { return Ok(()) };
        let saved = schema::save_digest(&self.conn, digest);
        self.may_hold_digest = true;
        match saved.map_err(Error::sqlite("writing", &self.path)) {
            Err(error) if Fault::of(&*self.disk, &error) == Fault::Fatal => Err(error),
            // No room: it is built anew where it is needed.
            Err(_) => Ok(()),
            Ok(()) => {
                self.is_digest_saved = true;
                Ok(())
            }
        }
    }

    /// Whether the file is marked as holding all of its shard.
    pub(super) fn is_whole(&self) -> Result<bool, Error> {
        schema::is_whole(&self.conn).map_err(Error::sqlite("reading", &self.path))
    }

    /// Marks it as such. Durable on return.
    pub(super) fn mark_whole(&mut self) -> Result<(), Error> {
        if self.is_whole()? {
            return Ok(());
        }
        self.is_unsynced = true;
        schema::mark_whole(&self.conn).map_err(Error::sqlite("writing", &self.path))?;
        self.sync()
    }

    /// Copies what it can of the log into the file without waiting for anyone. A full disk is no failure here: the
    /// log keeps what could not be copied.
    fn checkpoint_passive(&mut self) -> Result<(), Error> {
        self.logged = 0;
        let done = self.conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        match done.map_err(Error::sqlite("checkpointing", &self.path)) {
            Err(error) if Fault::of(&*self.disk, &error) == Fault::Fatal => Err(error),
            _ => Ok(()),
        }
    }

    /// Empties the log into the file, waiting up to the busy timeout for readers. False where one held on.
    pub(super) fn checkpoint_truncate(&mut self) -> Result<bool, Error> {
        let busy = self.conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
        busy.map(|busy| busy == 0).map_err(Error::sqlite("checkpointing", &self.path))
    }

    /// Makes every batch applied so far survive the loss of power.
    ///
    /// SQLite's checkpoint syncs the log before it copies from it, and the file before the log is used anew; so what
    /// the file lacks is in the log, and a synced log is enough.
    pub(super) fn sync(&mut self) -> Result<(), Error> {
        if !self.is_unsynced {
            return Ok(());
        }
        self.save_digest()?;
        self.checkpoint_passive()?;
        files::sync_wal(&*self.disk, &self.path)?;
        self.enter()?;
        self.is_unsynced = false;
        Ok(())
    }

    /// Makes the entries of file and log durable, once: a process that died may have made them and not come to this.
    fn enter(&mut self) -> Result<(), Error> {
        if !self.is_entered {
            for directory in self.path.ancestors().skip(1).take(2) {
                files::sync_directory(&*self.disk, directory)?;
            }
            self.is_entered = true;
        }
        Ok(())
    }
}

/// Applies one frame, unless what is stored is newer; returns what that changes of the digest.
fn apply_one(conn: &Connection, key: &Key, pending: &Pending, gc_floor: Ballot) -> rusqlite::Result<Sum> {
    let stored = queries::point(conn, key)?;
    if !supersedes(pending.ballot, pending.upd, stored.as_ref(), gc_floor) {
        return Ok(Sum::default());
    }
    let mut change = pending.sum(gc_floor, key).minus(Sum::of_stored(gc_floor, key.as_str(), stored.as_ref()));
    let same = stored.as_ref().is_some_and(|row| row.upd == pending.upd && row.op == pending.op);
    let run = |sql: &str| conn.prepare_cached(sql)?.execute([key.as_str()]).map(drop);
    match &pending.op {
        _ if same => {}
        Op::Put(value) => {
            conn.prepare_cached(UPSERT)?.execute((key.as_str(), value.as_bytes(), pending.upd.0))?;
            if stored.as_ref().is_some_and(|row| row.op == Op::Del) {
                run("DELETE FROM tombstone WHERE key = ?1")?;
            }
        }
        Op::Del => {
            if stored.as_ref().is_some_and(|row| row.op != Op::Del) {
                // Another program may have left a deletion beside the row.
                change = change.minus(queries::tombstone(conn, key, gc_floor)?);
            }
            conn.prepare_cached("INSERT OR REPLACE INTO tombstone(key, upd) VALUES(?1, ?2)")?
                .execute((key.as_str(), pending.upd.0))?;
            run("DELETE FROM kv WHERE key = ?1")?;
        }
    }
    if pending.ballot > pending.upd {
        conn.prepare_cached("INSERT OR REPLACE INTO outrigger_ballot(key, ballot) VALUES(?1, ?2)")?
            .execute((key.as_str(), pending.ballot.0))?;
    } else if stored.is_none_or(|row| row.ballot > row.upd) {
        run("DELETE FROM outrigger_ballot WHERE key = ?1")?;
    }
    Ok(change)
}
