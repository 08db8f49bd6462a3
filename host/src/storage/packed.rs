//! Buffers that were read, with the frames they were decompressed from: what is written again as it was
//! read is not compressed again.
//!
//! A plugin that passes records on, or changes their values and not their keys, gives back columns that
//! lie in the very memory they were read into. Their lz4 blocks are copied from the file they came from.
//!
//! **Invariant:** a buffer that is remembered is held, so its memory is never another's; one that nobody
//! else holds is forgotten when the next block is read.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow_buffer::Buffer;

use super::memory;

/// Buffers below this are compressed again: to look for them costs more.
const LEAST_BYTES: usize = 256 << 10;
/// Most buffers that are remembered: those of a replay of four partitions, about.
const MOST: usize = 32;

/// A buffer and the frame that holds it.
pub struct Packed {
    buffer: Buffer,
    /// What the frame lies in.
    message: Arc<Vec<u8>>,
    /// Where each block begins, in the buffer and in `message`, and where the last one ends.
    blocks: Vec<(usize, usize)>,
}

/// Of the whole process, as memory is: histories that a simulation runs side by side share it, so it is no
/// lock of theirs, and nobody waits while holding it.
static READ: Mutex<Vec<Arc<Packed>>> = Mutex::new(Vec::new());

fn all() -> MutexGuard<'static, Vec<Arc<Packed>>> {
    // It is whole after a panic, too: only an allocation can fail on the way.
    READ.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forgets what nobody else holds, and gives back its memory.
pub fn sweep() {
    let is_held = |packed: &mut Arc<Packed>| {
        Arc::strong_count(packed) > 1 || packed.buffer.strong_count() > 1
    };
    let left: Vec<_> = all().extract_if(.., |packed| !is_held(packed)).collect();
    for packed in left.into_iter().filter_map(Arc::into_inner) {
        packed.buffer.into_vec().into_iter().for_each(memory::give);
        Arc::into_inner(packed.message).into_iter().for_each(memory::give);
    }
}

/// Remembers a buffer that was decompressed from `blocks` of `message`.
pub fn remember(buffer: &Buffer, message: &Arc<Vec<u8>>, blocks: Vec<(usize, usize)>) {
    let mut read = all();
    if buffer.len() >= LEAST_BYTES && read.len() < MOST {
        let (buffer, message) = (buffer.clone(), Arc::clone(message));
        read.push(Arc::new(Packed { buffer, message, blocks }));
    }
}

/// The buffer that `bytes` lie in, if it is remembered, and where in it they lie.
pub fn find(bytes: &[u8]) -> Option<(Arc<Packed>, Range<usize>)> {
    let at = bytes.as_ptr().addr();
    all().iter().find_map(|packed| {
        let from = at.checked_sub(packed.buffer.as_ptr().addr())?;
        let to = from.checked_add(bytes.len())?;
        (to <= packed.buffer.len()).then(|| (Arc::clone(packed), from..to))
    })
}

impl Packed {
    /// Bytes of the buffer.
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// The bytes of a range.
    pub fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.buffer.as_slice()[range]
    }

    /// The blocks that lie in `range` of the buffer, as they are in a frame, and the bytes that they
    /// hold; `None` where there is not a whole one.
    pub fn blocks_in(&self, range: &Range<usize>) -> Option<(&[u8], Range<usize>)> {
        let first = self.blocks.partition_point(|(at, _)| *at < range.start);
        let last = self.blocks.partition_point(|(at, _)| *at <= range.end).checked_sub(1)?;
        let (from, to) = (self.blocks.get(first)?, self.blocks.get(last)?);
        (first < last).then(|| (&self.message[from.1..to.1], from.0..to.0))
    }
}
