//! What it takes to find and fetch what a node has missed: three real processes on loopback, each with a shard of a
//! million rows. Prints bytes and seconds.
//!
//! ```sh
//! cargo bench --bench repair                     # some minutes; ROWS=100000 MISSED=10000 for less
//! BINARY=... cargo bench --bench repair          # of another build of the program
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a bench"
)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Cluster, Node};
use outrigger::client::{Client, Consistency};

const VALUE_BYTES: usize = 256;
/// Writers of what is missed.
const WRITERS: usize = 32;
/// The version of the first row: some time in the past.
const FIRST: i64 = 1_700_000_000_000_000_000;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

fn key(n: u64) -> String {
    format!("wf/orders/{:016x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Fills a shard of the first node, as any program may, and copies its file to the others.
fn fill(cluster: &Cluster, rows: u64) {
    let file = |node: &Node| node.data().join("acme/orders.db");
    for node in &cluster.nodes {
        std::fs::create_dir_all(node.data().join("acme")).unwrap();
    }
    let first = file(&cluster.nodes[0]);
    let mut shard = rusqlite::Connection::open(&first).unwrap();
    shard.execute_batch("CREATE TABLE kv(key TEXT PRIMARY KEY, value BLOB NOT NULL, upd INTEGER NOT NULL)").unwrap();
    let filling = shard.transaction().unwrap();
    let mut insert = filling.prepare("INSERT INTO kv VALUES(?1, ?2, ?3)").unwrap();
    for n in 0..rows {
        let upd = FIRST + (i64::try_from(n).unwrap() << 12);
        insert.execute((key(n), [b'v'; VALUE_BYTES].as_slice(), upd)).unwrap();
    }
    drop(insert);
    filling.commit().unwrap();
    drop(shard);
    for node in &cluster.nodes[1..] {
        std::fs::copy(&first, file(node)).unwrap();
    }
}

fn client(node: &Node) -> Client {
    Client::builder(node.socket()).shard("acme", "orders").unwrap().consistency(Consistency::Quorum).build()
}

/// A node's metric, all labels together.
async fn metric(node: &Node, name: &str) -> f64 {
    let page = node.admin("/metrics").await.unwrap_or_default();
    let value = |line: &str| {
        let (series, value) = line.rsplit_once(' ')?;
        (series.split('{').next() == Some(name)).then(|| value.parse::<f64>().ok())?
    };
    page.lines().filter_map(value).sum()
}

/// Ready, and both others found to hold the same.
async fn level(node: &mut Node, began: Instant) -> (Duration, Duration) {
    node.ready().await;
    let ready = began.elapsed();
    let client = client(node);
    common::until("in step", async || {
        client.cluster().await.is_ok_and(|status| status.nodes.iter().all(|node| node.me || node.in_step))
    })
    .await;
    (ready, began.elapsed())
}

async fn tell(what: &str, node: &Node, (ready, level): (Duration, Duration)) {
    let looks = metric(node, "outrigger_comparison_seconds_count").await;
    let seconds = metric(node, "outrigger_comparison_seconds_sum").await;
    let bytes = metric(node, "outrigger_compared_bytes_total").await;
    let rows = metric(node, "outrigger_synced_rows_total").await;
    let compared = metric(node, "outrigger_compared_rows_total").await;
    let built = metric(node, "outrigger_digests_built_total").await;
    println!("{what}: ready {:.2} s after its start, in step after {:.2} s", ready.as_secs_f64(), level.as_secs_f64());
    println!(
        "    {looks} comparisons, {:.3} s each, {:.0} KiB in all; {compared} versions compared, {rows} rows fetched, {built} digests built",
        seconds / looks.max(1.0),
        bytes / 1024.0
    );
}

/// Writes `count` rows with values of their own through the first two nodes.
async fn write(cluster: &Cluster, count: u64) {
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS as u64 {
        let client = client(&cluster.nodes[usize::try_from(writer).unwrap() % 2]);
        writers.spawn(async move {
            for n in (writer..count).step_by(WRITERS) {
                client.put(&key(n * 7), vec![b'w'; VALUE_BYTES]).await.unwrap();
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
}

#[tokio::main]
async fn main() {
    let (rows, missed) = (number("ROWS", 1_000_000), number("MISSED", 100_000));
    let mut cluster = Cluster::prepare(3);
    if let Ok(binary) = std::env::var("BINARY") {
        let instead = ["sh", "-c", "shift; exec \"$BINARY\" \"$@\"", &binary].map(str::to_owned);
        cluster.nodes.iter_mut().for_each(|node| node.launcher = instead.to_vec());
    }
    fill(&cluster, rows);
    println!("three nodes with {rows} rows of {VALUE_BYTES} bytes each");
    let began = Instant::now();
    cluster.nodes.iter_mut().for_each(Node::start);
    for n in 0..3 {
        let took = level(&mut cluster.nodes[n], began).await;
        tell(&format!("node {n}, nothing missed"), &cluster.nodes[n], took).await;
    }

    cluster.nodes[2].terminate();
    client(&cluster.nodes[0]).put(&key(1), "one").await.unwrap();
    let began = Instant::now();
    cluster.nodes[2].start();
    let took = level(&mut cluster.nodes[2], began).await;
    tell("one row missed", &cluster.nodes[2], took).await;

    cluster.nodes[2].kill();
    let began = Instant::now();
    cluster.nodes[2].start();
    let took = level(&mut cluster.nodes[2], began).await;
    tell("nothing missed, killed", &cluster.nodes[2], took).await;

    cluster.nodes[2].terminate();
    let began = Instant::now();
    write(&cluster, missed).await;
    println!("{missed} rows written in {:.1} s", began.elapsed().as_secs_f64());
    let began = Instant::now();
    cluster.nodes[2].start();
    let stop = Arc::new(AtomicBool::new(false));
    let serving = tokio::spawn(serve(client(&cluster.nodes[2]), client(&cluster.nodes[0]), stop.clone()));
    let took = level(&mut cluster.nodes[2], began).await;
    tell(&format!("{missed} rows missed"), &cluster.nodes[2], took).await;
    stop.store(true, Ordering::Relaxed);
    let [there, here] = serving.await.unwrap();
    println!("    one writer meanwhile, on it: {there}; on another node: {here}");
}

/// Writes on the node that catches up, and on another, in turns.
async fn serve(behind: Client, other: Client, stop: Arc<AtomicBool>) -> [String; 2] {
    let mut took = [Vec::new(), Vec::new()];
    while !stop.load(Ordering::Relaxed) {
        for (client, took) in [&behind, &other].into_iter().zip(&mut took) {
            let began = Instant::now();
            if client.put("meanwhile", "v").await.is_ok() {
                took.push(began.elapsed());
            } else {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
    took.map(|mut took| {
        took.sort();
        let at = |share: usize| took.get((took.len().saturating_sub(1)) * share / 100).copied().unwrap_or_default();
        format!("{} writes, median {:?}, 99 % {:?}, longest {:?}", took.len(), at(50), at(99), at(100))
    })
}
