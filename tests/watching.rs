//! Watchers of real nodes: on all three of them under load, over the death and return of one; and `outrigger watch`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test"
)]

mod common;

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Cluster, Node, PATIENCE, until};
use outrigger::client::{Change, Client, Mirror};
use outrigger::types::Ballot;
use parking_lot::Mutex;

const KEYS: u64 = 60;
const WRITERS: u64 = 4;

type Rows = BTreeMap<String, (Vec<u8>, Ballot)>;

/// What one watcher has been told, over all of its connections.
#[derive(Default)]
struct Told {
    mirror: Mirror,
    seen: HashMap<String, Ballot>,
    changes: u64,
    snapshots: u64,
}

impl Told {
    fn rows(&self) -> Rows {
        self.mirror.rows().iter().map(|(key, row)| (key.clone(), (row.value.to_vec(), row.upd))).collect()
    }
}

/// Watches for ever: goes on after whatever ends it.
async fn watch(client: Client, node: String, told: Arc<Mutex<Told>>) {
    let mut watch = loop {
        match client.watch("k", None).await {
            Ok(watch) => break watch,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    loop {
        match watch.next().await {
            Ok(change) => {
                let mut told = told.lock();
                told.changes += 1;
                match &change {
                    Change::Snapshot => {
                        told.snapshots += 1;
                        told.seen.clear();
                    }
                    Change::Put { key, upd, .. } | Change::Del { key, upd } => {
                        let before = told.seen.insert(key.clone(), *upd);
                        assert!(before.is_none_or(|before| before < *upd), "{node}: {key} @{upd} after {before:?}");
                    }
                    Change::SnapshotEnd => {}
                }
                told.mirror.apply(change);
            }
            Err(_) => {
                while watch.resume().await.is_err() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

async fn write(client: Client, writer: u64, stop: Arc<AtomicBool>) {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        // Writers share keys, so that rounds collide and records are completed by others.
        let key = format!("k{}", (number * 7 + writer) % KEYS);
        let written = if number % 9 == 0 {
            client.del(&key).await
        } else {
            client.put(&key, format!("{writer} {number}")).await.map(drop)
        };
        if written.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn rows(client: &Client) -> Option<Rows> {
    let mut listing = client.list("k", false).await.ok()?;
    let mut rows = Rows::new();
    while let Some(item) = listing.next().await.ok()? {
        rows.insert(item.key, (item.value?.to_vec(), item.upd));
    }
    Some(rows)
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_everywhere_see_all_that_happens_over_a_nodes_death() {
    let mut cluster = Cluster::start(3).await;
    let stop = Arc::new(AtomicBool::new(false));
    let told: Vec<Arc<Mutex<Told>>> = (0..3).map(|_| Arc::default()).collect();
    let watchers: Vec<_> = cluster
        .nodes
        .iter()
        .zip(&told)
        .map(|(node, told)| tokio::spawn(watch(node.client(), node.name.clone(), told.clone())))
        .collect();
    let writers: Vec<_> =
        (0..WRITERS).map(|n| tokio::spawn(write(cluster.nodes[n as usize % 3].client(), n, stop.clone()))).collect();
    let goes_on = async |n: usize| {
        let before = told[n].lock().changes;
        until("the watcher is told more", async || told[n].lock().changes > before + 100).await;
    };
    for life in 1..=2 {
        for n in 0..3 {
            goes_on(n).await;
        }
        assert_eq!(told[2].lock().snapshots, life);
        cluster.nodes[2].kill();
        goes_on(0).await;
        cluster.nodes[2].start();
        cluster.nodes[2].ready().await;
        // Another life of the node: a snapshot, and on from there.
        until("the watcher is back", async || told[2].lock().snapshots > life).await;
        goes_on(2).await;
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    // Each is told what its own node has; and soon all nodes have the same.
    let clients: Vec<Client> = cluster.nodes.iter().map(Node::client).collect();
    until("every watcher knows the rows of all", async || {
        let expected = rows(&clients[0]).await;
        let mut same = expected.is_some();
        for (client, told) in clients.iter().zip(&told) {
            same &= rows(client).await == expected && Some(told.lock().rows()) == expected;
        }
        same
    })
    .await;
    assert_eq!(told[0].lock().snapshots, 1, "nothing cut this one off");
    for watcher in watchers {
        assert!(!watcher.is_finished(), "{:?}", watcher.await);
        watcher.abort();
    }
    // They hold no node up that stops.
    for node in &mut cluster.nodes {
        let began = std::time::Instant::now();
        assert!(node.terminate().success(), "{}:\n{}", node.name, node.log());
        assert!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
    }
}

/// Processor time that a process has used so far.
fn processor_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_secs_f64(ticks as f64 / 100.0)
}

/// Writes for a while over several connections: writes a second, and the node's processor time for each.
async fn load(node: &Node, lasting: Duration) -> (f64, Duration) {
    const CLIENTS: u64 = 32;
    let before = processor_time(node.pid());
    let began = std::time::Instant::now();
    let writers: Vec<_> = (0..CLIENTS)
        .map(|writer| {
            let client = node.client();
            tokio::spawn(async move {
                let mut written = 0;
                while began.elapsed() < lasting {
                    client.put(&format!("w{}/{written}", writer % 10), vec![b'x'; 256]).await.unwrap();
                    written += 1;
                }
                written
            })
        })
        .collect();
    let mut written = 0_u32;
    for writer in writers {
        written += writer.await.unwrap();
    }
    (f64::from(written) / began.elapsed().as_secs_f64(), (processor_time(node.pid()) - before) / written)
}

/// What 1,000 watchers of one node cost its writers: `cargo test --release --test watching -- --ignored --nocapture`.
/// Each watches a prefix of its own; ten of them one that is written to.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, for a quiet machine and a release build"]
async fn a_thousand_watchers_cost_little() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    const WATCHERS: usize = 1_000;
    const LASTING: Duration = Duration::from_secs(5);
    let held = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let all = rustix::process::Rlimit { current: held.maximum, maximum: held.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, all).unwrap();
    let cluster = Cluster::start(3).await;
    let node = &cluster.nodes[0];
    load(node, LASTING).await;
    let mut figures: [Vec<(f64, Duration)>; 2] = Default::default();
    for _ in 0..3 {
        figures[0].push(load(node, LASTING).await);
        let mut watchers = tokio::task::JoinSet::new();
        let begun = Arc::new(tokio::sync::Semaphore::new(0));
        for n in 0..WATCHERS {
            let (socket, begun) = (node.socket(), begun.clone());
            watchers.spawn(async move {
                let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
                let request = format!("GET /v1/watch/_/default?prefix=w{n}/ HTTP/1.0\r\n\r\n");
                stream.write_all(request.as_bytes()).await.unwrap();
                let (mut part, mut bytes) = (vec![0; 64 * 1024], 0);
                bytes += stream.read(&mut part).await.unwrap();
                assert!(part.starts_with(b"HTTP/1.0 200"), "{}", String::from_utf8_lossy(&part[..bytes]));
                begun.add_permits(1);
                while let Ok(count @ 1..) = stream.read(&mut part).await {
                    bytes += count;
                }
                bytes
            });
        }
        let _ = begun.acquire_many(u32::try_from(WATCHERS).unwrap()).await.unwrap();
        figures[1].push(load(node, LASTING).await);
        watchers.shutdown().await;
    }
    for (figures, watchers) in figures.iter_mut().zip([0, WATCHERS]) {
        figures.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (writes, each) = figures[1];
        println!("{watchers:>5} watchers: {writes:>6.0} writes/s, {each:?} of the node's processor time for each");
    }
    assert!(figures[1][1].0 > figures[0][1].0 / 2.0, "writes with watchers are less than half as fast");
}

fn command(node: &Node, args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    command.args(args).arg("--socket").arg(node.socket());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn lines(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap)
}

fn ended(mut child: Child) -> (Option<i32>, String) {
    let mut complaint = String::new();
    child.stderr.take().unwrap().read_to_string(&mut complaint).unwrap();
    (child.wait().unwrap().code(), complaint)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_prints_changes_and_says_how_to_go_on() {
    let mut cluster = Cluster::start(1).await;
    let client = cluster.nodes[0].client();
    let first = client.put("a", "1").await.unwrap();
    client.put("other", "x").await.unwrap();
    let mut text = command(&cluster.nodes[0], &["watch", "a"]);
    let mut json = command(&cluster.nodes[0], &["watch", "a", "--json"]);
    let (mut text_lines, mut json_lines) = (lines(&mut text), lines(&mut json));
    let mut object = || -> serde_json::Value { serde_json::from_str(&json_lines.next().unwrap()).unwrap() };
    assert_eq!(text_lines.next().unwrap(), "snapshot");
    assert_eq!(text_lines.next().unwrap(), format!("put  {first}  a  1"));
    let end = text_lines.next().unwrap();
    let id = end.strip_prefix("snapshot-end  ").unwrap().to_owned();
    assert_eq!(object()["event"], "snapshot");
    let row = object();
    assert_eq!(
        (&row["event"], &row["key"], &row["value"], &row["upd"]),
        (&"put".into(), &"a".into(), &"MQ==".into(), &first.0.into())
    );
    assert!(row["id"].is_null());
    assert!(object()["id"].is_string());

    let second = client.put("ab", "two\nlines").await.unwrap();
    client.del("a").await.unwrap();
    assert_eq!(text_lines.next().unwrap(), format!("put  {second}  ab  two\\nlines"));
    assert!(text_lines.next().unwrap().starts_with("del  "));
    assert_eq!(object()["key"], "ab");
    let del = object();
    assert_eq!((&del["event"], &del["key"]), (&"del".into(), &"a".into()));
    assert!(del["id"].is_string() && del.get("value").is_none());

    let mut since = command(&cluster.nodes[0], &["watch", "a", "--since", &id]);
    let mut since_lines = lines(&mut since);
    assert_eq!(since_lines.next().unwrap(), format!("put  {second}  ab  two\\nlines"));
    let wrong = ended(command(&cluster.nodes[0], &["watch", "--since", "yesterday"]));
    assert!(wrong.0 == Some(2) && wrong.1.contains("yesterday"), "{wrong:?}");

    // Over the node's end: one gives up and says how to go on, the other goes on.
    let mut again = command(&cluster.nodes[0], &["watch", "a", "--reconnect"]);
    let mut again_lines = lines(&mut again);
    while !again_lines.next().unwrap().starts_with("snapshot-end") {}
    assert!(cluster.nodes[0].terminate().success());
    let (code, complaint) = ended(text);
    assert_eq!(code, Some(69), "{complaint}");
    assert!(complaint.contains("shutting down") && complaint.contains("go on with --since "), "{complaint}");
    cluster.nodes[0].start();
    cluster.nodes[0].ready().await;
    let read = tokio::task::spawn_blocking(move || {
        while again_lines.next().unwrap() != "snapshot" {}
        again_lines.next().unwrap()
    });
    let line = tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap();
    assert_eq!(line, format!("put  {second}  ab  two\\nlines"));
    for mut child in [json, since, again] {
        let _ = child.kill();
        child.wait().unwrap();
    }
}
