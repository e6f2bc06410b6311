//! Carries commands out against the store: the one place where both dialects meet it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::command::{Address, Batch, BatchOp, Consistency, Get, Scope, Write};
use super::error::{ApiError, Written};

use super::metrics::Metrics;
use super::room::Room;
use crate::clock::{Clock, OsClock};
use crate::cluster::status::{Govern, Observe, ShardStatus};
use crate::store::error::Error as StoreError;
use crate::store::feed::Feed;
use crate::store::replicator::Rejection;
use crate::store::update::{Outcome, Row, Update};
use crate::store::{CANONICAL_KINDS, Manager, Shard, ns_from_key};
use crate::types::{Key, Namespace, Org, SYSTEM_ORG, ShardId};

/// The most blocking jobs (pages, figures of a shard) of all connections at once.
const BLOCKING_JOBS_MAX: usize = 16;
/// How many copies of shards are on this node's disk at once; further ones wait.
pub(super) const COPIES_MAX: usize = 2;
/// The most operations of one batch under way at once.
const BATCH_CONCURRENCY_MAX: usize = 64;
/// The most bytes that the reads of one batch may answer together.
pub(super) const BATCH_REPLY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How often a shard is opened again that was closed as idle between its opening and its use.
pub(super) const REOPEN_ATTEMPTS_MAX: usize = 3;
/// How many whole lists of orgs are in memory at once; further ones wait, and are refused as busy then.
const ORG_LISTS_MAX: usize = 4;
/// How much longer than the client's timeout a proposal is waited for: the replicator's own timer should win, as it
/// knows whether anything was written.
const REPLICATOR_SLACK: Duration = Duration::from_millis(500);

/// The bounds that requests are held to.
#[derive(Debug, Clone)]
pub struct ServiceConfig {
    /// `key_size_max`, in bytes.
    pub key_bytes_max: usize,
    /// `value_size_max`, in bytes.
    pub value_bytes_max: usize,
    /// How many bytes of input all connections may buffer together, beyond a small allowance for each.
    pub input_bytes_max: usize,
    /// How long a request without a timeout of its own waits.
    pub timeout_default: Duration,
    /// The longest timeout a request may name.
    pub timeout_max: Duration,
}

/// Carries out commands. One per node, shared by every connection.
pub struct Service {
    config: ServiceConfig,
    pub(super) room: Arc<Room>,
    manager: Arc<Manager>,
    observe: Arc<dyn Observe>,
    govern: Option<Arc<dyn Govern>>,
    pub(super) clock: Arc<dyn Clock>,
    blocking: Arc<Semaphore>,
    org_lists: Arc<Semaphore>,
    pub(super) copies: Arc<Semaphore>,
    draining: AtomicBool,
    in_flight: TaskTracker,
    pub(super) metrics: Metrics,
}

impl Service {
    /// A service over `manager`, which has its replicator already. Without `govern` the cluster can't be changed through it.
    #[must_use]
    pub fn new(
        config: ServiceConfig,
        manager: Arc<Manager>,
        observe: Arc<dyn Observe>,
        govern: Option<Arc<dyn Govern>>,
    ) -> Arc<Self> {
        let room = Room::new(config.input_bytes_max);
        Arc::new(Self {
            config,
            room,
            manager,
            observe,
            govern,
            clock: OsClock::shared(),
            blocking: Arc::new(Semaphore::new(BLOCKING_JOBS_MAX)),
            org_lists: Arc::new(Semaphore::new(ORG_LISTS_MAX)),
            copies: Arc::new(Semaphore::new(COPIES_MAX)),
            draining: AtomicBool::new(false),
            in_flight: TaskTracker::new(),
            metrics: Metrics::new(),
        })
    }

    /// From now on writes and copies are refused as busy, and watches end; reads go on. Cannot be taken back.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
        self.feed().close();
        self.in_flight.close();
    }

    /// Requests under way that wait for something: every write, every page, every copy that is made.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// After [`Service::drain`]: waits until no request is under way.
    pub async fn drained(&self) {
        self.in_flight.wait().await;
    }

    /// The bounds that requests are held to.
    #[must_use]
    pub fn config(&self) -> &ServiceConfig {
        &self.config
    }

    pub(super) fn manager(&self) -> &Manager {
        &self.manager
    }

    /// Who changes the cluster.
    pub(super) fn govern(&self) -> Result<&dyn Govern, ApiError> {
        if self.is_draining() {
            return Err(ApiError::Busy("this node is shutting down; ask another".to_owned()));
        }
        self.govern
            .as_deref()
            .ok_or_else(|| ApiError::NotSupported("there is no cluster behind this socket".to_owned()))
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// What changes.
    pub(super) fn feed(&self) -> &Arc<Feed> {
        self.manager.feed()
    }

    pub(super) fn observe(&self) -> &dyn Observe {
        &*self.observe
    }

    /// Time since some fixed moment, to take differences of.
    pub(super) fn monotonic(&self) -> Duration {
        self.clock.now().monotonic
    }

    /// Counts a request as under way for as long as the token lives.
    pub(super) fn begin(&self) -> TaskTrackerToken {
        self.in_flight.token()
    }

    /// Counts a request as under way, unless the node drains.
    pub(super) fn begin_unless_draining(&self) -> Result<TaskTrackerToken, ApiError> {
        // Counted before the flag is looked at, so that a drain either sees this request or refuses it.
        let token = self.begin();
        self.check_not_draining()?;
        Ok(token)
    }

    /// Refuses what would only be cut off: the node is about to stop.
    pub(super) fn check_not_draining(&self) -> Result<(), ApiError> {
        if self.is_draining() {
            return Err(ApiError::Busy("this node is shutting down; its peers serve on".to_owned()));
        }
        Ok(())
    }

    fn begin_write(&self) -> Result<TaskTrackerToken, ApiError> {
        let token = self.begin_unless_draining()?;
        if self.manager.is_overloaded() {
            let backlog = self.manager.apply_backlog();
            return Err(ApiError::Busy(format!("{backlog} committed frames wait for their shard files")));
        }
        Ok(token)
    }

    /// The timeout to use where a client asked for `wanted`.
    pub(super) fn timeout(&self, wanted: Option<Duration>) -> Duration {
        wanted.unwrap_or(self.config.timeout_default).min(self.config.timeout_max)
    }

    /// Where `key` lives when it was sent without a namespace over a connection to `shard`: a key in the canonical
    /// layout in the namespace it names, any other in the connection's.
    pub(super) fn route<'a>(shard: &'a ShardId, key: &str) -> Result<Cow<'a, ShardId>, ApiError> {
        let elsewhere = namespace_in(key).filter(|namespace| *namespace != shard.namespace.as_str());
        let Some(namespace) = elsewhere else { return Ok(Cow::Borrowed(shard)) };
        Ok(Cow::Owned(ShardId { org: shard.org.clone(), namespace: Namespace::parse(namespace)? }))
    }

    /// The shard, if it can be read without waiting for it to be opened.
    pub(super) fn open_shard(&self, shard: &ShardId) -> Option<Arc<Shard>> {
        if self.has_copy(shard) { self.manager.cached(shard) } else { None }
    }

    /// Reads one key. A local read of a shard that is not stored here finds nothing and creates nothing.
    pub async fn get(&self, get: Get) -> Result<Option<Row>, ApiError> {
        if get.consistency == Consistency::Quorum {
            // Not counted: these go on until the replicator takes no more, and would keep a drain from ever ending.
            return self.read_quorum(get.at, get.timeout).await;
        }
        let _token = self.begin();
        match self.read_local(&get.at, self.timeout(get.timeout)).await {
            Ok(row) => Ok(row),
            // A restart left the key's last write undecided; a quorum read settles it.
            Err(StoreError::Unsettled) => {
                self.read_quorum(get.at, get.timeout).await.map_err(ApiError::timeout_as_no_quorum)
            }
            Err(error) => Err(ApiError::from_store(error, Written::No)),
        }
    }

    async fn read_local(&self, at: &Address, within: Duration) -> Result<Option<Row>, StoreError> {
        let mut attempts = 0;
        loop {
            if !self.has_copy(&at.shard) && !self.has_own(at).await? {
                let fetched = tokio::time::timeout(within, self.fetch_copy(&at.shard)).await;
                fetched.map_err(|_| Rejection::no_copy_within(&at.shard, within))??;
            }
            let Some(shard) = self.manager.find(&at.shard).await? else { return Ok(None) };
            match shard.read(&at.key) {
                Err(StoreError::Closed) if attempts < REOPEN_ATTEMPTS_MAX => attempts += 1,
                read => return read,
            }
        }
    }

    /// Whether a local write of this node is what it shows of the key, whatever else of the shard is here.
    async fn has_own(&self, at: &Address) -> Result<bool, StoreError> {
        Ok(self.manager.find(&at.shard).await?.is_some_and(|shard| shard.has_own(&at.key)))
    }

    async fn read_quorum(&self, at: Address, timeout: Option<Duration>) -> Result<Option<Row>, ApiError> {
        Ok(self.update(at, Update::read(), Consistency::Quorum, timeout, Written::No).await?.after)
    }

    /// Carries out one update. That its condition does not hold is an outcome, not an error.
    pub async fn write(&self, write: Write) -> Result<Outcome, ApiError> {
        let _token = self.begin_write()?;
        let Write { at, update, consistency, timeout } = write;
        if consistency == Consistency::Local && update.blind().is_none() {
            return Err(not_blind());
        }
        self.update(at, update, consistency, timeout, Written::Unknown).await
    }

    async fn update(
        &self,
        at: Address,
        update: Update,
        consistency: Consistency,
        timeout: Option<Duration>,
        on_failure: Written,
    ) -> Result<Outcome, ApiError> {
        let timeout = self.timeout(timeout);
        let run = async {
            let mut attempts = 0;
            loop {
                let shard = self.manager.get(&at.shard).await?;
                let ended = match consistency {
                    Consistency::Quorum => shard.update(&at.key, update.clone(), Some(timeout)).await,
                    Consistency::Local => shard.write_local(&at.key, update.clone(), Some(timeout)).await,
                };
                match ended {
                    // Said before anything is proposed.
                    Err(StoreError::Closed) if attempts < REOPEN_ATTEMPTS_MAX => attempts += 1,
                    ended => return ended,
                }
            }
        };
        match tokio::time::timeout(timeout + REPLICATOR_SLACK, run).await {
            Ok(ended) => ended.map_err(|error| ApiError::from_store(error, on_failure)),
            Err(_) => Err(ApiError::Timeout(on_failure)),
        }
    }

    /// Carries out a batch; one result per operation, in its order. A write's result is its outcome; a read's has the
    /// row as `after`.
    pub async fn batch(&self, mut batch: Batch) -> Vec<Result<Outcome, ApiError>> {
        let count = batch.ops.len();
        let mut by_key: HashMap<Key, Vec<(usize, BatchOp)>> = HashMap::new();
        for (place, op) in std::mem::take(&mut batch.ops).into_iter().enumerate() {
            by_key.entry(op.key().clone()).or_default().push((place, op));
        }
        let reply_bytes = AtomicUsize::new(0);
        let chain = |ops: Vec<(usize, BatchOp)>| {
            let (batch, reply_bytes) = (&batch, &reply_bytes);
            async move {
                let mut ended = Vec::with_capacity(ops.len());
                for (place, op) in ops {
                    let result = self.batch_op(batch, op, reply_bytes).await;
                    ended.push((place, result));
                }
                ended
            }
        };
        let mut results: Vec<Option<Result<Outcome, ApiError>>> = (0..count).map(|_| None).collect();
        let (mut waiting, mut running) = (by_key.into_values(), FuturesUnordered::new());
        running.extend(waiting.by_ref().take(BATCH_CONCURRENCY_MAX).map(chain));
        while let Some(ended) = running.next().await {
            running.extend(waiting.next().map(chain));
            for (place, result) in ended {
                if let Some(slot) = results.get_mut(place) {
                    *slot = Some(result);
                }
            }
        }
        let lost = || Err(ApiError::Internal { detail: "a result was lost".to_owned(), written: Written::Unknown });
        results.into_iter().map(|result| result.unwrap_or_else(lost)).collect()
    }

    async fn batch_op(&self, batch: &Batch, op: BatchOp, reply_bytes: &AtomicUsize) -> Result<Outcome, ApiError> {
        let (at, timeout) = (|key| Address { shard: batch.shard.clone(), key }, batch.timeout);
        match op {
            BatchOp::Write(key, update) => {
                self.write(Write { at: at(key), update, consistency: batch.writes, timeout }).await
            }
            BatchOp::Get(key) => {
                let row = self.get(Get { at: at(key), consistency: batch.reads, timeout }).await?;
                let bytes = row.as_ref().map_or(0, |row| row.value.as_bytes().len());
                if reply_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > BATCH_REPLY_BYTES_MAX {
                    let why = format!("the values read exceed {BATCH_REPLY_BYTES_MAX} bytes; read fewer keys at once");
                    return Err(ApiError::TooLarge(why));
                }
                Ok(Outcome { verdict: crate::store::update::Verdict::Unchanged, before: row.clone(), after: row })
            }
        }
    }

    /// The shard if anything is stored in it. Never creates it; where this node has no copy of it yet, that is waited for.
    pub(super) async fn find(&self, shard: &ShardId) -> Result<Option<Arc<Shard>>, ApiError> {
        self.fetch_copy(shard).await.map_err(|error| ApiError::from_store(error, Written::No))?;
        self.find_here(shard).await
    }

    /// The shard if it is stored here.
    async fn find_here(&self, shard: &ShardId) -> Result<Option<Arc<Shard>>, ApiError> {
        self.manager.find(shard).await.map_err(|error| ApiError::from_store(error, Written::No))
    }

    /// Why a list came to nothing in time.
    pub(super) fn late(&self, scope: &Scope, within: Duration) -> ApiError {
        match scope {
            Scope::Shard(shard) if !self.has_copy(shard) => Rejection::no_copy_within(shard, within).into(),
            _ => ApiError::Timeout(Written::No),
        }
    }

    fn has_copy(&self, shard: &ShardId) -> bool {
        self.manager.replicator().is_none_or(|replicator| replicator.has_copy(shard))
    }

    /// Has a copy of the shard fetched where there is none; nobody waits for it.
    pub(super) fn want_copy(&self, shard: &ShardId) {
        if let Some(replicator) = self.manager.replicator() {
            replicator.want_copy(shard);
        }
    }

    async fn fetch_copy(&self, shard: &ShardId) -> Result<(), StoreError> {
        match self.manager.replicator().filter(|replicator| !replicator.has_copy(shard)) {
            Some(replicator) => Ok(replicator.fetch_copy(shard).await?),
            None => Ok(()),
        }
    }

    /// Runs a blocking job of the store's where it may block, with a bound on how many do at once.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let _token = self.begin();
        let internal = |detail: String| ApiError::Internal { detail, written: Written::No };
        let permit = Arc::clone(&self.blocking).acquire_owned().await.map_err(|why| internal(why.to_string()))?;
        let run = move || {
            // Held by the job itself, which outlives a client that hangs up.
            let _permit = permit;
            job()
        };
        match crate::blocking::spawn(run).await {
            Ok(ended) => ended.map_err(|error| ApiError::from_store(error, Written::No)),
            Err(panicked) => Err(internal(format!("a job of the store ended early: {panicked}"))),
        }
    }

    /// Waits for the turn to have a whole list of an org in memory.
    pub(super) async fn org_list_turn(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        match tokio::time::timeout(self.config.timeout_default, Arc::clone(&self.org_lists).acquire_owned()).await {
            Ok(Ok(turn)) => Ok(turn),
            _ => Err(ApiError::Busy("too many lists of orgs are under way; try again".to_owned())),
        }
    }

    /// The orgs that have something stored here, sorted, without what the cluster keeps of itself.
    pub async fn orgs(&self) -> Result<Vec<Org>, ApiError> {
        let manager = Arc::clone(&self.manager);
        let orgs = self.blocking(move || manager.orgs()).await?;
        Ok(orgs.into_iter().filter(|org| org.as_str() != SYSTEM_ORG).collect())
    }

    /// The shards of `org` stored here, sorted.
    pub async fn shards_of(&self, org: Org) -> Result<Vec<ShardId>, ApiError> {
        let manager = Arc::clone(&self.manager);
        self.blocking(move || manager.shards_of(&org)).await
    }

    /// The shards of `org` stored anywhere, sorted. Where this node does not hold every shard it takes a majority to tell.
    pub(super) async fn every_shard_of(&self, org: Org) -> Result<Vec<ShardId>, ApiError> {
        let mut shards = self.shards_of(org.clone()).await?;
        if let Some(replicator) = self.manager.replicator().filter(|replicator| !replicator.holds_every_shard()) {
            shards.extend(replicator.shards().await?.into_iter().filter(|shard| shard.org == org));
            shards.sort();
            shards.dedup();
        }
        Ok(shards)
    }

    /// How many bytes the shards of `shard`'s org take up on this node's disk, about. It opens `shard`, if that is there: of
    /// a shard that is open, room that deletions left does not count.
    pub(super) async fn stored_bytes(&self, shard: &ShardId) -> Result<u64, ApiError> {
        let (manager, org) = (Arc::clone(&self.manager), shard.org.clone());
        let _held_open = self.find_here(shard).await?;
        self.blocking(move || manager.stored_bytes(&org)).await
    }

    /// Figures of every shard of `org`, or of all orgs, that `shows` lets through.
    pub async fn shard_statuses(
        &self,
        org: Option<Org>,
        shows: &(impl Fn(&ShardId) -> bool + Sync),
    ) -> Result<Vec<ShardStatus>, ApiError> {
        let orgs = match org {
            Some(org) => vec![org],
            None => self.orgs().await?,
        };
        let (membership, in_step) = (self.observe.membership(), self.observe.in_step());
        let mut statuses = Vec::new();
        for org in orgs {
            for id in self.shards_of(org).await?.into_iter().filter(shows) {
                let Some(shard) = self.find_here(&id).await? else { continue };
                let stats = self.blocking(move || shard.stats()).await?;
                statuses.push(ShardStatus {
                    org: id.org.to_string(),
                    namespace: id.namespace.to_string(),
                    keys: stats.keys,
                    bytes: stats.bytes,
                    last_upd: stats.last_upd,
                    tombstones: stats.tombstones,
                    replicas: membership.replica_names(&id),
                    in_step: in_step.clone(),
                });
            }
        }
        Ok(statuses)
    }

    /// The number of live keys of a shard; 0 where it is not stored here.
    pub async fn count(&self, shard: &ShardId) -> Result<u64, ApiError> {
        let Some(shard) = self.find(shard).await? else { return Ok(0) };
        Ok(self.blocking(move || shard.stats()).await?.keys)
    }

    /// Writes a shard's WAL back into its file and truncates it.
    pub async fn checkpoint(&self, shard: &ShardId) -> Result<(), ApiError> {
        let _token = self.begin();
        let Some(found) = self.find_here(shard).await? else {
            return Err(ApiError::NotFound(format!("there is no shard {shard} on this node")));
        };
        found.checkpoint().await.map_err(|error| ApiError::from_store(error, Written::No))
    }
}

/// What a local write is told that is more than a write.
pub(super) fn not_blind() -> ApiError {
    let why = "a condition, and a change of the value that is there, need a quorum: leave consistency=local out, or write \
               a whole value without a condition";
    ApiError::Invalid(why.to_owned())
}

/// The namespace that a key of the canonical layout names; none for any other key.
pub(super) fn namespace_in(key: &str) -> Option<&str> {
    let (kind, namespace, _) = ns_from_key(key)?;
    CANONICAL_KINDS.contains(&kind).then_some(namespace)
}
