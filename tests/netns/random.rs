//! Faults at random, several at a time: what nobody thought of.
//!
//! `NETNS_SECONDS` says for how long (one round by default), `NETNS_SEED` with which choices; what becomes of them is up
//! to the machine.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::common::Signal;
use crate::load::now;
use crate::trial::Trial;

/// Faults of one round.
const STEPS: usize = 8;
/// How long each stays alone, in milliseconds: from nothing to more than a connection's idle timeout.
const STEP_MS_MAX: u64 = 4_000;
/// The highest share of packets that is lost.
const LOSS_PERCENT_MAX: u32 = 40;
/// The clusters that are tried.
const SIZES: [usize; 2] = [3, 5];

/// A number from the environment.
fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// What is wrong with the processes, apart from the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Process {
    Runs,
    Stopped,
    Dead,
}

/// One round's faults, as they add up.
struct Round {
    trial: Trial,
    rng: StdRng,
    processes: Vec<Process>,
    steps: Vec<String>,
}

impl Round {
    async fn step(&mut self) {
        let nodes = self.processes.len();
        let node = self.rng.random_range(0..nodes);
        let other = (node + self.rng.random_range(1..nodes)) % nodes;
        let network = &self.trial.network;
        let step = match self.rng.random_range(0..8) {
            0 => {
                let is_here: Vec<bool> = (0..nodes).map(|_| self.rng.random_ratio(1, 2)).collect();
                let (here, there): (Vec<usize>, Vec<usize>) = (0..nodes).partition(|node| is_here[*node]);
                network.part(&here, &there);
                format!("{here:?} apart from {there:?}")
            }
            1 | 2 => {
                network.cut(node, other);
                format!("{node} not heard by {other}")
            }
            3 => {
                let percent = self.rng.random_range(1..=LOSS_PERCENT_MAX);
                network.lose(percent);
                format!("{percent} % lost")
            }
            4 => format!("healed, {} packets were dropped", network.mend()),
            5 => self.change(node, Process::Dead).await,
            6 => self.change(node, Process::Stopped).await,
            _ => self.change(node, Process::Runs).await,
        };
        self.steps.push(step);
        let pause = self.rng.random_range(0..STEP_MS_MAX);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }

    async fn change(&mut self, node: usize, to: Process) -> String {
        use Process::{Dead, Runs, Stopped};
        match (self.processes[node], to) {
            (Runs, Stopped) => self.trial.stop(node).await,
            (Runs | Stopped, Dead) => self.trial.kill(node),
            (Stopped, Runs) => self.trial.cluster.nodes[node].signal(Signal::CONT),
            (Dead, Runs | Stopped) => self.trial.cluster.nodes[node].start(),
            _ => {}
        }
        // A dead process cannot be stopped: it is started.
        self.processes[node] = if self.processes[node] == Dead && to == Stopped { Runs } else { to };
        format!("{node} {:?}", self.processes[node])
    }

    async fn end(mut self) {
        for node in 0..self.processes.len() {
            self.change(node, Process::Runs).await;
        }
        self.trial.network.mend();
        self.trial.end().await;
    }
}

/// Any faults, in any order, that pile up and go away again.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens() {
    let began = now();
    let limit = Duration::from_secs(setting("NETNS_SECONDS").unwrap_or(0));
    let seed = setting("NETNS_SEED").unwrap_or_else(rand::random);
    for round in seed.. {
        let mut rng = StdRng::seed_from_u64(round);
        let nodes = SIZES[rng.random_range(0..SIZES.len())];
        let Some(trial) = Trial::start(nodes).await else { return };
        let mut round =
            Round { trial, rng, processes: vec![Process::Runs; nodes], steps: vec![format!("seed {round}")] };
        for _ in 0..STEPS {
            round.step().await;
        }
        // Shown where the end fails.
        eprintln!("{}", round.steps.join("; "));
        round.end().await;
        if began.elapsed() >= limit {
            break;
        }
    }
}
