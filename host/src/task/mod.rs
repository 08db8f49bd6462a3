//! Tasks: consume a source partition, process it in a plugin, commit.
//!
//! The data path of a step, top to bottom: [`source`] reads a batch of the inputs, [`processor`] hands
//! it to the plugin and keeps what a successful call gave back, [`pending`] gathers outputs and state
//! changes, and [`Task`] sends them off as one commit with the next input offsets. [`workers`] decides
//! which task steps next.
//!
//! **Invariant:** outputs, state changes and input offsets of a task move in one commit or not at all;
//! a commit is refused unless the task's cursor is what this task last wrote.

mod account;
mod bulk;
mod checkpoint;
mod cursor;
mod lane;
mod outgoing;
mod pending;
mod processor;
mod shared;
mod source;
mod spec;
mod step;
mod workers;

pub use account::Apart;
pub use bulk::BulkThreads;
pub use checkpoint::{
    Manifest as CheckpointManifest, StateOf, about as about_checkpoint, checkpoint_files,
    checkpoint_prefix, quarantine_checkpoints, remove as remove_checkpoint,
};
pub use cursor::{Cursor, cursor_key, cursor_prefix};
pub use pending::CommitMode;
pub use shared::{Role, RunState, TaskShared};
pub use spec::{Environment, Observer, OutputSpec, Poison, TaskSpec};
pub use step::Task;
pub use workers::{Class, Handle, Step, Stepped, Workers};
