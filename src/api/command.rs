//! What a client may ask, whichever dialect it speaks: parsed, typed, and within every bound.
//!
//! A dialect turns bytes into one of these; [`Service`](super::service::Service) carries it out; the dialect turns
//! the answer into bytes again. Nothing here knows of HTTP or RESP.

use std::time::Duration;

use crate::store::update::Update;
use crate::types::{Key, Org, ShardId};

/// How fresh a read must be, or how widely a write must be known when it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Consistency {
    /// Reads: committed values as this node knows them, and what it accepted with local writes. Writes: on this node's disk and
    /// visible here; proposed to the others as soon as there is a quorum.
    #[default]
    Local,
    /// Linearizable: costs a round trip to a majority, or two.
    Quorum,
}

impl Consistency {
    /// Reads `local` or `quorum`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "local" => Some(Self::Local),
            "quorum" => Some(Self::Quorum),
            _ => None,
        }
    }
}

/// One key of one shard.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address {
    /// Org and namespace.
    pub shard: ShardId,
    /// The key within.
    pub key: Key,
}

/// Read one key.
#[derive(Debug, Clone)]
pub struct Get {
    /// Which.
    pub at: Address,
    /// How fresh.
    pub consistency: Consistency,
    /// How long the client waits; the service's default where none is named.
    pub timeout: Option<Duration>,
}

/// Change one key, or not, as its conditions say.
#[derive(Debug, Clone)]
pub struct Write {
    /// Which.
    pub at: Address,
    /// The change.
    pub update: Update,
    /// Who has to have it when it is answered. A local write must be [blind](Update::blind).
    pub consistency: Consistency,
    /// How long the client waits; the service's default where none is named.
    pub timeout: Option<Duration>,
}

/// Where a list looks.
#[derive(Debug, Clone)]
pub enum Scope {
    /// In one shard.
    Shard(ShardId),
    /// In every shard of an org; for the kinds of key that span namespaces.
    Org(Org),
}

/// One page of keys in order.
#[derive(Debug, Clone)]
pub struct List {
    /// Where.
    pub scope: Scope,
    /// What the keys start with.
    pub prefix: String,
    /// Only keys above this one.
    pub after: Option<Key>,
    /// How many at most; the page may also end earlier, with more to follow.
    pub limit: usize,
    /// Leave the values out.
    pub keys_only: bool,
}

/// Many operations of one shard in one request; not atomic.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Org and namespace.
    pub shard: ShardId,
    /// What to do: operations on the same key in this order, others at the same time.
    pub ops: Vec<BatchOp>,
    /// How fresh its reads are.
    pub reads: Consistency,
    /// How widely its writes are known when they are answered.
    pub writes: Consistency,
    /// How long the client waits for each; the service's default where none is named.
    pub timeout: Option<Duration>,
}

/// One operation of a batch.
#[derive(Debug, Clone)]
pub enum BatchOp {
    /// Read a key.
    Get(Key),
    /// Change a key.
    Write(Key, Update),
}

impl BatchOp {
    /// The key it touches.
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Self::Get(key) | Self::Write(key, _) => key,
        }
    }
}
