//! Small worlds, searched exhaustively.

mod faults;
mod fingerprint;
mod oracle;
mod scenario;
mod search;
mod world;

use scenario::{Scenario, cas, increment, read, take};
use search::{Order, Report, explore};
use faults::Fault;
use super::Body;

fn show(report: &Report) {
    println!("{:60} {:>9} states {:>4} deep {:>7.2} s exhausted {} {}", report.name, report.states, report.depth, report.took.as_secs_f64(), report.exhausted,
        report.found.as_ref().map_or("", |f| &f.what));
    if std::env::var("STORY").is_ok() && let Some(found) = &report.found { for s in &found.steps { println!("      {s}"); } }
}

#[test]
fn try_out() {
    let max = std::env::var("MAX").map_or(300_000, |s| s.parse().unwrap());
    let worlds = [
        Scenario::new("two increments").client(0, [increment()]).client(1, [increment()]),
        Scenario::new("two increments, a tick").client(0, [increment()]).client(1, [increment()]).budget(|b| b.ticks = 1),
        Scenario::new("two increments, a duplicate").client(0, [increment()]).client(1, [increment()]).budget(|b| b.duplicates = 1),
        Scenario::new("increment and crash").client(0, [increment()]).client(1, [increment()]).budget(|b| b.crashes = 1),
        Scenario::new("increment and crash, slow").client(0, [increment()]).client(1, [increment()]).slow_disks(0b111).budget(|b| b.crashes = 1),
        Scenario::new("increment and crash, slow 2").client(0, [increment()]).client(1, [increment()]).slow_disks(0b100).mortal(0b100).budget(|b| b.crashes = 1),
        Scenario::new("token").client(0, [increment(), increment()]).client(1, [increment()]),
        Scenario::new("read, slow").client(0, [increment()]).client(1, [read(), read()]).slow_disks(0b111),
        Scenario::new("read").client(0, [increment()]).client(1, [read(), read()]),
        Scenario::new("take").client(0, [take("a")]).client(1, [take("b")]).budget(|b| b.ticks = 1),
        Scenario::new("cas").client(0, [take("a"), cas("a","c")]).client(1, [cas("a", "b")]),
    ];
    for world in worlds { show(&explore(world, Order::DepthFirst(0), max)); }
}

fn world(fault: Fault) -> Scenario {
    let s = Scenario::new(fault.title().1).fault(Some(fault)).without_commits();
    let two = || s.clone().client(0, [increment()]).client(1, [increment()]);
    match fault {
        Fault::OldValueWhileUnflushed => two().slow_disks(0b100).ahead(1).lost(apart),
        Fault::CeilingAfterTheReply => two().slow_disks(0b100).ahead(1).lost(apart).mortal(0b100).budget(|b| b.crashes = 1),
        Fault::NoFloorAfterRestart => two().ahead(1).lost(apart).mortal(0b100).budget(|b| b.crashes = 1),
        Fault::ForgettingSilently => two().ahead(1).lost(apart).budget(|b| b.forgets = 1),
        Fault::AlwaysApplyingAgain => two().lost(apart).budget(|b| b.ticks = 1),
        Fault::BaseAlone => two().lost(apart).ahead(1).budget(|b| b.ticks = 1),
        Fault::LatestAttemptAlone => two().lost(votes_unheard).impatient(0b001).ahead(1500).budget(|b| b.ticks = 2),
        Fault::BypassedTryForgotten => two().lost(votes_unheard).impatient(0b001).ahead(1500).deaf(0b001).budget(|b| b.ticks = 2),
        Fault::UnprovenBase => s.client(0, [increment()]).client(1, [cas("0", "5"), read()]).ahead(1),
        Fault::TokenTwice => s.client(0, [increment(), increment(), increment()]),
        Fault::TokenRenumbered => s.client(0, [increment(), increment()]).client(1, [increment()]).ahead(1).lost(apart),
        Fault::UnflushedRead => s.client(0, [increment(), read()]).client(1, [read()]).slow_disks(0b100).mortal(0b100).lost(apart).budget(|b| { b.crashes = 1; b.expiries = 1; }),
        Fault::HighestWithoutCompleting => s.client(0, [increment()]).client(1, [read(), read()]),
        Fault::CopiedAsAVote => two().ahead(1),
    }
}

#[test]
fn try_faults() {
    let max = std::env::var("MAX").map_or(300_000, |s| s.parse().unwrap());
    let only = std::env::var("ONLY").ok();
    for fault in [Fault::OldValueWhileUnflushed, Fault::CeilingAfterTheReply, Fault::NoFloorAfterRestart, Fault::ForgettingSilently, Fault::AlwaysApplyingAgain, Fault::BaseAlone,
        Fault::LatestAttemptAlone, Fault::BypassedTryForgotten, Fault::UnprovenBase, Fault::TokenTwice, Fault::TokenRenumbered, Fault::UnflushedRead, Fault::HighestWithoutCompleting, Fault::CopiedAsAVote] {
        if only.as_ref().is_some_and(|o| !format!("{fault:?}").contains(o)) { continue; }
        show(&explore(world(fault), Order::DepthFirst(0), max));
        show(&explore(world(fault), Order::BreadthFirst, max));
    }
}


/// Nodes 0 and 1 do not hear of each other.
fn apart(from: usize, to: usize, _: &Body) -> bool {
    from + to == 1
}

/// Node 2 hears of node 0 only what it is to vote for, and is not heard. Node 1 asks nothing of node 0.
fn votes_unheard(from: usize, to: usize, body: &Body) -> bool {
    match (from, to) {
        (0, 2) => !matches!(body, Body::Accept { .. }),
        (2, 0) => true,
        (1, 0) => matches!(body, Body::Prepare { .. } | Body::Accept { .. }),
        _ => false,
    }
}
