//! Moves opaque bytes between nodes, over connections on which both ends have proved who they are.
//!
//! What a message means is none of this room's business; it knows peers by the name their certificate carries, holds
//! at most one connection to each, and asks a [`Greeter`] what to say first and whether to go on. Two implementations
//! pass one conformance suite: [`quic`] for real, [`memory`] for tests in one process.
//!
//! ```text
//!   dial(addr) ──► handshake (TLS) ──► hello/hello ──► Event::Up ──► send / call ... ──► Event::Down ──► redial
//! ```
//!
//! Delivery is at most once, in order within one lane of one connection; a lost connection loses what was queued.
//! Nothing here blocks a sender: a full queue drops the message and says so.

mod certificate;
mod dialer;
mod identity;
pub mod memory;
mod queue;
pub mod quic;
mod refusal;
mod registry;
#[cfg(test)]
mod tests;
pub mod tls;
mod wire;

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::types::NodeId;

/// Messages that must not delay each other travel in lanes of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Small protocol batches: the write path.
    Protocol,
    /// Gossip.
    Gossip,
}

/// The largest message in a lane, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 72 * 1024 * 1024;
/// How many messages wait for one peer's lane before more are dropped.
pub const LANE_MESSAGES_MAX: usize = 4096;
/// How many calls one peer may have open at once.
pub const CALLS_PER_PEER_MAX: usize = 32;
/// How many bytes wait for one peer's lane before more are dropped.
pub const LANE_BYTES_MAX: usize = 96 * 1024 * 1024;
/// The largest request of a call, in bytes.
pub const REQUEST_BYTES_MAX: usize = 1024 * 1024;
/// The largest hello, in bytes.
pub const HELLO_BYTES_MAX: usize = 64 * 1024;
/// How many peers a node knows at once.
pub const PEERS_MAX: usize = 1024;
/// How many addresses a node dials at once.
pub const DIALS_MAX: usize = 1024;
/// How many events, and how many gossip messages, wait in an [`Inbox`].
pub const INBOX_EVENTS_MAX: usize = 1024;
/// How many calls wait in an [`Inbox`].
pub const INBOX_CALLS_MAX: usize = 64;
/// How many answers of one call wait at either end.
pub const CALL_ANSWERS_MAX: usize = 4;

/// Why a message was not even queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// No connection to that node now.
    #[error("not connected")]
    NotConnected,
    /// The peer takes messages slower than they come.
    #[error("its queue is full")]
    QueueFull,
    /// Larger than [`MESSAGE_BYTES_MAX`].
    #[error("the message is too large")]
    TooLarge,
}

/// Why a call ended early.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// No connection to that node now.
    #[error("not connected to {0}")]
    NotConnected(NodeId),
    /// The connection broke while answers were on their way.
    #[error("the connection to {0} broke: {1}")]
    Broken(NodeId, String),
    /// Larger than [`REQUEST_BYTES_MAX`].
    #[error("a request of {bytes} bytes is too large: at most {REQUEST_BYTES_MAX} are allowed")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
}

/// What this room tells of a connection's life. Of one peer, `Up` and `Down` alternate and messages come in between,
/// also where a new connection replaces an old one.
#[derive(Debug)]
pub enum Event {
    /// Both ends agreed to talk; `hello` is what the peer said of itself.
    Up {
        /// The peer, as its certificate names it.
        node: NodeId,
        /// Its hello, already approved by the [`Greeter`].
        hello: Bytes,
    },
    /// The connection is gone and messages queued for it are lost.
    Down {
        /// The peer.
        node: NodeId,
        /// Why, in words for a log.
        reason: String,
    },
    /// A message of the [`Lane::Protocol`] lane.
    Message {
        /// The peer.
        node: NodeId,
        /// Its bytes.
        message: Bytes,
    },
}

/// A request that wants a stream of answers; it has a stream of its own, so that bulk never delays votes.
#[derive(Debug)]
pub struct Call {
    /// Who asks.
    pub node: NodeId,
    /// What.
    pub request: Bytes,
    /// Takes the answers, bounded: awaiting room is how a slow reader slows the writer. Dropping it ends the call.
    pub answers: mpsc::Sender<Bytes>,
}

/// Everything that arrives at one node, a receiver per consumer.
#[derive(Debug)]
pub struct Inbox {
    /// Connections' lives and protocol messages, in order.
    pub events: mpsc::Receiver<Event>,
    /// Calls from peers.
    pub calls: mpsc::Receiver<Call>,
    /// Gossip messages with the address that an answer may be sent to.
    pub gossip: mpsc::Receiver<(SocketAddr, Bytes)>,
}

/// The sending halves of an [`Inbox`].
#[derive(Debug, Clone)]
struct InboxSender {
    events: mpsc::Sender<Event>,
    calls: mpsc::Sender<Call>,
    gossip: mpsc::Sender<(SocketAddr, Bytes)>,
}

impl Inbox {
    fn channel() -> (InboxSender, Self) {
        let (to_events, events) = mpsc::channel(INBOX_EVENTS_MAX);
        let (to_calls, calls) = mpsc::channel(INBOX_CALLS_MAX);
        let (to_gossip, gossip) = mpsc::channel(INBOX_EVENTS_MAX);
        (InboxSender { events: to_events, calls: to_calls, gossip: to_gossip }, Self { events, calls, gossip })
    }
}

/// Says what a node tells of itself first, and judges what the other tells. The bytes are opaque here.
pub trait Greeter: Send + Sync + 'static {
    /// What to say to `peer`.
    fn hello(&self, peer: &NodeId) -> Bytes;

    /// Judges the hello of `peer`; `Err` is the reason for refusing it, shown in both ends' logs.
    fn check(&self, peer: &NodeId, hello: &[u8]) -> Result<(), String>;
}

/// One connection as `status` shows it.
#[derive(Debug, Clone)]
pub struct Link {
    /// The peer.
    pub node: NodeId,
    /// Where it is.
    pub addr: SocketAddr,
    /// Smoothed round-trip time.
    pub round_trip: Duration,
}

/// Why a connection did not come about, as `status` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The peer, where its certificate could be trusted.
    pub node: Option<NodeId>,
    /// Where it is.
    pub addr: SocketAddr,
    /// Why, in one line.
    pub reason: String,
}

/// A node's door to the others.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Where this node listens; others reach it there unless it listens on all of its host's addresses.
    fn local_addr(&self) -> SocketAddr;

    /// Keeps a connection to whoever lives at `addr`: dials, and dials again with backoff, until [`Transport::forget`].
    /// Does nothing while a connection to the node found there stands, whichever of the two dialled it. Harmless when called again, or for this node's own address.
    fn dial(&self, addr: SocketAddr);

    /// Dials `addr` no more; a connection that stands is left alone.
    fn forget(&self, addr: SocketAddr);

    /// Queues a protocol message; returns at once.
    fn send(&self, to: &NodeId, message: Bytes) -> Result<(), SendError>;

    /// Queues a gossip message for whoever lives at `to`: where the peer's packets come from, or where it was found
    /// when this node dialled; dropped where no connection leads there yet.
    fn gossip(&self, to: SocketAddr, message: Bytes) -> Result<(), SendError>;

    /// Sends a request on a stream of its own. Answers end with the channel's close; an `Err` is the last one. Waits
    /// while [`CALLS_PER_PEER_MAX`] calls to that peer are open. Dropping the receiver ends the call at the other end.
    async fn call(&self, to: &NodeId, request: Bytes) -> Result<mpsc::Receiver<Result<Bytes, CallError>>, CallError>;

    /// The connections that stand.
    fn links(&self) -> Vec<Link>;

    /// Peers that were refused here, or that refused this node, and have not been connected since; the latest ones.
    fn refusals(&self) -> Vec<Refusal>;

    /// Closes all connections after what was queued has been handed to the network, bounded to a second.
    async fn close(&self);
}
