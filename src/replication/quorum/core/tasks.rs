//! What needs the row that a shard file holds: runs at once where the file is open, otherwise waits for it.

use std::time::Duration;

use super::{Core, PARKED_TASKS_MAX, Waiting};
use crate::clock::Now;
use crate::replication::quorum::Input;
use crate::replication::register::{Address, Body, Message, OpId, Record};
use crate::store::replicator::{Decision, Op, Rejection};
use crate::store::{self, Stored};
use crate::types::{Ballot, ShardId};

/// How long a shard file that cannot be used is left alone before the next try.
const OPEN_RETRY: Duration = Duration::from_millis(200);

/// What needs to know the row that its shard file holds.
#[derive(Debug)]
pub(super) enum Task {
    /// A message to this node's acceptor or learner, from that replica, as of that epoch.
    Message { from: usize, epoch: u64, message: Message },
    /// A round to begin.
    Start(Address),
    /// A record that this node's proposer had chosen.
    Chosen { address: Address, record: Record, decisions: Vec<(OpId, Decision)> },
    /// A row from a peer that this node had missed.
    Install(Address, Record),
    /// A write for this node alone.
    Accept { address: Address, op: Op, id: OpId },
}

impl Task {
    fn address(&self) -> &Address {
        match self {
            Self::Message { message, .. } => &message.address,
            Self::Start(address)
            | Self::Chosen { address, .. }
            | Self::Accept { address, .. }
            | Self::Install(address, _) => address,
        }
    }

    /// True where it tells of a chosen record, which nobody tells twice.
    fn is_chosen(&self) -> bool {
        match self {
            Self::Message { message, .. } => matches!(message.body, Body::Commit { .. } | Body::Chosen { .. }),
            Self::Chosen { .. } | Self::Install(..) => true,
            Self::Start(_) | Self::Accept { .. } => false,
        }
    }
}

impl Core {
    /// Runs a task with the row that its shard file holds; one whose file is not open waits for it.
    pub(super) fn run(&mut self, now: Now, task: Task) {
        match self.stored(task.address()) {
            Ok(Some(stored)) => self.run_with(now, task, &stored),
            Ok(None) => self.park(now, task),
            Err(error) if self.rooms.manager.is_passing(&error) => self.put_off(now, task, &error),
            Err(error) => self.bar(format!("cannot read {}: {error}", task.address().shard)),
        }
    }

    /// What the shard file knows of the key; `None` while it is not open.
    pub(super) fn stored(&self, address: &Address) -> Result<Option<Stored>, store::Error> {
        let Address { shard, key } = address;
        match self.rooms.manager.cached(shard) {
            Some(open) => match open.known(key) {
                // Evicted under our hands: open it again.
                Err(store::Error::Closed) => Ok(None),
                read => read.map(Some),
            },
            None if self.rooms.manager.exists(shard) => Ok(None),
            None => Ok(Some(Stored::default())),
        }
    }

    pub(super) fn park(&mut self, now: Now, task: Task) {
        if self.parked_tasks >= PARKED_TASKS_MAX {
            let why = Rejection::Busy(format!("{PARKED_TASKS_MAX} operations wait for shard files; try again soon"));
            return self.let_go(now, task, &why);
        }
        let shard = task.address().shard.clone();
        self.parked_tasks += 1;
        let waiting = self.parked.entry(shard.clone()).or_default();
        waiting.push(task);
        if waiting.len() == 1 {
            self.open(shard, Duration::ZERO);
        }
    }

    fn open(&self, shard: ShardId, after: Duration) {
        let (manager, inputs) = (self.rooms.manager.clone(), self.rooms.inputs.clone());
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            let result = manager.get(&shard).await.map(drop);
            // Nobody listens any more only while the node stops.
            let _ = inputs.send(Input::Opened { shard, result }).await;
        });
    }

    pub(super) fn opened(&mut self, now: Now, shard: &ShardId, result: Result<(), store::Error>) {
        let tasks = self.parked.remove(shard).unwrap_or_default();
        self.parked_tasks -= tasks.len();
        match result {
            Ok(()) => tasks.into_iter().for_each(|task| self.run(now, task)),
            Err(store::Error::Closed) => {}
            Err(error) if self.rooms.manager.is_passing(&error) => {
                tasks.into_iter().for_each(|task| self.put_off(now, task, &error));
            }
            Err(error) => self.bar(format!("cannot open {shard}: {error}")),
        }
    }

    /// A shard file that cannot be used just now: what was chosen waits for it, and what was asked is refused.
    fn put_off(&mut self, now: Now, task: Task, error: &store::Error) {
        let shard = task.address().shard.clone();
        tracing::debug!(%shard, %error, "a shard file cannot be used now");
        if !task.is_chosen() || self.parked_tasks >= PARKED_TASKS_MAX {
            let why = match error {
                store::Error::Rejected(why) => why.clone(),
                error => Rejection::Busy(error.to_string()),
            };
            return self.let_go(now, task, &why);
        }
        self.parked_tasks += 1;
        let waiting = self.parked.entry(shard.clone()).or_default();
        waiting.push(task);
        if waiting.len() == 1 {
            self.open(shard, OPEN_RETRY);
        }
    }

    /// A question is as good as lost: whoever asked asks again or runs into a deadline. What was chosen comes with the
    /// next comparison of rows.
    fn let_go(&mut self, now: Now, task: Task, why: &Rejection) {
        self.missed |= task.is_chosen();
        match task {
            Task::Start(address) => self.proposer.not_begun(&address, why),
            Task::Accept { id, .. } => self.decide(now, id, Decision::Reject(why.clone()), Ballot::ZERO),
            Task::Message { .. } | Task::Chosen { .. } | Task::Install(..) => {}
        }
    }

    pub(super) fn run_with(&mut self, now: Now, task: Task, stored: &Stored) {
        match task {
            Task::Message { epoch, message, .. }
                if epoch != self.membership().epoch() && message.body.is_of_epoch() => {}
            Task::Message { from, message, .. } => self.on_message(now, from, message, stored),
            Task::Start(address) => {
                let held = self.acceptor.peek(&address, stored);
                if let Some(own) = self.outbox.get(&address) {
                    // What is proposed after it is newer than it.
                    self.proposer.outdate_token(&address, own.upd);
                }
                self.proposer.start(now, &address, held);
            }
            Task::Chosen { address, record, decisions } => {
                let ballot = record.ballot;
                if stored.ballot() >= ballot {
                    self.acceptor.on_stored(&address, ballot);
                    self.settled(now, &address, ballot);
                    return decisions.into_iter().for_each(|(id, decision)| self.decide(now, id, decision, ballot));
                }
                if !decisions.is_empty() {
                    self.waiting.entry(address.clone()).or_default().push(Waiting { ballot, decisions });
                }
                self.learn(now, &address, record, stored);
            }
            Task::Accept { address, op, id } => self.write_down(now, &address, op, id, stored),
            Task::Install(address, record) => {
                if self.install(now, &address, record, stored) {
                    self.metrics.synced_rows.increment(1);
                }
            }
        }
    }
}
