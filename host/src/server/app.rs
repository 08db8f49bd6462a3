//! What all handlers share: the registry once it is open, the limits, and the way to stop.
//!
//! **Invariant:** while the host starts or stops, nothing below `/v1` runs: it is answered with 503
//! and the reason. A request under way holds the gate; stopping waits for the gate, so that what
//! was acknowledged was also sent. Streams do not hold it: they end when what [`App::until`] gives says so.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::http::{StatusCode, header};
use tokio::sync::{OwnedRwLockReadGuard, RwLock, Semaphore, watch};

use super::problem::Problem;
use super::rates::{Client, Rates};
use super::stream::Until;
use crate::clock::SharedClock;
use crate::config::Config;
use crate::deployment::{Caller, Error, HttpMetrics, Registry};

/// The state of the server; cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Inner>);

struct Inner {
    registry: OnceLock<Registry>,
    config: Config,
    clock: SharedClock,
    stopping: watch::Sender<bool>,
    gate: Arc<RwLock<()>>,
    rates: Rates,
    bodies: Arc<Semaphore>,
    metrics: HttpMetrics,
}

/// Bytes of bodies that one permit stands for.
pub const BODY_UNIT: usize = 1 << 10;

impl App {
    /// A server that is still starting: it has no registry yet.
    pub fn new(config: Config, clock: SharedClock) -> Self {
        let bodies = (config.http.max_bodies_bytes / BODY_UNIT).min(Semaphore::MAX_PERMITS);
        Self(Arc::new(Inner {
            rates: Rates::default(),
            bodies: Arc::new(Semaphore::new(bodies)),
            metrics: HttpMetrics::default(),
            registry: OnceLock::new(),
            config,
            clock,
            stopping: watch::channel(false).0,
            gate: Arc::new(RwLock::new(())),
        }))
    }

    /// Hands over the opened registry: from now on the host is ready.
    pub fn opened(&self, registry: Registry) {
        registry.show_http(&self.0.metrics);
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

    /// The same about a deployment, which the caller has to reach.
    ///
    /// # Errors
    /// 403 when it does not, and as above.
    pub async fn on_deployment<T: Send + 'static>(
        &self,
        caller: Caller,
        name: String,
        work: impl FnOnce(&Registry, &str) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Problem> {
        self.blocking(move |registry| {
            registry.check_deployment(&caller, &name)?;
            work(registry, &name)
        })
        .await
    }

    /// What the surface counts.
    pub fn http_metrics(&self) -> &HttpMetrics {
        &self.0.metrics
    }

    /// Room for bodies, in units of [`BODY_UNIT`].
    pub fn bodies(&self) -> &Arc<Semaphore> {
        &self.0.bodies
    }

    /// Counts a request of `client`.
    ///
    /// # Errors
    /// 429 when there were too many just now.
    pub fn take_turn(&self, client: Client) -> Result<(), Problem> {
        let rate = self.0.config.http.max_requests_per_second;
        self.0.rates.take(client, self.0.clock.monotonic(), rate).map_err(|wait| {
            let seconds = wait.as_secs_f64().ceil().max(1.0) as u64;
            Problem::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_requests",
                format!(
                    "more than {rate} requests a second of one token or address (max_requests_per_second in [http]): go on in {seconds} s"
                ),
            )
            .with_header(header::RETRY_AFTER, seconds)
        })
    }

    /// How long a stream for `caller` may go on.
    ///
    /// # Errors
    /// 503 while the host starts.
    pub fn until(&self, caller: Caller) -> Result<Until, Problem> {
        Ok(Until::new(self.0.stopping.subscribe(), self.registry()?.clone(), caller))
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
