//! The keys of a batch's records, which the host numbers so that a plugin need not.

use arrow_array::{Array, BinaryArray};

/// The different keys of a batch's records, numbered in the order in which they come first.
#[derive(Debug, Default)]
pub(super) struct OwnKeys {
    /// The number of each record's key; `NO_ROW` where it cannot be one of the store.
    pub entries: Vec<u32>,
    /// The store's row of each key, or `NO_ROW`; they hold until the store changes.
    pub rows: Vec<u32>,
    /// The record that has each key first.
    pub firsts: Vec<u32>,
    /// The keys of all records as the store has them, and where each begins and the last ends.
    encoded: Vec<u8>,
    starts: Vec<u32>,
}

impl OwnKeys {
    /// The key of a number.
    pub fn key(&self, entry: u32) -> &[u8] {
        self.of_record(self.firsts[entry as usize] as usize)
    }

    /// Bytes of the keys of all records.
    pub fn size_bytes(&self) -> usize {
        self.encoded.len()
    }

    /// The key of a record, as the store has it.
    pub fn of_record(&self, record: usize) -> &[u8] {
        &self.encoded[self.starts[record] as usize..self.starts[record + 1] as usize]
    }

    /// Encodes `keys` as those of a store of text or of bytes; leaves out, as empty, what cannot be one.
    pub fn encode(keys: &BinaryArray, text: bool) -> Self {
        let (first, last) = (keys.value_offsets()[0], keys.value_offsets()[keys.len()]);
        let mut encoded = Vec::with_capacity((last - first) as usize + 2 * keys.len());
        let mut starts = Vec::with_capacity(keys.len() + 1);
        starts.push(0);
        let is_plain =
            text && anabranch_key::is_plain(&keys.value_data()[first as usize..last as usize]);
        for key in keys {
            match key {
                Some(key) if is_plain => anabranch_key::push_plain(&mut encoded, key),
                Some(key) if !text => anabranch_key::push_bytes(&mut encoded, key),
                Some(key) => {
                    if let Ok(key) = std::str::from_utf8(key) {
                        anabranch_key::push_utf8(&mut encoded, key);
                    }
                }
                None => {}
            }
            starts.push(encoded.len() as u32);
        }
        Self { encoded, starts, ..Self::default() }
    }
}
