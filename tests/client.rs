//! The client against a socket that behaves, and one that does not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod fake;

use std::time::Duration;

use fake::{Answer, Fake, problem};
use outrigger::client::{Cas, Client, Consistency, Error, Expect, Health, Written};
use outrigger::types::{Ballot, Org};

fn client(fake: &Fake) -> Client {
    Client::builder(&fake.socket).build()
}

#[tokio::test]
async fn values_come_back_as_they_went_over_one_connection() {
    let fake = Fake::start();
    let client = Client::builder(&fake.socket).shard("", "payments").unwrap().build();
    let bytes: Vec<u8> = (0..=255).collect();
    for key in ["plain", "wf/ns/a b", "/leading//double/", "../..", "ünï%2F?&#\n"] {
        let upd = client.put(key, bytes.clone()).await.unwrap();
        let found = client.get(key).await.unwrap().unwrap();
        assert_eq!((found.value.as_ref(), found.upd), (bytes.as_slice(), upd), "{key:?}");
        client.del(key).await.unwrap();
        assert_eq!(client.get(key).await.unwrap(), None, "{key:?}");
    }
    let seen = fake.seen();
    assert!(seen.iter().all(|request| request.connection == 0), "{seen:?}");
    assert!(seen.iter().all(|request| request.path.starts_with("/v1/kv/_/payments/")), "{seen:?}");
    assert!(matches!(client.put("", "x").await, Err(Error::Invalid(_))));
}

#[tokio::test]
async fn options_reach_the_node() {
    let fake = Fake::start();
    let client = Client::builder(&fake.socket)
        .shard("acme", "ns")
        .unwrap()
        .consistency(Consistency::Quorum)
        .timeout(Duration::from_millis(61_500))
        .build();
    client.get("k").await.unwrap();
    client.page("p/", Some("p/é&"), 7, true).await.unwrap();
    let seen = fake.seen();
    for request in &seen {
        assert_eq!(request.query["consistency"], "quorum");
        assert_eq!(humantime::parse_duration(&request.query["timeout"]).unwrap(), Duration::from_millis(61_500));
    }
    assert_eq!((seen[1].query["prefix"].as_str(), seen[1].query["after"].as_str()), ("p/", "p/é&"));
    assert_eq!((seen[1].query["limit"].as_str(), seen[1].query["keys_only"].as_str()), ("7", "true"));
}

#[tokio::test]
async fn conditions_hold_or_tell_what_is_there() {
    let fake = Fake::start();
    let client = client(&fake);
    let Cas::Written(upd) = client.cas("k", Expect::Absent, "1").await.unwrap() else { panic!("not written") };
    assert_eq!(client.cas("k", Expect::Absent, "2").await.unwrap(), Cas::Mismatch(Some(upd)));
    assert_eq!(client.cas("k", Expect::Upd(Ballot(7)), "2").await.unwrap(), Cas::Mismatch(Some(upd)));
    assert!(matches!(client.cas("k", Expect::Upd(upd), "2").await.unwrap(), Cas::Written(_)));
    assert_eq!(client.cas("none", Expect::Upd(upd), "2").await.unwrap(), Cas::Mismatch(None));
}

#[tokio::test]
async fn lists_come_in_pages_or_as_one_stream() {
    let fake = Fake::start();
    let client = client(&fake);
    for n in 0..25 {
        fake.set(&format!("p/{n:02}"), &vec![b'v'; n * 1000]);
    }
    fake.set("q", b"");
    let (mut paged, mut after) = (Vec::new(), None);
    loop {
        let page = client.page("p/", after.as_deref(), 10, false).await.unwrap();
        paged.extend(page.items);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let mut listing = client.list("p/", false).await.unwrap();
    let mut streamed = Vec::new();
    while let Some(item) = listing.next().await.unwrap() {
        streamed.push(item);
    }
    assert_eq!(streamed.len(), 25);
    assert_eq!(streamed, paged);
    assert_eq!(streamed[3].value.as_deref(), Some(vec![b'v'; 3000].as_slice()));
    let mut keys = client.list("q", true).await.unwrap();
    assert_eq!(keys.next().await.unwrap().unwrap().value, None);
}

#[tokio::test]
async fn a_stream_cut_short_is_an_error_not_an_end() {
    let fake = Fake::start();
    let client = client(&fake);
    let item = "{\"key\":\"a\",\"value\":\"\",\"upd\":1}\n";
    fake.dictate(Answer::CutOff(
        format!("HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{item}\r\n", item.len()).into_bytes(),
    ));
    let mut listing = client.list("", false).await.unwrap();
    assert_eq!(listing.next().await.unwrap().unwrap().key, "a");
    assert!(matches!(listing.next().await, Err(Error::Broken { .. })));

    let problem_line = "{\"type\":\"t\",\"title\":\"Disk\",\"status\":500,\"detail\":\"d\",\"written\":\"no\"}\n";
    fake.dictate(Answer::Whole(200, vec![], format!("{item}{problem_line}").into_bytes()));
    let mut listing = client.list("", false).await.unwrap();
    listing.next().await.unwrap();
    assert!(matches!(listing.next().await, Err(Error::Problem(problem)) if problem.title == "Disk"));
}

#[tokio::test]
async fn problems_keep_what_the_node_said() {
    let fake = Fake::start();
    let client = client(&fake);
    fake.dictate(problem(504, "timeout", "unknown"));
    let Err(Error::Problem(timeout)) = client.put("k", "v").await else { panic!("no problem") };
    assert_eq!((timeout.status, timeout.written), (504, Some(Written::Unknown)));
    assert_eq!(timeout.kind, "urn:outrigger:problem:timeout");
    assert!(timeout.to_string().contains("outcome unknown"), "{timeout}");
    fake.dictate(Answer::Whole(502, vec![], b"<html>".to_vec()));
    let Err(Error::Problem(foreign)) = client.put("k", "v").await else { panic!("no problem") };
    assert_eq!((foreign.status, foreign.written, foreign.detail.as_str()), (502, None, "<html>"));
    fake.dictate(Answer::Whole(204, vec![], vec![]));
    assert!(matches!(client.put("k", "v").await, Err(Error::Unreadable(_))));
}

#[tokio::test]
async fn a_closed_connection_is_opened_again() {
    let fake = Fake::start();
    let client = client(&fake);
    for n in 0..20 {
        fake.dictate(Answer::ThenClose(Box::new(Answer::Whole(200, vec!["etag: \"5\"".to_owned()], vec![n]))));
        assert_eq!(client.get("k").await.unwrap().unwrap().value.as_ref(), [n]);
    }
}

#[tokio::test]
async fn a_write_is_not_sent_twice() {
    let fake = Fake::start();
    let client = client(&fake);
    client.put("k", "1").await.unwrap();
    fake.dictate(Answer::CutOff(Vec::new()));
    assert!(matches!(client.put("k", "2").await, Err(Error::Broken { .. })));
    assert_eq!(fake.seen().len(), 2);
    client.put("k", "3").await.unwrap();
    fake.dictate(Answer::CutOff(Vec::new()));
    assert!(client.get("k").await.unwrap().is_some(), "a read may be sent again");
}

#[tokio::test]
async fn giving_up_does_not_mix_answers_up() {
    let fake = Fake::start();
    fake.set("k", b"right");
    let client = Client::builder(&fake.socket).build();
    client.get("k").await.unwrap();
    fake.dictate(Answer::Never);
    assert!(tokio::time::timeout(Duration::from_millis(50), client.get("wrong")).await.is_err());
    assert_eq!(client.get("k").await.unwrap().unwrap().value, "right");
    assert_eq!(fake.seen().last().unwrap().connection, 1);
}

#[tokio::test]
async fn a_silent_node_is_given_up_on() {
    let fake = Fake::start();
    let client = Client::builder(&fake.socket).answer_within(Duration::from_millis(100)).build();
    fake.dictate(Answer::Never);
    let error = client.get("k").await.unwrap_err();
    assert!(error.is_unavailable() && error.to_string().contains("no answer in 100ms"), "{error}");
}

#[tokio::test]
async fn nobody_there() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("none");
    let error = Client::builder(&socket).build().health().await.unwrap_err();
    assert!(matches!(&error, Error::NotReachable { .. }) && error.is_unavailable());
    assert!(error.to_string().contains(socket.to_str().unwrap()), "{error}");
}

#[tokio::test]
async fn the_clusters_picture() {
    let fake = Fake::start();
    let client = client(&fake);
    assert_eq!(client.cluster().await.unwrap().nodes.len(), 3);
    assert_eq!(client.shards(Some(&Org::parse("acme").unwrap())).await.unwrap()[0].keys, 3);
    assert_eq!(fake.seen()[1].query["org"], "acme");
    assert_eq!(client.health().await.unwrap(), Health::Ready);
    fake.dictate(problem(503, "unhealthy", "no"));
    assert_eq!(client.health().await.unwrap(), Health::Unready("detail of unhealthy".to_owned()));
}
