//! `GET /v1/watch/{org}/{ns}`: a shard's changes as Server-Sent Events
//! (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).
//!
//! ```text
//!   event: snapshot            the rows that follow replace what the client knew
//!   data: {}
//!
//!   event: put                 without an id: half a snapshot is nothing to go on from
//!   data: {"key":"a","value":"MQ==","upd":1795460000123457536}
//!
//!   event: snapshot-end        complete; from here on every event has an id
//!   id: 00f3a1b2c4d5e6f7.4611686018427387904
//!   data: {}
//!
//!   event: del
//!   id: 00f3a1b2c4d5e6f7.4611686018427387905
//!   data: {"key":"a","upd":1795460004711120896}
//!
//!   :                          nothing happened for a while: the id alone
//!   id: 00f3a1b2c4d5e6f7.4611686018427387919
//!
//!   event: error               the last: a problem, as every error on the socket
//!   data: {"type":"urn:outrigger:problem:slow-client",…}
//! ```

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName};
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::kv::ItemBody;
use super::node::shard_in;
use super::request;
use crate::api::access::Want;
use crate::api::command::Consistency;
use crate::api::error::{ApiError, Written};
use crate::api::guest::Guest;
use crate::api::watch::Told;
use crate::store::Item;
use crate::store::feed::EventId;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const EVENT_STREAM: &str = "text/event-stream";

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WatchOptions {
    #[serde(default)]
    prefix: String,
    since: Option<String>,
    /// As of every read: `local` is what there is.
    consistency: Option<String>,
    /// How long it may take to begin.
    timeout: Option<String>,
}

/// Streams until either side ends it. `Last-Event-ID`, which a client sends that comes back, counts for more than `since`.
pub(super) async fn handle(guest: Guest, request: Request) -> Result<Response, ApiError> {
    let rest = request.uri().path().strip_prefix("/v1/watch/").unwrap_or_default();
    if rest.split('/').count() != 2 {
        return Err(ApiError::NotFound("want /v1/watch/{org}/{namespace}?prefix=&since=".to_owned()));
    }
    let shard = shard_in(rest)?;
    let options: WatchOptions = request::query(request.uri())?;
    let since = event_id("since", options.since.as_deref().unwrap_or_default())?;
    let since = last_event_id(request.headers())?.or(since);
    if request::consistency(options.consistency.as_deref(), Consistency::Local)? == Consistency::Quorum {
        let why = "a watch tells what this node commits; consistency=quorum is not supported";
        return Err(ApiError::NotSupported(why.to_owned()));
    }
    let begin = guest.watch(&shard, &options.prefix, since);
    let watching = match request::timeout(options.timeout.as_deref(), &guest)? {
        Some(timeout) => tokio::time::timeout(timeout, begin).await.map_err(|_| ApiError::Timeout(Written::No))??,
        None => begin.await?,
    };
    let pieces = futures_util::stream::unfold(Some((watching, guest, shard)), |state| async {
        let (mut watching, guest, shard) = state?;
        let told = watching.next().await?;
        // A token may have been taken back meanwhile.
        Some(match told.and_then(|told| guest.check(Want::Read(&shard)).map(|()| told)) {
            Ok(told) => (Ok::<_, Infallible>(written(told)), Some((watching, guest, shard))),
            Err(error) => (Ok(last_words(&error)), None),
        })
    });
    let headers = [(CONTENT_TYPE, EVENT_STREAM), (CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

fn event_id(name: &str, text: &str) -> Result<Option<EventId>, ApiError> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|why| {
        let got: String = text.chars().take(64).collect();
        ApiError::Invalid(format!("{name}={got:?} is not the id of an event: {why}"))
    })
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<EventId>, ApiError> {
    let Some(header) = headers.get(LAST_EVENT_ID) else { return Ok(None) };
    event_id("Last-Event-ID", &String::from_utf8_lossy(header.as_bytes()))
}

fn written(told: Vec<Told>) -> Bytes {
    let mut out = BytesMut::new();
    for told in told {
        match told {
            Told::Snapshot => event(&mut out, "snapshot", None, &NOTHING),
            Told::SnapshotEnd(id) => event(&mut out, "snapshot-end", Some(id), &NOTHING),
            Told::Put { key, value, upd, id } => {
                event(&mut out, "put", id, &ItemBody::from(Item { key, value: Some(value), upd }));
            }
            Told::Del { key, upd, id } => {
                event(&mut out, "del", Some(id), &ItemBody::from(Item { key, value: None, upd }));
            }
            Told::Idle(id) => out.put_slice(format!(":\nid: {id}\n\n").as_bytes()),
        }
    }
    out.freeze()
}

fn last_words(error: &ApiError) -> Bytes {
    let mut out = BytesMut::new();
    event(&mut out, "error", None, &error.problem());
    out.freeze()
}

/// The data of an event that says all by its name.
const NOTHING: Nothing = Nothing {};

#[derive(Serialize)]
struct Nothing {}

fn event(out: &mut BytesMut, name: &str, id: Option<EventId>, data: &impl Serialize) {
    out.put_slice(format!("event: {name}\n").as_bytes());
    if let Some(id) = id {
        out.put_slice(format!("id: {id}\n").as_bytes());
    }
    out.put_slice(b"data: ");
    // Writing into a growing buffer cannot fail; JSON escapes line ends, so that data is one line.
    let _ = serde_json::to_writer(out.writer(), data);
    out.put_slice(b"\n\n");
}
