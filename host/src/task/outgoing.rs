//! A commit on its way: what a task gathered is placed in the head or in files, and takes the place of the
//! commit before it.
//!
//! **Invariant:** a commit is refused unless it finds the cursor that the one before it wrote.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::bulk::Strand;
use super::lane::extend_chain;
use super::pending::JournalEntry;
use super::{Cursor, Environment, OutputSpec, Poison, TaskSpec, cursor_key};
use crate::log::{Append, Commit, CommitError, Guard, SegmentError, SegmentWriter};
use crate::storage::{Pace, crash_point};
use crate::threads::{self, Bug, Mutex};
use crate::types::{LogId, PartitionId, Records, concat_records};

/// The most bytes of one append to the head, so that a group stays short.
const APPEND_BYTES: usize = 4 << 20;

/// Why a commit was refused.
pub(super) struct Refused {
    /// Whether the same may be taken later.
    pub(super) later: bool,
    pub(super) message: String,
}

impl From<CommitError> for Refused {
    fn from(error: CommitError) -> Self {
        let later = matches!(error, CommitError::DiskFull { .. });
        Self { later, message: error.to_string() }
    }
}

impl From<SegmentError> for Refused {
    fn from(error: SegmentError) -> Self {
        Self { later: false, message: error.to_string() }
    }
}

/// What a commit takes from the one before it. A commit to files does so where the files are written, one
/// commit of a task after the other.
pub(super) struct Trail {
    /// The chains of all lanes, as [`Cursor::chains`] has them.
    pub(super) chains: BTreeMap<String, u64>,
    /// The bytes of the cursor, which the next commit must find.
    pub(super) cursor: Option<Vec<u8>>,
}

/// What a commit has left behind.
pub(super) struct Committed {
    pub(super) cursor: Cursor,
    /// It in bytes.
    pub(super) bytes: Vec<u8>,
}

pub(super) type Done = Box<dyn FnOnce(Result<Committed, Refused>) + Send>;

/// A commit with the records that are still to be placed.
pub(super) struct Parts {
    pub(super) spec: Arc<TaskSpec>,
    pub(super) lanes: BTreeMap<(usize, u32), Vec<Records>>,
    /// Without its chains.
    pub(super) cursor: Cursor,
    pub(super) trail: Arc<Mutex<Trail>>,
    /// Of files.
    pub(super) pace: Pace,
    pub(super) commit: Commit,
}

/// The slot of the changelog, which has no chain.
pub(super) const CHANGELOG: usize = usize::MAX;

impl Parts {
    /// The log of an output slot: declared outputs, then dead letters, then the changelog.
    fn log_of(spec: &TaskSpec, slot: usize) -> Option<LogId> {
        match (spec.outputs.get(slot), spec.poison) {
            (Some(OutputSpec { log, .. }), _) => *log,
            (None, _) if slot == CHANGELOG => Some(spec.changelog),
            (None, Poison::DeadLetter(output)) => output.log,
            (None, _) => None,
        }
    }

    /// Completes the cursor and puts it into the commit, to take the place of the one before.
    fn take_place(&mut self) -> Committed {
        let mut trail = self.trail.lock();
        for ((slot, partition), chunks) in &self.lanes {
            if *slot != CHANGELOG {
                let chain = trail.chains.entry(format!("{slot}/{partition}")).or_default();
                *chain = chunks.iter().fold(*chain, extend_chain);
            }
        }
        self.cursor.chains.clone_from(&trail.chains);
        let bytes = self.cursor.encode();
        let key = cursor_key(self.spec.generation, self.spec.partition);
        let expected = trail.cursor.replace(bytes.clone());
        self.commit.guards.push(Guard { key: key.clone(), expected });
        self.commit.metadata.push((key, Some(bytes.clone())));
        Committed { cursor: self.cursor.clone(), bytes }
    }

    pub(super) fn through_head(mut self, env: &Environment, done: Done) {
        crash_point("task-commit");
        let committed = self.take_place();
        for ((slot, partition), chunks) in self.lanes {
            let Some(log) = Self::log_of(&self.spec, slot) else { continue };
            for records in join_up_to(chunks, APPEND_BYTES) {
                self.commit.appends.push(Append {
                    log,
                    partition: PartitionId(partition),
                    records,
                });
            }
        }
        let again = threads::has(Bug::DoubleCommit).then(|| Commit {
            appends: self.commit.appends.clone(),
            metadata: self.commit.metadata.clone(),
            ..Commit::default()
        });
        let done = move |result: Result<_, crate::log::CommitError>| {
            done(result.map(|_| committed).map_err(Refused::from));
        };
        env.log.commit(self.commit, Box::new(done));
        if let Some(again) = again {
            env.log.commit(again, |_| ());
        }
    }

    /// `written` is called once the records are let go of, `done` once they are durable. Commits of a task
    /// share a strand.
    pub(super) fn through_files(
        mut self,
        env: &Arc<Environment>,
        strand: &Arc<Strand>,
        written: Box<dyn FnOnce() + Send>,
        done: Done,
    ) {
        let mode = Arc::clone(&self.spec.mode);
        let done = move |result| {
            done(result);
            mode.end_files();
        };
        let (job_env, partition) = (Arc::clone(env), self.spec.partition);
        let job = move || {
            let written_files = guarded(|| {
                let committed = self.take_place();
                Ok((self.write(&job_env)?, committed))
            });
            let (files, committed) = match written_files {
                Ok(written) => written,
                Err(refused) => return done(Err(refused)),
            };
            let env = Arc::clone(&job_env);
            let sync = move || match guarded(|| files.sync()) {
                Ok(commit) => {
                    crash_point("replay-files-written");
                    let done = move |result: Result<_, CommitError>| {
                        done(result.map(|_| committed).map_err(Refused::from));
                    };
                    env.log.commit(commit, Box::new(done));
                }
                Err(refused) => done(Err(refused)),
            };
            // Before the next one may be written, which must come after.
            job_env.bulk.submit_sync(partition, Box::new(sync));
            written();
        };
        env.bulk.submit_write(strand, Box::new(job));
    }

    /// Writes each lane to a file of its own.
    fn write(self, env: &Environment) -> Result<Files, Refused> {
        let mut writers = Vec::new();
        for ((slot, partition), chunks) in self.lanes {
            let Some(log) = Self::log_of(&self.spec, slot) else { continue };
            let count: u64 = chunks.iter().map(|c| c.len() as u64).sum();
            let reserved = env.log.reserve(log, PartitionId(partition), count);
            let mut writer = SegmentWriter::new(reserved.map_err(Refused::from)?, self.pace);
            for records in &chunks {
                writer.append(records).map_err(Refused::from)?;
            }
            writer.flush().map_err(Refused::from)?;
            writers.push(writer);
        }
        Ok(Files { writers, commit: self.commit })
    }
}

/// Files that are written, and the commit that will name them.
struct Files {
    writers: Vec<SegmentWriter>,
    commit: Commit,
}

impl Files {
    /// Makes them durable.
    fn sync(mut self) -> Result<Commit, Refused> {
        for writer in self.writers {
            self.commit.segments.extend(writer.finish().map_err(Refused::from)?);
        }
        Ok(self.commit)
    }
}

/// A panic must not leave the task waiting for ever.
fn guarded<T>(work: impl FnOnce() -> Result<T, Refused>) -> Result<T, Refused> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let message = "a fault of the host while files were written: see its log".to_owned();
        Err(Refused { later: false, message })
    })
}

/// Joins small chunks, so that one commit is few appends.
fn join_up_to(chunks: Vec<Records>, bytes: usize) -> Vec<Records> {
    let (mut joined, mut group, mut size) = (Vec::new(), Vec::new(), 0);
    for chunk in chunks {
        let more = chunk.size_bytes();
        if !group.is_empty() && size + more > bytes {
            joined.extend(concat_records(&std::mem::take(&mut group)));
            size = 0;
        }
        size += more;
        group.push(chunk);
    }
    joined.extend(concat_records(&group));
    joined
}

/// The record of the journal that goes with a commit.
pub(super) fn journal_append(spec: &TaskSpec, entry: &JournalEntry, cursor: &Cursor) -> Append {
    let value = serde_json::to_vec(entry).expect("numbers always encode");
    let records = Records {
        timestamps: vec![cursor.stream_time_ms.unwrap_or_default()].into(),
        keys: [None::<&[u8]>].into_iter().collect(),
        values: [Some(value)].iter().collect(),
        headers: None,
        sources: None,
    };
    Append { log: spec.journal, partition: spec.partition, records }
}
