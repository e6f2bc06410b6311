//! What becomes of bytes on their way: decided by whoever owns the [`Network`](super::Network), message by message.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, sleep_until};

use super::super::{LANE_MESSAGES_MAX, Lane};
use crate::types::NodeId;

/// How often an end that has nothing to say shows that it is there, on links that break when idle; QUIC's is 700 ms.
pub const KEEP_ALIVE: Duration = Duration::from_millis(700);
/// When a piece of a handshake or of a call that was lost is sent again.
const RESEND: Duration = Duration::from_millis(200);

/// What becomes of one message. Delays are slept on the receiver's clock, from when the receiver could first look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It arrives after this delay; a message with a shorter one overtakes it.
    Arrives(Duration),
    /// Two copies of it arrive.
    Twice(Duration, Duration),
    /// It is lost, and its sender is not told.
    Lost,
}

/// What a node says, as far as it is MessagePack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Words {
    /// Its first.
    Hello,
    /// A message of the protocol lane.
    Message,
    /// A call's request.
    Request,
    /// One part of a call's answer.
    Answer,
}

/// Decides what becomes of everything that is sent. Every method has fair weather as its default.
pub trait Weather: Send + Sync + 'static {
    /// What becomes of one message of a lane. Asked once, when the receiver could first take it.
    fn message(&self, from: &NodeId, to: &NodeId, lane: Lane, bytes: usize) -> Fate {
        let _ = (from, to, lane, bytes);
        Fate::Arrives(Duration::ZERO)
    }

    /// How long one packet is on its way now, `None` for a lost one: the packets of handshakes and calls, which are sent
    /// again until they pass, and keep-alives.
    fn packet(&self, from: &NodeId, to: &NodeId) -> Option<Duration> {
        let _ = (from, to);
        Some(Duration::ZERO)
    }

    /// What `by` says as it leaves: its own bytes, unless it is to pass for another program than the one that runs.
    fn said(&self, by: &NodeId, words: Words, bytes: Bytes) -> Bytes {
        let _ = (by, words);
        bytes
    }

    /// After how long without a packet an end gives its link up; `None`: never.
    fn idle_limit(&self) -> Option<Duration> {
        None
    }
}

/// Everything arrives, at once and in order.
#[derive(Debug)]
pub(super) struct Fair;

impl Weather for Fair {}

/// Sends a packet until it is one that passes; how long that one is on its way.
pub(super) async fn passage(weather: &dyn Weather, from: &NodeId, to: &NodeId) -> Duration {
    loop {
        match weather.packet(from, to) {
            Some(delay) => return delay,
            None => sleep(RESEND).await,
        }
    }
}

/// Waits until a packet has passed.
pub(super) async fn pass(weather: &dyn Weather, from: &NodeId, to: &NodeId) {
    let delay = passage(weather, from, to).await;
    if !delay.is_zero() {
        sleep(delay).await;
    }
}

/// The messages of one lane that are on their way, in the order in which they will arrive.
#[derive(Default)]
pub(super) struct Transit {
    arriving: BTreeMap<(Instant, u64), Bytes>,
    sent: u64,
}

impl Transit {
    /// Sends one message on its way; gives back what arrives at once.
    pub(super) fn send(&mut self, message: Bytes, fate: Fate) -> Option<Bytes> {
        match fate {
            Fate::Arrives(Duration::ZERO) => return Some(message),
            Fate::Arrives(delay) => self.put(message, delay),
            Fate::Twice(first, second) => {
                self.put(message.clone(), first);
                self.put(message, second);
            }
            Fate::Lost => {}
        }
        None
    }

    fn put(&mut self, message: Bytes, delay: Duration) {
        self.sent += 1;
        self.arriving.insert((sleep(delay).deadline(), self.sent), message);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.arriving.is_empty()
    }

    /// Whether it holds as many as it may.
    pub(super) fn is_full(&self) -> bool {
        self.arriving.len() >= LANE_MESSAGES_MAX
    }

    /// Waits for the next one to arrive; forever, while there is none. Given up on, it loses nothing.
    pub(super) async fn next(&mut self) -> Bytes {
        if let Some(((due, _), _)) = self.arriving.first_key_value() {
            sleep_until(*due).await;
            if let Some((_, message)) = self.arriving.pop_first() {
                return message;
            }
        }
        std::future::pending().await
    }
}
