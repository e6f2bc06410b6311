//! `SUBSCRIBE` and its like: a shard's changes as Redis' keyspace notifications.
//!
//! | channel | message | when |
//! | --- | --- | --- |
//! | `__keyspace@0__:<key>` | `set` or `del` | this key was written, or deleted |
//! | `__keyevent@0__:set`, `…:del` | the key | any key of the connection's shard was |
//!
//! A subscription stays with the shard that the connection had chosen when it was made; a channel or pattern that spells out
//! a key of the canonical layout, with the namespace that the key names. As in Redis, what happens while nobody is subscribed
//! is not told later, and a subscriber that reads too slowly is cut off.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Notify;

use super::exec::place_of_keys;
use super::glob;
use super::reply::Reply;
use super::request::Refusal;
use crate::api::access::Want;
use crate::api::error::{ApiError, Written};
use crate::api::guest::Guest;
use crate::api::service::Service;
use crate::api::watch::PORTION_BYTES_SOFT_MAX;
use crate::store::feed::{Event, Taken, Watch};
use crate::store::replicator::Op;
use crate::types::{Key, ShardId};

/// The most channels and patterns of one connection.
const SUBSCRIPTIONS_MAX: usize = 256;
/// The most messages that a portion of changes becomes before they leave: a change may be told once for each subscription.
const PORTION_MESSAGES_SOFT_MAX: usize = 512;

const KEYSPACE: &str = "__keyspace@0__:";
const KEYEVENT: &str = "__keyevent@0__:";
const EVENTS: [&str; 2] = ["set", "del"];

/// Channels are named whole; patterns are Redis' globs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Channel,
    Pattern,
}

/// A change of what a connection is subscribed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pubsub {
    Subscribe(By, Vec<Bytes>),
    /// From all of them where none is named.
    Unsubscribe(By, Vec<Bytes>),
}

/// Where to look for what one channel or pattern tells of.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Source {
    shard: ShardId,
    prefix: String,
}

/// What one connection is subscribed to.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    channels: BTreeMap<Bytes, Source>,
    patterns: BTreeMap<Bytes, Source>,
    watches: BTreeMap<ShardId, Watch>,
    /// Rings when there is something to deliver.
    pub(super) bell: Arc<Notify>,
    /// There may be something to deliver.
    pub(super) is_rung: bool,
}

impl Subscriptions {
    pub(super) fn len(&self) -> usize {
        self.channels.len() + self.patterns.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends all of them.
    pub(super) fn clear(&mut self) {
        self.channels.clear();
        self.patterns.clear();
        self.watches.clear();
    }

    fn of(&mut self, by: By) -> &mut BTreeMap<Bytes, Source> {
        match by {
            By::Channel => &mut self.channels,
            By::Pattern => &mut self.patterns,
        }
    }

    /// Subscribes to all of `names`, each told of in `reply`; or to none of them.
    pub(super) fn subscribe(
        &mut self,
        by: By,
        names: Vec<Bytes>,
        shard: &ShardId,
        guest: &Guest,
        reply: &mut Reply<'_>,
    ) -> Result<(), Refusal> {
        let sources: Vec<Source> = names.iter().map(|name| source(by, name, shard)).collect::<Result<_, _>>()?;
        let others = self.len() - self.of(by).len();
        let before = self.of(by).clone();
        self.of(by).extend(names.iter().cloned().zip(sources));
        let checked = if self.len() > SUBSCRIPTIONS_MAX {
            Err(ApiError::Busy(format!("a connection may have {SUBSCRIPTIONS_MAX} subscriptions; use a pattern")))
        } else {
            self.watch(guest)
        };
        if let Err(why) = checked {
            *self.of(by) = before;
            // What there was before fits.
            let _ = self.watch(guest);
            return Err(why.into());
        }
        let mut told: BTreeSet<Bytes> = before.into_keys().collect();
        for name in names {
            told.insert(name.clone());
            reply.push(3);
            reply.bulk(match by {
                By::Channel => b"subscribe",
                By::Pattern => b"psubscribe",
            });
            reply.bulk(&name);
            reply.count(others + told.len());
        }
        Ok(())
    }

    /// Ends the subscriptions to `names`, or to all of the kind; each is told of in `reply`.
    pub(super) fn unsubscribe(&mut self, by: By, names: Vec<Bytes>, guest: &Guest, reply: &mut Reply<'_>) {
        let names = if names.is_empty() { self.of(by).keys().cloned().collect() } else { names };
        let word: &[u8] = match by {
            By::Channel => b"unsubscribe",
            By::Pattern => b"punsubscribe",
        };
        if names.is_empty() {
            reply.push(3);
            reply.bulk(word);
            reply.nil();
            reply.count(self.len());
        }
        for name in names {
            self.of(by).remove(&name);
            reply.push(3);
            reply.bulk(word);
            reply.bulk(&name);
            reply.count(self.len());
        }
        // Fewer than before always fit.
        let _ = self.watch(guest);
    }

    /// Watches what is subscribed to, and nothing else.
    fn watch(&mut self, guest: &Guest) -> Result<(), ApiError> {
        let mut wanted: BTreeMap<ShardId, Vec<String>> = BTreeMap::new();
        for source in self.channels.values().chain(self.patterns.values()) {
            wanted.entry(source.shard.clone()).or_default().push(source.prefix.clone());
        }
        self.watches.retain(|shard, _| wanted.contains_key(shard));
        for (shard, mut prefixes) in wanted {
            prefixes.sort_unstable();
            prefixes.dedup();
            let failed = |error| ApiError::from_store(error, Written::No);
            match self.watches.get(&shard) {
                Some(watch) => watch.set_prefixes(prefixes).map_err(failed)?,
                None => {
                    let watch = guest.subscribe(&shard, prefixes, &self.bell)?;
                    self.watches.insert(shard, watch);
                }
            }
        }
        Ok(())
    }

    /// Writes the messages of some changes. An error is the end of all subscriptions.
    pub(super) fn deliver(&mut self, guest: &Guest, reply: &mut Reply<'_>) -> Result<(), ApiError> {
        self.is_rung = false;
        // By key and by event, each to its channel and to every pattern.
        let events_max = (PORTION_MESSAGES_SOFT_MAX / (2 * (1 + self.patterns.len()))).max(1);
        for (shard, watch) in &self.watches {
            // A token may have been taken back meanwhile.
            guest.check(Want::Read(shard))?;
            let Taken { events, more, .. } = watch.take(events_max, PORTION_BYTES_SOFT_MAX)?;
            self.is_rung |= more;
            for event in events {
                self.tell(shard, &event, reply);
            }
        }
        Ok(())
    }

    fn tell(&self, shard: &ShardId, event: &Event, reply: &mut Reply<'_>) {
        let key = event.key.as_str();
        let what = match event.op {
            Op::Put(_) => "set",
            Op::Del => "del",
        };
        for (channel, message) in [(format!("{KEYSPACE}{key}"), what), (format!("{KEYEVENT}{what}"), key)] {
            let name = channel.as_bytes();
            if self.channels.get(name).is_some_and(|source| source.shard == *shard) {
                reply.push(3);
                [b"message", name, message.as_bytes()].iter().for_each(|part| reply.bulk(part));
            }
            let patterns = self.patterns.iter().filter(|(_, source)| source.shard == *shard);
            for (pattern, _) in patterns.filter(|(pattern, _)| glob::matches(pattern, name)) {
                reply.push(4);
                [b"pmessage", &**pattern, name, message.as_bytes()].iter().for_each(|part| reply.bulk(part));
            }
        }
    }
}

/// Where to look for what `name` tells of, on a connection to `shard`.
fn source(by: By, name: &[u8], shard: &ShardId) -> Result<Source, Refusal> {
    let literal = match by {
        By::Channel => name.to_vec(),
        By::Pattern => glob::literal_prefix(name),
    };
    let any_key = || Source { shard: shard.clone(), prefix: String::new() };
    if let Some(key) = literal.strip_prefix(KEYSPACE.as_bytes()) {
        if by == By::Channel {
            let key = Key::parse_bytes(key, crate::types::KEY_BYTES_LIMIT).map_err(ApiError::from)?;
            let shard = Service::route(shard, key.as_str())?.into_owned();
            return Ok(Source { shard, prefix: key.as_str().to_owned() });
        }
        let (shard, prefix) = place_of_keys(shard, key)?;
        return Ok(Source { shard, prefix });
    }
    let could_be = |channel: &str| match by {
        By::Channel => literal == channel.as_bytes(),
        By::Pattern => channel.as_bytes().starts_with(&literal),
    };
    let is_event = EVENTS.iter().any(|event| could_be(&format!("{KEYEVENT}{event}")));
    let may_be_keyspace = by == By::Pattern && KEYSPACE.as_bytes().starts_with(&literal);
    if is_event || may_be_keyspace {
        return Ok(any_key());
    }
    let got = name.get(..name.len().min(128)).unwrap_or_default().escape_ascii();
    Err(Refusal::new(format!(
        "ERR there is no channel like '{got}': want {KEYSPACE}<key>, {KEYEVENT}set or {KEYEVENT}del, or a pattern of these"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(by: By, name: &str) -> Option<(String, String)> {
        let shard = ShardId::parse("acme", "pay").unwrap();
        let source = source(by, name.as_bytes(), &shard).ok()?;
        Some((source.shard.namespace.to_string(), source.prefix))
    }

    #[test]
    fn channels_and_patterns_say_where_to_look() {
        let at = |namespace: &str, prefix: &str| Some((namespace.to_owned(), prefix.to_owned()));
        for (by, name, expected) in [
            (By::Channel, "__keyspace@0__:a", at("pay", "a")),
            (By::Channel, "__keyspace@0__:a*", at("pay", "a*")),
            (By::Channel, "__keyspace@0__:wf/mail/1", at("mail", "wf/mail/1")),
            (By::Channel, "__keyspace@0__:", None),
            (By::Channel, "__keyspace@1__:a", None),
            (By::Channel, "__keyevent@0__:set", at("pay", "")),
            (By::Channel, "__keyevent@0__:del", at("pay", "")),
            (By::Channel, "__keyevent@0__:expired", None),
            (By::Channel, "news", None),
            (By::Pattern, "__keyspace@0__:a*", at("pay", "a")),
            (By::Pattern, "__keyspace@0__:wf/mail/*", at("mail", "wf/mail/")),
            (By::Pattern, "__keyspace@0__:wf/ma*", at("pay", "wf/ma")),
            (By::Pattern, "__keyspace@0__:a\\*", at("pay", "a*")),
            (By::Pattern, "__key*", at("pay", "")),
            (By::Pattern, "*", at("pay", "")),
            (By::Pattern, "__keyevent@0__:*", at("pay", "")),
            (By::Pattern, "__keyevent@0__:s?t", at("pay", "")),
            (By::Pattern, "__keyevent@0__:x*", None),
            (By::Pattern, "news*", None),
        ] {
            assert_eq!(found(by, name), expected, "{by:?} {name}");
        }
    }
}
