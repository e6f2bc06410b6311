//! Voters change on real processes under load: added, removed, their disks lost and brought back from yesterday, the node
//! that drives a change killed. Nothing acknowledged is lost, and what cannot be done is refused and changes nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test"
)]

#[path = "../common/mod.rs"]
mod common;
mod load;
#[path = "../common/operator.rs"]
mod operator;
mod refused;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Cluster, Node, until};
use load::Load;
use operator::{PROPOSE_TIMEOUT, command, done, err, fails_with, members, names, out, outrigger, sees, status};
use outrigger::cluster::status::{ClusterStatus, Role};

async fn voters_are(node: &Node, expected: &[&str]) {
    sees(node, &format!("{expected:?} voting"), |now| !now.joint && names(&now.voters) == expected).await;
}

/// Starts these nodes, of which the first `voters` vote from the beginning, and waits until all of those are ready.
async fn start(count: usize, voters: usize) -> Cluster {
    let mut cluster = Cluster::prepare_voters(count, voters);
    for node in &mut cluster.nodes[..voters] {
        node.start();
    }
    for node in &mut cluster.nodes[..voters] {
        node.ready().await;
    }
    cluster
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_become_five_and_three_again_under_load() {
    let mut cluster = start(5, 3).await;
    let load = Load::on(&cluster.nodes[2], "default");
    load.goes_on().await;
    for n in [3, 4] {
        cluster.nodes[n].start();
        cluster.nodes[n].ready().await;
    }
    members(&cluster.nodes[1], &["n3", "n4"]).await;
    assert!(done(&outrigger(&cluster.nodes[1], &["cluster", "add", "n3"])).contains("epoch 3: voters n0, n1, n2, n3"));
    load.goes_on().await;
    // The new one itself is asked.
    assert!(done(&outrigger(&cluster.nodes[4], &["cluster", "add", "n4"])).contains("voters n0, n1, n2, n3, n4"));
    load.goes_on().await;
    done(&outrigger(&cluster.nodes[0], &["cluster", "remove", "n0"]));
    load.goes_on().await;
    done(&outrigger(&cluster.nodes[3], &["cluster", "remove", "n1"]));
    for node in &cluster.nodes {
        voters_are(node, &["n2", "n3", "n4"]).await;
    }
    load.goes_on().await;
    // Without those who were removed: their votes are not needed.
    assert!(cluster.nodes[0].terminate().success() && cluster.nodes[1].terminate().success());
    load.goes_on().await;
    // And of the three any two are enough.
    cluster.nodes[3].kill();
    load.goes_on().await;
    cluster.nodes[3].start();
    cluster.nodes[3].ready().await;
    let outcome = load.stop().await;
    outcome.was_served_within(PROPOSE_TIMEOUT);
    outcome.is_on(&cluster.nodes[2..]).await;
}

/// Whoever drives a change may die at any moment: another voter ends what was begun, or it was not begun and can be asked for
/// again.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_outlives_the_node_that_drives_it() {
    let mut cluster = start(4, 3).await;
    let load = Load::on(&cluster.nodes[1], "default");
    cluster.nodes[3].start();
    cluster.nodes[3].ready().await;
    members(&cluster.nodes[1], &["n3"]).await;
    let mut begun_by_the_dead = 0;
    for (round, after_ms) in [0, 20, 60, 120, 200, 300, 450, 700].into_iter().enumerate() {
        let is_added = round % 2 == 0;
        let (change, voters): (_, &[&str]) =
            if is_added { ("add", &["n0", "n1", "n2", "n3"]) } else { ("remove", &["n0", "n1", "n2"]) };
        let before = status(&cluster.nodes[1]).await;
        let args = ["cluster", change, "n3", "--no-wait"];
        let mut asked = command(&cluster.nodes[0], &args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        cluster.nodes[0].kill();
        tokio::task::block_in_place(|| asked.wait().unwrap());
        load.goes_on().await;
        let seen = sees(&cluster.nodes[1], "the end of what was begun", |now| !now.joint).await;
        if seen.epoch > before.epoch {
            begun_by_the_dead += 1;
        } else {
            // What it had sent may still be under way: then this one finds that it is done.
            until("the change is made by another", async || outrigger(&cluster.nodes[1], &args[..3]).status.success())
                .await;
        }
        voters_are(&cluster.nodes[2], voters).await;
        cluster.nodes[0].start();
        cluster.nodes[0].ready().await;
        voters_are(&cluster.nodes[0], voters).await;
        load.goes_on().await;
    }
    eprintln!("{begun_by_the_dead} of 8 changes were begun before their driver died, and ended by another");
    assert!(begun_by_the_dead > 0, "all died too early to prove anything");
    let outcome = load.stop().await;
    outcome.is_on(&cluster.nodes).await;
}

async fn is_replaced(cluster: &mut Cluster, n: usize, other: usize, epoch: u64) {
    let done = |now: &ClusterStatus| !now.joint && now.epoch >= epoch + 2 && now.voters.len() == 3;
    sees(&cluster.nodes[other], "the new disk voting", done).await;
    cluster.nodes[n].ready().await;
    sees(&cluster.nodes[n], "its own vote", |now| {
        done(now) && now.nodes.iter().any(|node| node.me && node.role == Role::Voter)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_disk_is_replaced_on_its_own_again_and_again() {
    let mut cluster = start(3, 3).await;
    let loads = [Load::on(&cluster.nodes[0], "default"), Load::on(&cluster.nodes[1], "default")];
    for n in [2, 0, 2, 1] {
        let other = (n + 1) % 3;
        loads[other % 2].goes_on().await;
        let epoch = status(&cluster.nodes[other]).await.epoch;
        cluster.nodes[n].kill();
        fs::remove_dir_all(cluster.nodes[n].data()).unwrap();
        cluster.nodes[n].start();
        is_replaced(&mut cluster, n, other, epoch).await;
        // Its vote counts: with another one gone, it is needed.
        let gone = (n + 2) % 3;
        cluster.nodes[gone].kill();
        let probe = cluster.nodes[other].client();
        until("writes go on", async || probe.put("probe", n.to_string()).await.is_ok()).await;
        cluster.nodes[gone].start();
        cluster.nodes[gone].ready().await;
    }
    for load in loads {
        load.stop().await.is_on(&cluster.nodes).await;
    }
}

/// Yesterday's copy of a data directory has forgotten what was promised since: it is told so, and starts over by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_yesterday_never_votes_and_starts_over_in_the_same_process() {
    let mut cluster = start(3, 3).await;
    let load = Load::on(&cluster.nodes[0], "default");
    for round in 0..2 {
        load.goes_on().await;
        assert!(cluster.nodes[2].terminate().success());
        let yesterday = cluster.dir.path().join(format!("yesterday{round}"));
        copy(&cluster.nodes[2].data(), &yesterday);
        cluster.nodes[2].start();
        cluster.nodes[2].ready().await;
        load.goes_on().await;
        cluster.nodes[2].client().put("today", round.to_string()).await.unwrap();
        let disk = |now: &ClusterStatus| now.nodes.iter().find(|node| node.me).unwrap().storage_id;
        // The others hear how far its disk is as it connects again.
        assert!(cluster.nodes[2].terminate().success());
        cluster.nodes[2].start();
        cluster.nodes[2].ready().await;
        let before = status(&cluster.nodes[2]).await;
        cluster.nodes[2].kill();
        fs::remove_dir_all(cluster.nodes[2].data()).unwrap();
        copy(&yesterday, &cluster.nodes[2].data());
        cluster.nodes[2].start();
        let pid = cluster.nodes[2].pid();
        is_replaced(&mut cluster, 2, 0, before.epoch).await;
        assert_eq!(cluster.nodes[2].pid(), pid, "it was not started anew from outside");
        let now = status(&cluster.nodes[2]).await;
        assert_ne!(disk(&now), disk(&before));
        let log = cluster.nodes[2].log();
        assert_eq!(log.matches("this node stops voting").count(), round + 1, "{log}");
        assert_eq!(log.matches("this disk must not vote any more").count(), round + 1, "{log}");
        until("it has what was written", async || {
            cluster.nodes[2].client().get("today").await.is_ok_and(|row| row.unwrap().value == round.to_string())
        })
        .await;
    }
    let outcome = load.stop().await;
    outcome.is_on(&cluster.nodes).await;
}

/// A majority is lost for good: what is left says what can be done, does nothing by itself, and decides alone when told to.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_a_lost_majority_decides_alone_when_it_is_told_to() {
    let mut cluster = start(3, 3).await;
    let load = Load::on(&cluster.nodes[0], "default");
    load.goes_on().await;
    load.goes_on().await;
    let outcome = load.stop().await;
    for n in [1, 2] {
        cluster.nodes[n].kill();
        fs::remove_dir_all(cluster.nodes[n].data()).unwrap();
    }
    let way_out = |why: &Option<String>| why.as_ref().is_some_and(|why| why.contains("cluster recover"));
    for n in [1, 2] {
        cluster.nodes[n].start();
        sees(&cluster.nodes[n], "that it is no member", |now| {
            now.unready.as_ref().is_some_and(|why| why.contains("no member"))
        })
        .await;
        sees(&cluster.nodes[0], "the way out", |now| way_out(&now.unready)).await;
    }
    let put = outrigger(&cluster.nodes[0], &["put", "k", "v"]);
    assert!(put.status.code() == Some(69) && way_out(&Some(err(&put))), "{} {}", put.status, err(&put));
    let unsure = outrigger(&cluster.nodes[0], &["cluster", "recover"]);
    assert_eq!((unsure.status.code(), status(&cluster.nodes[0]).await.epoch), (Some(2), 1), "{}", err(&unsure));
    assert!(done(&outrigger(&cluster.nodes[0], &["cluster", "recover", "--force"])).contains("voters n0"));
    until("it serves", async || cluster.nodes[0].client().put("k", "v").await.is_ok()).await;
    for (n, voters) in [(1, "voters n0, n1\n"), (2, "voters n0, n1, n2\n")] {
        let name = cluster.nodes[n].name.clone();
        members(&cluster.nodes[0], &[&name]).await;
        let added = done(&outrigger(&cluster.nodes[0], &["cluster", "add", &name]));
        assert!(added.contains(voters), "{added}");
        cluster.nodes[n].ready().await;
    }
    cluster.nodes[0].kill();
    outcome.is_on(&cluster.nodes[1..]).await;
}
