//! What waits for one peer in one lane: bounded by messages and by bytes, filled without waiting, emptied in batches.

use std::collections::VecDeque;

use bytes::Bytes;
use metrics::Counter;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{LANE_BYTES_MAX, LANE_MESSAGES_MAX, MESSAGE_BYTES_MAX, SendError};

/// How many bytes are taken at once, unless a single message is larger.
const BATCH_BYTES: usize = 256 * 1024;

#[derive(Debug)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    filled: Notify,
    dropped: Counter,
}

#[derive(Debug, Default)]
struct Waiting {
    messages: VecDeque<Bytes>,
    bytes: usize,
    closed: bool,
}

impl Queue {
    /// An empty queue that counts in `dropped` what finds it full.
    pub(super) fn new(dropped: Counter) -> Self {
        Self { waiting: Mutex::default(), filled: Notify::new(), dropped }
    }

    /// Queues a message, or says at once why not.
    pub(super) fn push(&self, message: Bytes) -> Result<(), SendError> {
        if message.len() > MESSAGE_BYTES_MAX {
            return Err(SendError::TooLarge);
        }
        {
            let mut waiting = self.waiting.lock();
            if waiting.closed {
                return Err(SendError::NotConnected);
            }
            if waiting.messages.len() >= LANE_MESSAGES_MAX || waiting.bytes + message.len() > LANE_BYTES_MAX {
                self.dropped.increment(1);
                return Err(SendError::QueueFull);
            }
            waiting.bytes += message.len();
            waiting.messages.push_back(message);
        }
        self.filled.notify_one();
        Ok(())
    }

    /// Takes no more; what waits may still be taken.
    pub(super) fn close(&self) {
        self.waiting.lock().closed = true;
        self.filled.notify_one();
    }

    /// Takes no more, and drops what waits.
    pub(super) fn abandon(&self) {
        let mut waiting = self.waiting.lock();
        *waiting = Waiting { closed: true, ..Waiting::default() };
        drop(waiting);
        self.filled.notify_one();
    }

    /// Waits for messages and moves a batch of them into `batch`; false once closed and empty. For one reader.
    pub(super) async fn take(&self, batch: &mut Vec<Bytes>) -> bool {
        loop {
            if let Some(more) = self.try_take(batch) {
                return more;
            }
            self.filled.notified().await;
        }
    }

    fn try_take(&self, batch: &mut Vec<Bytes>) -> Option<bool> {
        let mut waiting = self.waiting.lock();
        let mut bytes = 0;
        while let Some(next) = waiting.messages.front() {
            if bytes > 0 && bytes + next.len() > BATCH_BYTES {
                break;
            }
            bytes += next.len();
            batch.extend(waiting.messages.pop_front());
        }
        waiting.bytes = waiting.bytes.saturating_sub(bytes);
        (!batch.is_empty()).then_some(true).or(waiting.closed.then_some(false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bounds_hold_by_count_and_by_bytes() {
        let queue = Queue::new(Counter::noop());
        for n in 0..LANE_MESSAGES_MAX {
            assert_eq!(queue.push(Bytes::from_static(b"x")), Ok(()), "{n}");
        }
        assert_eq!(queue.push(Bytes::from_static(b"x")), Err(SendError::QueueFull));
        let mut batch = Vec::new();
        assert!(queue.take(&mut batch).await);
        assert_eq!(batch.len(), LANE_MESSAGES_MAX);

        let half = Bytes::from(vec![0; LANE_BYTES_MAX / 2]);
        assert_eq!(queue.push(half.clone()), Ok(()));
        assert_eq!(queue.push(half.clone()), Ok(()));
        assert_eq!(queue.push(Bytes::from_static(b"x")), Err(SendError::QueueFull));
        batch.clear();
        assert!(queue.take(&mut batch).await);
        assert_eq!(batch.len(), 1, "a batch has a bound, too");
        assert_eq!(queue.push(Bytes::from_static(b"x")), Ok(()));
        assert_eq!(queue.push(Bytes::from(vec![0; MESSAGE_BYTES_MAX + 1])), Err(SendError::TooLarge));
    }

    #[tokio::test]
    async fn a_closed_queue_gives_what_it_has_and_ends() {
        let queue = Queue::new(Counter::noop());
        queue.push(Bytes::from_static(b"x")).unwrap();
        queue.close();
        assert_eq!(queue.push(Bytes::from_static(b"y")), Err(SendError::NotConnected));
        let mut batch = Vec::new();
        assert!(queue.take(&mut batch).await);
        batch.clear();
        assert!(!queue.take(&mut batch).await);
    }
}
