//! Buffers that were read, with the frames they were decompressed from: what is written again as it was
//! read is not compressed again.
//!
//! A plugin that passes records on, or changes their values and not their keys, gives back columns that
//! lie in the very memory they were read into. Their lz4 blocks are copied from the file they came from.
//!
//! The memory of buffers that nobody holds any more is read into again: the kernel's work for fresh memory
//! costs as much as decompressing.
//!
//! **Invariant:** a buffer that is remembered is held, so its memory is never another's; one that nobody
//! else holds is forgotten at the next read.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow_buffer::Buffer;

/// Buffers below this are compressed again: to look for them costs more.
const LEAST_BYTES: usize = 256 << 10;
/// Most buffers that are remembered: those of a replay of four partitions, about.
const MOST: usize = 32;

/// Most buffers that are kept to be read into.
const MOST_FREE: usize = 4;

/// A buffer and the frame that holds it.
pub struct Packed {
    buffer: Buffer,
    /// What the frame lies in.
    message: Arc<Vec<u8>>,
    /// Where each block begins, in the buffer and in `message`, and where the last one ends.
    blocks: Vec<(usize, usize)>,
}

/// Buffers of read files.
struct Memory {
    /// Those in use.
    read: Vec<Arc<Packed>>,
    /// What others left.
    free: Vec<Vec<u8>>,
}

/// Of the whole process, as memory is: histories that a simulation runs side by side share it, so it is no
/// lock of theirs, and nobody waits while holding it.
static MEMORY: Mutex<Memory> = Mutex::new(Memory { read: Vec::new(), free: Vec::new() });

fn all() -> MutexGuard<'static, Memory> {
    // It is whole after a panic, too: only an allocation can fail on the way.
    MEMORY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Memory for `length` bytes, whatever is in it.
pub fn memory(length: usize) -> Vec<u8> {
    let used = (length >= LEAST_BYTES).then(|| all().take(length)).flatten();
    used.map_or_else(
        || vec![0; length],
        |mut bytes| {
            bytes.resize(length, 0);
            bytes
        },
    )
}

/// Gives back what nobody holds any more: for whoever has read to the end.
pub fn release() {
    let mut memory = all();
    memory.sweep();
    memory.free.clear();
}

impl Memory {
    /// Moves what nobody else holds to what is free.
    fn sweep(&mut self) {
        let mut at = 0;
        while let Some(packed) = self.read.get(at) {
            if Arc::strong_count(packed) > 1 || packed.buffer.strong_count() > 1 {
                at += 1;
                continue;
            }
            let left = Arc::into_inner(self.read.swap_remove(at));
            let left = left.and_then(|packed| packed.buffer.into_vec().ok());
            self.free.extend(left.filter(|_| self.free.len() < MOST_FREE));
        }
    }

    fn take(&mut self, length: usize) -> Option<Vec<u8>> {
        self.sweep();
        let fits = |bytes: &Vec<u8>| (length..2 * length).contains(&bytes.capacity());
        let found = self.free.iter().position(fits);
        found.map(|at| self.free.swap_remove(at))
    }
}

/// Remembers a buffer that was decompressed from `blocks` of `message`.
pub fn remember(buffer: &Buffer, message: &Arc<Vec<u8>>, blocks: Vec<(usize, usize)>) {
    let mut memory = all();
    if buffer.len() >= LEAST_BYTES && memory.read.len() < MOST {
        let (buffer, message) = (buffer.clone(), Arc::clone(message));
        memory.read.push(Arc::new(Packed { buffer, message, blocks }));
    }
}

/// The buffer that `bytes` lie in, if it is remembered, and where in it they lie.
pub fn find(bytes: &[u8]) -> Option<(Arc<Packed>, Range<usize>)> {
    let at = bytes.as_ptr().addr();
    all().read.iter().find_map(|packed| {
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
