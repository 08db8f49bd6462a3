//! What a task has made and not yet committed, and the two ways it gets there.
//!
//! Live work goes through the head of the log. A generation that has much history to replay writes
//! its outputs and state changes to files directly, and its commits only name them: history is never
//! written twice. [`CommitMode`] moves a whole generation from files to the head, once, when all its
//! tasks are near the end: no log partition ever holds a file above a record of the head.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Weak};

use arrow_array::{Array, BinaryArray};
use arrow_buffer::ScalarBuffer;
use serde::Serialize;

use super::{OutputSpec, TaskShared};
use crate::plugin::{Input, OutputColumns, Run};
use crate::threads::Mutex;
use crate::types::{
    GenerationNumber, Headers, Offset, PartitionId, Records, Sources, partition_of_key,
    take_column, take_headers, take_records,
};

/// Outputs since the last commit, by lane.
#[derive(Debug, Default)]
pub struct Pending {
    lanes: BTreeMap<(usize, u32), Vec<Records>>,
    /// Bytes of the records in `lanes`.
    pub bytes: usize,
    /// What the journal will say of this commit.
    pub journal: JournalEntry,
    /// Whether positions moved, with or without records.
    pub moved: bool,
}

/// What a commit's journal record says, as JSON: enough to take the same inputs in the same order,
/// cut the same way.
#[derive(Debug, Default, Clone, PartialEq, Serialize, serde::Deserialize)]
pub struct JournalEntry {
    /// The next offset of each input after this commit.
    pub next: Vec<Offset>,
    /// Runs of input records in the order they were taken: input, partition, first offset, next
    /// offset, count.
    pub runs: Vec<(u32, u32, u64, u64, u32)>,
    /// Records of each batch, in order.
    pub cuts: Vec<u32>,
    /// Indexes into `cuts`: batches before which an instance was started.
    pub starts: Vec<u32>,
    /// Records found to be poison: input, partition, offset.
    pub verdicts: Vec<(u32, u32, u64)>,
}

impl JournalEntry {
    /// Notes a batch that was read.
    pub fn took(&mut self, input: &Input) {
        let mut at = 0;
        for run in &input.runs {
            let count = run.count as usize;
            let (first, last) = (input.batch.offsets[at], input.batch.offsets[at + count - 1]);
            at += count;
            match self.runs.last_mut() {
                Some((i, p, _, next, n)) if (*i, *p) == (run.input, run.partition) => {
                    *next = last + 1;
                    *n += run.count;
                }
                _ => self.runs.push((run.input, run.partition, first, last + 1, run.count)),
            }
        }
        self.cuts.push(input.batch.len() as u32);
    }
}

/// What `of` says of the run of each record at `rows`, which never fall.
pub fn of_runs<T: Copy>(runs: &[Run], rows: &[u32], of: impl Fn(&Run) -> T) -> Vec<T> {
    if let [run] = runs {
        return vec![of(run); rows.len()];
    }
    let (mut picked, mut end) = (Vec::with_capacity(rows.len()), 0);
    for run in runs {
        end += run.count;
        let more = rows[picked.len()..].partition_point(|row| *row < end);
        picked.resize(picked.len() + more, of(run));
    }
    picked
}

impl Pending {
    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        !self.moved
    }

    /// Adds the records that a call gave to one output.
    pub fn add_output(
        &mut self,
        generation: GenerationNumber,
        output: OutputSpec,
        input: &Input,
        columns: OutputColumns,
    ) {
        if output.log.is_none() || columns.sources.is_empty() {
            return;
        }
        let slot = columns.output;
        let (records, partitions) = to_records(generation, output, input, columns);
        self.add(slot, output.partitions, records, partitions);
    }

    /// Adds records to lanes: all to partition 0 of a topic that has one, else by `partitions`.
    fn add(&mut self, slot: usize, count: u32, records: Records, partitions: Vec<u32>) {
        if count == 1 || partitions.iter().all(|p| *p == partitions[0]) {
            let partition = partitions.first().copied().unwrap_or(0);
            return self.add_lane(slot, partition, records);
        }
        let mut rows = vec![Vec::new(); count as usize];
        for (row, partition) in partitions.iter().enumerate() {
            rows[*partition as usize].push(row as u32);
        }
        for (partition, rows) in rows.iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
            self.add_lane(slot, partition as u32, take_records(&records, rows));
        }
    }

    fn add_lane(&mut self, slot: usize, partition: u32, records: Records) {
        self.bytes += records.size_bytes();
        self.lanes.entry((slot, partition)).or_default().push(records);
    }

    /// Adds dead letters: the records of `input` at `rows`, whose values are `values`, with the reason and
    /// place in headers.
    pub fn add_dead_letters(
        &mut self,
        generation: GenerationNumber,
        slot: usize,
        output: OutputSpec,
        input: &Input,
        rows: &[(u32, String)],
        values: BinaryArray,
    ) {
        let indexes: Vec<u32> = rows.iter().map(|(row, _)| *row).collect();
        let columns = OutputColumns {
            output: slot,
            keys: take_column(&input.batch.records.keys, &indexes),
            values,
            timestamps: None,
            partitions: None,
            headers: Some(dead_letter_headers(input, rows)),
            sources: indexes,
        };
        let (records, _) = to_records(generation, output, input, columns);
        let sources = records.sources.as_ref().map(|s| s.partitions.clone()).unwrap_or_default();
        let partitions = sources.iter().map(|p| p % output.partitions.max(1)).collect();
        self.add(slot, output.partitions, records, partitions);
    }

    /// Takes the lanes: for each (output, partition) its records in order.
    pub fn take_lanes(&mut self) -> BTreeMap<(usize, u32), Vec<Records>> {
        self.bytes = 0;
        std::mem::take(&mut self.lanes)
    }
}

/// The records of an output with provenance, and the partition of each (empty when there is one).
fn to_records(
    generation: GenerationNumber,
    output: OutputSpec,
    input: &Input,
    columns: OutputColumns,
) -> (Records, Vec<u32>) {
    let rows = &columns.sources;
    let batch = &input.batch;
    let inputs = of_runs(&input.runs, rows, |run| run.input);
    let from_partitions = of_runs(&input.runs, rows, |run| run.partition);
    let whole = rows.len() == batch.len() && rows.iter().enumerate().all(|(i, r)| i as u32 == *r);
    let (offsets, timestamps): (ScalarBuffer<u64>, ScalarBuffer<i64>) = if whole {
        (batch.offsets.clone(), batch.records.timestamps.clone())
    } else {
        (
            rows.iter().map(|r| batch.offsets[*r as usize]).collect(),
            rows.iter().map(|r| batch.records.timestamps[*r as usize]).collect(),
        )
    };
    let mut ordinals = vec![0u32; rows.len()];
    if !whole {
        for i in 1..rows.len() {
            if rows[i] == rows[i - 1] {
                ordinals[i] = ordinals[i - 1] + 1;
            }
        }
    }
    let partitions = match columns.partitions {
        _ if output.partitions == 1 => Vec::new(),
        chosen => (0..columns.keys.len())
            .map(|i| match chosen.as_ref().and_then(|c| c[i]) {
                Some(partition) => partition,
                None if columns.keys.is_valid(i) => {
                    partition_of_key(columns.keys.value(i), output.partitions).0
                }
                None => from_partitions[i] % output.partitions,
            })
            .collect(),
    };
    let records = Records {
        timestamps: columns.timestamps.map_or(timestamps, ScalarBuffer::from),
        keys: columns.keys,
        values: columns.values,
        headers: columns.headers,
        sources: Some(Sources {
            generation,
            inputs: inputs.into(),
            partitions: from_partitions.into(),
            offsets,
            ordinals: ordinals.into(),
        }),
    };
    (records, partitions)
}

/// A dead letter keeps its record's headers and gains `anabranch-reason`, `anabranch-input`,
/// `anabranch-partition` and `anabranch-offset`.
fn dead_letter_headers(input: &Input, rows: &[(u32, String)]) -> Headers {
    let none = Headers::none(input.batch.len());
    let headers = input.batch.records.headers.as_ref().unwrap_or(&none);
    let indexes: Vec<u32> = rows.iter().map(|(row, _)| *row).collect();
    let inputs = of_runs(&input.runs, &indexes, |run| run.input);
    let partitions = of_runs(&input.runs, &indexes, |run| run.partition);
    take_headers(headers, &indexes, |i| {
        let (row, reason) = &rows[i];
        let row = *row as usize;
        vec![
            ("anabranch-reason".to_owned(), reason.clone()),
            ("anabranch-input".to_owned(), inputs[i].to_string()),
            ("anabranch-partition".to_owned(), partitions[i].to_string()),
            ("anabranch-offset".to_owned(), input.batch.offsets[row].to_string()),
        ]
    })
}

/// Changelog columns as records.
pub fn changelog_records(keys: BinaryArray, values: BinaryArray, timestamp_ms: i64) -> Records {
    let timestamps = vec![timestamp_ms; keys.len()].into();
    Records { timestamps, keys, values, headers: None, sources: None }
}

/// How a generation's next commit goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To files; say [`CommitMode::end_files`] when it is done.
    Files,
    /// Through the head.
    Head,
    /// Not now: others still write files. The task is woken when they are done.
    Wait,
}

#[derive(Debug)]
struct ModeState {
    files: bool,
    writing: usize,
    near: HashSet<PartitionId>,
    waiting: Vec<Weak<TaskShared>>,
}

/// Whether a generation's commits go to files or through the head: for all its tasks alike.
#[derive(Debug)]
pub struct CommitMode {
    tasks: usize,
    state: Mutex<ModeState>,
}

impl std::fmt::Debug for TaskShared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "task {}/{}", self.generation, self.partition)
    }
}

impl CommitMode {
    /// For a generation of `tasks` tasks; `files` unless one of them has committed through the head.
    pub fn new(files: bool, tasks: usize) -> Arc<Self> {
        let (near, waiting) = (HashSet::new(), Vec::new());
        Arc::new(Self { tasks, state: Mutex::new(ModeState { files, writing: 0, near, waiting }) })
    }

    /// The tasks of the generation.
    pub fn tasks(&self) -> usize {
        self.tasks
    }

    /// Which way the commit of `task` goes; `near_end` once little is left for it to read and to commit.
    pub fn begin(&self, task: &Arc<TaskShared>, near_end: bool) -> Way {
        let mut state = self.state.lock();
        if !state.files {
            return Way::Head;
        }
        if near_end {
            state.near.insert(task.partition);
        }
        if state.near.len() < self.tasks {
            state.writing += 1;
            return Way::Files;
        }
        if state.writing > 0 {
            state.waiting.push(Arc::downgrade(task));
            return Way::Wait;
        }
        state.files = false;
        Way::Head
    }

    /// Notes that a task has come near the end of history without anything to commit.
    pub fn note_near(&self, task: &TaskShared) {
        let mut state = self.state.lock();
        if state.files {
            state.near.insert(task.partition);
        }
    }

    /// Notes that a commit to files is done, well or not.
    pub fn end_files(&self) {
        let mut state = self.state.lock();
        state.writing -= 1;
        if state.writing == 0 {
            for task in state.waiting.drain(..).filter_map(|t| t.upgrade()) {
                task.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_record_has_its_runs_input() {
        let runs = [(7, 2), (8, 0), (9, 1), (7, 3)].map(|(input, count)| Run {
            input,
            partition: 0,
            count,
        });
        for rows in [&[0, 1, 2, 3, 4, 5][..], &[0, 0, 2, 5, 5], &[1, 3], &[4], &[]] {
            let expected: Vec<u32> = rows.iter().map(|r| [7, 7, 9, 7, 7, 7][*r as usize]).collect();
            assert_eq!(of_runs(&runs, rows, |run| run.input), expected, "{rows:?}");
        }
        assert_eq!(of_runs(&runs[2..3], &[0, 0], |run| run.input), [9, 9]);
    }
}
