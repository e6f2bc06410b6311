//! What a backup is made of: the shards there are, and a copy of each.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use super::command::Consistency;
use super::error::{ApiError, Written};
use super::service::{COPIES_MAX, Service};
use crate::store::ShardCopy;
use crate::types::{Org, ShardId};

/// How long a copy waits for its turn before it is refused as busy.
const COPY_TURN_TIMEOUT: Duration = Duration::from_secs(60);

/// A copy, and its place among those that may be there at once.
pub struct Copied {
    /// The copy.
    pub copy: ShardCopy,
    _turn: OwnedSemaphorePermit,
}

impl Service {
    /// The shards to back up, sorted: those of `org`, or of all orgs. With [`Consistency::Quorum`] all to which any node
    /// acknowledged a write before the call; with [`Consistency::Local`] those stored here.
    pub async fn shards_to_copy(&self, org: Option<Org>, consistency: Consistency) -> Result<Vec<ShardId>, ApiError> {
        let mut shards = Vec::new();
        if consistency == Consistency::Quorum
            && let Some(replicator) = self.manager().replicator()
        {
            shards = replicator.shards().await?;
            shards.retain(|shard| !shard.is_system() && org.as_ref().is_none_or(|org| shard.org == *org));
        }
        let orgs = match org {
            Some(org) => vec![org],
            None => self.orgs().await?,
        };
        for org in orgs {
            shards.extend(self.shards_of(org).await?);
        }
        shards.sort();
        shards.dedup();
        Ok(shards)
    }

    /// A copy of a shard with every write that was acknowledged before the call: by any node with
    /// [`Consistency::Quorum`], by this one with [`Consistency::Local`]. None where it is stored nowhere.
    pub async fn copy(&self, shard: &ShardId, consistency: Consistency) -> Result<Option<Copied>, ApiError> {
        let _token = self.begin_unless_draining()?;
        let turn = tokio::time::timeout(COPY_TURN_TIMEOUT, Arc::clone(&self.copies).acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            return Err(ApiError::Busy(format!("{COPIES_MAX} copies of shards are being read already; try again")));
        };
        if consistency == Consistency::Quorum
            && let Some(replicator) = self.manager().replicator()
        {
            replicator.catch_up(shard).await?;
        }
        let Some(found) = self.find(shard).await? else { return Ok(None) };
        // Ends with this call, should its client go.
        let wanted = Arc::new(());
        let still = Arc::downgrade(&wanted);
        let copied = self.blocking(move || found.copy(&|| still.strong_count() > 0)).await;
        let copy = copied.map_err(|error| match error {
            ApiError::Internal { detail, .. } => ApiError::Internal { detail, written: Written::No },
            error => error,
        })?;
        drop(wanted);
        Ok(Some(Copied { copy, _turn: turn }))
    }
}
