//! One sidecar: every room wired to the others, and the order in which they start and stop. The only room that knows
//! them all.
//!
//! ```text
//!   start:  journal ─► shards ─► hello ─► peers' connections ─► driver ─► gossip ─► socket, admin port
//!   drain:  not ready ─► writes refused ─► requests end, gossip leaves ─► updates end ─► socket ─► connections ─► driver ─► shards
//! ```
//!
//! A [`Node`] is a [`Member`] with doors: the socket and the admin port.

mod directory;
mod member;
mod view;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use member::{Member, Network, Surroundings};

use crate::admin::{self, Admin};
use crate::api::{self, Gate, Server};
use crate::cluster::gossip;
use crate::cluster::membership::InvalidMembership;
use crate::config::Config;
use crate::replication::journal::JournalError;
use crate::replication::quorum::StartError;
use crate::store;
use crate::token;
use crate::transport::quic;
use crate::types::NodeId;

/// How long connections on the socket may take to end once nothing is in flight.
const DRAIN_CONNECTIONS: Duration = Duration::from_secs(2);

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory cannot be made.
    #[error("cannot make the data directory {path}: {source}; set [node] data_dir to a place this user may write")]
    DataDirectory {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The data is another node's: to take it over would bar that node from voting ever again.
    #[error(
        "node.data_dir: got {}, which holds the data of node {owner:?}, want the directory of {node}, or an empty one",
        path.display()
    )]
    ForeignData {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: String,
        /// Who tried.
        node: NodeId,
    },
    /// The secret of stateless resets cannot be kept.
    #[error("cannot write {path}: {source}")]
    ResetKey {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The journal cannot be opened.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The voters make no configuration.
    #[error("[cluster] voters: {0}")]
    Voters(#[from] InvalidMembership),
    /// More than one voter, and nothing to prove who is who.
    #[error("[cluster] key_file or tls is needed to talk to other voters")]
    NoIdentity,
    /// The peers' endpoint cannot be opened.
    #[error(transparent)]
    Transport(#[from] quic::Error),
    /// The driver cannot start.
    #[error(transparent)]
    Driver(#[from] StartError),
    /// The advertised address leads nowhere.
    #[error("[peer] advertise = {address:?} cannot be resolved: {reason}")]
    Advertise {
        /// As configured.
        address: String,
        /// What the resolver said.
        reason: String,
    },
    /// Gossip cannot start.
    #[error(transparent)]
    Gossip(#[from] gossip::Error),
    /// A file of tokens cannot be used.
    #[error("access.rules: {0}")]
    Access(#[from] token::Error),
    /// The socket cannot be opened.
    #[error(transparent)]
    Socket(#[from] api::Error),
    /// The admin port cannot be opened.
    #[error(transparent)]
    Admin(#[from] admin::Error),
}

/// A running sidecar.
pub struct Node {
    member: Member,
    server: Server,
    admin: Admin,
}

impl Node {
    /// Opens the data, replays the journal, listens on the socket and joins the others. Returns before a quorum
    /// answers; see [`Member::wait_ready`].
    pub async fn start(config: Config) -> Result<Self, Error> {
        Self::start_in(config, Surroundings::default()).await
    }

    /// Likewise, in surroundings of the caller's.
    pub async fn start_in(config: Config, surroundings: Surroundings) -> Result<Self, Error> {
        let metrics = admin::install_metrics()?;
        let gate = Gate::new(config.access.clone(), config.limits.clone())?;
        let member = Member::start(&config, surroundings).await?;
        let socket = api::Config { mode: config.socket.mode, gate, ..api::Config::at(&config.socket.path) };
        if socket.gate.rules() > 0 && directory::is_open_to_others(&config.node.data_dir) {
            let path = config.node.data_dir.display();
            tracing::warn!(%path, "other users of this machine may look into the data directory, past all rules of [access]; chmod o-rwx it");
        }
        match socket.gate.rules() {
            0 => tracing::info!(
                "there are no rules in [access]: whoever can open the socket may read and write everything"
            ),
            rules => tracing::info!(rules, "what no rule of [access] allows is denied on the socket"),
        }
        let server = api::serve(socket, member.service()).await?;
        let admin = Admin::start(config.admin.listen, member.view(), metrics).await?;
        Ok(Self { member, server, admin })
    }

    /// The node without its doors.
    #[must_use]
    pub fn member(&self) -> &Member {
        &self.member
    }

    /// Where the admin port listens.
    #[must_use]
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin.local_addr()
    }

    /// Stops: refuses new writes, finishes what is in flight (bounded), leaves, and closes every file.
    pub async fn drain(self) {
        self.member.leave().await;
        self.server.shutdown(DRAIN_CONNECTIONS).await;
        self.member.close().await;
        self.admin.shutdown().await;
    }
}
