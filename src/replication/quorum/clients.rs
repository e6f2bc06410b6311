//! Who waits for which decision.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::replication::register::{Address, OpId};
use crate::store::replicator::Decision;
use crate::store::update::Update;

/// How long after its deadline a client is answered "unknown" whatever holds its decision up.
const GRACE: Duration = Duration::from_millis(100);

/// Updates under way at once, peers' included.
pub(super) const CLIENTS_MAX: usize = 65_536;

/// Who is told.
#[derive(Debug)]
pub(super) enum Reply {
    /// A client of this node.
    Here(oneshot::Sender<Decision>),
    /// Another replica, which has a client for this number of its own.
    Peer {
        /// Which.
        peer: usize,
        /// Its number.
        number: u64,
        /// The key it is about.
        address: Address,
    },
}

/// One update's client.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) reply: Reply,
    pub(super) started: Duration,
    pub(super) is_read: bool,
    pub(super) deadline: Duration,
    /// Where the update was handed to, and the update itself, for as long as nothing is known of it from there.
    pub(super) at_home: Option<AtHome>,
}

/// An update that another replica proposes for this one's client.
#[derive(Debug)]
pub(super) struct AtHome {
    /// Which replica.
    pub(super) home: usize,
    /// The key.
    pub(super) address: Address,
    /// What was asked for.
    pub(super) update: Update,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Clients(HashMap<OpId, Client>);

impl Clients {
    pub(super) fn insert(&mut self, id: OpId, reply: Reply, started: Duration, deadline: Duration, is_read: bool) {
        self.0.insert(id, Client { reply, started, is_read, deadline, at_home: None });
    }

    pub(super) fn get_mut(&mut self, id: OpId) -> Option<&mut Client> {
        self.0.get_mut(&id)
    }

    /// Those whose updates are at `home`, as far as is known.
    pub(super) fn at_home(&self, home: usize) -> Vec<OpId> {
        let is_there = |client: &Client| client.at_home.as_ref().is_some_and(|at| at.home == home);
        self.0.iter().filter(|(_, client)| is_there(client)).map(|(id, _)| *id).collect()
    }

    pub(super) fn remove(&mut self, id: OpId) -> Option<Client> {
        self.0.remove(&id)
    }

    pub(super) fn is_full(&self) -> bool {
        self.0.len() >= CLIENTS_MAX
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those whose record is chosen but not yet visible here, or whose shard file takes too long to open: the
    /// proposer's own deadlines do not reach them.
    pub(super) fn overdue(&self, now: Duration) -> Vec<OpId> {
        self.0.iter().filter(|(_, client)| client.deadline + GRACE <= now).map(|(id, _)| *id).collect()
    }
}
