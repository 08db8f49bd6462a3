//! Which row of a store has a key: a table by the keys' hashes.
//!
//! A look costs one line of memory, which can be asked for before: of a batch's keys many at once. Tables
//! that keep what they compare apart from what they hold cost two, one after the other.

use super::prefetch::prefetch;

/// Open addressing with linear probing. A slot has the lower half of a key's hash above, and its row + 1
/// below; an empty one is zero. At most three quarters of the slots are taken.
#[derive(Debug, Default)]
pub(super) struct RowIndex {
    /// None, or a power of two.
    slots: Vec<u64>,
    taken: usize,
}

const FEWEST_SLOTS: usize = 16;

fn row_in(slot: u64) -> u32 {
    slot as u32 - 1
}

impl RowIndex {
    /// Where the search for a hash begins. Only where there are slots.
    #[inline]
    fn home(&self, hash: u32) -> usize {
        hash as usize & (self.slots.len() - 1)
    }

    #[inline]
    fn after(&self, at: usize) -> usize {
        (at + 1) & (self.slots.len() - 1)
    }

    /// Asks for the memory that a search for `hash` looks at first, and does not wait for it.
    #[inline]
    pub fn ask_for(&self, hash: u64) {
        prefetch(&self.slots, hash as usize & self.slots.len().saturating_sub(1));
    }

    /// The slot of the first row with such a hash for which `is` holds.
    #[inline]
    fn search(&self, hash: u64, mut is: impl FnMut(u32) -> bool) -> Option<usize> {
        if self.slots.is_empty() {
            return None;
        }
        let hash = hash as u32;
        let mut at = self.home(hash);
        loop {
            match self.slots[at] {
                0 => return None,
                slot if (slot >> 32) as u32 == hash && is(row_in(slot)) => return Some(at),
                _ => at = self.after(at),
            }
        }
    }

    /// The first row with such a hash for which `is` holds.
    #[inline]
    pub fn find(&self, hash: u64, is: impl FnMut(u32) -> bool) -> Option<u32> {
        self.search(hash, is).map(|at| row_in(self.slots[at]))
    }

    /// Adds a row that is not in it. Rows end before `u32::MAX`.
    pub fn insert(&mut self, hash: u64, row: u32) {
        if (self.taken + 1) * 4 > self.slots.len() * 3 {
            let slots = vec![0; (self.slots.len() * 2).max(FEWEST_SLOTS)];
            for slot in std::mem::replace(&mut self.slots, slots) {
                if slot != 0 {
                    self.place(slot);
                }
            }
        }
        self.place(hash << 32 | u64::from(row + 1));
        self.taken += 1;
    }

    fn place(&mut self, slot: u64) {
        let mut at = self.home((slot >> 32) as u32);
        while self.slots[at] != 0 {
            at = self.after(at);
        }
        self.slots[at] = slot;
    }

    /// Removes a row, if it is there.
    pub fn remove(&mut self, hash: u64, row: u32) {
        let Some(mut hole) = self.search(hash, |other| other == row) else { return };
        // A search must not end where this row was: what may lie there moves up.
        let mask = self.slots.len() - 1;
        let distance = |from: usize, to: usize| to.wrapping_sub(from) & mask;
        let mut at = self.after(hole);
        while self.slots[at] != 0 {
            let home = self.home((self.slots[at] >> 32) as u32);
            if distance(home, at) >= distance(hole, at) {
                self.slots[hole] = self.slots[at];
                hole = at;
            }
            at = self.after(at);
        }
        self.slots[hole] = 0;
        self.taken -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn it_finds_what_a_map_finds() {
        let mut random = fastrand::Rng::with_seed(crate::clock::test_seed());
        // Few hashes, of which many begin at the same slots, also at the last ones.
        for hashes in [1, 3, 40, 100_000] {
            let hash_of = |row: u32| (u64::from(row) % hashes).wrapping_sub(2).wrapping_mul(5);
            let (mut index, mut plain) = (RowIndex::default(), BTreeMap::new());
            for _ in 0..3_000 {
                let row = random.u32(..500);
                let hash = hash_of(row);
                let found = index.find(hash, |other| other == row);
                assert_eq!(found, plain.get(&row).copied(), "row {row} of {hashes} hashes");
                match found {
                    None => {
                        index.insert(hash, row);
                        plain.insert(row, row);
                    }
                    Some(_) => {
                        index.remove(hash, row);
                        plain.remove(&row);
                    }
                }
                assert_eq!(index.taken, plain.len());
            }
            assert_eq!(index.slots.iter().filter(|slot| **slot != 0).count(), plain.len());
            assert_eq!(index.find(hash_of(1_000), |_| false), None);
            index.remove(hash_of(1_000), 1_000);
            assert_eq!(index.taken, plain.len());
        }
    }
}
