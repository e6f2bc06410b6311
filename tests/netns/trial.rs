//! A cluster in a network of its own, under load: what every fault is tried on, and what must hold after each.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use outrigger::client::Client;
use parking_lot::Mutex;

use crate::common::{Cluster, Node, Signal};
use crate::linearizable::{Finals, Stats, Violation, check, check_final};
use crate::load::{End, KEYS, Load, Told, now};
use crate::network::Network;

/// Clients of each node.
const CLIENTS_PER_NODE: usize = 2;
/// How long a side with a majority may take to go on with its work, whatever happens to the rest.
const PROGRESS_WITHIN: Duration = Duration::from_secs(10);
/// How long a side without a majority may take to notice, and to refuse at once. A node that hears others but is not
/// heard was seen to need more than twice the idle timeout of 3 seconds.
const NOTICED_WITHIN: Duration = Duration::from_secs(20);
/// How long a node may take to have what all others have once nothing keeps it from it.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// How long the nodes' own copies may differ once there is nothing more to write.
const AGREED_WITHIN: Duration = Duration::from_secs(20);
/// How many operations make progress.
const PROGRESS_OPERATIONS: usize = 10;
/// How many refusals in a row tell that a node has noticed.
const REFUSALS: usize = 5;
/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Fields go in the order in which they have to: the load's clients, the processes, their network.
pub(crate) struct Trial {
    load: Load,
    pub(crate) cluster: Cluster,
    pub(crate) network: Network,
    /// The longest time that progress took.
    longest: Mutex<Duration>,
}

impl Trial {
    /// All nodes ready and their clients at work; none where there are no namespaces.
    pub(crate) async fn start(nodes: usize) -> Option<Self> {
        Self::start_with(nodes, |_, _| ()).await
    }

    /// Likewise, after `prepare` made of each node what it wants.
    pub(crate) async fn start_with(nodes: usize, mut prepare: impl FnMut(usize, &mut Node)) -> Option<Self> {
        let network = Network::new(nodes)?;
        let mut cluster = Cluster::prepare_at(&network.places());
        for (number, node) in cluster.nodes.iter_mut().enumerate() {
            node.launcher = network.launcher(number);
            prepare(number, node);
            node.start();
        }
        for node in &cluster.nodes {
            ready(node).await;
        }
        let load = Load::start(&cluster.nodes, CLIENTS_PER_NODE);
        let trial = Self { load, cluster, network, longest: Mutex::default() };
        trial.everybody_works().await;
        Some(trial)
    }

    /// Waits until each of these nodes has carried out operations that began after this call.
    pub(crate) async fn work_goes_on(&self, nodes: &[usize]) {
        let since = now();
        let done = |node: &usize| self.load.count(*node, since, End::Done) >= PROGRESS_OPERATIONS;
        if !within(PROGRESS_WITHIN, async || nodes.iter().all(done)).await {
            let stuck: Vec<_> = nodes.iter().filter(|node| !done(node)).collect();
            let told: Vec<_> = stuck.iter().map(|node| self.load.failures(**node, since)).collect();
            panic!("no progress on {stuck:?} in {PROGRESS_WITHIN:?}: {told:#?}{}", self.logs());
        }
        let mut longest = self.longest.lock();
        *longest = longest.max(since.elapsed());
    }

    pub(crate) async fn everybody_works(&self) {
        self.work_goes_on(&(0..self.cluster.nodes.len()).collect::<Vec<_>>()).await;
    }

    /// Waits until each of these nodes refuses what it is asked.
    pub(crate) async fn work_is_refused(&self, nodes: &[usize]) {
        let since = now();
        let refused = |node: &usize| self.load.count(*node, since, End::Refused) >= REFUSALS;
        let noticed = within(NOTICED_WITHIN, async || nodes.iter().all(refused)).await;
        assert!(noticed, "{nodes:?} do not say that they have no quorum{}", self.logs());
    }

    /// Nothing that these nodes were asked since then was answered as if a quorum had agreed.
    pub(crate) fn nothing_was_done(&self, nodes: &[usize], since: Instant) {
        for node in nodes {
            let done = self.load.count(*node, since, End::Done);
            assert_eq!(done, 0, "n{node} answered {done} operations without a quorum{}", self.logs());
        }
    }

    /// Waits until `node` takes `peer` for gone.
    pub(crate) async fn is_missed_by(&self, peer: usize, node: usize) {
        let client = self.cluster.nodes[node].client();
        let name = &self.cluster.nodes[peer].name;
        let is_gone = async || {
            let status = client.cluster().await.unwrap();
            status.nodes.iter().any(|other| other.node.as_str() == name && !other.live)
        };
        assert!(within(NOTICED_WITHIN, is_gone).await, "n{node} still takes {name} for there{}", self.logs());
    }

    /// SIGSTOP; returns once every thread has stopped.
    pub(crate) async fn stop(&self, node: usize) {
        let node = &self.cluster.nodes[node];
        node.signal(Signal::STOP);
        let threads = PathBuf::from("/proc").join(node.pid().to_string()).join("task");
        let is_stopped =
            |thread: PathBuf| fs::read_to_string(thread.join("stat")).is_ok_and(|stat| stat.contains(") T "));
        let all = async || fs::read_dir(&threads).unwrap().all(|thread| is_stopped(thread.unwrap().path()));
        assert!(within(NOTICED_WITHIN, all).await, "{} does not stop", node.name);
    }

    /// Waits for `trouble` to end; these nodes make progress all the while.
    pub(crate) async fn endure(&self, nodes: &[usize], trouble: impl Future<Output = ()>) {
        let mut trouble = std::pin::pin!(trouble);
        let mut is_over = false;
        while !is_over {
            let over = async {
                (&mut trouble).await;
                is_over = true;
            };
            // Progress is asked for again and again until the trouble is over.
            tokio::select! {
                () = over => {}
                _ = self.work_goes_on(nodes) => {}
            }
        }
    }

    /// Waits until each node says that it has what all others have.
    pub(crate) async fn everybody_is_ready(&self) {
        for node in &self.cluster.nodes {
            ready(node).await;
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, node: usize) {
        self.cluster.nodes[node].kill();
        self.load.on_killed(node);
    }

    /// The end of every trial, once all faults are healed and all nodes run: all get ready, all work, all agree, and
    /// what the clients were told is linearizable.
    pub(crate) async fn end(mut self) {
        self.everybody_is_ready().await;
        self.everybody_works().await;
        self.load.stop().await;
        for (number, node) in self.cluster.nodes.iter().enumerate() {
            self.load.read_all(number, &node.quorum_reader()).await;
        }
        let finals = agreed(&self.cluster.nodes).await;
        let logs = self.logs();
        let Self { load, cluster, network, longest } = self;
        let (history, told) = load.take();
        let count = |end| told.iter().filter(|told: &&Told| told.ended(end)).count();
        let (done, refused, unknown) = (count(End::Done), count(End::Refused), count(End::Unknown));
        let slowest = told.iter().map(|told| told.took).max().unwrap_or_default();
        let longest = longest.into_inner();
        eprintln!(
            "{done} done, {refused} refused, {unknown} unknown, the slowest after {slowest:.1?}; went on within {longest:.1?}"
        );
        check_final(&history, &finals).unwrap_or_else(|violation| panic!("{violation}{logs}"));
        drop(cluster);
        drop(network);
    }

    /// What a node's clients would be told if it answered quorum reads from its own copy, as part of what all were told.
    pub(crate) async fn check_with_local_reads(mut self, node: usize, others: &[usize]) -> Result<Stats, Violation> {
        self.load.stop().await;
        for other in others {
            self.load.read_all(*other, &self.cluster.nodes[*other].quorum_reader()).await;
        }
        self.load.read_all(node, &self.cluster.nodes[node].client()).await;
        let (history, _) = self.load.take();
        check(&history)
    }

    fn logs(&self) -> String {
        self.cluster.nodes.iter().map(|node| format!("\n--- {}\n{}", node.name, node.log())).collect()
    }
}

/// Waits until the node is ready and in step with every other, not just with a majority. It is asked over its socket:
/// its admin port is in its own namespace.
async fn ready(node: &Node) {
    let client = node.client();
    let is_ready = async || {
        let status = client.cluster().await;
        status.is_ok_and(|status| status.unready.is_none() && status.nodes.iter().all(|node| node.me || node.in_step))
    };
    assert!(within(READY_WITHIN, is_ready).await, "{} does not get ready:\n{}", node.name, node.log());
}

/// Waits until all nodes' own copies are the same; these.
async fn agreed(nodes: &[Node]) -> Finals {
    let clients: Vec<Client> = nodes.iter().map(Node::client).collect();
    let mut finals = Finals::new();
    for key in KEYS {
        let mut copies = Vec::new();
        let same = within(AGREED_WITHIN, async || {
            copies.clear();
            for client in &clients {
                copies.push(client.get(key).await.map_err(|why| why.to_string()));
            }
            copies.iter().all(|copy| copy.is_ok() && *copy == copies[0])
        });
        assert!(same.await, "the nodes' copies of {key} differ: {copies:?}");
        for (node, copy) in nodes.iter().zip(copies) {
            let rows = finals.entry(node.name.clone()).or_default();
            rows.extend(copy.unwrap().map(|row| (key.to_owned(), (row.value.to_vec(), row.upd.0))));
        }
    }
    finals
}

/// Looks again and again until it is so; false where it never was.
pub(crate) async fn within(limit: Duration, mut is: impl AsyncFnMut() -> bool) -> bool {
    let waited = tokio::time::timeout(limit, async {
        while !is().await {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    });
    waited.await.is_ok()
}
