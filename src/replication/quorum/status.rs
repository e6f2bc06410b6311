//! What the core shows of itself, a few times a second.

use std::time::Duration;

use crate::cluster::status::DecisionCounts;
use crate::replication::outbox::OutboxCounts;
use crate::types::{Ballot, NodeId, StorageId};

/// One other member.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// Its name.
    pub node: NodeId,
    /// Its slot.
    pub slot: usize,
    /// Its vote counts.
    pub is_voter: bool,
    /// Connected.
    pub live: bool,
    /// Its disk has forgotten promises, so its votes do not count.
    pub forgot: bool,
    /// What it had and this node had missed was fetched since it last connected.
    pub caught_up: bool,
    /// The last comparison of all rows found the same on both.
    pub in_step: bool,
    /// Its data directory, once known.
    pub storage_id: Option<StorageId>,
    /// How far its clock is ahead of ours, in microseconds.
    pub clock_skew_us: Option<i64>,
}

/// What was accepted here and is not yet agreed on.
#[derive(Debug, Clone, Copy, Default)]
pub struct OutboxStatus {
    /// Keys with such a write.
    pub entries: usize,
    /// What they take up in memory, in bytes.
    pub bytes: usize,
    /// How long the oldest has waited; none where there is none.
    pub oldest_age: Option<Duration>,
    /// How such writes ended.
    pub counts: OutboxCounts,
}

/// The whole.
#[derive(Debug, Clone, Default)]
pub struct QuorumStatus {
    /// The other members, by slot.
    pub peers: Vec<PeerStatus>,
    /// Voters whose votes can be had now, this node included where it may vote.
    pub reachable: usize,
    /// Why this node is no member.
    pub not_joined: Option<String>,
    /// Why its node's vote is not this disk's.
    pub not_replaced: Option<String>,
    /// What is missing of a quorum.
    pub no_quorum: Option<String>,
    /// With whom rows are still to be compared.
    pub not_compared: Option<String>,
    /// Why this node must not vote.
    pub barred: Option<String>,
    /// Why this node can store nothing just now.
    pub full: Option<String>,
    /// Accepted records not known to be chosen.
    pub pending: usize,
    /// Keys whose last write before the restart is still open.
    pub unsettled: usize,
    /// What was accepted here and is not yet agreed on.
    pub outbox: OutboxStatus,
    /// How proposals ended.
    pub decisions: DecisionCounts,
    /// What is added to this machine's clock because a majority contradicts it, in microseconds.
    pub clock_correction_us: i64,
    /// Updates handed to the home of a contended key.
    pub forwarded: u64,
    /// The durable ceiling.
    pub ceiling: Ballot,
}

impl QuorumStatus {
    /// `Ok` where a quorum operation can be served now, otherwise the reason.
    pub fn health(&self) -> Result<(), String> {
        if let Some(why) = &self.barred {
            return Err(format!("this node must not vote: {why}"));
        }
        if let Some(why) = &self.full {
            return Err(why.clone());
        }
        match self.not_joined.as_ref().or(self.no_quorum.as_ref()) {
            Some(why) => Err(why.clone()),
            None => Ok(()),
        }
    }

    /// `Ok` once this node also has what the others have, and its loss would be no other voter's; otherwise what it waits for.
    pub fn ready(&self) -> Result<(), String> {
        self.level()?;
        self.not_replaced.clone().map_or(Ok(()), Err)
    }

    /// `Ok` once this node has what the others have; otherwise what it waits for.
    pub(super) fn level(&self) -> Result<(), String> {
        self.health()?;
        if self.unsettled > 0 {
            return Err(format!("{} keys written before the restart are being settled", self.unsettled));
        }
        self.not_compared.clone().map_or(Ok(()), Err)
    }
}
