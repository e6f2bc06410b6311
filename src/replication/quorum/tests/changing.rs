//! Changes of voters on whole drivers: a node joins, votes, leaves, loses its disk.

use std::sync::atomic::{AtomicBool, AtomicUsize};

use super::*;
use crate::cluster::membership::Member;

/// Writes all the time, one key after the other, and remembers what was acknowledged.
struct Load {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Vec<String>>,
    acknowledged: Arc<AtomicUsize>,
}

impl Load {
    fn on(node: &Node) -> Self {
        let (stop, acknowledged) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (replicator, stopped, count) = (node.replicator.clone(), stop.clone(), acknowledged.clone());
        let task = tokio::spawn(async move {
            let mut written = Vec::new();
            for n in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let name = format!("load{n}");
                let proposal = Proposal {
                    shard: shard(),
                    key: key(&name),
                    update: put(&name),
                    timeout: Some(Duration::from_secs(5)),
                };
                if matches!(replicator.propose(proposal).await, Decision::Accept(_)) {
                    written.push(name);
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
            written
        });
        Self { stop, task, acknowledged }
    }

    /// Waits until more has been acknowledged.
    async fn goes_on(&self) {
        let before = self.acknowledged.load(Ordering::Relaxed);
        until("writes go on", async || self.acknowledged.load(Ordering::Relaxed) > before + 10).await;
    }

    /// Stops; every acknowledged write must be on this node.
    async fn ends_on(self, node: &Node) {
        self.stop.store(true, Ordering::Relaxed);
        for name in self.task.await.unwrap() {
            node.has(&name, &name).await;
        }
    }
}

impl Node {
    async fn voters_are(&self, names: &[&str]) {
        let mut membership = self.replicator.membership();
        let is = |membership: &Membership| {
            let voters: Vec<_> = membership.voter_names().iter().map(ToString::to_string).collect();
            !membership.is_joint() && voters == names
        };
        let seen = tokio::time::timeout(PATIENCE, membership.wait_for(is)).await.map(drop);
        assert!(
            seen.is_ok(),
            "{names:?} never: {:?} {:?}",
            self.replicator.membership().borrow().clone(),
            self.replicator.change_status()
        );
    }

    async fn is_member(&self) {
        self.status_is("a member", |status| status.not_joined.is_none()).await;
    }
}

impl Cluster {
    /// One more node, which knows the first three and is known to nobody yet.
    async fn join(&mut self, name: &str, voters: &[&str]) -> usize {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::start(&self.network, dir.path(), name, voters).await;
        for known in &self.nodes {
            node.transport.dial(known.transport.local_addr());
        }
        self.dirs.push(dir);
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// As if the disk had been lost: the node comes back with an empty directory.
    async fn wipe(&mut self, n: usize) {
        let lost = std::mem::replace(&mut self.dirs[n], tempfile::tempdir().unwrap());
        self.restart(n).await;
        drop(lost);
    }
}

fn add(name: &str) -> VoterChange {
    VoterChange::Add(node(name))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_gets_a_vote_and_is_removed_again_under_load() {
    let mut cluster = Cluster::start().await;
    let load = Load::on(&cluster.nodes[0]);
    let d = cluster.join("d", &NAMES).await;
    cluster.nodes[d].is_member().await;
    load.goes_on().await;
    cluster.nodes[1].replicator.change(add("d")).await.unwrap();
    for node in &cluster.nodes {
        node.voters_are(&["a", "b", "c", "d"]).await;
    }
    load.goes_on().await;
    let refused = cluster.nodes[2].replicator.change(add("x")).await.unwrap_err().to_string();
    assert!(refused.contains("cannot add x: x is no member"), "{refused}");
    cluster.nodes[2].replicator.change(VoterChange::Remove(node("c"))).await.unwrap();
    for node in &cluster.nodes {
        node.voters_are(&["a", "b", "d"]).await;
    }
    cluster.nodes[2].is_member().await;
    load.goes_on().await;
    // d's vote counts: a and d decide.
    cluster.network.cut(&node("a"), &node("b"));
    cluster.network.cut(&node("a"), &node("c"));
    cluster.nodes[0].accepted("late", put("v")).await;
    load.goes_on().await;
    cluster.network.heal(&node("a"), &node("b"));
    cluster.network.heal(&node("a"), &node("c"));
    load.ends_on(&cluster.nodes[d]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_observer_that_knows_nothing_but_the_way_reads_and_writes() {
    let mut cluster = Cluster::start().await;
    cluster.nodes[0].accepted("k", put("v")).await;
    let d = cluster.join("d", &[]).await;
    cluster.nodes[d].ready().await;
    cluster.nodes[d].has("k", "v").await;
    let read = cluster.nodes[d].accepted("k", Update::read()).await;
    assert_eq!(read.before.unwrap().value, Value::from("v"));
    cluster.nodes[d].accepted("k", put("w")).await;
    cluster.nodes[1].has("k", "w").await;
    cluster.nodes[d].has("k", "w").await;
    cluster.nodes[2].accepted("k", put("x")).await;
    cluster.nodes[d].has("k", "x").await;
}

/// What one observer had chosen came to another, with which it is not connected, by the next comparison of rows alone.
#[tokio::test(flavor = "multi_thread")]
async fn observers_that_do_not_meet_are_told_of_each_other_s_writes() {
    let mut cluster = Cluster::start().await;
    let d = cluster.join("d", &NAMES).await;
    let e = cluster.join("e", &NAMES).await;
    cluster.network.cut(&node("d"), &node("e"));
    for n in [d, e] {
        cluster.nodes[n].ready().await;
        cluster.nodes[n].accepted("k", put("v")).await;
        cluster.nodes[n].local("k").await;
    }
    // A comparison of rows takes seconds each time.
    let told = tokio::time::timeout(PATIENCE, async {
        for n in 0..20 {
            let name = format!("k{n}");
            cluster.nodes[d].accepted(&name, put("w")).await;
            cluster.nodes[e].has(&name, "w").await;
        }
    });
    told.await.expect("told at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_disk_is_replaced_without_anybody_asking_again_and_again() {
    let mut cluster = Cluster::start().await;
    let load = Load::on(&cluster.nodes[0]);
    for round in 0..3 {
        let before = cluster.nodes[0].replicator.membership().borrow().epoch();
        cluster.wipe(2).await;
        for node in &cluster.nodes {
            let mut membership = node.replicator.membership();
            let seen = membership.wait_for(|membership| membership.epoch() >= before + 2 && !membership.is_joint());
            let seen = tokio::time::timeout(PATIENCE, seen).await.map(drop);
            assert!(seen.is_ok(), "round {round}: {:?}", node.replicator.status());
        }
        cluster.nodes[2].ready().await;
        load.goes_on().await;
    }
    // Its vote counts again.
    cluster.network.cut(&node("a"), &node("b"));
    load.goes_on().await;
    cluster.network.heal(&node("a"), &node("b"));
    load.ends_on(&cluster.nodes[2]).await;
}

/// A voter on an empty disk answered local reads from nothing as soon as it was to vote, which is before it has the rows.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_voter_s_local_reads_wait_for_its_rows() {
    const KEYS: usize = 64;
    let mut cluster = Cluster::start().await;
    let value = "v".repeat(512 * 1024);
    for n in 0..KEYS {
        cluster.nodes[0].accepted(&format!("k{n}"), put(&value)).await;
    }
    cluster.wipe(2).await;
    let node = &cluster.nodes[2];
    let mut looks = 0;
    while node.replicator.status().ready().is_err() {
        if node.replicator.has_copy(&shard()) {
            looks += 1;
            let shard = node.manager.get(&shard()).await.unwrap();
            let there = (0..KEYS).filter(|n| shard.read(&key(&format!("k{n}"))).unwrap().is_some()).count();
            assert_eq!(there, KEYS, "look {looks}");
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    node.has("k0", &value).await;
}

/// Two processes of one name each had the other's disk replaced, again and again.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_of_a_name_waits_until_the_first_is_gone() {
    let mut cluster = Cluster::start().await;
    cluster.nodes[0].accepted("k", put("v")).await;
    let dir = tempfile::tempdir().unwrap();
    let twin = Node::start(&cluster.network, dir.path(), "c", &NAMES).await;
    for other in &cluster.nodes[..2] {
        twin.transport.dial(other.transport.local_addr());
        other.transport.dial(twin.transport.local_addr());
    }
    let refused_by = |other: &str| {
        let known = twin.transport.refusals();
        known.iter().any(|refusal| refusal.node == Some(node(other)) && refusal.reason.contains("on another disk"))
    };
    until("it is told why", async || refused_by("a") && refused_by("b")).await;
    // By the list that it was started with it would vote, and have every shard: it answered "not found".
    assert!(!twin.replicator.has_copy(&shard()));
    cluster.nodes[0].accepted("k", put("w")).await;
    assert_eq!(cluster.nodes[0].replicator.status().reachable, 3);
    assert_eq!(cluster.nodes[0].replicator.membership().borrow().epoch(), 1);

    cluster.nodes.remove(2).stop().await;
    let mut membership = twin.replicator.membership();
    let replaced = membership.wait_for(|membership| membership.epoch() >= 3 && !membership.is_joint());
    tokio::time::timeout(PATIENCE, replaced).await.unwrap().unwrap();
    twin.has("k", "w").await;
}

/// Whoever replaces pods one by one goes on to the next as soon as this one is ready: with its vote still that of the lost disk,
/// the next one's disk would have been one too many.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_not_ready_before_its_new_disk_has_its_vote() {
    let mut cluster = Cluster::start().await;
    cluster.nodes[0].accepted("k", put("v")).await;
    for round in 0..2 {
        for (n, name) in NAMES.iter().enumerate() {
            let slots = |node: &Node| -> Vec<usize> {
                let membership = node.replicator.membership().borrow().clone();
                membership.voters().filter(|voter| voter.node.as_str() == *name).map(Member::replica).collect()
            };
            let before = slots(&cluster.nodes[n]);
            cluster.wipe(n).await;
            cluster.nodes[n].ready().await;
            let now = slots(&cluster.nodes[n]);
            assert!(now.len() == 1 && now != before, "round {round}, {name}: slots {before:?}, then {now:?}");
        }
    }
    cluster.nodes[0].has("k", "v").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_removed_whose_place_nobody_in_reach_could_take() {
    let cluster = Cluster::start().await;
    cluster.isolate(1);
    cluster.nodes[0].status_is("one away", |status| status.reachable == 2).await;
    let refused = cluster.nodes[0].replicator.change(VoterChange::Remove(node("c"))).await.unwrap_err().to_string();
    assert!(refused.contains("1 of 2 voters, 2 needed"), "{refused}");
    cluster.nodes[0].accepted("k", put("v")).await;
    cluster.nodes[0].replicator.change(VoterChange::Remove(node("b"))).await.unwrap();
    cluster.nodes[0].voters_are(&["a", "c"]).await;
    cluster.nodes[0].accepted("k", put("w")).await;
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// A cluster whose third node runs on yesterday's copy of its data directory, which has `k`, and has forgotten what was
/// promised since for the key `since`.
async fn went_back(since: &str) -> Cluster {
    let mut cluster = Cluster::start().await;
    cluster.nodes[0].accepted("k", put("old")).await;
    cluster.nodes[2].has("k", "old").await;
    let yesterday = tempfile::tempdir().unwrap();
    copy(cluster.dirs[2].path(), yesterday.path());
    for n in 0..20 {
        cluster.nodes[2].accepted(since, put(&format!("{n}"))).await;
    }
    // The others hear how far it is when it connects, as there is no gossip here.
    cluster.isolate(2);
    cluster.nodes[2].status_is("cut off", |status| status.reachable == 1).await;
    cluster.rejoin(2);
    cluster.nodes[2].status_is("back", |status| status.reachable == 3).await;
    let lost = std::mem::replace(&mut cluster.dirs[2], yesterday);
    cluster.restart(2).await;
    drop(lost);
    cluster.nodes[2].status_is("barred", |status| status.barred.is_some()).await;
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_went_back_does_not_vote_and_starts_over_as_another() {
    let mut cluster = went_back("k").await;
    let back = &cluster.nodes[2];
    let decision = back.update("k", put("x")).await;
    assert!(matches!(&decision, Decision::Reject(Rejection::NoQuorum(why)) if why.contains("vote")), "{decision:?}");
    // What it had begun before it was barred may leave one of unknown fate.
    until("written", async || matches!(cluster.nodes[0].update("k", put("new")).await, Decision::Accept(_))).await;
    // Its vote counts for nobody: with b gone as well, a is alone.
    cluster.network.cut(&node("a"), &node("b"));
    cluster.nodes[0].status_is("alone", |status| status.reachable == 1).await;
    cluster.network.heal(&node("a"), &node("b"));
    cluster.nodes[0].status_is("not alone", |status| status.reachable == 2).await;
    cluster.restart(2).await;
    let mut membership = cluster.nodes[2].replicator.membership();
    let replaced = membership.wait_for(|membership| membership.epoch() >= 3 && !membership.is_joint());
    tokio::time::timeout(PATIENCE, replaced).await.unwrap().unwrap();
    cluster.nodes[2].has("k", "new").await;
    cluster.network.cut(&node("a"), &node("b"));
    cluster.nodes[2].accepted("k", put("newest")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_two_of_three_disks_lost_the_last_one_decides_alone_when_it_is_told_to() {
    let mut cluster = Cluster::start().await;
    cluster.nodes[0].accepted("k", put("v")).await;
    for node in &cluster.nodes {
        node.has("k", "v").await;
    }
    cluster.isolate(0);
    // Met by the one that remembers them, and only by that one, before they meet each other.
    cluster.network.cut(&node("b"), &node("c"));
    cluster.wipe(1).await;
    cluster.wipe(2).await;
    cluster.rejoin(0);
    cluster.nodes[0]
        .status_is("alone", |status| status.no_quorum.as_ref().is_some_and(|why| why.contains("recover")))
        .await;
    cluster.nodes[1].status_is("no member", |status| status.not_joined.is_some()).await;
    cluster.nodes[2].status_is("no member", |status| status.not_joined.is_some()).await;
    cluster.network.heal(&node("b"), &node("c"));
    assert!(matches!(cluster.nodes[0].update("k", put("w")).await, Decision::Reject(_)));
    cluster.nodes[0].replicator.recover().await.unwrap();
    cluster.nodes[0].accepted("k", put("w")).await;
    for n in [1, 2] {
        cluster.nodes[n].is_member().await;
        cluster.nodes[n].has("k", "w").await;
        cluster.nodes[0].replicator.change(add(NAMES[n])).await.unwrap();
        cluster.nodes[0].voters_are(&NAMES[..=n]).await;
    }
    let refused = cluster.nodes[0].replicator.recover().await.unwrap_err().to_string();
    assert!(refused.contains("a majority of the voters is in reach"), "{refused}");
}

/// The last disk that is left is one that went back itself. Told to decide alone, it once made itself the only voter of a
/// cluster, and could not vote.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_must_not_vote_decides_alone_only_as_another() {
    let mut cluster = went_back("other").await;
    cluster.isolate(2);
    cluster.nodes[2].status_is("nobody there", |status| status.no_quorum.is_some()).await;

    let refused = cluster.nodes[2].replicator.recover().await.unwrap_err().to_string();
    assert!(refused.contains("restart the node"), "{refused}");
    assert_eq!(cluster.nodes[2].replicator.membership().borrow().epoch(), 1, "nothing was changed");
    cluster.restart(2).await;
    assert!(matches!(cluster.nodes[2].update("k", put("w")).await, Decision::Reject(_)));
    cluster.nodes[2].replicator.recover().await.unwrap();
    cluster.nodes[2].has("k", "old").await;
    cluster.nodes[2].accepted("k", put("w")).await;
}

/// Whoever began a change may be gone before it is done: another ends it.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_whose_driver_is_gone_is_ended_by_another() {
    let mut cluster = Cluster::start().await;
    let d = cluster.join("d", &NAMES).await;
    cluster.nodes[d].is_member().await;
    cluster.nodes[0].replicator.change(add("d")).await.unwrap();
    let mut membership = cluster.nodes[1].replicator.membership();
    tokio::time::timeout(PATIENCE, membership.wait_for(|membership| membership.epoch() > 1)).await.unwrap().unwrap();
    cluster.isolate(0);
    cluster.network.cut(&node("a"), &node("d"));
    for n in [1, 2, d] {
        cluster.nodes[n].voters_are(&["a", "b", "c", "d"]).await;
    }
    cluster.network.heal(&node("a"), &node("d"));
    cluster.rejoin(0);
    cluster.nodes[0].voters_are(&["a", "b", "c", "d"]).await;
}
