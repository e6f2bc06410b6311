//! Outrigger: a sidecar that keeps an application's state as local SQLite shards, replicated to a quorum of its peers.
//!
//! Most users want the program (`outrigger serve`) and talk to its socket, from Rust through [`client::Client`]. This
//! library is what the program is made of; each room's first page says what it is for and what is absent from it.
//!
//! | room | what it is |
//! | --- | --- |
//! | [`types`], [`clock`], [`telemetry`], [`token`] | names, keys, values, versions; time; every metric; what clients show to be let in |
//! | [`store`] | shards: one SQLite file per (org, namespace), and every read |
//! | [`transport`] | named, mutually authenticated connections that carry opaque bytes |
//! | [`cluster`] | who votes, gossip, what nodes tell each other first, the shapes of `status` |
//! | [`replication`] | agreement: per-key Paxos among nodes ([`replication::quorum`]), or of a node with itself ([`replication::local`]) |
//! | [`api`], [`admin`], [`client`] | the Unix socket (HTTP and RESP), the admin port, the socket's client |
//! | [`config`], [`node`] | a checked configuration; a whole sidecar, wired, started and drained |
//!
//! # The store alone
//!
//! Embedded, without peers: [`Manager`] opens a [`Shard`] per tenant, and a [`LocalReplicator`] accepts what is written.
//! A write is in its file, synced, when it returns.
//!
//! ```
//! use outrigger::clock::OsClock;
//! use outrigger::types::ShardId;
//! use outrigger::{LocalReplicator, Manager};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! let manager = Manager::new(dir.path())?;
//! manager.with_replicator(LocalReplicator::new(&manager, OsClock::shared()));
//!
//! let shard = manager.get(&ShardId::parse("acme", "payments")?).await?;
//! let version = shard.put("wf/payments/a/1", "started").await?;
//! let row = shard.get("wf/payments/a/1").await?.ok_or("just written")?;
//! assert_eq!((row.value.as_bytes(), row.upd), ("started".as_bytes(), version));
//!
//! // An ordinary database, which `sqlite3` opens: <root>/acme/payments.db.
//! assert!(manager.shard_path(&ShardId::parse("acme", "payments")?).is_file());
//! manager.close().await?;
//! # Ok(()) }
//! ```

#![forbid(unsafe_code)]

pub mod admin;
pub mod api;
pub mod blocking;
pub mod client;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod disk;
mod messagepack;
pub mod node;
pub mod replication;
pub mod store;
pub mod telemetry;
pub mod token;
pub mod transport;
pub mod types;

pub use client::Client;
pub use replication::{LocalReplicator, QuorumReplicator};
pub use store::replicator::{Decision, Frame, Replicator};
pub use store::{
    CROSS_NAMESPACE_KINDS, Error, IDLE_EVICT_AFTER, Manager, Shard, copy_file, is_cross_namespace_prefix, ns_from_key,
    split_prefix,
};
pub use types::SENTINEL_ORG;
