//! INTERFACES' table of outcomes: every decision of a replicator, as each dialect tells it.

use std::sync::Arc;
use std::time::Duration;

use outrigger::store::replicator::{Decision, Rejection};
use outrigger::store::update::{Outcome, Row, Verdict};
use outrigger::types::{Ballot, Value};

use crate::support::{Node, Scripted, command};

fn outcome(verdict: Verdict, before: Option<&'static str>, after: Option<&'static str>) -> Decision {
    let row = |value: &'static str| Row { value: Value::from(value), upd: Ballot(17) };
    Decision::Accept(Outcome { verdict, before: before.map(row), after: after.map(row) })
}

fn scripted(decision: &Decision) -> Arc<Scripted> {
    Scripted::new(decision.clone(), 1_000)
}

#[tokio::test]
async fn every_failure_is_told_as_the_interface_says() {
    let why = || "because".to_owned();
    let rows = [
        (Decision::Reject(Rejection::Refused(why())), 409, "frame-rejected", "no", None, "-REJECTED because\r\n"),
        (Decision::Reject(Rejection::NoQuorum(why())), 503, "no-quorum", "no", Some("1"), "-NOQUORUM because\r\n"),
        (Decision::Reject(Rejection::Busy(why())), 503, "busy", "no", Some("1"), "-BUSY because\r\n"),
        (Decision::Reject(Rejection::DiskFull(why())), 507, "disk-full", "no", None, "-DISKFULL because\r\n"),
        (Decision::Timeout, 504, "timeout", "unknown", None, "-TIMEOUT "),
    ];
    for (decision, status, kind, written, retry_after, reply) in rows {
        let node = Node::scripted(scripted(&decision)).await;
        for request in
            ["PUT /v1/kv/_/default/k", "DELETE /v1/kv/_/default/k", "PUT /v1/kv/_/default/k\nif-match: \"1\""]
        {
            let answer = node.http(request, b"").await;
            assert_eq!(answer.problem(), (status, kind.to_owned(), written.to_owned()), "{request}");
            assert_eq!(answer.header("retry-after"), retry_after, "{request}");
        }
        // A read never writes, however it ends.
        let answer = node.http("GET /v1/kv/_/default/k?consistency=quorum", b"").await;
        assert_eq!(answer.problem(), (status, kind.to_owned(), "no".to_owned()));

        let writes: [&[&str]; 7] = [
            &["SET", "k", "v"],
            &["INCR", "k"],
            &["APPEND", "k", "v"],
            &["DEL", "k"],
            &["DEL", "a", "b"],
            &["MSET", "a", "b"],
            &["GETDEL", "k"],
        ];
        for words in writes {
            let got = node.resp(&[words]).await;
            assert!(got.starts_with(reply), "{words:?}: {got:?} instead of {reply:?}");
        }
        let got = node.resp(&[&["READWRITE"], &["GET", "k"], &["MGET", "k", "l"]]).await;
        assert_eq!(got.matches(reply.trim_end()).count(), 2, "{got:?}");
    }
}

#[tokio::test]
async fn an_accepted_write_is_told_with_its_version() {
    let node = Node::scripted(scripted(&outcome(Verdict::Written, None, Some("v")))).await;
    let answer = node.http("PUT /v1/kv/_/default/k", b"v").await;
    assert_eq!((answer.status, answer.header("etag"), answer.text()), (204, Some("\"17\""), ""));
    assert_eq!(node.resp(&[&["SET", "k", "v"]]).await, "+OK\r\n");
}

#[tokio::test]
async fn a_failed_condition_is_412_nil_or_0() {
    let there = Node::scripted(scripted(&outcome(Verdict::ConditionFailed, Some("x"), Some("x")))).await;
    let answer = there.http("PUT /v1/kv/_/default/k\nif-none-match: *", b"v").await;
    assert_eq!(answer.problem(), (412, "condition-failed".to_owned(), "no".to_owned()));
    assert_eq!(answer.header("etag"), Some("\"17\""));
    let replies = there.resp(&[&["SET", "k", "v", "NX"], &["SETNX", "k", "v"], &["SET", "k", "v", "NX", "GET"]]).await;
    assert_eq!(replies, "$-1\r\n:0\r\n$1\r\nx\r\n");

    let absent = Node::scripted(scripted(&outcome(Verdict::ConditionFailed, None, None))).await;
    let answer = absent.http("DELETE /v1/kv/_/default/k\nif-match: \"3\"", b"").await;
    assert_eq!((answer.problem().0, answer.header("etag")), (412, None));
    assert_eq!(absent.resp(&[&["SET", "k", "v", "XX"]]).await, "$-1\r\n");
}

#[tokio::test(start_paused = true)]
async fn a_replicator_that_never_answers_is_a_timeout_of_unknown_outcome() {
    let silent = Scripted::new(Decision::Timeout, 0);
    let node = Node::scripted(Arc::clone(&silent)).await;
    let answer = node.http("PUT /v1/kv/_/default/k?timeout=5s", b"v").await;
    assert_eq!(answer.problem(), (504, "timeout".to_owned(), "unknown".to_owned()));
    assert_eq!(silent.asked.lock()[0].timeout, Some(Duration::from_secs(5)));
    assert!(node.resp(&[&["SET", "k", "v"]]).await.starts_with("-TIMEOUT "));
    assert_eq!(silent.asked.lock()[1].timeout, Some(Duration::from_secs(2)), "the default");
}

#[tokio::test]
async fn while_draining_writes_are_refused_and_reads_go_on() {
    let node = Node::start().await;
    assert_eq!(node.resp(&[&["SET", "k", "v"]]).await, "+OK\r\n");
    node.service.drain();
    assert!(node.resp(&[&["SET", "k", "w"]]).await.starts_with("-BUSY "));
    let answer = node.http("PUT /v1/kv/_/default/k", b"w").await;
    assert_eq!(answer.problem(), (503, "busy".to_owned(), "no".to_owned()));
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(node.resp(&[&["GET", "k"]]).await, "$1\r\nv\r\n");
    assert_eq!(node.http("GET /v1/kv/_/default/k?consistency=quorum", b"").await.text(), "v");
    node.service.drained().await;
}

#[tokio::test]
async fn a_shutdown_lets_what_is_under_way_finish() {
    let slow = Scripted::new(outcome(Verdict::Written, None, Some("v")), 0);
    let node = Node::scripted(Arc::clone(&slow)).await;
    let (mut resp, mut http, mut idle) = (node.connect().await, node.connect().await, node.connect().await);
    idle.send(&command(&["PING"])).await;
    idle.expect("+PONG\r\n").await;
    resp.send(&command(&["SET", "k", "v"])).await;
    http.send(b"PUT /v1/kv/_/default/l HTTP/1.1\r\nhost: o\r\ncontent-length: 1\r\n\r\nv").await;
    while slow.asked.lock().len() < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(node.service.in_flight(), 2);
    node.service.drain();
    let path = node.path();
    let shutdown = tokio::spawn(node.server.shutdown(Duration::from_secs(30)));
    assert_eq!(idle.rest().await, b"", "an idle connection is closed at once");
    assert!(!path.exists());
    slow.turns.add_permits(2);
    assert_eq!(resp.rest().await, b"+OK\r\n");
    assert!(http.rest().await.starts_with(b"HTTP/1.1 204 "));
    assert_eq!(shutdown.await.unwrap(), 0);
    node.service.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_closes_what_does_not_finish_by_its_deadline() {
    let never = Scripted::new(Decision::Timeout, 0);
    let node = Node::scripted(Arc::clone(&never)).await;
    let mut client = node.connect().await;
    client.send(b"PUT /v1/kv/_/default/k?timeout=60s HTTP/1.1\r\nhost: o\r\ncontent-length: 1\r\n\r\nv").await;
    while never.asked.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(node.server.shutdown(Duration::from_secs(5)).await, 1);
    assert_eq!(client.rest().await, b"");
}

#[tokio::test]
async fn what_is_not_built_yet_says_so() {
    let node = Node::start().await;
    let request = "GET /v1/kv/_/default?consistency=quorum";
    let answer = node.http(request, b"").await;
    assert_eq!(answer.problem(), (501, "not-supported".to_owned(), "no".to_owned()), "{request}");
}

#[tokio::test]
async fn a_local_write_is_blind() {
    let node = Node::start().await;
    assert_eq!(node.http("PUT /v1/kv/_/default/k?consistency=local", b"v").await.status, 204);
    assert_eq!(node.http("GET /v1/kv/_/default/k", b"").await.text(), "v");
    for request in [
        "PUT /v1/kv/_/default/k?consistency=local\nIf-Match: *",
        "PUT /v1/kv/_/default/k?consistency=local\nIf-None-Match: *",
        "DELETE /v1/kv/_/default/k?consistency=local\nIf-Match: \"17\"",
    ] {
        let answer = node.http(request, b"w").await;
        assert_eq!(answer.problem(), (400, "invalid-request".to_owned(), "no".to_owned()), "{request}");
    }
    let batch = br#"{"ops":[{"put":{"key":"k","value":"dw=="}},{"put":{"key":"l","value":"dw==","if_absent":true}}]}"#;
    let answer = node.http("POST /v1/batch/_/default?consistency=local", batch).await;
    assert_eq!(answer.problem(), (400, "invalid-request".to_owned(), "no".to_owned()));
    assert_eq!(node.http("GET /v1/kv/_/default/k", b"").await.text(), "v");
    assert_eq!(node.http("DELETE /v1/kv/_/default/k?consistency=local", b"").await.status, 204);
    assert_eq!(node.http("GET /v1/kv/_/default/k", b"").await.status, 404);
}

#[tokio::test]
async fn health_tells_the_reason() {
    let node = Node::start().await;
    assert_eq!(node.http("GET /v1/cluster/health", b"").await.status, 200);
    *node.told.unhealthy.lock() = Some("1 of 3 voters is live".to_owned());
    let answer = node.http("GET /v1/cluster/health", b"").await;
    assert_eq!(answer.problem().0, 503);
    assert_eq!(answer.json()["detail"], "1 of 3 voters is live");
    assert_eq!(node.http("GET /v1/cluster", b"").await.json()["node"], "a");
}
