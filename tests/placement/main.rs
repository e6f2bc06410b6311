//! Shards that some of the voters replicate, on real processes: who holds which files, who reads and watches what it does not
//! replicate, and what is told where that cannot be. How they move is in `moving.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test"
)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../voters/load.rs"]
mod load;
mod lost;
mod moving;
#[path = "../common/operator.rs"]
mod operator;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Cluster, Node, PATIENCE, rows_of, until};
use operator::{PROPOSE_TIMEOUT, done, fails_with, members, outrigger, raw, status};
use outrigger::client::{Change, Client, Consistency, Watch};
use outrigger::cluster::membership::Membership;
use outrigger::cluster::status::ShardStatus;
use outrigger::types::{NodeId, ShardId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// The org of all shards here but those of a load.
const ORG: &str = "acme";
/// Keys of each shard at first.
const KEYS: usize = 5;

/// Starts voters, each shard on `factor` of them (0: all), and prepares nodes that are to join by seeds and key alone.
async fn start(voters: usize, observers: usize, factor: usize) -> Cluster {
    let mut cluster = Cluster::prepare_voters(voters + observers, voters);
    for (n, node) in cluster.nodes.iter_mut().enumerate() {
        let config = fs::read_to_string(node.config()).unwrap();
        let config = if n < voters {
            config.replace("[cluster]\n", &format!("[cluster]\nreplication_factor = {factor}\n"))
        } else {
            config.lines().filter(|line| !line.starts_with("voters")).fold(String::new(), |all, line| all + line + "\n")
        };
        fs::write(node.config(), config).unwrap();
        if n < voters {
            node.start();
        }
    }
    for node in &mut cluster.nodes[..voters] {
        node.ready().await;
    }
    cluster
}

fn client(node: &Node, namespace: &str) -> Client {
    Client::builder(node.socket()).shard(ORG, namespace).unwrap().build()
}

/// By number, who replicates a shard of so many voters, as its name says.
fn planned(voters: usize, factor: usize, org: &str, namespace: &str) -> BTreeSet<usize> {
    let names = (0..voters).map(|n| NodeId::parse(&format!("n{n}")).unwrap()).collect();
    let membership = Membership::epoch_one(names).unwrap().with_replication_factor(Some(factor)).unwrap();
    numbers(&membership.replica_names(&ShardId::parse(org, namespace).unwrap()))
}

fn numbers(names: &[NodeId]) -> BTreeSet<usize> {
    names.iter().map(|name| name.as_str()[1..].parse().unwrap()).collect()
}

/// Who does not.
fn outsiders(voters: usize, replicas: &BTreeSet<usize>) -> Vec<usize> {
    (0..voters).filter(|n| !replicas.contains(n)).collect()
}

/// Who replicates each shard of an org that this node holds, as it says itself.
async fn told(node: &Node, org: &str) -> BTreeMap<String, BTreeSet<usize>> {
    let output = done(&outrigger(node, &["--org", org, "shards", "--json"]));
    let shards = output.lines().map(|line| serde_json::from_str::<ShardStatus>(line).unwrap());
    shards.map(|shard| (shard.namespace, numbers(&shard.replicas))).collect()
}

fn file(node: &Node, org: &str, namespace: &str) -> PathBuf {
    node.data().join(org).join(format!("{namespace}.db"))
}

/// The tenants' shards whose files a node has.
fn held(node: &Node) -> BTreeSet<String> {
    let Ok(files) = fs::read_dir(node.data().join(ORG)) else { return BTreeSet::new() };
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names.filter_map(|name| name.strip_suffix(".db").map(str::to_owned)).collect()
}

fn assert_sound(file: &Path) {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let open = rusqlite::Connection::open_with_flags(file, flags).unwrap();
    let sound: String = open.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(sound, "ok", "{}", file.display());
}

fn name(n: usize) -> String {
    format!("s{n}")
}

/// Writes so many shards, each through nodes that replicate it.
async fn fill(cluster: &Cluster, shards: usize, voters: usize, factor: usize) -> Vec<BTreeSet<usize>> {
    let mut placed = Vec::new();
    for n in 0..shards {
        let replicas = planned(voters, factor, ORG, &name(n));
        for key in 0..KEYS {
            let through = *replicas.iter().nth((n + key) % replicas.len()).unwrap();
            client(&cluster.nodes[through], &name(n)).put(&format!("k{key}"), format!("{n} {key}")).await.unwrap();
        }
        placed.push(replicas);
    }
    placed
}

fn filled(n: usize) -> Vec<(String, String)> {
    (0..KEYS).map(|key| (format!("k{key}"), format!("{n} {key}"))).collect()
}

/// All rows that a local list shows.
async fn listed(client: &Client) -> Result<Vec<(String, String)>, outrigger::client::Error> {
    let page = client.page("", None, 10_000, false).await?;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    Ok(page.items.iter().map(|item| (item.key.clone(), text(item.value.as_ref().unwrap()))).collect())
}

/// The rows of a shard's file, as any SQLite program sees them.
fn stored(node: &Node, namespace: &str) -> Vec<(String, String)> {
    let rows = rows_of(&file(node, ORG, namespace));
    rows.into_iter().map(|(key, value, _)| (key, String::from_utf8(value).unwrap())).collect()
}

/// Waits until exactly these nodes have the shard's file, with these rows.
async fn is_exactly_on(cluster: &Cluster, nodes: &BTreeSet<usize>, n: usize, rows: &[(String, String)]) {
    let have = || cluster.nodes.iter().enumerate().filter(|(_, node)| held(node).contains(&name(n))).map(|(n, _)| n);
    until(&format!("{} is on {nodes:?} alone", name(n)), async || have().collect::<BTreeSet<_>>() == *nodes).await;
    for node in nodes {
        let node = &cluster.nodes[*node];
        until(&format!("{} has the rows of {}", node.name, name(n)), async || stored(node, &name(n)) == rows).await;
        assert_sound(&file(node, ORG, &name(n)));
    }
}

/// The names of namespaces, over all shards of the org.
fn org_list(node: &Node) -> String {
    raw(node, &format!("GET /v1/kv/{ORG}?prefix=ns/ HTTP/1.1\r\nhost: o\r\nconnection: close\r\n\r\n"))
}

/// Reads on until this was sent.
async fn hears(stream: &mut tokio::net::UnixStream, what: &str) {
    let mut heard = Vec::new();
    let reads = async {
        while !String::from_utf8_lossy(&heard).contains(what) {
            assert!(stream.read_buf(&mut heard).await.unwrap() > 0, "it ended");
        }
    };
    let is_heard = tokio::time::timeout(PATIENCE, reads).await.is_ok();
    assert!(is_heard, "{what:?} was not told, but {:?}", String::from_utf8_lossy(&heard));
}

async fn next(watch: &mut Watch) -> Change {
    tokio::time::timeout(PATIENCE, watch.next()).await.expect("a change is told").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_shard_is_on_its_replicas_alone_and_others_read_and_watch_it() {
    const SHARDS: usize = 30;
    let mut cluster = start(5, 0, 3).await;
    let placed = fill(&cluster, SHARDS, 5, 3).await;
    assert_eq!(placed.iter().flatten().collect::<BTreeSet<_>>().len(), 5, "all have something");
    for (n, replicas) in placed.iter().enumerate() {
        is_exactly_on(&cluster, replicas, n, &filled(n)).await;
    }
    for (n, node) in cluster.nodes.iter().enumerate() {
        let expected = placed.iter().enumerate().filter(|(_, replicas)| replicas.contains(&n));
        let expected = expected.map(|(shard, replicas)| (name(shard), replicas.clone()));
        assert_eq!(told(node, ORG).await, expected.collect(), "{}", node.name);
    }
    // An outsider reads: all at once, and what comes later.
    let (replica, outsider) = (*placed[0].first().unwrap(), outsiders(5, &placed[0])[0]);
    let (writes, reads) = (client(&cluster.nodes[replica], "s0"), client(&cluster.nodes[outsider], "s0"));
    assert_eq!(listed(&reads).await.unwrap(), filled(0));
    writes.put("k0", "later").await.unwrap();
    writes.del("k1").await.unwrap();
    until("an outsider sees changes", async || {
        let value = reads.get("k0").await.unwrap().unwrap().value;
        value == "later" && reads.get("k1").await.unwrap().is_none()
    })
    .await;
    // What it writes itself it reads at once.
    reads.put("k2", "its own").await.unwrap();
    assert_eq!(reads.get("k2").await.unwrap().unwrap().value, "its own");
    // Another watches, and yet another reads through a quorum.
    let (replica, outsider) = (*placed[1].first().unwrap(), outsiders(5, &placed[1])[0]);
    let writes = client(&cluster.nodes[replica], "s1");
    let mut watch = client(&cluster.nodes[outsider], "s1").watch("", None).await.unwrap();
    assert_eq!(next(&mut watch).await, Change::Snapshot);
    for (key, value) in filled(1) {
        let put = next(&mut watch).await;
        assert!(matches!(&put, Change::Put { key: k, value: v, .. } if *k == key && *v == value), "{put:?}");
    }
    assert_eq!(next(&mut watch).await, Change::SnapshotEnd);
    for round in 0..20 {
        writes.put("seen", format!("{round}")).await.unwrap();
        let put = next(&mut watch).await;
        assert!(matches!(&put, Change::Put { value, .. } if *value == format!("{round}")), "{round}: {put:?}");
    }
    writes.del("seen").await.unwrap();
    assert!(matches!(next(&mut watch).await, Change::Del { key, .. } if key == "seen"));
    // Redis' notifications, too.
    let (replica, outsider) = (*placed[3].first().unwrap(), outsiders(5, &placed[3])[0]);
    let mut stream = tokio::net::UnixStream::connect(cluster.nodes[outsider].socket()).await.unwrap();
    let asked =
        "*3\r\n$4\r\nAUTH\r\n$7\r\nacme/s3\r\n$1\r\np\r\n*2\r\n$9\r\nSUBSCRIBE\r\n$19\r\n__keyspace@0__:told\r\n";
    stream.write_all(asked.as_bytes()).await.unwrap();
    hears(&mut stream, "subscribe").await;
    client(&cluster.nodes[replica], "s3").put("told", "x").await.unwrap();
    hears(&mut stream, "set\r\n").await;
    let outsider = outsiders(5, &placed[2])[0];
    let quorum = Client::builder(cluster.nodes[outsider].socket()).shard(ORG, "s2").unwrap();
    let quorum = quorum.consistency(Consistency::Quorum).build();
    assert_eq!(quorum.get("k3").await.unwrap().unwrap().value, "2 3");
    // A copy outlives its node's death, and what was missed meanwhile comes to it.
    let outsider = outsiders(5, &placed[0])[0];
    cluster.nodes[outsider].kill();
    let replica = *placed[0].first().unwrap();
    client(&cluster.nodes[replica], "s0").put("k3", "missed").await.unwrap();
    cluster.nodes[outsider].start();
    cluster.nodes[outsider].ready().await;
    let reads = client(&cluster.nodes[outsider], "s0");
    until("what was missed is there", async || reads.get("k3").await.unwrap().unwrap().value == "missed").await;
    // Nobody else got any of these.
    for (n, replicas) in placed.iter().enumerate().skip(4) {
        is_exactly_on(&cluster, replicas, n, &filled(n)).await;
    }
    let mut users = placed[0].clone();
    users.insert(outsider);
    let rows = listed(&reads).await.unwrap();
    is_exactly_on(&cluster, &users, 0, &rows).await;
    // Of a shard that nobody ever wrote there is nothing, also for outsiders.
    let outsider = outsiders(5, &planned(5, 3, ORG, "never"))[0];
    assert!(listed(&client(&cluster.nodes[outsider], "never")).await.unwrap().is_empty());
    assert!(!file(&cluster.nodes[outsider], ORG, "never").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_observer_holds_what_its_application_uses_and_reads_that_alone() {
    const SHARDS: usize = 8;
    let mut cluster = start(3, 1, 0).await;
    fill(&cluster, SHARDS, 3, 3).await;
    cluster.nodes[3].start();
    cluster.nodes[3].ready().await;
    members(&cluster.nodes[0], &["n3"]).await;
    let observer = &cluster.nodes[3];
    assert!(held(observer).is_empty(), "{:?}", held(observer));
    assert_eq!(listed(&client(observer, "s0")).await.unwrap(), filled(0), "all of it at once");
    assert_eq!(held(observer), BTreeSet::from(["s0".to_owned()]));
    let writes = client(&cluster.nodes[1], "s0");
    let mut rows = filled(0);
    rows[0].1 = "later".to_owned();
    writes.put("k0", "later").await.unwrap();
    until("an observer sees changes", async || listed(&client(observer, "s0")).await.unwrap() == rows).await;
    // What it writes comes to the others, and makes it a user of that shard.
    client(observer, "s1").put("k9", "by an observer").await.unwrap();
    let mut written = filled(1);
    written.push(("k9".to_owned(), "by an observer".to_owned()));
    until("its own writes are there, and what was there before", async || {
        listed(&client(observer, "s1")).await.unwrap() == written
    })
    .await;
    // While its peers stand still it says so, and does not keep anybody for long.
    for voter in &cluster.nodes[..3] {
        voter.signal(common::Signal::STOP);
    }
    let asked = std::time::Instant::now();
    let error = listed(&client(observer, "s2")).await.unwrap_err();
    eprintln!("peers that stand still: {:?}: {error}", asked.elapsed());
    assert!(error.is_unavailable() && error.to_string().contains("no copy of acme/s2"), "{error}");
    let error = client(observer, "s2").get("k0").await.unwrap_err();
    eprintln!("peers that stand still: {:?}: {error}", asked.elapsed());
    assert!(error.is_unavailable() && error.to_string().contains("no copy of acme/s2"), "{error}");
    assert!(asked.elapsed() < 2 * PROPOSE_TIMEOUT + Duration::from_secs(2), "{:?}", asked.elapsed());
    assert_eq!(listed(&client(observer, "s0")).await.unwrap(), rows);
    for voter in &cluster.nodes[..3] {
        voter.signal(common::Signal::CONT);
    }
    cluster.nodes[3].kill();
    for n in 0..3 {
        cluster.nodes[n].kill();
    }
    cluster.nodes[3].start();
    let observer = &cluster.nodes[3];
    until("it reads its copy all alone", async || listed(&client(observer, "s0")).await.is_ok_and(|all| all == rows))
        .await;
    assert_eq!(client(observer, "s1").get("k9").await.unwrap().unwrap().value, "by an observer");
    let asked = std::time::Instant::now();
    let error = client(observer, "s2").get("k0").await.unwrap_err();
    eprintln!("nobody there: {:?}: {error}", asked.elapsed());
    assert!(asked.elapsed() < Duration::from_secs(5));
    // What it takes on its own it shows, of whichever shard, and hands on later.
    let alone = Client::builder(observer.socket()).shard(ORG, "s3").unwrap().consistency(Consistency::Local).build();
    alone.put("own", "x").await.unwrap();
    assert_eq!(alone.get("own").await.unwrap().unwrap().value, "x");
    assert!(alone.get("k0").await.unwrap_err().is_unavailable());
    let listing = org_list(observer);
    assert!(listing.starts_with("HTTP/1.1 503") && listing.contains("0 of 3 voters"), "not all of it: {listing}");
    let said = error.to_string();
    assert!(said.contains("no copy of acme/s2") && error.is_unavailable(), "{said}");
    for node in &mut cluster.nodes[..3] {
        node.start();
    }
    for node in &mut cluster.nodes {
        node.ready().await;
    }
    let observer = &cluster.nodes[3];
    assert_eq!(listed(&client(observer, "s2")).await.unwrap(), filled(2));
    client(&cluster.nodes[2], "s0").put("k0", "later still").await.unwrap();
    until("it goes on following", async || {
        client(observer, "s0").get("k0").await.unwrap().unwrap().value == "later still"
    })
    .await;
    let others = client(&cluster.nodes[2], "s3");
    until("others have what it took alone", async || others.get("own").await.unwrap().is_some()).await;
    until("it has all of that shard", async || listed(&alone).await.is_ok_and(|rows| rows.len() == KEYS + 1)).await;
    assert_eq!(held(observer), (0..4).map(name).collect());
    // A list of the whole org has the shards that it never used before, too.
    for n in [4, 5] {
        client(&cluster.nodes[n % 3], &name(n)).put(&format!("ns/{n}"), "x").await.unwrap();
    }
    let listing = org_list(observer);
    assert!(listing.contains(r#""ns/4""#) && listing.contains(r#""ns/5""#), "{listing}");
    for n in 0..SHARDS {
        assert_sound(&file(observer, ORG, &name(n)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_through_a_node_that_replicates_nothing_of_it_has_all_rows() {
    let cluster = start(5, 0, 3).await;
    let placed = fill(&cluster, 12, 5, 3).await;
    let dir = cluster.dir.path().join("backup");
    let outsider = outsiders(5, &placed[4])[1];
    done(&outrigger(&cluster.nodes[outsider], &["--org", ORG, "backup", dir.to_str().unwrap()]));
    for n in 0..placed.len() {
        let copy = dir.join(ORG).join(format!("{}.db", name(n)));
        let rows: Vec<_> =
            rows_of(&copy).into_iter().map(|(key, value, _)| (key, String::from_utf8(value).unwrap())).collect();
        assert_eq!(rows, filled(n), "{}", copy.display());
        assert_sound(&copy);
    }
    // Nobody else came to hold more for that.
    for (n, replicas) in placed.iter().enumerate() {
        let with_it = replicas.iter().copied().chain([outsider]).collect();
        is_exactly_on(&cluster, &with_it, n, &filled(n)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_placed_so_is_refused_and_changes_nothing() {
    let mut cluster = start(4, 1, 3).await;
    cluster.nodes[4].start();
    cluster.nodes[4].ready().await;
    members(&cluster.nodes[0], &["n4"]).await;
    let before = status(&cluster.nodes[0]).await;
    let refused = |n: usize, args: &[&str], code, part| fails_with(&outrigger(&cluster.nodes[n], args), code, part);
    let migrate =
        |to: &'static str| ["--org", ORG, "migrate", "--namespace", "s0", "--to", to].into_iter().collect::<Vec<_>>();
    refused(0, &migrate("nobody"), 1, "nobody is no voter (voters: n0, n1, n2, n3)");
    refused(1, &migrate("n4"), 1, "n4 is no voter");
    refused(2, &migrate("n0,n1,n2,n3"), 1, "4 nodes are named, and each shard has 3 replicas");
    refused(2, &migrate("n0,n0"), 2, "n0");
    refused(2, &migrate("no/name"), 2, "no/name");
    refused(0, &["--org", ORG, "migrate", "--namespace", "s0"], 2, "--to");
    refused(0, &["--org", ORG, "migrate", "--namespace", "s0", "--to", "n1", "--back"], 2, "--back");
    let system = ["--org", "outrigger.system", "migrate", "--namespace", "cluster", "--to", "n1"];
    refused(0, &system, 2, "outrigger.system");
    refused(0, &["cluster", "replication-factor", "0"], 2, "0");
    refused(0, &["cluster", "replication-factor", "some"], 2, "some");
    refused(0, &["cluster", "replication-factor", "256"], 2, "256");
    let back = ["--org", ORG, "migrate", "--namespace", "s0", "--back"];
    assert!(done(&outrigger(&cluster.nodes[0], &back)).contains("epoch 1"), "it is there");
    assert!(done(&outrigger(&cluster.nodes[3], &["cluster", "replication-factor", "3"])).contains("epoch 1"));
    let after = status(&cluster.nodes[0]).await;
    assert_eq!((before.epoch, before.replication_factor, &before.pins), (1, Some(3), &Vec::new()));
    assert_eq!((after.epoch, after.replication_factor, after.pins), (1, Some(3), Vec::new()));
    // Where every voter has every shard, none can be moved.
    let everywhere = start(3, 0, 0).await;
    fails_with(&outrigger(&everywhere.nodes[0], &migrate("n1")), 1, "every voter replicates every shard");
}
