//! A node without doors: everything that agrees, stores and talks to the peers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use super::Error;
use super::directory::{is_marked, mark, reset_key};
use super::view::View;
use crate::api::{self, Service, ServiceConfig};
use crate::blocking;
use crate::clock::{Clock, OsClock};
use crate::cluster::gossip::{self, Gossip};
use crate::cluster::hello::{Local, PROTOCOL_VERSIONS};
use crate::cluster::membership::Membership;
use crate::cluster::status::{Govern, Observe, Role};
use crate::config::Config;
use crate::disk::{self, Disk, OsDisk};
use crate::replication::QuorumReplicator;
use crate::replication::journal::{self, Journal, JournalConfig};
use crate::replication::outbox::OutboxBounds;
use crate::replication::quorum::{Foundations, Greeter, Installed, QuorumConfig, QuorumStatus};
use crate::store::replicator::Replicator;
use crate::store::{Manager, StoreConfig};
use crate::telemetry;
use crate::transport::{Inbox, Transport, memory, quic};

/// The longest time a client may name for one request.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// How long requests in flight may take to end when the node drains.
const DRAIN_REQUESTS: Duration = Duration::from_secs(10);
/// How long the driver may take to end.
const DRAIN_DRIVER: Duration = Duration::from_secs(3);
/// How often the card is renewed and idle shards are looked for.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// What surrounds a node: the machine by default, or what a test has in its place.
pub struct Surroundings {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Files.
    pub disk: Arc<dyn Disk>,
    /// The way to the peers.
    pub network: Network,
    /// Bytes preallocated for each journal segment.
    pub segment_bytes: u64,
}

/// How a node reaches its peers.
pub enum Network {
    /// Over QUIC, at the configured address.
    Quic,
    /// Within this process.
    Memory(Arc<memory::Network>),
}

impl Default for Surroundings {
    fn default() -> Self {
        Self {
            clock: OsClock::shared(),
            disk: OsDisk::shared(),
            network: Network::Quic,
            segment_bytes: journal::SEGMENT_BYTES,
        }
    }
}

/// A voter that runs. Dropping it without [`Member::close`] is as abrupt as a crash, for all but its files.
pub struct Member {
    view: Arc<View>,
    service: Arc<Service>,
    /// Ends with the node.
    _housekeeping: JoinSet<()>,
}

impl Member {
    /// Opens the data, replays the journal and joins the others. Returns before a quorum answers; see
    /// [`Member::wait_ready`].
    pub async fn start(config: &Config, surroundings: Surroundings) -> Result<Self, Error> {
        let Surroundings { clock, disk, network, segment_bytes } = surroundings;
        let (data_dir, node) = (&config.node.data_dir, &config.node.name);
        let unmade = |source| Error::DataDirectory { path: data_dir.clone(), source };
        disk::create_directory(&*disk, data_dir).map_err(unmade)?;

        let first = match &*config.cluster.voters {
            [] => Membership::unknown(),
            voters => {
                let first = Membership::epoch_one(voters.to_vec())?;
                first.with_replication_factor(config.cluster.replication_factor)?
            }
        };
        let (journal, recovered) = open_journal(config, &disk, segment_bytes).await?;
        let is_marked = is_marked(&*disk, data_dir, node)?;
        let manager = Manager::with_config(store_config(config, &disk), clock.clone())?;
        let installed = Installed::read(&manager, &recovered, first).await?;
        let local = Local {
            versions: PROTOCOL_VERSIONS,
            cluster: config.cluster.id.clone(),
            node: node.clone(),
            membership: installed.membership.clone(),
        };
        let ceiling = recovered.restored.ceiling;
        let run = rand::random();
        let greeter = Arc::new(Greeter::new(local, journal.header(), ceiling, run, clock.clone()));
        let is_reached_within = matches!(network, Network::Memory(_));
        let (transport, inbox) = connect(config, network, &greeter)?;
        manager.feed().set_storage_id(greeter.figures().storage_id);
        if !is_marked {
            mark(&*disk, data_dir, node);
        }
        let Inbox { events, calls, gossip: gossip_inbox } = inbox;
        let driver = QuorumConfig {
            node: node.clone(),
            max_skew: config.cluster.max_skew,
            ceiling_lead: config.cluster.ceiling_lead,
            propose_timeout: config.timeouts.propose,
            value_bytes_max: config.store.value_size_max,
            outbox: OutboxBounds {
                entries_max: config.store.outbox_entries_max,
                bytes_max: config.store.outbox_size_max,
            },
            tombstone_grace: config.store.tombstone_grace,
            unused_drop_after: config.store.unused_drop_after,
            seed: rand::random(),
            is_alone: config.is_alone(),
        };
        let since_ms = u64::try_from(clock.now().wall / 1_000_000).unwrap_or(0);
        let foundations = Foundations {
            clock,
            greeter: greeter.clone(),
            manager: manager.clone(),
            transport: transport.clone(),
            events,
            calls,
            journal,
            recovered,
            installed,
        };
        let replicator = QuorumReplicator::start(driver, foundations).await?;

        let advertise = if is_reached_within || config.is_alone() {
            transport.local_addr()
        } else {
            resolve(config, transport.local_addr()).await?
        };
        let view = Arc::new(View {
            cluster: config.cluster.id.clone(),
            node: node.clone(),
            advertise,
            greeter,
            manager,
            replicator,
            transport,
            gossip: parking_lot::RwLock::new(None),
            draining: AtomicBool::new(false),
        });
        if !config.is_alone() {
            let gossip = gossip_config(config, &view, since_ms);
            let gossip = Gossip::start(gossip, view.transport.clone(), gossip_inbox, view.card()).await?;
            *view.gossip.write() = Some(gossip);
        }

        let limits = ServiceConfig {
            key_bytes_max: config.store.key_size_max,
            value_bytes_max: config.store.value_size_max,
            input_bytes_max: api::INPUT_BYTES_MAX,
            timeout_default: config.timeouts.propose,
            timeout_max: TIMEOUT_MAX,
        };
        let service = Service::new(limits, view.manager.clone(), view.clone(), Some(view.clone()));
        let mut housekeeping = JoinSet::new();
        housekeeping.spawn(keep_house(view.clone()));
        if let Some(gossip) = view.gossip.read().clone() {
            housekeeping.spawn(follow_leavers(gossip.clone(), view.replicator.clone()));
            housekeeping.spawn(follow_voters(gossip, view.replicator.clone()));
        }
        Ok(Self { view, service, _housekeeping: housekeeping })
    }

    /// Carries out what clients ask.
    #[must_use]
    pub fn service(&self) -> Arc<Service> {
        self.service.clone()
    }

    /// The shards.
    #[must_use]
    pub fn manager(&self) -> &Arc<Manager> {
        &self.view.manager
    }

    /// What the doors show.
    #[must_use]
    pub fn view(&self) -> Arc<dyn Observe> {
        self.view.clone()
    }

    /// Who changes the cluster.
    #[must_use]
    pub fn govern(&self) -> Arc<dyn Govern> {
        self.view.clone()
    }

    /// Where peers reach this node; none where it is the only voter.
    #[must_use]
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.view.gossip.read().is_some().then(|| self.view.transport.local_addr())
    }

    /// Waits until a quorum answers and this node has what the others have.
    pub async fn wait_ready(&self) {
        let mut status = self.view.replicator.watch();
        // An error means that the driver has ended, which `failed` tells.
        let _ = status.wait_for(|status| status.ready().is_ok()).await;
    }

    /// Waits until this node's disk must not vote any more while the others are enough to put another one in its place: to be
    /// started anew, as which it then is one.
    pub async fn must_start_over(&self) {
        let mut status = self.view.replicator.watch();
        let is_barred_for_good = |status: &QuorumStatus| status.barred.is_some() && status.no_quorum.is_none();
        if status.wait_for(is_barred_for_good).await.is_err() {
            // The driver has ended, which `failed` tells.
            std::future::pending::<()>().await;
        }
    }

    /// Ends when the node can serve nothing any more, with the reason.
    pub async fn failed(&self) -> String {
        let mut status = self.view.replicator.watch();
        while status.changed().await.is_ok() {}
        "the replication driver ended; its panic is in the log above".to_owned()
    }

    /// Refuses new writes, finishes what is in flight (bounded), and leaves the others. Reads go on.
    pub async fn leave(&self) {
        self.view.draining.store(true, Ordering::Relaxed);
        self.service.drain();
        let gossip = self.view.gossip.read().clone();
        let leave = async {
            if let Some(gossip) = gossip {
                gossip.leave().await;
                gossip.close().await;
            }
        };
        // Peers hear of it while the last requests end.
        let (drained, ()) = tokio::join!(tokio::time::timeout(DRAIN_REQUESTS, self.service.drained()), leave);
        if drained.is_err() {
            tracing::warn!("requests in flight did not end in time; their clients will see the connection close");
        }
        if tokio::time::timeout(DRAIN_DRIVER, self.view.replicator.retire()).await.is_err() {
            tracing::warn!("updates under way did not end in time; what became of them is unknown");
        }
    }

    /// Closes every connection and every file, after [`Member::leave`]. Until then this node still answers its peers.
    pub async fn close(self) {
        self.view.transport.close().await;
        if tokio::time::timeout(DRAIN_DRIVER, self.view.replicator.close()).await.is_err() {
            tracing::warn!("the journal's last batch did not end in time; the next start replays it");
        }
        if let Err(error) = self.view.manager.close().await {
            tracing::warn!(%error, "closing the shards; the next start replays the journal");
        }
    }
}

async fn open_journal(
    config: &Config,
    disk: &Arc<dyn Disk>,
    segment_bytes: u64,
) -> Result<(Journal, journal::Recovered), Error> {
    let journal = JournalConfig {
        data_dir: config.node.data_dir.clone(),
        segment_bytes,
        durability: config.store.durability,
        disk: disk.clone(),
        may_start_over: !config.is_alone(),
    };
    match blocking::spawn(move || Journal::open(journal, rand::random())).await {
        Ok(opened) => Ok(opened?),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

fn store_config(config: &Config, disk: &Arc<dyn Disk>) -> StoreConfig {
    StoreConfig {
        root_dir: config.node.data_dir.clone(),
        idle_evict_after: config.store.idle_evict_after,
        key_bytes_max: config.store.key_size_max,
        value_bytes_max: config.store.value_size_max,
        disk: disk.clone(),
    }
}

fn gossip_config(config: &Config, view: &View, since_ms: u64) -> gossip::Config {
    gossip::Config {
        node: config.node.name.clone(),
        advertise: view.advertise,
        since_ms,
        cluster_id: config.cluster.id.clone(),
        seeds: config.peer.seeds.clone(),
        lookup_interval: gossip::LOOKUP_INTERVAL,
        voters: config.cluster.voters.clone(),
        interval: gossip::GOSSIP_INTERVAL,
    }
}

/// Opens the way to the peers; a node that is the only voter has nobody to talk to, and opens no port.
fn connect(config: &Config, network: Network, greeter: &Arc<Greeter>) -> Result<(Arc<dyn Transport>, Inbox), Error> {
    let within = match network {
        Network::Memory(within) => Some(within),
        Network::Quic if config.is_alone() => Some(memory::Network::new()),
        Network::Quic => None,
    };
    if let Some(within) = within {
        let (transport, inbox) = within.join(config.node.name.clone(), greeter.clone());
        return Ok((transport, inbox));
    }
    let identity = config.cluster.identity.clone().ok_or(Error::NoIdentity)?;
    let reset_key = reset_key(&config.node.data_dir)?;
    let endpoint = quic::Config::new(config.node.name.clone(), config.peer.listen, identity, reset_key);
    let (transport, inbox) = quic::QuicTransport::start(endpoint, greeter.clone())?;
    Ok((transport, inbox))
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

/// Tells the driver which peers leave, or are silent, as soon as the gossip knows.
async fn follow_leavers(gossip: Arc<Gossip>, replicator: Arc<QuorumReplicator>) {
    let mut peers = gossip.watch();
    let mut told = Vec::new();
    while peers.changed().await.is_ok() {
        let gone = |peer: &gossip::Peer| (!peer.live).then(|| peer.node.clone());
        let leavers: Vec<_> = peers.borrow_and_update().iter().filter_map(gone).collect();
        if leavers != told {
            replicator.avoid(leavers.clone()).await;
            told = leavers;
        }
    }
}

/// Has the voters dialled, whoever they are now.
async fn follow_voters(gossip: Arc<Gossip>, replicator: Arc<QuorumReplicator>) {
    let mut membership = replicator.membership();
    loop {
        let voters = membership.borrow_and_update().voter_names();
        gossip.set_voters(voters);
        if membership.changed().await.is_err() {
            return;
        }
    }
}

/// Who votes, as metrics.
fn show_votes(view: &View) {
    let (membership, role) = (view.greeter.membership(), view.me(&view.replicator.status()).role);
    metrics::gauge!(telemetry::EPOCH).set(membership.epoch() as f64);
    metrics::gauge!(telemetry::JOINT).set(f64::from(u8::from(membership.is_joint())));
    metrics::gauge!(telemetry::VOTES).set(f64::from(u8::from(role == Role::Voter)));
    metrics::gauge!(telemetry::MEMBERS).set(membership.members().len() as f64);
    metrics::gauge!(telemetry::VOTERS).set(membership.voters().count() as f64);
}

/// Renews the card, has the peers' compared with it, closes idle shards, shows round trips.
async fn keep_house(view: Arc<View>) {
    let mut tick = tokio::time::interval(HOUSEKEEPING);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let ready = metrics::gauge!(telemetry::READY);
    loop {
        tick.tick().await;
        ready.set(if view.ready().is_ok() { 1.0 } else { 0.0 });
        show_votes(&view);
        for link in view.transport.links() {
            let peer = link.node.as_str().to_owned();
            let seconds = link.round_trip.as_secs_f64();
            metrics::gauge!(telemetry::PEER_ROUND_TRIP, "peer" => peer).set(seconds);
        }
        if let Some(gossip) = view.gossip.read().clone() {
            let card = view.card();
            let root = card.root;
            gossip.say(card);
            let peers = gossip.peers();
            for peer in &peers {
                view.greeter.heard(&peer.node, &peer.card.figures());
            }
            let roots = peers.into_iter().filter(|peer| peer.live).map(|peer| (peer.node, peer.card.root));
            view.replicator.look(root, roots.collect());
        }
        let manager = view.manager.clone();
        // Closing a shard checkpoints it: nothing for this task's thread.
        let evicting = blocking::spawn(move || manager.evict_idle());
        if evicting.await.is_err() {
            tracing::error!("closing idle shards panicked; they stay open");
        }
    }
}
