//! Replies that go on: a channel whose pieces become the body, with heartbeats while nothing comes.
//!
//! **Invariant:** a stream ends when its client goes away, its token ends or the host stops, whichever is
//! first; none is noticed by polling. One whose token has ended is broken off, and what waits for its
//! client is dropped.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;

use crate::deployment::{Caller, Registry};

/// Pieces that may wait for a slow client; a follower then holds at most this many of its reads.
const PIECES: usize = 2;

/// The sending side of a stream.
pub struct Sink {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    until: Until,
    cut: Arc<AtomicBool>,
    heartbeat: Option<Duration>,
}

/// What ends a stream beside its client: the host that stops, the token that is revoked or expires.
pub struct Until {
    stopping: watch::Receiver<bool>,
    token: Option<(Registry, Caller, watch::Receiver<()>)>,
}

impl Until {
    /// For a stream of `caller`.
    pub fn new(stopping: watch::Receiver<bool>, registry: Registry, caller: Caller) -> Self {
        let revocations = registry.revocations();
        let token = caller.token().is_some().then_some((registry, caller, revocations));
        Self { stopping, token }
    }

    /// Waits for the end; whether it is that of the token.
    async fn end(&mut self) -> bool {
        let Self { stopping, token } = self;
        let over = async {
            let Some((registry, caller, revocations)) = token else {
                return std::future::pending().await;
            };
            while registry.is_valid(caller) {
                let expiry = async {
                    match registry.expires_in(caller) {
                        Some(left) => tokio::time::sleep(left).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    _ = revocations.changed() => {}
                    () = expiry => {}
                }
            }
        };
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => false,
            () = over => true,
        }
    }
}

/// The receiving side of a stream, as a body.
struct Pieces {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    cut: Arc<AtomicBool>,
}

impl Stream for Pieces {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.pieces.poll_recv(cx);
        match self.cut.load(Ordering::SeqCst) {
            true => Poll::Ready(Some(Err(io::Error::other("the token has ended")))),
            false => next,
        }
    }
}

/// What a wait ended with.
#[derive(Debug, PartialEq, Eq)]
pub enum Woken {
    /// What was waited for came.
    Ready,
    /// Client, token or host have gone: end the stream.
    Over,
}

/// A reply whose body is what goes into the sink. Server-sent events get heartbeats as comments.
pub fn open(
    content_type: &'static str,
    heartbeat: Option<Duration>,
    until: Until,
) -> (Sink, Response) {
    let (pieces, receiver) = mpsc::channel(PIECES);
    let cut = Arc::new(AtomicBool::new(false));
    let body = Body::from_stream(Pieces { pieces: receiver, cut: Arc::clone(&cut) });
    let mut reply = Response::new(body);
    let headers = reply.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    (Sink { pieces, until, cut, heartbeat }, reply)
}

impl Sink {
    /// Sends a piece, waiting for a slow client.
    pub async fn send(&mut self, piece: Vec<u8>) -> Woken {
        if piece.is_empty() {
            return Woken::Ready;
        }
        tokio::select! {
            biased;
            cut = self.until.end() => {
                self.cut.store(cut, Ordering::SeqCst);
                Woken::Over
            }
            sent = self.pieces.send(Ok(piece.into())) => match sent {
                Ok(()) => Woken::Ready,
                Err(_) => Woken::Over,
            },
        }
    }

    /// Breaks the reply off, so that its client does not take it for complete.
    pub async fn abort(self, reason: &str) {
        // Where the client has gone already, nobody is left to be told.
        let _ = self.pieces.send(Err(io::Error::other(reason.to_owned()))).await;
    }

    /// Waits for `event`, sending heartbeats while it does not come.
    pub async fn wait<T>(&mut self, event: impl Future<Output = T>) -> Result<T, Woken> {
        tokio::pin!(event);
        loop {
            let heartbeat = self.heartbeat;
            let beat = async {
                match heartbeat {
                    Some(interval) => tokio::time::sleep(interval).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                cut = self.until.end() => {
                    self.cut.store(cut, Ordering::SeqCst);
                    return Err(Woken::Over);
                }
                () = self.pieces.closed() => return Err(Woken::Over),
                value = &mut event => return Ok(value),
                () = beat => {
                    // A client that does not even take heartbeats has enough waiting for it.
                    let _ = self.pieces.try_send(Ok(Bytes::from_static(b": heartbeat\n\n")));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn streams_end_when_the_host_stops() {
        let (stop, stopping) = watch::channel(false);
        let until = Until { stopping, token: None };
        let (mut sink, reply) = open("text/event-stream", Some(Duration::from_millis(5)), until);
        let waiting = tokio::spawn(async move {
            assert_eq!(sink.send(b"a\n".to_vec()).await, Woken::Ready);
            sink.wait(std::future::pending::<()>()).await
        });
        tokio::time::sleep(Duration::from_millis(30)).await;
        stop.send_replace(true);
        assert_eq!(waiting.await.unwrap(), Err(Woken::Over));
        let body = axum::body::to_bytes(reply.into_body(), 1 << 16).await.unwrap();
        assert!(body.starts_with(b"a\n: heartbeat\n\n"), "{body:?}");
    }

    #[tokio::test]
    async fn streams_end_when_the_client_goes() {
        let (_stop, stopping) = watch::channel(false);
        let until = Until { stopping, token: None };
        let (mut sink, reply) = open("text/event-stream", None, until);
        drop(reply);
        assert_eq!(sink.wait(std::future::pending::<()>()).await, Err(Woken::Over));
        assert_eq!(sink.send(b"a".to_vec()).await, Woken::Over);
    }
}
