//! The search: every state that a scenario can reach, each once.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;
use std::time::Duration;

use super::scenario::Scenario;
use super::world::{Step, World};
use crate::clock::OsClock;

/// Fingerprints are random already.
#[derive(Debug, Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        let mut low = [0; 8];
        low.copy_from_slice(&bytes[..8]);
        self.0 = u64::from_le_bytes(low);
    }
}

type Visited = HashSet<u128, BuildHasherDefault<AsIs>>;

/// A violation, with the shortest way found to it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) what: String,
    pub(super) steps: Vec<String>,
}

/// What a search came to.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) name: &'static str,
    /// Distinct states.
    pub(super) states: usize,
    pub(super) took: Duration,
    pub(super) found: Option<Found>,
    /// False where the search gave up at its limit.
    pub(super) exhausted: bool,
    /// Steps of the longest way taken.
    pub(super) depth: usize,
    /// The last epoch that was published.
    pub(super) epoch: u8,
}

/// In which order states are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Little memory.
    DepthFirst,
    /// Shortest ways first.
    BreadthFirst,
}

/// Looks at every state of `scenario`, at most `states_max`, until one violates an invariant.
pub(super) fn explore(scenario: Scenario, order: Order, states_max: usize) -> Report {
    let clock = OsClock::shared();
    let began = clock.now().monotonic;
    let scenario = Rc::new(scenario);
    let first = World::new(&scenario);
    let mut visited = Visited::default();
    visited.insert(first.fingerprint());
    // Where each state came from, so that a violation can be told as a story.
    let mut origins: Vec<(u32, u16, Step)> = Vec::new();
    let mut frontier = std::collections::VecDeque::from([(first, u32::MAX)]);
    let mut report = Report {
        name: scenario.name,
        states: 1,
        took: Duration::ZERO,
        found: None,
        exhausted: true,
        depth: 0,
        epoch: 0,
    };
    'search: loop {
        let next = if order == Order::BreadthFirst { frontier.pop_front() } else { frontier.pop_back() };
        let Some((world, at)) = next else { break };
        let depth = origins.get(at as usize).map_or(0, |(_, depth, _)| *depth) + 1;
        for step in world.steps() {
            let after = world.after(step);
            let is_violated = after.oracle.violation.clone();
            if !visited.insert(after.fingerprint()) && is_violated.is_none() {
                continue;
            }
            origins.push((at, depth, step));
            report.depth = report.depth.max(usize::from(depth));
            report.epoch = report.epoch.max(after.published);
            let index = u32::try_from(origins.len() - 1).unwrap();
            if let Some(what) = is_violated {
                report.found = Some(Found { what, steps: story(&scenario, &origins, index) });
                break 'search;
            }
            if visited.len() >= states_max {
                report.exhausted = false;
                break 'search;
            }
            frontier.push_back((after, index));
        }
    }
    report.exhausted &= report.found.is_none();
    report.states = visited.len();
    report.took = clock.now().monotonic - began;
    report
}

fn story(scenario: &Rc<Scenario>, origins: &[(u32, u16, Step)], mut at: u32) -> Vec<String> {
    let mut steps = Vec::new();
    while let Some((before, _, step)) = origins.get(at as usize) {
        steps.push(*step);
        at = *before;
    }
    let mut world = World::new(scenario);
    let tell = |step: Step| {
        let told = world.describe(step);
        world = world.after(step);
        told
    };
    steps.into_iter().rev().map(tell).collect()
}
