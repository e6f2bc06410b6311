//! Keeps dialling the addresses that it was told, with backoff, and keeps quiet where a connection stands.

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::AbortHandle;

use super::DIALS_MAX;
use super::registry::{Registry, Standing};

/// The first pause after a failed attempt; doubles up to the longest.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// The longest pause between attempts, and the pause after a refusal, over a network.
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How often an address is dialled again whose node is connected from elsewhere: another may live there by now.
const VERIFY_EVERY: Duration = Duration::from_secs(30);

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A connection to whoever lives there stands, or is about to.
    Connected,
    /// This node itself lives there.
    Myself,
    /// One of the two does not want the other: an administrator must see to it.
    Refused,
    /// Nobody answered, or the connection broke.
    Failed,
}

/// What dials.
pub(super) trait Connector: Send + Sync + 'static {
    type Link: Standing;
    /// Tries once, until the outcome is known.
    fn attempt(self: Arc<Self>, addr: SocketAddr) -> impl Future<Output = Outcome> + Send;
    /// Where connections are kept.
    fn registry(&self) -> &Registry<Self::Link>;
}

/// One task per address.
pub(super) struct Dialer {
    backoff_max: Duration,
    tasks: Mutex<Tasks>,
}

#[derive(Default)]
struct Tasks {
    by_addr: HashMap<SocketAddr, AbortHandle>,
    closed: bool,
}

impl Dialer {
    /// One that pauses for `backoff_max` at most.
    pub(super) fn new(backoff_max: Duration) -> Self {
        Self { backoff_max, tasks: Mutex::default() }
    }

    /// Starts dialling `addr`, unless that is under way.
    pub(super) fn dial<C: Connector>(&self, connector: Arc<C>, addr: SocketAddr) {
        let mut tasks = self.tasks.lock();
        if tasks.closed || tasks.by_addr.contains_key(&addr) {
            return;
        }
        if tasks.by_addr.len() >= DIALS_MAX {
            tracing::warn!(%addr, "not dialled: {DIALS_MAX} addresses are being dialled already");
            return;
        }
        let task = tokio::spawn(keep_dialling(connector, addr, self.backoff_max)).abort_handle();
        tasks.by_addr.insert(addr, task);
    }

    /// Dials `addr` no more.
    pub(super) fn forget(&self, addr: SocketAddr) {
        if let Some(task) = self.tasks.lock().by_addr.remove(&addr) {
            task.abort();
        }
    }

    /// Dials nothing any more.
    pub(super) fn close(&self) {
        let mut tasks = self.tasks.lock();
        tasks.closed = true;
        tasks.by_addr.drain().for_each(|(_, task)| task.abort());
    }
}

async fn keep_dialling<C: Connector>(connector: Arc<C>, addr: SocketAddr, backoff_max: Duration) {
    let mut backoff = BACKOFF_MIN;
    loop {
        wait_while_connected(connector.registry(), addr).await;
        match Arc::clone(&connector).attempt(addr).await {
            Outcome::Connected => {
                // The other end may have decided a moment before this one learns of it, or still believe in a
                // connection that this one has lost.
                if registers(connector.registry(), addr, backoff).await {
                    backoff = BACKOFF_MIN;
                } else {
                    backoff = (backoff * 2).min(backoff_max);
                }
            }
            Outcome::Myself => {
                tracing::debug!(%addr, "this is our own address: not dialled again");
                return std::future::pending().await;
            }
            Outcome::Refused => tokio::time::sleep(jittered(backoff_max)).await,
            Outcome::Failed => {
                tokio::time::sleep(jittered(backoff)).await;
                backoff = (backoff * 2).min(backoff_max);
            }
        }
    }
}

/// Whether a connection to `addr` stands, or does so within `patience`.
async fn registers<L: Standing>(registry: &Registry<L>, addr: SocketAddr, patience: Duration) -> bool {
    let mut changes = registry.changes();
    let stands = async { while registry.at(addr).is_none() && changes.changed().await.is_ok() {} };
    tokio::time::timeout(patience, stands).await.is_ok()
}

async fn wait_while_connected<L: Standing>(registry: &Registry<L>, addr: SocketAddr) {
    let mut changes = registry.changes();
    let verify = tokio::time::sleep(jittered(VERIFY_EVERY));
    tokio::pin!(verify);
    while let Some(link) = registry.at(addr) {
        let elsewhere = link.addr() != addr;
        drop(link);
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = &mut verify, if elsewhere => return,
        }
    }
}

/// Three quarters to all of `pause`, so that nodes that failed together do not try again together.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.75 + 0.25 * rand::random::<f64>())
}
