//! What one synced batch of the journal costs, next to a bare write and `fdatasync` of the same bytes in the same run.
//! Run with `cargo bench --bench journal`; the disk is the one that holds the target directory.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::large_futures, reason = "a bench")]

use std::fs::File;
use std::os::unix::fs::FileExt;

use divan::Bencher;
use outrigger::replication::journal::{Journal, JournalConfig};
use outrigger::replication::register::{Address, Entry, Lineage, Lsn, Record};
use outrigger::store::replicator::Op;
use outrigger::types::{Ballot, Key, ShardId, Value};

fn main() {
    divan::main();
}

const BATCHES: [usize; 3] = [1, 16, 256];
const VALUE_BYTES: usize = 256;

fn entry(ballot: i64) -> Entry {
    let shard = ShardId::parse("acme", "orders").unwrap();
    let address = Address { shard, key: Key::parse(&format!("order/{ballot:020}")).unwrap() };
    let op = Op::Put(Value::from(vec![b'v'; VALUE_BYTES]));
    Entry::Accepted(address, Record { ballot: Ballot(ballot), upd: Ballot(ballot), op, lineage: Lineage::default() })
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

#[divan::bench(args = BATCHES, sample_count = 50)]
fn append(bencher: Bencher, entries: usize) {
    let dir = directory();
    let config = JournalConfig { segment_bytes: 64 << 20, ..JournalConfig::at(dir.path()) };
    let (mut journal, _) = Journal::open(config, 1).unwrap();
    let batch: Vec<Entry> = (0..entries).map(|n| entry(n as i64)).collect();
    bencher.counter(entries).bench_local(|| journal.append(&batch, Lsn(1)).unwrap());
}

#[divan::bench(args = BATCHES, sample_count = 50)]
fn bare_write_and_sync(bencher: Bencher, entries: usize) {
    let dir = directory();
    let file = File::create(dir.path().join("bare")).unwrap();
    let bytes = vec![7; entries * (VALUE_BYTES + 80)];
    file.write_all_at(&vec![0; 64 << 20], 0).unwrap();
    file.sync_all().unwrap();
    let mut at = 0;
    bencher.counter(entries).bench_local(|| {
        file.write_all_at(&bytes, at).unwrap();
        file.sync_data().unwrap();
        at = (at + bytes.len() as u64) % (60 << 20);
    });
}
