//! The driver of agreement: the pure registers, the journal and the peers' connections behind the store's
//! [`Replicator`].
//!
//! ```text
//!   propose ─► inbox ─► ┌──────────── driver task ─────────────┐ ─► journal thread ─► fsync ─┐
//!   peers ───► events ► │ wait for anything, take all that is  │ ◄────── WriterEvent ────────┘
//!   ticks ────────────► │ there, Core::pump: one batch each    │ ─► one batch per peer ─► transport
//!                       └──────────────────────────────────────┘ ─► subscribers (the store), decisions
//! ```
//!
//! `core` does all that changes anything and never waits; this file does all the waiting. `disk` keeps one append in
//! flight, `peers` what is to be sent to whom, `greeter` the hello, `catch_up` the comparison of rows with a peer's, and
//! `serve` the other side of it; `level` is how a copy gets all that was acknowledged anywhere before it is taken. Old
//! deletions are forgotten by `collect`, which asks, and `floors`, which does it. Who votes is `installed` when the node
//! starts, changed by `changing`, and compared for by `scan`. Which shards this node holds is known to `copies`; `roots` finds
//! out whether two that hold different ones differ in what both hold.
//!
//! Absent on purpose: a leader, and any decision by gossip or by who happens to be alive.

mod catch_up;
mod changing;
mod clients;
mod collect;
mod copies;
mod core;
mod disk;
mod floors;
mod greeter;
mod installed;
mod level;
mod metrics;
mod peers;
mod roots;
mod scan;
mod serve;
mod status;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use self::changing::Order;
use self::copies::Copies;
use self::core::Core;
pub use self::greeter::Greeter;
pub use self::installed::Installed;
use self::scan::Scanned;
pub use self::status::{OutboxStatus, PeerStatus, QuorumStatus};
use super::journal::{Journal, JournalError, JournalWriter, Recovered, WriterEvent};
use super::outbox::OutboxBounds;
use super::register::{Acceptor, AcceptorConfig, Address, LocalWrite, Proposer, ProposerConfig, Record};
use crate::clock::{Clock, CorrectedClock, HybridClock, Now};
use crate::cluster::change::{ChangeError, VoterChange};
use crate::cluster::membership::{InvalidMembership, Membership};
use crate::cluster::placement::Electorate;
use crate::cluster::status::ChangeStatus;
use crate::store::digest::Root;
use crate::store::replicator::{Decision, Proposal, Rejection, Replicator, Subscriber};
use crate::store::{self, Manager};
use crate::transport::{Call, Event, Transport};
use crate::types::{Ballot, NodeId, ShardId};

/// Proposals and other inputs that wait for the driver.
const INPUTS_MAX: usize = 16_384;
/// Inputs and events taken in before what follows from them goes out.
const TAKEN_AT_ONCE: usize = 512;
/// Accepted frames not known to be chosen, beyond which this node takes no more.
const PENDING_FRAMES_MAX: usize = 65_536;
/// Bytes of values in those frames, likewise.
const PENDING_BYTES_MAX: usize = 512 << 20;
/// Closed journal segments at which the oldest are given up.
const COMPACT_AT_SEGMENTS: usize = 3;
/// How often time passes for rounds in flight.
const TICK: Duration = Duration::from_millis(2);
/// How often the rest is looked after.
const SLOW_TICK: Duration = Duration::from_millis(100);

type Subscribers = Arc<RwLock<Vec<Arc<dyn Subscriber>>>>;

/// How the driver behaves.
#[derive(Debug, Clone)]
pub struct QuorumConfig {
    /// This node.
    pub node: NodeId,
    /// Ballots further ahead of the clock than this are refused.
    pub max_skew: Duration,
    /// How far ahead of the clock the durable ceiling is set.
    pub ceiling_lead: Duration,
    /// How long a proposal that names no time may take.
    pub propose_timeout: Duration,
    /// The largest value, in bytes.
    pub value_bytes_max: usize,
    /// How many local writes may wait for a quorum.
    pub outbox: OutboxBounds,
    /// How long deletions are remembered at least.
    pub tombstone_grace: Duration,
    /// How long after its last use a copy of a shard is kept that this node does not replicate.
    pub unused_drop_after: Duration,
    /// Seeds the back-off's randomness.
    pub seed: u64,
    /// There are no others and never will be: there is no clock to mistrust.
    pub is_alone: bool,
}

/// What the driver is built on.
pub struct Foundations {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The hello's speaker, shared with the transport.
    pub greeter: Arc<Greeter>,
    /// The shards: rows are looked up in them, and the driver installs itself as their replicator.
    pub manager: Arc<Manager>,
    /// The way to the peers.
    pub transport: Arc<dyn Transport>,
    /// Connections' lives and protocol messages.
    pub events: mpsc::Receiver<Event>,
    /// Peers that catch up.
    pub calls: mpsc::Receiver<Call>,
    /// The open journal.
    pub journal: Journal,
    /// What was in it.
    pub recovered: Recovered,
    /// The configuration to begin with.
    pub installed: Installed,
}

/// Why the driver did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The journal cannot go on.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The shard of the cluster's configuration cannot be opened.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// It holds something else.
    #[error("{shard}: the cluster's configuration: {why}; start the version that wrote it")]
    Configuration {
        /// Where it stands.
        shard: ShardId,
        /// What is wrong with it.
        why: InvalidMembership,
    },
}

/// What the driver and its helpers share.
#[derive(Clone)]
struct Rooms {
    clock: Arc<CorrectedClock>,
    greeter: Arc<Greeter>,
    manager: Arc<Manager>,
    transport: Arc<dyn Transport>,
    inputs: mpsc::Sender<Input>,
    subscribers: Subscribers,
    /// The configuration that is installed.
    membership: watch::Sender<Membership>,
    /// Which shards are used here, and on the peers.
    copies: Arc<Copies>,
    /// With whom this node has compared rows in a joint epoch.
    scanned: Arc<Mutex<Scanned>>,
    /// How the change of voters stands that this node drives.
    progress: watch::Sender<Option<ChangeStatus>>,
    /// Held by the comparison that fetches rows.
    fetching: Arc<tokio::sync::Mutex<()>>,
    /// How many fetch some at this moment: peers that ask what is here wait for them.
    fetches: watch::Sender<usize>,
}

impl Rooms {
    /// Asks the driver; none where it lets the question go, as it may not do what was asked, or not now.
    async fn ask<T>(&self, input: impl FnOnce(oneshot::Sender<T>) -> Input) -> Result<Option<T>, catch_up::Error> {
        let (reply, answer) = oneshot::channel();
        self.inputs.send(input(reply)).await.map_err(|_| catch_up::Error::Stopping)?;
        Ok(answer.await.ok())
    }

    /// Asks the driver to say so once something that was accepted before is settled; `let_go` where it does not take that on.
    async fn settled(
        &self,
        input: impl FnOnce(oneshot::Sender<()>) -> Input,
        let_go: catch_up::Error,
    ) -> Result<(), catch_up::Error> {
        match tokio::time::timeout(catch_up::SETTLE_WITHIN, self.ask(input)).await {
            Ok(asked) => asked?.ok_or(let_go),
            Err(_) => Err(catch_up::Error::Unsettled),
        }
    }
}

/// What the driver is told by this node itself.
#[derive(Debug)]
enum Input {
    Propose { proposal: Proposal, reply: oneshot::Sender<Decision> },
    Accept { proposal: Proposal, reply: oneshot::Sender<Decision> },
    Opened { shard: ShardId, result: Result<(), store::Error> },
    Install { rows: Vec<(Address, Record)>, done: oneshot::Sender<()> },
    CaughtUp { peer: usize, task: tokio::task::Id, rows: u64 },
    Compared { peer: usize, task: tokio::task::Id, same: bool },
    LookAt { peer: NodeId, mine: Root, theirs: Root },
    Epochs { reply: oneshot::Sender<BTreeMap<usize, u64>> },
    Look { mine: Option<Root>, theirs: Vec<(NodeId, Option<Root>)> },
    Meet { peer: NodeId, met: oneshot::Sender<()> },
    Settle { shard: ShardId, done: oneshot::Sender<()> },
    Inherited { epoch: u64, slot: usize, done: oneshot::Sender<()> },
    PromiseAbove { ballot: Ballot, done: oneshot::Sender<()> },
    Connected { reply: oneshot::Sender<BTreeSet<usize>> },
    Floors(floors::Floors),
    Voters { reply: oneshot::Sender<level::Voters> },
    Synced { before: u64, result: Result<(), store::Error> },
    Avoid(Vec<NodeId>),
    Retire(oneshot::Sender<()>),
    Close(oneshot::Sender<()>),
}

/// Agreement among the voters of the configuration.
pub struct QuorumReplicator {
    inputs: mpsc::Sender<Input>,
    subscribers: Subscribers,
    status: watch::Receiver<QuorumStatus>,
    membership: watch::Receiver<Membership>,
    progress: watch::Receiver<Option<ChangeStatus>>,
    levels: mpsc::Sender<level::Wanted>,
    orders: mpsc::Sender<Order>,
    copies: Arc<Copies>,
    first_copies: mpsc::Sender<copies::Wanted>,
}

impl QuorumReplicator {
    /// Starts the driver on an open journal: what it knew to be chosen is applied, what it left open is settled as
    /// soon as a quorum answers. Waits, at most `ceiling_lead`, for the clock to pass what may have been promised
    /// before (rule 2).
    pub async fn start(config: QuorumConfig, on: Foundations) -> Result<Arc<Self>, StartError> {
        let Foundations { clock, greeter, manager, transport, events, calls, journal, recovered, installed } = on;
        // One that is no member proposes nothing, under whichever number.
        let slot = greeter.slot().unwrap_or_default();
        let ceiling = recovered.restored.ceiling;
        let ahead = u64::try_from(ceiling.nanos().saturating_sub(clock.now().wall)).unwrap_or(0);
        tokio::time::sleep(Duration::from_nanos(ahead).min(config.ceiling_lead)).await;

        let clock = CorrectedClock::new(clock);
        let (inputs, inbox) = mpsc::channel(INPUTS_MAX);
        let (writer_events, written) = mpsc::unbounded_channel();
        let writer = JournalWriter::spawn(journal, clock.clone(), writer_events)?;
        let electorate = Electorate::of(&installed.membership);
        let mut proposing = ProposerConfig::new(slot.replica(), electorate, config.seed);
        proposing.value_bytes_max = config.value_bytes_max;
        let proposer = Proposer::new(proposing, HybridClock::new(slot, config.max_skew, ceiling));
        let accepting = AcceptorConfig {
            ceiling_lead: config.ceiling_lead,
            // One's own clock may have been set back.
            max_skew: if config.is_alone { Duration::MAX } else { config.max_skew },
            ..AcceptorConfig::default()
        };
        let Recovered { restored, chosen, outbox, damage } = recovered;
        let open = restored.pending.iter().map(|(address, record)| (address.clone(), record.ballot)).collect();
        let acceptor = Acceptor::new(accepting, restored);

        let subscribers = Subscribers::default();
        let (shown, status) = watch::channel(QuorumStatus::default());
        let (levels, wanted) = mpsc::channel(level::WANTED_MAX);
        let membership = watch::Sender::new(installed.membership.clone());
        let progress = watch::Sender::new(None);
        let (orders, ordered) = mpsc::channel(changing::ORDERS_MAX);
        let (first_copies, wanted_copies) = mpsc::channel(copies::WANTED_MAX);
        let copies = Arc::<Copies>::default();
        let this = Arc::new(Self {
            inputs: inputs.clone(),
            subscribers: subscribers.clone(),
            status,
            membership: membership.subscribe(),
            progress: progress.subscribe(),
            levels,
            orders,
            copies: copies.clone(),
            first_copies,
        });
        // Before anything is committed: the store subscribes with this.
        manager.with_replicator(this.clone());
        let (clock_too, fetching) = (clock.clone(), Arc::default());
        let fetches = watch::Sender::default();
        let rooms = Rooms {
            clock: clock_too,
            greeter,
            manager,
            transport,
            inputs,
            subscribers,
            membership,
            copies,
            scanned: Arc::default(),
            progress,
            fetching,
            fetches,
        };
        let helpers = rooms.clone();
        copies::begin(&rooms).await;
        let (grace, unused_drop_after) = (config.tombstone_grace, config.unused_drop_after);
        let mut core = Core::new(config, installed, rooms, acceptor, proposer, disk::Disk::new(writer));
        core.recover(chosen, open);
        restore(&mut core, &helpers.manager, outbox).await;
        // Not before what the journal knew to be chosen is there to be compared.
        let mut helping = JoinSet::new();
        helping.spawn(serve::serve(calls, helpers.clone()));
        helping.spawn(level::serve(wanted, helpers.clone()));
        helping.spawn(scan::follow(helpers.clone()));
        helping.spawn(changing::serve(ordered, helpers.clone()));
        helping.spawn(copies::serve(wanted_copies, helpers.clone()));
        helping.spawn(copies::follow(helpers.clone(), this.first_copies.clone(), unused_drop_after));
        helping.spawn(roots::ask(helpers.clone()));
        helping.spawn(collect::collect(helpers, grace));
        core.bar_at_start(damage);
        shown.send_replace(core.status());
        let driver = Driver { core, clock, inbox, events, written, shown };
        tokio::spawn(async move {
            driver.run().await;
            // They end with it.
            drop(helping);
        });
        Ok(this)
    }

    /// Takes no more updates, neither clients' nor such as peers forward, and waits until those under way have ended. It
    /// goes on voting, and telling peers that it takes none, until [`Replicator::close`]: a peer whose update is not
    /// answered would not know what became of it.
    pub async fn retire(&self) {
        let (done, retired) = oneshot::channel();
        if self.inputs.send(Input::Retire(done)).await.is_ok() {
            // An error means that it has ended altogether.
            let _ = retired.await;
        }
    }

    /// Forwards nothing to these peers from now on, which leave or may have left, but proposes it here.
    pub async fn avoid(&self, nodes: Vec<NodeId>) {
        // Nobody listens any more only while the node stops.
        let _ = self.inputs.send(Input::Avoid(nodes)).await;
    }

    /// Whoever was told of a row reads it here later on.
    fn note_use(&self, shard: &ShardId) {
        if !self.copies.note_use(shard) {
            copies::prefetch(&self.first_copies, shard);
        }
    }

    /// Hands it to the driver, and waits for its end.
    async fn hand_in(&self, input: Input, decision: oneshot::Receiver<Decision>) -> Decision {
        match self.inputs.try_send(input) {
            Ok(()) => decision.await.unwrap_or(Decision::Timeout),
            Err(mpsc::error::TrySendError::Full(_)) => {
                Decision::Reject(Rejection::Busy(format!("{INPUTS_MAX} updates wait already; try again soon")))
            }
            Err(mpsc::error::TrySendError::Closed(_)) => {
                Decision::Reject(Rejection::Busy("this node is shutting down".to_owned()))
            }
        }
    }

    /// How it stands, as of a moment ago.
    #[must_use]
    pub fn status(&self) -> QuorumStatus {
        self.status.borrow().clone()
    }

    /// Shows it the roots of all rows here and on the peers, none where one is not known; to be called about once a second.
    /// Where they differ without need, rows are compared again.
    pub fn look(&self, mine: Option<Root>, theirs: Vec<(NodeId, Option<Root>)>) {
        // Where it has no room for it, the next look will do.
        let _ = self.inputs.try_send(Input::Look { mine, theirs });
    }

    /// The configuration that is installed, and to be told of every other.
    #[must_use]
    pub fn membership(&self) -> watch::Receiver<Membership> {
        self.membership.clone()
    }

    /// Begins a change of voters. Returns once it is begun, or all is as wished already; how it goes on is told by
    /// [`QuorumReplicator::change_status`]. An error says why nothing was changed.
    pub async fn change(&self, change: VoterChange) -> Result<(), ChangeError> {
        self.order(|reply| Order::Change(change, reply)).await
    }

    /// Lets this node decide alone from now on, where a majority is lost for good. Whatever only those had is lost.
    pub async fn recover(&self) -> Result<(), ChangeError> {
        self.order(Order::Recover).await
    }

    async fn order(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<(), ChangeError>>) -> Order,
    ) -> Result<(), ChangeError> {
        let unavailable = |why: &str| ChangeError::Unavailable(why.to_owned());
        let (reply, answer) = oneshot::channel();
        self.orders
            .try_send(order(reply))
            .map_err(|_| unavailable("this node has other changes to see to; try again"))?;
        answer.await.unwrap_or_else(|_| Err(unavailable("this node is shutting down")))
    }

    /// How the change stands that this node drives, or drove last.
    #[must_use]
    pub fn change_status(&self) -> Option<ChangeStatus> {
        self.progress.borrow().clone()
    }

    /// To be told of every change of how it stands.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<QuorumStatus> {
        self.status.clone()
    }
}

#[async_trait]
impl Replicator for QuorumReplicator {
    async fn propose(&self, proposal: Proposal) -> Decision {
        self.note_use(&proposal.shard);
        let (reply, decision) = oneshot::channel();
        self.hand_in(Input::Propose { proposal, reply }, decision).await
    }

    async fn accept(&self, proposal: Proposal) -> Decision {
        self.note_use(&proposal.shard);
        let (reply, decision) = oneshot::channel();
        self.hand_in(Input::Accept { proposal, reply }, decision).await
    }

    fn has_outbox(&self) -> bool {
        true
    }

    fn subscribe(&self, subscriber: Arc<dyn Subscriber>) {
        self.subscribers.write().push(subscriber);
    }

    fn is_durable(&self) -> bool {
        true
    }

    fn has_copy(&self, shard: &ShardId) -> bool {
        self.copies.is_at_hand(shard)
    }

    fn holds_every_shard(&self) -> bool {
        self.copies.holds_every_shard()
    }

    async fn fetch_copy(&self, shard: &ShardId) -> Result<(), Rejection> {
        copies::fetch(&self.first_copies, shard).await
    }

    fn want_copy(&self, shard: &ShardId) {
        self.note_use(shard);
    }

    async fn catch_up(&self, shard: &ShardId) -> Result<(), Rejection> {
        self.note_use(shard);
        level::ask(&self.levels, |reply| level::Wanted::Rows(shard.clone(), reply)).await
    }

    async fn shards(&self) -> Result<Vec<ShardId>, Rejection> {
        level::ask(&self.levels, level::Wanted::Shards).await
    }

    async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.inputs.send(Input::Close(done)).await.is_ok() {
            // An error means that it had ended already.
            let _ = closed.await;
        }
    }
}

/// Shows again what was accepted on this node alone, where the key's row is not as new.
async fn restore(core: &mut Core, manager: &Manager, outbox: Vec<(Address, LocalWrite)>) {
    for (address, write) in outbox {
        let stored = match manager.get(&address.shard).await {
            Ok(shard) => shard.stored(&address.key),
            Err(error) => Err(error),
        };
        // Where the row cannot be read the write is shown: nothing else of this shard will be.
        let version = stored.map_or_else(
            |error| {
                tracing::warn!(shard = %address.shard, %error, "a local write is kept without a look at its row");
                Ballot::ZERO
            },
            |row| row.map_or(Ballot::ZERO, |row| row.upd),
        );
        core.restore(&address, write, version);
    }
}

struct Driver {
    core: Core,
    clock: Arc<CorrectedClock>,
    inbox: mpsc::Receiver<Input>,
    events: mpsc::Receiver<Event>,
    written: mpsc::UnboundedReceiver<WriterEvent>,
    shown: watch::Sender<QuorumStatus>,
}

impl Driver {
    async fn run(mut self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut slow_tick = tokio::time::interval(SLOW_TICK);
        slow_tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !self.core.is_finished() {
            tokio::select! {
                Some(event) = self.written.recv() => {
                    let now = self.now();
                    self.core.on_writer(now, event);
                }
                Some(event) = self.events.recv() => {
                    let now = self.now();
                    self.core.on_event(now, event);
                }
                Some(input) = self.inbox.recv() => {
                    let now = self.now();
                    self.core.on_input(now, input);
                }
                _ = tick.tick(), if self.core.is_busy() => {
                    let now = self.now();
                    self.core.on_tick(now);
                }
                _ = slow_tick.tick() => {
                    let now = self.now();
                    self.core.on_slow_tick(now, self.inbox.len() + self.events.len());
                    self.shown.send_replace(self.core.status());
                }
            }
            self.take_what_waits();
            let now = self.now();
            self.core.pump(now);
            if self.core.take_news() {
                self.shown.send_replace(self.core.status());
            }
        }
        // What still comes is refused, not left without an answer, which would mean "unknown".
        self.inbox.close();
        while let Ok(input) = self.inbox.try_recv() {
            self.core.on_input(self.clock.now(), input);
        }
        // Ending the journal's thread waits for the disk; but not for room on a full one, once nobody listens.
        let Self { core, written, .. } = self;
        drop(written);
        let _ = crate::blocking::spawn(move || core.finish()).await;
    }

    fn now(&mut self) -> Now {
        let now = self.clock.now();
        self.core.check_time(now)
    }

    /// What arrived meanwhile shares the batches that go out next.
    fn take_what_waits(&mut self) {
        let now = self.now();
        while let Ok(event) = self.written.try_recv() {
            self.core.on_writer(now, event);
        }
        for _ in 0..TAKEN_AT_ONCE {
            let event = self.events.try_recv().map(|event| self.core.on_event(now, event));
            let input = self.inbox.try_recv().map(|input| self.core.on_input(now, input));
            if event.is_err() && input.is_err() {
                break;
            }
        }
    }
}
