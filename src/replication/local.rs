//! Agreement of one node with itself: what a store without peers uses.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use parking_lot::RwLock;

use crate::clock::Clock;
use crate::store::replicator::{Decision, Proposal, Rejection, Replicator, Subscriber};
use crate::store::{Error, Manager};

/// Accepts every proposal at once, in order. Keeps nothing of its own: a write is durable once the store's file is,
/// which [`crate::store::Shard::update`] waits for.
pub struct LocalReplicator {
    manager: Weak<Manager>,
    clock: Arc<dyn Clock>,
    subscribers: RwLock<Vec<Arc<dyn Subscriber>>>,
    is_closed: AtomicBool,
}

impl std::fmt::Debug for LocalReplicator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalReplicator").finish_non_exhaustive()
    }
}

impl LocalReplicator {
    /// A driver for `manager`'s shards; install it with [`Manager::with_replicator`].
    #[must_use]
    pub fn new(manager: &Arc<Manager>, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            manager: Arc::downgrade(manager),
            clock,
            subscribers: RwLock::default(),
            is_closed: AtomicBool::new(false),
        })
    }
}

fn closed() -> Decision {
    Decision::Reject(Rejection::Busy("the replicator is closed".to_owned()))
}

#[async_trait]
impl Replicator for LocalReplicator {
    async fn propose(&self, proposal: Proposal) -> Decision {
        let Some(manager) = self.manager.upgrade().filter(|_| !self.is_closed.load(Ordering::Acquire)) else {
            return closed();
        };
        let shard = match manager.get(&proposal.shard).await {
            Ok(shard) => shard,
            Err(Error::Closed) => return closed(),
            Err(Error::Rejected(rejection)) => return Decision::Reject(rejection),
            Err(error) => return Decision::Reject(Rejection::Refused(error.to_string())),
        };
        manager.decide_locally(&shard, &proposal, self.clock.now().wall, |frame| {
            for subscriber in self.subscribers.read().iter() {
                subscriber.on_commit(frame);
            }
        })
    }

    fn subscribe(&self, subscriber: Arc<dyn Subscriber>) {
        self.subscribers.write().push(subscriber);
    }

    fn is_durable(&self) -> bool {
        false
    }

    async fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
    }
}
