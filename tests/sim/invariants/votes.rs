//! One value per ballot, ceilings and floors: the program itself stops voting where one of them is broken, or where it takes
//! a disk for damaged. No node does whose disk was not harmed.

use crate::program::{LEFT, Shared};
use crate::story;

/// Whether the node on a sound disk still votes.
pub(crate) fn hold(name: &str, shared: &Shared) {
    if let Some(why) = shared.ended.lock().as_ref().filter(|why| *why != LEFT) {
        story::fail(format!("{name} ended, though its disk is sound: {why}"));
    }
    let Some(handle) = shared.handle.lock().clone() else { return };
    if handle.is_barred() {
        let why = handle.view.cluster().unready.unwrap_or_default();
        story::fail(format!("{name} stopped voting, though its disk is sound: {why}"));
    }
}
