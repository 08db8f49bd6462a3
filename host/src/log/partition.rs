//! One partition of a physical log: what is visible of it, and to whom it is announced.
//!
//! The committer publishes here; readers take what they need under a short lock and go on without
//! it, since records and segments are immutable and shared.
//!
//! **Invariant:** the durable offset never goes back, and no reader gets past it. Runs in the tail and
//! segments do not overlap.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::watch;

use super::columns::Wanted;
use super::lost::Lost;
use super::reader::{PartitionReader, ReadError};
use super::segment::Segment;
use super::signal::{Signal, Subscription};
use crate::threads::RwLock;
use crate::types::{LogId, Offset, PartitionId, Records};

/// All partitions that exist, by log and number.
pub(super) type Registry = RwLock<HashMap<(LogId, PartitionId), Arc<Partition>>>;

/// What a run costs in memory beside its bytes, about: arrays, their buffers, allocation.
const RUN_BYTES: u64 = 1024;

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

    /// Bytes of memory: what the budget of the head counts.
    pub(super) fn held_bytes(&self) -> u64 {
        self.size_bytes + RUN_BYTES
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
    /// In the order of offsets.
    pub segments: Vec<Arc<Segment>>,
    /// The head, in the order of offsets.
    pub tail: VecDeque<Run>,
    /// Ranges that were lost, by their first offset.
    pub lost: BTreeMap<Offset, Lost>,
    pub deleted: bool,
}

impl State {
    /// The lost range that `at` lies in.
    pub(super) fn lost_at(&self, at: Offset) -> Option<&Lost> {
        let (_, lost) = self.lost.range(..=at).next_back()?;
        (at < lost.next).then_some(lost)
    }

    pub(super) fn durable(&self) -> Offset {
        let held = self.reserved.keys().next().copied();
        held.map_or(self.published, |held| held.min(self.published))
    }

    /// Index of the first segment that reaches beyond `from`.
    pub(super) fn segment_at(&self, from: Offset) -> usize {
        self.segments.partition_point(|segment| segment.entry.next <= from)
    }

    pub(super) fn add_segment(&mut self, segment: Arc<Segment>) {
        let at = self.segment_at(segment.entry.first);
        self.segments.insert(at, segment);
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

    /// Bytes of the partition's records, before compression.
    pub fn size_bytes(&self) -> u64 {
        let state = self.state.read();
        let segments: u64 = state.segments.iter().map(|s| s.entry.size_bytes).sum();
        segments + state.tail.iter().map(|run| run.size_bytes).sum::<u64>()
    }

    /// Bytes of the partition's segment files.
    pub fn file_bytes(&self) -> u64 {
        self.state.read().segments.iter().map(|s| s.entry.file_bytes).sum()
    }

    /// The number of records at and after `from` and before `to` that can be read.
    pub fn count_between(&self, from: Offset, to: Offset) -> Result<u64, ReadError> {
        let state = self.state.read();
        let (from, to) = (from.max(state.log_start), to.min(state.durable()));
        if from >= to {
            return Ok(0);
        }
        let runs = state.tail.range(state.run_at(from)..).take_while(|run| run.first < to);
        let mut count: u64 = runs.map(|run| run.clip(from, to).1.len() as u64).sum();
        let segments = state.segments[state.segment_at(from)..].to_vec();
        drop(state);
        for segment in segments {
            count += segment.count_between(from, to)?;
        }
        Ok(count)
    }

    /// The first offset whose record has this timestamp or a later one; the end if there is none.
    pub fn offset_for_time(&self, timestamp_ms: i64) -> Result<Offset, ReadError> {
        let state = self.state.read();
        let (start, end) = (state.log_start, state.durable());
        let late =
            |records: &Records| (0..records.len()).find(|&i| records.timestamps[i] >= timestamp_ms);
        let mut runs = state.tail.range(state.run_at(start)..);
        let in_head = runs.find_map(|run| {
            let (first, records) = run.clip(start, end);
            let found = (run.max_timestamp >= timestamp_ms).then(|| late(&records))??;
            Some(Offset(first.0 + found as u64))
        });
        let segments = state.segments[state.segment_at(start)..].to_vec();
        drop(state);
        let limit = in_head.unwrap_or(end).min(end);
        for segment in segments.iter().filter(|s| s.entry.max_timestamp >= timestamp_ms) {
            for (i, block) in segment.open()?.blocks.iter().enumerate() {
                if block.first >= limit {
                    return Ok(limit);
                }
                if block.next <= start || block.max_timestamp < timestamp_ms {
                    continue;
                }
                let batch = segment.read(i, Wanted::NONE)?.from_offset(start);
                if let Some(found) = late(&batch.records) {
                    return Ok(Offset(batch.offsets[found]).min(limit));
                }
            }
        }
        Ok(limit)
    }

    /// Bytes of memory that the head of this partition holds.
    pub(super) fn tail_bytes(&self) -> u64 {
        self.state.read().tail.iter().map(Run::held_bytes).sum()
    }

    /// Durable runs from the first of the head on, up to about `max_bytes` or the next segment.
    pub(super) fn sealable(&self, max_bytes: u64) -> Vec<Run> {
        let state = self.state.read();
        let Some(first) = state.tail.front().map(|run| run.first) else { return Vec::new() };
        let segment = state.segments.get(state.segment_at(first));
        let end = segment.map_or(state.durable(), |s| s.entry.first.min(state.durable()));
        let mut bytes = 0;
        let runs = state.tail.iter().take_while(|run| {
            let taken = run.next() <= end && bytes < max_bytes;
            bytes += run.size_bytes;
            taken
        });
        runs.cloned().collect()
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
        let durable = self.durable_offset().0;
        // Two threads may announce at once; the later state wins, whoever comes last.
        self.durable.send_if_modified(|seen| {
            let moved = durable > *seen;
            *seen = durable.max(*seen);
            moved
        });
        self.signal.notify();
    }
}
