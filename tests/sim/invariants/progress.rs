//! Once everything is put right, every sound node serves quorum operations again, within a bound.

use std::collections::BTreeMap;

use outrigger::types::NodeId;

/// The nodes that have served nothing since.
pub(crate) fn idle<'a>(sound: &'a [NodeId], done: &BTreeMap<NodeId, u64>) -> Vec<&'a NodeId> {
    sound.iter().filter(|name| !done.contains_key(*name)).collect()
}
