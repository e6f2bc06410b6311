//! One request and its answer over a Unix socket.

use std::path::Path;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{ETAG, HOST, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::{ANSWER_BYTES_MAX, Error, Problem};
use crate::types::Ballot;

pub(super) type Body = Full<Bytes>;
pub(super) type Sender = http1::SendRequest<Body>;

/// A whole answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
    etag: Option<HeaderValue>,
}

impl Answer {
    pub(super) fn success(self) -> Result<Self, Error> {
        if self.status.is_success() { Ok(self) } else { Err(Error::Problem(self.problem())) }
    }

    /// The error in the body; made up from the status where it is none.
    pub(super) fn problem(&self) -> Problem {
        let mut problem: Problem = serde_json::from_slice(&self.body).unwrap_or_else(|_| Problem {
            kind: "about:blank".to_owned(),
            title: self.status.canonical_reason().unwrap_or_default().to_owned(),
            status: 0,
            detail: String::from_utf8_lossy(&self.body).trim().chars().take(500).collect(),
            written: None,
        });
        problem.status = self.status.as_u16();
        problem
    }

    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.body).map_err(|error| Error::Unreadable(error.to_string()))
    }

    pub(super) fn etag(&self) -> Result<Option<Ballot>, Error> {
        let Some(header) = &self.etag else { return Ok(None) };
        let text = header.to_str().unwrap_or_default();
        let upd = text.trim_matches('"').parse().map(Ballot);
        upd.map(Some).map_err(|_| Error::Unreadable(format!("ETag {header:?} is not a version")))
    }

    pub(super) fn required_etag(&self) -> Result<Ballot, Error> {
        self.etag()?.ok_or_else(|| Error::Unreadable("it carries no ETag".to_owned()))
    }
}

pub(super) async fn connect(socket: &Path) -> Result<Sender, Error> {
    let unreachable = |reason| Error::NotReachable { socket: socket.to_owned(), reason };
    let stream = UnixStream::connect(socket).await.map_err(unreachable)?;
    let (sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| unreachable(std::io::Error::other(error)))?;
    // Ends with the sender, or when the node closes; whoever waits for an answer then hears of it.
    tokio::spawn(connection);
    Ok(sender)
}

/// Sends `request` over `idle`, or over a new connection where that one is closed, and reads the whole answer.
pub(super) async fn exchange(
    socket: &Path,
    idle: Option<Sender>,
    tried: &'static str,
    request: Request<Body>,
) -> Result<(Answer, Sender), Error> {
    if let Some(mut sender) = idle
        && sender.ready().await.is_ok()
    {
        // The node may have closed the idle connection while this was on its way.
        let again = request.clone();
        match send(&mut sender, request).await {
            Ok(response) => return Ok((whole(socket, tried, response).await?, sender)),
            Err((_, unsent)) if unsent || again.method() == Method::GET => {
                return fresh_exchange(socket, tried, again).await;
            }
            Err((error, _)) => return Err(broken(socket, tried, &error)),
        }
    }
    fresh_exchange(socket, tried, request).await
}

async fn fresh_exchange(socket: &Path, tried: &'static str, request: Request<Body>) -> Result<(Answer, Sender), Error> {
    let mut sender = connect(socket).await?;
    let response = send(&mut sender, request).await.map_err(|(error, unsent)| match unsent {
        true => Error::NotReachable { socket: socket.to_owned(), reason: std::io::Error::other(error) },
        false => broken(socket, tried, &error),
    })?;
    Ok((whole(socket, tried, response).await?, sender))
}

/// True where the node took no more of the request while it was being written: it has no whole request, so it does
/// nothing. A node that ends stops listening before it closes its connections.
fn is_broken_pipe(error: &hyper::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The head of the answer; an error says whether the node cannot have got the whole request.
pub(super) async fn send(
    sender: &mut Sender,
    mut request: Request<Body>,
) -> Result<Response<Incoming>, (hyper::Error, bool)> {
    request.headers_mut().insert(HOST, HeaderValue::from_static("outrigger"));
    sender.try_send_request(request).await.map_err(|mut error| {
        let unsent = error.take_message().is_some();
        let error = error.into_error();
        let unsent = unsent || is_broken_pipe(&error);
        (error, unsent)
    })
}

pub(super) async fn whole(socket: &Path, tried: &'static str, response: Response<Incoming>) -> Result<Answer, Error> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|error| broken(socket, tried, &error))?.to_bytes();
    Ok(Answer { status: head.status, etag: head.headers.get(ETAG).cloned(), body })
}

pub(super) fn broken(socket: &Path, tried: &'static str, why: &(impl std::fmt::Display + ?Sized)) -> Error {
    Error::Broken { socket: socket.to_owned(), tried, reason: why.to_string() }
}
