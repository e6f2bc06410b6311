//! The HTTP dialect: HTTP/1.1 with raw bytes as values, and RFC 9457 problems as errors.

mod backup;
mod batch;
mod heads;
mod kv;
mod node;
mod request;
mod unread;
mod watch;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post, put};
use bytes::Bytes;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};

use self::heads::{Counting, Tap, Traffic};
use super::error::{ApiError, RETRY_AFTER_SECONDS};
use super::guest::Guest;
use super::metrics::Class;
use crate::token::TokenDigest;

/// How long a client may take to send a request's head, and how long a connection without a request stays open.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest head of a request: request line and headers, in bytes. A key of the largest size fits, percent-encoded.
const HEAD_BYTES_MAX: usize = 256 * 1024;
/// How a request shows its token.
const BEARER: &[u8] = b"Bearer ";

/// Why a connection ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Both sides are done, or the client is gone.
    Done,
    /// The client was told that its request cannot be read; there may be more of it to read.
    Refused,
}

/// Serves one connection until either side ends it.
pub(super) async fn serve<S>(stream: &mut S, guest: Guest) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let traffic = Arc::new(Traffic::default());
    let mut tap = Tap::new(stream, Arc::clone(&traffic));
    let counting = Counting { inner: TowerToHyperService::new(router(guest.clone())), traffic };
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .half_close(true)
        .serve_connection(TokioIo::new(&mut tap), counting);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "an HTTP connection ended early");
    }
    let Some(refusal) = tap.refusal() else { return Ended::Done };
    guest.metrics().http.requests.increment(1);
    guest.metrics().http.count_error(refusal.row().label);
    Ended::Refused
}

fn router(guest: Guest) -> Router {
    Router::new()
        .route("/v1/kv", any(kv::handle))
        .route("/v1/kv/{*rest}", any(kv::handle))
        .route("/v1/batch/{org}/{ns}", post(batch::handle))
        .route("/v1/backup", get(backup::list))
        .route("/v1/backup/{org}/{ns}", get(backup::copy))
        .route("/v1/watch/{*rest}", get(watch::handle))
        .route("/v1/orgs", get(node::orgs))
        .route("/v1/shards", get(node::shards))
        .route("/v1/shards/{org}/{ns}/checkpoint", post(node::checkpoint))
        .route("/v1/cluster", get(node::cluster))
        .route("/v1/cluster/health", get(node::health))
        .route("/v1/cluster/voters/{node}", put(node::add).delete(node::remove))
        .route("/v1/cluster/voters/{node}/replace", post(node::replace))
        .route("/v1/cluster/replication-factor", put(node::factor))
        .route("/v1/cluster/pins/{org}/{ns}", put(node::pin).delete(node::unpin))
        .route("/v1/cluster/recover", post(node::recover))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn(unread::discard))
        .layer(middleware::from_fn_with_state(guest.clone(), measure))
        .with_state(guest)
}

/// Who asks, with the token that the request shows.
impl FromRequestParts<Self> for Guest {
    type Rejection = Infallible;

    async fn from_request_parts(head: &mut Parts, connected: &Self) -> Result<Self, Infallible> {
        Ok(connected.showing(head.headers.get(AUTHORIZATION).and_then(bearer)))
    }
}

/// The token of `Authorization: Bearer TOKEN` (RFC 6750); none where another scheme is used.
fn bearer(header: &HeaderValue) -> Option<TokenDigest> {
    let (scheme, token) = header.as_bytes().split_at_checked(BEARER.len())?;
    scheme.eq_ignore_ascii_case(BEARER).then(|| TokenDigest::of(token.trim_ascii()))
}

async fn no_route(request: Request) -> ApiError {
    ApiError::NotFound(format!("there is nothing at {}", request.uri().path()))
}

async fn no_method(request: Request) -> ApiError {
    ApiError::MethodNotAllowed(format!("{} is not a method of {}", request.method(), request.uri().path()))
}

/// Counts and times every request, and says goodbye where the node drains: a client that is told goes elsewhere before
/// the connection is closed under it.
async fn measure(State(guest): State<Guest>, request: Request, next: Next) -> Response {
    let metrics = &guest.metrics().http;
    let class = class_of(request.method(), request.uri().path());
    let started = guest.monotonic();
    metrics.requests.increment(1);
    let mut response = next.run(request).await;
    if guest.is_draining() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    metrics.seconds(class).record(guest.monotonic().saturating_sub(started));
    if let Some(Label(label)) = response.extensions().get() {
        metrics.count_error(label);
    }
    response
}

fn class_of(method: &Method, path: &str) -> Class {
    match *method {
        Method::GET | Method::HEAD if path.starts_with("/v1/kv/") => Class::Read,
        Method::PUT | Method::DELETE => Class::Write,
        _ => Class::Other,
    }
}

/// The label of the error that a response is.
#[derive(Debug, Clone, Copy)]
struct Label(&'static str);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let row = self.row();
        let body = serde_json::to_vec(&self.problem()).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = row.status;
        response.extensions_mut().insert(Label(row.label));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if row.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if row.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
        }
        if let Self::ConditionFailed { current: Some(upd) } = self {
            kv::set_etag(headers, upd);
        }
        response
    }
}

/// An error as bytes on the wire, for a connection that no HTTP server answers on.
pub(super) fn raw_answer(error: &ApiError) -> Bytes {
    let row = error.row();
    let body = serde_json::to_string(&error.problem()).unwrap_or_default();
    let retry_after = if row.retry_after { format!("retry-after: {RETRY_AFTER_SECONDS}\r\n") } else { String::new() };
    Bytes::from(format!(
        "HTTP/1.1 {} {}\r\ncontent-type: application/problem+json\r\n{retry_after}connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        row.status.as_str(),
        row.status.canonical_reason().unwrap_or_default(),
        body.len(),
    ))
}
