//! The socket file, and who gets in.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use outrigger::api;
use outrigger::clock::OsClock;
use outrigger::replication::local::LocalReplicator;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Answer, Client, Node, VALUE_BYTES_MAX, command};

#[tokio::test]
async fn the_file_has_its_mode_and_goes_with_the_server() {
    let node =
        Node::start_with(|m| LocalReplicator::new(m, OsClock::shared()), |c| api::Config { mode: 0o600, ..c }).await;
    let path = node.path();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(node.server.shutdown(Duration::from_secs(5)).await, 0);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_living_socket_is_left_alone_and_a_dead_one_replaced() {
    let node = Node::start().await;
    let path = node.path();
    let second = api::serve(api::Config::at(&path), node.service.clone()).await;
    assert!(matches!(second, Err(api::Error::InUse { .. })), "{second:?}");
    assert_eq!(node.resp(&[&["PING"]]).await, "+PONG\r\n");

    let stale = node.dir.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert!(stale.exists());
    let server = api::serve(api::Config::at(&stale), node.service.clone()).await.unwrap();
    // What took its place meanwhile is not the server's to remove.
    std::fs::remove_file(&stale).unwrap();
    let successor = std::os::unix::net::UnixListener::bind(&stale).unwrap();
    server.shutdown(Duration::from_secs(5)).await;
    assert!(stale.exists());
    drop(successor);

    let file = node.dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let refused = api::serve(api::Config::at(&file), node.service.clone()).await;
    assert!(matches!(refused, Err(api::Error::NotASocket { .. })), "{refused:?}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[tokio::test]
async fn one_connection_too_many_is_told_so_in_its_dialect() {
    let change = |config| api::Config { connections_max: 1, ..config };
    let node = Node::start_with(|m| LocalReplicator::new(m, OsClock::shared()), change).await;
    let mut first = node.connect().await;
    first.send(&command(&["PING"])).await;
    first.expect("+PONG\r\n").await;
    assert!(node.resp(&[&["PING"]]).await.starts_with("-BUSY "));
    let mut http = node.connect().await;
    http.send(b"GET /v1/orgs HTTP/1.1\r\nhost: o\r\n\r\n").await;
    let answer = Answer::parse(&http.rest().await);
    assert_eq!(answer.problem(), (503, "busy".to_owned(), "no".to_owned()));
    assert_eq!(answer.header("retry-after"), Some("1"));
    first.send(&command(&["QUIT"])).await;
    assert_eq!(first.rest().await, b"+OK\r\n");
}

#[tokio::test(start_paused = true)]
async fn half_a_request_is_not_waited_for_for_ever() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    client.send(b"GET /v1/orgs HTT").await;
    client.rest().await;
    let mut client = node.connect().await;
    client
        .send(b"PUT /v1/kv/_/default/k HTTP/1.1\r\nhost: o\r\nconnection: close\r\ncontent-length: 5\r\n\r\nab")
        .await;
    assert_eq!(Answer::parse(&client.rest().await).problem(), (408, "slow-client".to_owned(), "no".to_owned()));
}

/// Fills the node's room with commands that never end, over connections that are then held open.
async fn fill_the_room(node: &Node) -> Vec<crate::support::Client> {
    let mut hoarders = Vec::new();
    let piece = "x".repeat(VALUE_BYTES_MAX);
    let half_sent = format!("*4\r\n$4\r\nMSET\r\n$1\r\nk\r\n${VALUE_BYTES_MAX}\r\n{piece}\r\n$1\r\n");
    loop {
        let mut hoarder = node.connect().await;
        hoarder.send(half_sent.as_bytes()).await;
        hoarders.push(hoarder);
        // As much as one more of them takes: what is refused shows that the room is full.
        let probe = node.http("PUT /v1/kv/_/default/probe", piece.as_bytes()).await;
        if probe.status == 503 {
            return hoarders;
        }
        assert!(hoarders.len() < 100, "the room is never full");
    }
}

#[tokio::test]
async fn what_finds_no_room_is_refused_and_small_requests_go_on() {
    let node = Node::with_room(256 * 1024).await;
    let hoarders = fill_the_room(&node).await;
    let large = "x".repeat(VALUE_BYTES_MAX);
    let answer = node.http("PUT /v1/kv/_/default/k", large.as_bytes()).await;
    assert_eq!(answer.problem(), (503, "busy".to_owned(), "no".to_owned()));
    assert_eq!(answer.header("retry-after"), Some("1"));
    // A command that comes in pieces; its connection stays usable.
    let mut client = node.connect().await;
    client.send(&command(&["MSET", "k", &large, "l", &large, "m", &large, "n", &large])).await;
    client.expect("-BUSY the requests on their way in take up all of the ").await;
    client.send(&command(&["SET", "small", "v"])).await;
    client.send(&command(&["QUIT"])).await;
    let rest = String::from_utf8(client.rest().await).unwrap();
    assert!(rest.ends_with("\r\n+OK\r\n+OK\r\n"), "{rest}");
    assert_eq!(node.http("GET /v1/kv/_/default/k", b"").await.status, 404);
    drop(hoarders);
    // The node notices by and by that they are gone.
    while node.http("PUT /v1/kv/_/default/k", large.as_bytes()).await.status != 204 {
        tokio::task::yield_now().await;
    }
}

/// What a client is left with when its node stops.
#[derive(Debug, PartialEq, Eq)]
enum Left {
    Answered,
    /// Its request cannot have been sent.
    NotSent,
}

/// Sends a request, and reads until the node closes the connection.
async fn ask_last(mut client: Client, request: Vec<u8>) -> Left {
    match client.0.write_all(&request).await {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Left::NotSent,
        Err(error) => panic!("{error}"),
        Ok(()) => {
            // Fails where the connection is reset.
            let rest = client.rest().await;
            assert!(!rest.is_empty(), "sent, and never answered");
            Left::Answered
        }
    }
}

/// A request that was on its way when the node stopped was thrown away with its connection: its client could not know
/// whether it had been carried out. Here most have not been read when the node is told to stop, half of them come over
/// connections that were not even accepted, and some come later.
#[tokio::test]
async fn what_was_sent_before_the_end_is_answered_and_later_nothing_can_be_sent() {
    let node = Node::start().await;
    let put = |n: usize| {
        let head = format!("PUT /v1/kv/_/default/h{n} HTTP/1.1\r\nhost: o\r\ncontent-length: 1\r\n\r\nv");
        if n.is_multiple_of(2) { head.into_bytes() } else { command(&["SET", &format!("r{n}"), "v"]) }
    };
    let mut kept = Vec::new();
    for n in 0..20 {
        let mut client = node.connect().await;
        client.send(&put(n)).await;
        let end: &[u8] = if n.is_multiple_of(2) { b"\r\n\r\n" } else { b"+OK\r\n" };
        let mut answer = Vec::new();
        while !answer.ends_with(end) {
            answer.push(client.0.read_u8().await.unwrap());
        }
        kept.push(client);
    }
    let late = kept.split_off(10);
    for n in 0..20_usize {
        kept.push(node.connect().await);
        if n.is_multiple_of(5) {
            tokio::task::yield_now().await;
        }
    }
    // All of it is sent before the node has its next turn: this runtime has one thread.
    let mut asked = Vec::new();
    for (n, mut client) in kept.into_iter().enumerate() {
        let request = put(100 + n);
        assert_eq!(client.0.try_write(&request).unwrap(), request.len());
        asked.push(tokio::spawn(async move { client.rest().await }));
    }
    let stopping = tokio::spawn(node.server.shutdown(Duration::from_secs(20)));
    for (n, asked) in asked.into_iter().enumerate() {
        let rest = asked.await.unwrap();
        assert!(!rest.is_empty(), "request {n} was never answered");
    }
    assert_eq!(stopping.await.unwrap(), 0, "none had to be cut off");
    for (n, client) in late.into_iter().enumerate() {
        assert_eq!(ask_last(client, put(200 + n)).await, Left::NotSent);
    }
}

/// A client that is told goes elsewhere before its connection is closed under it.
#[tokio::test]
async fn a_draining_node_says_goodbye_with_each_answer() {
    let node = Node::start().await;
    node.service.drain();
    for (line, status) in [
        ("PUT /v1/kv/_/default/k", 503),
        ("GET /v1/kv/_/default/k?consistency=quorum", 404),
        ("GET /v1/backup/_/default", 503),
        ("GET /v1/orgs", 200),
    ] {
        let mut client = node.connect().await;
        client.send(format!("{line} HTTP/1.1\r\nhost: o\r\ncontent-length: 0\r\n\r\n").as_bytes()).await;
        let answer = Answer::parse(&client.rest().await);
        assert_eq!((answer.status, answer.header("connection")), (status, Some("close")), "{line}");
    }
    assert!(node.resp(&[&["SET", "k", "v"]]).await.starts_with("-BUSY "));
}
