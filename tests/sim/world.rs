//! One world: hosts, the network between them, and what befalls them, all from one seed.

use std::sync::Arc;
use std::time::Duration;

use outrigger::transport::memory::{Ending, Network};
use outrigger::types::NodeId;
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::chatter;
use crate::host::Host;
use crate::random;
use crate::report::Report;
use crate::sometimes::{self, sometimes};
use crate::story::{self, tell};
use crate::time::{TICK, Wall};
use crate::weather::{IDLE_LIMIT, SeededWeather};

const HOSTS: usize = 3;
/// How long things go wrong.
const TROUBLE: Duration = Duration::from_secs(30);
/// How long what went wrong may be felt.
const RECOVERY_MAX: Duration = Duration::from_secs(20);
/// The pause between two events, at most.
const EVENT_EVERY_MS_MAX: u64 = 2_000;
const DRIFT_PPM_MAX: i64 = 500;
const CLOCK_JUMP_MS_MAX: i64 = 60_000;

pub(crate) struct World {
    random: StdRng,
    now: Duration,
    hosts: Vec<Host>,
    network: Arc<Network>,
    weather: Arc<SeededWeather>,
    heard: chatter::Heard,
    faults: u64,
}

/// Lives through the world of `seed`.
pub(crate) fn live(seed: u64, aloud: bool) -> Report {
    random::seed(seed);
    story::begin(aloud);
    if !random::is_ours() {
        story::fail("the operating system's randomness was asked: is getrandom exported (build.rs)?".to_owned());
    }
    let mut world = World::new(seed);
    world.trouble();
    world.recovery();
    let (simulated, operations, faults) = (world.now, world.heard.operations(), world.faults);
    drop(world);
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
        sometimes: sometimes::counted(),
        failure: ending.failure,
        story,
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = random::stream(seed, "world");
        let weather = Arc::new(SeededWeather::new(seed));
        let network = Network::under(weather.clone());
        let mut hosts = Vec::new();
        for n in 0..HOSTS {
            let name = NodeId::parse(&format!("host-{n}")).expect("a fine name");
            let drift_ppm = random.random_range(-DRIFT_PPM_MAX..=DRIFT_PPM_MAX);
            hosts.push(Host::new(name, drift_ppm, Wall::off_by(random.random_range(0..1_000_000))));
        }
        let mut world =
            Self { random, now: Duration::ZERO, hosts, network, weather, heard: chatter::Heard::default(), faults: 0 };
        (0..HOSTS).for_each(|host| world.boot(host));
        world
    }

    /// Every host has one turn, in an order that the seed decides.
    fn step(&mut self) {
        self.now += TICK;
        story::set_time(self.now);
        let mut order: Vec<usize> = (0..self.hosts.len()).collect();
        order.shuffle(&mut self.random);
        for host in order {
            self.hosts[host].pass();
        }
    }

    fn boot(&mut self, host: usize) {
        let names: Vec<NodeId> = self.hosts.iter().map(|host| host.name.clone()).collect();
        let (network, heard) = (Arc::clone(&self.network), self.heard.clone());
        let name = names[host].clone();
        tell!("{name} boots");
        self.hosts[host].boot(|clock| chatter::run(network, name, names, clock, heard));
    }

    /// Events at random moments.
    fn trouble(&mut self) {
        let mut next = self.now;
        while self.now < TROUBLE && !story::failed() {
            if self.now >= next {
                self.event();
                next = self.now + Duration::from_millis(self.random.random_range(1..=EVENT_EVERY_MS_MAX));
            }
            self.step();
        }
    }

    fn event(&mut self) {
        self.faults += 1;
        let host = self.random.random_range(0..HOSTS);
        let name = self.hosts[host].name.clone();
        match self.random.random_range(0..8) {
            0 if self.hosts[host].is_up() => self.kill(host),
            0..=1 if !self.hosts[host].is_up() => {
                sometimes!("a host was started again");
                self.boot(host);
            }
            2 if self.hosts[host].is_up() && !self.hosts[host].is_stopped() => {
                tell!("{name} stands still");
                self.hosts[host].stop();
            }
            3 if self.hosts[host].is_stopped() => self.wake(host),
            4 => {
                let other = self.hosts[(host + self.random.random_range(1..HOSTS)) % HOSTS].name.clone();
                tell!("nothing passes from {name} to {other}");
                sometimes!("a direction was cut");
                self.weather.cut(&name, &other);
            }
            5 => {
                tell!("the network is mended");
                self.weather.mend();
            }
            6 => {
                let by = self.random.random_range(-CLOCK_JUMP_MS_MAX..=CLOCK_JUMP_MS_MAX);
                tell!("the clock of {name} jumps by {by} ms");
                sometimes!(by < 0, "a clock was set back");
                self.hosts[host].wall.jump(by * 1_000_000);
            }
            _ => {}
        }
    }

    fn kill(&mut self, host: usize) {
        let ending = if self.random.random_bool(0.5) { Ending::Reset } else { Ending::Silent };
        let name = self.hosts[host].name.clone();
        tell!("{name} is killed: {ending:?}");
        sometimes!(ending == Ending::Reset, "a host was killed and its peers were told");
        sometimes!(ending == Ending::Silent, "a host was killed in silence");
        self.network.kill(&name, ending);
        self.hosts[host].kill();
    }

    fn wake(&mut self, host: usize) {
        tell!("{} goes on", self.hosts[host].name);
        let missed = self.hosts[host].wake();
        sometimes!(missed > 2 * IDLE_LIMIT, "a host stood still until its peers gave it up");
    }

    /// Everything is put right, and soon everybody hears from everybody.
    fn recovery(&mut self) {
        tell!("everything is put right");
        self.weather.mend();
        self.weather.calm();
        for host in 0..HOSTS {
            if !self.hosts[host].is_up() {
                self.boot(host);
            }
            if self.hosts[host].is_stopped() {
                self.wake(host);
            }
        }
        let names: Vec<NodeId> = self.hosts.iter().map(|host| host.name.clone()).collect();
        self.heard.forget();
        let last = self.now + RECOVERY_MAX;
        while self.now < last && !story::failed() {
            if self.heard.all(&names) {
                tell!("everybody hears everybody");
                return;
            }
            self.step();
        }
        story::fail(format!("{RECOVERY_MAX:?} after everything was put right, not everybody hears everybody"));
    }
}
