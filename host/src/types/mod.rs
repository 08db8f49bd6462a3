//! The words that every floor shares: ids, positions, and records in columns.
//!
//! **Invariant:** nothing here does I/O, reads a clock or knows another module of this crate.

mod batch;
mod ids;
mod partitioner;

pub use batch::{Batch, Headers, Records, RecordsBuilder, Sources, column_bytes, take_column};
pub use ids::{
    DeploymentId, DeploymentName, Digest, GenerationId, GenerationNumber, LogId, NameError, Offset,
    PartitionId, TopicId, TopicName,
};
pub use partitioner::partition_of_key;
