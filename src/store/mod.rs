//! Per-(org, namespace) SQLite shards: a committed row's home, and every read's.
//!
//! ```text
//!  Shard::put --Proposal--> Replicator --Frame--> Manager::on_commit --> overlay (memory) --applier--> <org>/<ns>.db
//!                                                                            \________ reads ________/
//! ```
//!
//! A row changes in one way only: a replicator agreed on a [`replicator::Frame`]. The frame is in memory when
//! `on_commit` returns, which every read looks through first, and in its file some milliseconds later. What makes
//! it durable meanwhile is the replicator's journal, which may forget it after [`Manager::sync_all`]; where there is
//! none, every transaction is synced and a write waits for its own.
//!
//! Whoever watches a shard is told of its frames by the [`feed`].
//!
//! Not here: agreement, networks, and order across keys.

mod applier;
pub mod compare;
mod copying;
mod core;
pub mod digest;
mod discarding;
pub mod error;
pub mod feed;
mod files;
mod keys;
mod listing;
mod manager;
mod overlay;
mod queries;
mod readers;
mod reads;
pub mod replicator;
mod rows;
mod schema;
mod shard;
mod state;
mod tombstones;
pub mod update;
mod writer;

#[cfg(test)]
mod tests;

pub use self::core::{APPLY_BACKLOG_BYTES_MAX, APPLY_BACKLOG_FRAMES_MAX, OPEN_SHARDS_MAX};
pub use applier::{APPLIERS, APPLY_BATCH_BYTES_SOFT_MAX, APPLY_BATCH_FRAMES_MAX};
pub use copying::{COPY_ROOM_KEPT_BYTES, ShardCopy};
pub use error::Error;
pub use files::copy_file;
pub use keys::{CANONICAL_KINDS, CROSS_NAMESPACE_KINDS, is_cross_namespace_prefix, ns_from_key, split_prefix};
pub use listing::{LIST_STALL_MAX, LIST_WAIT_MAX, ListQuery, Rows};
pub use manager::{IDLE_EVICT_AFTER, KEY_BYTES_MAX, Manager, StoreConfig, VALUE_BYTES_MAX};
pub use reads::{Reads, Shown};
pub use rows::{Item, PAGE_BYTES_MAX, PAGE_ITEMS_MAX, Page, PageQuery, ShardStats, Stored, StoredRow};
pub use shard::Shard;
pub use tombstones::Tombstones;

pub use crate::types::SENTINEL_ORG;
