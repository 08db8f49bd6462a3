//! A task's place in its inputs, as it is committed with its outputs and state.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::types::{GenerationId, Offset, PartitionId};

/// What a commit of a task leaves behind in the catalogue. The exact bytes of the last one are the
/// fence of the next: a task that is not the last to have written them is refused.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Cursor {
    /// Counts the times that the task was started; a task that was replaced carries an older one.
    pub epoch: u64,
    /// The next offset to be read from each input, in topic offsets.
    pub inputs: Vec<Offset>,
    /// Input records processed.
    pub records: u64,
    /// The highest timestamp seen, in milliseconds since the Unix epoch.
    pub stream_time_ms: Option<i64>,
    /// The hash chain of each lane, by `output/partition`: see [`super::lane`].
    pub chains: BTreeMap<String, u64>,
    /// Records given to dead letters or skipped.
    pub poison: u64,
    /// Whether the task has begun to commit through the head; before that, its outputs are files
    /// only. See [`super::pending::CommitMode`].
    pub head: bool,
}

impl Cursor {
    /// The bytes that stand in the catalogue.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("numbers and strings always encode")
    }

    /// Reads what [`Cursor::encode`] wrote.
    ///
    /// # Errors
    /// When the bytes are something else.
    pub fn decode(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}

/// The catalogue key under which all cursors of a generation stand.
pub fn cursor_prefix(generation: GenerationId) -> Vec<u8> {
    let mut key = vec![b'c'];
    key.extend_from_slice(&generation.deployment.0.to_be_bytes());
    key.extend_from_slice(&generation.number.0.to_be_bytes());
    key
}

/// The catalogue key of a task's cursor.
pub fn cursor_key(generation: GenerationId, partition: PartitionId) -> Vec<u8> {
    let mut key = cursor_prefix(generation);
    key.extend_from_slice(&partition.0.to_be_bytes());
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_round_trip() {
        let cursor = Cursor {
            epoch: 3,
            inputs: vec![Offset(7), Offset(0)],
            records: 7,
            stream_time_ms: Some(-5),
            chains: [("0/1".to_owned(), u64::MAX)].into(),
            poison: 1,
            head: true,
        };
        assert_eq!(Cursor::decode(&cursor.encode()).unwrap(), cursor);
        assert!(Cursor::decode(b"{").is_err());
    }
}
