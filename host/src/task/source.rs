//! A task's inputs: what it reads next, and in which order.
//!
//! One input is read as it lies. Several are merged: a live generation takes what is there by
//! (timestamp, input), and its journal records the order; a generation that follows takes the same
//! order from that journal, and merges only ranges that no journal covers.
//!
//! **Invariant:** positions are topic offsets and never pass the bound that the caller gives.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Display;
use std::sync::Arc;

use arrow_array::BinaryArray;
use arrow_array::builder::BinaryBuilder;

use super::pending::{JournalEntry, of_runs};
use super::processor::Failure;
use crate::log::{
    Executor, Log, Partition, PartitionReader, ReadError, Topic, TopicRead, TopicReader, Wanted,
};
use crate::plugin::{Input, Run};
use crate::storage::release_memory;
use crate::types::{Batch, LogId, Offset, PartitionId, concat_batches};

use super::TaskSpec;

/// How much one batch may hold.
#[derive(Debug, Clone, Copy)]
pub struct BatchLimit {
    /// Most records.
    pub records: usize,
    /// Most bytes; one record that is larger is a batch alone.
    pub bytes: usize,
}

/// One input of the task.
struct InputReader {
    name: String,
    /// `None` where the topic does not have the task's partition.
    reader: Option<TopicReader>,
    position: Offset,
    /// Read and not yet taken; only where inputs are merged.
    buffer: Option<Batch>,
}

impl InputReader {
    /// The next records below `to`, following swaps of the topic; `None` when there are none now.
    fn read(&mut self, to: Offset, limit: BatchLimit) -> Result<Option<Batch>, Failure> {
        let Some(reader) = &mut self.reader else { return Ok(None) };
        while self.position < to {
            let read = reader.read(self.position, to, limit.records, limit.bytes);
            if let Err(lost @ ReadError::Lost { next, .. }) = &read {
                if *next > to {
                    return Ok(None);
                }
                // Whoever repaired the log has accepted it; results go on without these records.
                tracing::warn!(input = self.name, "{lost}");
                self.position = *next;
                continue;
            }
            match read.map_err(|e| Failure::Read(format!("input {}: {e}", self.name)))? {
                TopicRead::Records(batch) => return Ok(Some(batch)),
                TopicRead::Swap { next, .. } if next <= to => self.position = next,
                TopicRead::Swap { .. } | TopicRead::End => return Ok(None),
            }
        }
        Ok(None)
    }

    fn fill(&mut self, to: Offset, limit: BatchLimit) -> Result<(), Failure> {
        if self.buffer.is_none() {
            self.buffer = self.read(to, limit)?;
        }
        Ok(())
    }

    /// The timestamp of the next buffered record.
    fn head(&self) -> Option<i64> {
        self.buffer.as_ref().map(|b| b.records.timestamps[0])
    }

    /// Takes the first `count` buffered records.
    fn take(&mut self, count: usize) -> Option<Batch> {
        let buffer = self.buffer.take()?;
        let taken = buffer.slice(0, count);
        if count < buffer.len() {
            self.buffer = Some(buffer.slice(count, buffer.len() - count));
        }
        self.position = taken.next_offset().unwrap_or(self.position);
        Some(taken)
    }
}

/// The journal of the generation that is followed, read forward.
struct Journal {
    log: LogId,
    reader: PartitionReader,
    partition: Arc<Partition>,
    next: Offset,
    runs: VecDeque<(u32, u32, u64, u64, u32)>,
}

impl Journal {
    /// The next run that is not wholly behind `positions`.
    fn run(&mut self, inputs: &[InputReader]) -> Result<Option<(usize, Offset)>, Failure> {
        loop {
            while let Some((input, _, _, next, _)) = self.runs.front() {
                let (input, next) = (*input as usize, Offset(*next));
                if inputs[input].position < next {
                    return Ok(Some((input, next)));
                }
                self.runs.pop_front();
            }
            let end = self.partition.durable_offset();
            let read = self.reader.read(self.next, end, 256, 1 << 20);
            if let Err(lost @ ReadError::Lost { next, .. }) = &read {
                if *next > end {
                    return Ok(None);
                }
                // No journal covers what was taken there: the next run takes its input from where it is.
                tracing::warn!(journal = %self.log, "{lost}");
                self.next = *next;
                continue;
            }
            let Some(batch) = read.map_err(|e| Failure::Read(format!("journal: {e}")))? else {
                return Ok(None);
            };
            self.next = batch.next_offset().unwrap_or(self.next);
            for value in batch.records.values.iter().flatten() {
                let entry: JournalEntry = serde_json::from_slice(value)
                    .map_err(|e| Failure::Read(format!("journal log {}: {e}", self.log)))?;
                self.runs.extend(entry.runs);
            }
        }
    }
}

/// How far a source may read, and whose order it takes.
pub struct Bound<'a> {
    /// The next offset of each input that may not be read.
    pub to: &'a [Offset],
    /// The journal of the generation that is followed.
    pub journal: Option<LogId>,
}

/// The inputs of a task.
pub struct Source {
    partition: PartitionId,
    inputs: Vec<InputReader>,
    journal: Option<Journal>,
}

impl Source {
    /// The inputs of `spec`, at `positions`; `ahead` reads blocks of history ahead.
    pub fn new(spec: &TaskSpec, positions: &[Offset], ahead: Option<&Executor>) -> Self {
        // Sources of inputs that are outputs of deployments are never seen by a plugin.
        let values = !spec.plugin.description().ignores_values;
        let wanted = Wanted { values, sources: false };
        let inputs = spec.inputs.iter().zip(positions).map(|(topic, position)| InputReader {
            name: topic.state().name.to_string(),
            reader: topic
                .partition(spec.partition)
                .map(|p| p.reader().read_ahead(ahead.cloned()).only(wanted)),
            position: *position,
            buffer: None,
        });
        Self { partition: spec.partition, inputs: inputs.collect(), journal: None }
    }

    /// Lets go of the blocks of files that were read: a task with nothing to read holds none.
    pub fn rest(&mut self) {
        let readers = self.inputs.iter_mut().filter_map(|input| input.reader.as_mut());
        // Whoever follows the newest records has read no file, and leaves the memory to those that do.
        if readers.fold(false, |held, reader| reader.rest() | held) {
            release_memory();
        }
    }

    /// The next offset to be taken from each input.
    pub fn positions(&self) -> Vec<Offset> {
        self.inputs.iter().map(|i| i.position).collect()
    }

    /// The next batch below the bound; `None` when there is nothing now. Positions may move past the
    /// marker of a swap without a batch.
    ///
    /// # Errors
    /// When an input or the journal cannot be read.
    pub fn next(
        &mut self,
        log: &Log,
        bound: &Bound<'_>,
        limit: BatchLimit,
    ) -> Result<Option<(Batch, Vec<Run>)>, Failure> {
        if let [input] = self.inputs.as_mut_slice() {
            let Some(batch) = input.read(bound.to[0], limit)? else { return Ok(None) };
            input.position = batch.next_offset().unwrap_or(input.position);
            let run = Run { input: 0, partition: self.partition.0, count: batch.len() as u32 };
            return Ok(Some((batch, vec![run])));
        }
        self.open_journal(log, bound.journal);
        let mut taken = Taken::default();
        while taken.records < limit.records && taken.bytes < limit.bytes {
            let Some((input, count)) = self.choose(bound, limit, limit.records - taken.records)?
            else {
                break;
            };
            let Some(batch) = self.inputs[input].take(count) else { break };
            taken.add(input, self.partition, batch);
        }
        Ok(taken.finish())
    }

    fn open_journal(&mut self, log: &Log, id: Option<LogId>) {
        if self.journal.as_ref().map(|j| j.log) == id {
            return;
        }
        self.journal = id.and_then(|id| {
            let partition = log.partition(id, self.partition)?;
            let reader = partition.reader();
            let (next, runs) = (partition.log_start_offset(), VecDeque::new());
            Some(Journal { log: id, reader, partition, next, runs })
        });
    }

    /// From which input the next records come, and how many, at most `room`.
    fn choose(
        &mut self,
        bound: &Bound<'_>,
        limit: BatchLimit,
        room: usize,
    ) -> Result<Option<(usize, usize)>, Failure> {
        if let Some(journal) = &mut self.journal
            && let Some((input, next)) = journal.run(&self.inputs)?
        {
            let input_reader = &mut self.inputs[input];
            input_reader.fill(bound.to[input], limit)?;
            let Some(buffer) = &input_reader.buffer else { return Ok(None) };
            let count = buffer.before_offset(next).len().min(room);
            return Ok((count > 0).then_some((input, count)));
        }
        for (input, to) in self.inputs.iter_mut().zip(bound.to) {
            input.fill(*to, limit)?;
        }
        let heads = || self.inputs.iter().enumerate().filter_map(|(i, r)| Some((r.head()?, i)));
        let Some((_, chosen)) = heads().min() else { return Ok(None) };
        let rival = heads().filter(|(_, i)| *i != chosen).min();
        let count = self.inputs[chosen].buffer.as_ref().map_or(0, |buffer| {
            let times = &buffer.records.timestamps;
            let before = |time: i64| rival.is_none_or(|rival| (time, chosen) < rival);
            times.iter().take_while(|t| before(**t)).count()
        });
        Ok(Some((chosen, count.clamp(1, room))))
    }
}

/// A batch being put together from several inputs.
#[derive(Default)]
struct Taken {
    parts: Vec<Batch>,
    runs: Vec<Run>,
    records: usize,
    bytes: usize,
}

impl Taken {
    fn add(&mut self, input: usize, partition: PartitionId, batch: Batch) {
        let (input, count) = (input as u32, batch.len() as u32);
        self.records += batch.len();
        self.bytes += batch.records.size_bytes();
        match self.runs.last_mut() {
            Some(run) if run.input == input => run.count += count,
            _ => self.runs.push(Run { input, partition: partition.0, count }),
        }
        self.parts.push(batch);
    }

    fn finish(self) -> Option<(Batch, Vec<Run>)> {
        Some((concat_batches(&self.parts)?, self.runs))
    }
}

/// A slice of an input keeps the runs that it covers.
pub fn slice_input(input: &Input, start: usize, len: usize) -> Input {
    let (mut skip, mut left) = (start as u32, len as u32);
    let mut runs = Vec::new();
    for run in &input.runs {
        let count = run.count.saturating_sub(skip).min(left);
        skip = skip.saturating_sub(run.count);
        left -= count;
        if count > 0 {
            runs.push(Run { count, ..*run });
        }
    }
    Input { batch: input.batch.slice(start, len), runs, ..input.clone() }
}

/// The values of the records of `input` at `rows`, read from its topics one by one.
///
/// # Errors
/// When one cannot be read.
pub fn read_values(
    topics: &[Arc<Topic>],
    input: &Input,
    rows: &[u32],
) -> Result<BinaryArray, Failure> {
    let inputs = of_runs(&input.runs, rows, |run| run.input);
    let partitions = of_runs(&input.runs, rows, |run| run.partition);
    let (mut values, mut readers) = (BinaryBuilder::new(), BTreeMap::new());
    for ((row, index), partition) in rows.iter().zip(inputs).zip(partitions) {
        let (topic, offset) = (&topics[index as usize], input.batch.offsets[*row as usize]);
        let failed = |why: &dyn Display| {
            let name = &topic.state().name;
            Failure::Read(format!("input {name}, offset {offset} of partition {partition}: {why}"))
        };
        let id = PartitionId(partition);
        // A reader keeps the block of the records that follow.
        let reader = readers
            .entry((index, partition))
            .or_insert_with(|| topic.partition(id).map(|p| p.reader()));
        let reader = reader.as_mut().ok_or_else(|| failed(&"there is no such partition"))?;
        let read = reader.read(Offset(offset), Offset(offset + 1), 1, 1);
        match read.map_err(|e| failed(&e))? {
            TopicRead::Records(batch) => {
                values.append_option(batch.records.values.iter().next().flatten())
            }
            TopicRead::Swap { .. } | TopicRead::End => {
                return Err(failed(&"there is no such record"));
            }
        }
    }
    Ok(values.finish())
}

/// The first record that `input` has of each input of the task.
pub fn first_offsets(input: &Input) -> BTreeMap<usize, Offset> {
    let mut firsts = BTreeMap::new();
    let mut at = 0;
    for run in &input.runs {
        firsts.entry(run.input as usize).or_insert(Offset(input.batch.offsets[at]));
        at += run.count as usize;
    }
    firsts
}
