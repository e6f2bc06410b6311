//! How many may stand in the door: connections of others that are not links yet. They are counted together and by the
//! host that they come from, so that none keeps the others out by saying nothing. Pure.
//!
//! ```text
//!   less than half of either number      come in
//!   more, address not proven             prove it (QUIC's Retry): a forged address gets no further
//!   at either number                     not answered
//! ```

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

/// The most in the door at once.
pub(super) const HANDSHAKES_MAX: usize = 64;
/// The most of one host. Nodes of one machine are few, and need milliseconds.
pub(super) const HANDSHAKES_PER_HOST_MAX: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Doorway(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    by_host: HashMap<IpAddr, usize>,
}

/// What becomes of somebody at the door.
#[derive(Debug)]
pub(super) enum Entry {
    /// In the door until this is dropped.
    Comes(Visit),
    /// Must show first that it receives at the address that it sends from.
    MustProve,
    /// Not now.
    Ignored,
}

#[derive(Debug)]
pub(super) struct Visit {
    doorway: Arc<Doorway>,
    host: IpAddr,
}

impl Doorway {
    pub(super) fn enter(self: &Arc<Self>, from: IpAddr, is_proven: bool) -> Entry {
        let host = host(from);
        let mut counts = self.0.lock();
        let here = counts.by_host.get(&host).copied().unwrap_or(0);
        if counts.all >= HANDSHAKES_MAX || here >= HANDSHAKES_PER_HOST_MAX {
            return Entry::Ignored;
        }
        if !is_proven && (counts.all >= HANDSHAKES_MAX / 2 || here >= HANDSHAKES_PER_HOST_MAX / 2) {
            return Entry::MustProve;
        }
        counts.all += 1;
        *counts.by_host.entry(host).or_default() += 1;
        Entry::Comes(Visit { doorway: Arc::clone(self), host })
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut counts = self.doorway.0.lock();
        counts.all = counts.all.saturating_sub(1);
        if let Some(here) = counts.by_host.get_mut(&self.host) {
            *here = here.saturating_sub(1);
            if *here == 0 {
                counts.by_host.remove(&self.host);
            }
        }
    }
}

/// Who has one IPv6 address has the 2^64 beside it.
fn host(addr: IpAddr) -> IpAddr {
    match addr {
        IpAddr::V6(v6) => IpAddr::from((u128::from(v6) >> 64 << 64).to_be_bytes()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn come(doorway: &Arc<Doorway>, from: &str, is_proven: bool) -> Option<Visit> {
        match doorway.enter(from.parse().unwrap(), is_proven) {
            Entry::Comes(visit) => Some(visit),
            Entry::MustProve | Entry::Ignored => None,
        }
    }

    #[test]
    fn one_host_leaves_room_for_others_and_forged_addresses_for_the_one_they_name() {
        let doorway = Arc::new(Doorway::default());
        let crowd = |from: &str, is_proven| -> Vec<_> {
            std::iter::from_fn(|| come(&doorway, from, is_proven)).take(HANDSHAKES_MAX + 1).collect()
        };
        let forged = crowd("10.0.0.1", false);
        assert_eq!(forged.len(), HANDSHAKES_PER_HOST_MAX / 2);
        assert!(matches!(doorway.enter([10, 0, 0, 1].into(), false), Entry::MustProve));
        let proven = crowd("10.0.0.1", true);
        assert_eq!(forged.len() + proven.len(), HANDSHAKES_PER_HOST_MAX);
        assert!(matches!(doorway.enter([10, 0, 0, 1].into(), true), Entry::Ignored));
        // The addresses of one IPv6 network are one host's.
        let six = crowd("fd00::1", true);
        assert_eq!(six.len(), HANDSHAKES_PER_HOST_MAX);
        assert!(come(&doorway, "fd00::ffff:2", true).is_none());
        // Half is taken: strangers must prove where they are, wherever they come from.
        assert!(matches!(doorway.enter([10, 0, 0, 2].into(), false), Entry::MustProve));
        let others = ["10.0.0.3", "fd00:0:0:1::1", "10.0.0.4"].map(|from| crowd(from, true));
        assert_eq!(others.each_ref().map(Vec::len), [HANDSHAKES_PER_HOST_MAX, HANDSHAKES_PER_HOST_MAX, 0]);
        drop(proven);
        assert_eq!(crowd("10.0.0.1", true).len(), HANDSHAKES_PER_HOST_MAX / 2);
        drop((forged, six, others));
        assert!(doorway.0.lock().by_host.is_empty() && doorway.0.lock().all == 0);
    }
}
