//! What a node's clients were told of a key is in its local reads from then on, restarts included, as long as its disk is
//! sound.

use std::collections::{BTreeMap, BTreeSet};

use outrigger::types::{NodeId, SLOT_BITS};

use crate::story;

/// The highest version that each node's clients were told of each key.
#[derive(Default)]
pub(crate) struct Shown {
    told: BTreeMap<(NodeId, String), i64>,
    /// Nodes whose disk was harmed: they may have lost what they said.
    harmed: BTreeSet<NodeId>,
}

impl Shown {
    pub(crate) fn told(&mut self, node: &NodeId, key: &str, upd: i64) {
        // Of a version that was overwritten within its round, the tick alone is known.
        let tick = upd >> SLOT_BITS << SLOT_BITS;
        let told = self.told.entry((node.clone(), key.to_owned())).or_insert(tick);
        *told = tick.max(*told);
    }

    pub(crate) fn harmed(&mut self, node: &NodeId) {
        self.harmed.insert(node.clone());
    }

    pub(crate) fn is_harmed(&self, node: &NodeId) -> bool {
        self.harmed.contains(node)
    }

    /// It has all that it had again, from the others: what it says from now on counts.
    pub(crate) fn healed(&mut self, node: &NodeId) {
        self.told.retain(|(of, _), _| of != node);
        self.harmed.remove(node);
    }

    /// What a local read that begins now must not be behind.
    pub(crate) fn so_far(&self, node: &NodeId, key: &str) -> Option<i64> {
        self.told.get(&(node.clone(), key.to_owned())).filter(|_| !self.harmed.contains(node)).copied()
    }
}

/// A local read that began after `told` found `upd`. No row tells nothing: it may be a later deletion.
pub(crate) fn hold(node: &NodeId, key: &str, told: Option<i64>, upd: Option<i64>) {
    if let Some((told, upd)) = told.zip(upd).filter(|(told, upd)| upd < told) {
        story::fail(format!("{node}: a local read of {key} shows @{upd}, after its clients were told of @{told}"));
    }
}
