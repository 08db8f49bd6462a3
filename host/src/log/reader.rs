//! Reading a partition from a position.
//!
//! **Invariant:** a reader never waits and never skips: it returns the next records that are there, or
//! nothing, or says why the position cannot be read and where to go on.

use std::path::PathBuf;
use std::sync::Arc;

use super::ahead::{Ahead, Executor};
use super::columns::Wanted;
use super::partition::{Partition, Run};
use super::segment::Segment;
use crate::types::{Batch, LogId, Offset, PartitionId, Records, concat_records};

/// No batch holds more bytes than this, so that positions in a column fit 31 bits.
const MAX_BATCH_BYTES: usize = 256 << 20;

/// Why a position cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The records were removed.
    #[error(
        "offset {from} of partition {partition} is below the start of the log; the first record left is at {start}"
    )]
    BelowStart {
        /// The partition.
        partition: PartitionId,
        /// The position asked for.
        from: Offset,
        /// Where to go on.
        start: Offset,
    },
    /// The position was never written.
    #[error(
        "offset {from} of partition {partition} is beyond the end of the log; the next record will be at {end}"
    )]
    BeyondEnd {
        /// The partition.
        partition: PartitionId,
        /// The position asked for.
        from: Offset,
        /// Where to go on.
        end: Offset,
    },
    /// The records were lost, and somebody accepted that.
    #[error("offset {from} of partition {partition} is lost: {why}; go on at {next}")]
    Lost {
        /// The partition.
        partition: PartitionId,
        /// The position asked for.
        from: Offset,
        /// Where to go on.
        next: Offset,
        /// What happened.
        why: String,
    },
    /// The generation that wrote this part of the topic was retired.
    #[error(
        "offset {from} of partition {partition} belongs to a retired generation; go on at {next}"
    )]
    Retired {
        /// The partition.
        partition: PartitionId,
        /// The position asked for.
        from: Offset,
        /// Where to go on.
        next: Offset,
    },
    /// The log or topic was deleted.
    #[error("log {log}, partition {partition} was deleted")]
    Deleted {
        /// The log.
        log: LogId,
        /// The partition.
        partition: PartitionId,
    },
    /// A file could not be read, or is not what was written.
    #[error(
        "{path} block {block} cannot be read: {detail}; stop the host: `anabranch doctor` says what is lost and repairs, or restore a backup"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The block in it, counted from 0.
        block: usize,
        /// What is wrong.
        detail: String,
    },
}

/// Reads one partition. Each reader keeps a block of its own.
pub struct PartitionReader {
    partition: Arc<Partition>,
    wanted: Wanted,
    /// The block read last.
    block: Option<CachedBlock>,
    /// Where blocks are read ahead, if they are.
    executor: Option<Executor>,
    /// The block after `block`.
    ahead: Option<Ahead>,
}

struct CachedBlock {
    segment: Arc<Segment>,
    index: usize,
    batch: Batch,
}

impl PartitionReader {
    pub(super) fn new(partition: Arc<Partition>) -> Self {
        Self { partition, wanted: Wanted::ALL, block: None, executor: None, ahead: None }
    }

    /// From now on, who reads on and on finds the next block read on another thread.
    pub(super) fn read_ahead(&mut self, executor: Option<Executor>) {
        self.executor = executor;
    }

    /// From now on, what nobody wants is not read. For a reader that has read nothing yet.
    pub(super) fn only(&mut self, wanted: Wanted) {
        self.wanted = wanted;
    }

    /// Whether it holds a block of a file.
    pub(super) fn holds_block(&self) -> bool {
        self.block.is_some() || self.ahead.is_some()
    }

    /// The partition it reads.
    pub fn partition(&self) -> &Arc<Partition> {
        &self.partition
    }

    /// Records at and after `from` and before `to`, as many as lie together within the limits, and at
    /// least one; `None` when there is none up to `to` or the durable offset.
    pub fn read(
        &mut self,
        from: Offset,
        to: Offset,
        max_records: usize,
        max_bytes: usize,
    ) -> Result<Option<Batch>, ReadError> {
        let (max_records, max_bytes) = (max_records.max(1), max_bytes.min(MAX_BATCH_BYTES));
        let state = self.partition.state.read();
        let (log, partition) = (self.partition.log(), self.partition.id());
        let end = state.durable();
        if state.deleted {
            return Err(ReadError::Deleted { log, partition });
        }
        if from < state.log_start {
            return Err(ReadError::BelowStart { partition, from, start: state.log_start });
        }
        if let Some(lost) = state.lost_at(from) {
            let (next, why) = (lost.next, lost.why.clone());
            return Err(ReadError::Lost { partition, from, next, why });
        }
        if from > end {
            return Err(ReadError::BeyondEnd { partition, from, end });
        }
        let to = to.min(end);
        if from >= to {
            return Ok(None);
        }
        let run_at = state.run_at(from);
        let segment_at = state.segment_at(from);
        let segment = state.segments.get(segment_at).filter(|s| s.entry.first < to);
        let batch = match (segment, state.tail.get(run_at)) {
            (Some(segment), run) if run.is_none_or(|run| segment.entry.first < run.first) => {
                let segment = Arc::clone(segment);
                let following = state.segments.get(segment_at + 1).cloned();
                drop(state);
                self.read_block(segment, following, from)?.from_offset(from).before_offset(to)
            }
            (segment, _) => {
                let to = segment.map_or(to, |segment| segment.entry.first.min(to));
                let taken = take_runs(state.tail.range(run_at..), from, to, max_records, max_bytes);
                drop(state);
                // Before they are joined, so that nothing is copied that nobody wants.
                let taken =
                    taken.into_iter().map(|(first, records)| (first, self.wanted.of(records)));
                match join(taken.collect()) {
                    Some(batch) => batch,
                    None => return Ok(None),
                }
            }
        };
        Ok((!batch.is_empty()).then(|| within(batch, max_records, max_bytes)))
    }

    /// The block of `segment` that holds the first record at or after `from`.
    fn read_block(
        &mut self,
        segment: Arc<Segment>,
        following: Option<Arc<Segment>>,
        from: Offset,
    ) -> Result<Batch, ReadError> {
        let blocks = &segment.open()?.blocks;
        let index = blocks.partition_point(|block| block.next <= from);
        if let Some(block) = &self.block
            && Arc::ptr_eq(&block.segment, &segment)
            && block.index == index
        {
            return Ok(block.batch.clone());
        }
        // Freed before the next is read: a reader holds one block, and one that is read ahead.
        let reads_on = self.block.take().is_some();
        let batch = match self.ahead.take().filter(|ahead| ahead.is(&segment, index)) {
            Some(ahead) => ahead.take()?,
            None => segment.read(index, self.wanted)?,
        };
        self.ahead = self.executor.as_ref().filter(|_| reads_on).and_then(|executor| {
            let next = match index + 1 < blocks.len() {
                true => Some((Arc::clone(&segment), index + 1)),
                false => following.map(|segment| (segment, 0)),
            };
            next.map(|(segment, index)| Ahead::begin(executor, segment, index, self.wanted))
        });
        self.block = Some(CachedBlock { segment, index, batch: batch.clone() });
        Ok(batch)
    }
}

/// Whole runs from `from` on until a limit is reached; the last may go beyond it.
fn take_runs<'a>(
    runs: impl Iterator<Item = &'a Run>,
    from: Offset,
    to: Offset,
    max_records: usize,
    max_bytes: usize,
) -> Vec<(Offset, Records)> {
    let mut taken: Vec<(Offset, Records)> = Vec::new();
    let (mut records, mut bytes) = (0, 0);
    for run in runs {
        let (first, part) = run.clip(from, to);
        let fits = taken.first().is_none_or(|(_, head)| joinable(head, &part));
        if part.is_empty() || !fits || records >= max_records || bytes >= max_bytes {
            break;
        }
        // The run that reaches the limit is cut here, not copied and cut afterwards.
        let part = part.slice(0, part.len().min(max_records - records));
        records += part.len();
        bytes += part.size_bytes();
        if bytes > max_bytes && !taken.is_empty() {
            break;
        }
        taken.push((first, part));
    }
    taken
}

/// The longest beginning of `batch` within the limits, and at least one record.
pub(super) fn within(batch: Batch, max_records: usize, max_bytes: usize) -> Batch {
    let fits = fitting(&batch.records, max_records, max_bytes);
    if fits == batch.len() { batch } else { batch.slice(0, fits) }
}

/// How many of `records` are within the limits, and at least one.
pub(super) fn fitting(records: &Records, max_records: usize, max_bytes: usize) -> usize {
    let len = records.len().min(max_records);
    if records.slice(0, len).size_bytes() <= max_bytes {
        return len;
    }
    let (mut fits, mut over) = (1, len);
    while fits + 1 < over {
        let middle = usize::midpoint(fits, over);
        match records.slice(0, middle).size_bytes() <= max_bytes {
            true => fits = middle,
            false => over = middle,
        }
    }
    fits
}

/// Whether records can lie in one batch: only one generation fits.
pub(super) fn joinable(a: &Records, b: &Records) -> bool {
    let generation = |r: &Records| r.sources.as_ref().map(|s| s.generation);
    generation(a) == generation(b)
}

/// One batch of several runs; `None` of none. A single run is not copied.
fn join(runs: Vec<(Offset, Records)>) -> Option<Batch> {
    let mut offsets = Vec::with_capacity(runs.iter().map(|(_, records)| records.len()).sum());
    for (first, records) in &runs {
        offsets.extend(first.0..first.0 + records.len() as u64);
    }
    let records: Vec<Records> = runs.into_iter().map(|(_, records)| records).collect();
    Some(Batch { offsets: offsets.into(), records: concat_records(&records)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::codec::tests::sample;

    #[test]
    fn joined_parts_are_the_whole() {
        let all = sample();
        let parts = [all.slice(0, 1), all.slice(1, 0), all.slice(1, 2)];
        assert_eq!(concat_records(&parts), Some(all.clone()));
        let plain = Records { headers: None, ..all.slice(0, 1) };
        assert_eq!(concat_records(&[plain, all.slice(1, 2)]), Some(all));
    }

    #[test]
    fn limits_leave_at_least_one_record() {
        let batch = Batch::contiguous(Offset(5), sample());
        assert_eq!(within(batch.clone(), 9, 1 << 20).len(), 3);
        assert_eq!(within(batch.clone(), 2, 1 << 20).len(), 2);
        assert_eq!(within(batch.clone(), 9, 1).len(), 1);
        let two = batch.records.slice(0, 2).size_bytes();
        assert_eq!(within(batch.clone(), 9, two).len(), 2);
        assert_eq!(within(batch, 9, two - 1).len(), 1);
    }
}
