//! The UDP socket and QUIC's limits; and certificates that change while the node runs.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{EndpointConfig, TokioRuntime, VarInt};
use quinn_proto::HashedConnectionIdGenerator;
use ring::{digest, hmac};
use socket2::{Domain, Protocol, Socket, Type};

use super::{Config, Error, Shared};
use crate::transport::CALLS_PER_PEER_MAX;
use crate::transport::identity::Sources;
use crate::transport::tls::Identity;
use crate::types::NodeId;

/// A peer that was silent for so long is gone.
const IDLE_TIMEOUT_MS: u32 = 3_000;
/// Four chances to break the silence before it is taken for an absence.
const KEEP_ALIVE: Duration = Duration::from_millis(700);
/// First guess of the round trip: nodes are near each other, and a lost first packet should not cost a second.
const INITIAL_RTT: Duration = Duration::from_millis(50);
/// What may be on its way in one stream, unread, in bytes.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// Bidirectional streams: the calls, and the hello.
const BIDI_STREAMS_MAX: u32 = CALLS_PER_PEER_MAX as u32 + 4;
/// Unidirectional streams: the lanes.
const UNI_STREAMS_MAX: u32 = 2;
/// What one peer may send unread. Room for every stream to be full: answers that nobody reads must not stop votes.
const WINDOW_BYTES: u32 = STREAM_WINDOW_BYTES * (BIDI_STREAMS_MAX + UNI_STREAMS_MAX);
/// What one peer may leave unacknowledged, in bytes.
const SEND_WINDOW_BYTES: u64 = 16 * 1024 * 1024;
/// Asked of the kernel, which may give less: room for what arrives while this process waits for a core.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// First packets of strangers that wait to be looked at.
const INCOMING_MAX: usize = 256;
/// What each of them, and all of them, may send ahead, in bytes.
const INCOMING_BYTES_MAX: u64 = 16 * 1024;
const INCOMING_BYTES_TOTAL_MAX: u64 = 1024 * 1024;

/// Both ends' configuration.
pub(super) struct Configs {
    pub(super) server: quinn::ServerConfig,
    pub(super) client: quinn::ClientConfig,
    /// When the own certificate ends, in Unix seconds.
    pub(super) expires: i64,
}

/// Makes both ends' configuration from what the identity's files hold.
pub(super) fn configure(sources: &Sources, node: &NodeId) -> Result<Configs, Error> {
    let tls = sources.configure(node)?;
    let expires = tls.expires;
    let unfit = |error: &dyn std::fmt::Display| Error::Setup(error.to_string());
    let transport = Arc::new(transport());

    let crypto = QuicServerConfig::try_from(tls.server).map_err(|error| unfit(&error))?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    server
        .transport_config(Arc::clone(&transport))
        .migration(false)
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BYTES_MAX)
        .incoming_buffer_size_total(INCOMING_BYTES_TOTAL_MAX);

    let crypto = QuicClientConfig::try_from(tls.client).map_err(|error| unfit(&error))?;
    let mut client = quinn::ClientConfig::new(Arc::new(crypto));
    client.transport_config(transport);
    Ok(Configs { server, client, expires })
}

fn transport() -> quinn::TransportConfig {
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_idle_timeout(Some(VarInt::from_u32(IDLE_TIMEOUT_MS).into()))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(INITIAL_RTT)
        .max_concurrent_bidi_streams(BIDI_STREAMS_MAX.into())
        .max_concurrent_uni_streams(UNI_STREAMS_MAX.into())
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        .receive_window(WINDOW_BYTES.into())
        .send_window(SEND_WINDOW_BYTES)
        .datagram_receive_buffer_size(None);
    transport
}

/// Opens the socket and starts QUIC on it.
pub(super) fn open(config: &Config, server: quinn::ServerConfig) -> Result<quinn::Endpoint, Error> {
    let failed = |source| Error::Listen { listen: config.listen, source };
    let socket = bind(config.listen).map_err(failed)?;
    quinn::Endpoint::new(endpoint_config(&config.reset_key), Some(server), socket, Arc::new(TokioRuntime))
        .map_err(failed)
}

/// Connection ids must be recognised after a restart, else packets for the former process are taken for noise and
/// never answered with a reset.
fn endpoint_config(reset_key: &[u8; 32]) -> EndpointConfig {
    let ids = digest::digest(&digest::SHA256, &[b"outrigger connection ids".as_slice(), reset_key].concat());
    let ids = ids.as_ref().first_chunk().map_or(0, |head| u64::from_be_bytes(*head));
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, reset_key)));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
    config
}

fn bind(listen: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
    if listen.ip().is_unspecified() && listen.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    for result in [socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES), socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)] {
        if let Err(error) = result {
            tracing::debug!(%error, "the UDP socket keeps its default buffers");
        }
    }
    socket.bind(&listen.into())?;
    Ok(socket.into())
}

/// Compares key and certificate files with what is in use, and uses what is new; connections that stand are left alone.
/// What cannot be used is said once, and what was in use before stays.
///
/// A change is taken once it was read twice: files that belong together are written one after the other, and a key that
/// was read when half of it was written would be a key, but nobody else's.
pub(super) async fn reload(shared: Weak<Shared>, identity: Identity, mut used: Sources, every: Duration) {
    let mut seen: Option<Sources> = None;
    loop {
        tokio::time::sleep(every).await;
        let identity = identity.clone();
        let Ok(read) = tokio::task::spawn_blocking(move || identity.read()).await else { continue };
        let Some(shared) = shared.upgrade() else { return };
        let trouble = match read {
            Err(error) => Some(error.to_string()),
            Ok(sources) if sources == used => None,
            Ok(sources) if seen.as_ref() == Some(&sources) => match refresh(&shared, &sources) {
                Ok(()) => {
                    used = sources;
                    None
                }
                Err(error) => Some(error.to_string()),
            },
            Ok(sources) => {
                seen = Some(sources);
                continue;
            }
        };
        tell(&shared, trouble);
    }
}

fn refresh(shared: &Shared, sources: &Sources) -> Result<(), Error> {
    let configs = configure(sources, &shared.node)?;
    shared.endpoint.set_server_config(Some(configs.server));
    *shared.client.write() = configs.client;
    shared.metrics.expires(configs.expires);
    shared.metrics.changes.increment(1);
    shared.changes.fetch_add(1, Ordering::Relaxed);
    tracing::info!("key or certificate files changed: new connections use {sources}");
    Ok(())
}

fn tell(shared: &Shared, trouble: Option<String>) {
    shared.metrics.outdated.set(if trouble.is_some() { 1.0 } else { 0.0 });
    let former = std::mem::replace(&mut *shared.trouble.lock(), trouble.clone());
    match trouble {
        Some(trouble) if former.as_ref() != Some(&trouble) => {
            tracing::error!("changed key or certificate files cannot be used, the former ones are: {trouble}");
        }
        None if former.is_some() => tracing::info!("key and certificate files can be used again"),
        _ => {}
    }
}
