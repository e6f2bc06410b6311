//! Bringing this node's copy of a shard level with all that was acknowledged anywhere, for those who are about to copy
//! it away, or to read it for the first time.
//!
//! A local copy may lag behind what another node has acknowledged. But every acknowledged write was accepted by a
//! majority, so that every majority has a member which either has it committed or has it, or a later record that builds
//! on it, accepted. So: each member of a majority, this node among them, settles what it had accepted before, and then
//! what is newer there is fetched. It costs a comparison of digests with each of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, oneshot};

use super::catch_up::{Error, With};
use super::serve::settle;
use super::{Input, Rooms};
use crate::cluster::membership::Membership;
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
    /// The configuration.
    pub(super) membership: Membership,
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

/// Fetches all rows of a shard that any node acknowledged before.
pub(super) async fn rows(shard: &ShardId, rooms: &Rooms) -> Result<(), Rejection> {
    settle(rooms, shard.clone()).await.map_err(|error| Rejection::NoQuorum(error.to_string()))?;
    let fetch = |peer: NodeId| {
        let (rooms, shard) = (rooms.clone(), shard.clone());
        async move { With::new(&peer, &rooms).level(&shard).await }.boxed()
    };
    of_majority(rooms, Some(shard), fetch).await.map(drop)
}

/// Fetches all rows that a majority has of the shards that this node is to replicate by `next` and does not yet.
pub(super) async fn all(rooms: &Rooms, next: &Membership) -> Result<(), Rejection> {
    let me = rooms.me();
    rooms.copies.expect(next.clone());
    rooms.copies.none_given_up().await;
    let next = Arc::new(next.clone());
    let fetch = |peer: NodeId| {
        let (rooms, next) = (rooms.clone(), next.clone());
        let comes_here = move |shard: &ShardId| me.is_some_and(|me| next.gains(me, shard));
        async move { With::new(&peer, &rooms).fetch_all(comes_here).await }.boxed()
    };
    of_majority(rooms, None, fetch).await.map(drop)
}

async fn shards(rooms: &Rooms) -> Result<Vec<ShardId>, Rejection> {
    let of = |peer: NodeId| {
        let rooms = rooms.clone();
        async move { Ok(With::new(&peer, &rooms).shards().await?.into_keys().collect::<Vec<_>>()) }.boxed()
    };
    let mut shards = of_majority(rooms, None, of).await?.concat();
    shards.sort();
    shards.dedup();
    Ok(shards)
}

/// What `each` gets from as many peers as make a quorum with this node on this shard; without one, from so many of the voters
/// that they include a majority of the replicas of any shard.
async fn of_majority<T>(
    rooms: &Rooms,
    on: Option<&ShardId>,
    each: impl Fn(NodeId) -> BoxFuture<'static, Result<T, Error>>,
) -> Result<Vec<T>, Rejection> {
    let stopping = || Rejection::Busy("this node is shutting down".to_owned());
    let voters = rooms.ask(|reply| Input::Voters { reply }).await.ok().flatten();
    let Voters { me, peers, membership } = voters.ok_or_else(stopping)?;
    let missing_max = membership.placement().spare().min(membership.next_placement().spare());
    let quorums = on.map_or_else(|| membership.quorums(), |shard| membership.quorums_on(shard));
    let replicas = quorums.replicas();
    let peers = peers.into_iter().filter(|(slot, _)| replicas.contains(slot));
    let (mut got, mut answered, mut why) = (Vec::new(), BTreeSet::from_iter(me), String::new());
    let is_enough = |answered: &BTreeSet<usize>| {
        quorums.is_met(|slot| answered.contains(&slot))
            && (on.is_some() || replicas.difference(answered).count() <= missing_max)
    };
    let ask = |(slot, peer): (usize, NodeId)| each(peer.clone()).map(move |answer| (slot, peer, answer));
    let mut asked: FuturesUnordered<_> = peers.map(ask).collect();
    while !is_enough(&answered) {
        match asked.next().await {
            Some((slot, _, Ok(answer))) => {
                answered.insert(slot);
                got.push(answer);
            }
            Some((_, peer, Err(error))) => why = format!("; {peer}: {error}"),
            None => {
                let has = |slot| answered.contains(&slot);
                let answered = match on {
                    Some(shard) => quorums.tell_on(shard, has),
                    None => format!("{}, and no more than {missing_max} away", quorums.tell(has)),
                };
                return Err(Rejection::NoQuorum(format!("what was acknowledged could be asked of {answered}{why}")));
            }
        }
    }
    Ok(got)
}
