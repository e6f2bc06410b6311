//! The rules that a node checks itself by, in every build: where one is broken the program is wrong, and the node stops
//! voting rather than spread it.

use super::acceptor::Acceptor;
use super::message::{Address, Body};
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

impl Acceptor {
    /// Looks at a message as it leaves: what this node promises, accepts or issues is under its durable ceiling by then.
    pub fn check_leaving(&self, body: &Body) -> Result<(), BrokenRule> {
        let ballot = match body {
            Body::Prepare { ballot, .. }
            | Body::Promised { ballot, .. }
            | Body::Accept { record: Record { ballot, .. }, .. }
            | Body::Accepted { ballot, .. } => *ballot,
            _ => return Ok(()),
        };
        let ceiling = self.ceiling();
        if ballot > ceiling { Err(BrokenRule::AboveCeiling { ballot, ceiling }) } else { Ok(()) }
    }
}
