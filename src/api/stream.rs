//! A connection's bytes: what was read to tell the dialect comes first, and a client that stops reading is dropped.

use std::future::Future;
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// A client's connection that ends without a request between two stools.
///
/// A connection closed while a request is on its way leaves its client to wonder what became of it. So once it is to
/// stop, the receiving side is shut down first: from then on the client's writes fail, so that it knows of each request
/// whether it was sent; what had been sent is still read, up to an end like that of a client which sends no more.
pub(super) struct Ending {
    inner: UnixStream,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    is_deaf: bool,
}

impl Ending {
    pub(super) fn new(inner: UnixStream, stop: CancellationToken) -> Self {
        Self { inner, stop: Box::pin(stop.cancelled_owned()), is_deaf: false }
    }
}

impl AsyncRead for Ending {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.is_deaf && self.stop.as_mut().poll(context).is_ready() {
            self.is_deaf = true;
            // Fails only where the client has gone.
            let _ = SockRef::from(&self.inner).shutdown(Shutdown::Read);
        }
        Pin::new(&mut self.inner).poll_read(context, buf)
    }
}

impl AsyncWrite for Ending {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

/// A stream whose writes fail once nothing could be written for a while.
pub(super) struct Guarded<S> {
    inner: S,
    /// Read already, to be read again first.
    first: Bytes,
    write_timeout: Duration,
    stuck: Option<Pin<Box<Sleep>>>,
}

impl<S> Guarded<S> {
    pub(super) fn new(inner: S, first: Bytes, write_timeout: Duration) -> Self {
        Self { inner, first, write_timeout, stuck: None }
    }

    /// Passes a write's end through, or ends it where the client has not read for too long.
    fn guard<T>(&mut self, ended: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if ended.is_ready() {
            self.stuck = None;
            return ended;
        }
        let timeout = self.write_timeout;
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        stuck.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let count = self.first.len().min(buf.remaining());
            buf.put_slice(self.first.get(..count).unwrap_or_default());
            self.first.advance(count);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_read(context, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let ended = Pin::new(&mut self.inner).poll_write(context, buf);
        self.guard(ended, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let ended = Pin::new(&mut self.inner).poll_write_vectored(context, bufs);
        self.guard(ended, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = Pin::new(&mut self.inner).poll_flush(context);
        self.guard(ended, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = Pin::new(&mut self.inner).poll_shutdown(context);
        self.guard(ended, context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_never_reads_is_given_up_and_a_slow_one_is_not() {
        let (ours, mut theirs) = tokio::io::duplex(8);
        let mut guarded = Guarded::new(ours, Bytes::from_static(b"first"), Duration::from_secs(30));
        let mut first = [0; 5];
        guarded.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"first");

        let slow = tokio::spawn(async move {
            let mut got = Vec::new();
            while got.len() < 24 {
                tokio::time::sleep(Duration::from_secs(20)).await;
                let mut piece = [0; 8];
                theirs.read_exact(&mut piece).await.unwrap();
                got.extend_from_slice(&piece);
            }
            theirs
        });
        guarded.write_all(&[b'x'; 32]).await.unwrap();
        let _unread = slow.await.unwrap();
        let error = guarded.write_all(&[b'x'; 32]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
