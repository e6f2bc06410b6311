//! What is counted while a bench runs, and how it is told.

use std::fmt::Write as _;
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use super::Bench;
use super::connection::{Failed, Kind};
use crate::cli::output::{self, Tone, milliseconds};
use crate::cli::{Consistency, Failure};

/// The longest latency that is told from a longer one: past an operation's bound, in microseconds.
const LATENCY_US_MAX: u64 = 120_000_000;
/// Latencies are kept to three digits.
const DIGITS: u8 = 3;

/// What came of the operations of some clients.
pub(super) struct Tallies {
    /// Of those that succeeded, in microseconds.
    reads: Histogram<u64>,
    writes: Histogram<u64>,
    /// Reads that succeeded and found no value.
    found_nothing: u64,
    /// By kind, in the order of [`Kind::ALL`], with what the first one said.
    errors: [(u64, Option<String>); Kind::ALL.len()],
    /// When the last success came, on the clients' clock.
    pub(super) last_success: Duration,
}

impl Tallies {
    pub(super) fn new() -> Result<Self, Failure> {
        let histogram = || Histogram::new_with_bounds(1, LATENCY_US_MAX, DIGITS).map_err(Failure::other);
        let (reads, writes) = (histogram()?, histogram()?);
        Ok(Self { reads, writes, found_nothing: 0, errors: Default::default(), last_success: Duration::ZERO })
    }

    pub(super) fn succeeded(&mut self, is_read: bool, found: bool, started: Duration, ended: Duration) {
        let took = ended.saturating_sub(started).as_micros();
        let latencies = if is_read { &mut self.reads } else { &mut self.writes };
        latencies.saturating_record(u64::try_from(took).unwrap_or(LATENCY_US_MAX));
        self.found_nothing += u64::from(!found);
        self.last_success = self.last_success.max(ended);
    }

    pub(super) fn failed(&mut self, failed: Failed) {
        for (kind, (count, first)) in Kind::ALL.into_iter().zip(&mut self.errors) {
            if kind == failed.kind {
                *count += 1;
                first.get_or_insert(failed.reason);
                return;
            }
        }
    }

    /// All of them together.
    pub(super) fn sum(all: &[Mutex<Self>]) -> Result<Self, Failure> {
        let mut sum = Self::new()?;
        for one in all {
            let one = one.lock();
            sum.reads.add(&one.reads).map_err(Failure::other)?;
            sum.writes.add(&one.writes).map_err(Failure::other)?;
            sum.found_nothing += one.found_nothing;
            for ((count, first), (more, reason)) in sum.errors.iter_mut().zip(&one.errors) {
                *count += more;
                if first.is_none() {
                    first.clone_from(reason);
                }
            }
            sum.last_success = sum.last_success.max(one.last_success);
        }
        Ok(sum)
    }

    fn both(&self) -> Result<Histogram<u64>, Failure> {
        let mut both = self.reads.clone();
        both.add(&self.writes).map_err(Failure::other)?;
        Ok(both)
    }

    fn failures(&self) -> u64 {
        self.errors.iter().map(|(count, _)| count).sum()
    }

    /// The kinds that came up, how often, and what the first one said.
    fn kinds(&self) -> impl Iterator<Item = (Kind, u64, Option<&str>)> {
        let all = Kind::ALL.into_iter().zip(&self.errors);
        all.filter(|(_, (count, _))| *count > 0).map(|(kind, (count, first))| (kind, *count, first.as_deref()))
    }

    /// The line that is shown while it runs.
    pub(super) fn progress(&self, passed: Duration, of: Duration) -> String {
        let (ops, p99) = self.both().map_or((0, 0), |both| (both.len(), both.value_at_quantile(0.99)));
        format!(
            "bench: {:.0} of {} s, {ops} operations, {:.0}/s, p99 {}, {} errors",
            passed.as_secs_f64(),
            of.as_secs(),
            per_second(ops, passed),
            milliseconds(p99 as f64),
            self.failures()
        )
    }
}

fn per_second(ops: u64, took: Duration) -> f64 {
    if took.is_zero() { 0.0 } else { ops as f64 / took.as_secs_f64() }
}

/// What a run came to.
pub(super) struct Report<'a> {
    pub(super) bench: &'a Bench,
    pub(super) consistency: Option<Consistency>,
    pub(super) seed: u64,
    pub(super) took: Duration,
    pub(super) tallies: Tallies,
}

impl Report<'_> {
    pub(super) fn render(&self, json: bool) -> Result<String, Failure> {
        let both = self.tallies.both()?;
        Ok(if json { format!("{}\n", self.json(&both)) } else { self.text(&both) })
    }

    fn consistency(&self) -> Option<&'static str> {
        self.consistency.map(|consistency| match consistency {
            Consistency::Local => "local",
            Consistency::Quorum => "quorum",
        })
    }

    fn text(&self, both: &Histogram<u64>) -> String {
        let Bench { clients, size, keys, protocol, .. } = *self.bench;
        let consistency = self.consistency().unwrap_or("local reads, quorum writes");
        let mut out = format!(
            "{clients} clients over {}, {} values, {keys} keys, {consistency}; {:.1} s, seed {}\n\n",
            protocol.as_str(),
            output::bytes(size as u64),
            self.took.as_secs_f64(),
            self.seed
        );
        let row = |name: &str, side: &Histogram<u64>| {
            let mut cells =
                vec![name.to_owned(), side.len().to_string(), format!("{:.0}", per_second(side.len(), self.took))];
            let [p50, p99, p999, max] = latencies(side);
            cells.extend(
                [p50, p99, p999, max].map(|us| us.map_or_else(|| "-".to_owned(), |us| milliseconds(us as f64))),
            );
            (cells, Tone::Plain)
        };
        let rows = [row("reads", &self.tallies.reads), row("writes", &self.tallies.writes), row("both", both)];
        out +=
            &output::table(&["", ">DONE", ">PER SECOND", ">P50", ">P99", ">P99.9", ">MAX"], &rows, output::colours());
        if self.tallies.found_nothing > 0 {
            let _ = writeln!(out, "\nreads that found no value: {}", self.tallies.found_nothing);
        }
        let _ = writeln!(out, "\nerrors: {}", self.tallies.failures());
        for (kind, count, first) in self.tallies.kinds() {
            let _ = writeln!(out, "  {} {count}, the first: {}", kind.name(), first.unwrap_or_default());
        }
        out
    }

    fn json(&self, both: &Histogram<u64>) -> Value {
        let side = |side: &Histogram<u64>| {
            let [p50, p99, p999, max] = latencies(side);
            json!({ "done": side.len(), "per_second": per_second(side.len(), self.took), "p50_us": p50,
                "p99_us": p99, "p999_us": p999, "max_us": max })
        };
        let name = |kind: Kind| kind.name().replace(' ', "_");
        let counts = Kind::ALL.into_iter().zip(&self.tallies.errors);
        let errors: Map<String, Value> = counts.map(|(kind, (count, _))| (name(kind), json!(count))).collect();
        let firsts = self.tallies.kinds().map(|(kind, _, first)| (name(kind), json!(first)));
        let firsts: Map<String, Value> = firsts.collect();
        let Bench { clients, size, reads, keys, protocol, .. } = *self.bench;
        json!({
            "protocol": protocol.as_str(), "consistency": self.consistency(), "clients": clients, "size_bytes": size,
            "reads_share": reads, "keys": keys, "seed": self.seed, "seconds": self.took.as_secs_f64(),
            "reads": side(&self.tallies.reads), "writes": side(&self.tallies.writes), "both": side(both),
            "found_nothing": self.tallies.found_nothing, "failed": self.tallies.failures(), "errors": errors,
            "first_errors": firsts,
        })
    }

    /// Where operations failed: how many, and the exit status that the worst of them asks for.
    pub(super) fn failure(&self) -> Option<Failure> {
        let failed = self.tallies.failures();
        if failed == 0 {
            return None;
        }
        let all = failed + self.tallies.reads.len() + self.tallies.writes.len();
        let kinds: Vec<String> =
            self.tallies.kinds().map(|(kind, count, _)| format!("{} {count}", kind.name())).collect();
        let message = format!("{failed} of {all} operations failed: {}", kinds.join(", "));
        let is_unavailable = self.tallies.kinds().any(|(kind, ..)| kind.is_unavailable());
        Some(if is_unavailable { Failure::Unavailable(message) } else { Failure::Other(message) })
    }
}

/// The median, 99th and 99.9th percentile and longest, in microseconds; none where there were no operations.
fn latencies(side: &Histogram<u64>) -> [Option<u64>; 4] {
    if side.is_empty() {
        return [None; 4];
    }
    [side.value_at_quantile(0.5), side.value_at_quantile(0.99), side.value_at_quantile(0.999), side.max()].map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_hold_what_every_thread_counted() {
        let mut all = [Tallies::new().unwrap(), Tallies::new().unwrap()];
        let ms = Duration::from_millis;
        all[0].succeeded(true, true, ms(10), ms(12));
        all[0].failed(Failed { kind: Kind::Busy, reason: "first".to_owned() });
        all[1].succeeded(true, false, ms(10), ms(14));
        all[1].succeeded(false, true, ms(5), ms(500_000));
        all[1].failed(Failed { kind: Kind::Busy, reason: "second".to_owned() });
        all[1].failed(Failed { kind: Kind::Rejected, reason: "third".to_owned() });
        let sum = Tallies::sum(&all.map(Mutex::new)).unwrap();
        assert_eq!((sum.reads.len(), sum.writes.len(), sum.found_nothing, sum.failures()), (2, 1, 1, 3));
        assert_eq!(sum.last_success, ms(500_000));
        assert!(sum.writes.max() >= LATENCY_US_MAX, "a longer one is kept as the longest");
        let kinds: Vec<_> = sum.kinds().collect();
        assert_eq!(kinds, [(Kind::Busy, 2, Some("first")), (Kind::Rejected, 1, Some("third"))]);
        let line = sum.progress(Duration::from_secs(2), Duration::from_secs(10));
        assert!(
            line.starts_with("bench: 2 of 10 s, 3 operations, 2/s, p99 ") && line.ends_with(", 3 errors"),
            "{line}"
        );
    }
}
