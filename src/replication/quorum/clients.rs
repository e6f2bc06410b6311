//! Who waits for which decision.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::replication::register::OpId;
use crate::store::replicator::Decision;

/// How long after its deadline a client is answered "unknown" whatever holds its decision up.
const GRACE: Duration = Duration::from_millis(100);

/// One update's client.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) reply: oneshot::Sender<Decision>,
    pub(super) started: Duration,
    pub(super) is_read: bool,
    deadline: Duration,
}

/// All of them; bounded by the driver's inbox and the proposer's queues.
#[derive(Debug, Default)]
pub(super) struct Clients(HashMap<OpId, Client>);

impl Clients {
    pub(super) fn insert(
        &mut self,
        id: OpId,
        reply: oneshot::Sender<Decision>,
        started: Duration,
        deadline: Duration,
        is_read: bool,
    ) {
        self.0.insert(id, Client { reply, started, is_read, deadline });
    }

    pub(super) fn remove(&mut self, id: OpId) -> Option<Client> {
        self.0.remove(&id)
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
