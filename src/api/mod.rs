//! The Unix socket: what applications talk to.
//!
//! ```text
//!   listener ──► first byte `*` ──► resp/ ─┐
//!                anything else ──► http/ ──┼──► command ──► guest ──► service ──► store::Manager
//!                                          └◄── error       └► gate: access (rules), limits
//! ```
//!
//! A dialect only turns bytes into a typed command and an answer into bytes; what a command means is told once, in
//! [`service`], and whether it is allowed in `guest`.

pub mod access;
mod backup;
pub mod command;
pub mod error;
mod gate;
mod guest;
mod http;
pub mod limits;
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
pub use gate::{Gate, TOKENS_REREAD_EVERY};
pub use listener::{CONNECTIONS_MAX, Config, Error, SOCKET_MODE, Server, serve};
#[doc(hidden)]
pub use resp::cut;
pub use room::INPUT_BYTES_MAX;
pub use service::{Service, ServiceConfig};
