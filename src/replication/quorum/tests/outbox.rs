//! Writes that need one node alone: kept without a quorum and through restarts, handed on, or overtaken.

use std::ops::ControlFlow;

use super::*;
use crate::store::feed;
use crate::store::{Error, ListQuery};

impl Node {
    /// Writes on this node alone, or deletes.
    async fn own(&self, name: &str, value: Option<&str>) -> Result<Ballot, Error> {
        let shard = self.manager.get(&shard()).await?;
        let outcome = shard.write_local(&key(name), value.map_or_else(Update::del, put), None).await?;
        assert_eq!(outcome.verdict, Verdict::Written);
        Ok(outcome.after.map_or(Ballot::ZERO, |row| row.upd))
    }

    async fn written(&self, name: &str, value: &str) -> Ballot {
        self.accepted(name, put(value)).await.after.unwrap().upd
    }

    async fn value(&self, name: &str) -> Option<Value> {
        self.local(name).await.map(|row| row.value)
    }

    async fn listed(&self) -> Vec<(String, Value)> {
        let (open, mut rows) = (self.manager.get(&shard()).await.unwrap(), Vec::new());
        let walked = open.walk(&ListQuery::prefix(""), |item| {
            rows.push((item.key.to_string(), item.value.unwrap()));
            ControlFlow::Continue(())
        });
        walked.unwrap();
        rows
    }

    async fn is_drained(&self) {
        self.status_is("drained", |status| status.outbox.entries == 0).await;
    }
}

impl Cluster {
    /// Cuts the first node off, and waits until it knows.
    async fn leave_alone(&self) {
        self.isolate(0);
        self.nodes[0].status_is("alone", |status| status.reachable == 1).await;
    }

    /// Waits until every node shows this.
    async fn all_show(&self, name: &str, value: Option<&str>) {
        let value = value.map(|value| Value::from(value.as_bytes().to_vec()));
        for node in &self.nodes {
            until(&format!("{name} = {value:?}"), async || node.value(name).await == value).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_write_needs_nobody_and_is_handed_on_once_there_is_a_quorum() {
    let mut cluster = Cluster::start().await;
    cluster.nodes[0].written("old", "1").await;
    cluster.leave_alone().await;
    let upd = cluster.nodes[0].own("new", Some("mine")).await.unwrap();
    cluster.nodes[0].own("old", None).await.unwrap();
    let row = Some(Row { value: Value::from("mine"), upd });
    assert_eq!((cluster.nodes[0].local("new").await, cluster.nodes[0].value("old").await), (row.clone(), None));
    assert_eq!(cluster.nodes[0].listed().await, [("new".to_owned(), Value::from("mine"))]);
    assert_eq!(cluster.nodes[0].stored("new").await, None, "the protocol knows nothing of it");

    cluster.restart(0).await;
    assert_eq!((cluster.nodes[0].local("new").await, cluster.nodes[0].value("old").await), (row, None));
    let later = cluster.nodes[0].own("new", Some("later")).await.unwrap();
    assert!(later > upd);
    cluster.nodes[0].status_is("two keys", |status| status.outbox.entries == 2).await;

    cluster.rejoin(0);
    cluster.nodes[0].is_drained().await;
    cluster.all_show("new", Some("later")).await;
    cluster.all_show("old", None).await;
    for node in &cluster.nodes {
        assert_eq!(node.stored("new").await.unwrap().upd, later, "it keeps its version");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_write_outlives_the_segment_that_it_was_written_to() {
    let mut cluster = Cluster::start().await;
    cluster.leave_alone().await;
    cluster.nodes[0].own("small", Some("stays")).await.unwrap();
    let directory = cluster.dirs[0].path().join(crate::replication::journal::DIRECTORY);
    let segments = || {
        let files = std::fs::read_dir(&directory).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        files.filter(|name| name.ends_with(".log")).collect::<Vec<_>>()
    };
    let first = segments().into_iter().min().unwrap();
    // One more segment with about every eight of these.
    let mut written = 0;
    until("the first segment is given up", async || {
        written += 1;
        cluster.nodes[0].own("big", Some(&format!("{written:08000}"))).await.unwrap();
        !segments().contains(&first)
    })
    .await;
    cluster.restart(0).await;
    assert_eq!(cluster.nodes[0].value("big").await.unwrap(), Value::from(format!("{written:08000}").into_bytes()));
    assert_eq!(cluster.nodes[0].value("small").await, Some(Value::from("stays")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_newer_by_the_clock_wins_on_either_side() {
    let cluster = Cluster::start().await;
    cluster.leave_alone().await;
    let [alone, other, _] = cluster.nodes.as_slice() else { panic!() };
    for name in ["overtaken", "gone"] {
        alone.own(name, Some("older")).await.unwrap();
        other.written(name, "newer").await;
    }
    other.accepted("gone", Update::del()).await;
    other.written("wins", "older").await;
    alone.own("wins", Some("newer")).await.unwrap();
    assert_eq!(alone.value("overtaken").await, Some(Value::from("older")));
    cluster.rejoin(0);
    alone.is_drained().await;
    cluster.all_show("overtaken", Some("newer")).await;
    cluster.all_show("gone", None).await;
    cluster.all_show("wins", Some("newer")).await;
    // What is shown lags behind: looked at once, it was that of a moment before.
    let counts = |status: &QuorumStatus| (status.outbox.counts.drained, status.outbox.counts.superseded);
    alone.status_is("counted", |status| counts(status) == (1, 2)).await;
}

/// A deletion of a key that nobody had would have left nothing behind, and an older write of another node come after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_local_deletion_is_remembered_against_older_local_writes() {
    let cluster = Cluster::start().await;
    cluster.leave_alone().await;
    cluster.nodes[0].own("k", Some("older")).await.unwrap();
    cluster.nodes[1].own("k", None).await.unwrap();
    cluster.nodes[1].is_drained().await;
    cluster.rejoin(0);
    cluster.nodes[0].is_drained().await;
    cluster.all_show("k", None).await;
}

/// A token granted before it numbered the next write below it, and local reads went on showing what that had replaced.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_through_the_quorum_is_newer_than_a_local_one_before_it() {
    let cluster = Cluster::start().await;
    let node = &cluster.nodes[0];
    for round in 0..50 {
        let first = node.written("k", "granted").await;
        let own = node.own("k", Some("own")).await.unwrap();
        let after = node.written("k", "after").await;
        assert!(first < own && own < after, "round {round}: {first} {own} {after}");
        assert_eq!(node.value("k").await, Some(Value::from("after")));
        assert_eq!(node.accepted("k", Update::read()).await.after.unwrap().upd, after);
    }
    node.is_drained().await;
    cluster.all_show("k", Some("after")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_outbox_is_busy_and_a_key_in_it_can_be_written_again() {
    let cluster = Cluster::start().await;
    cluster.leave_alone().await;
    let alone = &cluster.nodes[0];
    for n in 0..OUTBOX.entries_max {
        alone.own(&format!("k{n}"), Some("v")).await.unwrap();
    }
    let refused = alone.own("one-more", Some("v")).await;
    assert!(matches!(refused, Err(Error::Rejected(Rejection::Busy(_)))), "{refused:?}");
    alone.own("k7", Some("again")).await.unwrap();
    // What is shown is up to a tick old: it must have been full before it can be seen to be empty.
    alone.status_is("full", |status| status.outbox.entries == OUTBOX.entries_max).await;
    cluster.rejoin(0);
    alone.is_drained().await;
    alone.own("one-more", Some("v")).await.unwrap();
    cluster.all_show("k7", Some("again")).await;
    cluster.all_show("one-more", Some("v")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_is_told_of_a_local_write_once() {
    let cluster = Cluster::start().await;
    cluster.nodes[0].written("k", "before").await;
    cluster.all_show("k", Some("before")).await;
    cluster.leave_alone().await;
    let watch = |n: usize| {
        let bell = Arc::new(tokio::sync::Notify::new());
        cluster.nodes[n].manager.feed().watch(&shard(), vec![String::new()], None, bell).unwrap()
    };
    let (here, there) = (watch(0), watch(2));
    let told = async |watch: &feed::Watch| {
        tokio::time::timeout(PATIENCE, watch.changed()).await.unwrap();
        let events = watch.take(10, 1 << 20).unwrap().events;
        events.iter().map(|event| event.op.value().cloned().unwrap()).collect::<Vec<_>>()
    };
    cluster.nodes[0].own("k", Some("own")).await.unwrap();
    assert_eq!(told(&here).await, [Value::from("own")]);
    cluster.rejoin(0);
    cluster.nodes[0].is_drained().await;
    assert_eq!(told(&there).await, [Value::from("own")]);
    cluster.nodes[0].written("k", "after").await;
    assert_eq!(told(&here).await, [Value::from("after")], "not the first one again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_leaves_hands_its_outbox_on() {
    let cluster = Cluster::start().await;
    cluster.leave_alone().await;
    let leaving = &cluster.nodes[0];
    for n in 0..50 {
        leaving.own(&format!("k{n}"), Some("v")).await.unwrap();
    }
    // Nobody to hand it to: it does not wait for that.
    tokio::time::timeout(PATIENCE, leaving.replicator.retire()).await.unwrap();
    leaving.status_is("still there", |status| status.outbox.entries == 50).await;
    assert!(matches!(leaving.own("late", Some("v")).await, Err(Error::Rejected(Rejection::Busy(_)))));
    cluster.rejoin(0);
    leaving.status_is("not alone", |status| status.reachable > 1).await;
    tokio::time::timeout(PATIENCE, leaving.replicator.retire()).await.unwrap();
    for n in 0..50 {
        assert!(leaving.stored(&format!("k{n}")).await.is_some());
    }
}
