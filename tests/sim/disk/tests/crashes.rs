//! A database through hundreds of crashes: whole, at some commit, and none that a sync covers is gone.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rusqlite::Connection;

use super::sqlite::{DATABASE, connect};
use super::*;

const KEYS: i64 = 40;
const WORLDS: u64 = 30;
const CRASHES: u32 = 12;

type Table = BTreeMap<i64, i64>;

/// What the table was after each commit, by its number.
struct History {
    states: Vec<Table>,
    /// The newest commit that nothing may undo.
    safe: usize,
}

/// Commits, and now and then checkpoints, until the disk is cut; notes what became safe.
fn work(world: &World, connection: &Connection, history: &mut History, rng: &mut StdRng) -> rusqlite::Result<()> {
    let is_full = rng.random::<bool>();
    connection.pragma_update(None, "synchronous", if is_full { "FULL" } else { "NORMAL" })?;
    loop {
        let number = history.states.len();
        let mut next = history.states[number - 1].clone();
        // In doubt from here on: a commit may be cut off and be there all the same.
        let tx = connection.unchecked_transaction()?;
        for _ in 0..rng.random_range(1..6) {
            let (key, bytes) = (rng.random_range(1..KEYS), rng.random_range(0..6_000));
            tx.execute("REPLACE INTO t(k, v, filler) VALUES(?1, ?2, zeroblob(?3))", (key, number as i64, bytes))?;
            next.insert(key, number as i64);
        }
        tx.execute("REPLACE INTO t(k, v) VALUES(0, ?1)", [number as i64])?;
        next.insert(0, number as i64);
        history.states.push(next);
        tx.commit()?;
        let mut is_synced = is_full;
        if rng.random_ratio(1, 5) {
            let mode = if rng.random() { "PASSIVE" } else { "TRUNCATE" };
            connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()))?;
            is_synced = true;
        }
        if rng.random_ratio(2, 3) {
            world.rest();
            history.safe = if is_synced { number } else { history.safe };
        }
    }
}

/// What is found after a crash: whether it is whole, and the table.
fn load(connection: &Connection) -> rusqlite::Result<(String, Table)> {
    let check = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    let mut select = connection.prepare("SELECT k, v FROM t")?;
    let table = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<rusqlite::Result<_>>()?;
    Ok((check, table))
}

/// Lives through crashes: a digest of the end, or what was broken.
fn live(seed: u64, lies: bool) -> Result<u64, String> {
    let (world, mut rng) = (World::new(seed), StdRng::seed_from_u64(seed));
    let disk = world.disk.mount();
    outrigger::disk::create_directory(&*disk, Path::new(DATABASE).parent().unwrap()).unwrap();
    let connection = connect(&*disk).unwrap();
    connection.execute_batch("CREATE TABLE t(k INTEGER PRIMARY KEY, v INTEGER, filler BLOB)").unwrap();
    disk.sync_directory(Path::new(DATABASE).parent().unwrap()).unwrap();
    world.rest();
    drop((connection, disk));
    world.disk.lie(lies);

    let mut history = History { states: vec![Table::new()], safe: 0 };
    for crash in 0..CRASHES {
        let disk = world.disk.mount();
        let connection = connect(&*disk).map_err(|error| format!("crash {crash}: opening: {error}"))?;
        let (check, table) = load(&connection).map_err(|error| format!("crash {crash}: reading: {error}"))?;
        if check != "ok" {
            return Err(format!("crash {crash}: {check}"));
        }
        let at = usize::try_from(table.get(&0).copied().unwrap_or(0)).unwrap();
        if at < history.safe || history.states.get(at) != Some(&table) {
            return Err(format!("crash {crash}: at commit {at}, of which {} is safe", history.safe));
        }
        history.states.truncate(at + 1);
        // What is seen now may still be lost with the power.
        world.disk.cut_after(rng.random_range(1..150));
        let ended = work(&world, &connection, &mut history, &mut rng).unwrap_err();
        assert!(world.disk.is_cut(), "crash {crash}: {ended}");
        world.disk.crash(rng.random_ratio(3, 4));
        drop((connection, disk));
    }
    Ok(world.disk.digest())
}

#[test]
fn a_database_is_whole_and_has_all_that_was_synced_after_every_crash() {
    for seed in 0..WORLDS {
        live(seed, false).unwrap_or_else(|broken| panic!("seed {seed}: {broken}"));
    }
}

#[test]
fn were_its_syncs_to_do_nothing_that_would_show() {
    let broken = (0..WORLDS).filter(|seed| live(*seed, true).is_err()).count() as u64;
    assert!(broken > WORLDS / 2, "only {broken} of {WORLDS} worlds notice");
}

#[test]
fn the_same_seed_leaves_the_same_disk() {
    for seed in 0..4 {
        assert_eq!(live(seed, false), live(seed, false), "seed {seed}");
    }
    assert_ne!(live(1, false), live(2, false));
}

#[test]
fn a_killed_process_loses_no_commit() {
    for seed in 0..WORLDS {
        let (world, mut rng) = (World::new(seed), StdRng::seed_from_u64(seed));
        let disk = world.disk.mount();
        outrigger::disk::create_directory(&*disk, Path::new(DATABASE).parent().unwrap()).unwrap();
        let connection = connect(&*disk).unwrap();
        connection.execute_batch("CREATE TABLE t(k INTEGER PRIMARY KEY, v INTEGER, filler BLOB)").unwrap();
        let mut history = History { states: vec![Table::new()], safe: 0 };
        world.disk.cut_after(rng.random_range(1..300));
        work(&world, &connection, &mut history, &mut rng).unwrap_err();
        world.disk.crash(false);
        let (check, table) = load(&connect(&*world.disk.mount()).unwrap()).unwrap();
        let in_doubt = history.states.pop().unwrap();
        assert_eq!(check, "ok");
        assert!(table == in_doubt || Some(&table) == history.states.last(), "seed {seed}");
    }
}
