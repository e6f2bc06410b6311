//! Pages of keys: of one shard, or of every shard of an org merged in key order.

use std::collections::BTreeMap;

use super::command::{List, Scope};
use super::error::ApiError;
use super::service::Service;
use crate::store::{CROSS_NAMESPACE_KINDS, Item, Page, PageQuery};
use crate::types::{Key, Namespace, Org, ShardId};

/// The most keys on one page.
pub const PAGE_KEYS_MAX: usize = 10_000;
/// How many keys a page has where nobody says.
pub const PAGE_KEYS_DEFAULT: usize = 1_000;
/// A page ends once its keys and values reach this many bytes.
pub const PAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A page, possibly of many shards.
#[derive(Debug, Default)]
pub struct Listing {
    /// The rows in key order, with the namespace each is from.
    pub items: Vec<(Namespace, Item)>,
    /// The key to go on after; none at the end.
    pub next: Option<Key>,
}

impl Service {
    /// One page. Of one shard it is a consistent snapshot of this node's copy; a shard that is not stored here has no
    /// keys.
    pub async fn list(&self, list: List) -> Result<Listing, ApiError> {
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
            Scope::Org(org) => self.list_org(org, query).await,
        }
    }

    /// One page of one shard.
    pub(super) async fn page(&self, shard: &ShardId, query: PageQuery) -> Result<Page, ApiError> {
        let Some(shard) = self.find(shard).await? else { return Ok(Page { items: Vec::new(), next: None }) };
        self.blocking(move || shard.page(&query)).await
    }

    async fn list_org(&self, org: Org, query: PageQuery) -> Result<Listing, ApiError> {
        if !spans_namespaces(&query.prefix) {
            let kinds = CROSS_NAMESPACE_KINDS.map(|kind| format!("{kind}/")).join(", ");
            return Err(ApiError::Invalid(format!(
                "prefix={:?} does not span namespaces: want one of {kinds}, or name a namespace in the path",
                query.prefix
            )));
        }
        let mut merge = Merge::new(query.limit, query.bytes_max);
        for shard in self.shards_of(org).await? {
            let page = self.page(&shard, query.clone()).await?;
            merge.add(&shard.namespace, page);
        }
        Ok(merge.finish())
    }
}

fn spans_namespaces(prefix: &str) -> bool {
    crate::store::is_cross_namespace_prefix(prefix)
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
