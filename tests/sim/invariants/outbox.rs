//! A local write that was acknowledged is in the end on every node, or something of a higher version is: whatever became of
//! its node meanwhile, as long as the disk is sound.

use std::collections::BTreeMap;

use outrigger::types::NodeId;

use crate::clients::addresses;
use crate::program::Handle;
use crate::story;

/// The newest local write of each node and key that was acknowledged: its version and its value.
#[derive(Default)]
pub(crate) struct Acknowledged(BTreeMap<(NodeId, String), (i64, Vec<u8>)>);

impl Acknowledged {
    pub(crate) fn told(&mut self, node: &NodeId, key: &str, upd: i64, value: &[u8]) {
        let newest = self.0.entry((node.clone(), key.to_owned())).or_default();
        if upd > newest.0 {
            *newest = (upd, value.to_vec());
        }
    }

    /// All nodes that may be asked hold the same rows by now.
    pub(crate) fn hold(&self, nodes: &BTreeMap<String, Handle>) {
        let Some(one) = nodes.values().next() else { return };
        let addresses: BTreeMap<_, _> = addresses().into_iter().collect();
        for ((node, key), (upd, value)) in &self.0 {
            // One whose disk was harmed may have lost what it said.
            if !nodes.contains_key(node.as_str()) {
                continue;
            }
            let at = &addresses[key];
            let stored = one.manager.open(&at.shard).and_then(|shard| shard.stored(&at.key));
            let stored = stored.ok().flatten().map(|row| (row.upd.0, row.op.value().map(|v| v.as_bytes().to_vec())));
            let held =
                stored.as_ref().is_some_and(|(there, is)| there > upd || there == upd && is.as_ref() == Some(value));
            if !held {
                let there = stored.map(|(there, _)| there);
                story::fail(format!(
                    "{node} acknowledged a local write of {key} @{upd}; in the end there is {there:?}"
                ));
            }
        }
    }
}
