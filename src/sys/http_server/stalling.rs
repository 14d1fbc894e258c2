//! A stream that fails if its reader stalls, and whose close does not lose the last answer.
use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// How long input is read and discarded after our last byte. A socket closed with unread input is reset, and the client loses
/// the answer.
const LINGER: Duration = Duration::from_secs(5);

/// A stream that fails with `TimedOut` once a write has made no progress for `limit`. Reading has its own limits.
pub(super) struct Stalling<T> {
    inner: T,
    limit: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
    lingering: Option<Pin<Box<Sleep>>>,
    stopping: Arc<AtomicBool>,
}

impl<T> Stalling<T> {
    /// Once `stopping` is set, input is not drained after our last byte.
    pub(super) const fn new(inner: T, limit: Duration, stopping: Arc<AtomicBool>) -> Self {
        Self { inner, limit, waiting: None, lingering: None, stopping }
    }

    fn watch<R>(&mut self, cx: &mut Context<'_>, done: Poll<std::io::Result<R>>) -> Poll<std::io::Result<R>> {
        if done.is_ready() {
            self.waiting = None;
            return done;
        }
        let limit = self.limit;
        let wait = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + limit)));
        match wait.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(std::io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Stalling<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stalling<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        let done = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.watch(cx, done)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let done = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.watch(cx, done)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let done = Pin::new(&mut self.inner).poll_flush(cx);
        self.watch(cx, done)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        if self.lingering.is_none() {
            let done = Pin::new(&mut self.inner).poll_shutdown(cx);
            if !matches!(self.watch(cx, done)?, Poll::Ready(())) {
                return Poll::Pending;
            }
        }
        if self.stopping.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let this = &mut *self;
        let end = this.lingering.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        let mut thrown = [0; 4096];
        // A few at a time: a client that sends without end must not delay other tasks.
        for _ in 0..16 {
            let mut buf = ReadBuf::new(&mut thrown);
            match Pin::new(&mut this.inner).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return end.as_mut().poll(cx).map(Ok),
            }
        }
        if end.as_mut().poll(cx).is_pending() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}
