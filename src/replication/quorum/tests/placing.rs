//! Nodes that hold only some shards: those they replicate, and those their application uses.

use super::*;
use crate::cluster::change::VoterChange;
use crate::cluster::membership::Membership;

const FIVE: [&str; 5] = ["a", "b", "c", "d", "e"];

/// Five voters, each shard on three of them.
struct Placed {
    network: Arc<Network>,
    dirs: Vec<TempDir>,
    nodes: Vec<Node>,
}

fn how() -> How<'static> {
    How { voters: &FIVE, factor: Some(3), ..How::default() }
}

impl Placed {
    async fn start(how: How<'static>) -> Self {
        let (network, mut placed) = (Network::new(), Vec::new());
        for name in FIVE {
            let dir = tempfile::tempdir().unwrap();
            placed.push((Node::start_as(&network, dir.path(), name, how, |events| events).await, dir));
        }
        let (nodes, dirs): (Vec<_>, _) = placed.into_iter().unzip();
        let cluster = Self { network, dirs, nodes };
        for (from, node) in cluster.nodes.iter().enumerate() {
            for other in cluster.nodes.iter().skip(from + 1) {
                node.transport.dial(other.transport.local_addr());
            }
        }
        for node in &cluster.nodes {
            node.status_is("whole", |status| status.ready().is_ok() && status.reachable == FIVE.len()).await;
        }
        cluster
    }

    fn membership(&self) -> Membership {
        self.nodes[0].replicator.membership().borrow().clone()
    }

    /// The nodes that replicate the shard, and the others.
    fn split(&self) -> (Vec<usize>, Vec<usize>) {
        let replicas = self.membership().old_replicas(&shard());
        (0..FIVE.len()).partition(|n| replicas.contains(n))
    }

    async fn placed_on(&self, n: usize, is: impl Fn(&Membership) -> bool) {
        let mut membership = self.nodes[n].replicator.membership();
        let seen =
            tokio::time::timeout(PATIENCE, membership.wait_for(|now| !now.is_joint() && is(now))).await.map(drop);
        assert!(seen.is_ok(), "{:?}: {:?}", self.membership(), self.nodes[0].replicator.change_status());
    }
}

impl Node {
    fn holds_file(&self) -> bool {
        self.manager.exists(&shard())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_is_on_its_replicas_alone_until_others_use_it() {
    let cluster = Placed::start(how()).await;
    let (replicas, others) = cluster.split();
    assert_eq!((replicas.len(), others.len()), (3, 2));
    cluster.nodes[replicas[0]].accepted("k", put("v")).await;
    for n in &replicas {
        cluster.nodes[*n].has("k", "v").await;
    }
    let [first, second] = others[..] else { panic!("{others:?}") };
    assert!(!cluster.nodes[first].holds_file() && !cluster.nodes[second].holds_file());
    // A question to the quorum needs no copy; the first local read gets one, and is told what changes from then on.
    let read = cluster.nodes[first].accepted("k", Update::read()).await;
    assert_eq!(read.before.unwrap().value, Value::from("v"));
    assert_eq!(cluster.nodes[first].local("k").await.unwrap().value, Value::from("v"), "all of it is there at once");
    cluster.nodes[replicas[1]].accepted("k", put("w")).await;
    cluster.nodes[first].has("k", "w").await;
    assert!(!cluster.nodes[second].holds_file());
    // Who writes without being a replica sees its own write.
    cluster.nodes[second].accepted("l", put("x")).await;
    assert_eq!(cluster.nodes[second].local("l").await.unwrap().value, Value::from("x"));
    assert_eq!(cluster.nodes[second].local("k").await.unwrap().value, Value::from("w"));
    cluster.nodes[first].has("l", "x").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_majority_of_the_replicas_decides_and_nobody_else() {
    let cluster = Placed::start(how()).await;
    let (replicas, others) = cluster.split();
    let writer = &cluster.nodes[others[0]];
    writer.accepted("k", put("v")).await;
    // One replica and the other voter are away: two of three are left.
    for away in [replicas[0], others[1]] {
        for n in (0..FIVE.len()).filter(|n| *n != away) {
            cluster.network.cut(&node(FIVE[away]), &node(FIVE[n]));
        }
    }
    writer.accepted("k", put("w")).await;
    // With the second replica gone a majority of the voters is there, and not of the shard's replicas.
    for n in (0..FIVE.len()).filter(|n| *n != replicas[1]) {
        cluster.network.cut(&node(FIVE[replicas[1]]), &node(FIVE[n]));
    }
    writer.status_is("two of five", |status| status.reachable == 2).await;
    cluster.network.heal(&node(FIVE[others[0]]), &node(FIVE[others[1]]));
    cluster.network.heal(&node(FIVE[others[1]]), &node(FIVE[replicas[2]]));
    writer.status_is("three of five", |status| status.reachable == 3).await;
    match writer.update("k", put("x")).await {
        Decision::Reject(Rejection::NoQuorum(why)) => {
            assert!(why.contains("1 of 3 replicas of acme/orders, 2 needed; away: "), "{why}");
        }
        other => panic!("{other:?}"),
    }
    for away in &replicas[..2] {
        for n in (0..FIVE.len()).filter(|n| n != away) {
            cluster.network.heal(&node(FIVE[*away]), &node(FIVE[n]));
        }
    }
    for n in replicas {
        cluster.nodes[n].has("k", "w").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_moves_to_where_it_is_wanted_and_is_given_up_where_it_was() {
    let cluster = Placed::start(how()).await;
    let (replicas, others) = cluster.split();
    for n in 0..200 {
        cluster.nodes[replicas[0]].accepted(&format!("k{n}"), put("v")).await;
    }
    let to = others.iter().map(|n| node(FIVE[*n])).collect();
    cluster.nodes[replicas[0]].replicator.change(VoterChange::Move { shard: shard(), to }).await.unwrap();
    for n in 0..FIVE.len() {
        cluster.placed_on(n, |now| others.iter().all(|other| now.old_replicas(&shard()).contains(other))).await;
    }
    let after = cluster.membership().old_replicas(&shard());
    assert_eq!(after.len(), 3);
    let left: Vec<usize> = replicas.iter().copied().filter(|n| !after.contains(n)).collect();
    assert_eq!(left.len(), 2);
    for n in &after {
        let node = &cluster.nodes[*n];
        until("moved here", async || node.stored("k199").await.is_some() && node.stored("k0").await.is_some()).await;
    }
    for n in &left {
        let node = &cluster.nodes[*n];
        // The one that wrote uses it.
        if *n != replicas[0] {
            until("given up", async || !node.holds_file()).await;
        }
        assert_eq!(node.local("k7").await.unwrap().value, Value::from("v"), "and fetched again where it is used");
    }
    cluster.nodes[left[0]].accepted("late", put("w")).await;
    for n in after {
        cluster.nodes[n].has("late", "w").await;
    }
    assert!(!cluster.dirs.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_factor_changes_and_nothing_is_lost() {
    let cluster = Placed::start(How { factor: None, ..how() }).await;
    for n in 0..100 {
        cluster.nodes[n % 5].accepted(&format!("k{n}"), put("v")).await;
    }
    for factor in [Some(3), Some(1), None] {
        cluster.nodes[2].replicator.change(VoterChange::Factor(factor)).await.unwrap();
        for n in 0..FIVE.len() {
            cluster.placed_on(n, |now| now.placement().replication_factor == factor).await;
        }
        let name = format!("with {factor:?}");
        cluster.nodes[1].accepted(&name, put("w")).await;
        for node in &cluster.nodes {
            assert_eq!(node.accepted(&name, Update::read()).await.before.unwrap().value, Value::from("w"));
        }
    }
    for node in &cluster.nodes {
        for n in 0..100 {
            node.has(&format!("k{n}"), "v").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missed_on_the_way_to_a_follower_is_repaired() {
    let cluster = Placed::start(how()).await;
    let (replicas, others) = cluster.split();
    let follower = &cluster.nodes[others[0]];
    cluster.nodes[replicas[0]].accepted("k", put("v")).await;
    follower.has("k", "v").await;
    for n in (0..FIVE.len()).filter(|n| *n != others[0]) {
        cluster.network.cut(&node(FIVE[others[0]]), &node(FIVE[n]));
    }
    follower.status_is("alone", |status| status.reachable == 1).await;
    cluster.nodes[replicas[0]].accepted("k", put("w")).await;
    assert_eq!(follower.local("k").await.unwrap().value, Value::from("v"), "its copy is read all the same");
    for n in (0..FIVE.len()).filter(|n| *n != others[0]) {
        cluster.network.heal(&node(FIVE[others[0]]), &node(FIVE[n]));
    }
    follower.has("k", "w").await;
    let in_step = |status: &QuorumStatus| status.peers.iter().all(|peer| peer.in_step);
    for node in &cluster.nodes {
        node.status_is("in step with all", in_step).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_nobody_uses_is_given_up() {
    let cluster = Placed::start(How { unused_drop_after: Duration::from_secs(1), ..how() }).await;
    let (replicas, others) = cluster.split();
    cluster.nodes[replicas[0]].accepted("k", put("v")).await;
    let follower = &cluster.nodes[others[0]];
    follower.has("k", "v").await;
    assert!(follower.holds_file());
    until("given up", async || !follower.holds_file()).await;
    cluster.nodes[replicas[0]].accepted("k", put("w")).await;
    follower.has("k", "w").await;
}

/// A watch that went on for longer than a copy is kept unused was told of nothing any more once peers had restarted.
#[tokio::test(flavor = "multi_thread")]
async fn to_watch_a_shard_is_to_use_it() {
    let cluster = Placed::start(How { unused_drop_after: Duration::from_secs(1), ..how() }).await;
    let (replicas, others) = cluster.split();
    cluster.nodes[replicas[0]].accepted("k", put("v")).await;
    let follower = &cluster.nodes[others[0]];
    let watch = follower.manager.feed().watch(&shard(), vec![String::new()], None, Arc::default()).unwrap();
    until("fetched", async || follower.stored("k").await.is_some()).await;
    // Much longer than it is kept unused.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(follower.replicator.copies.is_used(&shard()) && follower.holds_file());
    cluster.nodes[replicas[0]].accepted("later", put("w")).await;
    until("told", async || follower.stored("later").await.is_some()).await;
    drop(watch);
    until("given up", async || !follower.holds_file()).await;
}
