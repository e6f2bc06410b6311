//! Commands that wait for something: each runs as a job of its own and hands back its whole reply.

use std::sync::Arc;

use bytes::BytesMut;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::Shared;
use super::glob;
use super::reply::{Reply, Version};
use super::request::{Answer, ReadAs, Scan};
use crate::api::command::{Address, Consistency, Get, List, Scope, Write};
use crate::api::error::ApiError;
use crate::api::guest::Guest;
use crate::api::list::PAGE_KEYS_MAX;
use crate::api::service::{Service, namespace_in, not_blind};
use crate::store::update::{Change, Outcome, Row, Update, Verdict};
use crate::types::{Key, Namespace, ShardId, Value};

/// The most keys of one command under way at once.
const FAN_OUT_MAX: usize = 64;
/// The largest reply of a command of many keys, in bytes.
const REPLY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What a job needs of its connection, as it was when the command was read.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) guest: Guest,
    pub(super) shared: Arc<Shared>,
    pub(super) shard: ShardId,
    pub(super) consistency: Consistency,
    /// Of its writes.
    pub(super) writes: Consistency,
    pub(super) version: Version,
}

/// A finished reply.
pub(super) struct Answered {
    pub(super) out: BytesMut,
    /// The label of the error that it is.
    pub(super) error: Option<&'static str>,
}

/// A reply that is `failure`.
fn failed(version: Version, failure: &ApiError) -> Answered {
    let mut out = BytesMut::new();
    Reply::new(&mut out, version).failure(failure);
    Answered { out, error: Some(failure.row().label) }
}

impl Context {
    /// Turns a job's end into a reply.
    fn reply<T>(&self, ended: Result<T, ApiError>, write: impl FnOnce(&mut Reply<'_>, T)) -> Answered {
        match ended {
            Ok(value) => {
                let mut out = BytesMut::new();
                write(&mut Reply::new(&mut out, self.version), value);
                Answered { out, error: None }
            }
            Err(error) => failed(self.version, &error),
        }
    }

    fn at(&self, key: Key) -> Result<Address, ApiError> {
        Ok(Address { shard: Service::route(&self.shard, key.as_str())?.into_owned(), key })
    }

    async fn get(&self, key: Key) -> Result<Option<Row>, ApiError> {
        self.guest.get(Get { at: self.at(key)?, consistency: self.consistency, timeout: None }).await
    }

    async fn write_to(&self, key: Key, update: Update) -> Result<Outcome, ApiError> {
        self.guest.write(Write { at: self.at(key)?, update, consistency: self.writes, timeout: None }).await
    }

    /// `GET` and the like, of one key.
    pub(super) async fn read(self, at: Address, read_as: ReadAs) -> Answered {
        let get = Get { at, consistency: self.consistency, timeout: None };
        let ended = self.guest.get(get).await;
        self.reply(ended, |reply, row| write_value(reply, value_of(row.as_ref()), read_as))
    }

    /// Every write of one key.
    pub(super) async fn write(self, at: Address, update: Update, answer: Answer) -> Answered {
        let ended = match (self.writes, answer) {
            // What was there before is for a quorum to say.
            (Consistency::Local, Answer::Before) => Err(not_blind()),
            (consistency, _) => self.guest.write(Write { at, update, consistency, timeout: None }).await,
        };
        if let Ok(Outcome { verdict: Verdict::Invalid(why), .. }) = &ended {
            let mut out = BytesMut::new();
            Reply::new(&mut out, self.version).error(&format!("ERR {why}"));
            return Answered { out, error: Some("invalid-request") };
        }
        self.reply(ended, |reply, outcome| write_outcome(reply, &outcome, answer))
    }

    pub(super) async fn mget(self, keys: Vec<Key>) -> Answered {
        let ended = async {
            let mut rows = Vec::with_capacity(keys.len());
            let mut bytes = 0;
            let mut reads = stream::iter(keys).map(|key| self.get(key)).buffered(FAN_OUT_MAX);
            while let Some(row) = reads.try_next().await? {
                bytes += row.as_ref().map_or(0, |row| row.value.as_bytes().len());
                check_reply_bytes(bytes)?;
                rows.push(row);
            }
            Ok(rows)
        };
        let ended = ended.await;
        self.reply(ended, |reply, rows| {
            reply.array(rows.len());
            for row in rows {
                write_value(reply, value_of(row.as_ref()), ReadAs::Value);
            }
        })
    }

    pub(super) async fn exists(self, keys: Vec<Key>) -> Answered {
        let mut reads = stream::iter(keys).map(|key| self.get(key)).buffered(FAN_OUT_MAX);
        let mut count = 0;
        let ended = loop {
            match reads.try_next().await {
                Ok(Some(row)) => count += usize::from(row.is_some()),
                Ok(None) => break Ok(count),
                Err(error) => break Err(error),
            }
        };
        drop(reads);
        self.reply(ended, |reply, count| reply.count(count))
    }

    /// Each key is an update of its own; where some fail, the first failure is the answer and the others stand.
    pub(super) async fn mset(self, pairs: Vec<(Key, Value)>) -> Answered {
        // Of a key given twice the last value stays, as if they were set one after the other.
        let pairs: std::collections::HashMap<_, _> = pairs.into_iter().collect();
        let writes = pairs.into_iter().map(|(key, value)| (key, Change::Put(value)));
        let ended = self.change_all(writes).await;
        self.reply(ended, |reply, _| reply.ok())
    }

    pub(super) async fn del(self, keys: Vec<Key>) -> Answered {
        let ended = self.change_all(keys.into_iter().map(|key| (key, Change::Del))).await;
        self.reply(ended, |reply, written| reply.count(written))
    }

    /// How many of the keys had a value before.
    async fn change_all(&self, changes: impl Iterator<Item = (Key, Change)>) -> Result<usize, ApiError> {
        let write = |(key, change)| self.write_to(key, Update::always(change));
        let mut writes = stream::iter(changes).map(write).buffer_unordered(FAN_OUT_MAX);
        let (mut had, mut first_error) = (0, None);
        while let Some(ended) = writes.next().await {
            match ended {
                Ok(outcome) => had += usize::from(outcome.before.is_some()),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        first_error.map_or(Ok(had), Err)
    }

    pub(super) async fn dbsize(self) -> Answered {
        let ended = self.guest.count(&self.shard).await;
        self.reply(ended, |reply, count| reply.count(usize::try_from(count).unwrap_or(usize::MAX)))
    }

    pub(super) async fn keys(self, pattern: bytes::Bytes) -> Answered {
        let ended = self.matching(pattern).await;
        self.reply(ended, |reply, keys| write_keys(reply, &keys))
    }

    async fn matching(&self, pattern: bytes::Bytes) -> Result<Vec<Key>, ApiError> {
        let (shard, prefix) = self.place_of(&pattern)?;
        let is_wanted = move |key: &Key| glob::matches(&pattern, key.as_str().as_bytes());
        self.guest.keys_where(&shard, prefix, REPLY_BYTES_MAX, is_wanted).await
    }

    pub(super) async fn scan(self, scan: Scan) -> Answered {
        let ended = self.scan_page(scan).await;
        self.reply(ended, |reply, (cursor, keys)| {
            reply.array(2);
            reply.bulk(cursor.to_string().as_bytes());
            write_keys(reply, &keys);
        })
    }

    async fn scan_page(&self, scan: Scan) -> Result<(u64, Vec<Key>), ApiError> {
        let pattern = scan.pattern.as_deref().unwrap_or(b"*");
        let (shard, prefix) = self.place_of(pattern)?;
        let after = match scan.cursor {
            0 => None,
            cursor => {
                let place = self.shared.cursors.lock().place(cursor).cloned();
                let place = place.filter(|place| place.shard == shard);
                let gone = || ApiError::Invalid(format!("invalid cursor {cursor}: start the scan again at 0"));
                Some(place.ok_or_else(gone)?.key)
            }
        };
        let limit = scan.count.min(PAGE_KEYS_MAX);
        let list = List { scope: Scope::Shard(shard.clone()), prefix, after, limit, keys_only: true };
        let listing = self.guest.list(list).await?;
        let cursor = match listing.next {
            Some(key) => self.shared.cursors.lock().remember(Address { shard, key }),
            None => 0,
        };
        let wanted = |key: &Key| scan.strings && glob::matches(pattern, key.as_str().as_bytes());
        Ok((cursor, listing.items.into_iter().map(|(_, item)| item.key).filter(wanted).collect()))
    }

    fn place_of(&self, pattern: &[u8]) -> Result<(ShardId, String), ApiError> {
        place_of_keys(&self.shard, &glob::literal_prefix(pattern))
    }
}

/// Where the keys that match a pattern live, and what they begin with: `literal`, as far as that is text. A pattern that
/// spells out `kind/namespace/` looks where such keys are kept; any other in the connection's shard.
pub(super) fn place_of_keys(shard: &ShardId, literal: &[u8]) -> Result<(ShardId, String), ApiError> {
    let valid = match std::str::from_utf8(literal) {
        Ok(text) => text,
        Err(why) => literal.get(..why.valid_up_to()).map_or("", |text| std::str::from_utf8(text).unwrap_or("")),
    };
    let mut shard = shard.clone();
    if valid.splitn(3, '/').count() == 3
        && let Some(namespace) = namespace_in(valid)
    {
        shard.namespace = Namespace::parse(namespace)?;
    }
    Ok((shard, valid.to_owned()))
}

fn check_reply_bytes(bytes: usize) -> Result<(), ApiError> {
    if bytes > REPLY_BYTES_MAX {
        return Err(ApiError::TooLarge(format!("the reply would exceed {REPLY_BYTES_MAX} bytes: ask for fewer keys")));
    }
    Ok(())
}

fn write_keys(reply: &mut Reply<'_>, keys: &[Key]) {
    reply.array(keys.len());
    for key in keys {
        reply.bulk(key.as_str().as_bytes());
    }
}

fn value_of(row: Option<&Row>) -> Option<&[u8]> {
    row.map(|row| row.value.as_bytes())
}

/// Answers a value that was read.
pub(super) fn write_value(reply: &mut Reply<'_>, value: Option<&[u8]>, read_as: ReadAs) {
    match read_as {
        ReadAs::Value => reply.bulk_or_nil(value),
        ReadAs::Length => reply.count(value.map_or(0, <[u8]>::len)),
        ReadAs::Type => reply.simple(if value.is_some() { "string" } else { "none" }),
        ReadAs::Existence => reply.count(usize::from(value.is_some())),
    }
}

fn write_outcome(reply: &mut Reply<'_>, outcome: &Outcome, answer: Answer) {
    let before = outcome.before.as_ref().map(|row| row.value.as_bytes());
    let after = outcome.after.as_ref().map(|row| row.value.as_bytes()).unwrap_or_default();
    match answer {
        Answer::OkOrNil if outcome.verdict == Verdict::ConditionFailed => reply.nil(),
        Answer::OkOrNil => reply.ok(),
        Answer::Before => reply.bulk_or_nil(before),
        Answer::OneIfWritten => reply.count(usize::from(outcome.verdict == Verdict::Written)),
        Answer::IntegerAfter => match super::parse::parse_i64(after) {
            Some(number) => reply.integer(number),
            None => reply.error("ERR the replicas answered with something that is not an integer"),
        },
        Answer::LengthAfter => reply.count(after.len()),
    }
}
