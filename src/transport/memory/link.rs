//! One link of the network: two ends, each run by a task of its own node's runtime.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, Weak};

use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::super::queue::Queue;
use super::super::registry::Standing;
use super::super::{CALL_ANSWERS_MAX, CALLS_PER_PEER_MAX, Call, CallError, Event, Lane};
use super::Shared;
use super::weather::{KEEP_ALIVE, Transit, Weather, Words, pass, passage};
use crate::types::NodeId;

/// One end of a link, named after the other.
pub(super) struct MemoryLink {
    pub(super) node: NodeId,
    pub(super) addr: SocketAddr,
    run: u64,
    token: u64,
    protocol: Queue,
    gossip: Queue,
    pub(super) calls: Arc<Semaphore>,
    /// Told of every keep-alive that arrives at this end.
    heard: Notify,
    /// Set once the peer has taken all that was queued before the queues were closed.
    pub(super) flushed: CancellationToken,
    over: CancellationToken,
    pub(super) wire: Arc<Wire>,
    pub(super) peer: Weak<Shared>,
}

/// What both ends of a link share: it is cut for both at once.
#[derive(Default)]
pub(super) struct Wire {
    pub(super) cut: CancellationToken,
    reason: OnceLock<String>,
}

impl Wire {
    pub(super) fn cut(&self, reason: &str) {
        let _ = self.reason.set(reason.to_owned());
        self.cut.cancel();
    }
}

impl Standing for MemoryLink {
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
        self.wire.cut.is_cancelled()
    }
    fn replace(&self) {
        self.wire.cut("a newer connection took its place");
    }
}

impl MemoryLink {
    pub(super) fn to(peer: &Arc<Shared>, token: u64, wire: &Arc<Wire>) -> Arc<Self> {
        let dropped = metrics::counter!(crate::telemetry::MESSAGES_DROPPED);
        Arc::new(Self {
            node: peer.node.clone(),
            addr: peer.addr,
            run: peer.run,
            token,
            protocol: Queue::new(dropped.clone()),
            gossip: Queue::new(dropped),
            calls: Arc::new(Semaphore::new(CALLS_PER_PEER_MAX)),
            heard: Notify::new(),
            flushed: CancellationToken::new(),
            over: CancellationToken::new(),
            wire: Arc::clone(wire),
            peer: Arc::downgrade(peer),
        })
    }

    pub(super) fn queue(&self, lane: Lane) -> &Queue {
        match lane {
            Lane::Protocol => &self.protocol,
            Lane::Gossip => &self.gossip,
        }
    }

    /// Takes no more to send.
    pub(super) fn finish(&self) {
        self.protocol.close();
        self.gossip.close();
    }

    /// What waits to be sent is lost with the process that meant to send it.
    pub(super) fn abandon(&self) {
        self.protocol.abandon();
        self.gossip.abandon();
    }

    fn peer_is_dead(&self) -> bool {
        self.peer.upgrade().is_none_or(|peer| peer.is_dead())
    }

    pub(super) fn broken(&self) -> CallError {
        let reason = self.wire.reason.get().cloned().unwrap_or_else(|| "it gave the call up".to_owned());
        CallError::Broken(self.node.clone(), reason)
    }
}

/// Runs one end, `link`, which takes what the `opposite` end has queued.
pub(super) async fn run(
    shared: Arc<Shared>,
    link: Arc<MemoryLink>,
    opposite: Arc<MemoryLink>,
    hello: Bytes,
    before: Option<Arc<MemoryLink>>,
) {
    if let Some(before) = before {
        before.over.cancelled().await;
    }
    shared.refusals.clear(&link.node, link.addr);
    let _ = shared.inbox.events.send(Event::Up { node: link.node.clone(), hello }).await;
    let receive = async {
        let lanes = (Lane::Protocol, Lane::Gossip);
        tokio::join!(receive(&shared, &link, &opposite, lanes.0), receive(&shared, &link, &opposite, lanes.1));
        opposite.flushed.cancel();
    };
    let live = async { tokio::join!(receive, notice_silence(&shared, &link), keep_alive(&shared, &link, &opposite)) };
    link.wire.cut.run_until_cancelled(live).await;
    link.wire.cut.cancelled().await;
    shared.registry.remove(&link);
    link.finish();
    let reason = link.wire.reason.get().cloned().unwrap_or_default();
    let _ = shared.inbox.events.send(Event::Down { node: link.node.clone(), reason }).await;
    link.over.cancel();
    shared.registry.over(&link);
}

/// Takes what the other end sends in one lane, until it has finished and all of it has arrived.
async fn receive(shared: &Shared, link: &MemoryLink, opposite: &MemoryLink, lane: Lane) {
    let weather = shared.weather();
    let (mut transit, mut batch, mut more) = (Transit::default(), Vec::new(), true);
    while more || !transit.is_empty() {
        tokio::select! {
            biased;
            message = transit.next() => deliver(shared, link, lane, message).await,
            taken = opposite.queue(lane).take(&mut batch), if more && !transit.is_full() => {
                more = taken;
                for message in batch.drain(..) {
                    let fate = weather.message(&link.node, &shared.node, lane, message.len());
                    if let Some(message) = transit.send(message, fate) {
                        deliver(shared, link, lane, message).await;
                    }
                }
            }
        }
    }
}

async fn deliver(shared: &Shared, link: &MemoryLink, lane: Lane, message: Bytes) {
    match lane {
        Lane::Protocol => {
            let _ = shared.inbox.events.send(Event::Message { node: link.node.clone(), message }).await;
        }
        Lane::Gossip => {
            let _ = shared.inbox.gossip.try_send((link.addr, message));
        }
    }
}

/// Shows the other end that this one is there.
async fn keep_alive(shared: &Shared, link: &MemoryLink, opposite: &MemoryLink) {
    let weather = shared.weather();
    while weather.idle_limit().is_some() {
        if weather.packet(&shared.node, &link.node).is_some() {
            opposite.heard.notify_one();
        }
        sleep(KEEP_ALIVE).await;
    }
}

/// Gives the link up once nothing was heard for too long, whatever the other end believes.
async fn notice_silence(shared: &Shared, link: &MemoryLink) {
    let Some(limit) = shared.weather().idle_limit() else { return };
    while timeout(limit, link.heard.notified()).await.is_ok() {}
    link.wire.cut("it is silent");
}

/// Carries one call for the node that made it: the request there, the answers back, until either end lets go or the wire
/// is cut.
pub(super) async fn carry(
    caller: Arc<Shared>,
    link: Arc<MemoryLink>,
    request: Bytes,
    to_caller: mpsc::Sender<Result<Bytes, CallError>>,
    _permit: OwnedSemaphorePermit,
) {
    let complete = tokio::select! {
        complete = exchange(&caller, &link, request, &to_caller) => complete,
        () = to_caller.closed() => true,
        () = link.wire.cut.cancelled() => false,
    };
    if !complete {
        let _ = to_caller.send(Err(link.broken())).await;
    }
}

/// False where the call broke.
async fn exchange(
    caller: &Shared,
    link: &Arc<MemoryLink>,
    request: Bytes,
    to_caller: &mpsc::Sender<Result<Bytes, CallError>>,
) -> bool {
    let (answers, from_handler) = mpsc::channel(CALL_ANSWERS_MAX);
    let Some(peer) = link.peer.upgrade() else {
        link.wire.cut.cancelled().await;
        return false;
    };
    let call = Call { node: caller.node.clone(), request, answers };
    let weather = Arc::clone(&caller.network.weather);
    let handed = peer.handle.spawn(hand_over(weather, Arc::clone(link), call, peer.inbox.calls.clone()));
    drop(peer);
    let handed = handed.await.unwrap_or(false);
    if handed {
        bring_back(caller, link, from_handler, to_caller).await;
    }
    if link.peer_is_dead() {
        // Its handlers died with it, in the midst of their answers, and nobody said so yet.
        link.wire.cut.cancelled().await;
        return false;
    }
    handed
}

/// Brings a call to its handler, on the handler's runtime.
async fn hand_over(weather: Arc<dyn Weather>, link: Arc<MemoryLink>, call: Call, calls: mpsc::Sender<Call>) -> bool {
    let caller = call.node.clone();
    let work = async {
        pass(&*weather, &caller, &link.node).await;
        calls.send(call).await.is_ok()
    };
    link.wire.cut.run_until_cancelled(work).await.unwrap_or(false)
}

/// Brings the answers back in order, a few of them on their way at a time.
async fn bring_back(
    caller: &Shared,
    link: &MemoryLink,
    mut from_handler: mpsc::Receiver<Bytes>,
    to_caller: &mpsc::Sender<Result<Bytes, CallError>>,
) {
    let (departing, mut arriving) = mpsc::channel::<(Option<Instant>, Bytes)>(CALL_ANSWERS_MAX);
    let depart = async move {
        while let Some(answer) = from_handler.recv().await {
            let answer = caller.weather().said(&link.node, Words::Answer, answer);
            let delay = passage(caller.weather(), &link.node, &caller.node).await;
            let due = (!delay.is_zero()).then(|| sleep(delay).deadline());
            if departing.send((due, answer)).await.is_err() {
                return;
            }
        }
    };
    let arrive = async move {
        while let Some((due, answer)) = arriving.recv().await {
            if let Some(due) = due {
                sleep_until(due).await;
            }
            if to_caller.send(Ok(answer)).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(depart, arrive);
}
