//! How nodes agree.
//!
//! ```text
//!   register   PURE: one key's Paxos        journal    what makes a vote survive
//!   quorum     the driver of both           local      agreement of one node with itself
//!   wire       what drivers say to each other    repair     PURE: which rows to ask a peer for
//!   outbox     PURE: writes that this node accepted on its own, on their way to the quorum
//!   collection PURE: which deletions to forget
//! ```

pub mod collection;
pub mod journal;
pub mod local;
pub mod outbox;
pub mod quorum;
pub mod register;
pub mod repair;
pub mod wire;

pub use local::LocalReplicator;
pub use quorum::QuorumReplicator;
