//! The core's side of the journal: one append in flight, so that what comes meanwhile shares the next sync; and giving
//! up old segments once the shard files hold what is in them.

use std::time::Duration;

use super::COMPACT_AT_SEGMENTS;
use crate::clock::Now;
use crate::cluster::memory::PeerMemory;
use crate::replication::journal::{JournalError, JournalWriter, Submission};
use crate::replication::register::{Acceptor, Entry};
use crate::store;

/// How long after a failed compaction the next is tried.
const COMPACT_RETRY: Duration = Duration::from_secs(10);

/// Where giving up old segments stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compaction {
    Idle,
    /// The next append begins a new segment and repeats in it what is still needed of the old.
    Due,
    /// That append is on its way; then the shard files are being synced.
    Running,
    /// They could not be synced, and are to be tried again; the segment begun with this batch still serves.
    Failed(u64),
}

#[derive(Debug)]
pub(super) struct Disk {
    journal: JournalWriter,
    in_flight: bool,
    compaction: Compaction,
    /// No compaction before then: the last one failed.
    compact_after: Duration,
    memories_submitted: u64,
    memories_durable: u64,
    full: Option<String>,
    /// Its thread has ended: nothing will be durable any more.
    dead: bool,
}

impl Disk {
    pub(super) fn new(journal: JournalWriter) -> Self {
        Self {
            journal,
            in_flight: false,
            compaction: Compaction::Idle,
            compact_after: Duration::ZERO,
            memories_submitted: 0,
            memories_durable: 0,
            full: None,
            dead: false,
        }
    }

    /// Why nothing can be stored now.
    pub(super) fn full(&self) -> Option<&str> {
        self.full.as_deref()
    }

    /// True once nothing will be durable any more.
    pub(super) fn is_dead(&self) -> bool {
        self.dead
    }

    pub(super) fn on_failed(&mut self) {
        self.dead = true;
    }

    /// Submits what the acceptor wants written, unless a batch is in flight already; `outbox` is all that waits in it.
    pub(super) fn append(&mut self, acceptor: &mut Acceptor, outbox: impl FnOnce() -> Vec<Entry>, now: Now) {
        let rotate = self.compaction == Compaction::Due;
        if self.in_flight || !(acceptor.has_entries() || rotate) {
            return;
        }
        acceptor.extend_ceiling(now);
        let (mut entries, lsn) = acceptor.take_entries();
        if rotate {
            self.compaction = Compaction::Running;
            entries.push(Entry::Ceiling(acceptor.ceiling()));
            entries.extend(acceptor.kept_entries());
            entries.extend(outbox());
        }
        self.in_flight = self.journal.submit(Submission::Append { entries, lsn, rotate });
    }

    /// A batch is durable; where it began a segment, those before are needed only until the shard files are synced: the
    /// batch before which they are to be, where it is time.
    pub(super) fn on_durable(&mut self, now: Now, rotated_at: Option<u64>, closed_segments: usize) -> Option<u64> {
        self.in_flight = false;
        if rotated_at.is_some() {
            return rotated_at;
        }
        if now.monotonic < self.compact_after {
            return None;
        }
        match self.compaction {
            Compaction::Failed(before) => {
                self.compaction = Compaction::Running;
                return Some(before);
            }
            Compaction::Idle if closed_segments >= COMPACT_AT_SEGMENTS => self.compaction = Compaction::Due,
            Compaction::Idle | Compaction::Due | Compaction::Running => {}
        }
        None
    }

    /// The shard files hold everything of the segments before that batch, or could not be synced.
    pub(super) fn on_synced(&mut self, now: Now, before: u64, result: Result<(), store::Error>) {
        match result {
            Ok(()) => {
                self.compaction = Compaction::Idle;
                self.journal.submit(Submission::DropBefore(before));
            }
            Err(error) => {
                self.compaction = Compaction::Failed(before);
                self.compact_after = now.monotonic + COMPACT_RETRY;
                tracing::warn!(%error, "the shard files could not be synced; the journal keeps its segments");
            }
        }
    }

    pub(super) fn on_full(&mut self, error: &JournalError) {
        tracing::error!(%error, "the disk is full: nothing is accepted until there is room");
        self.full = Some(error.to_string());
    }

    pub(super) fn on_room(&mut self) {
        tracing::info!("the disk has room again");
        self.full = None;
    }

    /// Has what is remembered of the peers' disks written down. `Some(n)` where votes must wait until `n` memories are
    /// durable.
    pub(super) fn remember(&mut self, memory: Option<PeerMemory>) -> Option<u64> {
        if let Some(memory) = memory
            && self.journal.submit(Submission::Remember(memory))
        {
            self.memories_submitted += 1;
        }
        (self.memories_submitted > self.memories_durable).then_some(self.memories_submitted)
    }

    /// One more memory is durable; returns how many are.
    pub(super) fn on_remembered(&mut self) -> u64 {
        self.memories_durable += 1;
        self.memories_durable
    }

    pub(super) fn displace(&self, why: String) {
        self.journal.submit(Submission::Displace(why));
    }

    pub(super) fn bar(&self, why: &str) {
        self.journal.submit(Submission::Bar(why.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::OsClock;
    use crate::replication::journal::{Durability, Journal, JournalConfig};
    use crate::replication::register::{AcceptorConfig, Restored};

    /// A shard file that could not be synced cost a new segment every ten seconds, until the disk was full.
    #[test]
    fn a_compaction_that_failed_is_tried_again_with_the_segment_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let config =
            JournalConfig { segment_bytes: 1 << 16, durability: Durability::Os, ..JournalConfig::at(dir.path()) };
        let (journal, _) = Journal::open(config, 1).unwrap();
        let (events, _written) = tokio::sync::mpsc::unbounded_channel();
        let mut disk = Disk::new(JournalWriter::spawn(journal, OsClock::shared(), events).unwrap());
        let mut acceptor = Acceptor::new(AcceptorConfig::default(), Restored::default());
        let at = |seconds| Now { wall: 0, monotonic: Duration::from_secs(seconds) };
        assert_eq!(disk.on_durable(at(0), None, COMPACT_AT_SEGMENTS), None);
        disk.append(&mut acceptor, Vec::new, at(0));
        assert_eq!(disk.on_durable(at(0), Some(7), COMPACT_AT_SEGMENTS), Some(7));
        for round in 1..4 {
            disk.on_synced(at(round * 20), 7, Err(store::Error::Timeout));
            assert_eq!(disk.on_durable(at(round * 20 + 1), None, COMPACT_AT_SEGMENTS), None, "not at once");
            assert_eq!(disk.on_durable(at(round * 20 + 11), None, COMPACT_AT_SEGMENTS), Some(7));
            assert_eq!(disk.on_durable(at(round * 20 + 19), None, COMPACT_AT_SEGMENTS), None, "it runs");
        }
        disk.on_synced(at(100), 7, Ok(()));
        assert_eq!((disk.on_durable(at(111), None, 0), disk.compaction), (None, Compaction::Idle));
    }
}
