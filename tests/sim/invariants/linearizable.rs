//! What the clients were told can be put into one order, key by key, that keeps to real time; and the rows that all nodes
//! end up with are the last state of such an order: no acknowledged write is lost.

use crate::history::History;
use crate::linearizable::{Finals, check, check_final};
use crate::story::{self, tell};

/// False where a history is too tangled to be decided within the oracle's bound: too many writes of unknown fate.
pub(crate) fn hold(history: &History, finals: &Finals) -> bool {
    let checked = check(history).map_err(|violation| ("not linearizable", violation));
    let checked = checked.and_then(|_| {
        check_final(history, finals)
            .map_err(|violation| ("what is stored does not follow from what was told", violation))
    });
    match checked {
        Ok(_) => true,
        Err((_, violation)) if violation.undecided => {
            tell!("undecided: {violation}");
            false
        }
        Err((what, violation)) => {
            story::fail(format!("{what}: {violation}"));
            true
        }
    }
}
