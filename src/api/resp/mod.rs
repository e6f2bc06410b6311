//! The Redis dialect: RESP2 and, after `HELLO 3`, RESP3.
//!
//! ```text
//!   bytes ──► parse ──► request ──► connection ──► exec ──► service
//!             cuts      checks      orders         waits
//!   bytes ◄──────────── reply ◄─────┴── session: what the connection has chosen
//! ```
//!
//! Order: replies come in the order of commands. Commands of one connection that touch the same key take effect in
//! their order, reads included; those on different keys run at the same time. A command of several keys or of the
//! whole keyspace runs alone, and so does one that changes subscriptions; messages come between replies. `MSET` and `DEL` of several keys are not atomic: each key is an update of its own.

mod connection;
mod exec;
mod glob;
mod parse;
mod pubsub;
mod reply;
mod request;
mod scan;
mod session;

use std::sync::atomic::{AtomicU64, AtomicUsize};

use bytes::Bytes;
use parking_lot::Mutex;

pub(super) use connection::{Ended, serve};

/// What all RESP connections of a node share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    cursors: Mutex<scan::Cursors>,
    /// Connections of both dialects, as `INFO` tells.
    pub(super) connections: AtomicUsize,
    ids: AtomicU64,
}

/// The reply to a connection that is one too many.
pub(super) const TOO_MANY_CONNECTIONS: Bytes = Bytes::from_static(b"-BUSY too many connections on this socket\r\n");

/// Cuts whole commands out of `input`, as a connection does: how many there are, and how many bytes of arguments. Stops
/// where the input does, or where it is no RESP. For benchmarks.
#[doc(hidden)]
#[must_use]
pub fn cut(mut input: &[u8]) -> (usize, usize) {
    let mut parser = parse::Parser::new(usize::MAX, usize::MAX);
    let (mut commands, mut bytes) = (0, 0);
    while let Ok(parse::Step::Command(taken)) = parser.next(input) {
        commands += 1;
        bytes += parser.args().iter().map(std::ops::Range::len).sum::<usize>();
        input = input.get(taken..).unwrap_or_default();
        parser.reset();
    }
    (commands, bytes)
}
