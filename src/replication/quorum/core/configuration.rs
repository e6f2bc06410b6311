//! Who decides (DESIGN §5): the configuration is the value of a register like any other, and a node goes by a newer one as
//! soon as that is chosen and on its disk.
//!
//! ```text
//!   commit of the register ─► install: members, slots, quorums ─► rounds begin anew, batches of that epoch are taken in
//! ```
//!
//! Votes count among those of one epoch only. A batch of an older epoch is answered with the newer configuration; of one of
//! a later, the votes wait until this node has that too.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::oneshot;

use super::tasks::Task;
use super::{Core, Effect};
use crate::clock::Now;
use crate::cluster::membership::{Membership, NO_EPOCH};
use crate::cluster::placement::Electorate;
use crate::replication::quorum::installed::configuration_address;
use crate::replication::quorum::peers::{Link, Peer};
use crate::replication::register::{Address, Body, Message, Record};
use crate::replication::wire::{self, Batch};
use crate::store::StoredRow;
use crate::types::{Ballot, NodeId, Slot};

/// Batches of later epochs that wait until this node has installed those. Their senders ask again where one is lost.
const EARLY_BATCHES_MAX: usize = 256;

/// Bytes of them.
const EARLY_BYTES_MAX: usize = 32 << 20;

/// How long until a node is told the same again.
const TELL_AGAIN: Duration = Duration::from_millis(200);

/// What this node knows of the configuration.
pub(super) struct Configuration {
    address: Address,
    pub(super) membership: Membership,
    /// The row it was read from; none where that is the configuration file.
    row: Option<StoredRow>,
    /// What came too early, and from whom.
    early: Vec<(NodeId, Batch)>,
    /// The row that each was told of last, zero where it was asked for its own, and when.
    told: BTreeMap<NodeId, (Ballot, Duration)>,
}

impl Configuration {
    pub(super) fn new(membership: Membership, row: Option<StoredRow>) -> Self {
        Self { address: configuration_address(), membership, row, early: Vec::new(), told: BTreeMap::new() }
    }

    /// Whether to tell a node now: not the same twice in a row. One that cannot take a configuration in, as its disk is full,
    /// answers whatever it is told by showing its old epoch.
    fn is_time(&mut self, now: Duration, node: &NodeId, what: Ballot) -> bool {
        let is_due = self.told.get(node).is_none_or(|(told, when)| *told != what || *when + TELL_AGAIN <= now);
        if is_due {
            self.told.insert(node.clone(), (what, now));
        }
        is_due
    }

    /// Keeps what came too early, unless that is too much already.
    fn keep_early(&mut self, node: NodeId, batch: Batch) {
        let weight = |batch: &Batch| batch.messages.iter().map(Message::weight).sum::<usize>();
        let bytes: usize = self.early.iter().map(|(_, early)| weight(early)).sum();
        if self.early.len() < EARLY_BATCHES_MAX && bytes + weight(&batch) <= EARLY_BYTES_MAX {
            self.early.push((node, batch));
        }
    }

    /// The connection is another: what was said may not have arrived.
    pub(super) fn reconnected(&mut self, node: &NodeId) {
        self.told.remove(node);
    }
}

impl Core {
    /// Looks whether what was committed is the configuration, and goes by it if so.
    pub(super) fn see_configuration(&mut self, now: Now, address: &Address, record: &Record) {
        let known = self.configuration.row.as_ref().map(|row| row.ballot);
        if *address != self.configuration.address || known.is_some_and(|known| known >= record.ballot) {
            return;
        }
        let Some(value) = record.op.value() else { return };
        match Membership::decode(value.as_bytes()) {
            Ok(membership) => {
                let Record { ballot, upd, op, .. } = record.clone();
                self.configuration.row = Some(StoredRow { op, upd, ballot });
                self.install_configuration(now, membership);
            }
            // Going on by the old one is safe: whoever has a newer one takes no votes of it.
            Err(error) => tracing::error!(%error, "the cluster's configuration is of no use to this version"),
        }
    }

    fn install_configuration(&mut self, now: Now, membership: Membership) {
        // What was asked under the old epoch leaves as such.
        let stamp = self.stamp(now);
        self.peers.values_mut().for_each(|peer| peer.flush(stamp, &*self.rooms.transport));
        let epoch = membership.epoch();
        let former = std::mem::replace(&mut self.configuration.membership, membership);
        let before = former.epoch();
        self.rooms.greeter.set_membership(self.membership().clone());
        if epoch != before {
            self.peers.values_mut().for_each(Peer::forget_votes);
            self.local.retain(|message| !message.body.is_of_epoch());
            self.inherited =
                if self.membership().is_joint() { self.acceptor.all_pending().collect() } else { BTreeMap::new() };
            tracing::info!(epoch, voters = ?self.membership().voter_names(), joint = self.membership().is_joint(), "configuration installed");
        }
        self.meet_members(now);
        self.find_own_slot();
        if epoch != before {
            self.proposer.set_electorate(now, Electorate::of(&self.configuration.membership));
            self.let_votes_go(now);
        }
        self.update_reachable();
        self.rooms.membership.send_replace(self.membership().clone());
        if epoch != before {
            self.compare_what_came(&former);
        }
        let (due, early): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.configuration.early).into_iter().partition(|(_, batch)| batch.epoch <= epoch);
        self.configuration.early = early;
        for (node, batch) in due {
            // By what it is now: it may have got its slot with this.
            if let Some(from) = self.index(&node) {
                self.on_batch(now, from, batch);
            }
        }
        // Whoever wrote it may be gone before it has told all.
        for node in self.connected.keys().cloned().collect::<Vec<_>>() {
            self.tell_configuration(now, &node);
        }
    }

    /// Compares rows with the others where this node is to replicate what it did not. Peers tell of what is chosen from now on,
    /// and it may not have been among those whose comparison the change waited for.
    fn compare_what_came(&mut self, former: &Membership) {
        let Some(me) = self.me.filter(|me| self.membership().is_voter(*me)) else { return };
        let is_new = !former.is_voter(me);
        // One that missed the beginning of a change cannot tell what it came to.
        let gains = is_new || former.may_gain(me) || self.membership().may_gain(me);
        if !gains && self.membership().follows_on(former) {
            return;
        }
        self.rooms.copies.set_level(false);
        if gains {
            self.rooms.copies.has_gained();
        }
        self.peers.values_mut().for_each(|peer| peer.is_levelled = false);
        if is_new {
            self.compare_anew();
        } else {
            for (index, node) in self.peers.iter().map(|(slot, peer)| (*slot, peer.node.clone())).collect::<Vec<_>>() {
                self.catch_up(index, node);
            }
        }
    }

    /// Votes of this node on shards that it replicates no more are worth nothing: those who do know what became of them.
    pub(super) fn let_votes_go(&mut self, now: Now) {
        let Some(me) = self.me else { return };
        let membership = &self.configuration.membership;
        let gone = self.acceptor.let_go(|shard| membership.is_replica(shard, me));
        for (address, ballot) in gone {
            self.inherited_settled(&address, ballot);
            self.settled(now, &address, ballot);
        }
    }

    /// Under which number this node proposes, if any: its disk may be another than the one that is meant.
    pub(super) fn find_own_slot(&mut self) {
        let slot = self.rooms.greeter.slot();
        self.me = slot.map(Slot::replica);
        match slot {
            Some(slot) => self.proposer.set_slot(slot),
            None => tracing::warn!("this node is no member now; it registers with whoever answers"),
        }
    }

    /// Every other member has a place among the peers; who is connected with the right disk is met there.
    fn meet_members(&mut self, now: Now) {
        let (membership, me) = (self.configuration.membership.clone(), self.config.node.clone());
        let mut before = std::mem::take(&mut self.peers);
        for member in membership.members().iter().filter(|member| member.node != me) {
            let connected = self.connected.get(&member.node).copied();
            // Its node may have come with another disk than it had, or than was thought.
            let disk = connected.filter(|disk| membership.slot_of(&member.node, *disk) == Some(member.slot));
            let kept = before.remove(&member.replica());
            let mut peer =
                kept.filter(|peer| peer.node == member.node).unwrap_or_else(|| Peer::new(member.node.clone()));
            if disk.is_none() {
                peer.down();
            }
            // One that had forgotten is another one by now, where it is a member.
            let is_unmet = matches!(peer.link, Link::Down | Link::Forgot);
            self.peers.insert(member.replica(), peer);
            if let Some(disk) = disk.filter(|_| is_unmet) {
                self.connect(now, &member.node, disk, None);
            }
        }
        for (slot, mut gone) in before {
            gone.down();
            self.home_lost(now, slot);
        }
    }

    pub(super) fn membership(&self) -> &Membership {
        &self.configuration.membership
    }

    /// A batch from this replica of another epoch than ours: what concerns no votes is taken in.
    pub(super) fn on_other_epoch(&mut self, now: Now, from: usize, mut batch: Batch) {
        let Some(node) = self.peers.get(&from).map(|peer| peer.node.clone()) else { return };
        self.see_epoch(now, &node, batch.epoch);
        let votes: Vec<Message> = batch.messages.extract_if(.., |message| message.body.is_of_epoch()).collect();
        let is_early = batch.epoch > self.membership().epoch();
        if is_early && !votes.is_empty() {
            self.configuration.keep_early(node, Batch { messages: votes, ..batch });
        }
        for message in batch.messages {
            self.receive(now, from, message);
        }
    }

    /// A batch from somebody who is no member as far as is known here: it may bring the configuration that says otherwise.
    pub(super) fn on_guest(&mut self, now: Now, node: &NodeId, batch: Batch) {
        self.see_epoch(now, node, batch.epoch);
        for Message { address, body } in batch.messages {
            if let Body::Chosen { record } = body
                && address == self.configuration.address
            {
                self.run(now, Task::Install(address, record));
            }
        }
    }

    /// Whoever goes by an older configuration is told ours; whoever goes by a newer one tells us when it sees our epoch.
    pub(super) fn see_epoch(&mut self, now: Now, node: &NodeId, theirs: u64) {
        let ours = self.membership().epoch();
        if theirs < ours {
            self.tell_configuration(now, node);
        } else if theirs > ours && self.configuration.is_time(now.monotonic, node, Ballot::ZERO) {
            self.say(node, &Batch { epoch: ours, wall: now.wall, messages: Vec::new() });
        }
    }

    pub(super) fn tell_configuration(&mut self, now: Now, node: &NodeId) {
        let (Some(row), epoch) = (self.configuration.row.clone(), self.membership().epoch()) else { return };
        if !self.configuration.is_time(now.monotonic, node, row.ballot) {
            return;
        }
        let message = super::votes::chosen(self.configuration.address.clone(), &row);
        self.say(node, &Batch { epoch, wall: now.wall, messages: vec![message] });
    }

    /// Sends a batch past the queues of the members.
    fn say(&self, node: &NodeId, batch: &Batch) {
        if let Ok(bytes) = wire::encode(batch) {
            // A full queue: the next batch that shows another epoch brings it up again.
            let _ = self.rooms.transport.send(node, bytes);
        }
    }

    /// Says so once nothing is open here that was voted for before the joint epoch was installed.
    pub(super) fn settle_inherited(&mut self, now: Now, epoch: u64, slot: usize, done: oneshot::Sender<()>) {
        let is_asked = self.me == Some(slot) && self.barred.is_none();
        if !is_asked || self.membership().epoch() != epoch || !self.membership().is_joint() {
            // Dropping it says so: whoever asked asks again.
            return;
        }
        let open = self.inherited.iter().map(|(address, ballot)| (address.clone(), *ballot)).collect();
        self.settle_records(now, open, done);
    }

    /// Promises nothing up to this ballot any more, and says so once that is durable. One further ahead than any ballot may be
    /// is of a clock that is wrong: nothing would be promised here for long.
    pub(super) fn promise_above(&mut self, now: Now, ballot: Ballot, done: oneshot::Sender<()>) {
        let bound = self.config.max_skew + self.config.ceiling_lead;
        if ballot.nanos().saturating_sub(now.wall) > i64::try_from(bound.as_nanos()).unwrap_or(i64::MAX) {
            // Dropping it says so.
            return;
        }
        let sealed = self.acceptor.raise_floor(ballot, now, Effect::Done(done));
        self.take(now, sealed);
    }

    /// Why nobody can be asked to decide, for as long as this node has not heard of any configuration or is in none.
    pub(super) fn not_joined(&self) -> Option<String> {
        if self.membership().epoch() == NO_EPOCH {
            return Some(
                "this node has not heard of the cluster's configuration yet: are its seeds right, and up?".to_owned(),
            );
        }
        if self.me.is_some() {
            return None;
        }
        let why = self.rooms.greeter.displaced().map(|why| format!(" ({why})")).unwrap_or_default();
        Some(format!("this node is no member yet: it registers as soon as a majority of the voters is in reach{why}"))
    }

    /// Why this node is not ready yet, though a member: as long as the vote of its name is another disk's, the cluster is one
    /// voter short, and whoever goes from node to node must not go on to the next.
    pub(super) fn not_replaced(&self) -> Option<String> {
        let me = self.me?;
        let lost = self.membership().voters().find(|voter| voter.node == self.config.node && voter.replica() != me)?;
        let disk = lost.storage_id.map_or_else(String::new, |disk| format!(" ({disk})"));
        Some(format!(
            "the vote of this node is that of the disk it had before{disk}; the voters put this one in its place"
        ))
    }

    /// Removes what is settled from what the joint epoch waits for.
    pub(super) fn inherited_settled(&mut self, address: &Address, ballot: Ballot) {
        if self.inherited.get(address).is_some_and(|open| *open <= ballot) {
            self.inherited.remove(address);
        }
    }

    pub(super) fn is_stale(&self, effect: &Effect) -> bool {
        matches!(effect, Effect::Send { epoch, message, .. } if *epoch != self.membership().epoch() && message.body.is_of_epoch())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::register::Lineage;
    use crate::store::replicator::Op;
    use crate::types::Value;

    /// A node whose disk was full, and so could not install what it was told, and its peer told each other which epoch they
    /// had at the pace of the network.
    #[test]
    fn the_same_is_not_told_again_at_once() {
        let mut configuration = Configuration::new(Membership::unknown(), None);
        let (b, at) = (NodeId::parse("b").unwrap(), Duration::from_millis);
        assert!(configuration.is_time(at(0), &b, Ballot(5)));
        assert!(!configuration.is_time(at(199), &b, Ballot(5)) && configuration.is_time(at(199), &b, Ballot(6)));
        assert!(configuration.is_time(at(399), &b, Ballot(6)) && !configuration.is_time(at(400), &b, Ballot(6)));
        configuration.reconnected(&b);
        assert!(configuration.is_time(at(400), &b, Ballot(6)));
    }

    #[test]
    fn what_comes_early_is_kept_within_bounds() {
        let (mut configuration, b) = (Configuration::new(Membership::unknown(), None), NodeId::parse("b").unwrap());
        let address = configuration_address();
        let value = Value::from(vec![0; EARLY_BYTES_MAX / 3]);
        let record = Record { ballot: Ballot(1), upd: Ballot(1), op: Op::Put(value), lineage: Lineage::default() };
        let big = || Message { address: address.clone(), body: Body::Accept { record: record.clone(), next: None } };
        let small = || Message { address: address.clone(), body: Body::Commit { ballot: Ballot(1) } };
        for _ in 0..5 {
            configuration.keep_early(b.clone(), Batch { epoch: 9, wall: 0, messages: vec![big()] });
        }
        assert_eq!(configuration.early.len(), 2);
        for _ in 0..2 * EARLY_BATCHES_MAX {
            configuration.keep_early(b.clone(), Batch { epoch: 9, wall: 0, messages: vec![small()] });
        }
        assert_eq!(configuration.early.len(), EARLY_BATCHES_MAX);
    }
}
