//! The store's behaviour, through its public face where it can be.

mod basics;
mod compare;
mod crash;
mod discarding;
mod lifecycle;
mod model;
mod tombstones;
mod trouble;

use std::sync::Arc;

use super::digest::{Buckets, Digest, Sum, bucket_of};
use super::replicator::{Frame, Op, Subscriber};
use super::{Manager, Shard};
use crate::types::{Ballot, Key, ShardId, Value};

fn id(org: &str, namespace: &str) -> ShardId {
    ShardId::parse(org, namespace).unwrap()
}

fn key(text: &str) -> Key {
    Key::parse(text).unwrap()
}

fn put(shard: &ShardId, name: &str, value: &'static str, ballot: i64) -> Frame {
    frame(shard, name, Op::Put(Value::from(value)), ballot, ballot)
}

fn frame(shard: &ShardId, name: &str, op: Op, upd: i64, ballot: i64) -> Frame {
    let (upd, ballot) = (Ballot(upd), Ballot(ballot));
    Frame { shard: shard.clone(), seq: 0, key: key(name), op, upd, ballot }
}

fn commit(manager: &Arc<Manager>, frame: &Frame) {
    Subscriber::on_commit(&**manager, frame);
}

fn value_of(shard: &Shard, name: &str) -> Option<Vec<u8>> {
    shard.read(&key(name)).unwrap().map(|row| row.value.as_bytes().to_vec())
}

/// The digest that the rows themselves have, as reads see them.
fn digest_of_rows(shard: &Shard) -> Digest {
    let mut digest = Digest::new(shard.gc_floor());
    for (key, _) in shard.pairs(&Buckets::all(), None, usize::MAX).unwrap() {
        let stored = shard.stored(&key).unwrap();
        digest.add(bucket_of(key.as_str()), Sum::of_stored(shard.gc_floor(), key.as_str(), stored.as_ref()));
    }
    digest
}

/// Key and value of every live row, as the list gives them.
async fn listed(shard: &Shard, prefix: &str) -> Vec<(String, Vec<u8>)> {
    let mut rows = Vec::new();
    let each = |key: &str, row: &super::update::Row| {
        rows.push((key.to_owned(), row.value.as_bytes().to_vec()));
        Ok::<(), std::convert::Infallible>(())
    };
    shard.list(prefix, each).await.unwrap();
    rows
}
