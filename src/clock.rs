//! Time: the only reader of the operating system's clocks, and the hybrid logical clock that numbers rounds.
//!
//! Protocol code never asks for the time; it is handed [`Now`]. Correctness never depends on any of this, only
//! progress does.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use crate::types::{Ballot, SLOT_BITS, Slot};

/// One reading of both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Unix nanoseconds; may jump either way.
    pub wall: i64,
    /// Time since some fixed moment of this process; never goes back. For timeouts.
    pub monotonic: Duration,
}

/// Where time comes from. One is made in `main` and handed down.
pub trait Clock: Send + Sync + std::fmt::Debug + 'static {
    /// Reads both clocks.
    fn now(&self) -> Now;
}

/// The operating system's clocks. The monotonic part follows tokio's time, so a paused runtime pauses it too.
#[derive(Debug)]
pub struct OsClock {
    started: tokio::time::Instant,
}

impl OsClock {
    /// The clock of this process.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that reads OS time")]
    pub fn shared() -> Arc<dyn Clock> {
        Arc::new(Self { started: tokio::time::Instant::now() })
    }
}

impl Clock for OsClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads OS time")]
    fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { wall: i64::try_from(wall.as_nanos()).unwrap_or(i64::MAX), monotonic: self.started.elapsed() }
    }
}

/// A clock that moves only when told to: for tests and simulation.
#[derive(Debug)]
pub struct ManualClock(Mutex<Now>);

impl ManualClock {
    /// Starts at `wall` Unix nanoseconds.
    #[must_use]
    pub fn new(wall: i64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Now { wall, monotonic: Duration::ZERO })))
    }

    /// Lets `by` pass on both clocks.
    pub fn advance(&self, by: Duration) {
        let mut now = self.0.lock();
        now.monotonic += by;
        now.wall += i64::try_from(by.as_nanos()).unwrap_or(i64::MAX);
    }

    /// Moves the wall clock alone by `nanos`, as a careless administrator would.
    pub fn jump(&self, nanos: i64) {
        self.0.lock().wall += nanos;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Now {
        *self.0.lock()
    }
}

/// A clock that can be set right against what others say, without touching the operating system's.
#[derive(Debug)]
pub struct CorrectedClock {
    inner: Arc<dyn Clock>,
    correction: AtomicI64,
}

impl CorrectedClock {
    /// Shows what `inner` does, until corrected.
    #[must_use]
    pub fn new(inner: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { inner, correction: AtomicI64::new(0) })
    }

    /// What is added to the wall clock's reading, in nanoseconds.
    #[must_use]
    pub fn correction(&self) -> i64 {
        self.correction.load(Ordering::Relaxed)
    }

    /// Adds `nanos` to the correction.
    pub fn correct(&self, nanos: i64) {
        self.correction.fetch_add(nanos, Ordering::Relaxed);
    }
}

impl Clock for CorrectedClock {
    fn now(&self) -> Now {
        let now = self.inner.now();
        Now { wall: now.wall.saturating_add(self.correction()), ..now }
    }
}

/// What sets a clock right that others contradict: the median of `ahead`, by how many nanoseconds each of them is ahead
/// of it, where at least `majority` of them are more than `max_skew` off in the same direction. With fewer there is no
/// telling whose clock is wrong.
#[must_use]
pub fn correction(ahead: &[i64], majority: usize, max_skew: Duration) -> Option<i64> {
    let limit = i64::try_from(max_skew.as_nanos()).unwrap_or(i64::MAX);
    let mut off: Vec<i64> = ahead.iter().copied().filter(|nanos| *nanos > limit).collect();
    if off.len() < majority {
        off = ahead.iter().copied().filter(|nanos| *nanos < -limit).collect();
    }
    off.sort_unstable();
    off.get(off.len() / 2).copied().filter(|_| off.len() >= majority)
}

/// Whether to go back from a correction to the system's own clock: where more of the others, each `ahead` of the corrected
/// clock by so many nanoseconds, are within `max_skew` of the system's reading than of the corrected one. So a clock that
/// was set right while the node ran is believed as soon as one of them agrees, and one that was set wrong is not.
#[must_use]
pub fn is_correction_obsolete(ahead: &[i64], correction: i64, max_skew: Duration) -> bool {
    let agreeing = |with: i64| {
        ahead.iter().filter(|nanos| Duration::from_nanos(nanos.saturating_sub(with).unsigned_abs()) <= max_skew).count()
    };
    agreeing(correction.saturating_neg()) > agreeing(0)
}

/// A remote time that is too far ahead of ours to believe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a clock {ahead:?} ahead of ours, more than max_skew = {max_skew:?}")]
pub struct TooFarAhead {
    /// By how much.
    pub ahead: Duration,
    /// The limit it broke.
    pub max_skew: Duration,
}

/// Hybrid logical clock (Kulkarni et al., "Logical Physical Clocks", 2014) that issues ballots: never below the wall
/// clock, never below anything it issued or merged, unique by its slot. Pure: the wall clock's reading is an argument.
#[derive(Debug, Clone)]
pub struct HybridClock {
    slot: Slot,
    max_skew: Duration,
    last: i64,
}

impl HybridClock {
    /// A clock for the proposer at `slot` that issues ballots above `floor` only, as those up to there may have been
    /// issued before a restart, and refuses to be dragged more than `max_skew` ahead of its wall clock.
    #[must_use]
    pub fn new(slot: Slot, max_skew: Duration, floor: Ballot) -> Self {
        Self { slot, max_skew, last: floor.nanos() }
    }

    /// Issues for another slot from now on.
    pub fn set_slot(&mut self, slot: Slot) {
        self.slot = slot;
    }

    /// Issues a ballot above every one issued or merged before.
    pub fn issue(&mut self, wall: i64) -> Ballot {
        self.last = Ballot::at(wall, self.slot).nanos().max(self.last + (1 << SLOT_BITS));
        Ballot::at(self.last, self.slot)
    }

    /// Learns of a ballot seen elsewhere, so that the next one issued here is above it.
    pub fn merge(&mut self, seen: Ballot, wall: i64) -> Result<(), TooFarAhead> {
        self.check(seen, wall)?;
        self.last = self.last.max(seen.nanos());
        Ok(())
    }

    /// Refuses a ballot more than `max_skew` ahead of `wall`: one broken clock must not drag the rest along.
    pub fn check(&self, seen: Ballot, wall: i64) -> Result<(), TooFarAhead> {
        let ahead = Duration::from_nanos(u64::try_from(seen.nanos().saturating_sub(wall)).unwrap_or(0));
        if ahead > self.max_skew {
            return Err(TooFarAhead { ahead, max_skew: self.max_skew });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn clock() -> HybridClock {
        HybridClock::new(Slot::new(7).unwrap(), Duration::from_secs(10), Ballot::ZERO)
    }

    #[test]
    fn a_clock_is_corrected_by_a_majority_only() {
        let correction = |ahead: &[i64]| correction(ahead, 2, Duration::from_secs(10));
        assert_eq!(correction(&[-60 * SECOND, -61 * SECOND]), Some(-60 * SECOND));
        assert_eq!(correction(&[60 * SECOND, 61 * SECOND]), Some(61 * SECOND));
        assert_eq!(correction(&[-60 * SECOND]), None, "one against one");
        assert_eq!(correction(&[-60 * SECOND, 60 * SECOND]), None, "they contradict each other");
        assert_eq!(correction(&[-60 * SECOND, SECOND]), None, "one of them agrees with us");
        assert_eq!(correction(&[9 * SECOND, 9 * SECOND]), None, "within what is borne");
        assert_eq!(correction(&[]), None);
    }

    #[test]
    fn a_correction_ends_when_more_agree_with_the_system_s_clock() {
        let obsolete = |ahead: &[i64]| is_correction_obsolete(ahead, -60 * SECOND, Duration::from_secs(10));
        assert!(obsolete(&[60 * SECOND]), "the only one in reach agrees with the system's clock");
        assert!(obsolete(&[55 * SECOND, 300 * SECOND]), "the other one agrees with neither");
        assert!(!obsolete(&[SECOND]), "the only one agrees with the correction");
        assert!(!obsolete(&[60 * SECOND, 0]), "one against one");
        assert!(!obsolete(&[300 * SECOND]) && !obsolete(&[]), "nobody says so");
        assert!(!is_correction_obsolete(&[SECOND, 0], -SECOND, Duration::from_secs(10)), "both are near enough");
    }

    #[test]
    fn a_broken_clock_is_not_followed() {
        let mut clock = clock();
        let wall = 1_000 * SECOND;
        assert!(clock.merge(Ballot(wall + 9 * SECOND), wall).is_ok());
        assert!(clock.merge(Ballot(wall + 11 * SECOND), wall).is_err());
        assert!(clock.issue(wall) < Ballot(wall + 10 * SECOND));
    }

    proptest! {
        #[test]
        fn ballots_rise_whatever_the_wall_clock_does(
            steps in prop::collection::vec((any::<bool>(), 0..2_000 * SECOND), 1..200)
        ) {
            let mut clock = clock();
            let mut last = Ballot::ZERO;
            for (merge, wall) in steps {
                if merge && clock.merge(Ballot(wall), wall).is_ok() {
                    last = last.max(Ballot::at(wall, Slot::new(0).unwrap()));
                }
                let issued = clock.issue(wall);
                prop_assert!(issued > last);
                prop_assert_eq!(issued.slot().number(), 7);
                last = issued;
            }
        }
    }
}
