//! Clients of every node that work on a few keys at once, and write down what they asked and were told.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use outrigger::client::{Cas, Client, Consistency, Error, Expect, Written};
use parking_lot::Mutex;
use rand::RngExt as _;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use crate::common::Node;
use crate::history::{History, Op, Outcome, When};
use crate::monotone::Monotone;

/// What everybody works on.
pub(crate) const KEYS: [&str; 4] = ["a", "b", "c", "d"];
/// How long a node may look for a quorum for one operation; RESP goes by the node's own setting, which is the same.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(2);
/// How long a client waits for any answer before it gives up: a stopped node gives none.
const GIVE_UP: Duration = Duration::from_secs(4);
/// The longest pause between two operations of a client, in milliseconds.
const PAUSE_MS_MAX: u64 = 10;
/// The pause after an operation that failed, and between two rounds of local reads.
const PAUSE: Duration = Duration::from_millis(20);
/// Values that are put are this far apart, so that no increments lead from one to another.
const VALUES_APART: u64 = 100_000;
/// The client number of each node's last reads; those of the load's clients are below.
const LAST_READS: u32 = 1_000;

/// How long a last read may be tried again.
const LAST_READ_WITHIN: Duration = Duration::from_secs(20);

/// How an operation ended, as far as progress goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Done,
    Refused,
    Unknown,
}

/// One operation on one node.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    node: usize,
    began: Instant,
    end: End,
    /// How long it took.
    pub(crate) took: Duration,
    /// What a client was told that was not served.
    pub(crate) why: String,
}

/// Why an operation was not served.
enum Failure {
    /// Nothing was written and nothing will be.
    Refused(String),
    /// It may be written, or may yet be.
    Unknown(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let why = error.to_string();
        assert!(!error.is_bad_request(), "{why}");
        match error {
            Error::NotReachable { .. } => Self::Refused(why),
            Error::Problem(problem) if problem.written == Some(Written::No) => Self::Refused(why),
            Error::Problem(_) | Error::Broken { .. } => Self::Unknown(why),
            Error::WatchEnded { .. } | Error::Unreadable(_) | Error::Invalid(_) | Error::MalformedRequest { .. } => {
                panic!("{why}")
            }
        }
    }
}

/// What all clients of a load share.
struct Shared {
    began: Instant,
    stop: AtomicBool,
    /// Every value that is put is another one, so that what is read tells who wrote it.
    serial: AtomicU64,
    /// How often each node was started again.
    boots: Vec<AtomicU64>,
    told: Mutex<Vec<Told>>,
    history: Mutex<History>,
    local_reads: Mutex<Monotone>,
}

impl Shared {
    fn at_ns(&self, at: Instant) -> u64 {
        u64::try_from((at - self.began).as_nanos()).unwrap()
    }
}

/// Clients at work, until stopped.
pub(crate) struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// `per_node` clients of each node, and one that reads each node's own copy.
    pub(crate) fn start(nodes: &[Node], per_node: usize) -> Self {
        let shared = Arc::new(Shared {
            began: now(),
            stop: AtomicBool::new(false),
            serial: AtomicU64::new(0),
            boots: nodes.iter().map(|_| AtomicU64::new(0)).collect(),
            told: Mutex::default(),
            history: Mutex::default(),
            local_reads: Mutex::default(),
        });
        let mut clients = Vec::new();
        for (number, (node, place)) in nodes.iter().enumerate().cycle().take(nodes.len() * per_node).enumerate() {
            let number = u32::try_from(number).unwrap();
            clients.push(tokio::spawn(Session::new(number, node, place.socket(), shared.clone()).run()));
        }
        for (node, place) in nodes.iter().enumerate() {
            clients.push(tokio::spawn(read_locally(node, place.client(), shared.clone())));
        }
        Self { clients, shared }
    }

    /// The node's process is gone; the next is another.
    pub(crate) fn on_killed(&self, node: usize) {
        self.shared.boots[node].fetch_add(1, Ordering::Relaxed);
    }

    /// How many operations that began since then ended so, on that node.
    pub(crate) fn count(&self, node: usize, since: Instant, end: End) -> usize {
        let told = self.shared.told.lock();
        told.iter().filter(|told| told.node == node && told.began >= since && told.end == end).count()
    }

    /// What that node's clients were told of operations that began since then and were not served.
    pub(crate) fn failures(&self, node: usize, since: Instant) -> Vec<String> {
        let told = self.shared.told.lock();
        let failed = |told: &&Told| told.node == node && told.began >= since && told.end != End::Done;
        told.iter().filter(failed).map(|told| format!("after {:?}: {}", told.took, told.why)).collect()
    }

    /// Ends all clients, each after its operation.
    pub(crate) async fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            client.await.unwrap();
        }
    }

    /// Reads all keys once more, by a client of that node, and writes it down.
    pub(crate) async fn read_all(&self, node: usize, client: &Client) {
        let number = LAST_READS + u32::try_from(node).unwrap();
        for key in KEYS {
            let id = self.shared.history.lock().call(number, key, Op::Get, self.shared.at_ns(now()));
            let row = tokio::time::timeout(LAST_READ_WITHIN, async {
                loop {
                    // On a busy machine even a whole cluster may be late.
                    match client.get(key).await {
                        Ok(row) => return row,
                        Err(error) => assert!(error.is_unavailable(), "{error}"),
                    }
                }
            });
            let row = row.await.unwrap_or_else(|_| panic!("{key} cannot be read on n{node}"));
            let read = Outcome::Read(row.map(|row| (row.value.to_vec(), Some(row.upd.0))));
            self.shared.history.lock().returns(id, read, self.shared.at_ns(now()));
        }
    }

    /// All that was asked and told, and how each operation ended.
    pub(crate) fn take(self) -> (History, Vec<Told>) {
        (std::mem::take(&mut *self.shared.history.lock()), std::mem::take(&mut *self.shared.told.lock()))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for client in &self.clients {
            client.abort();
        }
    }
}

impl Told {
    pub(crate) fn ended(&self, end: End) -> bool {
        self.end == end
    }
}

/// One client: one operation after the other, some over HTTP, some over RESP.
struct Session {
    number: u32,
    node: usize,
    http: Client,
    resp: Resp,
    /// The version of each key that this client knows last.
    seen: [Option<i64>; KEYS.len()],
    shared: Arc<Shared>,
}

impl Session {
    fn new(number: u32, node: usize, socket: PathBuf, shared: Arc<Shared>) -> Self {
        let http = Client::builder(&socket).consistency(Consistency::Quorum).timeout(TIMEOUT).answer_within(GIVE_UP);
        let resp = Resp { socket, connection: None };
        Self { number, node, http: http.build(), resp, seen: [None; KEYS.len()], shared }
    }

    async fn run(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            let key = rand::rng().random_range(0..KEYS.len());
            let op = self.choose(key);
            let pause = match self.ask(KEYS[key], op).await {
                Some(Outcome::Read(Some((_, upd)))) | Some(Outcome::Written(upd)) => {
                    self.seen[key] = upd;
                    None
                }
                Some(Outcome::Read(None)) => {
                    self.seen[key] = None;
                    None
                }
                Some(_) => None,
                None => Some(PAUSE),
            };
            let random = || Duration::from_millis(rand::rng().random_range(0..=PAUSE_MS_MAX));
            tokio::time::sleep(pause.unwrap_or_else(random)).await;
        }
    }

    fn choose(&self, key: usize) -> Op {
        let fresh = VALUES_APART * (1 + self.shared.serial.fetch_add(1, Ordering::Relaxed));
        let value = fresh.to_string().into_bytes();
        match rand::rng().random_range(0..10) {
            0..3 => Op::Get,
            3..5 => Op::Put(When::Always, value),
            5..7 => Op::Put(self.seen[key].map_or(When::Absent, When::UpdIs), value),
            7..9 => Op::Add(1),
            _ => Op::Delete(When::Always),
        }
    }

    /// One operation, written down. None where it was not served.
    async fn ask(&mut self, key: &str, op: Op) -> Option<Outcome> {
        let began = now();
        let id = self.shared.history.lock().call(self.number, key, op.clone(), self.shared.at_ns(began));
        let answer = self.perform(key, &op).await;
        let ended = now();
        let (outcome, end, why) = match &answer {
            Ok(outcome) => (outcome.clone(), End::Done, String::new()),
            Err(Failure::Refused(why)) => (Outcome::Refused, End::Refused, format!("{op} of {key}: {why}")),
            Err(Failure::Unknown(why)) => (Outcome::Unknown, End::Unknown, format!("{op} of {key}: {why}")),
        };
        self.shared.history.lock().returns(id, outcome, self.shared.at_ns(ended));
        self.shared.told.lock().push(Told { node: self.node, began, end, took: ended - began, why });
        answer.ok()
    }

    async fn perform(&mut self, key: &str, op: &Op) -> Result<Outcome, Failure> {
        Ok(match op {
            Op::Get => {
                let row = self.http.get(key).await?;
                Outcome::Read(row.map(|row| (row.value.to_vec(), Some(row.upd.0))))
            }
            Op::Put(When::Always, value) => Outcome::Written(Some(self.http.put(key, value.clone()).await?.0)),
            Op::Put(when, value) => {
                let expect = match when {
                    When::UpdIs(upd) => Expect::Upd(outrigger::types::Ballot(*upd)),
                    _ => Expect::Absent,
                };
                match self.http.cas(key, expect, value.clone()).await? {
                    Cas::Written(upd) => Outcome::Written(Some(upd.0)),
                    Cas::Mismatch(current) => Outcome::ConditionFailed(current.map(|upd| upd.0)),
                }
            }
            Op::Add(1) => Outcome::Added(self.resp.ask("INCR", key).await?, None),
            Op::Delete(When::Always) => Outcome::Deleted(Some(self.resp.ask("DEL", key).await? == 1)),
            Op::Add(_) | Op::Delete(_) => unreachable!("never chosen"),
        })
    }
}

/// A connection in the other dialect.
struct Resp {
    socket: PathBuf,
    connection: Option<BufReader<UnixStream>>,
}

impl Resp {
    /// A command that takes one key and answers with a number.
    async fn ask(&mut self, command: &str, key: &str) -> Result<i64, Failure> {
        let answer = tokio::time::timeout(GIVE_UP, self.exchange(command, key)).await;
        answer.unwrap_or_else(|_| Err(Failure::Unknown(format!("no answer in {GIVE_UP:?}"))))
    }

    /// Has the connection out of its slot meanwhile: what fails half-way never gets the answer of another.
    async fn exchange(&mut self, command: &str, key: &str) -> Result<i64, Failure> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let connected = UnixStream::connect(&self.socket).await;
                BufReader::new(connected.map_err(|why| Failure::Refused(why.to_string()))?)
            }
        };
        let broken = |why: std::io::Error| Failure::Unknown(why.to_string());
        let request = format!("*2\r\n${}\r\n{command}\r\n${}\r\n{key}\r\n", command.len(), key.len());
        connection.get_mut().write_all(request.as_bytes()).await.map_err(broken)?;
        let mut line = String::new();
        connection.read_line(&mut line).await.map_err(broken)?;
        let Some(line) = line.strip_suffix("\r\n") else {
            return Err(Failure::Unknown(format!("half an answer: {line:?}")));
        };
        self.connection = Some(connection);
        if let Some(number) = line.strip_prefix(':') {
            return Ok(number.parse().unwrap());
        }
        match line.split(' ').next() {
            Some("-NOQUORUM" | "-BUSY" | "-REJECTED" | "-DISKFULL") => Err(Failure::Refused(line.to_owned())),
            Some("-TIMEOUT" | "-ERR") => Err(Failure::Unknown(line.to_owned())),
            _ => panic!("{command} {key} was answered with {line}"),
        }
    }
}

/// Reads one node's own copy again and again: it never goes back.
async fn read_locally(node: usize, client: Client, shared: Arc<Shared>) {
    let boot = || shared.boots[node].load(Ordering::Relaxed);
    while !shared.stop.load(Ordering::Relaxed) {
        for key in KEYS {
            let before = boot();
            let read = tokio::time::timeout(GIVE_UP, client.get(key)).await;
            let at_ns = shared.at_ns(now());
            // An answer that came while the node was started again may be either process's.
            if let Ok(Ok(row)) = read
                && before == boot()
            {
                let upd = row.map(|row| row.upd.0);
                let read = shared.local_reads.lock().read(&format!("n{node}"), before, key, upd, at_ns);
                read.unwrap_or_else(|story| panic!("{story}"));
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

pub(crate) fn now() -> Instant {
    Instant::now()
}
