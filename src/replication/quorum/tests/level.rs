//! A copy that is to have everything acknowledged anywhere: what this node was not told of is fetched first.

use std::sync::atomic::AtomicI32;

use super::*;
use crate::transport::Lane;
use crate::transport::memory::{Fate, Weather};

/// Of what `a` says to the others in the protocol's lane only so much still arrives; all, below zero.
#[derive(Debug)]
struct Hoarse {
    to_b: AtomicI32,
    to_c: AtomicI32,
}

impl Weather for Hoarse {
    fn message(&self, from: &NodeId, to: &NodeId, lane: Lane, _: usize) -> Fate {
        let left = if to.as_str() == "b" { &self.to_b } else { &self.to_c };
        if lane != Lane::Protocol || from.as_str() != "a" || left.load(Ordering::Relaxed) < 0 {
            return Fate::Arrives(Duration::ZERO);
        }
        let passes = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some((left - 1).max(0)));
        if passes.is_ok_and(|left| left > 0) { Fate::Arrives(Duration::ZERO) } else { Fate::Lost }
    }
}

async fn hoarse() -> (Cluster, Arc<Hoarse>) {
    let weather = Arc::new(Hoarse { to_b: AtomicI32::new(-1), to_c: AtomicI32::new(-1) });
    let cluster = Cluster::start_on(Network::under(weather.clone())).await;
    cluster.nodes[0].accepted("before", put("v")).await;
    for node in &cluster.nodes {
        node.has("before", "v").await;
    }
    (cluster, weather)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_had_committed_is_fetched() {
    let (cluster, weather) = hoarse().await;
    weather.to_c.store(0, Ordering::Relaxed);
    cluster.nodes[0].accepted("k", put("v")).await;
    let elsewhere = ShardId::parse("acme", "elsewhere").unwrap();
    let proposal = Proposal { shard: elsewhere.clone(), key: key("k"), update: put("v"), timeout: None };
    assert!(matches!(cluster.nodes[0].replicator.propose(proposal).await, Decision::Accept(_)));
    let unaware = &cluster.nodes[2];
    assert_eq!(unaware.local("k").await, None, "it was told nothing");
    unaware.replicator.catch_up(&shard()).await.unwrap();
    assert!(unaware.local("k").await.is_some());
    assert!(unaware.replicator.shards().await.unwrap().contains(&elsewhere));
    unaware.replicator.catch_up(&elsewhere).await.unwrap();
    let open = unaware.manager.get(&elsewhere).await.unwrap();
    assert!(open.read(&key("k")).unwrap().is_some());
}

/// The only other node that has it has accepted it, and was never told that it was chosen.
#[tokio::test(flavor = "multi_thread")]
async fn what_another_had_only_accepted_is_settled_and_fetched() {
    let (cluster, weather) = hoarse().await;
    weather.to_c.store(0, Ordering::Relaxed);
    // One prepare and one accept.
    weather.to_b.store(2, Ordering::Relaxed);
    cluster.nodes[0].accepted("k", put("v")).await;
    cluster.isolate(0);
    let (holder, unaware) = (&cluster.nodes[1], &cluster.nodes[2]);
    assert!(holder.local("k").await.is_none() && unaware.local("k").await.is_none());
    unaware.status_is("without a", |status| status.reachable == 2).await;
    unaware.replicator.catch_up(&shard()).await.unwrap();
    assert!(unaware.local("k").await.is_some());
    cluster.isolate(1);
    unaware.status_is("alone", |status| status.reachable == 1).await;
    assert!(matches!(unaware.replicator.catch_up(&shard()).await, Err(Rejection::NoQuorum(_))));
}
