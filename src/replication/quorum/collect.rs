//! Having old deletions forgotten on all replicas of a shard (rule 10): what `replication/collection.rs` plans, asked of each.
//!
//! ```text
//!   Refuse(G) to each ─► Old(G) of each, until all have been alike ─► Forget(G) to each
//! ```
//!
//! One node does it for a shard, its home, one shard at a time; that is a hint, and two that do it at once do no harm. All
//! replicas have to be there from the first step to the last but one. Where it breaks off, refusals remain, or floors on some
//! replicas: the others adopt those when they next compare rows. `floors.rs` answers.

use std::time::Duration;

use futures_util::future::try_join_all;
use metrics::{Gauge, gauge};

use super::Rooms;
use super::catch_up::{Error, With, blocking};
use super::floors::{self, Replicas};
use crate::clock::Clock as _;
use crate::replication::collection::{Agreement, LOOKS_MAX, Schedule};
use crate::replication::wire::Collection;
use crate::store;
use crate::telemetry;
use crate::types::{Ballot, NodeId, ShardId};

/// How often it is looked for something to forget, as a part of the grace, and its bounds.
const LOOKS_PER_GRACE: u32 = 8;
const LOOK_EVERY_MIN: Duration = Duration::from_millis(100);
const LOOK_EVERY_MAX: Duration = Duration::from_secs(30);
/// How long a shard is left alone that was not to be collected, in looks.
const PUT_OFF_LOOKS: u32 = 4;
/// Between two looks at old rows: what is on its way meanwhile arrives.
const LOOK_AGAIN: Duration = Duration::from_millis(300);
/// How long one shard may take.
const COLLECT_WITHIN: Duration = Duration::from_secs(120);

/// What became of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    /// A replica is away, or another node sees to it.
    Waiting,
    /// A replica has not all rows yet.
    Different,
}

/// Forgets deletions that are older than `grace`, until the driver ends.
pub(super) async fn collect(rooms: Rooms, grace: Duration) {
    let every = (grace / LOOKS_PER_GRACE).clamp(LOOK_EVERY_MIN, LOOK_EVERY_MAX);
    let mut collector = Collector {
        schedule: Schedule::new(grace),
        held: gauge!(telemetry::TOMBSTONES),
        age: gauge!(telemetry::TOMBSTONE_AGE),
        rooms,
    };
    if let Err(error) = floors::let_go_of_refusals(&collector.rooms).await {
        tracing::debug!(%error, "refusals that may not be needed any more are kept");
    }
    loop {
        tokio::time::sleep(every).await;
        collector.count().await;
        let now = collector.rooms.clock.now();
        let (due, floor) = collector.schedule.due(now);
        for shard in due {
            collector.see_to(&shard, floor).await;
            let until = collector.rooms.clock.now().monotonic + every * PUT_OFF_LOOKS;
            collector.schedule.put_off(&shard, until);
        }
    }
}

struct Collector {
    rooms: Rooms,
    schedule: Schedule,
    held: Gauge,
    age: Gauge,
}

impl Collector {
    /// Finds out which deletions this node remembers, and shows it.
    async fn count(&mut self) {
        let remembering = self.rooms.manager.remembering();
        for shard in self.schedule.keep(&remembering) {
            let sum = remembering.get(&shard).map_or(0, |summary| summary.sum.dead);
            let counted = match self.rooms.manager.find(&shard).await {
                Ok(Some(open)) => blocking(move || open.tombstones()).await,
                Ok(None) => continue,
                Err(error) => Err(error.into()),
            };
            match counted {
                Ok(tombstones) => self.schedule.count(shard, sum, tombstones),
                Err(Error::Store(store::Error::Closed) | Error::Stopping) => {}
                Err(error) => tracing::debug!(%shard, %error, "deletions could not be counted"),
            }
        }
        self.held.set(self.schedule.total() as f64);
        self.age.set(self.schedule.age(self.rooms.clock.now()).as_secs_f64());
    }

    async fn see_to(&self, shard: &ShardId, floor: Ballot) {
        let replicas = match floors::replicas(&self.rooms, shard).await {
            Ok(Some(replicas)) => Ok(replicas),
            Ok(None) => return,
            Err(error) => Err(error),
        };
        let collected = match replicas {
            Ok(replicas) => self.collect(shard, floor, replicas).await,
            Err(error) => Err(error),
        };
        let outcome = match &collected {
            Ok(Outcome::Done) => "done",
            Ok(Outcome::Waiting) => "waiting",
            Ok(Outcome::Different) => "different",
            Err(_) => "failed",
        };
        metrics::counter!(telemetry::COLLECTIONS, "outcome" => outcome).increment(1);
        match collected {
            Ok(outcome) => tracing::debug!(%shard, %floor, ?outcome, "old deletions were looked at"),
            Err(error) => tracing::debug!(%shard, %floor, %error, "old deletions are remembered for longer"),
        }
    }

    async fn collect(&self, shard: &ShardId, floor: Ballot, replicas: Replicas) -> Result<Outcome, Error> {
        let Replicas { peers, epoch } = replicas;
        let collection = Collection { shard: shard.clone(), floor, epoch };
        match tokio::time::timeout(COLLECT_WITHIN, self.forget(&collection, &peers)).await {
            Ok(outcome) => outcome,
            Err(_) => Ok(Outcome::Waiting),
        }
    }

    async fn forget(&self, collection: &Collection, peers: &[NodeId]) -> Result<Outcome, Error> {
        let with = || peers.iter().map(|peer| With::new(peer, &self.rooms));
        let mine = floors::refuse(&self.rooms, collection).await?;
        let theirs = try_join_all(with().map(async |with| with.refuse(collection).await)).await?;
        let above = theirs.iter().map(|refused| refused.floor).fold(mine.floor, Ballot::max);
        if above >= collection.floor {
            return Ok(Outcome::Waiting);
        }
        let mut agreement = Agreement::default();
        let mut looks = 0;
        while {
            let mut digests = try_join_all(with().map(async |with| with.old(collection, above).await)).await?;
            digests.push(floors::old(&self.rooms, collection, above).await?);
            !agreement.look(&digests)
        } {
            looks += 1;
            if looks == LOOKS_MAX {
                return Ok(Outcome::Different);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        floors::forget(&self.rooms, collection, mine.storage_id).await?;
        let each = with().zip(&theirs).map(async |(with, refused)| with.forget(collection, refused.storage_id).await);
        try_join_all(each).await?;
        Ok(Outcome::Done)
    }
}
