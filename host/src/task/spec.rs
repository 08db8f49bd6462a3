//! What a task is told when it is made, and what it needs around it.

use std::path::PathBuf;
use std::sync::Arc;

use super::StateOf;
use super::bulk::BulkThreads;
use super::pending::CommitMode;
use crate::clock::SharedClock;
use crate::config::Tasks;
use crate::log::{Log, Topic};
use crate::plugin::{CallOutput, Limits, Plugin};
use crate::storage::FileSystem;
use crate::types::{GenerationId, GenerationNumber, LogId, Offset, PartitionId};

/// One output of a generation: the physical log behind a declared output's topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputSpec {
    /// The log; `None` for an output that the deployment leaves unmapped, whose records are dropped.
    pub log: Option<LogId>,
    /// Its partitions.
    pub partitions: u32,
}

/// What becomes of a record that the plugin cannot process or refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Poison {
    /// To this output, with the reason.
    DeadLetter(OutputSpec),
    /// Counted and left out.
    Skip,
    /// The generation stops.
    Stop,
}

/// What one task runs: immutable, like its generation.
pub struct TaskSpec {
    /// The deployment's name, for metrics and messages.
    pub deployment: String,
    /// The generation.
    pub generation: GenerationId,
    /// The source partition, of every input that has it.
    pub partition: PartitionId,
    /// The topics to read, in the order of the plugin's input indexes.
    pub inputs: Vec<Arc<Topic>>,
    /// Where to begin in each input, in topic offsets.
    pub start: Vec<Offset>,
    /// By the plugin's index of its outputs.
    pub outputs: Vec<OutputSpec>,
    /// The policy.
    pub poison: Poison,
    /// Where state changes go.
    pub changelog: LogId,
    /// Where runs, cuts and instance starts of each commit are recorded.
    pub journal: LogId,
    /// The plugin.
    pub plugin: Arc<Plugin>,
    /// Its configuration.
    pub config: serde_json::Value,
    /// The limits of its calls.
    pub limits: Limits,
    /// The seed of its random numbers: the same for every generation of the deployment.
    pub seed: u64,
    /// Whether the generation's commits go to files or through the head.
    pub mode: Arc<CommitMode>,
}

impl TaskSpec {
    /// The task, as far as its state is concerned.
    pub fn state(&self) -> StateOf {
        let (generation, partition) = (self.generation, self.partition);
        StateOf { generation, partition, changelog: self.changelog }
    }

    /// The generation's number, as provenance records it.
    pub fn generation_number(&self) -> GenerationNumber {
        self.generation.number
    }
}

/// What all tasks of a host share.
pub struct Environment {
    /// The log.
    pub log: Log,
    /// Time.
    pub clock: SharedClock,
    /// Limits of batches and commits.
    pub config: Tasks,
    /// Threads for bulk work.
    pub bulk: BulkThreads,
    /// Where checkpoints are written and read.
    pub file_system: Arc<dyn FileSystem>,
    /// The directory of checkpoints.
    pub checkpoint_dir: PathBuf,
    /// Who counts.
    pub observer: Arc<dyn Observer>,
}

/// Who counts what tasks do.
pub trait Observer: Send + Sync {
    /// A call of the plugin over `records` input records succeeded. Whether all that it said is kept:
    /// lines and metrics beyond the limits are not.
    fn called(&self, spec: &TaskSpec, records: usize, output: &CallOutput) -> bool;

    /// A record alone was too much for the plugin.
    fn poison(&self, spec: &TaskSpec, reason: &str);
}
