//! Large memory that is used over and over.
//!
//! What is freed goes back to the kernel at once if it is large, so that a host stays small; but the
//! kernel's work for fresh pages costs a replay as much as the decompression. So blocks of files are read
//! into memory that comes from here and goes back here.
//!
//! **Invariant:** no more than [`MOST_BYTES`] wait to be used, those that came back last.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What is smaller is the allocator's: it keeps that itself.
const LEAST_BYTES: usize = 256 << 10;
/// The blocks at hand of a replay of four partitions, about.
const MOST_BYTES: usize = 32 << 20;

struct Free {
    bytes: usize,
    /// The oldest first.
    kept: VecDeque<Vec<u8>>,
}

/// Of the whole process, as memory is: histories that a simulation runs side by side share it, so it is no
/// lock of theirs, and nobody waits while holding it.
static FREE: Mutex<Free> = Mutex::new(Free { bytes: 0, kept: VecDeque::new() });

fn free() -> MutexGuard<'static, Free> {
    // It is whole after a panic, too: only an allocation can fail on the way.
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A vector of `length` bytes, whatever is in them.
pub fn take(length: usize) -> Vec<u8> {
    let used = (length >= LEAST_BYTES).then(|| free().take(length)).flatten();
    let Some(mut bytes) = used else { return vec![0; length] };
    bytes.resize(length, 0);
    bytes
}

/// Gives back a vector that is no longer needed.
pub fn give(bytes: Vec<u8>) {
    if (LEAST_BYTES..=MOST_BYTES).contains(&bytes.capacity()) {
        free().give(bytes);
    }
}

/// Lets go of everything.
pub fn clear() {
    let kept = {
        let mut free = free();
        free.bytes = 0;
        std::mem::take(&mut free.kept)
    };
    drop(kept);
}

impl Free {
    fn take(&mut self, length: usize) -> Option<Vec<u8>> {
        let fits = |bytes: &Vec<u8>| (length..2 * length).contains(&bytes.capacity());
        // What came back last may still lie in the processor's caches.
        let found = self.kept.iter().rposition(fits)?;
        let bytes = self.kept.remove(found)?;
        self.bytes -= bytes.capacity();
        Some(bytes)
    }

    fn give(&mut self, bytes: Vec<u8>) {
        self.bytes += bytes.capacity();
        self.kept.push_back(bytes);
        while self.bytes > MOST_BYTES {
            self.bytes -= self.kept.pop_front().map_or(self.bytes, |oldest| oldest.capacity());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_taken_again_and_no_more_is_kept_than_may_be() {
        let mut free = Free { bytes: 0, kept: VecDeque::new() };
        let of = |length: usize| Vec::with_capacity(length);
        for length in [LEAST_BYTES, 3 * LEAST_BYTES, 3 * LEAST_BYTES] {
            free.give(of(length));
        }
        assert!(free.take(4 * LEAST_BYTES).is_none(), "too small");
        assert!(free.take(LEAST_BYTES + 1).is_none(), "too small or far too large");
        assert_eq!(free.take(2 * LEAST_BYTES).unwrap().capacity(), 3 * LEAST_BYTES);
        assert_eq!(free.bytes, 4 * LEAST_BYTES);
        for _ in 0..9 {
            free.give(of(MOST_BYTES / 4));
        }
        assert_eq!((free.bytes, free.kept.len()), (MOST_BYTES, 4));
        assert!(free.take(LEAST_BYTES).is_none(), "the oldest went first");
    }
}
