//! A shard whose majority of replicas is away, while the cluster has its own.

use std::time::Instant;

use super::*;
use outrigger::client::{Error, Written};

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_of_its_replicas_a_shard_refuses_writes_at_once_and_others_go_on() {
    const SHARDS: usize = 20;
    let mut cluster = start(5, 0, 3).await;
    let placed = fill(&cluster, SHARDS, 5, 3).await;
    for (n, replicas) in placed.iter().enumerate() {
        is_exactly_on(&cluster, replicas, n, &filled(n)).await;
    }
    let lost: Vec<usize> = placed[0].iter().copied().take(2).collect();
    let (left, outsider) = (*placed[0].last().unwrap(), outsiders(5, &placed[0])[0]);
    for n in &lost {
        cluster.nodes[*n].kill();
    }
    let away = |now: &outrigger::cluster::status::ClusterStatus| {
        let is_away = |n: &usize| now.nodes.iter().any(|node| node.node.as_str() == format!("n{n}") && !node.live);
        lost.iter().all(is_away)
    };
    for n in [left, outsider] {
        operator::sees(&cluster.nodes[n], "that two are away", away).await;
    }
    for n in [left, outsider] {
        let node = &cluster.nodes[n];
        let asked = Instant::now();
        let error = client(node, "s0").put("k0", "x").await.unwrap_err();
        eprintln!("{} ({n}) after {:?}: {error}", node.name, asked.elapsed());
        assert!(asked.elapsed() < PROPOSE_TIMEOUT, "{:?}", asked.elapsed());
        let Error::Problem(problem) = &error else { panic!("{error}") };
        assert_eq!((problem.status, problem.written), (503, Some(Written::No)), "{error}");
        let answer = outrigger(node, &["--org", ORG, "--ns", "s0", "put", "k0", "x"]);
        let names = lost.iter().map(|n| format!("n{n}")).collect::<Vec<_>>().join(", ");
        fails_with(&answer, 69, &format!("in reach: 1 of 3 replicas of acme/s0, 2 needed; away: {names}"));
        assert!(node.is_ready().await, "the cluster has its quorum");
    }
    // What is left of it is read where it is, and where it is not said so.
    assert_eq!(listed(&client(&cluster.nodes[left], "s0")).await.unwrap(), filled(0));
    let asked = Instant::now();
    let error = client(&cluster.nodes[outsider], "s0").get("k0").await.unwrap_err();
    eprintln!("a local read by an outsider after {:?}: {error}", asked.elapsed());
    assert!(error.is_unavailable() && error.to_string().contains("no copy of acme/s0"), "{error}");
    let (mut served, mut stuck) = (0, 0);
    for (n, replicas) in placed.iter().enumerate() {
        let is_served = replicas.iter().filter(|replica| !lost.contains(replica)).count() >= 2;
        for through in (0..5).filter(|n| !lost.contains(n)) {
            let written = client(&cluster.nodes[through], &name(n)).put("later", "x").await;
            assert_eq!(written.is_ok(), is_served, "{} through n{through}: {written:?}", name(n));
        }
        *(if is_served { &mut served } else { &mut stuck }) += 1;
    }
    assert!(served > 3 && stuck > 3, "{served} served, {stuck} stuck: too few to prove anything");
    // One of the two is enough.
    cluster.nodes[lost[0]].start();
    cluster.nodes[lost[0]].ready().await;
    for n in [left, outsider] {
        let writes = client(&cluster.nodes[n], "s0");
        until("writes go on", async || writes.put(&format!("by{n}"), "x").await.is_ok()).await;
    }
    // What was refused was not written.
    let rows = listed(&client(&cluster.nodes[outsider], "s0")).await.unwrap();
    assert_eq!(rows.len(), KEYS + 2, "{rows:?}");
    assert_eq!(rows.iter().find(|(key, _)| key == "k0").unwrap().1, "0 0");
}
