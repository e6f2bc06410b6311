//! chitchat's idea of a socket, over this program's own transport.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use chitchat::{ChitchatMessage, Deserializable, Serializable};
use metrics::Counter;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::super::hello::CLUSTER_ID_BYTES_MAX;
use crate::telemetry;
use crate::transport::Transport;
use crate::types::NodeId;

/// The largest gossip message that is looked at, in bytes; chitchat's own outgrow no UDP datagram.
pub const GOSSIP_BYTES_MAX: usize = 64 * 1024;
/// How many other clusters are named in the log.
const STRANGERS_MAX: usize = 16;

/// What all sockets of one node share: chitchat's server may end and be started again, the line stays.
pub(super) struct Line {
    cluster_id: String,
    transport: Arc<dyn Transport>,
    inbox: tokio::sync::Mutex<mpsc::Receiver<(SocketAddr, Bytes)>>,
    /// Whose an advertised address is. A connection may come from another address than the one its node advertises.
    names: Mutex<HashMap<SocketAddr, NodeId>>,
    /// The other clusters heard of, to log each once.
    strangers: Mutex<BTreeSet<String>>,
    malformed: AtomicU64,
    malformed_counter: Counter,
}

impl Line {
    pub(super) fn new(
        cluster_id: String,
        transport: Arc<dyn Transport>,
        inbox: mpsc::Receiver<(SocketAddr, Bytes)>,
    ) -> Self {
        Self {
            cluster_id,
            transport,
            inbox: tokio::sync::Mutex::new(inbox),
            names: Mutex::default(),
            strangers: Mutex::default(),
            malformed: AtomicU64::new(0),
            malformed_counter: metrics::counter!(telemetry::MESSAGES_MALFORMED),
        }
    }

    /// Replaces what is known of advertised addresses.
    pub(super) fn set_names(&self, names: HashMap<SocketAddr, NodeId>) {
        *self.names.lock() = names;
    }

    /// Counts something that could not be read.
    pub(super) fn count_malformed(&self) {
        self.malformed.fetch_add(1, Ordering::Relaxed);
        self.malformed_counter.increment(1);
    }

    /// How much could not be read so far.
    pub(super) fn malformed(&self) -> u64 {
        self.malformed.load(Ordering::Relaxed)
    }

    /// Where the connection to whoever advertises `to` leads; `to` itself where nobody is known to.
    pub(super) fn route(&self, to: SocketAddr) -> SocketAddr {
        let name = self.names.lock().get(&to).cloned();
        let Some(name) = name else { return to };
        self.transport.links().into_iter().find(|link| link.node == name).map_or(to, |link| link.addr)
    }

    fn read(&self, from: SocketAddr, bytes: &Bytes) -> Option<ChitchatMessage> {
        if bytes.len() > GOSSIP_BYTES_MAX {
            tracing::debug!(%from, bytes = bytes.len(), "gossip larger than {GOSSIP_BYTES_MAX} bytes, ignored");
            self.count_malformed();
            return None;
        }
        match ChitchatMessage::deserialize(&mut &bytes[..]) {
            Ok(ChitchatMessage::Syn { cluster_id, .. }) if cluster_id != self.cluster_id => {
                self.tell_stranger(from, &cluster_id);
                None
            }
            Ok(message) => Some(message),
            Err(error) => {
                tracing::debug!(%from, %error, "unreadable gossip, ignored");
                self.count_malformed();
                None
            }
        }
    }

    fn tell_stranger(&self, from: SocketAddr, cluster: &str) {
        let theirs: String = cluster.chars().take(CLUSTER_ID_BYTES_MAX).collect();
        let mut strangers = self.strangers.lock();
        if strangers.len() < STRANGERS_MAX && !strangers.contains(&theirs) {
            tracing::warn!(%from, theirs, ours = self.cluster_id, "gossip of another cluster, ignored; check [cluster] id");
            strangers.insert(theirs);
        }
    }
}

/// Opens [`Line`]s' sockets for chitchat.
pub(super) struct Opener(pub(super) Arc<Line>);

#[async_trait]
impl chitchat::transport::Transport for Opener {
    async fn open(&self, _listen: SocketAddr) -> anyhow::Result<Box<dyn chitchat::transport::Socket>> {
        Ok(Box::new(Socket(self.0.clone())))
    }
}

struct Socket(Arc<Line>);

#[async_trait]
impl chitchat::transport::Socket for Socket {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        let bytes = Bytes::from(message.serialize_to_vec());
        // Gossip is sent again and again, to everyone: what is lost here is of no consequence.
        if let Err(error) = self.0.transport.gossip(self.0.route(to), bytes) {
            tracing::trace!(%to, %error, "gossip not sent");
        }
        Ok(())
    }

    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        loop {
            let received = self.0.inbox.lock().await.recv().await;
            let Some((from, bytes)) = received else {
                // The transport is closed, as it is while the node drains: nothing will come, and that is no error.
                return std::future::pending().await;
            };
            if let Some(message) = self.0.read(from, &bytes) {
                return Ok((from, message));
            }
        }
    }
}
