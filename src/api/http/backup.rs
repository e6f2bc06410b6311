//! `GET /v1/backup`: the shards to copy, and a copy of one.
//!
//! `GET /v1/backup?org=&consistency=` answers `{"cluster","node","version","shards":[{"org","namespace"}]}`, of every org
//! where none is named. `GET /v1/backup/{org}/{ns}?consistency=` answers with a whole SQLite database, or 404.
//! `consistency` is `quorum` by default: the copy has every write that any node acknowledged before the request. `local`
//! takes this node's copy as it is, which needs no other node.

use std::io;

use axum::body::Body;
use axum::extract::Request;
use axum::http::HeaderValue;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

use super::kv::json;
use super::node::shard_in;
use super::request;
use crate::api::backup::Copied;
use crate::api::command::Consistency;
use crate::api::error::ApiError;
use crate::api::guest::Guest;
use crate::blocking;
use crate::types::Org;

/// How much of a copy is read at once.
const PIECE_BYTES: u64 = 256 * 1024;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListOptions {
    org: Option<String>,
    consistency: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CopyOptions {
    consistency: Option<String>,
}

/// What there is to copy.
pub(super) async fn list(guest: Guest, request: Request) -> Result<Response, ApiError> {
    let options: ListOptions = request::query(request.uri())?;
    let consistency = request::consistency(options.consistency.as_deref(), Consistency::Quorum)?;
    let org = options.org.map(|org| Org::parse(&org)).transpose()?;
    let shards = guest.shards_to_copy(org, consistency).await?;
    let shards: Vec<_> = shards.iter().map(|shard| json!({ "org": shard.org, "namespace": shard.namespace })).collect();
    let about = guest.cluster();
    let (cluster, node, version) = (about.cluster, about.node, about.version);
    Ok(json(&json!({ "cluster": cluster, "node": node, "version": version, "shards": shards })))
}

/// One copy.
pub(super) async fn copy(guest: Guest, request: Request) -> Result<Response, ApiError> {
    let options: CopyOptions = request::query(request.uri())?;
    let consistency = request::consistency(options.consistency.as_deref(), Consistency::Quorum)?;
    let shard = shard_in(request.uri().path().strip_prefix("/v1/backup/").unwrap_or_default())?;
    let copied = guest.copy(&shard, consistency).await?;
    let copied = copied.ok_or_else(|| ApiError::NotFound(format!("there is no shard {shard}")))?;
    let bytes = copied.copy.bytes();
    let pieces = futures_util::stream::unfold(Some((copied, 0)), |state| async move {
        let (copied, at) = state?;
        match piece(copied, at).await {
            Ok((_, read)) if read.is_empty() => None,
            Ok((copied, read)) => {
                let next = at + read.len() as u64;
                Some((Ok(read), Some((copied, next))))
            }
            // The body ends before its announced length, which no client takes for its end.
            Err(error) => Some((Err(error), None)),
        }
    });
    let mut response = Body::from_stream(pieces).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/vnd.sqlite3"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes));
    Ok(response)
}

/// The piece of a copy from `at` on; empty at its end.
async fn piece(copied: Copied, at: u64) -> io::Result<(Copied, Bytes)> {
    let read = blocking::spawn(move || {
        let bytes = PIECE_BYTES.min(copied.copy.bytes().saturating_sub(at));
        let mut piece = vec![0; usize::try_from(bytes).unwrap_or(0)];
        let read = copied.copy.read_at(&mut piece, at);
        read.map(|()| (copied, Bytes::from(piece)))
    });
    read.await.map_err(io::Error::other)?.map_err(io::Error::other)
}
