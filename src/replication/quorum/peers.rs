//! The other replicas, as the core sees them: who can be asked now, and what waits to be sent to whom.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};
use tokio::task::AbortHandle;

use crate::replication::register::{Body, Message};
use crate::replication::repair::Doubt;
use crate::replication::wire::{self, Batch};
use crate::telemetry;
use crate::transport::Transport;
use crate::types::{Ballot, NodeId, StorageId};

/// Bytes of keys and values after which a batch is closed and another begun.
const BATCH_BYTES: usize = 1 << 20;

/// Commits that wait for a peer whose queue is full.
const UNTOLD_COMMITS_MAX: usize = wire::BATCH_MESSAGES_MAX / 2;

/// One other replica.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) node: NodeId,
    pub(super) link: Link,
    /// All rows that it had were fetched where they were missing here, since it last connected.
    pub(super) caught_up: bool,
    /// The last comparison found the same rows on both.
    pub(super) in_step: bool,
    /// The epoch that it was last heard to go by.
    pub(super) epoch: u64,
    /// Rows were compared with it since this node came to replicate what it does.
    pub(super) is_levelled: bool,
    /// What its root and ours say since.
    pub(super) doubt: Doubt,
    pub(super) storage_id: Option<StorageId>,
    /// The highest ballot at which it voted, where that was not noted yet.
    pub(super) voted: Option<Ballot>,
    /// The comparison of rows with it that is under way, or was last.
    pub(super) comparing: Option<AbortHandle>,
    /// How far its clock is ahead of ours, in nanoseconds.
    pub(super) skew: Option<i64>,
    /// It leaves, or is silent in the gossip: nothing is forwarded to it, which it might not come to.
    pub(super) is_leaving: bool,
    outbox: Vec<Message>,
    /// Forwarded updates, by their numbers, that have not left this node and will not.
    unsent: Vec<u64>,
    /// Its queue was full: until somebody looks again, only what must not be lost is kept for it.
    is_blocked: bool,
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
            caught_up: false,
            in_step: false,
            doubt: Doubt::default(),
            storage_id: None,
            epoch: 0,
            is_levelled: false,
            voted: None,
            comparing: None,
            skew: None,
            is_leaving: false,
            outbox: Vec::new(),
            unsent: Vec::new(),
            is_blocked: false,
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
        self.stop_comparing();
        self.not_compared();
        self.skew = None;
        note_unsent(&self.outbox, &mut self.unsent);
        self.outbox.clear();
        self.is_blocked = false;
        self.outbox_bytes = 0;
    }

    pub(super) fn stop_comparing(&mut self) {
        if let Some(task) = self.comparing.take() {
            task.abort();
        }
    }

    /// Forgets what was found out about its rows.
    pub(super) fn not_compared(&mut self) {
        (self.caught_up, self.in_step, self.doubt) = (false, false, Doubt::default());
    }

    /// Puts a message into the next batch; a full batch leaves at once.
    pub(super) fn queue(&mut self, message: Message, stamp: Stamp, transport: &dyn Transport) {
        if self.link == Link::Down {
            return note_unsent(&[message], &mut self.unsent);
        }
        if self.is_blocked && (!is_told_once(&message) || self.outbox.len() >= UNTOLD_COMMITS_MAX) {
            note_unsent(&[message], &mut self.unsent);
            return self.dropped.increment(1);
        }
        self.outbox_bytes += message.weight();
        self.outbox.push(message);
        if self.outbox_bytes >= BATCH_BYTES || self.outbox.len() >= wire::BATCH_MESSAGES_MAX {
            self.flush(stamp, transport);
        }
    }

    /// Drops what asks for a vote, or is one, and could not leave in its epoch.
    pub(super) fn forget_votes(&mut self) {
        self.outbox.retain(|message| !message.body.is_of_epoch());
    }

    /// The numbers of forwarded updates that never left.
    pub(super) fn take_unsent(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.unsent)
    }

    /// Looks whether there is room again for what waits.
    pub(super) fn unblock(&mut self) {
        self.is_blocked = false;
    }

    /// Sends what waits.
    pub(super) fn flush(&mut self, stamp: Stamp, transport: &dyn Transport) {
        if self.outbox.is_empty() || self.is_blocked {
            return;
        }
        let messages = std::mem::take(&mut self.outbox);
        self.outbox_bytes = 0;
        let mut batch = Batch { epoch: stamp.epoch, wall: stamp.wall, messages };
        let sent = wire::encode(&batch).map_err(|malformed| malformed.to_string());
        match sent.and_then(|bytes| transport.send(&self.node, bytes).map_err(|error| error.to_string())) {
            Ok(()) => self.batch_messages.record(batch.messages.len() as f64),
            Err(reason) => {
                note_unsent(&batch.messages, &mut self.unsent);
                let all = batch.messages.len();
                // Rounds that needed the others begin again by their own deadline. Commits wait for a queue with room;
                // who hears of one pulls what it has not.
                batch.messages.retain(is_told_once);
                batch.messages.truncate(UNTOLD_COMMITS_MAX);
                let dropped = all - batch.messages.len();
                self.dropped.increment(dropped as u64);
                tracing::debug!(peer = %self.node, dropped, reason, "messages dropped");
                self.outbox = batch.messages;
                self.is_blocked = true;
            }
        }
    }
}

/// Takes note of the forwarded updates among messages that are given up before they left.
fn note_unsent(messages: &[Message], unsent: &mut Vec<u64>) {
    unsent.extend(messages.iter().filter_map(|message| match message.body {
        Body::Propose { id, .. } => Some(id),
        _ => None,
    }));
}

/// What is chosen is told once, and nobody asks for it.
fn is_told_once(message: &Message) -> bool {
    matches!(message.body, Body::Commit { .. })
}

/// What every batch is stamped with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stamp {
    pub(super) epoch: u64,
    pub(super) wall: i64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::register::Address;
    use crate::transport::Greeter;
    use crate::transport::memory::Network;
    use crate::types::{Ballot, Key, ShardId};

    struct Silent;

    impl Greeter for Silent {
        fn hello(&self, _: &NodeId) -> bytes::Bytes {
            bytes::Bytes::new()
        }

        fn check(&self, _: &NodeId, _: &[u8]) -> Result<(), String> {
            Ok(())
        }
    }

    /// A peer whose queue was full never heard of what was committed meanwhile, and had old rows until it reconnected.
    #[tokio::test]
    async fn a_commit_that_could_not_be_sent_is_kept() {
        let me = NodeId::parse("a").unwrap();
        let (transport, _inbox) = Network::new().join(me, std::sync::Arc::new(Silent));
        let mut peer = Peer::new(NodeId::parse("b").unwrap());
        peer.link = Link::Up;
        let address = Address { shard: ShardId::parse("", "default").unwrap(), key: Key::parse("k").unwrap() };
        let stamp = Stamp { epoch: 1, wall: 0 };
        let queue = |peer: &mut Peer, body| {
            peer.queue(Message { address: address.clone(), body }, stamp, &*transport);
        };
        queue(&mut peer, Body::Read { round: Ballot(1), holds: None });
        queue(&mut peer, Body::Commit { ballot: Ballot(1) });
        peer.flush(stamp, &*transport);
        queue(&mut peer, Body::Read { round: Ballot(2), holds: None });
        queue(&mut peer, Body::Commit { ballot: Ballot(2) });
        let kept: Vec<_> = peer.outbox.iter().map(|message| message.body.clone()).collect();
        assert_eq!(kept, [Body::Commit { ballot: Ballot(1) }, Body::Commit { ballot: Ballot(2) }]);
        peer.down();
        assert!(peer.outbox.is_empty(), "a lost connection ends with a comparison of rows");
    }
}
