//! Watches: the rows of a prefix as they are, then every change of them, at the watcher's own pace.
//!
//! ```text
//!   since an id that can go on:                             changes ─► …
//!   otherwise:   Snapshot ─► rows … ─► SnapshotEnd(id) ─► changes after it ─► …
//! ```
//!
//! The snapshot is one moment's state, and what follows it begins at that moment. Between two portions a watcher has a place
//! in the feed and nothing else; one that is overrun, and every one when the node stops, is told so with an error, its last.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::error::{ApiError, Written};
use super::service::{REOPEN_ATTEMPTS_MAX, Service};
use crate::store::error::Error as StoreError;
use crate::store::feed::{Cut, Event, EventId, Watch};
use crate::store::replicator::Op;
use crate::store::{Item, ListQuery, Rows, Shard};
use crate::types::{Ballot, Key, ShardId, Value};

/// The most changes of one portion.
pub const PORTION_EVENTS_MAX: usize = 64;
/// No further change joins a portion of so many bytes of keys and values.
pub const PORTION_BYTES_SOFT_MAX: usize = 64 * 1024;
/// How long nothing is told at most: then it is told that nothing happened, so that a client that is gone is noticed, and
/// one that comes back later can go on from there.
pub const HEARTBEAT: Duration = Duration::from_secs(5);

/// What a watcher is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// What it knew is void: from here to [`Told::SnapshotEnd`] come all rows that there are, in key order.
    Snapshot,
    /// A key has this value.
    Put {
        /// Which key.
        key: Key,
        /// Its value.
        value: Value,
        /// Its version.
        upd: Ballot,
        /// Where to go on after it; none within a snapshot, of which half is nothing to go on from.
        id: Option<EventId>,
    },
    /// A key has no value any more.
    Del {
        /// Which key.
        key: Key,
        /// The version of its deletion.
        upd: Ballot,
        /// Where to go on after it.
        id: EventId,
    },
    /// The snapshot is complete; what follows has happened since.
    SnapshotEnd(EventId),
    /// Nothing happened since the last that was told.
    Idle(EventId),
}

/// A watch under way. Dropping it ends it.
#[derive(Debug)]
pub struct Watching {
    watch: Arc<Watch>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Rows are still to come: the first are here, and the others where there are any.
    Snapshot {
        first: Option<Vec<Item>>,
        rest: Option<Rest>,
        began: Arc<Mutex<EventId>>,
    },
    Live,
    Over,
}

/// The rows of a snapshot, whose shard stays open for as long.
#[derive(Debug)]
struct Rest {
    rows: Rows,
    _shard: Arc<Shard>,
}

impl Service {
    /// Begins to watch the keys of `shard` under `prefix`: after `since`, where all that happened since can still be told,
    /// with a snapshot otherwise. A shard that is not stored here has no rows yet, and is not made by this.
    ///
    /// [`ApiError::Busy`] where there are too many watchers, or the node stops.
    pub async fn watch(&self, shard: &ShardId, prefix: &str, since: Option<EventId>) -> Result<Watching, ApiError> {
        let _token = self.begin_unless_draining()?;
        let bell = Arc::new(Notify::new());
        let watch = self.feed().watch(shard, vec![prefix.to_owned()], since, bell);
        let watch = Arc::new(watch.map_err(|error| ApiError::from_store(error, Written::No))?);
        if watch.is_resumed() {
            return Ok(Watching { watch, stage: Stage::Live });
        }
        // Where there is no shard, this is the moment: whatever comes into being is told from here on.
        let began = Arc::new(Mutex::new(watch.begin_now()));
        let (mut first, mut rest) = (None, None);
        if let Some((shard, mut rows)) = self.snapshot(shard, prefix, &watch, &began).await? {
            // The first rows decide whether there is a snapshot at all.
            first = rows.next().await.map_err(|error| ApiError::from_store(error, Written::No))?;
            rest = Some(Rest { rows, _shard: shard });
        }
        Ok(Watching { watch, stage: Stage::Snapshot { first: Some(first.unwrap_or_default()), rest, began } })
    }

    async fn snapshot(
        &self,
        shard: &ShardId,
        prefix: &str,
        watch: &Arc<Watch>,
        began: &Arc<Mutex<EventId>>,
    ) -> Result<Option<(Arc<Shard>, Rows)>, ApiError> {
        let mut attempts = 0;
        loop {
            let Some(open) = self.find(shard).await? else { return Ok(None) };
            let (watch, began) = (Arc::clone(watch), Arc::clone(began));
            let mark = move || *began.lock() = watch.begin_now();
            match open.rows_as_of(ListQuery::prefix(prefix), mark).await {
                Ok(rows) => return Ok(Some((open, rows))),
                Err(StoreError::Closed) if attempts < REOPEN_ATTEMPTS_MAX => attempts += 1,
                Err(error) => return Err(ApiError::from_store(error, Written::No)),
            }
        }
    }
}

impl Watching {
    /// True where it goes on after the id that it was asked for.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.watch.is_resumed()
    }

    /// Waits for what is to be told next, at least one thing. None after an error, which is the last.
    pub async fn next(&mut self) -> Option<Result<Vec<Told>, ApiError>> {
        let told = match &mut self.stage {
            Stage::Over => return None,
            Stage::Live => self.live().await,
            Stage::Snapshot { .. } => self.of_snapshot().await,
        };
        if told.is_err() {
            self.stage = Stage::Over;
        }
        Some(told)
    }

    async fn of_snapshot(&mut self) -> Result<Vec<Told>, ApiError> {
        let Stage::Snapshot { first, rest, began } = &mut self.stage else { return Ok(Vec::new()) };
        self.watch.check_open()?;
        let (mut told, rows) = match (first.take(), rest.as_mut()) {
            (Some(rows), _) => (vec![Told::Snapshot], Some(rows).filter(|rows| !rows.is_empty())),
            (None, Some(rest)) => {
                let rows = rest.rows.next().await;
                (Vec::new(), rows.map_err(|error| ApiError::from_store(error, Written::No))?)
            }
            (None, None) => (Vec::new(), None),
        };
        match rows {
            Some(rows) => told.extend(rows.into_iter().map(|item| {
                let value = item.value.unwrap_or_default();
                Told::Put { key: item.key, value, upd: item.upd, id: None }
            })),
            None => {
                told.push(Told::SnapshotEnd(*began.lock()));
                self.stage = Stage::Live;
            }
        }
        Ok(told)
    }

    async fn live(&self) -> Result<Vec<Told>, ApiError> {
        loop {
            let is_idle = tokio::time::timeout(HEARTBEAT, self.watch.changed()).await.is_err();
            let taken = self.watch.take(PORTION_EVENTS_MAX, PORTION_BYTES_SOFT_MAX)?;
            if !taken.events.is_empty() {
                return Ok(taken.events.into_iter().map(|event| self.tell(event)).collect());
            }
            if is_idle && !taken.more {
                return Ok(vec![Told::Idle(self.watch.event_id(taken.upto))]);
            }
            // Looked at a lot that does not concern it: others first.
            tokio::task::yield_now().await;
        }
    }

    fn tell(&self, event: Event) -> Told {
        let id = self.watch.event_id(event.number);
        match event.op {
            Op::Put(value) => Told::Put { key: event.key, value, upd: event.upd, id: Some(id) },
            Op::Del => Told::Del { key: event.key, upd: event.upd, id },
        }
    }
}

impl From<Cut> for ApiError {
    fn from(cut: Cut) -> Self {
        match cut {
            Cut::Overrun => Self::SlowClient(format!("{cut}; watch again, and take the snapshot that comes first")),
            Cut::Lost => Self::Busy(format!("{cut}; watch again, and take the snapshot that comes first")),
            Cut::Stopping => Self::Busy(format!("{cut}; watch again once it is back, or on another node")),
        }
    }
}
