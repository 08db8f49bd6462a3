//! The log's part of a head, read from keys and values that no log has open: for tools.
//!
//! **Invariant:** what cannot be read is a fault with its key, and the rest is there.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;

use super::codec;
use super::commit::{LogKind, LogSpec};
use super::handle::PartitionRecord;
use super::keys;
use super::lost::Lost;
use super::segment::SegmentEntry;
use super::topics::TopicState;
use crate::storage::Entries;
use crate::types::{LogId, Offset, PartitionId, TopicId, TopicName};

/// A partition of a log.
pub type LogPartition = (LogId, PartitionId);

/// One partition in an [`Image`].
#[derive(Debug, Default)]
pub(super) struct PartitionImage {
    pub record: PartitionRecord,
    /// By first offset.
    pub segments: BTreeMap<Offset, SegmentEntry>,
    /// Appends of the head that are not sealed: first offset to next offset.
    pub runs: BTreeMap<Offset, Offset>,
    pub lost: BTreeMap<Offset, Lost>,
}

impl PartitionImage {
    /// Ranges that hold records, in the order of offsets: first, next, and whether it is a segment.
    pub(super) fn pieces(&self) -> Vec<(Offset, Offset, bool)> {
        let segments = self.segments.values().map(|s| (s.first, s.next, true));
        let runs = self.runs.iter().map(|(first, next)| (*first, *next, false));
        let mut pieces: Vec<_> = segments.chain(runs).collect();
        pieces.sort();
        pieces
    }

    /// The offset after its last record, or where it starts.
    pub(super) fn records_end(&self) -> Offset {
        let last = self.pieces().iter().map(|(_, next, _)| *next).max();
        self.record.log_start.max(self.record.head_start).max(last.unwrap_or_default())
    }

    /// The next offset that a host would give out.
    pub(super) fn end(&self) -> Offset {
        let lost = self.lost.values().map(|lost| lost.next).max();
        self.records_end().max(lost.unwrap_or_default())
    }
}

/// Where a topic ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicEnd {
    /// Its name.
    pub topic: TopicName,
    /// For each partition, the next offset after its last record.
    pub partitions: Vec<Offset>,
}

/// Logs, topics, manifest and appends of a head.
#[derive(Debug, Default)]
pub struct Image {
    pub(super) logs: BTreeMap<LogId, LogSpec>,
    pub(super) topics: BTreeMap<TopicId, TopicState>,
    pub(super) partitions: BTreeMap<LogPartition, PartitionImage>,
    /// The next id that was not given out.
    pub(super) next_id: u64,
    /// Keys whose values are not what the log writes, and why.
    pub faults: Vec<(Vec<u8>, String)>,
}

impl Image {
    /// Reads the log's keys; keys of the floors above are left alone.
    pub fn read(entries: &Entries) -> Self {
        let mut image = Self::default();
        let of = |kind: u8| entries.range(vec![kind]..vec![kind + 1]);
        for (key, value) in of(keys::LOGS) {
            if let Some(spec) = image.parse::<LogSpec>(key, value) {
                for p in (0..spec.partitions).map(PartitionId) {
                    image.partitions.insert((spec.id, p), PartitionImage::default());
                }
                image.logs.insert(spec.id, spec);
            }
        }
        for (key, value) in of(keys::TOPICS) {
            if let Some(state) = image.parse::<TopicState>(key, value) {
                image.topics.insert(state.id, state);
            }
        }
        for (key, value) in of(keys::PARTITIONS) {
            let record = image.parse::<PartitionRecord>(key, value);
            image.place(key, keys::parse_partition(key), |partition| {
                partition.record = record.unwrap_or_default();
            });
        }
        for (key, value) in of(keys::SEGMENTS) {
            let Some(entry) = image.parse::<SegmentEntry>(key, value) else { continue };
            image.place(key, split(key), |partition| {
                partition.segments.insert(entry.first, entry);
            });
        }
        for (key, value) in of(keys::LOST) {
            let Some(lost) = image.parse::<Lost>(key, value) else { continue };
            let first = keys::parse_positioned(key).map_or(Offset::ZERO, |(_, _, first)| first);
            image.place(key, split(key), |partition| {
                partition.lost.insert(first, lost);
            });
        }
        for (key, value) in of(keys::HEAD) {
            let Some((_, _, first)) = keys::parse_positioned(key) else {
                image.faults.push((key.clone(), "the key is cut off".to_owned()));
                continue;
            };
            let Some((records, _)) = codec::decode(value) else {
                image.faults.push((key.clone(), "it is not an append".to_owned()));
                continue;
            };
            let Some(next) = first.0.checked_add(records.len() as u64).map(Offset) else {
                image.faults.push((key.clone(), "it is beyond the last offset".to_owned()));
                continue;
            };
            // What was sealed, truncated, or belongs to no log is removed at the next start.
            if let Some(partition) = split(key).and_then(|id| image.partitions.get_mut(&id))
                && first >= partition.record.head_start
                && next > partition.record.log_start
            {
                partition.runs.insert(first, next);
            }
        }
        let next_id = entries.get(keys::NEXT_ID).map(|v| v.as_slice().try_into());
        match next_id {
            Some(Ok(bytes)) => image.next_id = u64::from_le_bytes(bytes),
            Some(Err(_)) => {
                image.faults.push((keys::NEXT_ID.to_vec(), "it is not a number".to_owned()));
            }
            None => image.next_id = 1,
        }
        image
    }

    fn parse<T: DeserializeOwned>(&mut self, key: &[u8], value: &[u8]) -> Option<T> {
        let parsed = serde_json::from_slice(value);
        parsed.map_err(|e| self.faults.push((key.to_vec(), e.to_string()))).ok()
    }

    fn place(
        &mut self,
        key: &[u8],
        id: Option<LogPartition>,
        put: impl FnOnce(&mut PartitionImage),
    ) {
        match id.map(|id| self.partitions.get_mut(&id)) {
            Some(Some(partition)) => put(partition),
            // A log that was deleted; its keys are removed at the next start.
            Some(None) => {}
            None => self.faults.push((key.to_vec(), "the key is cut off".to_owned())),
        }
    }

    /// What is wrong among logs, topics and manifest: places and problems.
    pub fn check(&self) -> Vec<(String, String)> {
        let mut faults = Vec::new();
        for ((log, p), partition) in &self.partitions {
            let pieces = partition.pieces();
            for pair in pieces.windows(2).filter(|pair| pair[1].0 < pair[0].1) {
                let (a, b) = (pair[0], pair[1]);
                faults.push((
                    self.name(*log, *p),
                    format!(
                        "offsets {} to {} are there twice: ranges {} to {} and {} to {} overlap",
                        b.0,
                        a.1.min(b.1),
                        a.0,
                        a.1,
                        b.0,
                        b.1
                    ),
                ));
            }
        }
        let mut names = BTreeSet::new();
        for topic in self.topics.values() {
            let place = format!("topic {}", topic.name);
            if !names.insert(&topic.name) {
                faults.push((place.clone(), "two topics have this name".to_owned()));
            }
            faults.extend(topic.fault().map(|fault| (place.clone(), fault)));
            for mount in topic.mounts.iter().filter(|mount| !mount.retired) {
                if self.partitions_of(mount.log).is_none_or(|n| n < topic.partitions) {
                    faults.push((
                        place.clone(),
                        format!("it mounts log {}, which is not there", mount.log),
                    ));
                }
            }
        }
        faults
    }

    /// What kind of log it is, if it is there.
    pub fn kind(&self, log: LogId) -> Option<LogKind> {
        self.logs.get(&log).map(|spec| spec.kind)
    }

    /// Number of partitions of a log, if it is there.
    pub fn partitions_of(&self, log: LogId) -> Option<u32> {
        self.logs.get(&log).map(|spec| spec.partitions)
    }

    /// Where a partition starts and ends, if it is there.
    pub fn bounds(&self, log: LogId, partition: PartitionId) -> Option<(Offset, Offset)> {
        let partition = self.partitions.get(&(log, partition))?;
        Some((partition.record.log_start, partition.end()))
    }

    /// A topic by name.
    pub fn topic(&self, name: &TopicName) -> Option<&TopicState> {
        self.topics.values().find(|topic| topic.name == *name)
    }

    /// All topics and where they end.
    pub fn topic_ends(&self) -> Vec<TopicEnd> {
        let end = |topic: &TopicState| {
            let mount = topic.mounts.last();
            let partitions = (0..topic.partitions as usize).map(|p| {
                let Some(mount) = mount else { return Offset::ZERO };
                let id = (mount.log, PartitionId(p as u32));
                let end =
                    self.partitions.get(&id).map_or(Offset::ZERO, PartitionImage::records_end);
                Offset(mount.base.get(p).map_or(0, |base| base.0).saturating_add(end.0))
            });
            TopicEnd { topic: topic.name.clone(), partitions: partitions.collect() }
        };
        self.topics.values().map(end).collect()
    }

    /// A partition in the words of an operator: its topic, or what the log is for.
    pub fn name(&self, log: LogId, partition: PartitionId) -> String {
        let mounts = |topic: &&TopicState| topic.mounts.iter().any(|mount| mount.log == log);
        match (self.topics.values().find(mounts), self.logs.get(&log)) {
            (Some(topic), Some(spec)) if spec.kind == LogKind::Records => {
                format!("topic {} partition {partition}", topic.name)
            }
            (_, Some(spec)) => format!("{} (log {log}) partition {partition}", spec.owner),
            (_, None) => format!("log {log} partition {partition}"),
        }
    }
}

fn split(key: &[u8]) -> Option<LogPartition> {
    keys::parse_positioned(key).map(|(log, partition, _)| (log, partition))
}
