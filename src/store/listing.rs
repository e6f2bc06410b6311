//! A whole list, which is one moment's state however slowly it is read.
//!
//! ```text
//!   a thread: one read transaction ──► portion ──► portion ──► a channel of one ──► Rows::next
//! ```
//!
//! For as long as the transaction is open, the write-ahead log cannot start over, and grows with every write. So a
//! receiver has a bounded time: for each portion, and for all of them together.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinHandle;

use super::error::Error;
use super::rows::Item;
use crate::blocking;
use crate::clock::Clock;
use crate::types::Key;

/// How long a receiver may take over one portion.
pub const LIST_STALL_MAX: Duration = Duration::from_secs(30);
/// How long one list may wait for its receiver altogether.
pub const LIST_WAIT_MAX: Duration = Duration::from_secs(10 * 60);
/// About the size of a portion, in bytes of keys and values.
pub(super) const LIST_PORTION_BYTES: usize = 256 * 1024;
/// The most rows of a portion.
pub(super) const LIST_PORTION_ITEMS: usize = 4_096;

/// How many portions a list in a simulation may have.
const INLINE_PORTIONS_MAX: usize = 1_024;

/// Which rows a list has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListQuery {
    /// Only keys that begin with this; every key where it is empty.
    pub prefix: String,
    /// Only keys after this one.
    pub after: Option<Key>,
    /// Leave values out.
    pub keys_only: bool,
}

impl ListQuery {
    /// All rows under `prefix`, values included.
    #[must_use]
    pub fn prefix(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), ..Self::default() }
    }
}

/// A list under way: all of its rows are as they were when it began. Dropping it ends it.
#[derive(Debug)]
pub struct Rows {
    portions: mpsc::Receiver<Vec<Item>>,
    walk: Option<JoinHandle<Result<(), Error>>>,
}

impl Rows {
    /// Runs `walk` on a thread of its own; what it is given sends one portion on, and fails where nobody takes it.
    pub(super) fn begin(
        clock: Arc<dyn Clock>,
        walk: impl FnOnce(&mut dyn FnMut(Vec<Item>) -> Result<(), Error>) -> Result<(), Error> + Send + 'static,
    ) -> Self {
        // Without a thread that could wait there is room for all that a simulation lists.
        let (sender, portions) = mpsc::channel(if blocking::is_inline() { INLINE_PORTIONS_MAX } else { 1 });
        let runtime = tokio::runtime::Handle::current();
        let walk = blocking::spawn(move || {
            let mut pace = Pace { sender, clock, left: LIST_WAIT_MAX };
            walk(&mut |portion| match pace.sender.try_send(portion) {
                Ok(()) => Ok(()),
                Err(TrySendError::Closed(_)) => Err(Error::Closed),
                Err(TrySendError::Full(portion)) => runtime.block_on(pace.send(portion)),
            })
        });
        Self { portions, walk: Some(walk) }
    }

    /// The next rows in key order, at least one; none at the end. After an error the list is over, and incomplete:
    /// [`Error::Stalled`] where the rows so far were not taken in time.
    pub async fn next(&mut self) -> Result<Option<Vec<Item>>, Error> {
        if let Some(portion) = self.portions.recv().await {
            return Ok(Some(portion));
        }
        match self.walk.take() {
            Some(walk) => walk.await.unwrap_or(Err(Error::Closed)).map(|()| None),
            None => Ok(None),
        }
    }
}

/// The sending end: knows how long the receiver may still take.
struct Pace {
    sender: mpsc::Sender<Vec<Item>>,
    clock: Arc<dyn Clock>,
    left: Duration,
}

impl Pace {
    /// Waits until the receiver has room for `portion`, within its time.
    async fn send(&mut self, portion: Vec<Item>) -> Result<(), Error> {
        let began = self.clock.now().monotonic;
        let within = LIST_STALL_MAX.min(self.left);
        let sent = tokio::time::timeout(within, self.sender.send(portion)).await;
        let waited = self.clock.now().monotonic.saturating_sub(began);
        self.left = self.left.saturating_sub(waited);
        match sent {
            Ok(sent) => sent.map_err(|_| Error::Closed),
            Err(_) if within < LIST_STALL_MAX => Err(Error::Stalled(LIST_WAIT_MAX)),
            Err(_) => Err(Error::Stalled(LIST_STALL_MAX)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::OsClock;
    use crate::types::Ballot;

    /// Lists as many portions of one row as `walk` sends, numbered.
    fn begin(portions: i64) -> Rows {
        Rows::begin(OsClock::shared(), move |send| {
            let item = |n| Item { key: Key::parse("k").unwrap(), value: None, upd: Ballot(n) };
            (0..portions).try_for_each(|n| send(vec![item(n)]))
        })
    }

    async fn number(rows: &mut Rows) -> Option<i64> {
        rows.next().await.unwrap().map(|portion| portion[0].upd.0)
    }

    /// Lets `by` pass again and again until the walk has ended.
    async fn pass_until_ended(rows: &Rows, by: Duration) {
        while !rows.walk.as_ref().unwrap().is_finished() {
            tokio::time::advance(by).await;
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_stops_is_not_waited_for_and_learns_why() {
        let mut rows = begin(4);
        assert_eq!(number(&mut rows).await, Some(0));
        pass_until_ended(&rows, LIST_STALL_MAX + Duration::from_secs(1)).await;
        assert_eq!(number(&mut rows).await, Some(1), "what was sent is there");
        assert!(matches!(rows.next().await, Err(Error::Stalled(_))));
        assert!(rows.next().await.unwrap().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_drags_on_is_given_a_bounded_time_altogether() {
        let mut rows = begin(i64::MAX);
        let ended = loop {
            tokio::time::advance(LIST_STALL_MAX / 6).await;
            tokio::task::yield_now().await;
            match rows.next().await {
                Ok(portion) => assert!(portion.unwrap()[0].upd.0 < 100_000),
                Err(error) => break error,
            }
        };
        assert!(matches!(ended, Error::Stalled(LIST_WAIT_MAX | LIST_STALL_MAX)), "{ended}");
    }

    #[tokio::test]
    async fn a_receiver_that_goes_ends_the_walk() {
        let mut rows = begin(i64::MAX);
        assert_eq!(number(&mut rows).await, Some(0));
        let walk = rows.walk.take().unwrap();
        drop(rows);
        assert!(matches!(walk.await.unwrap(), Err(Error::Closed)));
    }
}
