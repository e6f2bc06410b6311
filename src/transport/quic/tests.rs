//! What only QUIC can show: who gets in, what noise does, what a restart looks like from outside.

mod doors;
mod rolling;

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};

use super::doorway::HANDSHAKES_PER_HOST_MAX;
use super::{Config, Error, QuicTransport};
use crate::transport::tests::{Harness, OverQuic, Peer, node, polite, soon, until};
use crate::transport::{Event, INBOX_EVENTS_MAX, tls};

fn with_key(harness: &OverQuic, name: &str, key: &str) -> Config {
    let identity = tls::Identity::KeyFile(harness.file(&format!("key of {name}"), key));
    Config { identity, ..harness.config(name) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_with_another_key_is_refused_on_both_ends() {
    let harness = OverQuic::default();
    let mut a = harness.start("a", polite()).await;
    let (mut b, _) = harness.start_with(with_key(&harness, "b", "another secret of sufficient length"), polite()).await;
    b.transport.dial(a.addr);
    assert_eq!(a.refusal("same key_file").await.node, None, "a name that is not proven is not shown");
    b.refusal("same key_file").await;
    a.transport.dial(b.addr);
    let mut c = harness.start("c", polite()).await;
    c.transport.dial(a.addr);
    c.up("a").await;
    a.up("c").await;
    assert!(b.inbox.events.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn white_space_around_the_secret_does_not_matter_but_its_length_does() {
    let harness = OverQuic::default();
    let mut a = harness.start("a", polite()).await;
    let (mut b, _) = harness.start_with(with_key(&harness, "b", "  the secret of these tests\r\n\n"), polite()).await;
    b.transport.dial(a.addr);
    a.up("b").await;
    b.up("a").await;
    let start = |key: String| {
        let config = with_key(&harness, "c", &key);
        QuicTransport::start(config, polite()).map(drop).unwrap_err().to_string()
    };
    assert!(start(format!("{:>40}", "fifteen bytes..")).contains("holds 15 bytes, too few"));
    assert!(start("x".repeat(4097)).contains("more than 4096 bytes"));
    let missing = Config { identity: tls::Identity::KeyFile("/nowhere/key".into()), ..harness.config("c") };
    let error = QuicTransport::start(missing, polite()).map(drop).unwrap_err();
    assert!(matches!(error, Error::Identity(tls::Error::Read { .. })), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_name_passes_through_a_certificate() {
    let harness = OverQuic::default();
    let longest = format!("Pod_1@x.{}", "Y".repeat(120));
    let (mut a, mut b) = harness.connected("a", &longest).await;
    a.send(&b, "x");
    assert_eq!(b.message("a").await, "x");
    b.send(&a, "y");
    assert_eq!(a.message(&longest).await, "y");
}

/// Takes any server, and has no certificate to show.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519, SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_without_a_certificate_gets_nowhere() {
    let harness = OverQuic::default();
    let mut a = harness.start("a", polite()).await;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous))
        .with_no_client_auth();
    config.alpn_protocols = vec![tls::ALPN.to_vec()];
    let config = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
    let endpoint = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let connecting = endpoint.connect_with(quinn::ClientConfig::new(Arc::new(config)), a.addr, "x").unwrap();
    if let Ok(connection) = soon("the handshake", connecting).await {
        let error = soon("the refusal", connection.closed()).await;
        assert!(matches!(error, quinn::ConnectionError::ConnectionClosed(_)), "{error}");
    }
    a.refusal("same key_file").await;
    assert!(a.inbox.events.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_on_the_port_does_nothing() {
    let harness = OverQuic::default();
    let (mut a, mut b) = harness.connected("a", "b").await;
    let noise = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    for size in [0, 1, 20, 40, 500, 1200, 1472] {
        for first in [0x00, 0x40, 0xc0, 0xff_u8] {
            let mut packet: Vec<u8> = (0..size).map(|_| rand::random()).collect();
            packet.iter_mut().take(1).for_each(|byte| *byte = first);
            noise.send_to(&packet, a.addr).unwrap();
        }
    }
    a.send(&b, "x");
    assert_eq!(b.message("a").await, "x");
    b.send(&a, "y");
    assert_eq!(a.message("b").await, "y");
    assert!(a.transport.refusals().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_cannot_be_read_closes_the_connection_with_the_reason() {
    for (bytes, reason) in [(&[1_u8, 0xff, 0xff, 0xff, 0xff][..], "a message of 4294967295 bytes"), (&[9], "lane 9")] {
        let harness = OverQuic::default();
        let (mut a, raw) = harness.start_with(harness.config("a"), polite()).await;
        let mut b = harness.start("b", polite()).await;
        a.transport.dial(b.addr);
        a.up("b").await;
        b.up("a").await;
        let link = raw.shared.registry.get(&b.node).unwrap();
        let mut stream = link.connection().open_uni().await.unwrap();
        stream.write_all(bytes).await.unwrap();
        for words in [a.down("b").await, b.down("a").await] {
            assert!(words.contains(reason), "{words}");
        }
        a.up("b").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_says_nothing_is_closed() {
    let harness = OverQuic::default();
    let (_a, raw) = harness.start_with(harness.config("a"), polite()).await;
    let mut b = harness.start("b", polite()).await;
    let client = raw.shared.client.read().clone();
    let silent = raw.shared.endpoint.connect_with(client, b.addr, "x").unwrap().await.unwrap();
    let error = soon("the close", silent.closed()).await;
    assert!(error.to_string().contains("no hello within"), "{error}");
    assert!(b.inbox.events.try_recv().is_err());
}

#[test]
fn a_killed_peer_that_is_back_is_noticed_before_the_silence_is() {
    let runtime =
        |threads| tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap();
    let harness = OverQuic::default();
    let (here, there) = (runtime(2), runtime(1));
    let mut a = here.block_on(harness.start("a", polite()));
    let mut b = there.block_on(harness.start("b", polite()));
    here.block_on(async {
        a.transport.dial(b.addr);
        a.up("b").await;
    });
    there.block_on(b.up("a"));
    // With its runtime gone, nothing that it would still have to say is said.
    there.shutdown_timeout(Duration::from_secs(5));
    drop(b);
    here.block_on(async {
        let mut b = harness.start("b", polite()).await;
        assert_eq!(a.down("b").await, "it has restarted");
        a.up("b").await;
        b.up("a").await;
    });
}

#[test]
fn a_killed_peer_that_dials_first_replaces_its_former_connection() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for (name, peer) in [("a", "b"), ("b", "a")] {
        let harness = OverQuic::default();
        let (here, there) = (runtime(), runtime());
        let mut stays = here.block_on(harness.start(name, polite()));
        let mut dies = there.block_on(harness.start(peer, polite()));
        there.block_on(async {
            dies.transport.dial(stays.addr);
            dies.up(name).await;
        });
        here.block_on(stays.up(peer));
        // More than the inbox holds: what the former connection brought comes before what the new one does.
        (0..2 * INBOX_EVENTS_MAX).for_each(|n| dies.send(&stays, format!("{n}")));
        let is_full = || (stays.inbox.events.len() == INBOX_EVENTS_MAX).then_some(());
        here.block_on(until("a full inbox", is_full));
        there.shutdown_timeout(Duration::from_secs(5));
        drop(dies);
        here.block_on(async {
            let mut back = harness.start(peer, polite()).await;
            back.transport.dial(stays.addr);
            back.up(name).await;
            let down = loop {
                match stays.event().await {
                    Event::Message { .. } => (),
                    other => break other,
                }
            };
            assert!(matches!(down, Event::Down { .. }), "{down:?}");
            stays.up(peer).await;
            back.send(&stays, "x");
            assert_eq!(stays.message(peer).await, "x");
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dual_stack_socket_knows_itself_and_its_ipv4_peers() {
    let harness = OverQuic::default();
    let config = Config { listen: "[::]:0".parse().unwrap(), ..harness.config("a") };
    let (mut a, raw) = harness.start_with(config, polite()).await;
    let mut b = harness.start("b", polite()).await;
    let a_addr = SocketAddr::from(([127, 0, 0, 1], a.addr.port()));
    let outcome = crate::transport::dialer::Connector::attempt(Arc::clone(&raw.shared), a_addr).await;
    assert_eq!(outcome, crate::transport::dialer::Outcome::Myself);
    a.transport.dial(a_addr);
    a.transport.dial(b.addr);
    a.up("b").await;
    b.up("a").await;
    assert_eq!(a.transport.links()[0].addr, b.addr);
    b.transport.gossip(a_addr, Bytes::from_static(b"x")).unwrap();
    assert_eq!(soon("gossip", a.inbox.gossip.recv()).await.unwrap().0, b.addr);
    assert!(a.transport.refusals().is_empty() && a.inbox.events.try_recv().is_err());
}

/// A CA such as an administrator's own tools make.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// Certificate and key for a node, in PEM.
    fn sign(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn config(&self, harness: &OverQuic, name: &str, certified: &str, trusted: &str) -> Config {
        let (cert, key) = self.sign(certified);
        let identity = tls::Identity::Pem {
            ca: harness.file(&format!("{name}-ca.pem"), trusted),
            cert: harness.file(&format!("{name}.pem"), cert),
            key: harness.file(&format!("{name}-key.pem"), key),
        };
        Config { identity, reload_every: Duration::from_millis(20), ..harness.config(name) }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pem_files_are_read_again_and_broken_ones_do_no_harm() {
    let harness = OverQuic::default();
    let (old, new) = (Authority::new(), Authority::new());
    let both = format!("{}{}", old.pem, new.pem);
    let (mut a, raw) = harness.start_with(old.config(&harness, "a", "a", &old.pem), polite()).await;
    let (mut b, _) = harness.start_with(new.config(&harness, "b", "b", &both), polite()).await;
    b.transport.dial(a.addr);
    a.refusal("same key_file").await;
    b.refusal("same key_file").await;

    harness.file("a-ca.pem", "-----BEGIN CERTIFICATE-----\nnonsense\n");
    until("the trouble", || raw.trouble()).await;
    let (mut c, _) = harness.start_with(old.config(&harness, "c", "c", &old.pem), polite()).await;
    c.transport.dial(a.addr);
    c.up("a").await;
    a.up("c").await;

    harness.file("a-ca.pem", &both);
    until("the end of the trouble", || raw.trouble().is_none().then_some(())).await;
    b.transport.forget(a.addr);
    b.transport.dial(a.addr);
    b.up("a").await;
    a.up("b").await;
    a.send(&c, "what stood still stands");
    assert_eq!(c.message("a").await, "what stood still stands");
    assert!(!matches!(a.inbox.events.try_recv(), Ok(Event::Down { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_certificates_are_found_at_start() {
    let harness = OverQuic::default();
    let (ours, others) = (Authority::new(), Authority::new());
    let error = |config: Config| match QuicTransport::start(config, polite()) {
        Err(Error::Identity(error)) => error,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it should not start"),
    };
    let other_name = error(ours.config(&harness, "a", "b", &ours.pem));
    assert!(matches!(&other_name, tls::Error::OtherName { found, .. } if *found == node("b")), "{other_name}");
    assert!(matches!(error(ours.config(&harness, "a", "a", &others.pem)), tls::Error::Unfit(_)));
    assert!(matches!(error(ours.config(&harness, "a", "a", "")), tls::Error::Pem { what: "CA file", .. }));
    let config = ours.config(&harness, "a", "a", &ours.pem);
    harness.file("a-key.pem", ours.sign("a").1);
    assert!(matches!(error(config), tls::Error::Tls(rustls::Error::InconsistentKeys(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_is_taken_is_named() {
    let harness = OverQuic::default();
    let a: Peer = harness.start("a", polite()).await;
    let config = Config { listen: a.addr, ..harness.config("b") };
    let error = QuicTransport::start(config, polite()).map(drop).unwrap_err().to_string();
    assert!(error.contains(&a.addr.to_string()), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_connections_is_bounded_and_passes() {
    const FLOOD: usize = 150;
    let harness = OverQuic::default();
    let (_a, raw) = harness.start_with(harness.config("a"), polite()).await;
    let mut b = harness.start("b", polite()).await;
    // Each shows a good certificate, then says nothing, and is thus in progress until its time is over.
    let mut flood = tokio::task::JoinSet::new();
    for _ in 0..FLOOD {
        let client = raw.shared.client.read().clone();
        let connecting = raw.shared.endpoint.connect_with(client, b.addr, "x").unwrap();
        flood.spawn(async move { tokio::time::timeout(Duration::from_secs(2), connecting).await });
    }
    let mut open = Vec::new();
    while let Some(ended) = flood.join_next().await {
        open.extend(ended.unwrap().ok().and_then(Result::ok));
    }
    assert!(!open.is_empty() && open.len() <= HANDSHAKES_PER_HOST_MAX, "{} in progress", open.len());
    let mut c = harness.start("c", polite()).await;
    c.transport.dial(b.addr);
    c.up("b").await;
    b.up("c").await;
}
