//! Buffers that were read, with the frames they were decompressed from: what is written again as it was
//! read is not compressed again.
//!
//! A plugin that passes records on, or changes their values and not their keys, gives back columns that
//! lie in the very memory they were read into. Their lz4 blocks are copied from the file they came from.
//!
//! **Invariant:** a buffer that is remembered is held, so its memory is never another's; one that nobody
//! else holds is forgotten at the next read.

use std::ops::Range;
use std::sync::Arc;

use arrow_buffer::Buffer;
use parking_lot::Mutex;

/// Buffers below this are compressed again: to look for them costs more.
const LEAST_BYTES: usize = 256 << 10;
/// Most buffers that are remembered; each reader of a replay has two or three.
const MOST: usize = 256;

/// A buffer and the frame that holds it.
pub struct Packed {
    buffer: Buffer,
    /// What the frame lies in.
    message: Arc<Vec<u8>>,
    /// Where each block begins, in the buffer and in `message`, and where the last one ends.
    blocks: Vec<(usize, usize)>,
}

/// What was read lately and is still in use.
static READ: Mutex<Vec<Arc<Packed>>> = Mutex::new(Vec::new());

/// Remembers a buffer that was decompressed from `blocks` of `message`.
pub fn remember(buffer: &Buffer, message: &Arc<Vec<u8>>, blocks: Vec<(usize, usize)>) {
    if buffer.len() < LEAST_BYTES {
        return;
    }
    let (buffer, message) = (buffer.clone(), Arc::clone(message));
    let packed = Arc::new(Packed { buffer, message, blocks });
    let mut read = READ.lock();
    read.retain(|packed| packed.buffer.strong_count() > 1);
    if read.len() < MOST {
        read.push(packed);
    }
}

/// The buffer that `bytes` lie in, if it is remembered, and where in it they lie.
pub fn find(bytes: &[u8]) -> Option<(Arc<Packed>, Range<usize>)> {
    let at = bytes.as_ptr().addr();
    READ.lock().iter().find_map(|packed| {
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
