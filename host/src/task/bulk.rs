//! Threads beside the workers, for bulk work: they read ahead, compress, write and sync the files of replays,
//! and write checkpoints.
//!
//! **Invariant:** jobs of a kind begin in the order in which they were submitted, and those that were
//! submitted before [`BulkThreads::close`] are done when it returns.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::storage::{Niceness, stand_back};
use crate::threads::{self, JoinHandle, Mutex, Receiver, Sender, channel};
use crate::types::PartitionId;

type Job = Box<dyn FnOnce() + Send>;

/// The threads, each kind with a queue of its own.
pub struct BulkThreads {
    writes: Mutex<Option<Sender<Job>>>,
    /// One for each thread that syncs.
    syncs: Mutex<Vec<Sender<Job>>>,
    /// For a thread of their own, as they take long.
    checkpoints: Mutex<Option<Sender<Job>>>,
    reads: Mutex<Option<Sender<Job>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl BulkThreads {
    /// `count` threads that write, and as many that wait for the disk; all stand back by `niceness`.
    ///
    /// # Errors
    /// When the machine gives no threads.
    pub fn start(count: usize, niceness: Niceness) -> std::io::Result<Self> {
        let mut threads = Vec::new();
        let mut thread = |name: String, queue: Receiver<Job>| -> std::io::Result<()> {
            // A job that panics has said so; those behind it have waited long enough.
            let run = |job: Job| drop(catch_unwind(AssertUnwindSafe(job)));
            threads.push(threads::spawn(name, move || {
                stand_back(niceness);
                while let Some(job) = queue.recv() {
                    run(job);
                }
            })?);
            Ok(())
        };
        let (writes, queue) = channel::<Job>();
        let mut syncs = Vec::new();
        for i in 0..count {
            thread(format!("file-writer-{i}"), queue.clone())?;
            let (sync, queue) = channel::<Job>();
            thread(format!("file-sync-{i}"), queue)?;
            syncs.push(sync);
        }
        let (checkpoints, queue) = channel::<Job>();
        thread("checkpoint".to_owned(), queue)?;
        let (reads, queue) = channel::<Job>();
        thread("read-ahead".to_owned(), queue)?;
        Ok(Self {
            writes: Mutex::new(Some(writes)),
            syncs: Mutex::new(syncs),
            checkpoints: Mutex::new(Some(checkpoints)),
            reads: Mutex::new(Some(reads)),
            threads: Mutex::new(threads),
        })
    }

    /// Runs `job`, which writes a checkpoint, when those before it are done.
    pub fn submit_checkpoint(&self, job: Job) {
        if let Some(checkpoints) = &*self.checkpoints.lock() {
            drop(checkpoints.send(job));
        }
    }

    /// Runs `job`, which reads a block, soon; never after [`BulkThreads::close`].
    pub fn submit_read(&self, job: Job) {
        if let Some(reads) = &*self.reads.lock() {
            drop(reads.send(job));
        }
    }

    /// Runs `job` soon; never after [`BulkThreads::close`].
    pub fn submit(&self, job: Job) {
        if let Some(writes) = &*self.writes.lock() {
            // The threads end only once the sender is gone, so this reaches one of them.
            drop(writes.send(job));
        }
    }

    /// Runs `job`, which waits for the disk, soon: those of a partition in their order.
    pub fn submit_sync(&self, partition: PartitionId, job: Job) {
        let syncs = self.syncs.lock();
        if let Some(sync) = syncs.get(partition.0 as usize % syncs.len().max(1)) {
            drop(sync.send(job));
        }
    }

    /// Ends the threads after the jobs that were submitted.
    pub fn close(&self) {
        let threads = std::mem::take(&mut *self.threads.lock());
        self.writes.lock().take();
        self.checkpoints.lock().take();
        self.reads.lock().take();
        let (syncs, others): (Vec<_>, Vec<_>) = threads.into_iter().partition(|thread| {
            thread.thread().name().is_some_and(|name| name.starts_with("file-sync"))
        });
        // What is written goes on to be synced.
        for thread in others {
            drop(thread.join());
        }
        self.syncs.lock().clear();
        for thread in syncs {
            drop(thread.join());
        }
    }
}
