//! Each fault, and how it ends.

use super::*;

fn path(path: &str) -> &Path {
    Path::new(path)
}

#[test]
fn after_a_sync_that_failed_memory_has_what_the_platter_has_not() {
    for seed in 0..SEEDS {
        let world = World::new(seed);
        let file = durable(&world, "/d/a", &[1; 8_192]);
        file.write_at(&[2; 4_096], 0).unwrap();
        world.disk.fail_syncs(1);
        assert_eq!(errno(&file.sync().unwrap_err()), Some(Errno::IO));
        file.sync().unwrap();
        assert_eq!(read(&*file).unwrap()[..4_096], [2; 4_096], "memory says that it is there");
        world.rest();
        world.disk.crash(true);
        assert!(found(&world, "/d/a").unwrap()[..4_096].contains(&1), "seed {seed}: all got there");
    }
}

#[test]
fn a_failed_directory_sync_is_reported_and_may_be_repeated() {
    let world = World::new(1);
    drop(durable(&world, "/d/other", b""));
    let disk = world.disk.mount();
    drop(disk.create(path("/d/a")).unwrap());
    world.disk.fail_syncs(1);
    assert_eq!(errno(&disk.sync_directory(path("/d")).unwrap_err()), Some(Errno::IO));
    disk.sync_directory(path("/d")).unwrap();
    world.rest();
    world.disk.crash(true);
    assert_eq!(found(&world, "/d/a"), Some(vec![]));
}

#[test]
fn writing_a_page_anew_or_forgetting_it_ends_the_lie() {
    for seed in 0..SEEDS {
        let world = World::new(seed);
        let file = durable(&world, "/d/a", &[1; 8_192]);
        file.write_at(&[2; 8_192], 0).unwrap();
        world.disk.fail_syncs(1);
        file.sync().unwrap_err();
        file.write_at(&[3], 4_000).unwrap();
        file.write_at(&[3], 5_000).unwrap();
        file.sync().unwrap();
        world.rest();
        world.disk.crash(true);
        let bytes = found(&world, "/d/a").unwrap();
        assert!(bytes.iter().all(|byte| *byte != 1), "whole pages are written");

        let file = durable(&world, "/d/a", &[1; 8_192]);
        file.write_at(&[2; 8_192], 0).unwrap();
        world.disk.fail_syncs(1);
        file.sync().unwrap_err();
        world.disk.deafen(true);
        file.forget_cached();
        assert_eq!(read(&*file).unwrap(), [2; 8_192]);
        world.disk.deafen(false);
        file.forget_cached();
        let read_back = read(&*file).unwrap();
        assert!(read_back.contains(&1));
        file.sync().unwrap();
        world.rest();
        world.disk.crash(true);
        assert_eq!(found(&world, "/d/a").unwrap(), read_back);
    }
}

#[test]
fn writes_fail_as_often_as_told_and_perhaps_in_part() {
    let mut written = BTreeSet::new();
    for seed in 0..SEEDS {
        let world = World::new(seed);
        let file = durable(&world, "/d/a", &[]);
        world.disk.fail_writes(2);
        for _ in 0..2 {
            assert_eq!(errno(&file.write_at(&[1; 4], 0).unwrap_err()), Some(Errno::IO));
        }
        written.insert(file.bytes().unwrap());
        file.write_at(&[2; 4], 0).unwrap();
        assert_eq!(read(&*file).unwrap(), [2; 4]);
    }
    assert_eq!(written, BTreeSet::from([0, 1, 2, 3]));
}

#[test]
fn a_full_disk_refuses_until_there_is_room() {
    let world = World::new(1);
    let file = durable(&world, "/d/a", &[1; 4_096]);
    let disk = world.disk.mount();
    world.disk.set_free(8_192);
    assert_eq!(disk.free_bytes(path("/d")).unwrap(), 8_192);
    let full = |outcome: io::Result<()>| assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::StorageFull);
    full(file.reserve(16_384));
    full(file.write_at(&[2; 16_384], 100));
    assert_eq!(file.bytes().unwrap(), 12_288, "as far as it went");
    file.write_at(&[3; 4_096], 0).unwrap();
    assert_eq!(disk.free_bytes(path("/d")).unwrap(), 0);
    let other = disk.create(path("/d/b")).unwrap();
    full(other.write_at(b"x", 0));
    drop(file);
    disk.remove(path("/d/a")).unwrap();
    other.reserve(12_288).unwrap();
    full(other.reserve(12_289));
    world.disk.set_quota(1 << 20);
    other.reserve(12_289).unwrap();
}

#[test]
fn what_is_reserved_can_be_written_when_the_disk_is_full() {
    let world = World::new(1);
    let file = durable(&world, "/d/a", &[]);
    file.reserve(65_536).unwrap();
    world.disk.set_free(0);
    file.write_at(&[1; 65_536], 0).unwrap();
    assert_eq!(file.write_at(&[1], 65_536).unwrap_err().kind(), io::ErrorKind::StorageFull);
}

#[test]
fn a_slow_disk_takes_its_time_for_everything() {
    let world = World::new(1);
    let file = durable(&world, "/d/a", b"x");
    world.disk.slow(Duration::from_millis(3));
    file.read_at(&mut [0], 0).unwrap();
    file.write_at(b"y", 0).unwrap();
    assert_eq!(world.disk.take_debt(), Duration::from_millis(6));
    world.rest();
    assert_eq!(world.disk.take_debt(), Duration::ZERO);
}

#[test]
fn rot_flips_one_bit_of_the_class_and_stays() {
    for (class, name) in [
        (Class::Segment, "/d/journal-0000000000000001.log"),
        (Class::Header, "/d/node"),
        (Class::Database, "/d/x.db"),
        (Class::Wal, "/d/x.db-wal"),
    ] {
        let world = World::new(1);
        assert_eq!(world.disk.rot(class), None);
        drop(durable(&world, "/d/innocent", &[0; 5_000]));
        drop(durable(&world, name, &[0; 5_000]));
        let what = world.disk.rot(class).unwrap();
        assert!(what.contains(name), "{what}");
        let ones = |bytes: Vec<u8>| bytes.iter().map(|byte| byte.count_ones()).sum::<u32>();
        assert_eq!(ones(found(&world, name).unwrap()), 1);
        world.disk.crash(true);
        assert_eq!((ones(found(&world, name).unwrap()), found(&world, name).unwrap().len()), (1, 5_000));
        assert_eq!(found(&world, "/d/innocent").unwrap(), [0; 5_000]);
    }
}

#[test]
fn what_cannot_be_read_can_again_when_written_anew() {
    let world = World::new(1);
    let file = durable(&world, "/d/a", &[1; 8_192]);
    world.disk.fail_reads(path("/d/a"), 1_000..1_010).unwrap();
    file.read_at(&mut [0; 1_000], 0).unwrap();
    assert_eq!(errno(&file.read_at(&mut [0; 1_001], 0).unwrap_err()), Some(Errno::IO));
    world.disk.crash(true);
    let file = world.disk.mount().open(path("/d/a")).unwrap();
    assert_eq!(errno(&file.read_at(&mut [0; 100], 1_009).unwrap_err()), Some(Errno::IO));
    file.write_at(&[2; 10], 1_000).unwrap();
    file.read_at(&mut [0; 8_192], 0).unwrap();
    world.disk.fail_reads(path("/d/a"), 0..1).unwrap();
    world.disk.heal_reads();
    file.read_at(&mut [0; 8_192], 0).unwrap();
}

#[test]
fn a_snapshot_is_what_is_durable_and_comes_back() {
    let world = World::new(1);
    let file = durable(&world, "/d/a", b"1");
    file.write_at(b"2", 0).unwrap();
    let snapshot: Snapshot = world.disk.snapshot();
    file.sync().unwrap();
    drop(durable(&world, "/d/b", b"b"));
    world.disk.restore(&snapshot);
    assert_eq!(errno(&file.sync().unwrap_err()), Some(Errno::IO), "mounted still");
    assert_eq!((found(&world, "/d/a"), found(&world, "/d/b")), (Some(b"1".to_vec()), None));
    world.disk.crash(true);
    assert_eq!(found(&world, "/d/a"), Some(b"1".to_vec()));
    let file = durable(&world, "/d/c", b"c");
    world.disk.wipe();
    assert_eq!(errno(&file.sync().unwrap_err()), Some(Errno::IO), "mounted still");
    assert_eq!((world.disk.mount().names(path("/")).unwrap().len(), world.disk.used_bytes()), (0, 0));
    drop(durable(&world, "/d/c", b"c"));
}

#[test]
fn a_disk_that_lies_loses_what_it_said_is_synced() {
    let all = outcomes("/d/a", |world| {
        let file = durable(world, "/d/a", b"1");
        world.disk.lie(true);
        file.write_at(b"2", 0).unwrap();
        file.sync().unwrap();
        world.rest();
    });
    assert_eq!(all, BTreeSet::from([Some(b"1".to_vec()), Some(b"2".to_vec())]));
}

#[test]
fn a_cut_comes_after_as_many_changes_as_told() {
    let world = World::new(1);
    let file = durable(&world, "/d/a", &[]);
    world.disk.cut_after(2);
    file.write_at(b"1", 0).unwrap();
    assert!(!world.disk.is_cut());
    file.write_at(b"2", 1).unwrap();
    assert!(world.disk.is_cut());
    assert_eq!(errno(&file.write_at(b"3", 2).unwrap_err()), Some(Errno::IO));
    assert_eq!(errno(&file.bytes().unwrap_err()), Some(Errno::IO));
    world.disk.crash(false);
    assert!(!world.disk.is_cut());
    assert_eq!(found(&world, "/d/a"), Some(b"12".to_vec()));
}
