//! The transport over QUIC: one UDP socket, mutual TLS 1.3, one connection per pair of nodes.
//!
//! ```text
//!   endpoint.rs  socket and limits      opening.rs  hello, verdict: a connection becomes a link
//!   link.rs      lanes of one link      calls.rs    a stream per call
//!   doorway.rs   how many may be on their way to a link
//! ```
//!
//! Streams: the first bidirectional one carries the hellos; each lane is a unidirectional stream that begins with the
//! lane's number; each further bidirectional one is a call. All carry messages as `wire.rs` frames them. Only
//! the files under `quic/` know quinn's types.

mod calls;
mod doorway;
mod ending;
mod endpoint;
mod link;
mod opening;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::{fmt, io};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::mpsc;
use tokio::time::timeout;

use self::ending::LEAVING;
use self::link::QuicLink;
use super::dialer::{BACKOFF_MAX, Dialer};
use super::refusal::Refusals;
use super::registry::Registry;
use super::{CallError, Greeter, Inbox, InboxSender, Lane, Link, Refusal, SendError, Transport, tls};
use crate::telemetry::{
    CERTIFICATE_EXPIRY, IDENTITY_CHANGES, IDENTITY_OUTDATED, MESSAGES_DROPPED, MESSAGES_MALFORMED, PEERS_LIVE,
};
use crate::types::NodeId;

/// How long [`Transport::close`] takes at most.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What a node's transport needs to know.
#[derive(Clone)]
pub struct Config {
    /// This node's name; its certificate must be for it.
    pub node: NodeId,
    /// Where to listen, and whence to dial: UDP. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Who may talk to this node, and how it proves who it is.
    pub identity: tls::Identity,
    /// Random and this node's own, but the same after each restart: lets a restarted node tell its peers that their
    /// connections to its former self are gone, which they would otherwise notice by silence.
    pub reset_key: [u8; 32],
    /// How often key and certificate files are compared with what is in use; a change is used after the second look at it.
    pub reload_every: Duration,
}

impl fmt::Debug for Config {
    /// Without the reset key, which is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Config");
        shown.field("node", &self.node).field("listen", &self.listen).field("identity", &self.identity);
        shown.finish_non_exhaustive()
    }
}

impl Config {
    /// With files compared every ten seconds.
    #[must_use]
    pub fn new(node: NodeId, listen: SocketAddr, identity: tls::Identity, reset_key: [u8; 32]) -> Self {
        Self { node, listen, identity, reset_key, reload_every: Duration::from_secs(10) }
    }
}

/// Why the transport could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The certificate or key cannot be used.
    #[error(transparent)]
    Identity(#[from] tls::Error),
    /// The socket cannot be had.
    #[error("cannot listen on {listen} (UDP): {source}; set [peer] listen to a free address of this machine")]
    Listen {
        /// Where.
        listen: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// TLS lacks what QUIC needs.
    #[error("cannot set up QUIC: {0}")]
    Setup(String),
}

/// A node's door to the others, over QUIC. Dropping it closes it without waiting for anything.
pub struct QuicTransport {
    shared: Arc<Shared>,
}

struct Shared {
    node: NodeId,
    /// Tells this process from others of the same name, and from its own former lives.
    run: u64,
    local_addr: SocketAddr,
    endpoint: quinn::Endpoint,
    /// What the next connection is dialled with; changes with the identity's files.
    client: RwLock<quinn::ClientConfig>,
    greeter: Arc<dyn Greeter>,
    registry: Registry<QuicLink>,
    dialer: Dialer,
    refusals: Refusals,
    /// How often changed files were taken into use.
    changes: AtomicU64,
    /// Why changed key or certificate files are not in use.
    trouble: Mutex<Option<String>>,
    inbox: InboxSender,
    metrics: Metrics,
}

struct Metrics {
    live: metrics::Gauge,
    dropped: metrics::Counter,
    malformed: metrics::Counter,
    expiry: metrics::Gauge,
    outdated: metrics::Gauge,
    changes: metrics::Counter,
}

impl Metrics {
    fn new() -> Self {
        Self {
            live: metrics::gauge!(PEERS_LIVE),
            dropped: metrics::counter!(MESSAGES_DROPPED),
            malformed: metrics::counter!(MESSAGES_MALFORMED),
            expiry: metrics::gauge!(CERTIFICATE_EXPIRY),
            outdated: metrics::gauge!(IDENTITY_OUTDATED),
            changes: metrics::counter!(IDENTITY_CHANGES),
        }
    }

    /// Unix seconds are far below where floating-point numbers leave gaps.
    fn expires(&self, at: i64) {
        self.expiry.set(at as f64);
    }
}

impl QuicTransport {
    /// Listens, and accepts peers from now on. Must be called on a tokio runtime.
    pub fn start(config: Config, greeter: Arc<dyn Greeter>) -> Result<(Arc<Self>, Inbox), Error> {
        let sources = config.identity.read()?;
        let configs = endpoint::configure(&sources, &config.node)?;
        let endpoint = endpoint::open(&config, configs.server)?;
        let local_addr = endpoint.local_addr().map_err(|source| Error::Listen { listen: config.listen, source })?;
        let (to_inbox, inbox) = Inbox::channel();
        let shared = Arc::new(Shared {
            node: config.node,
            run: rand::random(),
            local_addr,
            endpoint,
            client: RwLock::new(configs.client),
            greeter,
            registry: Registry::new(),
            dialer: Dialer::new(BACKOFF_MAX),
            refusals: Refusals::new(),
            changes: AtomicU64::new(0),
            trouble: Mutex::default(),
            inbox: to_inbox,
            metrics: Metrics::new(),
        });
        tokio::spawn(opening::accept(Arc::clone(&shared)));
        shared.metrics.expires(configs.expires);
        shared.metrics.outdated.set(0.0);
        tokio::spawn(endpoint::reload(Arc::downgrade(&shared), config.identity, sources, config.reload_every));
        Ok((Arc::new(Self { shared }), inbox))
    }

    /// How often changed key or certificate files were taken into use since the start.
    #[must_use]
    pub fn identity_changes(&self) -> u64 {
        self.shared.changes.load(Ordering::Relaxed)
    }

    /// Why the key or certificate files, as they are now, cannot be used; the former ones are. `None` when all is well.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.shared.trouble.lock().clone()
    }
}

#[async_trait]
impl Transport for QuicTransport {
    fn local_addr(&self) -> SocketAddr {
        self.shared.local_addr
    }

    fn dial(&self, addr: SocketAddr) {
        let addr = canonical(addr);
        if addr != self.shared.local_addr {
            self.shared.dialer.dial(Arc::clone(&self.shared), addr);
        }
    }

    fn forget(&self, addr: SocketAddr) {
        let addr = canonical(addr);
        self.shared.dialer.forget(addr);
        self.shared.registry.forget(addr);
    }

    fn send(&self, to: &NodeId, message: Bytes) -> Result<(), SendError> {
        self.shared.registry.get(to).ok_or(SendError::NotConnected)?.queue(Lane::Protocol).push(message)
    }

    fn gossip(&self, to: SocketAddr, message: Bytes) -> Result<(), SendError> {
        self.shared.registry.at(canonical(to)).ok_or(SendError::NotConnected)?.queue(Lane::Gossip).push(message)
    }

    async fn call(&self, to: &NodeId, request: Bytes) -> Result<mpsc::Receiver<Result<Bytes, CallError>>, CallError> {
        let link = self.shared.registry.get(to).ok_or_else(|| CallError::NotConnected(to.clone()))?;
        calls::ask(&link, request).await
    }

    fn links(&self) -> Vec<Link> {
        self.shared.registry.all().iter().map(|link| link.describe()).collect()
    }

    fn refusals(&self) -> Vec<Refusal> {
        self.shared.refusals.all()
    }

    async fn close(&self) {
        self.shared.dialer.close();
        self.shared.endpoint.set_server_config(None);
        let links = self.shared.registry.all();
        let flush = async {
            for link in &links {
                link.finish();
            }
            for link in &links {
                link.flushed().await;
            }
        };
        let _ = timeout(CLOSE_TIMEOUT / 2, flush).await;
        self.shared.endpoint.close(LEAVING.into(), b"leaving");
        let _ = timeout(CLOSE_TIMEOUT / 2, self.shared.endpoint.wait_idle()).await;
    }
}

impl Drop for QuicTransport {
    fn drop(&mut self) {
        self.shared.dialer.close();
        self.shared.endpoint.close(LEAVING.into(), b"leaving");
    }
}

/// A dual-stack socket shows IPv4 peers as IPv6; the rest of the program knows them by their IPv4 address.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}
