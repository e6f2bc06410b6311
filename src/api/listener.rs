//! Owns the socket file and its connections: who gets in, which dialect each speaks, and how they end.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::access::Peer;
use super::gate::Gate;
use super::guest::Guest;
use super::resp::{self, Shared};
use super::service::Service;
use super::stream::{Ending, Guarded};
use super::{ApiError, http};

/// How many connections are served at once, where nothing else is configured.
pub const CONNECTIONS_MAX: usize = 2_048;
/// The socket file's mode, where nothing else is configured: its owner and group.
pub const SOCKET_MODE: u32 = 0o660;
/// Those whom no rule knows by uid or gid, and who have to show a token first, have no more than one place in so many.
const STRANGERS_ONE_IN: usize = 2;
/// How long they may take to.
pub(super) const STRANGER_TIMEOUT: Duration = Duration::from_secs(60);
/// A client that reads nothing for this long while something waits for it is dropped.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How many connections over the bound are told so at once; further ones are closed without a word.
const REFUSALS_MAX: usize = 64;
/// How long a refused client may take to show its dialect, and to take note of the refusal.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
/// The most bytes read and thrown away so that a refusal is not lost with them.
const REFUSAL_DISCARD_BYTES_MAX: usize = 1024 * 1024;
/// How long to wait before accepting again where the process has run out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where and for whom to listen.
#[derive(Clone)]
pub struct Config {
    /// The socket file.
    pub path: PathBuf,
    /// The socket file's permissions, such as `0o660`.
    pub mode: u32,
    /// How many connections are served at once; beyond it clients are told `BUSY`.
    pub connections_max: usize,
    /// Who may do what.
    pub gate: Arc<Gate>,
}

impl Config {
    /// At `path`, with the defaults: open to whoever can open the socket's file.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), mode: SOCKET_MODE, connections_max: CONNECTIONS_MAX, gate: Gate::open() }
    }
}

/// Why the socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process answers there.
    #[error("{}: another process listens on this socket; stop it or set another [socket] path", path.display())]
    InUse {
        /// The socket file.
        path: PathBuf,
    },
    /// Something that is no socket is in the way.
    #[error("{}: is not a socket and is left alone; move it away or set another [socket] path", path.display())]
    NotASocket {
        /// The file in the way.
        path: PathBuf,
    },
    /// The operating system refused something.
    #[error("cannot {doing} the socket {}: {source}; is [socket] path in a directory this user may write?", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// The listening socket. Dropping it stops accepting; [`Server::shutdown`] ends it properly.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    identity: (u64, u64),
    stop: CancellationToken,
    abort: CancellationToken,
    connections: TaskTracker,
    accepting: JoinHandle<()>,
}

/// Listens on the socket and serves every connection, until [`Server::shutdown`].
///
/// The file of a process that is gone is replaced; that of one that answers is an error.
pub async fn serve(config: Config, service: Arc<Service>) -> Result<Server, Error> {
    let failed = |doing| {
        let path = config.path.clone();
        move |source| Error::Io { doing, path, source }
    };
    clear_stale(&config.path).await?;
    let listener = UnixListener::bind(&config.path).map_err(failed("listen on"))?;
    fs::set_permissions(&config.path, Permissions::from_mode(config.mode)).map_err(failed("set the mode of"))?;
    let identity = identity(&config.path).map_err(failed("look at"))?;
    let (stop, abort, connections) = (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
    connections.spawn(Arc::clone(&config.gate).follow_files(stop.clone()));
    let door = Door {
        service,
        gate: config.gate,
        shared: Arc::new(Shared::default()),
        places: Arc::new(Semaphore::new(config.connections_max)),
        strangers: Arc::new(Semaphore::new(config.connections_max.div_ceil(STRANGERS_ONE_IN))),
        refusals: Arc::new(Semaphore::new(REFUSALS_MAX)),
        stop: stop.clone(),
        abort: abort.clone(),
        connections: connections.clone(),
    };
    let accepting = tokio::spawn(door.accept(listener));
    Ok(Server { path: config.path, identity, stop, abort, connections, accepting })
}

impl Server {
    /// The socket file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the socket file, lets every connection finish the requests that clients have sent, and closes those that
    /// are not done by the deadline. Nothing that was sent is left without an answer: what a client sends later fails
    /// at once, as a broken pipe. Returns how many had to be closed.
    pub async fn shutdown(self, deadline: Duration) -> usize {
        // Only if it is still ours: a successor may have put its own there already.
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
        self.stop.cancel();
        let _ = self.accepting.await;
        self.connections.close();
        if tokio::time::timeout(deadline, self.connections.wait()).await.is_ok() {
            return 0;
        }
        let closed = self.connections.len();
        self.abort.cancel();
        self.connections.wait().await;
        closed
    }
}

/// What names a file however its path is used later: device and inode.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let file = fs::symlink_metadata(path)?;
    Ok((file.dev(), file.ino()))
}

/// Removes the socket file of a process that is gone.
async fn clear_stale(path: &Path) -> Result<(), Error> {
    let failed = |doing| move |source| Error::Io { doing, path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at")(error)),
        Ok(file) if !file.file_type().is_socket() => return Err(Error::NotASocket { path: path.to_owned() }),
        Ok(_) => {}
    }
    match tokio::time::timeout(REFUSAL_TIMEOUT, UnixStream::connect(path)).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "replacing the socket file of a process that is gone");
            fs::remove_file(path).map_err(failed("remove the stale socket"))
        }
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => Err(failed("connect to")(error)),
        // It answered, or it is too busy to.
        _ => Err(Error::InUse { path: path.to_owned() }),
    }
}

/// What every connection is given.
#[derive(Clone)]
struct Door {
    service: Arc<Service>,
    gate: Arc<Gate>,
    shared: Arc<Shared>,
    places: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    stop: CancellationToken,
    abort: CancellationToken,
    connections: TaskTracker,
}

impl Door {
    async fn accept(self, listener: UnixListener) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.stop.cancelled() => {
                    // The socket's file is gone, so nobody new gets in; who was let in by the system may have sent
                    // something already, and is served.
                    while let Some(Ok((stream, _))) = listener.accept().now_or_never() {
                        self.admit(stream);
                    }
                    return;
                }
            };
            match accepted {
                Ok((stream, _)) => self.admit(stream),
                Err(error) => {
                    // Out of file descriptors, mostly: the connections that there are will end.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit(&self, stream: UnixStream) {
        let peer = stream.peer_cred().ok().map(|peer| Peer { uid: peer.uid(), gid: peer.gid() });
        let guest = Guest::new(Arc::clone(&self.service), Arc::clone(&self.gate), peer);
        if let Some(place) = self.place(&guest) {
            let door = self.clone();
            self.connections.spawn(async move {
                let abort = door.abort.clone();
                let _ = abort.run_until_cancelled(door.serve(stream, guest, place)).await;
            });
        } else if let Ok(refusal) = Arc::clone(&self.refusals).try_acquire_owned() {
            tokio::spawn(async move {
                let _refusal = refusal;
                let _ = tokio::time::timeout(REFUSAL_TIMEOUT, refuse(stream)).await;
            });
        }
    }

    /// A place for a connection, of those that whoever it is may have.
    fn place(&self, guest: &Guest) -> Option<Vec<OwnedSemaphorePermit>> {
        let stranger = guest.is_stranger().then_some(&self.strangers);
        let places = std::iter::once(&self.places).chain(stranger);
        places.map(|places| Arc::clone(places).try_acquire_owned().ok()).collect()
    }

    async fn serve(self, stream: UnixStream, guest: Guest, _place: Vec<OwnedSemaphorePermit>) {
        let _counted = Counted::new(&self);
        let mut first = BytesMut::with_capacity(4 * 1024);
        let mut stream = Ending::new(stream, self.stop.clone());
        let within = if guest.is_stranger() { STRANGER_TIMEOUT } else { Duration::MAX };
        if !matches!(tokio::time::timeout(within, stream.read_buf(&mut first)).await, Ok(Ok(1..))) {
            return;
        }
        let is_resp = first.first() == Some(&b'*');
        let (input, again) = if is_resp { (first, Bytes::new()) } else { (BytesMut::new(), first.freeze()) };
        let mut guarded = Guarded::new(stream, again, WRITE_TIMEOUT);
        let has_unread = if is_resp {
            resp::serve(&mut guarded, input, guest, self.shared).await == resp::Ended::Garbage
        } else {
            http::serve(&mut guarded, guest).await == http::Ended::Refused
        };
        if has_unread {
            let _ = tokio::time::timeout(REFUSAL_TIMEOUT, part(&mut guarded)).await;
        }
    }
}

/// Keeps the count of connections.
struct Counted(Arc<Service>, Arc<Shared>);

impl Counted {
    fn new(door: &Door) -> Self {
        door.shared.connections.fetch_add(1, Ordering::Relaxed);
        door.service.metrics.connections.increment(1.0);
        Self(Arc::clone(&door.service), Arc::clone(&door.shared))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.connections.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.connections.decrement(1.0);
    }
}

/// Tells a client that it is one too many, in its own dialect.
async fn refuse(mut stream: UnixStream) -> io::Result<()> {
    let mut first = [0_u8; 1];
    stream.read_exact(&mut first).await?;
    let answer = if first == *b"*" {
        resp::TOO_MANY_CONNECTIONS
    } else {
        http::raw_answer(&ApiError::Busy("too many connections on this socket".to_owned()))
    };
    stream.write_all(&answer).await?;
    part(&mut stream).await
}

/// Ends our side and reads on for a little: closing with bytes unread would tell the client of a broken connection
/// before it has read our last words.
async fn part(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin)) -> io::Result<()> {
    stream.shutdown().await?;
    let (mut discarded, mut piece) = (0, [0_u8; 4 * 1024]);
    while discarded < REFUSAL_DISCARD_BYTES_MAX {
        match stream.read(&mut piece).await? {
            0 => break,
            count => discarded += count,
        }
    }
    Ok(())
}
