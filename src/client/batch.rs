//! Many operations in one round trip, each with its own result.

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde::{Deserialize, Serialize};

use super::{Error, Expect, Problem, Written};
use crate::messagepack;
use crate::types::Ballot;

/// The most operations of one batch.
pub const BATCH_OPS_MAX: usize = 1_000;
/// About the most bytes of keys and values that one batch carries.
pub const BATCH_BYTES_SOFT_MAX: usize = 15 * 1024 * 1024;

pub(super) const MSGPACK: HeaderValue = HeaderValue::from_static("application/msgpack");

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BatchOp {
    /// Reads.
    Get(String),
    /// Writes, where the key is as expected.
    Put {
        /// The key.
        key: String,
        /// What to write.
        value: Bytes,
        /// What has to be there; anything where this is none.
        expect: Option<Expect>,
    },
    /// Deletes, whether there is a value or not.
    Del(String),
}

/// What became of one operation that was carried out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BatchDone {
    /// What a get found; none where the key has no value, and for writes.
    pub value: Option<Bytes>,
    /// The version of what was read or written.
    pub upd: Option<Ballot>,
}

#[derive(Serialize)]
struct Body<'a> {
    ops: Vec<Op<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Op<'a> {
    Get { key: &'a str },
    Put { key: &'a str, value: &'a Bytes, if_upd: Option<Ballot>, if_absent: bool },
    Del { key: &'a str },
}

impl<'a> From<&'a BatchOp> for Op<'a> {
    fn from(op: &'a BatchOp) -> Self {
        match op {
            BatchOp::Get(key) => Self::Get { key },
            BatchOp::Del(key) => Self::Del { key },
            BatchOp::Put { key, value, expect } => {
                let (if_upd, if_absent) = match *expect {
                    None => (None, false),
                    Some(Expect::Absent) => (None, true),
                    Some(Expect::Upd(upd)) => (Some(upd), false),
                };
                Self::Put { key, value, if_upd, if_absent }
            }
        }
    }
}

#[derive(Deserialize)]
struct Results {
    results: Vec<Single>,
}

#[derive(Deserialize)]
struct Single {
    status: u16,
    value: Option<Bytes>,
    upd: Option<Ballot>,
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    title: String,
    #[serde(default)]
    detail: String,
    written: Option<Written>,
}

pub(super) fn body(ops: &[BatchOp]) -> Result<Bytes, Error> {
    let body = Body { ops: ops.iter().map(Op::from).collect() };
    let bytes = rmp_serde::to_vec_named(&body);
    bytes
        .map(Bytes::from)
        .map_err(|why| Error::MalformedRequest { path: "/v1/batch".to_owned(), reason: why.to_string() })
}

pub(super) fn set_format(headers: &mut hyper::HeaderMap) {
    headers.insert(CONTENT_TYPE, MSGPACK);
}

/// One result for each of `ops`, in their order.
pub(super) fn results(body: &[u8], ops: &[BatchOp]) -> Result<Vec<Result<BatchDone, Problem>>, Error> {
    let unreadable = |why: String| Error::Unreadable(why);
    let Results { results } = messagepack::decode(body).map_err(|why| unreadable(why.to_string()))?;
    if results.len() != ops.len() {
        return Err(unreadable(format!("{} results of {} operations", results.len(), ops.len())));
    }
    let result = |(single, op): (Single, &BatchOp)| {
        let Single { status, value, upd, kind, title, detail, written } = single;
        match (status, op) {
            (200..300, _) | (404, BatchOp::Get(_)) => Ok(BatchDone { value, upd }),
            _ => Err(Problem { kind, title, status, detail, written }),
        }
    };
    Ok(results.into_iter().zip(ops).map(result).collect())
}
