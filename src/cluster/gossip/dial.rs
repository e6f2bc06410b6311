//! Whom to dial: the addresses that the seeds resolve to, and those that voters say of themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::timeout;

use crate::transport::Transport;

/// How often the seeds' names are looked up: a pod that moved is found within this time.
pub const LOOKUP_INTERVAL: Duration = Duration::from_secs(10);
/// How long one lookup may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// How many addresses of one seed are dialled, the lowest first.
pub const ADDRESSES_PER_SEED_MAX: usize = 64;

/// Finds the addresses behind `host:port`.
#[async_trait]
pub trait Resolve: Send + Sync + 'static {
    /// All of them, in any order; an address resolves to itself.
    async fn resolve(&self, seed: &str) -> io::Result<Vec<SocketAddr>>;
}

/// The operating system's resolver.
#[derive(Debug, Clone, Copy, Default)]
pub struct Dns;

#[async_trait]
impl Resolve for Dns {
    async fn resolve(&self, seed: &str) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host(seed).await?.collect())
    }
}

/// Keeps the transport dialling exactly the addresses that someone vouches for now.
pub(super) struct Dialer {
    transport: Arc<dyn Transport>,
    own: SocketAddr,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    seeds: BTreeMap<String, BTreeSet<SocketAddr>>,
    voters: BTreeSet<SocketAddr>,
    dialled: BTreeSet<SocketAddr>,
    /// The seeds whose last lookup failed, and how: a failure is logged when it is new.
    failing: BTreeMap<String, String>,
}

impl Dialer {
    /// Dials nobody yet; never `own`, this node's own address.
    pub(super) fn new(transport: Arc<dyn Transport>, own: SocketAddr) -> Self {
        Self { transport, own: canonical(own), book: Mutex::new(Book::default()) }
    }

    /// Looks every seed up, once. One that fails keeps the addresses it had: a name server that is away moves nobody.
    pub(super) async fn look_up(&self, seeds: &[String], resolver: &dyn Resolve) {
        let lookups = seeds.iter().map(|seed| async move {
            let found = match timeout(LOOKUP_TIMEOUT, resolver.resolve(seed)).await {
                Ok(Ok(found)) if found.is_empty() => Err("it has no addresses".to_owned()),
                Ok(Ok(found)) => Ok(found),
                Ok(Err(e)) => Err(e.to_string()),
                Err(_) => Err(format!("no answer within {LOOKUP_TIMEOUT:?}")),
            };
            match found {
                Ok(found) => self.resolved(seed, found),
                Err(reason) => self.failed(seed, reason),
            }
        });
        futures_util::future::join_all(lookups).await;
    }

    fn resolved(&self, seed: &str, found: Vec<SocketAddr>) {
        let addresses: BTreeSet<_> = found.into_iter().map(canonical).collect();
        let addresses: BTreeSet<_> = addresses.into_iter().take(ADDRESSES_PER_SEED_MAX).collect();
        let mut book = self.book.lock();
        if book.failing.remove(seed).is_some() {
            tracing::info!(seed, "the seed can be looked up again");
        }
        if book.seeds.get(seed) != Some(&addresses) {
            tracing::info!(seed, ?addresses, "the seed's addresses");
            book.seeds.insert(seed.to_owned(), addresses);
        }
        self.apply(&mut book);
    }

    fn failed(&self, seed: &str, reason: String) {
        let mut book = self.book.lock();
        if book.failing.get(seed) != Some(&reason) {
            tracing::warn!(seed, reason, "could not look the seed up; it will be tried again, check [peer] seeds");
            book.failing.insert(seed.to_owned(), reason);
        }
    }

    /// Dials these addresses of voters, and no longer those that were named before and are not now.
    pub(super) fn set_voters(&self, addresses: impl Iterator<Item = SocketAddr>) {
        let addresses: BTreeSet<_> = addresses.map(canonical).collect();
        let mut book = self.book.lock();
        if book.voters != addresses {
            book.voters = addresses;
            self.apply(&mut book);
        }
    }

    fn apply(&self, book: &mut Book) {
        let mut wanted: BTreeSet<SocketAddr> = book.seeds.values().flatten().chain(&book.voters).copied().collect();
        wanted.retain(|addr| *addr != self.own && addr.port() != 0 && !addr.ip().is_unspecified());
        for gone in book.dialled.difference(&wanted) {
            self.transport.forget(*gone);
        }
        for new in wanted.difference(&book.dialled) {
            self.transport.dial(*new);
        }
        book.dialled = wanted;
    }
}

/// One form of each address: IPv4 behind IPv6 is IPv4, or the same node would be dialled twice.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}
