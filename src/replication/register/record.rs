//! What is voted on.

use serde::{Deserialize, Serialize};

use crate::messagepack::at_most;
use crate::store::StoredRow;
use crate::store::replicator::Op;
use crate::types::Ballot;

/// How many of the ballots that a record builds on it names.
pub const LINEAGE_MAX: usize = 16;

/// The ballots that a record builds on, newest first. A record that was first of its key names the ballot of absence
/// ([`Ballot::ZERO`] or the GC floor), so that its list is known to be whole.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lineage(#[serde(deserialize_with = "at_most::<_, _, LINEAGE_MAX>")] pub(super) Vec<Ballot>);

/// What a lineage tells about one ballot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Descent {
    /// The record is that ballot's or builds on it.
    Descends,
    /// The record bypassed it: a majority promised more without having accepted it, so it never is chosen.
    Bypassed,
    /// The list is too short to tell.
    Unknown,
}

impl Lineage {
    /// The lineage of a record that builds on one at `base` with `lineage`.
    pub(super) fn on(base: Ballot, lineage: &Self) -> Self {
        let older = lineage.0.iter().copied().take(LINEAGE_MAX - 1);
        Self(std::iter::once(base).chain(older).collect())
    }

    /// How many ballots it names.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// What this lineage, of a record at `at`, tells about `ballot`.
    pub(super) fn descent(&self, at: Ballot, ballot: Ballot) -> Descent {
        if at == ballot || self.0.contains(&ballot) {
            return Descent::Descends;
        }
        let oldest_known = self.0.last().copied().unwrap_or(at);
        if oldest_known < ballot { Descent::Bypassed } else { Descent::Unknown }
    }
}

/// A mutation with its round: what an acceptor accepts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Record {
    /// The round.
    #[serde(rename = "b")]
    pub ballot: Ballot,
    /// The version that clients see: the ballot of the round that first wrote it.
    #[serde(rename = "u")]
    pub upd: Ballot,
    /// What it makes of the key.
    #[serde(rename = "o")]
    pub op: Op,
    /// What it builds on.
    #[serde(rename = "l")]
    pub lineage: Lineage,
}

impl Record {
    /// True where both are the record of one ballot. A committed row outlives its lineage, so one that is empty is not
    /// known, which contradicts nothing.
    pub(super) fn is_same_vote(&self, other: &Self) -> bool {
        let lineages = self.lineage == other.lineage || self.lineage.len() == 0 || other.lineage.len() == 0;
        (self.ballot, self.upd, &self.op) == (other.ballot, other.upd, &other.op) && lineages
    }
}

/// A mutation that a node accepted on its own (rule 9): nobody's vote.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LocalWrite {
    /// Its version, which it keeps whichever round has it chosen.
    #[serde(rename = "u")]
    pub upd: Ballot,
    /// What it makes of the key.
    #[serde(rename = "o")]
    pub op: Op,
}

/// What one acceptor holds for a key, as it tells a proposer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Vote {
    /// No record, complete up to this GC floor.
    #[serde(rename = "a")]
    Absent(Ballot),
    /// A record; its `op` is left out where the asker already holds that version.
    #[serde(rename = "r")]
    Record {
        /// Its round.
        #[serde(rename = "b")]
        ballot: Ballot,
        /// Its version.
        #[serde(rename = "u")]
        upd: Ballot,
        /// What it makes of the key.
        #[serde(rename = "o")]
        op: Option<Op>,
        /// What it builds on.
        #[serde(rename = "l")]
        lineage: Lineage,
        /// True where this acceptor knows it to be chosen.
        #[serde(rename = "c")]
        chosen: bool,
    },
}

impl Vote {
    /// The vote for a pending or just chosen record.
    pub(super) fn of_record(record: &Record, chosen: bool, holds: Option<Ballot>) -> Self {
        Self::Record {
            ballot: record.ballot,
            upd: record.upd,
            op: (holds != Some(record.upd)).then(|| record.op.clone()),
            lineage: record.lineage.clone(),
            chosen,
        }
    }

    /// The vote for a committed row, with its lineage where that is still remembered.
    pub(super) fn of_row(row: &StoredRow, lineage: Lineage, holds: Option<Ballot>) -> Self {
        Self::Record {
            ballot: row.ballot,
            upd: row.upd,
            op: (holds != Some(row.upd)).then(|| row.op.clone()),
            lineage,
            chosen: true,
        }
    }

    /// The ballot that this vote counts as: absence counts as its floor.
    pub(super) fn ballot(&self) -> Ballot {
        match self {
            Self::Absent(floor) => *floor,
            Self::Record { ballot, .. } => *ballot,
        }
    }

    /// True where this vote alone proves its record chosen.
    pub(super) fn is_chosen(&self) -> bool {
        matches!(self, Self::Record { chosen: true, .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lineage_tells_only_what_it_reaches() {
        let mut lineage = Lineage::on(Ballot::ZERO, &Lineage::default());
        for base in [10, 20, 30] {
            lineage = Lineage::on(Ballot(base), &lineage);
        }
        let descent = |ballot| lineage.descent(Ballot(40), Ballot(ballot));
        assert_eq!(descent(40), Descent::Descends);
        assert_eq!(descent(20), Descent::Descends);
        assert_eq!(descent(25), Descent::Bypassed);
        assert_eq!(descent(5), Descent::Bypassed);
        assert_eq!(Lineage::default().descent(Ballot(40), Ballot(25)), Descent::Unknown);
    }

    #[test]
    fn a_lineage_is_bounded() {
        let mut lineage = Lineage::default();
        for base in 0..40 {
            lineage = Lineage::on(Ballot(base), &lineage);
        }
        assert_eq!(lineage.0.len(), LINEAGE_MAX);
        assert_eq!(lineage.descent(Ballot(40), Ballot(24)), Descent::Descends);
        assert_eq!(lineage.descent(Ballot(40), Ballot(23)), Descent::Unknown);
    }
}
