//! Ballots that are refused for good, by shard: the acceptor's part in forgetting deletions (rule 10).
//!
//! ```text
//!   refuse ≤ G, durable ─► what is pending ≤ G is settled ─► every replica has all that was chosen ≤ G ─► floor := G, drop
//! ```
//!
//! Once every replica refuses all ballots up to G, nothing more is chosen up to there, so that it can be found out whether a
//! replica has all of it. A replica that has may say "absent as of G" where it has no record, and then need not remember
//! deletions up to G: whatever comes late ranks below that.
//!
//! A refusal outlives restarts as an entry of the journal, until the shard's file has G as its floor, which refuses as much.
//! It binds like a promise to nobody, and costs nothing but rounds that began before G.

use super::acceptor::{Acceptor, Entry};
use super::message::Address;
use crate::store::Stored;
use crate::types::{Ballot, ShardId};

/// Shards with a refusal that no floor has taken over yet.
const REFUSALS_MAX: usize = 4096;

impl Acceptor {
    /// Refuses every ballot of `shard` up to `upto` from now on; to be relied on once all that was appended is durable.
    /// False where too many shards do already.
    pub fn refuse_upto(&mut self, shard: &ShardId, upto: Ballot) -> bool {
        if self.refused.get(shard).is_some_and(|refused| *refused >= upto) {
            return true;
        }
        if self.refused.len() >= REFUSALS_MAX && !self.refused.contains_key(shard) {
            return false;
        }
        self.refused.insert(shard.clone(), upto);
        self.append(Entry::Refused(shard.clone(), upto));
        true
    }

    /// The shards that refuse something.
    #[must_use]
    pub fn refusing(&self) -> Vec<ShardId> {
        self.refused.keys().cloned().collect()
    }

    /// Whether everything up to `upto` is refused, and nothing of that is pending: what has been chosen up to there with
    /// this acceptor's vote is in its shard.
    #[must_use]
    pub fn is_settled(&self, shard: &ShardId, upto: Ballot) -> bool {
        let is_refused = self.refused.get(shard).is_some_and(|refused| *refused >= upto);
        is_refused && self.pending_of(shard).all(|(_, ballot)| ballot > upto)
    }

    /// Learns that the shard's file has this floor, which refuses as much.
    pub fn on_floor(&mut self, shard: &ShardId, floor: Ballot) {
        if self.refused.get(shard).is_some_and(|refused| *refused <= floor) {
            self.refused.remove(shard);
        }
    }

    /// The highest ballot that is refused for this key whoever asks, and whatever was promised.
    pub(super) fn refused_upto(&self, address: &Address, stored: &Stored) -> Ballot {
        let refused = if self.refused.is_empty() { None } else { self.refused.get(&address.shard) };
        refused.copied().unwrap_or_default().max(self.floor).max(stored.floor)
    }
}
