//! Model checks: the register's own code in small worlds, in every order of every event. Three nodes, one key; messages
//! are delivered in any order, late, twice or never; disks take their time; nodes crash and come back; clients and nodes
//! lose patience. After every step an all-seeing [`oracle`] is asked whether anything is wrong.
//!
//! ```text
//!   worlds    which are searched            scenario   how a small world is sized
//!   search    every state, each once        world      what can happen, and what it does; node
//!   oracle    what must hold                fingerprint  when two states are one
//!   faults    the rules taken out, one by one: each must be caught
//!   change    a change of voters               dead     messages that change nothing any more
//!   local     writes of one node alone            restart   what a crash leaves
//!   collection  deletions forgotten
//! ```
//!
//! What is absent: several keys (registers of different keys share the floor and the ceiling alone),
//! broken clocks and disks that lie. A state space is as small as its scenario says, and no smaller: nothing is sampled.
//!
//! `cargo test model -- --nocapture` prints the tables; `--ignored` searches the larger worlds. `MODEL_FAULT` in a fault's name picks
//! some faults.

mod change;
mod collection;
mod dead;
mod faults;
mod fingerprint;
mod local;
mod node;
mod oracle;
mod restart;
mod scenario;
mod search;
mod world;
mod worlds;

use faults::Fault;
use search::{Order, Report, explore};

/// More than any small world has; reaching it is a failure.
const SMALL_STATES_MAX: usize = 400_000;
/// What a search for a fault may cost.
const FAULT_STATES_MAX: usize = 100_000;

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().expect(name))
}

fn show(report: &Report) {
    let Report { name, states, depth, took, exhausted, found, .. } = report;
    let end = match found {
        Some(found) => format!("violated after {} steps", found.steps.len()),
        None if *exhausted => "all".to_owned(),
        None => "gave up".to_owned(),
    };
    println!("| {name} | {states} | {depth} | {:.1} | {end} |", took.as_secs_f64());
}

fn must_hold(report: &Report) {
    show(report);
    if let Some(found) = &report.found {
        panic!("{}: {}\n  {}", report.name, found.what, found.steps.join("\n  "));
    }
}

fn search_small(part: usize) {
    for (index, scenario) in worlds::small().into_iter().enumerate() {
        if index % 2 == part {
            let is_change = scenario.next.is_some();
            let report = explore(scenario, Order::DepthFirst, SMALL_STATES_MAX);
            must_hold(&report);
            assert!(report.exhausted, "{} is not small any more: {} states", report.name, report.states);
            assert!(!is_change || report.epoch == change::NEW, "{}: the change never ends", report.name);
        }
    }
}

#[test]
fn small_worlds_hold_in_every_state() {
    search_small(0);
}

/// The other half, so that two cores share them.
#[test]
fn small_worlds_hold_in_every_state_too() {
    search_small(1);
}

#[test]
fn every_fault_is_caught() {
    println!("| rule | fault | states | steps | seconds | what is wrong |\n|---|---|---|---|---|---|");
    let mut missed = Vec::new();
    let name = std::env::var("MODEL_FAULT").unwrap_or_default();
    for fault in Fault::ALL.into_iter().filter(|fault| fault.title().1.contains(&name)) {
        let (rule, title) = fault.title();
        let report = explore(worlds::of(fault), Order::BreadthFirst, FAULT_STATES_MAX);
        let Some(found) = &report.found else {
            missed.push(title);
            continue;
        };
        let (states, steps, took) = (report.states, found.steps.len(), report.took.as_secs_f64());
        println!("| {rule} | {title} | {states} | {steps} | {took:.1} | {} |", found.what);
        if std::env::var_os("MODEL_STORIES").is_some() {
            println!("\n  {}\n", found.steps.join("\n  "));
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

/// The worlds in which faults are caught are searched with the rules in place too: it is the fault that is caught.
#[test]
fn the_same_worlds_hold_with_every_rule_in_place() {
    let name = std::env::var("MODEL_FAULT").unwrap_or_default();
    for fault in Fault::ALL.into_iter().filter(|fault| fault.title().1.contains(&name)) {
        must_hold(&explore(worlds::of(fault).fault(None), Order::BreadthFirst, FAULT_STATES_MAX / 4));
    }
}

#[test]
#[ignore = "minutes to hours and gigabytes; MODEL_STATES_MAX states per world, MODEL_WORLD in its name; use --release"]
fn large_worlds_hold() {
    let states_max = setting("MODEL_STATES_MAX", 20_000_000);
    let name = std::env::var("MODEL_WORLD").unwrap_or_default();
    println!("| world | states | deepest | seconds | looked at |\n|---|---|---|---|---|");
    for scenario in worlds::large().into_iter().chain(worlds::small()).filter(|world| world.name.contains(&name)) {
        must_hold(&explore(scenario, Order::DepthFirst, states_max));
    }
}
