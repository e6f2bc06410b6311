//! Voters change: in some worlds there are machines that join, and whichever node is asked to adds and removes voters, while
//! disks are lost one after the other, each after the one before was replaced.

use std::time::Duration;

use outrigger::cluster::change::VoterChange;
use outrigger::cluster::status::{ClusterStatus, Role};
use outrigger::transport::memory::Ending;
use outrigger::types::NodeId;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::clients;
use crate::random;
use crate::sometimes::sometimes;
use crate::story::tell;
use crate::world::World;

/// In one world in so many voters change.
const CHANGING_ONE_IN: u32 = 2;
/// Machines that are there besides the first voters, in such a world.
const NEWCOMERS: usize = 2;
/// The fewest voters of which one is removed.
const VOTERS_MIN: usize = 4;
/// How many replicas a shard has where not every voter replicates all: with fewer the loss of one disk would be that of rows.
const FACTOR: usize = 3;
/// One event in so many is a change.
const CHANGE_ONE_IN: u32 = 3;
/// One event in so many is a disk's loss, where one may be lost.
const LOSS_ONE_IN: u32 = 6;
/// One node in so many that was asked for a change does not live to see its end.
const DOOMED_ONE_IN: u32 = 3;
const DOOMED_WITHIN_MS: u64 = 3_000;

/// The changes of one world.
pub(crate) struct Changes {
    random: StdRng,
}

/// Where the world of this seed is one of those.
pub(crate) fn of(seed: u64) -> Option<Changes> {
    let mut random = random::stream(seed, "voters");
    random.random_ratio(1, CHANGING_ONE_IN).then_some(Changes { random })
}

/// How many of the first voters replicate each shard in the world of this seed; none for all.
pub(crate) fn factor(seed: u64) -> Option<usize> {
    random::stream(seed, "factor").random_bool(0.5).then_some(FACTOR)
}

/// Machines that are there besides the first voters.
pub(crate) fn newcomers(changes: Option<&Changes>) -> usize {
    changes.map_or(0, |_| NEWCOMERS)
}

/// Something may happen to who votes.
pub(crate) fn befall(world: &mut World, machine: usize) {
    let Some(Changes { mut random }) = world.changes.take() else { return };
    if random.random_ratio(1, LOSS_ONE_IN) {
        lose_disk(world, machine);
    } else if random.random_ratio(1, CHANGE_ONE_IN) {
        change(world, machine, &mut random);
    }
    world.changes = Some(Changes { random });
}

fn lose_disk(world: &mut World, machine: usize) {
    if !world.may_harm(machine) || world.machines[machine].harmed {
        return;
    }
    let Some(newest) = newest(world) else { return };
    let is_voter = newest.voters.contains(&world.machines[machine].host.name);
    let heals_from = newest.epoch + if is_voter { 2 - u64::from(newest.joint) } else { 0 };
    world.faults += 1;
    sometimes!("a disk was lost while voters changed");
    world.kill(machine, true, Ending::Reset);
    world.harm(machine, "it is lost, and an empty one is in its place");
    world.machines[machine].disk.wipe();
    world.machines[machine].heals_from = Some(heals_from);
    world.boot(machine);
}

fn change(world: &mut World, machine: usize, random: &mut StdRng) {
    let count = world.machines.len();
    let of = world.machines[random.random_range(0..count)].host.name.clone();
    let with = world.machines[random.random_range(0..count)].host.name.clone();
    let kind = random.random_range(0..8);
    let shard = random.random_range(0..clients::addresses().len());
    let dies_in = Duration::from_millis(random.random_range(0..DOOMED_WITHIN_MS));
    let is_doomed = random.random_ratio(1, DOOMED_ONE_IN);
    let Some(newest) = newest(world) else { return };
    let votes = newest.voters.contains(&of);
    let shard = clients::addresses().swap_remove(shard).1.shard;
    let change = match (votes, kind) {
        (_, 6) => VoterChange::Factor(newest.replication_factor.is_none().then_some(FACTOR)),
        (true, 5 | 7) if newest.pins.iter().any(|pin| pin.shard() == shard) => {
            VoterChange::Move { shard, to: Vec::new() }
        }
        (true, 5 | 7) => VoterChange::Move { shard, to: vec![of] },
        (false, _) => VoterChange::Add(of),
        (true, 0..3) if !newest.voters.contains(&with) => VoterChange::Replace { node: of, with: Some(with) },
        (true, _) if newest.voters.len() >= VOTERS_MIN && !newest.joint => VoterChange::Remove(of),
        (true, _) => return,
    };
    if !world.machines[machine].host.is_up() {
        return;
    }
    world.faults += 1;
    tell!("{} is asked to {change}", world.machines[machine].host.name);
    world.machines[machine].shared.order(change);
    if is_doomed {
        world.doom(machine, dies_in);
    }
}

/// What the node says that has heard of the latest configuration.
fn newest(world: &World) -> Option<ClusterStatus> {
    let said = world.machines.iter().filter_map(|machine| Some(machine.shared.handle.lock().as_ref()?.view.cluster()));
    said.max_by_key(|status| status.epoch)
}

/// How many disks may be lost at a time: a minority of any set of voters, or of any shard's replicas, that there can be.
pub(crate) fn may_lose(world: &World) -> usize {
    let fewest = if world.is_changing { VOTERS_MIN - 1 } else { world.factor.unwrap_or(world.first_voters) };
    (fewest - 1) / 2
}

/// Whether a node whose disk was lost has what it had again, its vote included: then the next one may be.
pub(crate) fn is_healed(world: &World, place: usize) -> bool {
    let machine = &world.machines[place];
    let (Some(from), Some(handle)) = (machine.heals_from, machine.shared.handle.lock().clone()) else { return false };
    let (Some(newest), mine) = (newest(world), handle.view.cluster()) else { return false };
    let votes = newest.voters.contains(&mine.node);
    let me = mine.nodes.iter().find(|node| node.me);
    let role = if votes { Role::Voter } else { Role::Observer };
    mine.unready.is_none()
        && handle.view.ready().is_ok()
        && !newest.joint
        && newest.epoch >= from
        && mine.epoch == newest.epoch
        && me.is_some_and(|me| me.role == role)
}

/// Who votes at first, of all machines.
pub(crate) fn first(world: &World) -> Vec<NodeId> {
    world.machines.iter().take(world.first_voters).map(|machine| machine.host.name.clone()).collect()
}

/// Takes note of what a configuration looks like, as one of the nodes sees it.
pub(crate) fn note(status: &ClusterStatus, first_voters: usize) {
    sometimes!(status.joint, "a change of voters was under way");
    let is_placed =
        !status.joint && status.replication_factor.is_some_and(|factor| status.voters.len() > factor as usize);
    sometimes!(is_placed, "not every voter replicated everything");
    sometimes!(is_placed && !status.pins.is_empty(), "a shard was moved");
    sometimes!(!status.joint && status.voters.len() > first_voters, "there were more voters than at first");
    let newcomer = |name: &NodeId| name.as_str().strip_prefix('n').and_then(|n| n.parse().ok());
    let votes_now = status.voters.iter().filter_map(newcomer).any(|n: usize| n >= first_voters);
    sometimes!(!status.joint && votes_now, "a newcomer voted");
}
