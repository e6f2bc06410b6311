//! Finding the rows that this node has missed and a peer has, and fetching them: what `replication/repair.rs` plans, asked
//! and installed. What is fetched goes through the journal like any other chosen record.
//!
//! Two nodes compare in both directions, each asking for itself, whenever they connect, and whenever the roots that they
//! gossip differ without need. `serve.rs` answers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use metrics::Counter;
use tokio::sync::{OwnedMutexGuard, mpsc, oneshot, watch};

use super::scan::Scanned;
use super::{Input, Rooms, floors};
use crate::clock::Clock as _;
use crate::cluster::membership::Membership;
use crate::replication::register::{Address, Record};
use crate::replication::repair::{Comparison, KEYS_PER_REQUEST_MAX, Next, is_forgotten, is_missed, portions};
use crate::replication::wire::{self, Answer, Collection, Malformed, Refused, Request, SHARDS_PER_ANSWER_MAX};
use crate::store::compare::{PAIRS_PER_SCAN_MAX, Place, Versions};
use crate::store::digest::{Buckets, Digest, Root, Summary};
use crate::store::replicator::Op;
use crate::store::{self, Shard};
use crate::telemetry;
use crate::transport::CallError;
use crate::types::{Ballot, Key, NodeId, ShardId, StorageId, Value};

/// How long after a failed comparison the next is tried.
const RETRY: Duration = Duration::from_secs(1);
/// How long what was accepted may take to be committed. Where its proposer has gone, it is completed after a second.
pub(super) const SETTLE_WITHIN: Duration = Duration::from_secs(10);
/// Between two looks of one comparison: what is on its way meanwhile arrives.
const LOOK_AGAIN: Duration = Duration::from_millis(300);
/// Shards that a peer may have.
const SHARDS_MAX: usize = 1 << 20;
/// How long one peer's rows may hold up the comparison with another's, so that both are not asked for the same.
pub(super) const TURN_MAX: Duration = Duration::from_secs(30);
/// How long a node that is level with a quorum lets one that has just come go first, whose rows are likely the older ones.
const NEWCOMER_FIRST: Duration = Duration::from_millis(300);
/// Committed frames that wait for their files, above which no more rows are fetched: clients' writes come first.
const APPLY_BACKLOG_MAX: u64 = 16_384;
/// How often that is looked at.
const APPLY_BACKLOG_POLL: Duration = Duration::from_millis(5);
/// Rows of this node whose versions are kept in memory while a peer's are compared with them; 16 bytes each.
const VERSIONS_MAX: usize = 2 << 20;
/// Rows that a node may find deleted by others while it was behind.
const FORGOTTEN_MAX: usize = 1 << 20;
/// Parts of answers that are on their way to the disk.
const INSTALLS_MAX: usize = 4;

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("the peer says: {0}")]
    Peer(String),
    #[error("the answer broke off or was of another kind")]
    Incomplete,
    #[error("the node asked has not installed joint epoch {epoch}, or does not vote as slot {slot}")]
    OtherEpoch { epoch: u64, slot: usize },
    #[error("{0}")]
    Change(String),
    #[error("the peer names more than {SHARDS_MAX} shards")]
    TooManyShards,
    #[error("what was fetched could not be taken in just now")]
    NotTakenIn,
    #[error("it may have promised ballots as far ahead as {0}: is one of the two clocks wrong?")]
    Ahead(Ballot),
    #[error("this node is stopping")]
    Stopping,
    #[error("this node is stopping, or too many wait already for what it has accepted; try again soon")]
    TurnedAway,
    #[error("this node does not refuse what is asked of it: another epoch, another disk, or too much at once")]
    NotRefused,
    #[error("too many rows were deleted while this node was behind; start it with an empty data directory")]
    TooFarBehind,
    #[error("records accepted before are still not settled after {SETTLE_WITHIN:?}: is there a quorum?")]
    Unsettled,
}

/// Compares everything with the peer of this number, fetches what was missed, says so, and at last whether the peer has
/// missed anything. A node that `is_level` with a quorum is in no hurry. Tries again where that fails. Ends by being
/// aborted when the peer is lost.
pub(super) async fn catch_up(peer: usize, node: NodeId, rooms: Rooms, is_level: bool) {
    let task = tokio::task::id();
    if is_level {
        tokio::time::sleep(NEWCOMER_FIRST).await;
    }
    let ended = |outcome| metrics::counter!(telemetry::COMPARISONS, "outcome" => outcome).increment(1);
    loop {
        let began = rooms.clock.now().monotonic;
        let mut with = With::new(&node, &rooms);
        let compared = with.compare(async |rows| {
            let took = rooms.clock.now().monotonic.saturating_sub(began);
            metrics::histogram!(telemetry::COMPARISON_SECONDS).record(took.as_secs_f64());
            // Nobody listens any more only while the node stops.
            let _ = rooms.inputs.send(Input::CaughtUp { peer, task, rows }).await;
        });
        match compared.await {
            Ok(same) => {
                ended(if same { "same" } else { "different" });
                let _ = rooms.inputs.send(Input::Compared { peer, task, same }).await;
                return;
            }
            Err(error) => {
                ended("failed");
                tracing::warn!(peer = %node, %error, "comparing rows failed; it is tried again");
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// A comparison under way.
pub(super) struct With<'a> {
    node: &'a NodeId,
    rooms: &'a Rooms,
    /// Rows fetched.
    rows: u64,
    /// The latest parts of them, each until it is on the disk.
    installing: VecDeque<oneshot::Receiver<()>>,
    bytes: Counter,
    compared: Counter,
}

impl<'a> With<'a> {
    pub(super) fn new(node: &'a NodeId, rooms: &'a Rooms) -> Self {
        let (bytes, compared) = (telemetry::COMPARED_BYTES, telemetry::COMPARED_ROWS);
        let (bytes, compared) = (metrics::counter!(bytes), metrics::counter!(compared));
        Self { node, rooms, rows: 0, installing: VecDeque::new(), bytes, compared }
    }

    /// True where both turn out to hold the same. `caught_up` is told how many rows were fetched once nothing is missing
    /// here that was there in the beginning.
    async fn compare(&mut self, caught_up: impl AsyncFnOnce(u64)) -> Result<bool, Error> {
        self.follow(&self.rooms.followed(), true).await?;
        let mut comparison = Comparison::default();
        let differing = {
            let holding = self.rooms.holding();
            self.differing_shards(|shard| holding.is_mine(shard) && holding.is_of(self.node, shard)).await?
        };
        let mut next = self.look(&mut comparison, differing).await?;
        caught_up(self.rows).await;
        while next == Next::Again {
            tokio::time::sleep(LOOK_AGAIN).await;
            let shards = comparison.shards();
            next = self.look(&mut comparison, shards).await?;
        }
        Ok(next == Next::Same)
    }

    /// Fetches all rows of `shard` that are newer there, with what the peer had only accepted before.
    pub(super) async fn level(&mut self, shard: &ShardId) -> Result<(), Error> {
        self.ask(&Request::Settle(shard.clone())).await?.end().await?;
        let _turn = self.turn().await;
        self.fetch_newer(&mut Comparison::default(), shard).await
    }

    /// Fetches all rows of these shards that the peer had or had voted for, as the voter of this slot, when it installed this
    /// joint epoch. Returns the highest ballot that it may have promised before.
    pub(super) async fn scan(
        &mut self,
        epoch: u64,
        slot: usize,
        is_meant: impl Fn(&ShardId) -> bool,
    ) -> Result<Ballot, Error> {
        self.inherited(epoch, slot).await?;
        self.fetch_all(&is_meant).await?;
        // A record that was voted for again is above any vote between, which may yet be open here.
        for shard in self.shards().await?.into_keys().filter(is_meant) {
            self.fetch_raised(&shard).await?;
        }
        // The same disk still: one that has come in its place meanwhile has nothing to show.
        self.inherited(epoch, slot).await
    }

    async fn inherited(&self, epoch: u64, slot: usize) -> Result<Ballot, Error> {
        match self.ask_once(&Request::Inherited { epoch, slot }).await? {
            Answer::Ceiling(ceiling) => Ok(ceiling),
            _ => Err(Error::Incomplete),
        }
    }

    async fn fetch_raised(&mut self, shard: &ShardId) -> Result<(), Error> {
        let mut answers = self.ask(&Request::Raised(shard.clone())).await?;
        while let Some(answer) = answers.next().await? {
            let Answer::Pairs(pairs) = answer else { return Err(Error::Incomplete) };
            let open = self.rooms.manager.get(shard).await?;
            let below = move || {
                let is_below = |(key, ballot): (Key, Ballot)| -> Option<Result<Key, store::Error>> {
                    match open.stored(&key) {
                        Ok(row) => row.is_none_or(|row| row.ballot < ballot).then_some(Ok(key)),
                        Err(error) => Some(Err(error)),
                    }
                };
                pairs.into_iter().filter_map(is_below).collect::<Result<Vec<_>, _>>()
            };
            for keys in portions(blocking(below).await?) {
                self.fetch(shard, keys).await?;
            }
        }
        self.wait_installed(0).await
    }

    /// Fetches all rows of these shards that are newer there.
    pub(super) async fn fetch_all(&mut self, is_meant: impl Fn(&ShardId) -> bool) -> Result<(), Error> {
        let shards = self.differing_shards(is_meant).await?;
        self.look(&mut Comparison::default(), shards).await.map(drop)
    }

    /// With whom the peer has compared its rows in a joint epoch.
    pub(super) async fn scanned(&self) -> Result<Scanned, Error> {
        match self.ask_once(&Request::Scanned).await? {
            Answer::Scanned(epoch, with) => Ok(Scanned { epoch, with }),
            _ => Err(Error::Incomplete),
        }
    }

    /// Has the peer tell of what is chosen in these shards from now on, and, where this begins `anew`, in no others.
    pub(super) async fn follow(&self, shards: &[ShardId], anew: bool) -> Result<(), Error> {
        let (first, rest) = shards.split_at(shards.len().min(SHARDS_PER_ANSWER_MAX));
        self.ask(&Request::Follow { shards: first.to_vec(), anew }).await?.end().await?;
        for shards in rest.chunks(SHARDS_PER_ANSWER_MAX).map(<[ShardId]>::to_vec) {
            self.ask(&Request::Follow { shards, anew: false }).await?.end().await?;
        }
        Ok(())
    }

    /// The shards that both hold, in one number, as the peer sees it.
    pub(super) async fn root(&self) -> Result<Root, Error> {
        match self.ask_once(&Request::Root).await? {
            Answer::Root(root) => Ok(Root(root)),
            _ => Err(Error::Incomplete),
        }
    }

    /// Waits until the peer has all that a majority has of what it is to replicate by `next`.
    pub(super) async fn wait_level(&self, next: &Membership) -> Result<(), Error> {
        self.ask(&Request::Level(Value::from(next.encode()))).await?.end().await
    }

    /// Has the peer give this disk a slot.
    pub(super) async fn register(&self, disk: StorageId) -> Result<(), Error> {
        self.ask(&Request::Register(disk)).await?.end().await
    }

    /// The shards that the peer stores, once all that was chosen before is visible there.
    pub(super) async fn shards(&self) -> Result<BTreeMap<ShardId, Summary>, Error> {
        let mut theirs = BTreeMap::new();
        let mut answers = self.ask(&Request::Shards).await?;
        while let Some(answer) = answers.next().await? {
            let Answer::Shards(some) = answer else { return Err(Error::Incomplete) };
            theirs.extend(some);
            if theirs.len() > SHARDS_MAX {
                return Err(Error::TooManyShards);
            }
        }
        Ok(theirs)
    }

    /// Has the peer refuse what is below a floor.
    pub(super) async fn refuse(&self, collection: &Collection) -> Result<Refused, Error> {
        match self.ask_once(&Request::Refuse(collection.clone())).await? {
            Answer::Refused(refused) => Ok(refused),
            _ => Err(Error::Incomplete),
        }
    }

    /// What the peer holds below it.
    pub(super) async fn old(&self, collection: &Collection, above: Ballot) -> Result<Digest, Error> {
        self.ask_digest(&Request::Old(collection.clone(), above)).await
    }

    /// Has the peer raise its floor, if its disk is that one.
    pub(super) async fn forget(&self, collection: &Collection, storage_id: StorageId) -> Result<(), Error> {
        self.ask(&Request::Forget(collection.clone(), storage_id)).await?.end().await
    }

    async fn differing_shards(&self, is_meant: impl Fn(&ShardId) -> bool) -> Result<Vec<ShardId>, Error> {
        let mut theirs = self.shards().await?;
        let manager = self.rooms.manager.clone();
        let mut mine = blocking(move || manager.summaries()).await?;
        theirs.retain(|shard, _| is_meant(shard));
        mine.retain(|shard, _| is_meant(shard));
        Ok(Comparison::begin(&mine, &theirs))
    }

    async fn look(&mut self, comparison: &mut Comparison, shards: Vec<ShardId>) -> Result<Next, Error> {
        for shard in shards {
            let _turn = self.turn().await;
            self.fetch_newer(comparison, &shard).await?;
        }
        Ok(comparison.end_look())
    }

    async fn fetch_newer(&mut self, comparison: &mut Comparison, shard: &ShardId) -> Result<(), Error> {
        let theirs = self.digest(shard).await?;
        let mine = match self.rooms.manager.find(shard).await? {
            Some(open) => blocking(move || open.digest()).await?,
            None => Digest::new(Ballot::ZERO),
        };
        let buckets = comparison.buckets(shard, &mine, &theirs);
        let is_behind = theirs.floor() > mine.floor();
        if !comparison.is_first_look() || (buckets.is_empty() && !is_behind) {
            return Ok(());
        }
        let _fetching = Fetching::begin(&self.rooms.fetches);
        // Not before: a shard that nobody stores is not made by being asked for.
        let open = self.rooms.manager.get(shard).await?;
        if !buckets.is_empty() {
            self.fetch_missed(&open, shard, buckets.clone()).await?;
        }
        self.wait_installed(0).await?;
        if is_behind {
            self.adopt_floor(open, shard, theirs.floor(), buckets).await?;
        }
        Ok(())
    }

    /// Takes over the peer's GC floor, below which it has forgotten deletions; to be called once all rows that are newer
    /// there have been fetched. What is here up to the floor and not there, which shows in these buckets, was deleted while
    /// this node was away, and goes. So a new replica gets the floor before it votes, one that a collection did not come to
    /// makes up for it, and a copy that lay around for long brings nothing back.
    async fn adopt_floor(
        &mut self,
        open: Arc<Shard>,
        shard: &ShardId,
        floor: Ballot,
        buckets: Buckets,
    ) -> Result<(), Error> {
        let (mut forgotten, mut left) = (Vec::new(), buckets);
        while !left.is_empty() {
            let mut theirs = Versions::out_of(left.clone());
            let mut answers = self.ask(&Request::Pairs(shard.clone(), left.clone())).await?;
            while let Some(answer) = answers.next().await? {
                let Answer::Pairs(pairs) = answer else { return Err(Error::Incomplete) };
                theirs.add(&pairs, VERSIONS_MAX);
            }
            theirs.sort();
            let listed = theirs.buckets.clone();
            let own = open.clone();
            forgotten.extend(blocking(move || deleted_since(&own, &theirs, floor)).await?);
            if listed.is_empty() || forgotten.len() > FORGOTTEN_MAX {
                return Err(Error::TooFarBehind);
            }
            left = left.and(&listed.not());
        }
        floors::adopt(self.rooms, open, shard, floor, forgotten).await
    }

    /// Waits for other comparisons that fetch rows, which may well be the same.
    async fn turn(&self) -> Option<OwnedMutexGuard<()>> {
        tokio::time::timeout(TURN_MAX, self.rooms.fetching.clone().lock_owned()).await.ok()
    }

    async fn digest(&self, shard: &ShardId) -> Result<Digest, Error> {
        self.ask_digest(&Request::Digest(shard.clone())).await
    }

    async fn fetch_missed(&mut self, open: &Arc<Shard>, shard: &ShardId, buckets: Buckets) -> Result<(), Error> {
        let mut answers = self.ask(&Request::Pairs(shard.clone(), buckets.clone())).await?;
        let own = open.clone();
        let versions = Arc::new(blocking(move || own.versions(&buckets, VERSIONS_MAX)).await?);
        let mut wanted = Vec::new();
        while let Some(answer) = answers.next().await? {
            let Answer::Pairs(pairs) = answer else { return Err(Error::Incomplete) };
            self.compared.increment(pairs.len() as u64);
            let (open, versions) = (open.clone(), versions.clone());
            wanted.extend(blocking(move || missed(&open, &versions, pairs)).await?);
            if wanted.len() > KEYS_PER_REQUEST_MAX {
                let mut whole = portions(wanted);
                wanted = whole.pop().unwrap_or_default();
                for keys in whole {
                    self.fetch(shard, keys).await?;
                }
            }
        }
        for keys in portions(wanted) {
            self.fetch(shard, keys).await?;
        }
        Ok(())
    }

    async fn fetch(&mut self, shard: &ShardId, keys: Vec<Key>) -> Result<(), Error> {
        let mut answers = self.ask(&Request::Rows(shard.clone(), keys)).await?;
        while let Some(answer) = answers.next().await? {
            let Answer::Rows(rows) = answer else { return Err(Error::Incomplete) };
            self.rows += rows.len() as u64;
            self.install(shard, rows).await?;
        }
        Ok(())
    }

    /// Hands rows to the register, a few parts at a time: what is fetched never waits for the disk in heaps.
    async fn install(&mut self, shard: &ShardId, rows: Vec<(Key, Record)>) -> Result<(), Error> {
        while self.rooms.manager.apply_backlog() > APPLY_BACKLOG_MAX {
            tokio::time::sleep(APPLY_BACKLOG_POLL).await;
        }
        self.wait_installed(INSTALLS_MAX - 1).await?;
        let address = |key| Address { shard: shard.clone(), key };
        let rows = rows.into_iter().map(|(key, record)| (address(key), record)).collect();
        let (done, durable) = oneshot::channel();
        self.rooms.inputs.send(Input::Install { rows, done }).await.map_err(|_| Error::Stopping)?;
        self.installing.push_back(durable);
        Ok(())
    }

    /// Waits until no more than so many parts that were handed to the register are not on the disk yet.
    async fn wait_installed(&mut self, parts_max: usize) -> Result<(), Error> {
        while self.installing.len() > parts_max
            && let Some(durable) = self.installing.pop_front()
        {
            durable.await.map_err(|_| Error::NotTakenIn)?;
        }
        Ok(())
    }

    async fn ask_digest(&self, request: &Request) -> Result<Digest, Error> {
        match self.ask_once(request).await? {
            Answer::Digest(digest) => Ok(digest),
            _ => Err(Error::Incomplete),
        }
    }

    /// Asks for what is answered in one part.
    async fn ask_once(&self, request: &Request) -> Result<Answer, Error> {
        let mut answers = self.ask(request).await?;
        let answer = answers.next().await?.ok_or(Error::Incomplete)?;
        answers.end().await?;
        Ok(answer)
    }

    async fn ask(&self, request: &Request) -> Result<Answers, Error> {
        let parts = self.rooms.transport.call(self.node, wire::encode(request)?).await?;
        Ok(Answers { parts, bytes: self.bytes.clone() })
    }
}

/// Those keys of which the peer has a newer row.
fn missed(open: &Shard, versions: &Versions, pairs: Vec<(Key, Ballot)>) -> Result<Vec<Key>, store::Error> {
    let mut missed = Vec::new();
    for (key, theirs) in pairs {
        let mine = match versions.of(&key) {
            Some(known) => known,
            None => open.stored(&key)?.map(|row| row.upd),
        };
        if is_missed(theirs, mine, open.gc_floor()) {
            missed.push(key);
        }
    }
    Ok(missed)
}

/// The live keys here, in the buckets that `theirs` is of, that the peer has deleted and forgotten since.
fn deleted_since(open: &Shard, theirs: &Versions, floor: Ballot) -> Result<Vec<Key>, store::Error> {
    let (mut place, mut deleted) = (Place::Start, Vec::new());
    while place != Place::End {
        for (key, _) in open.next_pairs(&theirs.buckets, &mut place, PAIRS_PER_SCAN_MAX)? {
            let Some(theirs) = theirs.of(&key) else { continue };
            let live = open.stored(&key)?.filter(|row| row.op != Op::Del);
            if live.is_some_and(|row| is_forgotten(row.ballot, theirs, floor)) {
                deleted.push(key);
            }
        }
    }
    Ok(deleted)
}

/// Lasts as long as rows are fetched.
struct Fetching(watch::Sender<usize>);

impl Fetching {
    fn begin(fetches: &watch::Sender<usize>) -> Self {
        fetches.send_modify(|fetches| *fetches += 1);
        Self(fetches.clone())
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        self.0.send_modify(|fetches| *fetches -= 1);
    }
}

struct Answers {
    parts: mpsc::Receiver<Result<Bytes, CallError>>,
    bytes: Counter,
}

impl Answers {
    /// There must be no further part.
    async fn end(mut self) -> Result<(), Error> {
        self.next().await?.map_or(Ok(()), |_| Err(Error::Incomplete))
    }

    /// The next part; `None` after the last, which must have said that it was.
    async fn next(&mut self) -> Result<Option<Answer>, Error> {
        let part = self.parts.recv().await.ok_or(Error::Incomplete)??;
        self.bytes.increment(part.len() as u64);
        match wire::decode(&part)? {
            Answer::Done => Ok(None),
            Answer::Failed(reason) => Err(Error::Peer(reason)),
            answer => Ok(Some(answer)),
        }
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, store::Error> + Send + 'static,
) -> Result<T, Error> {
    crate::blocking::spawn(work).await.map_err(|_| Error::Stopping)?.map_err(Error::Store)
}
