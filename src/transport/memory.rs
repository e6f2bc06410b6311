//! The transport within one process, for tests: no sockets, no TLS, but the same hellos, bounds and events, and wires
//! that can be cut.
//!
//! Each end of a link pulls from the other end's queues, so that what a peer sent waits where it would with QUIC: with
//! its sender.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::dialer::{Connector, Dialer, Outcome};
use super::queue::Queue;
use super::refusal::{Refusals, Stage};
use super::registry::{Admission, Registry, Standing};
use super::{
    CALL_ANSWERS_MAX, CALLS_PER_PEER_MAX, Call, CallError, Event, Greeter, HELLO_BYTES_MAX, Inbox, InboxSender, Lane,
    Link, REQUEST_BYTES_MAX, Refusal, SendError, Transport,
};
use crate::types::NodeId;

/// Nobody needs to be spared here, and a test should not wait.
const BACKOFF_MAX: Duration = Duration::from_millis(200);
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// What connects the nodes of one test.
#[derive(Default)]
pub struct Network {
    world: Mutex<World>,
}

#[derive(Default)]
struct World {
    nodes: HashMap<SocketAddr, Weak<Shared>>,
    addrs: HashMap<NodeId, SocketAddr>,
    cuts: HashSet<(NodeId, NodeId)>,
    joined: u16,
}

/// A node's door to the others on its [`Network`]. Dropping it closes it.
pub struct MemoryTransport {
    shared: Arc<Shared>,
}

struct Shared {
    network: Arc<Network>,
    node: NodeId,
    run: u64,
    addr: SocketAddr,
    greeter: Arc<dyn Greeter>,
    registry: Registry<MemoryLink>,
    dialer: Dialer,
    refusals: Refusals,
    inbox: InboxSender,
}

/// One end of a link, named after the other.
struct MemoryLink {
    node: NodeId,
    addr: SocketAddr,
    run: u64,
    token: u64,
    protocol: Queue,
    gossip: Queue,
    calls: Arc<Semaphore>,
    /// Set once the peer has taken all that was queued before the queues were closed.
    flushed: CancellationToken,
    over: CancellationToken,
    wire: Arc<Wire>,
    peer: Weak<Shared>,
}

/// What both ends of a link share: it is cut for both at once.
#[derive(Default)]
struct Wire {
    cut: CancellationToken,
    reason: OnceLock<String>,
}

impl Wire {
    fn cut(&self, reason: &str) {
        let _ = self.reason.set(reason.to_owned());
        self.cut.cancel();
    }
}

impl Network {
    /// A network without nodes.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Adds a node. A name keeps its address once its former holder is gone.
    pub fn join(self: &Arc<Self>, node: NodeId, greeter: Arc<dyn Greeter>) -> (Arc<MemoryTransport>, Inbox) {
        let (to_inbox, inbox) = Inbox::channel();
        let mut world = self.world.lock();
        let addr = world.address_for(&node);
        let shared = Arc::new(Shared {
            network: Arc::clone(self),
            node,
            run: rand::random(),
            addr,
            greeter,
            registry: Registry::new(),
            dialer: Dialer::new(BACKOFF_MAX),
            refusals: Refusals::new(),
            inbox: to_inbox,
        });
        world.nodes.insert(addr, Arc::downgrade(&shared));
        (Arc::new(MemoryTransport { shared }), inbox)
    }

    /// Cuts what connects two nodes, in both directions, until [`Self::heal`]; their connection ends at once.
    pub fn cut(&self, a: &NodeId, b: &NodeId) {
        let mut world = self.world.lock();
        world.cuts.insert(pair(a, b));
        let nodes: Vec<_> = world.nodes.values().filter_map(Weak::upgrade).collect();
        drop(world);
        for node in nodes.iter().filter(|node| node.node == *a) {
            if let Some(link) = node.registry.get(b) {
                link.wire.cut("it is silent");
            }
        }
    }

    /// Mends what [`Self::cut`] cut.
    pub fn heal(&self, a: &NodeId, b: &NodeId) {
        self.world.lock().cuts.remove(&pair(a, b));
    }

    fn reach(&self, from: &NodeId, addr: SocketAddr) -> Option<Arc<Shared>> {
        let world = self.world.lock();
        let peer = world.nodes.get(&addr)?.upgrade()?;
        (!world.cuts.contains(&pair(from, &peer.node))).then_some(peer)
    }

    /// Whoever has taken the address since may stay.
    fn leave(&self, node: &Arc<Shared>) {
        let mut world = self.world.lock();
        if world.nodes.get(&node.addr).is_some_and(|held| std::ptr::eq(held.as_ptr(), Arc::as_ptr(node))) {
            world.nodes.remove(&node.addr);
        }
    }
}

impl World {
    fn address_for(&mut self, node: &NodeId) -> SocketAddr {
        if let Some(addr) = self.addrs.get(node)
            && !self.nodes.contains_key(addr)
        {
            return *addr;
        }
        self.joined += 1;
        let [high, low] = self.joined.to_be_bytes();
        let addr = SocketAddr::from(([10, 0, high, low], 7117));
        self.addrs.insert(node.clone(), addr);
        addr
    }
}

fn pair(a: &NodeId, b: &NodeId) -> (NodeId, NodeId) {
    (a.min(b).clone(), a.max(b).clone())
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
    fn to(peer: &Arc<Shared>, token: u64, wire: &Arc<Wire>) -> Arc<Self> {
        let dropped = metrics::counter!(crate::telemetry::MESSAGES_DROPPED);
        Arc::new(Self {
            node: peer.node.clone(),
            addr: peer.addr,
            run: peer.run,
            token,
            protocol: Queue::new(dropped.clone()),
            gossip: Queue::new(dropped),
            calls: Arc::new(Semaphore::new(CALLS_PER_PEER_MAX)),
            flushed: CancellationToken::new(),
            over: CancellationToken::new(),
            wire: Arc::clone(wire),
            peer: Arc::downgrade(peer),
        })
    }

    fn queue(&self, lane: Lane) -> &Queue {
        match lane {
            Lane::Protocol => &self.protocol,
            Lane::Gossip => &self.gossip,
        }
    }

    fn finish(&self) {
        self.protocol.close();
        self.gossip.close();
    }

    fn broken(&self) -> CallError {
        let reason = self.wire.reason.get().cloned().unwrap_or_else(|| "it gave the call up".to_owned());
        CallError::Broken(self.node.clone(), reason)
    }
}

impl Connector for Shared {
    type Link = MemoryLink;

    async fn attempt(self: Arc<Self>, addr: SocketAddr) -> Outcome {
        let Some(peer) = self.network.reach(&self.node, addr) else { return Outcome::Failed };
        if peer.run == self.run {
            return Outcome::Myself;
        }
        self.registry.found(addr, &peer.node);
        let (to_peer, to_us) = (self.greeter.hello(&peer.node), peer.greeter.hello(&self.node));
        let ours = self.judge(&peer, &to_us);
        let theirs = peer.judge(&self, &to_peer);
        if !(ours && theirs) {
            return Outcome::Refused;
        }
        if peer.node < self.node { meet(&peer, to_peer, &self, to_us) } else { meet(&self, to_us, &peer, to_peer) }
    }

    fn registry(&self) -> &Registry<MemoryLink> {
        &self.registry
    }
}

impl Shared {
    fn judge(&self, peer: &Self, hello: &[u8]) -> bool {
        let verdict = if peer.node == self.node {
            Err(format!("two nodes are called {}", self.node))
        } else if hello.len() > HELLO_BYTES_MAX {
            Err(format!("a hello of {} bytes", hello.len()))
        } else {
            self.greeter.check(&peer.node, hello)
        };
        if let Err(reason) = &verdict {
            self.refusals.note(Stage::Hello, peer.addr, Some(&peer.node), reason);
            peer.refusals.note(Stage::TheirHello, self.addr, Some(&self.node), reason);
        }
        verdict.is_ok()
    }
}

/// Both ends agree; each is given what the other said.
fn meet(smaller: &Arc<Shared>, to_smaller: Bytes, larger: &Arc<Shared>, to_larger: Bytes) -> Outcome {
    let wire = Arc::new(Wire::default());
    let token = rand::random_range(1..=u64::MAX);
    let (down, up) = (MemoryLink::to(larger, token, &wire), MemoryLink::to(smaller, token, &wire));
    // One meeting at a time, or two could cross between the two registries.
    let world = smaller.network.world.lock();
    if world.cuts.contains(&pair(&smaller.node, &larger.node)) {
        return Outcome::Failed;
    }
    let known = larger.registry.knowledge(&smaller.node);
    let before = match smaller.registry.admit(&down, known) {
        Admission::Kept(before) => before,
        Admission::Duplicate => return Outcome::Connected,
        Admission::TooMany => return Outcome::Refused,
    };
    let Admission::Kept(before_larger) = larger.registry.obey(&up) else {
        wire.cut("no room for another peer");
        smaller.registry.remove(&down);
        return Outcome::Refused;
    };
    drop(world);
    tokio::spawn(run(Arc::clone(smaller), Arc::clone(&down), Arc::clone(&up), to_smaller, before));
    tokio::spawn(run(Arc::clone(larger), up, down, to_larger, before_larger));
    Outcome::Connected
}

/// Runs one end, `link`, which takes what the `opposite` end has queued.
async fn run(
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
        tokio::join!(receive_protocol(&shared, &link, &opposite), receive_gossip(&shared, &link, &opposite));
        opposite.flushed.cancel();
    };
    link.wire.cut.run_until_cancelled(receive).await;
    link.wire.cut.cancelled().await;
    shared.registry.remove(&link);
    link.finish();
    let reason = link.wire.reason.get().cloned().unwrap_or_default();
    let _ = shared.inbox.events.send(Event::Down { node: link.node.clone(), reason }).await;
    link.over.cancel();
    shared.registry.over(&link);
}

async fn receive_protocol(shared: &Shared, link: &MemoryLink, opposite: &MemoryLink) {
    let mut batch = Vec::new();
    while opposite.protocol.take(&mut batch).await {
        for message in batch.drain(..) {
            let _ = shared.inbox.events.send(Event::Message { node: link.node.clone(), message }).await;
        }
    }
}

async fn receive_gossip(shared: &Shared, link: &MemoryLink, opposite: &MemoryLink) {
    let mut batch = Vec::new();
    while opposite.gossip.take(&mut batch).await {
        for message in batch.drain(..) {
            let _ = shared.inbox.gossip.try_send((link.addr, message));
        }
    }
}

impl MemoryTransport {
    fn shut(&self) {
        self.shared.dialer.close();
        self.shared.network.leave(&self.shared);
        for link in self.shared.registry.all() {
            link.wire.cut("leaving");
        }
    }
}

#[async_trait]
impl Transport for MemoryTransport {
    fn local_addr(&self) -> SocketAddr {
        self.shared.addr
    }

    fn dial(&self, addr: SocketAddr) {
        if addr != self.shared.addr {
            self.shared.dialer.dial(Arc::clone(&self.shared), addr);
        }
    }

    fn forget(&self, addr: SocketAddr) {
        self.shared.dialer.forget(addr);
        self.shared.registry.forget(addr);
    }

    fn send(&self, to: &NodeId, message: Bytes) -> Result<(), SendError> {
        self.shared.registry.get(to).ok_or(SendError::NotConnected)?.queue(Lane::Protocol).push(message)
    }

    fn gossip(&self, to: SocketAddr, message: Bytes) -> Result<(), SendError> {
        self.shared.registry.at(to).ok_or(SendError::NotConnected)?.queue(Lane::Gossip).push(message)
    }

    async fn call(&self, to: &NodeId, request: Bytes) -> Result<mpsc::Receiver<Result<Bytes, CallError>>, CallError> {
        let not_connected = || CallError::NotConnected(to.clone());
        if request.len() > REQUEST_BYTES_MAX {
            return Err(CallError::TooLarge { bytes: request.len() });
        }
        let link = self.shared.registry.get(to).ok_or_else(not_connected)?;
        let permit = tokio::select! {
            permit = Arc::clone(&link.calls).acquire_owned() => permit.map_err(|_| link.broken())?,
            () = link.wire.cut.cancelled() => return Err(link.broken()),
        };
        let peer = link.peer.upgrade().ok_or_else(not_connected)?;
        let (to_caller, answers) = mpsc::channel(CALL_ANSWERS_MAX);
        tokio::spawn(carry(link, peer.inbox.calls.clone(), self.shared.node.clone(), request, to_caller, permit));
        Ok(answers)
    }

    fn links(&self) -> Vec<Link> {
        let links = self.shared.registry.all();
        let describe = |link: &Arc<MemoryLink>| Link {
            node: link.node.clone(),
            addr: link.addr,
            round_trip: Duration::from_micros(1),
        };
        links.iter().map(describe).collect()
    }

    fn refusals(&self) -> Vec<Refusal> {
        self.shared.refusals.all()
    }

    async fn close(&self) {
        self.shared.dialer.close();
        let links = self.shared.registry.all();
        links.iter().for_each(|link| link.finish());
        let flush = async {
            for link in &links {
                link.flushed.cancelled().await;
            }
        };
        let _ = timeout(FLUSH_TIMEOUT, flush).await;
        self.shut();
    }
}

impl Drop for MemoryTransport {
    fn drop(&mut self) {
        self.shut();
    }
}

/// Carries one call: the request there, the answers back, until either end lets go or the wire is cut.
async fn carry(
    link: Arc<MemoryLink>,
    calls: mpsc::Sender<Call>,
    node: NodeId,
    request: Bytes,
    to_caller: mpsc::Sender<Result<Bytes, CallError>>,
    _permit: OwnedSemaphorePermit,
) {
    let (answers, mut from_handler) = mpsc::channel(CALL_ANSWERS_MAX);
    let work = async {
        if calls.send(Call { node, request, answers }).await.is_err() {
            return false;
        }
        while let Some(answer) = from_handler.recv().await {
            if to_caller.send(Ok(answer)).await.is_err() {
                break;
            }
        }
        true
    };
    let complete = tokio::select! {
        complete = work => complete,
        () = to_caller.closed() => true,
        () = link.wire.cut.cancelled() => false,
    };
    if !complete {
        let _ = to_caller.send(Err(link.broken())).await;
    }
}
