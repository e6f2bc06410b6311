//! The HTTP dialect: keys, conditions, lists, batches, errors.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::support::{Answer, Node, VALUE_BYTES_MAX};

#[tokio::test]
async fn a_value_is_written_read_and_deleted() {
    let node = Node::start().await;
    let url = "/v1/kv/acme/payments/wf/payments/a/1";
    let put = node.http(&format!("PUT {url}"), b"\x00raw\xff").await;
    assert_eq!(put.status, 204);
    let etag = put.header("etag").unwrap().to_owned();
    let get = node.http(&format!("GET {url}"), b"").await;
    assert_eq!((get.status, &get.body[..]), (200, &b"\x00raw\xff"[..]));
    assert_eq!(get.header("etag"), Some(&*etag));
    assert_eq!(get.header("content-type"), Some("application/octet-stream"));
    let quorum = node.http(&format!("GET {url}?consistency=quorum&timeout=2s"), b"").await;
    assert_eq!((quorum.status, quorum.header("etag")), (200, Some(&*etag)));
    assert_eq!(node.http(&format!("GET {url}\nif-none-match: {etag}"), b"").await.status, 304);
    let head = node.http(&format!("HEAD {url}"), b"").await;
    assert_eq!((head.status, head.header("content-length"), head.text()), (200, Some("5"), ""));
    assert_eq!(node.http(&format!("DELETE {url}"), b"").await.status, 204);
    assert_eq!(node.http(&format!("DELETE {url}"), b"").await.status, 204, "missing or not");
    let gone = node.http(&format!("GET {url}"), b"").await;
    assert_eq!(gone.problem(), (404, "not-found".to_owned(), "no".to_owned()));
}

#[tokio::test]
async fn conditions_compare_versions() {
    let node = Node::start().await;
    let put = |headers: &'static str| node.http_owned(format!("PUT /v1/kv/_/default/k{headers}"), b"v");
    assert_eq!(put("\nif-match: *").await.status, 412);
    let first = put("\nif-none-match: *").await;
    assert_eq!(first.status, 204);
    let etag = first.header("etag").unwrap().to_owned();
    let again = put("\nif-none-match: *").await;
    assert_eq!((again.problem().1, again.header("etag")), ("condition-failed".to_owned(), Some(&*etag)));
    for foreign in ["\"1\"", "\"not-a-version\""] {
        let answer = node.http(&format!("PUT /v1/kv/_/default/k\nif-match: {foreign}"), b"w").await;
        assert_eq!((answer.status, answer.header("etag")), (412, Some(&*etag)), "{foreign}");
    }
    let second = node.http(&format!("PUT /v1/kv/_/default/k\nif-match: {etag}"), b"w").await;
    assert_eq!(second.status, 204);
    assert_eq!(node.http(&format!("DELETE /v1/kv/_/default/k\nif-match: {etag}"), b"").await.status, 412);
    let etag = second.header("etag").unwrap();
    assert_eq!(node.http(&format!("DELETE /v1/kv/_/default/k\nif-match: {etag}"), b"").await.status, 204);
    for malformed in ["if-match: 17", "if-match: \"1\", \"2\"", "if-none-match: \"1\"", "if-match: *\nif-none-match: *"]
    {
        let answer = node.http(&format!("PUT /v1/kv/_/default/k\n{malformed}"), b"v").await;
        assert_eq!(answer.problem(), (400, "invalid-request".to_owned(), "no".to_owned()), "{malformed}");
    }
}

#[tokio::test]
async fn keys_are_the_rest_of_the_path_as_it_is() {
    let node = Node::start().await;
    let keys = [
        ("a//b", "a//b"),
        ("./x/../y", "./x/../y"),
        ("/lead", "/lead"),
        ("trail/", "trail/"),
        ("%C3%A9%2F%25?", "é/%"),
        ("a+b", "a+b"),
    ];
    for (path, _) in keys {
        assert_eq!(node.http(&format!("PUT /v1/kv/_/default/{path}"), b"v").await.status, 204, "{path}");
    }
    let list = node.http("GET /v1/kv/_/default?keys_only=true", b"").await.json();
    let mut expected: Vec<_> = keys.iter().map(|(_, key)| *key).collect();
    expected.sort_unstable();
    let listed: Vec<_> = list["items"].as_array().unwrap().iter().map(|item| item["key"].as_str().unwrap()).collect();
    assert_eq!(listed, expected);
    assert!(list["items"][0].get("value").is_none());
}

#[tokio::test]
async fn every_error_is_a_problem() {
    let node = Node::start().await;
    let long = "k".repeat(2_000);
    for (request, status, kind) in [
        ("GET /nowhere", 404, "not-found"),
        ("GET /", 404, "not-found"),
        ("GET /v1/kv", 404, "not-found"),
        ("POST /v1/orgs", 405, "method-not-allowed"),
        ("POST /v1/kv/_/default/k", 405, "method-not-allowed"),
        ("PUT /v1/kv/_/default", 405, "method-not-allowed"),
        ("GET /v1/batch/_/default", 405, "method-not-allowed"),
        ("GET /v1/kv/_/default/k?bogus=1", 400, "invalid-request"),
        ("GET /v1/kv/_/default/k?consistency=maybe", 400, "invalid-request"),
        ("GET /v1/kv/_/default/k?timeout=soon", 400, "invalid-request"),
        ("GET /v1/kv/_/default/k?timeout=1h", 400, "invalid-request"),
        ("GET /v1/kv/_/default/k?timeout=0s", 400, "invalid-request"),
        ("GET /v1/kv/_/default?limit=0", 400, "invalid-request"),
        ("GET /v1/kv/_/default?limit=10001", 400, "invalid-request"),
        ("GET /v1/kv/_/default?limit=x", 400, "invalid-request"),
        ("GET /v1/kv/_?prefix=wf/", 400, "invalid-request"),
        ("GET /v1/kv/_", 400, "invalid-request"),
        ("GET /v1/kv/../default/k", 400, "invalid-request"),
        ("PUT /v1/kv/_/%2E%2E/k", 400, "invalid-request"),
        ("PUT /v1/kv/_/default/", 400, "invalid-request"),
        ("PUT /v1/kv/_/default/%FF", 400, "invalid-request"),
        ("PUT /v1/kv/_/default/a%00b", 400, "invalid-request"),
        (&format!("PUT /v1/kv/_/default/{long}"), 413, "too-large"),
        ("POST /v1/shards/_/none/checkpoint", 404, "not-found"),
        ("GET /v1/shards?org=..", 400, "invalid-request"),
    ] {
        assert_eq!(node.http(request, b"").await.problem(), (status, kind.to_owned(), "no".to_owned()), "{request}");
    }
    let body = vec![0; VALUE_BYTES_MAX + 1];
    let answer = node.http("PUT /v1/kv/_/default/k", &body).await;
    assert_eq!(answer.problem(), (413, "too-large".to_owned(), "no".to_owned()));
    assert_eq!(node.http("PUT /v1/kv/_/default/k", &body[1..]).await.status, 204);
}

#[tokio::test]
async fn a_head_that_is_no_http_is_a_problem_too() {
    let node = Node::start().await;
    let long = format!("GET /v1/orgs?{} HTTP/1.1\r\nhost: o\r\n\r\n", "x".repeat(600_000));
    let many = format!("GET /v1/orgs HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(1_000));
    for (head, status, kind) in [
        ("nonsense\r\n\r\n", 400, "invalid-request"),
        ("G\x01T / HTTP/1.1\r\n\r\n", 400, "invalid-request"),
        ("GET /v1/orgs HTTP/9.9\r\n\r\n", 400, "invalid-request"),
        ("GET /v1/orgs HTTP/1.1\r\nno colon\r\n\r\n", 400, "invalid-request"),
        ("PUT /v1/kv/_/default/k HTTP/1.1\r\ncontent-length: x\r\n\r\n", 400, "invalid-request"),
        (&long, 413, "too-large"),
        (&many, 413, "too-large"),
    ] {
        let mut client = node.connect().await;
        // The node may have heard enough before all is sent.
        let _ = tokio::io::AsyncWriteExt::write_all(&mut client.0, head.as_bytes()).await;
        let answer = crate::support::Answer::parse(&client.rest().await);
        assert_eq!(answer.problem(), (status, kind.to_owned(), "no".to_owned()), "{head:.40}");
        assert_eq!(answer.header("connection"), Some("close"));
    }
    // What was answered before is left as it is, even if it looks like an answer of the server's own.
    let looks = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(node.http("PUT /v1/kv/_/default/k", looks.as_bytes()).await.status, 204);
    let mut client = node.connect().await;
    client.send(b"GET /v1/kv/_/default/k HTTP/1.1\r\nhost: o\r\n\r\nnonsense\r\n\r\n").await;
    let got = String::from_utf8(client.rest().await).unwrap();
    let (first, second) = got.split_once(looks).unwrap_or_else(|| panic!("{got}"));
    assert!(first.starts_with("HTTP/1.1 200 OK\r\n"), "{got}");
    assert_eq!(crate::support::Answer::parse(second.as_bytes()).problem().1, "invalid-request");
}

async fn put_all(node: &Node, keys: &[&str]) {
    for key in keys {
        assert_eq!(node.http(&format!("PUT /v1/kv/acme/{key}"), key.as_bytes()).await.status, 204);
    }
}

#[tokio::test]
async fn lists_come_in_pages_of_key_order() {
    let node = Node::start().await;
    put_all(&node, &["pay/b", "pay/a/2", "pay/a/1", "pay/c", "other/a/3"]).await;
    let (mut after, mut keys) = (String::new(), Vec::new());
    loop {
        let page = node.http(&format!("GET /v1/kv/acme/pay?limit=2&after={after}"), b"").await.json();
        for item in page["items"].as_array().unwrap() {
            keys.push(item["key"].as_str().unwrap().to_owned());
            assert!(item["upd"].as_i64().unwrap() > 0 && item["value"].is_string());
        }
        match &page["next"] {
            Value::String(next) => after.clone_from(next),
            _ => break,
        }
    }
    assert_eq!(keys, ["a/1", "a/2", "b", "c"]);
    let page = node.http("GET /v1/kv/acme/pay?prefix=a/", b"").await.json();
    assert_eq!(page["items"].as_array().unwrap().len(), 2);
    assert_eq!(page["items"][0]["value"], "cGF5L2EvMQ==");
    assert_eq!(page["next"], Value::Null);
}

#[tokio::test]
async fn a_stream_has_every_row_on_a_line() {
    let node = Node::start().await;
    let ops: Vec<_> = (0..900).map(|n| json!({"put": {"key": format!("k{n:04}"), "value": "dg=="}})).collect();
    for _ in 0..2 {
        let answer = node.http("POST /v1/batch/acme/pay", &serde_json::to_vec(&json!({ "ops": ops })).unwrap()).await;
        assert_eq!(answer.status, 200);
    }
    put_all(&node, &["pay/l"]).await;
    let stream = node.http("GET /v1/kv/acme/pay?prefix=k\naccept: application/x-ndjson", b"").await;
    assert_eq!((stream.status, stream.header("content-type")), (200, Some("application/x-ndjson")));
    let lines: Vec<Value> = stream.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 900);
    for (n, line) in lines.iter().enumerate() {
        assert_eq!((&line["key"], &line["value"]), (&json!(format!("k{n:04}")), &json!("dg==")));
    }
    let few =
        node.http("GET /v1/kv/acme/pay?keys_only=true&limit=3&after=k0100\naccept: application/x-ndjson", b"").await;
    let keys: Vec<Value> =
        few.text().lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["key"].clone()).collect();
    assert_eq!(keys, ["k0101", "k0102", "k0103"]);
    let none = node.http("GET /v1/kv/acme/none\naccept: application/x-ndjson", b"").await;
    assert_eq!((none.status, none.text()), (200, ""));
}

/// Writes, deletes and rewrites through the batch interface, as many at once as it takes.
async fn batch(node: &Node, shard: &str, ops: &[Value]) {
    for ops in ops.chunks(1_000) {
        let body = serde_json::to_vec(&json!({ "ops": ops })).unwrap();
        let answer = node.http(&format!("POST /v1/batch/{shard}"), &body).await;
        let results = answer.json()["results"].as_array().unwrap().clone();
        assert!(results.iter().all(|result| result["status"] == 204), "{results:?}");
    }
}

fn put_op(key: &str, value: &[u8]) -> Value {
    json!({"put": {"key": key, "value": STANDARD.encode(value)}})
}

/// Enough rows that neither the socket nor the node can hold them all while a client does not read.
const STREAMED_ROWS: usize = 1_500;

fn streamed_value(n: usize) -> Vec<u8> {
    format!("old{n}").into_bytes().repeat(600)
}

async fn fill(node: &Node) {
    let ops: Vec<_> = (0..STREAMED_ROWS).map(|n| put_op(&format!("k{n:04}"), &streamed_value(n))).collect();
    batch(node, "acme/pay", &ops).await;
}

/// Asks for a stream and reads no more of it than its first byte.
async fn begin_stream(node: &Node) -> crate::support::Client {
    let mut client = node.connect().await;
    let head = "GET /v1/kv/acme/pay?prefix=k&after=k0099 HTTP/1.1\r\nhost: o\r\nconnection: close\r\n";
    client.send(format!("{head}accept: application/x-ndjson\r\n\r\n").as_bytes()).await;
    client.expect("HTTP/1.1 200 OK\r\n").await;
    client
}

#[tokio::test]
async fn a_stream_read_slowly_shows_the_moment_at_which_it_began() {
    let node = Node::start().await;
    fill(&node).await;
    let mut client = begin_stream(&node).await;
    let change = |n: usize| match n % 5 {
        0 => json!({"del": {"key": format!("k{n:04}")}}),
        1 => put_op(&format!("k{n:04}+"), b"added"),
        _ => put_op(&format!("k{n:04}"), b"new"),
    };
    batch(&node, "acme/pay", &(0..STREAMED_ROWS).map(change).collect::<Vec<_>>()).await;
    let rest = [b"HTTP/1.1 200 OK\r\n".to_vec(), client.rest().await].concat();
    let stream = crate::support::Answer::parse(&rest);
    let mut lines = stream.text().lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    for n in 100..STREAMED_ROWS {
        let line = lines.next().unwrap();
        assert_eq!(line["key"], format!("k{n:04}"));
        assert!(line["value"] == STANDARD.encode(streamed_value(n)), "{n}: {line}");
    }
    assert_eq!(lines.next(), None);
    let now = node.http("GET /v1/kv/acme/pay?keys_only=true\naccept: application/x-ndjson", b"").await;
    assert_eq!(now.text().lines().count(), STREAMED_ROWS, "as many were added as deleted");
}

#[tokio::test]
async fn a_stream_whose_client_goes_makes_room_for_others() {
    let node = Node::start().await;
    fill(&node).await;
    let unread = [begin_stream(&node).await, begin_stream(&node).await];
    drop(unread);
    // A shard has two lists at a time, and a third waits for 5 s at most; an unread stream lasts 30 s.
    let stream = node.http("GET /v1/kv/acme/pay?keys_only=true\naccept: application/x-ndjson", b"").await;
    assert_eq!((stream.status, stream.text().lines().count()), (200, STREAMED_ROWS));
}

#[tokio::test]
async fn keys_are_listed_though_streams_are_not_read() {
    let node = Node::start().await;
    fill(&node).await;
    let _unread = [begin_stream(&node).await, begin_stream(&node).await];
    let refused = node.http("GET /v1/kv/acme/pay\naccept: application/x-ndjson", b"").await;
    assert_eq!(refused.problem(), (503, "busy".to_owned(), "no".to_owned()));
    let keys = node.resp(&[&["AUTH", "acme/pay", "x"], &["KEYS", "k00[0-4]*"]]).await;
    assert!(keys.starts_with("+OK\r\n*50\r\n$5\r\nk0000\r\n"), "{keys}");
}

#[tokio::test]
async fn kinds_that_span_namespaces_are_listed_across_them() {
    let node = Node::start().await;
    put_all(&node, &["b/ns/b", "a/ns/a", "c/nx/c/e", "c/ns/c", "c/wf/c/1"]).await;
    let node_ref = &node;
    let list = |query: &'static str| async move {
        let page = node_ref.http(&format!("GET /v1/kv/acme?{query}"), b"").await.json();
        let keys = page["items"].as_array().unwrap().iter().map(|item| item["key"].as_str().unwrap().to_owned());
        (keys.collect::<Vec<_>>(), page["next"].clone())
    };
    assert_eq!(list("prefix=ns/").await, (vec!["ns/a".into(), "ns/b".into(), "ns/c".into()], Value::Null));
    assert_eq!(list("prefix=ns/&limit=2").await, (vec!["ns/a".into(), "ns/b".into()], json!("ns/b")));
    assert_eq!(list("prefix=ns/&limit=2&after=ns/b").await, (vec!["ns/c".into()], Value::Null));
    assert_eq!(list("prefix=nx/").await.0, ["nx/c/e"]);
    let stream = node.http("GET /v1/kv/acme?prefix=ns/\naccept: application/x-ndjson", b"").await;
    let keys: Vec<_> = stream.text().lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect();
    let keys: Vec<_> = keys.iter().map(|line| line["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["ns/a", "ns/b", "ns/c"]);
    let some = node.http("GET /v1/kv/acme?prefix=ns/&after=ns/a&limit=1\naccept: application/x-ndjson", b"").await;
    assert_eq!(some.text().lines().count(), 1);
    assert!(some.text().starts_with(r#"{"key":"ns/b","value":"#), "{}", some.text());
    let refused = node.http("GET /v1/kv/acme?prefix=wf/\naccept: application/x-ndjson", b"").await;
    assert_eq!(refused.problem().0, 400);
}

#[tokio::test]
async fn a_batch_answers_each_operation() {
    let node = Node::start().await;
    let ops = json!({"ops": [
        {"get": {"key": "a"}},
        {"put": {"key": "a", "value": "MQ=="}},
        {"get": {"key": "a"}},
        {"put": {"key": "a", "value": "Mg==", "if_absent": true}},
        {"put": {"key": "b", "value": "Mg==", "if_absent": true}},
        {"del": {"key": "b", "if_upd": 1}},
        {"del": {"key": "a"}},
        {"get": {"key": "a"}},
    ]});
    let answer = node.http("POST /v1/batch/_/default", &serde_json::to_vec(&ops).unwrap()).await;
    assert_eq!(answer.status, 200);
    let results = answer.json()["results"].as_array().unwrap().clone();
    let statuses: Vec<_> = results.iter().map(|result| result["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [404, 204, 200, 412, 204, 412, 204, 404]);
    assert_eq!((&results[2]["value"], &results[2]["upd"]), (&json!("MQ=="), &results[1]["upd"]));
    assert_eq!(results[3]["type"], "urn:outrigger:problem:condition-failed");
    assert_eq!((&results[3]["upd"], &results[3]["written"]), (&results[1]["upd"], &json!("no")));
    assert_eq!(results[5]["upd"], results[4]["upd"]);
}

#[tokio::test]
async fn a_batch_may_be_messagepack() {
    #[derive(serde::Serialize)]
    struct Put<'a> {
        key: &'a str,
        value: Blob,
    }
    struct Blob;
    impl serde::Serialize for Blob {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_bytes(b"\xffraw")
        }
    }
    #[derive(serde::Serialize)]
    struct Get<'a> {
        key: &'a str,
    }
    #[derive(serde::Serialize)]
    #[serde(rename_all = "lowercase")]
    enum Op<'a> {
        Put(Put<'a>),
        Get(Get<'a>),
    }
    #[derive(serde::Serialize)]
    struct Ops<'a> {
        ops: Vec<Op<'a>>,
    }
    #[derive(Debug, serde::Deserialize)]
    struct Results {
        results: Vec<OneResult>,
    }
    #[derive(Debug, serde::Deserialize)]
    struct OneResult {
        status: u16,
        value: Option<bytes::Bytes>,
    }
    let node = Node::start().await;
    let ops = Ops { ops: vec![Op::Put(Put { key: "k", value: Blob }), Op::Get(Get { key: "k" })] };
    let body = rmp_serde::to_vec_named(&ops).unwrap();
    let answer = node.http("POST /v1/batch/_/default\ncontent-type: application/msgpack", &body).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/msgpack")));
    let Results { results } = rmp_serde::from_slice(&answer.body).unwrap();
    assert_eq!((results[0].status, results[1].status), (204, 200));
    assert_eq!(results[1].value.as_deref(), Some(&b"\xffraw"[..]));
}

#[tokio::test]
async fn a_batch_that_cannot_be_read_does_nothing() {
    let node = Node::start().await;
    let too_many = json!({"ops": vec![json!({"get": {"key": "k"}}); 1_001]}).to_string();
    for (headers, body, status) in [
        ("", "{", 400),
        ("", r#"{"ops":[{"put":{"key":"k","value":"dg=="}},{"bogus":{}}]}"#, 400),
        ("", r#"{"ops":[{"put":{"key":"k","value":"dg=="}},{"get":{"key":""}}]}"#, 400),
        ("", r#"{"ops":[{"put":{"key":"k","value":"not base64!"}}]}"#, 400),
        ("", r#"{"ops":[{"put":{"key":"k","value":"dg==","if_upd":1,"if_absent":true}}]}"#, 400),
        ("", &too_many, 413),
        ("\ncontent-type: text/plain", "{}", 415),
        ("\ncontent-type: application/msgpack", "{}", 400),
    ] {
        let answer = node.http(&format!("POST /v1/batch/_/default{headers}"), body.as_bytes()).await;
        assert_eq!(answer.problem().0, status, "{body}");
    }
    assert_eq!(node.http("GET /v1/kv/_/default/k", b"").await.status, 404);
}

#[tokio::test]
async fn what_is_stored_is_told() {
    let node = Node::start().await;
    put_all(&node, &["pay/a", "pay/b", "other/a"]).await;
    assert_eq!(node.http("PUT /v1/kv/_/default/k", b"v").await.status, 204);
    assert_eq!(node.http("GET /v1/orgs", b"").await.json(), json!({"orgs": ["_", "acme"]}));
    let shards = node.http("GET /v1/shards?org=acme", b"").await.json();
    let shards = shards["shards"].as_array().unwrap();
    let told: Vec<_> =
        shards.iter().map(|shard| (shard["namespace"].as_str().unwrap(), shard["keys"].as_u64())).collect();
    assert_eq!(told, [("other", Some(1)), ("pay", Some(2))]);
    assert_eq!(node.http("GET /v1/shards", b"").await.json()["shards"].as_array().unwrap().len(), 3);
    assert_eq!(node.http("POST /v1/shards/acme/pay/checkpoint", b"").await.status, 204);
}

#[tokio::test]
async fn a_connection_serves_many_requests() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    for n in 0..3 {
        let request = format!("PUT /v1/kv/_/default/k{n} HTTP/1.1\r\nhost: o\r\ncontent-length: 1\r\n\r\nv");
        client.send(request.as_bytes()).await;
        client.expect("HTTP/1.1 204 No Content\r\n").await;
        let mut byte = [0];
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            tokio::io::AsyncReadExt::read_exact(&mut client.0, &mut byte).await.unwrap();
            head.push(byte[0]);
        }
    }
}

/// A client that sends its body after its head, as many do, found the connection closed under its hands, and saw a
/// broken pipe where there was an answer.
#[tokio::test]
async fn who_still_sends_the_body_of_a_refused_request_hears_why() {
    let node = Node::start().await;
    let body = vec![b'x'; 4 * VALUE_BYTES_MAX];
    for (request, status) in [
        ("POST /v1/kv/_/default/k", "405"),
        ("PUT /v1/nothing/here", "404"),
        ("PUT /v1/kv/_/default/k?tiemout=1s", "400"),
        ("PUT /v1/kv/_/default/k", "413"),
    ] {
        let mut client = node.connect().await;
        client
            .send(format!("{request} HTTP/1.1\r\nhost: o\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes())
            .await;
        client.send(&body).await;
        client.send(b"GET /v1/cluster/health HTTP/1.1\r\nhost: o\r\nconnection: close\r\n\r\n").await;
        let answers = String::from_utf8(client.rest().await).unwrap();
        assert!(answers.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answers}");
        assert!(answers.contains("HTTP/1.1 200 OK"), "the connection was of no more use after {request}: {answers}");
    }
}

/// Who asks first is answered at once, and sends nothing in vain.
#[tokio::test]
async fn who_waits_to_be_told_to_send_the_body_is_not_waited_for() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    client
        .send(b"POST /v1/kv/_/default/k HTTP/1.1\r\nhost: o\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n")
        .await;
    let answer = Answer::parse(&client.rest().await);
    assert_eq!(answer.problem(), (405, "method-not-allowed".to_owned(), "no".to_owned()));
}
