//! The log: immutable, replayable records in topics and partitions, and the one way to commit.
//!
//! A physical log ([`LogSpec`]) has partitions of records. A topic is a name, a list of mounts of
//! physical logs ([`TopicState`]). Everything that changes, changes in a [`Commit`]: all of it or
//! nothing, durable before anyone is told.
//!
//! **Invariant:** nobody sees a record at or beyond its partition's durable offset; offsets are
//! given out once, rise strictly, and may have gaps. This module does not know what generations,
//! stores or plugins are: what floors above commit as metadata is opaque here.

mod ahead;
mod codec;
mod columns;
mod commit;
mod committer;
mod direct;
mod files;
#[doc(hidden)]
pub mod fuzz;
mod handle;
mod image;
mod keys;
mod lost;
mod measure;
mod partition;
mod reader;
mod recovery;
mod repair;
mod sealer;
mod segment;
mod signal;
mod snapshot;
#[cfg(test)]
mod tests;
mod topics;

pub use ahead::Executor;
pub use columns::{Wanted, schema as segment_schema, to_columns as segment_columns};
pub use commit::{Append, Commit, CommitError, Committed, Guard, LogKind, LogSpec, TopicChange};
pub use direct::{Reservation, SealedSegment, SegmentError, SegmentWriter};
pub use files::{FileFault, Files};
pub use handle::{Error, Log, LogConfig, LogStats};
pub use image::{Image, LogPartition, TopicEnd};
pub use partition::Partition;
pub use reader::{PartitionReader, ReadError};
pub use repair::{Loss, NewHead, Repair, restored};
pub use signal::Subscription;
pub use snapshot::LogSnapshot;
pub use topics::{
    Mount, Retention, Topic, TopicFormat, TopicPartition, TopicRead, TopicReader, TopicState,
    Topics,
};
