//! The worlds that are searched: small ones with every `cargo test`, larger ones when asked for, and for every fault the
//! smallest one found in which it does harm.

use super::faults::Fault;
use super::scenario::{Scenario, cas, del, increment, local, read, take};
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
        local_write("a local write beside an increment and a read").without_commits(),
        local_write("a local write, apart, a retry")
            .lost(apart)
            .ahead(1)
            .impatient(0b001)
            .budget(|left| left.ticks = 1),
        Scenario::new("a local write, an increment, a crash")
            .client(0, [local("10")])
            .client(1, [increment()])
            .slow_disks(0b001)
            .mortal(0b001)
            .without_commits()
            .lost(apart)
            .budget(|left| left.crashes = 1),
        two_local_writes("local writes of two nodes").without_commits(),
        Scenario::new("a local write between a node's others, tokens")
            .client(0, [increment(), local("10"), increment()])
            .without_commits(),
        replaced("a voter replaced, an increment, a read").scan(0b1010, 0b110).lost(new_hears_one),
        collected("a deletion forgotten, rows that come late", 0b011)
            .client(0, [del(), read()])
            .without_commits()
            .lost(two_hears_rows)
            .budget(|left| left.repairs = 3),
        collected("a put forgotten by nobody", 0).client(0, [take("a")]).client(2, [read()]).lost(in_a_row),
        collected("a deletion forgotten, its floor adopted", 0b011)
            .client(0, [del(), read()])
            .adopting()
            .without_commits()
            .lost(two_hears_rows)
            .budget(|left| left.repairs = 3),
        collected("a deletion forgotten, slow disks, a crash", 0b111)
            .client(0, [del()])
            .slow_disks(0b010)
            .mortal(0b010)
            .lost(in_a_row)
            .budget(|left| (left.crashes, left.repairs) = (1, 1)),
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
        two_local_writes("local writes of two nodes, a read").client(2, [read()]).without_commits(),
        two_local_writes("local writes of two nodes, a crash and a retry").budget(|left| {
            left.crashes = 1;
            left.ticks = 1;
        }),
        Scenario::new("local writes between a node's others, tokens, a read")
            .client(0, [increment(), local("10"), increment(), local("20")])
            .client(1, [read()])
            .without_commits(),
        replaced("a voter replaced, an increment, a read, what was open is settled")
            .scan(0b1010, 0b101)
            .lost(in_two_halves_but_for_two)
            .budget(|left| left.settles = 1),
        increment_that_comes_late("a deletion forgotten, an increment that comes late"),
        deletion_chosen_again("a deletion forgotten that was chosen again"),
        collected("a deletion forgotten, put and read meanwhile, a floor adopted", 0b111)
            .client(0, [del(), take("a")])
            .client(2, [read()])
            .adopting(),
        Scenario::new("a voter added, an increment, a read")
            .client(0, [increment()])
            .client(3, [read()])
            .next(0b1111)
            .scan(0b1011, 0b011)
            .without_commits()
            .lost(new_hears_one),
        Scenario::new("a voter removed, an increment, a read")
            .client(2, [increment()])
            .client(0, [read()])
            .next(0b0011)
            .scan(0b011, 0b011)
            .without_commits(),
    ]
}

/// Two nodes that write on their own.
fn two_local_writes(name: &'static str) -> Scenario {
    Scenario::new(name).client(0, [local("10")]).client(1, [local("20")])
}

/// A local write on one node, and an increment and a read on another.
fn local_write(name: &'static str) -> Scenario {
    Scenario::new(name).client(0, [local("10")]).client(1, [increment(), read()])
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
        Fault::MergedPastPromises => {
            let asked = nobody().client(0, [local("10")]).client(1, [increment()]).client(2, [read()]);
            asked.ahead(1).lost(through_node_0).impatient(0b100).budget(|left| left.ticks = 1)
        }
        Fault::DrainedWithoutCondition => {
            nobody().client(0, [local("10")]).client(1, [increment()]).impatient(0b001).budget(|left| left.ticks = 1)
        }
        Fault::TokenBelowLocalWrite => nobody().client(0, [increment(), local("10"), increment()]).full_outboxes(),
        Fault::DirectSwap | Fault::NoScan | Fault::ScanBeforeInstalling | Fault::ScanBeforeSettling => {
            replaced(name).scan(0b1010, 0b110).lost(in_two_halves)
        }
        Fault::ReadsOnTheOldMajority => {
            nobody().client(3, [increment()]).client(2, [read()]).next(0b1011).scan(0b1001, 0b011).lost(new_beside_old)
        }
        Fault::DropOnceChosen => collected(name, 0b111).client(0, [del()]).client(2, [read()]).without_commits(),
        Fault::DropWithoutFloor => collected(name, 0b011)
            .client(0, [del(), read()])
            .without_commits()
            .lost(two_hears_rows)
            .budget(|left| left.repairs = 3),
        Fault::AbsentLowest => increment_that_comes_late(name),
        Fault::FloorWhileIncomplete => collected(name, 0b011).client(2, [read()]),
        Fault::NothingRefused => collected(name, 0).client(0, [take("a")]).client(2, [read()]).lost(in_a_row),
        Fault::LookBeforeSettling => {
            collected(name, 0).client(0, [take("a")]).client(2, [read()]).lost(in_a_row).without_commits()
        }
        Fault::DropByVersion => deletion_chosen_again(name),
    };
    world.fault(Some(fault))
}

/// A value that these hold, and deletions that are forgotten.
fn collected(name: &'static str, seeded: u8) -> Scenario {
    Scenario::new(name).seeded(seeded).budget(|left| left.collections = 1)
}

/// The increment was asked for before the deletion, and its vote comes when that is forgotten.
fn increment_that_comes_late(name: &'static str) -> Scenario {
    collected(name, 0b111)
        .client(0, [increment()])
        .client(1, [del()])
        .deaf(0b001)
        .without_grants()
        .without_commits()
        .lost(zero_asks_one)
        .budget(|left| left.repairs = 2)
}

/// A deletion that is completed at a ballot above what is forgotten.
fn deletion_chosen_again(name: &'static str) -> Scenario {
    collected(name, 0b111)
        .client(0, [del(), take("a"), read()])
        .ahead(1)
        .without_grants()
        .without_commits()
        .lost(one_settles_with_two)
        .budget(|left| (left.settles, left.repairs) = (1, 1))
}

/// Node 2 takes part in nothing; it is sent rows, and asked by node 0 what it has. Node 1 is asked for votes alone.
fn two_hears_rows(from: usize, to: usize, body: &Body) -> bool {
    match (from, to) {
        (0, 2) => !matches!(body, Body::Read { .. } | Body::Chosen { .. }),
        (2, 0) => !matches!(body, Body::Held { .. }),
        (0, 1) => matches!(body, Body::Read { .. }),
        (1, 0) => false,
        _ => from != to,
    }
}

/// Node 0 asks node 1 alone, and that one asks node 2 alone; all are sent rows.
fn zero_asks_one(from: usize, to: usize, body: &Body) -> bool {
    match (from, to) {
        (1, 0) => matches!(body, Body::Prepare { .. } | Body::Accept { .. }),
        _ => from + to == 2 && from != to,
    }
}

/// Nodes 0 and 2 do not hear of each other.
fn in_a_row(from: usize, to: usize, _: &Body) -> bool {
    from + to == 2 && from != to
}

/// Node 0 writes with node 1 and reads with node 2; node 1 asks node 2 alone.
fn one_settles_with_two(from: usize, to: usize, body: &Body) -> bool {
    match (from, to) {
        (0, 1) => matches!(body, Body::Read { .. }),
        (0, 2) => !matches!(body, Body::Read { .. }),
        (2, 0) => !matches!(body, Body::Held { .. }),
        (1, 0) => matches!(body, Body::Prepare { .. } | Body::Accept { .. } | Body::Chosen { .. }),
        _ => false,
    }
}

/// Node 3 hears of node 1 alone, and node 0 of all others.
fn new_hears_one(from: usize, to: usize, _: &Body) -> bool {
    from != to && (from == 3 || to == 3) && from + to != 4
}

/// As in two halves, but node 2 hears of node 1 too.
fn in_two_halves_but_for_two(from: usize, to: usize, body: &Body) -> bool {
    in_two_halves(from, to, body) && from + to != 3
}

/// The new node 3 takes the place of node 2, beside an increment on node 0 and a read on node 3.
fn replaced(name: &'static str) -> Scenario {
    Scenario::new(name).client(0, [increment()]).client(3, [read()]).next(0b1011).without_commits()
}

/// Nodes 0 and 2 hear of each other, and nodes 1 and 3.
fn in_two_halves(from: usize, to: usize, _: &Body) -> bool {
    from != to && from.abs_diff(to) != 2
}

/// Nodes 0 and 3 hear of each other, and nodes 1 and 2.
fn new_beside_old(from: usize, to: usize, _: &Body) -> bool {
    from != to && from + to != 3
}

/// Nodes 1 and 2 do not hear of each other.
fn through_node_0(from: usize, to: usize, _: &Body) -> bool {
    from + to == 3
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
