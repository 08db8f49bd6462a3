//! What changed in a task's stores between two commits, and its form in the changelog.
//!
//! A changelog record's key is the store's index (u16, big-endian) and the entry's key; its value is
//! the entry's value, or null where the entry was deleted. Byte order of these keys is the order of a
//! checkpoint: by store, then by key.

use arrow_array::BinaryArray;
use arrow_array::builder::BinaryBuilder;
use hashbrown::HashMap;

type Bytes = Box<[u8]>;

/// Why a changelog or checkpoint could not be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a changelog key of {0} bytes names no store: the changelog is damaged")]
pub struct ChangeError(usize);

/// The net changes of a task's stores: one entry a key, whatever happened to it in between.
#[derive(Debug, Default)]
pub struct Changes {
    entries: HashMap<Bytes, Option<Bytes>>,
    size_bytes: usize,
}

impl Changes {
    /// Notes that `key` of `store` now has `value`, or is gone.
    pub fn set(&mut self, store: usize, key: Bytes, value: Option<Bytes>) {
        let mut full = Vec::with_capacity(2 + key.len());
        full.extend_from_slice(&(store as u16).to_be_bytes());
        full.extend_from_slice(&key);
        self.set_full(full.into(), value);
    }

    /// As [`Changes::set`], by a changelog record.
    pub fn set_full(&mut self, key: Bytes, value: Option<Bytes>) {
        let key_bytes = key.len();
        self.size_bytes += value.as_ref().map_or(0, |v| v.len());
        match self.entries.insert(key, value) {
            Some(old) => self.size_bytes -= old.map_or(0, |v| v.len()),
            None => self.size_bytes += key_bytes,
        }
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of keys and values.
    pub fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    /// The changes as changelog keys and values, in key order.
    pub fn into_columns(self) -> (BinaryArray, BinaryArray) {
        let sorted = self.into_sorted();
        let mut keys = BinaryBuilder::with_capacity(sorted.len(), sorted.len() * 16);
        let mut values = BinaryBuilder::with_capacity(sorted.len(), sorted.len() * 16);
        for (key, value) in &sorted {
            keys.append_value(key);
            values.append_option(value.as_deref());
        }
        (keys.finish(), values.finish())
    }

    /// The changes in the order of changelog keys.
    pub fn into_sorted(self) -> Vec<(Bytes, Option<Bytes>)> {
        let mut sorted = self.entries.into_iter().collect::<Vec<_>>();
        sorted.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        sorted
    }

    /// Splits a changelog key into store and entry key.
    ///
    /// # Errors
    /// When it is too short to name a store.
    pub fn split_key(key: &[u8]) -> Result<(usize, &[u8]), ChangeError> {
        let (store, rest) = key.split_first_chunk::<2>().ok_or(ChangeError(key.len()))?;
        Ok((usize::from(u16::from_be_bytes(*store)), rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_net_and_in_key_order() {
        let mut changes = Changes::default();
        changes.set(1, b"a".as_slice().into(), Some(b"1".as_slice().into()));
        changes.set(0, b"z".as_slice().into(), Some(b"22".as_slice().into()));
        changes.set(1, b"a".as_slice().into(), None);
        assert_eq!(changes.size_bytes(), 3 + 3 + 2);
        let (keys, values) = changes.into_columns();
        let split = |i| Changes::split_key(keys.value(i)).unwrap();
        assert_eq!((split(0), split(1)), ((0, &b"z"[..]), (1, &b"a"[..])));
        assert_eq!(values.iter().collect::<Vec<_>>(), [Some(&b"22"[..]), None]);
        assert!(Changes::split_key(b"x").is_err());
    }
}
