//! The log as others hold it: opening, committing, finding partitions and topics, closing.
//!
//! **Invariant:** what is in memory after opening is what the head says, and nothing else. The
//! committer thread ends before the last handle is gone.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::commit::{Commit, CommitError, Committed, LogSpec};
use super::committer::{self, Catalog, Done, Request};
use super::partition::{Partition, Registry};
use super::recovery::{SEGMENTS_DIR, recover};
use super::sealer::{self, Task};
use super::segment::{Segment, SegmentPlace};
use super::topics::Topics;
use crate::clock::SharedClock;
use crate::storage::{self, FileSystem, Pace, Storage};
use crate::threads::{self, JoinHandle, Mutex, Sender, channel};
use crate::types::{LogId, Offset, PartitionId};

/// Why the log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The storage below says why.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// What lies in the head is not what the log writes.
    #[error(
        "the value of key \"{key}\" in the head is not what was written: {detail}; `anabranch doctor --data DIR` says what is lost and repairs, or restore a backup"
    )]
    Damaged {
        /// The key, escaped.
        key: String,
        /// What is wrong.
        detail: String,
    },
    /// The files and the manifest do not belong together.
    #[error(
        "{path}: {detail}; `anabranch doctor --data DIR` says what is lost and repairs, or restore a backup"
    )]
    Files {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The disk refused.
    #[error("cannot {what} {path}: {source}; check the disk")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The system gave no thread.
    #[error("cannot start a thread of the log: {0}")]
    Thread(#[source] std::io::Error),
}

/// Limits of the log.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// Bytes of records in the head beyond which they are sealed. 64 MiB: a start reads the head.
    pub head_bytes: u64,
    /// Bytes of records in one sealed segment, about, before compression. 64 MiB.
    pub segment_bytes: u64,
    /// Appends are refused when fewer bytes than this are free. 256 MiB: room to seal and to checkpoint.
    pub min_free_bytes: u64,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { head_bytes: 32 << 20, segment_bytes: 64 << 20, min_free_bytes: 256 << 20 }
    }
}

/// What is stored of a partition; one without it starts at 0.
#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
pub(super) struct PartitionRecord {
    /// The first offset that can be read.
    pub log_start: Offset,
    /// Batches of the head that begin before this were sealed.
    pub head_start: Offset,
}

/// What the committer has done since the log was opened: for metrics.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct LogStats {
    /// Commits made durable.
    pub commits: u64,
    /// Groups of commits, each with one sync.
    pub groups: u64,
    /// Time spent in syncs, in microseconds.
    pub sync_us: u64,
    /// The longest of them, in microseconds.
    pub longest_sync_us: u64,
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
    pub head_bytes: AtomicU64,
    pub tasks: Sender<Task>,
    /// Whether the sealer was told to look and has not begun.
    pub check_waits: AtomicBool,
    pub closing: AtomicBool,
    /// Counts commits that changed more than records and positions.
    pub structure: AtomicU64,
    pub quarantined: Vec<PathBuf>,
    pub stats: Mutex<LogStats>,
}

impl Shared {
    pub(super) fn partition(&self, log: LogId, id: PartitionId) -> Option<Arc<Partition>> {
        self.registry.read().get(&(log, id)).cloned()
    }

    pub(super) fn head_bytes(&self) -> u64 {
        self.head_bytes.load(Ordering::SeqCst)
    }

    /// Tells the sealer if the head is over its budget.
    pub(super) fn wake_sealer(&self) {
        if self.head_bytes() > self.config.head_bytes
            && !self.check_waits.swap(true, Ordering::SeqCst)
        {
            // Fails only when the sealer has ended, and then nothing needs sealing.
            let _ = self.tasks.send(Task::Check);
        }
    }

    pub(super) fn remove_later(&self, keys: Vec<Vec<u8>>) {
        if !keys.is_empty() {
            // What is not removed now is removed at the next start.
            let _ = self.tasks.send(Task::Remove(keys));
        }
    }

    /// Lets go of segments that a commit doomed, elsewhere: removing a file takes the time of a commit.
    pub(super) fn let_go_later(&self, segments: Vec<Arc<Segment>>) {
        segments.iter().for_each(|segment| segment.doom());
        if !segments.is_empty() {
            // Once the sealer has ended they go here.
            let _ = self.tasks.send(Task::LetGo(segments));
        }
    }

    /// Where a new segment of the partition goes.
    pub(super) fn segment_place(
        &self,
        log: LogId,
        partition: PartitionId,
        sources: bool,
        pace: Pace,
    ) -> SegmentPlace {
        SegmentPlace {
            fs: Arc::clone(&self.fs),
            dir: self.storage.dir().join(SEGMENTS_DIR),
            store_id: self.storage.store_id(),
            log,
            partition,
            file_id: self.next_id.fetch_add(1, Ordering::SeqCst),
            sequence: self.storage.sequence(),
            sources,
            pace,
        }
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

/// The committer has ended.
pub(super) struct Stopped;

struct Handle {
    shared: Arc<Shared>,
    requests: Sender<Request>,
    /// Committer and sealer.
    threads: Mutex<Option<(JoinHandle<()>, JoinHandle<()>)>>,
}

impl Log {
    /// Brings back what the head says and starts the committer.
    pub fn open(
        storage: Arc<Storage>,
        fs: Arc<dyn FileSystem>,
        clock: SharedClock,
        config: LogConfig,
    ) -> Result<Self, Error> {
        let (tasks, task_inbox) = channel();
        let shared = Arc::new(recover(storage, fs, clock, config, tasks)?);
        let (requests, inbox) = channel();
        let own = Arc::clone(&shared);
        let committer =
            threads::spawn("committer".to_owned(), move || committer::run(&own, &inbox));
        let committer = committer.map_err(Error::Thread)?;
        let (own, seals) = (Arc::clone(&shared), requests.clone());
        let sealer =
            threads::spawn("sealer".to_owned(), move || sealer::run(&own, &task_inbox, &seals));
        let sealer = sealer.map_err(Error::Thread)?;
        shared.wake_sealer();
        let threads = Mutex::new(Some((committer, sealer)));
        Ok(Self { handle: Arc::new(Handle { shared, requests, threads }) })
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
        // A request that cannot be sent answers by itself when it is dropped.
        let _ = self.handle.requests.send(Request::Commit(Box::new(commit), Done::new(done)));
    }

    /// Commits and waits. Not for the committer's own thread.
    pub fn commit_blocking(&self, commit: Commit) -> Result<Committed, CommitError> {
        let (answer, outcome) = channel();
        self.commit(commit, move |result| {
            let _ = answer.send(result);
        });
        outcome.recv().expect("every commit is answered, at the latest when it is dropped")
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

    /// Why storage has stopped taking writes; `None` while it takes them.
    pub fn failure(&self) -> Option<String> {
        self.shared().storage.failure()
    }

    /// Bytes of memory that records in the head hold, about; they are not in a segment yet.
    pub fn head_bytes(&self) -> u64 {
        self.shared().head_bytes()
    }

    /// What the committer has done so far.
    pub fn stats(&self) -> LogStats {
        *self.shared().stats.lock()
    }

    /// Files that the manifest does not name, set aside at open.
    pub fn quarantined(&self) -> &[PathBuf] {
        &self.shared().quarantined
    }

    /// Answers what was handed in, then stops: every later commit is refused.
    pub fn close(&self) {
        self.handle.close();
    }

    pub(super) fn request(&self, request: Request) -> Result<(), Stopped> {
        self.handle.requests.send(request).map_err(|_| Stopped)
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }
}

impl Handle {
    fn close(&self) {
        let Some((committer, sealer)) = self.threads.lock().take() else { return };
        self.shared.closing.store(true, Ordering::SeqCst);
        let own = std::thread::current().id();
        let _ = self.shared.tasks.send(Task::Stop);
        // A thread may fail only by a panic; then there is nothing to wait for. The last handle can
        // be dropped by an answer on the committer's own thread, which must not wait for itself.
        if committer.thread().id() != own {
            let _ = sealer.join();
            let (answer, ended) = channel();
            if self.requests.send(Request::Close(answer)).is_ok() {
                let _ = ended.recv();
            }
            let _ = committer.join();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close();
    }
}
