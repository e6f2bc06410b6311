//! Whole drivers over the in-memory network: real journals, real shard files, real time; connections are cut by hand.

mod changing;
mod leaving;
mod level;
mod outbox;
mod placing;
mod repair;
mod tombstones;
mod trouble;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;

use super::*;
use crate::clock::OsClock;
use crate::cluster::hello::{Local, PROTOCOL_VERSIONS};
use crate::replication::journal::{Durability, JournalConfig};
use crate::replication::register::{Entry, Lineage, Lsn};
use crate::store::replicator::{Frame, Op};
use crate::store::update::{Change, Condition, Outcome, Row, Update, Verdict};
use crate::store::{StoreConfig, StoredRow};
use crate::transport::memory::{MemoryTransport, Network};
use crate::types::{Ballot, Key, Value};

const NAMES: [&str; 3] = ["a", "b", "c"];
/// Few, so that a test can fill it.
const OUTBOX: OutboxBounds = OutboxBounds { entries_max: 100, bytes_max: 1 << 20 };
/// How long anything may take before a test calls it lost.
const PATIENCE: Duration = Duration::from_secs(20);
/// For so long deletions are remembered, where a test does not say.
const GRACE: Duration = Duration::from_secs(60 * 60);

fn node(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

fn shard() -> ShardId {
    ShardId::parse("acme", "orders").unwrap()
}

fn key(name: &str) -> Key {
    Key::parse(name).unwrap()
}

/// The system's clock, with a wall clock that can be set by hand.
#[derive(Debug)]
struct SettableClock {
    os: Arc<dyn Clock>,
    off: AtomicI64,
}

impl SettableClock {
    fn set_off(&self, seconds: i64) {
        self.off.store(seconds * 1_000_000_000, Ordering::Relaxed);
    }
}

impl Clock for SettableClock {
    fn now(&self) -> Now {
        let now = self.os.now();
        Now { wall: now.wall + self.off.load(Ordering::Relaxed), ..now }
    }
}

/// How a node is started.
#[derive(Clone, Copy)]
struct How<'a> {
    /// Of epoch 1.
    voters: &'a [&'a str],
    factor: Option<usize>,
    /// How long it remembers deletions.
    grace: Duration,
    /// How long it keeps a copy that nobody uses.
    unused_drop_after: Duration,
    /// How far its clock is off.
    seconds: i64,
}

impl Default for How<'_> {
    fn default() -> Self {
        Self { voters: &NAMES, factor: None, grace: GRACE, unused_drop_after: GRACE, seconds: 0 }
    }
}

struct Node {
    manager: Arc<Manager>,
    replicator: Arc<QuorumReplicator>,
    transport: Arc<MemoryTransport>,
    clock: Arc<SettableClock>,
}

impl Node {
    async fn start(network: &Arc<Network>, dir: &Path, name: &str, voters: &[&str]) -> Self {
        Self::start_behind(network, dir, name, voters, 0, |events| events).await
    }

    async fn start_behind(
        network: &Arc<Network>,
        dir: &Path,
        name: &str,
        voters: &[&str],
        seconds: i64,
        events: impl FnOnce(mpsc::Receiver<Event>) -> mpsc::Receiver<Event>,
    ) -> Self {
        Self::start_as(network, dir, name, How { voters, seconds, ..How::default() }, events).await
    }

    /// One that hears of events through `events`.
    async fn start_as(
        network: &Arc<Network>,
        dir: &Path,
        name: &str,
        how: How<'_>,
        events: impl FnOnce(mpsc::Receiver<Event>) -> mpsc::Receiver<Event>,
    ) -> Self {
        let How { voters, factor, grace, unused_drop_after, seconds } = how;
        let clock = Arc::new(SettableClock { os: OsClock::shared(), off: AtomicI64::new(0) });
        clock.set_off(seconds);
        let segment_bytes = 64 * 1024;
        let may_start_over = voters.len() > 1;
        let config = JournalConfig { segment_bytes, may_start_over, ..JournalConfig::at(dir) };
        let (journal, recovered) = Journal::open(config, rand::random()).unwrap();
        let manager = Manager::with_config(StoreConfig::at(dir), clock.clone()).unwrap();
        let first = match voters {
            [] => Membership::unknown(),
            voters => Membership::epoch_one(voters.iter().map(|name| node(name)).collect()).unwrap(),
        };
        let first = if voters.is_empty() { first } else { first.with_replication_factor(factor).unwrap() };
        let installed = Installed::read(&manager, &recovered, first).await.unwrap();
        let local = Local {
            versions: PROTOCOL_VERSIONS,
            cluster: "test".to_owned(),
            node: node(name),
            membership: installed.membership.clone(),
        };
        let ceiling = recovered.restored.ceiling;
        let greeter = Greeter::new(local, journal.header(), ceiling, rand::random(), clock.clone());
        let greeter = Arc::new(greeter);
        let (transport, inbox) = network.join(node(name), greeter.clone());
        let config = QuorumConfig {
            node: node(name),
            max_skew: Duration::from_secs(10),
            ceiling_lead: Duration::from_millis(100),
            propose_timeout: Duration::from_secs(5),
            value_bytes_max: 1 << 20,
            outbox: OUTBOX,
            tombstone_grace: grace,
            unused_drop_after,
            seed: 1,
            is_alone: voters == [name],
        };
        let foundations = Foundations {
            clock: clock.clone(),
            greeter,
            manager: manager.clone(),
            transport: transport.clone(),
            events: events(inbox.events),
            calls: inbox.calls,
            journal,
            recovered,
            installed,
        };
        let replicator = QuorumReplicator::start(config, foundations).await.unwrap();
        Self { manager, replicator, transport, clock }
    }

    async fn stop(self) {
        self.replicator.close().await;
        self.transport.close().await;
        self.manager.close().await.unwrap();
    }

    async fn update(&self, name: &str, update: Update) -> Decision {
        let timeout = Some(Duration::from_secs(5));
        self.replicator.propose(Proposal { shard: shard(), key: key(name), update, timeout }).await
    }

    async fn accepted(&self, name: &str, update: Update) -> Outcome {
        match self.update(name, update.clone()).await {
            Decision::Accept(outcome) => outcome,
            other => panic!("{name}: {update:?} came to {other:?}"),
        }
    }

    async fn local(&self, name: &str) -> Option<Row> {
        if !self.replicator.has_copy(&shard()) {
            self.replicator.fetch_copy(&shard()).await.unwrap();
        }
        self.manager.get(&shard()).await.unwrap().read(&key(name)).unwrap()
    }

    /// What was agreed on, as far as this node knows.
    async fn stored(&self, name: &str) -> Option<StoredRow> {
        self.manager.get(&shard()).await.unwrap().stored(&key(name)).unwrap()
    }

    async fn has(&self, name: &str, value: &str) {
        let value = Value::from(value.as_bytes().to_vec());
        until(&format!("{name} = {value:?}"), async || self.local(name).await.is_some_and(|row| row.value == value))
            .await;
    }

    async fn status_is(&self, what: &str, is: impl Fn(&QuorumStatus) -> bool) {
        let mut status = self.replicator.watch();
        let seen = tokio::time::timeout(PATIENCE, status.wait_for(is)).await;
        assert!(matches!(seen, Ok(Ok(_))), "never {what}: {:?}", self.replicator.status());
    }

    async fn ready(&self) {
        self.status_is("ready", |status| status.ready().is_ok()).await;
    }
}

/// Looks again and again until it is so.
async fn until(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !is().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "never came true: {what}");
}

struct Cluster {
    network: Arc<Network>,
    grace: Duration,
    dirs: Vec<TempDir>,
    nodes: Vec<Node>,
}

impl Cluster {
    async fn start() -> Self {
        Self::start_on(Network::new()).await
    }

    async fn start_on(network: Arc<Network>) -> Self {
        Self::start_forgetting(network, GRACE).await
    }

    async fn start_forgetting(network: Arc<Network>, grace: Duration) -> Self {
        let dirs: Vec<_> = NAMES.iter().map(|_| tempfile::tempdir().unwrap()).collect();
        let mut nodes = Vec::new();
        for (name, dir) in NAMES.iter().zip(&dirs) {
            let events = |events| events;
            nodes.push(Node::start_as(&network, dir.path(), name, How { grace, ..How::default() }, events).await);
        }
        let cluster = Self { network, grace, dirs, nodes };
        for n in 0..NAMES.len() {
            cluster.dial(n);
        }
        for node in &cluster.nodes {
            node.ready().await;
            // Two are enough to be ready; what a test cuts must have been there.
            node.status_is("whole", |status| status.reachable == NAMES.len()).await;
        }
        cluster
    }

    fn dial(&self, from: usize) {
        for (to, node) in self.nodes.iter().enumerate() {
            if to != from {
                self.nodes[from].transport.dial(node.transport.local_addr());
            }
        }
    }

    fn isolate(&self, n: usize) {
        for other in (0..NAMES.len()).filter(|other| *other != n) {
            self.network.cut(&node(NAMES[n]), &node(NAMES[other]));
        }
    }

    fn rejoin(&self, n: usize) {
        for other in (0..NAMES.len()).filter(|other| *other != n) {
            self.network.heal(&node(NAMES[n]), &node(NAMES[other]));
        }
    }

    async fn restart(&mut self, n: usize) {
        self.restart_off(n, 0).await;
    }

    /// Restarts a node whose clock was set meanwhile.
    async fn restart_off(&mut self, n: usize, seconds: i64) {
        let dir = self.dirs[n].path().to_owned();
        let placeholder = tempfile::tempdir().unwrap();
        let spare = Node::start(&Network::new(), placeholder.path(), NAMES[n], &[NAMES[n]]).await;
        std::mem::replace(&mut self.nodes[n], spare).stop().await;
        let (network, grace, events) = (&self.network, self.grace, |events| events);
        let how = How { grace, seconds, ..How::default() };
        self.nodes[n] = Node::start_as(network, &dir, NAMES[n], how, events).await;
        for from in 0..NAMES.len() {
            self.dial(from);
        }
    }
}

fn put(value: &str) -> Update {
    Update::put(Value::from(value.as_bytes().to_vec()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_here_is_read_there() {
    let cluster = Cluster::start().await;
    let written = cluster.nodes[0].accepted("k", put("v")).await.after.unwrap();
    assert_eq!(cluster.nodes[0].local("k").await.as_ref(), Some(&written), "visible here when it is acknowledged");
    let read = cluster.nodes[1].accepted("k", Update::read()).await;
    assert_eq!((read.verdict, read.before.as_ref()), (Verdict::Unchanged, Some(&written)));
    for node in &cluster.nodes {
        node.has("k", "v").await;
        assert_eq!(node.local("k").await, Some(written.clone()), "one version everywhere");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn increments_from_everywhere_count_once() {
    const EACH: i64 = 100;
    let cluster = Cluster::start().await;
    let add = async |node: &Node| {
        let mut unknown = 0;
        for _ in 0..EACH {
            match node.update("n", Update::always(Change::Add(1))).await {
                Decision::Accept(_) => {}
                Decision::Timeout => unknown += 1,
                Decision::Reject(why) => panic!("{why}"),
            }
        }
        unknown
    };
    let (a, b, c) = tokio::join!(add(&cluster.nodes[0]), add(&cluster.nodes[1]), add(&cluster.nodes[2]));
    let read = cluster.nodes[0].accepted("n", Update::read()).await.before.unwrap();
    let sum: i64 = std::str::from_utf8(read.value.as_bytes()).unwrap().parse().unwrap();
    let all = 3 * EACH;
    assert!((all - (a + b + c)..=all).contains(&sum), "{sum} of {all}, {a}+{b}+{c} unknown");
}

/// Many clients of every node on one key: sent to the key's home they queue and fold, where back-off alone had some of
/// them lose so often that the lineage was too short to tell what became of their write.
#[tokio::test(flavor = "multi_thread")]
async fn a_contended_key_is_written_at_its_home() {
    const CLIENTS: usize = 16;
    const EACH: usize = 50;
    let cluster = Arc::new(Cluster::start().await);
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..3 * CLIENTS {
        let cluster = cluster.clone();
        clients.spawn(async move {
            let (mut accepted, mut unknown) = (0, 0);
            for _ in 0..EACH {
                match cluster.nodes[client % 3].update("n", Update::always(Change::Add(1))).await {
                    Decision::Accept(outcome) => {
                        accepted += 1;
                        // Forwarded or not: an acknowledged write is visible on the node that took it.
                        let here = cluster.nodes[client % 3].local("n").await.unwrap();
                        assert!(here.upd >= outcome.after.unwrap().upd);
                    }
                    Decision::Timeout => unknown += 1,
                    Decision::Reject(why) => panic!("{why}"),
                }
            }
            (accepted, unknown)
        });
    }
    let (mut accepted, mut unknown) = (0, 0);
    while let Some(done) = clients.join_next().await {
        let (yes, perhaps) = done.unwrap();
        (accepted, unknown) = (accepted + yes, unknown + perhaps);
    }
    let read = cluster.nodes[0].accepted("n", Update::read()).await.before.unwrap();
    let sum: usize = std::str::from_utf8(read.value.as_bytes()).unwrap().parse().unwrap();
    assert!((accepted..=accepted + unknown).contains(&sum), "{sum}, {accepted} accepted, {unknown} unknown");
    let forwarded = || cluster.nodes.iter().map(|node| node.replicator.status().forwarded).sum::<u64>();
    until(&format!("somebody goes home; {unknown} unknown of {accepted}"), async || forwarded() > 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_are_judged_on_what_is_chosen() {
    let cluster = Cluster::start().await;
    let first = cluster.nodes[0].accepted("k", put("1")).await.after.unwrap();
    let swap = |upd| Update { condition: Condition::UpdIs(upd), change: Change::Put(Value::from("2")) };
    let second = cluster.nodes[1].accepted("k", swap(first.upd)).await;
    assert_eq!(second.verdict, Verdict::Written);
    let third = cluster.nodes[2].accepted("k", swap(first.upd)).await;
    assert_eq!((third.verdict, third.before), (Verdict::ConditionFailed, second.after));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_nothing_is_written_and_it_is_said_at_once() {
    let cluster = Cluster::start().await;
    cluster.isolate(0);
    let alone = &cluster.nodes[0];
    alone.status_is("alone", |status| status.reachable == 1).await;
    let decision = alone.update("k", put("lost")).await;
    assert!(matches!(decision, Decision::Reject(Rejection::NoQuorum(_))), "{decision:?}");
    assert!(alone.replicator.status().health().unwrap_err().contains("1 of 3"));
    cluster.nodes[1].accepted("k", put("kept")).await;
    cluster.rejoin(0);
    alone.has("k", "kept").await;
    alone.ready().await;
    alone.accepted("k", put("again")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_fetches_what_was_missed() {
    let cluster = Cluster::start().await;
    cluster.nodes[0].accepted("deleted", put("v")).await;
    cluster.isolate(2);
    cluster.nodes[0].status_is("two", |status| status.reachable == 2).await;
    for n in 0..50 {
        cluster.nodes[n % 2].accepted(&format!("k{n:02}"), put("v")).await;
    }
    cluster.nodes[0].accepted("deleted", Update::del()).await;
    cluster.rejoin(2);
    let late = &cluster.nodes[2];
    late.status_is("in step with both", |status| status.peers.iter().all(|peer| peer.in_step)).await;
    for n in 0..50 {
        assert!(late.local(&format!("k{n:02}")).await.is_some(), "k{n:02} was missed");
    }
    assert_eq!(late.local("deleted").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_everything_and_rejoins() {
    let mut cluster = Cluster::start().await;
    for n in 0..20 {
        cluster.nodes[1].accepted(&format!("k{n}"), put("v")).await;
    }
    cluster.restart(1).await;
    cluster.nodes[1].ready().await;
    for n in 0..20 {
        cluster.nodes[1].has(&format!("k{n}"), "v").await;
    }
    cluster.nodes[1].accepted("k0", put("after")).await;
    cluster.nodes[0].has("k0", "after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_set_of_segments_is_given_up_and_nothing_with_it() {
    let mut cluster = Cluster::start().await;
    // Segments of 64 KiB: this is several times as many as are kept.
    let big = Update::put(Value::from(vec![b'x'; 32 * 1024]));
    for n in 0..40 {
        cluster.nodes[0].accepted(&format!("k{n}"), big.clone()).await;
    }
    let journal = cluster.dirs[0].path().join(crate::replication::journal::DIRECTORY);
    let segments = || std::fs::read_dir(&journal).unwrap().count();
    let node = &cluster.nodes[0];
    until("old segments are removed", async || {
        node.accepted("tick", put("tock")).await;
        segments() < 12
    })
    .await;
    cluster.restart(0).await;
    cluster.nodes[0].ready().await;
    for n in 0..40 {
        assert!(cluster.nodes[0].local(&format!("k{n}")).await.is_some(), "k{n} is lost");
    }
}

/// A clock set by minutes, forward and back: the node goes on by the others' time, and its ceiling stays near theirs,
/// so that it is of use again at once after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_does_no_harm() {
    let mut cluster = Cluster::start().await;
    let before = cluster.nodes[0].accepted("k", put("0")).await.after.unwrap().upd;
    for (n, seconds) in [600, -3600, 0, 86_400].into_iter().enumerate() {
        cluster.nodes[0].clock.set_off(seconds);
        for (node, name) in cluster.nodes.iter().zip(NAMES) {
            let upd = node.accepted(&format!("k{n}"), put("v")).await.after.unwrap().upd;
            let since = Duration::from_nanos(u64::try_from(upd.nanos() - before.nanos()).unwrap());
            assert!(since < Duration::from_secs(30), "set by {seconds} s, {name} wrote at +{since:?}");
        }
    }
    let corrected = |status: &QuorumStatus| status.clock_correction_us < -80_000_000_000;
    cluster.nodes[0].status_is("corrected", corrected).await;
    cluster.restart(0).await;
    cluster.nodes[0].ready().await;
    cluster.nodes[0].accepted("k", put("1")).await;
}

/// With one other node there is no telling whose clock is wrong: the one that is ahead is refused, and says so.
#[tokio::test(flavor = "multi_thread")]
async fn one_clock_against_one_is_refused() {
    let mut cluster = Cluster::start().await;
    cluster.isolate(2);
    // While it runs, time would go on as before.
    cluster.restart_off(0, 600).await;
    cluster.nodes[0].status_is("two", |status| status.reachable == 2).await;
    let decision = cluster.nodes[0].update("k", put("v")).await;
    assert!(matches!(&decision, Decision::Reject(Rejection::Refused(why)) if why.contains("max_skew")), "{decision:?}");
    cluster.nodes[0].clock.set_off(0);
    cluster.rejoin(2);
    cluster.nodes[1].accepted("k", put("w")).await;
}

/// With one peer in reach nobody contradicted a clock that was set while the node ran. What it issued meanwhile kept it
/// out for as long as the jump was wide, also once the clock was right again.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_with_one_peer_in_reach_does_no_harm() {
    let cluster = Cluster::start().await;
    cluster.isolate(2);
    cluster.nodes[0].status_is("two", |status| status.reachable == 2).await;
    for seconds in [600, -3600, 0] {
        cluster.nodes[0].clock.set_off(seconds);
        cluster.nodes[0].accepted("k", put("v")).await;
    }
}

/// A clock that was set right while the node ran was held back for as long as no majority said so. With the third node
/// away nobody could, and two nodes with the right time refused each other's numbers until one was restarted.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_set_right_is_believed_once_one_peer_agrees() {
    let mut cluster = Cluster::start().await;
    cluster.isolate(2);
    cluster.restart_off(0, -600).await;
    cluster.nodes[1].status_is("two", |status| status.reachable == 2).await;
    let refused = cluster.nodes[1].update("k", put("v")).await;
    assert!(matches!(&refused, Decision::Reject(Rejection::Refused(why)) if why.contains("max_skew")), "{refused:?}");
    cluster.nodes[0].clock.set_off(0);
    until("both to agree on the time", async || {
        matches!(cluster.nodes[1].update("k", put("v")).await, Decision::Accept(_))
    })
    .await;
    cluster.nodes[0].accepted("k", put("w")).await;
    cluster.nodes[0].status_is("uncorrected", |status| status.clock_correction_us == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_from_a_peer_does_no_harm() {
    let cluster = Cluster::start().await;
    let garbage = Bytes::from_static(b"\xc1 this is no batch");
    cluster.nodes[1].transport.send(&node("a"), garbage).unwrap();
    let batch = wire_batch(7);
    cluster.nodes[1].transport.send(&node("a"), batch).unwrap();
    cluster.nodes[1].accepted("k", put("v")).await;
    cluster.nodes[0].has("k", "v").await;
}

fn wire_batch(epoch: u64) -> Bytes {
    let messages = Vec::new();
    crate::replication::wire::encode(&crate::replication::wire::Batch { epoch, wall: 0, messages }).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn sequence_numbers_rise_across_restarts() {
    #[derive(Default)]
    struct Seen(parking_lot::Mutex<Vec<u64>>);
    impl Subscriber for Seen {
        fn on_commit(&self, frame: &Frame) {
            self.0.lock().push(frame.seq);
        }
    }
    let mut cluster = Cluster::start().await;
    let seen = Arc::new(Seen::default());
    cluster.nodes[0].replicator.subscribe(seen.clone());
    cluster.nodes[0].accepted("k", put("1")).await;
    cluster.restart(0).await;
    cluster.nodes[0].replicator.subscribe(seen.clone());
    cluster.nodes[0].ready().await;
    cluster.nodes[0].accepted("k", put("2")).await;
    let seen = seen.0.lock();
    assert!(seen.len() >= 2 && seen.is_sorted_by(|a, b| a < b), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_alone_agrees_with_itself() {
    let dir = tempfile::tempdir().unwrap();
    let only = Node::start(&Network::new(), dir.path(), "a", &["a"]).await;
    only.ready().await;
    only.accepted("k", put("v")).await;
    only.stop().await;
    let again = Node::start(&Network::new(), dir.path(), "a", &["a"]).await;
    again.ready().await;
    again.has("k", "v").await;
    again.replicator.close().await;
    let late = again.update("k", put("late")).await;
    assert!(matches!(late, Decision::Reject(Rejection::Busy(_))), "{late:?}");
}
