//! A key that is rolled: two nodes and a third that is late, with connections that stand all the while.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use super::super::{Config, QuicTransport};
use super::with_key;
use crate::transport::tests::{OverQuic, Peer, polite, until};
use crate::transport::{Event, Transport as _};

const OLD: &str = "the old secret of all of them";
const NEW: &str = "the new secret of all of them";

struct Member {
    name: &'static str,
    peer: Peer,
    raw: Arc<QuicTransport>,
}

async fn start(harness: &OverQuic, name: &'static str, keys: &[&str]) -> Member {
    let config = Config { reload_every: Duration::from_millis(20), ..with_key(harness, name, &keys.join("\n")) };
    let (peer, raw) = harness.start_with(config, polite()).await;
    Member { name, peer, raw }
}

impl Member {
    /// Has other keys from now on, without a restart.
    async fn turns_to(&self, harness: &OverQuic, keys: &[&str]) {
        let before = self.raw.identity_changes();
        harness.file(&format!("key of {}", self.name), format!("{}\n", keys.join("\n")));
        until("the change", || (self.raw.identity_changes() > before).then_some(())).await;
    }

    async fn meets(&mut self, other: &mut Self) {
        self.peer.transport.dial(other.peer.addr);
        self.peer.up(other.name).await;
        other.peer.up(self.name).await;
    }

    async fn tells(&self, other: &mut Self, word: &'static str) {
        self.peer.send(&other.peer, word);
        assert_eq!(other.peer.message(self.name).await, word);
    }

    /// Its one connection ends with it.
    async fn leaves(self, other: &mut Self) {
        self.raw.close().await;
        other.peer.down(self.name).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_rolled_node_by_node_while_connections_stand() {
    let harness = OverQuic::default();
    let mut a = start(&harness, "a", &[OLD]).await;
    let mut b = start(&harness, "b", &[OLD]).await;
    let mut late = start(&harness, "late", &[OLD]).await;
    a.meets(&mut b).await;
    a.meets(&mut late).await;

    // First: the new key as second everywhere. Who comes with the old one still gets in, and who is signed by the new one.
    a.turns_to(&harness, &[OLD, NEW]).await;
    b.turns_to(&harness, &[OLD, NEW]).await;
    for (name, keys) in [("guest", [OLD, NEW]), ("ghost", [NEW, OLD])] {
        let mut guest = start(&harness, name, &keys).await;
        guest.meets(&mut a).await;
        guest.leaves(&mut a).await;
    }
    let mut old = start(&harness, "old", &[OLD]).await;
    old.meets(&mut a).await;
    old.leaves(&mut a).await;

    // Second: the new key signs. A node still on the old one keeps its connection, and cannot make another.
    a.turns_to(&harness, &[NEW, OLD]).await;
    b.turns_to(&harness, &[NEW, OLD]).await;
    a.tells(&mut late, "still here").await;
    late.tells(&mut a, "me too").await;
    let mut forgotten = start(&harness, "forgotten", &[OLD]).await;
    forgotten.peer.transport.dial(a.peer.addr);
    forgotten.peer.refusal("key_file").await;
    assert!(forgotten.peer.inbox.events.try_recv().is_err());
    // It catches up while it runs, and gets in.
    forgotten.turns_to(&harness, &[OLD, NEW]).await;
    forgotten.peer.up("a").await;
    a.peer.up("forgotten").await;
    forgotten.leaves(&mut a).await;

    // Third: the old key goes. Whoever has nothing else is out.
    late.turns_to(&harness, &[NEW, OLD]).await;
    for member in [&a, &b, &late] {
        member.turns_to(&harness, &[NEW]).await;
    }
    let stolen = start(&harness, "stolen", &[OLD, NEW]).await;
    stolen.peer.transport.dial(b.peer.addr);
    b.peer.refusal("key_file").await;
    b.meets(&mut late).await;

    a.tells(&mut b, "never interrupted").await;
    b.tells(&mut a, "nor I").await;
    a.tells(&mut late, "nor we").await;
    for member in [&mut a, &mut b, &mut late] {
        assert!(!matches!(member.peer.inbox.events.try_recv(), Ok(Event::Down { .. })), "{}", member.name);
    }
}

/// A file that was saved empty, cut short or open to all must not lock a node out, nor let anybody in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_file_that_cannot_be_used_changes_nothing() {
    let harness = OverQuic::default();
    let mut a = start(&harness, "a", &[OLD]).await;
    let key = harness.dir.path().join("key of a");
    let raw = Arc::clone(&a.raw);
    let trouble = async |words: &str| until(words, || raw.trouble().filter(|trouble| trouble.contains(words))).await;
    harness.file("key of a", "");
    trouble("holds 0 bytes").await;
    harness.file("key of a", format!("{NEW}\nshort\n"));
    trouble("5 bytes on line 2").await;
    harness.file("key of a", OLD);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    trouble("mode 0644").await;
    std::fs::remove_file(&key).unwrap();
    trouble("cannot read").await;
    // Meanwhile the former key is in use.
    let mut b = start(&harness, "b", &[OLD]).await;
    b.meets(&mut a).await;
    assert_eq!(raw.identity_changes(), 0);
    harness.file("key of a", OLD);
    until("the end of the trouble", || raw.trouble().is_none().then_some(())).await;
    a.turns_to(&harness, &[NEW, OLD]).await;
    b.tells(&mut a, "still here").await;
}
