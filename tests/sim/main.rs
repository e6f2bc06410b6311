//! The simulated world: hosts of one cluster in one process, on one thread, under virtual time. Everything that happens
//! follows from a seed.
//!
//! ```sh
//! cargo test --test sim                                # the seeds of every run, and that they repeat
//! cargo test --test sim -- seeds --seeds 5000 --from 1000    # --until-failure: no further than the first that fails
//! SEED=7 cargo test --test sim                         # one world, with its story
//! BUG=local-reads SEED=7 cargo test --test sim         # one with something wrong in it (bugs.rs)
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "what a test's helpers cannot do is a failure of the test"
)]

mod arguments;
mod bugs;
mod children;
mod clients;
#[allow(dead_code, reason = "its own tests use all of it")]
mod disk;
mod faults;
#[allow(dead_code, reason = "shared with other tests")]
#[path = "../common/history.rs"]
mod history;
mod host;
mod invariants;
mod later;
#[allow(dead_code, reason = "shared with other tests")]
#[path = "../common/linearizable.rs"]
mod linearizable;
#[path = "../common/monotone.rs"]
mod monotone;
mod program;
mod random;
mod report;
mod sometimes;
mod story;
mod time;
mod voters;
mod weather;
mod world;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use arguments::{Arguments, Check, Task};
use children::Until;
use report::Report;

/// How many failed seeds are shown with their stories.
const STORIES_MAX: usize = 3;
/// How many seeds a bug may need until it is found.
const BUG_SEEDS_MAX: u64 = 100;

fn main() -> ExitCode {
    match arguments::read() {
        Err(wrong) => {
            eprintln!("{wrong}");
            ExitCode::from(2)
        }
        Ok(Task::Nothing) => ExitCode::SUCCESS,
        Ok(Task::Child(seed)) => {
            children::limit_resources();
            children::tell_parent(&world::live(seed, bugs::wanted(), false));
            ExitCode::SUCCESS
        }
        Ok(Task::Replay(seed)) => replay(seed),
        Ok(Task::Checks(arguments)) => {
            // All of them, also after one that failed.
            let failed = arguments.checks.iter().filter(|check| !check_one(**check, &arguments)).count();
            if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
    }
}

fn replay(seed: u64) -> ExitCode {
    let report = world::live(seed, bugs::wanted(), true);
    println!("hash {:016x}, {} lines, {} ms", report.hash, report.lines, report.simulated_ms);
    match report.failure {
        None => ExitCode::SUCCESS,
        Some(failure) => {
            println!("FAILED: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn check_one(check: Check, arguments: &Arguments) -> bool {
    let (passed, took) = timed(|| match check {
        Check::Seeds => seeds(arguments),
        Check::Determinism => determinism(arguments),
        Check::Bugs => every_bug_is_found(),
    });
    println!("test {} ... {} ({:.1} s)\n", check.name(), if passed { "ok" } else { "FAILED" }, took.as_secs_f64());
    passed
}

#[expect(clippy::disallowed_methods, reason = "how long the run takes its user, outside of any world")]
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let began = std::time::Instant::now();
    (work(), began.elapsed())
}

/// Every seed's world holds what it promises, and all of them together saw what is to be seen.
fn seeds(arguments: &Arguments) -> bool {
    let seeds: Vec<u64> = arguments.seeds(Check::Seeds).collect();
    let (reports, took) = timed(|| children::live_through(&seeds, None, arguments.until));
    let sum = |of: fn(&Report) -> u64| reports.iter().map(of).sum::<u64>();
    let mut counted: BTreeMap<&str, u64> = sometimes::DECLARED.iter().map(|state| (*state, 0)).collect();
    for (state, times) in reports.iter().flat_map(|report| &report.sometimes) {
        *counted.entry(state).or_default() += times;
    }
    println!("{:>12} seeds, from {}", reports.len(), arguments.from);
    println!("{:>12} s simulated in {:.1} s", sum(|report| report.simulated_ms) / 1000, took.as_secs_f64());
    println!("{:>12} operations", sum(|report| report.operations));
    println!("{:>12} faults", sum(|report| report.faults));
    println!("{:>12} worlds undecided: too many writes of unknown fate for the oracle", sum(|report| report.undecided));
    for (state, times) in &counted {
        println!("{times:>12} times {state}");
    }
    let failed: Vec<&Report> = reports.iter().filter(|report| report.failure.is_some()).collect();
    for (place, report) in failed.iter().enumerate() {
        if place < STORIES_MAX {
            report.story.iter().for_each(|line| println!("    {line}"));
        }
        println!("seed {} FAILED: {}", report.seed, report.failure.as_deref().unwrap_or_default());
        println!("    replay: SEED={} cargo test --test sim", report.seed);
    }
    let unseen: Vec<_> = counted.iter().filter(|(_, times)| **times == 0).map(|(state, _)| *state).collect();
    if arguments.is_whole() && !unseen.is_empty() {
        println!("never seen: {unseen:?}");
        return false;
    }
    failed.is_empty()
}

/// Worlds with something wrong in them are told apart from those without: the first seed that tells, for each bug.
fn every_bug_is_found() -> bool {
    let mut found_all = true;
    for (name, _) in bugs::ALL {
        let seeds: Vec<u64> = (0..BUG_SEEDS_MAX).collect();
        let reports = children::live_through(&seeds, Some(name), Until::Failure);
        match reports.into_iter().find(|report| report.failure.is_some()) {
            Some(report) => {
                let failure = report.failure.unwrap_or_default();
                let first = failure.lines().next().unwrap_or_default();
                println!("{name}: found by BUG={name} SEED={}: {first}", report.seed);
            }
            None => {
                println!("{name}: not found in {BUG_SEEDS_MAX} seeds");
                found_all = false;
            }
        }
    }
    found_all
}

/// A seed is a world: two processes that live through the same one tell the same story.
fn determinism(arguments: &Arguments) -> bool {
    let twice: Vec<u64> = arguments.seeds(Check::Determinism).flat_map(|seed| [seed, seed]).collect();
    let reports = children::live_through(&twice, None, Until::End);
    let mut same = true;
    for pair in reports.chunks_exact(2) {
        let [one, other] = pair else { continue };
        if let Some(failure) =
            one.failure.as_ref().filter(|_| one.lines == 0).or(other.failure.as_ref().filter(|_| other.lines == 0))
        {
            println!("seed {}: {failure}", one.seed);
            same = false;
        } else if (one.hash, one.lines) != (other.hash, other.lines) {
            println!(
                "seed {}: {:016x} ({} lines), then {:016x} ({})",
                one.seed, one.hash, one.lines, other.hash, other.lines
            );
            println!("    to compare: SEED={} cargo test --test sim, twice", one.seed);
            same = false;
        }
    }
    println!("{:>12} seeds lived through twice", reports.len() / 2);
    same
}
