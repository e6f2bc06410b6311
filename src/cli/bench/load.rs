//! The clients, on as many threads as there are cores. Threads share nothing but the node: each has its own runtime and
//! its own tally, so that what is measured is the node and not this program.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use outrigger::clock::Clock;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::connection::{Connection, Failed, Kind, Target};
use super::report::Tallies;
use crate::cli::Failure;

/// How long a client waits after a failure, so that a node that is gone is not asked a hundred thousand times a second.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(100);
/// How many different values are drawn.
const VALUES: usize = 64 * 1024;

/// The `n`th key: the same name in every run, so that runs that delete their keys leave no more behind than one.
pub(super) fn key(n: u32) -> String {
    format!("bench/{n:08}")
}

/// Values of one size: parts of one random block, so that making one costs nothing.
pub(super) struct Values {
    block: Bytes,
    size: usize,
}

impl Values {
    pub(super) fn new(seed: u64, size: usize) -> Self {
        let mut block = vec![0_u8; size + VALUES - 1];
        StdRng::seed_from_u64(seed).fill(block.as_mut_slice());
        Self { block: Bytes::from(block), size }
    }

    pub(super) fn at(&self, n: usize) -> Bytes {
        let start = n % VALUES;
        self.block.slice(start..start + self.size)
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }
}

/// What every client knows.
pub(super) struct Load {
    pub(super) target: Target,
    pub(super) values: Values,
    pub(super) clients: u16,
    pub(super) reads: f64,
    pub(super) keys: u32,
    pub(super) seed: u64,
    /// How long an answer may take.
    pub(super) within: Duration,
    pub(super) clock: Arc<dyn Clock>,
    /// No request begins once this is cancelled.
    pub(super) stop: CancellationToken,
}

/// One request.
enum Op {
    Read(String),
    Write(String, Bytes),
}

impl Load {
    fn threads(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        cores.min(usize::from(self.clients))
    }

    /// One for each thread.
    pub(super) fn tallies(&self) -> Result<Arc<Vec<Mutex<Tallies>>>, Failure> {
        let tallies = (0..self.threads()).map(|_| Tallies::new().map(Mutex::new));
        Ok(Arc::new(tallies.collect::<Result<_, _>>()?))
    }

    /// Does what the clients will do, once, so that what cannot work at all is told before it is measured.
    pub(super) async fn try_once(&self) -> Result<(), Failure> {
        let mut connection = self.target.connection();
        if self.reads > 0.0 {
            self.exchange(&mut connection, Op::Read(key(0))).await?;
        }
        if self.reads < 1.0 {
            self.exchange(&mut connection, Op::Write(key(0), self.values.at(0))).await?;
        }
        Ok(())
    }

    /// Starts the threads; the future ends when all clients have.
    pub(super) fn start(
        self: &Arc<Self>,
        tallies: &Arc<Vec<Mutex<Tallies>>>,
    ) -> impl Future<Output = Result<(), Failure>> {
        let mut threads = JoinSet::new();
        for thread in 0..self.threads() {
            let (load, tallies) = (self.clone(), tallies.clone());
            threads.spawn_blocking(move || {
                let ran = load.run_thread(thread, &tallies);
                load.stop.cancel();
                ran
            });
        }
        async move {
            while let Some(ended) = threads.join_next().await {
                ended.map_err(Failure::other)??;
            }
            Ok(())
        }
    }

    fn run_thread(self: &Arc<Self>, thread: usize, tallies: &Arc<Vec<Mutex<Tallies>>>) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::other)?;
        runtime.block_on(async {
            let mut clients = JoinSet::new();
            for number in (thread..usize::from(self.clients)).step_by(self.threads()) {
                let (load, tallies) = (self.clone(), tallies.clone());
                clients.spawn(async move {
                    if let Some(tally) = tallies.get(thread) {
                        load.run_client(number as u64, tally).await;
                    }
                });
            }
            while let Some(ended) = clients.join_next().await {
                ended.map_err(Failure::other)?;
            }
            Ok(())
        })
    }

    async fn run_client(&self, number: u64, tally: &Mutex<Tallies>) {
        let mut rng = StdRng::seed_from_u64(self.seed.wrapping_add(number));
        let mut connection = self.target.connection();
        // Connects; where that fails, so does the first request that counts.
        let _ = self.exchange(&mut connection, Op::Read(key(0))).await;
        while !self.stop.is_cancelled() {
            let key = key(rng.random_range(0..self.keys));
            let is_read = rng.random_bool(self.reads);
            let op = if is_read { Op::Read(key) } else { Op::Write(key, self.values.at(rng.random_range(0..VALUES))) };
            let started = self.clock.now().monotonic;
            let outcome = self.exchange(&mut connection, op).await;
            let ended = self.clock.now().monotonic;
            match outcome {
                Ok(found) => tally.lock().succeeded(is_read, found, started, ended),
                Err(failed) => {
                    tally.lock().failed(failed);
                    tokio::select! {
                        () = tokio::time::sleep(PAUSE_AFTER_FAILURE) => {}
                        () = self.stop.cancelled() => {}
                    }
                }
            }
        }
    }

    /// True where a read found a value, and for writes.
    async fn exchange(&self, connection: &mut Connection, op: Op) -> Result<bool, Failed> {
        let exchange = async {
            match op {
                Op::Read(key) => connection.get(&key).await,
                Op::Write(key, value) => connection.put(&key, value).await.map(|()| true),
            }
        };
        let answered = tokio::time::timeout(self.within, exchange).await;
        answered.unwrap_or_else(|_| {
            // What comes now would be taken for the answer to the next request.
            connection.close();
            let within = humantime::format_duration(self.within);
            Err(Failed { kind: Kind::Timeout, reason: format!("no answer in {within}") })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_the_same_values_of_the_right_size() {
        let (one, same, other) = (Values::new(1, 100), Values::new(1, 100), Values::new(2, 100));
        for n in [0, 1, VALUES - 1, VALUES, usize::MAX] {
            assert_eq!((one.at(n).len(), one.at(n)), (100, same.at(n)));
            assert_ne!(one.at(n), other.at(n));
        }
        assert_ne!(one.at(0), one.at(1));
    }
}
