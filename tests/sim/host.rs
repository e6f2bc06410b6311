//! A machine: a clock that is a little wrong, and at most one process, which can be stopped, woken and killed.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use outrigger::clock::Clock;
use outrigger::types::NodeId;
use tokio::runtime::{Builder, Runtime};
use tokio::time::{advance, sleep};

use crate::story;
use crate::time::{HostClock, TICK, Wall};

/// A clock's drift is told in millionths.
const MILLION: i64 = 1_000_000;

pub(crate) struct Host {
    pub(crate) name: NodeId,
    pub(crate) wall: Wall,
    drift_ppm: i64,
    /// How long the world has lasted, by this machine's count; its process may be behind that.
    local: Duration,
    process: Option<Process>,
    stopped: bool,
    /// A process here has started a thread, where nothing may run but in its turn.
    threads: Arc<AtomicBool>,
}

struct Process {
    runtime: Runtime,
    /// Where its clock stands, by the machine's count, in whole ticks.
    at: Duration,
}

impl Host {
    /// A machine without a process, whose clock gains `drift_ppm` millionths and shows what `wall` makes of it.
    pub(crate) fn new(name: NodeId, drift_ppm: i64, wall: Wall) -> Self {
        Self { name, wall, drift_ppm, local: Duration::ZERO, process: None, stopped: false, threads: Arc::default() }
    }

    /// Starts a process, which ends whatever ran before; its first turn comes with the next tick.
    pub(crate) fn boot<F>(&mut self, program: impl FnOnce(Arc<dyn Clock>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.kill();
        let threads = Arc::clone(&self.threads);
        let mut builder = Builder::new_current_thread();
        builder.enable_time().start_paused(true).on_thread_start(move || threads.store(true, Ordering::Relaxed));
        let runtime = builder.build().expect("a runtime needs memory alone");
        let at = whole_ticks(self.local);
        let clock = HostClock::new(runtime.handle().clone(), at, self.wall.clone());
        {
            let _on = story::on(self.name.as_str());
            let _inside = runtime.enter();
            runtime.spawn(program(Arc::new(clock)));
        }
        self.process = Some(Process { runtime, at });
        self.stopped = false;
    }

    /// One tick of the world's time passes: everything runs that is due before its end.
    pub(crate) fn pass(&mut self) {
        let drift = (TICK.as_nanos() as i64) * self.drift_ppm / MILLION;
        self.local += Duration::from_nanos((TICK.as_nanos() as i64 + drift) as u64);
        let Some(process) = self.process.as_mut().filter(|_| !self.stopped) else { return };
        let due = whole_ticks(self.local) - process.at;
        if due.is_zero() {
            return;
        }
        let _on = story::on(self.name.as_str());
        // The runtime moves its clock once it has nothing to do, from timer to timer, and no further than this.
        process.runtime.block_on(async { sleep(due).await });
        process.at += due;
        if self.threads.load(Ordering::Relaxed) {
            story::fail("a thread was started: what it does is out of the world's hands".to_owned());
        }
    }

    /// The process stands still, as after SIGSTOP.
    pub(crate) fn stop(&mut self) {
        self.stopped = true;
    }

    /// It goes on, and finds all its timers late at once: by this much.
    pub(crate) fn wake(&mut self) -> Duration {
        self.stopped = false;
        let Some(process) = &mut self.process else { return Duration::ZERO };
        let missed = whole_ticks(self.local) - process.at;
        let _on = story::on(self.name.as_str());
        process.runtime.block_on(async { advance(missed).await });
        process.at += missed;
        missed
    }

    /// The process is gone, with all that it had in memory. Its network is told before.
    pub(crate) fn kill(&mut self) {
        let _on = story::on(self.name.as_str());
        self.process = None;
    }

    pub(crate) fn is_up(&self) -> bool {
        self.process.is_some()
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped
    }
}

fn whole_ticks(time: Duration) -> Duration {
    Duration::from_millis(time.as_millis() as u64)
}
