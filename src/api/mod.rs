//! The Unix socket: what applications talk to.
//!
//! ```text
//!   listener ──► first byte `*` ──► resp/ ─┐
//!                anything else ──► http/ ──┼──► command ──► service ──► store::Manager
//!                                          └◄── error: one table, two dialects
//! ```
//!
//! A dialect only turns bytes into a typed command and an answer into bytes; what a command means is told once, in
//! [`service`]. Absent on purpose: local writes and access rules, which are not built yet and say so.

mod backup;
pub mod command;
pub mod error;
mod http;
pub mod list;
mod listener;
mod metrics;
mod resp;
mod room;
pub mod service;
mod stream;
pub mod watch;

pub use backup::Copied;
pub use error::ApiError;
pub use listener::{CONNECTIONS_MAX, Config, Error, SOCKET_MODE, Server, serve};
#[doc(hidden)]
pub use resp::cut;
pub use room::INPUT_BYTES_MAX;
pub use service::{Service, ServiceConfig};
