//! Deletions are forgotten by all replicas or by none, and what was deleted stays so.

use tokio::sync::Notify;

use super::*;
use crate::store::feed::Cut;

const SHORT: Duration = Duration::from_millis(200);

impl Node {
    async fn open(&self) -> Arc<crate::store::Shard> {
        self.manager.get(&shard()).await.unwrap()
    }

    async fn floor(&self) -> Ballot {
        self.open().await.gc_floor()
    }

    async fn has_forgotten(&self, name: &str) {
        until(&format!("{name} is forgotten"), async || {
            self.stored(name).await.is_none() && self.open().await.tombstones().unwrap().count == 0
        })
        .await;
    }
}

impl Cluster {
    async fn has_everywhere(&self, name: &str, value: &str) {
        for node in &self.nodes {
            node.has(name, value).await;
        }
    }

    async fn deleted_everywhere(&self, name: &str) {
        for node in &self.nodes {
            until("it is deleted", async || node.stored(name).await.is_some_and(|row| row.op == Op::Del)).await;
        }
    }
}

/// A floor just above the deletion of `name`.
async fn floor_above(node: &Node, name: &str) -> Ballot {
    let deleted = node.stored(name).await.unwrap();
    Ballot(deleted.ballot.nanos() + (2 << crate::types::SLOT_BITS)).overwritten()
}

fn put_if_absent(value: &str) -> Update {
    Update { condition: Condition::Absent, ..put(value) }
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions_are_forgotten_everywhere_and_what_was_deleted_stays_so() {
    let mut cluster = Cluster::start_forgetting(Network::new(), SHORT).await;
    let bell = Arc::new(Notify::new());
    let watch = cluster.nodes[1].manager.feed().watch(&shard(), vec![String::new()], None, bell).unwrap();
    for n in 0..20 {
        cluster.nodes[n % 3].accepted(&format!("k{n}"), put("v")).await;
        cluster.nodes[n % 2].accepted(&format!("k{n}"), Update::del()).await;
    }
    let kept = cluster.nodes[2].accepted("kept", put("v")).await.after.unwrap();
    for node in &cluster.nodes {
        for n in 0..20 {
            node.has_forgotten(&format!("k{n}")).await;
        }
    }
    let floors = [0, 1, 2].map(|n| cluster.nodes[n].open());
    let floors: Vec<_> = futures_util::future::join_all(floors).await.iter().map(|open| open.gc_floor()).collect();
    assert!(floors.iter().all(|floor| *floor > Ballot::ZERO));
    let seen = watch.take(1000, usize::MAX).unwrap().events;
    assert!(seen.iter().all(|event| event.op != Op::Del || event.key.as_str() != "kept"));
    assert!(seen.len() <= 41, "nothing but puts and deletions was seen: {seen:?}");
    for (n, floor) in floors.into_iter().enumerate() {
        cluster.restart(n).await;
        cluster.nodes[n].ready().await;
        assert!(cluster.nodes[n].floor().await >= floor, "a floor outlives the process");
        let read = cluster.nodes[n].accepted("k7", Update::read()).await;
        assert_eq!((read.before, cluster.nodes[n].local("k7").await), (None, None));
    }
    cluster.has_everywhere("kept", "v").await;
    assert_eq!(cluster.nodes[0].local("kept").await, Some(kept));
    // What is written on absence as of a floor is a write like any other.
    let again = cluster.nodes[0].accepted("k7", put_if_absent("again")).await;
    assert_eq!(again.verdict, Verdict::Written);
    assert_eq!(cluster.nodes[1].accepted("k7", put_if_absent("later")).await.verdict, Verdict::ConditionFailed);
    cluster.has_everywhere("k7", "again").await;
}

/// One node holds the row and hears nothing of the deletion: it must find it when it comes back, however late.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_is_remembered_for_as_long_as_a_replica_is_away() {
    let mut cluster = Cluster::start_forgetting(Network::new(), SHORT).await;
    cluster.nodes[0].accepted("k", put("old")).await;
    cluster.has_everywhere("k", "old").await;
    cluster.isolate(2);
    for node in &cluster.nodes[..2] {
        node.status_is("two of three", |status| status.reachable == 2).await;
    }
    cluster.nodes[0].accepted("k", Update::del()).await;
    let deleted = cluster.nodes[0].clock.now().wall;
    until("many times the grace has passed", async || {
        assert!(cluster.nodes[0].stored("k").await.is_some(), "the deletion was forgotten while a replica is away");
        cluster.nodes[0].clock.now().wall - deleted > 15 * i64::try_from(SHORT.as_nanos()).unwrap()
    })
    .await;
    assert_eq!(cluster.nodes[2].local("k").await.unwrap().value, Value::from("old"));
    cluster.restart(2).await;
    cluster.rejoin(2);
    for node in &cluster.nodes {
        node.has_forgotten("k").await;
        assert_eq!(node.local("k").await, None);
    }
    let read = cluster.nodes[2].accepted("k", Update::read()).await;
    assert_eq!(read.before, None);
}

/// Whoever had deletions forgotten died before it came to the last replica.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_not_come_to_adopts_the_floor() {
    let cluster = Cluster::start().await;
    cluster.nodes[0].accepted("kept", put("v")).await;
    cluster.nodes[0].accepted("k", put("v")).await;
    cluster.nodes[0].accepted("k", Update::del()).await;
    cluster.deleted_everywhere("k").await;
    cluster.has_everywhere("kept", "v").await;
    cluster.all_in_step().await;
    let floor = floor_above(&cluster.nodes[0], "k").await;
    for node in &cluster.nodes[..2] {
        node.open().await.raise_floor(floor, &[]).unwrap();
    }
    until("the third has it, too", async || {
        cluster.look();
        cluster.nodes[2].floor().await == floor
    })
    .await;
    cluster.nodes[2].has_forgotten("k").await;
    cluster.has_everywhere("kept", "v").await;
    until("all agree", async || cluster.nodes.iter().all(|node| node.root() == cluster.nodes[0].root())).await;
}

/// A copy that was away for longer than any deletion is remembered, as a replica that is new again may hold it: its rows
/// must not come back, nor stay.
#[tokio::test(flavor = "multi_thread")]
async fn rows_from_before_a_floor_that_others_have_deleted_go() {
    let cluster = Cluster::start().await;
    cluster.nodes[0].accepted("kept", put("v")).await;
    cluster.has_everywhere("kept", "v").await;
    cluster.all_in_step().await;
    let upd = Ballot(cluster.nodes[0].stored("kept").await.unwrap().upd.0 - 4096);
    let stale = &cluster.nodes[2];
    let op = Op::Put(Value::from("stale"));
    stale.manager.on_commit(&Frame { shard: shard(), seq: 1, key: key("k"), op, upd, ballot: upd });
    stale.has("k", "stale").await;
    let watch = stale.manager.feed().watch(&shard(), vec!["k".to_owned()], None, Arc::new(Notify::new())).unwrap();
    let floor = Ballot(cluster.nodes[0].stored("kept").await.unwrap().upd.0 + 4096).overwritten();
    for node in &cluster.nodes[..2] {
        node.open().await.raise_floor(floor, &[]).unwrap();
    }
    until("it is gone", async || {
        cluster.look();
        stale.local("k").await.is_none()
    })
    .await;
    assert_eq!(stale.floor().await, floor);
    assert_eq!(watch.take(10, 1000), Err(Cut::Lost), "who watched it begins again");
    for node in &cluster.nodes {
        assert_eq!(node.local("k").await, None);
    }
    cluster.has_everywhere("kept", "v").await;
    until("all agree", async || cluster.nodes.iter().all(|node| node.root() == cluster.nodes[0].root())).await;
}

/// A late message of an old round finds nothing, and must not make something of it; nor is anybody asked for it for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_alone_forgets_too() {
    let dir = tempfile::tempdir().unwrap();
    let how = How { voters: &["a"], grace: SHORT, ..How::default() };
    let only = Node::start_as(&Network::new(), dir.path(), "a", how, |events| events).await;
    only.accepted("k", put("v")).await;
    only.accepted("k", Update::del()).await;
    only.has_forgotten("k").await;
    assert_eq!(only.accepted("k", put_if_absent("again")).await.verdict, Verdict::Written);
    only.stop().await;
}
