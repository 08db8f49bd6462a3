//! What a commit is: the atomic unit of everything that changes in the host.
//!
//! **Invariant:** a commit is taken whole or not at all, and a refused one leaves no trace.

use serde::{Deserialize, Serialize};

use super::direct::SealedSegment;
use super::topics::TopicState;
use crate::types::{LogId, Offset, PartitionId, Records, TopicId, TopicName};

/// What a physical log holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogKind {
    /// What producers appended.
    Records,
    /// What a generation made; every record says from what.
    Outputs,
    /// Changes of state stores.
    Changelog,
    /// What a generation did, for those that follow it.
    Journal,
}

/// A physical log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSpec {
    /// From [`super::Log::allocate_id`]; never used again.
    pub id: LogId,
    /// What it holds.
    pub kind: LogKind,
    /// Number of partitions, fixed.
    pub partitions: u32,
    /// Whose it is, for people who look.
    pub owner: String,
}

/// A condition on a metadata key: its value must be these bytes when the commit is applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// The key.
    pub key: Vec<u8>,
    /// Its value; `None` means that it must not be there.
    pub expected: Option<Vec<u8>>,
}

/// Records for the end of a partition.
#[derive(Debug, Clone, PartialEq)]
pub struct Append {
    /// The log.
    pub log: LogId,
    /// Its partition.
    pub partition: PartitionId,
    /// What to append; offsets follow each other.
    pub records: Records,
}

/// A change of a topic.
#[derive(Debug, Clone, PartialEq)]
pub enum TopicChange {
    /// A new topic under a free name; its version is 1.
    Create(TopicState),
    /// A new state; its version is one more than the current one, or the commit is refused.
    Put(TopicState),
    /// Frees the name. The logs it mounts go by [`Commit::deletes`].
    Delete(TopicId),
}

/// Changes that become durable and visible together.
#[derive(Debug, Default)]
pub struct Commit {
    /// Conditions; one that does not hold refuses the commit as fenced.
    pub guards: Vec<Guard>,
    /// Partitions that must end at these offsets; one that has grown refuses the commit as fenced.
    pub ends: Vec<(LogId, PartitionId, Offset)>,
    /// Logs to create; the same commit may append to them.
    pub creates: Vec<LogSpec>,
    /// Logs to delete with all their records.
    pub deletes: Vec<LogId>,
    /// Records to append.
    pub appends: Vec<Append>,
    /// Segment files to make visible.
    pub segments: Vec<SealedSegment>,
    /// New starts of partitions: records before them go.
    pub truncates: Vec<(LogId, PartitionId, Offset)>,
    /// Topics to create, change or delete.
    pub topics: Vec<TopicChange>,
    /// Keys of the floors above, to set or to remove.
    pub metadata: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Commit {
    /// Whether it changes more than records and positions: logs, topics, deployments, plugins.
    pub(super) fn changes_structure(&self) -> bool {
        let named = |key: &[u8]| matches!(key.first(), Some(b'd' | b'w'));
        !self.creates.is_empty()
            || !self.deletes.is_empty()
            || !self.topics.is_empty()
            || self.metadata.iter().any(|(key, _)| named(key))
    }

    /// The bytes of records and metadata: what the committer's limit counts.
    pub fn size_bytes(&self) -> usize {
        let records: usize = self.appends.iter().map(|a| a.records.size_bytes()).sum();
        let value = |v: &Option<Vec<u8>>| v.as_ref().map_or(0, Vec::len);
        records + self.metadata.iter().map(|(k, v)| k.len() + value(v)).sum::<usize>()
    }
}

/// What became of a commit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Committed {
    /// First offset and next offset of each append, in the order of [`Commit::appends`].
    pub appended: Vec<(Offset, Offset)>,
}

/// Why a commit was refused. Nothing of it was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// A guard did not hold: someone else has moved on.
    #[error(
        "commit fenced: key \"{key}\" has another value than the committer expected; stop, and read the current state again"
    )]
    Fenced {
        /// The key of the guard, escaped.
        key: String,
    },
    /// A topic changed meanwhile.
    #[error(
        "topic {topic} was changed by someone else (it is at version {current}); read it again and decide anew"
    )]
    Conflict {
        /// Its name.
        topic: TopicName,
        /// Its version.
        current: u64,
    },
    /// The name of a new topic is in use.
    #[error("topic {topic} exists already; delete it first or choose another name")]
    NameTaken {
        /// The name.
        topic: TopicName,
    },
    /// There is no such partition.
    #[error("log {log} has no partition {partition}; it may have been deleted")]
    UnknownPartition {
        /// The log.
        log: LogId,
        /// The partition.
        partition: PartitionId,
    },
    /// There is no such topic.
    #[error("there is no topic with id {topic}; it may have been deleted")]
    UnknownTopic {
        /// The topic.
        topic: TopicId,
    },
    /// The caller asked for something that makes no sense.
    #[error("commit refused: {reason}")]
    Invalid {
        /// What is wrong.
        reason: String,
    },
    /// The disk is nearly full.
    #[error(
        "disk nearly full: {free_bytes} bytes are free, this may take {takes_bytes} with what is still to be written for others, and {min_free_bytes} must stay free; make space or lower storage.min_free_bytes"
    )]
    DiskFull {
        /// Free bytes.
        free_bytes: u64,
        /// What the commit may take of them.
        takes_bytes: u64,
        /// The limit.
        min_free_bytes: u64,
    },
    /// What the commit depends on cannot be read. The next one may be.
    #[error(
        "commit refused, because it depends on what cannot be read: {reason}; nothing of it was written"
    )]
    Unread {
        /// Why.
        reason: String,
    },
    /// Storage failed, or the log is closed. Final.
    #[error("the log has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: String,
    },
}
