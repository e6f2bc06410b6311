//! Rows that were missed while connected, and what is known of the peers' rows.

use super::*;
use crate::store::digest::Root;

impl Node {
    /// Writes out what waits for its file, and sums up all rows.
    pub(super) fn root(&self) -> Option<Root> {
        self.manager.sync_all().unwrap();
        self.manager.root()
    }
}

impl Cluster {
    /// What gossip does about once a second.
    pub(super) fn look(&self) {
        let roots: Vec<_> = self.nodes.iter().zip(NAMES).map(|(each, name)| (node(name), each.root())).collect();
        for (each, (name, root)) in self.nodes.iter().zip(&roots) {
            each.replicator.look(*root, roots.iter().filter(|(other, _)| other != name).cloned().collect());
        }
    }

    pub(super) async fn all_in_step(&self) {
        for node in &self.nodes {
            node.status_is("in step", |status| status.peers.iter().all(|peer| peer.in_step)).await;
        }
    }
}

/// A row that no peer told a node of, as when a queue was full: it had the old one until it connected again.
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_told_is_found_by_the_roots() {
    let cluster = Cluster::start().await;
    cluster.nodes[0].accepted("k", put("old")).await;
    for node in &cluster.nodes {
        node.has("k", "old").await;
    }
    cluster.all_in_step().await;
    // Chosen, and known to two of three.
    let upd = Ballot(cluster.nodes[0].clock.now().wall);
    for node in &cluster.nodes[..2] {
        let op = Op::Put(Value::from("new"));
        node.manager.on_commit(&Frame { shard: shard(), seq: 1, key: key("k"), op, upd, ballot: upd });
        node.manager.on_commit(&Frame { shard: shard(), seq: 1, key: key("gone"), op: Op::Del, upd, ballot: upd });
    }
    until("its copy is brought up to date", async || {
        cluster.look();
        cluster.nodes[2].local("k").await.is_some_and(|row| row.value == Value::from("new"))
    })
    .await;
    until("all agree", async || cluster.nodes.iter().all(|node| node.root() == cluster.nodes[0].root())).await;
    until("and know it", async || {
        cluster.look();
        let is_in_step = |node: &Node| node.replicator.status().peers.iter().all(|peer| peer.in_step);
        cluster.nodes.iter().all(is_in_step)
    })
    .await;
}

/// "in step" was said of a peer whose rows had been compared, whatever came out.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_lacks_a_row_is_not_called_in_step() {
    let cluster = Cluster::start().await;
    cluster.all_in_step().await;
    let upd = Ballot(cluster.nodes[0].clock.now().wall);
    let op = Op::Put(Value::from("here alone"));
    cluster.nodes[0].manager.on_commit(&Frame { shard: shard(), seq: 1, key: key("k"), op, upd, ballot: upd });
    // Only this node looks, and so only it compares.
    let first = &cluster.nodes[0];
    let root = cluster.nodes[1].root();
    let theirs: Vec<_> = ["b", "c"].map(|name| (node(name), root)).into();
    until("it is found out", async || {
        first.replicator.look(first.root(), theirs.clone());
        first.replicator.status().peers.iter().all(|peer| !peer.in_step)
    })
    .await;
    assert!(first.replicator.status().ready().is_ok(), "it has what they have");
    until("they have it, and are in step", async || {
        cluster.look();
        first.replicator.status().peers.iter().all(|peer| peer.in_step)
    })
    .await;
    for node in &cluster.nodes {
        node.has("k", "here alone").await;
    }
}
