//! `bench`: load on the socket, and what came of it.
//!
//! ```text
//!   mod     flags, and the story: write the keys, try once, measure, report, delete the keys
//!   load    clients on threads: each sends one request at a time, and the next when it has its answer
//!   connection    one client's connection, in either dialect      resp    the little of RESP that takes
//!   report    what is counted while it runs, and how it is told
//! ```
//!
//! The load is a closed loop: a node that answers slowly is asked less, so latencies are those of this many clients and
//! no more. There is no warm-up but one read per client, and no rate to hold.

mod connection;
mod load;
mod report;
mod resp;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use outrigger::client::{self, BATCH_BYTES_SOFT_MAX, BatchOp, Client};
use outrigger::clock::OsClock;
use outrigger::types::{ShardId, VALUE_BYTES_LIMIT};
use tokio_util::sync::CancellationToken;

use super::{DEFAULT_NAMESPACE, Failure, Global, output, progress};
use connection::Target;
use load::{Load, Values, key};
use report::{Report, Tallies};

/// Half of the connections that a node takes, so that the application beside it keeps its own.
const CLIENTS_MAX: u16 = 1024;
const KEYS_MAX: u32 = 1_000_000;
const SECONDS_MAX: u64 = 3600;
/// What all values together may come to on each node's disk, in bytes.
const STORED_BYTES_MAX: u64 = 16 * 1024 * 1024 * 1024;
/// How many keys are written or deleted in one request, before and after.
const BATCH_KEYS_MAX: u32 = 500;
/// How long one request may wait for its answer where no --timeout was given; it is counted as a timeout then.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Put load on the socket and print throughput, latencies and errors
#[derive(Debug, Args)]
#[command(after_help = "\
EXAMPLES
  outrigger bench                            64 clients, half reads, for 10 s
  outrigger bench --protocol resp --reads 1 --clients 16
  outrigger bench --consistency quorum --size 4KiB --seconds 60
  outrigger --ns scratch bench --json | jq .writes.p99_us

It first writes its keys, bench/00000000 and so on, into the shard that --org
and --ns name, then measures for --seconds, prints the summary, and deletes
the keys again (--keep: leaves them for the next run). Its names are the same
each time, so two runs at once want a --ns each. Ctrl-C ends the measuring
early; a second one leaves the keys where they are.

Each client has one connection and one request on its way. Latencies are of
operations that succeeded. One that failed is counted by its kind, and its
client pauses for 100 ms. One without an answer in 10 s, or 5 s more than
--timeout, is a timeout. RESP knows no --timeout of a request; there
--consistency is about reads alone.

Ends with status 69 where an operation failed because the node was busy or
out of reach, had no quorum or no answer in time, and 1 where only other
errors came; the summary is printed all the same.")]
pub(super) struct Bench {
    /// Connections, each with one request at a time: 1 to 1024
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(CLIENTS_MAX)))]
    clients: u16,
    /// Bytes of each value, as in 256 or 4KiB: 1 B to 64 MiB, and no more than the node takes
    #[arg(long, default_value = "256", value_name = "BYTES", value_parser = parse_size)]
    size: usize,
    /// The share of reads: 0 writes only, 1 reads only
    #[arg(long, default_value_t = 0.5, value_name = "SHARE", value_parser = parse_share)]
    reads: f64,
    /// Different keys, each as likely as any other: 1 to 1000000
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(KEYS_MAX)))]
    keys: u32,
    /// How long to measure: 1 to 3600
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=SECONDS_MAX))]
    seconds: u64,
    /// Which dialect of the socket to speak
    #[arg(long, value_enum, default_value_t = Protocol::Http)]
    protocol: Protocol,
    /// Draw the same keys and values as the run that printed this [default: a new one]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Leave the keys in the shard
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Protocol {
    Http,
    Resp,
}

impl Protocol {
    fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Resp => "resp",
        }
    }
}

fn parse_size(text: &str) -> Result<usize, String> {
    let size = text.parse::<ByteSize>().ok().and_then(|size| usize::try_from(size.as_u64()).ok());
    size.filter(|size| (1..=VALUE_BYTES_LIMIT).contains(size)).ok_or_else(|| "want 1 B to 64 MiB".to_owned())
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share = text.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "want a number from 0 to 1".to_owned())
}

impl Bench {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let stored = u64::from(self.keys) * self.size as u64;
        if stored > STORED_BYTES_MAX {
            let (stored, most) = (output::bytes(stored), output::bytes(STORED_BYTES_MAX));
            let why =
                format!("--keys times --size comes to {stored}, more than {most}: choose fewer keys or smaller ones");
            return Err(Failure::Usage(why));
        }
        let seed = self.seed.unwrap_or_else(rand::random);
        let options = &global.client;
        let org = options.org.as_deref().unwrap_or_default();
        let shard = ShardId::parse(org, options.ns.as_deref().unwrap_or(DEFAULT_NAMESPACE))
            .map_err(|why| Failure::Usage(why.to_string()))?;
        let target = Target {
            token: global.token()?,
            builder: global.client()?.shard(shard.org.as_str(), shard.namespace.as_str())?,
            socket: global.socket().into(),
            shard,
            protocol: self.protocol,
            quorum_reads: matches!(options.consistency, Some(super::Consistency::Quorum)),
        };
        let within = options.timeout.map_or(ANSWER_WITHIN, |timeout| timeout.saturating_add(client::ANSWER_SLACK));
        let load = Arc::new(Load {
            target,
            values: Values::new(seed, self.size),
            clients: self.clients,
            reads: self.reads,
            keys: self.keys,
            seed,
            within,
            clock: OsClock::shared(),
            stop: CancellationToken::new(),
        });
        let keys = Keys::new(&load, options.timeout)?;
        keys.write(&load).await?;
        load.try_once().await?;

        let (tallies, took) = self.measure(&load).await?;
        let report = Report { bench: &self, consistency: options.consistency, seed, took, tallies };
        output::print(&report.render(options.json)?)?;
        let cleaned = if self.keep { Ok(()) } else { keys.delete().await };
        match report.failure() {
            None => cleaned,
            Some(failure) => {
                if let Err(Failure::Unavailable(why) | Failure::Other(why)) = cleaned {
                    output::complain(&why);
                }
                Err(failure)
            }
        }
    }

    /// Lets the clients run; what they counted, and for how long.
    async fn measure(&self, load: &Arc<Load>) -> Result<(Tallies, Duration), Failure> {
        let shared = load.tallies()?;
        let seconds = Duration::from_secs(self.seconds);
        let started = load.clock.now().monotonic;
        let line = || {
            let passed = load.clock.now().monotonic.saturating_sub(started);
            Tallies::sum(&shared).map_or_else(|_| String::new(), |sum| sum.progress(passed, seconds))
        };
        let all = async {
            let running = load.start(&shared);
            tokio::select! {
                () = tokio::time::sleep(seconds) => {}
                _ = tokio::signal::ctrl_c() => {}
                // The threads end before they are told to only where they could not start.
                () = load.stop.cancelled() => {}
            }
            load.stop.cancel();
            let stopped = load.clock.now().monotonic;
            running.await.map(|()| stopped)
        };
        let stopped = progress::show_every(PROGRESS_EVERY, line, all).await?;
        let tallies = Tallies::sum(&shared)?;
        // Answers that came after the end are counted, and so is the time that they took.
        let took = stopped.max(tallies.last_success).saturating_sub(started);
        Ok((tallies, took))
    }
}

/// The keys of a run: written before it, so that reads find something and all writes are of one sort, deleted after it.
struct Keys {
    client: Client,
    count: u32,
    per_batch: u32,
    done: AtomicU64,
}

impl Keys {
    /// Over a client of their own, by quorum whatever is measured.
    fn new(load: &Load, timeout: Option<Duration>) -> Result<Self, Failure> {
        let Target { socket, shard, token, .. } = &load.target;
        let mut builder = Client::builder(socket).shard(shard.org.as_str(), shard.namespace.as_str())?;
        if let Some(token) = token {
            builder = builder.token(token.clone());
        }
        if let Some(timeout) = timeout {
            builder = builder.timeout(timeout);
        }
        let fit = u32::try_from(BATCH_BYTES_SOFT_MAX / load.values.size()).unwrap_or(BATCH_KEYS_MAX);
        let client = builder.answer_within(load.within).build();
        Ok(Self { client, count: load.keys, per_batch: fit.clamp(1, BATCH_KEYS_MAX), done: AtomicU64::new(0) })
    }

    async fn write(&self, load: &Load) -> Result<(), Failure> {
        // A node that is gone, or would take no such value, is told from the first key alone.
        self.client.put(&key(0), load.values.at(0)).await?;
        let put = |n| BatchOp::Put { key: key(n), value: load.values.at(n as usize), expect: None };
        let line = || format!("bench: {} of {} keys written", self.done.load(Ordering::Relaxed), self.count);
        let written = progress::show_every(PROGRESS_EVERY, line, self.each(put)).await;
        written.map_err(|failure| failure.with("; some keys of the bench may be there, under bench/"))
    }

    async fn delete(&self) -> Result<(), Failure> {
        self.done.store(0, Ordering::Relaxed);
        let line = || format!("bench: {} of {} keys deleted", self.done.load(Ordering::Relaxed), self.count);
        let all = async {
            tokio::select! {
                deleted = self.each(|n| BatchOp::Del(key(n))) => deleted,
                _ = tokio::signal::ctrl_c() => Err(Failure::Other("interrupted".to_owned())),
            }
        };
        let deleted = progress::show_every(PROGRESS_EVERY, line, all).await;
        deleted.map_err(|failure| failure.map(|why| format!("keys of the bench were left, under bench/: {why}")))
    }

    async fn each(&self, op: impl Fn(u32) -> BatchOp) -> Result<(), Failure> {
        let mut next = 0;
        while next < self.count {
            let end = next.saturating_add(self.per_batch).min(self.count);
            let ops: Vec<BatchOp> = (next..end).map(&op).collect();
            for result in self.client.batch(&ops).await? {
                result.map_err(client::Error::Problem)?;
            }
            next = end;
            self.done.store(u64::from(next), Ordering::Relaxed);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_shares_have_bounds() {
        assert_eq!((parse_size("256"), parse_size("4KiB"), parse_size("64MiB")), (Ok(256), Ok(4096), Ok(64 << 20)));
        for bad in ["0", "-1", "65MiB", "much", ""] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert_eq!((parse_share("0"), parse_share("0.25"), parse_share("1")), (Ok(0.0), Ok(0.25), Ok(1.0)));
        for bad in ["-0.1", "1.1", "NaN", "half"] {
            assert!(parse_share(bad).is_err(), "{bad}");
        }
    }
}
