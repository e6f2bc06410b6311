//! Two nodes over loopback QUIC: what a message costs, there and back, and how many pass per second.
//!
//! `cargo bench --bench transport`

#![expect(clippy::expect_used, clippy::panic, reason = "a bench that cannot go on should stop")]

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use outrigger::transport::quic::{Config, QuicTransport};
use outrigger::transport::{Event, Greeter, Inbox, SendError, Transport as _, tls};
use outrigger::types::NodeId;
use tokio::runtime::Runtime;

fn main() {
    divan::main();
}

struct Anyone;

impl Greeter for Anyone {
    fn hello(&self, _peer: &NodeId) -> Bytes {
        Bytes::new()
    }
    fn check(&self, _peer: &NodeId, _hello: &[u8]) -> Result<(), String> {
        Ok(())
    }
}

struct Node {
    node: NodeId,
    transport: Arc<QuicTransport>,
    inbox: Inbox,
}

fn start(name: &str, key: &std::path::Path) -> Node {
    let node = NodeId::parse(name).expect("a name");
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = Config::new(node.clone(), listen, tls::Identity::KeyFile(key.to_owned()), [7; 32]);
    let (transport, inbox) = QuicTransport::start(config, Arc::new(Anyone)).expect("a free port");
    Node { node, transport, inbox }
}

fn pair() -> (Runtime, Node, Node) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let dir = tempfile::tempdir().expect("a directory");
    let key = dir.path().join("key");
    std::fs::write(&key, "a secret for two nodes").expect("a key file");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("a key file of one's own");
    let (a, b) = runtime.block_on(async {
        let (mut a, mut b) = (start("a", &key), start("b", &key));
        a.transport.dial(b.transport.local_addr());
        assert!(matches!(a.inbox.events.recv().await, Some(Event::Up { .. })));
        assert!(matches!(b.inbox.events.recv().await, Some(Event::Up { .. })));
        (a, b)
    });
    (runtime, a, b)
}

async fn receive(inbox: &mut Inbox) -> Bytes {
    match inbox.events.recv().await {
        Some(Event::Message { message, .. }) => message,
        other => panic!("wanted a message, got {other:?}"),
    }
}

const ROUNDS: usize = 1000;

/// One message there and back, nothing else under way; an item is one round trip.
#[divan::bench(args = [64, 4096], min_time = Duration::from_secs(2))]
fn round_trip(bencher: Bencher, bytes: usize) {
    let (runtime, a, b) = pair();
    let Node { node: to_b, transport: b_transport, inbox: mut b_inbox } = b;
    let to_a = a.node.clone();
    runtime.spawn(async move {
        while let Some(event) = b_inbox.events.recv().await {
            if let Event::Message { message, .. } = event {
                let _ = b_transport.send(&to_a, message);
            }
        }
    });
    let message = Bytes::from(vec![7; bytes]);
    let Node { transport, inbox, .. } = a;
    let inbox = Arc::new(tokio::sync::Mutex::new(inbox));
    bencher.counter(ItemsCount::new(ROUNDS)).bench_local(|| {
        let (transport, inbox) = (Arc::clone(&transport), Arc::clone(&inbox));
        let (to_b, message) = (to_b.clone(), message.clone());
        let rounds = runtime.spawn(async move {
            let mut inbox = inbox.lock().await;
            for _ in 0..ROUNDS {
                transport.send(&to_b, message.clone()).expect("an empty queue");
                receive(&mut inbox).await;
            }
        });
        runtime.block_on(rounds).expect("no panic");
    });
}

const MESSAGES: usize = 20_000;

/// As many messages as the lane takes; an item is one message.
#[divan::bench(args = [64, 256, 4096], sample_count = 20)]
fn one_way(bencher: Bencher, bytes: usize) {
    let (runtime, a, b) = pair();
    let message = Bytes::from(vec![7; bytes]);
    let b_node = b.node.clone();
    let inbox = Arc::new(tokio::sync::Mutex::new(b.inbox));
    bencher.counter(ItemsCount::new(MESSAGES)).counter(BytesCount::new(MESSAGES * bytes)).bench_local(|| {
        let (transport, to_b, message) = (Arc::clone(&a.transport), b_node.clone(), message.clone());
        let sender = runtime.spawn(async move {
            for _ in 0..MESSAGES {
                while transport.send(&to_b, message.clone()) == Err(SendError::QueueFull) {
                    tokio::task::yield_now().await;
                }
            }
        });
        let inbox = Arc::clone(&inbox);
        let receiver = runtime.spawn(async move {
            let mut inbox = inbox.lock().await;
            for _ in 0..MESSAGES {
                receive(&mut inbox).await;
            }
        });
        runtime.block_on(async {
            sender.await.expect("no panic");
            receiver.await.expect("no panic");
        });
    });
}

/// The same round trip over one stream of bare quinn, with nothing above it: what the transport is measured against.
#[divan::bench(args = [64, 4096], min_time = Duration::from_secs(2))]
fn round_trip_of_bare_quinn(bencher: Bencher, bytes: usize) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let (send, recv, _endpoints) = runtime.block_on(bare_pair(bytes));
    let streams = Arc::new(tokio::sync::Mutex::new((send, recv)));
    bencher.counter(ItemsCount::new(ROUNDS)).bench_local(|| {
        let streams = Arc::clone(&streams);
        let rounds = runtime.spawn(async move {
            let mut streams = streams.lock().await;
            let mut message = vec![7; bytes];
            for _ in 0..ROUNDS {
                streams.0.write_all(&message).await.expect("a connection");
                streams.1.read_exact(&mut message).await.expect("a connection");
            }
        });
        runtime.block_on(rounds).expect("no panic");
    });
}

async fn bare_pair(bytes: usize) -> (quinn::SendStream, quinn::RecvStream, [quinn::Endpoint; 2]) {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    let certificate = params.self_signed(&key).expect("a certificate").der().clone();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).expect("a certificate");
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let config = quinn::ServerConfig::with_single_cert(vec![certificate], key).expect("a configuration");
    let server = quinn::Endpoint::server(config, listen).expect("a free port");
    let client = quinn::Endpoint::client(listen).expect("a free port");
    let config = quinn::ClientConfig::with_root_certificates(Arc::new(roots)).expect("a configuration");
    let addr = server.local_addr().expect("an address");
    let connecting = client.connect_with(config, addr, "localhost").expect("an address");
    let accepting = server.clone();
    tokio::spawn(async move {
        let connection = accepting.accept().await.expect("an endpoint").await.expect("a handshake");
        let (mut send, mut recv) = connection.accept_bi().await.expect("a stream");
        let mut message = vec![0; bytes];
        while recv.read_exact(&mut message).await.is_ok() {
            send.write_all(&message).await.expect("a connection");
        }
    });
    let (send, recv) = connecting.await.expect("a handshake").open_bi().await.expect("a stream");
    (send, recv, [server, client])
}
