//! What goes into a call and what comes out of it: the types that `task` and the sandbox exchange.
//!
//! **Invariant:** a [`CallOutput`] is checked: sources are in range and never fall, columns agree in
//! length, names are resolved to declared outputs. What depends on a topic (its partition count) is
//! left to the caller.

use arrow_array::BinaryArray;

use super::imports::reason;
use crate::types::{Batch, Headers, column_bytes};

/// Consecutive records of a batch that come from one input partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Index into the deployment's inputs.
    pub input: u32,
    /// Partition of that input.
    pub partition: u32,
    /// Number of records.
    pub count: u32,
}

/// What one call works on.
#[derive(Debug, Clone)]
pub struct Input {
    /// The records.
    pub batch: Batch,
    /// Where they come from, in order; the counts add up to the batch's length.
    pub runs: Vec<Run>,
    /// The highest timestamp the task has seen before this batch, in milliseconds.
    pub stream_time_ms: Option<i64>,
    /// The task's seed, the same in all its calls.
    pub seed: u64,
}

/// Records that a call gave to one output.
#[derive(Debug, Clone)]
pub struct OutputColumns {
    /// Index into the description's outputs.
    pub output: usize,
    /// For each record the index of its input record in the batch. Never falls.
    pub sources: Vec<u32>,
    /// Keys; null where a record has none.
    pub keys: BinaryArray,
    /// Values; null is a tombstone.
    pub values: BinaryArray,
    /// Timestamps in milliseconds; `None`: those of the sources.
    pub timestamps: Option<Vec<i64>>,
    /// Partitions as the plugin chose them, `None` where it left the choice to the host. Not checked
    /// against the topic.
    pub partitions: Option<Vec<Option<u32>>>,
    /// Headers; `None` when no record has any.
    pub headers: Option<Headers>,
}

impl OutputColumns {
    /// The number of records.
    pub fn len(&self) -> usize {
        self.sources.len()
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }
}

/// How much a log line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For whoever writes the plugin.
    Debug,
    /// Worth knowing.
    Info,
    /// Perhaps wrong.
    Warn,
    /// Wrong.
    Error,
}

/// What a call did to one metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Metric {
    /// Added to a counter.
    Add(u64),
    /// Set a gauge.
    Set(f64),
}

/// A metric's name, `[a-z][a-z0-9_]{0,63}`, and what the call did to it in sum.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricChange {
    /// The name.
    pub name: String,
    /// The change.
    pub change: Metric,
}

/// What a successful call gives back, checked.
#[derive(Debug, Default)]
pub struct CallOutput {
    /// Records for each output that got any, at most one entry an output.
    pub outputs: Vec<OutputColumns>,
    /// Input records that the plugin refused, by rising index, and why.
    pub rejections: Vec<(u32, String)>,
    /// Lines for the operator.
    pub logs: Vec<(Level, String)>,
    /// Bytes of log lines beyond the limit, dropped.
    pub dropped_log_bytes: u64,
    /// Changes to metrics, one for each name.
    pub metrics: Vec<MetricChange>,
    /// Fuel the call cost, host calls included.
    pub fuel_used: u64,
}

/// Bytes that a commit has for each record beside its key and value: time, source, position.
const RECORD_BYTES: usize = 40;
/// Bytes that a commit has for a dead letter beside its record and reason: the headers that say where it
/// comes from.
const DEAD_LETTER_BYTES: usize = 200;

impl CallOutput {
    /// What a commit has of it, about.
    pub fn size_bytes(&self) -> usize {
        let outputs = self.outputs.iter().map(|columns| {
            let headers = columns.headers.as_ref().map_or(0, Headers::size_bytes);
            let cells = column_bytes(&columns.keys) + column_bytes(&columns.values);
            cells + headers + RECORD_BYTES * columns.len()
        });
        let rejections = self.rejections.iter().map(|(_, why)| DEAD_LETTER_BYTES + why.len());
        outputs.sum::<usize>() + rejections.sum::<usize>()
    }
}

/// Why state could not be read or written: not the guest's fault, passed on as it is.
pub type AccessError = Box<dyn std::error::Error + Send + Sync>;

/// Entries of a scan in key order.
#[derive(Debug)]
pub struct Page {
    /// The keys, none null.
    pub keys: BinaryArray,
    /// The values, none null.
    pub values: BinaryArray,
    /// The key to go on from; `None` at the end of the range.
    pub next: Option<Vec<u8>>,
}

/// Keyed stores as one call sees them: its own writes included, taking effect only if it succeeds.
/// A store is an index into the description's stores. Keys and values given here are never null.
pub trait StateAccess: Send {
    /// The value of each key; null where there is none. Stops after the value that brings the sum
    /// beyond `limit_bytes` (below 2^30), so that a guest cannot make the host hold more by asking
    /// for one large value many times: fewer values than keys mean that the limit was reached.
    fn get_many(
        &mut self,
        store: u32,
        keys: &BinaryArray,
        limit_bytes: u32,
    ) -> Result<BinaryArray, AccessError>;

    /// Writes a value for each key, in order: the last one counts.
    fn put_many(
        &mut self,
        store: u32,
        keys: &BinaryArray,
        values: &BinaryArray,
    ) -> Result<(), AccessError>;

    /// Deletes each key; those that do not exist are ignored.
    fn delete_many(&mut self, store: u32, keys: &BinaryArray) -> Result<(), AccessError>;

    /// Numbers the keys of a batch's records, for a store whose keys are `text`, or else bytes: for each
    /// record the number of its key, 2^32 - 1 where it cannot be one of the store, and the value of each
    /// number, null where there is none. Stops as [`get_many`](Self::get_many) does.
    fn get_own(
        &mut self,
        store: u32,
        keys: &BinaryArray,
        text: bool,
        limit_bytes: u32,
    ) -> Result<(Vec<u32>, BinaryArray), AccessError>;

    /// Writes values of numbers that the last [`get_own`](Self::get_own) of the store gave, in order; a
    /// null one deletes.
    fn put_own(
        &mut self,
        store: u32,
        entries: Vec<u32>,
        values: BinaryArray,
    ) -> Result<(), AccessError>;

    /// Entries with `start <= key < end` in the order of their bytes. The page ends at `limit`
    /// entries (at least 1) or with the entry that brings it to `limit_bytes` bytes or more.
    fn scan(
        &mut self,
        store: u32,
        start: &[u8],
        end: Option<&[u8]>,
        limit: u32,
        limit_bytes: u32,
    ) -> Result<Page, AccessError>;
}

/// What a guest did wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It trapped.
    #[error("it trapped: {reason}")]
    Trap {
        /// The trap, and the last error the guest logged, if any.
        reason: String,
    },
    /// It exceeded a budget.
    #[error("it exceeded its {what} of {limit} (limit {name})")]
    Limit {
        /// What was exceeded, in words.
        what: &'static str,
        /// The limit's name.
        name: &'static str,
        /// The budget.
        limit: u64,
    },
    /// What it returned, or handed to an import, breaks the contract.
    #[error("it broke the contract: {0}")]
    Invalid(String),
    /// It returned an error.
    #[error("it returned an error: {0}")]
    Returned(String),
}

/// Why a call failed, by what the caller does next. The instance is to be dropped in any case.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The guest is at fault: halve the batch; a record alone, in a fresh instance, under
    /// [`Limits::verdict`](super::Limits::verdict), is poison.
    #[error("the plugin failed: {0}")]
    Guest(Fault),
    /// The wall clock ran out before the fuel did. Stop the task: no record is to blame.
    #[error(
        "the plugin did not return within {deadline_ms} ms though it had fuel left (limit deadline_ms): \
         the machine is overloaded, or the deadline too short for fuel_per_call"
    )]
    Deadline {
        /// The deadline.
        deadline_ms: u64,
    },
    /// Nobody waits for it any more: its [`Cancel`](super::Cancel) says so.
    #[error("the plugin did not return, and its task is to end")]
    Cancelled,
    /// The host failed. Stop the task and try again later.
    #[error("the host could not serve a plugin's call: {0}")]
    Host(AccessError),
}

impl CallError {
    /// A breach of the contract; what a guest made is shown without what steers a terminal, and not at
    /// any length.
    pub(super) fn invalid(what: impl AsRef<str>) -> Self {
        Self::Guest(Fault::Invalid(reason(what.as_ref())))
    }

    pub(super) fn limit(what: &'static str, name: &'static str, limit: u64) -> Self {
        Self::Guest(Fault::Limit { what, name, limit })
    }

    /// Whether a record, rather than the machine, is to blame.
    pub fn is_guest_fault(&self) -> bool {
        match self {
            Self::Guest(_) => true,
            Self::Deadline { .. } | Self::Cancelled | Self::Host(_) => false,
        }
    }
}
