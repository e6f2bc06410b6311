//! What all requests share: paths, query parameters, bodies.

use std::borrow::Cow;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::Query;
use axum::http::Uri;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::api::command::Consistency;
use crate::api::error::ApiError;
use crate::api::guest::Guest;
use crate::api::room::Share;

/// How long a client may take to send each further piece of a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How much of a refused body is read and thrown away.
const DISCARD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Reads the query of a request into `T`, whose unknown fields are errors.
pub(super) fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, ApiError> {
    Query::try_from_uri(uri)
        .map(|Query(query)| query)
        .map_err(|why| ApiError::Invalid(format!("the query of the request cannot be read: {}", why.body_text())))
}

/// A part of a path as the text that it stands for.
pub(super) fn decoded(part: &str) -> Result<Cow<'_, str>, ApiError> {
    percent_encoding::percent_decode_str(part)
        .decode_utf8()
        .map_err(|_| ApiError::Invalid("the path is not UTF-8 once it is percent-decoded".to_owned()))
}

/// The parameters of a write, and of a read of one key.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Options {
    consistency: Option<String>,
    timeout: Option<String>,
}

impl Options {
    /// How fresh a read must be.
    pub(super) fn read_consistency(&self) -> Result<Consistency, ApiError> {
        consistency(self.consistency.as_deref(), Consistency::Local)
    }

    /// Who has to have a write when it is answered.
    pub(super) fn write_consistency(&self) -> Result<Consistency, ApiError> {
        consistency(self.consistency.as_deref(), Consistency::Quorum)
    }

    /// How long to wait.
    pub(super) fn timeout(&self, guest: &Guest) -> Result<Option<Duration>, ApiError> {
        timeout(self.timeout.as_deref(), guest)
    }
}

/// Reads a `consistency` parameter.
pub(super) fn consistency(text: Option<&str>, default: Consistency) -> Result<Consistency, ApiError> {
    let Some(text) = text else { return Ok(default) };
    Consistency::parse(text)
        .ok_or_else(|| ApiError::Invalid(format!("consistency={text:?} is unknown: want local or quorum")))
}

/// Reads a `timeout` parameter, such as `2s` or `500ms`.
pub(super) fn timeout(text: Option<&str>, guest: &Guest) -> Result<Option<Duration>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    let max = guest.config().timeout_max;
    let timeout = humantime::parse_duration(text)
        .map_err(|why| ApiError::Invalid(format!("timeout={text:?}: {why}; want a time such as 2s or 500ms")))?;
    if timeout.is_zero() || timeout > max {
        let max = humantime::format_duration(max);
        return Err(ApiError::Invalid(format!("timeout={text} is out of range: want more than 0 and at most {max}")));
    }
    Ok(Some(timeout))
}

/// A whole body, and the room that it takes up for as long as its request lasts.
pub(super) struct Received {
    pub(super) bytes: Bytes,
    pub(super) _share: Share,
}

/// Reads a whole body of at most `max` bytes; `what` names it in errors. One that is refused is read all the same.
pub(super) async fn body(guest: &Guest, mut body: Body, max: usize, what: &str) -> Result<Received, ApiError> {
    let mut share = guest.share();
    match pieces(&mut share, &mut body, max, what).await {
        Ok(bytes) => Ok(Received { bytes, _share: share }),
        Err(refused @ (ApiError::TooLarge(_) | ApiError::Busy(_))) => {
            drop(share);
            discard(&mut body).await;
            Err(refused)
        }
        Err(error) => Err(error),
    }
}

async fn pieces(share: &mut Share, body: &mut Body, max: usize, what: &str) -> Result<Bytes, ApiError> {
    let too_large = || ApiError::TooLarge(format!("{what} has more than the {max} bytes allowed"));
    let announced = usize::try_from(HttpBody::size_hint(body).lower()).unwrap_or(usize::MAX);
    if announced > max {
        return Err(too_large());
    }
    share.resize(announced)?;
    let (mut first, mut all) = (Bytes::new(), BytesMut::new());
    loop {
        let frame = match tokio::time::timeout(BODY_TIMEOUT, body.frame()).await {
            Err(_) => return Err(ApiError::SlowClient(format!("{what} did not arrive in time"))),
            Ok(None) => break,
            Ok(Some(Err(why))) => return Err(ApiError::Invalid(format!("{what} ended early: {why}"))),
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else { continue };
        let bytes = first.len() + all.len() + data.len();
        if bytes > max {
            return Err(too_large());
        }
        share.resize(bytes.max(announced))?;
        if first.is_empty() && all.is_empty() {
            first = data;
            continue;
        }
        if all.is_empty() {
            all.reserve(announced);
            all.extend_from_slice(&first);
            first = Bytes::new();
        }
        all.extend_from_slice(&data);
    }
    // A piece may be a small part of a large read buffer; the value must not hold on to all of that.
    Ok(if all.is_empty() { Bytes::copy_from_slice(&first) } else { all.freeze() })
}

/// Reads on for a while without keeping anything: a connection closed with bytes unread looks broken to the client,
/// who would miss why it was refused.
async fn discard(body: &mut Body) {
    let mut discarded = 0;
    while discarded < DISCARD_BYTES_MAX {
        match tokio::time::timeout(BODY_TIMEOUT, body.frame()).await {
            Ok(Some(Ok(frame))) => discarded += frame.data_ref().map_or(0, Bytes::len),
            _ => return,
        }
    }
}
