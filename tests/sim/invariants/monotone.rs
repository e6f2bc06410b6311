//! The local reads of one process never go back.

use outrigger::types::NodeId;

use crate::monotone::Monotone;
use crate::story;

pub(crate) fn check(seen: &mut Monotone, node: &NodeId, boot: u64, key: &str, upd: Option<i64>, now: u64) {
    if let Err(why) = seen.read(node.as_str(), boot, key, upd, now) {
        story::fail(why);
    }
}
