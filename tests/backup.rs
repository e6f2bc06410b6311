//! Backup and restore on real processes: what was acknowledged anywhere before is in a backup taken through any node,
//! what is restored is what was backed up, and what is no whole backup changes nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test"
)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{Cluster, Node, rows_of, until};
use outrigger::client::Client;
use parking_lot::Mutex;

/// Runs a command against a node; its output.
async fn run(node: &Node, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    command.args(args).arg("--socket").arg(node.socket()).stdin(Stdio::null());
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn assert_exit(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}\n{}", text(&output.stdout), text(&output.stderr));
}

/// A failure of one line that says all of this.
fn assert_refused(output: &Output, code: i32, says: &[&str]) {
    assert_exit(output, code);
    let said = text(&output.stderr);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(says.iter().all(|part| said.contains(part)), "{says:?} of: {said}");
}

fn summary(output: &Output) -> serde_json::Value {
    assert_exit(output, 0);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn client(node: &Node, org: &str, namespace: &str) -> Client {
    Client::builder(node.socket()).shard(org, namespace).unwrap().build()
}

async fn rows(client: &Client) -> BTreeMap<String, Vec<u8>> {
    let mut listing = client.list("", false).await.unwrap();
    let mut rows = BTreeMap::new();
    while let Some(item) = listing.next().await.unwrap() {
        rows.insert(item.key, item.value.unwrap().to_vec());
    }
    rows
}

fn backed_up(file: &Path) -> BTreeMap<String, Vec<u8>> {
    rows_of(file).into_iter().map(|(key, value, _)| (key, value)).collect()
}

fn path(dir: &Path) -> &str {
    dir.to_str().unwrap()
}

/// A cluster with three shards, one of them with a value that is larger than a portion of anything, and its backup.
async fn cluster_and_backup() -> (Cluster, PathBuf) {
    let cluster = Cluster::start(3).await;
    for (n, (org, namespace)) in [("", "default"), ("acme", "pay"), ("acme", "orders")].into_iter().enumerate() {
        let client = client(&cluster.nodes[n], org, namespace);
        for key in 0..300 {
            client.put(&format!("k/{key:03}"), format!("{namespace} {key}")).await.unwrap();
        }
        client.put("large", vec![b'x'; 1 << 20]).await.unwrap();
        client.put("gone", "soon").await.unwrap();
        client.del("gone").await.unwrap();
    }
    let dir = cluster.dir.path().join("backup");
    let done = summary(&run(&cluster.nodes[2], &["backup", path(&dir), "--json"]).await);
    assert_eq!((&done["shards"], &done["keys"]), (&3.into(), &903.into()), "{done}");
    (cluster, dir)
}

/// What each writer had acknowledged, by key: a value that only grows.
type Acknowledged = Arc<Mutex<BTreeMap<String, u64>>>;

async fn write(
    client: Client,
    writer: usize,
    acknowledged: Acknowledged,
    total: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) {
    let mut number = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let key = format!("w{writer}/{}", number % 50);
        if client.put(&key, number.to_string()).await.is_ok() {
            acknowledged.lock().insert(key, number);
            total.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A backup through one node has what another had acknowledged a moment before it began, while all go on writing.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_under_load_has_every_write_acknowledged_before() {
    let cluster = Cluster::start(3).await;
    let (acknowledged, total, stop) =
        (Acknowledged::default(), Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let writers: Vec<_> = (0..9)
        .map(|n| {
            let client = client(&cluster.nodes[n % 3], "acme", &format!("load{}", n % 2));
            tokio::spawn(write(client, n, acknowledged.clone(), total.clone(), stop.clone()))
        })
        .collect();
    for round in 0..6 {
        let before_round = total.load(Ordering::Relaxed);
        until("writes go on", async || total.load(Ordering::Relaxed) > before_round + 500).await;
        let before = acknowledged.lock().clone();
        let dir = cluster.dir.path().join(format!("backup{round}"));
        let done = summary(&run(&cluster.nodes[round % 3], &["backup", path(&dir), "--json"]).await);
        assert_eq!(done["shards"], 2);
        let mut rows = BTreeMap::new();
        for name in ["load0", "load1"] {
            let file = dir.join(format!("acme/{name}.db"));
            let open = rusqlite::Connection::open(&file).unwrap();
            let sound: String = open.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
            assert_eq!(sound, "ok");
            rows.extend(backed_up(&file));
        }
        let beside: Vec<_> = fs::read_dir(dir.join("acme")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(beside.len(), 2, "more than the files themselves: {beside:?}");
        for (key, number) in before {
            let found: Option<u64> = rows.get(&key).map(|value| text(value).parse().unwrap());
            assert!(found >= Some(number), "{key} was acknowledged as {number}; in backup {round} it is {found:?}");
        }
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    for node in &cluster.nodes {
        let left: Vec<_> =
            fs::read_dir(node.data().join(".outrigger")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| !name.to_str().unwrap().starts_with("copy-")), "{left:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_cluster_gets_the_same_rows_and_a_second_run_writes_nothing() {
    let (old, dir) = cluster_and_backup().await;
    let new = Cluster::start(3).await;
    let restore = ["restore", path(&dir), "--yes", "--json"];
    let done = summary(&run(&new.nodes[0], &restore).await);
    assert_eq!((&done["rows"], &done["written"], &done["unchanged"]), (&903.into(), &903.into(), &0.into()), "{done}");
    for (org, namespace) in [("", "default"), ("acme", "pay"), ("acme", "orders")] {
        let wanted = rows(&client(&old.nodes[1], org, namespace)).await;
        assert_eq!(wanted.len(), 301);
        for node in &new.nodes {
            let copy = client(node, org, namespace);
            until("all rows are on every node", async || rows(&copy).await == wanted).await;
        }
    }
    let again = summary(&run(&new.nodes[2], &restore).await);
    assert_eq!((&again["written"], &again["unchanged"]), (&0.into(), &903.into()), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_with_data_of_its_own_keeps_what_the_backup_has_not() {
    let (cluster, dir) = cluster_and_backup().await;
    let pay = client(&cluster.nodes[0], "acme", "pay");
    let other = pay.put("k/000", "other").await.unwrap();
    pay.del("k/001").await.unwrap();
    pay.put("new", "stays").await.unwrap();

    let gaps = ["restore", path(&dir), "--yes", "--json", "--if-absent", "--org", "acme"];
    let done = summary(&run(&cluster.nodes[1], &gaps).await);
    let figures = [&done["rows"], &done["written"], &done["unchanged"], &done["kept"]].map(|n| n.as_u64().unwrap());
    assert_eq!(figures, [602, 1, 600, 1], "{done}");
    assert_eq!(pay.get("k/000").await.unwrap().unwrap().value, "other");

    // One shard, while another client writes to it: quorum writes like any others.
    let all = ["restore", path(&dir), "--yes", "--org", "acme", "--ns", "pay"];
    let (restored, _) = tokio::join!(run(&cluster.nodes[1], &all), pay.put("meanwhile", "too"));
    assert_exit(&restored, 0);
    let told = text(&restored.stderr);
    assert!(told.contains("1 shards, 301 rows") && told.contains("not in the backup stay"), "{told}");
    assert!(text(&restored.stdout).contains("1 written, 300 were there already"), "{}", text(&restored.stdout));
    let reader = cluster.nodes[0].quorum_reader();
    drop(reader);
    until("the restored value is here", async || pay.get("k/000").await.unwrap().unwrap().value == "pay 0").await;
    assert!(pay.get("k/000").await.unwrap().unwrap().upd > other, "a restored value is a new version");
    for key in ["new", "meanwhile", "k/001"] {
        assert!(pay.get(key).await.unwrap().is_some(), "{key}");
    }
    // Nobody is asked, and nothing is assumed.
    assert_exit(&run(&cluster.nodes[1], &["restore", path(&dir)]).await, 2);
    let none = run(&cluster.nodes[1], &["restore", path(&dir), "--yes", "--org", "nobody"]).await;
    assert_refused(&none, 1, &["no shard nobody", "in this backup"]);
}

/// Copies a backup, spoils the copy, and expects it to be refused in one line with nothing changed.
async fn spoilt(cluster: &Cluster, backup: &Path, name: &str, spoil: impl FnOnce(&Path), says: &[&str]) {
    let copy = backup.with_file_name(name);
    assert!(Command::new("cp").arg("-r").arg(backup).arg(&copy).status().unwrap().success());
    spoil(&copy);
    let refused = run(&cluster.nodes[0], &["restore", path(&copy), "--yes"]).await;
    assert_refused(&refused, 1, says);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_whole_backup_is_refused_and_changes_nothing() {
    let (cluster, dir) = cluster_and_backup().await;
    let empty = Cluster::start(1).await;
    let edit = |text: &'static str, by: &'static str| {
        move |dir: &Path| {
            let path = dir.join("manifest.json");
            let manifest = fs::read_to_string(&path).unwrap();
            assert!(manifest.contains(text));
            fs::write(path, manifest.replacen(text, by, 1)).unwrap();
        }
    };
    let flip = |dir: &Path| {
        let path = dir.join("acme/pay.db");
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    spoilt(&empty, &dir, "flipped", flip, &["acme/pay.db", "another hash", "damaged"]).await;
    let cut = |dir: &Path| {
        fs::File::options().write(true).open(dir.join("acme/pay.db")).unwrap().set_len(4096).unwrap();
    };
    spoilt(&empty, &dir, "cut", cut, &["acme/pay.db", "has 4096 bytes"]).await;
    let lose = |dir: &Path| fs::remove_file(dir.join("_/default.db")).unwrap();
    spoilt(&empty, &dir, "missing", lose, &["_/default.db", "is missing"]).await;
    spoilt(&empty, &dir, "later", edit("\"format\": 1", "\"format\": 2"), &["manifest.json", "format 2", "reads 1"])
        .await;
    spoilt(&empty, &dir, "astray", edit("\"acme/pay.db\"", "\"../pay.db\""), &["../pay.db"]).await;
    spoilt(&empty, &dir, "upward", edit("\"namespace\": \"pay\"", "\"namespace\": \"..\""), &["manifest.json"]).await;
    let unfinish = |dir: &Path| fs::remove_file(dir.join("manifest.json")).unwrap();
    spoilt(&empty, &dir, "half", unfinish, &["no manifest.json", "not finished"]).await;
    let garble = |dir: &Path| fs::write(dir.join("manifest.json"), "{").unwrap();
    spoilt(&empty, &dir, "garbled", garble, &["manifest.json", "cannot be read"]).await;
    for (not_one, says) in [(dir.join("manifest.json"), "not a directory"), (dir.join("nowhere"), "No such file")] {
        let refused = run(&empty.nodes[0], &["restore", path(&not_one), "--yes"]).await;
        assert_refused(&refused, 1, &[path(&not_one), says]);
    }
    assert!(empty.nodes[0].client().shards(None).await.unwrap().is_empty(), "something was written");

    // Nor is a directory taken that holds something.
    assert_refused(&run(&cluster.nodes[0], &["backup", path(&dir)]).await, 1, &["is not empty"]);
    let none = cluster.dir.path().join("none");
    let refused = run(&cluster.nodes[0], &["backup", path(&none), "--org", "nobody"]).await;
    assert_refused(&refused, 1, &["no shard nobody"]);
    // What is only asked for is not made: that very question used to make it.
    let nobody = outrigger::types::ShardId::parse("nobody", "none").unwrap();
    assert!(cluster.nodes[0].client().copy(&nobody).await.unwrap().is_none());
    assert!(cluster.nodes[0].client().copyable(None).await.unwrap().shards.len() == 3);
    assert!(!none.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_only_a_local_copy_is_to_be_had() {
    let (mut cluster, dir) = cluster_and_backup().await;
    cluster.nodes[0].kill();
    cluster.nodes[1].kill();
    let node = &cluster.nodes[2];
    until("the others are missed", async || {
        let status = node.client().cluster().await.unwrap();
        status.nodes.iter().filter(|node| node.live).count() == 1
    })
    .await;
    let wanting = cluster.dir.path().join("wanting");
    assert_refused(&run(node, &["backup", path(&wanting)]).await, 69, &["quorum"]);
    assert!(!wanting.join("manifest.json").exists());
    let rescue = cluster.dir.path().join("rescue");
    assert_exit(&run(node, &["backup", path(&rescue), "--consistency", "local"]).await, 0);
    assert_eq!(backed_up(&rescue.join("acme/pay.db")).len(), 301);
    assert!(fs::read_to_string(rescue.join("manifest.json")).unwrap().contains("\"consistency\": \"local\""));
    // A restore says after its time that it could not go on, and why.
    let late = run(node, &["restore", path(&dir), "--yes", "--retry-for", "1s"]).await;
    assert_exit(&late, 69);
    let said = text(&late.stderr);
    assert!(said.contains("tried for 1s") && said.contains("of 903 rows 0 were written"), "{said}");
}

/// The node dies, or the disk that is written to is full: the command says so, and what is there is no backup.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_breaks_off_is_none() {
    let mut cluster = Cluster::start(1).await;
    let client = client(&cluster.nodes[0], "acme", "big");
    for n in 0..96 {
        client.put(&format!("k{n}"), vec![b'x'; 1 << 20]).await.unwrap();
    }
    // A file size limit is a full disk to whoever writes.
    let full = cluster.dir.path().join("full");
    let limited = format!(
        "ulimit -f 20480; trap '' XFSZ; exec {} backup {} --socket {}",
        env!("CARGO_BIN_EXE_outrigger"),
        full.display(),
        cluster.nodes[0].socket().display()
    );
    let limited = tokio::task::spawn_blocking(move || Command::new("bash").arg("-c").arg(limited).output().unwrap());
    assert_refused(&limited.await.unwrap(), 1, &["acme/big.db.partial", "unfinished backup"]);
    assert!(!full.join("manifest.json").exists() && !full.join("acme/big.db").exists());

    let dir = cluster.dir.path().join("killed");
    let mut backup = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    backup.args(["backup", path(&dir), "--socket"]).arg(cluster.nodes[0].socket());
    let backup = backup.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let partial = dir.join("acme/big.db.partial");
    until("the copy is on its way", async || fs::metadata(&partial).is_ok_and(|file| file.len() > 0)).await;
    cluster.nodes[0].kill();
    let ended = tokio::task::spawn_blocking(move || backup.wait_with_output().unwrap()).await.unwrap();
    assert_refused(&ended, 69, &["shard acme/big", "unfinished backup", "remove it"]);
    assert!(!dir.join("manifest.json").exists());
    // The node itself is none the worse.
    cluster.nodes[0].start();
    cluster.nodes[0].ready().await;
    let whole = cluster.dir.path().join("whole");
    assert_exit(&run(&cluster.nodes[0], &["backup", path(&whole)]).await, 0);
    assert_eq!(backed_up(&whole.join("acme/big.db")).len(), 96);
}
