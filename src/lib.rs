//! Outrigger: a sidecar that keeps an application's state as local SQLite shards, replicated to a quorum of its peers.

pub mod admin;
pub mod api;
pub mod client;
pub mod clock;
pub mod cluster;
pub mod config;
mod messagepack;
pub mod node;
pub mod replication;
pub mod store;
pub mod telemetry;
pub mod transport;
pub mod types;
