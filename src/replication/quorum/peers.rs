//! The other replicas, as the core sees them: who can be asked now, and what waits to be sent to whom.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};

use crate::replication::register::Message;
use crate::replication::wire::{self, Batch};
use crate::telemetry;
use crate::transport::Transport;
use crate::types::{NodeId, StorageId};

/// Bytes of keys and values after which a batch is closed and another begun.
const BATCH_BYTES: usize = 1 << 20;

/// One other replica.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) node: NodeId,
    pub(super) link: Link,
    /// All its rows were compared with ours since it last connected.
    pub(super) in_step: bool,
    pub(super) storage_id: Option<StorageId>,
    /// How far its clock is ahead of ours, in nanoseconds.
    pub(super) skew: Option<i64>,
    outbox: Vec<Message>,
    outbox_bytes: usize,
    batch_messages: Histogram,
    skew_seconds: Gauge,
    dropped: Counter,
}

/// How a peer stands towards us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    /// No connection.
    Down,
    /// Connected; its votes count once our memory of its disk is durable, as of this many memories written.
    Meeting(u64),
    /// Connected, and its votes count.
    Up,
    /// Connected, but its disk has forgotten: its votes do not count.
    Forgot,
}

impl Peer {
    pub(super) fn new(node: NodeId) -> Self {
        let label = node.as_str().to_owned();
        Self {
            link: Link::Down,
            in_step: false,
            storage_id: None,
            skew: None,
            outbox: Vec::new(),
            outbox_bytes: 0,
            batch_messages: metrics::histogram!(telemetry::PEER_BATCH),
            skew_seconds: metrics::gauge!(telemetry::CLOCK_SKEW, "peer" => label.clone()),
            dropped: metrics::counter!(telemetry::MESSAGES_DROPPED, "peer" => label),
            node,
        }
    }

    pub(super) fn is_live(&self) -> bool {
        self.link != Link::Down
    }

    pub(super) fn votes(&self) -> bool {
        self.link == Link::Up
    }

    pub(super) fn set_skew(&mut self, nanos: i64) {
        self.skew = Some(nanos);
        self.skew_seconds.set(Duration::from_nanos(nanos.unsigned_abs()).as_secs_f64() * nanos.signum() as f64);
    }

    pub(super) fn down(&mut self) {
        self.link = Link::Down;
        self.in_step = false;
        self.skew = None;
        self.outbox.clear();
        self.outbox_bytes = 0;
    }

    /// Puts a message into the next batch; a full batch leaves at once.
    pub(super) fn queue(&mut self, message: Message, stamp: Stamp, transport: &dyn Transport) {
        if self.link == Link::Down {
            return;
        }
        self.outbox_bytes += message.weight();
        self.outbox.push(message);
        if self.outbox_bytes >= BATCH_BYTES {
            self.flush(stamp, transport);
        }
    }

    /// Sends what waits.
    pub(super) fn flush(&mut self, stamp: Stamp, transport: &dyn Transport) {
        if self.outbox.is_empty() {
            return;
        }
        let messages = std::mem::take(&mut self.outbox);
        self.outbox_bytes = 0;
        let count = messages.len();
        let batch = Batch { epoch: stamp.epoch, wall: stamp.wall, messages };
        let sent = wire::encode(&batch).map_err(|malformed| malformed.to_string());
        match sent.and_then(|bytes| transport.send(&self.node, bytes).map_err(|error| error.to_string())) {
            Ok(()) => self.batch_messages.record(count as f64),
            // Rounds that needed them begin again by their own deadline.
            Err(reason) => {
                self.dropped.increment(count as u64);
                tracing::debug!(peer = %self.node, count, reason, "messages dropped");
            }
        }
    }
}

/// What every batch is stamped with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stamp {
    pub(super) epoch: u64,
    pub(super) wall: i64,
}
