//! What an operator may set: a TOML file, then the environment, then flags; the later wins.
//!
//! ```text
//!   file ──┐
//!   env  ──┼──► layers: key ──► raw value and where it stands ──► validate ──► Config
//!   flags ─┘
//! ```
//!
//! [`KEYS`] lists every key once. A key that is not in it is an error wherever it stands, and every error is one line
//! that names the key, what it got and what it wants. Nothing here is a secret: keys and certificates are named by
//! their files, and the files are read by those who need them. Relative paths start at the working directory.

mod access;
mod layers;
mod render;
#[cfg(test)]
mod tests;
mod validate;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::types::NodeId;

pub use layers::{Environment, KEYS, KeyKind, KeySpec, Overrides};

pub use crate::api::access::Rule;
pub use crate::api::limits::OrgLimit;
pub use crate::replication::journal::Durability;
pub use crate::transport::tls::Identity;

/// The largest configuration file, in bytes.
pub const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// The most entries in `peer.seeds`.
pub const SEEDS_MAX: usize = 255;
/// The longest path of a Unix socket, in bytes: what the kernel's address holds, without its closing NUL.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Everything one node is told. Plain data; made valid by [`Config::load`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `[node]`
    pub node: NodeConfig,
    /// `[socket]`
    pub socket: SocketConfig,
    /// `[access]`: who may do what on the socket; everybody everything where empty.
    pub access: Vec<Rule>,
    /// `[limits]`: what an org may use; anything where none means it.
    pub limits: Vec<OrgLimit>,
    /// `[peer]`
    pub peer: PeerConfig,
    /// `[cluster]`
    pub cluster: ClusterConfig,
    /// `[admin]`
    pub admin: AdminConfig,
    /// `[store]`
    pub store: StoreConfig,
    /// `[timeouts]`
    pub timeouts: TimeoutConfig,
}

/// Who this node is and where it keeps things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// Its name, unique in the cluster.
    pub name: NodeId,
    /// Where shards and the journal live.
    pub data_dir: PathBuf,
}

/// What applications talk to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketConfig {
    /// The Unix socket, at most [`SOCKET_PATH_BYTES_MAX`] bytes.
    pub path: PathBuf,
    /// Its file mode, 0 to 0o777.
    pub mode: u32,
}

/// The one UDP port for gossip and replication. Unused where the node is [alone](Config::is_alone).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// Where to listen; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// What others dial, `host:port`. With the port 0 of `listen`, the port that the system chose is meant.
    pub advertise: String,
    /// Where to look for others first, each `host:port`.
    pub seeds: Vec<String>,
}

/// The cluster this node is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterConfig {
    /// Nodes of different ids refuse each other.
    pub id: String,
    /// The voters of epoch 1, as listed, no name twice. Where this node is not among them it joins as an observer, by the
    /// seeds that it then has; where nobody is, it knows nothing but those.
    pub voters: Vec<NodeId>,
    /// How many of them replicate each shard in epoch 1; none for all.
    pub replication_factor: Option<usize>,
    /// How nodes prove who they are; there unless the node [is alone](Config::is_alone).
    pub identity: Option<Identity>,
    /// How far ahead of this node's clock a remote time may be before it is refused.
    pub max_skew: Duration,
    /// How far ahead of the physical clock ballots are reserved on disk at a time.
    pub ceiling_lead: Duration,
}

/// The TCP port for metrics, probes and the status page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminConfig {
    /// Where to listen; port 0 lets the system choose.
    pub listen: SocketAddr,
}

/// How shards are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// A shard unused for this long is closed.
    pub idle_evict_after: Duration,
    /// A copy of a shard that this node does not replicate is given up, unused for this long.
    pub unused_drop_after: Duration,
    /// What an accepted frame has reached when the node says so.
    pub durability: Durability,
    /// How long a deletion is remembered at least.
    pub tombstone_grace: Duration,
    /// The largest value, in bytes.
    pub value_size_max: usize,
    /// The longest key, in bytes.
    pub key_size_max: usize,
    /// How many keys may have a local write that waits for a quorum.
    pub outbox_entries_max: usize,
    /// How much such writes may take up together, in bytes.
    pub outbox_size_max: usize,
}

/// How long things may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimeoutConfig {
    /// How long a write or quorum read may look for its quorum, where the request does not say.
    pub propose: Duration,
}

/// Why there is no configuration. Always one line.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("configuration file {path}: {reason}")]
    Unreadable {
        /// Which.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// The file is not TOML.
    #[error("configuration file {path}, line {line}: not TOML: {reason}")]
    NotToml {
        /// Which.
        path: String,
        /// Where, from 1.
        line: usize,
        /// What the parser missed.
        reason: String,
    },
    /// A key that means nothing here.
    #[error("{origin}: unknown key {key}{hint}")]
    UnknownKey {
        /// Which.
        key: String,
        /// The file or variable that it stands in.
        origin: String,
        /// The key that was probably meant, or all of the section's.
        hint: String,
    },
    /// A table in a list that does not fit.
    #[error("{origin}: {key}, table {place}: {why}")]
    InvalidTable {
        /// Which list.
        key: &'static str,
        /// The file or variable that it stands in.
        origin: String,
        /// Which of its tables, from 1.
        place: usize,
        /// What is wrong with it.
        why: String,
    },
    /// A value that does not fit its key.
    #[error("{origin}: {key}: got {got}, want {want}")]
    Invalid {
        /// Which key.
        key: String,
        /// The file, variable or flag that it stands in.
        origin: String,
        /// What stood there, shortened.
        got: String,
        /// What may stand there.
        want: String,
    },
}

impl Config {
    /// Reads `file` if there is one, lays `environment` and `overrides` over it, and checks the whole.
    pub fn load(file: Option<&Path>, environment: &Environment, overrides: Overrides) -> Result<Self, ConfigError> {
        let mut layers = layers::Layers::default();
        if let Some(path) = file {
            layers.add_file(path)?;
        }
        layers.add_environment(environment)?;
        layers.add_overrides(overrides);
        validate::validate(&layers, environment.pod_ip())
    }

    /// True where this node is the only voter and knows of no others: it then needs no peers, and no identity to show them.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.cluster.voters.len() == 1 && self.peer.seeds.is_empty()
    }

    /// The effective configuration as a file that [`Config::load`] reads back. Files that hold secrets are named, their
    /// contents never shown.
    #[must_use]
    pub fn to_toml(&self) -> String {
        render::to_toml(self)
    }
}
