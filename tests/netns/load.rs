//! Clients of every node that work on a few keys at once, and write down what they asked and were told.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use outrigger::client::{Cas, Client, Consistency, Error, Expect, Versioned, Written};
use outrigger::types::Ballot;
use parking_lot::Mutex;
use rand::RngExt as _;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use crate::common::Node;

/// Keys that are put, swapped and deleted.
pub(crate) const REGISTERS: [&str; 3] = ["r0", "r1", "r2"];
/// Keys that are incremented.
pub(crate) const COUNTERS: [&str; 2] = ["c0", "c1"];
/// How long a node may look for a quorum for one operation; RESP goes by the node's own setting, which is the same.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(2);
/// How long a client waits for any answer before it gives up: a stopped node gives none.
const GIVE_UP: Duration = Duration::from_secs(4);
/// The longest pause between two operations of a client, in milliseconds: the machine is to be busy, not the disk full.
const PAUSE_MS_MAX: u64 = 10;
/// The pause after a refusal.
const PAUSE_REFUSED: Duration = Duration::from_millis(20);

/// What became of one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Refused,
    Unknown,
}

/// One operation as its client saw it.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) node: usize,
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
    pub(crate) outcome: Outcome,
    pub(crate) what: String,
}

/// What a client asks for.
#[derive(Debug, Clone, Copy)]
enum Op {
    Get,
    Put(u64),
    /// Only over the value that was read before, or over none.
    Swap(Option<(u64, Ballot)>, u64),
    Del,
    Incr,
}

/// What it is told.
#[derive(Debug, Clone, Copy)]
enum Answer {
    Value(Option<(u64, Ballot)>),
    Written(Option<Ballot>),
    Mismatch,
    Number(u64),
}

/// Why it has no answer.
#[derive(Debug)]
enum Failure {
    /// Nothing was written and nothing will be.
    Refused(String),
    /// It may be written, or may yet be.
    Unknown(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let told = error.to_string();
        match error {
            Error::NotReachable { .. } => Self::Refused(told),
            Error::Problem(problem) if problem.written == Some(Written::No) => Self::Refused(told),
            Error::Problem(_) | Error::Broken { .. } => Self::Unknown(told),
            Error::Unreadable(_) | Error::Invalid(_) | Error::MalformedRequest { .. } => panic!("{told}"),
        }
    }
}

/// What all clients of a load share.
struct Shared {
    stop: AtomicBool,
    /// Every value that is put is another one, so that what is read tells who wrote it.
    serial: AtomicU64,
    told: Mutex<Vec<Told>>,
}

/// Clients at work, until stopped.
pub(crate) struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// `per_node` clients of each node.
    pub(crate) fn start(nodes: &[Node], per_node: usize) -> Self {
        let shared =
            Arc::new(Shared { stop: AtomicBool::new(false), serial: AtomicU64::new(0), told: Mutex::default() });
        let clients = (0..nodes.len() * per_node).map(|number| {
            let node = number % nodes.len();
            tokio::spawn(Session::new(node, nodes[node].socket(), shared.clone()).run())
        });
        Self { clients: clients.collect(), shared }
    }

    /// How many operations that began since then ended so, on that node.
    pub(crate) fn count(&self, node: usize, since: Instant, outcome: Outcome) -> usize {
        let told = self.shared.told.lock();
        told.iter().filter(|told| told.node == node && told.began >= since && told.outcome == outcome).count()
    }

    /// What that node's clients were told of operations that began since then, but for the successes.
    pub(crate) fn failures(&self, node: usize, since: Instant) -> Vec<Told> {
        let told = self.shared.told.lock();
        let is_failure = |told: &&Told| told.node == node && told.began >= since && told.outcome != Outcome::Done;
        told.iter().filter(is_failure).cloned().collect()
    }

    /// Ends all clients, each after its operation.
    pub(crate) async fn stop(self) -> Vec<Told> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
        std::mem::take(&mut *self.shared.told.lock())
    }
}

/// One client: one operation after the other, over HTTP, increments over RESP.
struct Session {
    node: usize,
    http: Client,
    socket: PathBuf,
    resp: Option<BufReader<UnixStream>>,
    /// What this client read last of each register, to swap it.
    seen: [Option<(u64, Ballot)>; REGISTERS.len()],
    shared: Arc<Shared>,
}

impl Session {
    fn new(node: usize, socket: PathBuf, shared: Arc<Shared>) -> Self {
        let http = Client::builder(&socket).consistency(Consistency::Quorum).timeout(TIMEOUT).answer_within(GIVE_UP);
        Self { node, http: http.build(), socket, resp: None, seen: [None; REGISTERS.len()], shared }
    }

    async fn run(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            let (key, op) = self.choose();
            let began = now();
            let answer = self.perform(key, op).await;
            let ended = now();
            if let (Ok(answer), Some(register)) = (&answer, REGISTERS.iter().position(|name| *name == key)) {
                self.remember(register, op, *answer);
            }
            let (outcome, what) = match &answer {
                Ok(answer) => (Outcome::Done, format!("{op:?} of {key}: {answer:?}")),
                Err(Failure::Refused(why)) => (Outcome::Refused, format!("{op:?} of {key}: {why}")),
                Err(Failure::Unknown(why)) => (Outcome::Unknown, format!("{op:?} of {key}: {why}")),
            };
            self.shared.told.lock().push(Told { node: self.node, began, ended, outcome, what });
            let pause = if outcome == Outcome::Refused {
                PAUSE_REFUSED
            } else {
                Duration::from_millis(rand::rng().random_range(0..=PAUSE_MS_MAX))
            };
            tokio::time::sleep(pause).await;
        }
    }

    fn choose(&self) -> (&'static str, Op) {
        let mut rng = rand::rng();
        if rng.random_ratio(1, 3) {
            let key = COUNTERS[rng.random_range(0..COUNTERS.len())];
            return (key, if rng.random_ratio(3, 4) { Op::Incr } else { Op::Get });
        }
        let register = rng.random_range(0..REGISTERS.len());
        let fresh = self.shared.serial.fetch_add(1, Ordering::Relaxed) + 1;
        let op = match rng.random_range(0..10) {
            0..4 => Op::Get,
            4..6 => Op::Put(fresh),
            6..9 => Op::Swap(self.seen[register], fresh),
            _ => Op::Del,
        };
        (REGISTERS[register], op)
    }

    fn remember(&mut self, register: usize, op: Op, answer: Answer) {
        self.seen[register] = match (op, answer) {
            (_, Answer::Value(seen)) => seen,
            (Op::Put(value) | Op::Swap(_, value), Answer::Written(Some(upd))) => Some((value, upd)),
            (Op::Del, _) => None,
            _ => self.seen[register],
        };
    }

    async fn perform(&mut self, key: &str, op: Op) -> Result<Answer, Failure> {
        match op {
            Op::Get => Ok(Answer::Value(self.http.get(key).await?.as_ref().map(numbered))),
            Op::Put(value) => Ok(Answer::Written(Some(self.http.put(key, value.to_string()).await?))),
            Op::Swap(seen, value) => {
                let expect = seen.map_or(Expect::Absent, |(_, upd)| Expect::Upd(upd));
                Ok(match self.http.cas(key, expect, value.to_string()).await? {
                    Cas::Written(upd) => Answer::Written(Some(upd)),
                    Cas::Mismatch(_) => Answer::Mismatch,
                })
            }
            Op::Del => {
                self.http.del(key).await?;
                Ok(Answer::Written(None))
            }
            Op::Incr => {
                let answer = tokio::time::timeout(GIVE_UP, self.increment(key)).await;
                answer
                    .unwrap_or_else(|_| Err(Failure::Unknown(format!("no answer in {GIVE_UP:?}"))))
                    .map(Answer::Number)
            }
        }
    }

    /// Takes the connection out of its slot meanwhile: what fails half-way never gets the answer of another.
    async fn increment(&mut self, key: &str) -> Result<u64, Failure> {
        let mut connection = match self.resp.take() {
            Some(connection) => connection,
            None => BufReader::new(
                UnixStream::connect(&self.socket).await.map_err(|why| Failure::Refused(why.to_string()))?,
            ),
        };
        let broken = |why: std::io::Error| Failure::Unknown(why.to_string());
        let command = format!("*2\r\n$4\r\nINCR\r\n${}\r\n{key}\r\n", key.len());
        connection.write_all(command.as_bytes()).await.map_err(broken)?;
        let mut line = String::new();
        connection.read_line(&mut line).await.map_err(broken)?;
        let Some(line) = line.strip_suffix("\r\n") else {
            return Err(Failure::Unknown(format!("half an answer: {line:?}")));
        };
        self.resp = Some(connection);
        if let Some(number) = line.strip_prefix(':') {
            return Ok(number.parse().unwrap());
        }
        let word = line.split(' ').next().unwrap();
        if ["-NOQUORUM", "-BUSY", "-REJECTED", "-DISKFULL"].contains(&word) {
            return Err(Failure::Refused(line.to_owned()));
        }
        assert!(word == "-TIMEOUT" || line.starts_with("-ERR"), "{line}");
        Err(Failure::Unknown(line.to_owned()))
    }
}

fn numbered(row: &Versioned) -> (u64, Ballot) {
    (std::str::from_utf8(&row.value).unwrap().parse().unwrap(), row.upd)
}

pub(crate) fn now() -> Instant {
    Instant::now()
}
