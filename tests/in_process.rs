//! Three whole nodes in one process, over real QUIC on loopback: what an embedding program would do.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use outrigger::client::{Client, Consistency, Error, Written};
use outrigger::clock::{Clock, Now, OsClock};
use outrigger::config::{Config, Environment, Overrides};
use outrigger::node::{Node, Surroundings};

const VOTERS: [&str; 3] = ["a", "b", "c"];
/// How long anything may take before a test calls it lost.
const PATIENCE: Duration = Duration::from_secs(30);

fn config(dir: &Path, name: &str, seeds: &[String]) -> Config {
    let home = dir.join(name);
    std::fs::create_dir_all(&home).unwrap();
    let key = std::fs::File::options().create(true).truncate(false).write(true).mode(0o600).open(dir.join("key"));
    key.unwrap().write_all(b"a secret of the whole cluster").unwrap();
    let path = |path: &Path| Some(path.to_str().unwrap().to_owned());
    let overrides = Overrides::default()
        .text("node.name", Some(name.to_owned()))
        .text("node.data_dir", path(&home.join("data")))
        .text("socket.path", path(&home.join("s")))
        .text("peer.listen", Some("127.0.0.1:0".to_owned()))
        .list("peer.seeds", seeds.to_vec())
        .list("cluster.voters", VOTERS.map(str::to_owned).to_vec())
        .text("cluster.key_file", path(&dir.join("key")))
        .text("admin.listen", Some("127.0.0.1:0".to_owned()));
    Config::load(None, &Environment::default(), overrides).unwrap()
}

async fn ready(node: &Node) {
    assert!(tokio::time::timeout(PATIENCE, node.member().wait_ready()).await.is_ok(), "never ready");
}

fn client(dir: &Path, name: &str) -> Client {
    Client::builder(dir.join(name).join("s")).consistency(Consistency::Quorum).build()
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_agree_over_quic_and_outlive_one() {
    let dir = tempfile::Builder::new().prefix("og").tempdir_in("/tmp").unwrap();
    let dir = dir.path();
    let a = Node::start(config(dir, "a", &[])).await.unwrap();
    // One seed is enough: b and c hear of each other by gossip.
    let seeds = [a.member().peer_addr().unwrap().to_string()];
    let b = Node::start(config(dir, "b", &seeds)).await.unwrap();
    let c = Node::start(config(dir, "c", &seeds)).await.unwrap();
    for node in [&a, &b, &c] {
        ready(node).await;
    }
    client(dir, "a").put("k", "1").await.unwrap();
    let seen = client(dir, "c").get("k").await.unwrap().unwrap();
    assert_eq!(seen.value, "1");
    let all_live = async {
        while !client(dir, "b").cluster().await.unwrap().nodes.iter().all(|node| node.live) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, all_live).await.is_ok(), "b and c never met");

    // The seed leaves; the others go on, and it finds them again on another port.
    let others = [b.member().peer_addr().unwrap().to_string(), c.member().peer_addr().unwrap().to_string()];
    a.drain().await;
    for n in 0..20 {
        client(dir, "b").put("k", format!("{n}")).await.unwrap();
    }
    let a = Node::start(config(dir, "a", &others)).await.unwrap();
    ready(&a).await;
    let local = Client::builder(dir.join("a/s")).build();
    assert_eq!(local.get("k").await.unwrap().unwrap().value, "19", "in step before it calls itself ready");
    for node in [a, b, c] {
        node.drain().await;
    }
}

/// The system's clock, with a wall clock that can be set by hand.
#[derive(Debug)]
struct SettableClock {
    os: Arc<dyn Clock>,
    off: AtomicI64,
}

impl Clock for SettableClock {
    fn now(&self) -> Now {
        let now = self.os.now();
        Now { wall: now.wall + self.off.load(Ordering::Relaxed), ..now }
    }
}

fn problem(error: Error) -> (u16, String, Option<Written>) {
    match error {
        Error::Problem(problem) => (problem.status, problem.kind, problem.written),
        other => panic!("{other}"),
    }
}

/// Two rows of the outcome table that take a clock and a moment of the process's own: with one peer in reach, a node whose
/// clock is minutes ahead is rejected; while it drains it is busy, and says that nothing was written.
#[tokio::test(flavor = "multi_thread")]
async fn rejected_and_busy_over_the_socket() {
    let dir = tempfile::Builder::new().prefix("og").tempdir_in("/tmp").unwrap();
    let dir = dir.path();
    let clock = Arc::new(SettableClock { os: OsClock::shared(), off: AtomicI64::new(600_000_000_000) });
    let surroundings = Surroundings { clock, ..Surroundings::default() };
    let a = Node::start_in(config(dir, "a", &[]), surroundings).await.unwrap();
    let b = Node::start(config(dir, "b", &[a.member().peer_addr().unwrap().to_string()])).await.unwrap();
    ready(&a).await;
    ready(&b).await;
    client(dir, "b").put("k", "1").await.unwrap();
    let writer = client(dir, "a");
    let (status, kind, written) = problem(writer.put("new", "2").await.unwrap_err());
    assert_eq!((status, written), (409, Some(Written::No)), "{kind}");
    assert!(kind.contains("frame-rejected"), "{kind}");
    assert_eq!(client(dir, "b").get("new").await.unwrap(), None, "nothing was written");

    let writer = client(dir, "b");
    let draining = tokio::spawn(b.drain());
    let refused = loop {
        if let Err(error) = writer.put("other", "3").await {
            break problem(error);
        }
    };
    assert_eq!((refused.0, refused.2), (503, Some(Written::No)));
    assert!(refused.1.contains("busy"), "{}", refused.1);
    draining.await.unwrap();
    a.drain().await;
}
