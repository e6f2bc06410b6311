//! What the disk promises, and that it promises no more.

mod crashes;
mod faults;
mod files;
mod sqlite;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use outrigger::disk::{Disk, File, read};

use super::*;

/// Tries of what chance decides; each outcome that is to be seen is far likelier than one in these.
const SEEDS: u64 = 300;

/// A disk and the time it lives in.
struct World {
    disk: SimDisk,
    now_ns: Arc<AtomicU64>,
}

impl World {
    fn new(seed: u64) -> Self {
        let now_ns = Arc::new(AtomicU64::new(0));
        let clock = now_ns.clone();
        let disk = SimDisk::new(seed, Arc::new(move || Duration::from_nanos(clock.load(Ordering::Relaxed))));
        Self { disk, now_ns }
    }

    fn pass(&self, time: Duration) {
        self.now_ns.fetch_add(u64::try_from(time.as_nanos()).unwrap(), Ordering::Relaxed);
    }

    /// Until the disk has done what was asked of it.
    fn rest(&self) {
        self.pass(self.disk.take_debt());
    }
}

/// What a file holds on a fresh mount; none where it is not there.
fn found(world: &World, path: &str) -> Option<Vec<u8>> {
    Some(read(&*world.disk.mount().open(Path::new(path)).ok()?).unwrap())
}

/// A file of these bytes, with all about it durable.
fn durable(world: &World, path: &str, bytes: &[u8]) -> Box<dyn File> {
    let (disk, path) = (world.disk.mount(), Path::new(path));
    outrigger::disk::create_directory(&*disk, path.parent().unwrap()).unwrap();
    let file = disk.create(path).unwrap();
    file.write_at(bytes, 0).unwrap();
    file.sync().unwrap();
    disk.sync_directory(path.parent().unwrap()).unwrap();
    world.rest();
    file
}

/// What is found at `path` after `act` and a loss of power, for many seeds.
fn outcomes(path: &str, act: impl Fn(&World)) -> BTreeSet<Option<Vec<u8>>> {
    let outcome = |seed| {
        let world = World::new(seed);
        act(&world);
        world.disk.crash(true);
        found(&world, path)
    };
    (0..SEEDS).map(outcome).collect()
}

fn errno(error: &io::Error) -> Option<Errno> {
    Errno::from_io_error(error)
}
