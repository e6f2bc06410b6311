//! Every door through which bytes come in that this program did not write: RESP, HTTP, peers' messages, a journal after
//! whatever happened to its disk, and the configuration.
//!
//! Each target replays its corpus (`tests/fuzz/corpus/<target>/*`, one input per file), then mutates it until its time
//! is up: `FUZZ_SECONDS` (5 by default) per target, from `FUZZ_SEED` (random where a time is named, otherwise always the same). An input that fails is kept,
//! and its path told: fix it, and move it into the corpus.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "what a test's helpers cannot read is a failure of the test"
)]

mod config;
mod engine;
mod http;
mod journal;
mod peers;
mod resp;
mod socket;
#[path = "../common/told.rs"]
mod told;
