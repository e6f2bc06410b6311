//! Bringing this node's copy of a shard level with all that was acknowledged anywhere, for those who are about to copy
//! it away.
//!
//! A local copy may lag behind what another node has acknowledged. But every acknowledged write was accepted by a
//! majority, so that every majority has a member which either has it committed or has it, or a later record that builds
//! on it, accepted. So: each member of a majority, this node among them, settles what it had accepted before, and then
//! what is newer there is fetched. It costs a comparison of digests with each of them.

use std::collections::BTreeSet;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, oneshot};

use super::catch_up::{Error, With};
use super::serve::settle;
use super::{Input, Rooms};
use crate::cluster::membership::Quorums;
use crate::store::replicator::Rejection;
use crate::types::{NodeId, ShardId};

/// Requests that wait; further ones are refused as busy.
pub(super) const WANTED_MAX: usize = 16;

type Reply<T> = oneshot::Sender<Result<T, Rejection>>;

/// What is asked for.
#[derive(Debug)]
pub(super) enum Wanted {
    /// All rows of a shard.
    Rows(ShardId, Reply<()>),
    /// The names of all shards.
    Shards(Reply<Vec<ShardId>>),
}

/// Who makes a majority, as the driver sees it now.
#[derive(Debug)]
pub(super) struct Voters {
    /// This node's own slot, where its vote can be had.
    pub(super) me: Option<usize>,
    /// The peers whose votes can be had.
    pub(super) peers: Vec<(usize, NodeId)>,
    /// Who decides.
    pub(super) quorums: Quorums,
}

/// Asks, and waits for the answer.
pub(super) async fn ask<T>(to: &mpsc::Sender<Wanted>, wanted: impl FnOnce(Reply<T>) -> Wanted) -> Result<T, Rejection> {
    let (reply, answer) = oneshot::channel();
    let busy = |why: &str| Rejection::Busy(why.to_owned());
    to.try_send(wanted(reply)).map_err(|_| busy("too many copies of shards are waited for; try again"))?;
    answer.await.unwrap_or_else(|_| Err(busy("this node is shutting down")))
}

/// Serves those who ask, one after the other: each comparison takes what a shard's file gives.
pub(super) async fn serve(mut wanted: mpsc::Receiver<Wanted>, rooms: Rooms) {
    while let Some(wanted) = wanted.recv().await {
        // Whoever asked and has gone needs no answer.
        match wanted {
            Wanted::Rows(shard, mut reply) => {
                tokio::select! {
                    done = rows(&shard, &rooms) => drop(reply.send(done)),
                    () = reply.closed() => {}
                }
            }
            Wanted::Shards(reply) => drop(reply.send(shards(&rooms).await)),
        }
    }
}

async fn rows(shard: &ShardId, rooms: &Rooms) -> Result<(), Rejection> {
    settle(rooms, shard.clone()).await.map_err(|error| Rejection::NoQuorum(error.to_string()))?;
    let fetch = |peer: NodeId| {
        let (rooms, shard) = (rooms.clone(), shard.clone());
        async move { With::new(&peer, &rooms).level(&shard).await }.boxed()
    };
    of_majority(rooms, fetch).await.map(drop)
}

/// Fetches all rows that a majority has and that are newer there.
pub(super) async fn all(rooms: &Rooms) -> Result<(), Rejection> {
    let fetch = |peer: NodeId| {
        let rooms = rooms.clone();
        async move { With::new(&peer, &rooms).fetch_all().await }.boxed()
    };
    of_majority(rooms, fetch).await.map(drop)
}

async fn shards(rooms: &Rooms) -> Result<Vec<ShardId>, Rejection> {
    let of = |peer: NodeId| {
        let rooms = rooms.clone();
        async move { Ok(With::new(&peer, &rooms).shards().await?.into_keys().collect::<Vec<_>>()) }.boxed()
    };
    let mut shards = of_majority(rooms, of).await?.concat();
    shards.sort();
    shards.dedup();
    Ok(shards)
}

/// What `each` gets from as many peers as make a majority with this node.
async fn of_majority<T>(
    rooms: &Rooms,
    each: impl Fn(NodeId) -> BoxFuture<'static, Result<T, Error>>,
) -> Result<Vec<T>, Rejection> {
    let stopping = || Rejection::Busy("this node is shutting down".to_owned());
    let voters = rooms.ask(|reply| Input::Voters { reply }).await.ok().flatten();
    let Voters { me, peers, quorums } = voters.ok_or_else(stopping)?;
    let (mut got, mut answered, mut why) = (Vec::new(), BTreeSet::from_iter(me), String::new());
    let ask = |(slot, peer): (usize, NodeId)| each(peer.clone()).map(move |answer| (slot, peer, answer));
    let mut asked: FuturesUnordered<_> = peers.into_iter().map(ask).collect();
    while !quorums.is_met(|slot| answered.contains(&slot)) {
        match asked.next().await {
            Some((slot, _, Ok(answer))) => {
                answered.insert(slot);
                got.push(answer);
            }
            Some((_, peer, Err(error))) => why = format!("; {peer}: {error}"),
            None => {
                let answered = quorums.tell(|slot| answered.contains(&slot));
                return Err(Rejection::NoQuorum(format!("what was acknowledged could be asked of {answered}{why}")));
            }
        }
    }
    Ok(got)
}
