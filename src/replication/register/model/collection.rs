//! Forgetting deletions in these worlds (rule 10). One driver does one thing after the other, and may stop anywhere for good:
//!
//! ```text
//!   begin at G ─► each replica refuses ≤ G, durably, and settles ─► look at each ─► all alike? ─► each raises its floor to G
//!                                                                     └──── no: look again ◄──┘
//! ```
//!
//! Looks are taken one by one, with anything in between. A replica that lags behind another's floor adopts it: a step of its
//! own, which the driver has no part in.

use std::rc::Rc;

use super::faults::Fault;
use super::node::{Node, address, chosen};
use super::world::{Step, World};
use crate::replication::repair::{is_forgotten, is_missed};
use crate::store::replicator::Op;
use crate::types::Ballot;

/// What lies up to G: a version, and whether it is live.
type Old = Option<(Ballot, bool)>;

/// Where the driver stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Driver {
    Idle,
    /// This replica is the next to refuse.
    Refusing(Ballot, usize),
    /// The next to be looked at is the one after these.
    Looking(Ballot, Vec<Old>),
    /// This replica is the next to raise its floor.
    Raising(Ballot, usize),
}

/// A floor at the version of a row, as whoever chooses by the clock might choose it. No round has its number.
fn floor_at(upd: Ballot) -> Ballot {
    Ballot(upd.0 | 0xfff)
}

/// Whether a ballot is a floor's.
pub(super) fn is_floor(ballot: Ballot) -> bool {
    floor_at(ballot) == ballot
}

fn old(node: &Node, floor: Ballot) -> Old {
    node.row().filter(|row| row.upd <= floor).map(|row| (row.upd, row.op != Op::Del))
}

/// Whether a replica refuses everything up to there for good, and has settled it.
fn is_settled(world: &World, n: usize, floor: Ballot) -> bool {
    let node = &world.nodes[n];
    let refused = node.disk.refused.get(&address().shard).is_some_and(|refused| *refused >= floor);
    let is_settled = node.acceptor.is_settled(&address().shard, floor);
    match world.scenario.fault {
        Some(Fault::NothingRefused) => node.acceptor.pending_of(&address().shard).all(|(_, ballot)| ballot > floor),
        Some(Fault::LookBeforeSettling) => refused,
        _ => refused && is_settled,
    }
}

/// The floors at which the driver may begin: above a row, or where there is none, above what is being asked for.
fn beginnings(world: &World) -> Vec<Ballot> {
    if world.left.collections == 0 || world.driver != Driver::Idle {
        return Vec::new();
    }
    let mut floors: Vec<_> = world.nodes.iter().filter_map(|node| node.row()).map(|row| floor_at(row.upd)).collect();
    if floors.is_empty() {
        let promised = |node: &Rc<Node>| node.acceptor.keys.values().map(|key| key.promised).max();
        floors.extend(world.nodes.iter().filter_map(promised).filter(|ballot| *ballot > Ballot::ZERO).map(floor_at));
    }
    floors.sort_unstable();
    floors.dedup();
    floors
}

/// Whether the driver can go on.
fn goes_on(world: &World) -> bool {
    match &world.driver {
        Driver::Idle => false,
        Driver::Refusing(floor, n) => *n == 0 || is_settled(world, n - 1, *floor),
        Driver::Looking(floor, seen) => is_settled(world, seen.len(), *floor),
        Driver::Raising(floor, n) => is_settled(world, *n, *floor),
    }
}

/// The pairs of which the second may adopt the first's floor.
fn adoptions(world: &World) -> impl Iterator<Item = (usize, usize)> {
    pairs(world).filter(|(from, to)| {
        let (from, to) = (&world.nodes[*from], &world.nodes[*to]);
        let floor = from.gc_floor;
        let has_all = from.row().is_none_or(|theirs| !is_missed(theirs.upd, to.row().map(|row| row.upd), to.gc_floor));
        floor > to.gc_floor && has_all && to.acceptor.pending_of(&address().shard).all(|(_, ballot)| ballot > floor)
    })
}

/// The pairs of which the second has missed a row that the first has.
fn repairs(world: &World) -> impl Iterator<Item = (usize, usize)> {
    pairs(world).filter(|(from, to)| {
        let to = &world.nodes[*to];
        let theirs = world.nodes[*from].row();
        theirs.is_some_and(|theirs| is_missed(theirs.upd, to.row().map(|row| row.upd), to.gc_floor))
    })
}

fn pairs(world: &World) -> impl Iterator<Item = (usize, usize)> {
    let nodes = world.nodes.len();
    (0..nodes).flat_map(move |from| (0..nodes).map(move |to| (from, to))).filter(|(from, to)| from != to)
}

impl World {
    /// All of that which can happen next.
    pub(super) fn collecting_steps(&self, steps: &mut Vec<Step>) {
        steps.extend(beginnings(self).into_iter().map(Step::Begin));
        if goes_on(self) {
            steps.push(Step::Collect);
        }
        if self.left.repairs > 0 {
            steps.extend(repairs(self).map(|(from, to)| Step::Repair(from, to)));
        }
        if self.scenario.adopts {
            steps.extend(adoptions(self).map(|(from, to)| Step::Adopt(from, to)));
        }
        steps.extend((0..self.nodes.len()).filter(|n| can_drop_once_chosen(self, *n)).map(Step::Drop));
    }

    /// The driver's next step; the node that it concerns.
    pub(super) fn collect(&mut self) -> usize {
        let (nodes, fault) = (self.nodes.len(), self.scenario.fault);
        match self.driver.clone() {
            Driver::Idle => 0,
            Driver::Refusing(floor, n) => {
                self.driver = match n + 1 < nodes {
                    true => Driver::Refusing(floor, n + 1),
                    false if fault == Some(Fault::FloorWhileIncomplete) => Driver::Raising(floor, 0),
                    false => Driver::Looking(floor, Vec::new()),
                };
                if fault != Some(Fault::NothingRefused) {
                    self.node(n).acceptor.refuse_upto(&address().shard, floor);
                }
                n
            }
            Driver::Looking(floor, mut seen) => {
                let n = seen.len();
                seen.push(old(&self.nodes[n], floor));
                let alike = seen.windows(2).all(|pair| pair[0] == pair[1]);
                self.driver = match seen.len() < nodes {
                    _ if !alike => Driver::Looking(floor, Vec::new()),
                    true => Driver::Looking(floor, seen),
                    false => Driver::Raising(floor, 0),
                };
                n
            }
            Driver::Raising(floor, n) => {
                self.driver = if n + 1 < nodes { Driver::Raising(floor, n + 1) } else { Driver::Idle };
                self.raise(n, floor);
                n
            }
        }
    }

    /// What a shard does in one transaction.
    fn raise(&mut self, n: usize, floor: Ballot) {
        let fault = self.scenario.fault;
        let node = self.node(n);
        let is_by_version = fault == Some(Fault::DropByVersion);
        let is_droppable = |upd: Ballot, ballot: Ballot| if is_by_version { upd <= floor } else { ballot <= floor };
        if node.row().is_some_and(|row| row.op == Op::Del && is_droppable(row.upd, row.ballot)) {
            node.stored.clear();
        }
        if fault != Some(Fault::DropWithoutFloor) {
            node.gc_floor = node.gc_floor.max(floor);
            node.acceptor.on_floor(&address().shard, floor);
        }
    }

    /// A replica behind a floor adopts it: what it has up to there and the other has not was deleted since.
    pub(super) fn adopt(&mut self, from: usize, to: usize) {
        let (floor, theirs) = (self.nodes[from].gc_floor, self.nodes[from].row());
        let node = self.node(to);
        if node.row().is_some_and(|row| is_forgotten(row.ballot, theirs.map(|row| row.upd), floor)) {
            node.stored.clear();
        }
        self.raise(to, floor);
    }

    /// A repair is on its way.
    pub(super) fn repair(&mut self, from: usize, to: usize) {
        if let Some(row) = self.nodes[from].row() {
            self.send(from, to, chosen(&row));
        }
    }

    /// A fault: a deletion is forgotten as soon as it is chosen.
    pub(super) fn drop_once_chosen(&mut self, n: usize) {
        self.node(n).stored.clear();
    }
}

fn can_drop_once_chosen(world: &World, n: usize) -> bool {
    world.scenario.fault == Some(Fault::DropOnceChosen) && world.nodes[n].row().is_some_and(|row| row.op == Op::Del)
}
