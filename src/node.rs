//! The only file that knows every room: wires them together, and takes them apart again in the right order.

use std::net::SocketAddr;

use crate::config::Config;

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This build has no rooms to wire yet.
    #[error("cannot start node {name}: its rooms are not wired together in this build")]
    NotBuilt {
        /// Which node.
        name: crate::types::NodeId,
    },
}

/// A running sidecar.
#[derive(Debug)]
pub struct Node {
    peer_addr: Option<SocketAddr>,
    admin_addr: SocketAddr,
}

impl Node {
    /// Opens the data directory, replays the journal, listens. Ready later: see [`Node::wait_ready`].
    pub async fn start(config: Config) -> Result<Self, Error> {
        Err(Error::NotBuilt { name: config.node.name })
    }

    /// Where peers reach it; none where it is alone in its cluster.
    #[must_use]
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.peer_addr
    }

    /// Where `/metrics` and the status page are.
    #[must_use]
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin_addr
    }

    /// Returns once a quorum answers and this node's shards are in step.
    pub async fn wait_ready(&self) {
        std::future::pending::<()>().await;
    }

    /// Returns, with the reason, when the node cannot go on and the process has to end.
    pub async fn failed(&self) -> String {
        std::future::pending().await
    }

    /// Refuses new writes, finishes what is in flight, closes everything. Bounded by the caller.
    pub async fn drain(self) {}
}
