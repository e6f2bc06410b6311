//! Fetching what was committed while this node was away, and handing out the same: a full comparison of `(key, upd)`
//! per shard with one peer, then the rows that are newer there. What is fetched goes through the journal like any
//! other chosen record.
//!
//! Two nodes compare in both directions, each asking for itself, whenever they connect.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::{Input, Rooms};
use crate::replication::register::{Address, Lineage, Record};
use crate::replication::wire::{
    self, Answer, KEYS_PER_REQUEST_MAX, Malformed, PAIRS_PER_ANSWER_MAX, ROWS_BYTES_PER_ANSWER, Request,
};
use crate::store::{self, Manager, StoredRow};
use crate::transport::{Call, CallError, REQUEST_BYTES_MAX};
use crate::types::{Ballot, Key, NodeId, ShardId};

/// Calls served at once, over all peers.
const CALLS_MAX: usize = 16;
/// Shards in one [`Answer::Shards`].
const SHARDS_PER_ANSWER_MAX: usize = 1024;
/// Bytes of keys in one [`Request::Rows`]: below what the transport takes, with room for the longest key.
const KEY_BYTES_PER_REQUEST: usize = REQUEST_BYTES_MAX / 2;
/// What a key takes on the wire beside its text, at most.
const KEY_OVERHEAD_BYTES: usize = 8;
/// How long after a failed comparison the next is tried.
const RETRY: Duration = Duration::from_secs(1);
/// How long what was accepted may take to be committed. Where its proposer has gone, it is completed after a second.
const SETTLE_WITHIN: Duration = Duration::from_secs(10);

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
    #[error("this node is stopping")]
    Stopping,
    #[error("records accepted before are still not settled after {SETTLE_WITHIN:?}: is there a quorum?")]
    Unsettled,
}

/// Compares everything with `node` until it succeeded once, then says so. Ends by being aborted when the peer is lost.
pub(super) async fn catch_up(peer: usize, node: NodeId, rooms: Rooms) {
    loop {
        match compare(&node, &rooms).await {
            Ok(rows) => {
                // Nobody listens any more only while the node stops.
                let _ = rooms.inputs.send(Input::InStep { peer, task: tokio::task::id(), rows }).await;
                return;
            }
            Err(error) => tracing::warn!(peer = %node, %error, "comparing rows failed; it is tried again"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn compare(node: &NodeId, rooms: &Rooms) -> Result<u64, Error> {
    let mut rows = 0;
    for shard in shards_of(node, rooms).await? {
        rows += compare_shard(node, rooms, &shard).await?;
    }
    Ok(rows)
}

/// The shards that `node` stores, once all that was chosen before is visible there.
pub(super) async fn shards_of(node: &NodeId, rooms: &Rooms) -> Result<Vec<ShardId>, Error> {
    let mut shards = Vec::new();
    let mut answers = Answers::ask(node, rooms, &Request::Shards).await?;
    while let Some(answer) = answers.next().await? {
        let Answer::Shards(some) = answer else { return Err(Error::Incomplete) };
        shards.extend(some);
    }
    Ok(shards)
}

/// Waits until all of `shard` that `node` had accepted before is committed there.
pub(super) async fn settle_at(node: &NodeId, rooms: &Rooms, shard: &ShardId) -> Result<(), Error> {
    let mut answers = Answers::ask(node, rooms, &Request::Settle(shard.clone())).await?;
    match answers.next().await? {
        None => Ok(()),
        Some(_) => Err(Error::Incomplete),
    }
}

/// Fetches the rows of `shard` that are newer at `node`; returns how many.
pub(super) async fn compare_shard(node: &NodeId, rooms: &Rooms, shard: &ShardId) -> Result<u64, Error> {
    let mut rows = 0;
    let mut answers = Answers::ask(node, rooms, &Request::Pairs(shard.clone())).await?;
    while let Some(answer) = answers.next().await? {
        let Answer::Pairs(pairs) = answer else { return Err(Error::Incomplete) };
        // Not before: a shard that nobody stores is not made by being asked for.
        let kept_open = rooms.manager.get(shard).await?;
        let open = kept_open.clone();
        let missed = blocking(move || {
            let is_newer = |(key, upd): &(Key, Ballot)| match open.stored(key) {
                Ok(row) => Ok(row.is_none_or(|row| row.upd < *upd)),
                Err(error) => Err(error),
            };
            let newer =
                pairs.into_iter().filter_map(|pair| is_newer(&pair).map(|newer| newer.then_some(pair.0)).transpose());
            newer.collect::<Result<Vec<Key>, store::Error>>()
        });
        for keys in portions(missed.await?) {
            rows += fetch(node, rooms, shard, keys).await?;
        }
        drop(kept_open);
    }
    Ok(rows)
}

/// Keys, as many as one request may name.
fn portions(keys: Vec<Key>) -> Vec<Vec<Key>> {
    let mut portions: Vec<Vec<Key>> = Vec::new();
    let mut bytes = 0;
    for key in keys {
        bytes += key.as_str().len() + KEY_OVERHEAD_BYTES;
        match portions.last_mut().filter(|some| some.len() < KEYS_PER_REQUEST_MAX && bytes <= KEY_BYTES_PER_REQUEST) {
            Some(some) => some.push(key),
            None => {
                bytes = key.as_str().len() + KEY_OVERHEAD_BYTES;
                portions.push(vec![key]);
            }
        }
    }
    portions
}

async fn fetch(node: &NodeId, rooms: &Rooms, shard: &ShardId, keys: Vec<Key>) -> Result<u64, Error> {
    let mut count = 0;
    let mut answers = Answers::ask(node, rooms, &Request::Rows(shard.clone(), keys)).await?;
    while let Some(answer) = answers.next().await? {
        let Answer::Rows(rows) = answer else { return Err(Error::Incomplete) };
        count += rows.len() as u64;
        let address = |key| Address { shard: shard.clone(), key };
        let rows = rows.into_iter().map(|(key, record)| (address(key), record)).collect();
        let (done, durable) = oneshot::channel();
        rooms.inputs.send(Input::Install { rows, done }).await.map_err(|_| Error::Stopping)?;
        // One part at a time: what is fetched never waits for the disk in heaps.
        durable.await.map_err(|_| Error::Stopping)?;
    }
    Ok(count)
}

struct Answers(mpsc::Receiver<Result<Bytes, CallError>>);

impl Answers {
    async fn ask(node: &NodeId, rooms: &Rooms, request: &Request) -> Result<Self, Error> {
        Ok(Self(rooms.transport.call(node, wire::encode(request)?).await?))
    }

    /// The next part; `None` after the last, which must have said that it was.
    async fn next(&mut self) -> Result<Option<Answer>, Error> {
        let part = self.0.recv().await.ok_or(Error::Incomplete)??;
        match wire::decode(&part)? {
            Answer::Done => Ok(None),
            Answer::Failed(reason) => Err(Error::Peer(reason)),
            answer => Ok(Some(answer)),
        }
    }
}

/// Serves peers that catch up, until the transport ends.
pub(super) async fn serve(mut calls: mpsc::Receiver<Call>, rooms: Rooms) {
    let at_once = std::sync::Arc::new(tokio::sync::Semaphore::new(CALLS_MAX));
    while let Some(call) = calls.recv().await {
        let Ok(permit) = at_once.clone().acquire_owned().await else { return };
        let rooms = rooms.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let last = match answer(&call, &rooms).await {
                Ok(()) => Answer::Done,
                Err(error) => Answer::Failed(error.to_string()),
            };
            // A peer that has gone needs no last word.
            let _ = say(&call, &last).await;
        });
    }
}

async fn answer(call: &Call, rooms: &Rooms) -> Result<(), Error> {
    let manager = &rooms.manager;
    match wire::decode(&call.request)? {
        Request::Shards => {
            meet(&call.node, rooms).await?;
            let manager = manager.clone();
            let shards = blocking(move || {
                let mut shards = Vec::new();
                for org in manager.orgs()? {
                    shards.extend(manager.shards_of(&org)?);
                }
                Ok(shards)
            });
            for some in shards.await?.chunks(SHARDS_PER_ANSWER_MAX) {
                say(call, &Answer::Shards(some.to_vec())).await?;
            }
            Ok(())
        }
        Request::Pairs(shard) => pairs(call, manager, &shard).await,
        Request::Rows(shard, keys) => rows(call, manager, &shard, keys).await,
        Request::Settle(shard) => settle(rooms, shard).await,
    }
}

/// Waits until this node's own driver knows the peer and all that was chosen before is visible: what is chosen from
/// then on is told, so that nothing falls between the comparison and that.
async fn meet(peer: &NodeId, rooms: &Rooms) -> Result<(), Error> {
    let (met, known) = oneshot::channel();
    rooms.inputs.send(Input::Meet { peer: peer.clone(), met }).await.map_err(|_| Error::Stopping)?;
    known.await.map_err(|_| Error::Stopping)
}

/// Waits until all of `shard` that this node had accepted before is committed here, and visible.
pub(super) async fn settle(rooms: &Rooms, shard: ShardId) -> Result<(), Error> {
    let (done, settled) = oneshot::channel();
    rooms.inputs.send(Input::Settle { shard, done }).await.map_err(|_| Error::Stopping)?;
    match tokio::time::timeout(SETTLE_WITHIN, settled).await {
        Ok(settled) => settled.map_err(|_| Error::Stopping),
        Err(_) => Err(Error::Unsettled),
    }
}

async fn pairs(call: &Call, manager: &Manager, shard: &ShardId) -> Result<(), Error> {
    let Some(open) = manager.find(shard).await? else { return Ok(()) };
    let mut after: Option<Key> = None;
    loop {
        let shard = open.clone();
        let from = after.take();
        let pairs = blocking(move || shard.pairs(from.as_ref(), PAIRS_PER_ANSWER_MAX)).await?;
        let Some((last, _)) = pairs.last() else { return Ok(()) };
        after = Some(last.clone());
        say(call, &Answer::Pairs(pairs)).await?;
    }
}

async fn rows(call: &Call, manager: &Manager, shard: &ShardId, keys: Vec<Key>) -> Result<(), Error> {
    let Some(open) = manager.find(shard).await? else { return Ok(()) };
    let mut keys = keys.into_iter().take(KEYS_PER_REQUEST_MAX).peekable();
    while keys.peek().is_some() {
        let shard = open.clone();
        let (rest, rows) = blocking(move || {
            let (mut rows, mut bytes) = (Vec::new(), 0);
            while bytes < ROWS_BYTES_PER_ANSWER
                && let Some(key) = keys.next()
            {
                // Deleted for good meanwhile: the asker will see it in its next comparison.
                let Some(StoredRow { op, upd, ballot }) = shard.stored(&key)? else { continue };
                bytes += key.as_str().len() + op.value().map_or(0, |value| value.as_bytes().len());
                rows.push((key, Record { ballot, upd, op, lineage: Lineage::default() }));
            }
            Ok((keys, rows))
        })
        .await?;
        keys = rest;
        say(call, &Answer::Rows(rows)).await?;
    }
    Ok(())
}

async fn say(call: &Call, answer: &Answer) -> Result<(), Error> {
    let broken = |_| CallError::Broken(call.node.clone(), "it stopped listening".to_owned());
    Ok(call.answers.send(wire::encode(answer)?).await.map_err(broken)?)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, store::Error> + Send + 'static,
) -> Result<T, Error> {
    crate::blocking::spawn(work).await.map_err(|_| Error::Stopping)?.map_err(Error::Store)
}
