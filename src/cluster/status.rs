//! What a node tells people about itself and its cluster: the shapes behind `/v1/cluster`, `status`, the status page
//! and `/readyz`. One definition for the server that writes them and the clients that read them.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::change::{ChangeError, MOVE, VoterChange};
use super::membership::Membership;
use crate::types::{Ballot, Namespace, NodeId, Org, ShardId, StorageId};

/// What a node does for its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Its vote counts.
    Voter,
    /// It has a copy, and no vote.
    Observer,
    /// Named a voter, but its vote must not count: it has forgotten promises, or its journal failed.
    Barred,
}

/// One node as the answering node sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub node: NodeId,
    /// True for the node that answers.
    pub me: bool,
    /// Connected, or the answering node itself.
    pub live: bool,
    /// What it does.
    pub role: Role,
    /// Its data directory's id, once known.
    pub storage_id: Option<StorageId>,
    /// Its peer address, once known.
    pub address: Option<String>,
    /// Smoothed round-trip time, in microseconds; absent for the node itself.
    pub round_trip_us: Option<u64>,
    /// The epoch it has installed, once known.
    pub epoch: Option<u64>,
    /// Shards it holds open, as it gossips them.
    pub open_shards: Option<u64>,
    /// Accepted frames it does not yet know to be chosen, as it gossips them.
    pub pending_frames: Option<u64>,
    /// How far its clock is ahead of ours, in microseconds, at the last message; negative where it is behind.
    pub clock_skew_us: Option<i64>,
    /// True where the last comparison of all rows found the same on this node and that one.
    pub in_step: bool,
    /// Committed frames that wait for their shard file, as it gossips them.
    pub lag_frames: Option<u64>,
}

/// How proposals ended since the node started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecisionCounts {
    /// Accepted.
    pub accept: u64,
    /// Rejected: nothing written.
    pub reject: u64,
    /// Unknown.
    pub timeout: u64,
}

/// How a change of voters stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeStatus {
    /// What was asked for.
    pub change: String,
    /// How far it is.
    pub step: String,
    /// True where it ended without having changed anything.
    pub failed: bool,
}

/// Writes that the answering node accepted with `consistency=local` and that are not agreed on yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboxFigures {
    /// Keys with such a write.
    pub entries: u64,
    /// What they take up in memory, in bytes.
    pub bytes: u64,
    /// How long the oldest has waited, in milliseconds; absent where there is none.
    pub oldest_ms: Option<u64>,
    /// Since the start: agreed on.
    pub drained: u64,
    /// Since the start: lost to a newer version that was agreed on.
    pub superseded: u64,
    /// Since the start: lost to a later local write of the same key.
    pub replaced: u64,
}

/// A shard whose replicas are named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// Its org.
    pub org: Org,
    /// Its namespace.
    pub namespace: Namespace,
    /// Who replicates it before all others, sorted.
    pub nodes: Vec<NodeId>,
}

impl Pin {
    /// Which shard that is.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        ShardId { org: self.org.clone(), namespace: self.namespace.clone() }
    }
}

/// The answer to `GET /v1/cluster`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// The cluster's id.
    pub cluster: String,
    /// Who answers.
    pub node: NodeId,
    /// The answering program's version.
    pub version: String,
    /// The epoch installed here.
    pub epoch: u64,
    /// The voters of that epoch: while a change is under way, those of before and of after.
    pub voters: Vec<NodeId>,
    /// How many of them replicate each shard, absent where all do: while a change is under way, what will hold after it.
    #[serde(default)]
    pub replication_factor: Option<u64>,
    /// The shards whose replicas are named, as far as who asks may see them: while a change is under way, those of after.
    #[serde(default)]
    pub pins: Vec<Pin>,
    /// True while a change of voters, or of what they replicate, is under way.
    #[serde(default)]
    pub joint: bool,
    /// How the change stands that this node drives, or drove last.
    #[serde(default)]
    pub change: Option<ChangeStatus>,
    /// Every member, and what this node knows of it.
    pub nodes: Vec<NodeStatus>,
    /// Shards open on this node.
    pub open_shards: u64,
    /// How proposals of this node ended.
    pub decisions: DecisionCounts,
    /// Accepted frames that this node does not yet know to be chosen.
    pub pending_frames: u64,
    /// What the answering node accepted on its own and is not yet agreed on.
    #[serde(default)]
    pub outbox: OutboxFigures,
    /// Why this node cannot serve quorum operations now; absent when it can.
    pub unready: Option<String>,
    /// Connections that did not come about because one side refused the other: an administrator must see to them.
    #[serde(default)]
    pub refusals: Vec<String>,
}

impl ClusterStatus {
    /// The same for somebody who may know of those shards alone that `shows` lets through: of a change that moves a shard,
    /// whose text names it, nothing.
    #[must_use]
    pub fn showing(mut self, shows: impl Fn(&ShardId) -> bool) -> Self {
        self.pins.retain(|pin| shows(&pin.shard()));
        self.change = self.change.filter(|change| !change.change.starts_with(MOVE));
        self
    }
}

/// One shard, as `GET /v1/shards` lists it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ShardStatus {
    /// Its org.
    pub org: String,
    /// Its namespace.
    pub namespace: String,
    /// Live keys.
    pub keys: u64,
    /// Size of the file and its WAL, in bytes.
    pub bytes: u64,
    /// The latest version in it, 0 when empty.
    pub last_upd: Ballot,
    /// Deletions that are still remembered.
    #[serde(default)]
    pub tombstones: u64,
    /// Who votes on its keys, sorted: while a change is under way, those of before and of after.
    #[serde(default)]
    pub replicas: Vec<NodeId>,
    /// The replicas that held the same rows as this node when all were last compared.
    pub in_step: Vec<NodeId>,
}

/// Who changes what the cluster is, for those doors of a node that allow it.
#[async_trait]
pub trait Govern: Send + Sync + 'static {
    /// Begins a change of voters; returns once it is begun, or where all is as wished already.
    async fn change(&self, change: VoterChange) -> Result<(), ChangeError>;

    /// Lets this node decide alone from now on.
    async fn recover(&self) -> Result<(), ChangeError>;
}

/// Where the doors of a node (socket, admin port) get what they show.
pub trait Observe: Send + Sync + 'static {
    /// The whole picture, the names of shards included.
    fn cluster(&self) -> ClusterStatus;

    /// The configuration installed here, which says who replicates which shard.
    fn membership(&self) -> Membership;

    /// `Ok` when this node can serve quorum operations now, otherwise the reason.
    fn health(&self) -> Result<(), String>;

    /// `Ok` once this node is in step and serves; otherwise what it waits for.
    fn ready(&self) -> Result<(), String>;

    /// The connected nodes that held the same rows as this one when all were last compared.
    fn in_step(&self) -> Vec<NodeId>;
}
