//! `GET /v1/watch`, event by event, and the client's watch.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use outrigger::client::{self, Change, Mirror};
use outrigger::store::feed::{FEED_BYTES_MAX, WATCHERS_MAX};
use outrigger::store::replicator::{Frame, Op, Subscriber};
use outrigger::types::{Ballot, Key, ShardId, Value};
use serde_json::{Value as Json, json};
use tokio::io::AsyncReadExt;
use tokio::sync::Notify;

use crate::support::{Answer, Client, Node, VALUE_BYTES_MAX};

/// How long anything may take before a test calls it lost.
const PATIENCE: Duration = Duration::from_secs(30);

/// One of the Server-Sent Events.
#[derive(Debug, Clone, PartialEq)]
struct Event {
    name: String,
    id: Option<String>,
    data: Json,
}

/// A client that watches. HTTP/1.0, whose bodies come as they are.
struct Watcher {
    client: Client,
    unread: String,
}

impl Watcher {
    async fn start(node: &Node, path: &str, headers: &str) -> Self {
        let mut client = node.connect().await;
        client.send(format!("GET /v1/watch/{path} HTTP/1.0\r\n{headers}\r\n").as_bytes()).await;
        let mut watcher = Self { client, unread: String::new() };
        let head = watcher.until("\r\n\r\n").await.expect("a head");
        assert!(head.starts_with("HTTP/1.0 200") && head.contains("text/event-stream"), "{head}");
        watcher
    }

    /// What comes before `end`; none where the connection ends first.
    async fn until(&mut self, end: &str) -> Option<String> {
        let mut part = [0; 4096];
        loop {
            if let Some((before, rest)) = self.unread.split_once(end) {
                let before = before.to_owned();
                self.unread = rest.to_owned();
                return Some(before);
            }
            let read = tokio::time::timeout(PATIENCE, self.client.0.read(&mut part)).await.expect("nothing came");
            match read.unwrap() {
                0 => return None,
                count => self.unread.push_str(std::str::from_utf8(&part[..count]).unwrap()),
            }
        }
    }

    /// The next block as it was written.
    async fn block(&mut self) -> Option<String> {
        self.until("\n\n").await
    }

    /// The next event; heartbeats are passed over.
    async fn event(&mut self) -> Event {
        loop {
            let block = self.block().await.expect("the watch ended");
            let field = |name: &str| {
                let value = |line: &'_ str| line.strip_prefix(name).map(|value| value.trim().to_owned());
                block.lines().find_map(value)
            };
            if let Some(data) = field("data:") {
                let name = field("event:").unwrap();
                return Event { name, id: field("id:"), data: serde_json::from_str(&data).unwrap() };
            }
        }
    }

    /// Checks the names, keys and values of the next events, and returns the last one's id.
    async fn expect(&mut self, expected: &[(&str, Json)]) -> String {
        let mut last = None;
        for (name, data) in expected {
            let mut event = self.event().await;
            event.data.as_object_mut().unwrap().remove("upd");
            assert_eq!((event.name.as_str(), &event.data), (*name, data));
            last = event.id;
        }
        last.unwrap_or_default()
    }
}

async fn put(node: &Node, key: &str, value: &str) {
    assert_eq!(node.http_owned(format!("PUT /v1/kv/_/default/{key}"), value.as_bytes()).await.status, 204);
}

async fn del(node: &Node, key: &str) {
    assert_eq!(node.http_owned(format!("DELETE /v1/kv/_/default/{key}"), b"").await.status, 204);
}

fn frame(key: &str, op: Op, upd: i64, ballot: i64) -> Frame {
    let shard = ShardId::parse("_", "default").unwrap();
    Frame { shard, seq: 0, key: Key::parse(key).unwrap(), op, upd: Ballot(upd), ballot: Ballot(ballot) }
}

#[tokio::test]
async fn a_snapshot_then_changes_then_on_from_an_id() {
    let node = Node::start().await;
    put(&node, "a/1", "one").await;
    put(&node, "b", "other").await;
    put(&node, "a/2", "two").await;
    let mut watcher = Watcher::start(&node, "_/default?prefix=a/", "").await;
    let event = |key: &str, value: &str| ("put", json!({ "key": key, "value": value }));
    let began = watcher
        .expect(&[("snapshot", json!({})), event("a/1", "b25l"), event("a/2", "dHdv"), ("snapshot-end", json!({}))])
        .await;
    put(&node, "a/1", "").await;
    del(&node, "b").await;
    del(&node, "a/2").await;
    let rows = node.http("GET /v1/kv/_/default?prefix=a/", b"").await.json();
    let first = watcher.event().await;
    assert_eq!(first.data, json!({ "key": "a/1", "value": "", "upd": rows["items"][0]["upd"] }));
    let last = watcher.expect(&[("del", json!({ "key": "a/2" }))]).await;
    drop(watcher);

    put(&node, "a/3", "three").await;
    // What was missed, and nothing that was not: from a parameter, or from a header, which counts for more.
    let mut again = Watcher::start(&node, &format!("_/default?prefix=a/&since={last}"), "").await;
    again.expect(&[event("a/3", "dGhyZWU=")]).await;
    let header = format!("Last-Event-ID: {last}\r\n");
    let mut again = Watcher::start(&node, &format!("_/default?prefix=a/&since={began}"), &header).await;
    again.expect(&[event("a/3", "dGhyZWU=")]).await;
    let mut all = Watcher::start(&node, &format!("_/default?prefix=a/&since={began}"), "").await;
    all.expect(&[event("a/1", ""), ("del", json!({ "key": "a/2" })), event("a/3", "dGhyZWU=")]).await;
    // An id of another node, or of another life of this one, is too old: a snapshot.
    let mut other = Watcher::start(&node, "_/default?prefix=b&since=00000000000000aa.7", "").await;
    other.expect(&[("snapshot", json!({})), ("snapshot-end", json!({}))]).await;
}

#[tokio::test]
async fn a_shard_that_is_not_there_is_watched_and_not_made() {
    let node = Node::start().await;
    let mut watcher = Watcher::start(&node, "acme/none", "").await;
    watcher.expect(&[("snapshot", json!({})), ("snapshot-end", json!({}))]).await;
    assert!(!node.manager.exists(&ShardId::parse("acme", "none").unwrap()));
    assert_eq!(node.http("PUT /v1/kv/acme/none/k", b"v").await.status, 204);
    watcher.expect(&[("put", json!({ "key": "k", "value": "dg==" }))]).await;
}

#[tokio::test]
async fn what_cannot_be_read_is_said() {
    let node = Node::start().await;
    for (request, part) in [
        ("GET /v1/watch/_/default?since=7", "since=\"7\" is not the id of an event"),
        ("GET /v1/watch/_/default?since=00000000000000aa.x", "00000000000000aa.x"),
        ("GET /v1/watch/_/default\nLast-Event-ID: x", "Last-Event-ID=\"x\""),
        ("GET /v1/watch/_/default?sinse=", "sinse"),
        ("GET /v1/watch/_/default?timeout=soon", "timeout=\"soon\""),
        ("GET /v1/watch/_/default?consistency=most", "consistency=\"most\""),
        ("GET /v1/watch/_/..%2f", "namespace"),
    ] {
        let answer = node.http(request, b"").await;
        assert_eq!(answer.problem(), (400, "invalid-request".to_owned(), "no".to_owned()), "{request}");
        assert!(answer.text().contains(&part.replace('"', "\\\"")), "{request}: {}", answer.text());
    }
    assert_eq!(node.http("GET /v1/watch/_/default?consistency=quorum", b"").await.problem().0, 501);
    Watcher::start(&node, "_/default?consistency=local&timeout=2s", "").await;
    for path in ["GET /v1/watch/_", "GET /v1/watch/_/default/k"] {
        assert_eq!(node.http(path, b"").await.problem().0, 404, "{path}");
    }
    assert_eq!(node.http("PUT /v1/watch/_/default", b"").await.problem().0, 405);
}

/// A row that is chosen again keeps its version, and what comes late has an older one: neither is a change.
#[tokio::test]
async fn what_is_no_change_is_not_told() {
    let node = Node::start().await;
    let op = |value: &'static str| Op::Put(Value::from(value));
    Subscriber::on_commit(&*node.manager, &frame("k", op("1"), 100, 100));
    Subscriber::on_commit(&*node.manager, &frame("gone", Op::Del, 200, 200));
    let shard = node.manager.open(&ShardId::parse("_", "default").unwrap()).unwrap();
    shard.checkpoint().await.unwrap();
    let mut watcher = Watcher::start(&node, "_/default", "").await;
    watcher.expect(&[("snapshot", json!({})), ("put", json!({ "key": "k", "value": "MQ==" }))]).await;
    for frame in [
        frame("k", op("1"), 100, 300),
        frame("k", op("0"), 90, 90),
        frame("k", op("0"), 290, 290),
        frame("gone", Op::Del, 200, 301),
        frame("gone", op("0"), 150, 150),
        frame("k", op("2"), 400, 400),
        frame("k", op("2"), 400, 400),
        frame("k", op("2"), 400, 500),
        frame("k", op("1"), 300, 300),
        frame("gone", op("3"), 600, 700),
    ] {
        Subscriber::on_commit(&*node.manager, &frame);
    }
    watcher
        .expect(&[
            ("snapshot-end", json!({})),
            ("put", json!({ "key": "k", "value": "Mg==" })),
            ("put", json!({ "key": "gone", "value": "Mw==" })),
        ])
        .await;
}

#[tokio::test]
async fn a_reader_that_is_too_slow_is_cut_off_and_told() {
    let node = Node::start().await;
    let mut watcher = Watcher::start(&node, "_/default?prefix=k", "").await;
    let began = watcher.expect(&[("snapshot", json!({})), ("snapshot-end", json!({}))]).await;
    let value = Op::Put(Value::from(vec![b'x'; VALUE_BYTES_MAX]));
    let too_many = FEED_BYTES_MAX / VALUE_BYTES_MAX + 200;
    // On a thread of its own: the node must not get to send anything meanwhile but what its buffers take.
    for upd in 1..=too_many {
        let upd = i64::try_from(upd).unwrap() * 4096;
        Subscriber::on_commit(&*node.manager, &frame("k", value.clone(), upd, upd));
        if upd % (4096 * 64) == 0 {
            tokio::task::yield_now().await;
        }
    }
    let mut upd = 0;
    let problem = loop {
        let event = watcher.event().await;
        if event.name == "error" {
            break event.data;
        }
        assert_eq!(event.name, "put");
        assert!(event.data["upd"].as_i64().unwrap() > upd, "versions rise");
        upd = event.data["upd"].as_i64().unwrap();
    };
    assert_eq!(problem["type"], "urn:outrigger:problem:slow-client");
    assert!(problem["detail"].as_str().unwrap().contains("snapshot"), "{problem}");
    assert_eq!(watcher.block().await, None, "the last event of all");
    // What it missed is gone: a snapshot takes its place.
    let mut again = Watcher::start(&node, &format!("_/default?prefix=k&since={began}"), "").await;
    assert_eq!(again.event().await.name, "snapshot");
    let row = again.event().await;
    assert_eq!(row.data["upd"].as_i64().unwrap(), i64::try_from(too_many).unwrap() * 4096);
}

#[tokio::test]
async fn watchers_are_bounded() {
    let node = Node::start().await;
    let shard = ShardId::parse("_", "default").unwrap();
    let bell = Arc::new(Notify::new());
    let watch = |_| node.manager.feed().watch(&shard, vec![String::new()], None, Arc::clone(&bell)).unwrap();
    let mut watches: Vec<_> = (0..WATCHERS_MAX).map(watch).collect();
    let full = node.http("GET /v1/watch/_/default", b"").await;
    assert_eq!(full.problem(), (503, "busy".to_owned(), "no".to_owned()));
    assert_eq!(full.header("retry-after"), Some("1"));
    assert!(full.text().contains(&WATCHERS_MAX.to_string()), "{}", full.text());
    watches.pop();
    Watcher::start(&node, "_/default", "").await.expect(&[("snapshot", json!({}))]).await;
}

#[tokio::test]
async fn a_watcher_that_hears_nothing_hears_that() {
    let node = Node::start().await;
    let mut watcher = Watcher::start(&node, "_/default?prefix=a", "").await;
    watcher.expect(&[("snapshot", json!({})), ("snapshot-end", json!({}))]).await;
    put(&node, "b", "1").await;
    let heartbeat = watcher.block().await.unwrap();
    let (comment, id) = heartbeat.split_once('\n').unwrap();
    assert_eq!(comment, ":");
    // The id moves on with what does not concern it, so that it can go on from there.
    let id = id.strip_prefix("id: ").unwrap();
    put(&node, "a", "2").await;
    let mut again = Watcher::start(&node, &format!("_/default?since={id}"), "").await;
    again.expect(&[("put", json!({ "key": "a", "value": "Mg==" }))]).await;
}

#[tokio::test]
async fn watches_end_when_the_node_does_and_hold_nothing_up() {
    let node = Node::start().await;
    let mut watchers = Vec::new();
    for _ in 0..50 {
        watchers.push(Watcher::start(&node, "_/default", "").await);
    }
    node.service.drain();
    tokio::time::timeout(Duration::from_secs(5), node.service.drained()).await.expect("held up by watchers");
    for watcher in &mut watchers {
        let last = loop {
            let event = watcher.event().await;
            if !event.name.starts_with("snapshot") {
                break event;
            }
        };
        assert_eq!((last.name.as_str(), &last.data["status"]), ("error", &json!(503)));
        assert!(last.data["detail"].as_str().unwrap().contains("shutting down"), "{last:?}");
        assert_eq!(watcher.block().await, None);
    }
    assert_eq!(node.http("GET /v1/watch/_/default", b"").await.problem().0, 503);
    assert_eq!(node.server.shutdown(Duration::from_secs(5)).await, 0);
}

/// A watch that begins while its shard is written to: nothing falls between its snapshot and what follows, and no key goes
/// back. Many begin, go on from an id, and begin anew.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_falls_between_snapshot_and_changes() {
    const KEYS: usize = 12;
    let node = Node::start().await;
    let stop = Arc::new(AtomicBool::new(false));
    let client = || client::Client::builder(node.path()).build();
    let writers: Vec<_> = (0..6)
        .map(|writer| {
            let (client, stop) = (client(), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    let key = format!("k{}", (writer * 7 + number) % KEYS);
                    if number % 5 == 0 {
                        client.del(&key).await.unwrap();
                    } else {
                        client.put(&key, format!("{writer} {number}")).await.unwrap();
                    }
                }
            })
        })
        .collect();
    let watchers: Vec<_> = (0..20)
        .map(|n| {
            let (client, stop) = (client(), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut mirror = Mirror::default();
                let mut watch = client.watch("k", None).await.unwrap();
                let (mut seen, mut changes) = (HashMap::new(), 0_u64);
                loop {
                    let change = match tokio::time::timeout(Duration::from_secs(2), watch.next()).await {
                        // All is quiet.
                        Err(_) if stop.load(Ordering::Relaxed) => break,
                        Err(_) => panic!("nothing came, though there are writers"),
                        Ok(change) => change.unwrap(),
                    };
                    changes += 1;
                    if let Change::Put { key, upd, .. } | Change::Del { key, upd } = &change {
                        let before = seen.insert(key.clone(), *upd);
                        assert!(before.is_none_or(|before| before < *upd), "{key}: {upd} after {before:?}");
                    }
                    let is_midway = change == Change::Snapshot || watch.id().is_none();
                    mirror.apply(change);
                    if n % 2 == 0 && changes.is_multiple_of(50) && !is_midway {
                        watch.resume().await.unwrap();
                    }
                    if n % 3 == 0 && changes.is_multiple_of(70) && !is_midway {
                        watch = client.watch("k", None).await.unwrap();
                        seen.clear();
                    }
                }
                (mirror, changes)
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(3)).await;
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let rows: BTreeMap<_, _> = {
        let mut listing = client().list("k", false).await.unwrap();
        let mut rows = BTreeMap::new();
        while let Some(item) = listing.next().await.unwrap() {
            rows.insert(item.key, (item.value.unwrap(), item.upd));
        }
        rows
    };
    assert!(!rows.is_empty());
    for watcher in watchers {
        let (mirror, changes) = watcher.await.unwrap();
        assert!(changes > 100, "too little happened to prove anything: {changes}");
        let mirrored: BTreeMap<_, _> =
            mirror.rows().iter().map(|(key, row)| (key.clone(), (row.value.clone(), row.upd))).collect();
        assert_eq!(mirrored, rows);
    }
}

#[tokio::test]
async fn the_client_tells_why_it_ended_and_goes_on() {
    let node = Node::start().await;
    put(&node, "a", "1").await;
    let client = client::Client::builder(node.path()).build();
    let mut watch = client.watch("", None).await.unwrap();
    let mut changes = Vec::new();
    for _ in 0..3 {
        changes.push(watch.next().await.unwrap());
    }
    assert!(matches!(&changes[..], [Change::Snapshot, Change::Put { .. }, Change::SnapshotEnd]), "{changes:?}");
    let id = watch.id().unwrap().to_owned();
    drop(watch);
    del(&node, "a").await;
    let mut watch = client.watch("", Some(&id)).await.unwrap();
    assert!(matches!(watch.next().await.unwrap(), Change::Del { key, .. } if key == "a"));
    assert!(client.watch("", Some("nonsense")).await.unwrap_err().is_bad_request());
    node.service.drain();
    let ended = watch.next().await.unwrap_err();
    assert!(ended.is_unavailable() && ended.to_string().contains("shutting down"), "{ended}");
    assert!(watch.next().await.unwrap_err().to_string().contains("it has ended"));
    assert!(watch.resume().await.unwrap_err().is_unavailable());
}

/// `HEAD` begins nothing that would stay.
#[tokio::test]
async fn a_head_alone_watches_nothing() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    client.send(b"HEAD /v1/watch/_/default HTTP/1.1\r\nhost: o\r\nconnection: close\r\n\r\n").await;
    let rest = tokio::time::timeout(PATIENCE, client.rest()).await.unwrap();
    assert_eq!(Answer::parse(&rest).status, 200);
}
