//! Reading ahead: the block after the one at hand is decompressed on another thread.
//!
//! **Invariant:** reading ahead changes nothing but when a block is read: it is the one that the reader
//! would have read, or it is dropped. A reader waits only for a block that is being read at that moment;
//! one that nobody has begun it reads itself.

use std::sync::Arc;

use super::columns::Wanted;
use super::reader::ReadError;
use super::segment::Segment;
use crate::threads::{Condvar, Mutex};
use crate::types::Batch;

/// Runs a job on another thread, soon or, when the host stops, never.
pub type Executor = Arc<dyn Fn(Box<dyn FnOnce() + Send>) + Send + Sync>;

/// How far it is.
enum Reading {
    Waiting,
    Begun,
    Done(Box<Result<Batch, ReadError>>),
    /// The reader has it, or wants it no more, or whoever read it failed.
    Left,
}

struct Slot {
    reading: Mutex<Reading>,
    changed: Condvar,
}

/// A block that is read ahead.
pub(super) struct Ahead {
    segment: Arc<Segment>,
    index: usize,
    wanted: Wanted,
    slot: Arc<Slot>,
}

impl Ahead {
    /// Has what is wanted of block `index` of `segment` read.
    pub fn begin(executor: &Executor, segment: Arc<Segment>, index: usize, wanted: Wanted) -> Self {
        let (reading, changed) = (Mutex::new(Reading::Waiting), Condvar::new());
        let slot = Arc::new(Slot { reading, changed });
        let (job, of) = (Arc::clone(&slot), Arc::clone(&segment));
        executor(Box::new(move || {
            let mut reading = job.reading.lock();
            if !matches!(*reading, Reading::Waiting) {
                return;
            }
            *reading = Reading::Begun;
            drop(reading);
            let end = End(&job);
            let read = of.read(index, wanted);
            let mut reading = end.0.reading.lock();
            if matches!(*reading, Reading::Begun) {
                *reading = Reading::Done(Box::new(read));
            }
        }));
        Self { segment, index, wanted, slot }
    }

    /// Whether it is this block.
    pub fn is(&self, segment: &Arc<Segment>, index: usize) -> bool {
        Arc::ptr_eq(&self.segment, segment) && self.index == index
    }

    /// The block.
    pub fn take(self) -> Result<Batch, ReadError> {
        let mut reading = self.slot.reading.lock();
        while matches!(*reading, Reading::Begun) {
            self.slot.changed.wait(&mut reading);
        }
        let read = std::mem::replace(&mut *reading, Reading::Left);
        drop(reading);
        match read {
            Reading::Done(read) => *read,
            Reading::Waiting | Reading::Begun | Reading::Left => {
                self.segment.read(self.index, self.wanted)
            }
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        *self.slot.reading.lock() = Reading::Left;
    }
}

/// Tells the reader that reading has ended, by a panic too.
struct End<'a>(&'a Slot);

impl Drop for End<'_> {
    fn drop(&mut self) {
        let mut reading = self.0.reading.lock();
        if matches!(*reading, Reading::Begun) {
            *reading = Reading::Left;
        }
        drop(reading);
        self.0.changed.notify_all();
    }
}
