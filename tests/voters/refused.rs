//! What cannot be done is refused: a clear line, an exit code, and nothing changed.

use super::*;
use crate::common::Signal;
use crate::operator::raw;

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_cannot_be_are_refused_and_change_nothing() {
    let mut cluster = start(4, 3).await;
    let refused = |n: usize, args: &[&str], code, part| {
        fails_with(&outrigger(&cluster.nodes[n], &[&["cluster"], args].concat()), code, part);
    };
    refused(0, &["add", "nobody"], 1, "nobody is no member of this cluster");
    refused(1, &["remove", "nobody"], 1, "nobody is no member");
    refused(2, &["replace", "nobody"], 1, "nobody is no voter (voters: n0, n1, n2)");
    refused(2, &["replace", "n1"], 1, "n1 runs on the disk that votes for it");
    refused(2, &["replace", "n1", "--with", "nobody"], 1, "nobody is no member");
    refused(0, &["recover", "--force"], 1, "a majority of the voters is in reach");
    refused(0, &["recover"], 2, "--force");
    refused(0, &["add", "no/name"], 2, "no/name");
    refused(0, &["add"], 2, "NODE");
    assert!(done(&outrigger(&cluster.nodes[0], &["cluster", "add", "n1"])).contains("epoch 1"), "it votes already");
    assert_eq!(status(&cluster.nodes[0]).await.epoch, 1);
    // One at a time: this one waits for a newcomer that stands still.
    cluster.nodes[3].start();
    cluster.nodes[3].ready().await;
    members(&cluster.nodes[0], &["n3"]).await;
    cluster.nodes[3].signal(Signal::STOP);
    done(&outrigger(&cluster.nodes[0], &["cluster", "add", "n3", "--no-wait"]));
    fails_with(&outrigger(&cluster.nodes[0], &["cluster", "remove", "n2"]), 69, "this node prepares another change");
    sees(&cluster.nodes[0], "that the newcomer is away", |now| {
        now.change.as_ref().is_some_and(|change| change.failed && change.step.contains("nothing was changed"))
    })
    .await;
    assert_eq!(status(&cluster.nodes[0]).await.epoch, 1);
    cluster.nodes[3].signal(Signal::CONT);
    // With one of three away the two that would be left could decide nothing together.
    cluster.nodes[1].kill();
    sees(&cluster.nodes[0], "that one is gone", |now| {
        now.nodes.iter().any(|node| node.node.as_str() == "n1" && !node.live)
    })
    .await;
    fails_with(&outrigger(&cluster.nodes[0], &["cluster", "remove", "n2"]), 69, "could not decide together");
    cluster.nodes[0].client().put("k", "v").await.unwrap();
    cluster.nodes[1].start();
    cluster.nodes[1].ready().await;
    // Down to one, and no further.
    for name in ["n2", "n1"] {
        done(&outrigger(&cluster.nodes[0], &["cluster", "remove", name]));
    }
    fails_with(&outrigger(&cluster.nodes[1], &["cluster", "remove", "n0"]), 1, "n0 is the last voter");
    voters_are(&cluster.nodes[0], &["n0"]).await;
    assert_eq!(cluster.nodes[1].quorum_reader().get("k").await.unwrap().unwrap().value, "v");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_cluster_keeps_of_itself_is_nobody_s_to_read_or_write() {
    let mut cluster = start(4, 3).await;
    cluster.nodes[3].start();
    cluster.nodes[3].ready().await;
    let node = &cluster.nodes[0];
    members(node, &["n3"]).await;
    done(&outrigger(node, &["cluster", "add", "n3"]));
    done(&outrigger(node, &["put", "k", "v"]));
    assert!(node.data().join("outrigger.system/cluster.db").is_file(), "there is something to hide");
    let before = status(node).await;
    let system = ["--org", "outrigger.system", "--ns", "cluster"];
    let actions: [&[&str]; 5] =
        [&["put", "configuration", "x"], &["get", "configuration"], &["del", "configuration"], &["list"], &["watch"]];
    for args in actions {
        let output = outrigger(node, &[args, &system].concat());
        fails_with(&output, 2, "outrigger.system");
        assert!(output.stdout.is_empty(), "{}", out(&output));
    }
    let http = |method: &str, path: &str| {
        raw(node, &format!("{method} {path} HTTP/1.1\r\nhost: o\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx"))
    };
    for (method, path) in [
        ("PUT", "/v1/kv/outrigger.system/cluster/configuration"),
        ("GET", "/v1/kv/outrigger.system/cluster/configuration"),
        ("GET", "/v1/kv/outrigger%2Esystem/cluster/configuration"),
        ("DELETE", "/v1/kv/outrigger.system/cluster/configuration"),
        ("GET", "/v1/kv/outrigger.system/cluster"),
        ("GET", "/v1/kv/outrigger.system?prefix=ns/"),
        ("GET", "/v1/watch/outrigger.system/cluster"),
        ("GET", "/v1/shards?org=outrigger.system"),
        ("POST", "/v1/shards/outrigger.system/cluster/checkpoint"),
    ] {
        let answer = http(method, path);
        assert!(answer.starts_with("HTTP/1.1 400") || answer.starts_with("HTTP/1.1 403"), "{method} {path}: {answer}");
        assert!(!answer.contains("storage_id"), "{method} {path}: {answer}");
    }
    let resp = raw(
        node,
        "*3\r\n$4\r\nAUTH\r\n$24\r\noutrigger.system/cluster\r\n$1\r\np\r\n*2\r\n$3\r\nGET\r\n$13\r\nconfiguration\r\n",
    );
    assert!(resp.starts_with('-') && !resp.contains("storage_id"), "{resp}");
    for path in ["/v1/orgs", "/v1/shards"] {
        let answer = http("GET", path);
        assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains("outrigger.system"), "{path}: {answer}");
    }
    assert!(!done(&outrigger(node, &["shards"])).contains("outrigger.system"));
    let copies = cluster.dir.path().join("copies");
    done(&outrigger(node, &["backup", copies.to_str().unwrap()]));
    let list = tokio::task::block_in_place(|| Command::new("find").arg(&copies).output().unwrap());
    assert!(out(&list).contains("default.db") && !out(&list).contains("system"), "{}", out(&list));
    let after = status(node).await;
    assert_eq!((after.epoch, after.voters), (before.epoch, before.voters));
}
