//! The socket from outside: real bytes over a real Unix socket, against a store with a local or a scripted replicator.

mod http;
mod listening;
mod outcomes;
mod resp;
mod support;
