//! The words that every floor shares: ids, positions, and records in columns.
//!
//! **Invariant:** nothing here does I/O, reads a clock or knows another module of this crate.

mod batch;
mod concat;
mod ids;
mod partitioner;
mod take;

pub use batch::{Batch, Headers, Records, RecordsBuilder, Sources, column_bytes};
pub use concat::{concat_batches, concat_records};
pub use ids::{
    BackupName, DeploymentId, DeploymentName, Digest, GenerationId, GenerationNumber, LogId,
    NameError, Offset, PartitionId, TopicId, TopicName,
};
pub use partitioner::partition_of_key;
pub use take::{take_column, take_headers, take_records};
