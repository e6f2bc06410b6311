//! The oracle itself, tried on histories that are known to be right or wrong: a check that finds nothing proves little
//! unless it finds what is there.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test"
)]

mod brute;
#[path = "../common/history.rs"]
mod history;
#[path = "../common/linearizable.rs"]
mod linearizable;
#[path = "../common/monotone.rs"]
mod monotone;
mod world;

use std::time::{Duration, Instant};

use history::{History, Op, Outcome, When};
use linearizable::{Finals, check, check_final};
use world::{Random, World};

fn version(n: i64) -> i64 {
    n << 12
}

fn put(h: &mut History, value: &str, upd: i64, from: u64, to: u64) {
    let id = h.call(0, "k", Op::Put(When::Always, value.into()), from);
    h.returns(id, Outcome::Written(Some(version(upd))), to);
}

fn get(h: &mut History, seen: Option<(&str, i64)>, from: u64, to: u64) {
    let id = h.call(1, "k", Op::Get, from);
    h.returns(id, Outcome::Read(seen.map(|(value, upd)| (value.into(), Some(version(upd))))), to);
}

fn told(h: &mut History, op: Op, outcome: Outcome, from: u64, to: u64) {
    let id = h.call(2, "k", op, from);
    h.returns(id, outcome, to);
}

fn wrong(h: &History) {
    let violation = check(h).unwrap_err();
    assert!(!violation.undecided, "{violation}");
}

#[test]
fn a_lost_write_a_stale_read_and_a_read_that_goes_back_are_found() {
    let mut h = History::default();
    put(&mut h, "a", 1, 0, 1);
    let mut lost = h.clone();
    get(&mut lost, None, 2, 3);
    wrong(&lost);
    put(&mut h, "b", 2, 2, 9);
    let mut stale = h.clone();
    get(&mut stale, Some(("a", 1)), 10, 11);
    wrong(&stale);
    get(&mut h, Some(("b", 2)), 3, 4);
    check(&h).unwrap();
    get(&mut h, Some(("a", 1)), 5, 6);
    wrong(&h);
}

#[test]
fn a_double_increment_is_found() {
    let mut h = History::default();
    told(&mut h, Op::Add(1), Outcome::Added(1, Some(version(1))), 0, 1);
    told(&mut h, Op::Add(1), Outcome::Unknown, 2, 3);
    let mut twice = h.clone();
    get(&mut h, Some(("2", 2)), 4, 5);
    check(&h).unwrap();
    get(&mut twice, Some(("3", 3)), 4, 5);
    wrong(&twice);
}

#[test]
fn a_condition_that_held_or_failed_wrongly_is_found() {
    let mut h = History::default();
    put(&mut h, "a", 1, 0, 1);
    let cas = Op::Put(When::UpdIs(version(1)), b"c".into());
    let mut failed = h.clone();
    told(&mut failed, cas.clone(), Outcome::ConditionFailed(Some(version(1))), 2, 3);
    wrong(&failed);
    put(&mut h, "b", 2, 2, 3);
    told(&mut h, cas, Outcome::Written(Some(version(3))), 4, 5);
    wrong(&h);
}

#[test]
fn what_was_refused_took_no_effect_and_what_is_unknown_only_once() {
    let mut h = History::default();
    told(&mut h, Op::Put(When::Always, b"x".into()), Outcome::Refused, 0, 1);
    get(&mut h, Some(("x", 1)), 2, 3);
    wrong(&h);
    let mut h = History::default();
    told(&mut h, Op::Put(When::Always, b"x".into()), Outcome::Unknown, 0, 1);
    put(&mut h, "y", 1, 2, 3);
    get(&mut h, Some(("x", 2)), 4, 5);
    put(&mut h, "z", 3, 6, 7);
    check(&h).unwrap();
    get(&mut h, Some(("x", 4)), 8, 9);
    wrong(&h);
}

#[test]
fn a_delete_that_comes_back_is_found_also_at_the_end() {
    let mut h = History::default();
    put(&mut h, "a", 1, 0, 1);
    told(&mut h, Op::Delete(When::Always), Outcome::Deleted(None), 2, 3);
    let rows = |upd| Finals::from([("n1".into(), [("k".into(), (b"a".to_vec(), version(upd)))].into())]);
    check_final(&h, &Finals::from([("n1".into(), [].into())])).unwrap();
    assert!(check_final(&h, &rows(1)).is_err());
    let mut differ = rows(1);
    differ.insert("n2".into(), [].into());
    assert!(check_final(&h, &differ).unwrap_err().story.contains("differ"));
    get(&mut h, Some(("a", 1)), 4, 5);
    wrong(&h);
}

#[test]
fn writes_folded_into_one_round_share_a_version() {
    let mut h = History::default();
    put(&mut h, "a", 5, 0, 1);
    for value in ["b", "c"] {
        told(&mut h, Op::Put(When::Always, value.into()), Outcome::Written(Some(version(6) - 1)), 2, 9);
    }
    put(&mut h, "d", 6, 2, 9);
    get(&mut h, Some(("d", 6)), 10, 11);
    check(&h).unwrap();
    get(&mut h, Some(("b", 5)), 12, 13);
    wrong(&h);
}

#[test]
fn local_reads_that_go_back_are_found() {
    let mut local = monotone::Monotone::default();
    local.read("n", 1, "k", Some(version(2)), 0).unwrap();
    assert!(local.read("n", 1, "k", Some(version(1)), 1).is_err());
    local.read("n", 2, "k", Some(version(1)), 2).unwrap();
    local.read("n", 1, "k", None, 3).unwrap();
    assert!(local.read("n", 1, "k", Some(version(2)), 4).is_err());
    local.read("n", 1, "k", Some(version(3)), 5).unwrap();
}

#[test]
fn what_a_register_does_is_accepted() {
    for seed in 0..200 {
        let h = World { clients: 8, ops: 150, unknown_percent: 8, values: 1000 }.run(&mut Random(seed));
        check(&h).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
    }
}

#[test]
fn verdicts_are_those_of_all_permutations() {
    let mut counts = [0, 0];
    for seed in 0..6000 {
        let mut random = Random(seed);
        let mut h = World { clients: 3, ops: 6, unknown_percent: 25, values: 3 }.run(&mut random);
        for _ in 0..random.below(3) {
            world::mutate(&mut h, &mut random);
        }
        let expected = brute::is_linearizable(&h);
        counts[usize::from(expected)] += 1;
        let found = check(&h);
        let lines: String = h.entries().iter().map(|entry| format!("{entry}\n")).collect();
        assert_eq!(found.is_ok(), expected, "seed {seed}: {found:?}\n{lines}");
    }
    assert!(counts.iter().all(|count| *count > 500), "too few of one kind: {counts:?}");
}

#[test]
fn thousands_of_operations_are_checked_in_seconds() {
    let h = World { clients: 20, ops: 5000, unknown_percent: 2, values: 1_000_000 }.run(&mut Random(7));
    let begun = Instant::now();
    let stats = check(&h).unwrap();
    let took = begun.elapsed();
    eprintln!("{stats:?} in {took:?}");
    assert!(took < Duration::from_secs(5), "{stats:?} took {took:?}");
}
