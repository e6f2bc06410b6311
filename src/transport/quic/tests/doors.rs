//! Who stands at the door with what: certificates that are not good enough, words said before, words never said.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, date_time_ymd};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use super::super::doorway::HANDSHAKES_PER_HOST_MAX;
use super::super::{Config, QuicTransport};
use super::{Authority, Credulous};
use crate::transport::tests::{Harness as _, OverQuic, Peer, polite, soon, until};
use crate::transport::{HELLO_BYTES_MAX, Transport as _, tls};

/// What somebody shows of himself.
struct Papers {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Authority {
    fn papers(&self, change: impl FnOnce(&mut CertificateParams)) -> Papers {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "b");
        change(&mut params);
        let chain = vec![params.signed_by(&key, &self.issuer).unwrap().der().clone()];
        Papers { chain, key: PrivateKeyDer::try_from(key.serialize_der()).unwrap() }
    }
}

/// Shows its papers to anybody, and would take up a session where it was left.
fn client(papers: &Papers) -> quinn::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous))
        .with_client_auth_cert(papers.chain.clone(), papers.key.clone_key())
        .unwrap();
    config.alpn_protocols = vec![tls::ALPN.to_vec()];
    config.enable_early_data = true;
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()))
}

fn server(papers: &Papers) -> quinn::ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(papers.chain.clone(), papers.key.clone_key())
        .unwrap();
    config.alpn_protocols = vec![tls::ALPN.to_vec()];
    config.max_early_data_size = u32::MAX;
    quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(config).unwrap()))
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn endpoint() -> quinn::Endpoint {
    quinn::Endpoint::client(loopback()).unwrap()
}

async fn guarded(harness: &OverQuic, ours: &Authority) -> (Peer, Arc<QuicTransport>) {
    harness.start_with(ours.config(harness, "a", "a", &ours.pem), polite()).await
}

async fn refused_when_dialling(what: &str, ours: &Authority, papers: &Papers) {
    let harness = OverQuic::default();
    let (mut a, _) = guarded(&harness, ours).await;
    let endpoint = endpoint();
    // A client is through with its handshake before the server has looked at its certificate.
    if let Ok(connection) = soon(what, endpoint.connect_with(client(papers), a.addr, "x").unwrap()).await {
        let error = soon(what, connection.closed()).await;
        assert!(matches!(error, quinn::ConnectionError::ConnectionClosed(_)), "{what}: {error}");
    }
    let refusal = a.refusal("its certificate was not accepted").await;
    assert_eq!(refusal.node, None, "{what}");
    assert!(a.inbox.events.try_recv().is_err(), "{what}");
}

async fn refused_when_dialled(what: &str, ours: &Authority, papers: &Papers) {
    let harness = OverQuic::default();
    let (mut a, _) = guarded(&harness, ours).await;
    let endpoint = quinn::Endpoint::server(server(papers), loopback()).unwrap();
    a.transport.dial(endpoint.local_addr().unwrap());
    let connecting = soon(what, endpoint.accept()).await.unwrap().accept().unwrap();
    assert!(soon(what, connecting).await.is_err(), "{what}");
    a.refusal("its certificate was not accepted").await;
    assert!(a.inbox.events.try_recv().is_err(), "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn papers_that_are_not_in_order_are_refused_whoever_dialled() {
    let (ours, others) = (Authority::new(), Authority::new());
    let both = [
        ("of another CA", others.papers(|_| ())),
        ("expired", ours.papers(|params| params.not_after = date_time_ymd(2020, 1, 1))),
        ("not valid yet", ours.papers(|params| params.not_before = date_time_ymd(4000, 1, 1))),
        ("no node's", ours.papers(|params| params.distinguished_name.push(DnType::CommonName, "not a name"))),
    ];
    for (what, papers) in &both {
        refused_when_dialling(what, &ours, papers).await;
        refused_when_dialled(what, &ours, papers).await;
    }
    let only = |usage| ours.papers(|params| params.extended_key_usages = vec![usage]);
    let (servers, clients) = (only(ExtendedKeyUsagePurpose::ServerAuth), only(ExtendedKeyUsagePurpose::ClientAuth));
    refused_when_dialling("for servers only", &ours, &servers).await;
    refused_when_dialled("for clients only", &ours, &clients).await;
    // The same with everything in order gets as far as the hello.
    let harness = OverQuic::default();
    let (a, _) = guarded(&harness, &ours).await;
    let endpoint = endpoint();
    let connecting = endpoint.connect_with(client(&ours.papers(|_| ())), a.addr, "x").unwrap();
    let error = soon("the close", soon("the handshake", connecting).await.unwrap().closed()).await;
    assert!(error.to_string().contains("no hello within"), "{error}");
}

/// Early data could be sent again by anybody who saw them. A node gives out no ticket that they need, and uses none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_can_be_said_before_the_handshake_is_over() {
    let (harness, ours) = (OverQuic::default(), Authority::new());
    let (a, raw) = guarded(&harness, &ours).await;
    let (endpoint, client) = (endpoint(), client(&ours.papers(|_| ())));
    // Its end, three seconds later, comes after any ticket.
    let first = soon("the handshake", endpoint.connect_with(client.clone(), a.addr, "x").unwrap()).await.unwrap();
    soon("the close", first.closed()).await;
    assert!(endpoint.connect_with(client.clone(), a.addr, "x").unwrap().into_0rtt().is_err());

    // A server that gives out tickets gets early data from that client, and from a node none.
    let nodes = raw.shared.client.read().clone();
    for (config, is_early) in [(client, true), (nodes, false)] {
        // Each has its own: what is left of the one's second connection stood in front of the other's first, mostly.
        let eager = quinn::Endpoint::server(server(&ours.papers(|_| ())), loopback()).unwrap();
        let to = eager.local_addr().unwrap();
        let (connecting, incoming) = (endpoint.connect_with(config.clone(), to, "x").unwrap(), eager.accept());
        let (first, theirs) = tokio::join!(connecting, async { incoming.await.unwrap().accept().unwrap().await });
        let (first, theirs) = (first.unwrap(), theirs.unwrap());
        // What it sends comes after the tickets.
        theirs.open_uni().await.unwrap().write_all(b"x").await.unwrap();
        soon("a stream", first.accept_uni()).await.unwrap();
        assert_eq!(endpoint.connect_with(config, to, "x").unwrap().into_0rtt().is_ok(), is_early);
    }
}

/// Passes packets on, and keeps a copy of what the dialling end said.
struct Tap {
    addr: SocketAddr,
    behind: Arc<UdpSocket>,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
    _tasks: JoinSet<()>,
}

impl Tap {
    async fn before(server: SocketAddr) -> Self {
        let socket = async || Arc::new(UdpSocket::bind(loopback()).await.unwrap());
        let (front, behind) = (socket().await, socket().await);
        behind.connect(server).await.unwrap();
        let addr = front.local_addr().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let dialling: Arc<Mutex<Option<SocketAddr>>> = Arc::default();
        let mut tasks = JoinSet::new();
        let (from, to, copies) = (Arc::clone(&front), Arc::clone(&behind), Arc::clone(&heard));
        let who = Arc::clone(&dialling);
        tasks.spawn(async move {
            let mut packet = vec![0; 65_536];
            while let Ok((bytes, addr)) = from.recv_from(&mut packet).await {
                *who.lock() = Some(addr);
                copies.lock().push(packet[..bytes].to_vec());
                let _ = to.send(&packet[..bytes]).await;
            }
        });
        let (from, to) = (Arc::clone(&behind), front);
        tasks.spawn(async move {
            let mut packet = vec![0; 65_536];
            while let Ok(bytes) = from.recv(&mut packet).await {
                let addr = *dialling.lock();
                if let Some(addr) = addr {
                    let _ = to.send_to(&packet[..bytes], addr).await;
                }
            }
        });
        Self { addr, behind, heard, _tasks: tasks }
    }

    async fn says_it_again(&self) -> usize {
        let copies = self.heard.lock().clone();
        for packet in &copies {
            self.behind.send(packet).await.unwrap();
        }
        copies.len()
    }
}

/// Whoever sees the packets of a node can send them again: while its connection stands, and when it is gone. Neither is
/// heard: a packet's number counts once, and each connection has keys of its own, to which both ends contribute.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_that_is_said_again_is_not_heard() {
    let harness = OverQuic::default();
    let (mut a, raw) = harness.start_with(harness.config("a"), polite()).await;
    let mut b = harness.start("b", polite()).await;
    let tap = Tap::before(b.addr).await;
    a.transport.dial(tap.addr);
    a.up("b").await;
    b.up("a").await;
    a.send(&b, "x");
    assert_eq!(b.message("a").await, "x");
    assert!(tap.says_it_again().await >= 3);
    a.send(&b, "y");
    assert_eq!(b.message("a").await, "y", "and not x again");
    raw.close().await;
    b.down("a").await;

    tap.says_it_again().await;
    let (mut c, raw) = harness.start_with(harness.config("c"), polite()).await;
    c.transport.dial(b.addr);
    b.up("c").await;
    c.up("b").await;
    // One that began later and says nothing, either, is given up after the handshake that was begun again.
    let client = raw.shared.client.read().clone();
    let silent = raw.shared.endpoint.connect_with(client, b.addr, "x").unwrap();
    soon("its end", soon("a handshake", silent).await.unwrap().closed()).await;
    assert!(b.inbox.events.try_recv().is_err());
    assert!(b.transport.links().iter().all(|link| link.node.as_str() == "c"));
}

/// A connection with good papers, what it says first, and how it ends.
async fn says(a: &Peer, ours: &Authority, first: &[u8], pace: Duration) -> String {
    let (endpoint, papers) = (endpoint(), ours.papers(|_| ()));
    let connecting = endpoint.connect_with(client(&papers), a.addr, "x").unwrap();
    let connection = soon("the handshake", connecting).await.unwrap();
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    let speaking = async {
        for bytes in first.chunks(if pace.is_zero() { first.len() } else { 1 }) {
            tokio::time::sleep(pace).await;
            if send.write_all(bytes).await.is_err() {
                break;
            }
        }
    };
    let (_, ended) = tokio::join!(speaking, soon("the close", connection.closed()));
    ended.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_that_is_too_large_or_takes_too_long_ends_the_connection() {
    let (harness, ours) = (OverQuic::default(), Authority::new());
    let (mut a, _) = guarded(&harness, &ours).await;
    let claims = |bytes: usize| u32::try_from(bytes).unwrap().to_be_bytes();
    for bytes in [8 + HELLO_BYTES_MAX + 1, u32::MAX as usize] {
        let ended = says(&a, &ours, &claims(bytes), Duration::ZERO).await;
        assert!(ended.contains(&format!("a message of {bytes} bytes")), "{ended}");
    }
    // Each byte comes soon after the one before, and all of them would take a minute.
    let slow = [claims(1200).as_slice(), &[0; 1200]].concat();
    let ended = says(&a, &ours, &slow, Duration::from_millis(50)).await;
    assert!(ended.contains("no hello within"), "{ended}");
    // Too short to hold what comes before the hello.
    let ended = says(&a, &ours, &[claims(3).as_slice(), b"abc"].concat(), Duration::ZERO).await;
    assert!(ended.contains("a hello without a number"), "{ended}");
    assert!(a.inbox.events.try_recv().is_err());
}

/// One host kept all places in the door taken, with connections that said nothing, and other nodes got in by luck. That it
/// cannot is shown by `a_flood_of_connections_is_bounded_and_passes`; this is what it looks like from outside.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_opens_connections_and_says_nothing_keeps_nobody_else_out() {
    const AT_ONCE: usize = 100;
    let (harness, ours) = (OverQuic::default(), Authority::new());
    let (mut a, _) = guarded(&harness, &ours).await;
    let (papers, to, loiterers) = (client(&ours.papers(|_| ())), a.addr, endpoint());
    let open = Arc::new(tokio::sync::Semaphore::new(0));
    let mut crowd = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (papers, loiterers, open) = (papers.clone(), loiterers.clone(), Arc::clone(&open));
        crowd.spawn(async move {
            loop {
                if let Ok(connection) = loiterers.connect_with(papers.clone(), to, "x").unwrap().await {
                    open.add_permits(1);
                    connection.closed().await;
                }
            }
        });
    }
    until("a crowd", || (open.available_permits() >= HANDSHAKES_PER_HOST_MAX).then_some(())).await;
    let elsewhere = SocketAddr::new(IpAddr::from([127, 0, 0, 2]), 0);
    let config = Config { listen: elsewhere, ..ours.config(&harness, "c", "c", &ours.pem) };
    let (mut c, _) = harness.start_with(config, polite()).await;
    c.transport.dial(a.addr);
    c.up("a").await;
    a.up("c").await;
    crowd.shutdown().await;
}
