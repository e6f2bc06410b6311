//! From a connection to a link: who is there, both hellos, both verdicts.
//!
//! ```text
//!   dialling                        accepting
//!      │ run, hello                     │
//!      ├──────────────────────────────► │      each judges the other's hello; who refuses closes with the reason
//!      │ ◄──────────────────────────────┤
//!      │      run, hello                │
//!      │                                │
//!   smaller name                  larger name            (whoever dialled)
//!      │ ◄──────────────────────────────┤ accepted, what it knows of former connections
//!      ├──────────────────────────────► │ keep, token   (see registry.rs)
//! ```

use std::cmp::Ordering;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quinn::{Connection, Incoming, RecvStream, SendStream};
use rustls::pki_types::CertificateDer;
use tokio::time::timeout;

use super::doorway::{Doorway, Entry};
use super::ending::{DUPLICATE, Ending, MALFORMED, MYSELF, REFUSED, TOO_MANY, close};
use super::link::{self, QuicLink};
use super::{Shared, canonical};
use crate::transport::dialer::{Connector, Outcome};
use crate::transport::refusal::Stage;
use crate::transport::registry::{Admission, Knowledge, Registry};
use crate::transport::{HELLO_BYTES_MAX, certificate, wire};
use crate::types::NodeId;

/// How long the TLS handshake may take, and then the hellos.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
const HELLO_TIMEOUT: Duration = Duration::from_secs(3);
/// TLS sends the name only if it is asked to, which it is not; certificates are not checked against it.
const SERVER_NAME: &str = "node.outrigger";
/// The process's number before each hello, in bytes.
const RUN_BYTES: usize = 8;
const VERDICT_BYTES: usize = 9;
const TOKEN_BYTES: usize = 8;

/// Takes what others dial, until the endpoint closes.
pub(super) async fn accept(shared: Arc<Shared>) {
    let doorway = Arc::new(Doorway::default());
    while let Some(incoming) = shared.endpoint.accept().await {
        let from = canonical(incoming.remote_address()).ip();
        let visit = match doorway.enter(from, !incoming.may_retry()) {
            Entry::Comes(visit) => visit,
            Entry::MustProve => {
                // Fails only for those that may not be asked again.
                let _ = incoming.retry();
                continue;
            }
            Entry::Ignored => {
                incoming.ignore();
                continue;
            }
        };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            shared.answer(incoming).await;
            drop(visit);
        });
    }
}

impl Connector for Shared {
    type Link = QuicLink;

    async fn attempt(self: Arc<Self>, addr: SocketAddr) -> Outcome {
        let config = self.client.read().clone();
        let connecting = match self.endpoint.connect_with(config, addr, SERVER_NAME) {
            Ok(connecting) => connecting,
            Err(error) => {
                tracing::debug!(%addr, %error, "cannot dial");
                return Outcome::Failed;
            }
        };
        match timeout(HANDSHAKE_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => self.open(connection, Some(addr)).await,
            Ok(Err(error)) => self.ended(&Ending::of(&error), addr, None),
            Err(_) => self.ended(&Ending::Broken("no answer".to_owned()), addr, None),
        }
    }

    fn registry(&self) -> &Registry<QuicLink> {
        &self.registry
    }
}

/// Both ends of a connection's first stream, and what was learnt on it.
struct Talk<'a> {
    connection: &'a Connection,
    addr: SocketAddr,
    node: NodeId,
    send: SendStream,
    recv: RecvStream,
}

/// Why a talk ended early.
enum Stop {
    /// The peer closed, or broke off.
    Theirs,
    /// Something arrived that cannot be understood.
    Malformed(String),
    /// Its hello does not fit.
    Refuse(String),
    /// Close with this code, quietly.
    Quiet(u32, Outcome),
}

impl Shared {
    async fn answer(self: Arc<Self>, incoming: Incoming) {
        let addr = canonical(incoming.remote_address());
        let Ok(connecting) = incoming.accept() else { return };
        match timeout(HANDSHAKE_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => drop(self.open(connection, None).await),
            Ok(Err(error)) => drop(self.ended(&Ending::of(&error), addr, None)),
            Err(_) => tracing::debug!(%addr, "no handshake within {HANDSHAKE_TIMEOUT:?}"),
        }
    }

    async fn open(self: Arc<Self>, connection: Connection, dialled: Option<SocketAddr>) -> Outcome {
        let addr = canonical(connection.remote_address());
        let Some(node) = peer_name(&connection) else {
            close(&connection, MALFORMED, "no certificate");
            return Outcome::Refused;
        };
        if let Some(dialled) = dialled
            && node != self.node
        {
            self.registry.found(dialled, &node);
        }
        let talked = timeout(HELLO_TIMEOUT, self.talk(&connection, addr, &node, dialled.is_some())).await;
        let stop = match talked {
            Ok(Ok(())) => return Outcome::Connected,
            Ok(Err(stop)) => stop,
            Err(_) => Stop::Malformed(format!("no hello within {HELLO_TIMEOUT:?}")),
        };
        if let Some(error) = connection.close_reason() {
            return self.ended(&Ending::of(&error), addr, Some(&node));
        }
        match stop {
            Stop::Quiet(code, outcome) => {
                close(&connection, code, "");
                outcome
            }
            Stop::Refuse(reason) => {
                close(&connection, REFUSED, &reason);
                self.refusals.note(Stage::Hello, addr, Some(&node), &reason);
                Outcome::Refused
            }
            Stop::Malformed(reason) => {
                close(&connection, MALFORMED, &reason);
                self.metrics.malformed.increment(1);
                self.ended(&Ending::Broken(reason), addr, Some(&node))
            }
            Stop::Theirs => self.ended(&Ending::Broken("it broke off".to_owned()), addr, Some(&node)),
        }
    }

    /// What the end of a connection that never became a link means to whoever dials.
    fn ended(&self, ending: &Ending, addr: SocketAddr, node: Option<&NodeId>) -> Outcome {
        match ending {
            Ending::Tls(reason) => {
                self.refusals.note(Stage::Tls, addr, None, reason);
                Outcome::Refused
            }
            Ending::Refused(reason) => {
                self.refusals.note(Stage::TheirHello, addr, node, reason);
                Outcome::Refused
            }
            Ending::Duplicate => Outcome::Connected,
            Ending::Myself => Outcome::Myself,
            Ending::Broken(reason) => {
                tracing::debug!(%addr, reason, "no connection");
                Outcome::Failed
            }
        }
    }

    async fn talk(
        self: &Arc<Self>,
        connection: &Connection,
        addr: SocketAddr,
        node: &NodeId,
        dialled: bool,
    ) -> Result<(), Stop> {
        let streams = if dialled { connection.open_bi().await } else { connection.accept_bi().await };
        let (send, recv) = streams.map_err(|_| Stop::Theirs)?;
        let mut talk = Talk { connection, addr, node: node.clone(), send, recv };

        let mut ours = BytesMut::new();
        ours.put_u64(self.run);
        ours.put(self.greeter.hello(node));
        talk.say(&ours).await?;
        let mut hello = talk.hear(RUN_BYTES + HELLO_BYTES_MAX).await?;
        let run = hello.try_get_u64().map_err(|_| Stop::Malformed("a hello without a number".to_owned()))?;

        match (node.cmp(&self.node), run == self.run) {
            (Ordering::Equal, true) => Err(Stop::Quiet(MYSELF, Outcome::Myself)),
            (Ordering::Equal, false) => Err(Stop::Refuse(format!(
                "two nodes are called {node}: give each node its own [node] name, and run it once"
            ))),
            (order, _) => {
                self.greeter.check(node, &hello).map_err(Stop::Refuse)?;
                if order == Ordering::Greater {
                    self.decide(talk, run, hello).await
                } else {
                    self.ask(talk, run, hello).await
                }
            }
        }
    }

    /// This node's name is the smaller.
    async fn decide(self: &Arc<Self>, mut talk: Talk<'_>, run: u64, hello: Bytes) -> Result<(), Stop> {
        let mut verdict = talk.hear(VERDICT_BYTES).await?;
        let (Ok(learnt), Ok(stands)) = (verdict.try_get_u64(), verdict.try_get_u8()) else {
            return Err(Stop::Malformed("a verdict that is cut short".to_owned()));
        };
        let token = rand::random_range(1..=u64::MAX);
        let link = Arc::new(self.link(&talk, run, token));
        let before = admitted(self.registry.admit(&link, Knowledge { learnt, stands: stands != 0 }))?;
        link::start(Arc::clone(self), link, hello, before, Some((talk.send, token)));
        Ok(())
    }

    /// This node's name is the larger.
    async fn ask(self: &Arc<Self>, mut talk: Talk<'_>, run: u64, hello: Bytes) -> Result<(), Stop> {
        let known = self.registry.knowledge(&talk.node);
        let mut verdict = BytesMut::with_capacity(VERDICT_BYTES);
        verdict.put_u64(known.learnt);
        verdict.put_u8(u8::from(known.stands));
        talk.say(&verdict).await?;
        let _ = talk.send.finish();
        let token = talk.hear(TOKEN_BYTES).await?.try_get_u64();
        let token = token.map_err(|_| Stop::Malformed("a token that is cut short".to_owned()))?;
        let link = Arc::new(self.link(&talk, run, token));
        let before = admitted(self.registry.obey(&link))?;
        link::start(Arc::clone(self), link, hello, before, None);
        Ok(())
    }

    fn link(&self, talk: &Talk<'_>, run: u64, token: u64) -> QuicLink {
        let dropped = self.metrics.dropped.clone();
        QuicLink::new(talk.connection.clone(), talk.node.clone(), talk.addr, run, token, &dropped)
    }
}

fn admitted(admission: Admission<QuicLink>) -> Result<Option<Arc<QuicLink>>, Stop> {
    match admission {
        Admission::Kept(before) => Ok(before),
        Admission::Duplicate => Err(Stop::Quiet(DUPLICATE, Outcome::Connected)),
        Admission::TooMany => Err(Stop::Quiet(TOO_MANY, Outcome::Refused)),
    }
}

impl Talk<'_> {
    async fn say(&mut self, message: &[u8]) -> Result<(), Stop> {
        say(&mut self.send, message).await.map_err(|_| Stop::Theirs)
    }

    async fn hear(&mut self, max: usize) -> Result<Bytes, Stop> {
        let mut head = [0; wire::HEAD_BYTES];
        self.recv.read_exact(&mut head).await.map_err(|_| Stop::Theirs)?;
        let bytes = usize::try_from(u32::from_be_bytes(head)).unwrap_or(usize::MAX);
        if bytes > max {
            return Err(Stop::Malformed(wire::TooLarge { bytes, max }.to_string()));
        }
        // Room is made for what has arrived, not for what was claimed.
        let mut message = BytesMut::new();
        while message.len() < bytes {
            let chunk = self.recv.read_chunk(bytes - message.len(), true).await.map_err(|_| Stop::Theirs)?;
            message.put(chunk.ok_or(Stop::Theirs)?.bytes);
        }
        Ok(message.freeze())
    }
}

async fn say(send: &mut SendStream, message: &[u8]) -> Result<(), quinn::WriteError> {
    send.write_all(&[&wire::head(message), message].concat()).await
}

/// Tells the larger node to keep the connection.
pub(super) async fn keep(mut send: SendStream, token: u64) -> Result<(), quinn::WriteError> {
    say(&mut send, &token.to_be_bytes()).await?;
    let _ = send.finish();
    Ok(())
}

/// TLS has verified the certificate; here it is only read.
fn peer_name(connection: &Connection) -> Option<NodeId> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    certificate::name_of(chain.first()?).ok()
}
