//! The threads that carry committed frames from memory into shard files.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use metrics::{Gauge, Histogram};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::core::{Core, Opener};
use super::error::Error;
use super::overlay::Batch;
use super::state::{ShardState, Stuck};
use super::writer::{Fault, Writer};
use crate::blocking::{self, Worker};
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
    waiting: Mutex<VecDeque<Arc<ShardState>>>,
    changed: Notify,
    /// Finish what is there, then end.
    stopping: CancellationToken,
}

impl Queue {
    /// Adds a shard unless it is in the queue or in an applier's hands, who looks again before letting go.
    pub(super) fn push(&self, state: &Arc<ShardState>) {
        if !state.is_queued.swap(true, Ordering::AcqRel) {
            self.push_again(Arc::clone(state));
        }
    }

    fn push_again(&self, state: Arc<ShardState>) {
        self.waiting.lock().push_back(state);
        self.changed.notify_one();
    }

    async fn pop(&self) -> Option<Arc<ShardState>> {
        loop {
            // Before the look, so that what comes after it is not missed.
            let changed = self.changed.notified();
            let popped = self.waiting.lock().pop_front();
            if popped.is_some() || self.stopping.is_cancelled() {
                return popped;
            }
            tokio::select! {
                () = changed => {}
                () = self.stopping.cancelled() => {}
            }
        }
    }

    /// Lets the appliers finish what they have and end.
    pub(super) fn stop(&self) {
        self.stopping.cancel();
    }

    /// Waits before another try; cut short by [`Queue::stop`].
    async fn back_off(&self, pause: Duration) {
        // Either will do.
        let _ = tokio::time::timeout(pause, self.stopping.cancelled()).await;
    }
}

/// Starts the threads.
pub(super) fn start(core: &Arc<Core>) -> Result<Vec<Worker>, Error> {
    let mut threads = Vec::new();
    for number in 0..APPLIERS {
        let thread = Worker::start(&format!("apply-{number}"), Applier::new(core).run());
        threads.push(thread.map_err(|source| Error::io("starting an applier for", &core.config.root_dir, source))?);
    }
    Ok(threads)
}

/// Where there are no threads, applies all that waits, here: for those who are about to wait for it.
pub(super) fn run_inline(core: &Arc<Core>) {
    if blocking::is_inline() {
        let applier = Applier::new(core);
        for state in core.states() {
            while applier.serve(&state) == Next::More {}
        }
    }
}

/// What is to become of a shard that was served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// It may have more frames.
    More,
    /// It has more, and needs time.
    Later,
    /// It has no more, or is given up.
    Nothing,
}

struct Applier {
    core: Arc<Core>,
    seconds: Histogram,
    backlog: Gauge,
}

impl Applier {
    fn new(core: &Arc<Core>) -> Self {
        Self {
            core: Arc::clone(core),
            seconds: metrics::histogram!(telemetry::APPLY_SECONDS),
            backlog: metrics::gauge!(telemetry::APPLY_BACKLOG),
        }
    }

    async fn run(self) {
        let mut retry_after = RETRY_AFTER_MIN;
        while let Some(state) = self.core.queue.pop().await {
            let next = blocking::timed(|| self.serve(&state)).await;
            let frames = self.core.backlog.frames.load(Ordering::Relaxed);
            self.backlog.set(u32::try_from(frames).unwrap_or(u32::MAX));
            match next {
                Next::Nothing => continue,
                Next::More => retry_after = RETRY_AFTER_MIN,
                Next::Later => {
                    self.core.queue.back_off(retry_after).await;
                    retry_after = (retry_after * 2).min(RETRY_AFTER_MAX);
                }
            }
            self.core.queue.push_again(state);
        }
    }

    /// Applies one batch of `state`.
    fn serve(&self, state: &Arc<ShardState>) -> Next {
        if state.poisoned().is_err() {
            return Next::Nothing;
        }
        let Some(batch) = state.overlay.take(APPLY_BATCH_FRAMES_MAX, APPLY_BATCH_BYTES_SOFT_MAX) else {
            state.is_queued.store(false, Ordering::Release);
            // A frame that came between the look and the flag found the flag still up.
            if !state.overlay.is_empty() {
                self.core.queue.push(state);
            }
            return Next::Nothing;
        };
        let Err(error) = self.apply(state, &batch) else {
            state.set_stuck(None);
            state.overlay.finish(&batch);
            return Next::More;
        };
        state.overlay.put_back(&batch);
        let fault = Fault::of(&*self.core.config.disk, &error);
        if fault == Fault::Fatal {
            state.poison(&error);
            return Next::Nothing;
        }
        let is_full = fault == Fault::Full;
        let why = error.without_path();
        let why = if is_full { format!("disk full: {why}") } else { why };
        if state.stuck().is_none() {
            tracing::warn!(shard = %state.id, %error, is_full, "committed frames wait in memory for their shard file");
        }
        state.set_stuck(Some(Stuck { is_full, why }));
        // Where it stops nobody will try again; what is in the journal is applied after the next start.
        if self.core.queue.stopping.is_cancelled() { Next::Nothing } else { Next::Later }
    }

    fn apply(&self, state: &ShardState, batch: &Batch) -> Result<(), Error> {
        loop {
            let shard = self.core.open(&state.id, Opener::Applier)?;
            let durable = self.core.files_carry_durability();
            let started = self.core.clock.now().monotonic;
            // None: closed between the two lines, so it is opened again.
            let apply = |writer: &mut Writer| {
                let applied = writer.apply(batch, durable);
                self.core.summaries.set(&state.id, writer.summary());
                applied
            };
            if let Some(applied) = shard.with_writer(apply) {
                self.seconds.record(self.core.clock.now().monotonic.saturating_sub(started).as_secs_f64());
                return applied;
            }
        }
    }
}
