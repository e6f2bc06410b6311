//! Writes with consistency=local on three real processes: taken without a quorum, there after SIGKILL, handed on once peers are
//! back, and overtaken by what is newer.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::disallowed_methods, reason = "a test")]

mod common;

use std::fs;
use std::process::{Command, Output};
use std::time::Duration;

use common::{Cluster, Node, PATIENCE, until};
use outrigger::client::{BatchOp, Change, Client, Consistency, Error, Expect, Watch};

/// Keys that may have a local write, in the test that fills an outbox.
const ENTRIES_MAX: usize = 40;

fn alone(node: &Node) -> Client {
    Client::builder(node.socket()).consistency(Consistency::Local).build()
}

fn cli(node: &Node, arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_outrigger");
    Command::new(program).args(arguments).arg("--socket").arg(node.socket()).output().unwrap()
}

async fn listed(node: &Node) -> Vec<(String, String)> {
    let mut listing = node.client().list("", false).await.unwrap();
    let mut rows = Vec::new();
    while let Some(item) = listing.next().await.unwrap() {
        rows.push((item.key, String::from_utf8(item.value.unwrap().to_vec()).unwrap()));
    }
    rows
}

async fn outbox(node: &Node) -> u64 {
    node.client().cluster().await.unwrap().outbox.entries
}

async fn has_no_quorum(node: &Node) {
    until("no quorum is in reach", async || node.client().put("probe", "1").await.is_err()).await;
}

async fn next(watch: &mut Watch) -> Change {
    tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap()
}

fn status_of(error: &Error) -> (u16, String) {
    match error {
        Error::Problem(problem) => (problem.status, problem.kind.clone()),
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_left_alone_takes_local_writes_and_hands_them_on() {
    let mut cluster = Cluster::start(3).await;
    let everywhere = cluster.nodes[0].client();
    for key in ["deleted", "overtaken"] {
        everywhere.put(key, "before").await.unwrap();
    }
    let mut watch = cluster.nodes[0].client().watch("", None).await.unwrap();
    while !matches!(next(&mut watch).await, Change::SnapshotEnd) {}
    cluster.nodes[1].kill();
    cluster.nodes[2].kill();
    has_no_quorum(&cluster.nodes[0]).await;

    let lonely = alone(&cluster.nodes[0]);
    let upd = lonely.put("mine", "1").await.unwrap();
    lonely.del("deleted").await.unwrap();
    lonely.put("overtaken", "older").await.unwrap();
    let ops = |key: &str| BatchOp::Put { key: key.to_owned(), value: "batched".into(), expect: None };
    let done = lonely.batch(&[ops("x"), ops("y"), BatchOp::Get("x".to_owned())]).await.unwrap();
    assert_eq!(done[2].as_ref().unwrap().value.as_deref(), Some(&b"batched"[..]));
    let put = cli(&cluster.nodes[0], &["put", "typed", "by hand", "--consistency", "local"]);
    assert!(put.status.success(), "{put:?}");
    let deleted = cli(&cluster.nodes[0], &["del", "x", "--consistency", "local"]);
    assert!(deleted.status.success(), "{deleted:?}");
    let there = [("mine", "1"), ("overtaken", "older"), ("typed", "by hand"), ("y", "batched")];
    let there: Vec<_> = there.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    assert_eq!(listed(&cluster.nodes[0]).await, there);
    assert_eq!(lonely.get("mine").await.unwrap().unwrap().upd, upd);
    assert_eq!(next(&mut watch).await, Change::Put { key: "mine".to_owned(), value: "1".into(), upd });
    assert!(matches!(next(&mut watch).await, Change::Del { key, .. } if key == "deleted"));
    // Shown a few times a second.
    until("six are counted", async || outbox(&cluster.nodes[0]).await == 6).await;
    let status = String::from_utf8(cli(&cluster.nodes[0], &["status"]).stdout).unwrap();
    assert!(status.contains("6 local writes"), "{status}");
    let metrics = cluster.nodes[0].admin("/metrics").await.unwrap();
    assert!(metrics.contains("outrigger_outbox_writes 6") && metrics.contains("outrigger_outbox_oldest_seconds"));

    // Conditions, and whatever depends on what is there, want a quorum.
    let refused = lonely.cas("mine", Expect::Upd(upd), "2").await.unwrap_err();
    assert_eq!(status_of(&refused), (400, "urn:outrigger:problem:invalid-request".to_owned()));
    let conditional = BatchOp::Put { key: "z".to_owned(), value: "v".into(), expect: Some(Expect::Absent) };
    assert_eq!(status_of(&lonely.batch(&[ops("z"), conditional]).await.unwrap_err()).0, 400);
    assert_eq!(lonely.get("z").await.unwrap(), None, "a batch is refused as a whole");
    assert_eq!(status_of(&cluster.nodes[0].client().put("mine", "2").await.unwrap_err()).0, 503);

    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    until("it answers again", async || cluster.nodes[0].client().cluster().await.is_ok()).await;
    // At once, not some time later.
    assert_eq!(listed(&cluster.nodes[0]).await, there);
    assert_eq!(alone(&cluster.nodes[0]).get("mine").await.unwrap().unwrap().upd, upd);
    until("six are counted", async || outbox(&cluster.nodes[0]).await == 6).await;

    // The two others agree on something newer while the first is away.
    cluster.nodes[0].kill();
    for n in [1, 2] {
        cluster.nodes[n].start();
    }
    until("the others write", async || cluster.nodes[1].client().put("overtaken", "newer").await.is_ok()).await;
    cluster.nodes[0].start();
    for node in &mut cluster.nodes {
        node.ready().await;
    }
    let is_done = async || cluster.nodes[0].client().cluster().await.unwrap().outbox.superseded == 1;
    until("the outbox is handed on", async || outbox(&cluster.nodes[0]).await == 0 && is_done().await).await;
    let figures = cluster.nodes[0].client().cluster().await.unwrap().outbox;
    assert_eq!((figures.superseded, figures.oldest_ms), (1, None));
    let there = [("mine", "1"), ("overtaken", "newer"), ("typed", "by hand"), ("y", "batched")];
    let there: Vec<_> = there.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    for node in &cluster.nodes {
        node.quorum_reader().del("probe").await.unwrap();
        until("all is everywhere", async || listed(node).await == there).await;
        assert_eq!(node.client().get("mine").await.unwrap().unwrap().upd, upd, "under its own version");
        assert_eq!(node.quorum_reader().get("deleted").await.unwrap(), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_outbox_is_busy_and_what_is_left_at_the_end_stays() {
    let mut cluster = Cluster::prepare(3);
    let config = cluster.nodes[0].config();
    let text = fs::read_to_string(&config).unwrap() + &format!("[store]\noutbox_entries_max = {ENTRIES_MAX}\n");
    fs::write(&config, text).unwrap();
    cluster.nodes.iter_mut().for_each(Node::start);
    for node in &mut cluster.nodes {
        node.ready().await;
    }
    cluster.nodes[1].kill();
    cluster.nodes[2].kill();
    has_no_quorum(&cluster.nodes[0]).await;
    let lonely = alone(&cluster.nodes[0]);
    for n in 0..ENTRIES_MAX {
        lonely.put(&format!("k{n}"), "v").await.unwrap();
    }
    let full = lonely.put("one-more", "v").await.unwrap_err();
    assert_eq!(status_of(&full), (503, "urn:outrigger:problem:busy".to_owned()));
    lonely.put("k7", "again").await.unwrap();

    assert!(cluster.nodes[0].terminate().success());
    let log = cluster.nodes[0].log();
    assert!(log.contains("local writes stay on this disk") && log.contains(&format!("writes={ENTRIES_MAX}")), "{log}");
    cluster.nodes.iter_mut().for_each(Node::start);
    for node in &mut cluster.nodes {
        node.ready().await;
    }
    until("the outbox is handed on", async || outbox(&cluster.nodes[0]).await == 0).await;
    let again = cluster.nodes[2].quorum_reader().get("k7").await.unwrap().unwrap();
    assert_eq!(again.value, "again");
    assert_eq!(listed(&cluster.nodes[0]).await.iter().filter(|(key, _)| key.starts_with('k')).count(), ENTRIES_MAX);
}

/// SIGTERM right after local writes: they are with the others before the node has gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_asked_to_stop_hands_its_outbox_on() {
    let mut cluster = Cluster::start(3).await;
    let lonely = alone(&cluster.nodes[0]);
    for n in 0..100 {
        lonely.put(&format!("k{n}"), "v").await.unwrap();
    }
    drop(lonely);
    assert!(cluster.nodes[0].terminate().success());
    assert!(!cluster.nodes[0].log().contains("local writes stay"), "{}", cluster.nodes[0].log());
    let reader = cluster.nodes[1].quorum_reader();
    for n in 0..100 {
        let found = tokio::time::timeout(Duration::from_secs(10), reader.get(&format!("k{n}"))).await.unwrap();
        assert_eq!(found.unwrap().unwrap().value, "v");
    }
}
