//! One open shard: the client's side (async) and the protocol's (synchronous).

use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::applier;
use super::copying::{self, ShardCopy};
use super::core::Core;
use super::error::Error;
use super::files;
use super::listing::{LIST_PORTION_BYTES, LIST_PORTION_ITEMS, ListQuery, Rows};
use super::overlay::{Eyes, Pending};
use super::queries::{self, End, Range, Snapshot, Want};
use super::readers::Readers;
use super::reads::Reads;
use super::replicator::{Decision, Proposal, Rejection};
use super::rows::{Item, PAGE_ITEMS_MAX, Page, PageQuery, ShardStats, Stored, StoredRow, supersedes};
use super::schema;
use super::state::ShardState;
use super::update::{Change, Outcome, Row, Update, Verdict};
use super::writer::{Fault, Writer};
use crate::disk::Disk;
use crate::types::{Ballot, InvalidInput, Key, Namespace, Org, ShardId, Value};

/// How long a write waits for its shard file where the replicator leaves durability to it and the caller names no limit.
const DURABLE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
/// How long a list waits for one of the connections that lists may hold.
const LIST_TURN_TIMEOUT: Duration = Duration::from_secs(5);

/// One (org, namespace): a SQLite file with one writer and a few readers that never wait for it.
///
/// Cheap to share. For as long as someone holds one, its file stays open; after [`Shard::close`] every method
/// returns [`Error::Closed`], and the manager opens the file anew for who asks.
pub struct Shard {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) state: Arc<ShardState>,
    core: Weak<Core>,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) path: PathBuf,
    pub(super) readers: Readers,
    pub(super) writer: Mutex<Option<Writer>>,
    /// Held by who scans all of it to compare it with a peer's: others need the connections, too.
    pub(super) comparing: Mutex<()>,
    /// What absence means here. It rises, and before anything that it makes up for is gone from the file.
    pub(super) gc_floor: AtomicI64,
    is_closed: AtomicBool,
    key_bytes_max: usize,
    value_bytes_max: usize,
    /// Goes last, when no connection is open any more.
    _handle: Arc<()>,
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shard").field("id", self.id()).field("path", &self.inner.path).finish_non_exhaustive()
    }
}

impl Shard {
    /// Opens the file of `state`, creating it where there is none.
    pub(super) fn open(core: &Arc<Core>, state: &Arc<ShardState>) -> Result<Self, Error> {
        let (disk, path) = (Arc::clone(&core.config.disk), core.shard_path(&state.id));
        let (conn, meta) = schema::open_writer(&*disk, &core.config.root_dir, &path)?;
        state.overlay.resume_batches(meta.batch);
        let gc_floor = meta.gc_floor;
        let writer = Writer::new(conn, meta, Arc::clone(&disk), path.clone());
        core.summaries.set(&state.id, writer.summary());
        let inner = Inner {
            state: Arc::clone(state),
            core: Arc::downgrade(core),
            readers: Readers::new(Arc::clone(&disk), path.clone()),
            writer: Mutex::new(Some(writer)),
            comparing: Mutex::default(),
            disk,
            path,
            gc_floor: AtomicI64::new(gc_floor.0),
            is_closed: AtomicBool::new(false),
            key_bytes_max: core.config.key_bytes_max,
            value_bytes_max: core.config.value_bytes_max,
            _handle: Arc::clone(&state.handles),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Which shard this is.
    #[must_use]
    pub fn id(&self) -> &ShardId {
        &self.inner.state.id
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.id().namespace
    }

    /// Its org.
    #[must_use]
    pub fn org(&self) -> &Org {
        &self.id().org
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Writes `value` at `key`, whatever was there. Returns the new version.
    ///
    /// [`Error::Invalid`] and [`Error::Rejected`] mean that nothing was written; [`Error::Timeout`] that nobody knows.
    pub async fn put(&self, key: &str, value: impl Into<Bytes>) -> Result<Ballot, Error> {
        let value = Value::parse(value.into(), self.inner.value_bytes_max)?;
        let outcome = self.update(&self.inner.key(key)?, Update::put(value), None).await?;
        Ok(outcome.after.map(|row| row.upd).unwrap_or_default())
    }

    /// Reads `key` from this node's copy: committed values only.
    pub async fn get(&self, key: &str) -> Result<Option<Row>, Error> {
        self.read(&self.inner.key(key)?)
    }

    /// Deletes `key`. False where there was nothing to delete.
    pub async fn del(&self, key: &str) -> Result<bool, Error> {
        let outcome = self.update(&self.inner.key(key)?, Update::del(), None).await?;
        Ok(outcome.verdict == Verdict::Written)
    }

    /// Has one update of `key` agreed on, and returns what it came to. `timeout` is how long to wait; the replicator's
    /// default where there is none.
    ///
    /// Without a replicator the update is evaluated here. Then, and with one that is not durable, what was written is
    /// in the shard file and synced on return.
    pub async fn update(&self, key: &Key, update: Update, timeout: Option<Duration>) -> Result<Outcome, Error> {
        let inner = &self.inner;
        let core = inner.check()?;
        inner.check_sizes(key, &update)?;
        if !update.is_read() {
            inner.check_room(&core, &update)?;
        }
        let proposal = Proposal { shard: self.id().clone(), key: key.clone(), update, timeout };
        let replicator = core.replicator();
        let decision = match &replicator {
            Some(replicator) => replicator.propose(proposal).await,
            None => core.decide_locally(self, &proposal, core.clock.now().wall, |_| ()),
        };
        let outcome = match decision {
            Decision::Accept(outcome) => outcome,
            Decision::Reject(rejection) => return Err(rejection.into()),
            Decision::Timeout => return Err(Error::Timeout),
        };
        if outcome.verdict == Verdict::Written && replicator.is_none_or(|replicator| !replicator.is_durable()) {
            let applied = inner.state.overlay.wait_past_async(inner.state.overlay.last(), || inner.state.poisoned());
            tokio::time::timeout(timeout.unwrap_or(DURABLE_TIMEOUT_DEFAULT), applied)
                .await
                .unwrap_or(Err(Error::Timeout))?;
        }
        Ok(outcome)
    }

    /// Makes a [blind](Update::blind) update of `key` on this node alone: on return it is on this disk and shown to this node's clients, and it is
    /// proposed to the others as soon as there is a quorum. Whatever is agreed on with a higher version supersedes it.
    ///
    /// Without a replicator, or one that has no others, this is a write like any other.
    pub async fn write_local(&self, key: &Key, update: Update, timeout: Option<Duration>) -> Result<Outcome, Error> {
        let inner = &self.inner;
        let core = inner.check()?;
        let Some(replicator) = core.replicator().filter(|replicator| replicator.has_outbox()) else {
            return self.update(key, update, timeout).await;
        };
        inner.check_sizes(key, &update)?;
        inner.check_room(&core, &update)?;
        let proposal = Proposal { shard: self.id().clone(), key: key.clone(), update, timeout };
        match replicator.accept(proposal).await {
            Decision::Accept(outcome) => Ok(outcome),
            Decision::Reject(rejection) => Err(rejection.into()),
            Decision::Timeout => Err(Error::Timeout),
        }
    }

    /// True where this node itself accepted a mutation of `key` that is not agreed on yet: [`Shard::read`] shows that.
    #[must_use]
    pub fn has_own(&self, key: &Key) -> bool {
        self.inner.state.overlay.own_version(key).is_some()
    }

    /// Reads `key` from this node's copy, as [`Shard::get`] does, on the caller's thread: microseconds.
    pub fn read(&self, key: &Key) -> Result<Option<Row>, Error> {
        self.inner.check()?;
        if !self.inner.state.is_settled(key) {
            return Err(Error::Unsettled);
        }
        match self.inner.state.overlay.get(Eyes::Client, key) {
            Some(pending) => Ok(self.inner.newest(key, &pending)?.and_then(StoredRow::into_row)),
            None => self.inner.query("reading", |conn| queries::live(conn, key)),
        }
    }

    /// Lends `work` a way to read many keys, as [`Shard::read`] would one by one, at the cost of little more than one.
    /// Holds one of a few reading connections for as long: for work that takes microseconds.
    pub fn reading<T>(&self, work: impl FnOnce(&mut Reads<'_>) -> T) -> Result<T, Error> {
        self.inner.check()?;
        let reader = self.inner.readers.lend()?;
        reader.run(|conn| Ok(work(&mut Reads::new(&self.inner, conn)?)))
    }

    /// The committed row of `key` as the protocol sees it: deletions included, settled or not.
    pub fn stored(&self, key: &Key) -> Result<Option<StoredRow>, Error> {
        self.inner.check()?;
        match self.inner.state.overlay.get(Eyes::Protocol, key) {
            Some(pending) => self.inner.newest(key, &pending),
            None => self.inner.query("reading", |conn| queries::point(conn, key)),
        }
    }

    /// The same, with what it means where there is none.
    pub fn known(&self, key: &Key) -> Result<Stored, Error> {
        // In this order: a row that was gone was gone because of a floor that is there by then.
        let row = self.stored(key)?;
        Ok(Stored { row, floor: self.gc_floor() })
    }

    /// Some live rows in key order, as they all were at one moment. Blocking.
    pub fn page(&self, query: &PageQuery) -> Result<Page, Error> {
        let want = if query.keys_only { Want::Keys } else { Want::Rows };
        let limit = query.limit.clamp(1, PAGE_ITEMS_MAX);
        let mut range = Range::new(&query.prefix, query.after.as_ref());
        loop {
            let mut page = Page::default();
            let mut bytes = 0;
            let end = self.inner.scan(&range, want, limit + 1, |item| {
                bytes += item.bytes();
                if page.items.len() == limit || (bytes > query.bytes_max && !page.items.is_empty()) {
                    page.next = page.items.last().map(|item| item.key.clone());
                    return ControlFlow::Break(());
                }
                page.items.push(item);
                ControlFlow::Continue(())
            })?;
            if let End::Excerpt(key) = end {
                page.next = Some(key);
            }
            self.inner.check_settled(&range, page.next.as_ref())?;
            match &page.next {
                // Everything so far was deleted: an empty page would look like the end.
                Some(next) if page.items.is_empty() => range = Range::new(&query.prefix, Some(next)),
                _ => return Ok(page),
            }
        }
    }

    /// Hands every live row under `prefix` to `f` in key order, all as they were when it began. `f` may use this same
    /// shard; an error of its ends the list as [`Error::Callback`]. Rows come in portions, so memory stays bounded;
    /// an `f` that takes longer than 30 s over one ends the list as [`Error::Stalled`].
    pub async fn list<E: fmt::Display>(
        &self,
        prefix: &str,
        mut f: impl FnMut(&str, &Row) -> Result<(), E>,
    ) -> Result<(), Error> {
        let mut rows = self.rows(ListQuery::prefix(prefix)).await?;
        while let Some(portion) = rows.next().await? {
            for item in portion {
                let row = Row { value: item.value.unwrap_or_default(), upd: item.upd };
                f(item.key.as_str(), &row).map_err(|error| Error::Callback(error.to_string()))?;
            }
        }
        Ok(())
    }

    /// Begins a list of what `query` names, for a receiver that takes it at its own pace: see [`Rows`].
    ///
    /// At most two of a shard are under way; a third waits for 5 s, and is refused as busy then.
    pub async fn rows(&self, query: ListQuery) -> Result<Rows, Error> {
        self.rows_as_of(query, || ()).await
    }

    /// Likewise, and does `mark` at the very moment that the rows are of: no frame is committed to this shard meanwhile.
    /// `mark` may be done more than once; the last time counts.
    pub async fn rows_as_of(&self, query: ListQuery, mut mark: impl FnMut() + Send + 'static) -> Result<Rows, Error> {
        let core = self.inner.check()?;
        let turn = tokio::time::timeout(LIST_TURN_TIMEOUT, Arc::clone(&self.inner.readers.lists).acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            return Err(Rejection::Busy(format!("too many lists of {} run already", self.id())).into());
        };
        let inner = Arc::clone(&self.inner);
        Ok(Rows::begin(Arc::clone(&core.clock), move |send| {
            let _turn = turn;
            inner.stream(&query, &mut mark, send)
        }))
    }

    /// Hands every live row of `query` to `each` in key order, all as they were when it began, until `each` breaks it
    /// off. Blocking: for receivers that wait for nobody, as it keeps the log from being emptied meanwhile.
    pub fn walk(&self, query: &ListQuery, each: impl FnMut(Item) -> ControlFlow<()>) -> Result<(), Error> {
        self.inner.walk(query, &mut || (), each)
    }

    /// Counts this shard. Blocking, and reads all of it.
    pub fn stats(&self) -> Result<ShardStats, Error> {
        let range = Range::new("", None);
        let (keys, last_upd) = {
            let eyes = Eyes::Client;
            self.inner.snapshot(eyes, &range, usize::MAX, &mut || (), |snapshot| snapshot.count())?
        };
        let bytes = files::bytes_on_disk(&*self.inner.disk, &self.inner.path);
        Ok(ShardStats { keys, bytes, last_upd, tombstones: self.tombstones()?.count })
    }

    /// The bytes of the file's pages in use. Blocking, and cheap: what deletions left free is not among them.
    pub(super) fn used_bytes(&self) -> Result<u64, Error> {
        self.inner.query("sizing", queries::used_bytes)
    }

    /// What is absent and not above this was deleted, and the deletion has been forgotten.
    #[must_use]
    pub fn gc_floor(&self) -> Ballot {
        self.inner.gc_floor()
    }

    /// From now on a local read of these keys, or of a range with one of them, is [`Error::Unsettled`].
    pub fn unsettle(&self, keys: impl IntoIterator<Item = Key>) {
        self.inner.state.unsettle(keys);
    }

    /// Takes that back for one key.
    pub fn settle(&self, key: &Key) {
        self.inner.state.settle(key);
    }

    /// Empties the write-ahead log into the file, with everything committed before the call.
    pub async fn checkpoint(&self) -> Result<(), Error> {
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            inner.check()?;
            inner.flush()?;
            let mut writer = inner.writer.lock();
            let done = writer.as_mut().ok_or(Error::Closed)?.checkpoint_truncate();
            drop(writer);
            if inner.noticed(done)? {
                return Ok(());
            }
            Err(Rejection::Busy(format!("{}: a reader holds on to the log; try again", inner.path.display())).into())
        })
        .await
    }

    /// Copies the file as it is at one moment, with everything committed before the call, into a file of its own that
    /// needs no log. Ends with [`Error::Closed`] once `is_wanted` says no. Blocking, for as long as it takes to write it.
    pub fn copy(&self, is_wanted: &dyn Fn() -> bool) -> Result<ShardCopy, Error> {
        let core = self.inner.check()?;
        self.inner.flush()?;
        copying::copy(&self.inner, &core.config.root_dir, is_wanted)
    }

    /// Writes out everything committed before the call, syncs it and closes the file. Safe to call twice.
    pub async fn close(&self) -> Result<(), Error> {
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let Some(core) = inner.core.upgrade() else { return Ok(()) };
            if inner.is_closed.load(Ordering::Acquire) || core.is_closed() {
                return Ok(());
            }
            let flushed = inner.flush();
            let closed = core.close_shard(&inner.state, |shard| Arc::ptr_eq(&shard.inner, &inner));
            flushed.and(closed.map(drop))
        })
        .await
    }

    /// Syncs and closes the connections. The caller holds the state's `changing` lock.
    pub(super) fn shut(&self) -> Result<(), Error> {
        self.inner.is_closed.store(true, Ordering::Release);
        self.inner.readers.close();
        let mut writer = self.inner.writer.lock();
        let synced = writer.as_mut().map_or(Ok(()), Writer::sync);
        *writer = None;
        drop(writer);
        self.inner.noticed(synced)
    }

    /// Makes every applied frame durable; a failure spoils the shard.
    pub(super) fn sync(&self) -> Result<(), Error> {
        let synced = self.inner.writer.lock().as_mut().map_or(Ok(()), Writer::sync);
        self.inner.noticed(synced)
    }

    /// Keeps frames in memory for as long as the guard lives.
    #[cfg(test)]
    pub(super) fn hold_applier(&self) -> impl Sized {
        self.inner.writer.lock()
    }

    /// Waits until everything committed before the call is in the file, whatever stands in the way meanwhile.
    #[cfg(test)]
    pub(super) fn wait_applied(&self) {
        let overlay = &self.inner.state.overlay;
        let _: Result<(), ()> = overlay.wait_past(overlay.last(), || Ok(()));
    }

    #[cfg(test)]
    pub(super) fn overlay(&self) -> &super::overlay::Overlay {
        &self.inner.state.overlay
    }

    /// Runs `work` with the writing connection. None where the shard was closed meanwhile.
    pub(super) fn with_writer<T>(&self, work: impl FnOnce(&mut Writer) -> T) -> Option<T> {
        self.inner.writer.lock().as_mut().map(work)
    }
}

/// Bytes of value that a change brings along.
fn change_bytes(change: &Change) -> usize {
    match change {
        Change::Put(value) | Change::Append(value) => value.as_bytes().len(),
        Change::Read | Change::Del | Change::Add(_) => 0,
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    crate::blocking::spawn(work).await.unwrap_or(Err(Error::Closed))
}

impl Inner {
    pub(super) fn gc_floor(&self) -> Ballot {
        Ballot(self.gc_floor.load(Ordering::SeqCst))
    }

    /// Counts as use; fails where the shard is closed or spoilt.
    pub(super) fn check(&self) -> Result<Arc<Core>, Error> {
        let core = self.core.upgrade().filter(|core| !core.is_closed()).ok_or(Error::Closed)?;
        if self.is_closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        self.state.poisoned()?;
        self.state.touch(core.clock.now().monotonic);
        Ok(core)
    }

    fn key(&self, key: &str) -> Result<Key, Error> {
        Ok(Key::parse_bytes(key.as_bytes(), self.key_bytes_max)?)
    }

    fn check_sizes(&self, key: &Key, update: &Update) -> Result<(), InvalidInput> {
        let bytes = key.as_str().len();
        if bytes > self.key_bytes_max {
            return Err(InvalidInput::KeyTooLarge { bytes, max: self.key_bytes_max });
        }
        let bytes = change_bytes(&update.change);
        if bytes > self.value_bytes_max {
            return Err(InvalidInput::ValueTooLarge { bytes, max: self.value_bytes_max });
        }
        Ok(())
    }

    /// Refuses a write that could only wait: behind a full disk, or behind too many others.
    fn check_room(&self, core: &Core, update: &Update) -> Result<(), Rejection> {
        if let Some(stuck) = self.state.stuck().filter(|stuck| stuck.is_full) {
            return Err(Rejection::DiskFull(stuck.why));
        }
        // Where this file is all there is, better refuse now than leave the write in memory, its outcome unknown.
        let bytes = change_bytes(&update.change);
        if core.files_carry_durability() && files::is_out_of_room(&*self.disk, &self.path, bytes) {
            return Err(Rejection::DiskFull(format!("no room in {} for {bytes} bytes more", self.path.display())));
        }
        if core.is_overloaded() {
            return Err(Rejection::Busy("too many committed frames wait for their shard files; try again".to_owned()));
        }
        Ok(())
    }

    fn check_settled(&self, range: &Range, last: Option<&Key>) -> Result<(), Error> {
        if self.state.is_range_settled(range, last) { Ok(()) } else { Err(Error::Unsettled) }
    }

    /// What a read error means for the shard: a disk that cannot be read is not asked again.
    pub(super) fn noticed<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(error @ (Error::Sqlite { .. } | Error::Io { .. })) = &result
            && Fault::of(&*self.disk, error) == Fault::Fatal
        {
            self.state.poison(error);
        }
        result
    }

    pub(super) fn query<T>(
        &self,
        doing: &'static str,
        read: impl FnOnce(&rusqlite::Connection) -> rusqlite::Result<T>,
    ) -> Result<T, Error> {
        let reader = self.readers.lend()?;
        self.noticed(reader.run(|conn| read(conn).map_err(Error::sqlite(doing, &self.path))))
    }

    /// The newer of a pending frame and what the file holds.
    fn newest(&self, key: &Key, pending: &Pending) -> Result<Option<StoredRow>, Error> {
        self.newest_of(pending, || self.query("reading", |conn| queries::point(conn, key)))
    }

    /// The same, where `stored` reads the file.
    pub(super) fn newest_of(
        &self,
        pending: &Pending,
        stored: impl FnOnce() -> Result<Option<StoredRow>, Error>,
    ) -> Result<Option<StoredRow>, Error> {
        if pending.is_above_file() {
            return Ok(Some(pending.to_stored()));
        }
        let stored = stored()?;
        if supersedes(pending.ballot, pending.upd, stored.as_ref(), self.gc_floor()) {
            pending.set_above_file();
            return Ok(Some(pending.to_stored()));
        }
        Ok(stored)
    }

    fn snapshot<T>(
        &self,
        eyes: Eyes,
        range: &Range,
        frames_max: usize,
        mark: &mut dyn FnMut(),
        read: impl FnOnce(&Snapshot<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.check()?;
        let reader = self.readers.lend()?;
        let excerpt = || range.of(eyes, &self.state.overlay, frames_max, &mut *mark);
        self.noticed(reader.run(|conn| read(&Snapshot::open(conn, &self.path, excerpt)?)))
    }

    pub(super) fn scan(
        &self,
        range: &Range,
        want: Want<'_>,
        frames_max: usize,
        emit: impl FnMut(Item) -> ControlFlow<()>,
    ) -> Result<End, Error> {
        self.snapshot(want.eyes(), range, frames_max, &mut || (), |snapshot| snapshot.scan(range, want, emit))
    }

    fn walk(
        &self,
        query: &ListQuery,
        mark: &mut dyn FnMut(),
        each: impl FnMut(Item) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let range = Range::new(&query.prefix, query.after.as_ref());
        self.check_settled(&range, None)?;
        let want = if query.keys_only { Want::Keys } else { Want::Rows };
        self.snapshot(want.eyes(), &range, usize::MAX, mark, |snapshot| snapshot.scan(&range, want, each)).map(drop)
    }

    /// Sends all rows of `query` in portions, until `send` fails.
    fn stream(
        &self,
        query: &ListQuery,
        mark: &mut dyn FnMut(),
        send: &mut dyn FnMut(Vec<Item>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (mut portion, mut bytes, mut sent) = (Vec::new(), 0, Ok(()));
        self.walk(query, mark, |item| {
            bytes += item.bytes();
            portion.push(item);
            if bytes < LIST_PORTION_BYTES && portion.len() < LIST_PORTION_ITEMS {
                return ControlFlow::Continue(());
            }
            bytes = 0;
            sent = send(std::mem::take(&mut portion));
            if sent.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        sent?;
        if portion.is_empty() { Ok(()) } else { send(portion) }
    }

    /// Waits until everything committed before the call is in the file.
    pub(super) fn flush(&self) -> Result<(), Error> {
        if let Some(core) = self.core.upgrade() {
            applier::run_inline(&core);
        }
        self.state.flush()
    }
}
