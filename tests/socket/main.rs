//! The socket from outside: real bytes over a real Unix socket, against a store with a local or a scripted replicator.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's helpers may fail the test"
)]

mod access;
mod cluster;
mod http;
mod listening;
mod outcomes;
mod pubsub;
mod resp;
mod support;
#[path = "../common/told.rs"]
mod told;
mod watch;
