//! Rules of access and limits, tried at each door: over real connections, with the credentials that the kernel tells.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use outrigger::api::access::{Grant, Pattern, Rule};
use outrigger::api::limits::OrgLimit;
use outrigger::api::{self, Gate, TOKENS_REREAD_EVERY};
use outrigger::clock::OsClock;
use outrigger::replication::local::LocalReplicator;
use outrigger::types::ShardId;
use serde_json::{Value, json};

use crate::support::{Answer, Client, Node, command};

pub(crate) const ACME: &str = "the-token-of-acme";
pub(crate) const READER: &str = "the-token-of-a-reader";
pub(crate) const OPERATOR: &str = "the-token-of-an-operator";
const KEEPER: &str = "the-token-of-a-keeper-of-beta";
pub(crate) const WRONG: &str = "a-token-that-is-none";
/// Longer than a change of a file of tokens takes to be noticed, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(60);

fn patterns(texts: &[&str]) -> Vec<Pattern> {
    texts.iter().map(|text| Pattern::of_orgs(text).unwrap()).collect()
}

fn rule(orgs: &[&str], namespaces: &[&str], allow: Grant) -> Rule {
    Rule { orgs: patterns(orgs), namespaces: patterns(namespaces), allow: Some(allow), ..Rule::default() }
}

fn my_uid() -> u32 {
    rustix::process::getuid().as_raw()
}

/// A node with these rules and limits.
async fn guarded(rules: Vec<Rule>, limits: Vec<OrgLimit>) -> Node {
    let gate = Gate::new(rules, limits).unwrap();
    let change = move |config| api::Config { gate, mode: 0o666, ..config };
    Node::start_with(|manager| LocalReplicator::new(manager, OsClock::shared()), change).await
}

/// Files of tokens, and rules that take them: one tenant writes to acme's `pay`, a reader reads all of acme, an operator
/// administrates.
pub(crate) struct Tenants {
    pub(crate) node: Node,
    dir: tempfile::TempDir,
}

impl Tenants {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, token: &str| Some(write_tokens(dir.path().join(name), &[token]));
        let rules = vec![
            Rule { token_file: file("acme", ACME), ..rule(&["acme"], &["pay"], Grant::Write) },
            Rule { token_file: file("reader", READER), ..rule(&["acme"], &["*"], Grant::Read) },
            Rule { token_file: file("operator", OPERATOR), admin: true, ..Rule::default() },
            Rule {
                token_file: file("keeper", KEEPER),
                orgs: patterns(&["beta"]),
                namespaces: patterns(&["*"]),
                admin: true,
                ..Rule::default()
            },
        ];
        let node = guarded(rules, Vec::new()).await;
        for (shard, key) in [("acme/pay", "ns/a"), ("acme/pay", "k"), ("acme/mail", "ns/b"), ("beta/x", "ns/c")] {
            let (org, namespace) = shard.split_once('/').unwrap();
            let shard = node.manager.get(&ShardId::parse(org, namespace).unwrap()).await.unwrap();
            shard.put(key, "v").await.unwrap();
        }
        Self { node, dir }
    }

    async fn ask(&self, token: Option<&str>, line: &str, body: &[u8]) -> Answer {
        let shown = token.map_or_else(String::new, |token| format!("\nauthorization: Bearer {token}"));
        self.node.http(&format!("{line}{shown}"), body).await
    }

    async fn problem(&self, token: Option<&str>, line: &str) -> (u16, String) {
        let (status, kind, written) = self.ask(token, line, b"").await.problem();
        assert_eq!(written, "no", "{line}");
        (status, kind)
    }

    pub(crate) async fn json(&self, token: &str, line: &str) -> Value {
        let answer = self.ask(Some(token), line, b"").await;
        assert_eq!(answer.status, 200, "{line}: {}", answer.text());
        answer.json()
    }

    /// A RESP connection to acme's `pay`.
    async fn logged_in(&self, token: &str) -> Client {
        let mut client = self.node.connect().await;
        say(&mut client, &["AUTH", "acme/pay", token], "+OK\r\n").await;
        client
    }
}

fn write_tokens(path: PathBuf, tokens: &[&str]) -> PathBuf {
    // Renamed into its place: a reader sees the old tokens or the new.
    let fresh = path.with_extension("fresh");
    fs::write(&fresh, tokens.join("\n")).unwrap();
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(&fresh, &path).unwrap();
    path
}

async fn say(client: &mut Client, words: &[&str], answer: &str) {
    client.send(&command(words)).await;
    client.expect(answer).await;
}

/// Reads one line, and checks how it begins.
async fn refused(client: &mut Client, words: &[&str], beginning: &str) {
    use tokio::io::AsyncReadExt as _;
    client.send(&command(words)).await;
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(client.0.read_u8().await.unwrap());
    }
    let line = String::from_utf8(line).unwrap();
    assert!(line.starts_with(beginning), "{words:?}: {line:?} instead of {beginning:?}");
}

fn forbidden() -> (u16, String) {
    (403, "forbidden".to_owned())
}

#[tokio::test]
async fn the_uid_that_the_kernel_tells_decides() {
    let mine = guarded(vec![Rule { uids: vec![my_uid()], ..rule(&["app"], &["*"], Grant::Write) }], Vec::new()).await;
    assert_eq!(mine.http("PUT /v1/kv/app/a/k", b"v").await.status, 204);
    assert_eq!(mine.http("GET /v1/kv/app/a/k", b"").await.text(), "v");
    assert_eq!(mine.http("GET /v1/kv/other/a/k", b"").await.problem().1, "forbidden");
    // A client has to send some password, and is not asked for a better one where it needs none.
    let replies = mine.resp(&[&["AUTH", "app/a", "-"], &["GET", "k"], &["AUTH", "other/a", "-"], &["GET", "k"]]).await;
    assert!(replies.starts_with("+OK\r\n$1\r\nv\r\n-WRONGPASS "), "{replies}");
    assert!(replies.ends_with("$1\r\nv\r\n"), "it stays where it was: {replies}");

    let other = vec![Rule { uids: vec![my_uid() + 1], ..rule(&["*"], &["*"], Grant::Write) }];
    let others = guarded(other, Vec::new()).await;
    let (status, kind, written) = others.http("PUT /v1/kv/app/a/k", b"v").await.problem();
    assert_eq!((status, &*kind, &*written), (403, "forbidden", "no"), "no token would help");
    assert!(others.resp(&[&["SET", "k", "v"]]).await.starts_with("-NOPERM "));
    assert!(others.manager.orgs().unwrap().is_empty(), "nothing was made on the way");
}

/// The same node as two users: needs to be root, to become somebody else.
#[tokio::test]
async fn another_user_of_the_machine_is_not_this_one() {
    if my_uid() != 0 {
        println!("not root: only what one user can see was tried");
        return;
    }
    let (alice, bob) = (54_321, 54_322);
    let rules = vec![
        Rule { uids: vec![alice], ..rule(&["_"], &["*"], Grant::Write) },
        Rule { gids: vec![alice], ..rule(&["shared"], &["*"], Grant::Read) },
    ];
    let node = guarded(rules, Vec::new()).await;
    fs::set_permissions(node.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = node.dir.path().join("outrigger");
    fs::copy(env!("CARGO_BIN_EXE_outrigger"), &program).unwrap();
    let run = |uid: u32, gid: u32, args: &[&str]| {
        let mut command = tokio::process::Command::new(&program);
        command.arg("--socket").arg(node.path()).args(args).uid(uid).gid(gid).kill_on_drop(true);
        async move {
            let output = command.output().await.unwrap();
            (output.status.code(), String::from_utf8(output.stderr).unwrap())
        }
    };
    assert_eq!(run(alice, alice, &["put", "k", "v"]).await.0, Some(0));
    let (code, said) = run(bob, bob, &["put", "k", "w"]).await;
    assert!(code == Some(1) && said.contains("403"), "{code:?} {said}");
    assert_eq!(run(bob, alice, &["--org", "shared", "list"]).await.0, Some(0), "by the group");
    assert_eq!(run(bob, alice, &["--org", "shared", "put", "k", "v"]).await.0, Some(1), "which only reads");
    assert_eq!(run(bob, bob, &["--org", "shared", "list"]).await.0, Some(1));
    assert!(node.http("GET /v1/kv/_/default/k", b"").await.status == 403, "root is nobody in particular");
}

#[tokio::test]
async fn a_token_opens_what_its_rules_name() {
    let tenants = Tenants::start().await;
    for (token, line, status) in [
        (Some(ACME), "GET /v1/kv/acme/pay/k", 200),
        (Some(ACME), "PUT /v1/kv/acme/pay/new", 204),
        (Some(ACME), "DELETE /v1/kv/acme/pay/new", 204),
        (Some(ACME), "GET /v1/kv/acme/mail/k", 403),
        (Some(ACME), "PUT /v1/kv/beta/x/k", 403),
        (Some(READER), "GET /v1/kv/acme/pay/k", 200),
        (Some(READER), "GET /v1/kv/acme/pay/k?consistency=quorum", 200),
        (Some(READER), "PUT /v1/kv/acme/pay/k", 403),
        (Some(READER), "DELETE /v1/kv/acme/pay/k", 403),
        (Some(OPERATOR), "GET /v1/kv/acme/pay/k", 403),
        (Some(WRONG), "GET /v1/kv/acme/pay/k", 401),
        (Some(""), "GET /v1/kv/acme/pay/k", 401),
        (None, "GET /v1/kv/acme/pay/k", 401),
    ] {
        let body: &[u8] = if line.starts_with("PUT") { b"w" } else { b"" };
        let answer = tenants.ask(token, line, body).await;
        assert_eq!(answer.status, status, "{token:?} {line}: {}", answer.text());
        if status == 401 {
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        }
    }
    let line = "GET /v1/kv/acme/pay/k";
    assert_eq!(tenants.problem(None, line).await, (401, "token-needed".to_owned()));
    assert_eq!(tenants.problem(Some(WRONG), line).await, (401, "token-unknown".to_owned()));
    let basic = tenants.node.http(&format!("{line}\nauthorization: Basic {ACME}"), b"").await;
    assert_eq!(basic.status, 401);
    assert_eq!(tenants.node.http(&format!("{line}\nauthorization: bearer {ACME}"), b"").await.text(), "v");
    let text = tenants.ask(Some(WRONG), line, b"").await;
    assert!(!text.text().contains(WRONG), "what was shown is not repeated");
}

/// A stranger gets nothing from any path that has to do with a tenant, and sees only what the admin port shows as well.
#[tokio::test]
async fn every_path_denies_by_default() {
    let tenants = Tenants::start().await;
    for line in [
        "GET /v1/kv/acme?prefix=ns/",
        "GET /v1/kv/acme/pay",
        "GET /v1/kv/acme/pay/k",
        "HEAD /v1/kv/acme/pay/k",
        "PUT /v1/kv/acme/pay/k",
        "DELETE /v1/kv/acme/pay/k",
        "POST /v1/batch/acme/pay",
        "GET /v1/watch/acme/pay",
        "GET /v1/orgs",
        "GET /v1/shards",
        "GET /v1/shards?org=acme",
        "POST /v1/shards/acme/pay/checkpoint",
        "GET /v1/backup",
        "GET /v1/backup/acme/pay",
        "PUT /v1/cluster/voters/b",
        "DELETE /v1/cluster/voters/b",
        "POST /v1/cluster/voters/b/replace",
        "PUT /v1/cluster/replication-factor?value=3",
        "PUT /v1/cluster/pins/acme/pay?to=b",
        "DELETE /v1/cluster/pins/acme/pay",
        "POST /v1/cluster/recover?force=true",
    ] {
        assert_eq!(tenants.ask(None, line, b"").await.status, 401, "{line}");
        assert_eq!(tenants.ask(Some(WRONG), line, b"").await.status, 401, "{line}");
    }
    assert_eq!(tenants.ask(None, "GET /v1/cluster", b"").await.status, 200);
    assert_eq!(tenants.ask(None, "GET /v1/cluster/health", b"").await.status, 200);
    for words in [
        &["GET", "k"] as &[&str],
        &["EXISTS", "k"],
        &["MGET", "k", "l"],
        &["SET", "k", "v"],
        &["MSET", "k", "v", "l", "v"],
        &["INCR", "k"],
        &["GETDEL", "k"],
        &["DEL", "k", "l"],
        &["DBSIZE"],
        &["KEYS", "*"],
        &["SCAN", "0"],
        &["SUBSCRIBE", "__keyspace@0__:k"],
        &["PSUBSCRIBE", "*"],
    ] {
        let replies = tenants.node.resp(&[words, &["PING"], &["READWRITE"], words]).await;
        let lines: Vec<_> = replies.lines().collect();
        assert!(lines[0].starts_with("-NOAUTH ") && lines[3].starts_with("-NOAUTH "), "{words:?}: {replies}");
        assert_eq!((lines[1], lines.len()), ("+PONG", 4), "{words:?}: {replies}");
    }
}

/// Who may not write there is told before the value is read: nobody fills the room for input without a right to.
#[tokio::test]
async fn a_value_is_not_read_of_who_may_not_write_it() {
    let tenants = Tenants::start().await;
    let mut client = tenants.node.connect().await;
    let head = "PUT /v1/kv/acme/pay/k HTTP/1.1\r\nhost: o\r\nexpect: 100-continue\r\ncontent-length: 60000\r\n\r\n";
    client.send(head.as_bytes()).await;
    client.expect("HTTP/1.1 401 Unauthorized\r\n").await;
}

#[tokio::test]
async fn administration_takes_a_rule_of_its_own() {
    let tenants = Tenants::start().await;
    // There is no cluster behind this socket: who gets so far is told that.
    for (line, granted) in [
        ("PUT /v1/cluster/voters/b", 501),
        ("DELETE /v1/cluster/voters/b", 501),
        ("POST /v1/cluster/voters/b/replace?with=c", 501),
        ("PUT /v1/cluster/replication-factor?value=3", 501),
        ("PUT /v1/cluster/pins/acme/pay?to=b", 501),
        ("DELETE /v1/cluster/pins/acme/pay", 501),
        ("POST /v1/cluster/recover?force=true", 501),
        ("POST /v1/shards/acme/pay/checkpoint", 204),
        ("GET /v1/backup", 200),
        ("GET /v1/backup/acme/pay", 200),
    ] {
        assert_eq!(tenants.problem(Some(ACME), line).await, forbidden(), "{line}");
        assert_eq!(tenants.problem(Some(READER), line).await, forbidden(), "{line}");
        assert_eq!(tenants.ask(Some(OPERATOR), line, b"").await.status, granted, "{line}");
    }
    let shards = tenants.json(OPERATOR, "GET /v1/backup").await["shards"].as_array().unwrap().len();
    assert_eq!(shards, 3);
    // Whose rule names orgs keeps those alone.
    let kept = tenants.json(KEEPER, "GET /v1/backup").await["shards"].clone();
    assert_eq!(kept, json!([{"org": "beta", "namespace": "x"}]));
    assert_eq!(tenants.problem(Some(KEEPER), "GET /v1/backup/acme/pay").await, forbidden());
    assert_eq!(tenants.problem(Some(KEEPER), "POST /v1/shards/acme/pay/checkpoint").await, forbidden());
    assert_eq!(tenants.ask(Some(KEEPER), "GET /v1/backup/beta/x", b"").await.status, 200);
}

#[tokio::test]
async fn lists_show_what_may_be_read() {
    let tenants = Tenants::start().await;
    let keys = |listing: &Value| -> Vec<String> {
        listing["items"].as_array().unwrap().iter().map(|item| item["key"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(tenants.json(ACME, "GET /v1/orgs").await, json!({"orgs": ["acme"]}));
    assert_eq!(tenants.json(OPERATOR, "GET /v1/orgs").await, json!({"orgs": []}));
    for (token, path, expected) in [
        (ACME, "/v1/shards", &["pay"] as &[&str]),
        (READER, "/v1/shards", &["mail", "pay"]),
        (READER, "/v1/shards?org=acme", &["mail", "pay"]),
        (READER, "/v1/shards?org=beta", &[]),
        (OPERATOR, "/v1/shards", &[]),
    ] {
        let shards = tenants.json(token, &format!("GET {path}")).await;
        let names: Vec<_> = shards["shards"].as_array().unwrap().iter().map(|s| s["namespace"].clone()).collect();
        assert_eq!(names, expected, "{path}");
    }
    assert_eq!(keys(&tenants.json(ACME, "GET /v1/kv/acme?prefix=ns/").await), ["ns/a"]);
    assert_eq!(keys(&tenants.json(READER, "GET /v1/kv/acme?prefix=ns/").await), ["ns/a", "ns/b"]);
    assert_eq!(keys(&tenants.json(READER, "GET /v1/kv/beta?prefix=ns/").await), [] as [&str; 0]);
    let lines = tenants.ask(Some(ACME), "GET /v1/kv/acme?prefix=ns/\naccept: application/x-ndjson", b"").await;
    assert_eq!((lines.status, lines.text().lines().count()), (200, 1), "{}", lines.text());
    assert!(lines.text().contains("ns/a"));
    assert_eq!(tenants.problem(Some(ACME), "GET /v1/kv/acme/mail").await, forbidden());
    assert_eq!(tenants.problem(Some(READER), "GET /v1/kv/beta/x").await, forbidden());
}

#[tokio::test]
async fn each_operation_of_a_batch_is_judged_by_itself() {
    let tenants = Tenants::start().await;
    let ops = json!({"ops": [{"put": {"key": "k", "value": "dw=="}}, {"get": {"key": "k"}}, {"del": {"key": "k"}}]});
    let body = ops.to_string().into_bytes();
    let answer = tenants.ask(Some(READER), "POST /v1/batch/acme/pay", &body).await.json();
    let results = answer["results"].as_array().unwrap();
    let told: Vec<_> = results.iter().map(|result| (result["status"].clone(), result["type"].clone())).collect();
    let no = || (json!(403), json!("urn:outrigger:problem:forbidden"));
    assert_eq!(told, [no(), (json!(200), Value::Null), no()]);
    assert_eq!((&results[1]["value"], &results[0]["written"]), (&json!("dg=="), &json!("no")));
    let whole = tenants.ask(Some(ACME), "POST /v1/batch/beta/x", &body).await;
    assert_eq!(whole.problem().1, "forbidden");
}

#[tokio::test]
async fn auth_takes_a_token_and_keeps_what_was_before_where_it_fails() {
    let tenants = Tenants::start().await;
    let mut client = tenants.node.connect().await;
    refused(&mut client, &["GET", "k"], "-NOAUTH ").await;
    refused(&mut client, &["AUTH", "acme/pay", WRONG], "-WRONGPASS ").await;
    refused(&mut client, &["AUTH", WRONG], "-WRONGPASS ").await;
    refused(&mut client, &["HELLO", "3", "AUTH", "acme/pay", WRONG], "-WRONGPASS ").await;
    say(&mut client, &["AUTH", "acme/pay", ACME], "+OK\r\n").await;
    say(&mut client, &["SET", "k", "w"], "+OK\r\n").await;
    refused(&mut client, &["AUTH", "beta/x", ACME], "-NOPERM ").await;
    // Still RESP2, still acme's shard, still acme's rights.
    say(&mut client, &["GET", "nothing"], "$-1\r\n").await;
    say(&mut client, &["GET", "k"], "$1\r\nw\r\n").await;
    // A token takes the place of the one before.
    say(&mut client, &["AUTH", READER], "+OK\r\n").await;
    refused(&mut client, &["SET", "k", "v"], "-NOPERM ").await;
    say(&mut client, &["GET", "k"], "$1\r\nw\r\n").await;
    refused(&mut client, &["AUTH", "beta/x", WRONG], "-WRONGPASS ").await;
    say(&mut client, &["RESET"], "+RESET\r\n").await;
    refused(&mut client, &["GET", "k"], "-NOAUTH ").await;
    client.send(&command(&["HELLO", "3", "AUTH", "acme/pay", ACME])).await;
    client.expect("%7\r\n").await;
}

/// A key in the canonical layout goes to the namespace that it names, and is judged by that.
#[tokio::test]
async fn a_key_is_judged_where_it_goes() {
    let tenants = Tenants::start().await;
    let mut client = tenants.logged_in(ACME).await;
    say(&mut client, &["SET", "wf/pay/1", "v"], "+OK\r\n").await;
    for words in [
        &["GET", "wf/mail/1"] as &[&str],
        &["EXISTS", "wf/mail/1"],
        &["STRLEN", "ns/mail"],
        &["SET", "wf/mail/1", "v"],
        &["INCR", "wf/mail/1"],
        &["GETDEL", "wf/mail/1"],
        &["DEL", "wf/mail/1"],
        &["MGET", "k", "wf/mail/1"],
        &["EXISTS", "k", "wf/mail/1"],
        &["MSET", "wf/mail/1", "v", "wf/mail/2", "v"],
        &["DEL", "wf/mail/1", "wf/mail/2"],
        &["KEYS", "wf/mail/*"],
        &["SCAN", "0", "MATCH", "wf/mail/*"],
        &["SUBSCRIBE", "__keyspace@0__:wf/mail/1"],
        &["PSUBSCRIBE", "__keyspace@0__:wf/mail/*"],
    ] {
        refused(&mut client, words, "-NOPERM ").await;
    }
    // Not within a run of reads either, which are answered together.
    let run: Vec<u8> = ["k", "wf/mail/1", "wf/pay/1"].iter().flat_map(|key| command(&["GET", key])).collect();
    client.send(&run).await;
    client.expect("$1\r\nv\r\n-NOPERM ").await;
    let mut client = tenants.logged_in(ACME).await;
    say(&mut client, &["READWRITE"], "+OK\r\n").await;
    refused(&mut client, &["GET", "wf/mail/1"], "-NOPERM ").await;
    // Whoever may see that namespace reaches it from another that it may see.
    let mut reader = tenants.logged_in(READER).await;
    say(&mut reader, &["GET", "ns/b"], "$-1\r\n").await;
    say(&mut reader, &["KEYS", "wf/mail/*"], "*0\r\n").await;
    refused(&mut reader, &["MSET", "wf/mail/1", "v"], "-NOPERM ").await;
}

/// A cursor is the node's, not the connection's: it must not lead into another's shard.
#[tokio::test]
async fn a_cursor_leads_nowhere_else() {
    let tenants = Tenants::start().await;
    let mut reader = tenants.logged_in(READER).await;
    say(&mut reader, &["AUTH", "acme/mail", READER], "+OK\r\n").await;
    let mail = tenants.node.manager.get(&ShardId::parse("acme", "mail").unwrap()).await.unwrap();
    mail.put("secret", "v").await.unwrap();
    reader.send(&command(&["SCAN", "0", "COUNT", "1"])).await;
    use tokio::io::AsyncReadExt as _;
    let mut reply = Vec::new();
    while !reply.ends_with(b"ns/b\r\n") {
        reply.push(reader.0.read_u8().await.unwrap());
    }
    let cursor = String::from_utf8(reply).unwrap().lines().nth(2).unwrap().to_owned();
    assert_ne!(cursor, "0");
    let mut acme = tenants.logged_in(ACME).await;
    refused(&mut acme, &["SCAN", &cursor], "-ERR invalid cursor").await;
}

#[tokio::test]
async fn a_watch_tells_only_who_may_read_and_ends_with_the_token() {
    let tenants = Tenants::start().await;
    assert_eq!(tenants.problem(Some(ACME), "GET /v1/watch/acme/mail").await, forbidden());
    assert_eq!(tenants.problem(Some(ACME), "GET /v1/watch/beta/x?since=").await, forbidden());
    let mut watcher = tenants.node.connect().await;
    let head = format!("GET /v1/watch/acme/pay HTTP/1.1\r\nhost: o\r\nauthorization: Bearer {ACME}\r\n\r\n");
    watcher.send(head.as_bytes()).await;
    let seen = until(&mut watcher, "snapshot-end").await;
    assert!(seen.starts_with("HTTP/1.1 200 OK"), "{seen}");
    let mut subscriber = tenants.logged_in(ACME).await;
    subscriber.send(&command(&["SUBSCRIBE", "__keyevent@0__:set"])).await;
    until(&mut subscriber, ":1\r\n").await;

    // Rotation: both are good for a while, then the new one alone.
    let file = tenants.dir.path().join("acme");
    let new = "the-next-token-of-acme";
    write_tokens(file.clone(), &[new, ACME]);
    let get = "GET /v1/kv/acme/pay/k";
    wait_for(&tenants, new, 200).await;
    assert_eq!(tenants.ask(Some(ACME), get, b"").await.status, 200);
    write_tokens(file.clone(), &[new]);
    wait_for(&tenants, ACME, 401).await;
    assert_eq!(tenants.ask(Some(new), get, b"").await.status, 200);

    let pay = tenants.node.manager.get(&ShardId::parse("acme", "pay").unwrap()).await.unwrap();
    pay.put("after", "secret").await.unwrap();
    let rest = until(&mut watcher, "token-unknown").await;
    assert!(rest.contains("event: error") && !rest.contains("after"), "{rest}");
    let rest = String::from_utf8(subscriber.rest().await).unwrap();
    assert!(rest.starts_with("-WRONGPASS ") && !rest.contains("after"), "{rest}");

    // What cannot be read, or is open to all, holds no good token; once it is right again it does.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    wait_for(&tenants, new, 401).await;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    wait_for(&tenants, new, 200).await;
    fs::remove_file(&file).unwrap();
    wait_for(&tenants, new, 401).await;
}

/// Waits until a read with this token is answered so.
async fn wait_for(tenants: &Tenants, token: &str, status: u16) {
    let asked = async {
        while tenants.ask(Some(token), "GET /v1/kv/acme/pay/k", b"").await.status != status {
            tokio::time::sleep(TOKENS_REREAD_EVERY / 10).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("{token} was never answered {status}"));
}

/// Reads up to `end`.
async fn until(client: &mut Client, end: &str) -> String {
    use tokio::io::AsyncReadExt as _;
    let mut read = Vec::new();
    let reading = async {
        while !read.ends_with(end.as_bytes()) {
            read.push(client.0.read_u8().await.unwrap());
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, reading).await.is_ok();
    let read = String::from_utf8(read).unwrap();
    assert!(in_time, "{read:?} and never {end:?}");
    read
}

#[tokio::test]
async fn a_node_does_not_start_on_tokens_that_it_cannot_take() {
    let dir = tempfile::tempdir().unwrap();
    let path = write_tokens(dir.path().join("t"), &["too-short"]);
    let rules = || vec![Rule { token_file: Some(path.clone()), admin: true, ..Rule::default() }];
    assert!(Gate::new(rules(), Vec::new()).is_err());
    write_tokens(path.clone(), &[ACME]);
    assert!(Gate::new(rules(), Vec::new()).is_ok());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(Gate::new(rules(), Vec::new()).is_err());
    fs::remove_file(&path).unwrap();
    assert!(Gate::new(rules(), Vec::new()).is_err());
}

#[tokio::test]
async fn an_org_gets_its_requests_per_second_and_no_more() {
    let limit = OrgLimit { org: Pattern::of_orgs("acme").unwrap(), bytes_max: None, requests_per_second_max: Some(5) };
    let node = guarded(Vec::new(), vec![limit]).await;
    node.manager.get(&ShardId::parse("acme", "a").unwrap()).await.unwrap().put("k", "v").await.unwrap();
    // All at once, so however slow the machine, they are one second's.
    let gets: Vec<u8> = (0..50).flat_map(|_| command(&["GET", "k"])).collect();
    let mut client = node.connect().await;
    say(&mut client, &["AUTH", "acme/a", "-"], "+OK\r\n").await;
    client.send(&gets).await;
    client.send(&command(&["QUIT"])).await;
    let replies = String::from_utf8(client.rest().await).unwrap();
    let (let_in, busy) = (replies.matches("$1\r\nv\r\n").count(), replies.matches("-BUSY ").count());
    assert!((5..50).contains(&let_in) && let_in + busy == 50, "{let_in} let in, {busy} refused");

    let ops: Vec<_> = (0..100).map(|_| json!({"get": {"key": "k"}})).collect();
    let body = json!({ "ops": ops }).to_string().into_bytes();
    let results = node.http("POST /v1/batch/acme/a", &body).await.json();
    let statuses: Vec<_> =
        results["results"].as_array().unwrap().iter().map(|r| r["status"].as_u64().unwrap()).collect();
    assert!(statuses.contains(&429) && statuses.iter().all(|status| matches!(status, 200 | 429)), "{statuses:?}");
    let refused = async {
        loop {
            let answer = node.http("GET /v1/kv/acme/a/k", b"").await;
            if answer.status != 200 {
                return answer;
            }
        }
    };
    let refused = tokio::time::timeout(PATIENCE, refused).await.unwrap();
    assert_eq!(refused.problem(), (429, "rate-limited".to_owned(), "no".to_owned()));
    assert_eq!(refused.header("retry-after"), Some("1"));
    for _ in 0..20 {
        assert_eq!(node.http("GET /v1/kv/beta/a/k", b"").await.status, 404, "others are not limited");
    }
}

/// Deletions have to make room again: a file keeps the pages that they free.
#[tokio::test]
async fn an_org_stores_its_bytes_and_may_always_delete() {
    let limit = OrgLimit { org: Pattern::Any, bytes_max: Some(1024 * 1024), requests_per_second_max: None };
    let node = guarded(Vec::new(), vec![limit]).await;
    let value = vec![b'x'; 60_000];
    let mut stored = 0;
    let refused = loop {
        let answer = node.http(&format!("PUT /v1/kv/acme/a/k{stored}"), &value).await;
        if answer.status != 204 {
            break answer;
        }
        stored += 1;
        assert!(stored < 400, "never refused");
    };
    assert_eq!(refused.problem(), (507, "quota-exceeded".to_owned(), "no".to_owned()));
    assert!(stored >= 10, "{stored}");
    assert!(node.resp(&[&["AUTH", "acme/b", "-"], &["SET", "k", &"y".repeat(60_000)]]).await.contains("-QUOTA "));
    assert_eq!(node.http("PUT /v1/kv/other/a/k", &value).await.status, 204, "each org has its own");
    assert_eq!(node.http("GET /v1/kv/acme/a/k0", b"").await.status, 200);
    for n in 0..stored {
        assert_eq!(node.http(&format!("DELETE /v1/kv/acme/a/k{n}"), b"").await.status, 204);
    }
    let room = async {
        while node.http("PUT /v1/kv/acme/a/k", &value).await.status != 204 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, room).await.expect("deletions make no room");
}

/// Whoever has to show a token first has half of the places, and a minute.
#[tokio::test]
async fn strangers_leave_places_to_those_who_are_known() {
    let dir = tempfile::tempdir().unwrap();
    let token_file = Some(write_tokens(dir.path().join("t"), &[ACME]));
    let tokens = Rule { token_file, ..rule(&["acme"], &["*"], Grant::Write) };
    let mine = Rule { uids: vec![my_uid()], ..rule(&["acme"], &["*"], Grant::Write) };
    for (rules, places) in [(vec![tokens.clone()], 2), (vec![tokens, mine], 4)] {
        let gate = Gate::new(rules, Vec::new()).unwrap();
        let change = move |config| api::Config { gate, connections_max: 4, ..config };
        let node = Node::start_with(|manager| LocalReplicator::new(manager, OsClock::shared()), change).await;
        let mut kept = Vec::new();
        for _ in 0..places {
            let mut client = node.connect().await;
            say(&mut client, &["PING"], "+PONG\r\n").await;
            kept.push(client);
        }
        assert!(node.resp(&[&["PING"]]).await.starts_with("-BUSY too many connections"), "{places}");
    }
}

#[tokio::test]
async fn a_stranger_is_not_waited_for_for_ever() {
    let tenants = Tenants::start().await;
    // Only now: what is written at the start would time out.
    tokio::time::pause();
    let mut silent = tenants.node.connect().await;
    assert_eq!(silent.rest().await, b"");
    let mut idle = tenants.node.connect().await;
    idle.send(&command(&["PING"])).await;
    assert_eq!(String::from_utf8(idle.rest().await).unwrap(), "+PONG\r\n-NOAUTH no token was shown in time\r\n");
    // Others may idle for as long as they like.
    let mut known = tenants.logged_in(ACME).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    say(&mut known, &["GET", "k"], "$1\r\nv\r\n").await;
}
