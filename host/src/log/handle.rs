//! The log as others hold it: opening, committing, finding partitions and topics, closing.
//!
//! **Invariant:** what is in memory after opening is what the head says, and nothing else. The
//! committer thread ends before the last handle is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use crossbeam_channel::Sender;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::codec;
use super::commit::{Commit, CommitError, Committed, LogSpec};
use super::committer::{self, Catalog, Done, Request};
use super::keys;
use super::partition::{Partition, Registry, Run, State};
use super::topics::{TopicState, Topics};
use crate::clock::SharedClock;
use crate::storage::{self, FileSystem, Storage, WriteBatch};
use crate::types::{LogId, Offset, PartitionId};

/// Why the log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The storage below says why.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// What lies in the head is not what the log writes.
    #[error(
        "the value of key \"{key}\" in the head is not what was written: {detail}; restore the data directory from a backup"
    )]
    Damaged {
        /// The key, escaped.
        key: String,
        /// What is wrong.
        detail: String,
    },
    /// The system gave no thread.
    #[error("cannot start a thread of the log: {0}")]
    Thread(#[source] std::io::Error),
}

/// Limits of the log.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// Appends are refused when fewer bytes than this are free. 256 MiB: room to seal and to checkpoint.
    pub min_free_bytes: u64,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { min_free_bytes: 256 << 20 }
    }
}

/// What is stored of a partition; one without it starts at 0.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct PartitionRecord {
    pub log_start: Offset,
}

/// What the log's threads share.
pub(super) struct Shared {
    pub storage: Arc<Storage>,
    pub fs: Arc<dyn FileSystem>,
    pub clock: SharedClock,
    pub config: LogConfig,
    pub catalog: Mutex<Catalog>,
    pub registry: Arc<Registry>,
    pub topics: Topics,
    pub next_id: AtomicU64,
    head_bytes: AtomicU64,
}

impl Shared {
    pub(super) fn partition(&self, log: LogId, id: PartitionId) -> Option<Arc<Partition>> {
        self.registry.read().get(&(log, id)).cloned()
    }

    pub(super) fn head_grows(&self, bytes: u64) {
        self.head_bytes.fetch_add(bytes, Ordering::SeqCst);
    }

    pub(super) fn head_shrinks(&self, bytes: u64) {
        self.head_bytes.fetch_sub(bytes, Ordering::SeqCst);
    }
}

/// The log of a data directory. Clones share it; the last to go closes it.
#[derive(Clone)]
pub struct Log {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    requests: Sender<Request>,
    committer: Mutex<Option<JoinHandle<()>>>,
}

impl Log {
    /// Brings back what the head says and starts the committer.
    pub fn open(
        storage: Arc<Storage>,
        fs: Arc<dyn FileSystem>,
        clock: SharedClock,
        config: LogConfig,
    ) -> Result<Self, Error> {
        let shared = Arc::new(recover(storage, fs, clock, config)?);
        let (requests, inbox) = crossbeam_channel::unbounded();
        let own = Arc::clone(&shared);
        let committer = thread::Builder::new()
            .name("committer".to_owned())
            .spawn(move || committer::run(&own, &inbox))
            .map_err(Error::Thread)?;
        let committer = Mutex::new(Some(committer));
        Ok(Self { handle: Arc::new(Handle { shared, requests, committer }) })
    }

    /// A number that was never given out before and never will be again: for logs, topics,
    /// deployments. Durable with the commit that uses it.
    pub fn allocate_id(&self) -> u64 {
        self.shared().next_id.fetch_add(1, Ordering::SeqCst)
    }

    /// One partition of a physical log.
    pub fn partition(&self, log: LogId, partition: PartitionId) -> Option<Arc<Partition>> {
        self.shared().partition(log, partition)
    }

    /// What a log is; `None` if it does not exist (any more).
    pub fn spec(&self, log: LogId) -> Option<LogSpec> {
        self.shared().catalog.lock().logs.get(&log).cloned()
    }

    /// All topics.
    pub fn topics(&self) -> &Topics {
        &self.shared().topics
    }

    /// Hands a commit to the committer. `done` runs on its thread, after the commit is durable and
    /// visible or was refused; it must be quick and must not wait for another commit.
    pub fn commit(
        &self,
        commit: Commit,
        done: impl FnOnce(Result<Committed, CommitError>) + Send + 'static,
    ) {
        let request = Request::Commit(Box::new(commit), Box::new(done) as Done);
        if let Err(refused) = self.handle.requests.send(request)
            && let Request::Commit(_, done) = refused.into_inner()
        {
            done(Err(closed()));
        }
    }

    /// Commits and waits. Not for the committer's own thread.
    pub fn commit_blocking(&self, commit: Commit) -> Result<Committed, CommitError> {
        let (answer, outcome) = crossbeam_channel::bounded(1);
        self.commit(commit, move |result| {
            let _ = answer.send(result);
        });
        outcome.recv().unwrap_or_else(|_| Err(closed()))
    }

    /// The value of a metadata key.
    pub fn metadata_get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, storage::Error> {
        self.shared().storage.get(key)
    }

    /// All metadata keys that begin with `prefix`, in order, with their values.
    pub fn metadata_scan(
        &self,
        prefix: &[u8],
        see: impl FnMut(&[u8], Vec<u8>),
    ) -> Result<(), storage::Error> {
        self.shared().storage.scan(prefix, see)
    }

    /// Bytes of records in the head, not yet in a segment.
    pub fn head_bytes(&self) -> u64 {
        self.shared().head_bytes.load(Ordering::SeqCst)
    }

    /// Answers what was handed in, then stops: every later commit is refused.
    pub fn close(&self) {
        self.handle.close();
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }
}

impl Handle {
    fn close(&self) {
        let Some(committer) = self.committer.lock().take() else { return };
        let (answer, ended) = crossbeam_channel::bounded(1);
        if self.requests.send(Request::Close(answer)).is_ok()
            && committer.thread().id() != thread::current().id()
        {
            // Either may fail only if the committer panicked; then there is nothing to wait for.
            let _ = ended.recv();
            let _ = committer.join();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close();
    }
}

fn closed() -> CommitError {
    CommitError::Stopped { reason: "the host is shutting down".to_owned() }
}

/// Reads the catalogue and the head, and removes what a crash left half removed.
fn recover(
    storage: Arc<Storage>,
    fs: Arc<dyn FileSystem>,
    clock: SharedClock,
    config: LogConfig,
) -> Result<Shared, Error> {
    let mut catalog = Catalog::default();
    for spec in load::<LogSpec>(&storage, keys::LOGS)? {
        catalog.logs.insert(spec.1.id, spec.1);
    }
    for (_, state) in load::<TopicState>(&storage, keys::TOPICS)? {
        catalog.names.insert(state.name.clone(), state.id);
        catalog.topics.insert(state.id, Arc::new(state));
    }
    let next_id = match storage.get(keys::NEXT_ID)? {
        None => 1,
        Some(bytes) => u64::from_le_bytes(
            bytes.try_into().map_err(|_| damaged(keys::NEXT_ID, "it is not a number"))?,
        ),
    };
    catalog.stored_id = next_id;
    let registry: Arc<Registry> = Arc::default();
    let states = load_partitions(&storage, &catalog)?;
    let mut head_bytes = 0;
    for ((log, partition), state) in states {
        head_bytes += state.tail.iter().map(|run| run.size_bytes).sum::<u64>();
        catalog.next.insert((log, partition), state.published);
        registry.write().insert((log, partition), Partition::new(log, partition, state));
    }
    let topics = Topics::default();
    for state in catalog.topics.values() {
        topics.publish(Arc::clone(state), &registry);
    }
    Ok(Shared {
        storage,
        fs,
        clock,
        config,
        catalog: Mutex::new(catalog),
        registry,
        topics,
        next_id: AtomicU64::new(next_id),
        head_bytes: AtomicU64::new(head_bytes),
    })
}

type States = std::collections::HashMap<(LogId, PartitionId), State>;

fn load_partitions(storage: &Storage, catalog: &Catalog) -> Result<States, Error> {
    let mut states = States::new();
    for spec in catalog.logs.values() {
        for p in (0..spec.partitions).map(PartitionId) {
            states.insert((spec.id, p), State::default());
        }
    }
    for (key, record) in load::<PartitionRecord>(storage, keys::PARTITIONS)? {
        let id = keys::parse_partition(&key).ok_or_else(|| damaged(&key, "the key is cut off"))?;
        if let Some(state) = states.get_mut(&id) {
            state.log_start = record.log_start;
            state.published = record.log_start;
        }
    }
    let mut garbage = WriteBatch::default();
    let mut fault = None;
    storage.scan(&[keys::HEAD], |key, value| {
        let Some((log, partition, first)) = keys::parse_positioned(key) else {
            fault.get_or_insert_with(|| damaged(key, "the key is cut off"));
            return;
        };
        let Some(state) = states.get_mut(&(log, partition)) else {
            garbage.delete(key);
            return;
        };
        match codec::decode(&value) {
            Some((records, append_ms)) => {
                let run = Run::new(first, records, append_ms);
                state.published = state.published.max(run.next());
                state.tail.push_back(run);
            }
            None => {
                fault.get_or_insert_with(|| damaged(key, "it is not an append"));
            }
        }
    })?;
    if let Some(fault) = fault {
        return Err(fault);
    }
    if !garbage.is_empty() {
        storage.apply(garbage)?;
    }
    Ok(states)
}

fn load<T: serde::de::DeserializeOwned>(
    storage: &Storage,
    prefix: u8,
) -> Result<Vec<(Vec<u8>, T)>, Error> {
    let mut found = Vec::new();
    let mut fault = None;
    storage.scan(&[prefix], |key, value| match serde_json::from_slice(&value) {
        Ok(parsed) => found.push((key.to_vec(), parsed)),
        Err(e) => {
            fault.get_or_insert_with(|| damaged(key, &e.to_string()));
        }
    })?;
    fault.map_or(Ok(found), Err)
}

fn damaged(key: &[u8], detail: &str) -> Error {
    Error::Damaged { key: key.escape_ascii().to_string(), detail: detail.to_owned() }
}
