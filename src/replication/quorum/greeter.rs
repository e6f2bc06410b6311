//! What this node says first to a peer, and what it makes of the peer's first words (rule 12): kept apart from the core
//! because connections are made on other tasks, and a hello must tell what is durable at that very moment.

use std::collections::BTreeMap;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::cluster::hello::{self, Hello, Local, Refusal};
use crate::cluster::membership::Membership;
use crate::cluster::memory::{Figures, PeerMemory, Standing, self_standing};
use crate::replication::journal::Header;
use crate::transport;
use crate::types::{Ballot, NodeId, Slot, StorageId};

/// Says and judges hellos for one node.
#[derive(Debug)]
pub struct Greeter {
    boot: u64,
    clock: std::sync::Arc<dyn crate::clock::Clock>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    local: Local,
    mine: Figures,
    memory: PeerMemory,
    /// The memory holds something that is not on disk yet and must be before a vote of that peer counts.
    unsaved: bool,
    /// Who is connected, with which disk.
    connected: BTreeMap<NodeId, StorageId>,
    /// What a peer said that this disk has lost.
    accused: Option<String>,
    /// Why this disk is not the one that epoch 1 means by this node's name.
    displaced: Option<String>,
}

impl State {
    fn go_by(&mut self, membership: Membership) {
        for member in membership.members() {
            if let Some(disk) = membership.newest_disk(&member.node).filter(|_| member.node != self.local.node) {
                self.unsaved |= self.memory.expect(&member.node, disk);
            }
        }
        self.local.membership = membership;
    }

    fn slot(&self) -> Option<Slot> {
        let Local { node, membership, .. } = &self.local;
        let slot = membership.slot_of(node, self.mine.storage_id);
        slot.filter(|_| self.displaced.is_none() || membership.newest_disk(node).is_some())
    }
}

impl Greeter {
    /// A greeter for the node that `local` describes, on the disk that `header` does; `run` is a random number of this
    /// process.
    #[must_use]
    pub fn new(
        local: Local,
        header: &Header,
        ceiling: Ballot,
        run: u64,
        clock: std::sync::Arc<dyn crate::clock::Clock>,
    ) -> Self {
        let mine = Figures { storage_id: header.storage_id(), run, ceiling, position: header.position() };
        let displaced = header.displaced().map(str::to_owned);
        let membership = local.membership.clone();
        let (memory, connected) = (header.peers().clone(), BTreeMap::new());
        let mut state = State { local, mine, memory, unsaved: false, connected, accused: None, displaced };
        state.go_by(membership);
        Self { boot: header.boot(), clock, state: Mutex::new(state) }
    }

    /// The configuration that is installed.
    #[must_use]
    pub fn membership(&self) -> Membership {
        self.state.lock().local.membership.clone()
    }

    /// Goes by this configuration from now on.
    pub(super) fn set_membership(&self, membership: Membership) {
        self.state.lock().go_by(membership);
    }

    /// The number under which this node proposes; none as long as it is no member.
    #[must_use]
    pub fn slot(&self) -> Option<Slot> {
        self.state.lock().slot()
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.state.lock().local.node.clone()
    }

    /// The disk on which `node` was seen.
    #[must_use]
    pub fn disk_of(&self, node: &NodeId) -> Option<StorageId> {
        let state = self.state.lock();
        if *node == state.local.node {
            return state.slot().map(|_| state.mine.storage_id);
        }
        state.memory.remembered(node).map(|remembered| remembered.storage_id)
    }

    /// Why this disk is not the one that its node's name stands for in epoch 1.
    pub(super) fn displaced(&self) -> Option<String> {
        self.state.lock().displaced.clone()
    }

    /// What is durable now.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.state.lock().mine
    }

    /// How often this data directory was opened.
    #[must_use]
    pub fn boot(&self) -> u64 {
        self.boot
    }

    /// Learns that this much is durable.
    pub(super) fn set_durable(&self, ceiling: Ballot, position: u64) {
        let mut state = self.state.lock();
        state.mine.ceiling = state.mine.ceiling.max(ceiling);
        state.mine.position = state.mine.position.max(position);
    }

    /// What a peer said that this disk has lost, if any did.
    pub(super) fn accused(&self) -> Option<String> {
        self.state.lock().accused.clone()
    }

    /// What must be written down before votes of newly met peers count; `None` where all of it is.
    pub(super) fn take_unsaved(&self) -> Option<PeerMemory> {
        let mut state = self.state.lock();
        std::mem::take(&mut state.unsaved).then(|| state.memory.clone())
    }

    /// Whether `peer`'s votes count.
    pub(super) fn standing(&self, peer: &NodeId) -> Standing {
        self.state.lock().memory.standing(peer)
    }

    /// `peer` has voted from this disk, up to this ballot.
    pub(super) fn voted(&self, peer: &NodeId, disk: StorageId, at: Ballot) {
        self.state.lock().memory.voted(peer, disk, at);
    }

    /// `peer` is connected with this disk.
    pub(super) fn met(&self, peer: &NodeId, disk: StorageId) {
        self.state.lock().connected.insert(peer.clone(), disk);
    }

    /// `peer` is connected no more.
    pub(super) fn lost(&self, peer: &NodeId) {
        self.state.lock().connected.remove(peer);
    }

    /// Figures that `peer` spread by gossip.
    pub fn heard(&self, peer: &NodeId, figures: &Figures) {
        self.state.lock().memory.raise(peer, figures);
    }
}

impl transport::Greeter for Greeter {
    fn hello(&self, peer: &NodeId) -> Bytes {
        let state = self.state.lock();
        let hello = Hello {
            versions: state.local.versions,
            cluster: state.local.cluster.clone(),
            node: state.local.node.clone(),
            boot: self.boot,
            slot: state.slot(),
            epoch: state.local.membership.epoch(),
            voters: state.local.membership.old_voter_names(),
            replication_factor: state.local.membership.placement().replication_factor,
            wall: self.clock.now().wall,
            storage_id: state.mine.storage_id,
            run: state.mine.run,
            ceiling: state.mine.ceiling,
            position: state.mine.position,
            remembered: state.memory.remembered(peer),
        };
        hello.encode()
    }

    fn check(&self, peer: &NodeId, hello: &[u8]) -> Result<(), String> {
        let theirs = Hello::decode(hello).map_err(|bad| bad.to_string())?;
        let mut state = self.state.lock();
        hello::judge(&state.local, &theirs, peer).map_err(|refusal| refusal.to_string())?;
        if state.connected.get(peer).is_some_and(|disk| *disk != theirs.storage_id) {
            // Each of two that run under one name would have itself put in the other's place, without end.
            return Err(Refusal::Twin { node: peer.clone(), us: state.local.node.clone() }.to_string());
        }
        if let Some(seen) = theirs.remembered
            && let Standing::Forgot { reason } = self_standing(&state.mine, &seen)
        {
            let said = format!("{peer} says: {reason}");
            if seen.storage_id == state.mine.storage_id {
                state.accused.get_or_insert(said);
            } else {
                // It knew this node by another disk, which has promised things that this one knows nothing of.
                state.displaced.get_or_insert(said);
            }
        }
        if state.local.membership.newest_disk(peer).is_some_and(|known| known != theirs.storage_id) {
            // Not the disk that the configuration means: it has no vote to be judged.
            return Ok(());
        }
        // A peer whose disk forgot may talk, so that it learns why; its votes do not count.
        let observed = state.memory.observe(peer, &theirs.figures());
        state.unsaved |= observed.changed_durably;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::OsClock;
    use crate::cluster::hello::PROTOCOL_VERSIONS;
    use crate::replication::journal::{Journal, JournalConfig};
    use crate::transport::Greeter as _;

    /// A crash between the configuration that names a peer's new disk and the note of it left a node that held that disk for
    /// one that had forgotten, for good.
    #[test]
    fn the_disk_that_the_configuration_names_is_the_one_that_is_expected_from_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(JournalConfig::at(dir.path()), 1).unwrap();
        let [a, b] = ["a", "b"].map(|name| NodeId::parse(name).unwrap());
        let figures = |disk| Figures { storage_id: StorageId(disk), run: disk, ceiling: Ballot(10), position: 10 };
        let mut memory = PeerMemory::default();
        let _ = memory.observe(&b, &figures(8));
        journal.header_mut().set_peers(memory).unwrap();
        let first = Membership::epoch_one(vec![a.clone(), b.clone()]).unwrap();
        let membership = first.with_disks(|_| Some(StorageId(8))).register(&b, StorageId(9)).unwrap().unwrap();
        let hello = Hello {
            versions: PROTOCOL_VERSIONS,
            cluster: "x".to_owned(),
            node: b.clone(),
            boot: 1,
            slot: membership.slot_of(&b, StorageId(9)),
            epoch: membership.epoch(),
            voters: membership.old_voter_names(),
            replication_factor: None,
            wall: 0,
            storage_id: StorageId(9),
            run: 9,
            ceiling: Ballot(5),
            position: 5,
            remembered: None,
        };
        let local = Local { versions: PROTOCOL_VERSIONS, cluster: "x".to_owned(), node: a, membership };
        let greeter = Greeter::new(local, journal.header(), Ballot::ZERO, 1, OsClock::shared());
        greeter.check(&b, &hello.encode()).unwrap();
        assert_eq!(greeter.standing(&b), Standing::Good);
    }
}
