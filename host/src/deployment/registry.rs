//! The host's one front: everything that HTTP and the command line can ask for.
//!
//! The registry opens the data directory, owns the log, the plugins and the deployments, and hands
//! each request to the part that knows: topics and records to [`super::topics`], plugins to
//! [`super::plugins`], everything about generations to [`super::lifecycle`] and [`super::swaps`].
//!
//! **Invariant:** a change is in the catalogue before it is in memory; what fails leaves both alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use super::audit::Audit;
use super::backup::Backups;
use super::events::Events;
use super::head_copies::HeadCopies;
use super::metrics::{HostMetrics, HttpMetrics};
use super::record::{DeploymentRecord, PluginRecord};
use super::running::{RunningGeneration, stop_all};
use super::tokens::Tokens;
use super::{Error, Event, Kind};
use crate::clock::SharedClock;
use crate::config::Config;
use crate::log::{Commit, CommitError, Log, LogConfig, LogKind, LogSpec};
use crate::plugin::{self, Plugin, Runtime};
use crate::storage::{self, FileSystem, Niceness, OsFileSystem, Storage, crash_point};
use crate::task::{BulkThreads, Environment, StateOf, Workers, quarantine_checkpoints};
use crate::threads::{self, Condvar, JoinHandle, Mutex, RwLock};
use crate::types::{DeploymentId, DeploymentName, Digest, GenerationNumber, LogId, PartitionId};

/// Bytes of changelog for which a stopping host takes the time of a checkpoint.
const CHECKPOINT_AT_CLOSE_BYTES: u64 = 1 << 20;

/// A deployment in memory.
pub(super) struct Deployment {
    /// Its identity for life, which can be read without waiting for anybody.
    pub id: DeploymentId,
    /// The catalogue's record, its bytes there, and what runs of it.
    pub state: Mutex<DeploymentState>,
    /// Held by whoever changes the deployment; a second one is told instead of waiting.
    pub operation: Mutex<()>,
}

impl Deployment {
    /// A deployment of which nothing runs yet.
    pub fn new(record: DeploymentRecord, stored: Vec<u8>) -> Arc<Self> {
        let id = record.id;
        let state = DeploymentState {
            record,
            stored,
            running: BTreeMap::new(),
            last_pause: None,
            replay_began: BTreeMap::new(),
        };
        Arc::new(Self { id, state: Mutex::new(state), operation: Mutex::new(()) })
    }
}

/// What a deployment is at the moment.
pub(super) struct DeploymentState {
    pub record: DeploymentRecord,
    pub stored: Vec<u8>,
    pub running: BTreeMap<GenerationNumber, Arc<RunningGeneration>>,
    pub last_pause: Option<Duration>,
    /// When each replay that is under way began, and at how many records.
    pub replay_began: BTreeMap<GenerationNumber, (Duration, u64)>,
}

/// Deployments whose tasks have something to tell the controller.
#[derive(Default)]
pub(super) struct Attention {
    changed: Mutex<(BTreeSet<DeploymentId>, bool)>,
    ready: Condvar,
}

impl Attention {
    /// Asks the controller to look at a deployment.
    pub fn raise(&self, id: DeploymentId) {
        if self.changed.lock().0.insert(id) {
            self.ready.notify_one();
        }
    }

    /// What was raised, after at most `timeout`; `None` once closed.
    pub fn take(&self, timeout: Duration) -> Option<BTreeSet<DeploymentId>> {
        let mut changed = self.changed.lock();
        if changed.0.is_empty() && !changed.1 {
            self.ready.wait_for(&mut changed, timeout);
        }
        (!changed.1).then(|| std::mem::take(&mut changed.0))
    }

    fn close(&self) {
        self.changed.lock().1 = true;
        self.ready.notify_all();
    }
}

pub(super) struct Inner {
    pub config: Config,
    pub clock: SharedClock,
    pub file_system: Arc<dyn FileSystem>,
    pub log: Log,
    pub runtime: Runtime,
    pub workers: Workers,
    pub env: Arc<Environment>,
    pub events: Events,
    pub tokens: Tokens,
    audit: Audit,
    pub metrics: Arc<HostMetrics>,
    pub attention: Arc<Attention>,
    pub deployments: RwLock<BTreeMap<DeploymentName, Arc<Deployment>>>,
    /// Held while names are taken or freed: deploys, deletions, new topics.
    pub naming: Mutex<()>,
    /// Held to read while a generation is made of what is there, a plugin and mounts to begin in, until its
    /// deployment shows it; to write while such a thing is taken away.
    pub basis: RwLock<()>,
    pub safe: bool,
    pub backups: Backups,
    head_copies: Mutex<Option<HeadCopies>>,
    pub plugins: RwLock<BTreeMap<Digest, PluginRecord>>,
    pub loaded: Mutex<BTreeMap<Digest, Arc<Plugin>>>,
    /// Counts the requests whose records go to one partition.
    pub sticky: AtomicU32,
    closing: AtomicBool,
    controller: Mutex<Option<JoinHandle<()>>>,
}

/// The host. Cheap to clone. Calls block for as long as a commit takes: async callers hand them to a
/// thread; [`Registry::produce`] alone does not block.
#[derive(Clone)]
pub struct Registry {
    pub(super) inner: Arc<Inner>,
}

impl Registry {
    /// Opens the data directory and starts log, workers and all deployments (none if `safe`).
    ///
    /// # Errors
    /// When the directory cannot be used, is another host's, or is damaged.
    pub fn open(config: &Config, safe: bool, clock: SharedClock) -> Result<Self, Error> {
        let runtime = |compiled: &Path| Runtime::contained(compiled, &config.plugins);
        let patience = Some(Duration::from_millis(config.storage.sync_timeout_ms));
        Self::open_on(config, safe, clock, Arc::new(OsFileSystem), patience, runtime)
    }

    /// The same on any disk, whose head must come back within `patience` if there is one, with the
    /// plugins' runtime that `runtime` makes, given a folder for what it compiles.
    pub(crate) fn open_on(
        config: &Config,
        safe: bool,
        clock: SharedClock,
        file_system: Arc<dyn FileSystem>,
        patience: Option<Duration>,
        runtime: impl FnOnce(&Path) -> Result<Runtime, plugin::Error>,
    ) -> Result<Self, Error> {
        let dir = config.data.dir.clone();
        let storage = match patience {
            Some(patience) => Storage::open_watched(&dir, &file_system, &clock, patience),
            None => Storage::open(&dir, &file_system, &clock),
        };
        let storage = Arc::new(storage.map_err(cannot_open)?);
        let backups = Backups::on(Arc::clone(&file_system));
        // From here on a failed sync of any file stops all writing.
        let file_system = storage.file_system();
        crash_point("open-head");
        let log = Log::open(
            storage,
            Arc::clone(&file_system),
            Arc::clone(&clock),
            LogConfig {
                head_bytes: config.storage.head_bytes,
                segment_bytes: config.segments.target_bytes,
                min_free_bytes: config.storage.min_free_bytes,
            },
        )
        .map_err(|e| Error::new(Kind::Internal, "cannot_open", e.to_string()))?;
        let machine = |e: std::io::Error| {
            Error::new(Kind::Internal, "cannot_start", format!("cannot start a thread: {e}"))
        };
        let runtime = runtime(&dir.join("compiled"))
            .map_err(|e| Error::new(Kind::Internal, "cannot_open", e.to_string()))?;
        for folder in ["plugins", "checkpoints"] {
            file_system.create_dir_all(&dir.join(folder)).map_err(|e| {
                let path = dir.join(folder);
                let message = format!("cannot create {}: {e}", path.display());
                Error::new(Kind::Internal, "cannot_open", message)
            })?;
        }
        file_system.sync_dir(&dir).map_err(|e| {
            let message = format!("cannot sync {}: {e}", dir.display());
            Error::new(Kind::Internal, "cannot_open", message)
        })?;
        // After the head, whose lock keeps another host away.
        let audit = Audit::open(&dir, &config.audit, Arc::clone(&file_system), Arc::clone(&clock))?;
        let count = match config.tasks.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            count => count,
        };
        let niceness = Niceness::of_share(config.tasks.replay_share);
        let workers = Workers::start(count, niceness, Arc::clone(&clock)).map_err(machine)?;
        let metrics = Arc::new(HostMetrics::new(Arc::clone(&clock)));
        let env = Arc::new(Environment {
            log: log.clone(),
            clock: Arc::clone(&clock),
            config: config.tasks.clone(),
            bulk: BulkThreads::start(count, niceness).map_err(machine)?,
            file_system: Arc::clone(&file_system),
            checkpoint_dir: dir.join("checkpoints"),
            observer: Arc::clone(&metrics) as Arc<_>,
        });
        quarantine_checkpoints(&env, &dir.join("quarantine"))
            .map_err(|e| Error::new(Kind::Internal, "cannot_open", e))?;
        let interval = Duration::from_millis(config.storage.head_copy_ms);
        let copies = (log.clone(), Arc::clone(&file_system), Arc::clone(&clock));
        let head_copies =
            HeadCopies::start(copies.0, copies.1, copies.2, interval).map_err(machine)?;
        let registry = Self {
            inner: Arc::new(Inner {
                config: config.clone(),
                events: Events::new(Arc::clone(&clock)),
                tokens: Tokens::default(),
                audit,
                clock,
                file_system,
                log,
                runtime,
                workers,
                env,
                metrics,
                attention: Arc::default(),
                deployments: RwLock::default(),
                naming: Mutex::default(),
                basis: RwLock::default(),
                safe,
                backups,
                head_copies: Mutex::new(Some(head_copies)),
                plugins: RwLock::default(),
                loaded: Mutex::default(),
                sticky: AtomicU32::new(0),
                closing: AtomicBool::new(false),
                controller: Mutex::default(),
            }),
        };
        registry.read_tokens()?;
        registry.read_plugins()?;
        registry.start_deployments()?;
        crash_point("open-started");
        let controller = registry.clone();
        let thread = threads::spawn("controller".to_owned(), move || controller.control());
        let thread = thread.map_err(machine)?;
        *registry.inner.controller.lock() = Some(thread);
        Ok(registry)
    }

    /// Ends tasks at a commit, then everything below them. Calling it again does nothing.
    pub fn close(&self) {
        if self.inner.closing.swap(true, Ordering::SeqCst) {
            return;
        }
        self.inner.attention.close();
        if let Some(thread) = self.inner.controller.lock().take() {
            drop(thread.join());
        }
        let deployments: Vec<_> = self.inner.deployments.read().values().cloned().collect();
        let mut running = Vec::new();
        for deployment in &deployments {
            running.extend(std::mem::take(&mut deployment.state.lock().running).into_values());
        }
        stop_all(&running);
        self.inner.workers.close();
        // After this no checkpoint is under way that the next ones could meet.
        self.inner.env.bulk.close();
        for deployment in &deployments {
            self.checkpoint(&deployment.state.lock().record);
        }
        if let Some(copies) = self.inner.head_copies.lock().take() {
            copies.close();
        }
        self.inner.log.close();
    }

    /// Checkpoints what would make the next start long.
    fn checkpoint(&self, record: &DeploymentRecord) {
        for generation in record.generations.iter().filter(|g| g.phase.runs()) {
            let Some(logs) = &generation.logs else { continue };
            for partition in 0..record.tasks {
                let state = StateOf {
                    generation: record.generation_id(generation.number),
                    partition: PartitionId(partition),
                    changelog: logs.changelog,
                };
                let env = &self.inner.env;
                let done = match state.is_due(env, CHECKPOINT_AT_CLOSE_BYTES) {
                    Ok(true) => state.take(env),
                    other => other.map(|_| ()),
                };
                if let Err(error) = done {
                    tracing::warn!(deployment = %record.name(), "checkpoint: {error}");
                }
            }
        }
    }

    /// Whether the host takes requests.
    ///
    /// # Errors
    /// When it does not, with the reason.
    pub fn ready(&self) -> Result<(), Error> {
        if self.inner.closing.load(Ordering::SeqCst) {
            return Err(Error::new(Kind::Unavailable, "stopping", "the host is stopping"));
        }
        match self.inner.log.failure() {
            Some(reason) => Err(Error::new(Kind::Unavailable, "storage_failed", reason)),
            None => Ok(()),
        }
    }

    /// A new log that `commit` creates.
    pub(super) fn new_log(
        &self,
        commit: &mut Commit,
        kind: LogKind,
        partitions: u32,
        owner: String,
    ) -> LogId {
        let id = LogId(self.inner.log.allocate_id());
        commit.creates.push(LogSpec { id, kind, partitions, owner });
        id
    }

    /// Commits, in the words of a request.
    pub(super) fn commit(&self, commit: Commit) -> Result<(), Error> {
        self.inner.log.commit_blocking(commit).map(|_| ()).map_err(commit_refused)
    }

    /// The audit log.
    pub fn audit(&self) -> &Audit {
        &self.inner.audit
    }

    /// Shows what the HTTP surface counts among the host's metrics.
    pub fn show_http(&self, http: &HttpMetrics) {
        self.inner.metrics.show_http(http);
    }

    /// Events from now on.
    pub fn subscribe_events(&self) -> tokio::sync::broadcast::Receiver<Arc<Event>> {
        self.inner.events.subscribe()
    }

    /// Events after `id` that are still remembered, for those who come back.
    pub fn events_after(&self, id: u64) -> Vec<Arc<Event>> {
        self.inner.events.after(id)
    }
}

/// The refusal behind a commit that was refused.
pub(super) fn commit_refused(error: CommitError) -> Error {
    let (kind, code) = match &error {
        CommitError::Fenced { .. } => (Kind::Conflict, "fenced"),
        CommitError::Conflict { .. } => (Kind::Conflict, "conflict"),
        CommitError::NameTaken { .. } => (Kind::Conflict, "topic_exists"),
        CommitError::UnknownPartition { .. } | CommitError::UnknownTopic { .. } => {
            (Kind::NotFound, "topic_not_found")
        }
        CommitError::Invalid { .. } => (Kind::Invalid, "invalid"),
        CommitError::DiskFull { .. } => (Kind::Unavailable, "disk_full"),
        CommitError::Unread { .. } => (Kind::Unavailable, "cannot_read"),
        CommitError::Stopped { .. } => (Kind::Unavailable, "storage_failed"),
    };
    Error::new(kind, code, error.to_string())
}

fn cannot_open(error: storage::Error) -> Error {
    let kind = match error {
        storage::Error::Locked { .. } => Kind::Conflict,
        _ => Kind::Internal,
    };
    Error::new(kind, "cannot_open", error.to_string())
}
