//! `POST /v1/batch/{org}/{ns}`: many operations in one round trip, each with its own result; not atomic.
//!
//! A request is an object, in JSON or (`Content-Type: application/msgpack`) in MessagePack:
//!
//! ```json
//! {"ops":[
//!   {"put":{"key":"a","value":"aGVsbG8="}},
//!   {"put":{"key":"b","value":"aGVsbG8=","if_absent":true}},
//!   {"put":{"key":"c","value":"aGVsbG8=","if_upd":1700000000000000000}},
//!   {"get":{"key":"a"}},
//!   {"del":{"key":"a","if_upd":1700000000000000000}}
//! ]}
//! ```
//!
//! A `value` is base64 in JSON and binary in MessagePack. At most [`OPS_MAX`] operations and [`BODY_BYTES_MAX`] bytes.
//! Operations on the same key take effect in their order, others at the same time. `?consistency=` is that of all of
//! them - left out, gets are local and writes want a quorum -, `?timeout=` that of each operation.
//!
//! The answer is in the same format unless `Accept` names the other one: 200 and one result per operation, in order:
//!
//! ```json
//! {"results":[
//!   {"status":204,"upd":1700000000000000001},
//!   {"status":412,"type":"urn:outrigger:problem:condition-failed","title":"…","detail":"…","written":"no","upd":17},
//!   {"status":200,"value":"aGVsbG8=","upd":1700000000000000001},
//!   {"status":404,"type":"urn:outrigger:problem:not-found","title":"…","detail":"…","written":"no"},
//!   {"status":204}
//! ]}
//! ```
//!
//! `status` is what the same request would have been answered alone; a failed result has the members of a problem, and
//! the current version as `upd` where its condition failed on one. A request with an operation that cannot be read, or
//! whose key or value is out of bounds, is refused as a whole before anything is done.

use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::kv::{check, json};
use super::node::shard_in;
use super::request::{self, Options};
use crate::api::access::Want;
use crate::api::command::{Batch, BatchOp, Consistency};
use crate::api::error::{ApiError, Problem, Written};
use crate::api::guest::Guest;
use crate::api::service::not_blind;
use crate::messagepack;
use crate::store::update::{Change, Condition, Outcome, Update};
use crate::types::{Ballot, Key, Value};

/// The most operations of one batch.
const OPS_MAX: usize = 1_000;
/// The largest body of a batch, in bytes.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Bytes as the format at hand writes them: base64 where it is text.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Blob(Bytes);

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return serializer.serialize_str(&STANDARD.encode(&self.0));
        }
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            return Bytes::deserialize(deserializer).map(Self);
        }
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).map_err(|why| serde::de::Error::custom(format!("value: {why}")))?;
        Ok(Self(Bytes::from(bytes)))
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchBody {
    ops: Vec<OpBody>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum OpBody {
    Put(PutBody),
    Get(GetBody),
    Del(DelBody),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PutBody {
    key: String,
    value: Blob,
    if_upd: Option<Ballot>,
    #[serde(default)]
    if_absent: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GetBody {
    key: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DelBody {
    key: String,
    if_upd: Option<Ballot>,
}

#[derive(Debug, Serialize)]
struct ResultsBody {
    results: Vec<ResultBody>,
}

#[derive(Debug, Default, Serialize)]
struct ResultBody {
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Blob>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upd: Option<Ballot>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    written: Option<Written>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    MsgPack,
}

impl Format {
    fn named(media_type: &str) -> Option<Self> {
        match media_type.split(';').next().map(|kind| kind.trim().to_ascii_lowercase()).as_deref() {
            Some("application/json") => Some(Self::Json),
            Some("application/msgpack" | "application/x-msgpack" | "application/vnd.msgpack") => Some(Self::MsgPack),
            _ => None,
        }
    }

    /// The format of the body: JSON unless the client says otherwise. What `curl -d` says by itself counts as nothing.
    fn of_body(headers: &HeaderMap) -> Result<Self, ApiError> {
        let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(Self::Json) };
        let text = value.to_str().unwrap_or_default();
        if text.starts_with("application/x-www-form-urlencoded") {
            return Ok(Self::Json);
        }
        let unknown =
            || ApiError::UnsupportedMediaType(format!("{text:?}: want application/json or application/msgpack"));
        Self::named(text).ok_or_else(unknown)
    }

    /// The format of the answer: the first one accepted that is known, else the body's.
    fn of_answer(self, headers: &HeaderMap) -> Self {
        let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        accepted.flat_map(|value| value.split(',')).find_map(Self::named).unwrap_or(self)
    }
}

/// Carries out one batch.
pub(super) async fn handle(guest: Guest, request: Request) -> Result<Response, ApiError> {
    let options: Options = request::query(request.uri())?;
    let (reads, writes) = (options.read_consistency()?, options.write_consistency()?);
    let timeout = options.timeout(&guest)?;
    let shard = shard_in(request.uri().path().strip_prefix("/v1/batch/").unwrap_or_default())?;
    let format = Format::of_body(request.headers())?;
    let answer_format = format.of_answer(request.headers());
    // Who may not even read there has no operation to be judged by itself.
    guest.check(Want::Read(&shard))?;
    let body = request::body(&guest, request.into_body(), BODY_BYTES_MAX, "the batch").await?;
    let ops = parse(format, &body.bytes, &guest)?;
    let is_get: Vec<_> = ops.iter().map(|op| matches!(op, BatchOp::Get(_))).collect();
    let is_refused = |op: &BatchOp| matches!(op, BatchOp::Write(_, update) if update.blind().is_none());
    if writes == Consistency::Local && ops.iter().any(is_refused) {
        return Err(not_blind());
    }
    let results = guest.batch(Batch { shard, ops, reads, writes, timeout }).await;
    for error in results.iter().filter_map(|result| result.as_ref().err()) {
        guest.metrics().http.count_error(error.row().label);
    }
    let results = results.into_iter().zip(is_get).map(|(result, is_get)| result_body(result, is_get)).collect();
    Ok(answer(answer_format, &ResultsBody { results }))
}

fn parse(format: Format, body: &[u8], guest: &Guest) -> Result<Vec<BatchOp>, ApiError> {
    let bad = |why: String| ApiError::Invalid(format!("the batch cannot be read: {why}"));
    let batch: BatchBody = match format {
        Format::Json => serde_json::from_slice(body).map_err(|why| bad(why.to_string()))?,
        Format::MsgPack => messagepack::decode(body).map_err(|why| bad(why.to_string()))?,
    };
    if batch.ops.len() > OPS_MAX {
        let count = batch.ops.len();
        return Err(ApiError::TooLarge(format!("the batch has {count} operations, more than {OPS_MAX}")));
    }
    batch.ops.into_iter().map(|op| checked(op, guest)).collect()
}

fn checked(op: OpBody, guest: &Guest) -> Result<BatchOp, ApiError> {
    let config = guest.config();
    let parse_key = |key: String| Key::parse_bytes(key.as_bytes(), config.key_bytes_max);
    Ok(match op {
        OpBody::Get(get) => BatchOp::Get(parse_key(get.key)?),
        OpBody::Del(del) => {
            let condition = del.if_upd.map_or(Condition::Always, Condition::UpdIs);
            BatchOp::Write(parse_key(del.key)?, Update { condition, change: Change::Del })
        }
        OpBody::Put(put) => {
            let condition = match (put.if_upd, put.if_absent) {
                (None, false) => Condition::Always,
                (None, true) => Condition::Absent,
                (Some(upd), false) => Condition::UpdIs(upd),
                (Some(_), true) => {
                    return Err(ApiError::Invalid("if_upd and if_absent: want one of them".to_owned()));
                }
            };
            let value = Value::parse(put.value.0, config.value_bytes_max)?;
            BatchOp::Write(parse_key(put.key)?, Update { condition, change: Change::Put(value) })
        }
    })
}

fn result_body(result: Result<Outcome, ApiError>, is_get: bool) -> ResultBody {
    let checked = result.and_then(|outcome| check(&outcome).map(|()| outcome));
    match checked {
        Ok(Outcome { after: Some(row), .. }) if is_get => ResultBody {
            status: 200,
            value: Some(Blob(row.value.into_bytes())),
            upd: Some(row.upd),
            ..Default::default()
        },
        Ok(_) if is_get => failed(&ApiError::NotFound("the key has no value".to_owned())),
        Ok(outcome) => ResultBody { status: 204, upd: outcome.after.map(|row| row.upd), ..Default::default() },
        Err(error) => failed(&error),
    }
}

fn failed(error: &ApiError) -> ResultBody {
    let upd = match error {
        ApiError::ConditionFailed { current } => *current,
        _ => None,
    };
    let Problem { kind, title, status, detail, written } = error.problem();
    ResultBody {
        status,
        value: None,
        upd,
        kind: Some(kind),
        title: Some(title),
        detail: Some(detail),
        written: Some(written),
    }
}

fn answer(format: Format, body: &ResultsBody) -> Response {
    if format == Format::Json {
        return json(body);
    }
    match rmp_serde::to_vec_named(body) {
        Ok(bytes) => ([(CONTENT_TYPE, "application/msgpack")], bytes).into_response(),
        Err(why) => {
            let detail = format!("the answer cannot be written as MessagePack: {why}");
            ApiError::Internal { detail, written: Written::Unknown }.into_response()
        }
    }
}
