//! Lists of keys, in pages or whole: of one shard, or of every shard of an org merged in key order.
//!
//! A list of an org has the shards that other nodes alone store, too: a majority is asked for their names where there may be such.
//!
//! A page is one snapshot of each shard it looks into. So is a whole list: of one shard it is handed on as it is taken,
//! however large it is. That of an org needs the rows of all shards before it knows the first key, so it is gathered in
//! memory, one shard after the other, and bounded.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use super::command::{List, Scope};
use super::error::{ApiError, Written};
use super::service::Service;
use crate::clock::Clock;
use crate::store::error::Error as StoreError;
use crate::store::{CROSS_NAMESPACE_KINDS, Item, LIST_WAIT_MAX, ListQuery, Page, PageQuery, Rows, Shard};
use crate::types::{Key, Namespace, ShardId};

/// The most keys on one page.
pub const PAGE_KEYS_MAX: usize = 10_000;
/// How many keys a page has where nobody says.
pub const PAGE_KEYS_DEFAULT: usize = 1_000;
/// A page ends once its keys and values reach this many bytes.
pub const PAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The most bytes of keys and values that a whole list of an org may have.
pub const ORG_LIST_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How many rows of an org's shard are merged at once.
const MERGE_ROWS: usize = 1_024;

/// A page, possibly of many shards.
#[derive(Debug, Default)]
pub struct Listing {
    /// The rows in key order, with the namespace each is from.
    pub items: Vec<(Namespace, Item)>,
    /// The key to go on after; none at the end.
    pub next: Option<Key>,
}

/// A whole list, taken portion by portion.
#[derive(Debug)]
pub(super) enum Whole {
    /// The shard is not stored here.
    Nothing,
    /// Of one shard, which stays open for as long.
    Shard {
        /// Taken as they are read.
        rows: Rows,
        _shard: Arc<Shard>,
    },
    /// Of an org.
    Org {
        /// All in memory.
        items: std::vec::IntoIter<Item>,
        /// They are given up here, in the service's time.
        until: Duration,
        clock: Arc<dyn Clock>,
        _turn: OwnedSemaphorePermit,
    },
}

impl Whole {
    /// The next rows in key order, at least one; none at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Item>>, ApiError> {
        match self {
            Self::Nothing => Ok(None),
            Self::Shard { rows, .. } => rows.next().await.map_err(|error| ApiError::from_store(error, Written::No)),
            Self::Org { until, clock, .. } if clock.now().monotonic > *until => {
                Err(ApiError::from_store(StoreError::Stalled(LIST_WAIT_MAX), Written::No))
            }
            Self::Org { items, .. } => {
                let rows: Vec<_> = items.by_ref().take(MERGE_ROWS).collect();
                Ok(Some(rows).filter(|rows| !rows.is_empty()))
            }
        }
    }
}

impl Service {
    /// Begins a whole list: of an org, of the shards that `shows` lets through. `rows_max` is how many rows its client wants:
    /// it may take fewer, not more.
    pub(super) async fn whole(
        &self,
        scope: Scope,
        query: ListQuery,
        rows_max: usize,
        shows: &(impl Fn(&ShardId) -> bool + Sync),
    ) -> Result<Whole, ApiError> {
        match scope {
            Scope::Shard(shard) => {
                let Some(shard) = self.find(&shard).await? else { return Ok(Whole::Nothing) };
                let rows = shard.rows(query).await.map_err(|error| ApiError::from_store(error, Written::No))?;
                Ok(Whole::Shard { rows, _shard: shard })
            }
            Scope::Org(org) => {
                check_spans_namespaces(&query.prefix)?;
                let _turn = self.org_list_turn().await?;
                let shards = self.every_shard_of(org).await?.into_iter().filter(shows).collect();
                let listing = self.gather(shards, query, rows_max).await?;
                let items: Vec<_> = listing.items.into_iter().map(|(_, item)| item).collect();
                let clock = Arc::clone(&self.clock);
                let until = clock.now().monotonic + LIST_WAIT_MAX;
                Ok(Whole::Org { items: items.into_iter(), until, clock, _turn })
            }
        }
    }

    /// The first `rows_max` rows of an org's shards, of each as one snapshot has them.
    async fn gather(&self, shards: Vec<ShardId>, query: ListQuery, rows_max: usize) -> Result<Listing, ApiError> {
        let mut merge = Merge::new(rows_max, ORG_LIST_BYTES_MAX);
        for id in shards {
            let Some(shard) = self.find(&id).await? else { continue };
            let query = query.clone();
            merge = self.blocking(move || merge.take_in(&shard, &query).map(|()| merge)).await?;
            if merge.is_out_of_room() {
                return Err(ApiError::TooLarge(format!(
                    "the list has more than {ORG_LIST_BYTES_MAX} bytes of keys and values: ask for pages, with limit and after"
                )));
            }
        }
        Ok(merge.finish())
    }

    /// Every key of one shard that `is_wanted`, at most `bytes_max` bytes of them, as one snapshot has them.
    pub(super) async fn keys_where(
        &self,
        shard: &ShardId,
        prefix: String,
        bytes_max: usize,
        is_wanted: impl Fn(&Key) -> bool + Send + 'static,
    ) -> Result<Vec<Key>, ApiError> {
        let Some(shard) = self.find(shard).await? else { return Ok(Vec::new()) };
        let query = ListQuery { prefix, after: None, keys_only: true };
        let walk = move || {
            let (mut keys, mut bytes) = (Vec::new(), 0);
            shard.walk(&query, |item| {
                if is_wanted(&item.key) {
                    bytes += item.key.as_str().len();
                    keys.push(item.key);
                }
                if bytes > bytes_max { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            Ok((keys, bytes))
        };
        let (keys, bytes) = self.blocking(walk).await?;
        if bytes > bytes_max {
            return Err(ApiError::TooLarge(format!("the reply would exceed {bytes_max} bytes: ask for fewer keys")));
        }
        Ok(keys)
    }

    /// One page. Of one shard it is a consistent snapshot of this node's copy; a shard that is not stored here has no
    /// keys.
    pub async fn list(&self, list: List) -> Result<Listing, ApiError> {
        self.list_of(list, &|_| true).await
    }

    /// The same; of an org, of the shards that `shows` lets through.
    pub(super) async fn list_of(
        &self,
        list: List,
        shows: &(impl Fn(&ShardId) -> bool + Sync),
    ) -> Result<Listing, ApiError> {
        let query = PageQuery {
            prefix: list.prefix,
            after: list.after,
            limit: list.limit.clamp(1, PAGE_KEYS_MAX),
            keys_only: list.keys_only,
            bytes_max: PAGE_BYTES_MAX,
        };
        match list.scope {
            Scope::Shard(shard) => {
                let page = self.page(&shard, query).await?;
                let items = page.items.into_iter().map(|item| (shard.namespace.clone(), item)).collect();
                Ok(Listing { items, next: page.next })
            }
            Scope::Org(org) => {
                check_spans_namespaces(&query.prefix)?;
                let shards = self.every_shard_of(org).await?.into_iter().filter(shows).collect();
                self.merge_pages(shards, query).await
            }
        }
    }

    /// One page of one shard.
    pub(super) async fn page(&self, shard: &ShardId, query: PageQuery) -> Result<Page, ApiError> {
        let Some(shard) = self.find(shard).await? else { return Ok(Page { items: Vec::new(), next: None }) };
        self.blocking(move || shard.page(&query)).await
    }

    async fn merge_pages(&self, shards: Vec<ShardId>, query: PageQuery) -> Result<Listing, ApiError> {
        let mut merge = Merge::new(query.limit, query.bytes_max);
        for shard in shards {
            let page = self.page(&shard, query.clone()).await?;
            merge.add(&shard.namespace, page);
        }
        Ok(merge.finish())
    }
}

fn check_spans_namespaces(prefix: &str) -> Result<(), ApiError> {
    if crate::store::is_cross_namespace_prefix(prefix) {
        return Ok(());
    }
    let kinds = CROSS_NAMESPACE_KINDS.map(|kind| format!("{kind}/")).join(", ");
    let why =
        format!("prefix={prefix:?} does not span namespaces: want one of {kinds}, or name a namespace in the path");
    Err(ApiError::Invalid(why))
}

/// The first keys of many pages. Holds no more than one page's worth and the page being added.
struct Merge {
    limit: usize,
    bytes_max: usize,
    bytes: usize,
    rows: BTreeMap<(Key, Namespace), Item>,
    /// No key above this one may be shown on this page: some shard has more keys from here on.
    horizon: Option<Key>,
}

impl Merge {
    fn new(limit: usize, bytes_max: usize) -> Self {
        Self { limit, bytes_max, bytes: 0, rows: BTreeMap::new(), horizon: None }
    }

    fn add(&mut self, namespace: &Namespace, page: Page) {
        for item in page.items {
            self.bytes += weight(&item);
            self.rows.insert((item.key.clone(), namespace.clone()), item);
        }
        if let Some(next) = page.next {
            self.lower_horizon(next);
        }
        self.drop_beyond_horizon();
        while self.rows.len() > self.limit || self.bytes > self.bytes_max {
            // The last key goes; all of its rows, so that the next page can begin between two keys.
            let mut keys = self.rows.keys().rev().map(|(key, _)| key);
            let Some(last) = keys.next().cloned() else { break };
            let Some(before) = keys.find(|key| **key != last).cloned() else { break };
            self.lower_horizon(before);
            self.drop_beyond_horizon();
        }
    }

    /// Adds one shard's rows, which come in key order.
    fn take_in(&mut self, shard: &Shard, query: &ListQuery) -> Result<(), StoreError> {
        let mut rows = Vec::new();
        shard.walk(query, |item| {
            if self.horizon.as_ref().is_some_and(|horizon| item.key > *horizon) {
                return ControlFlow::Break(());
            }
            rows.push(item);
            if rows.len() == MERGE_ROWS {
                self.add(shard.namespace(), Page { items: std::mem::take(&mut rows), next: None });
            }
            ControlFlow::Continue(())
        })?;
        self.add(shard.namespace(), Page { items: rows, next: None });
        Ok(())
    }

    /// True where rows had to go though fewer than `limit` are here.
    fn is_out_of_room(&self) -> bool {
        self.horizon.is_some() && self.rows.len() < self.limit
    }

    fn lower_horizon(&mut self, key: Key) {
        self.horizon = Some(match self.horizon.take() {
            Some(old) => old.min(key),
            None => key,
        });
    }

    fn drop_beyond_horizon(&mut self) {
        let Some(horizon) = &self.horizon else { return };
        while let Some(entry) = self.rows.last_entry() {
            if entry.key().0 <= *horizon {
                break;
            }
            self.bytes = self.bytes.saturating_sub(weight(&entry.remove()));
        }
    }

    fn finish(self) -> Listing {
        let items = self.rows.into_iter().map(|((_, namespace), item)| (namespace, item)).collect();
        Listing { items, next: self.horizon }
    }
}

fn weight(item: &Item) -> usize {
    item.key.as_str().len() + item.value.as_ref().map_or(0, |value| value.as_bytes().len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Ballot;

    fn item(key: &str) -> Item {
        Item { key: Key::parse(key).unwrap(), value: None, upd: Ballot(1) }
    }

    /// Pages through shards given as their keys, as a client would, in pages of `limit`.
    fn all_pages(shards: &[(&str, &[&str])], limit: usize) -> Vec<(String, String)> {
        let (mut after, mut seen) = (None::<Key>, Vec::new());
        for _ in 0..100 {
            let mut merge = Merge::new(limit, usize::MAX);
            for (name, keys) in shards {
                let mut rest = keys.iter().filter(|key| after.as_ref().is_none_or(|after| **key > after.as_str()));
                let items: Vec<_> = rest.by_ref().take(limit).map(|key| item(key)).collect();
                let next = rest.next().and(items.last()).map(|item| item.key.clone());
                merge.add(&Namespace::parse(name).unwrap(), Page { items, next });
            }
            let listing = merge.finish();
            seen.extend(listing.items.iter().map(|(name, item)| (item.key.to_string(), name.to_string())));
            after = listing.next;
            if after.is_none() {
                return seen;
            }
        }
        panic!("the pages never end");
    }

    #[test]
    fn pages_of_many_shards_show_every_row_once_in_key_order() {
        let shards: [(&str, &[&str]); 4] =
            [("b", &["ns/b", "ns/d", "ns/e", "ns/same"]), ("a", &["ns/a"]), ("c", &["ns/c", "ns/same"]), ("d", &[])];
        let expected = ["a", "b", "c", "d", "e", "same", "same"];
        for limit in 1..9 {
            let seen = all_pages(&shards, limit);
            let keys: Vec<_> = seen.iter().map(|(key, _)| key.trim_start_matches("ns/")).collect();
            assert_eq!(keys, expected, "pages of {limit}");
            assert_eq!(seen[5].1, "b");
            assert_eq!(seen[6].1, "c");
        }
    }
}
