//! What the doors of a node show of it, put together from every room.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;

use crate::cluster::change::{ChangeError, VoterChange};
use crate::cluster::gossip::{self, Card, Gossip};
use crate::cluster::hello::PROTOCOL_VERSIONS;
use crate::cluster::membership::Membership;
use crate::cluster::status::{ClusterStatus, Govern, NodeStatus, Observe, OutboxFigures, Pin, Role};
use crate::replication::QuorumReplicator;
use crate::replication::quorum::{Greeter, PeerStatus, QuorumStatus};
use crate::store::Manager;
use crate::transport::{self, Transport};
use crate::types::{NodeId, ShardId};

/// All that is needed for it.
pub(super) struct View {
    pub(super) cluster: String,
    pub(super) node: NodeId,
    pub(super) advertise: SocketAddr,
    pub(super) greeter: Arc<Greeter>,
    pub(super) manager: Arc<Manager>,
    pub(super) replicator: Arc<QuorumReplicator>,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) gossip: parking_lot::RwLock<Option<Arc<Gossip>>>,
    pub(super) draining: AtomicBool,
}

impl View {
    pub(super) fn card(&self) -> Card {
        let figures = self.greeter.figures();
        Card {
            address: self.advertise,
            storage_id: figures.storage_id,
            slot: self.greeter.slot(),
            epoch: self.greeter.membership().epoch(),
            run: figures.run,
            ceiling: figures.ceiling,
            position: figures.position,
            protocol: PROTOCOL_VERSIONS.max,
            boot: self.greeter.boot(),
            open_shards: self.manager.open_shard_count() as u64,
            pending_frames: self.replicator.status().pending as u64,
            lag_frames: self.manager.apply_backlog(),
            ready: self.ready().is_ok(),
            root: self.manager.root(),
        }
    }

    pub(super) fn me(&self, status: &QuorumStatus) -> NodeStatus {
        let membership = self.greeter.membership();
        NodeStatus {
            node: self.node.clone(),
            me: true,
            live: true,
            role: match (&status.barred, self.greeter.slot()) {
                (Some(_), _) => Role::Barred,
                (None, Some(slot)) if membership.is_voter(slot.replica()) => Role::Voter,
                (None, _) => Role::Observer,
            },
            storage_id: Some(self.greeter.figures().storage_id),
            address: Some(self.advertise.to_string()),
            round_trip_us: None,
            epoch: Some(membership.epoch()),
            open_shards: Some(self.manager.open_shard_count() as u64),
            pending_frames: Some(status.pending as u64),
            clock_skew_us: Some(-status.clock_correction_us).filter(|skew| *skew != 0),
            in_step: status.ready().is_ok(),
            lag_frames: Some(self.manager.apply_backlog()),
        }
    }

    fn peer(&self, peer: &PeerStatus, links: &[transport::Link], gossiped: &[gossip::Peer]) -> NodeStatus {
        let link = links.iter().find(|link| link.node == peer.node);
        let card = gossiped.iter().find(|gossiped| gossiped.node == peer.node).map(|gossiped| &gossiped.card);
        NodeStatus {
            node: peer.node.clone(),
            me: false,
            live: peer.live,
            role: match (peer.forgot, peer.is_voter) {
                (true, _) => Role::Barred,
                (false, true) => Role::Voter,
                (false, false) => Role::Observer,
            },
            storage_id: peer.storage_id.or(card.map(|card| card.storage_id)),
            address: card.map(|card| card.address).or(link.map(|link| link.addr)).map(|addr| addr.to_string()),
            round_trip_us: link.map(|link| u64::try_from(link.round_trip.as_micros()).unwrap_or(u64::MAX)),
            epoch: card.map(|card| card.epoch),
            open_shards: card.map(|card| card.open_shards),
            pending_frames: card.map(|card| card.pending_frames),
            clock_skew_us: peer.clock_skew_us,
            in_step: peer.in_step,
            lag_frames: card.map(|card| card.lag_frames),
        }
    }
}

/// Who, where it is known, and why.
fn refused(refusal: &transport::Refusal) -> String {
    let node = refusal.node.as_ref().map_or_else(String::new, |node| format!("{node} at "));
    format!("{node}{}: {}", refusal.addr, refusal.reason)
}

fn pin(shard: &ShardId, nodes: Vec<NodeId>) -> Pin {
    Pin { org: shard.org.clone(), namespace: shard.namespace.clone(), nodes }
}

#[async_trait]
impl Govern for View {
    async fn change(&self, change: VoterChange) -> Result<(), ChangeError> {
        self.replicator.change(change).await
    }

    async fn recover(&self) -> Result<(), ChangeError> {
        self.replicator.recover().await
    }
}

impl Observe for View {
    fn cluster(&self) -> ClusterStatus {
        let status = self.replicator.status();
        let membership = self.greeter.membership();
        let placement = membership.next_placement();
        let links = self.transport.links();
        let gossiped = self.gossip.read().as_ref().map(|gossip| gossip.peers()).unwrap_or_default();
        let mut nodes: Vec<_> = status.peers.iter().map(|peer| self.peer(peer, &links, &gossiped)).collect();
        nodes.push(self.me(&status));
        nodes.sort_by(|a, b| a.node.cmp(&b.node));
        ClusterStatus {
            cluster: self.cluster.clone(),
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch: membership.epoch(),
            voters: membership.voter_names(),
            replication_factor: placement.replication_factor.map(|factor| factor as u64),
            pins: placement.pins.iter().map(|(shard, slots)| pin(shard, membership.names_of(slots))).collect(),
            joint: membership.is_joint(),
            change: self.replicator.change_status(),
            nodes,
            open_shards: self.manager.open_shard_count() as u64,
            decisions: status.decisions,
            pending_frames: status.pending as u64,
            outbox: OutboxFigures {
                entries: status.outbox.entries as u64,
                bytes: status.outbox.bytes as u64,
                oldest_ms: status.outbox.oldest_age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
                drained: status.outbox.counts.drained,
                superseded: status.outbox.counts.superseded,
                replaced: status.outbox.counts.replaced,
            },
            unready: self.ready().err(),
            refusals: self.transport.refusals().iter().map(refused).collect(),
        }
    }

    fn membership(&self) -> Membership {
        self.greeter.membership()
    }

    fn health(&self) -> Result<(), String> {
        self.replicator.status().health()
    }

    fn ready(&self) -> Result<(), String> {
        if self.draining.load(Ordering::Relaxed) {
            return Err("this node is shutting down".to_owned());
        }
        self.replicator.status().ready()
    }

    fn in_step(&self) -> Vec<NodeId> {
        let peers = self.replicator.status().peers;
        peers.into_iter().filter(|peer| peer.in_step).map(|peer| peer.node).collect()
    }
}
