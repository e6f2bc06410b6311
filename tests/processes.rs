//! Three real processes on loopback under SIGKILL, SIGSTOP and SIGTERM: no acknowledged write is lost, nobody waits
//! for an election, and a node is ready only once it has what the others have.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test"
)]

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Cluster, PATIENCE, Signal, rows_of, until};
use outrigger::client::{Cas, Client, Expect};

const WRITERS: usize = 8;

/// What one writer knows: for each key the last value acknowledged, and what was tried after it without an answer.
#[derive(Default)]
struct Ledger {
    acknowledged: HashMap<String, u64>,
    unknown: HashMap<String, Vec<u64>>,
    slowest: Duration,
    refused: u64,
}

/// Writes rising numbers to keys of its own until told to stop.
async fn write(client: Client, writer: usize, stop: Arc<AtomicBool>) -> Ledger {
    let mut ledger = Ledger::default();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let key = format!("w{writer}/{}", number % 20);
        let started = Instant::now();
        match client.put(&key, number.to_string()).await {
            Ok(_) => {
                ledger.slowest = ledger.slowest.max(started.elapsed());
                ledger.unknown.remove(&key);
                ledger.acknowledged.insert(key, number);
            }
            Err(error) if error.to_string().is_empty() => unreachable!("errors say something"),
            Err(_) => {
                ledger.refused += 1;
                ledger.unknown.entry(key).or_default().push(number);
                // The process is dead or a quorum is missing: no need to spin.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
    ledger
}

/// Every acknowledged number, or a later one of unknown outcome, must be there.
fn check(ledgers: &[Ledger], rows: &HashMap<String, u64>, place: &str) {
    for ledger in ledgers {
        for (key, number) in &ledger.acknowledged {
            let found = rows.get(key);
            let allowed =
                |found: &u64| found == number || ledger.unknown.get(key).is_some_and(|unknown| unknown.contains(found));
            assert!(found.is_some_and(allowed), "{place}: {key} acknowledged as {number}, found {found:?}");
        }
    }
}

async fn rows(client: &Client) -> HashMap<String, u64> {
    let mut listing = client.list("", false).await.unwrap();
    let mut rows = HashMap::new();
    while let Some(item) = listing.next().await.unwrap() {
        let number = std::str::from_utf8(&item.value.unwrap()).unwrap().parse().unwrap();
        rows.insert(item.key, number);
    }
    rows
}

/// Kills and restarts nodes, one after the other, while all of them are written to.
#[tokio::test(flavor = "multi_thread")]
async fn killed_nodes_lose_nothing_acknowledged() {
    let mut cluster = Cluster::start(3).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> =
        (0..WRITERS).map(|n| tokio::spawn(write(cluster.nodes[n % 3].client(), n, stop.clone()))).collect();
    let probe = cluster.nodes[0].client();
    for victim in [2, 1, 2] {
        until("writes go on", async || probe.put("probe", "1").await.is_ok()).await;
        cluster.nodes[victim].kill();
        // The others go on at once: this very write is made while the dead node may still count as there.
        let started = Instant::now();
        probe.put("probe", "2").await.unwrap();
        let gap = started.elapsed();
        assert!(gap < Duration::from_secs(2), "a write right after the kill took {gap:?}");
        for n in 0..50 {
            probe.put("probe", n.to_string()).await.unwrap();
        }
        cluster.nodes[victim].start();
        cluster.nodes[victim].ready().await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut ledgers = Vec::new();
    for writer in writers {
        ledgers.push(writer.await.unwrap());
    }
    let total: usize = ledgers.iter().map(|ledger| ledger.acknowledged.len()).sum();
    assert!(total >= WRITERS * 10, "too little was written to prove anything: {total} keys");
    cluster.nodes[0].quorum_reader().del("probe").await.unwrap();
    for node in &cluster.nodes {
        let client = node.client();
        until("the deletion arrived", async || client.get("probe").await.unwrap().is_none()).await;
        // What another node acknowledged a moment ago may still be on its way here: completion is in the background.
        let patience = Instant::now() + PATIENCE;
        loop {
            let rows = rows(&client).await;
            let caught_up =
                ledgers.iter().flat_map(|ledger| &ledger.acknowledged).all(|(key, n)| rows.get(key) >= Some(n));
            if caught_up || Instant::now() > patience {
                check(&ledgers, &rows, &node.name);
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    // And in the files themselves, by SQLite alone, after a clean stop.
    for node in &mut cluster.nodes {
        assert!(node.terminate().success(), "{}:\n{}", node.name, node.log());
        let rows = rows_of(&node.data().join("_/default.db"));
        let rows = rows.into_iter().map(|(key, value, _)| (key, String::from_utf8(value).unwrap().parse().unwrap()));
        check(&ledgers, &rows.collect(), &format!("{}'s file", node.name));
    }
}

/// All three die at once, in the middle of a load.
#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_of_all_nodes_loses_nothing_acknowledged() {
    let mut cluster = Cluster::start(3).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> =
        (0..WRITERS).map(|n| tokio::spawn(write(cluster.nodes[n % 3].client(), n, stop.clone()))).collect();
    let probe = cluster.nodes[0].client();
    for n in 0..200 {
        probe.put("probe", n.to_string()).await.unwrap();
    }
    for node in &mut cluster.nodes {
        node.kill();
    }
    stop.store(true, Ordering::Relaxed);
    let mut ledgers = Vec::new();
    for writer in writers {
        ledgers.push(writer.await.unwrap());
    }
    for node in &mut cluster.nodes {
        node.start();
    }
    for node in &mut cluster.nodes {
        node.ready().await;
    }
    for node in &cluster.nodes {
        let reader = node.quorum_reader();
        let mut rows = HashMap::new();
        for key in ledgers.iter().flat_map(|ledger| ledger.acknowledged.keys()) {
            let value = reader.get(key).await.unwrap().unwrap_or_else(|| panic!("{key} is lost")).value;
            rows.insert(key.clone(), std::str::from_utf8(&value).unwrap().parse().unwrap());
        }
        check(&ledgers, &rows, &node.name);
    }
}

/// Two of three gone: known at once, nothing written; back, and it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_writes_are_refused_and_local_reads_go_on() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.nodes[0].client();
    client.put("k", "v").await.unwrap();
    cluster.nodes[1].kill();
    cluster.nodes[2].kill();
    until("no quorum is noticed", async || !cluster.nodes[0].is_ready().await).await;
    let started = Instant::now();
    let refused = client.put("k", "w").await.unwrap_err();
    assert!(refused.is_unavailable(), "{refused}");
    assert!(started.elapsed() < Duration::from_millis(1500), "known at once, not after {:?}", started.elapsed());
    assert_eq!(client.get("k").await.unwrap().unwrap().value, "v");
    cluster.nodes[1].start();
    cluster.nodes[1].ready().await;
    until("writes go on", async || client.put("k", "x").await.is_ok()).await;
}

/// A node that hangs (SIGSTOP) is neither waited for nor obeyed; when it wakes it catches up.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_hangs_delays_nobody() {
    let cluster = Cluster::start(3).await;
    let client = cluster.nodes[0].client();
    cluster.nodes[2].signal(Signal::STOP);
    for n in 0..100 {
        let started = Instant::now();
        client.put("k", n.to_string()).await.unwrap();
        assert!(started.elapsed() < Duration::from_secs(2), "write {n} took {:?}", started.elapsed());
    }
    cluster.nodes[2].signal(Signal::CONT);
    let woken = cluster.nodes[2].client();
    until("it caught up", async || woken.get("k").await.is_ok_and(|row| row.is_some_and(|row| row.value == "99")))
        .await;
}

/// Compare-and-swap from every node at once: each version is replaced exactly once.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_is_swapped_by_one_client_only() {
    const ROUNDS: usize = 20;
    let cluster = Cluster::start(3).await;
    let clients: Vec<Client> = cluster.nodes.iter().map(common::Node::quorum_reader).collect();
    clients[0].put("k", "start").await.unwrap();
    for round in 0..ROUNDS {
        let upd = clients[0].get("k").await.unwrap().unwrap().upd;
        let swap = async |n: usize| match clients[n].cas("k", Expect::Upd(upd), format!("{round}/{n}")).await {
            Ok(Cas::Written(_)) => 1,
            Ok(Cas::Mismatch(_)) => 0,
            Err(error) => panic!("{error}"),
        };
        let (a, b, c) = tokio::join!(swap(0), swap(1), swap(2));
        assert_eq!(a + b + c, 1, "round {round}");
    }
}

/// A node that was absent at the start, and one with the wrong key.
#[tokio::test(flavor = "multi_thread")]
async fn an_absent_node_is_fine_and_a_stranger_is_refused() {
    let mut cluster = Cluster::prepare(3);
    cluster.nodes[0].start();
    cluster.nodes[1].start();
    cluster.nodes[0].ready().await;
    cluster.nodes[1].ready().await;
    cluster.nodes[0].client().put("k", "v").await.unwrap();
    // The third comes with another secret.
    let config = std::fs::read_to_string(cluster.nodes[2].config()).unwrap();
    let wrong = cluster.dir.path().join("wrong.key");
    common::secret(&wrong, "another secret, just as long as the first\n");
    let right = cluster.dir.path().join("cluster.key");
    let changed = config.replace(&*right.to_string_lossy(), &wrong.to_string_lossy());
    assert_ne!(changed, config);
    std::fs::write(cluster.nodes[2].config(), changed).unwrap();
    cluster.nodes[2].start();
    let metrics = async |n: usize| cluster.nodes[n].admin("/metrics").await.unwrap_or_default();
    let refused = |text: &str| {
        text.lines().any(|line| line.starts_with("outrigger_peer_connections_refused_total{") && !line.ends_with(" 0"))
    };
    until("the stranger is refused and counted", async || refused(&metrics(0).await)).await;
    assert!(!cluster.nodes[2].is_ready().await);
    cluster.nodes[0].client().put("k", "w").await.unwrap();
    // With the right one it is let in.
    cluster.nodes[2].kill();
    std::fs::write(cluster.nodes[2].config(), config).unwrap();
    cluster.nodes[2].start();
    cluster.nodes[2].ready().await;
    let late = cluster.nodes[2].client();
    assert_eq!(late.get("k").await.unwrap().unwrap().value, "w");
}

/// A node with another secret saw "no quorum" in its status, and nothing of why.
#[tokio::test(flavor = "multi_thread")]
async fn status_says_who_refused_whom_and_why() {
    let mut cluster = Cluster::start(3).await;
    cluster.nodes[2].kill();
    let config = std::fs::read_to_string(cluster.nodes[2].config()).unwrap();
    common::secret(&cluster.dir.path().join("other.key"), &"f".repeat(64));
    let other = cluster.dir.path().join("other.key").display().to_string();
    let changed: String = config
        .lines()
        .map(|line| if line.starts_with("key_file") { format!("key_file = {other:?}\n") } else { format!("{line}\n") })
        .collect();
    assert_ne!(changed, config);
    std::fs::write(cluster.nodes[2].config(), changed).unwrap();
    cluster.nodes[2].start();
    let client = cluster.nodes[2].client();
    until("the refusal is shown", async || {
        let refusals = client.cluster().await.map(|status| status.refusals).unwrap_or_default();
        refusals.iter().any(|refusal| refusal.contains("127.0.0.1:") && refusal.contains("key_file"))
    })
    .await;
}
