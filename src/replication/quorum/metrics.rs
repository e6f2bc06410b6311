//! The core's metrics: handles looked up once.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};

use crate::cluster::status::DecisionCounts;
use crate::replication::register::{Body, ProposerCounts, Refusal};
use crate::store::replicator::Decision;
use crate::telemetry;

pub(super) struct CoreMetrics {
    pub(super) decisions: DecisionCounts,
    accepted: Counter,
    rejected: Counter,
    timed_out: Counter,
    write_seconds: Histogram,
    read_seconds: Histogram,
    prepared: Counter,
    token: Counter,
    refused: Counter,
    clock_refused: Counter,
    pending: Gauge,
    peers_live: Gauge,
    pub(super) forwarded: u64,
    forwarded_total: Counter,
    pub(super) malformed: Counter,
    pub(super) synced_rows: Counter,
    pub(super) folded: Histogram,
    pub(super) inbox: Gauge,
}

impl Default for CoreMetrics {
    fn default() -> Self {
        Self {
            decisions: DecisionCounts::default(),
            accepted: metrics::counter!(telemetry::DECISIONS, "decision" => "accept"),
            rejected: metrics::counter!(telemetry::DECISIONS, "decision" => "reject"),
            timed_out: metrics::counter!(telemetry::DECISIONS, "decision" => "timeout"),
            write_seconds: metrics::histogram!(telemetry::PROPOSE_SECONDS, "kind" => "write"),
            read_seconds: metrics::histogram!(telemetry::PROPOSE_SECONDS, "kind" => "read"),
            prepared: metrics::counter!(telemetry::ROUNDS, "kind" => "prepared"),
            token: metrics::counter!(telemetry::ROUNDS, "kind" => "token"),
            refused: metrics::counter!(telemetry::ROUNDS_REFUSED),
            clock_refused: metrics::counter!(telemetry::CLOCK_REFUSED),
            pending: metrics::gauge!(telemetry::PENDING_FRAMES),
            peers_live: metrics::gauge!(telemetry::PEERS_LIVE),
            forwarded: 0,
            forwarded_total: metrics::counter!(telemetry::FORWARDED),
            malformed: metrics::counter!(telemetry::MESSAGES_MALFORMED),
            synced_rows: metrics::counter!(telemetry::SYNCED_ROWS),
            folded: metrics::histogram!(telemetry::FOLDED_UPDATES),
            inbox: metrics::gauge!(telemetry::INBOX_DEPTH),
        }
    }
}

impl CoreMetrics {
    pub(super) fn count(&mut self, decision: &Decision) {
        let (counter, count) = match decision {
            Decision::Accept(_) => (&self.accepted, &mut self.decisions.accept),
            Decision::Reject(_) => (&self.rejected, &mut self.decisions.reject),
            Decision::Timeout => (&self.timed_out, &mut self.decisions.timeout),
        };
        counter.increment(1);
        *count += 1;
    }

    pub(super) fn took(&self, is_read: bool, time: Duration) {
        if is_read { &self.read_seconds } else { &self.write_seconds }.record(time.as_secs_f64());
    }

    pub(super) fn clock_ahead(&self, answer: &Body) {
        if matches!(answer, Body::Refused { why: Refusal::ClockAhead, .. }) {
            self.clock_refused.increment(1);
        }
    }

    pub(super) fn update(&self, counts: ProposerCounts, pending: usize, live: usize) {
        self.prepared.absolute(counts.prepared);
        self.token.absolute(counts.token);
        self.forwarded_total.absolute(self.forwarded);
        self.refused.absolute(counts.refused);
        self.pending.set(pending as f64);
        self.peers_live.set(live as f64);
    }
}
