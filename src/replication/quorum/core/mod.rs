//! Everything the driver does, without waiting: each input changes the registers, and what follows from it is queued
//! until [`Core::pump`] hands it to the journal and the peers.
//!
//! ```text
//!   Input / Event / WriterEvent ─► Core ─► acceptor, proposer ─► Sealed effects ─► (fsync) ─► send, commit, decide
//! ```

mod comparing;
mod configuration;
mod floors;
mod homes;
mod meeting;
mod outbox;
mod settling;
mod tasks;
mod time;
mod votes;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use tokio::sync::oneshot;

use self::configuration::Configuration;
use self::homes::{Contended, Forwarded};
use self::settling::Settling;
use self::tasks::Task;
use super::clients::{CLIENTS_MAX, Clients, Reply};
use super::disk::Disk;
use super::peers::{Link, Peer};
use super::status::{PeerStatus, QuorumStatus};
use super::{Input, Installed, PENDING_BYTES_MAX, PENDING_FRAMES_MAX, QuorumConfig, Rooms};
use crate::clock::{Clock, Now};
use crate::replication::journal::WriterEvent;
use crate::replication::outbox::Outbox;
use crate::replication::register::{
    Acceptor, Action, Address, Body, Commit, Message, OpId, Proposer, Record, SealedQueue,
};
use crate::replication::wire::{self, Batch};
use crate::store::replicator::{Decision, Proposal, Rejection};
use crate::transport::Event;
use crate::types::{Ballot, NodeId, ShardId, StorageId};

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
    /// A message of this epoch; to nobody where it asks for a vote or is one, and there is another by then.
    Send {
        epoch: u64,
        to: usize,
        message: Message,
    },
    Commit(Commit),
    Accepted(outbox::Accepted),
    Done(oneshot::Sender<()>),
}

/// Clients whose record is chosen, at this ballot, and not visible here yet.
#[derive(Debug)]
struct Waiting {
    ballot: Ballot,
    decisions: Vec<(OpId, Decision)>,
}

pub(super) struct Core {
    config: QuorumConfig,
    configuration: Configuration,
    /// This node's own slot; none as long as it is no member.
    me: Option<usize>,
    rooms: Rooms,
    acceptor: Acceptor,
    proposer: Proposer,
    disk: Disk,
    /// The other members, by their slots.
    peers: BTreeMap<usize, Peer>,
    /// Who is connected, members and others, with which disk.
    connected: BTreeMap<NodeId, StorageId>,
    /// What was voted for when the joint epoch was installed and is open still.
    inherited: BTreeMap<Address, Ballot>,
    /// Those who compare rows with us and whose connection this driver has not heard of yet; bounded by the calls
    /// served at once.
    unmet: Vec<(NodeId, oneshot::Sender<()>)>,
    clients: Clients,
    outbox: Outbox,
    sealed: SealedQueue<Effect>,
    /// Messages of this node to itself.
    local: VecDeque<Message>,
    /// Decisions that wait until their record is visible here.
    waiting: HashMap<Address, Vec<Waiting>>,
    /// Who waits for a record that is chosen but not on this disk yet, from which ballot on.
    pulls: HashMap<Address, BTreeMap<usize, Ballot>>,
    contended: Contended,
    forwarded: Forwarded,
    parked: HashMap<ShardId, Vec<Task>>,
    parked_tasks: usize,
    /// A chosen record was let go for want of room: rows are compared anew once there is some.
    missed: bool,
    /// The last writes before a restart whose fate is open.
    unsettled: HashMap<Address, Ballot>,
    /// Who waits until what was accepted before is committed.
    settling: Settling,
    next_op: u64,
    seq: u64,
    barred: Option<String>,
    /// What is wrong with the shard files, as of the last slow tick.
    store_trouble: Option<String>,
    /// Takes no more updates, and tells these once none is under way.
    is_retiring: bool,
    retired: Vec<oneshot::Sender<()>>,
    closing: Option<oneshot::Sender<()>>,
    /// Wall clock less monotonic clock, when last looked at, in nanoseconds.
    wall_offset: Option<i64>,
    /// Whether it can serve may have changed since that was last shown.
    has_news: bool,
    metrics: super::metrics::CoreMetrics,
}

impl Core {
    pub(super) fn new(
        config: QuorumConfig,
        installed: Installed,
        rooms: Rooms,
        acceptor: Acceptor,
        proposer: Proposer,
        disk: Disk,
    ) -> Self {
        let Installed { membership, row } = installed;
        let others = membership.members().iter().filter(|member| member.node != config.node);
        Self {
            me: rooms.me(),
            peers: others.map(|member| (member.replica(), Peer::new(member.node.clone()))).collect(),
            connected: BTreeMap::new(),
            inherited: BTreeMap::new(),
            configuration: Configuration::new(membership, row),
            acceptor,
            proposer,
            disk,
            unmet: Vec::new(),
            clients: Clients::default(),
            outbox: Outbox::new(config.outbox),
            sealed: SealedQueue::default(),
            local: VecDeque::new(),
            waiting: HashMap::new(),
            pulls: HashMap::new(),
            contended: Contended::default(),
            forwarded: Forwarded::default(),
            parked: HashMap::new(),
            parked_tasks: 0,
            missed: false,
            unsettled: HashMap::new(),
            settling: Settling::default(),
            // Boots in the high bits here too: an answer to a former self must not be taken for one's own.
            next_op: rooms.greeter.boot() << 40,
            // Boots in the high bits: the count rises across restarts without being written down.
            seq: rooms.greeter.boot() << 40,
            barred: None,
            store_trouble: None,
            is_retiring: false,
            retired: Vec::new(),
            closing: None,
            wall_offset: None,
            has_news: false,
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
        if self.membership().is_joint() {
            self.inherited = open.iter().cloned().collect();
        }
        for (address, ballot) in open {
            self.rooms.manager.unsettle(&address.shard, &address.key);
            self.unsettled.insert(address, ballot);
        }
        self.let_votes_go(self.rooms.clock.now());
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
            Input::Accept { proposal, reply } => self.accept(now, proposal, reply),
            Input::Opened { shard, result } => self.opened(now, &shard, result),
            Input::Install { rows, done } => {
                let mut parked = false;
                for (address, record) in rows {
                    let shard = address.shard.clone();
                    self.run(now, Task::Install(address, record));
                    parked |= self.parked.contains_key(&shard);
                }
                if parked {
                    // Not taken in yet: who waits is not told so, and compares again.
                    return;
                }
                let sealed = self.acceptor.after_all(Effect::Done(done));
                self.take(now, sealed);
            }
            Input::CaughtUp { peer, task, rows } => self.caught_up(peer, task, rows),
            Input::Compared { peer, task, same } => self.compared(peer, task, same),
            Input::Look { mine, theirs } => self.look(now, mine, &theirs),
            Input::LookAt { peer, mine, theirs } => self.look_at(now, &peer, Some(mine), Some(theirs)),
            Input::Epochs { reply } => {
                // Whoever asked and has gone needs no answer.
                let _ = reply.send(self.peers.iter().map(|(slot, peer)| (*slot, peer.epoch)).collect());
            }
            Input::Meet { peer, met } => self.meet(now, &peer, met),
            Input::Settle { shard, done } => self.settle_upto(now, &shard, Ballot(i64::MAX), done),
            Input::Inherited { epoch, slot, done } => self.settle_inherited(now, epoch, slot, done),
            Input::Floors(asked) => self.on_floors(now, asked),
            Input::PromiseAbove { ballot, done } => self.promise_above(now, ballot, done),
            Input::Voters { reply } => {
                // Whoever asked and has gone needs no answer.
                let _ = reply.send(self.voters());
            }
            Input::Synced { before, result } => self.disk.on_synced(now, before, result),
            Input::Connected { reply } => {
                let slots = self.peers.iter().filter(|(_, peer)| peer.is_live()).map(|(slot, _)| *slot);
                // Whoever asked and has gone needs no answer.
                let _ = reply.send(slots.chain(self.me).collect());
            }
            Input::Avoid(nodes) => self.avoid(&nodes),
            Input::Retire(done) => {
                self.is_retiring = true;
                self.retired.push(done);
            }
            Input::Close(done) => self.closing = Some(done),
        }
    }

    pub(super) fn on_event(&mut self, now: Now, event: Event) {
        match event {
            Event::Up { node, hello } => self.on_up(now, &node, &hello),
            Event::Down { node, reason } => {
                let index = self.index(&node);
                self.connected.remove(&node);
                self.rooms.greeter.lost(&node);
                tracing::debug!(peer = %node, reason, "peer lost");
                let Some(index) = index else { return };
                self.note_votes();
                if let Some(peer) = self.peers.get_mut(&index) {
                    peer.down();
                }
                self.home_lost(now, index);
                self.update_reachable();
            }
            Event::Message { node, message } => match (wire::decode::<Batch>(&message), self.index(&node)) {
                (Ok(batch), Some(from)) => self.on_batch(now, from, batch),
                (Ok(batch), None) => self.on_guest(now, &node, batch),
                (Err(malformed), _) => {
                    self.metrics.malformed.increment(1);
                    tracing::warn!(peer = %node, %malformed, "a batch was dropped");
                }
            },
        }
    }

    pub(super) fn on_writer(&mut self, now: Now, event: WriterEvent) {
        match event {
            WriterEvent::Durable { durable, position, rotated_at, closed_segments } => {
                self.acceptor.on_durable(durable);
                self.rooms.greeter.set_durable(self.acceptor.ceiling(), position);
                let synced_before = self.disk.on_durable(now, rotated_at, closed_segments);
                for effect in self.sealed.release(durable) {
                    self.effect(now, effect);
                }
                // Only now, as what was just committed may be in an old segment.
                if let Some(before) = synced_before {
                    self.sync_files(before);
                }
            }
            WriterEvent::Full(error) => {
                self.disk.on_full(&error);
                self.has_news = true;
            }
            WriterEvent::RoomAgain => {
                self.disk.on_room();
                self.has_news = true;
            }
            WriterEvent::Remembered => {
                let known = self.disk.on_remembered();
                for peer in self.peers.values_mut() {
                    if matches!(peer.link, Link::Meeting(needed) if needed <= known) {
                        peer.link = Link::Up;
                    }
                }
                self.update_reachable();
            }
            WriterEvent::Failed(error) => {
                self.disk.on_failed();
                self.bar(error.to_string());
            }
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
            self.decide(now, id, Decision::Timeout, Ballot::ZERO);
        }
        if self.barred.is_none() && self.me.is_some() {
            // What a restart left open is asked about at once: local reads of those keys wait for it.
            let before = now.monotonic.saturating_sub(STALE_AFTER);
            for address in self.acceptor.stale(before, SETTLE_AT_ONCE) {
                self.next_op += 1;
                self.proposer.settle(address, OpId(self.next_op), now.monotonic + SETTLE_TIMEOUT);
            }
        }
        if self.missed && self.has_room() {
            self.missed = false;
            self.compare_anew();
        }
        self.peers.values_mut().for_each(Peer::unblock);
        self.note_votes();
        self.store_trouble = self.rooms.manager.trouble();
        if let Some(failure) = self.rooms.manager.failure() {
            self.bar(failure.without_path());
        }
        self.metrics.inbox.set(waiting as f64);
        self.metrics.update(self.proposer.counts(), self.acceptor.pending(), self.live());
        self.metrics.show_outbox(&self.outbox_status(now));
    }

    /// True where whether it can serve may have changed since the last call.
    pub(super) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.has_news)
    }

    pub(super) fn status(&self) -> QuorumStatus {
        let peer = |(slot, peer): (&usize, &Peer)| PeerStatus {
            node: peer.node.clone(),
            slot: *slot,
            is_voter: self.membership().is_voter(*slot),
            live: peer.is_live(),
            forgot: peer.link == Link::Forgot,
            caught_up: peer.caught_up,
            in_step: peer.in_step,
            storage_id: peer.storage_id,
            clock_skew_us: peer.skew.map(|nanos| nanos / 1_000),
        };
        QuorumStatus {
            peers: self.peers.iter().map(peer).collect(),
            reachable: self.reachable().into_iter().filter(|slot| self.membership().is_voter(*slot)).count(),
            not_joined: self.not_joined(),
            not_replaced: self.not_replaced(),
            no_quorum: self.no_quorum(),
            not_compared: self.not_compared(),
            barred: self.barred.clone(),
            full: self.full(),
            pending: self.acceptor.pending(),
            unsettled: self.unsettled.len(),
            decisions: self.metrics.decisions,
            outbox: self.outbox_status(self.rooms.clock.now()),
            forwarded: self.metrics.forwarded,
            ceiling: self.acceptor.ceiling(),
            clock_correction_us: self.rooms.clock.correction() / 1_000,
        }
    }

    /// Does everything that follows from what came in, up to what must wait for the disk or a peer.
    pub(super) fn pump(&mut self, now: Now) {
        self.drain(now);
        loop {
            let actions = self.proposer.take_actions();
            if actions.is_empty() && (self.local.is_empty() || self.me.is_none()) {
                break;
            }
            for action in actions {
                self.act(now, action);
            }
            while let Some((me, message)) = self.me.and_then(|me| Some((me, self.local.pop_front()?))) {
                self.receive(now, me, message);
            }
        }
        self.disk.append(&mut self.acceptor, || self.outbox.entries(), now);
        let stamp = self.stamp(now);
        for peer in self.peers.values_mut() {
            peer.flush(stamp, &*self.rooms.transport);
        }
        if self.take_back_unsent() {
            return self.pump(now);
        }
        if self.clients.is_empty() && self.is_handed_on() {
            for done in self.retired.drain(..) {
                // Whoever waited and has gone needs no answer.
                let _ = done.send(());
            }
        }
    }

    /// Syncs the shard files, so that the journal can give up what is before that batch.
    fn sync_files(&self, before: u64) {
        let (manager, inputs) = (self.rooms.manager.clone(), self.rooms.inputs.clone());
        tokio::spawn(async move {
            let synced = crate::blocking::spawn(move || manager.sync_all()).await;
            // Nobody listens any more only while the node stops.
            let _ =
                inputs.send(Input::Synced { before, result: synced.unwrap_or(Err(crate::store::Error::Closed)) }).await;
        });
    }

    fn propose(&mut self, now: Now, proposal: Proposal, reply: oneshot::Sender<Decision>) {
        let Proposal { shard, key, update, timeout } = proposal;
        if let Some(rejection) = self.unfit(update.is_read()) {
            self.metrics.count(&Decision::Reject(rejection.clone()));
            // A client that has gone needs no answer.
            let _ = reply.send(Decision::Reject(rejection));
            return;
        }
        let within = timeout.unwrap_or(self.config.propose_timeout);
        let (id, deadline) = self.admit(now, Reply::Here(reply), within, update.is_read());
        let address = Address { shard, key };
        // A home does not know what was accepted here alone, and might number this below it.
        let is_free = !update.is_read() && self.outbox.get(&address).is_none();
        match self.busier_home(now, &address).filter(|_| is_free) {
            Some(home) => self.forward(now, home, address, id, update, within),
            None => self.proposer.propose(address, id, update, deadline),
        }
    }

    /// Why this node can take no update just now.
    fn unfit(&self, is_read: bool) -> Option<Rejection> {
        if self.closing.is_some() || self.is_retiring {
            return Some(Rejection::Busy("this node is shutting down".to_owned()));
        }
        if let Some(why) = &self.barred {
            return Some(Rejection::NoQuorum(format!("this node must not vote: {why}")));
        }
        if let Some(why) = self.not_joined() {
            return Some(Rejection::NoQuorum(why));
        }
        if self.clients.is_full() {
            return Some(Rejection::Busy(format!("{CLIENTS_MAX} updates are under way already; try again soon")));
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

    /// Whether a record chosen by others can be taken in, and will be on this disk before long.
    fn has_room(&self) -> bool {
        !self.disk.is_dead() && self.disk.full().is_none() && !self.is_overloaded()
    }

    fn is_overloaded(&self) -> bool {
        self.acceptor.pending() >= PENDING_FRAMES_MAX
            || self.acceptor.pending_bytes() >= PENDING_BYTES_MAX
            || self.rooms.manager.is_overloaded()
    }

    fn act(&mut self, now: Now, action: Action) {
        match action {
            Action::Start(address) => self.run(now, Task::Start(address)),
            // A question promises nothing and its number never becomes a ballot: it need not wait for the disk.
            Action::Ask { message, .. } if matches!(message.body, Body::Read { .. }) => {
                for &to in &self.proposer.electors(&message.address.shard).replicas {
                    self.send(now, to, message.clone());
                }
            }
            // Its slot is another's now, or nobody's: what was begun under it is not gone on with.
            Action::Ask { .. } if self.me.is_none() => {}
            Action::Ask { ballot, message } => {
                // The ballot was issued here: it must be under the durable ceiling before anybody hears of it.
                let epoch = self.membership().epoch();
                for &to in &self.proposer.electors(&message.address.shard).replicas {
                    let effect = Effect::Send { epoch, to, message: message.clone() };
                    let sealed = self.acceptor.seal(ballot, now, effect);
                    self.take(now, sealed);
                }
            }
            Action::Chosen { address, record, announce, decisions } => {
                if announce {
                    self.announce(now, &address, record.ballot);
                }
                self.metrics.folded.record(decisions.len() as f64);
                self.run(now, Task::Chosen { address, record, decisions });
            }
            // The same, with what can be done.
            Action::Decide(id, Decision::Reject(Rejection::NoQuorum(why))) => {
                let why = self.missing_voters().unwrap_or(why);
                self.decide(now, id, Decision::Reject(Rejection::NoQuorum(why)), Ballot::ZERO);
            }
            Action::Decide(id, decision) => self.decide(now, id, decision, Ballot::ZERO),
            Action::Contended(address) => self.contended.mark(now.monotonic, address),
        }
    }

    fn announce(&mut self, now: Now, address: &Address, ballot: Ballot) {
        let (shard, electors) = (&address.shard, self.proposer.electors(&address.shard));
        let copies = &self.rooms.copies;
        let holds = |(slot, peer): (&usize, &Peer)| {
            let holds =
                shard.is_system() || electors.replicas.contains(slot) || copies.is_followed_by(&peer.node, shard);
            holds.then_some(*slot)
        };
        for to in self.peers.iter().filter_map(holds).collect::<Vec<_>>() {
            self.send(now, to, Message { address: address.clone(), body: Body::Commit { ballot } });
        }
    }

    fn on_batch(&mut self, now: Now, from: usize, batch: Batch) {
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.set_skew(batch.wall.saturating_sub(now.wall));
            peer.epoch = batch.epoch;
        }
        self.correct_time();
        if batch.epoch != self.membership().epoch() {
            return self.on_other_epoch(now, from, batch);
        }
        for message in batch.messages {
            self.receive(now, from, message);
        }
    }

    fn receive(&mut self, now: Now, from: usize, message: Message) {
        if let Body::Prepare { ballot, .. }
        | Body::Accept { record: Record { ballot, .. }, .. }
        | Body::Commit { ballot } = message.body
        {
            self.proposer.observe(now, ballot);
        }
        match message.body {
            Body::Promised { .. } | Body::Held { .. } | Body::Accepted { .. } | Body::Refused { .. } => {
                let peer = self.peers.get_mut(&from).filter(|peer| peer.votes());
                if self.me == Some(from) || peer.is_some() {
                    if let (Some(peer), Body::Promised { ballot, .. } | Body::Accepted { ballot, .. }) =
                        (peer, &message.body)
                    {
                        peer.voted = peer.voted.max(Some(*ballot));
                    }
                    self.proposer.on_message(now, from, message);
                }
            }
            _ => self.run(now, Task::Message { from, epoch: self.membership().epoch(), message }),
        }
    }

    /// Names an update and remembers who waits for it, and until when.
    fn admit(&mut self, now: Now, reply: Reply, within: Duration, is_read: bool) -> (OpId, Duration) {
        self.next_op += 1;
        let id = OpId(self.next_op);
        let deadline = now.monotonic + within;
        self.clients.insert(id, reply, now.monotonic, deadline, is_read);
        (id, deadline)
    }

    /// Tells who waits for an update how it ended; `on` is the ballot of the record that the answer stands on, zero
    /// where there is none.
    fn decide(&mut self, now: Now, id: OpId, decision: Decision, on: Ballot) {
        // Neither background completions nor what comes out of the outbox have a client.
        let Some(client) = self.clients.remove(id) else { return self.drained(now, id, &decision) };
        match client.reply {
            Reply::Here(reply) => {
                self.metrics.count(&decision);
                self.metrics.took(client.is_read, now.monotonic.saturating_sub(client.started));
                // A client that has gone needs no answer.
                let _ = reply.send(decision);
            }
            Reply::Peer { peer, number, address } => self.decide_for(now, peer, number, address, decision, on),
        }
    }

    /// Says that it has ended, to who closed it.
    pub(super) fn finish(mut self) {
        self.peers.values_mut().for_each(Peer::stop_comparing);
        self.tell_what_stays();
        let closing = self.closing.take();
        // The journal's thread ends here, after everything that was submitted.
        drop(self);
        if let Some(done) = closing {
            let _ = done.send(());
        }
    }
}
