//! Three real processes that remember deletions for half a second: all forget them once all hold them, none before, and what
//! was deleted stays away over SIGKILL and restarts.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::disallowed_methods, reason = "a test")]

mod common;

use std::io::Write as _;
use std::time::{Duration, Instant};

use common::{Cluster, Node, rows_of, until};

const GRACE: Duration = Duration::from_millis(500);
const KEYS: usize = 60;

async fn start() -> Cluster {
    let mut cluster = Cluster::prepare(3);
    for node in &mut cluster.nodes {
        let mut config = std::fs::OpenOptions::new().append(true).open(node.config()).unwrap();
        writeln!(config, "[store]\ntombstone_grace = \"{}ms\"", GRACE.as_millis()).unwrap();
        node.start();
    }
    for node in &mut cluster.nodes {
        node.ready().await;
    }
    cluster
}

/// What `/metrics` says of one without labels.
async fn metric(node: &Node, name: &str) -> Option<f64> {
    let metrics = node.admin("/metrics").await?;
    let line = metrics.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')))?;
    line.rsplit(' ').next()?.parse().ok()
}

fn remembered(node: &Node) -> i64 {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let file = rusqlite::Connection::open_with_flags(node.data().join("_/default.db"), flags).unwrap();
    file.query_row("SELECT count(*) FROM tombstone", [], |row| row.get(0)).unwrap()
}

async fn all_forgotten(cluster: &Cluster) {
    for node in &cluster.nodes {
        until(&format!("{} has forgotten all deletions", node.name), async || {
            metric(node, "outrigger_tombstones").await == Some(0.0) && remembered(node) == 0
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions_go_from_all_nodes_and_nothing_deleted_comes_back() {
    let mut cluster = start().await;
    let key = |n: usize| format!("k{n}");
    for n in 0..KEYS {
        cluster.nodes[n % 3].client().put(&key(n), "v").await.unwrap();
    }
    cluster.nodes[0].client().put("kept", "v").await.unwrap();
    for n in 0..KEYS {
        if n == KEYS / 2 {
            cluster.nodes[2].kill();
        }
        cluster.nodes[n % 2].client().del(&key(n)).await.unwrap();
    }
    cluster.nodes[2].start();
    cluster.nodes[2].ready().await;
    all_forgotten(&cluster).await;
    let dropped = metric(&cluster.nodes[0], "outrigger_tombstones_dropped_total").await;
    assert!(dropped >= Some(KEYS as f64), "{dropped:?} dropped");
    assert_eq!(metric(&cluster.nodes[0], "outrigger_tombstone_age_seconds").await, Some(0.0));

    for victims in [vec![0], vec![1, 2], vec![0, 1, 2]] {
        for n in &victims {
            cluster.nodes[*n].kill();
        }
        for n in &victims {
            cluster.nodes[*n].start();
        }
        for n in &victims {
            cluster.nodes[*n].ready().await;
        }
        for n in 0..KEYS {
            let node = &cluster.nodes[n % 3];
            assert!(node.client().get(&key(n)).await.unwrap().is_none(), "{}: {} is back", node.name, key(n));
            assert!(node.quorum_reader().get(&key(n)).await.unwrap().is_none(), "{}: {} is back", node.name, key(n));
        }
    }
    for node in &mut cluster.nodes {
        assert!(node.terminate().success(), "{}:\n{}", node.name, node.log());
        let rows = rows_of(&node.data().join("_/default.db"));
        assert_eq!(rows.iter().map(|(key, ..)| key.as_str()).collect::<Vec<_>>(), ["kept"], "{}", node.name);
    }
}

/// A node that holds rows, and is stopped for longer than a deletion would be remembered without it.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_waits_for_a_node_that_is_stopped() {
    let mut cluster = start().await;
    cluster.nodes[0].client().put("k", "old").await.unwrap();
    for node in &cluster.nodes {
        until("it is everywhere", async || node.client().get("k").await.unwrap().is_some()).await;
    }
    cluster.nodes[2].kill();
    cluster.nodes[0].client().del("k").await.unwrap();
    until("the deletion is counted", async || metric(&cluster.nodes[0], "outrigger_tombstones").await == Some(1.0))
        .await;
    let deleted = Instant::now();
    until("many times the grace has passed", async || {
        assert_eq!(remembered(&cluster.nodes[0]), 1, "forgotten while a node is stopped that holds the row");
        deleted.elapsed() > 10 * GRACE
    })
    .await;
    assert_eq!(metric(&cluster.nodes[0], "outrigger_tombstones").await, Some(1.0));
    assert_eq!(metric(&cluster.nodes[0], "outrigger_tombstones_dropped_total").await.unwrap_or(0.0), 0.0);
    cluster.nodes[2].start();
    cluster.nodes[2].ready().await;
    all_forgotten(&cluster).await;
    for node in &cluster.nodes {
        assert!(node.client().get("k").await.unwrap().is_none(), "{}: it is back", node.name);
        assert!(node.quorum_reader().get("k").await.unwrap().is_none(), "{}: it is back", node.name);
    }
}
