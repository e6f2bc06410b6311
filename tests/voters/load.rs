//! What clients write while voters change, and what they were told of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use outrigger::client::{Client, Consistency, Error, Written};
use parking_lot::Mutex;

use crate::common::{Node, until};

/// Writers of one load, each with keys of its own.
const WRITERS: usize = 4;
/// Keys of one writer.
const KEYS: u64 = 10;

/// What the clients of one node were told.
#[derive(Default)]
struct Told {
    /// The last number acknowledged of each key.
    acknowledged: HashMap<String, u64>,
    /// What was tried after it without an answer.
    unknown: HashMap<String, Vec<u64>>,
    /// The longest from the first try of a write to its acknowledgement, other tries between.
    slowest: Duration,
    /// Errors after which a write was tried again, and how often.
    refused: BTreeMap<String, u64>,
    /// Errors that left a write's fate open, likewise.
    left_open: BTreeMap<String, u64>,
}

/// Clients of one node, writing until they are stopped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    told: Arc<Mutex<Told>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    namespace: String,
}

impl Load {
    /// On the shard of this name, in the org that has none.
    pub(crate) fn on(node: &Node, namespace: &str) -> Self {
        let (stop, done, told) = (Arc::default(), Arc::default(), Arc::default());
        let tasks = (0..WRITERS).map(|writer| {
            let prefix = format!("{}w{writer}", node.name);
            let client = Client::builder(node.socket()).shard("", namespace).unwrap();
            let client = client.consistency(Consistency::Quorum).build();
            tokio::spawn(write(client, prefix, Arc::clone(&stop), Arc::clone(&done), Arc::clone(&told)))
        });
        Self { tasks: tasks.collect(), stop, done, told, namespace: namespace.to_owned() }
    }

    /// Waits until a good deal more was acknowledged.
    pub(crate) async fn goes_on(&self) {
        let before = self.done.load(Ordering::Relaxed);
        until("writes go on", async || self.done.load(Ordering::Relaxed) > before + 50).await;
    }

    pub(crate) async fn stop(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        let told = std::mem::take(&mut *self.told.lock());
        eprintln!(
            "{} writes, the slowest {:.2?}; refused {:?}; left open {:?}",
            self.done.load(Ordering::Relaxed),
            told.slowest,
            told.refused,
            told.left_open
        );
        Outcome(told, self.namespace)
    }
}

/// What a load was told in the end.
pub(crate) struct Outcome(Told, String);

impl Outcome {
    /// Every acknowledged number, or one whose fate was left open after it, is read through a quorum from each of these.
    pub(crate) async fn is_on(&self, nodes: impl IntoIterator<Item = &Node>) {
        let Told { acknowledged, unknown, .. } = &self.0;
        assert!(acknowledged.len() as u64 > KEYS, "too little was written to prove anything: {}", acknowledged.len());
        for node in nodes {
            let reader = Client::builder(node.socket()).shard("", &self.1).unwrap();
            let reader = reader.consistency(Consistency::Quorum).build();
            for (key, number) in acknowledged {
                let mut found = None;
                until("a quorum read is answered", async || match reader.get(key).await {
                    Ok(row) => {
                        found = row.map(|row| std::str::from_utf8(&row.value).unwrap().parse::<u64>().unwrap());
                        true
                    }
                    Err(_) => false,
                })
                .await;
                let is_open = |found: &u64| unknown.get(key).is_some_and(|open| open.contains(found));
                let is_fine = found.is_some_and(|found| found == *number || is_open(&found));
                assert!(is_fine, "{}: {key} was acknowledged as {number}, found {found:?}\n{}", node.name, node.log());
            }
        }
    }

    /// Nothing but "try again", and nobody waited longer than this.
    pub(crate) fn was_served_within(&self, limit: Duration) {
        assert!(self.0.left_open.is_empty(), "writes of unknown fate: {:?}", self.0.left_open);
        assert!(self.0.slowest <= limit, "a write took {:?}, refused were {:?}", self.0.slowest, self.0.refused);
    }
}

async fn write(client: Client, prefix: String, stop: Arc<AtomicBool>, done: Arc<AtomicU64>, told: Arc<Mutex<Told>>) {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let key = format!("{prefix}/{}", number % KEYS);
        let began = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            match client.put(&key, number.to_string()).await {
                Ok(_) => {
                    done.fetch_add(1, Ordering::Relaxed);
                    let mut told = told.lock();
                    told.slowest = told.slowest.max(began.elapsed());
                    told.unknown.remove(&key);
                    told.acknowledged.insert(key.clone(), number);
                    break;
                }
                Err(Error::Problem(problem)) if problem.status == 503 && problem.written == Some(Written::No) => {
                    *told.lock().refused.entry(problem.to_string()).or_default() += 1;
                }
                Err(error @ Error::NotReachable { .. }) => {
                    *told.lock().refused.entry(error.to_string()).or_default() += 1;
                }
                Err(error) => {
                    let mut told = told.lock();
                    told.unknown.entry(key.clone()).or_default().push(number);
                    *told.left_open.entry(error.to_string()).or_default() += 1;
                }
            }
            // The process is dead or a quorum is missing: no need to spin.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
