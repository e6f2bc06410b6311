//! Shards move under load, and the number of their replicas changes; the node that drives a change dies.

use std::process::Stdio;
use std::time::Duration;

use super::*;
use common::Signal;
use load::Load;
use operator::{command, sees};

/// The shard that a load writes: in the org that has no name.
const ITS_ORG: &str = "_";
const LOADED: &str = "loaded";

async fn replicas_are(cluster: &Cluster, expected: &BTreeSet<usize>) {
    until(&format!("{LOADED} on {expected:?}"), async || {
        for node in &cluster.nodes {
            if status(node).await.joint {
                return false;
            }
        }
        told(&cluster.nodes[*expected.first().unwrap()], ITS_ORG).await.get(LOADED) == Some(expected)
    })
    .await;
}

fn has(cluster: &Cluster, n: usize) -> bool {
    file(&cluster.nodes[n], ITS_ORG, LOADED).exists()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_moves_there_and_back_under_load() {
    let cluster = start(5, 0, 3).await;
    let before = planned(5, 3, ITS_ORG, LOADED);
    let [to, outsider] = outsiders(5, &before)[..] else { panic!("{before:?}") };
    // Through one that never replicates it, and through one that will.
    let loads = [outsider, to].map(|n| Load::on(&cluster.nodes[n], LOADED));
    loads[0].goes_on().await;
    let target = format!("n{to}");
    let migrate = ["migrate", "--namespace", LOADED, "--to", &target];
    let said = done(&outrigger(&cluster.nodes[outsider], &migrate));
    assert!(said.contains(&format!("pinned to n{to}")) && said.contains("epoch 3"), "{said}");
    let now = told(&cluster.nodes[to], ITS_ORG).await[LOADED].clone();
    assert!(now.contains(&to) && now.len() == 3 && now.intersection(&before).count() == 2, "{before:?} to {now:?}");
    let gone = *before.difference(&now).next().unwrap();
    until("who replicates it no more gives up its file", async || !has(&cluster, gone)).await;
    assert!(now.iter().all(|n| has(&cluster, *n)) && has(&cluster, outsider));
    loads[0].goes_on().await;
    let pins = status(&cluster.nodes[gone]).await.pins;
    assert!(pins.len() == 1 && numbers(&pins[0].nodes) == BTreeSet::from([to]), "{pins:?}");
    done(&outrigger(&cluster.nodes[gone], &["migrate", "--namespace", LOADED, "--back"]));
    replicas_are(&cluster, &before).await;
    loads[1].goes_on().await;
    assert!(has(&cluster, gone));
    // Every replica of now named, at a node that is none: two come, two go.
    let all: BTreeSet<usize> = [to, outsider, *before.first().unwrap()].into();
    let names = all.iter().map(|n| format!("n{n}")).collect::<Vec<_>>().join(",");
    done(&outrigger(&cluster.nodes[gone], &["migrate", "--namespace", LOADED, "--to", &names]));
    replicas_are(&cluster, &all).await;
    for n in before.difference(&all) {
        until("those who replicate it no more give up their files", async || !has(&cluster, *n)).await;
    }
    loads[0].goes_on().await;
    for load in loads {
        let outcome = load.stop().await;
        outcome.was_served_within(PROPOSE_TIMEOUT);
        outcome.is_on(&cluster.nodes).await;
    }
    // Used by its application it stays, also where it is replicated no more.
    done(&outrigger(&cluster.nodes[gone], &["migrate", "--namespace", LOADED, "--back"]));
    replicas_are(&cluster, &before).await;
    for n in 0..5 {
        let file = file(&cluster.nodes[n], ITS_ORG, LOADED);
        until("all have used it", async || file.exists()).await;
        assert_sound(&file);
    }
    let rows = |n: usize| rows_of(&file(&cluster.nodes[n], ITS_ORG, LOADED));
    until("all have the same rows", async || (1..5).all(|n| rows(n) == rows(0))).await;
}

/// Whoever drives a move may die at any moment: another voter ends what was begun, or it was not begun and can be asked for
/// again.
#[tokio::test(flavor = "multi_thread")]
async fn a_move_outlives_the_node_that_drives_it() {
    let mut cluster = start(5, 0, 3).await;
    let before = planned(5, 3, ITS_ORG, LOADED);
    let [to, witness] = outsiders(5, &before)[..] else { panic!("{before:?}") };
    // A replica that stays one, and that drives; it is killed.
    let driver = *before.first().unwrap();
    let mut load = Load::on(&cluster.nodes[witness], LOADED);
    let names = format!("n{driver},n{to}");
    let there = ["migrate", "--namespace", LOADED, "--to", &names, "--no-wait"];
    let back = ["migrate", "--namespace", LOADED, "--back", "--no-wait"];
    let mut begun_by_the_dead = 0;
    // The last one is killed as soon as another sees it begun.
    for (round, after_ms) in [Some(0), Some(120), Some(350), None].into_iter().enumerate() {
        let args: &[&str] = if round % 2 == 0 { &there } else { &back };
        let epoch = status(&cluster.nodes[witness]).await.epoch;
        let mut asked =
            command(&cluster.nodes[driver], args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        match after_ms {
            Some(after_ms) => tokio::time::sleep(Duration::from_millis(after_ms)).await,
            None => drop(sees(&cluster.nodes[witness], "that it is begun", |now| now.epoch > epoch).await),
        }
        cluster.nodes[driver].kill();
        tokio::task::block_in_place(|| asked.wait().unwrap());
        load.goes_on().await;
        let seen = sees(&cluster.nodes[witness], "the end of what was begun", |now| !now.joint).await;
        if seen.epoch > epoch {
            begun_by_the_dead += 1;
        } else {
            let again = &args[..args.len() - 1];
            until("the move is made by another", async || outrigger(&cluster.nodes[witness], again).status.success())
                .await;
        }
        cluster.nodes[driver].start();
        cluster.nodes[driver].ready().await;
        until("the move is seen by who was to drive it", async || {
            let replicas = told(&cluster.nodes[driver], ITS_ORG).await.get(LOADED).cloned().unwrap_or_default();
            replicas.contains(&to) == (round % 2 == 0)
        })
        .await;
        load.goes_on().await;
    }
    eprintln!("{begun_by_the_dead} of 4 moves were begun before their driver died, and ended by another");
    assert!(begun_by_the_dead > 0, "all died too early to prove anything");
    // One at a time: this one waits for a newcomer that stands still.
    load.stop().await.is_on(&cluster.nodes).await;
    load = Load::on(&cluster.nodes[witness], LOADED);
    cluster.nodes[to].signal(Signal::STOP);
    done(&outrigger(&cluster.nodes[witness], &there));
    let second = outrigger(&cluster.nodes[witness], &["--org", ORG, "migrate", "--namespace", "other", "--to", "n0"]);
    fails_with(&second, 69, "this node prepares another change; try again when it is done");
    let failed =
        |now: &outrigger::cluster::status::ClusterStatus| now.change.as_ref().is_some_and(|change| change.failed);
    let now = sees(&cluster.nodes[witness], "that the newcomer is away", failed).await;
    let step = now.change.unwrap().step;
    assert!(step.contains("nothing was changed") && step.contains(&format!("n{to}")), "{step}");
    cluster.nodes[to].signal(Signal::CONT);
    replicas_are(&cluster, &before).await;
    load.goes_on().await;
    load.stop().await.is_on(&cluster.nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_replicas_changes_under_load_there_and_back() {
    const SHARDS: usize = 20;
    let cluster = start(5, 0, 0).await;
    for n in 0..SHARDS {
        let writes = client(&cluster.nodes[n % 5], &name(n));
        for (key, value) in filled(n) {
            writes.put(&key, value).await.unwrap();
        }
    }
    let all: BTreeSet<usize> = (0..5).collect();
    for n in 0..SHARDS {
        is_exactly_on(&cluster, &all, n, &filled(n)).await;
    }
    let loads = [0, 3].map(|n| Load::on(&cluster.nodes[n], LOADED));
    loads[0].goes_on().await;
    let said = done(&outrigger(&cluster.nodes[1], &["cluster", "replication-factor", "3"]));
    assert!(said.contains("each shard on 3 of the voters"), "{said}");
    loads[1].goes_on().await;
    for n in 0..SHARDS {
        // And where its application is that wrote it.
        let on = planned(5, 3, ORG, &name(n)).into_iter().chain([n % 5]).collect();
        is_exactly_on(&cluster, &on, n, &filled(n)).await;
    }
    loads[0].goes_on().await;
    let said = done(&outrigger(&cluster.nodes[4], &["cluster", "replication-factor", "all"]));
    assert!(said.contains("each shard on all voters"), "{said}");
    for n in 0..SHARDS {
        is_exactly_on(&cluster, &all, n, &filled(n)).await;
    }
    loads[1].goes_on().await;
    for load in loads {
        let outcome = load.stop().await;
        outcome.was_served_within(PROPOSE_TIMEOUT);
        outcome.is_on(&cluster.nodes).await;
    }
    let rows = |n: usize| rows_of(&file(&cluster.nodes[n], ITS_ORG, LOADED));
    until("all have every row", async || (1..5).all(|n| rows(n) == rows(0))).await;
}
