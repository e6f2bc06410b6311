//! The rules that a node checks itself by, in every build: where one is broken the program is wrong, and the node stops
//! voting rather than spread it.

use super::message::{Address, Body, Message};
use super::record::Record;
use crate::types::Ballot;

/// What must never happen, and did.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokenRule {
    /// Two different records under one ballot (rule 3).
    #[error("{address:?}: two different records claim ballot {ballot}; this node stops rather than vote for both")]
    TwoRecords {
        /// Where.
        address: Address,
        /// Which ballot.
        ballot: Ballot,
    },
    /// A ballot was about to leave that a restart would not remember (rule 2).
    #[error("ballot {ballot} is above the durable ceiling {ceiling}; this node stops rather than let it out")]
    AboveCeiling {
        /// Which ballot.
        ballot: Ballot,
        /// How far the ceiling is.
        ceiling: Ballot,
    },
    /// A vote was about to be told that a crash would take back (rules 1, 3 and 6).
    #[error("{address:?}: the vote for ballot {ballot} is not on the disk; this node stops rather than tell of it")]
    NotDurable {
        /// Where.
        address: Address,
        /// Which ballot.
        ballot: Ballot,
    },
    /// A promise that an earlier one, forgotten since, forbids (rule 2).
    #[error("{address:?}: ballot {ballot} is not above the floor {floor}; this node stops rather than promise it")]
    BelowFloor {
        /// Where.
        address: Address,
        /// Which ballot.
        ballot: Ballot,
        /// The floor.
        floor: Ballot,
    },
}

/// Looks at a message as it leaves a node with this durable ceiling: what it promises, accepts or issues is under that by
/// then, and what it tells of its votes is not `on_its_way` to the disk any more.
pub(super) fn check_leaving(
    message: &Message,
    ceiling: Ballot,
    is_on_its_way: impl FnOnce(&Address, Ballot) -> bool,
) -> Result<(), BrokenRule> {
    let Message { address, body } = message;
    let (ballot, told) = match body {
        Body::Prepare { ballot, .. } | Body::Accept { record: Record { ballot, .. }, .. } => (*ballot, None),
        Body::Promised { ballot, vote } => (*ballot, Some(vote.ballot())),
        Body::Accepted { ballot, .. } => (*ballot, Some(*ballot)),
        Body::Held { vote, .. } => (Ballot::ZERO, Some(vote.ballot())),
        _ => return Ok(()),
    };
    if ballot > ceiling {
        return Err(BrokenRule::AboveCeiling { ballot, ceiling });
    }
    match told {
        Some(ballot) if is_on_its_way(address, ballot) => {
            Err(BrokenRule::NotDurable { address: address.clone(), ballot })
        }
        _ => Ok(()),
    }
}
