//! One sidecar: every room wired to the others, and the order in which they start and stop. The only file that knows
//! them all.
//!
//! ```text
//!   start:  journal ─► shards ─► hello ─► peers' connections ─► driver ─► gossip ─► socket, admin port
//!   drain:  not ready ─► writes refused ─► requests end ─► gossip leaves ─► driver ─► socket ─► connections ─► shards
//! ```

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::admin::{self, Admin};
use crate::api::{self, Server, Service, ServiceConfig};
use crate::clock::{Clock, OsClock};
use crate::cluster::gossip::{self, Card, Gossip};
use crate::cluster::hello::{Local, PROTOCOL_VERSIONS};
use crate::cluster::membership::{InvalidMembership, Membership};
use crate::cluster::status::{ClusterStatus, NodeStatus, Observe, Role};
use crate::config::Config;
use crate::replication::QuorumReplicator;
use crate::replication::journal::{self, Journal, JournalConfig, JournalError};
use crate::replication::quorum::{Foundations, Greeter, PeerStatus, QuorumConfig, QuorumStatus, StartError};
use crate::store::replicator::Replicator;
use crate::store::{self, Manager, StoreConfig};
use crate::transport::{self, Inbox, Transport, quic};
use crate::types::{NodeId, Slot};

/// Bytes preallocated for each journal segment.
const SEGMENT_BYTES: u64 = 32 * 1024 * 1024;
/// The longest time a client may name for one request.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// How long requests in flight may take to end when the node drains.
const DRAIN_REQUESTS: Duration = Duration::from_secs(10);
/// How long the driver may take to end.
const DRAIN_DRIVER: Duration = Duration::from_secs(5);
/// How long connections on the socket may take to end once nothing is in flight.
const DRAIN_CONNECTIONS: Duration = Duration::from_secs(2);
/// How often the card is renewed and idle shards are looked for.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

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
    /// The socket cannot be opened.
    #[error(transparent)]
    Socket(#[from] api::Error),
    /// The admin port cannot be opened.
    #[error(transparent)]
    Admin(#[from] admin::Error),
}

/// A running sidecar.
pub struct Node {
    manager: Arc<Manager>,
    replicator: Arc<QuorumReplicator>,
    transport: Arc<dyn Transport>,
    gossip: Option<Arc<Gossip>>,
    service: Arc<Service>,
    server: Server,
    admin: Admin,
    view: Arc<View>,
    /// Ends with the node.
    _housekeeping: JoinSet<()>,
}

impl Node {
    /// Opens the data, replays the journal, listens on the socket and joins the others. Returns before a quorum
    /// answers; see [`Node::wait_ready`].
    pub async fn start(config: Config) -> Result<Self, Error> {
        Self::start_with_clock(config, OsClock::shared()).await
    }

    /// Likewise, by a clock of the caller's.
    pub async fn start_with_clock(config: Config, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        let metrics = admin::install_metrics()?;
        let data_dir = config.node.data_dir.clone();
        let unmade = |source| Error::DataDirectory { path: data_dir.clone(), source };
        store::create_directory(&data_dir).map_err(unmade)?;

        let membership = Membership::epoch_one(config.cluster.voters.clone())?;
        let not_a_voter = || StartError::NotAVoter { node: config.node.name.clone() };
        let slot = membership.slot_of(&config.node.name).ok_or_else(not_a_voter)?;
        let (journal, recovered) = open_journal(&config).await?;
        let is_marked = is_marked(&data_dir, &config.node.name)?;
        let manager = Manager::with_config(store_config(&config), clock.clone())?;
        let local = Local {
            versions: PROTOCOL_VERSIONS,
            cluster: config.cluster.id.clone(),
            node: config.node.name.clone(),
            membership: membership.clone(),
        };
        let ceiling = recovered.restored.ceiling;
        let run = rand::random();
        let greeter = Arc::new(Greeter::new(local, slot, journal.header(), ceiling, run, clock.clone()));
        let (transport, inbox) = connect(&config, &greeter)?;
        if !is_marked {
            mark(&data_dir, &config.node.name);
        }
        let Inbox { events, calls, gossip: gossip_inbox } = inbox;
        let driver = QuorumConfig {
            node: config.node.name.clone(),
            membership: membership.clone(),
            max_skew: config.cluster.max_skew,
            ceiling_lead: config.cluster.ceiling_lead,
            propose_timeout: config.timeouts.propose,
            value_bytes_max: config.store.value_size_max,
            seed: rand::random(),
        };
        let foundations = Foundations {
            clock: clock.clone(),
            greeter: greeter.clone(),
            manager: manager.clone(),
            transport: transport.clone(),
            events,
            calls,
            journal,
            recovered,
        };
        let replicator = QuorumReplicator::start(driver, foundations).await?;

        let advertise = match config.is_alone() {
            true => transport.local_addr(),
            false => resolve(&config, transport.local_addr()).await?,
        };
        let view = Arc::new(View {
            cluster: config.cluster.id.clone(),
            membership: membership.clone(),
            node: config.node.name.clone(),
            slot,
            advertise,
            greeter: greeter.clone(),
            manager: manager.clone(),
            replicator: replicator.clone(),
            transport: transport.clone(),
            gossip: parking_lot::RwLock::new(None),
            draining: AtomicBool::new(false),
        });
        let gossip = if config.is_alone() {
            None
        } else {
            let gossip = gossip::Config {
                node: config.node.name.clone(),
                advertise,
                boot: greeter.boot(),
                cluster_id: config.cluster.id.clone(),
                seeds: config.peer.seeds.clone(),
                lookup_interval: gossip::LOOKUP_INTERVAL,
                voters: config.cluster.voters.clone(),
                interval: gossip::GOSSIP_INTERVAL,
            };
            Some(Gossip::start(gossip, transport.clone(), gossip_inbox, view.card()).await?)
        };
        *view.gossip.write() = gossip.clone();

        let limits = ServiceConfig {
            key_bytes_max: config.store.key_size_max,
            value_bytes_max: config.store.value_size_max,
            input_bytes_max: api::INPUT_BYTES_MAX,
            timeout_default: config.timeouts.propose,
            timeout_max: TIMEOUT_MAX,
        };
        let service = Service::new(limits, manager.clone(), view.clone());
        let socket = api::Config { mode: config.socket.mode, ..api::Config::at(&config.socket.path) };
        let server = api::serve(socket, service.clone()).await?;
        let admin = Admin::start(config.admin.listen, view.clone(), metrics).await?;
        let mut housekeeping = JoinSet::new();
        housekeeping.spawn(keep_house(view.clone()));
        Ok(Self { manager, replicator, transport, gossip, service, server, admin, view, _housekeeping: housekeeping })
    }

    /// Where peers reach this node; none where it is the only voter.
    #[must_use]
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.gossip.is_some().then(|| self.transport.local_addr())
    }

    /// Where the admin port listens.
    #[must_use]
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin.local_addr()
    }

    /// Waits until a quorum answers and this node has what the others have.
    pub async fn wait_ready(&self) {
        let mut status = self.replicator.watch();
        // An error means that the driver has ended, which `failed` tells.
        let _ = status.wait_for(|status| status.ready().is_ok()).await;
    }

    /// Ends when the node can serve nothing any more, with the reason.
    pub async fn failed(&self) -> String {
        let mut status = self.replicator.watch();
        while status.changed().await.is_ok() {}
        "the replication driver ended; its panic is in the log above".to_owned()
    }

    /// Stops: refuses new writes, finishes what is in flight (bounded), leaves, and closes every file.
    pub async fn drain(self) {
        self.view.draining.store(true, Ordering::Relaxed);
        self.service.drain();
        if tokio::time::timeout(DRAIN_REQUESTS, self.service.drained()).await.is_err() {
            tracing::warn!("requests in flight did not end in time; their clients will see the connection close");
        }
        if let Some(gossip) = &self.gossip {
            gossip.leave().await;
            gossip.close().await;
        }
        if tokio::time::timeout(DRAIN_DRIVER, self.replicator.close()).await.is_err() {
            tracing::warn!("the journal's last batch did not end in time; the next start replays it");
        }
        self.server.shutdown(DRAIN_CONNECTIONS).await;
        self.transport.close().await;
        if let Err(error) = self.manager.close().await {
            tracing::warn!(%error, "closing the shards; the next start replays the journal");
        }
        self.admin.shutdown().await;
    }
}

async fn open_journal(config: &Config) -> Result<(Journal, journal::Recovered), Error> {
    let journal = JournalConfig {
        data_dir: config.node.data_dir.clone(),
        segment_bytes: SEGMENT_BYTES,
        durability: config.store.durability,
    };
    let opened = tokio::task::spawn_blocking(move || Journal::open(journal, rand::random()));
    match opened.await {
        Ok(opened) => Ok(opened?),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

fn store_config(config: &Config) -> StoreConfig {
    StoreConfig {
        idle_evict_after: config.store.idle_evict_after,
        key_bytes_max: config.store.key_size_max,
        value_bytes_max: config.store.value_size_max,
        ..StoreConfig::at(&config.node.data_dir)
    }
}

/// Opens the peers' endpoint; a node that is the only voter has nobody to talk to, and opens none.
fn connect(config: &Config, greeter: &Arc<Greeter>) -> Result<(Arc<dyn Transport>, Inbox), Error> {
    if config.is_alone() {
        let (transport, inbox) = transport::memory::Network::new().join(config.node.name.clone(), greeter.clone());
        return Ok((transport, inbox));
    }
    let identity = config.cluster.identity.clone().ok_or(Error::NoIdentity)?;
    let reset_key = reset_key(&config.node.data_dir)?;
    let endpoint = quic::Config::new(config.node.name.clone(), config.peer.listen, identity, reset_key);
    let (transport, inbox) = quic::QuicTransport::start(endpoint, greeter.clone())?;
    Ok((transport, inbox))
}

/// Whether the directory is known to be this node's. Another's is refused: what peers remember would tell, too, but
/// only by taking that node's votes away for good.
fn is_marked(data_dir: &Path, node: &NodeId) -> Result<bool, Error> {
    let owner = std::fs::read_to_string(name_file(data_dir)).unwrap_or_default();
    match owner.trim() {
        "" => Ok(false),
        owner if owner == node.as_str() => Ok(true),
        owner => Err(Error::ForeignData { path: data_dir.to_owned(), owner: owner.to_owned(), node: node.clone() }),
    }
}

/// Marks the directory as this node's, once it starts in earnest: a mistake in the configuration claims nothing.
fn mark(data_dir: &Path, node: &NodeId) {
    let path = name_file(data_dir);
    // A precaution is no reason not to start: a full disk, for one, must not keep a node from serving reads.
    if let Err(error) = std::fs::write(&path, format!("{node}\n")) {
        tracing::warn!(path = %path.display(), %error, "cannot mark the data directory as this node's");
    }
}

fn name_file(data_dir: &Path) -> PathBuf {
    data_dir.join(journal::DIRECTORY).join("name")
}

/// The secret behind QUIC's stateless resets: random, and the same after a restart, so that peers learn at once that
/// their old connection is gone.
fn reset_key(data_dir: &Path) -> Result<[u8; 32], Error> {
    let path = data_dir.join(journal::DIRECTORY).join("reset-key");
    if let Some(key) = std::fs::read(&path).ok().and_then(|bytes| bytes.try_into().ok()) {
        return Ok(key);
    }
    let key: [u8; 32] = rand::random();
    let mut options = std::fs::File::options();
    options.create(true).truncate(true).write(true).mode(0o600);
    let written = options.open(&path).and_then(|mut file| file.write_all(&key));
    written.map_err(|source| Error::ResetKey { path, source })?;
    Ok(key)
}

/// Where others reach this node; a port of 0 stands for the one that was bound.
async fn resolve(config: &Config, bound: SocketAddr) -> Result<SocketAddr, Error> {
    let address = config.peer.advertise.clone();
    let found = tokio::net::lookup_host(&address).await.map(|mut found| found.next());
    match found {
        Ok(Some(found)) if found.port() == 0 => Ok(SocketAddr::new(found.ip(), bound.port())),
        Ok(Some(found)) => Ok(found),
        Ok(None) => Err(Error::Advertise { address, reason: "no address by that name".to_owned() }),
        Err(error) => Err(Error::Advertise { address, reason: error.to_string() }),
    }
}

/// Renews the card, closes idle shards, shows round trips.
async fn keep_house(view: Arc<View>) {
    let mut tick = tokio::time::interval(HOUSEKEEPING);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let ready = metrics::gauge!(crate::telemetry::READY);
    loop {
        tick.tick().await;
        ready.set(if view.ready().is_ok() { 1.0 } else { 0.0 });
        for link in view.transport.links() {
            let peer = link.node.as_str().to_owned();
            let seconds = link.round_trip.as_secs_f64();
            metrics::gauge!(crate::telemetry::PEER_ROUND_TRIP, "peer" => peer).set(seconds);
        }
        if let Some(gossip) = view.gossip.read().clone() {
            gossip.say(view.card());
            for peer in gossip.peers() {
                view.greeter.heard(&peer.node, &peer.card.figures());
            }
        }
        let manager = view.manager.clone();
        // Closing a shard checkpoints it: nothing for this task's thread.
        let evicting = tokio::task::spawn_blocking(move || manager.evict_idle());
        if evicting.await.is_err() {
            tracing::error!("closing idle shards panicked; they stay open");
        }
    }
}

/// What the doors of this node show.
struct View {
    cluster: String,
    membership: Membership,
    node: NodeId,
    slot: Slot,
    advertise: SocketAddr,
    greeter: Arc<Greeter>,
    manager: Arc<Manager>,
    replicator: Arc<QuorumReplicator>,
    transport: Arc<dyn Transport>,
    gossip: parking_lot::RwLock<Option<Arc<Gossip>>>,
    draining: AtomicBool,
}

impl View {
    fn card(&self) -> Card {
        let figures = self.greeter.figures();
        Card {
            address: self.advertise,
            storage_id: figures.storage_id,
            slot: self.slot,
            epoch: self.membership.epoch(),
            run: figures.run,
            ceiling: figures.ceiling,
            position: figures.position,
            protocol: PROTOCOL_VERSIONS.max,
            boot: self.greeter.boot(),
            open_shards: self.manager.open_shard_count() as u64,
            pending_frames: self.replicator.status().pending as u64,
            lag_frames: self.manager.apply_backlog(),
            ready: self.ready().is_ok(),
        }
    }

    fn me(&self, status: &QuorumStatus) -> NodeStatus {
        NodeStatus {
            node: self.node.clone(),
            me: true,
            live: true,
            role: if status.barred.is_some() { Role::Barred } else { Role::Voter },
            storage_id: Some(self.greeter.figures().storage_id),
            address: Some(self.advertise.to_string()),
            round_trip_us: None,
            epoch: Some(self.membership.epoch()),
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
            role: if peer.forgot { Role::Barred } else { Role::Voter },
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

impl Observe for View {
    fn cluster(&self) -> ClusterStatus {
        let status = self.replicator.status();
        let links = self.transport.links();
        let gossiped = self.gossip.read().as_ref().map(|gossip| gossip.peers()).unwrap_or_default();
        let mut nodes: Vec<_> = status.peers.iter().map(|peer| self.peer(peer, &links, &gossiped)).collect();
        nodes.push(self.me(&status));
        nodes.sort_by(|a, b| a.node.cmp(&b.node));
        ClusterStatus {
            cluster: self.cluster.clone(),
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch: self.membership.epoch(),
            voters: self.membership.voters().to_vec(),
            nodes,
            open_shards: self.manager.open_shard_count() as u64,
            decisions: status.decisions,
            pending_frames: status.pending as u64,
            unready: self.ready().err(),
            refusals: self.transport.refusals().iter().map(refused).collect(),
        }
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
