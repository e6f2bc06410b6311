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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use parking_lot::Mutex;

    use super::*;
    use crate::clock::ManualClock;
    use crate::store::StoreConfig;
    use crate::store::replicator::{Frame, Op};
    use crate::store::update::{Change, Update, Verdict};
    use crate::types::{Ballot, Key, ShardId, Value};

    const WALL: i64 = 1_700_000_000_000_000_000;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<Frame>>);

    impl Subscriber for Recorder {
        fn on_commit(&self, frame: &Frame) {
            self.0.lock().push(frame.clone());
        }
    }

    fn installed(
        root: &std::path::Path,
        clock: &Arc<ManualClock>,
    ) -> (Arc<Manager>, Arc<LocalReplicator>, Arc<Recorder>) {
        let clock: Arc<dyn Clock> = clock.clone();
        let manager = Manager::with_config(StoreConfig::at(root), Arc::clone(&clock)).unwrap();
        let local = LocalReplicator::new(&manager, clock);
        let recorder = Arc::new(Recorder::default());
        local.subscribe(recorder.clone());
        manager.with_replicator(local.clone());
        (manager, local, recorder)
    }

    fn id() -> ShardId {
        ShardId::parse("", "a").unwrap()
    }

    #[tokio::test]
    async fn subscribers_see_every_write_once_in_order_and_seq_rises_across_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let clock = ManualClock::new(WALL);
        let mut last = None;
        for run in 0..3 {
            let (manager, _local, recorder) = installed(dir.path(), &clock);
            let shard = manager.get(&id()).await.unwrap();
            for n in 0..3 {
                shard.put("k", format!("{run} {n}")).await.unwrap();
            }
            assert!(shard.del("k").await.unwrap());
            assert!(!shard.del("k").await.unwrap());
            let frames = std::mem::take(&mut *recorder.0.lock());
            assert_eq!(frames.len(), 4);
            assert_eq!(frames[3].op, Op::Del);
            for frame in frames {
                assert!(last < Some((frame.seq, frame.upd)), "{last:?} then {frame:?}");
                assert_eq!(frame.upd, frame.ballot);
                last = Some((frame.seq, frame.upd));
            }
            manager.close().await.unwrap();
            clock.advance(Duration::from_millis(1));
        }
    }

    #[tokio::test]
    async fn versions_rise_above_what_is_stored_though_the_clock_went_back() {
        let dir = tempfile::tempdir().unwrap();
        let clock = ManualClock::new(WALL);
        let first = {
            let (manager, ..) = installed(dir.path(), &clock);
            let upd = manager.get(&id()).await.unwrap().put("k", "v").await.unwrap();
            manager.close().await.unwrap();
            upd
        };
        assert!(first >= Ballot(WALL - (WALL & 0xfff)));
        clock.jump(-3_600_000_000_000);
        let (manager, ..) = installed(dir.path(), &clock);
        let shard = manager.get(&id()).await.unwrap();
        assert!(shard.put("k", "w").await.unwrap() > first);
        assert_eq!(shard.get("k").await.unwrap().unwrap().value, Value::from("w"));
    }

    #[tokio::test]
    async fn a_write_reaches_the_store_without_being_installed() {
        let dir = tempfile::tempdir().unwrap();
        let clock = ManualClock::new(WALL);
        let manager = Manager::with_config(StoreConfig::at(dir.path()), clock.clone()).unwrap();
        let local = LocalReplicator::new(&manager, clock);
        let key = Key::parse("n").unwrap();
        for sum in 1..=3 {
            let update = Update::always(Change::Add(1));
            let proposal = Proposal { shard: id(), key: key.clone(), update, timeout: None };
            let Decision::Accept(outcome) = local.propose(proposal).await else { panic!("not accepted") };
            assert_eq!(outcome.verdict, Verdict::Written);
            let value = manager.open(&id()).unwrap().read(&key).unwrap().unwrap().value;
            assert_eq!(value, Value::from(sum.to_string().into_bytes()));
        }
    }

    #[tokio::test]
    async fn once_closed_it_rejects_and_keeps_no_manager_alive() {
        let dir = tempfile::tempdir().unwrap();
        let clock = ManualClock::new(WALL);
        let (manager, local, _) = installed(dir.path(), &clock);
        let shard = manager.get(&id()).await.unwrap();
        local.close().await;
        local.close().await;
        assert!(matches!(shard.put("k", "v").await, Err(Error::Rejected(Rejection::Busy(_)))));
        assert!(shard.get("k").await.unwrap().is_none());
        let weak = Arc::downgrade(&manager);
        drop((manager, shard));
        assert!(weak.upgrade().is_none());
    }
}
