//! What the kernel was asked to do, as it saw it: when something is acknowledged, nothing that it rests on is un-synced.
//!
//! A workload runs in a process of its own under `strace`, and says after each acknowledgement which files that one rests
//! on. Skipped, with a line that says so, where `strace` is not installed or may not trace.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "what a test's helpers cannot read is a failure of the test"
)]

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use outrigger::replication::journal::{Journal, JournalConfig};
use outrigger::replication::local::LocalReplicator;
use outrigger::replication::register::{Address, Entry, Lineage, Lsn, Record};
use outrigger::store::Manager;
use outrigger::store::replicator::{Frame, Op, Subscriber};
use outrigger::types::{Ballot, Key, ShardId, Value};

/// Names the directory of the workload; set in its own process alone.
const WORKLOAD: &str = "OUTRIGGER_TEST_WORKLOAD";

fn shard() -> ShardId {
    ShardId::parse("acme", "orders").unwrap()
}

/// Says that something is acknowledged that rests on these files.
fn acknowledged(rests_on: &str) {
    std::io::stderr().write_all(format!("ACKNOWLEDGED {rests_on} \n").as_bytes()).unwrap();
}

fn journal_workload(dir: &Path) {
    let open = || {
        let config = JournalConfig { segment_bytes: 16_384, ..JournalConfig::at(dir) };
        Journal::open(config, 1).unwrap().0
    };
    let mut journal = open();
    for n in 0..40 {
        let op = Op::Put(Value::from(vec![7; 3_000]));
        let record = Record { ballot: Ballot(n + 1), upd: Ballot(n + 1), op, lineage: Lineage::default() };
        let address = Address { shard: shard(), key: Key::parse("k").unwrap() };
        journal.append(&[Entry::Accepted(address, record)], Lsn(1)).unwrap();
        acknowledged(".outrigger");
        if n % 13 == 0 {
            let before = journal.next_number();
            journal.rotate(0).unwrap();
            journal.append(&[Entry::Ceiling(Ballot(100))], Lsn(1)).unwrap();
            journal.drop_before(before).unwrap();
            acknowledged(".outrigger");
            drop(journal);
            journal = open();
            acknowledged(".outrigger");
        }
    }
}

fn store_workload(dir: &Path) {
    let manager = Manager::new(dir).unwrap();
    for round in 0..4 {
        for n in 0..20 {
            let (key, upd) = (Key::parse(&format!("k{n}")).unwrap(), Ballot(round * 100 + n + 1));
            let op = Op::Put(Value::from(vec![7; 3_000]));
            Subscriber::on_commit(&*manager, &Frame { shard: shard(), seq: 0, key, op, upd, ballot: upd });
        }
        manager.sync_all().unwrap();
        acknowledged("data/acme");
    }
    // Where no journal keeps what is accepted, each write waits for its file.
    manager.with_replicator(LocalReplicator::new(&manager, outrigger::clock::OsClock::shared()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for _ in 0..5 {
            Arc::clone(&manager).get(&shard()).await.unwrap().put("k", "v").await.unwrap();
            acknowledged("data/acme");
        }
    });
}

/// The workload's own process; as a test of its own it does nothing.
#[test]
fn workload() {
    let Some(dir) = std::env::var_os(WORKLOAD) else { return };
    journal_workload(Path::new(&dir));
    store_workload(Path::new(&dir));
}

#[test]
fn what_is_acknowledged_was_synced() {
    let dir = tempfile::tempdir().unwrap();
    let (data, trace) = (dir.path().join("new").join("data"), dir.path().join("trace"));
    let calls =
        "trace=openat,creat,write,writev,pwrite64,pwritev,fallocate,ftruncate,fsync,fdatasync,unlink,rename,mkdir";
    let ran = Command::new("strace")
        .args(["-f", "-y", "-s", "64", "-e", calls, "-o"])
        .arg(&trace)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "workload", "--nocapture", "--test-threads=1"])
        .env(WORKLOAD, &data)
        .output();
    let trace = std::fs::read_to_string(&trace).unwrap_or_default();
    match ran {
        Ok(ran) if trace.contains("ACKNOWLEDGED") => assert!(ran.status.success(), "{ran:?}"),
        other => return eprintln!("skipped: strace is not installed, or may not trace: {other:?}"),
    }
    let mut disk = Unsynced::default();
    trace.lines().for_each(|line| disk.take(line, data.parent().unwrap().parent().unwrap()));
    assert!(disk.acknowledged > 50, "only {} acknowledgements", disk.acknowledged);
    assert!(disk.syncs > 100, "only {} syncs", disk.syncs);
}

/// What was written and not synced, by path; new entries count as writes to their directory.
#[derive(Default)]
struct Unsynced {
    dirty: HashSet<String>,
    /// Calls that were interrupted by another thread's line: the path, by process.
    unfinished: HashMap<String, String>,
    seen: HashSet<String>,
    acknowledged: usize,
    syncs: usize,
}

impl Unsynced {
    fn take(&mut self, line: &str, base: &Path) {
        let Some((process, call)) = line.split_once(' ') else { return };
        let call = call.trim_start();
        if call.contains("ACKNOWLEDGED") {
            self.acknowledged += 1;
            let rests_on = call.split("ACKNOWLEDGED ").nth(1).unwrap().split(' ').next().unwrap();
            let is_needed = |path: &&String| path.contains(rests_on) || !path.contains("/data/");
            let missed: Vec<_> = self.dirty.iter().filter(is_needed).collect();
            assert!(missed.is_empty(), "acknowledged with these un-synced: {missed:?}");
        } else if call.starts_with("<... f") && call.contains("sync resumed>") {
            let path = self.unfinished.remove(process);
            path.into_iter().for_each(|path| self.synced(&path));
        } else if call.starts_with("fsync(") || call.starts_with("fdatasync(") {
            let path = between(call, '<', '>').to_owned();
            if call.contains("<unfinished") {
                self.unfinished.insert(process.to_owned(), path);
            } else {
                self.synced(&path);
            }
        } else if ["write", "pwrite", "fallocate(", "ftruncate("].iter().any(|name| call.starts_with(name)) {
            self.wrote(between(call, '<', '>'), base);
        } else if ["openat(", "mkdir(", "rename(", "unlink("].iter().any(|name| call.starts_with(name)) {
            let named = call.rsplit('"').nth(1).unwrap_or_default();
            let is_new = call.contains("O_CREAT") && !call.contains(" = -1") && self.seen.insert(named.to_owned());
            let is_change = !call.starts_with("openat(") && !call.contains(" = -1");
            if is_new || is_change {
                self.wrote(&Path::new(named).parent().unwrap_or(base).to_string_lossy(), base);
            }
        }
    }

    fn wrote(&mut self, path: &str, base: &Path) {
        // The index of a shard's log is memory, and a lock's file means nothing once the process is gone.
        if path.starts_with(base.to_str().unwrap()) && !path.ends_with("-shm") && !path.ends_with("/trace") {
            self.dirty.insert(path.to_owned());
        }
    }

    fn synced(&mut self, path: &str) {
        self.syncs += 1;
        self.dirty.remove(path);
    }
}

fn between(text: &str, from: char, to: char) -> &str {
    let after = text.split_once(from).map_or("", |(_, after)| after);
    after.split_once(to).map_or("", |(inside, _)| inside)
}
