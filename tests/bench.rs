//! `bench` against real nodes: what it counts adds up, what it leaves behind, and what it says when the node goes.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod common;

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::Cluster;
use serde_json::Value;

fn bench(socket: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    command.env_remove("OUTRIGGER_SOCKET").args(["bench", "--socket"]).arg(socket).args(args).stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[track_caller]
fn ended(output: &Output, code: i32) -> Value {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "stdout {out:?} stderr {err:?}");
    assert_eq!(out.lines().count(), 1, "{out:?}");
    serde_json::from_str(&out).unwrap()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no count"))
}

/// The parts of a summary agree with one another.
fn adds_up(summary: &Value) {
    let (reads, writes, both) = (&summary["reads"], &summary["writes"], &summary["both"]);
    assert_eq!(number(&reads["done"]) + number(&writes["done"]), number(&both["done"]), "{summary}");
    let errors: u64 = summary["errors"].as_object().unwrap().values().map(number).sum();
    assert_eq!(errors, number(&summary["failed"]), "{summary}");
    let seconds = summary["seconds"].as_f64().unwrap();
    for side in [reads, writes, both] {
        let done = number(&side["done"]);
        let rate = side["per_second"].as_f64().unwrap();
        assert!((rate * seconds - done as f64).abs() < 0.5, "{rate}/s for {seconds} s are not {done}");
        if done > 0 {
            let [p50, p99, p999, max] = ["p50_us", "p99_us", "p999_us", "max_us"].map(|name| number(&side[name]));
            assert!(0 < p50 && p50 <= p99 && p99 <= p999 && p999 <= max, "{side}");
        }
    }
}

/// What the node itself counted of proposals that were accepted.
async fn accepted(cluster: &Cluster) -> u64 {
    cluster.nodes[0].client().cluster().await.unwrap().decisions.accept
}

#[tokio::test(flavor = "multi_thread")]
async fn both_dialects_do_what_the_summary_says() {
    let cluster = Cluster::start(1).await;
    let socket = cluster.nodes[0].socket();
    for protocol in ["http", "resp"] {
        let args = ["--protocol", protocol, "--clients", "8", "--keys", "50", "--seconds", "1", "--size", "1KiB"];
        let more = ["--json", "--keep", "--org", "acme", "--ns", protocol, "--consistency", "quorum", "--seed", "7"];
        let before = accepted(&cluster).await;
        let output = bench(&socket, &args).args(more).output().unwrap();
        let summary = ended(&output, 0);
        adds_up(&summary);
        let (reads, writes) = (number(&summary["reads"]["done"]), number(&summary["writes"]["done"]));
        assert!(reads > 10 && writes > 10, "{summary}");
        assert_eq!((number(&summary["failed"]), number(&summary["found_nothing"])), (0, 0), "{summary}");
        assert_eq!((summary["protocol"].as_str(), summary["seed"].as_u64()), (Some(protocol), Some(7)));
        let proposed = accepted(&cluster).await - before;
        assert!(proposed >= writes, "{writes} writes, and the node knows of {proposed}: {summary}");

        let client = outrigger::Client::builder(&socket).shard("acme", protocol).unwrap().build();
        let page = client.page("", None, 1000, false).await.unwrap();
        assert_eq!(page.items.len(), 50);
        for item in page.items {
            assert!(item.key.starts_with("bench/") && item.value.unwrap().len() == 1024, "{}", item.key);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_how_far_it_is_and_leaves_only_what_was_there() {
    let cluster = Cluster::start(1).await;
    let client = cluster.nodes[0].client();
    client.put("bench/mine", "v").await.unwrap();
    let args = ["--clients", "2", "--keys", "20", "--seconds", "2", "--reads", "0"];
    let output = bench(&cluster.nodes[0].socket(), &args).output().unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}{err}");
    for part in ["2 clients over http, 256 B values, 20 keys", "P99.9", "reads      0", "errors: 0"] {
        assert!(out.contains(part), "{out:?} lacks {part:?}");
    }
    let line = err.lines().find(|line| line.starts_with("bench: 1 of 2 s, ")).unwrap_or_else(|| panic!("{err:?}"));
    assert!(line.contains("/s, p99 ") && line.ends_with(", 0 errors"), "{line}");
    let keys: Vec<_> =
        client.page("", None, 1000, true).await.unwrap().items.into_iter().map(|item| item.key).collect();
    assert_eq!(keys, ["bench/mine"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_goes_is_counted_and_the_summary_still_printed() {
    let mut cluster = Cluster::start(1).await;
    let socket = cluster.nodes[0].socket();
    for protocol in ["http", "resp"] {
        let args = ["--protocol", protocol, "--clients", "4", "--keys", "20", "--seconds", "4", "--json"];
        let mut running = bench(&socket, &args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(running.stderr.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("bench: 1 of 4 s") {
            line.clear();
            assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "it ended before its first second was over");
        }
        cluster.nodes[0].kill();
        let mut rest = String::new();
        stderr.read_to_string(&mut rest).unwrap();
        let summary = ended(&running.wait_with_output().unwrap(), 69);
        adds_up(&summary);
        assert!(number(&summary["both"]["done"]) > 0 && number(&summary["errors"]["connection"]) > 0, "{summary}");
        assert!(!summary["first_errors"]["connection"].as_str().unwrap().is_empty(), "{summary}");
        for part in ["operations failed: ", "connection ", "keys of the bench were left, under bench/"] {
            assert!(rest.contains(part), "{rest:?} lacks {part:?}");
        }
        cluster.nodes[0].start();
        cluster.nodes[0].ready().await;
    }
}

#[test]
fn nothing_begins_without_a_node_or_with_bad_flags() {
    let nobody = Path::new("/no/such.sock");
    for protocol in ["http", "resp"] {
        let output = bench(nobody, &["--protocol", protocol]).output().unwrap();
        let complaint = text(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(69), 0), "{complaint}");
        assert!(complaint.contains("/no/such.sock") && complaint.lines().count() == 1, "{complaint}");
    }
    for (flags, part) in [
        (&["--clients", "0"] as &[&str], "--clients"),
        (&["--clients", "1025"], "--clients"),
        (&["--size", "0"], "--size"),
        (&["--size", "65MiB"], "--size"),
        (&["--reads", "1.5"], "--reads"),
        (&["--keys", "0"], "--keys"),
        (&["--seconds", "0"], "--seconds"),
        (&["--protocol", "smtp"], "--protocol"),
        (&["--consistency", "some"], "--consistency"),
        (&["--ns", "../etc"], "namespace"),
        (&["--keys", "1000000", "--size", "1MiB"], "--keys times --size"),
    ] {
        let output = bench(nobody, flags).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(part), "{flags:?}: {}", text(&output.stderr));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_the_node_would_not_take_is_bad_usage() {
    let cluster = Cluster::start(1).await;
    let output = bench(&cluster.nodes[0].socket(), &["--size", "2MiB", "--keys", "10"]).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{}", text(&output.stderr));
}
