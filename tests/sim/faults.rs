//! What befalls a world: each fault in a line of the table, with what it does to one machine, or to all.

use std::time::Duration;

use outrigger::transport::memory::Ending;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::disk::Class;
use crate::sometimes::sometimes;
use crate::story::tell;
use crate::world::World;

/// How wrong a clock may be set.
const CLOCK_OFF_MS_MAX: i64 = 120_000;
const SKEW_LIMIT_MS: i64 = 10_000;
/// The same where voters change: so little that it is believed.
const CLOCK_OFF_BELIEVED_MS_MAX: i64 = 9_000;
/// Bytes that a full disk has left.
const ROOM_LEFT_MAX: u64 = 60_000;
/// A disk may be cut off after so many changes: in the middle of something.
const CHANGES_MAX: u64 = 40;
const SLOW_MS_MAX: u64 = 30;

/// What does not keep a node from voting for good: the world may have any number of them.
const PASSING: [fn(&mut World, usize); 10] =
    [kill, lose_power, cut_power_soon, lose_power_everywhere, pause, part, mend, jump, fill, slow_down];
/// What costs a disk its vote: a minority of a world's disks, at most.
const HARMING: [fn(&mut World, usize); 6] = [fail_sync, fail_write, rot, roll_back, empty, lie];
/// One event in so many is a harming one.
const HARM_ONE_IN: u32 = 15;

/// Something happens to the machine.
pub(crate) fn befall(world: &mut World, machine: usize) {
    world.faults += 1;
    if world.random.random_ratio(1, HARM_ONE_IN) && world.may_harm(machine) {
        let which = world.random.random_range(0..HARMING.len());
        return HARMING[which](world, machine);
    }
    if !world.machines[machine].host.is_up() {
        sometimes!("a host was started again");
        return world.boot(machine);
    }
    let which = world.random.random_range(0..=PASSING.len());
    match PASSING.get(which) {
        Some(fault) => fault(world, machine),
        None => world.machines[machine].shared.leave.notify_one(),
    }
}

fn ending(random: &mut StdRng) -> Ending {
    let ending = if random.random_bool(0.5) { Ending::Reset } else { Ending::Silent };
    sometimes!(ending == Ending::Reset, "a host was killed and its peers were told");
    sometimes!(ending == Ending::Silent, "a host was killed in silence");
    ending
}

fn kill(world: &mut World, machine: usize) {
    let ending = ending(&mut world.random);
    world.kill(machine, false, ending);
}

fn lose_power(world: &mut World, machine: usize) {
    sometimes!("the power failed");
    let ending = ending(&mut world.random);
    world.kill(machine, true, ending);
}

fn cut_power_soon(world: &mut World, machine: usize) {
    let changes = world.random.random_range(0..CHANGES_MAX);
    tell!("the power of {} will fail in {changes} changes of its disk", world.machines[machine].host.name);
    world.machines[machine].disk.cut_after(changes);
}

fn lose_power_everywhere(world: &mut World, _: usize) {
    // As often as all others together would have no time left.
    if world.random.random_bool(0.6) {
        return;
    }
    if world.random.random_bool(0.5) {
        tell!("the power will fail everywhere when the next write is acknowledged");
        return world.set_trap();
    }
    sometimes!("the power failed everywhere");
    world.lose_power();
}

fn pause(world: &mut World, machine: usize) {
    if world.machines[machine].host.is_stopped() {
        world.wake(machine);
    } else {
        tell!("{} stands still", world.machines[machine].host.name);
        world.machines[machine].host.stop();
    }
}

fn part(world: &mut World, machine: usize) {
    let count = world.machines.len();
    let other = (machine + world.random.random_range(1..count)) % count;
    let (name, other) = (world.machines[machine].host.name.clone(), world.machines[other].host.name.clone());
    tell!("nothing passes from {name} to {other}");
    sometimes!("a direction was cut");
    world.weather.cut(&name, &other);
    if world.random.random_bool(0.5) {
        world.weather.cut(&other, &name);
    }
}

fn mend(world: &mut World, _: usize) {
    tell!("the network is mended");
    world.weather.mend();
}

fn jump(world: &mut World, machine: usize) {
    let most = if world.is_changing { CLOCK_OFF_BELIEVED_MS_MAX } else { CLOCK_OFF_MS_MAX };
    let to = world.random.random_range(-most..=most);
    tell!("the clock of {} is set, wrong by {to} ms", world.machines[machine].host.name);
    let before = world.machines[machine].host.wall.set_off(to * 1_000_000);
    sometimes!(to * 1_000_000 < before, "a clock was set back");
    sometimes!(to > SKEW_LIMIT_MS, "a clock ran ahead by more than the limit");
    // A node that numbered something by a wrong clock is of no use until that time has come: of two that differ, with
    // nobody to tell which is right.
    world.slack = 2 * Duration::from_millis(most as u64);
}

fn fill(world: &mut World, machine: usize) {
    let left = world.random.random_range(0..ROOM_LEFT_MAX);
    tell!("the disk of {} has {left} bytes left", world.machines[machine].host.name);
    sometimes!("a disk was full");
    world.machines[machine].disk.set_free(left);
    world.relieve_later(machine);
}

fn slow_down(world: &mut World, machine: usize) {
    let by = Duration::from_millis(world.random.random_range(1..=SLOW_MS_MAX));
    tell!("the disk of {} takes {by:?} more for everything", world.machines[machine].host.name);
    sometimes!("a disk was slow");
    world.machines[machine].disk.slow(by);
    world.relieve_later(machine);
}

fn fail_sync(world: &mut World, machine: usize) {
    sometimes!("a sync failed");
    world.harm(machine, "its next sync fails");
    world.machines[machine].disk.fail_syncs(1);
}

fn fail_write(world: &mut World, machine: usize) {
    sometimes!("a write failed");
    world.harm(machine, "its next write fails");
    world.machines[machine].disk.fail_writes(1);
}

fn rot(world: &mut World, machine: usize) {
    let class = [Class::Segment, Class::Header, Class::Database, Class::Wal][world.random.random_range(0..4)];
    world.kill(machine, false, Ending::Reset);
    if let Some(what) = world.machines[machine].disk.rot(class) {
        sometimes!("a bit rotted");
        world.harm(machine, &what);
    }
}

fn roll_back(world: &mut World, machine: usize) {
    let Some(then) = world.machines[machine].snapshot.take() else { return };
    sometimes!("a disk was rolled back");
    world.kill(machine, true, Ending::Reset);
    world.harm(machine, "it goes back to what it was");
    world.machines[machine].forgets = true;
    world.machines[machine].disk.restore(&then);
}

fn empty(world: &mut World, machine: usize) {
    sometimes!("a disk was emptied");
    world.kill(machine, true, Ending::Reset);
    world.harm(machine, "it is emptied");
    world.machines[machine].disk.wipe();
}

fn lie(world: &mut World, machine: usize) {
    sometimes!("a disk lied");
    world.harm(machine, "from now on it says that it syncs, and does not");
    world.machines[machine].forgets = true;
    world.machines[machine].disk.lie(true);
}
