//! Keyspace notifications, byte by byte.

use std::time::Duration;

use outrigger::store::feed::FEED_EVENTS_MAX;
use outrigger::store::replicator::{Frame, Op, Subscriber};
use outrigger::types::{Ballot, Key, ShardId};

use crate::support::{Client, Node, command};

/// RESP2: an array of these bulk strings and integers.
fn message(parts: &[&str]) -> String {
    told('*', parts)
}

fn told(kind: char, parts: &[&str]) -> String {
    let part = |part: &&str| match part.strip_prefix(':') {
        Some(number) if !number.is_empty() && number.parse::<u64>().is_ok() => format!(":{number}\r\n"),
        _ => format!("${}\r\n{part}\r\n", part.len()),
    };
    format!("{kind}{}\r\n{}", parts.len(), parts.iter().map(part).collect::<String>())
}

async fn say(client: &mut Client, words: &[&str], answer: &str) {
    client.send(&command(words)).await;
    client.expect(answer).await;
}

#[tokio::test]
async fn channels_and_patterns_tell_of_writes_and_deletions() {
    let node = Node::start().await;
    let (mut subscriber, mut writer) = (node.connect().await, node.connect().await);
    let answers =
        message(&["subscribe", "__keyspace@0__:a", ":1"]) + &message(&["subscribe", "__keyevent@0__:del", ":2"]);
    say(&mut subscriber, &["SUBSCRIBE", "__keyspace@0__:a", "__keyevent@0__:del"], &answers).await;
    let answer = message(&["psubscribe", "__keyspace@0__:a[bc]*", ":3"]);
    say(&mut subscriber, &["psubscribe", "__keyspace@0__:a[bc]*"], &answer).await;
    say(&mut subscriber, &["PSUBSCRIBE", "__key*:*"], &message(&["psubscribe", "__key*:*", ":4"])).await;
    for (words, reply) in [
        (&["SET", "a", "1"][..], "+OK\r\n"),
        (&["SET", "ad", "1"], "+OK\r\n"),
        (&["INCR", "ab"], ":1\r\n"),
        (&["DEL", "a"], ":1\r\n"),
        // Changes nothing.
        (&["DEL", "a"], ":0\r\n"),
        (&["SET", "ab", "2", "NX"], "$-1\r\n"),
    ] {
        say(&mut writer, words, reply).await;
    }
    let pattern = |pattern: &str, channel: &str, of: &str| message(&["pmessage", pattern, channel, of]);
    let channel = |channel: &str, of: &str| message(&["message", channel, of]);
    for expected in [
        channel("__keyspace@0__:a", "set"),
        pattern("__key*:*", "__keyspace@0__:a", "set"),
        pattern("__key*:*", "__keyevent@0__:set", "a"),
        pattern("__key*:*", "__keyspace@0__:ad", "set"),
        pattern("__key*:*", "__keyevent@0__:set", "ad"),
        pattern("__key*:*", "__keyspace@0__:ab", "set"),
        pattern("__keyspace@0__:a[bc]*", "__keyspace@0__:ab", "set"),
        pattern("__key*:*", "__keyevent@0__:set", "ab"),
        channel("__keyspace@0__:a", "del"),
        pattern("__key*:*", "__keyspace@0__:a", "del"),
        channel("__keyevent@0__:del", "a"),
        pattern("__key*:*", "__keyevent@0__:del", "a"),
    ] {
        subscriber.expect(&expected).await;
    }
    // One by one, then all that are left; and what was never there.
    let answer = message(&["punsubscribe", "__key*:*", ":3"]) + &message(&["punsubscribe", "news", ":3"]);
    say(&mut subscriber, &["PUNSUBSCRIBE", "__key*:*", "news"], &answer).await;
    say(&mut writer, &["SET", "ad", "2"], "+OK\r\n").await;
    let answers =
        message(&["unsubscribe", "__keyevent@0__:del", ":2"]) + &message(&["unsubscribe", "__keyspace@0__:a", ":1"]);
    say(&mut subscriber, &["UNSUBSCRIBE"], &answers).await;
    say(&mut subscriber, &["UNSUBSCRIBE"], "*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:1\r\n").await;
    say(&mut subscriber, &["PUNSUBSCRIBE"], &message(&["punsubscribe", "__keyspace@0__:a[bc]*", ":0"])).await;
    say(&mut subscriber, &["GET", "ad"], "$1\r\n2\r\n").await;
}

#[tokio::test]
async fn resp2_takes_few_commands_between_messages() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    // In one piece: the reply of a write comes before that it is subscribed, and its own write is not told.
    let pipeline = [
        command(&["SET", "k", "1"]),
        command(&["SUBSCRIBE", "__keyspace@0__:k"]),
        command(&["GET", "k"]),
        command(&["PING"]),
        command(&["ping", "hi"]),
        command(&["UNSUBSCRIBE"]),
        command(&["GET", "k"]),
        command(&["PING"]),
    ];
    client.send(&pipeline.concat()).await;
    client.expect("+OK\r\n").await;
    client.expect(&message(&["subscribe", "__keyspace@0__:k", ":1"])).await;
    let refused = "-ERR Can't execute 'get': only (P)SUBSCRIBE / (P)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context\r\n";
    client.expect(refused).await;
    client.expect(&message(&["pong", ""])).await;
    client.expect(&message(&["pong", "hi"])).await;
    client.expect(&message(&["unsubscribe", "__keyspace@0__:k", ":0"])).await;
    client.expect("$1\r\n1\r\n+PONG\r\n").await;
    // RESET ends it too, and QUIT the connection.
    say(&mut client, &["SUBSCRIBE", "__keyspace@0__:k"], &message(&["subscribe", "__keyspace@0__:k", ":1"])).await;
    say(&mut client, &["RESET"], "+RESET\r\n").await;
    say(&mut client, &["SET", "k", "2"], "+OK\r\n").await;
    say(&mut client, &["SUBSCRIBE", "__keyspace@0__:k"], &message(&["subscribe", "__keyspace@0__:k", ":1"])).await;
    say(&mut client, &["QUIT"], "+OK\r\n").await;
    assert_eq!(client.rest().await, b"");
}

#[tokio::test]
async fn resp3_pushes_and_goes_on_with_everything_else() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    client.send(&command(&["HELLO", "3"])).await;
    client.send(&command(&["CLIENT", "GETNAME"])).await;
    let mut seen = Vec::new();
    while !seen.ends_with(b"_\r\n") {
        let mut byte = [0];
        tokio::io::AsyncReadExt::read_exact(&mut client.0, &mut byte).await.unwrap();
        seen.extend_from_slice(&byte);
    }
    let push = |parts: &[&str]| told('>', parts);
    let answer = push(&["psubscribe", "__keyspace@0__:*", ":1"]);
    say(&mut client, &["PSUBSCRIBE", "__keyspace@0__:*"], &answer).await;
    say(&mut client, &["GET", "k"], "_\r\n").await;
    say(&mut client, &["PING"], "+PONG\r\n").await;
    let mut writer = node.connect().await;
    for n in 0..3 {
        say(&mut writer, &["SET", &format!("k{n}"), "1"], "+OK\r\n").await;
    }
    for n in 0..3 {
        client.expect(&push(&["pmessage", "__keyspace@0__:*", &format!("__keyspace@0__:k{n}"), "set"])).await;
    }
    say(&mut client, &["GET", "k0"], "$1\r\n1\r\n").await;
}

#[tokio::test]
async fn subscriptions_are_of_the_connections_shard() {
    let node = Node::start().await;
    let (mut acme, mut other) = (node.connect().await, node.connect().await);
    say(&mut acme, &["AUTH", "acme/pay", "x"], "+OK\r\n").await;
    let all = message(&["psubscribe", "__keyspace@0__:*", ":1"]);
    say(&mut acme, &["PSUBSCRIBE", "__keyspace@0__:*"], &all).await;
    say(&mut other, &["SET", "k", "hidden"], "+OK\r\n").await;
    say(&mut other, &["AUTH", "acme/pay", "x"], "+OK\r\n").await;
    // A key that names its namespace lives there, and is told to those who spell it out.
    let canonical = "__keyspace@0__:wf/mail/*";
    say(&mut acme, &["PSUBSCRIBE", canonical], &message(&["psubscribe", canonical, ":2"])).await;
    for key in ["mine", "wf/mail/1", "wf/other/1", "last"] {
        say(&mut other, &["SET", key, "v"], "+OK\r\n").await;
    }
    let told = |pattern: &str, key: &str| message(&["pmessage", pattern, &format!("__keyspace@0__:{key}"), "set"]);
    let mut messages = String::new();
    let expected = [told("__keyspace@0__:*", "mine"), told("__keyspace@0__:*", "last"), told(canonical, "wf/mail/1")];
    let total: usize = expected.iter().map(String::len).sum();
    while messages.len() < total {
        let mut part = vec![0; total - messages.len()];
        let count = tokio::io::AsyncReadExt::read(&mut acme.0, &mut part).await.unwrap();
        messages.push_str(std::str::from_utf8(&part[..count]).unwrap());
    }
    // Two shards: in order within each.
    for message in &expected {
        assert!(messages.contains(message.as_str()), "{messages} lacks {message}");
    }
    assert!(messages.find("mine").unwrap() < messages.find("last").unwrap());
}

#[tokio::test]
async fn other_channels_and_too_many_are_refused() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    for words in [
        &["SUBSCRIBE", "news"][..],
        &["SUBSCRIBE", "__keyspace@0__:k", "news"],
        &["SUBSCRIBE", "__keyspace@1__:k"],
        &["SUBSCRIBE", "__keyevent@0__:expired"],
        &["PSUBSCRIBE", "news.*"],
    ] {
        let name = words.last().unwrap();
        let refused = format!(
            "-ERR there is no channel like '{name}': want __keyspace@0__:<key>, __keyevent@0__:set or __keyevent@0__:del, or a pattern of these\r\n"
        );
        say(&mut client, words, &refused).await;
    }
    let names: Vec<String> = (0..257).map(|n| format!("__keyspace@0__:k{n}")).collect();
    let words: Vec<&str> = std::iter::once("SUBSCRIBE").chain(names.iter().map(String::as_str)).collect();
    say(&mut client, &words, "-BUSY a connection may have 256 subscriptions; use a pattern\r\n").await;
    // None of those was taken.
    say(&mut client, &["GET", "k"], "$-1\r\n").await;
    say(&mut client, &["SUBSCRIBE"], "-ERR wrong number of arguments for 'subscribe' command\r\n").await;
}

#[tokio::test]
async fn a_subscriber_that_is_too_slow_is_cut_off_and_told() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    let key = "k".repeat(1000);
    let shard = ShardId::parse("_", "default").unwrap();
    let answer = message(&["psubscribe", "__key*", ":1"]);
    say(&mut client, &["PSUBSCRIBE", "__key*"], &answer).await;
    for n in 1..=2 * i64::try_from(FEED_EVENTS_MAX).unwrap() {
        let upd = Ballot(n * 4096);
        let key = Key::parse(&format!("{key}{}", n % 10)).unwrap();
        let frame = Frame { shard: shard.clone(), seq: 0, key, op: Op::Del, upd, ballot: upd };
        Subscriber::on_commit(&*node.manager, &frame);
        if n % 64 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let rest = tokio::time::timeout(Duration::from_secs(30), client.rest()).await.unwrap();
    let text = String::from_utf8(rest).unwrap();
    let last = text.rsplit("\r\n").find(|line| !line.is_empty()).unwrap();
    assert!(last.starts_with("-ERR this watcher was overrun"), "{last}");
}

#[tokio::test]
async fn subscribers_end_when_the_node_does() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    let answer = message(&["subscribe", "__keyspace@0__:k", ":1"]);
    say(&mut client, &["SUBSCRIBE", "__keyspace@0__:k"], &answer).await;
    node.service.drain();
    let rest = tokio::time::timeout(Duration::from_secs(10), client.rest()).await.unwrap();
    assert!(rest.starts_with(b"-BUSY this node is shutting down"), "{}", String::from_utf8_lossy(&rest));
    let mut late = node.connect().await;
    late.send(&command(&["SUBSCRIBE", "__keyspace@0__:k"])).await;
    late.expect("-BUSY this node is shutting down").await;
}
