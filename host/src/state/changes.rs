//! What changed in a task's stores between two checkpoints, and its form in the changelog.
//!
//! A changelog record's key is the store's index (u16, big-endian) and the entry's key; its value is
//! the entry's value, or null where the entry was deleted. Byte order of these keys is the order of a
//! checkpoint: by store, then by key.

use std::hash::BuildHasher;

use arrow_array::builder::{ArrayBuilder, BinaryBuilder};
use arrow_array::{Array, BinaryArray};
use hashbrown::{DefaultHashBuilder, HashTable};

use super::prefetch::{AHEAD, prefetch, prefetch_ref};
use crate::types::column_bytes;

/// Why a changelog or checkpoint could not be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a changelog key of {0} bytes names no store: the changelog is damaged")]
pub struct ChangeError(usize);

/// The net changes that a part of the changelog makes: one entry a key, whatever happened to it in between.
#[derive(Debug, Default)]
pub struct Changes {
    hasher: DefaultHashBuilder,
    last: HashTable<Last>,
    /// The different keys, together, so that looking for one meets few lines of memory.
    keys: Vec<u8>,
    /// Values as they were read.
    values: Vec<BinaryArray>,
    /// Bytes in `values`, and from which on it pays to look for those that are of no use.
    bytes: usize,
    next_squeeze_bytes: usize,
}

/// The last record of a key.
#[derive(Debug)]
struct Last {
    /// Where the key begins, and its length.
    key: (usize, u32),
    /// In which column its value is, and in which row.
    value: (u32, u32),
}

impl Last {
    fn key<'k>(&self, keys: &'k [u8]) -> &'k [u8] {
        &keys[self.key.0..][..self.key.1 as usize]
    }
}

/// Bytes of values below which it does not matter how many of them were overtaken.
const SQUEEZE_BYTES: usize = 64 << 20;

/// Bytes of a column that is made of what is left.
const SQUEEZED_BYTES: usize = 1 << 20;

impl Changes {
    /// Notes changelog records, in their order: that each key now has its value, or is gone where that is null.
    pub fn push(&mut self, keys: &BinaryArray, values: BinaryArray) {
        let column = self.values.len() as u32;
        let hashes: Vec<_> = (0..keys.len()).map(|i| self.hasher.hash_one(keys.value(i))).collect();
        for row in 0..keys.len() {
            self.ask_for(&hashes, row);
            let (key, value, hash) = (keys.value(row), (column, row as u32), hashes[row]);
            let known = &self.keys;
            if let Some(last) = self.last.find_mut(hash, |last| last.key(known) == key) {
                last.value = value;
                continue;
            }
            let last = Last { key: (self.keys.len(), key.len() as u32), value };
            self.keys.extend_from_slice(key);
            let (hasher, known) = (&self.hasher, &self.keys);
            self.last.insert_unique(hash, last, |last| hasher.hash_one(last.key(known)));
        }
        self.bytes += column_bytes(&values);
        self.values.push(values);
        if self.bytes > self.next_squeeze_bytes.max(SQUEEZE_BYTES) {
            self.squeeze();
        }
    }

    /// Asks for the memory of what hashes will be looked at soon: first of what is known of a key, then of
    /// the key.
    #[inline]
    fn ask_for(&self, hashes: &[u64], i: usize) {
        let first = |i: usize| self.last.find(*hashes.get(i)?, |_| true);
        if let Some(last) = first(i + 2 * AHEAD) {
            prefetch_ref(last);
        }
        if let Some(last) = first(i + AHEAD) {
            prefetch(&self.keys, last.key.0);
        }
    }

    /// Lets go of values that later ones have overtaken, so that memory grows with the keys that
    /// changed, not with how often they did.
    fn squeeze(&mut self) {
        let columns = std::mem::take(&mut self.values);
        let mut left: Vec<_> = self.last.iter_mut().collect();
        left.sort_unstable_by_key(|last| last.value);
        self.bytes = 0;
        let mut left = left.into_iter().peekable();
        while left.peek().is_some() {
            let (mut values, mut bytes) = (BinaryBuilder::new(), 0);
            while let Some(last) = left.next_if(|_| bytes < SQUEEZED_BYTES) {
                let value = value(&columns, last);
                bytes += value.map_or(0, <[u8]>::len);
                last.value = (self.values.len() as u32, values.len() as u32);
                values.append_option(value);
            }
            self.bytes += bytes;
            self.values.push(values.finish());
        }
        self.next_squeeze_bytes = 2 * self.bytes;
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.last.is_empty()
    }

    /// The changes in the order of changelog keys: each key with its value, or `None` where it is gone.
    pub fn sorted(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        let change = |last| (Last::key(last, &self.keys), value(&self.values, last));
        let mut sorted: Vec<_> = self.last.iter().map(change).collect();
        sorted.sort_unstable_by_key(|(key, _)| *key);
        sorted.into_iter()
    }
}

fn value<'v>(columns: &'v [BinaryArray], last: &Last) -> Option<&'v [u8]> {
    let (column, row) = (&columns[last.value.0 as usize], last.value.1 as usize);
    column.is_valid(row).then(|| column.value(row))
}

/// The key of a changelog record.
pub mod changelog_key {
    use super::ChangeError;

    /// Bytes before the entry's key.
    pub const PREFIX_BYTES: usize = 2;

    /// Appends the changelog key of an entry.
    pub fn join(store: usize, key: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(&(store as u16).to_be_bytes());
        anabranch_key::append(out, key);
    }

    /// Splits a changelog key into store and entry key.
    ///
    /// # Errors
    /// When it is too short to name a store.
    pub fn split(key: &[u8]) -> Result<(usize, &[u8]), ChangeError> {
        let (store, rest) = key.split_first_chunk().ok_or(ChangeError(key.len()))?;
        Ok((usize::from(u16::from_be_bytes(*store)), rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_net_and_in_key_order() {
        let full = |store, key: &[u8]| {
            let mut full = Vec::new();
            changelog_key::join(store, key, &mut full);
            full
        };
        let (a, z) = (full(1, b"a"), full(0, b"z"));
        let column = |rows: &[Option<&[u8]>]| rows.iter().collect::<BinaryArray>();
        let mut changes = Changes::default();
        assert!(changes.is_empty());
        changes.push(&column(&[Some(&a), Some(&a)]), column(&[Some(b"1"), Some(b"2")]));
        changes.push(&column(&[Some(&z), Some(&a)]), column(&[Some(b"22"), None]));
        let sorted: Vec<_> = changes.sorted().collect();
        assert_eq!(sorted, [(&z[..], Some(&b"22"[..])), (&a[..], None)]);
        let split = |i: usize| changelog_key::split(sorted[i].0).unwrap();
        assert_eq!((split(0), split(1)), ((0, &b"z"[..]), (1, &b"a"[..])));
        assert!(changelog_key::split(b"x").is_err());
    }

    #[test]
    fn records_that_were_overtaken_are_let_go_of() {
        let numbers = |from: u32| (from..from + 1_000).map(|i| Some((i % 700).to_be_bytes()));
        let mut changes = Changes::default();
        for from in [0, 300, 9_000] {
            let values = numbers(from).map(|v| v.filter(|v| v[3] != 0));
            changes.push(&numbers(0).collect(), values.collect());
        }
        let (before, bytes) =
            (format!("{:?}", changes.sorted().collect::<Vec<_>>()), changes.bytes);
        changes.squeeze();
        assert_eq!(format!("{:?}", changes.sorted().collect::<Vec<_>>()), before);
        assert!(changes.bytes < bytes / 3, "{} of {bytes}", changes.bytes);
        changes.push(&numbers(0).collect(), numbers(0).map(|_| None::<[u8; 4]>).collect());
        assert!(changes.sorted().all(|(_, value)| value.is_none()));
        assert_eq!(changes.sorted().count(), 700);
    }
}
