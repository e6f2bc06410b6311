//! What is stored, the cluster, and its health.

use std::collections::BTreeSet;

use axum::extract::Request;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use super::kv::json;
use super::request;
use crate::api::error::ApiError;
use crate::api::guest::Guest;
use crate::cluster::change::VoterChange;
use crate::types::{NodeId, Org, ShardId};

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
pub(super) async fn orgs(guest: Guest, request: Request) -> Result<Response, ApiError> {
    let NoOptions {} = request::query(request.uri())?;
    Ok(json(&json!({ "orgs": guest.orgs().await? })))
}

/// `GET /v1/shards?org=`: `{"shards":[ShardStatus]}`, of every org where none is named.
pub(super) async fn shards(guest: Guest, request: Request) -> Result<Response, ApiError> {
    let options: ShardsOptions = request::query(request.uri())?;
    let org = options.org.map(|org| Org::parse(&org)).transpose()?;
    Ok(json(&json!({ "shards": guest.shard_statuses(org).await? })))
}

/// `GET /v1/cluster`.
pub(super) async fn cluster(guest: Guest, request: Request) -> Result<Response, ApiError> {
    let NoOptions {} = request::query(request.uri())?;
    Ok(json(&guest.cluster()))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplaceOptions {
    with: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecoverOptions {
    #[serde(default)]
    force: bool,
}

/// `PUT /v1/cluster/voters/{node}`: 202 once it is begun that this node votes, or where it does already.
pub(super) async fn add(guest: Guest, request: Request) -> Result<Response, ApiError> {
    let NoOptions {} = request::query(request.uri())?;
    change(&guest, VoterChange::Add(voter_in(request.uri())?)).await
}

/// `DELETE /v1/cluster/voters/{node}`: 202 once it is begun that it doesn't vote, or where it is struck off already.
pub(super) async fn remove(guest: Guest, request: Request) -> Result<Response, ApiError> {
    let NoOptions {} = request::query(request.uri())?;
    change(&guest, VoterChange::Remove(voter_in(request.uri())?)).await
}

/// `POST /v1/cluster/voters/{node}/replace?with=`: 202 once it is begun that the disk that this node came back with, or another
/// node, votes in its place.
pub(super) async fn replace(guest: Guest, request: Request) -> Result<Response, ApiError> {
    let options: ReplaceOptions = request::query(request.uri())?;
    let with = options.with.map(|with| NodeId::parse(&with)).transpose()?;
    change(&guest, VoterChange::Replace { node: voter_in(request.uri())?, with }).await
}

/// `POST /v1/cluster/recover?force=true`: 200 once this node decides alone.
pub(super) async fn recover(guest: Guest, request: Request) -> Result<Response, ApiError> {
    let RecoverOptions { force } = request::query(request.uri())?;
    if !force {
        let why = "recovering may lose acknowledged writes; ask for it with ?force=true";
        return Err(ApiError::Invalid(why.to_owned()));
    }
    guest.recover().await?;
    Ok(json(&guest.cluster()))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FactorOptions {
    value: String,
}

/// `PUT /v1/cluster/replication-factor?value=`: 202 once it is begun that so many voters replicate each shard, or `all` of them.
pub(super) async fn factor(guest: Guest, request: Request) -> Result<Response, ApiError> {
    let FactorOptions { value } = request::query(request.uri())?;
    let wanted = VoterChange::factor(&value).map_err(|why| ApiError::Invalid(why.to_string()))?;
    change(&guest, wanted).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PinOptions {
    to: String,
}

/// `PUT /v1/cluster/pins/{org}/{ns}?to=`: 202 once it is begun that these voters replicate this shard before all others.
pub(super) async fn pin(guest: Guest, request: Request) -> Result<Response, ApiError> {
    let PinOptions { to } = request::query(request.uri())?;
    let to = nodes_in(&to)?;
    change(&guest, VoterChange::Move { shard: pinned_in(request.uri())?, to }).await
}

/// `DELETE /v1/cluster/pins/{org}/{ns}`: 202 once it is begun that those replicate it that follow from its name.
pub(super) async fn unpin(guest: Guest, request: Request) -> Result<Response, ApiError> {
    let NoOptions {} = request::query(request.uri())?;
    change(&guest, VoterChange::Move { shard: pinned_in(request.uri())?, to: Vec::new() }).await
}

fn pinned_in(uri: &Uri) -> Result<ShardId, ApiError> {
    shard_in(uri.path().strip_prefix("/v1/cluster/pins/").unwrap_or_default())
}

/// The nodes of `a,b,c`.
fn nodes_in(list: &str) -> Result<Vec<NodeId>, ApiError> {
    let mut nodes = BTreeSet::new();
    for name in list.split(',').filter(|_| !list.is_empty()) {
        let node = NodeId::parse(name)?;
        if nodes.contains(&node) {
            return Err(ApiError::Invalid(format!("to={list:?}: want each node once, and {node} stands twice")));
        }
        nodes.insert(node);
    }
    if nodes.is_empty() {
        let why = "to= names no node: want one or more, as in ?to=a,b; DELETE moves the shard back";
        return Err(ApiError::Invalid(why.to_owned()));
    }
    Ok(nodes.into_iter().collect())
}

async fn change(guest: &Guest, change: VoterChange) -> Result<Response, ApiError> {
    guest.change(change).await?;
    let mut response = json(&guest.cluster());
    *response.status_mut() = StatusCode::ACCEPTED;
    Ok(response)
}

fn voter_in(uri: &Uri) -> Result<NodeId, ApiError> {
    let rest = uri.path().strip_prefix("/v1/cluster/voters/").unwrap_or_default();
    Ok(NodeId::parse(&request::decoded(rest.split('/').next().unwrap_or_default())?)?)
}

/// `GET /v1/cluster/health`: 200, or 503 with the reason.
pub(super) async fn health(guest: Guest, request: Request) -> Result<Response, ApiError> {
    let NoOptions {} = request::query(request.uri())?;
    guest.health()?;
    Ok(json(&json!({ "status": "ok" })))
}

/// `POST /v1/shards/{org}/{ns}/checkpoint`: 204.
pub(super) async fn checkpoint(guest: Guest, request: Request) -> Result<Response, ApiError> {
    let NoOptions {} = request::query(request.uri())?;
    let rest = request.uri().path().strip_prefix("/v1/shards/").unwrap_or_default();
    guest.checkpoint(&shard_in(rest)?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// The shard that `{org}/{ns}…` names.
pub(super) fn shard_in(path: &str) -> Result<ShardId, ApiError> {
    let mut parts = path.split('/');
    let mut part = || request::decoded(parts.next().unwrap_or_default());
    let (org, namespace) = (part()?, part()?);
    Ok(ShardId::parse(&org, &namespace)?)
}
