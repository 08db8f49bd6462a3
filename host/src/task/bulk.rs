//! Threads beside the workers, for bulk work: they read ahead, compress, write and sync the files of replays,
//! and write checkpoints.
//!
//! **Invariant:** jobs of a kind begin in the order in which they were submitted, and those that were
//! submitted before [`BulkThreads::close`] are done when it returns.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::storage::{Niceness, stand_back};
use crate::threads::{self, JoinHandle, Mutex, Receiver, Sender, channel};
use crate::types::PartitionId;

type Job = Box<dyn FnOnce() + Send>;

/// A job that panics has said so; those behind it have waited long enough.
fn run(job: Job) {
    drop(catch_unwind(AssertUnwindSafe(job)));
}

/// Jobs of which each begins when the one before it is done, on whichever thread is free.
#[derive(Default)]
pub struct Strand(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    /// Whether a thread runs them, or will.
    has_thread: bool,
}

impl Strand {
    /// Adds a job; `false` if a thread comes to it anyway.
    fn add(&self, job: Job) -> bool {
        let mut waiting = self.0.lock();
        waiting.jobs.push_back(job);
        !std::mem::replace(&mut waiting.has_thread, true)
    }

    fn run(&self) {
        let next = || {
            let mut waiting = self.0.lock();
            let job = waiting.jobs.pop_front();
            waiting.has_thread = job.is_some();
            job
        };
        while let Some(job) = next() {
            run(job);
        }
    }
}

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

    /// Runs `job`, which writes files, soon, after those of `strand` before it; never after
    /// [`BulkThreads::close`].
    pub fn submit_write(&self, strand: &Arc<Strand>, job: Job) {
        if strand.add(job)
            && let Some(writes) = &*self.writes.lock()
        {
            let strand = Arc::clone(strand);
            // The threads end only once the sender is gone, so this reaches one of them.
            drop(writes.send(Box::new(move || strand.run())));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_of_a_strand_run_in_their_order_and_those_of_others_beside_them() {
        let threads = BulkThreads::start(2, Niceness::TENTH).unwrap();
        let (strand, other) = (Arc::<Strand>::default(), Arc::<Strand>::default());
        let done = Arc::new(Mutex::new(Vec::new()));
        let (release, held) = channel();
        let waits = move || assert!(held.recv().is_some(), "the other strand's job has run");
        threads.submit_write(&strand, Box::new(waits));
        for i in 0..100 {
            let done = Arc::clone(&done);
            let job = move || {
                done.lock().push(i);
                assert!(i != 7, "on purpose: a job that panics stops nobody");
            };
            threads.submit_write(&strand, Box::new(job));
        }
        // Runs while the first of the others stands still.
        threads.submit_write(&other, Box::new(move || assert!(release.send(()).is_ok())));
        threads.close();
        assert_eq!(*done.lock(), (0..100).collect::<Vec<_>>());
    }
}
