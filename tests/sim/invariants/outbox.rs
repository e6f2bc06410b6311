//! A local write that was acknowledged is in the end on every node, or something of a higher version is: whatever became of
//! its node meanwhile, as long as the disk is sound. And whoever reads it, wherever, finds it under the version that its client
//! was told: it is never made anew.

use std::collections::{BTreeMap, HashMap};

use outrigger::types::NodeId;

use crate::clients::addresses;
use crate::program::Handle;
use crate::story;

/// The local writes that were acknowledged.
#[derive(Default)]
pub(crate) struct Acknowledged {
    /// The newest of each node and key: its version and its value.
    newest: BTreeMap<(NodeId, String), (i64, Vec<u8>)>,
    /// The version of each by its value, of which there are no two alike.
    versions: HashMap<Vec<u8>, i64>,
}

impl Acknowledged {
    pub(crate) fn told(&mut self, node: &NodeId, key: &str, upd: i64, value: &[u8]) {
        self.versions.insert(value.to_vec(), upd);
        let newest = self.newest.entry((node.clone(), key.to_owned())).or_default();
        if upd > newest.0 {
            *newest = (upd, value.to_vec());
        }
    }

    /// Somebody has read this.
    pub(crate) fn seen(&self, key: &str, value: &[u8], upd: i64) {
        if let Some(own) = self.versions.get(value).filter(|own| **own != upd) {
            story::fail(format!("the local write of {key} @{own} is read @{upd}"));
        }
    }

    /// All nodes that may be asked hold the same rows by now.
    pub(crate) fn hold(&self, nodes: &BTreeMap<String, Handle>) {
        let addresses: BTreeMap<_, _> = addresses().into_iter().collect();
        for ((node, key), (upd, value)) in &self.newest {
            // One whose disk was harmed may have lost what it said.
            if !nodes.contains_key(node.as_str()) {
                continue;
            }
            let at = &addresses[key];
            let Some(one) = nodes.values().find(|handle| handle.holds(&at.shard)) else { continue };
            let known = one.manager.open(&at.shard).and_then(|shard| shard.known(&at.key)).unwrap_or_default();
            if known.row.is_none() && known.floor.0 > *upd {
                // Deleted since, which is forgotten by now.
                continue;
            }
            let stored = known.row.map(|row| (row.upd.0, row.op.value().map(|v| v.as_bytes().to_vec())));
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
