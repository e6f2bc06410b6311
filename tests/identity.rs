//! A whole node, and a thief who has the certificate and the private key of another one.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use outrigger::config::{Config, Environment, Overrides};
use outrigger::node::Node;
use outrigger::transport::quic::{self, QuicTransport};
use outrigger::transport::{Greeter, Transport as _, tls};
use outrigger::types::NodeId;
use outrigger::{clock::OsClock, cluster::hello};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// How long anything may take before a test calls it lost.
const PATIENCE: Duration = Duration::from_secs(60);
/// Metrics are the process's, not the node's.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn file(path: &Path, text: &str) -> String {
    let file = std::fs::File::options().create(true).truncate(true).write(true).mode(0o600).open(path);
    file.unwrap().write_all(text.as_bytes()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A CA and what it has signed, as files.
struct Authority {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
    ca: String,
}

impl Authority {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("og").tempdir_in("/tmp").unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = file(&dir.path().join("ca.pem"), &params.self_signed(&key).unwrap().pem());
        Self { dir, issuer: Issuer::new(params, key), ca }
    }

    /// Certificate and private key of a node, until the end of that year.
    fn sign(&self, name: &str, year: i32) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.not_after = date_time_ymd(year, 12, 31);
        params.distinguished_name.push(DnType::CommonName, name);
        let cert = params.signed_by(&key, &self.issuer).unwrap().pem();
        let path = |what: &str| self.dir.path().join(format!("{name}{what}.pem"));
        (file(&path(""), &cert), file(&path("-key"), &key.serialize_pem()))
    }

    fn config(&self, name: &str) -> Config {
        let (cert, key) = self.sign(name, 2100);
        let home = self.dir.path().join(name);
        let path = |path: &Path| Some(path.to_str().unwrap().to_owned());
        let overrides = Overrides::default()
            .text("node.name", Some(name.to_owned()))
            .text("node.data_dir", path(&home.join("data")))
            .text("socket.path", path(&self.dir.path().join(format!("{name}.sock"))))
            .text("peer.listen", Some("127.0.0.1:0".to_owned()))
            .list("cluster.voters", ["a", "b", "c"].map(str::to_owned).to_vec())
            .text("cluster.tls.ca", Some(self.ca.clone()))
            .text("cluster.tls.cert", Some(cert))
            .text("cluster.tls.key", Some(key))
            .text("admin.listen", Some("127.0.0.1:0".to_owned()));
        Config::load(None, &Environment::default(), overrides).unwrap()
    }
}

async fn metric(node: &Node, name: &str) -> Option<f64> {
    let mut stream = tokio::net::TcpStream::connect(node.admin_addr()).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

async fn until<T>(what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(found) = ask().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// Says that it is `claims`, and believes everything.
struct Thief {
    claims: &'static str,
}

impl Greeter for Thief {
    fn hello(&self, _: &NodeId) -> Bytes {
        let voters: Vec<NodeId> = ["a", "b", "c"].map(|name| NodeId::parse(name).unwrap()).to_vec();
        let node = NodeId::parse(self.claims).unwrap();
        let slot = voters.iter().position(|voter| *voter == node).and_then(|n| u16::try_from(n).ok());
        let said = hello::Hello {
            versions: hello::PROTOCOL_VERSIONS,
            cluster: "default".to_owned(),
            node,
            boot: 1,
            slot: slot.and_then(outrigger::types::Slot::new),
            epoch: 1,
            voters,
            replication_factor: None,
            wall: OsClock::shared().now().wall,
            storage_id: outrigger::types::StorageId(7),
            run: 7,
            ceiling: outrigger::types::Ballot::ZERO,
            position: 0,
            remembered: None,
        };
        said.encode()
    }

    fn check(&self, _: &NodeId, _: &[u8]) -> Result<(), String> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_certificate_lets_nobody_in_as_another_node() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let authority = Authority::new();
    let node = Node::start(authority.config("a")).await.unwrap();
    let (cert, key) = authority.sign("b", 2100);
    let identity = tls::Identity::Pem { ca: authority.ca.clone().into(), cert: cert.into(), key: key.into() };
    let listen = "127.0.0.1:0".parse().unwrap();
    let thief = |name: &str| quic::Config::new(NodeId::parse(name).unwrap(), listen, identity.clone(), [1; 32]);

    // This program does not even start with another's certificate ...
    let refused = QuicTransport::start(thief("c"), Arc::new(Thief { claims: "c" })).map(drop).unwrap_err();
    assert!(refused.to_string().contains("the certificate is for node b, but this is c"), "{refused}");
    // ... and one that does is not believed.
    for claims in ["c", "a"] {
        let (transport, _inbox) = QuicTransport::start(thief("b"), Arc::new(Thief { claims })).unwrap();
        transport.dial(node.member().peer_addr().unwrap());
        let reason = until("the refusal", async || transport.refusals().pop().map(|refusal| refusal.reason)).await;
        let wanted = if claims == "a" { "our own name" } else { "calls itself c but its certificate is for b" };
        assert!(reason.contains(wanted) || reason.contains("certificate is for b"), "{reason}");
        assert!(transport.links().is_empty());
        transport.close().await;
    }
    // As who it is for, it does: that is what a stolen certificate can do.
    let (transport, mut inbox) = QuicTransport::start(thief("b"), Arc::new(Thief { claims: "b" })).unwrap();
    transport.dial(node.member().peer_addr().unwrap());
    let up = tokio::time::timeout(PATIENCE, inbox.events.recv()).await;
    assert!(matches!(up, Ok(Some(outrigger::transport::Event::Up { node, .. })) if node.as_str() == "a"));
    transport.close().await;
    node.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_when_the_certificate_ends_and_that_a_new_one_cannot_be_used() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let authority = Authority::new();
    let node = Node::start(authority.config("a")).await.unwrap();
    let end_of = |year| date_time_ymd(year, 12, 31).unix_timestamp() as f64;
    let expiry = async || metric(&node, "outrigger_certificate_expiry_timestamp_seconds").await;
    assert_eq!(expiry().await, Some(end_of(2100)));
    assert_eq!(metric(&node, "outrigger_identity_outdated").await, Some(0.0));

    // Expired; the files are looked at every ten seconds.
    authority.sign("a", 2020);
    until("the trouble", async || metric(&node, "outrigger_identity_outdated").await.filter(|v| *v == 1.0)).await;
    assert_eq!(expiry().await, Some(end_of(2100)), "the former one is still in use");
    authority.sign("a", 2101);
    until("the new one", async || expiry().await.filter(|found| *found == end_of(2101))).await;
    assert_eq!(metric(&node, "outrigger_identity_outdated").await, Some(0.0));
    assert_eq!(metric(&node, "outrigger_identity_changes_total").await, Some(1.0));
    node.drain().await;
}
