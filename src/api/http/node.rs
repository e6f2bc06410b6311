//! What is stored, the cluster, and its health.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use super::kv::json;
use super::request;
use crate::api::error::ApiError;
use crate::api::service::Service;
use crate::types::{Org, ShardId};

/// Refuses parameters where there are none.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NoOptions {}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShardsOptions {
    org: Option<String>,
}

/// `GET /v1/orgs`: `{"orgs":[NAME]}`.
pub(super) async fn orgs(State(service): State<Arc<Service>>, request: Request) -> Result<Response, ApiError> {
    let NoOptions {} = request::query(request.uri())?;
    Ok(json(&json!({ "orgs": service.orgs().await? })))
}

/// `GET /v1/shards?org=`: `{"shards":[ShardStatus]}`, of every org where none is named.
pub(super) async fn shards(State(service): State<Arc<Service>>, request: Request) -> Result<Response, ApiError> {
    let options: ShardsOptions = request::query(request.uri())?;
    let org = options.org.map(|org| Org::parse(&org)).transpose()?;
    Ok(json(&json!({ "shards": service.shard_statuses(org).await? })))
}

/// `GET /v1/cluster`.
pub(super) async fn cluster(State(service): State<Arc<Service>>, request: Request) -> Result<Response, ApiError> {
    let NoOptions {} = request::query(request.uri())?;
    Ok(json(&service.observe().cluster()))
}

/// `GET /v1/cluster/health`: 200, or 503 with the reason.
pub(super) async fn health(State(service): State<Arc<Service>>, request: Request) -> Result<Response, ApiError> {
    let NoOptions {} = request::query(request.uri())?;
    service.observe().health().map_err(ApiError::Unhealthy)?;
    Ok(json(&json!({ "status": "ok" })))
}

/// `POST /v1/shards/{org}/{ns}/checkpoint`: 204.
pub(super) async fn checkpoint(State(service): State<Arc<Service>>, request: Request) -> Result<Response, ApiError> {
    let NoOptions {} = request::query(request.uri())?;
    let rest = request.uri().path().strip_prefix("/v1/shards/").unwrap_or_default();
    service.checkpoint(&shard_in(rest)?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// The shard that `{org}/{ns}…` names.
pub(super) fn shard_in(path: &str) -> Result<ShardId, ApiError> {
    let mut parts = path.split('/');
    let mut part = || request::decoded(parts.next().unwrap_or_default());
    let (org, namespace) = (part()?, part()?);
    Ok(ShardId::parse(&org, &namespace)?)
}
