//! The commands as processes: what they print, where, and how they exit.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod fake;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use fake::{Answer, CLUSTER, Fake, problem};

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OUTRIGGER")) {
        command.env_remove(name);
    }
    command.args(args).stdin(Stdio::null());
    command
}

/// A file that only its owner may read.
fn secret(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn run(fake: &Fake, args: &[&str]) -> Output {
    command(args).env("OUTRIGGER_SOCKET", &fake.socket).output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[track_caller]
fn exits(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "stdout {:?} stderr {:?}", out(output), err(output));
    assert_eq!(output.stderr.is_empty(), code == 0, "stderr {:?}", err(output));
}

#[track_caller]
fn fails_with(output: &Output, code: i32, parts: &[&str]) {
    exits(output, code);
    for part in parts {
        assert!(err(output).contains(part), "{:?} lacks {part:?}", err(output));
    }
}

fn with_stdin(mut command: Command, input: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn put_get_del() {
    let fake = Fake::start();
    let put = run(&fake, &["put", "greeting", "hello"]);
    exits(&put, 0);
    assert_eq!(out(&put), "1001\n");
    let get = run(&fake, &["get", "greeting"]);
    assert_eq!(get.stdout, b"hello", "no newline that is not in the value");
    let json: serde_json::Value = serde_json::from_str(&out(&run(&fake, &["--json", "get", "greeting"]))).unwrap();
    assert_eq!(json, serde_json::json!({ "key": "greeting", "value": "aGVsbG8=", "upd": 1001 }));
    exits(&run(&fake, &["del", "greeting"]), 0);
    let gone = run(&fake, &["get", "greeting"]);
    fails_with(&gone, 1, &["no value at key \"greeting\""]);
    assert!(gone.stdout.is_empty());
}

#[test]
fn values_come_from_standard_input_byte_for_byte() {
    let fake = Fake::start();
    let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    for args in [&["put", "k", "-"] as &[&str], &["put", "k"]] {
        let mut command = command(args);
        command.env("OUTRIGGER_SOCKET", &fake.socket);
        exits(&with_stdin(command, &bytes), 0);
        assert_eq!(run(&fake, &["get", "k"]).stdout, bytes);
    }
    exits(&run(&fake, &["put", "k", "-5"]), 0);
    assert_eq!(run(&fake, &["get", "k"]).stdout, b"-5");
}

#[test]
fn options_pick_the_shard_and_the_promise() {
    let fake = Fake::start();
    exits(
        &run(&fake, &["put", "k", "v", "--org", "acme", "--ns", "pay", "--consistency", "local", "--timeout", "1s"]),
        0,
    );
    let request = &fake.seen()[0];
    assert_eq!(request.path, "/v1/kv/acme/pay/k");
    assert_eq!((request.query["consistency"].as_str(), request.query["timeout"].as_str()), ("local", "1s"));
    fails_with(&run(&fake, &["get", "k", "--ns", "../etc"]), 2, &["namespace", "../etc"]);
    assert_eq!(fake.seen().len(), 1);
}

#[test]
fn cas_prints_the_new_version_or_fails_with_the_one_there() {
    let fake = Fake::start();
    let first = run(&fake, &["cas", "lock", "--expect", "absent", "w1"]);
    exits(&first, 0);
    assert_eq!(out(&first), "1001\n");
    fails_with(&run(&fake, &["cas", "lock", "--expect", "absent", "w2"]), 1, &["nothing written", "1001", "absent"]);
    exits(&run(&fake, &["cas", "lock", "--expect", "1001", "w3"]), 0);
    let stale = run(&fake, &["cas", "lock", "--expect", "1001", "w4", "--json"]);
    fails_with(&stale, 1, &["at 1002", "expected 1001"]);
    assert_eq!(out(&stale), "{\"key\":\"lock\",\"upd\":1002,\"written\":false}\n");
    fails_with(&run(&fake, &["cas", "lock", "--expect", "soon", "w"]), 2, &["--expect", "absent"]);
}

#[test]
fn list_for_people_scripts_and_machines() {
    let fake = Fake::start();
    fake.set("a/1", b"one");
    fake.set("a/2", b"\xff\x00");
    fake.set("b", b"other");
    let table = out(&run(&fake, &["list", "a/"]));
    let lines: Vec<_> = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(lines, ["UPD SIZE KEY VALUE", "1001 3 B a/1 one", "1002 2 B a/2 (binary)"]);
    assert_eq!(out(&run(&fake, &["list", "--keys-only"])), "a/1\na/2\nb\n");
    assert_eq!(out(&run(&fake, &["list", "a/1", "--json"])), "{\"key\":\"a/1\",\"upd\":1001,\"value\":\"b25l\"}\n");
    let none = run(&fake, &["list", "zzz"]);
    exits(&none, 0);
    assert!(none.stdout.is_empty());
}

#[test]
fn a_reader_who_has_seen_enough_is_not_an_error() {
    let fake = Fake::start();
    for n in 0..5000 {
        fake.set(&format!("{n:05}"), &[b'x'; 100]);
    }
    let mut command = command(&["list"]);
    command.env("OUTRIGGER_SOCKET", &fake.socket).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.starts_with("UPD"));
    // The pipe's reading end is closed now, with most of the list still to come.
    let mut complaint = String::new();
    child.stderr.take().unwrap().read_to_string(&mut complaint).unwrap();
    assert_eq!((child.wait().unwrap().code(), complaint.as_str()), (Some(0), ""));
}

/// What a node answers whose cluster has these voters.
fn voters(voters: &[&str]) -> Answer {
    let mut cluster: serde_json::Value = serde_json::from_str(CLUSTER).unwrap();
    cluster["voters"] = voters.into();
    Answer::Whole(202, vec![], cluster.to_string().into_bytes())
}

#[test]
fn votes_of_all_that_go_are_taken_one_by_one_the_highest_number_first() {
    let fake = Fake::start();
    let (all, fewer) = (["app-0", "app-9", "app-10", "other-11"], ["app-0", "app-9", "other-11"]);
    let few = ["app-0", "other-11"];
    for answer in [&all as &[_], &all, &fewer, &fewer, &fewer, &few, &few] {
        fake.dictate(voters(answer));
    }
    let removed = run(&fake, &["cluster", "remove", "app-3", "--and-higher"]);
    exits(&removed, 0);
    assert_eq!(out(&removed), "epoch 1: voters app-0, other-11\n");
    let asked: Vec<_> =
        fake.seen().into_iter().filter(|request| request.method == "DELETE").map(|it| it.path).collect();
    assert_eq!(asked, ["/v1/cluster/voters/app-10", "/v1/cluster/voters/app-9"]);
    fake.dictate(voters(&few));
    exits(&run(&fake, &["cluster", "remove", "app-1", "--and-higher"]), 0);
    assert_eq!(fake.seen().len(), 8, "there is none, and nothing is asked for");
    fails_with(&run(&fake, &["cluster", "remove", "app", "--and-higher"]), 2, &["--and-higher", "app", "number"]);
}

#[test]
fn a_change_waits_for_its_turn_where_it_is_told_to() {
    let fake = Fake::start();
    let three = ["a", "b", "c"];
    for answer in [voters(&three), problem(409, "change-refused", "no")] {
        fake.dictate(answer);
    }
    fails_with(&run(&fake, &["cluster", "add", "d"]), 1, &["detail of change-refused"]);
    for answer in [voters(&three), problem(409, "change-refused", "no"), voters(&three), voters(&["a", "b", "c", "d"])]
    {
        fake.dictate(answer);
    }
    let added = run(&fake, &["cluster", "add", "d", "--within", "1m"]);
    assert_eq!(
        (added.status.code(), out(&added).as_str()),
        (Some(0), "epoch 1: voters a, b, c, d\n"),
        "{}",
        err(&added)
    );
    assert!(
        err(&added).contains("detail of change-refused") && err(&added).ends_with("; trying again\n"),
        "{}",
        err(&added)
    );
}

/// What a node answers whose cluster has these replicas.
fn placed(epoch: u64, factor: Option<u64>, pins: &[(&str, &str, &[&str])], joint: bool) -> Answer {
    let mut cluster: serde_json::Value = serde_json::from_str(CLUSTER).unwrap();
    let pin = |(org, namespace, nodes): &(&str, &str, &[&str])| serde_json::json!({ "org": org, "namespace": namespace, "nodes": nodes });
    cluster["pins"] = pins.iter().map(pin).collect();
    (cluster["epoch"], cluster["replication_factor"], cluster["joint"]) = (epoch.into(), factor.into(), joint.into());
    Answer::Whole(202, vec![], cluster.to_string().into_bytes())
}

#[track_caller]
fn succeeds_with(output: &Output, line: &str) {
    assert_eq!((output.status.code(), out(output).as_str()), (Some(0), line), "{}", err(output));
}

#[test]
fn a_replication_factor_is_waited_for_until_it_is_in_force() {
    let fake = Fake::start();
    // The epoch rises by another change before, and the joint epoch is not the end of it.
    for answer in [
        placed(1, None, &[], false),
        placed(1, None, &[], false),
        placed(3, None, &[], false),
        placed(4, Some(2), &[], true),
        placed(5, Some(2), &[], false),
    ] {
        fake.dictate(answer);
    }
    let set = run(&fake, &["cluster", "replication-factor", "2"]);
    succeeds_with(&set, "epoch 5: voters a, b, c; each shard on 2 of the voters\n");
    let asked = fake.seen();
    assert_eq!(
        (asked.len(), asked[1].method.as_str(), asked[1].path.as_str()),
        (5, "PUT", "/v1/cluster/replication-factor")
    );
    assert_eq!(asked[1].query["value"], "2");
    for answer in [placed(5, Some(2), &[], false), placed(6, None, &[], true)] {
        fake.dictate(answer);
    }
    let begun = run(&fake, &["cluster", "replication-factor", "all", "--no-wait"]);
    succeeds_with(&begun, "epoch 6: voters a, b, c; each shard on all voters (a change is under way)\n");
    assert_eq!(fake.seen()[6].query["value"], "all");
    for wrong in ["0", "256", "some", "-1", ""] {
        let refused = run(&fake, &["cluster", "replication-factor", wrong]);
        assert_eq!(refused.status.code(), Some(2), "{wrong:?}: {}", err(&refused));
    }
    fails_with(&run(&fake, &["cluster", "replication-factor", "0"]), 2, &["1 to 255", "\"all\""]);
    assert_eq!(fake.seen().len(), 7);
}

#[test]
fn a_shard_is_moved_to_the_nodes_that_are_named_and_back() {
    let fake = Fake::start();
    let shard = ["--org", "acme", "--namespace", "payments"];
    let migrate = |more: &[&str]| run(&fake, &[&["migrate"] as &[&str], &shard, more].concat());
    let (none, there) = ([], [("acme", "payments", &["b", "c"] as &[&str])]);
    for answer in [
        placed(1, Some(2), &none, false),
        placed(1, Some(2), &none, false),
        placed(2, Some(2), &there, true),
        placed(3, Some(2), &there, false),
    ] {
        fake.dictate(answer);
    }
    succeeds_with(&migrate(&["--to", "c,b"]), "epoch 3: acme/payments pinned to c, b\n");
    let asked = fake.seen().remove(1);
    assert_eq!((asked.method.as_str(), asked.path.as_str()), ("PUT", "/v1/cluster/pins/acme/payments"));
    assert_eq!(asked.query["to"], "c,b");
    for answer in [
        placed(3, Some(2), &there, false),
        problem(409, "change-refused", "no"),
        placed(3, Some(2), &there, false),
        placed(4, Some(2), &none, true),
        placed(5, Some(2), &none, false),
    ] {
        fake.dictate(answer);
    }
    succeeds_with(&migrate(&["--back", "--within", "1m"]), "epoch 5: acme/payments back where its name puts it\n");
    assert_eq!(
        (fake.seen()[7].method.as_str(), fake.seen()[7].path.as_str()),
        ("DELETE", "/v1/cluster/pins/acme/payments")
    );
    // The org of those who have none, and the namespace of those who name none.
    let there = [("_", "default", &["b"] as &[&str])];
    for answer in [placed(5, Some(2), &none, false), placed(7, Some(2), &there, false)] {
        fake.dictate(answer);
    }
    succeeds_with(&run(&fake, &["migrate", "--to", "b"]), "epoch 7: _/default pinned to b\n");
    let count = fake.seen().len();
    assert_eq!(fake.seen()[count - 1].path, "/v1/cluster/pins/_/default");
    fails_with(&migrate(&[]), 2, &["--to", "--back"]);
    fails_with(&migrate(&["--to", "b", "--back"]), 2, &["cannot be used with"]);
    fails_with(&migrate(&["--to", "no/name"]), 2, &["no/name"]);
    fails_with(&run(&fake, &["migrate", "--namespace", "../etc", "--to", "b"]), 2, &["../etc"]);
    assert_eq!(fake.seen().len(), count);
}

#[test]
fn status_says_where_shards_are_if_not_everywhere() {
    let fake = Fake::start();
    fake.dictate(placed(5, Some(2), &[("acme", "payments", &["b", "c"])], false));
    let text = out(&run(&fake, &["status"]));
    let lines: Vec<&str> = text.lines().skip(1).take(2).collect();
    assert_eq!(lines, ["each shard on 2 of the voters", "acme/payments is pinned to b, c"]);
    let many: Vec<String> = (0..25).map(|n| format!("n{n}")).collect();
    let many: Vec<(&str, &str, &[&str])> = many.iter().map(|name| ("acme", name.as_str(), &["b"] as &[&str])).collect();
    fake.dictate(placed(5, Some(4), &many, false));
    let text = out(&run(&fake, &["status"]));
    assert!(text.contains("each shard on all voters, on 4 once there are more\n"), "{text}");
    assert!(
        text.contains("acme/n19 is") && !text.contains("acme/n20 is") && text.contains("and 5 more shards"),
        "{text}"
    );
}

/// An application that may read without a quorum must start without one, and its pod asks for a vote before.
#[test]
fn a_node_that_votes_as_far_as_is_known_needs_no_majority_to_be_added() {
    let fake = Fake::start();
    let known = run(&fake, &["cluster", "add", "a"]);
    assert_eq!((known.status.code(), out(&known).as_str()), (Some(0), "epoch 1: voters a, b, c\n"), "{}", err(&known));
    assert!(err(&known).contains("as far as this node knows"), "{}", err(&known));
    fails_with(&run(&fake, &["cluster", "add", "d"]), 69, &["detail of unhealthy"]);
    fails_with(&run(&fake, &["cluster", "remove", "a"]), 69, &["detail of unhealthy"]);
}

#[test]
fn status_is_a_table_with_the_quorum_on_top() {
    let fake = Fake::start();
    let status = run(&fake, &["status"]);
    exits(&status, 0);
    let text = out(&status);
    assert!(!text.contains('\u{1b}'), "colours in a pipe: {text:?}");
    let lines: Vec<&str> = text.lines().collect();
    for part in ["cluster blue", "quorum, degraded: 2 of 3 voters live, 2 needed", "epoch 1", "seen by a (0.1.0)"] {
        assert!(lines[0].contains(part), "{:?} lacks {part:?}", lines[0]);
    }
    let row = |name: &str| {
        let line = lines.iter().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(row("a "), "a (this) yes voter 00000000000000aa 10.0.0.1:7117 - 1 4 0 0 - -");
    assert_eq!(row("b "), "b yes voter 00000000000000bb 10.0.0.2:7117 0.42 ms 1 4 2 1 -1.50 ms yes");
    assert_eq!(row("c "), "c no voter - - - - - - - - no");
    assert!(text.contains("12 accepted, 1 rejected, 0 timed out"), "{text}");
    let json: serde_json::Value = serde_json::from_str(&out(&run(&fake, &["status", "--json"]))).unwrap();
    assert_eq!(json["nodes"][1]["round_trip_us"], 420);
}

#[test]
fn shards_are_listed_for_one_org_or_all() {
    let fake = Fake::start();
    let text = out(&run(&fake, &["shards"]));
    let row: Vec<_> = text.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row, ["acme", "payments", "3", "40.0", "KiB", "2", "1700000000123", "a", "c", "b", "c"]);
    let earlier: Vec<_> = text.lines().nth(2).unwrap().split_whitespace().collect();
    assert_eq!(earlier, ["_", "default", "0", "4.0", "KiB", "0", "0", "-", "-"], "of a node that does not say so");
    assert_eq!(out(&run(&fake, &["shards", "--org", "acme", "--json"])).lines().count(), 2);
    let asked: Vec<_> = fake.seen().iter().map(|request| request.query.get("org").cloned()).collect();
    assert_eq!(asked, [None, Some("acme".to_owned())]);
}

#[test]
fn exit_codes_tell_whom_to_blame() {
    let fake = Fake::start();
    for (status, kind, written, code) in [
        (503, "no-quorum", "no", 69),
        (504, "timeout", "unknown", 69),
        (409, "frame-rejected", "no", 1),
        (507, "disk-full", "no", 1),
        (400, "invalid-request", "no", 2),
        (413, "too-large", "no", 2),
    ] {
        fake.dictate(problem(status, kind, written));
        let put = run(&fake, &["put", "k", "v"]);
        fails_with(&put, code, &[&format!("Title of {kind}"), &format!("detail of {kind}")]);
        assert_eq!(err(&put).contains("outcome unknown"), written == "unknown");
        assert_eq!(err(&put).lines().count(), 1);
    }
    fake.dictate(Answer::CutOff(Vec::new()));
    fails_with(&run(&fake, &["put", "k", "v"]), 69, &["unknown"]);
    let nobody = command(&["get", "k", "--socket", "/no/such.sock"]).output().unwrap();
    fails_with(&nobody, 69, &["/no/such.sock", "outrigger serve", "--socket"]);
    fails_with(&command(&["get"]).output().unwrap(), 2, &["Usage"]);
    fails_with(&command(&["get", "k", "--log-level", "a=b=c"]).output().unwrap(), 2, &["--log-level"]);
    fails_with(&command(&["get", "k", "--log-level", "verbose"]).output().unwrap(), 2, &["--log-level", "verbose"]);
    let long = "x".repeat(120);
    fails_with(&command(&["get", "k", "--socket", &long]).output().unwrap(), 69, &["at most 107 bytes"]);
}

#[test]
fn health_is_one_line_and_an_exit_status() {
    let fake = Fake::start();
    fake.dictate(Answer::Whole(200, Vec::new(), Vec::new()));
    let healthy = run(&fake, &["health"]);
    exits(&healthy, 0);
    assert_eq!(out(&healthy), "healthy: this node serves quorum operations\n");
    assert_eq!(fake.seen()[0].path, "/v1/cluster/health");
    for answer in [
        problem(503, "unhealthy", "no"),
        Answer::CutOff(Vec::new()),
        Answer::Whole(404, Vec::new(), b"another program's".to_vec()),
        Answer::Never,
    ] {
        // A second one: what only reads is asked again where the connection broke.
        fake.dictate(answer.clone());
        fake.dictate(answer.clone());
        let ill = run(&fake, &["health"]);
        fails_with(&ill, 69, &["outrigger: "]);
        assert_eq!((err(&ill).lines().count(), out(&ill).as_str()), (1, ""), "{answer:?}");
    }
    let nobody = command(&["health", "--socket", "/no/such.sock"]).output().unwrap();
    fails_with(&nobody, 69, &["/no/such.sock", "outrigger serve"]);
    fails_with(&command(&["health", "--admin", "127.0.0.1:1"]).output().unwrap(), 69, &["admin port 127.0.0.1:1"]);
    fails_with(&command(&["health", "--admin", "here"]).output().unwrap(), 69, &["admin port here"]);
}

#[test]
fn health_of_an_admin_port_is_its_readiness() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = listener.local_addr().unwrap().to_string();
    let answers = ["200 OK\r\n\r\nready\n", "503 Service Unavailable\r\n\r\nnot ready: 1 of 3\nin reach\n"];
    let server = std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            assert_eq!(lines.next().unwrap().unwrap(), "GET /readyz HTTP/1.1");
            while !lines.next().unwrap().unwrap().is_empty() {}
            stream.write_all(format!("HTTP/1.1 {answer}").as_bytes()).unwrap();
        }
    });
    let ready = command(&["health", "--admin", &admin]).output().unwrap();
    exits(&ready, 0);
    assert_eq!(out(&ready), "healthy: ready\n");
    let unready = command(&["health", "--admin", &admin]).output().unwrap();
    fails_with(&unready, 69, &[&admin, "503", "not ready: 1 of 3 in reach"]);
    assert_eq!(err(&unready).lines().count(), 1);
    server.join().unwrap();
}

#[test]
fn check_config_prints_what_counts_or_the_first_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("outrigger.toml");
    let file = file.to_str().unwrap();
    std::fs::write(file, "[node]\nname = \"a\"\n").unwrap();
    let good = command(&["check-config", file]).env("OUTRIGGER__SOCKET__MODE", "0600").output().unwrap();
    exits(&good, 0);
    assert!(out(&good).contains("name = \"a\"") && out(&good).contains("mode = \"0600\""), "{}", out(&good));
    std::fs::write(file, "[node]\nnane = \"a\"\n").unwrap();
    for args in [["check-config", file, "--log-level=warn"], ["serve", "--config", file]] {
        let bad = command(&args).output().unwrap();
        fails_with(&bad, 64, &[file, "unknown key node.nane", "did you mean node.name?"]);
        assert_eq!(err(&bad).lines().count(), 1);
    }
    // The key is on this machine, and open to all: `serve` would refuse it, too.
    std::fs::write(dir.path().join("k"), "0123456789abcdef").unwrap();
    let cluster = format!("[cluster]\nvoters = [\"a\", \"node\"]\nkey_file = {:?}\n", dir.path().join("k"));
    std::fs::write(file, format!("[peer]\nadvertise = \"h:1\"\n{cluster}")).unwrap();
    for (mode, code) in [(0o640, 0), (0o644, 64), (0o660, 64)] {
        std::fs::set_permissions(dir.path().join("k"), std::fs::Permissions::from_mode(mode)).unwrap();
        let checked = command(&["check-config", file]).output().unwrap();
        exits(&checked, code);
        assert!(code == 0 || err(&checked).contains(&format!("k has mode {mode:04o}")), "{}", err(&checked));
    }
    let flag = command(&["serve", "--admin", "here"]).output().unwrap();
    fails_with(&flag, 64, &["flag --admin", "admin.listen", "\"here\""]);
    fails_with(&command(&["serve", "--org", "acme"]).output().unwrap(), 2, &["--org"]);
}

#[test]
fn a_node_that_cannot_start_names_the_key_to_change() {
    let dir = tempfile::tempdir().unwrap();
    let serve = |args: &[&str]| {
        let mut serve = command(&["serve", "--admin", "127.0.0.1:0", "--listen", "127.0.0.1:0"]);
        serve.args(args).current_dir(dir.path()).output().unwrap()
    };
    let cluster = ["--name", "a", "--voter", "a,b,c", "--key-file"];
    secret(&dir.path().join("short.key"), "short");
    std::fs::write(dir.path().join("open.key"), "0123456789abcdef0123456789abcdef").unwrap();
    std::fs::set_permissions(dir.path().join("open.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    for key_file in ["no-such.key", ".", "short.key", "open.key"] {
        let failed = serve(&[&cluster as &[_], &[key_file]].concat());
        fails_with(&failed, 64, &["cluster.key_file", &format!("key file {key_file}")]);
        assert_eq!(err(&failed).lines().filter(|line| line.starts_with("outrigger: ")).count(), 1);
    }
    let open = serve(&[&cluster as &[_], &["open.key"]].concat());
    fails_with(&open, 64, &["open.key has mode 0644", "everybody may read it", "chmod 600"]);
    fails_with(&serve(&["--socket", "no/such/dir/s.sock"]), 1, &["no/such/dir/s.sock", "[socket] path"]);
}

/// Started on the wrong directory, a node took over the other's storage id, was barred for it, and had barred the other
/// one's disk with that.
#[test]
fn a_node_refuses_the_data_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let serve = |name: &str| {
        let mut serve = command(&["serve", "--admin", "127.0.0.1:0", "--name", name]);
        serve.current_dir(dir.path()).stderr(Stdio::piped());
        serve
    };
    for _ in 0..2 {
        let mut node = serve("b").spawn().unwrap();
        let mut log = BufReader::new(node.stderr.take().unwrap()).lines();
        assert!(log.any(|line| line.unwrap().contains("ready")), "the owner was refused");
        rustix::process::kill_process(rustix::process::Pid::from_child(&node), rustix::process::Signal::KILL).unwrap();
        node.wait().unwrap();
    }
    fails_with(&serve("c").output().unwrap(), 64, &["node.data_dir", "outrigger-data", "\"b\"", "c"]);
}

#[test]
fn dev_shows_the_log_of_a_node_that_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    // Where the node wants its directory there is a file.
    std::fs::create_dir_all(dir.path().join("dev/a")).unwrap();
    let dev = dir.path().join("dev");
    let node = "name = \"a\"\npeer = \"127.0.0.1:1\"\nadmin = \"127.0.0.1:1\"\n";
    std::fs::write(dev.join("dev.toml"), format!("[[node]]\n{node}")).unwrap();
    secret(&dev.join("cluster.key"), "0123456789abcdef0123456789abcdef");
    std::fs::write(dev.join("a/data"), "not a directory").unwrap();
    let failed = command(&["dev", "--dir", dev.to_str().unwrap()]).output().unwrap();
    fails_with(&failed, 1, &["node a", "ended with status 1", dev.join("a/log").to_str().unwrap(), "outrigger: "]);
    assert!(Path::new(&dev).join("a/node.toml").exists());
}

#[test]
fn a_node_alone_serves_until_told_whoever_reads_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = command(&["serve", "--admin", "127.0.0.1:0"]);
    let mut node = command.current_dir(dir.path()).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(node.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("ready") {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0, "ended before it was ready");
    }
    // Nobody reads any further: each later line of the log fails to be written.
    drop(log);
    let client = |args: &[&str]| self::command(args).current_dir(dir.path()).output().unwrap();
    exits(&client(&["health"]), 0);
    exits(&client(&["put", "k", "v"]), 0);
    assert_eq!(out(&client(&["get", "k", "--consistency", "quorum"])), "v");
    assert_eq!(out(&client(&["list", "--keys-only"])), "k\n");
    assert!(out(&client(&["status"])).contains("quorum: 1 of 1 voters live, 1 needed"));
    assert!(out(&client(&["shards"])).contains("_    default       1"), "{}", out(&client(&["shards"])));
    assert!(dir.path().join("outrigger-data/_/default.db").exists());
    let pid = rustix::process::Pid::from_child(&node);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(node.wait().unwrap().code(), Some(0));
    fails_with(&client(&["get", "k"]), 69, &["./outrigger.sock"]);
}

#[test]
fn a_node_with_rules_wants_tokens_which_clients_read_from_files() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str, mode: u32| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let (app, operator) = ("the-token-of-the-app", "the-token-of-the-operator");
    write("app", app, 0o600);
    write("operator", operator, 0o644);
    write("wrong", "not-a-token-of-anybody", 0o600);
    let rules = "[access]\nrules = [{ token_file = \"app\", orgs = [\"acme\"], allow = \"write\" },\n\
                 { token_file = \"operator\", admin = true }]\n";
    write("node.toml", rules, 0o600);
    let run = |args: &[&str]| command(args).current_dir(dir.path()).output().unwrap();

    let shown = out(&run(&["check-config", "node.toml"]));
    assert!(shown.contains("token_file = \"app\"") && !shown.contains(app), "{shown}");
    let serve = ["serve", "--config", "node.toml", "--admin", "127.0.0.1:0"];
    fails_with(&run(&serve), 64, &["access.rules", "operator", "0644", "chmod"]);

    write("operator", operator, 0o600);
    // It ends with this process, whose assertions may fail.
    let mut node = command(&serve);
    node.arg("--exit-with-parent").current_dir(dir.path()).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut node = node.spawn().unwrap();
    let mut log = BufReader::new(node.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(log.any(|line| line.contains("what no rule of [access] allows is denied")), "the start does not say so");
    assert!(log.any(|line| line.contains("ready")), "never ready");
    let acme = |args: &[&str]| {
        let mut client = command(args);
        client.env("OUTRIGGER_TOKEN_FILE", "app").args(["--org", "acme"]).current_dir(dir.path());
        client.output().unwrap()
    };
    fails_with(&run(&["--org", "acme", "put", "k", "v"]), 1, &["401", "--token-file"]);
    fails_with(&run(&["--org", "acme", "--token-file", "wrong", "get", "k"]), 1, &["401", "--token-file"]);
    fails_with(&run(&["--token-file", "app", "put", "k", "v"]), 1, &["403"]);
    fails_with(&run(&["--token-file", "missing", "get", "k"]), 2, &["--token-file", "missing"]);
    fails_with(&run(&["--token-file", "node.toml", "get", "k"]), 2, &["--token-file", "line 1"]);
    exits(&acme(&["put", "k", "v"]), 0);
    assert_eq!(out(&acme(&["get", "k"])), "v");
    assert_eq!(out(&acme(&["list", "--keys-only"])), "k\n");
    assert!(out(&acme(&["shards"])).contains("acme"), "{}", out(&acme(&["shards"])));
    for protocol in ["http", "resp"] {
        let bench = ["bench", "--protocol", protocol, "--seconds", "1", "--clients", "1", "--keys", "2", "--json"];
        let bench = acme(&bench);
        // It shows its progress on standard error.
        assert_eq!(bench.status.code(), Some(0), "{}", err(&bench));
    }
    fails_with(&acme(&["backup", "copy"]), 1, &["403"]);
    exits(&run(&["--token-file", "operator", "backup", "copy"]), 0);
    assert!(dir.path().join("copy/acme/default.db").exists());
    exits(&run(&["health"]), 0);
    rustix::process::kill_process(rustix::process::Pid::from_child(&node), rustix::process::Signal::TERM).unwrap();
    let log: String = log.collect();
    assert!(!log.contains(app) && !log.contains(operator), "{log}");
    assert!(log.contains("refused by the rules of [access]"), "{log}");
    assert_eq!(node.wait().unwrap().code(), Some(0));
}
