//! A change of voters in these worlds: epochs 1 (old), 2 (joint) and 3 (new), by the recipe of the design's section 5. The
//! register of the configuration itself is taken as read: that an epoch is published is a fact that every node learns of
//! when it learns of it.
//!
//! ```text
//!   publish 2 ─► every node installs it when it does ─► what it had voted for before is settled ─► compare ─► publish 3
//! ```
//!
//! Before epoch 3 is published each of a majority of the new voters has compared rows with each of some majority of the old,
//! after both had installed epoch 2 and nothing that the old one had voted for under epoch 1 was open there any more.

use std::sync::Arc;

use super::faults::Fault;
use super::node::Node;
use super::scenario::Scenario;
use super::world::World;
use crate::cluster::membership::Quorums;
use crate::cluster::placement::Electors;
use crate::replication::register::proposer::Proposer;
use crate::types::Ballot;

pub(super) const OLD: u8 = 1;
pub(super) const JOINT: u8 = 2;
pub(super) const NEW: u8 = 3;

/// What a node knows of the change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Installed {
    /// Durable, like what follows from it.
    pub(super) epoch: u8,
    /// What it had voted for when it installed the joint epoch, until something as new is committed here.
    pub(super) inherited: Option<Ballot>,
}

impl Installed {
    pub(super) const FIRST: Self = Self { epoch: OLD, inherited: None };
}

impl World {
    /// What was voted for before is open until something as new is committed here.
    pub(super) fn install_epoch(&mut self, n: usize) {
        let epoch = self.published;
        let quorums = quorums(&self.scenario, epoch);
        let node = self.node(n);
        let open = node.acceptor.keys.values().filter_map(|key| key.pending.as_ref()).find(|pending| !pending.chosen);
        node.installed = Installed { epoch, inherited: open.map(|pending| pending.record.ballot) };
        let now = node.now();
        node.proposer.set_electorate(now, quorums);
        node.proposer.on_tick(now);
    }

    pub(super) fn settle_inherited(&mut self, n: usize) {
        let row = self.nodes[n].row().map_or(Ballot::ZERO, |row| row.ballot);
        if self.nodes[n].installed.inherited.is_some_and(|open| open <= row) {
            self.node(n).installed.inherited = None;
        }
    }
}

/// Does `work` as if these decided, and not those that the proposer's rounds began with.
pub(super) fn as_if_decided(proposer: &mut Proposer, quorums: Quorums, work: impl FnOnce(&mut Proposer)) {
    let electors = Arc::new(Electors::from(quorums));
    let rounds = |proposer: &mut Proposer| -> Vec<Arc<Electors>> {
        let rounds = proposer.keys.values_mut().filter_map(|queue| queue.round.as_mut());
        rounds.map(|round| std::mem::replace(&mut round.electors, electors.clone())).collect()
    };
    let joint = rounds(proposer).pop();
    work(proposer);
    for round in proposer.keys.values_mut().filter_map(|queue| queue.round.as_mut()) {
        round.electors = joint.clone().unwrap_or_else(|| round.electors.clone());
    }
}

fn named(bits: u8) -> Quorums {
    Quorums::majority_of((0..8).filter(|node| bits & 1 << node != 0))
}

/// The old voters: the first ones.
fn old(scenario: &Scenario) -> u8 {
    (1 << scenario.voters) - 1
}

/// Who decides in an epoch.
pub(super) fn quorums(scenario: &Scenario, epoch: u8) -> Quorums {
    let next = scenario.next.unwrap_or_default();
    match epoch {
        OLD => named(old(scenario)),
        JOINT => named(old(scenario)).and(named(next)),
        _ => named(next),
    }
}

/// The old voters' majority, which a fault lets decide alone.
pub(super) fn old_majority(scenario: &Scenario) -> Quorums {
    named(old(scenario))
}

/// The epoch that may be published after `published`.
pub(super) fn next_epoch(world: &World) -> Option<u8> {
    let fault = world.scenario.fault;
    world.scenario.next?;
    match world.published {
        OLD if fault == Some(Fault::DirectSwap) => Some(NEW),
        OLD => Some(JOINT),
        JOINT if fault == Some(Fault::NoScan) || is_level(world) => Some(NEW),
        _ => None,
    }
}

/// Whether `new` may compare with `old`: whatever was chosen under the old epoch with the vote of `old` is a row there.
pub(super) fn can_compare(world: &World, new: usize, old: usize) -> bool {
    let fault = world.scenario.fault;
    let may_answer = |node: &Node| match fault {
        Some(Fault::ScanBeforeInstalling) => true,
        Some(Fault::ScanBeforeSettling) => node.installed.epoch >= JOINT,
        _ => node.installed.epoch >= JOINT && node.installed.inherited.is_none(),
    };
    world.published == JOINT
        && world.nodes[new].installed.epoch >= JOINT
        && may_answer(&world.nodes[old])
        && world.compared[new] & 1 << old == 0
}

/// The pairs that are to compare rows: new with old.
pub(super) fn pairs(scenario: &Scenario) -> impl Iterator<Item = (usize, usize)> + use<> {
    let (of_new, of_old) = scenario.scan;
    let (old, new) = (old(scenario) & of_old, scenario.next.unwrap_or_default() & of_new);
    let of = |bits: u8| (0..8).filter(move |node| bits & 1 << node != 0);
    of(new).flat_map(move |new| of(old).map(move |old| (new, old)))
}

/// Each of a majority of the new has compared with a majority of the old, whichever.
fn is_level(world: &World) -> bool {
    let scenario = &world.scenario;
    let (of_old, of_new) = (named(old(scenario)), named(scenario.next.unwrap_or_default()));
    of_new.is_met(|new| of_old.is_met(|old| world.compared[new] & 1 << old != 0))
}
