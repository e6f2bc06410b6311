//! SQLite on the disk.

use rusqlite::{Connection, Error, OpenFlags};

use super::*;

pub(super) const DATABASE: &str = "/data/acme/x.db";

pub(super) fn connect(disk: &dyn Disk) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags_and_vfs(DATABASE, flags, disk.sqlite_vfs().unwrap())?;
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    assert_eq!(mode, "wal");
    connection.execute_batch("PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0; PRAGMA cache_size = -64;")?;
    Ok(connection)
}

/// A database with one table, whose name is durable.
fn database(world: &World) -> (Arc<dyn Disk>, Connection) {
    let disk = world.disk.mount();
    outrigger::disk::create_directory(&*disk, Path::new("/data/acme")).unwrap();
    let connection = connect(&*disk).unwrap();
    connection.execute_batch("CREATE TABLE t(k INTEGER PRIMARY KEY, v BLOB)").unwrap();
    disk.sync_directory(Path::new("/data/acme")).unwrap();
    (disk, connection)
}

fn insert(connection: &Connection, bytes: i64) -> rusqlite::Result<()> {
    connection.execute("INSERT INTO t(v) VALUES(zeroblob(?1))", [bytes]).map(drop)
}

fn count(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0))
}

fn checkpoint(connection: &Connection, mode: &str) -> (i64, i64, i64) {
    let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], row).unwrap()
}

fn bytes_of(disk: &dyn Disk, suffix: &str) -> Option<u64> {
    match disk.kind(Path::new(&format!("{DATABASE}{suffix}"))).unwrap() {
        Some(Kind::File(bytes)) => Some(bytes),
        _ => None,
    }
}

fn code(error: &Error) -> i32 {
    error.sqlite_error().map_or(0, |error| error.extended_code)
}

#[test]
fn readers_keep_their_snapshots_while_the_writer_commits_and_checkpoints() {
    let world = World::new(1);
    let (disk, writer) = database(&world);
    insert(&writer, 10_000).unwrap();
    let (early, late) = (connect(&*disk).unwrap(), connect(&*disk).unwrap());
    early.execute_batch("BEGIN").unwrap();
    assert_eq!(count(&early).unwrap(), 1);
    insert(&writer, 10_000).unwrap();
    late.execute_batch("BEGIN").unwrap();
    assert_eq!(count(&late).unwrap(), 2);
    insert(&writer, 10_000).unwrap();
    assert_eq!((count(&early).unwrap(), count(&late).unwrap(), count(&writer).unwrap()), (1, 2, 3));

    let (busy, log, copied) = checkpoint(&writer, "PASSIVE");
    assert!(busy == 0 && 0 < copied && copied < log, "stops at the reader: {copied} of {log}");
    assert_eq!(checkpoint(&writer, "TRUNCATE").0, 1, "busy");
    assert_eq!(count(&early).unwrap(), 1);
    early.execute_batch("COMMIT").unwrap();
    late.execute_batch("COMMIT").unwrap();
    assert_eq!(checkpoint(&writer, "TRUNCATE"), (0, 0, 0));
    assert_eq!(bytes_of(&*disk, "-wal"), Some(0));
    assert_eq!((count(&early).unwrap(), count(&late).unwrap()), (3, 3));

    let names = disk.names(Path::new("/data/acme")).unwrap();
    assert_eq!(names, ["x.db", "x.db-shm", "x.db-wal"]);
    drop((early, late, writer));
    assert_eq!(disk.names(Path::new("/data/acme")).unwrap(), ["x.db"], "the last one tidies up");
}

#[test]
fn two_writers_take_turns() {
    let world = World::new(1);
    let (disk, one) = database(&world);
    let two = connect(&*disk).unwrap();
    one.execute_batch("BEGIN IMMEDIATE").unwrap();
    insert(&one, 1).unwrap();
    assert_eq!(code(&insert(&two, 1).unwrap_err()), rusqlite::ffi::SQLITE_BUSY);
    one.execute_batch("COMMIT").unwrap();
    insert(&two, 1).unwrap();
    assert_eq!(count(&one).unwrap(), 2);
}

#[test]
fn a_rollback_journal_works_too() {
    let world = World::new(1);
    let (disk, connection) = database(&world);
    connection.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(())).unwrap();
    insert(&connection, 100_000).unwrap();
    connection.execute_batch("BEGIN; DELETE FROM t; ROLLBACK; VACUUM").unwrap();
    assert_eq!(count(&connection).unwrap(), 1);
    let reader =
        Connection::open_with_flags_and_vfs(DATABASE, OpenFlags::SQLITE_OPEN_READ_WRITE, disk.sqlite_vfs().unwrap())
            .unwrap();
    reader.execute_batch("BEGIN").unwrap();
    assert_eq!(count(&reader).unwrap(), 1);
    connection.busy_timeout(Duration::ZERO).unwrap();
    assert_eq!(code(&insert(&connection, 1).unwrap_err()), rusqlite::ffi::SQLITE_BUSY, "a reader is in the way");
    drop(reader);
    insert(&connection, 1).unwrap();
}

#[test]
fn a_full_disk_is_told_and_got_over() {
    let world = World::new(1);
    let (_disk, connection) = database(&world);
    insert(&connection, 50_000).unwrap();
    world.disk.set_free(20_000);
    assert_eq!(code(&insert(&connection, 50_000).unwrap_err()), rusqlite::ffi::SQLITE_FULL);
    assert_eq!(count(&connection).unwrap(), 1);
    world.disk.set_free(1 << 20);
    insert(&connection, 50_000).unwrap();
    assert_eq!(checkpoint(&connection, "TRUNCATE").0, 0);
    assert_eq!(count(&connection).unwrap(), 2);
}

#[test]
fn a_failed_sync_and_a_failed_write_are_told_as_what_they_are() {
    let world = World::new(1);
    let (_disk, connection) = database(&world);
    world.disk.fail_syncs(1);
    assert_eq!(code(&insert(&connection, 1).unwrap_err()), rusqlite::ffi::SQLITE_IOERR_FSYNC);
    world.disk.fail_writes(1);
    assert_eq!(code(&insert(&connection, 1).unwrap_err()), rusqlite::ffi::SQLITE_IOERR_WRITE);
    insert(&connection, 1).unwrap();
    world.disk.fail_syncs(1);
    let failed = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).unwrap_err();
    assert_eq!(code(&failed), rusqlite::ffi::SQLITE_IOERR_FSYNC);
    checkpoint(&connection, "TRUNCATE");
}

#[test]
fn what_cannot_be_read_is_told() {
    let world = World::new(1);
    let (disk, connection) = database(&world);
    for _ in 0..100 {
        insert(&connection, 3_000).unwrap();
    }
    checkpoint(&connection, "TRUNCATE");
    world.disk.fail_reads(Path::new(DATABASE), 100_000..200_000).unwrap();
    let fresh = connect(&*disk).unwrap();
    let failed = fresh.query_row("SELECT sum(length(hex(v))) FROM t", [], |_| Ok(())).unwrap_err();
    assert_eq!(code(&failed) & 0xff, rusqlite::ffi::SQLITE_IOERR);
}

#[test]
fn the_connections_of_a_dead_process_change_nothing_and_are_closed_in_peace() {
    for power_loss in [false, true] {
        let world = World::new(1);
        let (dead, writer) = database(&world);
        let reader = connect(&*dead).unwrap();
        insert(&writer, 1_000).unwrap();
        reader.execute_batch("BEGIN").unwrap();
        assert_eq!(count(&reader).unwrap(), 1);
        writer.execute_batch("BEGIN IMMEDIATE").unwrap();
        insert(&writer, 1_000).unwrap();
        world.rest();
        world.disk.crash(power_loss);
        let digest = world.disk.digest();
        assert_eq!(code(&writer.execute_batch("COMMIT").unwrap_err()) & 0xff, rusqlite::ffi::SQLITE_IOERR);
        assert!(connect(&*dead).is_err());
        assert_eq!(world.disk.digest(), digest);

        let alive = world.disk.mount();
        assert_ne!(alive.sqlite_vfs(), dead.sqlite_vfs());
        let connection = connect(&*alive).unwrap();
        insert(&connection, 1_000).unwrap();
        // In the midst of the other's life.
        drop((writer, reader, dead));
        assert_eq!(count(&connection).unwrap(), 2);
        insert(&connection, 1_000).unwrap();
        assert_eq!(checkpoint(&connection, "TRUNCATE"), (0, 0, 0));
    }
}

#[test]
fn a_mount_takes_a_vfs_that_nobody_uses() {
    let world = World::new(1);
    let (disk, connection) = database(&world);
    let name = disk.sqlite_vfs().unwrap().to_owned();
    drop(disk);
    let others: Vec<_> = (0..50).map(|_| world.disk.mount()).collect();
    assert!(others.iter().all(|other| other.sqlite_vfs() != Some(&name)), "a connection is open through it");
    insert(&connection, 1).unwrap();
}

#[test]
fn time_is_the_worlds() {
    let world = World::new(1);
    let (_disk, connection) = database(&world);
    world.pass(Duration::from_secs(86_400) - Duration::from_nanos(world.now_ns.load(Ordering::Relaxed)));
    let date: String = connection.query_row("SELECT datetime('now')", [], |row| row.get(0)).unwrap();
    assert_eq!(date, "1970-01-02 00:00:00");
}

#[test]
fn what_sqlite_draws_can_be_seeded() {
    let world = World::new(1);
    let (_disk, connection) = database(&world);
    let draw = |seed| -> i64 {
        seed_sqlite(seed);
        connection.query_row("SELECT random()", [], |row| row.get(0)).unwrap()
    };
    // Other tests draw from the same generator; between the two that will not come every time.
    assert!((0..1_000).any(|_| draw(7) == draw(7)));
    assert_ne!(draw(7), draw(8));
}
