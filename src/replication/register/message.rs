//! What registers say to each other. One message concerns one key; the driver sends them in batches.

use serde::{Deserialize, Serialize};

use super::record::{Record, Vote};
use crate::store::replicator::{Decision, Op};
use crate::store::update::{Change, Update};
use crate::types::{Ballot, Key, ShardId};

/// Which register: one key of one shard.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Address {
    /// The shard.
    #[serde(rename = "s")]
    pub shard: ShardId,
    /// The key in it.
    #[serde(rename = "k")]
    pub key: Key,
}

/// Why an acceptor refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Refusal {
    /// It has promised, accepted or forgotten a higher ballot.
    Outbid,
    /// The ballot is further ahead of its clock than `max_skew`.
    ClockAhead,
    /// It must not vote: its disk failed or forgot.
    Barred,
    /// Its disk or one of its queues is full.
    Full,
}

/// What is said about a key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Body {
    /// Asks for a promise.
    Prepare {
        /// The round.
        ballot: Ballot,
        /// The version that the asker holds, so that its value need not be sent.
        holds: Option<Ballot>,
    },
    /// Gives it.
    Promised {
        /// The round.
        ballot: Ballot,
        /// What the acceptor holds.
        vote: Vote,
    },
    /// Asks for a vote.
    Accept {
        /// For this.
        record: Record,
        /// The one later ballot that the asker would like promised along with it.
        next: Option<Ballot>,
    },
    /// Gives it: the record is on disk.
    Accepted {
        /// The round.
        ballot: Ballot,
        /// True where `next` was promised too.
        granted: bool,
    },
    /// Refuses a Prepare or an Accept.
    Refused {
        /// The round that was refused.
        ballot: Ballot,
        /// The ballot that the next try must exceed.
        above: Ballot,
        /// Why.
        why: Refusal,
    },
    /// Asks what is held, promising nothing.
    Read {
        /// Names the question, so that a late answer isn't taken for another's.
        round: Ballot,
        /// As in Prepare.
        holds: Option<Ballot>,
    },
    /// Tells what is held, all of it on disk.
    Held {
        /// The question.
        round: Ballot,
        /// What the acceptor holds.
        vote: Vote,
    },
    /// The record of this round is chosen.
    Commit {
        /// The round.
        ballot: Ballot,
    },
    /// Asks for the chosen record: a Commit came for one that is not here.
    Pull {
        /// The round that was committed: an older record is of no use.
        ballot: Ballot,
    },
    /// Hands out a chosen record.
    Chosen {
        /// It.
        record: Record,
    },
    /// Asks the key's home to propose this, as too many propose for the key. Delivered at most once, like everything.
    Propose {
        /// Names it in the answer.
        id: u64,
        /// What.
        update: Update,
        /// How long the asker still waits, in milliseconds.
        within_ms: u32,
    },
    /// What became of it.
    Decided {
        /// Which.
        id: u64,
        /// How it ended.
        decision: Decision,
        /// The record that the answer stands on; zero where there is none.
        ballot: Ballot,
    },
}

impl Body {
    /// True for what asks for a vote, or is one: good only among those who count the same votes. What is chosen is so in
    /// every epoch, and what a client asks too.
    #[must_use]
    pub fn is_of_epoch(&self) -> bool {
        match self {
            Self::Prepare { .. }
            | Self::Promised { .. }
            | Self::Accept { .. }
            | Self::Accepted { .. }
            | Self::Refused { .. }
            | Self::Read { .. }
            | Self::Held { .. } => true,
            Self::Commit { .. }
            | Self::Pull { .. }
            | Self::Chosen { .. }
            | Self::Propose { .. }
            | Self::Decided { .. } => false,
        }
    }
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// The register it concerns.
    #[serde(rename = "a")]
    pub address: Address,
    /// What it says.
    #[serde(rename = "m")]
    pub body: Body,
}

impl Message {
    /// About how many bytes it takes on the wire.
    #[must_use]
    pub fn weight(&self) -> usize {
        let op = match &self.body {
            Body::Promised { vote: Vote::Record { op, .. }, .. } | Body::Held { vote: Vote::Record { op, .. }, .. } => {
                op.as_ref()
            }
            Body::Accept { record, .. } | Body::Chosen { record } => Some(&record.op),
            _ => None,
        };
        let value = match &self.body {
            Body::Propose { update: Update { change: Change::Put(value) | Change::Append(value), .. }, .. } => {
                Some(value)
            }
            Body::Decided { decision: Decision::Accept(outcome), .. } => outcome.after.as_ref().map(|row| &row.value),
            _ => op.and_then(Op::value),
        };
        let value = value.map_or(0, |value| value.as_bytes().len());
        let Address { shard, key } = &self.address;
        const REST: usize = 64;
        REST + shard.org.as_str().len() + shard.namespace.as_str().len() + key.as_str().len() + value
    }
}
