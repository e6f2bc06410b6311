//! What this node says first to a peer, and what it makes of the peer's first words (rule 12): kept apart from the core
//! because connections are made on other tasks, and a hello must tell what is durable at that very moment.

use bytes::Bytes;
use parking_lot::Mutex;

use crate::cluster::hello::{self, Hello, Local};
use crate::cluster::memory::{Figures, PeerMemory, Standing, self_standing};
use crate::replication::journal::Header;
use crate::transport;
use crate::types::{Ballot, NodeId, Slot};

/// Says and judges hellos for one node.
#[derive(Debug)]
pub struct Greeter {
    local: Local,
    slot: Slot,
    boot: u64,
    clock: std::sync::Arc<dyn crate::clock::Clock>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    mine: Figures,
    memory: PeerMemory,
    /// The memory holds something that is not on disk yet and must be before a vote of that peer counts.
    unsaved: bool,
    /// What a peer said that this disk has lost.
    accused: Option<String>,
}

impl Greeter {
    /// A greeter for the node that `local` describes, on the disk that `header` does. `run` is a random number of this
    /// process.
    #[must_use]
    pub fn new(
        local: Local,
        slot: Slot,
        header: &Header,
        ceiling: Ballot,
        run: u64,
        clock: std::sync::Arc<dyn crate::clock::Clock>,
    ) -> Self {
        let mine = Figures { storage_id: header.storage_id(), run, ceiling, position: header.position() };
        let state = State { mine, memory: header.peers().clone(), unsaved: false, accused: None };
        Self { local, slot, boot: header.boot(), clock, state: Mutex::new(state) }
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

    /// Figures that `peer` spread by gossip.
    pub fn heard(&self, peer: &NodeId, figures: &Figures) {
        self.state.lock().memory.raise(peer, figures);
    }
}

impl transport::Greeter for Greeter {
    fn hello(&self, peer: &NodeId) -> Bytes {
        let state = self.state.lock();
        let hello = Hello {
            versions: self.local.versions,
            cluster: self.local.cluster.clone(),
            node: self.local.node.clone(),
            boot: self.boot,
            slot: self.slot,
            epoch: self.local.membership.epoch(),
            voters: self.local.membership.voters().to_vec(),
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
        hello::judge(&self.local, &theirs, peer).map_err(|refusal| refusal.to_string())?;
        let mut state = self.state.lock();
        if let Some(Standing::Forgot { reason }) = theirs.remembered.map(|seen| self_standing(&state.mine, &seen)) {
            state.accused.get_or_insert(format!("{peer} says: {reason}"));
        }
        // A peer whose disk forgot may talk, so that it learns why; its votes do not count.
        let observed = state.memory.observe(peer, &theirs.figures());
        state.unsaved |= observed.changed_durably;
        Ok(())
    }
}
