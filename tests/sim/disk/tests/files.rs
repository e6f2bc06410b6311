//! Files and names, with and without a loss of power.

use super::*;

fn path(path: &str) -> &Path {
    Path::new(path)
}

#[test]
fn what_is_written_is_read_and_what_is_not_is_zeros() {
    let world = World::new(1);
    let disk = world.disk.mount();
    let file = disk.create(path("/a")).unwrap();
    file.write_at(&[7; 5_000], 4_000).unwrap();
    let mut expected = vec![0; 9_000];
    expected[4_000..].fill(7);
    assert_eq!(read(&*file).unwrap(), expected);
    assert_eq!(file.read_at(&mut [0; 2], 8_999).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(disk.kind(path("/a")).unwrap(), Some(Kind::File(9_000)));
    assert_eq!(disk.kind(path("/")).unwrap(), Some(Kind::Directory));
    assert_eq!(disk.kind(path("/a/b")).unwrap(), None);
    assert_eq!(disk.open(path("/b")).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(disk.create(path("/b/c")).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(disk.create(path("/a")).unwrap().bytes().unwrap(), 0, "emptied");
    assert_eq!(file.bytes().unwrap(), 0, "the same file");
}

#[test]
fn what_is_reserved_takes_room_on_the_disk_and_none_in_memory() {
    let world = World::new(1);
    let file = world.disk.mount().create(path("/a")).unwrap();
    file.reserve(1 << 30).unwrap();
    assert_eq!((file.bytes().unwrap(), world.disk.used_bytes()), (1 << 30, 1 << 30));
    file.write_at(b"x", 1 << 29).unwrap();
    file.reserve(1 << 20).unwrap();
    assert_eq!((file.bytes().unwrap(), world.disk.used_bytes()), (1 << 30, 1 << 30));
    let mut state = world.disk.shared.state.lock();
    let ino = state.find(path("/a")).unwrap();
    assert_eq!(state.file(ino).unwrap().seen.pages.len(), 1);
}

#[test]
fn what_was_synced_survives_and_of_the_rest_each_block_may() {
    let all = outcomes("/d/a", |world| {
        durable(world, "/d/a", &[1; 1536]).write_at(&[2; 1024], 0).unwrap();
    });
    let all: Vec<_> = all.into_iter().map(Option::unwrap).collect();
    assert!(all.iter().all(|bytes| bytes.len() == 1536 && bytes[1024..] == [1; 512]));
    for (first, second) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
        let is_it = |bytes: &&Vec<u8>| bytes[..512] == [first; 512] && bytes[512..1024] == [second; 512];
        assert!(all.iter().any(|bytes| is_it(&bytes)), "never {first} then {second}");
    }
    let is_torn = |block: &[u8]| block.contains(&1) && block.contains(&2);
    assert!(all.iter().any(|bytes| is_torn(&bytes[..512])), "never torn");
}

#[test]
fn sizes_survive_or_not_without_the_bytes() {
    let all = outcomes("/d/a", |world| {
        durable(world, "/d/a", b"").write_at(&[1; 512], 0).unwrap();
    });
    let expected = [vec![], vec![0; 512], vec![1; 512]].map(Some);
    assert!(expected.iter().all(|bytes| all.contains(bytes)), "lost, the size alone, all: {}", all.len());
    let shrunk = outcomes("/d/a", |world| {
        let file = durable(world, "/d/a", &[1; 10]);
        drop(world.disk.mount().create(path("/d/a")).unwrap());
        file.write_at(&[2; 4], 0).unwrap();
    });
    assert!(shrunk.contains(&Some(vec![2, 2, 2, 2])) && shrunk.contains(&Some(vec![1; 10])));
    assert!(shrunk.contains(&Some(vec![2, 2, 2, 2, 1, 1, 1, 1, 1, 1])), "the end that was cut off is back");
    let reserved = outcomes("/d/a", |world| durable(world, "/d/a", b"x").reserve(3).unwrap());
    assert_eq!(reserved, BTreeSet::from([Some(b"x".to_vec()), Some(b"x\0\0".to_vec())]));
}

#[test]
fn names_survive_or_not_until_their_directory_is_synced() {
    let made = |synced: bool| {
        outcomes("/d/a", move |world| {
            drop(durable(world, "/d/other", b""));
            let disk = world.disk.mount();
            let file = disk.create(path("/d/a")).unwrap();
            file.write_at(b"a", 0).unwrap();
            file.sync().unwrap();
            if synced {
                disk.sync_directory(path("/d")).unwrap();
            }
            world.rest();
        })
    };
    assert_eq!(made(false), BTreeSet::from([None, Some(b"a".to_vec())]));
    assert_eq!(made(true), BTreeSet::from([Some(b"a".to_vec())]));
    let removed = |synced: bool| {
        outcomes("/d/a", move |world| {
            drop(durable(world, "/d/a", b"a"));
            let disk = world.disk.mount();
            disk.remove(path("/d/a")).unwrap();
            if synced {
                disk.sync_directory(path("/d")).unwrap();
            }
            world.rest();
        })
    };
    assert_eq!(removed(false), BTreeSet::from([None, Some(b"a".to_vec())]));
    assert_eq!(removed(true), BTreeSet::from([None]));
}

#[test]
fn a_name_given_anew_leads_to_the_old_or_the_new_file() {
    let renamed = |synced: bool, at: &str| {
        outcomes(at, move |world| {
            drop(durable(world, "/d/a", b"old"));
            drop(durable(world, "/d/b", b"new"));
            let disk = world.disk.mount();
            disk.rename(path("/d/b"), path("/d/a")).unwrap();
            assert_eq!(found(world, "/d/a"), Some(b"new".to_vec()));
            assert_eq!(disk.names(path("/d")).unwrap(), ["a"]);
            if synced {
                disk.sync_directory(path("/d")).unwrap();
            }
            world.rest();
        })
    };
    let (old, new) = (Some(b"old".to_vec()), Some(b"new".to_vec()));
    assert_eq!(renamed(false, "/d/a"), BTreeSet::from([old, new.clone()]));
    assert_eq!(renamed(false, "/d/b"), BTreeSet::from([None, new.clone()]));
    assert_eq!(renamed(true, "/d/a"), BTreeSet::from([new]));
    assert_eq!(renamed(true, "/d/b"), BTreeSet::from([None]));
}

#[test]
fn a_file_is_lost_where_the_way_to_it_was_not_synced() {
    let all = outcomes("/d/e/a", |world| {
        let disk = world.disk.mount();
        disk.create_directories(path("/d/e")).unwrap();
        disk.create(path("/d/e/a")).unwrap().sync().unwrap();
        disk.sync_directory(path("/d/e")).unwrap();
        disk.sync_directory(path("/d")).unwrap();
        world.rest();
    });
    assert_eq!(all, BTreeSet::from([None, Some(vec![])]));
}

#[test]
fn a_killed_process_leaves_what_it_wrote_and_a_later_loss_of_power_may_take_it() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..SEEDS {
        let world = World::new(seed);
        durable(&world, "/d/a", b"1").write_at(b"2", 0).unwrap();
        world.disk.crash(false);
        assert_eq!(found(&world, "/d/a"), Some(b"2".to_vec()));
        world.pass(Duration::from_secs(60));
        world.disk.crash(true);
        outcomes.insert(found(&world, "/d/a"));
    }
    assert_eq!(outcomes, BTreeSet::from([Some(b"1".to_vec()), Some(b"2".to_vec())]));
}

#[test]
fn a_sync_is_done_when_its_time_has_passed_and_what_comes_after_it_comes_after() {
    let write = |world: &World| {
        let file = durable(world, "/d/a", &[0; 1024]);
        world.disk.set_sync_takes(Duration::from_millis(2), Duration::from_millis(2));
        file.write_at(&[1; 4], 0).unwrap();
        file.sync().unwrap();
        assert_eq!(world.disk.take_debt(), Duration::from_millis(2));
        file.write_at(&[1; 4], 512).unwrap();
        file.sync().unwrap();
        assert_eq!(world.disk.take_debt(), Duration::from_millis(4), "one after the other");
    };
    let after = |time| {
        let all = outcomes("/d/a", |world| {
            write(world);
            world.pass(Duration::from_micros(time));
        });
        let got = |bytes: Vec<u8>| (bytes[..4] == [1; 4], bytes[512..516] != [0; 4]);
        all.into_iter().map(|bytes| got(bytes.unwrap())).collect::<BTreeSet<_>>()
    };
    assert_eq!(after(0), BTreeSet::from([(false, false), (true, false), (true, true)]));
    assert_eq!(after(1_999), BTreeSet::from([(false, false), (true, false), (true, true)]));
    assert_eq!(after(2_000), BTreeSet::from([(true, false), (true, true)]));
    assert_eq!(after(4_000), BTreeSet::from([(true, true)]));
}

#[test]
fn the_dead_change_nothing_and_hold_nothing() {
    for power_loss in [false, true] {
        let world = World::new(1);
        let file = durable(&world, "/d/a", b"1");
        let dead = world.disk.mount();
        let held = dead.lock(path("/d/lock")).unwrap();
        assert!(held.is_some() && world.disk.mount().lock(path("/d/lock")).unwrap().is_none());
        world.disk.crash(power_loss);
        let digest = world.disk.digest();
        let eio = |outcome: io::Result<()>| assert_eq!(errno(&outcome.unwrap_err()), Some(Errno::IO));
        eio(file.write_at(b"2", 0));
        eio(file.read_at(&mut [0], 0));
        eio(file.reserve(5));
        eio(file.sync());
        eio(dead.remove(path("/d/a")));
        eio(dead.create(path("/d/b")).map(drop));
        eio(dead.create_directories(path("/e")));
        eio(dead.rename(path("/d/a"), path("/d/b")));
        eio(dead.lock(path("/d/lock")).map(drop));
        assert_eq!(world.disk.digest(), digest);
        let disk = world.disk.mount();
        let again = disk.lock(path("/d/lock")).unwrap();
        assert!(again.is_some());
        drop((held, file, dead));
        assert!(disk.lock(path("/d/lock")).unwrap().is_none(), "the dead let go of another's lock");
        drop(again);
        assert!(disk.lock(path("/d/lock")).unwrap().is_some());
    }
}

#[test]
fn a_removed_file_is_there_for_those_who_have_it_open() {
    let world = World::new(1);
    let file = durable(&world, "/d/a", &[1; 8_192]);
    let disk = world.disk.mount();
    disk.remove(path("/d/a")).unwrap();
    assert_eq!((read(&*file).unwrap().len(), world.disk.used_bytes()), (8_192, 8_192));
    drop(file);
    assert_eq!(world.disk.used_bytes(), 0);
    for n in 0..200 {
        drop(durable(&world, "/d/a", &[1; 100]));
        disk.remove(path("/d/a")).unwrap();
        disk.sync_directory(path("/d")).unwrap();
        world.rest();
        assert_eq!(world.disk.used_bytes(), 0, "{n}");
    }
    assert!(world.disk.shared.state.lock().inodes.len() < 100, "what nobody can reach is kept");
}

#[test]
fn the_same_seed_does_the_same() {
    let run = |seed| {
        let world = World::new(seed);
        for n in 0..20 {
            let disk = world.disk.mount();
            disk.create_directories(path("/d")).unwrap();
            for file in 0..5 {
                let file = disk.create(Path::new(&format!("/d/{file}"))).unwrap();
                file.write_at(&[n; 3_000], 100).unwrap();
                file.sync().unwrap();
                file.write_at(&[n + 1; 3_000], 1_000).unwrap();
            }
            disk.sync_directory(path("/d")).unwrap();
            world.pass(world.disk.take_debt() / 2);
            world.disk.crash(n % 3 > 0);
        }
        world.disk.digest()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}
