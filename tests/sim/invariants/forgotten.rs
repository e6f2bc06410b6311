//! Nothing deleted comes back. A node that holds nothing of a key, as of a GC floor, says that all versions up to there are
//! deleted everywhere, for good: from then on no node whose disk is sound holds a row of the key up to that floor.

use std::collections::BTreeMap;

use outrigger::api::command::Address;
use outrigger::store::Manager;
use outrigger::store::replicator::Op;
use outrigger::types::{Ballot, NodeId};

use crate::sometimes::sometimes;
use crate::story;

/// Up to which version each key is known to be deleted everywhere.
#[derive(Default)]
pub(crate) struct Forgotten(BTreeMap<String, Ballot>);

impl Forgotten {
    /// Looks at what a node with a sound disk holds of a key at this moment, read or not.
    pub(crate) fn look(&mut self, node: &NodeId, manager: &Manager, key: &str, at: &Address) {
        // Nothing is opened for this, and a file that cannot be read now is looked at another time.
        let Some(known) = manager.cached(&at.shard).and_then(|open| open.known(&at.key).ok()) else { return };
        match known.row {
            Some(row) if row.op != Op::Del => {
                if let Some(upto) = self.0.get(key).filter(|upto| row.upd <= **upto) {
                    let upd = row.upd;
                    story::fail(format!("{node}: {key} is back as of @{upd}; up to @{upto} it was deleted for good"));
                }
            }
            Some(_) => {}
            None => {
                sometimes!(known.floor > Ballot::ZERO, "deletions were forgotten");
                let upto = self.0.entry(key.to_owned()).or_default();
                *upto = known.floor.max(*upto);
            }
        }
    }
}
