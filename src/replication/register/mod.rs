//! One key's protocol: per-key Paxos in the manner of CASPaxos (Rystsov, 2018), with clock ballots. Pure: time,
//! randomness and messages come in as arguments, effects go out as values; nothing here reads a clock, a file or a
//! socket.
//!
//! ```text
//!  client's update ─► Proposer ── Prepare ──► Acceptor ×n      promise, and what is accepted so far
//!                        │  ◄──── Promised ──────┘
//!                        │ evaluate on the highest vote
//!                        ├─────── Accept ───► Acceptor ×n ──► Entry ─► journal ─► fsync ─► Durable
//!                        │  ◄──── Accepted ──────┘                        (only that opens a Sealed answer)
//!                        ▼ a majority: chosen
//!               commit here, answer the client, tell the others: Commit
//! ```
//!
//! The rules are numbered in the design; comments refer to them as "rule n". What is absent: leaders, terms, a log
//! order across keys, membership change, and any I/O.
//!
//! * [`Record`] is what is voted on; [`Vote`] is what an acceptor holds for a key.
//! * [`Acceptor`] keeps promises and pending records of all keys of a node; every answer that needs the disk comes out
//!   as [`Sealed`], to be opened with the [`Durable`] that only a finished fsync yields.
//! * [`Proposer`] runs at most one round per key; updates that wait for the same key are folded into one round.

mod acceptor;
mod message;
#[cfg(test)]
mod model;
mod proposer;
mod record;
mod refusals;
mod round;
mod rules;
mod sealed;
#[cfg(test)]
mod tests;
mod versions;

pub use acceptor::{Acceptor, AcceptorConfig, Commit, Entry, Learned, Restored};
pub use message::{Address, Body, Message, Refusal};
pub use proposer::{Action, Proposer, ProposerConfig, ProposerCounts};
pub use record::{LINEAGE_MAX, Lineage, LocalWrite, Record, Vote};
pub use round::OpId;
pub use rules::BrokenRule;
pub use sealed::{Durable, Lsn, Sealed, SealedQueue};
