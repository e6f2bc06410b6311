//! What the store needs of replication, and nothing of how it is done.
//!
//! A mutation is *proposed*; when the replicator's nodes have agreed on it, it is *committed*: handed as a [`Frame`]
//! to the subscribers of every node, the proposer's included. That is the only way a row ever changes.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::update::{Outcome, Update};
use crate::types::{Ballot, Key, ShardId, Value};

/// What a frame does to its key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Op {
    /// The key has this value from now on.
    #[serde(rename = "p")]
    Put(Value),
    /// The key has no value from now on, and the deletion is remembered.
    #[serde(rename = "d")]
    Del,
}

impl Op {
    /// Bytes of its value.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.value().map_or(0, |value| value.as_bytes().len())
    }

    /// The value that the key has after this.
    #[must_use]
    pub fn value(&self) -> Option<&Value> {
        match self {
            Self::Put(value) => Some(value),
            Self::Del => None,
        }
    }
}

/// One committed mutation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Org and namespace.
    pub shard: ShardId,
    /// This node's count of committed frames: rises by at least one with every frame, also across restarts.
    pub seq: u64,
    /// Which key.
    pub key: Key,
    /// What happens to it.
    pub op: Op,
    /// The version that clients see.
    pub upd: Ballot,
    /// The ballot of the round that chose it: `upd`, unless a later round chose the same mutation again.
    pub ballot: Ballot,
}

/// A request to replicate one update.
#[derive(Debug, Clone)]
pub struct Proposal {
    /// Where.
    pub shard: ShardId,
    /// Which key.
    pub key: Key,
    /// What.
    pub update: Update,
    /// How long the caller waits; the replicator's own default where it names none.
    pub timeout: Option<Duration>,
}

/// How a proposal ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Decision {
    /// Agreed on: the outcome is linearizable; what was written is on the disks of a majority and visible on this node.
    Accept(Outcome),
    /// Nothing was written anywhere, and nothing will be.
    Reject(Rejection),
    /// Unknown: it may yet be accepted, or already be.
    Timeout,
}

/// Why nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    /// The replicas would not have it.
    #[error("rejected: {0}")]
    Refused(String),
    /// No majority of the shard's replicas answers; known before any was asked to store anything.
    #[error("no quorum: {0}")]
    NoQuorum(String),
    /// A queue is full or the node is shutting down; try again soon.
    #[error("busy: {0}")]
    Busy(String),
    /// This node's disk is full.
    #[error("disk full: {0}")]
    DiskFull(String),
}

impl Rejection {
    /// Of a use of a shard whose first copy is still fetched: it goes on, whoever waits for it or does not.
    #[must_use]
    pub fn no_copy_within(shard: &ShardId, within: Duration) -> Self {
        Self::Busy(format!(
            "this node has no copy of {shard} yet; it is on its way, but not within {within:?}; try again"
        ))
    }
}

/// Receives every committed frame of a node, in the order of commit, per key in the order of versions.
pub trait Subscriber: Send + Sync + 'static {
    /// Takes one frame; called from the replicator's own task, so it must not block. When it returns, reads on this
    /// node must see the frame.
    fn on_commit(&self, frame: &Frame);
}

/// A driver of agreement.
#[async_trait]
pub trait Replicator: Send + Sync + 'static {
    /// Proposes one update and waits for its end. Dropping the future does not take the proposal back.
    async fn propose(&self, proposal: Proposal) -> Decision;

    /// Accepts an update that needs not know what is there ([`Update::blind`]) on this node alone: it is durable and visible
    /// here when this says so, and proposed as soon as there is a quorum, where what has a higher version wins. Where there
    /// is no other node this is [`Replicator::propose`].
    async fn accept(&self, proposal: Proposal) -> Decision {
        self.propose(proposal).await
    }

    /// True where [`Replicator::accept`] keeps what it accepts apart until it is agreed on.
    fn has_outbox(&self) -> bool {
        false
    }

    /// Adds a receiver of committed frames, from the next commit on.
    fn subscribe(&self, subscriber: Arc<dyn Subscriber>);

    /// True where an accepted frame is on stable storage before [`Replicator::propose`] says so; otherwise the store
    /// makes its own file durable before it answers.
    fn is_durable(&self) -> bool;

    /// Whether this node's copy of `shard` can be read as it is; counts as a use of it.
    fn has_copy(&self, _shard: &ShardId) -> bool {
        true
    }

    /// Whether what is stored on this node is all there is: no shard is stored on others alone.
    fn holds_every_shard(&self) -> bool {
        true
    }

    /// Waits until this node has a copy of `shard` to read. A rejection says why there is none.
    async fn fetch_copy(&self, _shard: &ShardId) -> Result<(), Rejection> {
        Ok(())
    }

    /// Has this node get a copy of `shard`; nobody waits for it.
    fn want_copy(&self, _shard: &ShardId) {}

    /// Waits until this node's copy of `shard` has every write that any node acknowledged before the call. At once
    /// where there is no other node.
    async fn catch_up(&self, _shard: &ShardId) -> Result<(), Rejection> {
        Ok(())
    }

    /// The shards that some node stores: all to which any node acknowledged a write before the call, where they are not
    /// stored on this node.
    async fn shards(&self) -> Result<Vec<ShardId>, Rejection> {
        Ok(Vec::new())
    }

    /// Ends it: later proposals are rejected as busy. Safe to call twice.
    async fn close(&self);
}
