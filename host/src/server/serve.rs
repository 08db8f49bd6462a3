//! The life of a host: listen, open, serve, drain, close.
//!
//! **Invariant:** a host that cannot start says why in one sentence and changes nothing: the address
//! is taken before the data directory, and `/readyz` tells the one from the other. A stopping host
//! keeps answering `/readyz` with 503 until everything is closed; a second signal ends it at once.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::ListenerExt as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::app::App;
use super::router::router;
use crate::clock::SharedClock;
use crate::config::Config;
use crate::deployment::Registry;

/// How long closed connections may take to say so before they are dropped.
const GOODBYE: Duration = Duration::from_millis(500);

/// Why a host did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address that others can reach, without being asked for.
    #[error(
        "{0} can be reached from other machines and there is no authentication yet: listen on 127.0.0.1, or say --insecure if the network is trusted"
    )]
    Exposed(SocketAddr),
    /// The address cannot be had.
    #[error(
        "cannot listen on {address}: {source}; choose another with --listen, or stop what uses it"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The runtime or its signal handlers cannot be had.
    #[error("cannot start: {0}")]
    Start(std::io::Error),
    /// The data directory cannot be opened.
    #[error("{0}")]
    Host(crate::deployment::Error),
}

/// Runs a host until a signal stops it. `safe` brings up the log without running plugins; `json`
/// prints the line that says it is ready as JSON.
///
/// # Errors
/// When the host cannot start.
pub fn serve(config: Config, clock: SharedClock, safe: bool, json: bool) -> Result<(), Error> {
    let address = config.http.listen;
    if !address.ip().is_loopback() && !config.http.insecure {
        return Err(Error::Exposed(address));
    }
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("anabranch-http")
        .build()
        .map_err(Error::Start)?;
    let result = runtime.block_on(live(config, clock, safe, json));
    // Threads that still block hold nothing that is not durable.
    runtime.shutdown_timeout(GOODBYE);
    result
}

/// Raises the limit of open files to what the process is allowed: segments, checkpoints and
/// followers need more than the 1,024 that shells hand down.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let (was, allowed) = (limit.current, limit.maximum);
    match setrlimit(Resource::Nofile, Rlimit { current: allowed, maximum: allowed }) {
        Ok(()) => tracing::debug!(?was, now = ?allowed, "limit of open files"),
        // The host runs with what it has; an open that fails then says so.
        Err(error) => tracing::debug!(?was, ?allowed, %error, "limit of open files kept"),
    }
}

async fn live(config: Config, clock: SharedClock, safe: bool, json: bool) -> Result<(), Error> {
    let mut signals = Signals::new().map_err(Error::Start)?;
    let address = config.http.listen;
    let refused = |source| Error::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(refused)?;
    let bound = listener.local_addr().map_err(refused)?;
    let app = App::new(config.clone(), Arc::clone(&clock));
    let (goodbye, said) = oneshot::channel::<()>();
    // A follower's records are small writes; Nagle's algorithm and delayed acknowledgements would hold
    // each back for up to 40 ms.
    let listener = listener.tap_io(|socket| {
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%error, "a connection keeps Nagle's algorithm");
        }
    });
    let server = axum::serve(listener, router(app.clone()))
        .with_graceful_shutdown(async { drop(said.await) })
        .into_future();
    let server = tokio::spawn(server);

    let dir = config.data.dir.clone();
    let drain = Duration::from_millis(config.http.drain_ms);
    let mut opening = tokio::task::spawn_blocking(move || Registry::open(&config, safe, clock));
    let opened = tokio::select! {
        opened = &mut opening => opened,
        () = signals.next() => {
            tracing::info!("asked to stop while starting");
            opening.await
        }
    };
    let registry = match opened {
        Ok(registry) => registry.map_err(Error::Host)?,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    };
    if !signals.seen {
        app.opened(registry.clone());
        announce(bound, &dir.display().to_string(), safe, json);
        signals.next().await;
    }
    tracing::info!("stopping: draining requests and tasks; a second signal ends the host at once");
    let closing = async {
        if !app.stop(drain).await {
            tracing::warn!(drain_ms = drain.as_millis() as u64, "requests were cut off");
        }
        tokio::task::spawn_blocking(move || registry.close()).await
    };
    let closed = tokio::select! {
        closed = closing => closed,
        () = signals.next() => {
            eprintln!("anabranch: ended at once by a second signal; the next start recovers");
            std::process::exit(1);
        }
    };
    drop(goodbye);
    let _ = tokio::time::timeout(GOODBYE, server).await;
    tracing::info!("stopped");
    match closed {
        Ok(()) => Ok(()),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// Says on standard output that the host is ready, and where.
fn announce(address: SocketAddr, dir: &str, safe: bool, json: bool) {
    let url = format!("http://{address}");
    let line = match json {
        true => {
            serde_json::json!({"ready": true, "url": url, "data": dir, "safe": safe}).to_string()
        }
        false => {
            let note = if safe { ", safe mode: no plugin runs" } else { "" };
            format!("anabranch is ready at {url} (data in {dir}{note})")
        }
    };
    // Nobody may be reading; the host serves all the same.
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    tracing::info!(url, data = dir, safe, "ready");
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    seen: bool,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            seen: false,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        self.seen = true;
    }
}
