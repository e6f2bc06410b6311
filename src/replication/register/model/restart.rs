//! What a crash leaves of a node in these worlds, and what a restart makes of it.

use super::change::{self, Installed};
use super::faults;
use super::node::cores;
use super::world::World;
use crate::replication::outbox::Outbox;
use crate::replication::register::{Address, LocalWrite, Lsn, Record, SealedQueue};
use crate::store::StoredRow;
use crate::store::replicator::Op;
use crate::types::Ballot;

impl World {
    /// Power loss and restart: memory and what was not synced are gone; the clients of the node never hear.
    pub(super) fn crash(&mut self, n: usize) {
        let scenario = self.scenario.clone();
        let node = self.node(n);
        let ceiling = node.disk.ceiling;
        let recovered = node.disk.clone().finish(Ballot::ZERO);
        let restored = faults::restored(scenario.fault, recovered.restored);
        (node.acceptor, node.proposer) = cores(&scenario, n, restored, ceiling);
        let row = |record: Record| StoredRow { op: record.op, upd: record.upd, ballot: record.ballot };
        let open = node.disk.pending.values().map(|record| record.ballot).max();
        let installed = Installed { inherited: open, ..node.installed };
        node.installed = installed;
        node.proposer.set_electorate(node.now(), change::quorums(&scenario, installed.epoch));
        node.stored = recovered.chosen.into_iter().map(|(address, record)| (address, row(record))).collect();
        let floor = node.gc_floor;
        node.stored.retain(|_, row| row.op != Op::Del || row.ballot > floor);
        (node.sealed, node.lsn) = (SealedQueue::default(), Lsn(0));
        node.unsynced.clear();
        node.waiting.clear();
        node.pulls.clear();
        self.restore_outbox(n, recovered.outbox);
        for (client, state) in scenario.clients.iter().zip(&mut self.clients) {
            state.1 &= client.node != n;
        }
    }

    /// What a restart finds.
    fn restore_outbox(&mut self, n: usize, found: Vec<(Address, LocalWrite)>) {
        let node = self.node(n);
        let stored = node.row().map_or(Ballot::ZERO, |row| row.upd);
        node.outbox = Outbox::default();
        for (address, write) in found.into_iter().filter(|(_, write)| stored < write.upd) {
            node.outbox.restore(&address, write);
        }
    }
}
