//! Connections: accepted within limits, secured if there is a certificate, and spoken HTTP on.
//!
//! **Invariant:** a connection has a place for as long as it lives, and lives no longer than its client
//! keeps to the limits of `[http]`: on securing it, on sending headers, on taking answers. Where the
//! client still listens it is told why. Each that is refused is counted, and written to the audit log as
//! fast as that takes them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::timeout;

use super::access::REFUSED;
use super::app::App;
use super::layers::Remote;
use super::patience::{Patience, Patient};
use super::problem::Problem;
use super::rates::{Full, Place, Places};
use super::router::router;
use super::tls::Tls;
use crate::deployment::AuditEntry;

/// What a TLS connection begins with: a record of the handshake.
const HANDSHAKE: u8 = 0x16;
/// Connections that are told at the same time why they have no place; others are just closed.
const TURNED_AWAY: usize = 64;
/// How long a client is given to hear a last word.
const LAST_WORD: Duration = Duration::from_secs(1);
/// How long nothing is accepted after the system had no more files or memory for it.
const BREATH: Duration = Duration::from_millis(100);
/// Silence after which the system asks whether the other end is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Accepts connections until `goodbye` turns true, and ends once all of them have ended.
pub async fn serve_connections(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    app: App,
    most: usize,
    mut goodbye: watch::Receiver<bool>,
) {
    let http = app.config().http.clone();
    let places = Places::new(
        most.min(http.max_connections),
        http.max_connections_per_address,
        app.http_metrics().clone(),
    );
    let away = Arc::new(Semaphore::new(TURNED_AWAY));
    let host = Arc::new(Host::new(app, tls));
    let (alive, mut gone) = mpsc::channel::<()>(1);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = goodbye.wait_for(|goodbye| *goodbye) => break,
        };
        let (socket, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "no connection was accepted");
                tokio::time::sleep(BREATH).await;
                continue;
            }
        };
        match places.take(remote.ip()) {
            Ok(place) => {
                let (host, goodbye) = (Arc::clone(&host), goodbye.clone());
                let alive = alive.clone();
                tokio::spawn(async move {
                    host.serve(socket, remote, place, goodbye).await;
                    drop(alive);
                });
            }
            Err(full) => {
                let problem = host.no_place(full, remote);
                // Who expects TLS would not understand.
                let turn = Arc::clone(&away).try_acquire_owned().ok();
                let Some(turn) = turn.filter(|_| host.tls.is_none()) else {
                    // Reset, so that the system does not remember it for a minute.
                    let _ = sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
                    continue;
                };
                let text = problem.into_bytes(&host.request_id());
                tokio::spawn(async move {
                    last_word(socket, &text).await;
                    drop(turn);
                });
            }
        }
    }
    drop((listener, alive));
    gone.recv().await;
}

/// What all connections share.
struct Host {
    app: App,
    tls: Option<Arc<Tls>>,
    http1: Builder,
    routes: TowerToHyperService<axum::Router>,
}

impl Host {
    fn new(app: App, tls: Option<Arc<Tls>>) -> Self {
        let http = &app.config().http;
        let mut http1 = Builder::new();
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_millis(http.header_timeout_ms))
            // What is a little too much is refused by `layers`, in a sentence.
            .max_headers(http.max_headers.saturating_mul(2))
            .max_header_size(http.max_header_bytes.saturating_mul(2));
        let routes = TowerToHyperService::new(router(app.clone()));
        Self { app, tls, http1, routes }
    }

    fn request_id(&self) -> String {
        format!("{:016x}", self.app.clock().random())
    }

    /// Counts a connection that is refused, and writes it down.
    fn refuse(&self, remote: SocketAddr, code: &'static str, status: u16) {
        self.app.http_metrics().refuse(code);
        // Before the host is open nothing is done for anyone.
        let Ok(registry) = self.app.registry().cloned() else { return };
        if !registry.audit().takes_connection() {
            return;
        }
        let entry = AuditEntry {
            remote: Some(remote.to_string()),
            status,
            outcome: REFUSED,
            code: Some(code),
            ..AuditEntry::default()
        };
        tokio::task::spawn_blocking(move || registry.audit().write(&entry));
    }

    fn no_place(&self, full: Full, remote: SocketAddr) -> Problem {
        let (code, detail) = match full {
            Full::All => (
                "too_many_connections",
                "the host has as many connections open as it may (max_connections in [http]): try again in a moment",
            ),
            Full::One => (
                "too_many_connections_of_one",
                "your address has as many connections open as one may (max_connections_per_address in [http]): close some",
            ),
        };
        let problem = Problem::unavailable(code, detail);
        self.refuse(remote, code, problem.status().as_u16());
        problem.with_header(header::RETRY_AFTER, 1)
    }

    /// Speaks with one client until one of the two ends it.
    async fn serve(
        &self,
        socket: TcpStream,
        remote: SocketAddr,
        _place: Place,
        goodbye: watch::Receiver<bool>,
    ) {
        // A follower's records are small writes; Nagle's algorithm and delayed acknowledgements would
        // hold each back for up to 40 ms. A client that vanished says nothing: the system has to ask.
        let set = socket.set_nodelay(true).and_then(|()| {
            sockopt::set_socket_keepalive(&socket, true)?;
            Ok(sockopt::set_tcp_keepidle(&socket, KEEPALIVE)?)
        });
        if let Err(error) = set {
            tracing::debug!(%remote, %error, "a connection keeps its options");
        }
        let Some(tls) = &self.tls else { return self.converse(socket, remote, goodbye).await };
        let limit = Duration::from_millis(self.app.config().http.header_timeout_ms);
        let secured = timeout(limit, async {
            let mut first = [HANDSHAKE];
            if socket.peek(&mut first).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if first != [HANDSHAKE] {
                let problem =
                    Problem::invalid("tls_required", "this port speaks TLS: ask https://");
                last_word(socket, &problem.into_bytes(&self.request_id())).await;
                return Err(io::Error::other("a client that does not speak TLS"));
            }
            tls.acceptor().accept(socket).await
        });
        match secured.await {
            Ok(Ok(socket)) => self.converse(socket, remote, goodbye).await,
            Ok(Err(error)) => {
                self.refuse(remote, "tls_failed", 0);
                tracing::debug!(%remote, %error, "a connection was not secured");
            }
            Err(_) => {
                self.refuse(remote, "tls_timeout", 0);
                tracing::debug!(%remote, "a connection was not secured in time");
            }
        }
    }

    async fn converse<I>(&self, io: I, remote: SocketAddr, mut goodbye: watch::Receiver<bool>)
    where
        I: AsyncRead + AsyncWrite + Unpin,
    {
        let patience = Patience::new(&self.app.config().http);
        let io = Patient::new(io, Arc::clone(self.app.clock()), patience);
        let service = service_fn(|mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(Remote(remote));
            Box::pin(self.routes.call(request.map(Body::new)))
        });
        let mut connection = self.http1.serve_connection(TokioIo::new(io), service);
        let mut asked = false;
        let ended = loop {
            let ends = std::future::poll_fn(|cx| connection.poll_without_shutdown(cx));
            tokio::select! {
                ended = ends => break ended,
                _ = goodbye.wait_for(|goodbye| *goodbye), if !asked => {
                    asked = true;
                    std::pin::Pin::new(&mut connection).graceful_shutdown();
                }
            }
        };
        let parts = connection.into_parts();
        let io = parts.io.into_inner();
        match ended {
            // An idle connection that is closed has asked nothing.
            Err(error) if error.is_timeout() && !parts.read_buf.is_empty() => {
                let http = &self.app.config().http;
                let problem = Problem::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "header_timeout",
                    format!(
                        "the headers of the request did not come within {} ms (header_timeout_ms in [http])",
                        http.header_timeout_ms
                    ),
                );
                self.refuse(remote, problem.code(), problem.status().as_u16());
                last_word(io, &problem.into_bytes(&self.request_id())).await;
            }
            Err(error) => {
                if error.is_parse_too_large() {
                    // hyper has said so itself, in no words.
                    self.refuse(remote, "headers_too_large", 431);
                }
                if is_stalled(&error) {
                    self.refuse(remote, "slow_reader", 0);
                    tracing::info!(%remote, "a client that did not take its answer was cut off");
                }
                tracing::debug!(%remote, %error, "a connection broke off");
            }
            Ok(()) => last_word(io, b"").await,
        }
    }
}

/// Whether [`Patient`] gave up.
fn is_stalled(error: &hyper::Error) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.kind() == io::ErrorKind::TimedOut;
        }
        next = error.source();
    }
    false
}

/// Says `text` and closes, reading on for a moment: a connection that is closed with something unread
/// takes back what was said.
async fn last_word(mut io: impl AsyncRead + AsyncWrite + Unpin, text: &[u8]) {
    let said = async {
        io.write_all(text).await?;
        io.shutdown().await?;
        let mut rest = [0; 4_096];
        while !text.is_empty() && io.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    // Whoever does not listen any more is not told.
    let _ = timeout(LAST_WORD, said).await;
}
