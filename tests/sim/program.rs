//! What runs on a host: a whole node, and the clients beside it, which end with it.

use std::sync::Arc;
use std::time::Duration;

use outrigger::clock::Clock;
use outrigger::cluster::change::VoterChange;
use outrigger::cluster::status::{Govern, Observe, Role};
use outrigger::config::{Config, Environment, Overrides};
use outrigger::disk::Disk;
use outrigger::node::{Member, Network, Surroundings};
use outrigger::store::Manager;
use outrigger::transport::memory;
use outrigger::types::{NodeId, ShardId};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use tokio::sync::Notify;

use crate::clients::{self, Log};
use crate::sometimes::sometimes;
use crate::story::tell;

/// So small that segments are given up within a world's life.
const SEGMENT_BYTES: u64 = 24 * 1024;
/// So short that copies are given up within a world's life.
const UNUSED_DROP_AFTER: &str = "4s";
const DATA_DIR: &str = "/data";
/// As the program's own.
const START_OVER_PAUSE: Duration = Duration::from_secs(2);

/// Through what the world sees a node that runs, and stops it.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(crate) view: Arc<dyn Observe>,
    pub(crate) manager: Arc<Manager>,
}

impl Handle {
    /// Whether all rows of the shard are to be here: it is replicated here, or used.
    pub(crate) fn holds(&self, shard: &ShardId) -> bool {
        self.replicates(shard) || self.manager.replicator().is_some_and(|replicator| replicator.has_copy(shard))
    }

    pub(crate) fn replicates(&self, shard: &ShardId) -> bool {
        let (status, membership) = (self.view.cluster(), self.view.membership());
        let replicates = |member: &outrigger::cluster::membership::Member| {
            member.node == status.node && membership.is_replica(shard, member.replica())
        };
        membership.members().iter().any(replicates)
    }

    /// Whether the node refuses to vote.
    pub(crate) fn is_barred(&self) -> bool {
        self.view.cluster().nodes.iter().any(|node| node.me && node.role == Role::Barred)
    }
}

/// What a host and its process share; the world looks into it between turns.
#[derive(Clone, Default)]
pub(crate) struct Shared {
    pub(crate) handle: Arc<Mutex<Option<Handle>>>,
    /// Why the node did not start, or ended.
    pub(crate) ended: Arc<Mutex<Option<String>>>,
    /// Asks the node to leave, as SIGTERM does.
    pub(crate) leave: Arc<Notify>,
    /// What an administrator asks the node for, until it takes it up.
    orders: Arc<Mutex<Vec<VoterChange>>>,
    ordered: Arc<Notify>,
}

impl Shared {
    /// Asks the node to change who votes.
    pub(crate) fn order(&self, change: VoterChange) {
        self.orders.lock().push(change);
        self.ordered.notify_one();
    }
}

/// Why a process ended that is to be started again at once, as another disk.
pub(crate) const STARTS_OVER: &str = "starts over";
/// Why one ended that had been asked to.
pub(crate) const LEFT: &str = "left";

pub(crate) struct Program {
    pub(crate) name: NodeId,
    pub(crate) voters: Vec<NodeId>,
    pub(crate) boot: u64,
    /// How long deletions are remembered; none where that is as usual.
    pub(crate) grace: Option<Duration>,
    /// How many of the first voters replicate each shard; none for all.
    pub(crate) factor: Option<usize>,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) network: Arc<memory::Network>,
    pub(crate) shared: Shared,
    pub(crate) log: Log,
    pub(crate) random: StdRng,
}

fn config(name: &NodeId, voters: &[NodeId], grace: Option<Duration>, factor: Option<usize>) -> Config {
    // Addresses are given in the order of joining, whatever the names.
    let seeds = (1..=voters.len()).map(|n| format!("10.0.0.{n}:7117")).collect();
    let overrides = Overrides::default()
        .text("node.name", Some(name.to_string()))
        .text("node.data_dir", Some(DATA_DIR.to_owned()))
        .text("peer.listen", Some("127.0.0.1:0".to_owned()))
        .list("peer.seeds", seeds)
        .list("cluster.voters", voters.iter().map(NodeId::to_string).collect())
        .text("store.tombstone_grace", grace.map(|grace| format!("{}ms", grace.as_millis())))
        .text("store.unused_drop_after", Some(UNUSED_DROP_AFTER.to_owned()))
        .text("cluster.replication_factor", factor.map(|factor| factor.to_string()))
        .text("cluster.key_file", Some("/key".to_owned()));
    Config::load(None, &Environment::default(), overrides).expect("a configuration")
}

impl Program {
    pub(crate) async fn run(self, clock: Arc<dyn Clock>) {
        let Self { name, voters, boot, grace, factor, disk, network, shared, log, random } = self;
        let surroundings =
            Surroundings { clock, disk, network: Network::Memory(network), segment_bytes: SEGMENT_BYTES };
        let member = match Box::pin(Member::start(&config(&name, &voters, grace, factor), surroundings)).await {
            Ok(member) => member,
            Err(error) => {
                tell!("does not start: {error}");
                *shared.ended.lock() = Some(error.to_string());
                return;
            }
        };
        sometimes!(member.view().cluster().outbox.entries > 0, "a restart found local writes");
        let handle = Handle { view: member.view(), manager: member.manager().clone() };
        *shared.handle.lock() = Some(handle.clone());
        let clients = clients::start(&name, boot, &member.service(), &handle, &log, random);
        let administrator = tokio::spawn(administer(member.govern(), shared.clone()));
        let why = tokio::select! {
            () = shared.leave.notified() => {
                tell!("leaves");
                sometimes!("a node left in good order");
                LEFT
            }
            () = member.must_start_over() => {
                tell!("starts over: its disk must not vote any more");
                sometimes!("a node started over as another disk");
                STARTS_OVER
            }
            why = member.failed() => {
                tell!("ends: {why}");
                *shared.ended.lock() = Some(why);
                return;
            }
        };
        administrator.abort();
        member.leave().await;
        clients.iter().for_each(tokio::task::JoinHandle::abort);
        *shared.handle.lock() = None;
        member.close().await;
        // The journal's last words.
        tokio::time::sleep(Duration::from_millis(50)).await;
        if why == STARTS_OVER {
            tokio::time::sleep(START_OVER_PAUSE).await;
        }
        *shared.ended.lock() = Some(why.to_owned());
    }
}

/// Passes on what is asked for, each without waiting for the one before.
async fn administer(govern: Arc<dyn Govern>, shared: Shared) {
    loop {
        shared.ordered.notified().await;
        for change in std::mem::take(&mut *shared.orders.lock()) {
            let govern = govern.clone();
            tokio::spawn(async move {
                let told = govern.change(change.clone()).await;
                sometimes!(told.is_err(), "a change of voters was refused");
                tell!("asked to {change}: {told:?}");
            });
        }
    }
}
