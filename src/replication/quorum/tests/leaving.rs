//! A home that leaves: those who had handed it their updates propose them themselves.

use super::*;
use crate::store::update::Change;

/// What a leaving home refused was told to the other node's client as that node's own refusal; what reached it once its
/// driver had ended was unknown after two seconds, though nobody had done anything with it.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_retired_home_refuses_is_proposed_where_its_client_is() {
    let cluster = Arc::new(Cluster::start().await);
    let voters = Membership::epoch_one(NAMES.iter().map(|name| node(name)).collect()).unwrap();
    let home = voters.home(&shard(), &key("n"), |_| true).unwrap().clone();
    let home = NAMES.iter().position(|name| *name == home.node.as_str()).unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..24 {
        let (cluster, stop) = (cluster.clone(), stop.clone());
        clients.spawn(async move {
            let (at, mut accepted, mut unknown) = (client % 3, 0, 0);
            while !stop.is_cancelled() {
                match cluster.nodes[at].update("n", Update::always(Change::Add(1))).await {
                    Decision::Accept(_) => accepted += 1,
                    Decision::Timeout => unknown += 1,
                    Decision::Reject(Rejection::Busy(_)) if at == home => break,
                    Decision::Reject(why) => panic!("{}: {why}", NAMES[at]),
                }
            }
            (accepted, unknown)
        });
    }
    let forwarded = |n: usize| cluster.nodes[n].replicator.status().forwarded;
    let others: Vec<usize> = (0..3).filter(|n| *n != home).collect();
    until("both others go home", async || others.iter().all(|n| forwarded(*n) > 0)).await;
    let within = tokio::time::timeout(PATIENCE, cluster.nodes[home].replicator.retire()).await;
    assert!(within.is_ok(), "what is under way ends, whatever comes on");
    // It still votes and still answers: one of the others can go without a write being lost.
    let before = others.iter().map(|n| forwarded(*n)).sum::<u64>();
    until("they still try it", async || others.iter().map(|n| forwarded(*n)).sum::<u64>() > before).await;
    for n in &others {
        cluster.nodes[*n].replicator.avoid(vec![node(NAMES[home])]).await;
    }
    stop.cancel();
    let (mut accepted, mut unknown) = (0, 0);
    while let Some(done) = clients.join_next().await {
        let (yes, perhaps) = done.unwrap();
        (accepted, unknown) = (accepted + yes, unknown + perhaps);
    }
    let read = cluster.nodes[others[0]].accepted("n", Update::read()).await.before.unwrap();
    let sum: usize = std::str::from_utf8(read.value.as_bytes()).unwrap().parse().unwrap();
    assert!((accepted..=accepted + unknown).contains(&sum), "{sum}, {accepted} accepted, {unknown} unknown");
}
