//! `/v1/kv`: one key, and lists of keys.
//!
//! A path is taken apart before it is percent-decoded, and everything behind the namespace is the key: slashes, empty
//! segments and dots in it mean nothing here.

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{ACCEPT, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::request::{self, Options};
use crate::api::access::Want;
use crate::api::command::{Address, Consistency, Get, List, Scope, Write};
use crate::api::error::ApiError;
use crate::api::guest::Guest;
use crate::api::list::{Listing, PAGE_KEYS_DEFAULT, PAGE_KEYS_MAX};
use crate::api::service::not_blind;
use crate::store::update::{Change, Condition, Outcome, Row, Update, Verdict};
use crate::store::{Item, ListQuery};
use crate::types::{Ballot, Key, Org, ShardId, Value};

const NDJSON: &str = "application/x-ndjson";

/// Every request under `/v1/kv`.
pub(super) async fn handle(guest: Guest, request: Request) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let mut parts = head.uri.path().strip_prefix("/v1/kv/").unwrap_or_default().splitn(3, '/');
    let org = parts.next().filter(|org| !org.is_empty());
    let org = org.ok_or_else(|| ApiError::NotFound("want /v1/kv/{org}/{namespace}/{key}".to_owned()))?;
    let org = Org::parse(&request::decoded(org)?)?;
    match (parts.next().filter(|namespace| !namespace.is_empty()), parts.next()) {
        (None, _) => list(&guest, Scope::Org(org), &head).await,
        (Some(namespace), None) => {
            let shard = ShardId::parse(org.as_str(), &request::decoded(namespace)?)?;
            list(&guest, Scope::Shard(shard), &head).await
        }
        (Some(namespace), Some(key)) => {
            let shard = ShardId::parse(org.as_str(), &request::decoded(namespace)?)?;
            let key = request::decoded(key)?;
            let key = Key::parse_bytes(key.as_bytes(), guest.config().key_bytes_max)?;
            one_key(&guest, Address { shard, key }, &head, body).await
        }
    }
}

async fn one_key(guest: &Guest, at: Address, head: &Parts, body: Body) -> Result<Response, ApiError> {
    match head.method {
        Method::GET | Method::HEAD => get(guest, at, head).await,
        Method::PUT => put(guest, at, head, body).await,
        Method::DELETE => delete(guest, at, head).await,
        ref method => Err(ApiError::MethodNotAllowed(format!("{method} of a key: want GET, PUT or DELETE"))),
    }
}

async fn get(guest: &Guest, at: Address, head: &Parts) -> Result<Response, ApiError> {
    let options: Options = request::query(&head.uri)?;
    let (consistency, timeout) = (options.read_consistency()?, options.timeout(guest)?);
    let not_found = ApiError::NotFound(format!("key {:?} has no value in {}", at.key, at.shard));
    let row = guest.get(Get { at, consistency, timeout }).await?.ok_or(not_found)?;
    let seen = single_etag(&head.headers, &IF_NONE_MATCH)?;
    let mut response = if seen == Some(Tag::Any) || seen == Some(Tag::Version(row.upd)) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        Response::new(Body::from(row.value.into_bytes()))
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    set_etag(headers, row.upd);
    Ok(response)
}

async fn put(guest: &Guest, at: Address, head: &Parts, body: Body) -> Result<Response, ApiError> {
    let options: Options = request::query(&head.uri)?;
    let (consistency, timeout) = (options.write_consistency()?, options.timeout(guest)?);
    let condition = condition(&head.headers)?;
    check_blind(consistency, &condition)?;
    // Before the body takes up room.
    guest.check(Want::Write(&at.shard))?;
    let value = request::body(guest, body, guest.config().value_bytes_max, "the value").await?;
    let update = Update { condition, change: Change::Put(Value::from(value.bytes.clone())) };
    let outcome = guest.write(Write { at, update, consistency, timeout }).await?;
    written(&outcome)
}

async fn delete(guest: &Guest, at: Address, head: &Parts) -> Result<Response, ApiError> {
    let options: Options = request::query(&head.uri)?;
    let (consistency, timeout) = (options.write_consistency()?, options.timeout(guest)?);
    let condition = condition(&head.headers)?;
    check_blind(consistency, &condition)?;
    if condition == Condition::Absent {
        return Err(ApiError::Invalid("If-None-Match: * of a DELETE would never delete anything".to_owned()));
    }
    let update = Update { condition, change: Change::Del };
    let outcome = guest.write(Write { at, update, consistency, timeout }).await?;
    written(&outcome)
}

/// Refuses a local write with a condition, before its body is read.
fn check_blind(consistency: Consistency, condition: &Condition) -> Result<(), ApiError> {
    if consistency == Consistency::Local && *condition != Condition::Always { Err(not_blind()) } else { Ok(()) }
}

/// The answer to a write: 204, with the version where there is a value now.
fn written(outcome: &Outcome) -> Result<Response, ApiError> {
    check(outcome)?;
    let mut response = StatusCode::NO_CONTENT.into_response();
    if let Some(row) = &outcome.after {
        set_etag(response.headers_mut(), row.upd);
    }
    Ok(response)
}

/// Turns outcomes that wrote nothing of what was wanted into errors.
pub(super) fn check(outcome: &Outcome) -> Result<(), ApiError> {
    match &outcome.verdict {
        Verdict::Written | Verdict::Unchanged => Ok(()),
        Verdict::ConditionFailed => {
            Err(ApiError::ConditionFailed { current: outcome.before.as_ref().map(|row: &Row| row.upd) })
        }
        Verdict::Invalid(why) => Err(ApiError::Invalid(why.to_string())),
    }
}

/// Writes a version as an entity tag.
pub(super) fn set_etag(headers: &mut HeaderMap, upd: Ballot) {
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{upd}\"")) {
        headers.insert(ETAG, tag);
    }
}

/// What a conditional header names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tag {
    /// `*`
    Any,
    /// A version.
    Version(Ballot),
    /// A well-formed tag that no version is written as: it matches nothing.
    Foreign,
}

/// The one entity tag of a header, if it is there.
fn single_etag(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Tag>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let bad = || ApiError::Invalid(format!("{name}: want * or one version in quotes, as ETag gives it"));
    let text = value.to_str().map_err(|_| bad())?.trim();
    if values.next().is_some() {
        return Err(bad());
    }
    if text == "*" {
        return Ok(Some(Tag::Any));
    }
    let tag = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).filter(|tag| !tag.contains('"'));
    let tag = tag.ok_or_else(bad)?;
    let upd = tag.parse().ok().filter(|upd: &i64| upd.to_string() == tag);
    Ok(Some(upd.map_or(Tag::Foreign, |upd| Tag::Version(Ballot(upd)))))
}

/// The condition that a write's headers make.
fn condition(headers: &HeaderMap) -> Result<Condition, ApiError> {
    match (single_etag(headers, &IF_MATCH)?, single_etag(headers, &IF_NONE_MATCH)?) {
        (None, None) => Ok(Condition::Always),
        (Some(Tag::Any), None) => Ok(Condition::Present),
        (Some(Tag::Version(upd)), None) => Ok(Condition::UpdIs(upd)),
        // No version is below the first ballot, so this never holds.
        (Some(Tag::Foreign), None) => Ok(Condition::UpdIs(Ballot(i64::MIN))),
        (None, Some(Tag::Any)) => Ok(Condition::Absent),
        (None, Some(_)) => Err(ApiError::Invalid("If-None-Match of a write: want *".to_owned())),
        (Some(_), Some(_)) => Err(ApiError::Invalid("If-Match and If-None-Match: want one of them".to_owned())),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListOptions {
    #[serde(default)]
    prefix: String,
    after: Option<String>,
    limit: Option<usize>,
    #[serde(default)]
    keys_only: bool,
    consistency: Option<String>,
    timeout: Option<String>,
}

async fn list(guest: &Guest, scope: Scope, head: &Parts) -> Result<Response, ApiError> {
    if !matches!(head.method, Method::GET | Method::HEAD) {
        return Err(ApiError::MethodNotAllowed(format!("{} of a list: want GET", head.method)));
    }
    let options: ListOptions = request::query(&head.uri)?;
    if request::consistency(options.consistency.as_deref(), Consistency::Local)? == Consistency::Quorum {
        let why = "lists are of this node's copy; consistency=quorum is not supported, read the keys one by one";
        return Err(ApiError::NotSupported(why.to_owned()));
    }
    let timeout = guest.timeout(request::timeout(options.timeout.as_deref(), guest)?);
    let after = options.after.filter(|after| !after.is_empty());
    let list = List {
        scope,
        prefix: options.prefix,
        after: after.map(|after| Key::parse(&after)).transpose()?,
        limit: options.limit.unwrap_or(PAGE_KEYS_DEFAULT),
        keys_only: options.keys_only,
    };
    if !(1..=PAGE_KEYS_MAX).contains(&list.limit) {
        return Err(ApiError::Invalid(format!("limit={} is out of range: want 1 to {PAGE_KEYS_MAX}", list.limit)));
    }
    if wants_ndjson(&head.headers) {
        return stream(guest, list, options.limit).await;
    }
    let scope = list.scope.clone();
    let page = tokio::time::timeout(timeout, guest.list(list));
    let listing = page.await.map_err(|_| guest.late(&scope, timeout))??;
    Ok(json(&PageBody::from(listing)))
}

fn wants_ndjson(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|kind| kind.split(';').next().is_some_and(|k| k.trim() == NDJSON))
}

/// One row of a list, or one change of it.
#[derive(Debug, Serialize)]
pub(super) struct ItemBody {
    key: Key,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    upd: Ballot,
}

/// One page of a list.
#[derive(Debug, Serialize)]
struct PageBody {
    items: Vec<ItemBody>,
    next: Option<Key>,
}

impl From<Listing> for PageBody {
    fn from(listing: Listing) -> Self {
        let items = listing.items.into_iter().map(|(_, item)| item.into()).collect();
        Self { items, next: listing.next }
    }
}

impl From<Item> for ItemBody {
    fn from(item: Item) -> Self {
        let value = item.value.map(|value| STANDARD.encode(value.as_bytes()));
        Self { key: item.key, value, upd: item.upd }
    }
}

/// A JSON answer.
pub(super) fn json(body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(bytes) => ([(CONTENT_TYPE, "application/json")], bytes).into_response(),
        Err(why) => {
            let detail = format!("the answer cannot be written as JSON: {why}");
            ApiError::Internal { detail, written: crate::api::error::Written::No }.into_response()
        }
    }
}

/// Every row as a line of JSON, all of them as they were when it began: in one shard altogether, in an org shard by
/// shard. A failure after the first rows is a problem as the last line: one that came too slowly to read them, say.
async fn stream(guest: &Guest, list: List, rows_max: Option<usize>) -> Result<Response, ApiError> {
    let rows_max = rows_max.unwrap_or(usize::MAX);
    let query = ListQuery { prefix: list.prefix, after: list.after, keys_only: list.keys_only };
    let mut whole = guest.whole(list.scope, query, rows_max).await?;
    // The first rows decide on the status.
    let first = whole.next().await?;
    let pieces = futures_util::stream::unfold(Some((Ok(first), whole, rows_max)), |state| async {
        let (rows, mut whole, mut rows_left) = state?;
        let mut rows = match rows {
            Ok(rows) => rows?,
            Err(error) => return Some((Ok::<_, Infallible>(last_line(&error)), None)),
        };
        rows.truncate(rows_left);
        rows_left -= rows.len();
        let piece = lines(rows);
        let state = if rows_left > 0 { Some((whole.next().await, whole, rows_left)) } else { None };
        Some((Ok(piece), state))
    });
    Ok(([(CONTENT_TYPE, NDJSON)], Body::from_stream(pieces)).into_response())
}

fn last_line(error: &ApiError) -> Bytes {
    let mut line = serde_json::to_vec(&error.problem()).unwrap_or_default();
    line.push(b'\n');
    Bytes::from(line)
}

fn lines(rows: Vec<Item>) -> Bytes {
    let mut out = BytesMut::new();
    for row in rows {
        // Writing into a growing buffer cannot fail, and every key is text.
        let _ = serde_json::to_writer((&mut out).writer(), &ItemBody::from(row));
        out.put_u8(b'\n');
    }
    out.freeze()
}
