//! Whether the rows of two nodes are the same that do not hold the same shards: the root that each gossips says nothing of
//! that. So each asks the other for the root of the shards that both hold, and compares rows where it differs from its own.

use std::collections::BTreeMap;
use std::time::Duration;

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
    let manager = rooms.manager.clone();
    let shards: BTreeMap<ShardId, Summary> = blocking(move || manager.summaries()).await?;
    let holding = rooms.holding();
    Ok(shards.iter().filter(|(shard, _)| holding.is_mine(shard) && holding.is_of(peer, shard)).collect())
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
        for peer in uneven {
            let asked =
                async { Ok::<_, Error>((shared(&rooms, &peer).await?, With::new(&peer, &rooms).root().await?)) };
            match tokio::time::timeout(ASK_TIMEOUT, asked).await {
                Ok(Ok((mine, theirs))) => {
                    let input = Input::LookAt { peer, mine, theirs };
                    if rooms.inputs.send(input).await.is_err() {
                        return;
                    }
                }
                Ok(Err(error)) => tracing::debug!(%peer, %error, "asking for the root of what both hold"),
                Err(_) => tracing::debug!(%peer, "asking for the root of what both hold took too long"),
            }
        }
    }
}
