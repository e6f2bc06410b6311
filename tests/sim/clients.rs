//! The clients: what they ask of the node beside them, and what they are told, in the order of real time; and watchers,
//! which ask for nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use outrigger::api::Service;
use outrigger::api::command::{Address, Consistency, Get, Write};
use outrigger::api::error::{ApiError, Written};
use outrigger::api::watch::{Told as Watched, Watching};
use outrigger::store::update::{Change, Condition, Outcome as Told, Row, Update, Verdict};
use outrigger::types::{Ballot, Key, NodeId, ShardId, Value};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::bugs::Bug;
use crate::history::{History, Op, Outcome, When};
use crate::invariants::outbox::Acknowledged;
use crate::invariants::visible::{self, Shown};
use crate::invariants::{forgotten, monotone, watch};
use crate::linearizable::is_shared;
use crate::monotone::Monotone;
use crate::program::Handle;
use crate::sometimes::sometimes;
use crate::story::{self, tell};

/// Clients of each node; one more reads locally.
const CLIENTS: u32 = 2;
/// So much that a sum tells what it is made of.
const ADDED_MAX: i64 = 1_000_000_000;
const THINK_MS_MAX: u64 = 150;
const READ_EVERY_MS_MAX: u64 = 60;
/// A watcher hangs up after so many portions, at most; and is away, or does not listen, for so long.
const PORTIONS_MAX: u64 = 60;
const AWAY_MS_MAX: u64 = 800;
/// A watcher that is a bug misses one change in so many.
const DEAF_ONE_IN: u32 = 20;
const TIMEOUT_MS: std::ops::Range<u64> = 300..2_000;
/// How long after the last request nobody waits for an answer any more.
pub(crate) const ANSWERED_WITHIN: Duration = Duration::from_secs(4);
/// Shards, and keys of each: few, so that clients meet.
const SHARDS: [(&str, &str); 2] = [("acme", "payments"), ("zeta", "mail")];
const KEYS: [&str; 4] = ["a", "b", "sum-a", "sum-b"];

/// What was asked and answered in a world.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Inner>>);

#[derive(Default)]
pub(crate) struct Inner {
    pub(crate) history: History,
    monotone: Monotone,
    pub(crate) watched: watch::Watched,
    /// Rises with every event: one order for all.
    clock: u64,
    clients: u32,
    /// Quorum operations that succeeded, by node.
    pub(crate) done: BTreeMap<NodeId, u64>,
    pub(crate) shown: Shown,
    pub(crate) acknowledged: Acknowledged,
    /// How many of the blind writes need one node alone.
    pub(crate) local: f64,
    forgotten: forgotten::Forgotten,
    /// Something is to happen when the next write is acknowledged, at that very moment.
    pub(crate) trap: Trap,
    /// The key for which every other request is, where there is one.
    pub(crate) hot: Option<usize>,
    /// Some applications use one shard alone; which do, where there are such.
    pub(crate) choosy: Option<usize>,
    /// Nobody asks for anything more.
    pub(crate) quiet: bool,
    pub(crate) bug: Option<Bug>,
}

/// What waits for an acknowledgement.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Trap {
    #[default]
    None,
    Set,
    Sprung,
}

impl Inner {
    fn tick(&mut self) -> u64 {
        self.clock = (self.clock + 1).max(story::now().as_nanos() as u64);
        self.clock
    }
}

impl Log {
    pub(crate) fn with<T>(&self, see: impl FnOnce(&mut Inner) -> T) -> T {
        see(&mut self.0.lock())
    }
}

fn shards() -> impl Iterator<Item = ShardId> {
    SHARDS.iter().map(|(org, namespace)| ShardId::parse(org, namespace).expect("a shard"))
}

/// Every key, as the history names it.
pub(crate) fn addresses() -> Vec<(String, Address)> {
    let address = |shard: &ShardId, key: &str| {
        let at = Address { shard: shard.clone(), key: Key::parse(key).expect("a key") };
        (format!("{shard}/{key}"), at)
    };
    shards().flat_map(|shard| KEYS.map(|key| address(&shard, key))).collect()
}

pub(crate) fn start(
    node: &NodeId,
    boot: u64,
    service: &Arc<Service>,
    handle: &Handle,
    log: &Log,
    mut random: StdRng,
) -> Vec<JoinHandle<()>> {
    let mut clients = Vec::new();
    // An application that has no use for all shards.
    let mut used: Vec<ShardId> = shards().collect();
    if let Some(one) = log.with(|log| log.choosy).map(|by| (usize::from(node.as_str().as_bytes()[1]) + by) % 3)
        && one < used.len()
    {
        used = vec![used.swap_remove(one)];
    }
    let addresses: Vec<_> = addresses().into_iter().filter(|(_, at)| used.contains(&at.shard)).collect();
    for _ in 0..CLIENTS {
        let number = log.with(|log| {
            log.clients += 1;
            log.clients
        });
        let random = StdRng::seed_from_u64(random.random());
        let (node, service, log) = (node.clone(), service.clone(), log.clone());
        let client = Client { node, number, service, log, random, addresses: addresses.clone(), made: 0 };
        clients.push(tokio::spawn(client.run()));
    }
    let reads = StdRng::seed_from_u64(random.random());
    let (handle, at) = (handle.clone(), addresses.clone());
    clients.push(tokio::spawn(read_locally(node.clone(), boot, service.clone(), handle, log.clone(), at, reads)));
    for shard in used {
        let random = StdRng::seed_from_u64(random.random());
        let (node, service, log) = (node.clone(), service.clone(), log.clone());
        clients.push(tokio::spawn(Watcher { node, boot, shard, service, log, random }.run()));
    }
    clients
}

struct Client {
    node: NodeId,
    number: u32,
    service: Arc<Service>,
    log: Log,
    random: StdRng,
    addresses: Vec<(String, Address)>,
    made: u64,
}

impl Client {
    async fn run(mut self) {
        let addresses = std::mem::take(&mut self.addresses);
        let mut seen: Vec<Option<i64>> = vec![None; addresses.len()];
        loop {
            sleep(Duration::from_millis(self.random.random_range(0..=THINK_MS_MAX))).await;
            if self.log.with(|log| log.quiet) {
                continue;
            }
            let hot = self.log.with(|log| log.hot).filter(|hot| *hot < addresses.len() && self.random.random_bool(0.5));
            let place = hot.unwrap_or_else(|| self.random.random_range(0..addresses.len()));
            let (name, at) = &addresses[place];
            let op = self.choose(name, seen[place]);
            let local = self.log.with(|log| log.local);
            if let Op::Put(When::Always, _) | Op::Delete(When::Always) = op
                && self.random.random_bool(local)
            {
                self.write_locally(name, at.clone(), op).await;
                continue;
            }
            if let Some(upd) = self.carry_out(name, at.clone(), op).await {
                seen[place] = upd;
            }
        }
    }

    fn choose(&mut self, name: &str, seen: Option<i64>) -> Op {
        self.made += 1;
        let value = format!("{}-{}", self.number, self.made).into_bytes();
        if name.contains("sum") {
            return if self.random.random_bool(0.7) {
                Op::Add(self.random.random_range(1..=ADDED_MAX))
            } else {
                Op::Get
            };
        }
        match (self.random.random_range(0..10), seen) {
            (0..=2, _) => Op::Get,
            (3..=5, _) => Op::Put(When::Always, value),
            (6, _) => Op::Put(When::Absent, value),
            (7..=8, Some(upd)) => Op::Put(When::UpdIs(upd), value),
            (7..=8, None) => Op::Put(When::Absent, value),
            _ => Op::Delete(When::Always),
        }
    }

    /// Returns the version that is there now, where that was told.
    async fn carry_out(&mut self, name: &str, at: Address, op: Op) -> Option<Option<i64>> {
        let timeout = Some(Duration::from_millis(self.random.random_range(TIMEOUT_MS)));
        let number = self.number;
        let (id, bug) = self.log.with(|log| {
            let now = log.tick();
            (log.history.call(number, name, op.clone(), now), log.bug)
        });
        let told = if op == Op::Get {
            let consistency = if bug == Some(Bug::LocalReads) { Consistency::Local } else { Consistency::Quorum };
            let read = self.service.get(Get { at, consistency, timeout }).await;
            read.map(|row| Outcome::Read(row.map(|row| (row.value.as_bytes().to_vec(), Some(row.upd.0)))))
        } else {
            let consistency = Consistency::Quorum;
            let write = Write { at, update: update(&op), consistency, timeout };
            let mut written = self.service.write(write.clone()).await;
            if bug == Some(Bug::BlindRetries) && matches!(written, Err(ApiError::Timeout(_))) {
                written = self.service.write(write).await;
            }
            written.map(|told| outcome(&op, told))
        };
        let outcome = told.unwrap_or_else(|error| self.failed(&error));
        tell!("client {number}: {name}: {op} -> {outcome}");
        let upd = known_version(&outcome);
        self.log.with(|log| {
            let now = log.tick();
            if let Outcome::Read(Some((value, Some(upd)))) = &outcome
                && !is_shared(*upd)
            {
                log.acknowledged.seen(name, value, *upd);
            }
            if !matches!(outcome, Outcome::Refused | Outcome::Unknown) {
                *log.done.entry(self.node.clone()).or_default() += 1;
            }
            if log.trap == Trap::Set && matches!(outcome, Outcome::Written(_) | Outcome::Added(..)) {
                log.trap = Trap::Sprung;
            }
            if let Some(Some(upd)) = upd.filter(|_| bug != Some(Bug::LocalReads)) {
                log.shown.told(&self.node, name, upd);
            }
            log.history.returns(id, outcome, now);
        });
        upd
    }

    /// Writes on this node alone. To who asks a quorum such a write takes effect at any time after its call, or never.
    async fn write_locally(&mut self, name: &str, at: Address, op: Op) {
        let (number, timeout) = (self.number, Some(Duration::from_millis(self.random.random_range(TIMEOUT_MS))));
        self.log.with(|log| {
            let now = log.tick();
            log.history.call(number, name, op.clone(), now);
        });
        let told =
            self.service.write(Write { at, update: update(&op), consistency: Consistency::Local, timeout }).await;
        tell!("client {number}: {name}: {op}, here alone -> {:?}", told.as_ref().map(|told| &told.verdict));
        let Ok(told) = told else { return };
        sometimes!("a local write was accepted");
        self.log.with(|log| {
            if log.trap == Trap::Set {
                log.trap = Trap::Sprung;
            }
            if let (Op::Put(_, value), Some(row)) = (&op, &told.after) {
                log.shown.told(&self.node, name, row.upd.0);
                log.acknowledged.told(&self.node, name, row.upd.0, value);
            }
        });
    }

    fn failed(&self, error: &ApiError) -> Outcome {
        sometimes!(matches!(error, ApiError::NoQuorum(_)), "a write was refused for want of a quorum");
        sometimes!(matches!(error, ApiError::DiskFull(_)), "a write was refused by a full disk");
        match error.row().written {
            Written::No => Outcome::Refused,
            Written::Unknown => {
                sometimes!("the fate of a write was unknown");
                Outcome::Unknown
            }
        }
    }
}

fn update(op: &Op) -> Update {
    let condition = |when: &When| match when {
        When::Always => Condition::Always,
        When::Absent => Condition::Absent,
        When::UpdIs(upd) => Condition::UpdIs(Ballot(*upd)),
    };
    match op {
        Op::Get => Update::read(),
        Op::Put(when, value) => Update { condition: condition(when), change: Change::Put(Value::from(value.clone())) },
        Op::Delete(when) => Update { condition: condition(when), change: Change::Del },
        Op::Add(by) => Update::always(Change::Add(*by)),
    }
}

fn outcome(op: &Op, told: Told) -> Outcome {
    let upd = |row: &Option<Row>| row.as_ref().map(|row| row.upd.0);
    match (op, told.verdict) {
        (_, Verdict::ConditionFailed) => {
            sometimes!("a condition failed");
            Outcome::ConditionFailed(upd(&told.before))
        }
        (Op::Delete(_), verdict) => Outcome::Deleted(Some(verdict == Verdict::Written)),
        (Op::Add(_), _) => {
            let row = told.after.expect("a sum");
            let sum = String::from_utf8_lossy(row.value.as_bytes()).parse().expect("a number");
            Outcome::Added(sum, Some(row.upd.0))
        }
        _ => Outcome::Written(upd(&told.after)),
    }
}

fn known_version(outcome: &Outcome) -> Option<Option<i64>> {
    match outcome {
        Outcome::Read(row) => Some(row.as_ref().and_then(|(_, upd)| *upd)),
        Outcome::Written(upd) | Outcome::Added(_, upd) | Outcome::ConditionFailed(upd) => Some(*upd),
        Outcome::Deleted(_) => Some(None),
        Outcome::Present | Outcome::Refused | Outcome::Unknown => None,
    }
}

async fn read_locally(
    node: NodeId,
    boot: u64,
    service: Arc<Service>,
    handle: Handle,
    log: Log,
    addresses: Vec<(String, Address)>,
    mut random: StdRng,
) {
    loop {
        sleep(Duration::from_millis(random.random_range(1..=READ_EVERY_MS_MAX))).await;
        let (name, at) = &addresses[random.random_range(0..addresses.len())];
        let get = Get { at: at.clone(), consistency: Consistency::Local, timeout: None };
        let told = log.with(|log| {
            // Only replicas are waited for: a copy is as old as what its node was told last.
            if !log.shown.is_harmed(&node) && handle.replicates(&at.shard) {
                log.forgotten.look(&node, &handle.manager, name, at);
            }
            log.shown.so_far(&node, name)
        });
        let Ok(row) = service.get(get).await else { continue };
        // Asked of a quorum, as a restart left it open here, and answered from within a round.
        if row.as_ref().is_some_and(|row| is_shared(row.upd.0)) {
            continue;
        }
        let upd = row.as_ref().map(|row| row.upd.0);
        if let Some(row) = &row {
            log.with(|log| log.acknowledged.seen(name, row.value.as_bytes(), row.upd.0));
        }
        visible::hold(&node, name, told, upd);
        log.with(|log| {
            let now = log.tick();
            monotone::check(&mut log.monotone, &node, boot, name, upd, now);
        });
    }
}

/// Watches one shard for as long as its node runs; hangs up now and then, and goes on where it was.
struct Watcher {
    node: NodeId,
    boot: u64,
    shard: ShardId,
    service: Arc<Service>,
    log: Log,
    random: StdRng,
}

impl Watcher {
    async fn run(mut self) {
        loop {
            let since = self.log.with(|log| log.watched.id(&self.node, &self.shard));
            // Refused while a restart left keys open, or while the node stops.
            if let Ok(watching) = self.service.watch(&self.shard, "", since).await {
                self.log.with(|log| log.watched.begins(&self.node, self.boot, &self.shard, watching.is_resumed()));
                self.listen(watching).await;
            }
            sleep(Duration::from_millis(self.random.random_range(0..=AWAY_MS_MAX))).await;
        }
    }

    async fn listen(&mut self, mut watching: Watching) {
        for _ in 0..self.random.random_range(1..=PORTIONS_MAX) {
            let Some(Ok(portion)) = watching.next().await else { return };
            for told in portion {
                let is_change = matches!(&told, Watched::Put { id: Some(_), .. } | Watched::Del { .. });
                let is_deaf = self.log.with(|log| log.bug == Some(Bug::DeafWatchers));
                if is_deaf && is_change && self.random.random_ratio(1, DEAF_ONE_IN) {
                    continue;
                }
                self.log.with(|log| log.watched.told(&self.node, &self.shard, told));
            }
            if self.random.random_bool(0.05) {
                sleep(Duration::from_millis(self.random.random_range(0..=AWAY_MS_MAX))).await;
            }
        }
    }
}
