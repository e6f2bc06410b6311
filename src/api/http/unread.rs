//! Bodies that a handler did not read to their end, as it had seen enough to refuse the request.
//!
//! A connection that is closed with bytes unread looks broken to a client that still sends them: it would see a broken
//! pipe in place of the reason. So every body comes back here when its handler drops it, and what is left of it is
//! read and thrown away before the answer goes out.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::header::EXPECT;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Frame, SizeHint};
use tokio::sync::oneshot;

/// How much is read and thrown away.
const DISCARD_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long the client may take to send each further piece.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(30);

/// Reads what the handler left of a request's body.
pub(super) async fn discard(request: Request, next: Next) -> Response {
    // Who waits to be told to go on will not send what nobody asked for.
    if request.body().is_end_stream() || request.headers().contains_key(EXPECT) {
        return next.run(request).await;
    }
    let (home, returned) = oneshot::channel();
    let response = next.run(request.map(|body| Body::new(Lent { body: Some(body), home: Some(home) }))).await;
    if let Ok(body) = returned.await {
        read_on(body).await;
    }
    response
}

async fn read_on(mut body: Body) {
    let mut discarded = 0;
    while discarded < DISCARD_BYTES_MAX {
        match tokio::time::timeout(DISCARD_TIMEOUT, body.frame()).await {
            Ok(Some(Ok(frame))) => discarded += frame.data_ref().map_or(0, Bytes::len),
            _ => return,
        }
    }
}

/// A body that goes home when it is dropped, unless it has ended.
struct Lent {
    body: Option<Body>,
    home: Option<oneshot::Sender<Body>>,
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(context);
        if let Poll::Ready(None | Some(Err(_))) = &polled {
            self.body = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some((body, home)) = self.body.take().zip(self.home.take()) {
            // Nobody waits for it where the request itself was given up.
            let _ = home.send(body);
        }
    }
}
