//! What all handlers share: the registry once it is open, the limits, and the way to stop.
//!
//! **Invariant:** while the host starts or stops, nothing below `/v1` runs: it is answered with 503
//! and the reason. A request under way holds the gate; stopping waits for the gate, so that what
//! was acknowledged was also sent. Streams do not hold it: they end when [`App::stopping`] says so.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::http::StatusCode;
use tokio::sync::{OwnedRwLockReadGuard, RwLock, watch};

use super::problem::Problem;
use crate::clock::SharedClock;
use crate::config::Config;
use crate::deployment::{Error, Registry};

/// The state of the server; cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Inner>);

struct Inner {
    registry: OnceLock<Registry>,
    config: Config,
    clock: SharedClock,
    stopping: watch::Sender<bool>,
    gate: Arc<RwLock<()>>,
}

impl App {
    /// A server that is still starting: it has no registry yet.
    pub fn new(config: Config, clock: SharedClock) -> Self {
        Self(Arc::new(Inner {
            registry: OnceLock::new(),
            config,
            clock,
            stopping: watch::channel(false).0,
            gate: Arc::new(RwLock::new(())),
        }))
    }

    /// Hands over the opened registry: from now on the host is ready.
    pub fn opened(&self, registry: Registry) {
        // A second registry would be a fault of the caller; the first one stays.
        let _ = self.0.registry.set(registry);
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// The host's clock.
    pub fn clock(&self) -> &SharedClock {
        &self.0.clock
    }

    /// Whether a request may begin. One that has begun is answered, also while the host stops.
    ///
    /// # Errors
    /// 503 while the host starts or stops.
    pub fn admit(&self) -> Result<(), Problem> {
        if *self.0.stopping.borrow() {
            return Err(Problem::unavailable(
                "stopping",
                "the host is stopping; ask again when it has been started again",
            ));
        }
        self.registry().map(drop)
    }

    /// The registry.
    ///
    /// # Errors
    /// 503 while the host starts.
    pub fn registry(&self) -> Result<&Registry, Problem> {
        self.0.registry.get().ok_or_else(|| {
            Problem::unavailable(
                "starting",
                "the host is still opening its data directory; ask again in a moment, or wait for /readyz",
            )
        })
    }

    /// Whether the host can take requests: 503 with the reason if not.
    ///
    /// # Errors
    /// While starting or stopping, and when the storage failed.
    pub fn ready(&self) -> Result<(), Problem> {
        self.admit()?;
        self.registry()?.ready().map_err(|error| {
            let problem = Problem::from(error);
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, problem.code(), problem.detail())
        })
    }

    /// Runs `work`, which may block, where it holds up nobody.
    ///
    /// # Errors
    /// What `work` says; 500 when it panics.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Registry) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Problem> {
        let registry = self.registry()?.clone();
        run_blocking(move || work(&registry).map_err(Problem::from)).await
    }

    /// Turns true when the host begins to stop.
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.0.stopping.subscribe()
    }

    /// A hold on the gate, for as long as a request is being answered; `None` once it is closed.
    pub fn enter(&self) -> Option<OwnedRwLockReadGuard<()>> {
        self.0.gate.clone().try_read_owned().ok()
    }

    /// Refuses new requests, ends streams, and waits at most `limit` for the requests under way.
    /// Returns whether all of them were answered.
    pub async fn stop(&self, limit: Duration) -> bool {
        self.0.stopping.send_replace(true);
        tokio::time::timeout(limit, self.0.gate.clone().write_owned()).await.is_ok()
    }
}

/// Runs `work`, which may block, on a thread for such things.
///
/// # Errors
/// What `work` says; 500 when it panics.
pub async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        tracing::error!(%error, "a request panicked");
        Err(Problem::internal(
            "the host failed at this request; its log says more under the request id",
        ))
    })
}
