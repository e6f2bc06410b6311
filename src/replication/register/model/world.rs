//! Nodes, their disks, the network and the clients, as one value; and everything that can happen next. The nodes run the
//! register's own code, driven as the quorum driver does: what a node says to itself it hears at once, what needs the disk
//! waits for it, a restart replays the journal with the journal's own code.

use std::hash::Hash;
use std::rc::Rc;
use std::time::Duration;

use super::change::{self, JOINT, NEW, OLD};
use super::collection::Driver;
use super::faults::{self, Fault};
use super::fingerprint::{self, Fingerprint};
use super::node::{Effect, FOREVER, Node, address, chosen, seed};
use super::oracle::Oracle;
use super::scenario::{Budget, Scenario};
use crate::replication::register::{Action, Body, Commit, Durable, Entry, Learned, Message, OpId, Record, Sealed};
use crate::store::StoredRow;
use crate::store::replicator::Decision;
use crate::store::update::Update;
use crate::types::Ballot;

/// What passes on the wall with every tick.
const TICK_ON_THE_WALL: i64 = 1_000_000_000;
/// Longer than every back-off and every step's patience, shorter than a client's and a token's.
const TICK: Duration = Duration::from_secs(60);
pub(super) const CLIENT_PATIENCE: Duration = Duration::from_secs(1_000_000);
/// Names what a node asks on its own account.
const SETTLING: OpId = OpId(1000);

/// A message on its way.
#[derive(Debug, Clone)]
pub(super) struct Packet {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) message: Message,
    /// The sender's.
    epoch: u8,
    print: u128,
}

/// What can happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// This client asks for the next thing on its list.
    Call(usize),
    /// The message at this place of the network arrives.
    Deliver(usize),
    /// It arrives, and will again.
    Duplicate(usize),
    /// A node's fsync returns.
    Sync(usize),
    /// A node loses its memory and what was not synced.
    Crash(usize),
    /// A node's patience ends.
    Tick(usize),
    /// So does that of its clients.
    Expire(usize),
    /// A node asks what became of a record.
    Settle(usize),
    /// A node forgets its promises.
    Forget(usize),
    /// A fault: a record is copied from one node to another as if that had voted for it.
    CopyVote(usize, usize),
    /// The next epoch of a change of voters is published.
    Publish,
    /// A node installs the latest epoch.
    Install(usize),
    /// A new voter compares rows with an old one, and takes over what is newer there.
    Compare(usize, usize),
    /// Somebody sets out to forget deletions up to there.
    Begin(Ballot),
    /// And goes on with it.
    Collect,
    /// A row that one node has and another missed is sent.
    Repair(usize, usize),
    /// A node that is behind another's floor adopts it.
    Adopt(usize, usize),
    /// A fault: a node forgets a deletion that it knows to be chosen.
    Drop(usize),
}

#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) scenario: Rc<Scenario>,
    pub(super) nodes: Vec<Rc<Node>>,
    pub(super) network: Vec<Rc<Packet>>,
    /// How far each client is, and whether it waits.
    pub(super) clients: Vec<(u8, bool)>,
    pub(super) left: Budget,
    pub(super) oracle: Rc<Oracle>,
    /// The latest epoch.
    pub(super) published: u8,
    /// With whom each node has compared rows in the joint epoch, as bits.
    pub(super) compared: Vec<u8>,
    /// Whoever has deletions forgotten.
    pub(super) driver: Driver,
}

impl World {
    pub(super) fn new(scenario: &Rc<Scenario>) -> Self {
        let nodes = (0..scenario.nodes()).map(|slot| Rc::new(Node::new(scenario, slot)));
        let mut oracle = Oracle::new(scenario.fault.is_none());
        if scenario.seeded != 0 {
            oracle.begin_with(seed(), change::quorums(scenario, OLD), scenario.seeded);
        }
        Self {
            nodes: nodes.collect(),
            network: Vec::new(),
            clients: vec![(0, false); scenario.clients.len()],
            left: scenario.budget,
            oracle: Rc::new(oracle),
            published: OLD,
            compared: vec![0; scenario.nodes()],
            driver: Driver::Idle,
            scenario: scenario.clone(),
        }
    }

    pub(super) fn fingerprint(&self) -> u128 {
        let mut into = Fingerprint::default();
        for node in &self.nodes {
            node.print.hash(&mut into);
        }
        let network = self.network.iter().fold(0_u128, |sum, packet| sum.wrapping_add(packet.print));
        (network, &self.clients, self.left, self.published, &self.compared, &self.driver).hash(&mut into);
        self.oracle.hash(&mut into);
        into.done()
    }

    /// Everything that can happen next.
    pub(super) fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        let nodes = || 0..self.nodes.len();
        let is_busy = |n: &usize| self.nodes[*n].proposer.is_busy();
        if self.left.crashes > 0 {
            steps.extend(nodes().filter(|n| self.scenario.mortal & 1 << n != 0).map(Step::Crash));
        }
        if self.left.expiries > 0 {
            steps.extend(nodes().filter(is_busy).map(Step::Expire));
        }
        if self.left.ticks > 0 {
            steps.extend(nodes().filter(|n| self.scenario.impatient & 1 << n != 0).filter(is_busy).map(Step::Tick));
        }
        if self.left.forgets > 0 {
            let has_promised = |n: &usize| self.nodes[*n].acceptor.keys.values().any(|key| key.promised > Ballot::ZERO);
            steps.extend(nodes().filter(has_promised).map(Step::Forget));
        }
        if self.left.settles > 0 {
            let is_stale = |n: &usize| !self.nodes[*n].acceptor.stale(FOREVER, 1).is_empty();
            steps.extend(nodes().filter(is_stale).filter(|n| !is_busy(n)).map(Step::Settle));
        }
        if self.scenario.fault == Some(Fault::CopiedAsAVote) {
            let pairs = nodes().flat_map(|from| nodes().map(move |to| (from, to))).filter(|(from, to)| from != to);
            let copies = pairs.filter(|(from, to)| faults::can_copy(&self.nodes[*from], &self.nodes[*to]));
            steps.extend(copies.map(|(from, to)| Step::CopyVote(from, to)));
        }
        self.collecting_steps(&mut steps);
        let mut seen: Vec<u128> = Vec::new();
        if self.scenario.next.is_some() {
            steps.extend(change::next_epoch(self).map(|_| Step::Publish));
            steps.extend(nodes().filter(|n| self.nodes[*n].installed.epoch < self.published).map(Step::Install));
            let pairs = change::pairs(&self.scenario).filter(|(new, old)| change::can_compare(self, *new, *old));
            steps.extend(pairs.map(|(new, old)| Step::Compare(new, old)));
        }
        for (at, packet) in self.network.iter().enumerate() {
            // What a node of a later epoch says waits until that is installed.
            if seen.contains(&packet.print) || packet.epoch > self.nodes[packet.to].installed.epoch {
                continue;
            }
            seen.push(packet.print);
            if self.left.duplicates > 0 {
                steps.push(Step::Duplicate(at));
            }
            steps.push(Step::Deliver(at));
        }
        steps.extend(nodes().filter(|n| !self.nodes[*n].unsynced.is_empty()).map(Step::Sync));
        let can_ask = |client: &usize| {
            let (next, waits) = self.clients[*client];
            !waits && usize::from(next) < self.scenario.clients[*client].script.len()
        };
        steps.extend((0..self.clients.len()).filter(can_ask).map(Step::Call));
        steps
    }

    /// The world after a step.
    pub(super) fn after(&self, step: Step) -> Self {
        let mut world = self.clone();
        let n = world.take_step(step);
        world.settle_inherited(n);
        world.pump(n);
        world.settle_inherited(n);
        world.forget_dead_messages(n);
        world.check_outbox(n);
        let node = Rc::make_mut(&mut world.nodes[n]);
        node.print = fingerprint::of_node(node);
        world
    }

    pub(super) fn node(&mut self, n: usize) -> &mut Node {
        Rc::make_mut(&mut self.nodes[n])
    }

    pub(super) fn oracle(&mut self) -> &mut Oracle {
        Rc::make_mut(&mut self.oracle)
    }

    /// Does it, and names the node that it happened to.
    fn take_step(&mut self, step: Step) -> usize {
        match step {
            Step::Call(client) => return self.call(client),
            Step::Deliver(at) => {
                let packet = self.network.remove(at);
                return self.deliver(&packet);
            }
            Step::Duplicate(at) => {
                self.left.duplicates -= 1;
                let packet = self.network[at].clone();
                return self.deliver(&packet);
            }
            Step::Sync(n) => self.sync(n),
            Step::Crash(n) => {
                self.left.crashes -= 1;
                self.crash(n);
            }
            Step::Tick(n) => {
                self.left.ticks -= 1;
                self.let_pass(n, TICK);
            }
            Step::Expire(n) => {
                self.left.expiries -= 1;
                self.let_pass(n, CLIENT_PATIENCE + TICK);
            }
            Step::Settle(n) => {
                self.left.settles -= 1;
                let node = self.node(n);
                let deadline = node.monotonic + CLIENT_PATIENCE;
                node.proposer.settle(address(), SETTLING, deadline);
            }
            Step::Forget(n) => {
                self.left.forgets -= 1;
                let fault = self.scenario.fault;
                faults::forget(fault, &mut self.node(n).acceptor);
            }
            Step::CopyVote(from, to) => {
                let source = self.nodes[from].clone();
                faults::copy_vote(&source, self.node(to));
                return to;
            }
            Step::Publish => {
                self.published = change::next_epoch(self).unwrap_or(self.published);
                if self.published == NEW {
                    let successors = change::quorums(&self.scenario, NEW);
                    self.oracle().on_succeeded(successors);
                }
            }
            Step::Install(n) => self.install_epoch(n),
            Step::Compare(new, old) => {
                self.compared[new] |= 1 << old;
                if let Some(row) = self.nodes[old].row() {
                    self.receive(old, new, chosen(&row));
                }
                return new;
            }
            Step::Begin(floor) => {
                self.left.collections -= 1;
                self.driver = Driver::Refusing(floor, 0);
            }
            Step::Collect => return self.collect(),
            Step::Repair(from, to) => {
                self.left.repairs -= 1;
                self.repair(from, to);
                return to;
            }
            Step::Adopt(from, to) => {
                self.adopt(from, to);
                return to;
            }
            Step::Drop(n) => self.drop_once_chosen(n),
        }
        match step {
            Step::Sync(n)
            | Step::Crash(n)
            | Step::Tick(n)
            | Step::Expire(n)
            | Step::Settle(n)
            | Step::Forget(n)
            | Step::Drop(n)
            | Step::Install(n) => n,
            _ => 0,
        }
    }

    fn call(&mut self, client: usize) -> usize {
        let (next, _) = self.clients[client];
        self.clients[client] = (next + 1, true);
        let scenario = self.scenario.clone();
        let n = scenario.clients[client].node;
        let update = scenario.clients[client].script[usize::from(next)].clone();
        let number = scenario.first_number(client) + usize::from(next);
        if update.kept_version().is_some() {
            // It may take effect at any time from now on, or never: that is all it promises to who asks a quorum.
            self.oracle().on_call(number, n, Rc::new(Update::always(update.change.clone())));
            self.accept(n, number, &update.change);
            return n;
        }
        self.oracle().on_call(number, n, update.clone());
        let node = self.node(n);
        let deadline = node.monotonic + CLIENT_PATIENCE;
        node.proposer.propose(address(), OpId(number as u64), Update::clone(&update), deadline);
        n
    }

    fn let_pass(&mut self, n: usize, time: Duration) {
        let fault = self.scenario.fault;
        let node = self.node(n);
        node.monotonic += time;
        node.wall += TICK_ON_THE_WALL;
        let now = node.now();
        node.proposer.on_tick(now);
        faults::forget_attempts(fault, &mut node.proposer);
    }

    /// Does what a node's cores ask for, up to what needs the disk.
    fn pump(&mut self, n: usize) {
        loop {
            self.drain(n);
            let actions = self.node(n).proposer.take_actions();
            for action in &actions {
                self.act(n, action.clone());
            }
            let is_slow = self.scenario.slow_disks & 1 << n != 0;
            let node = self.node(n);
            let now = node.now();
            if node.acceptor.has_entries() {
                node.acceptor.extend_ceiling(now);
            }
            let (entries, lsn) = node.acceptor.take_entries();
            node.unsynced.extend(entries);
            node.lsn = lsn;
            if !is_slow && !node.unsynced.is_empty() {
                self.sync(n);
            } else if actions.is_empty() {
                return;
            }
        }
    }

    fn act(&mut self, n: usize, action: Action) {
        match action {
            // A hint for the driver alone.
            Action::Contended(_) => {}
            Action::Start(address) => {
                let fault = self.scenario.fault;
                let node = self.node(n);
                if let Some(own) = node.outbox.get(&address).filter(|_| fault != Some(Fault::TokenBelowLocalWrite)) {
                    node.proposer.outdate_token(&address, own.upd);
                }
                let held = node.acceptor.peek(&address, &node.known());
                let now = node.now();
                faults::start(fault, &mut node.proposer, now, &address, held);
            }
            Action::Ask { ballot, mut message } => {
                if let Body::Accept { next, .. } = &mut message.body {
                    *next = next.filter(|_| self.scenario.asks_next);
                }
                if let Body::Accept { record, .. } = &message.body {
                    let deciding = change::quorums(&self.scenario, self.nodes[n].installed.epoch);
                    self.oracle().on_asked(record, deciding);
                }
                for to in 0..self.nodes.len() {
                    let node = self.node(n);
                    let now = node.now();
                    let sealed = node.acceptor.seal(ballot, now, Effect::Send(to, message.clone()));
                    self.take(n, sealed);
                }
            }
            Action::Chosen { address, record, announce, decisions } => {
                if self.scenario.fault.is_some_and(Fault::answers_early) && !self.oracle.is_chosen(record.ballot) {
                    return decisions.into_iter().for_each(|(id, decision)| self.decide(id, decision));
                }
                self.oracle().on_learnt(record.ballot);
                if announce && self.scenario.commits {
                    for to in (0..self.nodes.len()).filter(|to| *to != n) {
                        let body = Body::Commit { ballot: record.ballot };
                        self.send(n, to, Message { address: address.clone(), body });
                    }
                }
                if self.nodes[n].known().ballot() >= record.ballot {
                    return decisions.into_iter().for_each(|(id, decision)| self.decide(id, decision));
                }
                if !decisions.is_empty() {
                    self.node(n).waiting.push((record.ballot, decisions));
                }
                self.learn(n, record);
            }
            Action::Decide(id, decision) => self.decide(id, decision),
        }
    }

    fn learn(&mut self, n: usize, record: Record) {
        let node = self.node(n);
        let (now, known) = (node.now(), node.known());
        let commit = match node.acceptor.on_commit(&address(), record.ballot, &known) {
            Learned::Commit(commit) => Some(commit),
            Learned::Known | Learned::Missing => node.acceptor.install(now, &address(), record, &known),
        };
        if let Some(commit) = commit {
            self.take(n, commit.map(Effect::Commit));
        }
    }

    pub(super) fn take(&mut self, n: usize, sealed: Sealed<Effect>) {
        if let Some(effect) = self.node(n).sealed.push(sealed) {
            self.effect(n, effect);
        }
    }

    fn effect(&mut self, n: usize, effect: Effect) {
        match effect {
            Effect::Send(to, message) => {
                let checked = self.nodes[n].acceptor.check_leaving(&message);
                self.oracle().inside(checked.is_ok(), || checked.unwrap_err().to_string());
                self.send(n, to, message);
            }
            Effect::Commit(commit) => self.commit(n, &commit),
            Effect::Accepted(id, upd) => self.accepted(n, id, upd),
        }
    }

    pub(super) fn send(&mut self, from: usize, to: usize, message: Message) {
        let node = self.nodes[from].clone();
        self.oracle().on_sent(from, &message.body, &node.disk);
        drop(node);
        let scenario = &self.scenario;
        if from == to && scenario.deaf & 1 << from == 0 {
            return self.receive(from, to, message);
        }
        if (scenario.lost)(from, to, &message.body) || self.is_dead(to, &message.body) {
            return;
        }
        let epoch = self.nodes[from].installed.epoch;
        let print = Fingerprint::of(&(from, to, &message.body, epoch));
        self.network.push(Rc::new(Packet { from, to, message, epoch, print }));
    }

    fn commit(&mut self, n: usize, commit: &Commit) {
        let Record { ballot, upd, op, .. } = commit.record.clone();
        let before = self.nodes[n].row();
        self.oracle().on_commit(n, &commit.record, before.as_ref());
        let node = self.node(n);
        let row = StoredRow { op, upd, ballot };
        if before.is_none_or(|before| before.ballot < ballot) {
            node.stored.insert(commit.address.clone(), row.clone());
        }
        node.acceptor.on_applied(commit);
        node.outbox.on_chosen(&commit.address, upd);
        let pulls: Vec<_> = node.pulls.extract_if(.., |(_, wanted)| *wanted <= ballot).collect();
        for (to, _) in pulls {
            self.send(n, to, chosen(&row));
        }
        let node = self.node(n);
        let ready: Vec<_> = node.waiting.extract_if(.., |(waits_for, _)| *waits_for <= ballot).collect();
        for (id, decision) in ready.into_iter().flat_map(|(_, decisions)| decisions) {
            self.decide(id, decision);
        }
    }

    fn decide(&mut self, id: OpId, decision: Decision) {
        if id == SETTLING || self.drained(id, &decision) {
            return;
        }
        self.client_goes_on(id);
        self.oracle().on_decision(id.0 as usize, decision);
    }

    pub(super) fn client_goes_on(&mut self, id: OpId) {
        let number = id.0 as usize;
        let scenario = self.scenario.clone();
        for (client, state) in self.clients.iter_mut().enumerate() {
            // A client whose node has died meanwhile may be on to its next question.
            if scenario.first_number(client) + usize::from(state.0) == number + 1 && state.0 > 0 {
                state.1 = false;
            }
        }
    }

    fn sync(&mut self, n: usize) {
        let node = self.node(n);
        let entries = std::mem::take(&mut node.unsynced);
        node.disk.take(&entries);
        let durable = Durable::synced(node.lsn);
        node.acceptor.on_durable(durable);
        let effects: Vec<Effect> = node.sealed.release(durable).collect();
        for entry in &entries {
            match entry {
                Entry::Accepted(_, record) => self.oracle().on_vote(n, record.ballot),
                Entry::Chosen(_, record) => self.oracle().on_learnt(record.ballot),
                Entry::Committed(_, ballot) => self.oracle().on_learnt(*ballot),
                Entry::Ceiling(_) | Entry::Local(..) | Entry::Refused(..) | Entry::Dropped(..) => {}
            }
        }
        for effect in effects {
            self.effect(n, effect);
        }
    }

    /// An acceptor refuses questions of an older epoch, which its asker makes nothing of: it asks anew once it is told.
    fn deliver(&mut self, packet: &Packet) -> usize {
        let Packet { from, to, message, epoch, .. } = packet;
        let is_question = matches!(message.body, Body::Prepare { .. } | Body::Accept { .. } | Body::Read { .. });
        if !is_question || *epoch == self.nodes[*to].installed.epoch {
            self.receive(*from, *to, message.clone());
        }
        *to
    }

    fn receive(&mut self, from: usize, to: usize, message: Message) {
        let scenario = self.scenario.clone();
        let fault = scenario.fault;
        let node = self.node(to);
        let (now, known) = (node.now(), node.known());
        let Message { address, body } = message;
        let reply = match body {
            Body::Prepare { ballot, holds } => faults::prepare(fault, node, &address, ballot, holds),
            Body::Accept { record, next } => {
                let known = node.known_by(fault);
                node.acceptor.on_accept(now, &address, record, next, &known)
            }
            Body::Read { round, holds } => Ok(faults::read(fault, node, &address, round, holds)),
            Body::Commit { ballot } => {
                return match node.acceptor.on_commit(&address, ballot, &known) {
                    Learned::Commit(commit) => self.take(to, commit.map(Effect::Commit)),
                    Learned::Missing => self.send(to, from, Message { address, body: Body::Pull { ballot } }),
                    Learned::Known => {}
                };
            }
            Body::Pull { ballot } => {
                return match known.row.as_ref().filter(|row| row.ballot >= ballot) {
                    Some(row) => self.send(to, from, chosen(row)),
                    None if known.ballot() >= ballot => {}
                    None if node.pulls.contains(&(from, ballot)) => {}
                    None => {
                        node.pulls.push((from, ballot));
                        node.pulls.sort_unstable();
                    }
                };
            }
            Body::Chosen { record } => {
                if let Some(commit) = node.acceptor.install(now, &address, record, &known) {
                    self.take(to, commit.map(Effect::Commit));
                }
                return;
            }
            body => {
                let message = Message { address, body };
                let is_joint = node.installed.epoch == JOINT && matches!(message.body, Body::Held { .. });
                let proposer = &mut node.proposer;
                if is_joint && fault == Some(Fault::ReadsOnTheOldMajority) {
                    return change::as_if_decided(proposer, change::old_majority(&scenario), |proposer| {
                        proposer.on_message(now, from, message);
                    });
                }
                return faults::answer(fault, proposer, now, from, message);
            }
        };
        match reply {
            Ok(reply) => self.take(to, reply.map(|body| Effect::Send(from, Message { address, body }))),
            Err(broken) => self.oracle().violated(|| broken.to_string()),
        }
    }

    /// What happens, for people: a message by its content instead of its place.
    pub(super) fn describe(&self, step: Step) -> String {
        match step {
            Step::Deliver(at) | Step::Duplicate(at) => {
                let packet = &self.network[at];
                let again = if matches!(step, Step::Duplicate(_)) { ", and stays" } else { "" };
                format!("{} -> {}: {:?}{again}", packet.from, packet.to, packet.message.body)
            }
            step => format!("{step:?}"),
        }
    }
}
