//! What changed in a task's stores between two checkpoints, and its form in the changelog.
//!
//! A changelog record's key is the store's index (u16, big-endian) and the entry's key; its value is
//! the entry's value, or null where the entry was deleted. Byte order of these keys is the order of a
//! checkpoint: by store, then by key.

use hashbrown::HashMap;

type Bytes = Box<[u8]>;

/// Why a changelog or checkpoint could not be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a changelog key of {0} bytes names no store: the changelog is damaged")]
pub struct ChangeError(usize);

/// The net changes that a part of the changelog makes: one entry a key, whatever happened to it in between.
#[derive(Debug, Default)]
pub struct Changes {
    entries: HashMap<Bytes, Option<Bytes>>,
}

impl Changes {
    /// Notes a changelog record: that its key now has `value`, or is gone.
    pub fn set(&mut self, key: Bytes, value: Option<Bytes>) {
        self.entries.insert(key, value);
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The changes in the order of changelog keys.
    pub fn into_sorted(self) -> Vec<(Bytes, Option<Bytes>)> {
        let mut sorted = self.entries.into_iter().collect::<Vec<_>>();
        sorted.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        sorted
    }
}

/// The key of a changelog record.
pub mod changelog_key {
    use super::ChangeError;

    /// Bytes before the entry's key.
    pub const PREFIX_BYTES: usize = 2;

    /// Replaces `full` by the changelog key of an entry.
    pub fn join(store: usize, key: &[u8], full: &mut Vec<u8>) {
        full.clear();
        full.extend_from_slice(&(store as u16).to_be_bytes());
        full.extend_from_slice(key);
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
        let mut changes = Changes::default();
        let mut set = |store, key: &[u8], value: Option<&[u8]>| {
            let mut full = Vec::new();
            changelog_key::join(store, key, &mut full);
            changes.set(full.into(), value.map(Into::into));
        };
        set(1, b"a", Some(b"1"));
        set(0, b"z", Some(b"22"));
        set(1, b"a", None);
        let sorted = changes.into_sorted();
        let split = |i: usize| changelog_key::split(&sorted[i].0).unwrap();
        assert_eq!((split(0), split(1)), ((0, &b"z"[..]), (1, &b"a"[..])));
        let values: Vec<_> = sorted.iter().map(|(_, value)| value.as_deref()).collect();
        assert_eq!(values, [Some(&b"22"[..]), None]);
        assert!(changelog_key::split(b"x").is_err());
    }
}
