//! Every metric's name, kind, unit and meaning, in one table, so that docs, dashboards and code cannot disagree.
//!
//! A room keeps the handles of its metrics (`metrics::counter!` and so on) in its own structs: looking a metric up by
//! name costs more than the thing it counts.

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only rises.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Buckets.
    Histogram,
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name, with the unit at its end.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// What it means, with its labels.
    pub help: &'static str,
}

macro_rules! metrics_table {
    ($($constant:ident, $kind:ident, $name:literal, $help:literal;)*) => {
        $(#[doc = $help] pub const $constant: &str = $name;)*
        /// All of them.
        pub const METRICS: &[Metric] = &[$(Metric { name: $name, kind: Kind::$kind, help: $help }),*];
    };
}

metrics_table! {
    DECISIONS, Counter, "outrigger_decisions_total", "Proposals ended, by decision: accept, reject, timeout.";
    PROPOSE_SECONDS, Histogram, "outrigger_propose_seconds", "From a proposal's arrival to its decision, by kind: write, read.";
    ROUNDS, Counter, "outrigger_rounds_total", "Rounds begun, by kind: prepared, token.";
    ROUNDS_REFUSED, Counter, "outrigger_rounds_refused_total", "Rounds that lost to another and began again.";
    FORWARDED, Counter, "outrigger_forwarded_total", "Updates handed to the home of a contended key.";
    FOLDED_UPDATES, Histogram, "outrigger_folded_updates", "Updates folded into one round.";
    FSYNC_SECONDS, Histogram, "outrigger_journal_fsync_seconds", "Writing and syncing one batch of the journal.";
    BATCH_ENTRIES, Histogram, "outrigger_journal_batch_entries", "Entries in one batch of the journal.";
    JOURNAL_BYTES, Gauge, "outrigger_journal_bytes", "Size of the journal's segments on disk.";
    PENDING_FRAMES, Gauge, "outrigger_pending_frames", "Accepted frames not yet known to be chosen.";
    OUTBOX_WRITES, Gauge, "outrigger_outbox_writes", "Local writes that wait to be agreed on.";
    OUTBOX_BYTES, Gauge, "outrigger_outbox_bytes", "What they take up in memory.";
    OUTBOX_OLDEST, Gauge, "outrigger_outbox_oldest_seconds", "How long the oldest of them has waited.";
    OUTBOX_ENDED, Counter, "outrigger_outbox_ended_total", "Local writes that wait no more, by outcome: drained, superseded by a newer version, replaced by a later local write.";
    APPLY_BACKLOG, Gauge, "outrigger_apply_backlog_frames", "Committed frames that wait for their shard file.";
    APPLY_SECONDS, Histogram, "outrigger_apply_seconds", "One transaction of committed frames into a shard file.";
    INBOX_DEPTH, Gauge, "outrigger_replication_inbox_messages", "Messages and proposals waiting for the register.";
    PEER_BATCH, Histogram, "outrigger_peer_batch_messages", "Protocol messages sent to one peer at once.";
    PEERS_LIVE, Gauge, "outrigger_peers_live", "Peers connected now.";
    PEER_ROUND_TRIP, Gauge, "outrigger_peer_round_trip_seconds", "Smoothed round trip, by peer.";
    CLOCK_SKEW, Gauge, "outrigger_peer_clock_skew_seconds", "How far a peer's clock is ahead of ours, by peer.";
    CLOCK_REFUSED, Counter, "outrigger_clock_refused_total", "Messages refused because their time was more than max_skew ahead.";
    PEERS_REFUSED, Counter, "outrigger_peer_connections_refused_total", "Connections refused, by reason: tls, hello.";
    CERTIFICATE_EXPIRY, Gauge, "outrigger_certificate_expiry_timestamp_seconds", "When this node's certificate ends, in Unix seconds.";
    IDENTITY_OUTDATED, Gauge, "outrigger_identity_outdated", "1 while key or certificate files, as they are now, cannot be used and the former ones are.";
    IDENTITY_CHANGES, Counter, "outrigger_identity_changes_total", "Times that changed key or certificate files were taken into use.";
    MESSAGES_DROPPED, Counter, "outrigger_peer_messages_dropped_total", "Messages dropped because a peer's queue was full.";
    MESSAGES_MALFORMED, Counter, "outrigger_peer_messages_malformed_total", "Messages from peers that could not be read.";
    SYNCED_ROWS, Counter, "outrigger_synced_rows_total", "Rows fetched from peers because this node had missed them.";
    COMPARISONS, Counter, "outrigger_comparisons_total", "Comparisons of all rows with a peer's, by outcome: same, different, failed.";
    COMPARISON_SECONDS, Histogram, "outrigger_comparison_seconds", "From the beginning of a comparison until what the peer had and this node had missed was fetched.";
    COMPARED_BYTES, Counter, "outrigger_compared_bytes_total", "Bytes of answers received while comparing rows with peers, and fetching those that were missed.";
    COMPARED_ROWS, Counter, "outrigger_compared_rows_total", "Keys whose versions were compared with a peer's one by one.";
    DIGESTS_BUILT, Counter, "outrigger_digests_built_total", "Digests of shards built from all their rows, as after a crash.";
    TOMBSTONES, Gauge, "outrigger_tombstones", "Deletions that this node remembers, as last counted.";
    TOMBSTONE_AGE, Gauge, "outrigger_tombstone_age_seconds", "Age of the oldest deletion that this node remembers; 0 where there is none.";
    TOMBSTONES_DROPPED, Counter, "outrigger_tombstones_dropped_total", "Deletions that this node remembered and need not any more.";
    COLLECTIONS, Counter, "outrigger_tombstone_collections_total", "Attempts of this node to have a shard's old deletions forgotten everywhere, by outcome: done, waiting (a replica is away), different (a replica has not all rows yet), failed.";
    OPEN_SHARDS, Gauge, "outrigger_open_shards", "Shards held open.";
    REQUESTS, Counter, "outrigger_requests_total", "Requests on the socket, by dialect: http, resp.";
    REQUEST_ERRORS, Counter, "outrigger_request_errors_total", "Requests answered with an error, by dialect and error.";
    REQUEST_SECONDS, Histogram, "outrigger_request_seconds", "Time to answer a request, or a run of pipelined reads at once, by dialect and class: read, write, other.";
    CONNECTIONS, Gauge, "outrigger_connections", "Connections on the socket.";
    WATCHERS, Gauge, "outrigger_watchers", "Watchers of this node's changes.";
    WATCH_EVENTS, Counter, "outrigger_watch_events_total", "Changes handed to watchers.";
    WATCHES_CUT, Counter, "outrigger_watches_cut_total", "Watchers cut off, by reason: overrun, lost, stopping.";
    EPOCH, Gauge, "outrigger_epoch", "The number of the configuration, of who votes, that this node goes by.";
    JOINT, Gauge, "outrigger_joint", "1 while a change of voters is under way, 0 otherwise.";
    MEMBERS, Gauge, "outrigger_members", "Members of the cluster, voters and observers.";
    VOTERS, Gauge, "outrigger_voters", "Voters; while a change is under way, those of before and those of after.";
    VOTES, Gauge, "outrigger_votes", "1 where this node's disk has a vote that counts, 0 where it has none.";
    READY, Gauge, "outrigger_ready", "1 once this node serves, 0 before and while draining.";
}

/// Tells the installed recorder every metric's meaning.
pub fn describe() {
    for metric in METRICS {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            Kind::Histogram => metrics::describe_histogram!(metric.name, metric.help),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_prefixed_unique_and_carry_their_unit() {
        let mut seen = std::collections::HashSet::new();
        for metric in METRICS {
            assert!(metric.name.starts_with("outrigger_"), "{}", metric.name);
            assert!(seen.insert(metric.name), "{} stands twice", metric.name);
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
        }
    }
}
