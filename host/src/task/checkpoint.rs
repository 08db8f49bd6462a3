//! Checkpoints of a task's stores: where the newest is, and when to write the next.

use crate::types::{GenerationId, PartitionId};

/// The catalogue key under which all checkpoints of a generation stand.
pub fn checkpoint_prefix(generation: GenerationId) -> Vec<u8> {
    let mut key = super::cursor_prefix(generation);
    key[0] = b'k';
    key
}

/// The catalogue key of a task's newest checkpoint.
pub fn checkpoint_key(generation: GenerationId, partition: PartitionId) -> Vec<u8> {
    let mut key = checkpoint_prefix(generation);
    key.extend_from_slice(&partition.0.to_be_bytes());
    key
}
