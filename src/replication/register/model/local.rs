//! Local writes in these worlds: accepted, drained and replayed as the driver does it, with the outbox's own code.

use super::faults::{self, Fault};
use super::node::{Effect, WALL, address};
use super::world::World;
use crate::replication::register::{LocalWrite, OpId};
use crate::store::replicator::{Decision, Op};
use crate::store::update::{Change, Condition, Update};
use crate::types::Ballot;

impl World {
    /// A client of node `n` writes on that node alone.
    pub(super) fn accept(&mut self, n: usize, number: usize, change: &Change) {
        let Change::Put(value) = change else { return };
        let fault = self.scenario.fault;
        let node = self.node(n);
        let (now, shown) = (node.now(), node.row().map_or(Ballot::ZERO, |row| row.ballot));
        let upd = node.proposer.issue(now, shown).unwrap();
        let write = LocalWrite { upd, op: Op::Put(value.clone()) };
        let chosen = node.row().map_or(Ballot::ZERO, |row| row.upd);
        node.outbox.put(address(), write.clone(), chosen);
        if fault == Some(Fault::MergedPastPromises) {
            faults::merge(node, &write);
        }
        let accepted = Effect::Accepted(OpId(number as u64), upd);
        let sealed = node.acceptor.note(now, &address(), write.clone(), accepted);
        self.oracle().on_local(n, write);
        self.take(n, sealed);
    }

    /// It is on the disk.
    pub(super) fn accepted(&mut self, n: usize, id: OpId, upd: Ballot) {
        self.node(n).outbox.on_durable(&address(), upd);
        self.oracle().on_accepted(upd);
        self.client_goes_on(id);
    }

    pub(super) fn drain(&mut self, n: usize) {
        let fault = self.scenario.fault;
        if self.scenario.full_outboxes || fault == Some(Fault::MergedPastPromises) {
            return;
        }
        let node = self.node(n);
        let now = node.now();
        for (address, LocalWrite { upd, op }) in node.outbox.next(now.monotonic) {
            let Op::Put(value) = op else { continue };
            let id = OpId(upd.0 as u64);
            node.outbox.propose(&address, id);
            let condition = match fault {
                Some(Fault::DrainedWithoutCondition) => Condition::Always,
                _ => Condition::Below(upd),
            };
            let update = Update { condition, change: Change::Put(value) };
            node.proposer.propose(address, id, update, now.monotonic + super::world::CLIENT_PATIENCE);
        }
    }

    /// True where it was a proposal out of an outbox: those are named by their versions, far above all others.
    pub(super) fn drained(&mut self, id: OpId, decision: &Decision) -> bool {
        let upd = Ballot(id.0 as i64);
        if upd.0 < WALL {
            return false;
        }
        // What is due after a while is due at once: time passes in leaps only.
        let outbox = &mut self.node(usize::from(upd.slot().number())).outbox;
        outbox.decided(std::time::Duration::ZERO, id, decision);
        true
    }

    /// An acknowledged local write is in the outbox, or something as new is chosen.
    pub(super) fn check_outbox(&mut self, n: usize) {
        let held = self.nodes[n].outbox.get(&address()).map(|write| write.upd);
        self.oracle().on_outbox(n, held);
    }
}
