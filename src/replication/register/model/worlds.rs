//! The worlds that are searched: small ones with every `cargo test`, larger ones when asked for, and for every fault the
//! smallest one found in which it does harm.

use super::faults::Fault;
use super::scenario::{Scenario, cas, increment, read, take};
use crate::replication::register::Body;

/// Two nodes that each add one: the core of all.
fn two_increments(name: &'static str) -> Scenario {
    Scenario::new(name).client(0, [increment()]).client(1, [increment()])
}

/// What `cargo test` looks at in full.
pub(super) fn small() -> Vec<Scenario> {
    vec![
        two_increments("two increments"),
        two_increments("two increments, apart, a retry").lost(apart).ahead(1).budget(|left| left.ticks = 1),
        two_increments("two increments, a retry, no commits")
            .impatient(0b001)
            .without_commits()
            .budget(|left| left.ticks = 1),
        two_increments("two increments, a duplicate").without_commits().budget(|left| left.duplicates = 1),
        two_increments("two increments, apart, slow disks, a crash")
            .slow_disks(0b100)
            .lost(apart)
            .ahead(1)
            .budget(|left| left.crashes = 1),
        two_increments("two increments, tight ceilings, a crash")
            .tight_ceilings()
            .lost(apart)
            .mortal(0b101)
            .without_commits()
            .budget(|left| left.crashes = 1),
        two_increments("two increments, promises forgotten").without_commits().budget(|left| left.forgets = 1),
        two_increments("two increments, impatient clients").without_commits().budget(|left| left.expiries = 1),
        two_increments("two increments, a question about what is left open")
            .lost(apart)
            .mortal(0b001)
            .budget(|left| (left.crashes, left.settles) = (1, 1)),
        Scenario::new("tokens and a rival")
            .client(0, [increment(), increment()])
            .client(1, [increment()])
            .without_commits(),
        Scenario::new("updates folded into one round")
            .client(0, [increment()])
            .client(0, [increment()])
            .client(1, [read()])
            .without_commits()
            .lost(apart),
        Scenario::new("reads beside an increment")
            .client(0, [increment()])
            .client(1, [read(), read()])
            .without_commits(),
        Scenario::new("reads beside an increment, a slow disk, a crash")
            .client(0, [increment()])
            .client(1, [read(), read()])
            .slow_disks(0b100)
            .mortal(0b100)
            .lost(apart)
            .budget(|left| left.crashes = 1),
        Scenario::new("who takes it").client(0, [take("a")]).client(1, [take("b"), read()]).without_commits(),
        Scenario::new("compare and set")
            .client(0, [take("a"), cas("a", "c")])
            .client(1, [cas("a", "b")])
            .without_commits(),
    ]
}

/// What takes minutes to hours, and gigabytes.
pub(super) fn large() -> Vec<Scenario> {
    let full = |name| two_increments(name).slow_disks(0b111).tight_ceilings();
    vec![
        two_increments("two increments, a retry").budget(|left| left.ticks = 1),
        two_increments("two increments, a retry and a duplicate").budget(|left| {
            left.ticks = 1;
            left.duplicates = 1;
        }),
        two_increments("two increments, slow disks, a crash").slow_disks(0b111).budget(|left| left.crashes = 1),
        full("two increments, slow disks, tight ceilings"),
        full("two increments, slow disks, tight ceilings, a crash and a retry").without_commits().budget(|left| {
            left.crashes = 1;
            left.ticks = 1;
        }),
        two_increments("two increments, apart, two crashes and two retries").lost(apart).budget(|left| {
            left.crashes = 2;
            left.ticks = 2;
        }),
        two_increments("two increments, messages to oneself delayed, two retries")
            .deaf(0b001)
            .impatient(0b001)
            .ahead(1500)
            .without_commits()
            .budget(|left| left.ticks = 2),
        Scenario::new("reads beside an increment, and commits").client(0, [increment()]).client(1, [read(), read()]),
        Scenario::new("updates folded into one round, and a rival")
            .client(0, [increment()])
            .client(0, [increment()])
            .client(1, [increment()]),
        Scenario::new("two readers, a slow disk")
            .client(0, [increment()])
            .client(1, [read()])
            .client(2, [read()])
            .slow_disks(0b100)
            .without_commits(),
        Scenario::new("three increments").client(0, [increment()]).client(1, [increment()]).client(2, [increment()]),
        Scenario::new("tokens, a rival and a retry")
            .client(0, [increment(), increment()])
            .client(1, [increment()])
            .budget(|left| left.ticks = 1),
        Scenario::new("a rival, tokens expired")
            .client(0, [increment(), increment()])
            .client(1, [increment()])
            .without_tokens(),
        Scenario::new("reads beside an increment, slow disks, a crash")
            .client(0, [increment()])
            .client(1, [read(), read()])
            .slow_disks(0b111)
            .budget(|left| left.crashes = 1),
    ]
}

/// The world in which `fault` is to be caught.
pub(super) fn of(fault: Fault) -> Scenario {
    let (_, name) = fault.title();
    let nobody = || Scenario::new(name).without_commits();
    let two = || two_increments(name).without_commits();
    let world = match fault {
        Fault::OldValueWhileUnflushed => two().slow_disks(0b100).ahead(1).lost(apart),
        Fault::CeilingAfterTheReply => {
            two().slow_disks(0b100).tight_ceilings().ahead(1).lost(apart).mortal(0b100).budget(|left| left.crashes = 1)
        }
        Fault::NoFloorAfterRestart => two().ahead(1).lost(apart).mortal(0b100).budget(|left| left.crashes = 1),
        Fault::ForgettingSilently => two().ahead(1).lost(apart).budget(|left| left.forgets = 1),
        Fault::AlwaysApplyingAgain | Fault::BaseAlone => two().ahead(1).lost(apart).budget(|left| left.ticks = 1),
        Fault::LatestAttemptAlone => {
            two().ahead(1500).lost(votes_unheard).impatient(0b001).budget(|left| left.ticks = 2)
        }
        Fault::BypassedTryForgotten => {
            two().ahead(1500).lost(votes_unheard).impatient(0b001).deaf(0b001).budget(|left| left.ticks = 2)
        }
        Fault::UnprovenBase => nobody().client(0, [increment()]).client(1, [cas("0", "5"), read()]).ahead(1),
        Fault::TokenTwice => nobody().client(0, [increment(), increment(), increment()]),
        Fault::TokenRenumbered => {
            nobody().client(0, [increment(), increment()]).client(1, [increment()]).ahead(1).lost(apart)
        }
        Fault::UnflushedRead => nobody()
            .client(0, [increment(), read()])
            .client(1, [read()])
            .slow_disks(0b100)
            .mortal(0b100)
            .lost(apart)
            .budget(|left| (left.crashes, left.expiries) = (1, 1)),
        Fault::HighestWithoutCompleting => nobody().client(0, [increment()]).client(1, [read(), read()]),
        Fault::CopiedAsAVote => two().ahead(1),
    };
    world.fault(Some(fault))
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
