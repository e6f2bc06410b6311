//! Whether the rows of two nodes are the same that do not hold the same shards: the root that each gossips says nothing of
//! that. So each asks the other for the root of the shards that both hold, and compares rows where it differs from its own.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;

use super::catch_up::{Error, With, blocking};
use super::{Input, Rooms};
use crate::store::digest::{Root, Summary};
use crate::types::{NodeId, ShardId};

/// How often a peer is asked.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// How long one may take to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// The root of all shards that this node and that one hold, by what is known here.
pub(super) async fn shared(rooms: &Rooms, peer: &NodeId) -> Result<Root, Error> {
    Ok(of_both(&summaries(rooms).await?, rooms, peer))
}

async fn summaries(rooms: &Rooms) -> Result<BTreeMap<ShardId, Summary>, Error> {
    let manager = rooms.manager.clone();
    blocking(move || manager.summaries()).await
}

fn of_both(shards: &BTreeMap<ShardId, Summary>, rooms: &Rooms, peer: &NodeId) -> Root {
    let holding = rooms.holding();
    shards.iter().filter(|(shard, _)| holding.is_mine(shard) && holding.is_of(peer, shard)).collect()
}

/// Asks all peers with whom the root of everything tells nothing, again and again. Ends with the driver.
pub(super) async fn ask(rooms: Rooms) {
    loop {
        tokio::time::sleep(ASK_EVERY).await;
        let uneven: Vec<NodeId> = {
            let holding = rooms.holding();
            let links = rooms.transport.links().into_iter().map(|link| link.node);
            links.filter(|peer| !holding.is_even(peer)).collect()
        };
        if uneven.is_empty() {
            continue;
        }
        match summaries(&rooms).await {
            Ok(shards) => drop(join_all(uneven.iter().map(|peer| ask_one(&rooms, &shards, peer))).await),
            Err(error) => tracing::debug!(%error, "what is held here could not be summed up"),
        }
    }
}

async fn ask_one(rooms: &Rooms, shards: &BTreeMap<ShardId, Summary>, peer: &NodeId) {
    let mine = of_both(shards, rooms, peer);
    match tokio::time::timeout(ASK_TIMEOUT, With::new(peer, rooms).root()).await {
        Ok(Ok(theirs)) => {
            // Nobody listens any more only while the node stops.
            let _ = rooms.inputs.send(Input::LookAt { peer: peer.clone(), mine, theirs }).await;
        }
        Ok(Err(error)) => tracing::debug!(%peer, %error, "asking for the root of what both hold"),
        Err(_) => tracing::debug!(%peer, "asking for the root of what both hold took too long"),
    }
}
