//! The store against the simplest thing that could be right, whatever is in memory and whatever in the file.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::store::compare::Place;
use crate::store::overlay::Eyes;
use crate::store::queries::{Range, Snapshot, Want};
use crate::store::{PageQuery, StoredRow, schema};

/// Keys that touch every edge of the order: one byte, the ends of UTF-8's lengths, its gap and its last character.
const PIECES: [&str; 12] = [
    "a",
    "b",
    "/",
    "\u{1}",
    "\u{7f}",
    "\u{80}",
    "\u{7ff}",
    "\u{d7ff}",
    "\u{e000}",
    "\u{ffff}",
    "\u{10fffe}",
    "\u{10ffff}",
];

#[derive(Debug, Clone)]
enum Step {
    /// A frame: key, delete or not, how far its ballot is above its version.
    Commit(String, bool, u8),
    /// A frame that came before, again.
    Repeat(usize),
    Hold,
    Apply,
    Reopen,
    Check(String, usize),
}

fn text(pieces: std::ops::Range<usize>) -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(&PIECES[..]), pieces).prop_map(|pieces| pieces.concat())
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (text(1..4), prop::bool::weighted(0.3), prop_oneof![3 => Just(0_u8), 1 => 1..9_u8])
            .prop_map(|(key, del, above)| Step::Commit(key, del, above)),
        2 => any::<prop::sample::Index>().prop_map(|index| Step::Repeat(index.index(64))),
        1 => Just(Step::Hold),
        1 => Just(Step::Apply),
        1 => Just(Step::Reopen),
        4 => (text(0..3), 1..5_usize).prop_map(|(prefix, limit)| Step::Check(prefix, limit)),
    ]
}

type Model = BTreeMap<String, StoredRow>;

fn check_digest(shard: &Shard, model: &Model) {
    let mut digest = Digest::new(Ballot::ZERO);
    for (name, row) in model {
        digest.add(bucket_of(name), Sum::of_stored(Ballot::ZERO, name, Some(row)));
    }
    assert_eq!(shard.digest().unwrap(), digest);
}

fn check(shard: &Shard, model: &Model, prefix: &str, limit: usize) {
    let live: Vec<(String, Vec<u8>, Ballot)> = model
        .iter()
        .filter(|(key, _)| key.starts_with(prefix))
        .filter_map(|(key, row)| Some((key.clone(), row.op.value()?.as_bytes().to_vec(), row.upd)))
        .collect();
    for keys_only in [false, true] {
        let mut paged = Vec::new();
        let mut query = PageQuery { limit, keys_only, ..PageQuery::prefix(prefix) };
        loop {
            let page = shard.page(&query).unwrap();
            assert!(page.items.len() <= limit);
            paged.extend(page.items);
            match page.next {
                Some(next) => query.after = Some(next),
                None => break,
            }
        }
        let expected: Vec<_> =
            live.iter().map(|(key, value, upd)| (key.clone(), (!keys_only).then(|| value.clone()), *upd)).collect();
        let paged: Vec<_> = paged
            .into_iter()
            .map(|item| (item.key.to_string(), item.value.map(|value| value.as_bytes().to_vec()), item.upd))
            .collect();
        assert_eq!(paged, expected, "prefix {prefix:?}");
    }
    let mut pairs = Vec::new();
    loop {
        let after = pairs.last().map(|(key, _): &(Key, Ballot)| key.clone());
        let more = shard.pairs(&Buckets::all(), after.as_ref(), limit).unwrap();
        let ended = more.len() < limit;
        pairs.extend(more);
        if ended {
            break;
        }
    }
    let expected: Vec<_> = model.iter().map(|(name, row)| (key(name), row.upd)).collect();
    assert_eq!(pairs, expected);
    for some in [Buckets::all(), expected.iter().take(2).map(|(key, _)| bucket_of(key.as_str())).collect()] {
        // In any order, some in an older version, too: the newest is what counts.
        let (mut place, mut newest) = (Place::Start, BTreeMap::new());
        while place != Place::End {
            for (key, upd) in shard.next_pairs(&some, &mut place, limit).unwrap() {
                assert!(some.hold(&key));
                let known = newest.entry(key).or_insert(upd);
                *known = upd.max(*known);
            }
        }
        let held = expected.iter().filter(|(key, _)| some.hold(key)).cloned();
        assert_eq!(newest, held.collect());
    }
    for rows_max in [usize::MAX, 3] {
        let versions = shard.versions(&Buckets::all(), rows_max).unwrap();
        let known = expected.iter().filter_map(|(key, upd)| Some((versions.of(key)?, Some(*upd))));
        let known: Vec<_> = known.collect();
        assert!(known.len() <= rows_max && (rows_max == 3 || known.len() == expected.len()));
        assert!(known.iter().all(|(here, expected)| here == expected), "{known:?}");
        assert_eq!(versions.of(&key("absent")).flatten(), None);
    }
    for (name, row) in model {
        assert_eq!(shard.stored(&key(name)).unwrap().as_ref(), Some(row), "{name:?}");
        assert_eq!(shard.read(&key(name)).unwrap(), row.clone().into_row(), "{name:?}");
    }
    assert_eq!(shard.read(&key("absent")).unwrap(), None);
    let buckets: Buckets = model.keys().take(2).map(|name| bucket_of(name)).collect();
    let expected: Vec<_> = expected.into_iter().filter(|(key, _)| buckets.hold(key)).collect();
    assert_eq!(shard.pairs(&buckets, None, usize::MAX).unwrap(), expected);
    let stats = shard.stats().unwrap();
    assert_eq!(stats.keys, u64::try_from(model.values().filter(|row| row.op != Op::Del).count()).unwrap());
    assert_eq!(stats.last_upd, model.values().map(|row| row.upd).max().unwrap_or_default());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn reads_agree_with_a_map(steps in prop::collection::vec(step(), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _entered = runtime.enter();
        let mut manager = Manager::new(dir.path()).unwrap();
        let mut shard = manager.open(&id("", "a")).unwrap();
        let mut model = Model::new();
        let mut frames: Vec<Frame> = Vec::new();
        let mut ballot = 0;
        let mut steps = steps.into_iter().peekable();
        // What holds the applier lives for one round of this loop: until the next step that lets it go.
        while steps.peek().is_some() {
            let hold = matches!(steps.peek(), Some(Step::Hold)).then(|| shard.hold_applier());
            if hold.is_some() {
                steps.next();
            }
            while let Some(step) = steps.next_if(|step| !matches!(step, Step::Hold | Step::Apply | Step::Reopen)) {
                match step {
                    Step::Commit(name, del, above) => {
                        ballot += 16;
                        let op = if del { Op::Del } else { Op::Put(Value::from(ballot.to_string().into_bytes())) };
                        let new = frame(&id("", "a"), &name, op, ballot, ballot + i64::from(above));
                        commit(&manager, &new);
                        model.insert(name, StoredRow { op: new.op.clone(), upd: new.upd, ballot: new.ballot });
                        frames.push(new);
                    }
                    Step::Repeat(nth) if !frames.is_empty() => commit(&manager, &frames[nth % frames.len()]),
                    Step::Check(prefix, limit) => {
                        check(&shard, &model, &prefix, limit);
                        if hold.is_none() {
                            check_digest(&shard, &model);
                        }
                    }
                    _ => {}
                }
            }
            drop(hold);
            match steps.next_if(|step| matches!(step, Step::Apply | Step::Reopen)) {
                Some(Step::Apply) => shard.wait_applied(),
                Some(Step::Reopen) => {
                    runtime.block_on(manager.close()).unwrap();
                    manager = Manager::new(dir.path()).unwrap();
                    shard = manager.open(&id("", "a")).unwrap();
                }
                _ => {}
            }
        }
        check(&shard, &model, "", 3);
        check_digest(&shard, &model);
        prop_assert_eq!(runtime.block_on(listed(&shard, "")).len(), model.values().filter(|r| r.op != Op::Del).count());
    }
}

/// Two keys rise in turn, the first ahead of the second. A page that mixes two moments shows the second ahead.
#[test]
fn a_page_is_of_one_moment_while_frames_arrive_and_are_applied() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    let shard = manager.open(&id("", "a")).unwrap();
    let [first, second] = ["z-first", "a-second"];
    let write = |name: &str, n: i64| {
        let op = Op::Put(Value::from(n.to_string().into_bytes()));
        commit(&manager, &frame(&id("", "a"), name, op, n, n));
    };
    write(first, 1);
    write(second, 1);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 2.. {
                write(first, n);
                write(second, n);
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
            }
        });
        let mut last = 0;
        for _ in 0..2_000 {
            let page = shard.page(&PageQuery { keys_only: true, ..PageQuery::prefix("") }).unwrap();
            let [behind, ahead] = [0, 1].map(|n| page.items[n].upd.0);
            assert!(ahead - behind == 0 || ahead - behind == 1, "{ahead} and {behind} were never there together");
            assert!(behind >= last, "went back from {last} to {behind}");
            last = behind;
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn a_revote_keeps_its_version_and_raises_its_ballot() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    let shard = manager.open(&id("", "a")).unwrap();
    let row = |value, upd, ballot| {
        Some(StoredRow { op: Op::Put(Value::from(value)), upd: Ballot(upd), ballot: Ballot(ballot) })
    };
    let beside = || {
        let theirs = rusqlite::Connection::open(shard.path()).unwrap();
        theirs.query_row("SELECT count(*) FROM outrigger_ballot", [], |row| row.get::<_, i64>(0)).unwrap()
    };
    commit(&manager, &put(&id("", "a"), "k", "v", 10));
    shard.wait_applied();
    assert_eq!(beside(), 0);
    commit(&manager, &frame(&id("", "a"), "k", Op::Put(Value::from("v")), 10, 30));
    assert_eq!(shard.stored(&key("k")).unwrap(), row("v", 10, 30));
    shard.wait_applied();
    assert_eq!((shard.stored(&key("k")).unwrap(), beside()), (row("v", 10, 30), 1));
    // Between version and ballot: chosen earlier, so it changes nothing. The same again: neither.
    for late in [put(&id("", "a"), "k", "late", 20), frame(&id("", "a"), "k", Op::Del, 10, 30)] {
        commit(&manager, &late);
        assert_eq!(shard.stored(&key("k")).unwrap(), row("v", 10, 30));
        shard.wait_applied();
        assert_eq!(shard.stored(&key("k")).unwrap(), row("v", 10, 30));
    }
    // A version never sinks, whatever its ballot.
    commit(&manager, &frame(&id("", "a"), "k", Op::Put(Value::from("old")), 5, 40));
    shard.wait_applied();
    assert_eq!(shard.stored(&key("k")).unwrap(), row("v", 10, 30));
    commit(&manager, &put(&id("", "a"), "k", "w", 50));
    shard.wait_applied();
    assert_eq!((shard.stored(&key("k")).unwrap(), beside()), (row("w", 50, 50), 0));
}

#[test]
fn pages_are_bounded_in_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    let shard = manager.open(&id("", "a")).unwrap();
    for (n, name) in ["a", "b", "c"].into_iter().enumerate() {
        let n = i64::try_from(n).unwrap() + 1;
        commit(&manager, &frame(&id("", "a"), name, Op::Put(Value::from(vec![0; 100])), n, n));
    }
    let sized = |bytes_max| shard.page(&PageQuery { bytes_max, ..PageQuery::prefix("") }).unwrap();
    assert_eq!((sized(303).items.len(), sized(303).next), (3, None));
    assert_eq!((sized(302).items.len(), sized(302).next), (2, Some(key("b"))));
    assert_eq!((sized(1).items.len(), sized(1).next), (1, Some(key("a"))));
}

/// The file's snapshot is opened after the overlay's excerpt was copied. A batch both taken and committed in between
/// may hold later frames without earlier ones that still wait, so it is looked at again.
#[test]
fn a_snapshot_newer_than_its_excerpt_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    let shard = manager.open(&id("", "a")).unwrap();
    commit(&manager, &put(&id("", "a"), "k", "v", 1));
    shard.wait_applied();
    let conn = schema::open_reader(&crate::disk::OsDisk, shard.path()).unwrap();
    let range = Range::new("", None);
    let mut tries = 0;
    let snapshot = Snapshot::open(&conn, shard.path(), || {
        tries += 1;
        let excerpt = range.of(Eyes::Protocol, shard.overlay(), usize::MAX, || ());
        if tries <= 2 {
            commit(&manager, &put(&id("", "a"), "k", "v", 1 + tries));
            shard.wait_applied();
        }
        excerpt
    });
    let mut upds = Vec::new();
    let emit = |item: crate::store::Item| {
        upds.push(item.upd);
        std::ops::ControlFlow::Continue(())
    };
    snapshot.unwrap().scan(&range, Want::Rows, emit).unwrap();
    assert_eq!((tries, upds), (3, vec![Ballot(3)]));
}

/// Below the GC floor, what is absent was deleted: a late frame must not bring it back, in memory or in the file.
#[test]
fn frames_below_the_gc_floor_do_not_bring_a_row_back() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path()).unwrap();
    let shard = manager.open(&id("", "a")).unwrap();
    commit(&manager, &put(&id("", "a"), "old", "v", 50));
    shard.wait_applied();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(shard.close()).unwrap();
    let file = rusqlite::Connection::open(shard.path()).unwrap();
    file.execute("INSERT INTO outrigger_meta VALUES('gc_floor', 100)", []).unwrap();
    drop(file);

    let shard = manager.open(&id("", "a")).unwrap();
    assert_eq!(shard.gc_floor(), Ballot(100));
    let hold = shard.hold_applier();
    commit(&manager, &put(&id("", "a"), "deleted", "v", 100));
    commit(&manager, &put(&id("", "a"), "new", "v", 101));
    commit(&manager, &put(&id("", "a"), "old", "w", 60));
    let seen = || {
        assert_eq!(shard.stored(&key("deleted")).unwrap(), None);
        assert_eq!(value_of(&shard, "old").unwrap(), b"w");
        let page = shard.page(&PageQuery::prefix("")).unwrap();
        assert_eq!(page.items.iter().map(|item| item.key.as_str()).collect::<Vec<_>>(), ["new", "old"]);
        assert_eq!(
            shard.pairs(&Buckets::all(), None, 9).unwrap(),
            [(key("new"), Ballot(101)), (key("old"), Ballot(60))]
        );
        assert_eq!(shard.stats().unwrap().keys, 2);
    };
    seen();
    drop(hold);
    shard.wait_applied();
    seen();
    // The next local write is above the floor.
    let upd = runtime.block_on(shard.put("deleted", "again")).unwrap();
    assert!(upd > Ballot(100));
}
