//! The transport within one process, for tests and simulation: no sockets, no TLS, but the same hellos, bounds and
//! events, wires that can be cut, and [`Weather`].
//!
//! Each end of a link pulls from the other end's queues, so that what a peer sent waits where it would with QUIC: with
//! its sender. All that a node does here, its own runtime does: nodes of one network may live on runtimes of their own,
//! with clocks of their own, stand still with them, and die with them.

mod link;
mod weather;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::dialer::{Connector, Dialer, Outcome};
use super::refusal::{Refusals, Stage};
use super::registry::{Admission, Registry};
use super::{
    CALL_ANSWERS_MAX, CallError, Greeter, HELLO_BYTES_MAX, Inbox, InboxSender, Lane, Link, REQUEST_BYTES_MAX, Refusal,
    SendError, Transport,
};
use crate::types::NodeId;
use link::{MemoryLink, Wire, carry, run};
use weather::{Fair, pass};
pub use weather::{Fate, KEEP_ALIVE, Weather, Words};

/// Nobody needs to be spared here, and a test should not wait.
const BACKOFF_MAX: Duration = Duration::from_millis(200);
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);
/// A peer that has not answered a handshake by then does not answer.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);

/// What connects the nodes of one test.
pub struct Network {
    weather: Arc<dyn Weather>,
    world: Mutex<World>,
}

/// How the peers of a killed node come to know of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Its links break at once, as when its host answers for it with stateless resets.
    Reset,
    /// Its peers find it silent, after [`Weather::idle_limit`]; at once where there is none.
    Silent,
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
    /// Runs all that this node does here.
    handle: Handle,
    /// Killed: nothing that still happens to it concerns its peers.
    dead: AtomicBool,
    node: NodeId,
    run: u64,
    addr: SocketAddr,
    greeter: Arc<dyn Greeter>,
    registry: Registry<MemoryLink>,
    dialer: Dialer,
    refusals: Refusals,
    inbox: InboxSender,
}

impl Network {
    /// A network without nodes, where everything arrives at once and in order.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::under(Arc::new(Fair))
    }

    /// A network without nodes, under this weather.
    #[must_use]
    pub fn under(weather: Arc<dyn Weather>) -> Arc<Self> {
        Arc::new(Self { weather, world: Mutex::default() })
    }

    /// Adds a node, which lives on the runtime that this is called on. A name keeps its address once its former holder is
    /// gone.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn join(self: &Arc<Self>, node: NodeId, greeter: Arc<dyn Greeter>) -> (Arc<MemoryTransport>, Inbox) {
        let (to_inbox, inbox) = Inbox::channel();
        let mut world = self.world.lock();
        let addr = world.address_for(&node);
        let shared = Arc::new(Shared {
            network: Arc::clone(self),
            handle: Handle::current(),
            dead: AtomicBool::new(false),
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

    /// Ends what the nodes of that name do here, before their runtime is dropped: what they had yet to send is lost, their
    /// open calls break, and whoever takes the name next is another process.
    pub fn kill(&self, node: &NodeId, ending: Ending) {
        let mut world = self.world.lock();
        let held: Vec<_> = world.nodes.values().filter_map(Weak::upgrade).filter(|held| held.node == *node).collect();
        for killed in held {
            killed.dead.store(true, Ordering::Release);
            killed.dialer.close();
            world.nodes.remove(&killed.addr);
            for link in killed.registry.all() {
                link.abandon();
                if ending == Ending::Reset || self.weather.idle_limit().is_none() {
                    link.wire.cut("its process is gone");
                }
            }
        }
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

impl Connector for Shared {
    type Link = MemoryLink;

    async fn attempt(self: Arc<Self>, addr: SocketAddr) -> Outcome {
        timeout(HANDSHAKE_TIMEOUT, self.shake_hands(addr)).await.unwrap_or(Outcome::Failed)
    }

    fn registry(&self) -> &Registry<MemoryLink> {
        &self.registry
    }
}

impl Shared {
    fn weather(&self) -> &dyn Weather {
        &*self.network.weather
    }

    /// What this node says, as its peers hear it.
    fn said(&self, words: Words, bytes: Bytes) -> Bytes {
        self.weather().said(&self.node, words, bytes)
    }

    fn hello(&self, peer: &NodeId) -> Bytes {
        self.said(Words::Hello, self.greeter.hello(peer))
    }

    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    async fn shake_hands(self: Arc<Self>, addr: SocketAddr) -> Outcome {
        let Some(peer) = self.network.reach(&self.node, addr) else { return Outcome::Failed };
        if peer.run == self.run {
            return Outcome::Myself;
        }
        // One round trip for TLS, one for the hellos.
        for _ in 0..2 {
            pass(self.weather(), &self.node, &peer.node).await;
            pass(self.weather(), &peer.node, &self.node).await;
        }
        self.registry.found(addr, &peer.node);
        let to_peer = self.hello(&peer.node);
        // A peer that stands still does not answer.
        let answer = peer.handle.spawn(Arc::clone(&peer).answer(Arc::clone(&self), to_peer.clone()));
        let Ok((theirs, to_us)) = answer.await else { return Outcome::Failed };
        let ours = self.judge(&peer, &to_us);
        if !(ours && theirs) {
            return Outcome::Refused;
        }
        if peer.node < self.node { meet(&peer, to_peer, &self, to_us) } else { meet(&self, to_us, &peer, to_peer) }
    }

    /// Whether the hello of one who dials is welcome here, and what to say to it.
    async fn answer(self: Arc<Self>, dialer: Arc<Self>, hello: Bytes) -> (bool, Bytes) {
        (self.judge(&dialer, &hello), self.hello(&dialer.node))
    }

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
    if smaller.is_dead() || larger.is_dead() || world.cuts.contains(&pair(&smaller.node, &larger.node)) {
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
    smaller.handle.spawn(run(Arc::clone(smaller), Arc::clone(&down), Arc::clone(&up), to_smaller, before));
    larger.handle.spawn(run(Arc::clone(larger), up, down, to_larger, before_larger));
    Outcome::Connected
}

impl MemoryTransport {
    fn shut(&self) {
        self.shared.dialer.close();
        if self.shared.is_dead() {
            return;
        }
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
        let link = self.shared.registry.get(to).ok_or(SendError::NotConnected)?;
        link.queue(Lane::Protocol).push(self.shared.said(Words::Message, message))
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
        let request = self.shared.said(Words::Request, request);
        let permit = tokio::select! {
            permit = Arc::clone(&link.calls).acquire_owned() => permit.map_err(|_| link.broken())?,
            () = link.wire.cut.cancelled() => return Err(link.broken()),
        };
        let (to_caller, answers) = mpsc::channel(CALL_ANSWERS_MAX);
        self.shared.handle.spawn(carry(Arc::clone(&self.shared), link, request, to_caller, permit));
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
