//! Versions beside rounds (rule 9): a write that this node accepts on its own is numbered by the same clock as its rounds, so
//! that one is never the other's, and what is proposed here afterwards is newer.

use super::message::Address;
use super::proposer::Proposer;
use crate::clock::{Now, TooFarAhead};
use crate::types::Ballot;

impl Proposer {
    /// Issues the version of a write that this node accepts on its own, above `shown`, what it shows of the key. Whatever
    /// is proposed here from now on is numbered above it.
    pub fn issue(&mut self, now: Now, shown: Ballot) -> Result<Ballot, TooFarAhead> {
        self.clock.merge(shown, now.wall)?;
        Ok(self.clock.issue(now.wall))
    }

    /// Gives up the key's token unless it is for a round above `version`: what is proposed next is newer than that.
    pub fn outdate_token(&mut self, address: &Address, version: Ballot) {
        if self.tokens.get(address).is_some_and(|token| token.next <= version) {
            self.tokens.remove(address);
        }
    }
}
