//! Keeping a broken clock from doing harm to its own node (rule 11). A node whose clock ran ahead would push its durable
//! ceiling there, and be of no use to anybody until real time came by, restarts included. So time goes on as before where
//! a clock is set while the node runs, until more of the others agree with the new reading than with the old; and a clock
//! that a majority of the voters contradicts by more than `max_skew` is corrected by theirs.

use std::time::Duration;

use super::Core;
use crate::clock::{Clock, Now, correction, is_correction_obsolete};
use crate::cluster::membership::majority;
use crate::replication::quorum::QuorumConfig;

/// A wall clock that moved this much against the monotonic one has been set, by whatever.
const JUMP: Duration = Duration::from_secs(1);

impl Core {
    /// Notices that the wall clock was set, and goes on as if it had not been: whether it was set right or wrong is for
    /// the others to say. Cheap: called before everything. Returns the time to go by.
    pub(in crate::replication::quorum) fn check_time(&mut self, now: Now) -> Now {
        let offset = now.wall.saturating_sub(i64::try_from(now.monotonic.as_nanos()).unwrap_or(i64::MAX));
        let moved = offset.saturating_sub(*self.wall_offset.get_or_insert(offset));
        if Duration::from_nanos(moved.unsigned_abs()) < JUMP {
            return now;
        }
        let seconds = moved / 1_000_000_000;
        tracing::warn!(seconds, "this machine's clock was set");
        if self.peers.is_empty() {
            // Alone there is nobody to say so.
            self.wall_offset = Some(offset);
            return now;
        }
        self.rooms.clock.correct(moved.saturating_neg());
        self.rooms.clock.now()
    }

    /// Believes a majority rather than its own clock, and its own clock again where others agree with it.
    pub(super) fn correct_time(&mut self) {
        let QuorumConfig { max_skew, .. } = &self.config;
        let voters = self.peers.iter().filter(|(slot, _)| self.membership().is_voter(**slot));
        let skews: Vec<i64> = voters.filter_map(|(_, peer)| peer.skew).collect();
        let quorum = majority(self.membership().voters().count());
        let corrected = self.rooms.clock.correction();
        if let Some(by) = correction(&skews, quorum, *max_skew) {
            self.shift_time(by);
            let seconds = self.rooms.clock.correction() / 1_000_000_000;
            tracing::warn!(
                seconds,
                "this machine's clock is wrong by what a majority says; it is corrected here meanwhile"
            );
        } else if is_correction_obsolete(&skews, corrected, *max_skew) {
            self.shift_time(corrected.saturating_neg());
            tracing::warn!("others agree with this machine's clock as it is now; it is believed again");
        }
    }

    /// Goes on by a clock that is ahead by so many nanoseconds, on purpose.
    fn shift_time(&mut self, by: i64) {
        self.rooms.clock.correct(by);
        if let Some(offset) = &mut self.wall_offset {
            *offset = offset.saturating_add(by);
        }
        self.shift_skews(by);
    }

    /// This node's clock went ahead by `nanos`: everybody's is that much less ahead of it.
    fn shift_skews(&mut self, nanos: i64) {
        for peer in self.peers.values_mut() {
            if let Some(skew) = peer.skew {
                peer.set_skew(skew.saturating_sub(nanos));
            }
        }
    }
}
