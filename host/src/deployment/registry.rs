//! The host's one front: everything that HTTP and the command line can ask for.
//!
//! The registry opens the data directory, owns the log, the plugins and the deployments, and hands
//! each request to the part that knows: topics and records here and to the log, plugins to
//! [`super::plugins`], everything about generations to [`super::lifecycle`].
//!
//! **Invariant:** a change is in the catalogue before it is in memory; what fails leaves both alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::audit::Audit;
use super::backup::Backups;
use super::events::Events;
use super::head_copies::HeadCopies;
use super::metrics::{HostMetrics, HttpMetrics, PartitionLabels};
use super::record::{DeploymentRecord, PluginRecord};
use super::running::{RunningGeneration, topic};
use super::tokens::Tokens;
use super::{Error, Event, Kind, PartitionStatus, TopicStatus};
use crate::clock::SharedClock;
use crate::config::Config;
use crate::log::{
    Append, Commit, CommitError, Log, LogConfig, LogKind, LogSpec, Topic, TopicChange, TopicFormat,
    TopicState,
};
use crate::plugin::{self, Plugin, Runtime};
use crate::storage::{self, FileSystem, OsFileSystem, Storage, crash_point};
use crate::task::{BulkThreads, Environment, StateOf, Workers, quarantine_checkpoints};
use crate::threads::{self, Condvar, JoinHandle, Mutex, RwLock};
use crate::types::{
    DeploymentId, DeploymentName, Digest, GenerationNumber, LogId, Offset, PartitionId, Records,
    TopicId, TopicName, partition_of_key, take_records,
};

/// What a topic is created with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateTopic {
    /// Its partitions, for its whole life.
    #[serde(default = "one")]
    pub partitions: u32,
    /// How keys and values are shown and taken.
    #[serde(default)]
    #[schema(value_type = String)]
    pub format: TopicFormat,
    /// What may go; recorded, not yet enforced.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub retention: crate::log::Retention,
}

fn one() -> u32 {
    1
}

/// What became of a produce request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Produced {
    /// Records appended.
    pub appended: u64,
    /// For each partition that got any: its next offset after them.
    pub partitions: BTreeMap<u32, PartitionEnd>,
}

/// Where a partition ends after a produce request.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PartitionEnd {
    /// The next offset to be written.
    pub next_offset: u64,
}

/// What to do once a produce request is durable, or refused.
pub type ProduceDone = Box<dyn FnOnce(Result<Produced, Error>) + Send>;

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
    pub safe: bool,
    pub backups: Backups,
    head_copies: Mutex<Option<HeadCopies>>,
    pub plugins: RwLock<BTreeMap<Digest, PluginRecord>>,
    pub loaded: Mutex<BTreeMap<Digest, Arc<Plugin>>>,
    sticky: AtomicU32,
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
        let workers = Workers::start(count, config.tasks.replay_share, Arc::clone(&clock))
            .map_err(machine)?;
        let metrics = Arc::new(HostMetrics::new(Arc::clone(&clock)));
        let env = Arc::new(Environment {
            log: log.clone(),
            clock: Arc::clone(&clock),
            config: config.tasks.clone(),
            bulk: BulkThreads::start(count).map_err(machine)?,
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
        for generation in &running {
            generation.tasks.iter().for_each(|task| task.request_stop());
        }
        for generation in &running {
            generation.stop(Duration::from_secs(30));
        }
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

    /// Creates a topic; the same request again changes nothing.
    ///
    /// # Errors
    /// When the name is taken by a topic that differs, or the request is beyond a limit.
    pub fn create_topic(
        &self,
        name: &TopicName,
        options: &CreateTopic,
    ) -> Result<TopicStatus, Error> {
        let _naming = self.inner.naming.lock();
        if let Some(topic) = self.inner.log.topics().get(name) {
            let state = topic.state();
            if (state.partitions, state.format) == (options.partitions, options.format) {
                return self.topic(name);
            }
            let message = format!(
                "topic {name} exists with {} partitions and format {:?}: delete it first, or choose another name",
                state.partitions, state.format
            );
            return Err(Error::new(Kind::Conflict, "topic_exists", message));
        }
        let most = self.inner.config.storage.max_partitions;
        if options.partitions == 0 || options.partitions > most {
            let message = format!(
                "topic {name}: {} partitions; a topic has 1 to {most} (storage.max_partitions)",
                options.partitions
            );
            return Err(Error::new(Kind::Invalid, "invalid_partitions", message));
        }
        let mut commit = Commit::default();
        let mut state = self.plain_topic(&mut commit, name, options.partitions, options.format);
        state.retention = options.retention.clone();
        commit.topics.push(TopicChange::Create(state));
        self.commit(commit)?;
        self.topic(name)
    }

    /// A topic of producers, whose log `commit` creates.
    fn plain_topic(
        &self,
        commit: &mut Commit,
        name: &TopicName,
        partitions: u32,
        format: TopicFormat,
    ) -> TopicState {
        let log = self.new_log(commit, LogKind::Records, partitions, format!("topic {name}"));
        let id = TopicId(self.inner.log.allocate_id());
        TopicState::plain(id, name.clone(), format, partitions, log)
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

    /// A topic as others see it.
    ///
    /// # Errors
    /// When there is none.
    pub fn topic(&self, name: &TopicName) -> Result<TopicStatus, Error> {
        Ok(topic_status(&self.topic_handle(name)?))
    }

    /// A topic to read from.
    ///
    /// # Errors
    /// When there is none.
    pub fn topic_handle(&self, name: &TopicName) -> Result<Arc<Topic>, Error> {
        topic(&self.inner.log, name)
    }

    /// All topics, by name.
    pub fn topics(&self) -> Vec<TopicStatus> {
        self.inner.log.topics().list().iter().map(topic_status).collect()
    }

    /// Deletes a topic and its records.
    ///
    /// # Errors
    /// When there is none, or a deployment reads or owns it.
    pub fn delete_topic(&self, name: &TopicName) -> Result<(), Error> {
        let _naming = self.inner.naming.lock();
        let state = self.topic_handle(name)?.state();
        if let Some(owner) = &state.owner {
            let message = format!(
                "topic {name} is an output of deployment {owner}: delete the deployment first"
            );
            return Err(Error::new(Kind::Conflict, "topic_in_use", message));
        }
        if let Some(reader) = self.reader_of(name) {
            let message = format!("deployment {reader} reads topic {name}: delete it first");
            return Err(Error::new(Kind::Conflict, "topic_in_use", message));
        }
        let logs: BTreeSet<LogId> =
            state.mounts.iter().filter(|m| !m.retired).map(|m| m.log).collect();
        self.commit(Commit {
            deletes: logs.into_iter().collect(),
            topics: vec![TopicChange::Delete(state.id)],
            ..Commit::default()
        })
    }

    /// A deployment that reads a topic.
    pub(super) fn reader_of(&self, name: &TopicName) -> Option<DeploymentName> {
        let deployments = self.inner.deployments.read();
        let reads = |d: &&Arc<Deployment>| d.state.lock().record.spec.inputs.contains(name);
        deployments.values().find(reads).map(|d| d.state.lock().record.name().clone())
    }

    /// Appends records: to the partition that `partitions` names for each, else by key, else all to
    /// one. Does not block; `done` is called once they are durable, on the committer's thread.
    pub fn produce(
        &self,
        name: &TopicName,
        records: Records,
        partitions: Option<&[Option<PartitionId>]>,
        done: ProduceDone,
    ) {
        match self.place(name, records, partitions) {
            Err(error) => done(Err(error)),
            Ok(appends) => {
                let placed: Vec<_> =
                    appends.iter().map(|a| (a.partition, a.records.len() as u64)).collect();
                let (metrics, topic) = (Arc::clone(&self.inner.metrics), name.to_string());
                let (clock, asked) = (Arc::clone(&self.inner.clock), self.inner.clock.monotonic());
                let commit = Commit { appends, ..Commit::default() };
                let finish = move |result: Result<crate::log::Committed, CommitError>| {
                    metrics.commits.add(clock.monotonic().saturating_sub(asked));
                    let produced = result.map_err(commit_refused).map(|committed| {
                        let mut partitions = BTreeMap::new();
                        for ((partition, count), (_, next)) in placed.iter().zip(committed.appended)
                        {
                            let PartitionId(partition) = *partition;
                            let labels = PartitionLabels { topic: topic.clone(), partition };
                            metrics.produced.get_or_create(&labels).inc_by(*count);
                            partitions.insert(partition, PartitionEnd { next_offset: next.0 });
                        }
                        Produced { appended: placed.iter().map(|(_, n)| n).sum(), partitions }
                    });
                    crash_point("append-durable");
                    done(produced);
                };
                crash_point("append-placed");
                self.inner.log.commit(commit, Box::new(finish));
            }
        }
    }

    /// Which records go to which partition.
    fn place(
        &self,
        name: &TopicName,
        records: Records,
        partitions: Option<&[Option<PartitionId>]>,
    ) -> Result<Vec<Append>, Error> {
        use arrow_array::Array as _;
        self.ready()?;
        let state = self.topic_handle(name)?.state();
        if let Some(owner) = &state.owner {
            let message = format!(
                "topic {name} is an output of deployment {owner}: only its plugin writes there"
            );
            return Err(Error::new(Kind::Conflict, "topic_owned", message));
        }
        let mount = state.open_mount();
        if mount.generation.is_some() {
            let message = format!(
                "topic {name} holds the outputs of a deployment that was deleted: produce to another topic"
            );
            return Err(Error::new(Kind::Conflict, "topic_owned", message));
        }
        let log = mount.log;
        let append = |partition, records| Append { log, partition, records };
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let count = state.partitions;
        if count == 1 && partitions.is_none() {
            return Ok(vec![append(PartitionId(0), records)]);
        }
        let sticky = PartitionId(self.inner.sticky.fetch_add(1, Ordering::Relaxed) % count);
        let mut rows = vec![Vec::new(); count as usize];
        for row in 0..records.len() {
            let chosen = partitions.and_then(|p| p[row]);
            let partition = match chosen {
                Some(partition) if partition.0 >= count => {
                    let message = format!(
                        "record {row}: topic {name} has partitions 0 to {}, not {partition}",
                        count - 1
                    );
                    return Err(Error::new(Kind::Invalid, "no_such_partition", message));
                }
                Some(partition) => partition,
                None if records.keys.is_valid(row) => {
                    partition_of_key(records.keys.value(row), count)
                }
                None => sticky,
            };
            rows[partition.0 as usize].push(row as u32);
        }
        let used = rows.iter().enumerate().filter(|(_, rows)| !rows.is_empty());
        Ok(used
            .map(|(p, rows)| append(PartitionId(p as u32), take_records(&records, rows)))
            .collect())
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
    Error::new(Kind::Internal, "cannot_open", error.to_string())
}

fn topic_status(topic: &Arc<Topic>) -> TopicStatus {
    let state = topic.state();
    let partitions = (0..state.partitions).filter_map(|p| topic.partition(PartitionId(p)));
    TopicStatus {
        name: state.name.to_string(),
        id: state.id.0,
        format: serde_json::to_value(state.format)
            .ok()
            .and_then(|v| v.as_str().map(str::to_owned))
            .unwrap_or_default(),
        owner: state.owner.clone(),
        generation: state.open_mount().generation,
        partitions: partitions
            .map(|p| {
                let (start, end): (Offset, Offset) = (p.start_offset(), p.end_offset());
                PartitionStatus {
                    partition: p.id().0,
                    log_start_offset: start.0,
                    end_offset: end.0,
                    records: p.count_between(start, end).unwrap_or_default(),
                    size_bytes: p.size_bytes(),
                }
            })
            .collect(),
    }
}
