//! Heads that are no HTTP, or too large: hyper answers them by itself, with a bare status. This puts a problem in its
//! place, so that every error on the socket is one.
//!
//! hyper has no hook for it. But what it writes while no request is under way can only be its own words, so it is
//! enough to know which requests are: [`Traffic`] counts them, and [`Tap`] looks at what is written.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use axum::body::{Body, HttpBody};
use axum::http::{Request, Response};
use bytes::{Buf, Bytes};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::Service;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::raw_answer;
use crate::api::error::ApiError;

/// The requests of one connection.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    begun: AtomicU64,
    ended: AtomicU64,
}

impl Traffic {
    fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// How many requests there were, if the last has been answered.
    fn all_ended(&self) -> Option<u64> {
        let begun = self.begun();
        (self.ended.load(Ordering::Relaxed) == begun).then_some(begun)
    }
}

/// A request under way: ends with its answer's body.
#[derive(Debug)]
pub(super) struct Underway(Arc<Traffic>);

impl Underway {
    fn begin(traffic: &Arc<Traffic>) -> Self {
        traffic.begun.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(traffic))
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// A service whose requests are counted.
pub(super) struct Counting<S> {
    pub(super) inner: S,
    pub(super) traffic: Arc<Traffic>,
}

impl<S> Service<Request<Incoming>> for Counting<S>
where
    S: Service<Request<Incoming>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<CountedBody>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let underway = Underway::begin(&self.traffic);
        let answer = self.inner.call(request);
        Box::pin(async move { Ok(answer.await?.map(|inner| CountedBody { inner, _underway: underway })) })
    }
}

/// An answer's body, under way for as long as it lives.
#[derive(Debug)]
pub(super) struct CountedBody {
    inner: Body,
    _underway: Underway,
}

impl HttpBody for CountedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A connection's bytes, with hyper's own answers replaced.
pub(super) struct Tap<'a, S> {
    inner: &'a mut S,
    traffic: Arc<Traffic>,
    /// How many requests there had been when everything was answered and written.
    quiet_at: Option<u64>,
    refusal: Option<ApiError>,
    /// Of the refusal, what is not written yet.
    unwritten: Bytes,
}

impl<'a, S: AsyncWrite + Unpin> Tap<'a, S> {
    pub(super) fn new(inner: &'a mut S, traffic: Arc<Traffic>) -> Self {
        Self { inner, traffic, quiet_at: Some(0), refusal: None, unwritten: Bytes::new() }
    }

    /// Why the connection's last head was refused.
    pub(super) fn refusal(&self) -> Option<&ApiError> {
        self.refusal.as_ref()
    }

    /// Takes note of an answer of hyper's own; `written` begins with its status line.
    fn is_replaced(&mut self, written: &[u8]) -> bool {
        if self.refusal.is_some() {
            return true;
        }
        if self.quiet_at != Some(self.traffic.begun()) {
            return false;
        }
        let refusal = if written.starts_with(b"HTTP/1.1 400") {
            ApiError::Invalid("the head of the request cannot be read as HTTP/1.1".to_owned())
        } else {
            let max = super::HEAD_BYTES_MAX;
            ApiError::TooLarge(format!("the head of the request has more than {max} bytes, or too many headers"))
        };
        self.unwritten = raw_answer(&refusal);
        self.refusal = Some(refusal);
        true
    }

    fn poll_unwritten(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unwritten.is_empty() {
            match ready!(Pin::new(&mut *self.inner).poll_write(context, &self.unwritten))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.unwritten.advance(count),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tap<'_, S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.inner).poll_read(context, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tap<'_, S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_replaced(buf) {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut *self.inner).poll_write(context, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.is_replaced(bufs.first().map_or(&[][..], |first| first)) {
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        Pin::new(&mut *self.inner).poll_write_vectored(context, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    /// hyper flushes once it has written all it had.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_unwritten(context))?;
        self.quiet_at = self.traffic.all_ended();
        Pin::new(&mut *self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_unwritten(context))?;
        Pin::new(&mut *self.inner).poll_shutdown(context)
    }
}
