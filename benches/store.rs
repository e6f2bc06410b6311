//! What a shard costs: `cargo bench --bench store`.

#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;

use divan::Bencher;
use divan::counter::ItemsCount;
use outrigger::store::replicator::{Frame, Op, Subscriber};
use outrigger::store::{Manager, PageQuery, Shard};
use outrigger::types::{Ballot, Key, ShardId, Value};

const KEYS: i64 = 100_000;
const VALUE_BYTES: usize = 256;

fn main() {
    divan::main();
}

struct Store {
    _dir: tempfile::TempDir,
    manager: Arc<Manager>,
    shard: Arc<Shard>,
    ballot: i64,
}

fn key(n: i64) -> Key {
    // Spread over the key space, as hashed or random keys are.
    Key::parse(&format!("wf/bench/{:016x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15_u64.cast_signed()))).unwrap()
}

impl Store {
    fn new(keys: i64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _entered = runtime.enter();
        let manager = Manager::new(dir.path()).unwrap();
        manager.with_replicator(Arc::new(Journal));
        let shard = manager.open(&ShardId::parse("", "bench").unwrap()).unwrap();
        let mut store = Self { _dir: dir, manager, shard, ballot: 0 };
        store.commit(0..keys);
        store.manager.sync_all().unwrap();
        store
    }

    fn commit(&mut self, keys: std::ops::Range<i64>) {
        let value = Value::from(vec![b'v'; VALUE_BYTES]);
        for n in keys {
            self.ballot += 1;
            let (upd, ballot) = (Ballot(self.ballot), Ballot(self.ballot));
            let frame =
                Frame { shard: self.shard.id().clone(), seq: 0, key: key(n), op: Op::Put(value.clone()), upd, ballot };
            self.manager.on_commit(&frame);
        }
    }
}

/// Stands for a replicator that carries durability itself, so that files are written without a sync per batch.
struct Journal;

#[async_trait::async_trait]
impl outrigger::store::replicator::Replicator for Journal {
    async fn propose(&self, _: outrigger::store::replicator::Proposal) -> outrigger::store::replicator::Decision {
        outrigger::store::replicator::Decision::Timeout
    }
    fn subscribe(&self, _: Arc<dyn Subscriber>) {}
    fn is_durable(&self) -> bool {
        true
    }
    async fn close(&self) {}
}

/// Frames from commit to synced file, rewriting keys among 100,000.
#[divan::bench(args = [1, 64, 1024, 8192], max_time = 3)]
fn apply(bencher: Bencher<'_, '_>, frames: i64) {
    let mut store = Store::new(KEYS);
    let mut next = 0;
    bencher.counter(ItemsCount::new(usize::try_from(frames).unwrap())).bench_local(|| {
        store.commit(next..next + frames);
        next = (next + frames) % (KEYS - 8192);
        store.manager.sync_all().unwrap();
    });
}

/// A point read that finds its row in the file.
#[divan::bench(max_time = 2)]
fn get_from_file(bencher: Bencher<'_, '_>) {
    let store = Store::new(KEYS);
    let mut n = 0;
    bencher.bench_local(|| {
        n = (n + 7) % KEYS;
        store.shard.read(&key(n)).unwrap().unwrap()
    });
}

/// What the register asks before every round.
#[divan::bench(max_time = 2)]
fn stored_from_file(bencher: Bencher<'_, '_>) {
    let store = Store::new(KEYS);
    let mut n = 0;
    bencher.bench_local(|| {
        n = (n + 7) % KEYS;
        store.shard.stored(&key(n)).unwrap().unwrap()
    });
}

/// A commit alone: what the replicator's task waits for.
#[divan::bench(max_time = 2)]
fn on_commit(bencher: Bencher<'_, '_>) {
    let mut store = Store::new(1_000);
    let mut n = 0;
    bencher.bench_local(|| {
        n = (n + 1) % 1_000;
        store.commit(n..n + 1);
    });
}

/// A page of 1000 rows with values.
#[divan::bench(max_time = 2)]
fn page(bencher: Bencher<'_, '_>) {
    let store = Store::new(KEYS);
    bencher.counter(ItemsCount::new(1_000_usize)).bench_local(|| store.shard.page(&PageQuery::prefix("wf/")).unwrap());
}
