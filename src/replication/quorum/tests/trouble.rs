//! Restarts, full disks, locked files and connections at the wrong moment.

use super::*;

/// A commit that reached the shard file before its word reached the journal left the record pending after a restart:
/// for good, and a few hundred of those kept every other open record from being settled.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_shard_file_holds_is_not_pending_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let record = |n: i64| Record {
        ballot: Ballot(n << 12),
        upd: Ballot(n << 12),
        op: Op::Put(Value::from("v")),
        lineage: Lineage::default(),
    };
    let address = |n: i64| Address { shard: shard(), key: key(&format!("k{n}")) };
    let config = JournalConfig { segment_bytes: 1 << 20, durability: Durability::Os, ..JournalConfig::at(dir.path()) };
    let (mut journal, _) = Journal::open(config, 7).unwrap();
    let entries: Vec<_> = (1..600).map(|n| Entry::Accepted(address(n), record(n))).collect();
    journal.append(&entries, Lsn(600)).unwrap();
    drop(journal);
    let manager = Manager::with_config(StoreConfig::at(dir.path()), OsClock::shared()).unwrap();
    for n in 1..590 {
        let (key, Record { ballot, upd, op, .. }) = (address(n).key, record(n));
        manager.on_commit(&Frame { shard: shard(), seq: 1, key, op, upd, ballot });
    }
    manager.close().await.unwrap();
    let node = Node::start(&Network::new(), dir.path(), "a", &["a"]).await;
    node.ready().await;
    node.status_is("nothing pending", |status| status.pending == 0).await;
    node.has("k599", "v").await;
    node.stop().await;
}

/// Another program that held a lock on one shard file while it was being opened made the node stop voting for good.
#[tokio::test(flavor = "multi_thread")]
async fn a_shard_file_locked_by_another_program_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let only = Node::start(&Network::new(), dir.path(), "a", &["a"]).await;
    only.accepted("k", put("v")).await;
    only.stop().await;
    let again = Node::start(&Network::new(), dir.path(), "a", &["a"]).await;
    again.ready().await;
    let other = ShardId::parse("acme", "other").unwrap();
    let path = again.manager.shard_path(&other);
    let locker = rusqlite::Connection::open(path).unwrap();
    locker.execute_batch("CREATE TABLE t(x); BEGIN EXCLUSIVE").unwrap();
    let timeout = Some(Duration::from_secs(8));
    let proposal = Proposal { shard: other, key: key("k"), update: put("v"), timeout };
    let refused = again.replicator.propose(proposal.clone()).await;
    assert!(matches!(refused, Decision::Reject(Rejection::Busy(_))), "{refused:?}");
    assert_eq!(again.replicator.status().barred, None);
    locker.execute_batch("COMMIT").unwrap();
    drop(locker);
    let accepted = again.replicator.propose(proposal).await;
    assert!(matches!(accepted, Decision::Accept(_)), "{accepted:?}");
    again.accepted("k", put("w")).await;
    again.stop().await;
}

/// A file system of its own, gone with the test.
struct SmallDisk(TempDir);

impl SmallDisk {
    /// None where this user may not mount.
    fn mount(size: &str) -> Option<Self> {
        let disk = Self(tempfile::tempdir().unwrap());
        let options = format!("size={size}");
        let mut mount = std::process::Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(disk.0.path()).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(disk)
    }

    fn fill(&self) -> std::path::PathBuf {
        use std::io::Write;
        let path = self.0.path().join("ballast");
        let mut ballast = std::fs::File::options().create(true).append(true).open(&path).unwrap();
        while ballast.write_all(&[1; 4096]).is_ok() {}
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// What the others chose meanwhile was fetched and kept in memory by a node whose disk was full, without end; and such
/// a node could not be stopped.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_neither_fills_the_memory_nor_holds_up_the_end() {
    let Some(disk) = SmallDisk::mount("24m") else {
        eprintln!("not allowed to mount a tmpfs here: a full disk was not tried");
        return;
    };
    let network = Network::new();
    let dirs: Vec<_> = NAMES.iter().map(|_| tempfile::tempdir().unwrap()).collect();
    let paths = [dirs[0].path(), dirs[1].path(), disk.0.path()];
    let mut nodes = Vec::new();
    for (name, path) in NAMES.iter().zip(paths) {
        nodes.push(Node::start(&network, path, name, &NAMES).await);
    }
    let cluster = Cluster { network, grace: GRACE, dirs, nodes };
    (0..NAMES.len()).for_each(|n| cluster.dial(n));
    let [first, _, small] = &cluster.nodes[..] else { panic!("three nodes") };
    first.ready().await;
    small.ready().await;
    first.accepted("k", put("v")).await;
    small.has("k", "v").await;
    let ballast = disk.fill();
    let big = Update::put(Value::from(vec![b'x'; 40 * 1024]));
    for n in 0..150 {
        first.accepted(&format!("k{n}"), big.clone()).await;
    }
    small.status_is("full", |status| status.full.is_some()).await;
    let held = small.replicator.status().pending;
    assert!(held < 30, "{held} records wait in memory for a full disk");
    assert!(matches!(small.update("k", Update::read()).await, Decision::Accept(_)), "reads go on");
    std::fs::remove_file(&ballast).unwrap();
    small.status_is("room", |status| status.full.is_none()).await;
    small.ready().await;
    for n in 0..150 {
        let name = format!("k{n}");
        until(&name, async || small.local(&name).await.is_some()).await;
    }
    // What the journal gives up by and by, once its frames are in their files, makes room again.
    let mut n = 0;
    until("full again", async || {
        disk.fill();
        first.accepted(&format!("m{n}"), big.clone()).await;
        n += 1;
        small.replicator.status().full.is_some()
    })
    .await;
    let closed = tokio::time::timeout(PATIENCE / 4, small.replicator.close()).await;
    assert!(closed.is_ok(), "a full disk holds up the end");
}

/// A thousand long keys at once made a request that was too large to send: the node never was in step again.
#[tokio::test(flavor = "multi_thread")]
async fn long_keys_are_fetched_in_parts() {
    let cluster = Cluster::start().await;
    cluster.isolate(2);
    cluster.nodes[0].status_is("two", |status| status.reachable == 2).await;
    let long = |n: usize| format!("{n:02}{}", "k".repeat(crate::types::KEY_BYTES_LIMIT - 2));
    for n in 0..20 {
        cluster.nodes[0].accepted(&long(n), put("v")).await;
    }
    cluster.rejoin(2);
    let late = &cluster.nodes[2];
    late.status_is("in step with both", |status| status.peers.iter().all(|peer| peer.in_step)).await;
    for n in 0..20 {
        assert!(late.local(&long(n)).await.is_some(), "{n} was missed");
    }
}

/// Rows were compared with a node that had not noticed its peer yet, and so told it nothing of what was chosen during
/// that moment: the peer was "in step" without it, until it connected again.
#[tokio::test(flavor = "multi_thread")]
async fn rows_are_not_compared_with_who_has_not_noticed_us() {
    let network = Network::new();
    let dirs: Vec<_> = NAMES.iter().map(|_| tempfile::tempdir().unwrap()).collect();
    let (notice, noticed) = oneshot::channel::<()>();
    let late = |mut events: mpsc::Receiver<Event>| {
        let (forward, forwarded) = mpsc::channel(64);
        tokio::spawn(async move {
            let first = events.recv().await.unwrap();
            let _ = noticed.await;
            forward.send(first).await.unwrap();
            while let Some(event) = events.recv().await {
                let _ = forward.send(event).await;
            }
        });
        forwarded
    };
    let slow = Node::start_behind(&network, dirs[0].path(), "a", &NAMES, 0, late).await;
    let quick = Node::start(&network, dirs[1].path(), "b", &NAMES).await;
    quick.transport.dial(slow.transport.local_addr());
    quick.status_is("connected", |status| status.peers[0].live).await;
    let third = Node::start(&network, dirs[2].path(), "c", &NAMES).await;
    third.transport.dial(quick.transport.local_addr());
    quick.status_is("in step with c", |status| status.peers[1].in_step).await;
    assert!(!quick.replicator.status().peers[0].in_step, "a does not know b");
    notice.send(()).unwrap();
    quick.status_is("in step with a", |status| status.peers[0].in_step).await;
}

/// A clock that was set back by an hour made a node that is the only voter refuse its own ballots for that hour.
#[tokio::test(flavor = "multi_thread")]
async fn one_node_alone_follows_its_own_clock() {
    let dir = tempfile::tempdir().unwrap();
    let config = JournalConfig { segment_bytes: 1 << 20, durability: Durability::Os, ..JournalConfig::at(dir.path()) };
    let (mut journal, _) = Journal::open(config, 7).unwrap();
    let hour = i64::try_from(Duration::from_secs(3600).as_nanos()).unwrap();
    journal.append(&[Entry::Ceiling(Ballot(OsClock::shared().now().wall + hour))], Lsn(1)).unwrap();
    drop(journal);
    let only = Node::start(&Network::new(), dir.path(), "a", &["a"]).await;
    only.ready().await;
    only.accepted("k", put("v")).await;
    only.accepted("k", Update::read()).await;
    only.stop().await;
}
