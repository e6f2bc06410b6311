//! What the clients were told can be put into one order, key by key, that keeps to real time; and the rows that all nodes
//! end up with are the last state of such an order: no acknowledged write is lost.

use crate::history::History;
use crate::linearizable::{Finals, check, check_final};
use crate::story;

pub(crate) fn hold(history: &History, finals: &Finals) {
    if let Err(violation) = check(history) {
        story::fail(format!("not linearizable: {violation}"));
    } else if let Err(violation) = check_final(history, finals) {
        story::fail(format!("what is stored does not follow from what was told: {violation}"));
    }
}
