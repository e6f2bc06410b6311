//! What it costs to cut a pipeline into commands, next to what redis-protocol's decoder takes for the same bytes:
//! `cargo bench --bench resp`. The ratio of the two medians is what to look at.

#![allow(missing_docs, clippy::unwrap_used)]

use bytes::{Buf, Bytes};
use divan::Bencher;
use divan::counter::ItemsCount;
use redis_protocol::resp2::decode::{decode_bytes, decode_range};

const COMMANDS: usize = 256;
const VALUE_BYTES: usize = 256;

fn main() {
    divan::main();
}

fn pipeline(write: impl Fn(usize) -> Vec<String>) -> Bytes {
    let mut bytes = String::new();
    for n in 0..COMMANDS {
        let words = write(n);
        bytes.push_str(&format!("*{}\r\n", words.len()));
        words.iter().for_each(|word| bytes.push_str(&format!("${}\r\n{word}\r\n", word.len())));
    }
    Bytes::from(bytes)
}

fn gets() -> Bytes {
    pipeline(|n| vec!["GET".to_owned(), format!("key:{n:012}")])
}

fn sets() -> Bytes {
    pipeline(|n| vec!["SET".to_owned(), format!("key:{n:012}"), "x".repeat(VALUE_BYTES)])
}

fn named(name: &str) -> Bytes {
    if name == "GET" { gets() } else { sets() }
}

fn bench(bencher: Bencher<'_, '_>, name: &str, decode: impl Fn(&Bytes) -> usize + Sync) {
    let pipeline = named(name);
    assert_eq!(decode(&pipeline), COMMANDS);
    bencher.counter(ItemsCount::new(COMMANDS)).bench(|| decode(divan::black_box(&pipeline)));
}

#[divan::bench(args = ["GET", "SET"])]
fn ours(bencher: Bencher<'_, '_>, pipeline: &str) {
    bench(bencher, pipeline, |bytes| outrigger::api::cut(bytes).0);
}

/// Frames that share the input's memory.
#[divan::bench(args = ["GET", "SET"])]
fn redis_protocol_bytes(bencher: Bencher<'_, '_>, pipeline: &str) {
    bench(bencher, pipeline, |bytes| {
        let (mut rest, mut commands) = (bytes.clone(), 0);
        while let Some((frame, taken)) = decode_bytes(&rest).unwrap() {
            divan::black_box(frame);
            rest.advance(taken);
            commands += 1;
        }
        commands
    });
}

/// Frames that only say where in the input their parts are, as ours do.
#[divan::bench(args = ["GET", "SET"])]
fn redis_protocol_ranges(bencher: Bencher<'_, '_>, pipeline: &str) {
    bench(bencher, pipeline, |bytes| {
        let (mut rest, mut commands) = (&bytes[..], 0);
        while let Some((frame, taken)) = decode_range(rest).unwrap() {
            divan::black_box(frame);
            rest = rest.get(taken..).unwrap();
            commands += 1;
        }
        commands
    });
}
