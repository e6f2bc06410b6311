//! Changing who votes (DESIGN §5), by whichever node is asked to; what one began, any other ends.
//!
//! ```text
//!   add, remove, replace ─► new voter level ─► register: joint epoch ─► scan.rs, on every new voter ─► register: new epoch
//!                           (order here)      └──────────────── any voter goes on from here ─────────────────┘
//! ```
//!
//! Each write of the register is conditional on what it was read as, so that two who drive the same change, or different
//! ones, do no harm. Besides what it is asked for, a node does three things on its own: it has itself registered where it is
//! no member, it ends a change that is under way, and it replaces a voter's disk that was lost.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::catch_up::{Error, With};
use super::installed::configuration_address;
use super::level::Voters;
use super::scan::{self, Scanned};
use super::{Input, Rooms};
use crate::clock::Clock as _;
use crate::cluster::change::{ChangeError, Refused, VoterChange};
use crate::cluster::membership::{FIRST_EPOCH, Member, Membership};
use crate::cluster::status::ChangeStatus;
use crate::replication::register::{Address, Lineage, Record};
use crate::store::replicator::{Decision, Op, Proposal};
use crate::store::update::{self, Condition, Update, Verdict};
use crate::types::{Ballot, NodeId, StorageId, Value};

/// Orders that wait.
pub(super) const ORDERS_MAX: usize = 4;
/// How often a node looks whether there is something to do.
const LOOK: Duration = Duration::from_millis(250);
/// How much longer each further voter leaves it to those before it.
const PRECEDENCE: Duration = Duration::from_secs(2);
/// How long one read or write of the register may take.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a disk must be away, and its node there with another, before that takes its place.
const LOST_FOR: Duration = Duration::from_secs(2);
/// How long an observer may be away before it is struck off the list; it registers anew where it comes back.
const ABSENT_FOR: Duration = Duration::from_secs(600);
/// How long a peer may take to say how far it is.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a write is tried that another one came before.
const WRITES_MAX: usize = 8;

/// What a node is asked for.
#[derive(Debug)]
pub(super) enum Order {
    /// A change of voters; answered when it is begun, or with why it cannot be.
    Change(VoterChange, oneshot::Sender<Result<(), ChangeError>>),
    /// To decide alone from now on.
    Recover(oneshot::Sender<Result<(), ChangeError>>),
}

/// What is written in the register.
struct Written {
    membership: Membership,
    /// None where nothing is.
    upd: Option<Ballot>,
}

/// Serves orders, and does what is due without one. Ends with the driver.
pub(super) async fn serve(mut orders: mpsc::Receiver<Order>, rooms: Rooms) {
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut due = Due::default();
    let mut begun: Option<tokio::task::JoinHandle<()>> = None;
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                None => return,
                Some(Order::Recover(reply)) => {
                    // Whoever asked and has gone needs no answer.
                    let _ = reply.send(recover(&rooms).await);
                }
                Some(Order::Change(_, reply)) if begun.as_ref().is_some_and(|task| !task.is_finished()) => {
                    let _ = reply.send(Err(unavailable("this node prepares another change; try again when it is done")));
                }
                Some(Order::Change(change, reply)) => match check(&rooms, &change).await {
                    Ok(true) => {
                        say(&rooms, &change.to_string(), "begun".to_owned(), false);
                        begun = Some(tokio::spawn(begin(rooms.clone(), change)));
                        let _ = reply.send(Ok(()));
                    }
                    Ok(false) => {
                        rooms.progress.send_replace(None);
                        let _ = reply.send(Ok(()));
                    }
                    Err(why) => drop(reply.send(Err(why))),
                },
            },
            _ = look.tick() => due.look(&rooms).await,
        }
    }
}

/// Since when something has been waiting to be done by somebody.
#[derive(Debug, Default)]
struct Due(Option<(Task, Duration)>);

/// What a node does without being asked to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Task {
    /// Ending the joint epoch.
    Finish(u64),
    /// Putting a new disk in a lost one's place.
    Replace(VoterChange),
    /// Striking an observer off the list that has not been seen for long.
    Strike(VoterChange),
    /// Writing down which disks the voters of epoch 1 have.
    Bind,
}

impl Due {
    async fn look(&mut self, rooms: &Rooms) {
        let membership = rooms.membership.borrow().clone();
        let Some(me) = rooms.me() else {
            self.0 = None;
            return have_registered(rooms, &membership).await;
        };
        let connected = connected(rooms).await;
        let Some(task) = task(&membership, &connected) else {
            self.0 = None;
            return;
        };
        let now = rooms.clock.now().monotonic;
        let since = match &self.0 {
            Some((same, since)) if *same == task => *since,
            _ => {
                self.0 = Some((task.clone(), now));
                now
            }
        };
        let rank =
            membership.voters().filter(|voter| voter.replica() < me && connected.contains(&voter.replica())).count();
        let patience = match task {
            Task::Finish(_) => Duration::ZERO,
            Task::Replace(_) | Task::Bind => LOST_FOR,
            Task::Strike(_) => ABSENT_FOR,
        };
        let is_mine = membership.is_voter(me)
            && now.saturating_sub(since) >= patience + PRECEDENCE * u32::try_from(rank).unwrap_or(u32::MAX);
        if !is_mine {
            return;
        }
        let done = match &task {
            Task::Finish(_) => finish(rooms, &membership).await,
            Task::Replace(change) | Task::Strike(change) => {
                write(rooms, |now| now.begin(change).map_err(refused(change))).await.map(drop)
            }
            Task::Bind => write(rooms, |now| Ok(Some(now.clone()))).await.map(drop),
        };
        if let Err(error) = done {
            tracing::warn!(?task, %error, "changing the cluster's configuration; it is tried again");
        }
    }
}

fn task(membership: &Membership, connected: &BTreeSet<usize>) -> Option<Task> {
    if membership.is_joint() {
        return Some(Task::Finish(membership.epoch()));
    }
    if let Some(change) = membership.lost_disk(|slot| connected.contains(&slot)) {
        return Some(Task::Replace(change));
    }
    let is_unbound = membership.voters().any(|voter| voter.storage_id.is_none());
    let all_there = membership.voters().all(|voter| connected.contains(&voter.replica()));
    let several = membership.members().len() > 1;
    if is_unbound && all_there && several && membership.epoch() >= FIRST_EPOCH {
        return Some(Task::Bind);
    }
    membership.absent_observer(|slot| connected.contains(&slot)).map(Task::Strike)
}

/// Asks one voter after the other for a slot.
async fn have_registered(rooms: &Rooms, membership: &Membership) {
    let disk = rooms.greeter.figures().storage_id;
    let links: BTreeSet<NodeId> = rooms.transport.links().into_iter().map(|link| link.node).collect();
    let voters = membership.voter_names().into_iter().filter(|voter| links.contains(voter)).collect::<Vec<_>>();
    // One that knows of no voters asks whom it knows.
    let asked = if voters.is_empty() { links.into_iter().collect() } else { voters };
    for peer in asked {
        match tokio::time::timeout(REGISTER_TIMEOUT, With::new(&peer, rooms).register(disk)).await {
            Ok(Ok(())) => return tracing::info!(%peer, "registered as a member"),
            Ok(Err(error)) => tracing::debug!(%peer, %error, "registering as a member"),
            Err(_) => tracing::debug!(%peer, "registering as a member took too long"),
        }
    }
}

/// Gives another node's disk a slot.
pub(super) async fn register(rooms: &Rooms, node: &NodeId, disk: StorageId) -> Result<(), ChangeError> {
    write(rooms, |now| now.register(node, disk).map_err(unavailable)).await.map(drop)
}

/// True where the change is to be made, false where all is as wished.
async fn check(rooms: &Rooms, change: &VoterChange) -> Result<bool, ChangeError> {
    let Written { membership, .. } = read(rooms).await?;
    let Some(next) = membership.begin(change).map_err(refused(change))? else { return Ok(false) };
    decides(rooms, &next).await.map(|()| true)
}

/// Whether those who are to decide from then on are there: once the joint epoch has begun there is no way back.
async fn decides(rooms: &Rooms, next: &Membership) -> Result<(), ChangeError> {
    let connected = connected(rooms).await;
    let Some(told) = next.cannot_decide(|slot| connected.contains(&slot)) else { return Ok(()) };
    Err(unavailable(format!(
        "old and new voters could not decide together now, and nothing could be written: in reach {told}; \
         nothing was changed, try again when more of them are up"
    )))
}

/// Says how a change stands, where that is news.
fn say(rooms: &Rooms, change: &str, step: String, failed: bool) {
    let status = Some(ChangeStatus { change: change.to_owned(), step, failed });
    rooms.progress.send_if_modified(|known| {
        let is_news = *known != status;
        if is_news {
            tracing::info!(?status, "changing voters");
            known.clone_from(&status);
        }
        is_news
    });
}

/// Lets the new voter get level, then begins.
async fn begin(rooms: Rooms, change: VoterChange) {
    let say = |step: String, failed: bool| say(&rooms, &change.to_string(), step, failed);
    let next = rooms.membership.borrow().begin(&change);
    if let Ok(Some(next)) = next
        && let Err(why) = prepare(&rooms, &change, &next, &say).await
    {
        return say(why, true);
    }
    match write(&rooms, |now| now.begin(&change).map_err(refused(&change))).await {
        Ok(next) if next.is_joint() => {
            say(format!("epoch {}: old and new voters decide together", next.epoch()), false);
        }
        Ok(next) => say(format!("done: epoch {}", next.epoch()), false),
        Err(ChangeError::Refused(_, why)) => say(why.to_string(), true),
        Err(error) => say(format!("it could not be begun: {error}"), true),
    }
}

/// Has those who are to replicate more than they do copy it, so that the joint epoch is short, and looks whether it can be
/// left again.
async fn prepare(
    rooms: &Rooms,
    change: &VoterChange,
    next: &Membership,
    say: &impl Fn(String, bool),
) -> Result<(), String> {
    let gaining: Vec<&NodeId> =
        next.members().iter().filter(|member| next.may_gain(member.replica())).map(|member| &member.node).collect();
    if !gaining.is_empty() {
        let names = gaining.iter().map(|node| node.as_str()).collect::<Vec<_>>().join(", ");
        say(format!("copying what a majority has, on {names}"), false);
    }
    let levelled = gaining.iter().map(async |node| (*node, level(rooms, next, node).await));
    for (node, levelled) in futures_util::future::join_all(levelled).await {
        match levelled {
            Err(error) if change.needs(node) => {
                return Err(format!("{node} could not copy what a majority has: {error}; nothing was changed"));
            }
            // It will have to copy the more when it compares.
            Err(error) => tracing::info!(%node, error, "copying what it is to replicate"),
            Ok(()) => {}
        }
    }
    decides(rooms, next).await.map_err(|why| why.to_string())
}

/// Waits until a node has all that a majority has of what it is to replicate and does not yet.
async fn level(rooms: &Rooms, next: &Membership, node: &NodeId) -> Result<(), String> {
    if rooms.greeter.node() == *node {
        return super::level::all(rooms, next).await.map_err(|why| why.to_string());
    }
    With::new(node, rooms).wait_level(next).await.map_err(|error| error.to_string())
}

/// Ends a joint epoch where its new voters know what the old ones chose.
async fn finish(rooms: &Rooms, membership: &Membership) -> Result<(), ChangeError> {
    let new = membership.new_voters().iter().filter_map(|slot| membership.member(*slot));
    let asked = futures_util::future::join_all(new.map(|new| how_far(rooms, new))).await;
    let scanned: BTreeMap<usize, Scanned> = asked.into_iter().flatten().collect();
    let has_compared = |new, old| scan::has_compared(&scanned, membership.epoch(), new, old);
    let new = membership.new_voters();
    let step = format!(
        "epoch {}: {} of {} new voters have compared their rows with a majority of the old ones",
        membership.epoch(),
        new.iter().filter(|new| membership.is_level(**new, has_compared)).count(),
        new.len()
    );
    let change =
        rooms.progress.borrow().as_ref().map_or_else(|| "change of voters".to_owned(), |known| known.change.clone());
    say(rooms, &change, step, false);
    if !membership.is_scanned(has_compared) {
        return Ok(());
    }
    let joint = membership.epoch();
    let done = write(rooms, |now| Ok(if now.epoch() == joint { now.finish() } else { None })).await?;
    say(rooms, &change, format!("done: epoch {}", done.epoch()), false);
    Ok(())
}

/// With whom a new voter has compared its rows, as far as it says so.
async fn how_far(rooms: &Rooms, new: &Member) -> Option<(usize, Scanned)> {
    let slot = new.replica();
    if rooms.greeter.slot() == Some(new.slot) {
        return Some((slot, rooms.scanned.lock().clone()));
    }
    let asked = tokio::time::timeout(ASK_TIMEOUT, With::new(&new.node, rooms).scanned()).await;
    let error = match asked.unwrap_or(Err(Error::Unsettled)) {
        Ok(scanned) => return Some((slot, scanned)),
        Err(error) => error,
    };
    tracing::debug!(peer = %new.node, %error, "asking how far a new voter is");
    None
}

/// Decides alone from now on, as the only voter.
async fn recover(rooms: &Rooms) -> Result<(), ChangeError> {
    let (membership, disk) = (rooms.membership.borrow().clone(), rooms.greeter.figures().storage_id);
    let voters = rooms.ask(|reply| Input::Voters { reply }).await.map_err(unavailable)?;
    let Voters { me: voting, peers, .. } = voters.ok_or_else(|| unavailable(Error::Stopping))?;
    if membership.quorums().is_met(|slot| voting == Some(slot) || peers.iter().any(|(peer, _)| *peer == slot)) {
        return Err(ChangeError::NotLost(
            "a majority of the voters is in reach; to replace a disk, see `cluster replace`",
        ));
    }
    if voting.is_none() && rooms.greeter.slot().is_some() {
        // It would be a cluster whose only voter may not vote.
        return Err(ChangeError::NotLost(
            "this node's disk must not vote any more; restart the node, which makes it another disk with the same rows, \
             and ask it again",
        ));
    }
    let me = rooms.greeter.node();
    let alone =
        membership.forced(&me, disk).ok_or(ChangeError::NotLost("this node has not heard of any configuration"))?;
    let Some(slot) = alone.slot_of(&me, disk) else { return Err(ChangeError::NotLost("this node would have no slot")) };
    // Above whatever this node knows, and as good as chosen: by the decision of whoever runs the cluster.
    let address = configuration_address();
    let known = match rooms.manager.find(&address.shard).await.map_err(unavailable)? {
        Some(open) => open.stored(&address.key).map_err(unavailable)?.map_or(Ballot::ZERO, |row| row.ballot),
        None => Ballot::ZERO,
    };
    let wall = rooms.clock.now().wall;
    let ballot = Ballot::at(wall.max(known.nanos().saturating_add(1 << crate::types::SLOT_BITS)), slot);
    let epoch = alone.epoch();
    let op = Op::Put(Value::from(alone.encode()));
    let record = Record { ballot, upd: ballot, op, lineage: Lineage::default() };
    tracing::warn!(epoch, was = ?membership.voter_names(), "this node decides alone from now on, as it was told to");
    install(rooms, address, record).await
}

async fn install(rooms: &Rooms, address: Address, record: Record) -> Result<(), ChangeError> {
    let installed =
        rooms.ask(|done| Input::Install { rows: vec![(address, record)], done }).await.map_err(unavailable)?;
    installed.ok_or_else(|| unavailable("the configuration could not be written to this disk"))
}

/// Who is there, this node included, by slots.
async fn connected(rooms: &Rooms) -> BTreeSet<usize> {
    rooms.ask(|reply| Input::Connected { reply }).await.ok().flatten().unwrap_or_default()
}

/// What is in the register, or what it begins with.
async fn read(rooms: &Rooms) -> Result<Written, ChangeError> {
    let outcome = propose(rooms, Update::read()).await?;
    let first = rooms.greeter.membership();
    match outcome.before {
        None => Ok(Written { membership: first, upd: None }),
        Some(row) => {
            let membership = Membership::decode(row.value.as_bytes()).map_err(unavailable)?;
            Ok(Written { membership, upd: Some(row.upd) })
        }
    }
}

/// Writes what `change` makes of what is in the register, unless it makes nothing; and waits until this node goes by it.
async fn write(
    rooms: &Rooms,
    change: impl Fn(&Membership) -> Result<Option<Membership>, ChangeError>,
) -> Result<Membership, ChangeError> {
    for _ in 0..WRITES_MAX {
        let Written { membership, upd } = read(rooms).await?;
        let known = membership.with_disks(|node| rooms.greeter.disk_of(node));
        let next = match change(&known)? {
            Some(next) if next != membership => next,
            _ => return Ok(membership),
        };
        let condition = upd.map_or(Condition::Absent, Condition::UpdIs);
        let put = update::Change::Put(Value::from(next.encode()));
        let outcome = propose(rooms, Update { condition, change: put }).await?;
        if outcome.verdict == Verdict::Written {
            return Ok(next);
        }
    }
    Err(unavailable("others change the configuration at the same time; try again"))
}

fn unavailable(why: impl std::fmt::Display) -> ChangeError {
    ChangeError::Unavailable(why.to_string())
}

fn refused(change: &VoterChange) -> impl Fn(Refused) -> ChangeError {
    move |why| ChangeError::Refused(change.clone(), why)
}

async fn propose(rooms: &Rooms, update: Update) -> Result<update::Outcome, ChangeError> {
    let Address { shard, key } = configuration_address();
    let proposal = Proposal { shard, key, update, timeout: Some(REGISTER_TIMEOUT) };
    let decision = rooms.ask(|reply| Input::Propose { proposal, reply }).await.map_err(unavailable)?;
    match decision.ok_or_else(|| unavailable(Error::Stopping))? {
        Decision::Accept(outcome) => Ok(outcome),
        Decision::Reject(why) => Err(unavailable(why)),
        Decision::Timeout => Err(unavailable("no answer in time; it may have been written all the same")),
    }
}
