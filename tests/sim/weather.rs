//! The network between the hosts: seeded delays, losses, doubles, and directions that are cut.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use outrigger::transport::Lane;
use outrigger::transport::memory::{Fate, Weather, Words};
use outrigger::types::NodeId;
use parking_lot::Mutex;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::later;
use crate::random;
use crate::sometimes::sometimes;

/// As QUIC's idle timeout.
pub(crate) const IDLE_LIMIT: Duration = Duration::from_secs(3);
const DELAY_MS_MAX: u64 = 40;
/// One packet in so many takes many times as long.
const SLOW_ONE_IN: u32 = 100;
const SLOWER: u64 = 20;

pub(crate) struct SeededWeather {
    inner: Mutex<Inner>,
}

struct Inner {
    random: StdRng,
    /// Directions that nothing passes.
    cuts: BTreeSet<(NodeId, NodeId)>,
    /// The nodes that run a later version of the program.
    later: BTreeSet<NodeId>,
    /// The range of delays of this world.
    delay_ms_max: u64,
    loss: f64,
    twice: f64,
}

impl SeededWeather {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = random::stream(seed, "weather");
        let delay_ms_max = random.random_range(0..=DELAY_MS_MAX);
        // Half of the worlds lose and double nothing of what is not cut.
        let rough = random.random_bool(0.5);
        let (loss, twice) =
            if rough { (random.random_range(0.0..0.05), random.random_range(0.0..0.15)) } else { (0.0, 0.0) };
        let (cuts, later) = (BTreeSet::new(), BTreeSet::new());
        Self { inner: Mutex::new(Inner { random, cuts, later, delay_ms_max, loss, twice }) }
    }

    /// From now on nothing passes from `from` to `to`; what passes the other way is up to the other direction.
    pub(crate) fn cut(&self, from: &NodeId, to: &NodeId) {
        self.inner.lock().cuts.insert((from.clone(), to.clone()));
    }

    /// From now on what `node` says is said by a later version of the program, or by this one.
    pub(crate) fn set_version(&self, node: &NodeId, is_later: bool) {
        let mut inner = self.inner.lock();
        if is_later {
            inner.later.insert(node.clone());
        } else {
            inner.later.remove(node);
        }
    }

    /// All directions are whole again.
    pub(crate) fn mend(&self) {
        self.inner.lock().cuts.clear();
    }

    /// From now on nothing is lost or doubled by chance.
    pub(crate) fn calm(&self) {
        let mut inner = self.inner.lock();
        (inner.loss, inner.twice) = (0.0, 0.0);
    }
}

impl Inner {
    fn delay(&mut self) -> Duration {
        let slow = if self.random.random_ratio(1, SLOW_ONE_IN) { SLOWER } else { 1 };
        Duration::from_millis(self.random.random_range(0..=self.delay_ms_max) * slow)
    }

    fn loses(&mut self, from: &NodeId, to: &NodeId) -> bool {
        self.cuts.contains(&(from.clone(), to.clone())) || self.random.random_bool(self.loss)
    }
}

impl Weather for SeededWeather {
    fn message(&self, from: &NodeId, to: &NodeId, _lane: Lane, _bytes: usize) -> Fate {
        let mut inner = self.inner.lock();
        if inner.loses(from, to) {
            sometimes!("a message was lost");
            return Fate::Lost;
        }
        let twice = inner.twice;
        if inner.random.random_bool(twice) {
            sometimes!("a message came twice");
            return Fate::Twice(inner.delay(), inner.delay());
        }
        Fate::Arrives(inner.delay())
    }

    fn packet(&self, from: &NodeId, to: &NodeId) -> Option<Duration> {
        let mut inner = self.inner.lock();
        (!inner.loses(from, to)).then(|| inner.delay())
    }

    fn said(&self, by: &NodeId, words: Words, bytes: Bytes) -> Bytes {
        let is_later = self.inner.lock().later.contains(by);
        if is_later { later::said(words, &bytes).into() } else { bytes }
    }

    fn idle_limit(&self) -> Option<Duration> {
        Some(IDLE_LIMIT)
    }
}
