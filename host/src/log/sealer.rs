//! Moves durable records from the head into segment files, and removes what the head no longer needs, and
//! files of what was deleted.
//!
//! **Invariant:** a key of the head goes only after the commit that made it superfluous is durable, and
//! removing it twice or not at all changes nothing. Only durable records are sealed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::committer::{Done, Request};
use super::handle::Shared;
use super::keys;
use super::partition::{Partition, Run};
use super::segment::{Segment, SegmentFile};
use crate::storage::{Pace, WriteBatch, crash_point, return_free_memory};
use crate::threads::{Condvar, Mutex, Receiver, Sender, channel};

/// Most keys removed in one batch: a batch holds sled's lock while it is applied.
const REMOVE_KEYS: usize = 8;
/// A batch that took longer is followed by one of half as many keys. What a key takes is not its own: sled
/// writes the values beside it anew.
const REMOVE_TIME: Duration = Duration::from_millis(1);

/// Where the disk holds up one batch, the next need not wait as long.
const LONGEST_REST: Duration = Duration::from_millis(20);

/// More records than this, sealed without a pause of [`QUIET`], leave enough free memory in the heaps of the
/// threads that took them in to return it in the next pause: what comes then may run on other threads.
const BACKLOG_BYTES: u64 = 64 << 20;
const QUIET: Duration = Duration::from_millis(100);

/// Work for the sealer.
pub(super) enum Task {
    /// The head may be over its budget.
    Check,
    /// Keys that a commit made superfluous.
    Remove(Vec<Vec<u8>>),
    /// Segments that a commit doomed: the file of each goes with the last who has it.
    LetGo(Vec<Arc<Segment>>),
    /// End.
    Stop,
}

/// The body of the sealer thread.
pub(super) fn run(shared: &Arc<Shared>, tasks: &Receiver<Task>, committer: &Sender<Request>) {
    // Bytes sealed since the last quiet time.
    let mut sealed = 0;
    loop {
        let soon = (sealed > 0).then(|| tasks.recv_within(QUIET)).flatten();
        if soon.is_none() {
            if sealed > BACKLOG_BYTES {
                return_free_memory();
            }
            sealed = 0;
        }
        let Some(task) = soon.or_else(|| tasks.recv()) else { return };
        match task {
            Task::Check => {
                shared.check_waits.store(false, Ordering::SeqCst);
                while shared.head_bytes() > shared.config.head_bytes / 2
                    && !shared.closing.load(Ordering::SeqCst)
                    && let Some(bytes) = seal_largest(shared, committer)
                {
                    sealed += bytes;
                }
            }
            Task::Remove(keys) => remove(shared, &keys),
            Task::LetGo(segments) => {
                for segment in segments {
                    at_rest(shared, || drop(segment));
                }
            }
            Task::Stop => return,
        }
    }
}

/// Seals one file of the partition with the largest head: bytes of its records, or `None` if there is
/// nothing to gain.
fn seal_largest(shared: &Arc<Shared>, committer: &Sender<Request>) -> Option<u64> {
    let all: Vec<Arc<Partition>> = shared.registry.read().values().cloned().collect();
    let sized = all.into_iter().map(|p| (p.tail_bytes(), p));
    let largest = sized.max_by_key(|(bytes, p)| (*bytes, p.log(), p.id()));
    let (bytes, partition) = largest?;
    let runs = partition.sealable(shared.config.segment_bytes);
    let first = runs.first().filter(|_| bytes > 0)?;
    let (log, id) = (partition.log(), partition.id());
    let sources = runs.iter().any(|run| run.records.sources.is_some());
    let place = shared.segment_place(log, id, sources, Pace::Gentle);
    let written = (|| {
        let mut file = SegmentFile::create(place, first.first)?;
        for run in &runs {
            file.append(run.first, &run.records, run.append_ms)?;
        }
        file.finish()
    })();
    let segment = match written {
        Ok(segment) => Arc::new(segment),
        Err(e) => {
            tracing::error!("cannot seal log {log}/{id}: {e}; its records stay in the head");
            return None;
        }
    };
    crash_point("seal-written");
    let (answer, outcome) = channel();
    let done = Done::new(move |result| {
        let _ = answer.send(result);
    });
    if committer.send_urgent(Request::Seal(log, id, segment, done)).is_err() {
        return None;
    }
    match outcome.recv() {
        Some(Ok(_)) => {
            crash_point("seal-recorded");
            remove(shared, &head_keys(&partition, &runs));
            Some(runs.iter().map(Run::held_bytes).sum())
        }
        Some(Err(e)) => {
            tracing::info!("segment of log {log}/{id} was not taken: {e}");
            None
        }
        None => None,
    }
}

/// The keys under which runs lie in the head.
pub(super) fn head_keys<'a>(
    partition: &Partition,
    runs: impl IntoIterator<Item = &'a Run>,
) -> Vec<Vec<u8>> {
    let key = |run: &Run| keys::head(partition.log(), partition.id(), run.first);
    runs.into_iter().map(key).collect()
}

/// Removes keys, a few in a batch.
fn remove(shared: &Shared, mut keys: &[Vec<u8>]) {
    let mut count = 1;
    while !keys.is_empty() {
        let (some, others) = keys.split_at(count.min(keys.len()));
        let mut batch = WriteBatch::default();
        for key in some {
            batch.delete(key.as_slice());
        }
        let (applied, took) = at_rest(shared, || {
            shared.storage.apply(batch).inspect(|_| crash_point("seal-removed"))
        });
        if let Err(e) = applied {
            tracing::error!("cannot remove sealed records from the head: {e}");
            return;
        }
        count = if took > REMOVE_TIME { count / 2 } else { count * 2 }.clamp(1, REMOVE_KEYS);
        keys = others;
    }
}

/// Does `work`, then rests for as long as it took: whoever waits for sled's lock or the file system gets it
/// then. Without a rest this thread would take it again before one that has yielded its processor comes
/// back. Returns how long it took, too.
fn at_rest<T>(shared: &Shared, work: impl FnOnce() -> T) -> (T, Duration) {
    let began = shared.clock.monotonic();
    let done = work();
    let took = shared.clock.monotonic().saturating_sub(began);
    if !shared.closing.load(Ordering::SeqCst) {
        Condvar::new().wait_for(&mut Mutex::new(()).lock(), took.min(LONGEST_REST));
    }
    (done, took)
}
