//! The service as one caller may use it: the one place where a command meets the rules.
//!
//! Whatever a dialect asks of the service it asks through a [`Guest`], which first asks the [`Gate`]: is this caller allowed to,
//! has the org asked too much, has it stored too much. What it hands on without asking says nothing of any tenant.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::access::{Peer, Want, Who};
use super::backup::Copied;
use super::command::{Batch, BatchOp, Consistency, Get, List, Scope, Write};
use super::error::{ApiError, Written};
use super::gate::Gate;
use super::limits::growth;
use super::list::{Listing, Whole};
use super::metrics::Metrics;
use super::room::Share;
use super::service::{Service, ServiceConfig};
use super::watch::Watching;
use crate::cluster::change::VoterChange;
use crate::cluster::status::{ClusterStatus, ShardStatus};
use crate::store::feed::{EventId, Watch};
use crate::store::update::{Change, Outcome, Row};
use crate::store::{ListQuery, Shard};
use crate::token::TokenDigest;
use crate::types::{Key, Org, ShardId};

/// The service, and who asks.
#[derive(Clone)]
pub(super) struct Guest {
    service: Arc<Service>,
    gate: Arc<Gate>,
    who: Who,
}

/// What says nothing of any tenant.
impl Guest {
    pub(super) fn new(service: Arc<Service>, gate: Arc<Gate>, peer: Option<Peer>) -> Self {
        Self { service, gate, who: Who { peer, token: None } }
    }

    /// The same process, with this as its token, or with none.
    pub(super) fn showing(&self, token: Option<TokenDigest>) -> Self {
        Self { who: Who { token, ..self.who }, ..self.clone() }
    }

    /// True where nothing is known of who asks that any rule cares for.
    pub(super) fn is_stranger(&self) -> bool {
        self.gate.is_stranger(&self.who)
    }

    pub(super) fn config(&self) -> &ServiceConfig {
        self.service.config()
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.service.metrics
    }

    pub(super) fn monotonic(&self) -> Duration {
        self.service.monotonic()
    }

    pub(super) fn is_draining(&self) -> bool {
        self.service.is_draining()
    }

    pub(super) fn late(&self, scope: &Scope, within: Duration) -> ApiError {
        self.service.late(scope, within)
    }

    pub(super) fn timeout(&self, wanted: Option<Duration>) -> Duration {
        self.service.timeout(wanted)
    }

    /// A share of nothing of the room for input.
    pub(super) fn share(&self) -> Share {
        self.service.room.share()
    }

    /// Nodes and figures, as the admin port shows them to whoever reaches it; and what names shards, to whom it may be shown.
    pub(super) fn cluster(&self) -> ClusterStatus {
        let cluster = self.service.observe().cluster();
        if self.gate.shows(&self.who, Want::Govern) { cluster } else { cluster.showing(|shard| self.sees(shard)) }
    }

    pub(super) fn health(&self) -> Result<(), ApiError> {
        self.service.observe().health().map_err(ApiError::Unhealthy)
    }
}

/// Asking.
impl Guest {
    /// Refuses what this caller may not do. Every command asks by itself; this is for who wants to know before it takes more
    /// trouble, such as reading a body.
    pub(super) fn check(&self, want: Want<'_>) -> Result<(), ApiError> {
        self.gate.check(&self.who, want, self.monotonic())
    }

    /// Takes note of one operation on `org`.
    pub(super) fn spend(&self, org: &Org) -> Result<(), ApiError> {
        self.gate.spend(org, self.monotonic())
    }

    fn begin(&self, want: Want<'_>, org: &Org) -> Result<(), ApiError> {
        self.check(want)?;
        self.spend(org)
    }

    /// Whether lists show a shard to this caller.
    fn sees(&self, shard: &ShardId) -> bool {
        self.gate.shows(&self.who, Want::Read(shard))
    }

    /// Whoever shows `token`, and wants to use `shard` if one is named. One that nobody knows is no token, which is refused
    /// unless the caller may do as it likes without: clients have to send something.
    pub(super) fn log_in(&self, shard: Option<&ShardId>, token: TokenDigest) -> Result<Self, ApiError> {
        let is_known = self.gate.knows(&token);
        let guest = self.showing(is_known.then_some(token));
        let may = match shard {
            Some(shard) => guest.sees(shard),
            None => is_known || !self.gate.takes_tokens(),
        };
        match shard {
            _ if may => Ok(guest),
            // Says what is wrong, and takes note of it.
            Some(shard) => Err(self.showing(Some(token)).check(Want::Read(shard)).err().unwrap_or_else(unknown_token)),
            None => Err(unknown_token()),
        }
    }
}

fn unknown_token() -> ApiError {
    ApiError::TokenUnknown("this token is unknown here".to_owned())
}

/// Keys.
impl Guest {
    pub(super) async fn get(&self, get: Get) -> Result<Option<Row>, ApiError> {
        self.begin(Want::Read(&get.at.shard), &get.at.shard.org)?;
        self.service.get(get).await
    }

    pub(super) async fn write(&self, write: Write) -> Result<Outcome, ApiError> {
        self.begin_write(&write.at.shard, &write.at.key, &write.update.change).await?;
        self.service.write(write).await
    }

    /// The shard, to be read, if that can be done without waiting for it to be opened. Each read of it is to be
    /// [noted](Self::spend).
    pub(super) fn open_shard(&self, shard: &ShardId) -> Result<Option<Arc<Shard>>, ApiError> {
        self.check(Want::Read(shard))?;
        Ok(self.service.open_shard(shard))
    }

    async fn begin_write(&self, shard: &ShardId, key: &Key, change: &Change) -> Result<(), ApiError> {
        self.begin(Want::Write(shard), &shard.org)?;
        let (Some(max), Some(more)) = (self.gate.bytes_max(&shard.org), growth(key, change)) else { return Ok(()) };
        let now = self.monotonic();
        let stored = match self.gate.stored(&shard.org, now) {
            Some(stored) => stored,
            None => {
                let stored = self.service.stored_bytes(shard).await?;
                self.gate.found(&shard.org, stored, now);
                stored
            }
        };
        self.gate.let_in(&shard.org, more, stored, max, now)
    }

    /// Each operation is asked for by itself: those refused have that as their result, the others are carried out.
    pub(super) async fn batch(&self, batch: Batch) -> Vec<Result<Outcome, ApiError>> {
        if self.gate.is_open() {
            return self.service.batch(batch).await;
        }
        let Batch { shard, ops, reads, writes, timeout } = batch;
        let (mut allowed, mut refusals) = (Vec::with_capacity(ops.len()), Vec::with_capacity(ops.len()));
        for op in ops {
            let asked = match &op {
                BatchOp::Get(_) => self.begin(Want::Read(&shard), &shard.org),
                BatchOp::Write(key, update) => self.begin_write(&shard, key, &update.change).await,
            };
            if asked.is_ok() {
                allowed.push(op);
            }
            refusals.push(asked.err());
        }
        let mut done = self.service.batch(Batch { shard, ops: allowed, reads, writes, timeout }).await.into_iter();
        let mut next = || {
            let lost = || ApiError::Internal { detail: "a result was lost".to_owned(), written: Written::Unknown };
            done.next().unwrap_or_else(|| Err(lost()))
        };
        refusals.into_iter().map(|refusal| refusal.map_or_else(&mut next, Err)).collect()
    }
}

/// Lists and watches.
impl Guest {
    fn begin_list(&self, scope: &Scope) -> Result<(), ApiError> {
        match scope {
            Scope::Shard(shard) => self.begin(Want::Read(shard), &shard.org),
            Scope::Org(org) => self.begin(Want::Anything, org),
        }
    }

    pub(super) async fn list(&self, list: List) -> Result<Listing, ApiError> {
        self.begin_list(&list.scope)?;
        self.service.list_of(list, &|shard| self.sees(shard)).await
    }

    pub(super) async fn whole(&self, scope: Scope, query: ListQuery, rows_max: usize) -> Result<Whole, ApiError> {
        self.begin_list(&scope)?;
        self.service.whole(scope, query, rows_max, &|shard| self.sees(shard)).await
    }

    pub(super) async fn keys_where(
        &self,
        shard: &ShardId,
        prefix: String,
        bytes_max: usize,
        is_wanted: impl Fn(&Key) -> bool + Send + 'static,
    ) -> Result<Vec<Key>, ApiError> {
        self.begin(Want::Read(shard), &shard.org)?;
        self.service.keys_where(shard, prefix, bytes_max, is_wanted).await
    }

    pub(super) async fn count(&self, shard: &ShardId) -> Result<u64, ApiError> {
        self.begin(Want::Read(shard), &shard.org)?;
        self.service.count(shard).await
    }

    /// What it tells later is to be [asked for](Self::check) again: a token may be taken back meanwhile.
    pub(super) async fn watch(
        &self,
        shard: &ShardId,
        prefix: &str,
        since: Option<EventId>,
    ) -> Result<Watching, ApiError> {
        self.begin(Want::Read(shard), &shard.org)?;
        self.service.watch(shard, prefix, since).await
    }

    /// Likewise, for who is told of what there is by a bell.
    pub(super) fn subscribe(
        &self,
        shard: &ShardId,
        prefixes: Vec<String>,
        bell: &Arc<Notify>,
    ) -> Result<Watch, ApiError> {
        self.begin(Want::Read(shard), &shard.org)?;
        self.service.check_not_draining()?;
        let watch = self.service.feed().watch(shard, prefixes, None, Arc::clone(bell));
        let watch = watch.map_err(|error| ApiError::from_store(error, Written::No))?;
        self.service.want_copy(shard);
        Ok(watch)
    }

    pub(super) async fn orgs(&self) -> Result<Vec<Org>, ApiError> {
        self.check(Want::Anything)?;
        let mut orgs = self.service.orgs().await?;
        if !self.gate.is_open() {
            let all = std::mem::take(&mut orgs);
            for org in all {
                if self.service.shards_of(org.clone()).await?.iter().any(|shard| self.sees(shard)) {
                    orgs.push(org);
                }
            }
        }
        Ok(orgs)
    }

    pub(super) async fn shard_statuses(&self, org: Option<Org>) -> Result<Vec<ShardStatus>, ApiError> {
        self.check(Want::Anything)?;
        self.service.shard_statuses(org, &|shard| self.sees(shard)).await
    }
}

/// Administration.
impl Guest {
    pub(super) async fn checkpoint(&self, shard: &ShardId) -> Result<(), ApiError> {
        self.check(Want::Keep(shard))?;
        self.service.checkpoint(shard).await
    }

    pub(super) async fn shards_to_copy(
        &self,
        org: Option<Org>,
        consistency: Consistency,
    ) -> Result<Vec<ShardId>, ApiError> {
        self.check(Want::KeepSome)?;
        let mut shards = self.service.shards_to_copy(org, consistency).await?;
        shards.retain(|shard| self.gate.shows(&self.who, Want::Keep(shard)));
        Ok(shards)
    }

    pub(super) async fn copy(&self, shard: &ShardId, consistency: Consistency) -> Result<Option<Copied>, ApiError> {
        self.check(Want::Keep(shard))?;
        self.service.copy(shard, consistency).await
    }

    pub(super) async fn change(&self, change: VoterChange) -> Result<(), ApiError> {
        self.check(Want::Govern)?;
        Ok(self.service.govern()?.change(change).await?)
    }

    pub(super) async fn recover(&self) -> Result<(), ApiError> {
        self.check(Want::Govern)?;
        Ok(self.service.govern()?.recover().await?)
    }
}
