//! The oracle itself, tried on histories that are known to be right or wrong: a check that finds nothing proves little
//! unless it finds what is there.

#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::disallowed_methods, reason = "a test")]

#[path = "../common/history.rs"]
mod history;
#[path = "../common/linearizable.rs"]
mod linearizable;
#[path = "../common/monotone.rs"]
mod monotone;
