//! The core's metrics: handles looked up once.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};

use super::status::OutboxStatus;
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
    outbox_writes: Gauge,
    outbox_bytes: Gauge,
    outbox_oldest: Gauge,
    outbox_drained: Counter,
    outbox_superseded: Counter,
    outbox_replaced: Counter,
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
            outbox_writes: metrics::gauge!(telemetry::OUTBOX_WRITES),
            outbox_bytes: metrics::gauge!(telemetry::OUTBOX_BYTES),
            outbox_oldest: metrics::gauge!(telemetry::OUTBOX_OLDEST),
            outbox_drained: metrics::counter!(telemetry::OUTBOX_ENDED, "outcome" => "drained"),
            outbox_superseded: metrics::counter!(telemetry::OUTBOX_ENDED, "outcome" => "superseded"),
            outbox_replaced: metrics::counter!(telemetry::OUTBOX_ENDED, "outcome" => "replaced"),
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

    pub(super) fn show_outbox(&self, outbox: &OutboxStatus) {
        self.outbox_writes.set(outbox.entries as f64);
        self.outbox_bytes.set(outbox.bytes as f64);
        self.outbox_oldest.set(outbox.oldest_age.unwrap_or_default().as_secs_f64());
        self.outbox_drained.absolute(outbox.counts.drained);
        self.outbox_superseded.absolute(outbox.counts.superseded);
        self.outbox_replaced.absolute(outbox.counts.replaced);
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
