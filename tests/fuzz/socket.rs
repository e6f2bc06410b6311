//! A node's socket that is sent anything at all. Nothing may panic behind it, no connection may hang, and it serves the
//! next client as if nothing had been.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use outrigger::api::{self, Server, Service, ServiceConfig};
use outrigger::clock::OsClock;
use outrigger::replication::local::LocalReplicator;
use outrigger::store::Manager;
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use crate::engine::fast_dir;
use crate::told::Told;

/// How long a connection may take to end once its client has said all.
const PATIENCE: Duration = Duration::from_secs(10);

static PANICS: AtomicU64 = AtomicU64::new(0);

/// Panics of this process so far that a task or a thread of the node took with it; a test's own are told by the test.
pub(crate) fn panics() -> u64 {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let told = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let is_tests_own = std::thread::current().name().is_some_and(|name| name.contains("::"));
            PANICS.fetch_add(u64::from(!is_tests_own), Ordering::SeqCst);
            told(panic);
        }));
    });
    PANICS.load(Ordering::SeqCst)
}

/// A node of one.
pub(crate) struct Node {
    runtime: Runtime,
    path: PathBuf,
    _kept: (tempfile::TempDir, Arc<Manager>, Server),
}

impl Node {
    pub(crate) fn start() -> Self {
        panics();
        let runtime = Runtime::new().unwrap();
        let dir = fast_dir();
        let (manager, server) = runtime.block_on(async {
            let manager = Manager::new(dir.path().join("data")).unwrap();
            manager.with_replicator(LocalReplicator::new(&manager, OsClock::shared()));
            let config = ServiceConfig {
                input_bytes_max: outrigger::api::INPUT_BYTES_MAX,
                key_bytes_max: 1024,
                value_bytes_max: 64 * 1024,
                timeout_default: Duration::from_secs(2),
                timeout_max: Duration::from_secs(3),
            };
            let service = Service::new(config, Arc::clone(&manager), Arc::new(Told::default()), None);
            let server = api::serve(api::Config::at(dir.path().join("o.sock")), service).await.unwrap();
            (manager, server)
        });
        let path = server.path().to_owned();
        Self { runtime, path, _kept: (dir, manager, server) }
    }

    /// Sends some bytes in these pieces, says that this was all, and returns everything that came back.
    pub(crate) fn send(&self, pieces: &[&[u8]]) -> Vec<u8> {
        let before = panics();
        let answer = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, self.exchange(pieces)).await });
        assert_eq!(panics(), before, "something panicked behind the socket");
        answer.unwrap_or_else(|_| panic!("the connection did not end in {PATIENCE:?}"))
    }

    async fn exchange(&self, pieces: &[&[u8]]) -> Vec<u8> {
        let (mut from, mut to) = UnixStream::connect(&self.path).await.unwrap().into_split();
        let write = async {
            for piece in pieces {
                // A node that has closed the connection wants no more.
                if to.write_all(piece).await.is_err() {
                    return;
                }
                tokio::task::yield_now().await;
            }
            let _ = to.shutdown().await;
        };
        let read = async {
            let mut answer = Vec::new();
            let mut part = vec![0; 64 * 1024];
            // A connection closed with bytes unread ends in an error: what came before it counts.
            while let Ok(1..) = from.read(&mut part).await.inspect(|read| answer.extend_from_slice(&part[..*read])) {
                if is_watch(&answer) {
                    break;
                }
            }
            answer
        };
        tokio::pin!(read);
        tokio::select! {
            biased;
            answer = &mut read => answer,
            () = write => read.await,
        }
    }

    /// Whether the next client is served.
    pub(crate) fn check_alive(&self) {
        assert_eq!(self.send(&[b"*1\r\n$4\r\nPING\r\n"]), b"+PONG\r\n");
    }
}

/// Whether an answer is one that goes on for as long as the client listens.
pub(crate) fn is_watch(answer: &[u8]) -> bool {
    const KIND: &[u8] = b"content-type: text/event-stream";
    answer.windows(KIND.len()).any(|part| part.eq_ignore_ascii_case(KIND))
}

/// Cuts bytes into a few pieces at random places.
pub(crate) fn pieces<'a>(input: &'a [u8], rng: &mut StdRng) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = (0..rng.random_range(0..6)).map(|_| rng.random_range(0..=input.len())).collect();
    cuts.extend([0, input.len()]);
    cuts.sort_unstable();
    cuts.windows(2).map(|cut| &input[cut[0]..cut[1]]).filter(|piece| !piece.is_empty()).collect()
}
