//! Who is in the cluster, who is there now, and what a node tells of itself.
//!
//! ```text
//!   membership   PURE: who votes in an epoch, slots, what a majority is
//!   change       PURE: from one epoch to the next
//!   placement    PURE: which voters replicate which shard
//!   hello        PURE: what two nodes say first, and whether they may go on
//!   memory       PURE: what a node remembers of its peers' disks, to notice one that forgot
//!   gossip       chitchat over our own transport: where everyone is, whom to dial
//!   status       the shapes that doors of a node show
//! ```
//!
//! Absent on purpose: gossip decides nothing. Who may vote is a matter of configuration, and whether a vote counts is
//! the register's.

pub mod change;
pub mod gossip;
pub mod hello;
pub mod membership;
pub mod memory;
pub mod placement;
pub mod status;
