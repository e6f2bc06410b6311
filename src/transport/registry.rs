//! Which connection to which peer stands, and the decision which of two to keep.
//!
//! Both ends of a pair may dial at the same moment, one may have restarted, or have given up a connection that the
//! other still believes in. So that both keep the same one, the node with the smaller name decides, knowing what the
//! other knows: each connection that it admits gets a random token, the other remembers the last one it learnt.
//!
//! ```text
//!   larger                                            smaller
//!     │ Standing { last token learnt, does it stand }    │
//!     ├────────────────────────────────────────────────► │ nothing stands, or the other's process is a new one,
//!     │                                                  │ or it learnt the token of what stands and lost it: keep
//!     │ ◄────────────────────────────────────────────────┤ else: a duplicate, closed
//!     │ installs it, whatever it held     keep(token)    │
//! ```

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::watch;

use super::PEERS_MAX;
use crate::types::NodeId;

/// One connection, as far as the registry is concerned.
pub(super) trait Standing: Send + Sync + 'static {
    /// The peer.
    fn node(&self) -> &NodeId;
    /// Where it is.
    fn addr(&self) -> SocketAddr;
    /// The peer's process: a random number it drew when it started.
    fn run(&self) -> u64;
    /// The connection's number, drawn by the smaller of the two nodes.
    fn token(&self) -> u64;
    /// True once nothing can be sent any more.
    fn is_closed(&self) -> bool;
    /// Ends it, with words for a log.
    fn replace(&self);
}

/// What the larger node knows when it asks the smaller to keep a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Knowledge {
    /// The last token it learnt from this peer; 0 is none.
    pub(super) learnt: u64,
    /// Whether that connection stands as far as it knows.
    pub(super) stands: bool,
}

/// What became of a connection that wanted to be kept.
pub(super) enum Admission<L> {
    /// It is the one; the connection that it replaces, if any, goes down first.
    Kept(Option<Arc<L>>),
    /// Another one stands.
    Duplicate,
    /// More peers than [`PEERS_MAX`].
    TooMany,
}

pub(super) struct Registry<L> {
    inner: RwLock<Inner<L>>,
    changed: watch::Sender<()>,
}

struct Inner<L> {
    peers: HashMap<NodeId, Peer<L>>,
    /// Who answered at the addresses that this node dials.
    dialled: HashMap<SocketAddr, NodeId>,
}

struct Peer<L> {
    link: Option<Arc<L>>,
    /// The last one, while its end has yet to be told.
    ending: Option<Arc<L>>,
    learnt: u64,
}

impl<L: Standing> Registry<L> {
    pub(super) fn new() -> Self {
        let inner = Inner { peers: HashMap::new(), dialled: HashMap::new() };
        Self { inner: RwLock::new(inner), changed: watch::Sender::new(()) }
    }

    /// The connection to `node`, which may have ended a moment ago: asking it would cost every sender a lock.
    pub(super) fn get(&self, node: &NodeId) -> Option<Arc<L>> {
        self.inner.read().peers.get(node)?.link.clone()
    }

    /// The connection to whoever lives at `addr`: seen there, or else found there when it was dialled.
    pub(super) fn at(&self, addr: SocketAddr) -> Option<Arc<L>> {
        let inner = self.inner.read();
        let seen = inner.peers.values().filter_map(|peer| peer.link.as_ref()).find(|link| link.addr() == addr);
        seen.or_else(|| inner.peers.get(inner.dialled.get(&addr)?)?.link.as_ref()).cloned()
    }

    /// All connections that stand.
    pub(super) fn all(&self) -> Vec<Arc<L>> {
        let inner = self.inner.read();
        inner.peers.values().filter_map(|peer| peer.link.clone()).filter(|link| !link.is_closed()).collect()
    }

    /// Notes who answered at an address that this node dials.
    pub(super) fn found(&self, addr: SocketAddr, node: &NodeId) {
        self.inner.write().dialled.insert(addr, node.clone());
    }

    /// Forgets who answered there.
    pub(super) fn forget(&self, addr: SocketAddr) {
        self.inner.write().dialled.remove(&addr);
    }

    /// Tells of every connection that comes or goes.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// What this node, being the larger, knows of its connection to `node`.
    pub(super) fn knowledge(&self, node: &NodeId) -> Knowledge {
        let inner = self.inner.read();
        let Some(peer) = inner.peers.get(node) else { return Knowledge { learnt: 0, stands: false } };
        let stands = peer.link.as_ref().is_some_and(|link| !link.is_closed());
        Knowledge { learnt: peer.learnt, stands }
    }

    /// Decides, being the smaller node, whether to keep `link`, whose other end knows `theirs`.
    pub(super) fn admit(&self, link: &Arc<L>, theirs: Knowledge) -> Admission<L> {
        self.put(link, |old| {
            let lost = theirs.learnt == old.token() && !theirs.stands;
            old.is_closed() || old.run() != link.run() || lost
        })
    }

    /// Keeps `link`, as the other node has decided.
    pub(super) fn obey(&self, link: &Arc<L>) -> Admission<L> {
        self.put(link, |_| true)
    }

    fn put(&self, link: &Arc<L>, gives_way: impl FnOnce(&L) -> bool) -> Admission<L> {
        let mut inner = self.inner.write();
        if inner.peers.len() >= PEERS_MAX && !inner.peers.contains_key(link.node()) {
            inner.peers.retain(|_, peer| peer.link.is_some() || peer.ending.is_some());
            if inner.peers.len() >= PEERS_MAX {
                return Admission::TooMany;
            }
        }
        let peer = inner.peers.entry(link.node().clone()).or_insert(Peer { link: None, ending: None, learnt: 0 });
        if let Some(old) = &peer.link
            && !gives_way(old)
        {
            return Admission::Duplicate;
        }
        peer.learnt = link.token();
        let ending = peer.ending.take();
        let old = peer.link.replace(Arc::clone(link));
        drop(inner);
        if let Some(old) = &old {
            old.replace();
        }
        self.changed.send_replace(());
        // One that stood until now has waited, or still waits, for the end of the one before it.
        Admission::Kept(old.or(ending))
    }

    /// Takes `link` out, if it is still the one; its successor waits for it until [`Self::over`].
    pub(super) fn remove(&self, link: &Arc<L>) {
        let mut inner = self.inner.write();
        if let Some(peer) = inner.peers.get_mut(link.node())
            && peer.link.as_ref().is_some_and(|held| Arc::ptr_eq(held, link))
        {
            peer.ending = peer.link.take();
        }
        drop(inner);
        self.changed.send_replace(());
    }

    /// The end of `link` has been told: nothing refers to it any more.
    pub(super) fn over(&self, link: &Arc<L>) {
        let mut inner = self.inner.write();
        if let Some(peer) = inner.peers.get_mut(link.node())
            && peer.ending.as_ref().is_some_and(|held| Arc::ptr_eq(held, link))
        {
            peer.ending = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    struct Fake {
        node: NodeId,
        run: u64,
        token: u64,
        closed: AtomicBool,
    }

    impl Standing for Fake {
        fn node(&self) -> &NodeId {
            &self.node
        }
        fn addr(&self) -> SocketAddr {
            SocketAddr::from(([127, 0, 0, 1], 7117))
        }
        fn run(&self) -> u64 {
            self.run
        }
        fn token(&self) -> u64 {
            self.token
        }
        fn is_closed(&self) -> bool {
            self.closed.load(Ordering::Relaxed)
        }
        fn replace(&self) {
            self.closed.store(true, Ordering::Relaxed);
        }
    }

    fn link(run: u64, token: u64) -> Arc<Fake> {
        Arc::new(Fake { node: NodeId::parse("b").unwrap(), run, token, closed: AtomicBool::new(false) })
    }

    const UNKNOWING: Knowledge = Knowledge { learnt: 0, stands: false };

    #[test]
    fn the_first_of_two_simultaneous_connections_is_kept() {
        let registry = Registry::new();
        let (first, second) = (link(1, 10), link(1, 11));
        assert!(matches!(registry.admit(&first, UNKNOWING), Admission::Kept(None)));
        assert!(
            matches!(registry.admit(&second, UNKNOWING), Admission::Duplicate),
            "the peer has not yet learnt of 10"
        );
        let knows = Knowledge { learnt: 10, stands: true };
        assert!(matches!(registry.admit(&second, knows), Admission::Duplicate));
        assert!(!first.is_closed());
    }

    #[test]
    fn a_connection_that_the_peer_has_lost_gives_way() {
        let registry = Registry::new();
        let (first, second, third) = (link(1, 10), link(1, 11), link(2, 12));
        assert!(matches!(registry.admit(&first, UNKNOWING), Admission::Kept(None)));
        let lost = Knowledge { learnt: 10, stands: false };
        assert!(matches!(registry.admit(&second, lost), Admission::Kept(Some(old)) if old.token == 10));
        assert!(first.is_closed());
        assert!(matches!(registry.admit(&third, UNKNOWING), Admission::Kept(Some(_))), "its process is a new one");
    }

    #[test]
    fn a_successor_waits_for_one_whose_end_has_yet_to_be_told() {
        let registry = Registry::new();
        let (first, second, third) = (link(1, 10), link(2, 11), link(3, 12));
        registry.obey(&first);
        registry.remove(&first);
        assert!(registry.get(first.node()).is_none());
        assert!(matches!(registry.admit(&second, UNKNOWING), Admission::Kept(Some(before)) if before.token == 10));
        registry.over(&first);
        registry.remove(&second);
        registry.over(&second);
        assert!(matches!(registry.obey(&third), Admission::Kept(None)));
    }

    #[test]
    fn removing_a_replaced_connection_leaves_its_successor() {
        let registry = Registry::new();
        let (first, second) = (link(1, 10), link(1, 11));
        registry.obey(&first);
        registry.obey(&second);
        registry.remove(&first);
        assert_eq!(registry.get(first.node()).map(|link| link.token), Some(11));
        assert_eq!(registry.knowledge(first.node()), Knowledge { learnt: 11, stands: true });
        registry.remove(&second);
        assert_eq!(registry.knowledge(first.node()), Knowledge { learnt: 11, stands: false });
    }
}
