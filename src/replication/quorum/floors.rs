//! A replica's part in forgetting deletions (rule 10): see `collect.rs`, which asks all of them. And what a replica does that
//! finds itself behind a peer's floor.
//!
//! Nothing here is to be taken back: a refusal that comes to nothing costs nothing, and a floor is raised where all was
//! there, whatever becomes of the other replicas. Everything may be asked again.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::catch_up::{Error, blocking};
use super::{Input, Rooms};
use crate::replication::wire::{Collection, Refused};
use crate::store::Shard;
use crate::store::digest::Digest;
use crate::telemetry;
use crate::types::{Ballot, Key, NodeId, ShardId, StorageId};

/// What the core is asked for.
#[derive(Debug)]
pub(super) enum Floors {
    /// Who all replicas are; none where another had better ask, or one is away.
    Replicas { shard: ShardId, reply: oneshot::Sender<Option<Replicas>> },
    /// To refuse everything up to `floor`, and to say so once that is durable and nothing up to there is open. Of whoever
    /// asks in the name of an epoch, it must be this one.
    Refuse { shard: ShardId, floor: Ballot, epoch: Option<u64>, done: oneshot::Sender<()> },
    /// To say so if that is so.
    Vouch { shard: ShardId, floor: Ballot, epoch: u64, done: oneshot::Sender<()> },
    /// Which shards refuse something that no floor is known to have taken over.
    Refusals { reply: oneshot::Sender<Vec<ShardId>> },
    /// The shard's file has that floor.
    Raised { shard: ShardId, floor: Ballot },
}

/// The replicas of a shard but for this one.
#[derive(Debug)]
pub(super) struct Replicas {
    pub(super) peers: Vec<NodeId>,
    pub(super) epoch: u64,
}

/// Refuses everything up to the floor, for good, and settles what was accepted up to there.
pub(super) async fn refuse(rooms: &Rooms, Collection { shard, floor, epoch }: &Collection) -> Result<Refused, Error> {
    refuse_upto(rooms, shard, *floor, Some(*epoch)).await?;
    let floor = rooms.manager.find(shard).await?.map_or(Ballot::ZERO, |open| open.gc_floor());
    Ok(Refused { floor, storage_id: rooms.greeter.figures().storage_id })
}

async fn refuse_upto(rooms: &Rooms, shard: &ShardId, floor: Ballot, epoch: Option<u64>) -> Result<(), Error> {
    let asked = |done| Input::Floors(Floors::Refuse { shard: shard.clone(), floor, epoch, done });
    rooms.settled(asked, Error::NotRefused).await
}

/// The digest of what is here up to the floor, but for deletions up to `above`.
pub(super) async fn old(rooms: &Rooms, collection: &Collection, above: Ballot) -> Result<Digest, Error> {
    vouch(rooms, collection).await?;
    let upto = collection.floor;
    match rooms.manager.find(&collection.shard).await? {
        Some(open) => blocking(move || open.digest_of_old(above, upto)).await,
        None => Ok(Digest::new(above)),
    }
}

/// Raises the floor: somebody has found everything that was chosen up to there on this disk, after it refused more.
pub(super) async fn forget(rooms: &Rooms, collection: &Collection, storage_id: StorageId) -> Result<(), Error> {
    if storage_id != rooms.greeter.figures().storage_id {
        return Err(Error::NotRefused);
    }
    let open = rooms.manager.get(&collection.shard).await?;
    if open.gc_floor() < collection.floor {
        vouch(rooms, collection).await?;
        raise(rooms, open, &collection.shard, collection.floor, Vec::new()).await?;
    }
    Ok(())
}

/// Takes over a peer's floor, up to which everything that it has is here, and the live rows of `forgotten` are not there.
pub(super) async fn adopt(
    rooms: &Rooms,
    open: Arc<Shard>,
    shard: &ShardId,
    floor: Ballot,
    forgotten: Vec<Key>,
) -> Result<(), Error> {
    refuse_upto(rooms, shard, floor, None).await?;
    let rows = forgotten.len();
    raise(rooms, open, shard, floor, forgotten).await?;
    tracing::info!(%shard, %floor, rows, "a peer's floor was adopted: older deletions are forgotten");
    Ok(())
}

async fn vouch(rooms: &Rooms, Collection { shard, floor, epoch }: &Collection) -> Result<(), Error> {
    let asked = |done| Input::Floors(Floors::Vouch { shard: shard.clone(), floor: *floor, epoch: *epoch, done });
    rooms.ask(asked).await?.ok_or(Error::NotRefused)
}

async fn raise(
    rooms: &Rooms,
    open: Arc<Shard>,
    shard: &ShardId,
    floor: Ballot,
    forgotten: Vec<Key>,
) -> Result<(), Error> {
    let dropped = blocking(move || open.raise_floor(floor, &forgotten)).await?;
    metrics::counter!(telemetry::TOMBSTONES_DROPPED).increment(dropped);
    raised(rooms, shard.clone(), floor).await
}

/// A restart finds refusals in the journal that floors had taken over: these need not be kept any more.
pub(super) async fn let_go_of_refusals(rooms: &Rooms) -> Result<(), Error> {
    let refusals = rooms.ask(|reply| Input::Floors(Floors::Refusals { reply })).await?;
    for shard in refusals.ok_or(Error::Stopping)? {
        if let Some(open) = rooms.manager.find(&shard).await? {
            raised(rooms, shard, open.gc_floor()).await?;
        }
    }
    Ok(())
}

async fn raised(rooms: &Rooms, shard: ShardId, floor: Ballot) -> Result<(), Error> {
    rooms.inputs.send(Input::Floors(Floors::Raised { shard, floor })).await.map_err(|_| Error::Stopping)
}

/// Who all other replicas are, where this node is to see to the shard and all can be asked.
pub(super) async fn replicas(rooms: &Rooms, shard: &ShardId) -> Result<Option<Replicas>, Error> {
    let asked = |reply| Input::Floors(Floors::Replicas { shard: shard.clone(), reply });
    rooms.ask(asked).await?.ok_or(Error::Stopping)
}
