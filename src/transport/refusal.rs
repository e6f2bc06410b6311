//! Connections that were refused: counted each time, logged and remembered once per peer and reason.

use std::collections::VecDeque;
use std::net::SocketAddr;

use metrics::Counter;
use parking_lot::Mutex;

use super::Refusal;
use crate::telemetry::PEERS_REFUSED;
use crate::types::NodeId;

/// How many refusals are remembered; the oldest goes.
const REFUSALS_MAX: usize = 64;
/// The longest reason shown, in characters: it may come from the peer.
const REASON_CHARS_MAX: usize = 1024;

/// Where a connection came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The peer has no certificate of our CA, or we none of its.
    Tls,
    /// The hellos do not fit, as judged here.
    Hello,
    /// The hellos do not fit, as judged there.
    TheirHello,
}

pub(super) struct Refusals {
    tls: Counter,
    hello: Counter,
    known: Mutex<VecDeque<Refusal>>,
}

impl Refusals {
    pub(super) fn new() -> Self {
        Self {
            tls: metrics::counter!(PEERS_REFUSED, "reason" => "tls"),
            hello: metrics::counter!(PEERS_REFUSED, "reason" => "hello"),
            known: Mutex::default(),
        }
    }

    /// Counts a refusal, and logs it if it is news.
    pub(super) fn note(&self, stage: Stage, addr: SocketAddr, node: Option<&NodeId>, reason: &str) {
        match stage {
            Stage::Tls => self.tls.increment(1),
            Stage::Hello | Stage::TheirHello => self.hello.increment(1),
        }
        let reason: String =
            reason.chars().map(|c| if c.is_control() { ' ' } else { c }).take(REASON_CHARS_MAX).collect();
        let refusal = Refusal { node: node.cloned(), addr, reason };
        {
            let mut known = self.known.lock();
            if known.iter().any(|known| known.is_same(&refusal)) {
                return;
            }
            if known.len() >= REFUSALS_MAX {
                known.pop_front();
            }
            known.push_back(refusal.clone());
        }
        let peer = refusal.node.as_ref().map_or("unknown", NodeId::as_str);
        match stage {
            Stage::Tls => tracing::warn!(%addr, "connection refused: {}", refusal.reason),
            Stage::Hello => tracing::warn!(%addr, peer, "peer refused: {}", refusal.reason),
            Stage::TheirHello => tracing::warn!(%addr, peer, "refused by the peer: {}", refusal.reason),
        }
    }

    /// The trouble with `node` is over: the same one would be news again.
    pub(super) fn clear(&self, node: &NodeId, addr: SocketAddr) {
        self.known.lock().retain(|known| known.node.as_ref() != Some(node) && known.addr != addr);
    }

    pub(super) fn all(&self) -> Vec<Refusal> {
        self.known.lock().iter().cloned().collect()
    }
}

impl Refusal {
    /// A peer without a name is known by its host alone, as strangers come from ever other ports.
    fn is_same(&self, other: &Self) -> bool {
        let same_peer = match (&self.node, &other.node) {
            (Some(a), Some(b)) => a == b,
            (None, None) => self.addr.ip() == other.addr.ip(),
            _ => false,
        };
        same_peer && self.reason == other.reason
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_reason_is_remembered_once_per_peer_until_the_trouble_is_over() {
        let refusals = Refusals::new();
        let node = NodeId::parse("b").unwrap();
        let addr = |port| SocketAddr::from(([127, 0, 0, 1], port));
        refusals.note(Stage::Hello, addr(1), Some(&node), "other\nvoters");
        refusals.note(Stage::Hello, addr(2), Some(&node), "other\nvoters");
        refusals.note(Stage::Tls, addr(3), None, "no certificate");
        refusals.note(Stage::Tls, addr(4), None, "no certificate");
        let reasons: Vec<_> = refusals.all().into_iter().map(|refusal| refusal.reason).collect();
        assert_eq!(reasons, ["other voters", "no certificate"]);
        refusals.clear(&node, addr(9));
        assert_eq!(refusals.all().len(), 1);
        for n in 0..200 {
            refusals.note(Stage::Hello, addr(1), Some(&node), &n.to_string());
        }
        assert_eq!(refusals.all().len(), REFUSALS_MAX);
    }
}
