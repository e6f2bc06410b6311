//! Virtual time: the world's, and each host's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use outrigger::clock::{Clock, Now};
use tokio::runtime::Handle;
use tokio::time::Instant;

/// One turn of the world. The grain of tokio's timers: nothing can fall due in between.
pub(crate) const TICK: Duration = Duration::from_millis(1);
/// The Unix time, in nanoseconds, at which every world begins.
const EPOCH: i64 = 1_800_000_000_000_000_000;

/// The wall clock of a machine: it goes on while the machine is down, and may be set.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wall(Arc<AtomicI64>);

impl Wall {
    /// One that is wrong by `nanos`.
    pub(crate) fn off_by(nanos: i64) -> Self {
        Self(Arc::new(AtomicI64::new(nanos)))
    }

    /// Sets it, wrong by `nanos`; returns by how much it was wrong before.
    pub(crate) fn set_off(&self, nanos: i64) -> i64 {
        self.0.swap(nanos, Ordering::Relaxed)
    }
}

/// What a process on a host sees: both clocks move with its runtime's, which moves only while the host has its turn.
#[derive(Debug)]
pub(crate) struct HostClock {
    handle: Handle,
    started: Instant,
    /// The host's own time when this process began.
    began: Duration,
    wall: Wall,
}

impl HostClock {
    /// The clock of a process that begins now on the runtime of `handle`, `began` after the world did by the host's count.
    pub(crate) fn new(handle: Handle, began: Duration, wall: Wall) -> Self {
        let started = read(&handle);
        Self { handle, started, began, wall }
    }
}

#[expect(clippy::disallowed_methods, reason = "the simulation is what owns this time")]
fn read(handle: &Handle) -> Instant {
    let _inside = handle.enter();
    Instant::now()
}

impl Clock for HostClock {
    fn now(&self) -> Now {
        let monotonic = read(&self.handle) - self.started;
        let local = i64::try_from((self.began + monotonic).as_nanos()).unwrap_or(i64::MAX);
        Now { wall: EPOCH + local + self.wall.0.load(Ordering::Relaxed), monotonic }
    }
}
