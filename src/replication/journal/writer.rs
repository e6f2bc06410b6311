//! The thread that waits for the disk, so that nobody else does. While one sync runs, entries gather for the next: that
//! is the group commit.

use std::time::Duration;

use metrics::{Gauge, Histogram};
use tokio::sync::mpsc;

use super::{Journal, JournalError};
use crate::blocking::{self, Worker};
use crate::clock::Clock;
use crate::cluster::memory::PeerMemory;
use crate::replication::register::{Durable, Entry, Lsn};
use crate::telemetry;

/// What the thread is asked to do.
#[derive(Debug)]
pub enum Submission {
    /// Write entries up to a place and make them durable.
    Append {
        /// What.
        entries: Vec<Entry>,
        /// The place after them.
        lsn: Lsn,
        /// Begin a new segment first, so that those before can be dropped later.
        rotate: bool,
    },
    /// Give up every segment that begins before this batch.
    DropBefore(u64),
    /// Make what is remembered of the peers' disks durable.
    Remember(PeerMemory),
    /// Make it durable that this disk must not vote.
    Bar(String),
    /// Make it durable that this disk is not the one that its node's name stands for in epoch 1.
    Displace(String),
}

/// What the thread reports.
#[derive(Debug)]
pub enum WriterEvent {
    /// A batch is durable.
    Durable {
        /// Up to where.
        durable: Durable,
        /// The last batch's number.
        position: u64,
        /// The number of the batch that the current segment began with, where this batch began one.
        rotated_at: Option<u64>,
        /// How many segments are closed and not yet given up.
        closed_segments: usize,
    },
    /// The disk is full and nothing of the batch was written; the thread tries again by itself.
    Full(JournalError),
    /// There is room again.
    RoomAgain,
    /// What is remembered of the peers is durable.
    Remembered,
    /// The journal is poisoned; the thread has ended.
    Failed(JournalError),
}

/// How long a full disk is left alone before the next try.
const FULL_RETRY: Duration = Duration::from_millis(500);

/// A handle on the writer's thread; dropping it ends the thread after what was submitted, and waits for that.
#[derive(Debug)]
pub struct JournalWriter {
    // Dropped first, which tells the thread to end.
    submissions: mpsc::UnboundedSender<Submission>,
    _thread: Worker,
}

struct Writer {
    journal: Journal,
    clock: std::sync::Arc<dyn Clock>,
    events: mpsc::UnboundedSender<WriterEvent>,
    sync_seconds: Histogram,
    batch_entries: Histogram,
    bytes: Gauge,
}

impl JournalWriter {
    /// Starts the thread. Events are bounded by submissions, of which the caller keeps few in flight.
    pub fn spawn(
        journal: Journal,
        clock: std::sync::Arc<dyn Clock>,
        events: mpsc::UnboundedSender<WriterEvent>,
    ) -> Result<Self, JournalError> {
        let (submissions, inbox) = mpsc::unbounded_channel();
        let directory = journal.directory.clone();
        let writer = Writer {
            journal,
            clock,
            events,
            sync_seconds: metrics::histogram!(telemetry::FSYNC_SECONDS),
            batch_entries: metrics::histogram!(telemetry::BATCH_ENTRIES),
            bytes: metrics::gauge!(telemetry::JOURNAL_BYTES),
        };
        let thread = Worker::start("journal", writer.run(inbox));
        Ok(Self { submissions, _thread: thread.map_err(super::io("start the thread of", &directory))? })
    }

    /// Asks for something; `false` where the thread has ended.
    pub fn submit(&self, submission: Submission) -> bool {
        self.submissions.send(submission).is_ok()
    }
}

impl Writer {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Submission>) {
        self.bytes.set(self.journal.bytes() as f64);
        while let Some(submission) = inbox.recv().await {
            let done = match submission {
                Submission::Append { entries, lsn, rotate } => self.append(&entries, lsn, rotate).await,
                Submission::DropBefore(number) => {
                    blocking::timed(|| self.journal.drop_before(number)).await.map(|()| None)
                }
                Submission::Remember(peers) => {
                    let noted = blocking::timed(|| self.journal.header_mut().set_peers(peers)).await;
                    noted.map(|()| Some(WriterEvent::Remembered))
                }
                Submission::Displace(why) => {
                    blocking::timed(|| self.journal.header_mut().displace(&why)).await.map(|()| None)
                }
                Submission::Bar(why) => blocking::timed(|| self.journal.header_mut().bar(&why)).await.map(|()| None),
            };
            self.bytes.set(self.journal.bytes() as f64);
            match done {
                Ok(None) => {}
                Ok(Some(event)) => self.tell(event),
                Err(error) => {
                    // A new process would read the page cache, which may hold what the disk does not: it must not vote
                    // either. On a disk that takes not even this, the failed write may well be found again.
                    if self.journal.poisoned.is_some()
                        && let Err(also) = self.journal.header_mut().bar(&error.to_string())
                    {
                        tracing::error!(%also, "the failure of the journal could not be written down");
                    }
                    return self.tell(WriterEvent::Failed(error));
                }
            }
        }
    }

    async fn append(&mut self, entries: &[Entry], lsn: Lsn, rotate: bool) -> Result<Option<WriterEvent>, JournalError> {
        let started = self.clock.now().monotonic;
        let mut was_full = false;
        let (durable, rotated_at) = loop {
            match blocking::timed(|| self.try_append(entries, lsn, rotate)).await {
                Ok(done) => break done,
                Err(error @ JournalError::Full { .. }) => {
                    if !was_full {
                        self.tell(WriterEvent::Full(error));
                    }
                    was_full = true;
                    if self.events.is_closed() {
                        return Ok(None);
                    }
                    tokio::time::sleep(FULL_RETRY).await;
                }
                Err(error) => return Err(error),
            }
        };
        if was_full {
            self.tell(WriterEvent::RoomAgain);
        }
        self.sync_seconds.record((self.clock.now().monotonic - started).as_secs_f64());
        self.batch_entries.record(entries.len() as f64);
        let position = self.journal.position();
        let closed_segments = self.journal.closed_segments();
        Ok(Some(WriterEvent::Durable { durable, position, rotated_at, closed_segments }))
    }

    fn try_append(
        &mut self,
        entries: &[Entry],
        lsn: Lsn,
        rotate: bool,
    ) -> Result<(Durable, Option<u64>), JournalError> {
        let rotated_at = rotate.then(|| self.journal.next_number());
        if rotate {
            self.journal.rotate(0)?;
        }
        Ok((self.journal.append(entries, lsn)?, rotated_at))
    }

    fn tell(&self, event: WriterEvent) {
        // Nobody listens any more only while the node stops.
        let _ = self.events.send(event);
    }
}
