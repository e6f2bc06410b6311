//! States that a run of many seeds must have seen: a world in which nothing ever goes wrong proves nothing.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// All that must be seen at least once in a whole run; nothing else may be counted.
pub(crate) const DECLARED: &[&str] = &[
    "a message was lost",
    "a message came twice",
    "a direction was cut",
    "a clock was set back",
    "a host stood still until its peers gave it up",
    "a host was killed and its peers were told",
    "a host was killed in silence",
    "a host was started again",
    "a node left in good order",
    "the power failed",
    "the power failed everywhere",
    "the power failed everywhere as a write was acknowledged",
    "the power failed in the middle of the node's work",
    "a disk was full",
    "a disk was slow",
    "a sync failed",
    "a write failed",
    "a bit rotted",
    "a disk was rolled back",
    "a disk was emptied",
    "a disk lied",
    "a clock ran ahead by more than the limit",
    "five nodes",
    "a write was refused for want of a quorum",
    "a write was refused by a full disk",
    "the fate of a write was unknown",
    "a condition failed",
    "a local write was accepted",
    "a local write was overtaken",
    "a restart found local writes",
    "a harmed node stopped voting",
    "nodes of different versions ran side by side",
    "a node was upgraded",
    "a node was downgraded",
    "a hello held what only a later version knows",
    "a message held what only a later version knows",
    "a request held what only a later version knows",
    "an answer held what only a later version knows",
    "a disk was lost while voters changed",
    "a lost disk was replaced",
    "a node started over as another disk",
    "a change of voters was under way",
    "a change of voters was refused",
    "a node died that had been asked for a change of voters",
    "there were more voters than at first",
    "a newcomer voted",
    "not every voter replicated everything",
    "a shard was moved",
    "a node held no copy of a shard that others had",
    "a watch went on from an id",
    "a watch outlived its node's process",
    "deletions were forgotten",
];

static SEEN: Mutex<BTreeMap<&'static str, u64>> = Mutex::new(BTreeMap::new());

/// Counts `state`, which is a declared one.
pub(crate) fn seen(state: &'static str) {
    assert!(DECLARED.contains(&state), "{state:?} is not declared in sometimes.rs");
    *SEEN.lock().entry(state).or_default() += 1;
}

/// `sometimes!("the log was full")`: this was seen; with a condition before it, only if that holds.
macro_rules! sometimes {
    ($state:literal) => {
        $crate::sometimes::seen($state)
    };
    ($condition:expr, $state:literal) => {
        if $condition {
            $crate::sometimes::seen($state);
        }
    };
}
pub(crate) use sometimes;

/// How often each state was seen.
pub(crate) fn counted() -> BTreeMap<String, u64> {
    SEEN.lock().iter().map(|(state, times)| ((*state).to_owned(), *times)).collect()
}
