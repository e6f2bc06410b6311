//! A rolling restart of three real processes under load: each in turn is told to end, ends with 0, is started again.
//! Clients of both dialects, with connections that they keep, are told nothing worse than what they can try again at
//! once elsewhere: `BUSY`, `NOQUORUM`, or that nobody listens. Nothing is left unknown, so that each client's counter says
//! exactly how many increments were acknowledged. Only of a counter that all nodes fight over may an outcome be unknown,
//! restart or not, as rounds that lose too often cannot always be told apart; its updates wander from home to home.

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
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Cluster, Signal, until};
use outrigger::client::{Client, Consistency, Error, Written};
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// Clients of each dialect.
const CLIENTS: usize = 6;
/// Commands that a RESP client sends at once.
const PIPELINE: u64 = 8;
/// What one SIGTERM may take.
const DRAIN_WITHIN: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Operations that were acknowledged.
    done: AtomicU64,
    /// Increments of the counter that all fight over that were, and those whose outcome is unknown.
    increments: AtomicU64,
    unknown: AtomicU64,
    /// Of each other counter, how many increments were acknowledged.
    counted: Mutex<HashMap<String, u64>>,
    /// What clients were told that was harmless, and how often.
    harmless: Mutex<HashMap<String, u64>>,
    /// What they should never have been told.
    violations: Mutex<Vec<String>>,
    /// The last value acknowledged of each key.
    acknowledged: Mutex<HashMap<String, u64>>,
}

impl Shared {
    fn harmless(&self, what: &str) {
        *self.harmless.lock().entry(what.to_owned()).or_default() += 1;
    }

    fn violation(&self, what: String) {
        self.violations.lock().push(what);
    }

    fn acknowledge(&self, key: String, value: u64) {
        self.done.fetch_add(1, Ordering::Relaxed);
        self.acknowledged.lock().insert(key, value);
    }
}

/// Puts rising numbers, and reads them back through a quorum.
async fn http(number: usize, sockets: Vec<PathBuf>, shared: Arc<Shared>) {
    let client = |socket: &PathBuf| Client::builder(socket).consistency(Consistency::Quorum).build();
    let clients: Vec<_> = sockets.iter().map(client).collect();
    let (mut at, mut value) = (number, 0);
    while !shared.stop.load(Ordering::Relaxed) {
        value += 1;
        let key = format!("http{number}/{}", value % 10);
        let node = &clients[at % clients.len()];
        let ended = match node.put(&key, value.to_string()).await {
            Ok(_) if value % 5 == 0 => node.get(&key).await.map(|found| {
                let found = found.map(|found| String::from_utf8(found.value.to_vec()).unwrap());
                if found != Some(value.to_string()) {
                    shared.violation(format!("{key}: {value} was acknowledged, a quorum read says {found:?}"));
                }
                shared.acknowledge(key, value);
            }),
            Ok(_) => {
                shared.acknowledge(key, value);
                Ok(())
            }
            Err(error) => Err(error),
        };
        match ended {
            Ok(()) => continue,
            Err(Error::NotReachable { .. }) => shared.harmless("HTTP: nobody listens"),
            Err(Error::Problem(problem)) if problem.status == 503 && problem.written == Some(Written::No) => {
                shared.harmless(&format!("HTTP {}: {}", problem.title, problem.detail));
            }
            Err(error) => shared.violation(format!("HTTP client {number} of node {}: {error}", at % 3)),
        }
        at += 1;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn command(parts: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", parts.len()).into_bytes();
    for part in parts {
        bytes.extend(format!("${}\r\n{part}\r\n", part.len()).into_bytes());
    }
    bytes
}

/// The key that a client's increments count in: the first half have one each, the others share one.
fn counter(number: usize) -> String {
    if number < CLIENTS / 2 { format!("counter{number}") } else { "shared".to_owned() }
}

/// Increments its counter and sets keys of its own, many at once over one connection.
async fn resp(number: usize, sockets: Vec<PathBuf>, shared: Arc<Shared>) {
    let (mut at, mut value) = (number, 0);
    while !shared.stop.load(Ordering::Relaxed) {
        match UnixStream::connect(&sockets[at % sockets.len()]).await {
            Ok(stream) => {
                if let Err(why) = session(number, stream, &mut value, &shared).await {
                    shared.violation(format!("RESP client {number} of node {}: {why}", at % 3));
                }
            }
            Err(_) => shared.harmless("RESP: nobody listens"),
        }
        at += 1;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Works over one connection until the node sends it elsewhere.
async fn session(number: usize, stream: UnixStream, value: &mut u64, shared: &Shared) -> Result<(), String> {
    let mut stream = BufReader::new(stream);
    while !shared.stop.load(Ordering::Relaxed) {
        let (mut input, mut sets) = (Vec::new(), Vec::new());
        for place in 0..PIPELINE {
            if place % 2 == 0 {
                input.extend(command(&["INCR", &counter(number)]));
                sets.push(None);
            } else {
                *value += 1;
                let key = format!("resp{number}/{}", *value % 10);
                input.extend(command(&["SET", &key, &value.to_string()]));
                sets.push(Some((key, *value)));
            }
        }
        match stream.write_all(&input).await {
            Ok(()) => {}
            // Nothing of it can have arrived: it is one piece.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                shared.harmless("RESP: closed before anything was sent");
                return Ok(());
            }
            Err(error) => return Err(format!("writing: {error}")),
        }
        let mut elsewhere = false;
        for (place, set) in sets.into_iter().enumerate() {
            let mut reply = String::new();
            match stream.read_line(&mut reply).await {
                Ok(0) => return Err(format!("the connection ended before reply {place} of {PIPELINE}")),
                Ok(_) => {}
                Err(error) => return Err(format!("reading reply {place} of {PIPELINE}: {error}")),
            }
            match (reply.as_bytes()[0], set) {
                (b':', None) if counter(number) == "shared" => {
                    shared.done.fetch_add(1, Ordering::Relaxed);
                    shared.increments.fetch_add(1, Ordering::Relaxed);
                }
                (b':', None) => *shared.counted.lock().entry(counter(number)).or_default() += 1,
                (b'-', None) if counter(number) == "shared" && reply.starts_with("-TIMEOUT") => {
                    shared.unknown.fetch_add(1, Ordering::Relaxed);
                }
                (b'+', Some((key, value))) => shared.acknowledge(key, value),
                (b'-', _) if reply.starts_with("-BUSY") || reply.starts_with("-NOQUORUM") => {
                    shared.harmless(&format!("RESP {}", reply.trim()));
                    elsewhere = true;
                }
                _ => return Err(format!("reply {place}: {}", reply.trim())),
            }
        }
        if elsewhere {
            return Ok(());
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_is_noticed_by_nobody() {
    let mut cluster = Cluster::start(3).await;
    let shared = Arc::new(Shared::default());
    let sockets: Vec<_> = cluster.nodes.iter().map(common::Node::socket).collect();
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        clients.push(tokio::spawn(http(number, sockets.clone(), shared.clone())));
        clients.push(tokio::spawn(resp(number, sockets.clone(), shared.clone())));
    }
    for n in 0..cluster.nodes.len() {
        let before = shared.done.load(Ordering::Relaxed);
        until("the load goes on", async || shared.done.load(Ordering::Relaxed) > before + 2_000).await;
        let told = Instant::now();
        cluster.nodes[n].signal(Signal::TERM);
        until("it is not ready any more", async || !cluster.nodes[n].is_ready().await).await;
        let node = &mut cluster.nodes[n];
        let ended = tokio::task::block_in_place(|| node.wait());
        let took = told.elapsed();
        assert!(ended.success(), "{} ended with {ended}:\n{}", node.name, node.log());
        assert!(took < DRAIN_WITHIN, "{} took {took:?} to end:\n{}", node.name, node.log());
        eprintln!("{} ended after {took:.2?}", node.name);
        node.start();
        node.ready().await;
    }
    shared.stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    for (what, count) in &*shared.harmless.lock() {
        eprintln!("{count:6} {what}");
    }
    let logs = || cluster.nodes.iter().map(|node| format!("{}:\n{}\n", node.name, node.log())).collect::<String>();
    let violations = shared.violations.lock().clone();
    assert!(
        violations.is_empty(),
        "{} times: {:#?}\n{}",
        violations.len(),
        &violations[..violations.len().min(20)],
        logs()
    );
    let reader = cluster.nodes[0].quorum_reader();
    let count = async |key: &str| {
        let value = reader.get(key).await.unwrap().unwrap().value;
        std::str::from_utf8(&value).unwrap().parse::<u64>().unwrap()
    };
    let counted = shared.counted.lock().clone();
    assert_eq!(counted.len(), CLIENTS / 2);
    for (key, acknowledged) in counted {
        assert_eq!(count(&key).await, acknowledged, "{key}");
    }
    let [increments, unknown] = [&shared.increments, &shared.unknown].map(|count| count.load(Ordering::Relaxed));
    eprintln!("{increments} increments of the shared counter, {unknown} unknown");
    let found = count("shared").await;
    assert!((increments..=increments + unknown).contains(&found), "{found}, not {increments} to {unknown} more");
    let acknowledged = shared.acknowledged.lock().clone();
    assert!(acknowledged.len() == 2 * CLIENTS * 10, "{}", acknowledged.len());
    for (key, value) in acknowledged {
        // What was refused after it was not written; a later value can only be one that was acknowledged.
        assert_eq!(count(&key).await, value, "{key}");
    }
}
