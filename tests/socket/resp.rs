//! The Redis dialect, byte by byte.

use std::fmt::Write as _;
use std::sync::Arc;

use outrigger::store::replicator::Decision;
use outrigger::store::update::{Outcome, Row, Verdict};
use outrigger::types::{Ballot, ShardId, Value};
use tokio::io::AsyncWriteExt;

use crate::support::{Node, Scripted, VALUE_BYTES_MAX, command};

#[tokio::test]
async fn every_command_answers_as_redis_does() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    let dialogue: &[(&[&str], &str)] = &[
        (&["PING"], "+PONG\r\n"),
        (&["ping", "hi"], "$2\r\nhi\r\n"),
        (&["ECHO", "hi"], "$2\r\nhi\r\n"),
        (&["GET", "k"], "$-1\r\n"),
        (&["SET", "k", "v"], "+OK\r\n"),
        (&["get", "k"], "$1\r\nv\r\n"),
        (&["SET", "k", "w", "NX"], "$-1\r\n"),
        (&["SET", "k", "w", "XX"], "+OK\r\n"),
        (&["SET", "k", "x", "IFEQ", "v"], "$-1\r\n"),
        (&["SET", "k", "x", "IFEQ", "w"], "+OK\r\n"),
        (&["SET", "k", "y", "GET"], "$1\r\nx\r\n"),
        (&["SET", "new", "y", "GET", "NX"], "$-1\r\n"),
        (&["SET", "k", "z", "keepttl"], "+OK\r\n"),
        (&["SET", "k", "z", "EX", "10"], "-ERR expiry is not supported\r\n"),
        (&["SET", "k", "z", "NX", "XX"], "-ERR syntax error\r\n"),
        (&["SET", "k", "z", "bogus"], "-ERR syntax error\r\n"),
        (&["SETNX", "k", "a"], ":0\r\n"),
        (&["SETNX", "fresh", "a"], ":1\r\n"),
        (&["GETSET", "k", "b"], "$1\r\nz\r\n"),
        (&["GETDEL", "k"], "$1\r\nb\r\n"),
        (&["GETDEL", "k"], "$-1\r\n"),
        (&["MSET", "a", "1", "b", "2", "a", "3"], "+OK\r\n"),
        (&["MGET", "a", "none", "b"], "*3\r\n$1\r\n3\r\n$-1\r\n$1\r\n2\r\n"),
        (&["EXISTS", "a", "a", "none"], ":2\r\n"),
        (&["EXISTS", "none"], ":0\r\n"),
        (&["DEL", "a", "none"], ":1\r\n"),
        (&["UNLINK", "b"], ":1\r\n"),
        (&["DEL", "b"], ":0\r\n"),
        (&["APPEND", "s", "ab"], ":2\r\n"),
        (&["APPEND", "s", "cd"], ":4\r\n"),
        (&["STRLEN", "s"], ":4\r\n"),
        (&["STRLEN", "none"], ":0\r\n"),
        (&["TYPE", "s"], "+string\r\n"),
        (&["TYPE", "none"], "+none\r\n"),
        (&["INCR", "n"], ":1\r\n"),
        (&["INCRBY", "n", "41"], ":42\r\n"),
        (&["DECR", "n"], ":41\r\n"),
        (&["DECRBY", "n", "42"], ":-1\r\n"),
        (&["INCR", "s"], "-ERR value is not an integer or out of range\r\n"),
        (&["INCRBY", "n", "x"], "-ERR value is not an integer or out of range\r\n"),
        (&["SET", "big", "9223372036854775807"], "+OK\r\n"),
        (&["INCR", "big"], "-ERR increment or decrement would overflow\r\n"),
        (&["DECRBY", "n", "-9223372036854775808"], "-ERR decrement would overflow\r\n"),
        (&["DBSIZE"], ":5\r\n"),
        (&["KEYS", "n*"], "*2\r\n$1\r\nn\r\n$3\r\nnew\r\n"),
        (&["SCAN", "0", "MATCH", "s*"], "*2\r\n$1\r\n0\r\n*1\r\n$1\r\ns\r\n"),
        (&["SCAN", "0", "TYPE", "list"], "*2\r\n$1\r\n0\r\n*0\r\n"),
        (&["SCAN", "12345"], "-ERR invalid cursor 12345: start the scan again at 0\r\n"),
        (&["SCAN", "x"], "-ERR invalid cursor\r\n"),
        (&["SELECT", "0"], "+OK\r\n"),
        (&["SELECT", "1"], "-ERR DB index is out of range\r\n"),
        (&["AUTH", "password"], "+OK\r\n"),
        (&["CLIENT", "SETNAME", "me"], "+OK\r\n"),
        (&["CLIENT", "GETNAME"], "$2\r\nme\r\n"),
        (&["CLIENT", "SETINFO", "LIB-NAME", "x"], "+OK\r\n"),
        (&["CLIENT", "KILL"], "-ERR unknown subcommand 'KILL'. Try CLIENT HELP.\r\n"),
        (&["CONFIG", "GET", "save"], "*2\r\n$4\r\nsave\r\n$0\r\n\r\n"),
        (&["CONFIG", "GET", "nothing"], "*0\r\n"),
        (&["COMMAND", "DOCS"], "*0\r\n"),
        (
            &["COMMAND", "INFO", "get", "nope"],
            "*2\r\n*6\r\n$3\r\nget\r\n:2\r\n*1\r\n+readonly\r\n:1\r\n:1\r\n:1\r\n$-1\r\n",
        ),
        (&["READWRITE"], "+OK\r\n"),
        (&["GET", "n"], "$2\r\n-1\r\n"),
        (&["READONLY"], "+OK\r\n"),
        (&["GET"], "-ERR wrong number of arguments for 'get' command\r\n"),
        (&["MSET", "a"], "-ERR wrong number of arguments for 'mset' command\r\n"),
        (&["MSET", "a", "1", "b"], "-ERR wrong number of arguments for 'mset' command\r\n"),
        (&["GET", ""], "-ERR the key is empty\r\n"),
        (&["PUBLISH", "c"], "-ERR unknown command 'PUBLISH', with args beginning with: 'c' \r\n"),
        (&["a\r\nb"], "-ERR unknown command 'a\\r\\nb', with args beginning with: \r\n"),
        (&["HELLO", "4"], "-NOPROTO unsupported protocol version\r\n"),
        (&["RESET"], "+RESET\r\n"),
        (&["CLIENT", "GETNAME"], "$-1\r\n"),
        (&["QUIT"], "+OK\r\n"),
    ];
    for (words, reply) in dialogue {
        client.send(&command(words)).await;
        client.expect(reply).await;
    }
    assert_eq!(client.rest().await, b"", "QUIT closes");
}

/// The interface's list of commands.
const COMMANDS: &str = "PING ECHO HELLO AUTH SELECT CLIENT COMMAND INFO CONFIG RESET QUIT READONLY READWRITE GET SET \
    SETNX GETSET GETDEL MGET MSET DEL UNLINK EXISTS STRLEN APPEND INCR DECR INCRBY DECRBY TYPE DBSIZE KEYS SCAN \
    SUBSCRIBE PSUBSCRIBE UNSUBSCRIBE PUNSUBSCRIBE";

#[tokio::test]
async fn the_server_tells_of_itself_and_of_every_command() {
    let node = Node::start().await;
    let names: Vec<_> = COMMANDS.split_whitespace().collect();
    let told = node.resp(&[&["COMMAND", "COUNT"], &[&["COMMAND", "INFO"][..], &names].concat()]).await;
    assert!(told.starts_with(&format!(":{0}\r\n*{0}\r\n*6\r\n", names.len())), "{told}");
    assert!(!told.contains("$-1\r\n"), "{told}");
    let all = node.resp(&[&["COMMAND"]]).await;
    for name in &names {
        assert!(all.contains(&format!("\r\n{}\r\n", name.to_lowercase())), "{name}: {all}");
    }
    let info = node.resp(&[&["INFO"]]).await;
    for line in ["redis_version:7.2.0", "connected_clients:1", "role:master", "outrigger_node:a", "outrigger_epoch:1"] {
        assert!(info.contains(&format!("{line}\r\n")), "{line}: {info}");
    }
    let clients = node.resp(&[&["CLIENT", "ID"], &["CLIENT", "INFO"], &["CLIENT", "LIST"]]).await;
    assert_eq!(clients.matches("db=0 user=_/default resp=2\n").count(), 2, "{clients}");
    assert!(clients.starts_with(':'), "{clients}");
}

#[tokio::test]
async fn readwrite_asks_the_quorum_and_readonly_does_not() {
    let row = Row { value: Value::from("agreed"), upd: Ballot(9) };
    let outcome = Outcome { verdict: Verdict::Unchanged, before: Some(row.clone()), after: Some(row) };
    let scripted = Scripted::new(Decision::Accept(outcome), 2);
    let node = Node::scripted(Arc::clone(&scripted)).await;
    let got = node.resp(&[&["GET", "k"], &["READWRITE"], &["GET", "k"], &["MGET", "k"], &["READONLY"], &["GET", "k"]]);
    assert_eq!(got.await, "$-1\r\n+OK\r\n$6\r\nagreed\r\n*1\r\n$6\r\nagreed\r\n+OK\r\n$-1\r\n");
    assert_eq!(scripted.asked.lock().len(), 2);
}

#[tokio::test]
async fn client_writes_local_takes_what_needs_no_quorum_and_refuses_the_rest() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    let refusal = "-ERR a condition, and a change of the value that is there, need a quorum: leave consistency=local out, \
        or write a whole value without a condition\r\n";
    let dialogue: &[(&[&str], &str)] = &[
        (&["CLIENT", "WRITES", "some"], "-ERR CLIENT WRITES: want LOCAL or QUORUM\r\n"),
        (&["CLIENT", "WRITES"], "-ERR wrong number of arguments for 'client|writes' command\r\n"),
        (&["client", "writes", "local"], "+OK\r\n"),
        (&["SET", "k", "v"], "+OK\r\n"),
        (&["MSET", "a", "1", "b", "2"], "+OK\r\n"),
        (&["DEL", "a", "none"], ":1\r\n"),
        (&["SET", "k", "w", "NX"], refusal),
        (&["SET", "k", "w", "GET"], refusal),
        (&["SETNX", "k", "w"], refusal),
        (&["GETDEL", "k"], refusal),
        (&["INCR", "n"], refusal),
        (&["APPEND", "k", "w"], refusal),
        (&["MGET", "k", "a", "b", "n"], "*4\r\n$1\r\nv\r\n$-1\r\n$1\r\n2\r\n$-1\r\n"),
        (&["CLIENT", "WRITES", "QUORUM"], "+OK\r\n"),
        (&["INCR", "n"], ":1\r\n"),
        (&["CLIENT", "WRITES", "LOCAL"], "+OK\r\n"),
        (&["RESET"], "+RESET\r\n"),
        (&["INCR", "n"], ":2\r\n"),
    ];
    for (words, reply) in dialogue {
        client.send(&command(words)).await;
        client.expect(reply).await;
    }
}

#[tokio::test]
async fn resp3_has_its_own_words() {
    let node = Node::start().await;
    let hello = |version: &str, map: &str, id: u32| {
        format!(
            "{map}$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$5\r\n7.2.0\r\n$5\r\nproto\r\n:{version}\r\n$2\r\nid\r\n:{id}\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nmodules\r\n*0\r\n"
        )
    };
    let got = node
        .resp(&[
            &["HELLO"],
            &["HELLO", "3", "AUTH", "acme/pay", "secret", "SETNAME", "x"],
            &["GET", "none"],
            &["CONFIG", "GET", "save"],
            &["CLIENT", "GETNAME"],
            &["HELLO", "2"],
            &["GET", "none"],
        ])
        .await;
    let expected = [
        hello("2", "*14\r\n", 1),
        hello("3", "%7\r\n", 1),
        "_\r\n%1\r\n$4\r\nsave\r\n$0\r\n\r\n$1\r\nx\r\n".to_owned(),
        hello("2", "*14\r\n", 1),
        "$-1\r\n".to_owned(),
    ];
    assert_eq!(got, expected.concat());
}

#[tokio::test]
async fn the_user_and_the_key_pick_the_shard() {
    let node = Node::start().await;
    let got = node
        .resp(&[
            &["AUTH", "acme/pay", "x"],
            &["SET", "plain", "1"],
            &["SET", "wf/other/id/run", "2"],
            &["GET", "wf/other/id/run"],
            &["DBSIZE"],
            &["KEYS", "wf/other/*"],
            &["MGET", "plain", "wf/other/id/run"],
            &["SET", "wf/../x", "3"],
            &["AUTH", "acme", "x"],
            &["AUTH", "a/../b", "x"],
        ])
        .await;
    let expected = "+OK\r\n+OK\r\n+OK\r\n$1\r\n2\r\n:1\r\n*1\r\n$15\r\nwf/other/id/run\r\n*2\r\n$1\r\n1\r\n$1\r\n2\r\n";
    assert!(got.starts_with(expected), "{got}");
    assert_eq!(got.matches("-ERR ").count(), 3, "{got}");
    let read = |org, namespace, key| {
        let node = &node;
        async move {
            let shard = node.manager.get(&ShardId::parse(org, namespace).unwrap()).await.unwrap();
            shard.get(key).await.unwrap().map(|row| String::from_utf8(row.value.as_bytes().to_vec()).unwrap())
        }
    };
    assert_eq!(read("acme", "pay", "plain").await.as_deref(), Some("1"));
    assert_eq!(read("acme", "other", "wf/other/id/run").await.as_deref(), Some("2"));
    assert_eq!(read("acme", "pay", "wf/other/id/run").await, None);
}

#[tokio::test]
async fn reading_what_was_never_written_creates_no_file() {
    let node = Node::start().await;
    let got =
        node.resp(&[&["AUTH", "acme/pay", "x"], &["GET", "k"], &["MGET", "k"], &["DBSIZE"], &["KEYS", "*"]]).await;
    assert_eq!(got, "+OK\r\n$-1\r\n*1\r\n$-1\r\n:0\r\n*0\r\n");
    assert_eq!(node.http("GET /v1/kv/acme/pay/k", b"").await.status, 404);
    assert_eq!(node.http("GET /v1/kv/acme/pay", b"").await.text(), r#"{"items":[],"next":null}"#);
    assert!(!node.manager.exists(&ShardId::parse("acme", "pay").unwrap()));
}

#[tokio::test]
async fn a_pipeline_is_answered_in_order_and_sees_its_own_writes() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    let (mut sent, mut expected) = (Vec::new(), String::new());
    for n in 0..2_000_u32 {
        let key = format!("k{}", n % 7);
        let value = n.to_string();
        sent.extend(command(&["SET", &key, &value]));
        sent.extend(command(&["GET", &key]));
        sent.extend(command(&["INCR", "count"]));
        write!(expected, "+OK\r\n${}\r\n{value}\r\n:{}\r\n", value.len(), n + 1).unwrap();
        if n % 500 == 0 {
            sent.extend(command(&["MGET", &key, "none"]));
            write!(expected, "*2\r\n${}\r\n{value}\r\n$-1\r\n", value.len()).unwrap();
            sent.extend(command(&["ECHO", "here"]));
            expected.push_str("$4\r\nhere\r\n");
        }
    }
    let (mut reader, mut writer) = client.0.split();
    let writing = async {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let mut got = Vec::new();
    let reading = tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut got);
    let ((), read) = tokio::join!(writing, reading);
    read.unwrap();
    assert_eq!(String::from_utf8(got).unwrap(), expected);
}

#[tokio::test]
async fn different_keys_wait_together_and_the_same_key_waits_in_turn() {
    let row = Row { value: Value::from("1"), upd: Ballot(9) };
    let outcome = Outcome { verdict: Verdict::Written, before: None, after: Some(row) };
    let slow = Scripted::new(Decision::Accept(outcome), 0);
    let node = Node::scripted(Arc::clone(&slow)).await;
    let mut client = node.connect().await;
    for words in [&["INCR", "a"][..], &["INCR", "b"], &["PING"], &["INCR", "b"], &["INCR", "c"]] {
        client.send(&command(words)).await;
    }
    while slow.asked.lock().len() < 2 {
        tokio::task::yield_now().await;
    }
    slow.turns.add_permits(2);
    client.expect(":1\r\n:1\r\n+PONG\r\n").await;
    while slow.asked.lock().len() < 4 {
        tokio::task::yield_now().await;
    }
    slow.turns.add_permits(2);
    client.expect(":1\r\n:1\r\n").await;
    let asked: Vec<_> = slow.asked.lock().iter().map(|proposal| proposal.key.to_string()).collect();
    assert_eq!(asked[2..], ["b", "c"]);
}

#[tokio::test]
async fn a_scan_visits_every_key_once_whatever_the_count() {
    let node = Node::start().await;
    let pairs: Vec<String> = (0..25).flat_map(|n| [format!("key{n:02}"), n.to_string()]).collect();
    let mset: Vec<&str> = std::iter::once("MSET").chain(pairs.iter().map(String::as_str)).collect();
    assert_eq!(node.resp(&[&mset]).await, "+OK\r\n");
    let (mut cursor, mut seen, mut rounds) = ("0".to_owned(), Vec::new(), 0);
    loop {
        // Each page over a connection of its own, as pools do.
        let got = node.resp(&[&["SCAN", &cursor, "COUNT", "7", "MATCH", "key*"]]).await;
        let lines: Vec<_> = got.split("\r\n").collect();
        cursor = lines[2].to_owned();
        seen.extend(lines.iter().filter(|line| line.starts_with("key")).map(|line| (*line).to_owned()));
        rounds += 1;
        if cursor == "0" {
            break;
        }
    }
    assert_eq!(rounds, 4);
    assert_eq!(seen, (0..25).map(|n| format!("key{n:02}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn malformed_bytes_end_the_connection_with_a_word() {
    let node = Node::start().await;
    for (bytes, error) in [
        (&b"*1\r\n$4\r\nPING\r\nGET a\r\n"[..], "+PONG\r\n-ERR Protocol error: expected '*', got 'G'\r\n"),
        (b"*x\r\n", "-ERR Protocol error: invalid multibulk length\r\n"),
        (b"*1\r\n$-5\r\n", "-ERR Protocol error: invalid bulk length\r\n"),
        (b"*1\r\n*1\r\n", "-ERR Protocol error: expected '$', got '*'\r\n"),
    ] {
        let mut client = node.connect().await;
        client.send(bytes).await;
        assert_eq!(String::from_utf8(client.rest().await).unwrap(), error);
    }
}

#[tokio::test]
async fn what_is_too_large_is_refused_and_the_connection_goes_on() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    let largest = "x".repeat(VALUE_BYTES_MAX);
    client.send(&command(&["SET", "k", &largest])).await;
    client.expect("+OK\r\n").await;
    client.send(&command(&["APPEND", "k", "y"])).await;
    client.expect(&format!("-ERR the value would exceed value_size_max = {VALUE_BYTES_MAX} bytes\r\n")).await;
    client.send(&command(&["SET", "k", &"x".repeat(VALUE_BYTES_MAX * 5)])).await;
    client.expect("-ERR an argument exceeds value_size_max").await;
    client.send(&command(&["PING"])).await;
    let mut rest = client;
    rest.0.shutdown().await.unwrap();
    let rest = String::from_utf8(rest.rest().await).unwrap();
    assert!(rest.ends_with("\r\n+PONG\r\n"), "{rest}");
    assert!(node.resp(&[&["SET", &"k".repeat(2_000), "v"]]).await.starts_with("-ERR the key has 2000 bytes"));
}

#[tokio::test(start_paused = true)]
async fn half_a_command_is_not_waited_for_for_ever() {
    let node = Node::start().await;
    let mut client = node.connect().await;
    client.send(b"*1\r\n$4\r\nPING\r\n*2\r\n$3\r\nGET\r\n$1").await;
    let got = String::from_utf8(client.rest().await).unwrap();
    assert_eq!(got, "+PONG\r\n-ERR the rest of the command did not arrive in time\r\n");
}

#[tokio::test]
async fn a_client_that_never_reads_holds_up_no_other() {
    let node = Node::start().await;
    let value = "x".repeat(VALUE_BYTES_MAX);
    assert_eq!(node.resp(&[&["SET", "k", &value]]).await, "+OK\r\n");
    let greedy = node.connect().await;
    let gets = command(&["GET", "k"]).repeat(200);
    // Far more is asked for than the node keeps for it, so that it stops reading, too.
    let mut sent = 0;
    while sent < 2_000 {
        match greedy.0.try_write(&gets) {
            Ok(_) => sent += 1,
            Err(_) => break,
        }
        tokio::task::yield_now().await;
    }
    assert!(sent < 2_000, "the node took {sent} rounds of requests from a client that never reads");
    assert_eq!(node.resp(&[&["PING"]]).await, "+PONG\r\n");
}
