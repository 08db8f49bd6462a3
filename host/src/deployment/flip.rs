//! The flip: one atomic step from one generation to another.
//!
//! The live tasks are held at a commit, so that their positions F stand still; the other generation
//! runs to F; one commit closes the mounts of the old logs, opens those of the new, and makes the new
//! generation the live one. The commit is guarded by the exact cursors of all tasks of both: if any
//! of them moved, nothing happens. The old generation then follows the new one.

use std::sync::Arc;
use std::time::Duration;

use super::record::{DeploymentRecord, GenerationLogs};
use super::running::{RunningGeneration, topic};
use super::{Error, Kind};
use crate::clock::Clock;
use crate::log::{Commit, Guard, Log, TopicChange};
use crate::storage::crash_point;
use crate::task::{Role, RunState, cursor_key};
use crate::threads::{self, Bug};
use crate::types::{GenerationNumber, LogId, Offset, PartitionId};

/// A flip that is being carried out.
pub struct Flip<'a> {
    /// The log.
    pub log: &'a Log,
    /// The deployment as it stands.
    pub before: &'a DeploymentRecord,
    /// The bytes of that in the catalogue.
    pub stored: &'a [u8],
    /// The deployment as it will stand.
    pub after: DeploymentRecord,
    /// The tasks of the live generation.
    pub live: &'a Arc<RunningGeneration>,
    /// The tasks of the generation that goes live.
    pub next: &'a Arc<RunningGeneration>,
    /// The other generations that run: they follow the new live one afterwards.
    pub others: &'a [Arc<RunningGeneration>],
    /// Time, for the deadline.
    pub clock: &'a dyn Clock,
    /// How long the live tasks may be held.
    pub timeout: Duration,
}

impl Flip<'_> {
    /// Carries it out; on any error the live generation goes on as before.
    ///
    /// # Errors
    /// When the tasks do not stand still or catch up in time, or the commit is refused.
    pub fn run(self) -> Result<DeploymentRecord, Error> {
        self.live.tasks.iter().for_each(|task| task.set_hold(true));
        let result = self.commit_at_standstill();
        let paused = self.before.paused;
        match &result {
            Ok(()) => {
                for task in &self.next.tasks {
                    task.set_hold(paused);
                    task.set_role(Role::Live);
                }
                for follower in self.others.iter().chain([self.live]) {
                    for (old, new) in follower.tasks.iter().zip(&self.next.tasks) {
                        old.set_role(Role::Follow(Arc::clone(new)));
                        old.set_hold(false);
                    }
                }
            }
            Err(_) => self.live.tasks.iter().for_each(|task| task.set_hold(paused)),
        }
        result.map(|()| self.after)
    }

    fn commit_at_standstill(&self) -> Result<(), Error> {
        let still = |run: &RunState| matches!(run, RunState::Held | RunState::Stopped(_));
        let deadline = self.clock.monotonic() + self.timeout;
        let left = || deadline.saturating_sub(self.clock.monotonic());
        if !self.live.tasks.iter().all(|task| task.wait_for(left(), still)) {
            return Err(not_in_time("the live tasks did not stand still"));
        }
        crash_point("flip-held");
        for (live, next) in self.live.tasks.iter().zip(&self.next.tasks) {
            next.wake();
            if !threads::has(Bug::EarlyFlip) && !next.wait_reached(left(), &live.positions()) {
                return Err(not_in_time("the new generation did not reach the live positions"));
            }
        }
        crash_point("flip-reached");
        let commit = self.commit()?;
        self.log.commit_blocking(commit).map_err(|e| {
            let message = format!("the flip of {} was refused: {e}", self.before.name());
            Error::new(Kind::Conflict, "flip_refused", message)
        })?;
        crash_point("flip-committed");
        Ok(())
    }

    fn commit(&self) -> Result<Commit, Error> {
        let mut commit = Commit::default();
        for (generation, running) in [(self.before.live, self.live), (self.after.live, self.next)] {
            for task in &running.tasks {
                let id = self.before.generation_id(generation);
                let key = cursor_key(id, task.partition);
                commit.guards.push(Guard { key, expected: task.cursor_bytes() });
            }
        }
        let key = DeploymentRecord::key(self.before.id);
        let expected = Some(self.stored.to_vec());
        commit.guards.push(Guard { key: key.clone(), expected });
        commit.metadata.push((key, Some(self.after.encode())));
        let old = logs(self.before, self.before.live)?;
        let new = logs(self.before, self.after.live)?;
        for (old, new) in old.mounted().zip(new.mounted()) {
            let state = topic(self.log, &old.topic)?.state();
            let to = self.ends(old.log, old.partitions)?;
            let from = self.ends(new.log, new.partitions)?;
            let number = Some(self.after.live.0);
            commit.topics.push(TopicChange::Put(state.swapped(to, new.log, number, from)));
        }
        Ok(commit)
    }

    fn ends(&self, log: LogId, partitions: u32) -> Result<Vec<Offset>, Error> {
        let end = |partition| {
            let partition = self.log.partition(log, PartitionId(partition));
            partition.map(|p| p.durable_offset()).ok_or_else(|| {
                let message = format!("log {log} of {} is gone", self.before.name());
                Error::new(Kind::Internal, "log_missing", message)
            })
        };
        (0..partitions).map(end).collect()
    }
}

fn logs(record: &DeploymentRecord, number: GenerationNumber) -> Result<&GenerationLogs, Error> {
    record.generation(number).and_then(|g| g.logs.as_ref()).ok_or_else(|| {
        let message = format!("generation {number} of {} has no logs", record.name());
        Error::new(Kind::Internal, "log_missing", message)
    })
}

fn not_in_time(what: &str) -> Error {
    let message = format!("{what} in time; the live generation goes on, try again");
    Error::new(Kind::Unavailable, "flip_timeout", message)
}
