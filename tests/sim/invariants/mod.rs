//! What always holds, one file each.
//!
//! | invariant | when it is looked at |
//! | --- | --- |
//! | [`linearizable`] | at the end: every key's history, and that what is stored everywhere is its last state |
//! | [`monotone`] | with every local read |
//! | [`visible`] | with every local read: it is not behind what the node's clients were told, restarts included |
//! | [`forgotten`] | with every local read: what was deleted and forgotten does not come back on any node |
//! | [`watch`] | with everything that a watcher is told; and at the end, that it adds up to the rows |
//! | [`outbox`] | with every read: a local write has its own version; at the end: it is everywhere, or something newer is |
//! | [`votes`] | in every turn: no node whose disk was not harmed stops voting, or ends |
//! | [`progress`] | after everything was put right: every node serves again, within a bound |
//! | [`converged`] | after that: all nodes hold the same rows, within a bound, and nothing is left waiting |

pub(crate) mod converged;
pub(crate) mod forgotten;
pub(crate) mod linearizable;
pub(crate) mod monotone;
pub(crate) mod outbox;
pub(crate) mod progress;
pub(crate) mod visible;
pub(crate) mod votes;
pub(crate) mod watch;
