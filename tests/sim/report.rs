//! What a child tells its parent of the one seed that it lived through: a line of JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) seed: u64,
    /// Of all lines of the story.
    pub(crate) hash: u64,
    pub(crate) lines: u64,
    pub(crate) simulated_ms: u64,
    pub(crate) operations: u64,
    pub(crate) faults: u64,
    /// Whether its history was too tangled for the oracle: 0 or 1.
    pub(crate) undecided: u64,
    pub(crate) sometimes: BTreeMap<String, u64>,
    pub(crate) failure: Option<String>,
    /// The last lines, of a seed that failed.
    pub(crate) story: Vec<String>,
}
