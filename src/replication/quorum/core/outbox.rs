//! Writes that need this node alone (rule 9): accepted, shown, and handed on to the quorum once there is one.

use std::time::Duration;

use tokio::sync::oneshot;

use super::tasks::Task;
use super::{Core, Effect, Reply};
use crate::clock::Now;
use crate::replication::outbox::Overtaken;
use crate::replication::quorum::status::OutboxStatus;
use crate::replication::register::{Address, LocalWrite, OpId};
use crate::store::replicator::{Decision, Op, Proposal, Rejection};
use crate::store::update::{Change, Condition, Outcome, Row, Update, Verdict};
use crate::store::{Stored, StoredRow};
use crate::types::Ballot;

/// How long one proposal of such a write may take.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// One that waits for the journal.
#[derive(Debug)]
pub(super) struct Accepted {
    address: Address,
    write: LocalWrite,
    /// What the key showed before.
    before: Option<Row>,
    id: OpId,
}

impl Core {
    /// Takes in a write for this node alone.
    pub(super) fn accept(&mut self, now: Now, proposal: Proposal, reply: oneshot::Sender<Decision>) {
        let Proposal { shard, key, update, timeout } = proposal;
        let address = Address { shard, key };
        let fit = match (self.unfit(false), update.blind()) {
            (Some(rejection), _) => Err(rejection),
            (None, None) => Err(Rejection::Refused("a condition on what is there needs a quorum".to_owned())),
            (None, Some(op)) => self.outbox.check_room(&address, op.weight()).map(|()| op),
        };
        match fit {
            Ok(op) => {
                let within = timeout.unwrap_or(self.config.propose_timeout);
                let (id, _) = self.admit(now, Reply::Here(reply), within, false);
                self.run(now, Task::Accept { address, op, id });
            }
            Err(rejection) => {
                self.metrics.count(&Decision::Reject(rejection.clone()));
                // A client that has gone needs no answer.
                let _ = reply.send(Decision::Reject(rejection));
            }
        }
    }

    /// Numbers it above what its key shows, and has it written down.
    pub(super) fn write_down(&mut self, now: Now, address: &Address, op: Op, id: OpId, known: &Stored) {
        // Others may have come before it while its shard file was being opened.
        if let Err(rejection) = self.outbox.check_room(address, op.weight()) {
            return self.decide(now, id, Decision::Reject(rejection), Ballot::ZERO);
        }
        let (shown, stored) = (known.ballot(), known.row.as_ref());
        let upd = match self.proposer.issue(now, shown) {
            Ok(upd) => upd,
            Err(ahead) => {
                let why = format!("this node's clock is too far behind the version that is there: {ahead}");
                return self.decide(now, id, Decision::Reject(Rejection::Refused(why)), Ballot::ZERO);
            }
        };
        let earlier = self.outbox.get(address).filter(|earlier| stored.is_none_or(|row| row.upd < earlier.upd));
        let before = match earlier {
            Some(earlier) => earlier.op.value().map(|value| Row { value: value.clone(), upd: earlier.upd }),
            None => stored.cloned().and_then(StoredRow::into_row),
        };
        let write = LocalWrite { upd, op };
        let chosen = stored.map_or(Ballot::ZERO, |row| row.upd);
        self.outbox.put(address.clone(), write.clone(), chosen);
        let accepted = Accepted { address: address.clone(), write: write.clone(), before, id };
        let sealed = self.acceptor.note(now, address, write, Effect::Accepted(accepted));
        self.take(now, sealed);
    }

    /// It is on the disk: shows it and says so.
    pub(super) fn accepted(&mut self, now: Now, accepted: Accepted) {
        let Accepted { address, write: LocalWrite { upd, op }, before, id } = accepted;
        if self.outbox.on_durable(&address, upd) {
            self.rooms.manager.show(&address.shard, &address.key, &op, upd);
            // Whatever a restart left undecided of the key is older: this was numbered since.
            self.rooms.manager.settle(&address.shard, &address.key);
        }
        let after = op.value().map(|value| Row { value: value.clone(), upd });
        let outcome = Outcome { verdict: Verdict::Written, before, after };
        self.decide(now, id, Decision::Accept(outcome), Ballot::ZERO);
    }

    /// Takes in what a restart found on the disk, and shows it, unless the key's row is as new.
    pub(in crate::replication::quorum) fn restore(&mut self, address: &Address, write: LocalWrite, stored: Ballot) {
        if stored < write.upd {
            self.rooms.manager.show(&address.shard, &address.key, &write.op, write.upd);
            let undecided = self.acceptor.peek(address, &Stored::default());
            if undecided.is_none_or(|record| record.upd <= write.upd) {
                self.rooms.manager.settle(&address.shard, &address.key);
            }
            self.outbox.restore(address, write);
        }
    }

    /// Proposes what is due, as long as a quorum is in reach and this node may take part in it.
    pub(super) fn drain(&mut self, now: Now) {
        if self.outbox.is_empty() || !self.can_drain() || self.is_overloaded() {
            return;
        }
        for (address, write) in self.outbox.next(now.monotonic) {
            self.next_op += 1;
            let id = OpId(self.next_op);
            self.outbox.propose(&address, id);
            let change = match write.op {
                Op::Put(value) => Change::Put(value),
                Op::Del => Change::Del,
            };
            let update = Update { condition: Condition::Below(write.upd), change };
            self.proposer.propose(address, id, update, now.monotonic + DRAIN_TIMEOUT);
        }
    }

    fn can_drain(&self) -> bool {
        let has_quorum = |address: &Address| self.proposer.find_quorum(&address.shard).is_ok();
        // Where all shards have the same replicas, one look tells.
        let looks = if self.membership().is_everywhere() { 1 } else { usize::MAX };
        self.barred.is_none() && self.full().is_none() && self.outbox.addresses().take(looks).any(has_quorum)
    }

    /// Learns how one of these proposals ended.
    pub(super) fn drained(&mut self, now: Now, id: OpId, decision: &Decision) {
        if let Some(Overtaken { address, upd }) = self.outbox.decided(now.monotonic, id, decision) {
            self.rooms.manager.hide(&address.shard, &address.key, upd);
        }
    }

    /// Whether nothing is left that could be handed on now.
    pub(super) fn is_handed_on(&self) -> bool {
        self.outbox.is_empty() || !self.can_drain()
    }

    /// Says what stays on the disk when this node ends.
    pub(super) fn tell_what_stays(&self) {
        if !self.outbox.is_empty() {
            let (writes, bytes) = (self.outbox.len(), self.outbox.bytes());
            tracing::warn!(writes, bytes, "local writes stay on this disk, and are proposed after the next start");
        }
    }

    pub(super) fn outbox_status(&self, now: Now) -> OutboxStatus {
        let age = self.outbox.oldest().map(|upd| now.wall.saturating_sub(upd.nanos()));
        OutboxStatus {
            entries: self.outbox.len(),
            bytes: self.outbox.bytes(),
            oldest_age: age.map(|nanos| Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))),
            counts: self.outbox.counts(),
        }
    }
}
