//! A node's socket in a temporary directory, and clients that see its bytes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use outrigger::api::{self, Server, Service, ServiceConfig};
use outrigger::clock::OsClock;
use outrigger::cluster::status::{Govern, Observe};
use outrigger::replication::local::LocalReplicator;
use outrigger::store::replicator::{Decision, Proposal, Replicator, Subscriber};
use outrigger::store::{Manager, StoreConfig};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

use crate::told::Told;

/// The largest value of these nodes, in bytes.
pub(crate) const VALUE_BYTES_MAX: usize = 64 * 1024;

/// A replicator that decides as it is told, once it is let.
pub(crate) struct Scripted {
    decision: Decision,
    /// One permit per decision.
    pub(crate) turns: Semaphore,
    /// What it was asked, in order.
    pub(crate) asked: Mutex<Vec<Proposal>>,
}

impl Scripted {
    pub(crate) fn new(decision: Decision, turns: usize) -> Arc<Self> {
        Arc::new(Self { decision, turns: Semaphore::new(turns), asked: Mutex::default() })
    }
}

#[async_trait]
impl Replicator for Scripted {
    async fn propose(&self, proposal: Proposal) -> Decision {
        self.asked.lock().push(proposal);
        self.turns.acquire().await.unwrap().forget();
        self.decision.clone()
    }
    fn subscribe(&self, _: Arc<dyn Subscriber>) {}
    fn is_durable(&self) -> bool {
        true
    }
    async fn close(&self) {}
}

fn local(manager: &Arc<Manager>) -> Arc<dyn ReplicatorObject> {
    LocalReplicator::new(manager, OsClock::shared())
}

/// One node's socket.
pub(crate) struct Node {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) manager: Arc<Manager>,
    pub(crate) service: Arc<Service>,
    pub(crate) told: Arc<Told>,
    pub(crate) server: Server,
}

impl Node {
    /// A node that agrees with itself.
    pub(crate) async fn start() -> Self {
        Self::start_with(local, |config| config).await
    }

    /// A node that decides by script.
    pub(crate) async fn scripted(replicator: Arc<Scripted>) -> Self {
        Self::start_with(|_| replicator, |config| config).await
    }

    /// A node that agrees with itself, and has this one change its cluster.
    pub(crate) async fn governed(govern: Arc<dyn Govern>) -> Self {
        Self::start_as(local, |config| config, api::INPUT_BYTES_MAX, Some(govern)).await
    }

    /// A node that agrees with itself, and whose connections may buffer so much input together, in bytes.
    pub(crate) async fn with_room(input_bytes_max: usize) -> Self {
        Self::start_as(local, |config| config, input_bytes_max, None).await
    }

    pub(crate) async fn start_with(
        replicator: impl FnOnce(&Arc<Manager>) -> Arc<dyn ReplicatorObject>,
        change: impl FnOnce(api::Config) -> api::Config,
    ) -> Self {
        Self::start_as(replicator, change, api::INPUT_BYTES_MAX, None).await
    }

    async fn start_as(
        replicator: impl FnOnce(&Arc<Manager>) -> Arc<dyn ReplicatorObject>,
        change: impl FnOnce(api::Config) -> api::Config,
        input_bytes_max: usize,
        govern: Option<Arc<dyn Govern>>,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = StoreConfig { value_bytes_max: VALUE_BYTES_MAX, ..StoreConfig::at(dir.path().join("data")) };
        let manager = Manager::with_config(store, OsClock::shared()).unwrap();
        let replicator = replicator(&manager);
        manager.with_replicator(replicator.into_replicator());
        let told = Arc::new(Told::default());
        let config = ServiceConfig {
            key_bytes_max: 1024,
            value_bytes_max: VALUE_BYTES_MAX,
            input_bytes_max,
            timeout_default: Duration::from_secs(2),
            timeout_max: Duration::from_secs(60),
        };
        let service = Service::new(config, Arc::clone(&manager), Arc::clone(&told) as Arc<dyn Observe>, govern);
        let socket = change(api::Config::at(dir.path().join("outrigger.sock")));
        let server = api::serve(socket, Arc::clone(&service)).await.unwrap();
        Self { dir, manager, service, told, server }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.server.path().to_owned()
    }

    pub(crate) async fn connect(&self) -> Client {
        Client(UnixStream::connect(self.path()).await.unwrap())
    }

    /// Sends one HTTP request on a connection of its own.
    pub(crate) async fn http(&self, head: &str, body: &[u8]) -> Answer {
        let mut client = self.connect().await;
        let length = if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
        let (line, headers) = head.split_once('\n').unwrap_or((head, ""));
        let headers: String = headers.lines().map(|header| format!("{}\r\n", header.trim())).collect();
        let head = format!("{line} HTTP/1.1\r\nhost: o\r\nconnection: close\r\n{headers}{length}\r\n");
        client.send(&[head.as_bytes(), body].concat()).await;
        Answer::parse(&client.rest().await)
    }

    /// The same, for a head made on the way.
    pub(crate) async fn http_owned(&self, head: String, body: &[u8]) -> Answer {
        self.http(&head, body).await
    }

    /// Sends RESP commands, each given as its words, and returns all replies.
    pub(crate) async fn resp(&self, commands: &[&[&str]]) -> String {
        let mut client = self.connect().await;
        for words in commands {
            client.send(&command(words)).await;
        }
        // A node that has refused the connection may be gone already.
        let _ = client.0.shutdown().await;
        String::from_utf8(client.rest().await).unwrap()
    }
}

/// Lets a test hand over any replicator.
pub(crate) trait ReplicatorObject {
    fn into_replicator(self: Arc<Self>) -> Arc<dyn Replicator>;
}

impl<T: Replicator> ReplicatorObject for T {
    fn into_replicator(self: Arc<Self>) -> Arc<dyn Replicator> {
        self
    }
}

/// A RESP command as bytes.
pub(crate) fn command(words: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
    }
    bytes
}

/// One connection.
pub(crate) struct Client(pub(crate) UnixStream);

impl Client {
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    /// Reads exactly as many bytes as `expected` has, and compares.
    pub(crate) async fn expect(&mut self, expected: &str) {
        let mut got = vec![0; expected.len()];
        self.0.read_exact(&mut got).await.unwrap_or_else(|why| panic!("{why} instead of {expected:?}"));
        assert_eq!(String::from_utf8_lossy(&got), expected);
    }

    /// Everything until the node closes the connection.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).await.unwrap();
        rest
    }
}

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("no head");
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut body = bytes[end + 4..].to_vec();
        if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            body = unchunked(&body);
        }
        Self { status, head, body }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let header = |line: &'_ str| line.split_once(": ").map(|(n, _)| n.eq_ignore_ascii_case(name));
        self.head.lines().find(|line| header(line) == Some(true))?.split_once(": ").map(|(_, value)| value)
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|why| panic!("{why}: {:?}", self.text()))
    }

    /// Checks that this is a problem, and says which: its type's last part, and `written`.
    pub(crate) fn problem(&self) -> (u16, String, String) {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], self.status);
        assert!(problem["title"].is_string() && problem["detail"].is_string());
        let kind = problem["type"].as_str().unwrap().strip_prefix("urn:outrigger:problem:").unwrap();
        (self.status, kind.to_owned(), problem["written"].as_str().unwrap().to_owned())
    }
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let line = bytes.windows(2).position(|two| two == b"\r\n").expect("no chunk");
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..line]).unwrap(), 16).unwrap();
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&bytes[line + 2..line + 2 + size]);
        bytes = &bytes[line + 2 + size + 2..];
    }
}
