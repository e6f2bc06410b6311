//! One suite that every transport passes, and the nodes it is run with.

mod conformance;
mod weather;

use std::collections::HashMap;
use std::future::Future;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::timeout;

use super::memory::Network;
use super::quic::{Config, Error, QuicTransport};
use super::{Event, Greeter, Inbox, Refusal, Transport, tls};
use crate::types::NodeId;

/// Longer than any of it takes on a busy machine; only a failing test waits so long.
pub(in crate::transport) const PATIENCE: Duration = Duration::from_secs(20);

pub(in crate::transport) fn node(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

pub(in crate::transport) async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// Asks again and again: for what no event tells of.
pub(in crate::transport) async fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    soon(what, async {
        loop {
            if let Some(found) = ask() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

/// Says its word, and refuses the word it is told to refuse.
pub(in crate::transport) struct Words {
    pub(in crate::transport) says: &'static str,
    pub(in crate::transport) refuses: &'static str,
}

impl Greeter for Words {
    fn hello(&self, peer: &NodeId) -> Bytes {
        format!("{} to {peer}", self.says).into()
    }

    fn check(&self, _peer: &NodeId, hello: &[u8]) -> Result<(), String> {
        let heard = String::from_utf8_lossy(hello);
        if heard.starts_with(self.refuses) { Err(format!("{heard}? no")) } else { Ok(()) }
    }
}

pub(in crate::transport) fn polite() -> Arc<dyn Greeter> {
    Arc::new(Words { says: "hello", refuses: "go away" })
}

/// One node.
pub(in crate::transport) struct Peer {
    pub(in crate::transport) node: NodeId,
    pub(in crate::transport) addr: SocketAddr,
    pub(in crate::transport) transport: Arc<dyn Transport>,
    pub(in crate::transport) inbox: Inbox,
}

impl Peer {
    pub(in crate::transport) fn new(name: &str, transport: Arc<dyn Transport>, inbox: Inbox) -> Self {
        Self { node: node(name), addr: transport.local_addr(), transport, inbox }
    }

    pub(in crate::transport) async fn event(&mut self) -> Event {
        soon("an event", self.inbox.events.recv()).await.expect("the inbox is open")
    }

    pub(in crate::transport) async fn up(&mut self, peer: &str) -> Bytes {
        match self.event().await {
            Event::Up { node, hello } if node.as_str() == peer => hello,
            other => panic!("{}: wanted {peer} up, got {other:?}", self.node),
        }
    }

    pub(in crate::transport) async fn down(&mut self, peer: &str) -> String {
        match self.event().await {
            Event::Down { node, reason } if node.as_str() == peer => reason,
            other => panic!("{}: wanted {peer} down, got {other:?}", self.node),
        }
    }

    pub(in crate::transport) async fn message(&mut self, peer: &str) -> Bytes {
        match self.event().await {
            Event::Message { node, message } if node.as_str() == peer => message,
            other => panic!("{}: wanted a message from {peer}, got {other:?}", self.node),
        }
    }

    pub(in crate::transport) fn send(&self, to: &Self, message: impl Into<Bytes>) {
        self.transport.send(&to.node, message.into()).unwrap();
    }

    pub(in crate::transport) async fn refusal(&self, words: &str) -> Refusal {
        let find = || self.transport.refusals().into_iter().find(|refusal| refusal.reason.contains(words));
        until(words, find).await
    }
}

/// Makes nodes of one cluster; a node started under a former name listens where that one did.
pub(in crate::transport) trait Harness: Default {
    async fn start(&self, name: &str, greeter: Arc<dyn Greeter>) -> Peer;

    /// A second node of that name, elsewhere.
    async fn twin(&self, name: &str) -> Peer {
        self.start(name, polite()).await
    }

    /// Two nodes with a connection between them.
    async fn connected(&self, a: &str, b: &str) -> (Peer, Peer) {
        let (mut a, mut b) = (self.start(a, polite()).await, self.start(b, polite()).await);
        a.transport.dial(b.addr);
        a.up(b.node.as_str()).await;
        b.up(a.node.as_str()).await;
        (a, b)
    }
}

struct OverMemory(Arc<Network>);

impl Default for OverMemory {
    fn default() -> Self {
        Self(Network::new())
    }
}

impl Harness for OverMemory {
    async fn start(&self, name: &str, greeter: Arc<dyn Greeter>) -> Peer {
        let (transport, inbox) = self.0.join(node(name), greeter);
        Peer::new(name, transport, inbox)
    }
}

pub(in crate::transport) struct OverQuic {
    pub(in crate::transport) dir: tempfile::TempDir,
    ports: Mutex<HashMap<String, u16>>,
}

impl Default for OverQuic {
    fn default() -> Self {
        let made = Self { dir: tempfile::tempdir().unwrap(), ports: Mutex::default() };
        made.file("key", "the secret of these tests\n");
        made
    }
}

impl OverQuic {
    pub(in crate::transport) fn file(&self, name: &str, held: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir.path().join(name);
        let mut options = std::fs::File::options();
        let file = options.create(true).truncate(true).write(true).mode(0o600).open(&path);
        file.unwrap().write_all(held.as_ref()).unwrap();
        path
    }

    pub(in crate::transport) fn config(&self, name: &str) -> Config {
        let port = self.ports.lock().get(name).copied().unwrap_or(0);
        let listen = SocketAddr::from(([127, 0, 0, 1], port));
        let reset_key = [u8::try_from(name.len()).unwrap(); 32];
        Config::new(node(name), listen, tls::Identity::KeyFile(self.dir.path().join("key")), reset_key)
    }

    /// A former holder's socket closes a moment after its last connection.
    pub(in crate::transport) async fn start_with(
        &self,
        config: Config,
        greeter: Arc<dyn Greeter>,
    ) -> (Peer, Arc<QuicTransport>) {
        let name = config.node.as_str().to_owned();
        let (transport, inbox) =
            until("the port", || match QuicTransport::start(config.clone(), Arc::clone(&greeter)) {
                Ok(started) => Some(started),
                Err(Error::Listen { .. }) => None,
                Err(error) => panic!("{error}"),
            })
            .await;
        self.ports.lock().insert(name.clone(), transport.local_addr().port());
        (Peer::new(&name, Arc::clone(&transport) as Arc<dyn Transport>, inbox), transport)
    }
}

impl Harness for OverQuic {
    async fn start(&self, name: &str, greeter: Arc<dyn Greeter>) -> Peer {
        self.start_with(self.config(name), greeter).await.0
    }

    async fn twin(&self, name: &str) -> Peer {
        self.ports.lock().remove(name);
        self.start(name, polite()).await
    }
}
