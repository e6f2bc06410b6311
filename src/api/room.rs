//! The memory that requests may take up on their way in: one bound for all connections of a node.
//!
//! Every connection has bounds of its own, but a thousand of them multiply. So whatever is buffered beyond a small
//! allowance per connection, while it arrives and for as long as its command waits, is taken from here, and a request
//! for which there is no room left is read to its end, thrown away, and answered as busy.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::error::ApiError;

/// How many bytes of input all connections of a node may buffer together, beyond their allowances.
pub const INPUT_BYTES_MAX: usize = 256 * 1024 * 1024;
/// What each connection may buffer without asking, in bytes.
pub(super) const ALLOWANCE_BYTES: usize = 32 * 1024;
/// Room is taken in steps of this, so that it is seldom asked for.
const STEP_BYTES: usize = 16 * 1024;

/// The room of one node.
#[derive(Debug)]
pub(super) struct Room {
    taken: AtomicUsize,
    max: usize,
}

impl Room {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { taken: AtomicUsize::new(0), max })
    }

    /// A share of nothing, to be resized.
    pub(super) fn share(self: &Arc<Self>) -> Share {
        Share { room: Arc::clone(self), taken: 0 }
    }
}

/// What one connection has taken. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Share {
    room: Arc<Room>,
    taken: usize,
}

impl Share {
    /// Makes this the share of `bytes` of input. An error leaves it as it was.
    pub(super) fn resize(&mut self, bytes: usize) -> Result<(), ApiError> {
        let wanted = bytes.saturating_sub(ALLOWANCE_BYTES).next_multiple_of(STEP_BYTES);
        if wanted <= self.taken {
            self.room.taken.fetch_sub(self.taken - wanted, Ordering::Relaxed);
        } else {
            let more = wanted - self.taken;
            let max = self.room.max;
            let take = |taken: usize| taken.checked_add(more).filter(|taken| *taken <= max);
            if self.room.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
                let why =
                    format!("the requests on their way in take up all of the {max} bytes that they may; try again");
                return Err(ApiError::Busy(why));
            }
        }
        self.taken = wanted;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.room.taken.fetch_sub(self.taken, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_never_exceed_the_room_and_are_given_back() {
        let room = Room::new(4 * STEP_BYTES);
        let (mut a, mut b) = (room.share(), room.share());
        assert!(a.resize(ALLOWANCE_BYTES).is_ok() && b.resize(1).is_ok());
        assert_eq!(room.taken.load(Ordering::Relaxed), 0, "allowances are free");
        assert!(a.resize(ALLOWANCE_BYTES + 3 * STEP_BYTES).is_ok());
        assert!(matches!(b.resize(ALLOWANCE_BYTES + STEP_BYTES + 1), Err(ApiError::Busy(_))));
        assert!(b.resize(ALLOWANCE_BYTES + 1).is_ok());
        assert!(a.resize(usize::MAX / 2).is_err() && a.resize(ALLOWANCE_BYTES + 3 * STEP_BYTES).is_ok());
        assert!(a.resize(0).is_ok() && b.resize(ALLOWANCE_BYTES + 4 * STEP_BYTES).is_ok());
        drop((a, b));
        assert_eq!(room.taken.load(Ordering::Relaxed), 0);
    }
}
