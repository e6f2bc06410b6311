//! Real processes, each in a network namespace of its own, under real faults of the network, the disk, the clock and
//! the machine, with a load of real clients on all of them.
//!
//! In each: a side with a majority goes on within a bound; a side without one answers no quorum operation; once healed
//! every node gets ready, all copies agree, and what all clients were told is linearizable.
//!
//! Needs Linux, root, iproute2 and nftables; where something is missing one line says what, and the rest is skipped.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test"
)]

#[path = "../common/mod.rs"]
mod common;
mod faults;
#[path = "../common/history.rs"]
mod history;
#[path = "../common/linearizable.rs"]
mod linearizable;
mod load;
mod machine;
#[path = "../common/monotone.rs"]
mod monotone;
mod network;
mod random;
mod trial;
