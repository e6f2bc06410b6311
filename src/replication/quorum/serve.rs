//! Answering peers that compare their rows with this node's: see `catch_up.rs`, which asks.

use tokio::sync::mpsc;

use super::catch_up::{Error, TURN_MAX, blocking};
use super::scan::{Scanned, settle_inherited};
use super::{Input, Rooms, changing, floors, level, roots};
use crate::cluster::membership::Membership;
use crate::replication::register::{Lineage, Record};
use crate::replication::repair::KEYS_PER_REQUEST_MAX;
use crate::replication::wire::{
    self, Answer, PAIRS_PER_ANSWER_MAX, ROWS_BYTES_PER_ANSWER, ROWS_PER_ANSWER_MAX, Request, SHARDS_PER_ANSWER_MAX,
};
use crate::store::compare::{PAIRS_PER_SCAN_MAX, Place};
use crate::store::digest::{Buckets, Digest};
use crate::store::{Manager, StoredRow};
use crate::transport::{Call, CallError};
use crate::types::{Ballot, Key, ShardId};

/// Calls served at once, over all peers.
const CALLS_MAX: usize = 16;

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
            meet(call, rooms).await?;
            let manager = manager.clone();
            let shards: Vec<_> = blocking(move || manager.summaries()).await?.into_iter().collect();
            for some in shards.chunks(SHARDS_PER_ANSWER_MAX) {
                say(call, &Answer::Shards(some.to_vec())).await?;
            }
            Ok(())
        }
        Request::Digest(shard) => digest(call, rooms, &shard).await,
        Request::Pairs(shard, buckets) => pairs(call, manager, &shard, buckets).await,
        Request::Rows(shard, keys) => rows(call, manager, &shard, keys).await,
        Request::Settle(shard) => settle(rooms, shard).await,
        Request::Inherited { epoch, slot } => {
            settle_inherited(rooms, epoch, slot).await?;
            say(call, &Answer::Ceiling(rooms.greeter.figures().ceiling)).await
        }
        Request::Raised(shard) => raised(call, manager, &shard).await,
        Request::Scanned => {
            let Scanned { epoch, with } = rooms.scanned.lock().clone();
            say(call, &Answer::Scanned(epoch, with)).await
        }
        Request::Level(next) => {
            let next = Membership::decode(next.as_bytes()).map_err(|why| Error::Change(why.to_string()))?;
            level::all(rooms, &next).await.map_err(|why| Error::Change(why.to_string()))
        }
        Request::Follow { shards, anew } => {
            rooms.copies.follow(&call.node, shards, anew);
            meet(call, rooms).await
        }
        Request::Root => say(call, &Answer::Root(roots::shared(rooms, &call.node).await?.0)).await,
        Request::Register(disk) => {
            changing::register(rooms, &call.node, disk).await.map_err(|why| Error::Change(why.to_string()))
        }
        Request::Refuse(collection) => {
            let refused = floors::refuse(rooms, &collection).await?;
            say(call, &Answer::Refused(refused)).await
        }
        Request::Old(collection, above) => {
            let digest = floors::old(rooms, &collection, above).await?;
            say(call, &Answer::Digest(digest)).await
        }
        Request::Forget(collection, storage_id) => floors::forget(rooms, &collection, storage_id).await,
    }
}

/// Waits until this node's own driver knows the peer and all that was chosen before is visible: what is chosen from
/// then on is told, so that nothing falls between the comparison and that.
async fn meet(call: &Call, rooms: &Rooms) -> Result<(), Error> {
    tokio::select! {
        met = rooms.ask(|met| Input::Meet { peer: call.node.clone(), met }) => met?.ok_or(Error::Stopping),
        // It may never come back, and whoever waits takes a place from others.
        () = call.answers.closed() => Err(Error::TurnedAway),
    }
}

/// Waits until all of `shard` that this node had accepted before is committed here, and visible.
pub(super) async fn settle(rooms: &Rooms, shard: ShardId) -> Result<(), Error> {
    rooms.settled(|done| Input::Settle { shard, done }, Error::TurnedAway).await
}

/// Waits for rows that are being fetched: what they replace would be listed and compared in vain. The wait ends in any
/// case, as nothing that a fetch asks for waits in turn.
async fn digest(call: &Call, rooms: &Rooms, shard: &ShardId) -> Result<(), Error> {
    let mut fetches = rooms.fetches.subscribe();
    // Too long a wait: then as it is.
    let _ = tokio::time::timeout(TURN_MAX, fetches.wait_for(|fetches| *fetches == 0)).await;
    let digest = match rooms.manager.find(shard).await? {
        Some(open) => blocking(move || open.digest()).await?,
        None => Digest::new(Ballot::ZERO),
    };
    say(call, &Answer::Digest(digest)).await
}

async fn pairs(call: &Call, manager: &Manager, shard: &ShardId, buckets: Buckets) -> Result<(), Error> {
    let Some(open) = manager.find(shard).await? else { return Ok(()) };
    let mut place = Place::Start;
    while place != Place::End {
        let (shard, from, buckets) = (open.clone(), place, buckets.clone());
        let list = move || {
            let mut place = from;
            let pairs = shard.next_pairs(&buckets, &mut place, PAIRS_PER_SCAN_MAX)?;
            Ok((pairs, place))
        };
        let (pairs, next) = blocking(list).await?;
        place = next;
        for some in pairs.chunks(PAIRS_PER_ANSWER_MAX) {
            say(call, &Answer::Pairs(some.to_vec())).await?;
        }
    }
    Ok(())
}

async fn raised(call: &Call, manager: &Manager, shard: &ShardId) -> Result<(), Error> {
    let Some(open) = manager.find(shard).await? else { return Ok(()) };
    let mut after = None;
    loop {
        let (shard, from) = (open.clone(), after.take());
        let pairs = blocking(move || shard.raised(from.as_ref(), PAIRS_PER_ANSWER_MAX)).await?;
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
                && rows.len() < ROWS_PER_ANSWER_MAX
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
