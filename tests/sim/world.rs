//! One world: machines with a node each, the network between them, and what befalls them, all from one seed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use outrigger::transport::memory::{Ending, Network};
use outrigger::types::NodeId;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use crate::bugs::Bug;
use crate::clients::{self, ANSWERED_WITHIN, Log, Trap};
use crate::disk::{SimDisk, Snapshot, seed_sqlite};
use crate::faults;
use crate::host::Host;
use crate::invariants::{converged, linearizable, progress, votes};
use crate::program::{Handle, Program, STARTS_OVER, Shared};
use crate::random;
use crate::report::Report;
use crate::sometimes::{self, sometimes};
use crate::story::{self, tell};
use crate::time::{TICK, Wall};
use crate::voters::{self, Changes};
use crate::weather::{IDLE_LIMIT, SeededWeather};

/// One world in so many has five machines, the others three.
const FIVE_ONE_IN: u32 = 4;
/// In one world in so many all clients want the same key.
const HOT_ONE_IN: u32 = 3;
/// In one world in so many a sync takes up to this long, and not what is usual.
const SLOW_SYNCS_ONE_IN: u32 = 3;
const SLOW_SYNC: Duration = Duration::from_millis(60);
/// In one world in so many some writes need one node alone.
const LOCAL_ONE_IN: u32 = 2;
/// In one world in so many each start of a node is that of an earlier or a later version.
const MIXED_ONE_IN: u32 = 3;
/// In one world in so many deletions are remembered for no longer than this.
const FORGETFUL_ONE_IN: u32 = 2;
const GRACE_MS: std::ops::Range<u64> = 200..2_000;
/// How long things go wrong.
const TROUBLE: Duration = Duration::from_secs(30);
/// How long all is well at first.
const PEACE: Duration = Duration::from_secs(3);
/// How long after everything was put right a node may serve nothing.
const PROGRESS_WITHIN: Duration = Duration::from_secs(30);
/// How long after the last request the nodes may differ.
const CONVERGED_WITHIN: Duration = Duration::from_secs(20);
/// The pause between two events, at most.
const EVENT_EVERY_MS_MAX: u64 = 2_000;
/// How long a disk is full, or slow, at most.
const RELIEF_MS_MAX: u64 = 4_000;
const DRIFT_PPM_MAX: i64 = 500;
/// How often the state of the nodes is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(crate) struct Machine {
    pub(crate) host: Host,
    pub(crate) disk: SimDisk,
    pub(crate) shared: Shared,
    /// What was on its disk some time ago.
    pub(crate) snapshot: Option<Snapshot>,
    boots: u64,
    /// It runs a later version of the program.
    is_later: bool,
    pub(crate) harmed: bool,
    /// Its disk was lost, and is a sound one again once the voters' epoch is this and its node has got back from the others
    /// what it had.
    pub(crate) heals_from: Option<u64>,
    /// Its process is killed then.
    doomed_at: Option<Duration>,
    /// Its disk forgets without a trace of it: it stays down once it is, until all who may know are there to tell.
    pub(crate) forgets: bool,
    relieved_at: Option<Duration>,
}

pub(crate) struct World {
    pub(crate) random: StdRng,
    pub(crate) machines: Vec<Machine>,
    pub(crate) weather: Arc<SeededWeather>,
    pub(crate) faults: u64,
    /// How many of the first voters replicate each shard; none for all.
    pub(crate) factor: Option<usize>,
    /// How many machines vote from the beginning: the first ones.
    pub(crate) first_voters: usize,
    /// Others may vote too.
    pub(crate) is_changing: bool,
    /// What changes them; none where they stay the voters.
    pub(crate) changes: Option<Changes>,
    /// Everything was put right, and all sound nodes serve.
    is_well: bool,
    /// Which version the next start is of; none where all are of the same.
    versions: Option<StdRng>,
    /// How long deletions are remembered; none where that is as usual.
    grace: Option<Duration>,
    /// How much longer than usual things may take until they are well again.
    pub(crate) slack: Duration,
    now: Duration,
    network: Arc<Network>,
    log: Log,
    undecided: bool,
    bug: Option<Bug>,
}

/// Lives through the world of `seed`.
pub(crate) fn live(seed: u64, bug: Option<Bug>, aloud: bool) -> Report {
    random::seed(seed);
    seed_sqlite(1 + (seed % 1_000_000_007) as i32);
    story::begin(aloud);
    outrigger::blocking::run_inline();
    if !random::is_ours() {
        story::fail("the operating system's randomness was asked: is getrandom exported (build.rs)?".to_owned());
    }
    let mut world = World::new(seed, bug);
    world.trouble();
    world.recovery();
    let operations = world.log.with(|log| log.history.entries().len()) as u64;
    let (simulated, faults, undecided) = (world.now, world.faults, u64::from(world.undecided));
    world.end();
    tell!("{} bytes of randomness drawn", random::drawn());
    let ending = story::end();
    let story = if ending.failure.is_some() { ending.last } else { Vec::new() };
    Report {
        seed,
        hash: ending.hash,
        lines: ending.told,
        simulated_ms: simulated.as_millis() as u64,
        operations,
        faults,
        undecided,
        sometimes: sometimes::counted(),
        failure: ending.failure,
        story,
    }
}

impl World {
    fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut random = random::stream(seed, "world");
        let weather = Arc::new(SeededWeather::new(seed));
        let network = Network::under(weather.clone());
        let count = if random.random_ratio(1, FIVE_ONE_IN) { 5 } else { 3 };
        sometimes!(count == 5, "five nodes");
        let has_slow_syncs = random.random_ratio(1, SLOW_SYNCS_ONE_IN);
        let changes = voters::of(seed);
        let mut machines = Vec::new();
        for n in 0..count + voters::newcomers(changes.as_ref()) {
            let name = NodeId::parse(&format!("n{n}")).expect("a fine name");
            let drift_ppm = random.random_range(-DRIFT_PPM_MAX..=DRIFT_PPM_MAX);
            let host = Host::new(name, drift_ppm, Wall::off_by(random.random_range(0..1_000_000)));
            let disk = SimDisk::new(random.random(), Arc::new(story::now));
            disk.lie(bug == Some(Bug::LyingDisks));
            if has_slow_syncs {
                disk.set_sync_takes(Duration::from_millis(1), SLOW_SYNC);
            }
            let shared = Shared::default();
            machines.push(Machine {
                host,
                disk,
                shared,
                snapshot: None,
                boots: 0,
                is_later: false,
                harmed: false,
                heals_from: None,
                doomed_at: None,
                forgets: false,
                relieved_at: None,
            });
        }
        let log = Log::default();
        let hot = random.random_ratio(1, HOT_ONE_IN).then(|| random.random_range(0..clients::addresses().len()));
        let local = random.random_ratio(1, LOCAL_ONE_IN).then(|| random.random_range(0.02..0.4));
        log.with(|log| (log.bug, log.hot, log.local) = (bug, hot, local.unwrap_or(0.0)));
        let mut versions = random::stream(seed, "versions");
        let versions = versions.random_ratio(1, MIXED_ONE_IN).then_some(versions);
        let mut graces = random::stream(seed, "grace");
        let is_forgetful = graces.random_ratio(1, FORGETFUL_ONE_IN);
        let grace = is_forgetful.then(|| Duration::from_millis(graces.random_range(GRACE_MS)));
        let factor = voters::factor(seed);
        log.with(|log| log.choosy = factor.map(|factor| factor + seed as usize % 3));
        let mut world = Self {
            random,
            machines,
            weather,
            faults: 0,
            first_voters: count,
            is_changing: changes.is_some(),
            changes,
            is_well: false,
            versions,
            grace,
            factor,
            undecided: false,
            slack: Duration::ZERO,
            now: Duration::ZERO,
            network,
            log,
            bug,
        };
        (0..count).for_each(|machine| world.boot(machine));
        world
    }

    /// Every machine has one turn, in an order that the seed decides.
    fn step(&mut self) {
        self.now += TICK;
        story::set_time(self.now);
        let mut order: Vec<usize> = (0..self.machines.len()).collect();
        order.shuffle(&mut self.random);
        for place in order {
            let machine = &mut self.machines[place];
            machine.host.pass();
            if machine.disk.is_cut() {
                sometimes!("the power failed in the middle of the node's work");
                self.kill(place, true, Ending::Silent);
            } else if self.log.with(|log| log.trap == Trap::Sprung) {
                sometimes!("the power failed everywhere as a write was acknowledged");
                self.log.with(|log| log.trap = Trap::None);
                return self.lose_power();
            } else if self.now.as_millis().is_multiple_of(LOOK_EVERY.as_millis()) {
                self.look_at(place);
            }
        }
    }

    fn look_at(&mut self, place: usize) {
        let machine = &mut self.machines[place];
        if machine.relieved_at.is_some_and(|at| at <= self.now) {
            machine.relieve();
        }
        if machine.harmed {
            let handle = machine.shared.handle.lock().clone();
            sometimes!(handle.as_ref().is_some_and(Handle::is_barred), "a harmed node stopped voting");
        } else if self.bug.is_none() {
            votes::hold(machine.host.name.as_str(), &machine.shared);
        }
        if let Some(handle) = machine.shared.handle.lock().as_ref().filter(|_| self.changes.is_some()) {
            voters::note(&handle.view.cluster(), self.first_voters);
        }
        let ended = machine.shared.ended.lock().clone();
        if machine.doomed_at.take_if(|at| *at <= self.now).is_some() {
            sometimes!("a node died that had been asked for a change of voters");
            self.kill(place, false, Ending::Silent);
        } else if let Some(why) = ended {
            self.kill(place, false, Ending::Reset);
            if why == STARTS_OVER {
                self.boot(place);
            }
        } else if voters::is_healed(self, place) {
            self.heal(place);
        }
    }

    /// Its process will be killed.
    pub(crate) fn doom(&mut self, place: usize, within: Duration) {
        self.machines[place].doomed_at = Some(self.now + within);
    }

    /// The lost disk was replaced: the new one counts as any other.
    fn heal(&mut self, place: usize) {
        let machine = &mut self.machines[place];
        tell!("the disk of {} is replaced", machine.host.name);
        sometimes!("a lost disk was replaced");
        (machine.heals_from, machine.harmed, machine.snapshot) = (None, false, None);
        self.log.with(|log| log.shown.healed(&machine.host.name));
    }

    pub(crate) fn boot(&mut self, place: usize) {
        if self.machines[place].forgets && !self.is_well {
            return;
        }
        let voters = voters::first(self);
        self.choose_version(place);
        let machine = &mut self.machines[place];
        machine.boots += 1;
        machine.shared = Shared::default();
        tell!("{} boots{}", machine.host.name, if machine.is_later { " as a later version" } else { "" });
        let program = Program {
            name: machine.host.name.clone(),
            voters,
            boot: machine.boots,
            grace: self.grace,
            factor: self.factor,
            disk: machine.disk.mount(),
            network: Arc::clone(&self.network),
            shared: machine.shared.clone(),
            log: self.log.clone(),
            random: StdRng::seed_from_u64(self.random.random()),
        };
        machine.host.boot(|clock| program.run(clock));
    }

    /// Upgrades come one machine at a time, and may be taken back.
    fn choose_version(&mut self, place: usize) {
        let Some(versions) = &mut self.versions else { return };
        let is_later = versions.random_bool(0.5);
        let machine = &mut self.machines[place];
        sometimes!(machine.boots > 0 && !machine.is_later && is_later, "a node was upgraded");
        sometimes!(machine.is_later && !is_later, "a node was downgraded");
        machine.is_later = is_later;
        self.weather.set_version(&machine.host.name, is_later);
        let differs = |other: &Machine| other.host.is_up() && other.is_later != is_later;
        sometimes!(self.machines.iter().any(differs), "nodes of different versions ran side by side");
    }

    /// The process is gone; with the power, so is what was never synced.
    pub(crate) fn kill(&mut self, place: usize, power_loss: bool, ending: Ending) {
        let machine = &mut self.machines[place];
        if !machine.host.is_up() && !power_loss {
            return;
        }
        tell!("{} {}: {ending:?}", machine.host.name, if power_loss { "loses power" } else { "is killed" });
        // Before the process: what runs as it is torn down finds no disk and no network.
        machine.disk.crash(power_loss);
        self.network.kill(&machine.host.name, ending);
        *machine.shared.handle.lock() = None;
        machine.host.kill();
        // What it came to in its last moments, its disk gone already, is no end of its own.
        *machine.shared.ended.lock() = None;
    }

    /// The power fails everywhere.
    pub(crate) fn lose_power(&mut self) {
        (0..self.machines.len()).for_each(|place| self.kill(place, true, Ending::Silent));
    }

    /// It will, when the next write is acknowledged: at no other moment do disks hold less of what was said to be on them.
    pub(crate) fn set_trap(&self) {
        self.log.with(|log| log.trap = Trap::Set);
    }

    pub(crate) fn wake(&mut self, place: usize) {
        tell!("{} goes on", self.machines[place].host.name);
        let missed = self.machines[place].host.wake();
        sometimes!(missed > 2 * IDLE_LIMIT, "a host stood still until its peers gave it up");
    }

    /// Whether one more disk may lose its vote.
    pub(crate) fn may_harm(&self, place: usize) -> bool {
        let harmed = self.machines.iter().filter(|machine| machine.harmed).count();
        let most = voters::may_lose(self);
        self.machines[place].harmed || harmed < most
    }

    pub(crate) fn harm(&mut self, place: usize, what: &str) {
        let machine = &mut self.machines[place];
        tell!("the disk of {}: {what}", machine.host.name);
        (machine.harmed, machine.heals_from) = (true, None);
        self.log.with(|log| log.shown.harmed(&machine.host.name));
    }

    /// What was done to the disk passes.
    pub(crate) fn relieve_later(&mut self, place: usize) {
        let after = Duration::from_millis(self.random.random_range(1..=RELIEF_MS_MAX));
        self.machines[place].relieved_at = Some(self.now + after);
    }

    /// Events at random moments.
    fn trouble(&mut self) {
        let mut next = PEACE;
        let mut forgetting = self.bug.filter(|bug| matches!(bug, Bug::DisksRolledBack | Bug::DisksEmptied));
        while self.now < TROUBLE && !story::failed() {
            if self.now >= next {
                let machine = self.random.random_range(0..self.machines.len());
                if self.machines[machine].snapshot.is_none() && self.random.random_bool(0.2) {
                    self.machines[machine].snapshot = Some(self.machines[machine].disk.snapshot());
                }
                match forgetting.take_if(|_| self.now > TROUBLE / 2) {
                    Some(bug) => self.forget_everywhere(bug),
                    None => faults::befall(self, machine),
                }
                voters::befall(self, machine);
                next = self.now + Duration::from_millis(self.random.random_range(1..=EVENT_EVERY_MS_MAX));
            }
            self.step();
        }
    }

    /// What no store survives: every disk forgets.
    fn forget_everywhere(&mut self, bug: Bug) {
        for place in 0..self.machines.len() {
            self.kill(place, true, Ending::Reset);
            let Machine { disk, snapshot, .. } = &mut self.machines[place];
            match snapshot.take() {
                Some(then) if bug == Bug::DisksRolledBack => disk.restore(&then),
                _ => disk.wipe(),
            }
        }
    }

    fn step_until(&mut self, last: Duration, mut is_done: impl FnMut(&mut Self) -> bool) -> bool {
        while self.now < last && !story::failed() {
            if self.now.as_millis().is_multiple_of(LOOK_EVERY.as_millis()) && is_done(self) {
                return true;
            }
            self.step();
        }
        false
    }

    /// Everything is put right: soon all sound nodes serve, and then hold the same rows, which follow from what the
    /// clients were told.
    fn recovery(&mut self) {
        if story::failed() {
            return;
        }
        tell!("everything is put right");
        self.log.with(|log| log.trap = Trap::None);
        self.weather.mend();
        self.weather.calm();
        for place in 0..self.machines.len() {
            self.machines[place].relieve();
            self.machines[place].host.wall.set_off(0);
            if self.machines[place].host.is_stopped() {
                self.wake(place);
            }
        }
        self.boot_those(|_| true);
        let sound = self.machines.iter().filter(|machine| !machine.harmed);
        let sound: Vec<NodeId> = sound.map(|machine| machine.host.name.clone()).collect();
        self.log.with(|log| log.done.clear());
        let idle = |world: &mut Self| world.log.with(|log| progress::idle(&sound, &log.done).len());
        let all_serve = |world: &mut Self| {
            // What was leaving when everything was put right.
            world.boot_those(|machine| !machine.harmed);
            idle(world) == 0
        };
        if !self.step_until(self.now + PROGRESS_WITHIN + self.slack, all_serve) {
            let idle = self.log.with(|log| format!("{:?}", progress::idle(&sound, &log.done)));
            return story::fail(format!("{PROGRESS_WITHIN:?} after everything was put right, {idle} serve nothing"));
        }
        self.is_well = true;
        self.boot_those(|_| true);
        self.log.with(|log| log.quiet = true);
        let answered = self.now + ANSWERED_WITHIN;
        let mut held = Err("nothing was looked at".to_owned());
        self.step_until(self.now + CONVERGED_WITHIN + self.slack, |world| {
            world.boot_those(|machine| !machine.harmed);
            held = converged::look(&world.sound_nodes());
            if let Ok(finals) = &held
                && let Err(why) = world.log.with(|log| log.watched.are_in_step(finals))
            {
                held = Err(why);
            }
            held.is_ok() && world.now > answered
        });
        match held {
            Err(why) => story::fail(format!("{CONVERGED_WITHIN:?} after the last request {why}")),
            Ok(finals) => {
                self.log.with(|log| log.acknowledged.hold(&self.sound_nodes()));
                self.undecided = !self.log.with(|log| linearizable::hold(&log.history, &finals));
            }
        }
    }

    /// Boots those of these machines on which nothing runs.
    fn boot_those(&mut self, which: impl Fn(&Machine) -> bool) {
        for place in 0..self.machines.len() {
            if !self.machines[place].host.is_up() && which(&self.machines[place]) {
                self.boot(place);
            }
        }
    }

    fn sound_nodes(&self) -> BTreeMap<String, Handle> {
        let sound = self.machines.iter().filter(|machine| !machine.harmed);
        let node = |machine: &Machine| Some((machine.host.name.to_string(), machine.shared.handle.lock().clone()?));
        sound.filter_map(node).collect()
    }

    fn end(mut self) {
        for place in 0..self.machines.len() {
            self.kill(place, false, Ending::Reset);
        }
        let digests: Vec<u64> = self.machines.iter().map(|machine| machine.disk.digest()).collect();
        tell!("on the disks: {digests:x?}");
    }
}

impl Machine {
    /// There is room again, and speed.
    fn relieve(&mut self) {
        self.disk.set_quota(u64::MAX);
        self.disk.slow(Duration::ZERO);
        self.relieved_at = None;
    }
}
