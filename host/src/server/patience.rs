//! Slow clients: how long one may keep the host waiting, in sending as in taking.
//!
//! A client owes the host `min_bytes_per_second` for as long as it is waited for. What it owes is
//! measured in time: a wait adds to it, bytes that move take from it, and beyond the limit the client is
//! cut off. So a pause, a slow link and a trickle of single bytes are held to one rule, and a client
//! that the host does not wait for owes nothing.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::clock::SharedClock;
use crate::config::Http;

/// What a client owes.
#[derive(Debug, Clone)]
pub struct Patience {
    limit: Duration,
    bytes_per_second: u32,
    owed: Duration,
}

impl Patience {
    /// A client that owes nothing yet.
    pub fn new(http: &Http) -> Self {
        Self {
            limit: Duration::from_millis(http.stall_timeout_ms),
            bytes_per_second: http.min_bytes_per_second,
            owed: Duration::ZERO,
        }
    }

    /// How long the next wait may be.
    pub fn left(&self) -> Duration {
        self.limit.saturating_sub(self.owed)
    }

    /// The host has waited so long, and then so many bytes moved.
    pub fn waited(&mut self, time: Duration, bytes: usize) {
        let rate = f64::from(self.bytes_per_second.max(1));
        let paid = Duration::from_secs_f64(bytes as f64 / rate);
        self.owed = (self.owed + time).saturating_sub(paid);
    }
}

/// A connection that fails with `TimedOut` once its client has not taken what is written for too long.
pub struct Patient<I> {
    inner: I,
    clock: SharedClock,
    patience: Patience,
    /// Since when the client is waited for, and what wakes the writer when it has been too long.
    waiting: Option<(Duration, Pin<Box<Sleep>>)>,
}

impl<I> Patient<I> {
    /// The same connection, with a client that owes nothing yet.
    pub fn new(inner: I, clock: SharedClock, patience: Patience) -> Self {
        Self { inner, clock, patience, waiting: None }
    }

    /// What the connection says, unless it has said nothing for too long.
    fn held<T>(
        &mut self,
        cx: &mut Context<'_>,
        said: Poll<io::Result<T>>,
        bytes: impl Fn(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(said) = said {
            if let Some((since, _)) = self.waiting.take() {
                let time = self.clock.monotonic().saturating_sub(since);
                self.patience.waited(time, said.as_ref().map_or(0, bytes));
            } else if let Ok(said) = &said {
                self.patience.waited(Duration::ZERO, bytes(said));
            }
            return Poll::Ready(said);
        }
        let (_, sleep) = self.waiting.get_or_insert_with(|| {
            let sleep = tokio::time::sleep(self.patience.left());
            (self.clock.monotonic(), Box::pin(sleep))
        });
        ready!(sleep.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Patient<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Patient<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let said = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.held(cx, said, |written| *written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let said = Pin::new(&mut self.inner).poll_write_vectored(cx, parts);
        self.held(cx, said, |written| *written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let said = Pin::new(&mut self.inner).poll_flush(cx);
        self.held(cx, said, |()| 0)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let said = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.held(cx, said, |()| 0)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::clock::SystemClock;

    fn http(stall_timeout_ms: u64, min_bytes_per_second: u32) -> Http {
        Http { stall_timeout_ms, min_bytes_per_second, ..Http::default() }
    }

    #[test]
    fn waits_add_up_and_bytes_pay() {
        let seconds = Duration::from_secs;
        let mut patience = Patience::new(&http(10_000, 1_000));
        assert_eq!(patience.left(), seconds(10));
        patience.waited(seconds(4), 1_000);
        assert_eq!(patience.left(), seconds(7));
        patience.waited(seconds(6), 1);
        assert!(patience.left() < seconds(2), "a byte now and then is no progress");
        patience.waited(Duration::ZERO, 1 << 30);
        assert_eq!(patience.left(), seconds(10), "and what was fast is no savings");
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_cut_off_and_one_that_takes_its_time_is_not() {
        let (near, mut far) = tokio::io::duplex(1_000);
        let mut near = Patient::new(near, SystemClock::shared(), Patience::new(&http(200, 10_000)));
        let taking = tokio::spawn(async move {
            let mut buffer = [0; 500];
            // 5 KB at 20 KB/s, then nothing.
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_millis(25)).await;
                far.read_exact(&mut buffer).await.unwrap();
            }
            far
        });
        near.write_all(&[0; 5_000]).await.unwrap();
        let _far = taking.await.unwrap();
        let error = near.write_all(&[0; 5_000]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
