//! Each row of the outcome table, reached for real on real processes, in both dialects.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test"
)]

mod common;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Cluster, Node, Signal, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// One HTTP request on a connection of its own: the status line's code, the head, the body.
async fn http(node: &Node, method: &str, path: &str, headers: &str, body: &[u8]) -> (u16, String, String) {
    let mut stream = UnixStream::connect(node.socket()).await.unwrap();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: o\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // The answer to a body that is too large may come before all of it is taken.
    let _ = stream.write_all(body).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_owned(), body.to_owned())
}

async fn put(node: &Node, key: &str, query: &str) -> (u16, String, String) {
    http(node, "PUT", &format!("/v1/kv/_/default/{key}?{query}"), "", b"v").await
}

/// One RESP command; the first line of its answer.
async fn resp(node: &Node, words: &[&str]) -> String {
    let mut stream = UnixStream::connect(node.socket()).await.unwrap();
    let mut command = format!("*{}\r\n", words.len());
    for word in words {
        command.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    stream.write_all(command.as_bytes()).await.unwrap();
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(line).unwrap().trim_end().to_owned()
}

fn problem(body: &str, key: &str) -> String {
    let body: serde_json::Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("no problem document: {body}"));
    body.get(key).and_then(|value| value.as_str()).unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn accepted_failed_conditions_and_bad_input() {
    let cluster = Cluster::start(1).await;
    let node = &cluster.nodes[0];
    let (status, head, _) = put(node, "k", "").await;
    assert_eq!(status, 204, "{head}");
    let etag = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap().to_owned();
    assert_eq!(resp(node, &["SET", "r", "v"]).await, "+OK");

    let path = "/v1/kv/_/default/k";
    let (status, head, body) = http(node, "PUT", path, "if-none-match: *\r\n", b"w").await;
    assert_eq!((status, problem(&body, "written").as_str()), (412, "no"));
    assert!(head.contains(&etag), "the current version comes with it: {head}");
    assert_eq!(http(node, "PUT", path, "if-match: \"1\"\r\n", b"w").await.0, 412);
    assert_eq!(http(node, "PUT", path, &format!("if-match: {etag}\r\n"), b"w").await.0, 204);
    assert_eq!(resp(node, &["SET", "r", "w", "NX"]).await, "$-1");
    assert_eq!(resp(node, &["SETNX", "r", "w"]).await, ":0");

    let (status, _, body) = http(node, "PUT", path, "", &vec![b'x'; (1 << 20) + 1]).await;
    assert_eq!((status, problem(&body, "written").as_str()), (413, "no"));
    let long = "k".repeat(2000);
    assert_eq!(put(node, &long, "").await.0, 413);
    assert!(resp(node, &["SET", &long, "v"]).await.starts_with("-ERR"));
    for bad in ["/v1/kv/a%2Fb/default/k", "/v1/kv/_/-x/k", "/v1/kv/_/default/%ff", "/v1/kv/_/default/k%00"] {
        let (status, _, body) = http(node, "PUT", bad, "", b"v").await;
        assert_eq!((status, problem(&body, "written").as_str()), (400, "no"), "{bad}");
    }
    // Whatever was sent, the node goes on.
    assert_eq!(put(node, "k", "").await.0, 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_quorum_is_known_at_once() {
    let mut cluster = Cluster::start(3).await;
    cluster.nodes[1].kill();
    cluster.nodes[2].kill();
    let node = &cluster.nodes[0];
    until("it is noticed", async || !node.is_ready().await).await;
    let started = Instant::now();
    let (status, head, body) = put(node, "k", "").await;
    assert_eq!((status, problem(&body, "written").as_str()), (503, "no"), "{body}");
    assert!(head.to_lowercase().contains("retry-after: "), "{head}");
    assert!(resp(node, &["SET", "k", "v"]).await.starts_with("-NOQUORUM "));
    assert!(started.elapsed() < Duration::from_millis(1500), "after {:?}", started.elapsed());
    let (status, _, body) = http(node, "GET", "/v1/cluster/health", "", b"").await;
    assert_eq!(status, 503);
    assert!(body.contains("1 of 3"), "{body}");
}

/// The accept has left (a token saves the prepare) and nobody answers: it may yet be accepted, and here it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_is_unknown() {
    let cluster = Cluster::start(3).await;
    let node = &cluster.nodes[0];
    let mut answer = (0, String::new(), String::new());
    // The token lives for a quarter of a second; a slow machine may need several tries to be within it.
    for attempt in 0..20 {
        let key = format!("k{attempt}");
        assert_eq!(put(node, &key, "").await.0, 204);
        cluster.nodes[1].signal(Signal::STOP);
        cluster.nodes[2].signal(Signal::STOP);
        answer = put(node, &key, "timeout=300ms").await;
        cluster.nodes[1].signal(Signal::CONT);
        cluster.nodes[2].signal(Signal::CONT);
        if answer.0 == 504 {
            break;
        }
        // Too late for the token: nothing was stored, and that was known.
        assert_eq!((answer.0, problem(&answer.2, "written").as_str()), (503, "no"), "{}", answer.2);
        until("writes go on", async || put(node, "probe", "").await.0 == 204).await;
    }
    assert_eq!((answer.0, problem(&answer.2, "written").as_str()), (504, "unknown"), "{}", answer.2);
    until("writes go on", async || put(node, "probe", "").await.0 == 204).await;
}

/// A file system of its own, gone with the test.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    /// None where this user may not mount.
    fn new(path: &'a Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(path).unwrap();
        let options = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(path).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Self(path))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

/// The disk fills up under one node: it refuses writes, keeps what it acknowledged, goes on reading, and recovers.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_refused_and_survived() {
    let mut cluster = Cluster::prepare(1);
    let data = cluster.nodes[0].data();
    let Some(_mounted) = Mounted::new(&data, "400m") else {
        eprintln!("not allowed to mount a tmpfs here: a full disk was not tried");
        return;
    };
    cluster.nodes[0].start();
    cluster.nodes[0].ready().await;
    let node = &cluster.nodes[0];
    let ballast = data.join("ballast");
    // What is left is a few journal segments' worth. What is freed again must hold everything that the journal has and
    // the shard file has not, and SQLite's log of it.
    std::fs::write(&ballast, vec![0; 300 << 20]).unwrap();
    let value = vec![b'x'; 1 << 20];
    let mut kept = Vec::new();
    let refused = loop {
        let key = format!("k{}", kept.len());
        let path = format!("/v1/kv/_/default/{key}?timeout=2s");
        let (status, _, body) = http(node, "PUT", &path, "", &value).await;
        match status {
            204 => kept.push(key),
            // The write that met the full disk itself: nobody can tell whether it will be there.
            504 => {}
            status => break (status, body),
        }
        assert!(kept.len() < 200, "the disk never got full");
    };
    assert_eq!((refused.0, problem(&refused.1, "written").as_str()), (507, "no"), "{}", refused.1);
    assert!(resp(node, &["SET", "k", "v"]).await.starts_with("-DISKFULL "));
    for key in &kept {
        let (status, _, body) = http(node, "GET", &format!("/v1/kv/_/default/{key}"), "", b"").await;
        assert_eq!((status, body.len()), (200, value.len()), "{key}");
    }
    // Room again: it goes on by itself.
    std::fs::remove_file(&ballast).unwrap();
    for key in kept.iter().take(kept.len() / 2) {
        let _ = http(node, "DELETE", &format!("/v1/kv/_/default/{key}"), "", b"").await;
    }
    until("writes go on", async || put(node, "small", "").await.0 == 204).await;
    // And a restart finds everything.
    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    cluster.nodes[0].ready().await;
    assert_eq!(resp(&cluster.nodes[0], &["GET", "small"]).await, "$1");
}

/// SIGTERM: not ready, what is in flight is finished, exit 0, and nothing to repair at the next start.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_is_clean() {
    let mut cluster = Cluster::start(3).await;
    for n in 0..20 {
        assert_eq!(put(&cluster.nodes[0], &format!("k{n}"), "").await.0, 204);
    }
    let started = Instant::now();
    let status = cluster.nodes[0].terminate();
    assert!(status.success(), "{status}:\n{}", cluster.nodes[0].log());
    assert!(started.elapsed() < Duration::from_secs(10), "took {:?}", started.elapsed());
    assert!(!cluster.nodes[0].socket().exists(), "the socket file is left behind");
    assert_eq!(put(&cluster.nodes[1], "k0", "").await.0, 204);
    let rows = common::rows_of(&cluster.nodes[0].data().join("_/default.db"));
    assert_eq!(rows.len(), 20);
}
