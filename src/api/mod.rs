//! The Unix socket.
pub mod command;
pub mod error;
mod resp;
