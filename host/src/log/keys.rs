//! The keys of the log in the head: one byte for the kind, then ids big-endian, so that the order
//! of keys is the order of offsets.
//!
//! **Invariant:** the first bytes `a d g c k v w` belong to the floors above, `m` and `~` to storage.

use crate::types::{LogId, Offset, PartitionId, TopicId};

/// Topics: a [`super::TopicState`] as JSON.
pub(super) const TOPICS: u8 = b't';
/// Logs: a [`super::LogSpec`] as JSON.
pub(super) const LOGS: u8 = b'l';
/// Partitions: where they start, and where their head starts.
pub(super) const PARTITIONS: u8 = b'p';
/// The manifest: segments by log, partition and first offset, a `SegmentEntry` as JSON.
pub(super) const SEGMENTS: u8 = b's';
/// Batches of the head.
pub(super) const HEAD: u8 = b'h';
/// Lost ranges by log, partition and first offset, each a `Lost` as JSON.
pub(super) const LOST: u8 = b'x';
/// The next id that was not given out.
pub(super) const NEXT_ID: &[u8] = b"n/id";

/// First bytes of the keys that floors above write.
pub(super) const METADATA: &[u8] = b"adgckvw";

pub(super) fn topic(id: TopicId) -> Vec<u8> {
    numbered(TOPICS, id.0)
}

pub(super) fn log(id: LogId) -> Vec<u8> {
    numbered(LOGS, id.0)
}

pub(super) fn partition(log: LogId, partition: PartitionId) -> Vec<u8> {
    let mut key = numbered(PARTITIONS, log.0);
    key.extend_from_slice(&partition.0.to_be_bytes());
    key
}

pub(super) fn head(log: LogId, partition: PartitionId, first: Offset) -> Vec<u8> {
    positioned(HEAD, log, partition, first)
}

pub(super) fn segment(log: LogId, partition: PartitionId, first: Offset) -> Vec<u8> {
    positioned(SEGMENTS, log, partition, first)
}

pub(super) fn lost(log: LogId, partition: PartitionId, first: Offset) -> Vec<u8> {
    positioned(LOST, log, partition, first)
}

/// The lowest and the highest key of a kind for a partition.
pub(super) fn range(kind: u8, log: LogId, partition: PartitionId) -> (Vec<u8>, Vec<u8>) {
    let at = |offset| positioned(kind, log, partition, Offset(offset));
    (at(0), at(u64::MAX))
}

/// The reverse of a key that ends in log, partition and offset.
pub(super) fn parse_positioned(key: &[u8]) -> Option<(LogId, PartitionId, Offset)> {
    let key: &[u8; 21] = key.try_into().ok()?;
    let long = |at: usize| Some(u64::from_be_bytes(key[at..at + 8].try_into().ok()?));
    let partition = u32::from_be_bytes(key[9..13].try_into().ok()?);
    Some((LogId(long(1)?), PartitionId(partition), Offset(long(13)?)))
}

/// The reverse of [`partition`].
pub(super) fn parse_partition(key: &[u8]) -> Option<(LogId, PartitionId)> {
    let key: &[u8; 13] = key.try_into().ok()?;
    let log = u64::from_be_bytes(key[1..9].try_into().ok()?);
    Some((LogId(log), PartitionId(u32::from_be_bytes(key[9..].try_into().ok()?))))
}

fn positioned(kind: u8, log: LogId, partition: PartitionId, first: Offset) -> Vec<u8> {
    let mut key = numbered(kind, log.0);
    key.extend_from_slice(&partition.0.to_be_bytes());
    key.extend_from_slice(&first.0.to_be_bytes());
    key
}

fn numbered(kind: u8, id: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(21);
    key.push(kind);
    key.extend_from_slice(&id.to_be_bytes());
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_as_offsets_do_and_parse_back() {
        let (log, partition_id) = (LogId(7), PartitionId(3));
        let a = head(log, partition_id, Offset(255));
        let b = head(log, partition_id, Offset(256));
        assert!(a < b);
        assert_eq!(parse_positioned(&b), Some((log, partition_id, Offset(256))));
        assert_eq!(parse_partition(&partition(log, partition_id)), Some((log, partition_id)));
    }
}
