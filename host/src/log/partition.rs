//! One partition of a physical log: what is visible of it, and to whom it is announced.
//!
//! The committer publishes here; readers take what they need under a short lock and go on without
//! it, since records and segments are immutable and shared.
//!
//! **Invariant:** the durable offset never goes back, and no reader gets past it. Runs in the tail and
//! segments do not overlap.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::watch;

use super::reader::PartitionReader;
use super::signal::{Signal, Subscription};
use crate::types::{LogId, Offset, PartitionId, Records};

/// All partitions that exist, by log and number.
pub(super) type Registry = RwLock<HashMap<(LogId, PartitionId), Arc<Partition>>>;

/// Records of one append, in memory.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub first: Offset,
    pub records: Records,
    pub append_ms: i64,
    pub max_timestamp: i64,
    pub size_bytes: u64,
}

impl Run {
    pub(super) fn new(first: Offset, records: Records, append_ms: i64) -> Self {
        let max_timestamp = records.timestamps.iter().copied().max().unwrap_or(i64::MIN);
        let size_bytes = records.size_bytes() as u64;
        Self { first, records, append_ms, max_timestamp, size_bytes }
    }

    pub(super) fn next(&self) -> Offset {
        Offset(self.first.0 + self.records.len() as u64)
    }

    /// The records from `from` up to `to`, and the offset of the first of them.
    pub(super) fn clip(&self, from: Offset, to: Offset) -> (Offset, Records) {
        let first = from.max(self.first).min(self.next());
        let next = to.min(self.next()).max(first);
        let start = (first.0 - self.first.0) as usize;
        (first, self.records.slice(start, (next.0 - first.0) as usize))
    }
}

/// What is there, as of the last publication.
#[derive(Debug, Default)]
pub(super) struct State {
    pub log_start: Offset,
    /// Every record below this is published; reservations may hold it back from readers.
    pub published: Offset,
    /// Ranges given out and not settled: first offset to next offset.
    pub reserved: BTreeMap<Offset, Offset>,
    /// The head, in the order of offsets.
    pub tail: VecDeque<Run>,
    pub deleted: bool,
}

impl State {
    pub(super) fn durable(&self) -> Offset {
        let held = self.reserved.keys().next().copied();
        held.map_or(self.published, |held| held.min(self.published))
    }

    /// Index of the first run that reaches beyond `from`.
    pub(super) fn run_at(&self, from: Offset) -> usize {
        self.tail.partition_point(|run| run.next() <= from)
    }
}

/// One partition. Readers and followers share it.
pub struct Partition {
    log: LogId,
    id: PartitionId,
    pub(super) state: RwLock<State>,
    durable: watch::Sender<u64>,
    signal: Arc<Signal>,
}

impl Partition {
    pub(super) fn new(log: LogId, id: PartitionId, state: State) -> Arc<Self> {
        let durable = watch::Sender::new(state.durable().0);
        Arc::new(Self { log, id, state: RwLock::new(state), durable, signal: Arc::default() })
    }

    /// The log it belongs to.
    pub fn log(&self) -> LogId {
        self.log
    }

    /// Its number in that log.
    pub fn id(&self) -> PartitionId {
        self.id
    }

    /// The first offset that can be read; records before it are gone.
    pub fn log_start_offset(&self) -> Offset {
        self.state.read().log_start
    }

    /// The end: every record before it is durable and can be read.
    pub fn durable_offset(&self) -> Offset {
        self.state.read().durable()
    }

    /// A reader of its own position and cache.
    pub fn reader(self: &Arc<Self>) -> PartitionReader {
        PartitionReader::new(Arc::clone(self))
    }

    /// Bytes of the records that can be read.
    pub fn size_bytes(&self) -> u64 {
        self.state.read().tail.iter().map(|run| run.size_bytes).sum()
    }

    /// Calls `listener` after each publication, on the thread that published.
    pub fn subscribe(&self, listener: Box<dyn Fn() + Send + Sync>) -> Subscription {
        self.signal.subscribe(Arc::from(listener))
    }

    /// Follows the durable offset.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.durable.subscribe()
    }

    /// To be called after a change of the state, outside its lock.
    pub(super) fn announce(&self) {
        // Two threads may announce at once; the later state wins, whoever comes last.
        self.durable.send_if_modified(|seen| {
            let durable = self.durable_offset().0;
            std::mem::replace(seen, durable) != durable
        });
        self.signal.notify();
    }
}
