//! What the manager, its shards and its applier share: the cache of open shards and the way in for frames.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use metrics::Gauge;
use parking_lot::{Mutex, RwLock};

use super::applier::Queue;
use super::compare::Summaries;
use super::error::Error;
use super::feed::{Before, Feed};
use super::files;
use super::manager::StoreConfig;
use super::overlay::{Backlog, Eyes};
use super::replicator::{Decision, Frame, Op, Proposal, Rejection, Replicator};
use super::rows::StoredRow;
use super::shard::Shard;
use super::state::ShardState;
use super::update::Verdict;
use super::writer::Fault;
use crate::clock::{Clock, HybridClock};
use crate::telemetry;
use crate::types::{Ballot, Key, ShardId, Slot};

/// The most shard files open at once. The applier may exceed it by one per thread, so that it never stands still.
pub const OPEN_SHARDS_MAX: usize = 128;
/// Frames waiting for their shard files above which the store is overloaded.
pub const APPLY_BACKLOG_FRAMES_MAX: u64 = 65_536;
/// Their size in memory, in bytes, above which it is so, too.
pub const APPLY_BACKLOG_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// No local write takes a version closer to the end of numbers than this.
const BALLOT_LOCAL_MAX: Ballot = Ballot(i64::MAX - (1 << 32));

#[derive(Debug)]
pub(super) struct Core {
    pub(super) config: StoreConfig,
    pub(super) clock: Arc<dyn Clock>,
    states: RwLock<HashMap<ShardId, Arc<ShardState>>>,
    open_count: AtomicUsize,
    open_gauge: Gauge,
    pub(super) backlog: Arc<Backlog>,
    pub(super) queue: Queue,
    pub(super) feed: Arc<Feed>,
    pub(super) summaries: Summaries,
    replicator: RwLock<Option<Installed>>,
    local: Mutex<Local>,
    is_closed: AtomicBool,
}

struct Installed(Arc<dyn Replicator>);

impl std::fmt::Debug for Installed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Replicator")
    }
}

/// Versions and numbers of frames decided here.
#[derive(Debug)]
struct Local {
    clock: HybridClock,
    seq: u64,
}

/// For whom a shard is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opener {
    Client,
    Applier,
}

impl Core {
    pub(super) fn new(config: StoreConfig, clock: Arc<dyn Clock>) -> Self {
        let slot = Slot::new(0).unwrap_or_else(|| Ballot::ZERO.slot());
        // Frames are numbered from the clock on, so that a restart goes on above.
        let seq = u64::try_from(clock.now().wall).unwrap_or(0);
        Self {
            config,
            feed: Feed::new(Arc::clone(&clock)),
            clock,
            states: RwLock::default(),
            open_count: AtomicUsize::new(0),
            open_gauge: metrics::gauge!(telemetry::OPEN_SHARDS),
            backlog: Arc::default(),
            queue: Queue::default(),
            summaries: Summaries::default(),
            replicator: RwLock::default(),
            local: Mutex::new(Local { clock: HybridClock::new(slot, Duration::MAX, Ballot::ZERO), seq }),
            is_closed: AtomicBool::new(false),
        }
    }

    pub(super) fn shard_path(&self, shard: &ShardId) -> PathBuf {
        files::shard_path(&self.config.root_dir, shard)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    /// Ends the clients' side. True for the first caller.
    pub(super) fn set_closed(&self) -> bool {
        let installed = self.replicator.write().take();
        // Dropped outside of the lock: a replicator may ask for things as it ends.
        drop(installed);
        !self.is_closed.swap(true, Ordering::AcqRel)
    }

    pub(super) fn check_open(&self) -> Result<(), Error> {
        if self.is_closed() { Err(Error::Closed) } else { Ok(()) }
    }

    pub(super) fn replicator(&self) -> Option<Arc<dyn Replicator>> {
        self.replicator.read().as_ref().map(|installed| Arc::clone(&installed.0))
    }

    pub(super) fn install(&self, replicator: Arc<dyn Replicator>) {
        let replaced = self.replicator.write().replace(Installed(replicator));
        drop(replaced);
    }

    /// Whether an answered write must be durable in its shard file, as nothing else keeps it.
    pub(super) fn files_carry_durability(&self) -> bool {
        self.replicator.read().as_ref().is_none_or(|installed| !installed.0.is_durable())
    }

    pub(super) fn is_overloaded(&self) -> bool {
        self.backlog.frames.load(Ordering::Relaxed) >= APPLY_BACKLOG_FRAMES_MAX
            || self.backlog.bytes.load(Ordering::Relaxed) >= APPLY_BACKLOG_BYTES_MAX
    }

    pub(super) fn open_shard_count(&self) -> usize {
        self.open_count.load(Ordering::Acquire)
    }

    /// Every shard known in memory.
    pub(super) fn states(&self) -> Vec<Arc<ShardState>> {
        self.states.read().values().cloned().collect()
    }

    pub(super) fn known(&self, id: &ShardId) -> Option<Arc<ShardState>> {
        self.states.read().get(id).cloned()
    }

    pub(super) fn state(&self, id: &ShardId) -> Arc<ShardState> {
        if let Some(state) = self.known(id) {
            return state;
        }
        let mut states = self.states.write();
        let state = states.entry(id.clone());
        Arc::clone(state.or_insert_with(|| {
            let began_empty = !self.has_file(id);
            Arc::new(ShardState::new(id.clone(), Arc::clone(&self.backlog), began_empty))
        }))
    }

    /// Whether anything is stored for this shard: a file, or frames on their way into one.
    pub(super) fn exists(&self, id: &ShardId) -> bool {
        // What cannot be told counts as there: opening it then says what is wrong, where "absent" would be a lie.
        self.known(id).is_some_and(|state| state.has_content()) || self.has_file(id)
    }

    pub(super) fn has_file(&self, id: &ShardId) -> bool {
        !matches!(self.config.disk.kind(&self.shard_path(id)), Ok(None))
    }

    /// Takes a committed frame into memory and leaves it to the applier. Never waits for a file.
    pub(super) fn on_commit(&self, frame: &Frame) {
        let state = self.state(&frame.shard);
        let discards = state.discards.load(Ordering::SeqCst);
        let before = if self.feed.has_to_be_told(frame) { self.shown(&state, &frame.key) } else { Before::Unknown };
        // What was shown by a file that is gone by now is shown no more.
        let before = || if state.discards.load(Ordering::SeqCst) == discards { before } else { Before::Unknown };
        if state.overlay.insert(frame, || self.feed.push(frame, before())) {
            self.queue.push(&state);
        }
    }

    /// The version that a key shows at this moment: a look into its file, as whoever agreed on the frame has just had.
    fn shown(&self, state: &ShardState, key: &Key) -> Before {
        let shard = state.current.read().clone();
        let stored = match &shard {
            Some(shard) => shard.stored(key).ok(),
            // Not opened for this: a commit waits for no file.
            None => match state.overlay.look(Eyes::Protocol, key) {
                (pending, 0) if state.began_empty => Some(pending.map(|pending| pending.to_stored())),
                _ => None,
            },
        };
        let gc_floor = shard.map_or(Ballot::ZERO, |shard| shard.gc_floor());
        let committed = stored.map(|row| row.map_or((gc_floor, Ballot::ZERO), |row| (row.ballot, row.upd)));
        match (committed, state.overlay.own_version(key)) {
            (None, None) => Before::Unknown,
            (committed, own) => {
                let (ballot, upd) = committed.unwrap_or_default();
                Before::Shown { ballot, upd: upd.max(own.unwrap_or_default()) }
            }
        }
    }

    /// Shows clients a mutation that this node accepted on its own.
    pub(super) fn show(&self, shard: &ShardId, key: &Key, op: &Op, upd: Ballot) {
        let state = self.state(shard);
        state.overlay.show(key, op.clone(), upd, || self.feed.push_own(shard, key, op, upd));
    }

    /// Shows it no more, though nothing that was committed here took its place.
    pub(super) fn hide(&self, shard: &ShardId, key: &Key, upd: Ballot) {
        if let Some(state) = self.known(shard) {
            state.overlay.hide(key, upd, || self.feed.lose_track(shard, key));
        }
    }

    pub(super) fn cached(&self, id: &ShardId) -> Option<Arc<Shard>> {
        let state = self.known(id)?;
        let shard = state.current.read().clone();
        if shard.is_some() {
            state.touch(self.clock.now().monotonic);
        }
        shard
    }

    /// The open shard, opened first if need be. Blocking.
    pub(super) fn open(self: &Arc<Self>, id: &ShardId, opener: Opener) -> Result<Arc<Shard>, Error> {
        if opener == Opener::Client {
            self.check_open()?;
        }
        let state = self.state(id);
        state.touch(self.clock.now().monotonic);
        if let Some(shard) = state.current.read().clone() {
            return Ok(shard);
        }
        let changing = state.changing.lock();
        if let Some(shard) = state.current.read().clone() {
            return Ok(shard);
        }
        state.poisoned()?;
        self.reserve(opener)?;
        let shard = Shard::open(self, &state).map(Arc::new).map_err(|error| {
            self.release();
            match Fault::of(&*self.config.disk, &error) {
                Fault::Full if opener == Opener::Client => Rejection::DiskFull(error.to_string()).into(),
                _ => error,
            }
        })?;
        *state.current.write() = Some(Arc::clone(&shard));
        drop(changing);
        if opener == Opener::Client && self.is_closed() {
            // The manager closed meanwhile and may not have seen this one.
            self.close_shard(&state, |_| true)?;
            return Err(Error::Closed);
        }
        Ok(shard)
    }

    /// Takes one of the places for open shards, closing the least recently used that nobody holds if there is none.
    fn reserve(&self, opener: Opener) -> Result<(), Error> {
        if self.try_reserve(OPEN_SHARDS_MAX) {
            return Ok(());
        }
        if self.close_least_used(|| self.try_reserve(OPEN_SHARDS_MAX)) {
            return Ok(());
        }
        if opener == Opener::Applier && self.try_reserve(usize::MAX) {
            return Ok(());
        }
        Err(Rejection::Busy(format!("all {OPEN_SHARDS_MAX} shards that may be open are in use; try again")).into())
    }

    /// Closes shards that nobody holds, the least recently used first, until `is_enough`. False if it never was.
    fn close_least_used(&self, is_enough: impl Fn() -> bool) -> bool {
        let mut states = self.states();
        states.sort_by_cached_key(|state| state.last_used());
        states.iter().any(|state| {
            // Never wait here: this thread may hold another shard's lock.
            if let Some(_changing) = state.changing.try_lock() {
                self.close_if_idle(state);
            }
            is_enough()
        })
    }

    fn try_reserve(&self, max: usize) -> bool {
        let one_more = |open: usize| (open < max).then_some(open + 1);
        let reserved = self.open_count.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more);
        self.show_open();
        reserved.is_ok()
    }

    fn release(&self) {
        self.open_count.fetch_sub(1, Ordering::AcqRel);
        self.show_open();
    }

    fn show_open(&self) {
        self.open_gauge.set(u32::try_from(self.open_shard_count()).unwrap_or(u32::MAX));
    }

    /// Closes a shard that nobody holds and nothing waits for. The caller holds its `changing` lock.
    fn close_if_idle(&self, state: &ShardState) {
        let is_idle = |shard: &Arc<Shard>| Arc::strong_count(shard) == 1 && state.overlay.is_empty();
        if let Err(error) = self.close_locked(state, is_idle) {
            tracing::error!(shard = %state.id, %error, "closing an idle shard failed");
        }
    }

    /// Syncs and closes the open shard if `may` still says so once nobody else can get hold of it. True if closed.
    pub(super) fn close_shard(&self, state: &ShardState, may: impl Fn(&Arc<Shard>) -> bool) -> Result<bool, Error> {
        let _changing = state.changing.lock();
        self.close_locked(state, may)
    }

    /// The same for who holds that lock.
    pub(super) fn close_locked(&self, state: &ShardState, may: impl Fn(&Arc<Shard>) -> bool) -> Result<bool, Error> {
        let mut current = state.current.write();
        let Some(shard) = current.take_if(|shard| may(shard)) else { return Ok(false) };
        drop(current);
        let shut = shard.shut();
        self.release();
        shut.map(|()| true)
    }

    /// Closes what was not used for `idle_evict_after`, and forgets what is not worth remembering.
    pub(super) fn evict_idle(&self) {
        self.feed.expire();
        let now = self.clock.now().monotonic;
        for state in self.states() {
            if now.saturating_sub(state.last_used()) >= self.config.idle_evict_after {
                let _changing = state.changing.lock();
                self.close_if_idle(&state);
            }
        }
        if self.open_shard_count() > OPEN_SHARDS_MAX {
            // The applier went beyond it while all were in use.
            self.close_least_used(|| self.open_shard_count() <= OPEN_SHARDS_MAX);
        }
        self.states.write().retain(|_, state| Arc::strong_count(state) > 1 || !state.is_idle());
    }

    /// Evaluates a proposal on this node alone and commits what it writes, here and to `also`. The row is locked for
    /// as long, together with all others: it takes microseconds.
    pub(super) fn decide_locally(
        &self,
        shard: &Shard,
        proposal: &Proposal,
        wall: i64,
        also: impl FnOnce(&Frame),
    ) -> Decision {
        let mut local = self.local.lock();
        let stored = match shard.stored(&proposal.key) {
            Ok(stored) => stored,
            Err(error) => return Decision::Reject(Rejection::Refused(error.to_string())),
        };
        let below = stored.as_ref().map_or(Ballot::ZERO, |row| row.ballot).max(shard.gc_floor());
        if below > BALLOT_LOCAL_MAX {
            let why = format!("the row's version {below} leaves no room for another; delete it by hand");
            return Decision::Reject(Rejection::Refused(why));
        }
        if let Err(error) = local.clock.merge(below, wall) {
            return Decision::Reject(Rejection::Refused(error.to_string()));
        }
        let upd = local.clock.issue(wall);
        let before = stored.and_then(StoredRow::into_row);
        let outcome = proposal.update.evaluate(before, below, upd, self.config.value_bytes_max);
        if outcome.verdict == Verdict::Written {
            local.seq += 1;
            let op = outcome.after.as_ref().map_or(Op::Del, |row| Op::Put(row.value.clone()));
            let (shard, key, seq) = (proposal.shard.clone(), proposal.key.clone(), local.seq);
            let frame = Frame { shard, seq, key, op, upd, ballot: upd };
            self.on_commit(&frame);
            also(&frame);
        }
        Decision::Accept(outcome)
    }
}
