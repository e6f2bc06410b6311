//! One link: a connection whose two ends have agreed to talk, with its lanes.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use metrics::Counter;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::ending::{BROKEN, Ending, MALFORMED, REPLACED, close};
use super::{Shared, calls, opening};
use crate::transport::queue::Queue;
use crate::transport::registry::Standing;
use crate::transport::wire::{Unpacker, pack};
use crate::transport::{CALLS_PER_PEER_MAX, Event, Lane, Link, MESSAGE_BYTES_MAX};
use crate::types::NodeId;

/// How many chunks of a stream are read at once; each is what one packet brought.
const READ_CHUNKS: usize = 32;
const PROTOCOL: u8 = 1;
const GOSSIP: u8 = 2;

pub(super) struct QuicLink {
    connection: Connection,
    node: NodeId,
    addr: SocketAddr,
    run: u64,
    token: u64,
    protocol: Queue,
    gossip: Queue,
    pub(super) calls: Arc<Semaphore>,
    /// Why this node itself closed it.
    closed_because: OnceLock<String>,
    flushed: CancellationToken,
    /// Set once `Down` has been told.
    over: CancellationToken,
}

impl Standing for QuicLink {
    fn node(&self) -> &NodeId {
        &self.node
    }
    fn addr(&self) -> SocketAddr {
        self.addr
    }
    fn run(&self) -> u64 {
        self.run
    }
    fn token(&self) -> u64 {
        self.token
    }
    fn is_closed(&self) -> bool {
        self.connection.close_reason().is_some()
    }
    fn replace(&self) {
        self.close(REPLACED, "a newer connection took its place");
    }
}

impl QuicLink {
    pub(super) fn new(
        connection: Connection,
        node: NodeId,
        addr: SocketAddr,
        run: u64,
        token: u64,
        dropped: &Counter,
    ) -> Self {
        Self {
            connection,
            node,
            addr,
            run,
            token,
            protocol: Queue::new(dropped.clone()),
            gossip: Queue::new(dropped.clone()),
            calls: Arc::new(Semaphore::new(CALLS_PER_PEER_MAX)),
            closed_because: OnceLock::new(),
            flushed: CancellationToken::new(),
            over: CancellationToken::new(),
        }
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(super) fn queue(&self, lane: Lane) -> &Queue {
        match lane {
            Lane::Protocol => &self.protocol,
            Lane::Gossip => &self.gossip,
        }
    }

    pub(super) fn describe(&self) -> Link {
        Link { node: self.node.clone(), addr: self.addr, round_trip: self.connection.rtt() }
    }

    /// Queues nothing more; what waits is still written.
    pub(super) fn finish(&self) {
        self.protocol.close();
        self.gossip.close();
    }

    /// Waits until the peer's QUIC has acknowledged everything that was queued before [`Self::finish`].
    pub(super) async fn flushed(&self) {
        tokio::select! {
            () = self.flushed.cancelled() => (),
            _ = self.connection.closed() => (),
        }
    }

    pub(super) fn close(&self, code: u32, reason: &str) {
        let _ = self.closed_because.set(reason.to_owned());
        self.finish();
        close(&self.connection, code, reason);
    }
}

/// Runs a link that the registry has taken, until its connection ends. Tells of it once `before` is over. With
/// `keep`, the other end has yet to be told.
pub(super) fn start(
    shared: Arc<Shared>,
    link: Arc<QuicLink>,
    hello: Bytes,
    before: Option<Arc<QuicLink>>,
    keep: Option<(SendStream, u64)>,
) {
    tokio::spawn(async move {
        let told = match keep {
            Some((send, token)) => opening::keep(send, token).await.is_ok(),
            None => true,
        };
        if let Some(before) = before {
            before.over.cancelled().await;
        }
        if told {
            run(&shared, &link, hello).await;
        } else {
            shared.registry.remove(&link);
            link.finish();
        }
        link.over.cancel();
        shared.registry.over(&link);
    });
}

async fn run(shared: &Arc<Shared>, link: &Arc<QuicLink>, hello: Bytes) {
    shared.refusals.clear(&link.node, link.addr);
    shared.metrics.live.increment(1);
    tracing::info!(peer = %link.node, addr = %link.addr, "connected");
    let _ = shared.inbox.events.send(Event::Up { node: link.node.clone(), hello }).await;

    let readers = tokio::spawn(read_lanes(Arc::clone(shared), Arc::clone(link)));
    let mut others = JoinSet::new();
    others.spawn(write_lanes(Arc::clone(link)));
    others.spawn(calls::serve(Arc::clone(link), shared.inbox.calls.clone()));

    let error = link.connection.closed().await;
    shared.registry.remove(link);
    link.finish();
    others.shutdown().await;
    // What arrived before the end is still handed on, and `Down` comes after it.
    let _ = readers.await;

    let reason = link.closed_because.get().cloned().unwrap_or_else(|| Ending::of(&error).into_words());
    tracing::info!(peer = %link.node, addr = %link.addr, "disconnected: {reason}");
    shared.metrics.live.decrement(1);
    let _ = shared.inbox.events.send(Event::Down { node: link.node.clone(), reason }).await;
}

async fn write_lanes(link: Arc<QuicLink>) {
    let (protocol, gossip) =
        tokio::join!(write_lane(&link, &link.protocol, PROTOCOL), write_lane(&link, &link.gossip, GOSSIP));
    match protocol.and(gossip) {
        Ok(()) => link.flushed.cancel(),
        // Of no effect where the connection's end is what broke the write.
        Err(error) => link.close(BROKEN, &format!("a lane cannot be written: {error}")),
    }
}

/// The lane's stream is opened with its first message. Everything that waits goes into one write.
async fn write_lane(link: &QuicLink, queue: &Queue, lane: u8) -> Result<(), quinn::WriteError> {
    let mut stream = None;
    let (mut batch, mut chunks, mut small) = (Vec::new(), Vec::new(), BytesMut::new());
    while queue.take(&mut batch).await {
        let stream = match &mut stream {
            Some(stream) => stream,
            None => {
                small.extend_from_slice(&[lane]);
                let opened = link.connection.open_uni().await?;
                // Before calls' answers, so that bulk does not delay votes.
                let _ = opened.set_priority(1);
                stream.insert(opened)
            }
        };
        pack(&mut batch, &mut small, &mut chunks);
        stream.write_all_chunks(&mut chunks).await?;
        chunks.clear();
    }
    if let Some(mut stream) = stream {
        let _ = stream.finish();
        let _ = stream.stopped().await;
    }
    Ok(())
}

async fn read_lanes(shared: Arc<Shared>, link: Arc<QuicLink>) {
    let mut lanes = JoinSet::new();
    while let Ok(stream) = link.connection.accept_uni().await {
        lanes.spawn(read_lane(Arc::clone(&shared), Arc::clone(&link), stream));
    }
    while lanes.join_next().await.is_some() {}
}

async fn read_lane(shared: Arc<Shared>, link: Arc<QuicLink>, mut stream: RecvStream) {
    let mut lane = [0];
    if stream.read_exact(&mut lane).await.is_err() {
        return;
    }
    let read = match lane {
        [PROTOCOL] => read_protocol(&link.node, stream, &shared.inbox.events).await,
        [GOSSIP] => read_gossip(&shared, link.addr, stream).await,
        [other] => Err(format!("a stream for lane {other}, which is unknown")),
    };
    if let Err(reason) = read {
        shared.metrics.malformed.increment(1);
        link.close(MALFORMED, &reason);
    }
}

async fn read_protocol(node: &NodeId, stream: RecvStream, events: &mpsc::Sender<Event>) -> Result<(), String> {
    let mut messages = Messages::new(stream, MESSAGE_BYTES_MAX);
    while let Some(message) = messages.next().await? {
        if events.send(Event::Message { node: node.clone(), message }).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Gossip that finds its reader behind is dropped: there is always newer.
async fn read_gossip(shared: &Shared, addr: SocketAddr, stream: RecvStream) -> Result<(), String> {
    let mut messages = Messages::new(stream, MESSAGE_BYTES_MAX);
    while let Some(message) = messages.next().await? {
        if shared.inbox.gossip.try_send((addr, message)).is_err() {
            shared.metrics.dropped.increment(1);
        }
    }
    Ok(())
}

/// The messages of one stream.
pub(super) struct Messages {
    stream: RecvStream,
    unpacker: Unpacker,
    /// Read, and not yet looked into.
    chunks: std::iter::Take<std::array::IntoIter<Bytes, READ_CHUNKS>>,
    /// Why the stream ended, if not as it should.
    pub(super) broken: Option<quinn::ReadError>,
}

impl Messages {
    pub(super) fn new(stream: RecvStream, message_bytes_max: usize) -> Self {
        let chunks = [const { Bytes::new() }; READ_CHUNKS].into_iter().take(0);
        Self { stream, unpacker: Unpacker::new(message_bytes_max), chunks, broken: None }
    }

    /// The next message; `None` at the stream's end, in whatever way that came. May be dropped and called again.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, String> {
        loop {
            if let Some(message) = self.unpacker.next().map_err(|error| error.to_string())? {
                return Ok(Some(message));
            }
            if let Some(chunk) = self.chunks.next() {
                self.unpacker.push(chunk);
                continue;
            }
            let mut chunks = [const { Bytes::new() }; READ_CHUNKS];
            match self.stream.read_chunks(&mut chunks).await {
                Ok(Some(read)) => self.chunks = chunks.into_iter().take(read),
                Ok(None) => return Ok(None),
                Err(error) => {
                    self.broken = Some(error);
                    return Ok(None);
                }
            }
        }
    }

    /// True where the stream may end.
    pub(super) fn is_between(&self) -> bool {
        self.unpacker.is_between()
    }

    /// Asks the other end to send no more.
    pub(super) fn stop(&mut self, code: u32) {
        let _ = self.stream.stop(code.into());
    }
}
