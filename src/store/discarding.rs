//! A copy of a shard that this node gives up, and the mark of one that is whole.
//!
//! ```text
//!   nobody uses it ─► closed: its log is in the file ─► the log's name goes, synced ─► the file's goes, synced ─► forgotten
//! ```
//!
//! What a crash leaves is the whole file, or nothing: the file goes last, and holds everything by then. A log that stayed
//! behind would be taken for that of the next file of its name, and bring back its rows.
//!
//! All of it happens under the shard's `changing` lock, without which nobody opens a file. A frame that is committed
//! meanwhile waits in memory as ever, and the applier for the lock; what it opens then is a file that begins empty.
//!
//! The mark is a row of the file, so that it goes with it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::applier;
use super::core::Core;
use super::error::Error;
use super::files;
use super::replicator::Rejection;
use super::schema;
use super::shard::Shard;
use super::state::ShardState;
use super::writer::{Fault, Writer};
use crate::disk::Kind;
use crate::types::ShardId;

impl Core {
    /// See [`super::Manager::discard`].
    pub(super) fn discard(&self, id: &ShardId, may: impl FnOnce() -> bool) -> Result<bool, Error> {
        self.check_open()?;
        let state = self.state(id);
        let last = state.overlay.last();
        if !may() {
            return Ok(false);
        }
        let _changing = state.changing.lock();
        state.poisoned()?;
        // Whatever has come since `may` was asked is not given up, though it be in the file by now.
        let is_wanted = || state.overlay.last() != last || state.has_pending() || self.feed.is_watched(id);
        self.close_locked(&state, |shard| is_held_here_alone(&state, shard) && !is_wanted())?;
        // A closed shard may have readers still, and SQLite minds if a file goes from under them.
        let is_free = state.current.read().is_none() && Arc::strong_count(&state.handles) == 1;
        if !is_free || is_wanted() {
            return Ok(false);
        }
        if self.has_file(id) {
            let path = self.shard_path(id);
            self.bring_log_in(&path)?;
            state.discards.fetch_add(1, Ordering::SeqCst);
            files::remove(&*self.config.disk, &path).inspect_err(|error| self.spoil(&state, error))?;
        }
        self.summaries.forget(id);
        // Whoever has begun to watch it meanwhile, or goes on where it left off, begins again.
        self.feed.lose_shard(id);
        Ok(true)
    }

    /// Has the closed file hold all there is, though a crash or another program left a log beside it.
    fn bring_log_in(&self, path: &Path) -> Result<(), Error> {
        files::refuse_links(&*self.config.disk, path)?;
        if !matches!(self.config.disk.kind(path), Ok(Some(Kind::File(_)))) {
            let why = "it is not a file that can be removed".to_owned();
            return Err(Error::UnusableFile { path: path.to_owned(), why });
        }
        if files::is_alone(&*self.config.disk, path) || self.writer(path.to_owned())?.checkpoint_truncate()? {
            return Ok(());
        }
        let why = format!("{}: another program reads it, so its log cannot be brought in; try again", path.display());
        Err(Rejection::Busy(why).into())
    }

    /// See [`super::Manager::is_whole`].
    pub(super) fn is_whole(&self, id: &ShardId) -> Result<bool, Error> {
        self.at_file(id, |writer| writer.is_whole()).map(|whole| whole.unwrap_or(false))
    }

    /// See [`super::Manager::mark_whole`].
    pub(super) fn mark_whole(self: &Arc<Self>, id: &ShardId) -> Result<(), Error> {
        applier::run_inline(self);
        if let Some(state) = self.known(id) {
            state.flush()?;
        }
        self.at_file(id, Writer::mark_whole).map(drop)
    }

    /// Does `work` with the writer of an open shard, or else with one opened for that; none where there is no file.
    fn at_file<T>(&self, id: &ShardId, work: impl FnOnce(&mut Writer) -> Result<T, Error>) -> Result<Option<T>, Error> {
        self.check_open()?;
        let state = self.state(id);
        let _changing = state.changing.lock();
        state.poisoned()?;
        let open = state.current.read().clone();
        let done = match open {
            Some(shard) => shard.with_writer(work).unwrap_or(Err(Error::Closed)),
            None if self.has_file(id) => work(&mut self.writer(self.shard_path(id))?),
            None => return Ok(None),
        };
        done.map(Some).inspect_err(|error| self.spoil(&state, error))
    }

    fn writer(&self, path: PathBuf) -> Result<Writer, Error> {
        let disk = Arc::clone(&self.config.disk);
        let (conn, meta) = schema::open_writer(&*disk, &self.config.root_dir, &path)?;
        Ok(Writer::new(conn, meta, disk, path))
    }

    /// What is on the disk is not known after this.
    fn spoil(&self, state: &ShardState, error: &Error) {
        if Fault::of(&*self.config.disk, error) == Fault::Fatal {
            state.poison(error);
        }
    }
}

/// Whether nobody has the open shard or a part of it, nor a handle from before. No one gets one while `current` is locked.
fn is_held_here_alone(state: &ShardState, shard: &Arc<Shard>) -> bool {
    Arc::strong_count(shard) == 1 && Arc::strong_count(&shard.inner) == 1 && Arc::strong_count(&state.handles) == 2
}
