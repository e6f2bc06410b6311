//! Everything the driver does, without waiting: each input changes the registers, and what follows from it is queued
//! until [`Core::pump`] hands it to the journal and the peers.
//!
//! ```text
//!   Input / Event / WriterEvent ─► Core ─► acceptor, proposer ─► Sealed effects ─► (fsync) ─► send, commit, decide
//! ```

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::clients::Clients;
use super::disk::Disk;
use super::greeter::Greeter;
use super::peers::{Link, Peer, Stamp};
use super::status::{PeerStatus, QuorumStatus};
use super::{Input, PENDING_FRAMES_MAX, QuorumConfig, Subscribers};
use crate::clock::{Clock, Now};
use crate::cluster::hello::Hello;
use crate::cluster::memory::Standing;
use crate::replication::journal::WriterEvent;
use crate::replication::register::{
    Acceptor, Action, Address, Body, Commit, Learned, Message, OpId, Proposer, Record, Refusal, Sealed, SealedQueue,
};
use crate::replication::wire::{self, Batch};
use crate::store::replicator::{Decision, Frame, Proposal, Rejection};
use crate::store::{self, Manager, StoredRow};
use crate::transport::{Event, Transport};
use crate::types::{Ballot, NodeId, ShardId};

/// Tasks that wait for their shard file to be opened.
const PARKED_TASKS_MAX: usize = 65_536;
/// Peers that wait for a record which is not committed here yet.
const PULLS_MAX: usize = 65_536;
/// Records completed in the background at once.
const SETTLE_AT_ONCE: usize = 256;
/// How old a record gets before this node asks what became of it.
const STALE_AFTER: Duration = Duration::from_secs(1);
/// How long one background completion may take.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);

/// What waits for the journal.
#[derive(Debug)]
enum Effect {
    Send(usize, Message),
    Commit(Commit),
    Done(oneshot::Sender<()>),
}

/// Clients whose record is chosen, at this ballot, and not visible here yet.
#[derive(Debug)]
struct Waiting {
    ballot: Ballot,
    decisions: Vec<(OpId, Decision)>,
}

/// What needs to know the row that its shard file holds.
#[derive(Debug)]
enum Task {
    /// A message to this node's acceptor or learner, from that replica.
    Message(usize, Message),
    /// A round to begin.
    Start(Address),
    /// A record that this node's proposer had chosen.
    Chosen { address: Address, record: Record, decisions: Vec<(OpId, Decision)> },
    /// A row from a peer that this node had missed.
    Install(Address, Record),
}

impl Task {
    fn address(&self) -> &Address {
        match self {
            Self::Message(_, message) => &message.address,
            Self::Start(address) | Self::Chosen { address, .. } | Self::Install(address, _) => address,
        }
    }
}

/// What the driver and its helpers share.
#[derive(Clone)]
pub(super) struct Rooms {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) greeter: Arc<Greeter>,
    pub(super) manager: Arc<Manager>,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) subscribers: Subscribers,
}

pub(super) struct Core {
    config: QuorumConfig,
    me: usize,
    rooms: Rooms,
    acceptor: Acceptor,
    proposer: Proposer,
    disk: Disk,
    /// By replica number; none at this node's own.
    peers: Vec<Option<Peer>>,
    catch_ups: Vec<Option<tokio::task::AbortHandle>>,
    clients: Clients,
    sealed: SealedQueue<Effect>,
    /// Messages of this node to itself.
    local: VecDeque<Message>,
    /// Decisions that wait until their record is visible here.
    waiting: HashMap<Address, Vec<Waiting>>,
    pulls: HashMap<Address, BTreeSet<usize>>,
    parked: HashMap<ShardId, Vec<Task>>,
    parked_tasks: usize,
    /// The last writes before a restart whose fate is open.
    unsettled: HashMap<Address, Ballot>,
    next_op: u64,
    seq: u64,
    barred: Option<String>,
    /// What is wrong with the shard files, as of the last slow tick.
    store_trouble: Option<String>,
    closing: Option<oneshot::Sender<()>>,
    metrics: super::metrics::CoreMetrics,
}

impl Core {
    pub(super) fn new(config: QuorumConfig, rooms: Rooms, acceptor: Acceptor, proposer: Proposer, disk: Disk) -> Self {
        let voters = config.membership.voters();
        let me = voters.iter().position(|voter| *voter == config.node).unwrap_or_default();
        let peers: Vec<_> = voters.iter().map(|node| (*node != config.node).then(|| Peer::new(node.clone()))).collect();
        Self {
            me,
            catch_ups: peers.iter().map(|_| None).collect(),
            peers,
            acceptor,
            proposer,
            disk,
            clients: Clients::default(),
            sealed: SealedQueue::default(),
            local: VecDeque::new(),
            waiting: HashMap::new(),
            pulls: HashMap::new(),
            parked: HashMap::new(),
            parked_tasks: 0,
            unsettled: HashMap::new(),
            next_op: 0,
            // Boots in the high bits: the count rises across restarts without being written down.
            seq: rooms.greeter.boot() << 40,
            barred: None,
            store_trouble: None,
            closing: None,
            metrics: super::metrics::CoreMetrics::default(),
            config,
            rooms,
        }
    }

    /// Applies what the journal knew to be chosen, and marks what it left open.
    pub(super) fn recover(&mut self, chosen: Vec<(Address, Record)>, open: Vec<(Address, Ballot)>) {
        for (address, record) in chosen {
            self.publish(&Commit { address, record });
        }
        for (address, ballot) in open {
            self.rooms.manager.unsettle(&address.shard, &address.key);
            self.unsettled.insert(address, ballot);
        }
        self.update_reachable();
    }

    /// True once everything that was asked of it before it was closed has ended.
    pub(super) fn is_finished(&self) -> bool {
        self.closing.is_some() && self.clients.is_empty()
    }

    /// True while time matters.
    pub(super) fn is_busy(&self) -> bool {
        self.proposer.is_busy()
    }

    pub(super) fn on_input(&mut self, now: Now, input: Input) {
        match input {
            Input::Propose { proposal, reply } => self.propose(now, proposal, reply),
            Input::Opened { shard, result } => self.opened(now, &shard, result),
            Input::Install { rows, done } => {
                for (address, record) in rows {
                    self.run(now, Task::Install(address, record));
                }
                let sealed = self.acceptor.after_all(Effect::Done(done));
                self.take(sealed);
            }
            Input::InStep { peer, rows } => {
                if let Some(Some(peer)) = self.peers.get_mut(peer) {
                    peer.in_step = true;
                    tracing::info!(peer = %peer.node, rows, "in step");
                }
            }
            Input::Synced { before, result } => self.disk.on_synced(now, before, result),
            Input::Close(done) => self.closing = Some(done),
        }
    }

    pub(super) fn on_event(&mut self, now: Now, event: Event) {
        match event {
            Event::Up { node, hello } => self.on_up(&node, &hello),
            Event::Down { node, reason } => {
                let Some(index) = self.index(&node) else { return };
                tracing::debug!(peer = %node, reason, "peer lost");
                if let Some(Some(peer)) = self.peers.get_mut(index) {
                    peer.down();
                }
                self.stop_catching_up(index);
                self.update_reachable();
            }
            Event::Message { node, message } => {
                let Some(from) = self.index(&node) else { return };
                match wire::decode::<Batch>(&message) {
                    Ok(batch) if batch.epoch == self.config.membership.epoch() => self.on_batch(now, from, batch),
                    Ok(batch) => {
                        self.metrics.malformed.increment(1);
                        tracing::warn!(peer = %node, epoch = batch.epoch, "a batch of another epoch was dropped");
                    }
                    Err(malformed) => {
                        self.metrics.malformed.increment(1);
                        tracing::warn!(peer = %node, %malformed, "a batch was dropped");
                    }
                }
            }
        }
    }

    pub(super) fn on_writer(&mut self, event: WriterEvent) {
        match event {
            WriterEvent::Durable { durable, position, rotated_at, closed_segments } => {
                self.acceptor.on_durable(durable);
                self.rooms.greeter.set_durable(self.acceptor.ceiling(), position);
                self.disk.on_durable(rotated_at, closed_segments, &self.rooms);
                for effect in self.sealed.release(durable) {
                    self.effect(effect);
                }
            }
            WriterEvent::Full(error) => self.disk.on_full(&error),
            WriterEvent::RoomAgain => self.disk.on_room(),
            WriterEvent::Remembered => {
                let known = self.disk.on_remembered();
                for peer in self.peers.iter_mut().flatten() {
                    if matches!(peer.link, Link::Meeting(needed) if needed <= known) {
                        peer.link = Link::Up;
                    }
                }
                self.update_reachable();
            }
            WriterEvent::Failed(error) => self.bar(error.to_string()),
        }
    }

    /// Lets time pass for rounds in flight.
    pub(super) fn on_tick(&mut self, now: Now) {
        self.proposer.on_tick(now);
    }

    /// What is done a few times a second, busy or not.
    pub(super) fn on_slow_tick(&mut self, now: Now, waiting: usize) {
        let overdue: Vec<OpId> = self.clients.overdue(now.monotonic);
        for id in overdue {
            self.decide(now, id, Decision::Timeout);
        }
        if self.barred.is_none() && self.reachable() >= self.config.membership.quorum() {
            // What a restart left open is asked about at once: local reads of those keys wait for it.
            let before = now.monotonic.saturating_sub(STALE_AFTER);
            for address in self.acceptor.stale(before, SETTLE_AT_ONCE) {
                self.next_op += 1;
                self.proposer.settle(address, OpId(self.next_op), now.monotonic + SETTLE_TIMEOUT);
            }
        }
        self.store_trouble = self.rooms.manager.trouble();
        self.metrics.inbox.set(waiting as f64);
        self.metrics.update(self.proposer.counts(), self.acceptor.pending(), self.live());
    }

    pub(super) fn status(&self) -> QuorumStatus {
        let peer = |peer: &Peer| PeerStatus {
            node: peer.node.clone(),
            live: peer.is_live(),
            forgot: peer.link == Link::Forgot,
            in_step: peer.in_step,
            storage_id: peer.storage_id,
            clock_skew_us: peer.skew.map(|nanos| nanos / 1_000),
        };
        QuorumStatus {
            peers: self.peers.iter().flatten().map(peer).collect(),
            reachable: self.reachable(),
            quorum: self.config.membership.quorum(),
            barred: self.barred.clone(),
            full: self.full(),
            pending: self.acceptor.pending(),
            unsettled: self.unsettled.len(),
            decisions: self.metrics.decisions,
            ceiling: self.acceptor.ceiling(),
        }
    }

    /// Does everything that follows from what came in, up to what must wait for the disk or a peer.
    pub(super) fn pump(&mut self, now: Now) {
        loop {
            let actions = self.proposer.take_actions();
            if actions.is_empty() && self.local.is_empty() {
                break;
            }
            for action in actions {
                self.act(now, action);
            }
            while let Some(message) = self.local.pop_front() {
                self.receive(now, self.me, message);
            }
        }
        self.disk.append(&mut self.acceptor, now);
        let stamp = self.stamp(now);
        for peer in self.peers.iter_mut().flatten() {
            peer.flush(stamp, &*self.rooms.transport);
        }
    }

    fn propose(&mut self, now: Now, proposal: Proposal, reply: oneshot::Sender<Decision>) {
        let Proposal { shard, key, update, timeout } = proposal;
        if let Some(rejection) = self.unfit(update.is_read()) {
            self.metrics.count(&Decision::Reject(rejection.clone()));
            // A client that has gone needs no answer.
            let _ = reply.send(Decision::Reject(rejection));
            return;
        }
        self.next_op += 1;
        let id = OpId(self.next_op);
        let deadline = now.monotonic + timeout.unwrap_or(self.config.propose_timeout);
        self.clients.insert(id, reply, now.monotonic, deadline, update.is_read());
        self.proposer.propose(Address { shard, key }, id, update, deadline);
    }

    /// Why this node can take no update just now.
    fn unfit(&self, is_read: bool) -> Option<Rejection> {
        if self.closing.is_some() {
            return Some(Rejection::Busy("this node is shutting down".to_owned()));
        }
        if let Some(why) = &self.barred {
            return Some(Rejection::NoQuorum(format!("this node must not vote: {why}")));
        }
        if is_read {
            return None;
        }
        if let Some(why) = self.full() {
            return Some(Rejection::DiskFull(why));
        }
        self.is_overloaded().then(|| Rejection::Busy("committed frames wait for the disk; try again soon".to_owned()))
    }

    fn full(&self) -> Option<String> {
        self.disk.full().map(str::to_owned).or_else(|| self.store_trouble.clone())
    }

    fn is_overloaded(&self) -> bool {
        self.acceptor.pending() >= PENDING_FRAMES_MAX || self.rooms.manager.is_overloaded()
    }

    fn act(&mut self, now: Now, action: Action) {
        match action {
            Action::Start(address) => self.run(now, Task::Start(address)),
            Action::Ask { ballot, message } => {
                // The ballot was issued here: it must be under the durable ceiling before anybody hears of it.
                for to in 0..self.peers.len() {
                    let sealed = self.acceptor.seal(ballot, now, Effect::Send(to, message.clone()));
                    self.take(sealed);
                }
            }
            Action::Chosen { address, record, announce, decisions } => {
                if announce {
                    self.announce(now, &address, record.ballot);
                }
                self.metrics.folded.record(decisions.len() as f64);
                self.run(now, Task::Chosen { address, record, decisions });
            }
            Action::Decide(id, decision) => self.decide(now, id, decision),
        }
    }

    fn announce(&mut self, now: Now, address: &Address, ballot: Ballot) {
        let me = self.me;
        for to in (0..self.peers.len()).filter(|to| *to != me) {
            self.send(now, to, Message { address: address.clone(), body: Body::Commit { ballot } });
        }
    }

    fn on_batch(&mut self, now: Now, from: usize, batch: Batch) {
        if let Some(Some(peer)) = self.peers.get_mut(from) {
            peer.set_skew(batch.wall.saturating_sub(now.wall));
        }
        for message in batch.messages {
            self.receive(now, from, message);
        }
    }

    fn receive(&mut self, now: Now, from: usize, message: Message) {
        match message.body {
            Body::Promised { .. } | Body::Held { .. } | Body::Accepted { .. } | Body::Refused { .. } => {
                if from == self.me || self.peers.get(from).is_some_and(|peer| peer.as_ref().is_some_and(Peer::votes)) {
                    self.proposer.on_message(now, from, message);
                }
            }
            _ => self.run(now, Task::Message(from, message)),
        }
    }

    /// Runs a task with the row that its shard file holds; one whose file is not open waits for it.
    fn run(&mut self, now: Now, task: Task) {
        match self.stored(task.address()) {
            Ok(Some(stored)) => self.run_with(now, task, stored.as_ref()),
            Ok(None) => self.park(task),
            Err(error) => self.bar(format!("cannot read {}: {error}", task.address().shard)),
        }
    }

    /// The row, `None` within where there is none; `None` outside while the file is not open.
    fn stored(&self, address: &Address) -> Result<Option<Option<StoredRow>>, store::Error> {
        let Address { shard, key } = address;
        match self.rooms.manager.cached(shard) {
            Some(open) => match open.stored(key) {
                // Evicted under our hands: open it again.
                Err(store::Error::Closed) => Ok(None),
                read => read.map(Some),
            },
            None if self.rooms.manager.exists(shard) => Ok(None),
            None => Ok(Some(None)),
        }
    }

    fn park(&mut self, task: Task) {
        if self.parked_tasks >= PARKED_TASKS_MAX {
            // As good as a lost message; whoever waits for it asks again or runs into its deadline.
            return;
        }
        let shard = task.address().shard.clone();
        self.parked_tasks += 1;
        let waiting = self.parked.entry(shard.clone()).or_default();
        waiting.push(task);
        if waiting.len() > 1 {
            return;
        }
        let (manager, inputs) = (self.rooms.manager.clone(), self.rooms.inputs.clone());
        tokio::spawn(async move {
            let result = manager.get(&shard).await.map(drop);
            // Nobody listens any more only while the node stops.
            let _ = inputs.send(Input::Opened { shard, result }).await;
        });
    }

    fn opened(&mut self, now: Now, shard: &ShardId, result: Result<(), store::Error>) {
        let tasks = self.parked.remove(shard).unwrap_or_default();
        self.parked_tasks -= tasks.len();
        match result {
            Ok(()) => tasks.into_iter().for_each(|task| self.run(now, task)),
            Err(store::Error::Closed | store::Error::Rejected(_)) => {}
            Err(error) => self.bar(format!("cannot open {shard}: {error}")),
        }
    }

    fn run_with(&mut self, now: Now, task: Task, stored: Option<&StoredRow>) {
        match task {
            Task::Message(from, message) => self.on_message(now, from, message, stored),
            Task::Start(address) => {
                let held = self.acceptor.peek(&address, stored);
                self.proposer.start(now, &address, held);
            }
            Task::Chosen { address, record, decisions } => {
                let ballot = record.ballot;
                if stored.is_some_and(|row| row.ballot >= ballot) {
                    self.settled(&address, ballot);
                    return decisions.into_iter().for_each(|(id, decision)| self.decide(now, id, decision));
                }
                if !decisions.is_empty() {
                    self.waiting.entry(address.clone()).or_default().push(Waiting { ballot, decisions });
                }
                self.learn(now, &address, record, stored);
            }
            Task::Install(address, record) => {
                if let Some(commit) = self.acceptor.install(now, &address, record, stored) {
                    self.metrics.synced_rows.increment(1);
                    self.take(commit.map(Effect::Commit));
                }
            }
        }
    }

    /// What a message to the acceptor or learner of this node comes to.
    fn on_message(&mut self, now: Now, from: usize, message: Message, stored: Option<&StoredRow>) {
        let Message { address, body } = message;
        let answer = match body {
            Body::Prepare { ballot, .. } | Body::Accept { record: Record { ballot, .. }, .. }
                if self.refusal().is_some() =>
            {
                let why = self.refusal().unwrap_or(Refusal::Full);
                let body = Body::Refused { ballot, above: Ballot::ZERO, why };
                return self.send(now, from, Message { address, body });
            }
            Body::Prepare { ballot, holds } => self.acceptor.on_prepare(now, &address, ballot, holds, stored),
            Body::Accept { record, next } => match self.acceptor.on_accept(now, &address, record, next, stored) {
                Ok(answer) => answer,
                Err(conflict) => return self.bar(conflict.to_string()),
            },
            Body::Read { round, holds } if self.barred.is_none() => {
                self.acceptor.on_read(&address, round, holds, stored)
            }
            Body::Commit { ballot } => {
                return match self.acceptor.on_commit(&address, ballot, stored) {
                    Learned::Known => {}
                    Learned::Commit(commit) => self.take(commit.map(Effect::Commit)),
                    Learned::Missing => self.send(now, from, Message { address, body: Body::Pull }),
                };
            }
            Body::Pull => return self.on_pull(now, from, address, stored),
            Body::Chosen { record } => {
                if let Some(commit) = self.acceptor.install(now, &address, record, stored) {
                    self.take(commit.map(Effect::Commit));
                }
                return;
            }
            Body::Read { .. }
            | Body::Promised { .. }
            | Body::Held { .. }
            | Body::Accepted { .. }
            | Body::Refused { .. } => return,
        };
        let answer = answer.map(|body| {
            self.metrics.clock_ahead(&body);
            Effect::Send(from, Message { address, body })
        });
        self.take(answer);
    }

    /// Why this node votes for nothing just now.
    fn refusal(&self) -> Option<Refusal> {
        if self.barred.is_some() {
            return Some(Refusal::Barred);
        }
        (self.disk.full().is_some() || self.is_overloaded()).then_some(Refusal::Full)
    }

    fn on_pull(&mut self, now: Now, from: usize, address: Address, stored: Option<&StoredRow>) {
        match stored {
            Some(row) => self.send(now, from, chosen(address, row)),
            // Chosen, but not on this disk yet: answered when it is.
            None if self.pulls.len() < PULLS_MAX => {
                self.pulls.entry(address).or_default().insert(from);
            }
            None => {}
        }
    }

    /// Commits a record that is chosen, from this node's own vote or from what the round brought.
    fn learn(&mut self, now: Now, address: &Address, record: Record, stored: Option<&StoredRow>) {
        let commit = match self.acceptor.on_commit(address, record.ballot, stored) {
            Learned::Commit(commit) => Some(commit),
            Learned::Known | Learned::Missing => self.acceptor.install(now, address, record, stored),
        };
        if let Some(commit) = commit {
            self.take(commit.map(Effect::Commit));
        }
    }

    fn take(&mut self, sealed: Sealed<Effect>) {
        if let Some(effect) = self.sealed.push(sealed) {
            self.effect(effect);
        }
    }

    fn effect(&mut self, effect: Effect) {
        let now = self.rooms.clock.now();
        match effect {
            Effect::Send(to, message) => self.send(now, to, message),
            Effect::Commit(commit) => self.commit(now, &commit),
            Effect::Done(done) => {
                // Whoever waited for it has gone: so be it.
                let _ = done.send(());
            }
        }
    }

    fn send(&mut self, now: Now, to: usize, message: Message) {
        let stamp = self.stamp(now);
        match self.peers.get_mut(to) {
            Some(Some(peer)) => peer.queue(message, stamp, &*self.rooms.transport),
            _ => self.local.push_back(message),
        }
    }

    /// A chosen record is on this disk: makes it visible, and tells who waits.
    fn commit(&mut self, now: Now, commit: &Commit) {
        self.publish(commit);
        self.acceptor.on_applied(commit);
        let Commit { address, record } = commit;
        self.settled(address, record.ballot);
        if let Some(pulling) = self.pulls.remove(address) {
            let row = StoredRow { op: record.op.clone(), upd: record.upd, ballot: record.ballot };
            for to in pulling {
                self.send(now, to, chosen(address.clone(), &row));
            }
        }
        let Some(waiting) = self.waiting.get_mut(address) else { return };
        let ready: Vec<_> = waiting.extract_if(.., |waiting| waiting.ballot <= record.ballot).collect();
        if waiting.is_empty() {
            self.waiting.remove(address);
        }
        for (id, decision) in ready.into_iter().flat_map(|ready| ready.decisions) {
            self.decide(now, id, decision);
        }
    }

    fn publish(&mut self, commit: &Commit) {
        self.seq += 1;
        let Commit { address: Address { shard, key }, record } = commit;
        let Record { ballot, upd, op, .. } = record.clone();
        let frame = Frame { shard: shard.clone(), seq: self.seq, key: key.clone(), op, upd, ballot };
        for subscriber in self.rooms.subscribers.read().iter() {
            subscriber.on_commit(&frame);
        }
    }

    fn settled(&mut self, address: &Address, ballot: Ballot) {
        if self.unsettled.get(address).is_some_and(|open| *open <= ballot) {
            self.unsettled.remove(address);
            self.rooms.manager.settle(&address.shard, &address.key);
        }
    }

    fn decide(&mut self, now: Now, id: OpId, decision: Decision) {
        // Background completions have no client.
        let Some(client) = self.clients.remove(id) else { return };
        self.metrics.count(&decision);
        self.metrics.took(client.is_read, now.monotonic.saturating_sub(client.started));
        let _ = client.reply.send(decision);
    }

    fn on_up(&mut self, node: &NodeId, hello: &[u8]) {
        let Some(index) = self.index(node) else { return };
        if let Some(accused) = self.rooms.greeter.accused() {
            self.bar(accused);
        }
        let memories = self.disk.remember(self.rooms.greeter.take_unsaved());
        let standing = self.rooms.greeter.standing(node);
        let Some(Some(peer)) = self.peers.get_mut(index) else { return };
        peer.storage_id = Hello::decode(hello).ok().map(|hello| hello.storage_id);
        peer.in_step = false;
        peer.link = match (standing, memories) {
            (Standing::Forgot { reason }, _) => {
                tracing::error!(peer = %node, reason, "the votes of this peer do not count: its disk has forgotten");
                Link::Forgot
            }
            (Standing::Good, Some(needed)) => Link::Meeting(needed),
            (Standing::Good, None) => Link::Up,
        };
        tracing::debug!(peer = %node, "peer found");
        if peer.link != Link::Forgot {
            self.catch_up(index, node.clone());
        }
        self.update_reachable();
    }

    fn catch_up(&mut self, index: usize, node: NodeId) {
        self.stop_catching_up(index);
        let task = tokio::spawn(super::catch_up::catch_up(index, node, self.rooms.clone()));
        if let Some(slot) = self.catch_ups.get_mut(index) {
            *slot = Some(task.abort_handle());
        }
    }

    fn stop_catching_up(&mut self, index: usize) {
        if let Some(task) = self.catch_ups.get_mut(index).and_then(Option::take) {
            task.abort();
        }
    }

    /// Rule 12: stops voting for good, and says so.
    fn bar(&mut self, why: String) {
        if self.barred.is_some() {
            return;
        }
        tracing::error!(why, "this node stops voting");
        self.disk.bar(&why);
        self.barred = Some(why);
        self.update_reachable();
    }

    pub(super) fn bar_at_start(&mut self, damage: Option<String>) {
        if let Some(why) = damage {
            self.bar(why);
        }
    }

    fn update_reachable(&mut self) {
        self.proposer.set_reachable(if self.barred.is_some() { 0 } else { self.reachable() });
    }

    fn reachable(&self) -> usize {
        usize::from(self.barred.is_none()) + self.peers.iter().flatten().filter(|peer| peer.votes()).count()
    }

    fn live(&self) -> usize {
        self.peers.iter().flatten().filter(|peer| peer.is_live()).count()
    }

    fn stamp(&self, now: Now) -> Stamp {
        Stamp { epoch: self.config.membership.epoch(), wall: now.wall }
    }

    fn index(&self, node: &NodeId) -> Option<usize> {
        self.config.membership.voters().iter().position(|voter| voter == node)
    }

    /// Says that it has ended, to who closed it.
    pub(super) fn finish(mut self) {
        for task in self.catch_ups.iter_mut().filter_map(Option::take) {
            task.abort();
        }
        let closing = self.closing.take();
        // The journal's thread ends here, after everything that was submitted.
        drop(self);
        if let Some(done) = closing {
            let _ = done.send(());
        }
    }
}

fn chosen(address: Address, row: &StoredRow) -> Message {
    let StoredRow { op, upd, ballot } = row.clone();
    let record = Record { ballot, upd, op, lineage: crate::replication::register::Lineage::default() };
    Message { address, body: Body::Chosen { record } }
}
