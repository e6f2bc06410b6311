//! The open-shard cache as the rest of the house sees it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use super::applier;
use super::copying;
use super::core::{Core, Opener};
use super::digest::{Root, Summary};
use super::error::Error;
use super::feed::Feed;
use super::files;
use super::replicator::{Decision, Frame, Op, Proposal, Replicator, Subscriber};
use super::shard::Shard;
use super::writer::Fault;
use crate::blocking::{self, Worker};
use crate::clock::{Clock, OsClock};
use crate::disk::{self, Disk, OsDisk};
use crate::types::{Ballot, Key, Org, ShardId};

/// How long a shard may sit unused before it is closed, by default.
pub const IDLE_EVICT_AFTER: Duration = Duration::from_secs(10 * 60);
/// The longest key, in bytes, by default.
pub const KEY_BYTES_MAX: usize = 1024;
/// The largest value, in bytes, by default.
pub const VALUE_BYTES_MAX: usize = 1024 * 1024;

/// How a store behaves.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Where the shard files are.
    pub root_dir: PathBuf,
    /// How long a shard may sit unused before [`Manager::evict_idle`] closes it.
    pub idle_evict_after: Duration,
    /// The longest key, in bytes.
    pub key_bytes_max: usize,
    /// The largest value, in bytes.
    pub value_bytes_max: usize,
    /// Where the files are.
    pub disk: Arc<dyn Disk>,
}

impl StoreConfig {
    /// The defaults, at `root_dir`.
    #[must_use]
    pub fn at(root_dir: impl AsRef<Path>) -> Self {
        Self {
            root_dir: root_dir.as_ref().to_owned(),
            idle_evict_after: IDLE_EVICT_AFTER,
            key_bytes_max: KEY_BYTES_MAX,
            value_bytes_max: VALUE_BYTES_MAX,
            disk: OsDisk::shared(),
        }
    }
}

/// Owns the shard files under one directory: opens them on demand, closes them when idle, and takes in every
/// committed frame.
pub struct Manager {
    core: Arc<Core>,
    appliers: Mutex<Vec<Worker>>,
    closing: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manager").field("root_dir", &self.root_dir()).finish_non_exhaustive()
    }
}

impl Manager {
    /// Opens the store at `root_dir` with defaults, creating the directory if need be.
    pub fn new(root_dir: impl AsRef<Path>) -> Result<Arc<Self>, Error> {
        Self::with_config(StoreConfig::at(root_dir), OsClock::shared())
    }

    /// Opens a store.
    pub fn with_config(config: StoreConfig, clock: Arc<dyn Clock>) -> Result<Arc<Self>, Error> {
        let root = &config.root_dir;
        disk::create_directory(&*config.disk, root).map_err(|source| Error::io("creating", root, source))?;
        copying::clear(&*config.disk, root);
        let core = Arc::new(Core::new(config, clock));
        let appliers = Mutex::new(applier::start(&core)?);
        Ok(Arc::new(Self { core, appliers, closing: tokio::sync::Mutex::default() }))
    }

    /// The open shard, created on disk if need be. All callers get the same one.
    pub async fn get(&self, shard: &ShardId) -> Result<Arc<Shard>, Error> {
        self.core.check_open()?;
        if let Some(open) = self.core.cached(shard) {
            return Ok(open);
        }
        let (core, shard) = (Arc::clone(&self.core), shard.clone());
        blocking::spawn(move || core.open(&shard, Opener::Client)).await.unwrap_or(Err(Error::Closed))
    }

    /// The blocking twin of [`Manager::get`].
    pub fn open(&self, shard: &ShardId) -> Result<Arc<Shard>, Error> {
        self.core.open(shard, Opener::Client)
    }

    /// The shard if it is open now. Cheap, and counts as a use.
    #[must_use]
    pub fn cached(&self, shard: &ShardId) -> Option<Arc<Shard>> {
        if self.core.is_closed() { None } else { self.core.cached(shard) }
    }

    /// Whether anything was ever stored for this shard: a file, or frames on their way into one.
    #[must_use]
    pub fn exists(&self, shard: &ShardId) -> bool {
        self.core.exists(shard)
    }

    /// Like [`Manager::get`], but creates nothing: for reads.
    pub async fn find(&self, shard: &ShardId) -> Result<Option<Arc<Shard>>, Error> {
        self.core.check_open()?;
        if self.exists(shard) { self.get(shard).await.map(Some) } else { Ok(None) }
    }

    /// The orgs that have a shard, sorted.
    pub fn orgs(&self) -> Result<Vec<Org>, Error> {
        self.core.check_open()?;
        let mut orgs = files::orgs(&*self.core.config.disk, self.root_dir())?;
        orgs.extend(self.core.states().iter().filter(|state| state.has_content()).map(|state| state.id.org.clone()));
        orgs.sort();
        orgs.dedup();
        Ok(orgs)
    }

    /// The shards of an org, sorted.
    pub fn shards_of(&self, org: &Org) -> Result<Vec<ShardId>, Error> {
        self.core.check_open()?;
        let mut shards = files::shards_of(&*self.core.config.disk, self.root_dir(), org)?;
        let states = self.core.states();
        shards.extend(states.iter().filter(|state| state.id.org == *org && state.has_content()).map(|s| s.id.clone()));
        shards.sort();
        shards.dedup();
        Ok(shards)
    }

    /// What the shards of an org take up on disk, in bytes, about. Blocking, and cheap: of an open shard the pages in use are
    /// counted, of another its file. Logs that are not yet written back are left out.
    pub fn stored_bytes(&self, org: &Org) -> Result<u64, Error> {
        let mut bytes = 0;
        for id in files::shards_of(&*self.core.config.disk, self.root_dir(), org)? {
            // Looking at a shard is no use of it.
            let open = self.core.known(&id).and_then(|state| state.current.read().clone());
            bytes += match open.map(|shard| shard.used_bytes()) {
                Some(Ok(bytes)) => bytes,
                // Closed, maybe this very moment.
                None | Some(Err(Error::Closed)) => files::bytes_on_disk(&*self.core.config.disk, &self.shard_path(&id)),
                Some(Err(error)) => return Err(error),
            };
        }
        Ok(bytes)
    }

    /// What every shard holds, as reads see it. Blocking: it opens those of which that is not known yet, one by one.
    pub fn summaries(&self) -> Result<BTreeMap<ShardId, Summary>, Error> {
        let mut shards = Vec::new();
        for org in self.orgs()? {
            shards.extend(self.shards_of(&org)?);
        }
        self.core.summarize_all(shards, |shard| self.open(shard))
    }

    /// What the shards hold that remember deletions, as their files are now: of those that were opened or compared since the
    /// start.
    #[must_use]
    pub fn remembering(&self) -> BTreeMap<ShardId, Summary> {
        self.core.summaries.remembering()
    }

    /// All shards in one number, as their files are now: equal on nodes that hold the same rows, once nothing is on its
    /// way. None before [`Manager::summaries`] was called, and where a crash left a shard that was not compared since.
    #[must_use]
    pub fn root(&self) -> Option<Root> {
        self.core.root()
    }

    /// Opens every shard of an org, in the order of namespaces. All are held open together, so an org of more than
    /// [`super::OPEN_SHARDS_MAX`] is [busy](super::replicator::Rejection::Busy): go through [`Manager::shards_of`] one by
    /// one instead.
    pub async fn list_shards(&self, org: &Org) -> Result<Vec<Arc<Shard>>, Error> {
        let mut shards = Vec::new();
        for id in self.shards_of(org)? {
            shards.push(self.get(&id).await?);
        }
        Ok(shards)
    }

    /// How many shards are open.
    #[must_use]
    pub fn open_shard_count(&self) -> usize {
        self.core.open_shard_count()
    }

    /// Installs the driver that every write goes through from now on, on open shards too, and subscribes to its
    /// commits.
    pub fn with_replicator(&self, replicator: Arc<dyn Replicator>) {
        replicator.subscribe(Arc::new(Subscription(Arc::downgrade(&self.core))));
        self.core.install(replicator);
    }

    /// The installed driver.
    #[must_use]
    pub fn replicator(&self) -> Option<Arc<dyn Replicator>> {
        self.core.replicator()
    }

    /// What changes, for those who watch.
    #[must_use]
    pub fn feed(&self) -> &Arc<Feed> {
        &self.core.feed
    }

    /// The directory of the store.
    #[must_use]
    pub fn root_dir(&self) -> &Path {
        &self.core.config.root_dir
    }

    /// Where a shard's file is, or would be.
    #[must_use]
    pub fn shard_path(&self, shard: &ShardId) -> PathBuf {
        self.core.shard_path(shard)
    }

    /// Closes the shards that nobody holds and nobody used for [`StoreConfig::idle_evict_after`]. Blocking: it syncs
    /// what it closes.
    pub fn evict_idle(&self) {
        self.core.evict_idle();
    }

    /// Gives up this node's copy of a shard: its file goes, durably on return, and with it all that was known of it. True
    /// where there is no copy any more, or was none; false, and nothing changed, where `may` says no, or it is in use: held by
    /// somebody, watched, or with something in memory that is not in the file or not settled, or committed since `may` was
    /// asked. A frame that is committed later is not lost: it begins a new file, of which it is all. Blocking.
    ///
    /// Busy where another program reads the file, so that its log cannot be brought into it.
    pub fn discard(&self, shard: &ShardId, may: impl FnOnce() -> bool) -> Result<bool, Error> {
        self.core.discard(shard, may)
    }

    /// Whether this node's copy of a shard was [marked](Manager::mark_whole) as whole; false where there is no file.
    /// Blocking, and creates nothing.
    pub fn is_whole(&self, shard: &ShardId) -> Result<bool, Error> {
        self.core.is_whole(shard)
    }

    /// Marks this node's copy of a shard as whole, in its file: durably on return, and after everything committed before the
    /// call. Nothing happens where there is no file. Blocking.
    ///
    /// The caller holds the shard from before it looked whether it is whole: so that what is marked is no file begun anew
    /// after a [`Manager::discard`], which has no mark.
    pub fn mark_whole(&self, shard: &ShardId) -> Result<(), Error> {
        self.core.mark_whole(shard)
    }

    /// Keys with committed frames that wait for their shard files.
    #[must_use]
    pub fn apply_backlog(&self) -> u64 {
        self.core.backlog.frames.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Whether so much waits that nothing more should be agreed on for now.
    #[must_use]
    pub fn is_overloaded(&self) -> bool {
        self.core.is_overloaded()
    }

    /// What is wrong, such as a disk too full to apply; none when all is well. Says nothing of whose shard it is, which is in
    /// the log: it is shown at the admin port, and to other clients.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let states = self.core.states();
        let poisoned = || states.iter().find_map(|state| state.poisoned().err().map(|error| error.without_path()));
        poisoned().or_else(|| states.iter().find_map(|state| state.stuck().map(|stuck| stuck.why)))
    }

    /// The first error of a shard that was given up: a write or sync failed, or its file cannot be read. Nothing but
    /// a new start cures it, as what is on the disk is not known any more.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        self.core.states().iter().find_map(|state| state.poisoned().err())
    }

    /// True where nothing is broken and the same may succeed later: no room, too much at once, or another program's
    /// lock.
    #[must_use]
    pub fn is_passing(&self, error: &Error) -> bool {
        Fault::of(&*self.core.config.disk, error) != Fault::Fatal
    }

    /// Marks a key whose last write before a restart may or may not have been acknowledged: local reads of it fail
    /// with [`Error::Unsettled`] until [`Manager::settle`]. Opens no file.
    pub fn unsettle(&self, shard: &ShardId, key: &Key) {
        self.core.state(shard).unsettle([key.clone()]);
    }

    /// Lets local reads of a key through again.
    pub fn settle(&self, shard: &ShardId, key: &Key) {
        if let Some(state) = self.core.known(shard) {
            state.settle(key);
        }
    }

    /// Shows clients, and those who watch, what this node accepted on its own with this version: until that or a higher one is
    /// committed. The file must hold nothing as new. Opens no file.
    pub fn show(&self, shard: &ShardId, key: &Key, op: &Op, upd: Ballot) {
        self.core.show(shard, key, op, upd);
    }

    /// Shows it no more, as it was overtaken by something that is no row here.
    pub fn hide(&self, shard: &ShardId, key: &Key, upd: Ballot) {
        self.core.hide(shard, key, upd);
    }

    /// Blocks until every frame committed before the call is in its shard file, and synced. After that a journal may
    /// forget them. An error says that it may not: the disk is full, or a shard was spoilt by a failed write or sync.
    pub fn sync_all(&self) -> Result<(), Error> {
        self.core.check_open()?;
        sync_all(&self.core)
    }

    /// Applies what waits, syncs and closes every shard. Safe to call twice; everything else returns
    /// [`Error::Closed`] from then on.
    pub async fn close(&self) -> Result<(), Error> {
        let _closing = self.closing.lock().await;
        if !self.core.set_closed() {
            return Ok(());
        }
        let (core, appliers) = (Arc::clone(&self.core), std::mem::take(&mut *self.appliers.lock()));
        blocking::spawn(move || close_all(&core, appliers)).await.unwrap_or(Err(Error::Closed))
    }

    /// Evaluates a proposal on this node alone, at Unix time `wall` in nanoseconds, and commits what it writes: here,
    /// then to `also`. The write is not durable yet on return.
    pub(crate) fn decide_locally(
        &self,
        shard: &Shard,
        proposal: &Proposal,
        wall: i64,
        also: impl FnOnce(&Frame),
    ) -> Decision {
        self.core.decide_locally(shard, proposal, wall, also)
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        if self.core.set_closed()
            && let Err(error) = close_all(&self.core, std::mem::take(&mut *self.appliers.lock()))
        {
            tracing::warn!(%error, "a store that was dropped without being closed did not write everything out");
        }
    }
}

impl Subscriber for Manager {
    fn on_commit(&self, frame: &Frame) {
        self.core.on_commit(frame);
    }
}

/// The subscription of a manager: does not keep it alive.
struct Subscription(Weak<Core>);

impl Subscriber for Subscription {
    fn on_commit(&self, frame: &Frame) {
        if let Some(core) = self.0.upgrade() {
            core.on_commit(frame);
        }
    }
}

fn sync_all(core: &Arc<Core>) -> Result<(), Error> {
    applier::run_inline(core);
    let number = core.backlog.arrived.load(std::sync::atomic::Ordering::SeqCst);
    for state in core.states() {
        state.overlay.wait_past(number, || {
            state.poisoned()?;
            match state.stuck() {
                Some(stuck) => Err(stuck.into()),
                None => core.check_open(),
            }
        })?;
    }
    for state in core.states() {
        // A shard on its way out is synced by whoever closes it; wait for that.
        let changing = state.changing.lock();
        let shard = state.current.read().clone();
        drop(changing);
        shard.map_or(Ok(()), |shard| shard.sync())?;
        state.poisoned()?;
    }
    Ok(())
}

fn close_all(core: &Arc<Core>, appliers: Vec<Worker>) -> Result<(), Error> {
    core.queue.stop();
    // Each ends once it has nothing left to apply.
    drop(appliers);
    applier::run_inline(core);
    let mut first = Ok(());
    for state in core.states() {
        let closed = core.close_shard(&state, |_| true).map(drop).and_then(|()| state.poisoned());
        let stuck = state.stuck().filter(|_| !state.overlay.is_empty());
        let unapplied = stuck.map_or(Ok(()), |stuck| Err(stuck.into()));
        first = first.and(closed).and(unapplied);
    }
    first
}
