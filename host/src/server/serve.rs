//! The life of a host: listen, open, serve, drain, close.
//!
//! **Invariant:** a host that cannot start says why in one sentence and changes nothing: the address
//! is taken before the data directory, and `/readyz` tells the one from the other. A stopping host
//! keeps answering `/readyz` with 503 until everything is closed; a second signal ends it at once.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::app::App;
use super::connection::serve_connections;
use super::tls::{self, Tls};
use crate::clock::SharedClock;
use crate::config::Config;
use crate::deployment::{Registry, Role};

/// How long closed connections may take to say so before they are dropped.
const GOODBYE: Duration = Duration::from_millis(500);

/// Why a host did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address that others can reach, without what that needs.
    #[error(
        "{address} can be reached from other machines and {missing}: say so in the configuration, listen on 127.0.0.1, or say --insecure if the network is trusted"
    )]
    Exposed {
        /// The address.
        address: SocketAddr,
        /// What is missing, and the keys that give it.
        missing: &'static str,
    },
    /// A certificate without its key, or the reverse.
    #[error("[http] tls_cert and tls_key go together: name both files, or none")]
    HalfTls,
    /// The certificate cannot be used.
    #[error("{0}")]
    Tls(#[from] tls::Error),
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
    check_exposure(&config)?;
    let files = raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("anabranch-http")
        .build()
        .map_err(Error::Start)?;
    let result = runtime.block_on(live(config, clock, safe, json, files));
    // Threads that still block hold nothing that is not durable.
    runtime.shutdown_timeout(GOODBYE);
    result
}

/// Refuses an address beyond loopback without TLS and tokens, unless that was asked for.
fn check_exposure(config: &Config) -> Result<(), Error> {
    let (http, address) = (&config.http, config.http.listen);
    if http.tls_cert.is_some() != http.tls_key.is_some() {
        return Err(Error::HalfTls);
    }
    let missing = match (http.tls_cert.is_some(), config.auth.required) {
        (true, true) => return Ok(()),
        (false, true) => "there is no TLS ([http] tls_cert and tls_key)",
        (true, false) => "no token is asked for ([auth] required = true)",
        (false, false) => {
            "there is no TLS ([http] tls_cert and tls_key) and no token is asked for ([auth] required = true)"
        }
    };
    match address.ip().is_loopback() || http.insecure {
        true => Ok(()),
        false => Err(Error::Exposed { address, missing }),
    }
}

/// Raises the limit of open files to what the process is allowed: connections, segments, checkpoints
/// and followers need more than the 1,024 that shells hand down. Returns the limit.
fn raise_open_files() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let (was, allowed) = (limit.current, limit.maximum);
    let count =
        |limit: Option<u64>| limit.map_or(usize::MAX, |n| n.try_into().unwrap_or(usize::MAX));
    match setrlimit(Resource::Nofile, Rlimit { current: allowed, maximum: allowed }) {
        Ok(()) => {
            tracing::debug!(?was, now = ?allowed, "limit of open files");
            count(allowed)
        }
        // The host runs with what it has; an open that fails then says so.
        Err(error) => {
            tracing::debug!(?was, ?allowed, %error, "limit of open files kept");
            count(was)
        }
    }
}

/// How many connections there may be, so that the log still has files to open.
fn most_connections(config: &Config, files: usize) -> usize {
    let (asked, room) = (config.http.max_connections, (files / 2).max(1));
    if asked > room {
        tracing::warn!(
            files,
            "max_connections is {asked}, and the process may have {files} files open: at most {room} connections are taken; raise the limit (ulimit -n)"
        );
    }
    asked.min(room)
}

async fn live(
    config: Config,
    clock: SharedClock,
    safe: bool,
    json: bool,
    files: usize,
) -> Result<(), Error> {
    let mut signals = Signals::new().map_err(Error::Start)?;
    let http = &config.http;
    let tls = match (&http.tls_cert, &http.tls_key) {
        (Some(cert), Some(key)) => Some(Tls::open(cert, key)?),
        _ => None,
    };
    if let Some(tls) = &tls {
        let every = Duration::from_millis(http.tls_reload_ms.max(1));
        tokio::spawn(Arc::clone(tls).keep_current(every));
    }
    let address = http.listen;
    let refused = |source| Error::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(refused)?;
    let bound = listener.local_addr().map_err(refused)?;
    let url = format!("{}://{bound}", if tls.is_some() { "https" } else { "http" });
    let app = App::new(config.clone(), Arc::clone(&clock));
    let (goodbye, said) = watch::channel(false);
    let most = most_connections(&config, files);
    let server = tokio::spawn(serve_connections(listener, tls, app.clone(), most, said));

    let needs_admin = config.auth.required;
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
        if needs_admin
            && !registry.tokens().iter().any(|token| token.role == Role::Admin && !token.expired)
        {
            tracing::warn!(
                "tokens are required and there is none of an admin: stop the host, run `anabranch token create --data {} NAME --role admin`, and start it again",
                dir.display()
            );
        }
        app.opened(registry.clone());
        announce(&url, &dir.display().to_string(), safe, json);
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
    goodbye.send_replace(true);
    let _ = tokio::time::timeout(GOODBYE, server).await;
    tracing::info!("stopped");
    match closed {
        Ok(()) => Ok(()),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// Says on standard output that the host is ready, and where.
fn announce(url: &str, dir: &str, safe: bool, json: bool) {
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
