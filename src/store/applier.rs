//! The threads that carry committed frames from memory into shard files.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use metrics::{Gauge, Histogram};
use parking_lot::{Condvar, Mutex};

use super::core::{Core, Opener};
use super::error::Error;
use super::overlay::Batch;
use super::state::{ShardState, Stuck};
use super::writer::Fault;
use crate::telemetry;

/// Threads that apply; each has one shard at a time.
pub const APPLIERS: usize = 2;
/// The most frames in one transaction.
pub const APPLY_BATCH_FRAMES_MAX: usize = 1_024;
/// No further frame joins a transaction of this many bytes.
pub const APPLY_BATCH_BYTES_SOFT_MAX: u64 = 16 * 1024 * 1024;
/// How long a failed batch waits for its next try, at first and at most.
const RETRY_AFTER_MIN: Duration = Duration::from_millis(20);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(1);

/// Shards with frames to apply, each at most once.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    shards: VecDeque<Arc<ShardState>>,
    /// Finish what is there, then end.
    stop: bool,
}

impl Queue {
    /// Adds a shard unless it is in the queue or in an applier's hands, who looks again before letting go.
    pub(super) fn push(&self, state: &Arc<ShardState>) {
        if !state.is_queued.swap(true, Ordering::AcqRel) {
            self.waiting.lock().shards.push_back(Arc::clone(state));
            self.changed.notify_one();
        }
    }

    fn push_again(&self, state: Arc<ShardState>) {
        self.waiting.lock().shards.push_back(state);
        self.changed.notify_one();
    }

    fn pop(&self) -> Option<Arc<ShardState>> {
        let mut waiting = self.waiting.lock();
        loop {
            if let Some(state) = waiting.shards.pop_front() {
                return Some(state);
            }
            if waiting.stop {
                return None;
            }
            self.changed.wait(&mut waiting);
        }
    }

    /// Lets the appliers finish what they have and end.
    pub(super) fn stop(&self) {
        self.waiting.lock().stop = true;
        self.changed.notify_all();
    }

    fn is_stopping(&self) -> bool {
        self.waiting.lock().stop
    }

    /// Waits before another try; cut short by [`Queue::stop`].
    fn back_off(&self, pause: Duration) {
        let mut waiting = self.waiting.lock();
        if !waiting.stop {
            self.changed.wait_for(&mut waiting, pause);
        }
    }
}

/// Starts the threads.
pub(super) fn start(core: &Arc<Core>) -> Result<Vec<JoinHandle<()>>, Error> {
    let mut threads = Vec::new();
    for number in 0..APPLIERS {
        let applier = Applier {
            core: Arc::clone(core),
            seconds: metrics::histogram!(telemetry::APPLY_SECONDS),
            backlog: metrics::gauge!(telemetry::APPLY_BACKLOG),
            retry_after: RETRY_AFTER_MIN,
        };
        let thread = std::thread::Builder::new().name(format!("apply-{number}")).spawn(move || applier.run());
        threads.push(thread.map_err(|source| Error::io("starting an applier for", &core.config.root_dir, source))?);
    }
    Ok(threads)
}

struct Applier {
    core: Arc<Core>,
    seconds: Histogram,
    backlog: Gauge,
    retry_after: Duration,
}

impl Applier {
    fn run(mut self) {
        while let Some(state) = self.core.queue.pop() {
            self.serve(state);
            let frames = self.core.backlog.frames.load(Ordering::Relaxed);
            self.backlog.set(u32::try_from(frames).unwrap_or(u32::MAX));
        }
    }

    /// Applies one batch of `state` and queues it again if there is more.
    fn serve(&mut self, state: Arc<ShardState>) {
        if state.poisoned().is_err() {
            return;
        }
        let Some(batch) = state.overlay.take(APPLY_BATCH_FRAMES_MAX, APPLY_BATCH_BYTES_SOFT_MAX) else {
            state.is_queued.store(false, Ordering::Release);
            // A frame that came between the look and the flag found the flag still up.
            if !state.overlay.is_empty() {
                self.core.queue.push(&state);
            }
            return;
        };
        match self.apply(&state, &batch) {
            Ok(()) => {
                state.set_stuck(None);
                state.overlay.finish(&batch);
                self.retry_after = RETRY_AFTER_MIN;
            }
            Err(error) => {
                state.overlay.put_back(&batch);
                let fault = Fault::of(&error);
                if fault == Fault::Fatal {
                    state.poison(&error);
                    return;
                }
                let is_full = fault == Fault::Full;
                let why = if is_full { format!("disk full: {error}") } else { error.to_string() };
                if state.stuck().is_none() {
                    tracing::warn!(shard = %state.id, why, "committed frames wait in memory for their shard file");
                }
                state.set_stuck(Some(Stuck { is_full, why }));
                if self.core.queue.is_stopping() {
                    // Nobody will try again; what is in the journal is applied after the next start.
                    return;
                }
                self.core.queue.back_off(self.retry_after);
                self.retry_after = (self.retry_after * 2).min(RETRY_AFTER_MAX);
            }
        }
        self.core.queue.push_again(state);
    }

    fn apply(&self, state: &ShardState, batch: &Batch) -> Result<(), Error> {
        loop {
            let shard = self.core.open(&state.id, Opener::Applier)?;
            let durable = self.core.files_carry_durability();
            let started = self.core.clock.now().monotonic;
            let gc_floor = shard.gc_floor();
            // None: closed between the two lines, so it is opened again.
            if let Some(applied) = shard.with_writer(|writer| writer.apply(batch, gc_floor, durable)) {
                self.seconds.record(self.core.clock.now().monotonic.saturating_sub(started).as_secs_f64());
                return applied;
            }
        }
    }
}
