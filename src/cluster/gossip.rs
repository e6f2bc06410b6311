//! Who is there now, and where: chitchat over this program's own transport.
//!
//! ```text
//!   seeds ──► look up ──► Dialer ──► transport.dial ──► a connection ──► gossip over it ──► cards of everyone
//!                           ▲                                                                   │
//!                           └────────────────── addresses of voters ◄───────────────────────────┘
//! ```
//!
//! chitchat spreads each node's [`Card`] and tells live nodes from silent ones. It is never asked to find anyone: this
//! room gossips to whoever is connected, and connects to whoever a seed or another node's gossip names, so that one
//! seed is enough and a node that moved is found again.
//!
//! Absent on purpose: nothing here decides anything. A card is hearsay, good for dialling and for showing.

mod card;
mod dial;
mod socket;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chitchat::{Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, NodeState, Version};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use self::card::Card;
use self::dial::Dialer;
pub use self::dial::{ADDRESSES_PER_SEED_MAX, Dns, LOOKUP_INTERVAL, Resolve};
pub use self::socket::GOSSIP_BYTES_MAX;
use self::socket::{Line, Opener};
use crate::transport::Transport;
use crate::types::NodeId;

/// How many peers are shown; more are ignored.
pub const PEERS_MAX: usize = 1024;
/// How many seeds may be configured.
pub const SEEDS_MAX: usize = 256;
/// How long chitchat remembers a silent incarnation of a node. Short, as a node in a crash loop leaves one per start,
/// and all that are remembered travel in every message.
const DEAD_REMEMBERED_FOR: Duration = Duration::from_secs(120);
/// How often to gossip, unless configured otherwise.
pub const GOSSIP_INTERVAL: Duration = Duration::from_millis(500);
/// How many of the low bits of a generation count restarts of the gossip alone; the others are the time of its start.
const RESTART_BITS: u32 = 16;

/// Why gossip could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Too many seeds.
    #[error("{0} seeds, more than {SEEDS_MAX}: name fewer in [peer] seeds, one that answers is enough")]
    TooManySeeds(usize),
    /// A seed without a port, or without a host.
    #[error("the seed {0:?} is not host:port: correct [peer] seeds")]
    BadSeed(String),
    /// A time that leaves no room for the restarts of the gossip.
    #[error("the clock shows {0} ms since 1970, which is beyond what a generation can hold: set it right")]
    TooLate(u64),
    /// chitchat's own.
    #[error("could not start to gossip as {node}: {reason}")]
    Start {
        /// This node.
        node: NodeId,
        /// What chitchat said.
        reason: String,
    },
}

/// What gossip needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// Where others reach it.
    pub advertise: SocketAddr,
    /// When this incarnation began, in Unix milliseconds: a later one of the node has a higher number, and none has the number
    /// of another, whatever disk it is on. (Its boot counter would not do: a lost disk's successor counts from 1 again.)
    pub since_ms: u64,
    /// Gossip of another cluster is ignored.
    pub cluster_id: String,
    /// `host:port` of nodes to dial first. Names are looked up at once, and again and again.
    pub seeds: Vec<String>,
    /// How often seeds are looked up; [`LOOKUP_INTERVAL`] unless a test is in a hurry.
    pub lookup_interval: Duration,
    /// Whom to dial where their cards say they are; others are shown, not dialled.
    pub voters: Vec<NodeId>,
    /// How often to gossip.
    pub interval: Duration,
}

/// Another node, by its latest incarnation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub node: NodeId,
    /// What it said of itself last.
    pub card: Card,
    /// Whether its gossip still comes, and it has not said that it leaves.
    pub live: bool,
    /// Where it says it is.
    pub address: SocketAddr,
}

/// This node's part in the gossip. Dropping it stops it.
pub struct Gossip {
    shared: Arc<Shared>,
    peers: watch::Receiver<Arc<Vec<Peer>>>,
    stop: CancellationToken,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    config: Config,
    transport: Arc<dyn Transport>,
    line: Arc<Line>,
    dialer: Dialer,
    said: Mutex<Said>,
    /// Wakes the session to pass on what was said.
    changed: Notify,
    peers: watch::Sender<Arc<Vec<Peer>>>,
}

#[derive(Clone)]
struct Said {
    card: Card,
    left: bool,
    voters: BTreeSet<NodeId>,
}

impl Gossip {
    /// Begins to look seeds up, to dial and to gossip `card`; takes the gossip that arrives from `inbox`.
    pub async fn start(
        config: Config,
        transport: Arc<dyn Transport>,
        inbox: mpsc::Receiver<(SocketAddr, Bytes)>,
        card: Card,
    ) -> Result<Arc<Self>, Error> {
        Self::start_with_resolver(config, transport, inbox, card, Arc::new(Dns)).await
    }

    /// The same with a resolver of the caller's.
    pub async fn start_with_resolver(
        config: Config,
        transport: Arc<dyn Transport>,
        inbox: mpsc::Receiver<(SocketAddr, Bytes)>,
        card: Card,
        resolver: Arc<dyn Resolve>,
    ) -> Result<Arc<Self>, Error> {
        check(&config)?;
        let (sender, peers) = watch::channel(Arc::default());
        let said = Said { card, left: false, voters: config.voters.iter().cloned().collect() };
        let shared = Arc::new(Shared {
            line: Arc::new(Line::new(config.cluster_id.clone(), transport.clone(), inbox)),
            dialer: Dialer::new(transport.clone(), config.advertise),
            transport,
            said: Mutex::new(said),
            changed: Notify::new(),
            peers: sender,
            config,
        });
        let stop = CancellationToken::new();
        let first = shared.open(0).await?;
        let tasks = vec![
            tokio::spawn(supervise(shared.clone(), first, stop.clone())),
            tokio::spawn(look_up_seeds(shared.clone(), resolver, stop.clone())),
        ];
        Ok(Arc::new(Self { shared, peers, stop, tasks: Mutex::new(tasks) }))
    }

    /// Says this of the node from now on; only what changed travels, at once. Made to be called about once a second.
    pub fn say(&self, card: Card) {
        self.shared.said.lock().card = card;
        self.shared.changed.notify_one();
    }

    /// Dials these from now on, where their cards say they are.
    pub fn set_voters(&self, voters: impl IntoIterator<Item = NodeId>) {
        self.shared.said.lock().voters = voters.into_iter().collect();
        self.shared.changed.notify_one();
    }

    /// Every other node heard of, in the order of their names, each by its latest incarnation. A voter that fell
    /// silent stays in the list with its last card; another node is forgotten after a while.
    #[must_use]
    pub fn peers(&self) -> Vec<Peer> {
        self.peers.borrow().to_vec()
    }

    /// Follows [`Gossip::peers`].
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Vec<Peer>>> {
        self.peers.clone()
    }

    /// How many messages and cards could not be read so far.
    #[must_use]
    pub fn malformed(&self) -> u64 {
        self.shared.line.malformed()
    }

    /// Tells the others that this node leaves, so that they need not find out by its silence; takes two intervals.
    pub async fn leave(&self) {
        self.shared.said.lock().left = true;
        self.shared.changed.notify_one();
        tokio::time::sleep(self.shared.config.interval * 2).await;
    }

    /// Stops gossiping and looking seeds up; dialled addresses stay dialled, as the transport is closed by its owner.
    pub async fn close(&self) {
        self.stop.cancel();
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            // A task that panicked has nothing left to stop.
            let _ = task.await;
        }
    }
}

impl Drop for Gossip {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn check(config: &Config) -> Result<(), Error> {
    if config.seeds.len() > SEEDS_MAX {
        return Err(Error::TooManySeeds(config.seeds.len()));
    }
    let is_host_port =
        |seed: &str| seed.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if let Some(bad) = config.seeds.iter().find(|seed| !is_host_port(seed)) {
        return Err(Error::BadSeed(bad.clone()));
    }
    if config.since_ms > u64::MAX >> RESTART_BITS {
        return Err(Error::TooLate(config.since_ms));
    }
    Ok(())
}

async fn look_up_seeds(shared: Arc<Shared>, resolver: Arc<dyn Resolve>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(shared.config.lookup_interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let looked_up = stop.run_until_cancelled(shared.dialer.look_up(&shared.config.seeds, &*resolver)).await;
        if looked_up.is_none() {
            return;
        }
    }
}

/// Runs one session after the other. chitchat asserts what its messages promise, so a damaged one may end its server;
/// the next session gossips as a later generation, since peers ignore heartbeats lower than they have seen.
async fn supervise(shared: Arc<Shared>, first: ChitchatHandle, stop: CancellationToken) {
    let mut handle = first;
    for restart in 1..1 << RESTART_BITS {
        let session = tokio::spawn(Session::new(shared.clone(), handle).run(stop.clone()));
        let reason = match session.await {
            Ok(Ended::Stopped) => return,
            Ok(Ended::Failed(reason)) => reason,
            Err(error) => error.to_string(),
        };
        tracing::error!(reason, restart, "the gossip ended; it is started again");
        if stop.run_until_cancelled(tokio::time::sleep(shared.config.interval)).await.is_none() {
            return;
        }
        match shared.open(restart).await {
            Ok(next) => handle = next,
            Err(error) => {
                tracing::error!(%error, "gossip stays off: peers that move are found by their seeds alone");
                return;
            }
        }
    }
    tracing::error!("gossip ended too often and stays off: restart this node");
}

impl Shared {
    async fn open(&self, restart: u64) -> Result<ChitchatHandle, Error> {
        let config = &self.config;
        let id = ChitchatId::new(config.node.as_str(), (config.since_ms << RESTART_BITS) | restart, config.advertise);
        let detector = FailureDetectorConfig {
            initial_interval: config.interval * 2,
            max_interval: config.interval * 20,
            dead_node_grace_period: DEAD_REMEMBERED_FOR,
            ..FailureDetectorConfig::default()
        };
        let chitchat = ChitchatConfig {
            chitchat_id: id,
            cluster_id: config.cluster_id.clone(),
            gossip_interval: config.interval,
            listen_addr: config.advertise,
            // Seeds are dialled by this room, and gossip follows the connections.
            seed_nodes: Vec::new(),
            failure_detector_config: detector,
            marked_for_deletion_grace_period: DEAD_REMEMBERED_FOR,
            catchup_callback: None,
            extra_liveness_predicate: None,
        };
        let said = self.said.lock().clone();
        let pairs = said.card.pairs(said.left).into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        chitchat::spawn_chitchat(chitchat, pairs, &Opener(self.line.clone()))
            .await
            .map_err(|e| Error::Start { node: config.node.clone(), reason: format!("{e:#}") })
    }
}

enum Ended {
    Stopped,
    Failed(String),
}

/// One life of chitchat's server.
struct Session {
    shared: Arc<Shared>,
    handle: ChitchatHandle,
    /// The malformed states counted already.
    malformed: HashSet<(ChitchatId, Version)>,
}

impl Session {
    fn new(shared: Arc<Shared>, handle: ChitchatHandle) -> Self {
        Self { shared, handle, malformed: HashSet::new() }
    }

    async fn run(mut self, stop: CancellationToken) -> Ended {
        let mut ticks = tokio::time::interval(self.shared.config.interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut heard = self.handle.chitchat().lock().await.live_nodes_watcher();
        let mut terminated = std::pin::pin!(self.handle.termination_watcher());
        loop {
            let said = tokio::select! {
                () = stop.cancelled() => return self.end().await,
                ended = &mut terminated => {
                    return Ended::Failed(ended.err().map_or_else(|| "it stopped".to_owned(), |e| format!("{e:#}")));
                }
                () = self.shared.changed.notified() => true,
                _ = ticks.tick() => false,
                // An error would mean that the server is gone, which the branch above tells with the reason.
                Ok(()) = heard.changed() => false,
            };
            self.exchange(said).await;
        }
    }

    async fn end(self) -> Ended {
        // Whatever error it ends with, it has ended.
        let _ = self.handle.shutdown().await;
        Ended::Stopped
    }

    /// Passes on what this node says and takes in what the others said.
    async fn exchange(&mut self, at_once: bool) {
        let said = self.shared.said.lock().clone();
        let chitchat = self.handle.chitchat();
        let mut chitchat = chitchat.lock().await;
        // All keys, every time: chitchat drops those that did not change, and a value that came back from a peer's
        // memory of an earlier session is overruled.
        for (key, value) in said.card.pairs(said.left) {
            chitchat.self_node_state().set(key, value);
        }
        let view = self.view(&chitchat, &said.voters);
        drop(chitchat);

        self.shared.line.set_names(view.names);
        let voters = view.peers.iter().filter(|peer| said.voters.contains(&peer.node));
        self.shared.dialer.set_voters(voters.map(|peer| peer.address));
        self.gossip_to_the_unheard(&view.peers, at_once);
        self.shared.peers.send_if_modified(|peers| {
            let changed = **peers != view.peers;
            if changed {
                *peers = Arc::new(view.peers);
            }
            changed
        });
    }

    /// chitchat picks among the nodes it knows to be live; those that are connected but not yet (or no longer) heard
    /// from are greeted from here, and everyone is when there is something to say `at_once`.
    fn gossip_to_the_unheard(&self, peers: &[Peer], at_once: bool) {
        for link in self.shared.transport.links() {
            if at_once || !peers.iter().any(|peer| peer.live && peer.node == link.node) {
                // It fails only when the server has ended, which `run` notices.
                let _ = self.handle.gossip(link.addr);
            }
        }
    }

    /// Reads all that chitchat knows of the others.
    fn view(&mut self, chitchat: &Chitchat, voters: &BTreeSet<NodeId>) -> View {
        let live: HashSet<&ChitchatId> = chitchat.live_nodes().collect();
        let mut malformed = HashSet::new();
        let mut latest: BTreeMap<NodeId, (bool, u64, Peer)> = BTreeMap::new();
        let mut names = HashMap::new();
        for (id, state) in chitchat.node_states() {
            let heard = live.contains(id);
            let (node, card, left) = match read(id, state) {
                Ok(Some(known)) => known,
                Ok(None) => continue,
                Err(what) => {
                    self.count_malformed(id, state, what, &mut malformed);
                    continue;
                }
            };
            if node == self.shared.config.node {
                continue;
            }
            if latest.len() >= PEERS_MAX && !latest.contains_key(&node) {
                continue;
            }
            names.insert(id.gossip_advertise_addr, node.clone());
            // One that is heard before one that is not: the clock may have been set back between.
            let rank = (heard, id.generation_id);
            if latest.get(&node).is_none_or(|(heard, generation, _)| rank >= (*heard, *generation)) {
                let address = card.address;
                latest.insert(node.clone(), (heard, rank.1, Peer { node, card, live: heard && !left, address }));
            }
        }
        self.malformed = malformed;
        for known in self.shared.peers.borrow().iter().filter(|peer| voters.contains(&peer.node)) {
            let silent = || (false, 0, Peer { live: false, ..known.clone() });
            latest.entry(known.node.clone()).or_insert_with(silent);
        }
        View { peers: latest.into_values().map(|(_, _, peer)| peer).collect(), names }
    }

    fn count_malformed(
        &self,
        id: &ChitchatId,
        state: &NodeState,
        what: &'static str,
        malformed: &mut HashSet<(ChitchatId, Version)>,
    ) {
        let key = (id.clone(), state.max_version());
        if !self.malformed.contains(&key) {
            tracing::debug!(node = ?id, what, "a malformed card, ignored");
            self.shared.line.count_malformed();
        }
        malformed.insert(key);
    }
}

/// What gossip amounts to at one moment.
struct View {
    peers: Vec<Peer>,
    names: HashMap<SocketAddr, NodeId>,
}

/// `None` while nothing, or not all, is known of the node yet; an error names the part that is malformed.
fn read(id: &ChitchatId, state: &NodeState) -> Result<Option<(NodeId, Card, bool)>, &'static str> {
    let node = NodeId::parse(&id.node_id).map_err(|_| "name")?;
    match Card::read(state.key_values()) {
        card::Read::Card(card, left) => Ok(Some((node, *card, left))),
        card::Read::Incomplete => Ok(None),
        card::Read::Malformed(key) => Err(key),
    }
}
