//! What two chained deployments must have made of the input: a plain computation that shares no code
//! with the host or its plugins.
//!
//! `first` keeps for each key how many records it had and a number that depends on their offsets and
//! order and, through the salt of its configuration, on the generation. `second` counts the updates
//! of the first by key. Records without a key are refused by the first and become dead letters.

use std::collections::{BTreeMap, HashMap};

use super::record::Entry;

/// The multiplier of the order-dependent number.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// What one keyed record makes.
#[derive(Debug, Clone)]
pub struct Update {
    /// The record's key.
    pub key: String,
    /// The record's timestamp.
    pub timestamp: i64,
    /// How many records of the key there were, with this one.
    pub count: u64,
    /// The order-dependent number, for salt 0.
    unsalted: u64,
}

impl Update {
    /// The order-dependent number of a generation with this salt.
    pub fn order(&self, salt: u64) -> u64 {
        // What stands before the first record is multiplied once for each record.
        let mut power = 1u64;
        let (mut base, mut left) = (FACTOR, self.count);
        while left > 0 {
            if left & 1 == 1 {
                power = power.wrapping_mul(base);
            }
            base = base.wrapping_mul(base);
            left >>= 1;
        }
        self.unsalted.wrapping_add(salt.wrapping_mul(power))
    }
}

/// What all of the input makes.
#[derive(Debug, Default)]
pub struct Expected {
    /// The updates of each partition, in the order of its records.
    pub updates: Vec<Vec<Update>>,
    /// The offsets of the dead letters of each partition.
    pub letters: Vec<Vec<u64>>,
    /// Each key's last update.
    pub last: BTreeMap<String, Update>,
}

impl Expected {
    /// Computes it from the whole input.
    pub fn of(log: &[Vec<Entry>]) -> Self {
        let mut expected = Self::default();
        for entries in log {
            let mut keys: HashMap<&str, (u64, u64)> = HashMap::new();
            let (mut updates, mut letters) = (Vec::new(), Vec::new());
            for entry in entries {
                let Some(key) = entry.key.as_deref() else {
                    letters.push(entry.offset);
                    continue;
                };
                let (count, order) = keys.entry(key).or_default();
                *count += 1;
                *order = order.wrapping_mul(FACTOR).wrapping_add(entry.offset + 1);
                let (key, timestamp) = (key.to_owned(), entry.timestamp);
                let update = Update { key, timestamp, count: *count, unsalted: *order };
                expected.last.insert(update.key.clone(), update.clone());
                updates.push(update);
            }
            expected.updates.push(updates);
            expected.letters.push(letters);
        }
        expected
    }

    /// Records that the second deployment reads.
    pub fn keyed(&self) -> u64 {
        self.updates.iter().map(|updates| updates.len() as u64).sum()
    }

    /// All records of the input.
    pub fn records(&self) -> u64 {
        self.keyed() + self.letters.iter().map(|letters| letters.len() as u64).sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(offset: u64, key: Option<&str>) -> Entry {
        let key = key.map(str::to_owned);
        Entry { offset, id: Some(offset), text: String::new(), key, timestamp: 1 }
    }

    #[test]
    fn updates_follow_the_input() {
        let log = [vec![entry(0, Some("a")), entry(1, None), entry(4, Some("a"))], vec![]];
        let expected = Expected::of(&log);
        let counts: Vec<_> = expected.updates[0].iter().map(|u| (&*u.key, u.count)).collect();
        assert_eq!(counts, [("a", 1), ("a", 2)]);
        assert_eq!(expected.letters, [vec![1], vec![]]);
        assert_eq!((expected.records(), expected.keyed()), (3, 2));
    }

    #[test]
    fn a_salt_enters_as_if_it_had_been_there_from_the_beginning() {
        let log = [(0..40).map(|offset| entry(offset * 3, Some("a"))).collect()];
        let expected = Expected::of(&log);
        for salt in [0, 1, u64::MAX / 7] {
            let mut order = salt;
            for (offset, update) in (0..40u64).zip(&expected.updates[0]) {
                order = order.wrapping_mul(FACTOR).wrapping_add(offset * 3 + 1);
                assert_eq!(update.order(salt), order);
            }
        }
    }
}
