//! Which shards this node holds, and which its peers do (DESIGN §6).
//!
//! A node *holds* the shards that it replicates and those that its application uses, its *copies*. Whoever commits a record
//! tells all who hold its shard; whoever compares rows compares those of shards that both hold.
//!
//! ```text
//!   first use ─► Follow to every peer ─► all that a majority of its replicas has ─► local reads
//!                (they tell us from now on)
//! ```
//!
//! A copy that nobody has used for long is given up, and so is one of a shard that this node replicates no more, once a
//! majority of those who do has heard of that.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::RwLock;
use tokio::sync::{mpsc, oneshot};

use super::catch_up::{Error, With, blocking};
use super::{Input, Rooms, level};
use crate::cluster::membership::{Membership, Quorums};
use crate::store::Manager;
use crate::store::replicator::Rejection;
use crate::types::{NodeId, ShardId, Slot};

/// Requests for a first copy that wait.
pub(super) const WANTED_MAX: usize = 4096;
/// First copies fetched at once.
const FETCHES_MAX: usize = 8;
/// How long those who wait for a first copy wait.
const FETCH_WITHIN: Duration = Duration::from_secs(30);
/// Shards that an application may use at a time.
const USED_MAX: usize = 1 << 18;
/// Shards that a peer may follow one by one; one that follows more is told of everything.
const FOLLOWED_MAX: usize = 65_536;
/// How long until what could not be given up is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How long a peer may take to hear which shards are used here.
const TELL_WITHIN: Duration = Duration::from_secs(10);

type Reply = oneshot::Sender<Result<(), Rejection>>;

/// Somebody waits for the first copy of a shard.
#[derive(Debug)]
pub(super) struct Wanted {
    shard: ShardId,
    reply: Option<Reply>,
}

/// One shard that the application uses.
#[derive(Debug, Default)]
struct Copy {
    /// All that was acknowledged before some moment since it is followed is here.
    is_whole: bool,
    /// Since when copies were last looked over.
    is_used: AtomicBool,
}

/// What a peer follows.
#[derive(Debug, Default)]
struct Followed {
    shards: HashSet<ShardId>,
    is_everything: bool,
}

/// The shards that this node's application uses, and those that peers have asked to be told of.
#[derive(Debug, Default)]
pub(super) struct Copies {
    used: RwLock<HashMap<ShardId, Copy>>,
    followed: RwLock<BTreeMap<NodeId, Followed>>,
    /// What this node is to replicate by the configuration that is next.
    expected: RwLock<Option<Membership>>,
    /// This node replicates every shard.
    holds_all: AtomicBool,
    /// It has compared what it replicates with so many that nothing is missing in it, of whichever shard.
    is_level: AtomicBool,
    /// It has come to replicate what it did not, and not been level since: most of it may be missing still.
    is_filling: AtomicBool,
    /// Held while a copy is being given up.
    giving_up: tokio::sync::Mutex<()>,
}

impl Copies {
    /// True where local reads of the shard may go on; counts as a use of it.
    pub(super) fn is_at_hand(&self, shard: &ShardId) -> bool {
        if let Some(copy) = self.used.read().get(shard) {
            if !copy.is_used.load(Ordering::Relaxed) {
                copy.is_used.store(true, Ordering::Relaxed);
            }
            return copy.is_whole || self.holds_every_shard();
        }
        let holds_all = self.holds_every_shard();
        if holds_all {
            let mut used = self.used.write();
            if used.len() < USED_MAX {
                used.insert(shard.clone(), Copy { is_whole: true, is_used: AtomicBool::new(true) });
            }
        }
        holds_all
    }

    /// True where this node replicates every shard, and has for long enough to have what is in them.
    pub(super) fn holds_every_shard(&self) -> bool {
        self.holds_all.load(Ordering::Relaxed) && !self.is_filling.load(Ordering::Relaxed)
    }

    /// Looks whether this node replicates every shard: after a change of voters, or where it turns out that its disk has no vote.
    pub(super) fn set_holds_all(&self, holding: &Holding<'_>) {
        let membership = &holding.membership;
        // Who gets its vote by a change that is under way has yet to compare.
        let is_voter = holding.me.is_some_and(|me| membership.will_vote(me) && membership.old_voters().contains(&me));
        self.holds_all.store(membership.is_everywhere() && is_voter, Ordering::Relaxed);
    }

    /// Whether all that this node replicates has been compared with enough others since it came to replicate it.
    pub(super) fn set_level(&self, is_level: bool) {
        self.is_level.store(is_level, Ordering::Relaxed);
        if is_level {
            self.is_filling.store(false, Ordering::Relaxed);
        }
    }

    /// This node has come to replicate what it did not: it is there once this is level.
    pub(super) fn has_gained(&self) {
        self.is_filling.store(true, Ordering::Relaxed);
    }

    /// Waits for a copy that is being given up. Whoever has been told before what this node is to hold from now on finds all
    /// of that there, or none of it, and not half-way.
    pub(super) async fn none_given_up(&self) {
        drop(self.giving_up.lock().await);
    }

    /// Counts as a use of the shard. False where it is news that it is used, and a copy has to be fetched.
    pub(super) fn note_use(&self, shard: &ShardId) -> bool {
        self.is_at_hand(shard) || self.is_used(shard) || !self.use_from_now_on(shard)
    }

    /// False where there is no room for one more.
    fn use_from_now_on(&self, shard: &ShardId) -> bool {
        let mut used = self.used.write();
        let has_room = used.len() < USED_MAX || used.contains_key(shard);
        if has_room {
            used.entry(shard.clone()).or_default().is_used.store(true, Ordering::Relaxed);
        }
        has_room
    }

    pub(super) fn is_used(&self, shard: &ShardId) -> bool {
        self.used.read().contains_key(shard)
    }

    fn set_whole(&self, shard: &ShardId) {
        if let Some(copy) = self.used.write().get_mut(shard) {
            copy.is_whole = true;
        }
    }

    /// A peer wants to be told of these from now on, and, where it begins `anew`, of nothing else.
    pub(super) fn follow(&self, node: &NodeId, shards: Vec<ShardId>, anew: bool) {
        let mut followed = self.followed.write();
        let of_node = followed.entry(node.clone()).or_default();
        if anew {
            *of_node = Followed::default();
        }
        of_node.shards.extend(shards);
        if of_node.shards.len() > FOLLOWED_MAX {
            *of_node = Followed { shards: HashSet::new(), is_everything: true };
        }
    }

    /// True where the peer has asked to be told of the shard.
    pub(super) fn is_followed_by(&self, node: &NodeId, shard: &ShardId) -> bool {
        let followed = self.followed.read();
        followed.get(node).is_some_and(|known| known.is_everything || known.shards.contains(shard))
    }

    /// What this node is to replicate by this configuration, which is about to be decided on, is fetched now.
    pub(super) fn expect(&self, next: Membership) {
        *self.expected.write() = Some(next);
    }

    /// Forgets what those follow who are no members any more, and what was expected of the change that has begun, or another.
    fn on_membership(&self, before: &Membership, now: &Membership) {
        self.followed.write().retain(|node, _| now.members().iter().any(|member| member.node == *node));
        if now.epoch() != before.epoch() {
            *self.expected.write() = None;
        }
    }

    /// Stops using what has not been used since the last call, and is not watched.
    fn let_unused_go(&self, is_watched: impl Fn(&ShardId) -> bool) {
        self.used.write().retain(|shard, copy| copy.is_used.swap(false, Ordering::Relaxed) || is_watched(shard));
    }
}

/// Who holds what, as of one configuration.
pub(super) struct Holding<'a> {
    pub(super) membership: Membership,
    pub(super) me: Option<usize>,
    copies: &'a Copies,
}

impl Holding<'_> {
    /// True where this node is to have all rows of the shard.
    pub(super) fn is_mine(&self, shard: &ShardId) -> bool {
        shard.is_system() || self.replicates(self.me, shard) || self.copies.is_used(shard)
    }

    /// True where that peer is.
    pub(super) fn is_of(&self, peer: &NodeId, shard: &ShardId) -> bool {
        let mut slots = self.membership.members().iter().filter(|member| member.node == *peer).map(|m| m.replica());
        shard.is_system()
            || slots.any(|slot| self.membership.is_replica(shard, slot))
            || self.copies.is_followed_by(peer, shard)
    }

    /// True where both hold every shard.
    pub(super) fn is_even(&self, peer: &NodeId) -> bool {
        let membership = &self.membership;
        let votes = |slot: usize| membership.old_voters().contains(&slot) && membership.will_vote(slot);
        let mut members = membership.members().iter();
        membership.is_everywhere()
            && self.me.is_some_and(votes)
            && members.any(|member| member.node == *peer && votes(member.replica()))
    }

    fn replicates(&self, slot: Option<usize>, shard: &ShardId) -> bool {
        slot.is_some_and(|slot| self.membership.is_replica(shard, slot))
    }
}

impl Rooms {
    /// This node's own slot, if it has one.
    pub(super) fn me(&self) -> Option<usize> {
        self.greeter.slot().map(Slot::replica)
    }

    pub(super) fn holding(&self) -> Holding<'_> {
        Holding { membership: self.membership.borrow().clone(), me: self.me(), copies: &self.copies }
    }

    /// What this node's application uses and it does not replicate: peers must be asked to tell of it.
    pub(super) fn followed(&self) -> Vec<ShardId> {
        let holding = self.holding();
        let used = self.copies.used.read();
        used.keys().filter(|shard| !holding.replicates(holding.me, shard)).cloned().collect()
    }
}

/// Notes what is on the disk when the node starts: that goes on being held, until it turns out to be of no use.
pub(super) async fn begin(rooms: &Rooms) {
    rooms.copies.set_holds_all(&rooms.holding());
    if rooms.greeter.boot() == 1 && rooms.membership.borrow().voters().count() > 1 {
        // A voter by the file alone: the disk that is meant may be another one, and much may have been written since.
        rooms.copies.has_gained();
    }
    keep_for_now(rooms).await;
}

/// Goes on holding what is on the disk and this node does not replicate, as if it had just been used: it may have voted on
/// what nobody else has, where others were made to decide without it.
async fn keep_for_now(rooms: &Rooms) {
    let manager = rooms.manager.clone();
    let listed = match blocking(move || stored(&manager)).await {
        Ok(listed) => listed,
        Err(error) => {
            return tracing::warn!(%error, "which shards are on this disk could not be told; they are fetched anew");
        }
    };
    let kept: Vec<ShardId> = {
        let holding = rooms.holding();
        listed.into_iter().filter(|shard| !holding.replicates(holding.me, shard)).collect()
    };
    for shard in kept {
        let (manager, of) = (rooms.manager.clone(), shard.clone());
        // Kept though it cannot be told: it is fetched again where it is used.
        let is_whole = blocking(move || manager.is_whole(&of)).await.unwrap_or_else(|error| {
            tracing::warn!(%shard, %error, "whether this copy is whole could not be told");
            false
        });
        let kept = Copy { is_whole, is_used: AtomicBool::new(true) };
        rooms.copies.used.write().entry(shard).or_insert(kept);
    }
}

fn stored(manager: &Manager) -> Result<Vec<ShardId>, crate::store::Error> {
    let mut shards = Vec::new();
    for org in manager.orgs()? {
        shards.extend(manager.shards_of(&org)?);
    }
    shards.retain(|shard| !shard.is_system());
    Ok(shards)
}

/// Waits for the first copy of a shard.
pub(super) async fn fetch(to: &mpsc::Sender<Wanted>, shard: &ShardId) -> Result<(), Rejection> {
    let busy = |why: &str| Rejection::Busy(why.to_owned());
    let (reply, answer) = oneshot::channel();
    to.try_send(Wanted { shard: shard.clone(), reply: Some(reply) })
        .map_err(|_| busy("too many shards are waited for that this node has no copy of yet; try again"))?;
    answer.await.unwrap_or_else(|_| Err(busy("this node is shutting down")))
}

/// Has the first copy of a shard fetched; nobody waits.
pub(super) fn prefetch(to: &mpsc::Sender<Wanted>, shard: &ShardId) {
    // Where there is no room for it now, the next use asks again.
    let _ = to.try_send(Wanted { shard: shard.clone(), reply: None });
}

/// Fetches first copies. Ends with the driver.
pub(super) async fn serve(mut wanted: mpsc::Receiver<Wanted>, rooms: Rooms) {
    let mut waiting: HashMap<ShardId, Vec<Reply>> = HashMap::new();
    let mut fetching = FuturesUnordered::new();
    loop {
        tokio::select! {
            next = wanted.recv(), if fetching.len() < FETCHES_MAX => {
                let Some(Wanted { shard, reply }) = next else { return };
                let is_new = !waiting.contains_key(&shard);
                waiting.entry(shard.clone()).or_default().extend(reply);
                if is_new {
                    let rooms = rooms.clone();
                    fetching.push(async move {
                        let fetched = first_copy(&shard, &rooms).await;
                        (shard, fetched)
                    });
                }
            },
            Some((shard, fetched)) = fetching.next() => {
                for reply in waiting.remove(&shard).unwrap_or_default() {
                    // Whoever asked and has gone needs no answer.
                    let _ = reply.send(fetched.clone());
                }
            }
        }
    }
}

/// Goes on following what is used whatever is replicated here, and gives up what is of no use. Ends with the driver.
pub(super) async fn follow(rooms: Rooms, wanted: mpsc::Sender<Wanted>, unused_drop_after: Duration) {
    let mut changes = rooms.membership.subscribe();
    let mut known = changes.borrow_and_update().clone();
    let mut look_over = tokio::time::interval(unused_drop_after / 2);
    look_over.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    look_over.tick().await;
    let mut look = tokio::time::interval(LOOK_AGAIN);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                let before = std::mem::replace(&mut known, changes.borrow_and_update().clone());
                rooms.copies.on_membership(&before, &known);
                rooms.copies.set_holds_all(&rooms.holding());
                if !known.follows_on(&before) {
                    keep_for_now(&rooms).await;
                }
                follow_all(&rooms).await;
            }
            _ = look_over.tick() => rooms.copies.let_unused_go(|shard| rooms.manager.feed().is_watched(shard)),
            _ = look.tick() => {
                // To watch a shard is to use it, all the while.
                let watched = rooms.manager.feed().watched().into_iter().filter(|shard| !shard.is_system());
                watched.filter(|shard| !rooms.copies.is_at_hand(shard)).for_each(|shard| prefetch(&wanted, &shard));
                // As of the configuration that was looked at above: what it leaves here may have to be kept.
                give_up(&rooms, &known).await;
            }
        }
    }
}

async fn first_copy(shard: &ShardId, rooms: &Rooms) -> Result<(), Rejection> {
    // Before anybody is asked: a configuration that comes meanwhile has peers asked again.
    if !rooms.copies.use_from_now_on(shard) {
        return Err(Rejection::Busy(format!("{USED_MAX} shards are used on this node already; try again later")));
    }
    match tokio::time::timeout(FETCH_WITHIN, make_whole(shard, rooms)).await {
        Ok(made) => made?,
        Err(_) => {
            return Err(Rejection::no_copy_within(shard, FETCH_WITHIN));
        }
    }
    rooms.copies.set_whole(shard);
    Ok(())
}

async fn make_whole(shard: &ShardId, rooms: &Rooms) -> Result<(), Rejection> {
    let no_copy = |why: String| Rejection::NoQuorum(format!("this node has no copy of {shard} yet: {why}"));
    let (replicates, is_alone) = {
        let holding = rooms.holding();
        if shard.is_system() || rooms.copies.holds_every_shard() {
            return Ok(());
        }
        let replicates = holding.replicates(holding.me, shard);
        (replicates, replicates && holding.membership.quorums_on(shard).replicas().len() == 1)
    };
    if !replicates {
        tell_all(rooms, std::slice::from_ref(shard)).await;
    }
    // Held from before the comparison on, so that no other file comes in its place.
    let _held = rooms.manager.find(shard).await.map_err(|error| no_copy(error.to_string()))?;
    let (manager, of) = (rooms.manager.clone(), shard.clone());
    if blocking(move || manager.is_whole(&of)).await.map_err(|error| no_copy(error.to_string()))? {
        return Ok(());
    }
    let is_level = is_alone || (replicates && rooms.copies.is_level.load(Ordering::Relaxed));
    if !is_level {
        // In a turn of its own: it does not wait for comparisons of everything.
        let rooms = Rooms { fetching: Arc::default(), ..rooms.clone() };
        level::rows(shard, &rooms).await.map_err(|why| match why {
            Rejection::NoQuorum(why) => no_copy(why),
            other => other,
        })?;
    }
    let (manager, of) = (rooms.manager.clone(), shard.clone());
    blocking(move || manager.mark_whole(&of)).await.map_err(|error| no_copy(error.to_string()))
}

/// Asks every peer to tell of all that is followed, after this node has come to replicate other shards than before.
async fn follow_all(rooms: &Rooms) {
    if !rooms.copies.holds_every_shard() {
        tell_all(rooms, &rooms.followed()).await;
    }
}

/// Whoever cannot be told now is told when rows are next compared with him.
async fn tell_all(rooms: &Rooms, shards: &[ShardId]) {
    let members: BTreeSet<NodeId> = rooms.membership.borrow().members().iter().map(|m| m.node.clone()).collect();
    let peers: Vec<NodeId> =
        rooms.transport.links().into_iter().map(|link| link.node).filter(|node| members.contains(node)).collect();
    let told = peers.iter().map(async |peer| {
        match tokio::time::timeout(TELL_WITHIN, With::new(peer, rooms).follow(shards, false)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%peer, %error, "a peer was not told which shards are used here"),
            Err(_) => tracing::debug!(%peer, "telling a peer which shards are used here took too long"),
        }
    });
    futures_util::future::join_all(told).await;
}

/// Gives up the copies that this node neither replicates nor uses, where a majority of those who replicate them goes by this
/// configuration, or a later one.
async fn give_up(rooms: &Rooms, known: &Membership) {
    if rooms.copies.holds_every_shard() {
        return;
    }
    let Ok(Some(epochs)) = rooms.ask(|reply| Input::Epochs { reply }).await else { return };
    let manager = rooms.manager.clone();
    let Ok(listed) = blocking(move || stored(&manager)).await else { return };
    let vain = {
        let (rooms, known) = (rooms.clone(), known.clone());
        move |listed: Vec<ShardId>| vain(&rooms, &known, &epochs, listed)
    };
    for shard in vain(listed) {
        let _giving_up = rooms.copies.giving_up.lock().await;
        let (manager, of, vain) = (rooms.manager.clone(), shard.clone(), vain.clone());
        match blocking(move || manager.discard(&of, || !vain(vec![of.clone()]).is_empty())).await {
            Ok(true) => {
                tracing::info!(%shard, "this node's copy was given up: it neither replicates nor uses the shard");
            }
            Ok(false) => {}
            Err(Error::Stopping) => return,
            Err(error) => tracing::warn!(%shard, %error, "a copy could not be given up; it is tried again"),
        }
    }
}

/// Those of the shards that are of no use here, by `known`: none where a change has come since that was looked at.
fn vain(rooms: &Rooms, known: &Membership, epochs: &BTreeMap<usize, u64>, mut listed: Vec<ShardId>) -> Vec<ShardId> {
    let holding = rooms.holding();
    let me = holding.me.filter(|_| holding.membership == *known && !known.is_joint());
    let expected = rooms.copies.expected.read();
    listed.retain(|shard| {
        let Some(me) = me.filter(|_| !holding.is_mine(shard)) else { return false };
        let is_expected = expected.as_ref().is_some_and(|next| next.new_replicas(shard).contains(&me));
        let has_it = |slot: usize| slot == me || epochs.get(&slot).is_some_and(|theirs| *theirs >= known.epoch());
        !is_expected && Quorums::majority_of(known.new_replicas(shard)).is_met(has_it)
    });
    listed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(name: &str) -> ShardId {
        ShardId::parse("acme", name).unwrap()
    }

    #[test]
    fn what_is_not_used_between_two_looks_is_let_go() {
        let copies = Copies::default();
        assert!(!copies.is_at_hand(&shard("a")) && !copies.is_used(&shard("a")));
        copies.use_from_now_on(&shard("a"));
        assert!(copies.is_used(&shard("a")) && !copies.is_at_hand(&shard("a")), "not whole yet");
        copies.set_whole(&shard("a"));
        assert!(copies.is_at_hand(&shard("a")));
        copies.let_unused_go(|_| false);
        assert!(copies.is_at_hand(&shard("a")), "a use");
        copies.let_unused_go(|_| false);
        copies.let_unused_go(|_| true);
        assert!(copies.is_used(&shard("a")), "it is watched");
        copies.let_unused_go(|_| false);
        assert!(!copies.is_used(&shard("a")));
        copies.holds_all.store(true, Ordering::Relaxed);
        assert!(copies.is_at_hand(&shard("b")) && copies.is_used(&shard("b")));
    }

    #[test]
    fn who_follows_too_much_is_told_of_everything() {
        let (copies, b) = (Copies::default(), NodeId::parse("b").unwrap());
        copies.follow(&b, vec![shard("z")], false);
        copies.follow(&b, vec![shard("a")], true);
        assert!(!copies.is_followed_by(&b, &shard("z")));
        assert!(copies.is_followed_by(&b, &shard("a")) && !copies.is_followed_by(&b, &shard("c")));
        copies.follow(&b, (0..FOLLOWED_MAX).map(|n| shard(&format!("n{n}"))).collect(), false);
        assert!(copies.is_followed_by(&b, &shard("c")));
    }
}
