//! Local reads: what one node shows of one key never goes back while the node runs.

use std::collections::HashMap;

use super::linearizable::is_shared;

/// What local reads have shown so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Monotone {
    seen: HashMap<(String, u64, String), Seen>,
}

/// The highest version seen, and whether the key was absent since. An absence after it is a deletion of a higher
/// version, so that very version must not come back either.
#[derive(Debug, Clone, Copy)]
struct Seen {
    upd: i64,
    deleted: bool,
    at_ns: u64,
}

impl Monotone {
    /// A local read of `key` on `node` in its life number `boot` found `upd`, or no value; the reads of one node and key
    /// must not overlap, and come in their order. The error is the story.
    pub(crate) fn read(
        &mut self,
        node: &str,
        boot: u64,
        key: &str,
        upd: Option<i64>,
        at_ns: u64,
    ) -> Result<(), String> {
        let place = (node.to_owned(), boot, key.to_owned());
        let before = self.seen.get(&place).copied();
        let Some(upd) = upd else {
            if let Some(seen) = self.seen.get_mut(&place) {
                (seen.deleted, seen.at_ns) = (true, at_ns);
            }
            return Ok(());
        };
        let story = |what: &str| Err(format!("node {node}, boot {boot}, key {key:?}: a local read at {at_ns} {what}"));
        if is_shared(upd) {
            return story(&format!("shows @{upd}, the version of what was overwritten within its round"));
        }
        if let Some(Seen { upd: highest, deleted, at_ns: then }) = before
            && (upd < highest || deleted && upd == highest)
        {
            let deleted = if deleted { ", deleted since" } else { "" };
            return story(&format!("goes back to @{upd} from @{highest}{deleted} (seen at {then})"));
        }
        self.seen.insert(place, Seen { upd, deleted: false, at_ns });
        Ok(())
    }
}
