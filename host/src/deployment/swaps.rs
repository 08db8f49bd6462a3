//! Swaps: a candidate replays, is promoted or ends; and the way back.
//!
//! **Invariant:** at every moment, and after a crash at any moment, exactly one generation is live.

use std::sync::Arc;
use std::time::Duration;

use super::controller::warm_failure;
use super::flip::Flip;
use super::generation::Draft;
use super::lifecycle::begin;
use super::registry::{Deployment, DeploymentState};
use super::running::topic;
use super::{
    DeploymentStatus, Error, Kind, Phase, Preflight, Registry, StartAt, SwapRequest, SwapStarted,
};
use crate::log::Commit;
use crate::storage::crash_point;
use crate::types::{GenerationNumber, LogId, PartitionId};

impl Registry {
    /// Starts a candidate that replays history through another plugin or config.
    ///
    /// # Errors
    /// When a swap is under way, the plugin does not fit, or memory or disk will not do.
    pub fn swap(&self, name: &str, request: &SwapRequest) -> Result<SwapStarted, Error> {
        self.ready()?;
        let deployment = self.find(name)?;
        let _operation = begin(&deployment)?;
        request.check_reason()?;
        let _basis_stays = self.inner.basis.read();
        let (digest, plugin) = self.plugin_of(&request.plugin)?;
        let mut state = deployment.state.lock();
        if let Some(candidate) = state.record.candidate() {
            let message = format!(
                "{name} is being swapped to generation {}: promote, reject or cancel it first",
                candidate.number
            );
            return Err(Error::new(Kind::Conflict, "swap_under_way", message));
        }
        let config = request.config.clone().unwrap_or_else(|| state.record.spec.config.clone());
        self.check_fit(&state.record.spec, &plugin, &config)?;
        let preflight = self.preflight(&state, request.from)?;
        let mut commit = Commit::default();
        let draft = Draft {
            plugin: &plugin,
            digest,
            config,
            from: request.from,
            approve: request.approve,
            reason: request.reason.clone(),
            phase: Phase::Replaying,
        };
        let generation = self.draft_generation(&mut commit, &state.record, draft)?;
        let number = generation.number;
        let mut after = state.record.clone();
        after.next = GenerationNumber(number.0 + 1);
        after.generations.push(generation);
        crash_point("swap-drafted");
        self.store(&mut state, after, commit)?;
        crash_point("swap-recorded");
        let started = if self.inner.safe { Ok(()) } else { self.start_running(&mut state) };
        let id = state.record.id;
        drop(state);
        if let Err(error) = started {
            self.end_generation(&deployment, number, Phase::Failed, Some(error.to_string()))?;
            return Err(error);
        }
        let message =
            format!("{name} replays {} records through plugin {digest}", preflight.records);
        self.inner.events.tell("swap-started", name, Some(number.0), message);
        self.inner.attention.raise(id);
        Ok(SwapStarted { generation: number.0, preflight })
    }

    /// What a swap is expected to take; refused when memory or disk will not do.
    fn preflight(&self, state: &DeploymentState, from: StartAt) -> Result<Preflight, Error> {
        let record = &state.record;
        let starts = self.start_offsets(&record.spec, record.tasks, from)?;
        let live = state.running.get(&record.live);
        let (mut records, mut input_bytes) = (0, 0);
        for (task, start) in starts.iter().enumerate() {
            let bound = live.map(|live| live.tasks[task].positions());
            for (i, name) in record.spec.inputs.iter().enumerate() {
                let topic = topic(&self.inner.log, name)?;
                let id = PartitionId(task as u32);
                let Some(partition) = topic.partition(id) else { continue };
                let end = partition.end_offset();
                let to = bound.as_ref().map_or(end, |b| b[i]);
                let count = |from, to| {
                    partition
                        .count_between(from, to)
                        .map_err(|e| Error::new(Kind::Internal, "cannot_read", e.to_string()))
                };
                let all = count(partition.start_offset(), end)?.max(1);
                let count = count(start[i], to)?;
                records += count;
                input_bytes += (partition.size_bytes() as f64 * count as f64 / all as f64) as u64;
            }
        }
        let memory_bytes = live.map_or(0, |live| super::stores::state_bytes(live));
        let logs = record.generation(record.live).and_then(|g| g.logs.as_ref());
        let disk_bytes =
            logs.map_or(0, |logs| logs.all().into_iter().map(|l| self.log_bytes(l)).sum());
        let dir = &self.inner.config.data.dir;
        let free_disk_bytes = self.inner.file_system.free_bytes(dir).unwrap_or(u64::MAX);
        let keep = self.inner.config.storage.min_free_bytes;
        if disk_bytes.saturating_add(keep) > free_disk_bytes {
            let message = format!(
                "the candidate would need about {disk_bytes} bytes on disk, as the live generation has; {free_disk_bytes} are free and {keep} stay free (storage.min_free_bytes): make room, or raise the start with --from"
            );
            return Err(Error::new(Kind::Refused, "preflight_disk", message));
        }
        if let Some(available) = crate::storage::available_memory_bytes()
            && memory_bytes > available
        {
            let message = format!(
                "the candidate would need about {memory_bytes} bytes of memory for its stores, as the live generation has; {available} are available"
            );
            return Err(Error::new(Kind::Refused, "preflight_memory", message));
        }
        let seconds = record.replay_rate.filter(|r| *r > 0.0).map(|rate| records as f64 / rate);
        Ok(Preflight { records, input_bytes, seconds, memory_bytes, disk_bytes, free_disk_bytes })
    }

    /// Bytes of a physical log.
    pub(super) fn log_bytes(&self, log: LogId) -> u64 {
        let partitions = self.inner.log.spec(log).map_or(0, |spec| spec.partitions);
        let partition = |p| self.inner.log.partition(log, PartitionId(p));
        (0..partitions).filter_map(partition).map(|p| p.size_bytes()).sum()
    }

    /// Makes a candidate that has caught up the live generation.
    ///
    /// # Errors
    /// When there is none, or it has not caught up.
    pub fn promote(&self, name: &str) -> Result<DeploymentStatus, Error> {
        let deployment = self.find(name)?;
        let _operation = begin(&deployment)?;
        let candidate = {
            let state = deployment.state.lock();
            let Some(candidate) = state.record.candidate() else { return Err(no_candidate(name)) };
            if candidate.phase == Phase::Replaying {
                let message = format!(
                    "generation {} of {name} is still replaying: wait until it has caught up",
                    candidate.number
                );
                return Err(Error::new(Kind::Conflict, "not_caught_up", message));
            }
            candidate.number
        };
        self.flip(&deployment, candidate, "promoted")?;
        self.deployment(name)
    }

    /// Goes back to the warm generation.
    ///
    /// # Errors
    /// When there is none.
    pub fn rollback(&self, name: &str) -> Result<DeploymentStatus, Error> {
        let deployment = self.find(name)?;
        let _operation = begin(&deployment)?;
        let warm = {
            let state = deployment.state.lock();
            state.record.warm().map(|warm| (warm.number, warm_failure(&state, warm)))
        };
        let Some((warm, failure)) = warm else {
            let message = format!(
                "{name} has no warm generation to go back to: its lease has ended, or it was never swapped; swap to the old plugin instead"
            );
            return Err(Error::new(Kind::Conflict, "no_warm_generation", message));
        };
        if let Some(reason) = failure {
            let message = format!(
                "the warm generation of {name}, generation {warm}, failed: {reason}; swap to its plugin instead"
            );
            return Err(Error::new(Kind::Conflict, "no_warm_generation", message));
        }
        self.flip(&deployment, warm, "rolled-back")?;
        self.deployment(name)
    }

    /// Flips to generation `to`; the caller holds the deployment's operation.
    pub(super) fn flip(
        &self,
        deployment: &Arc<Deployment>,
        to: GenerationNumber,
        kind: &str,
    ) -> Result<(), Error> {
        let (before, stored, live, next, others) = {
            let state = deployment.state.lock();
            let running = |number| {
                state.running.get(&number).cloned().ok_or_else(|| {
                    let message = format!("generation {number} is not running");
                    Error::new(Kind::Conflict, "not_running", message)
                })
            };
            let (live, next) = (running(state.record.live)?, running(to)?);
            let others =
                state.running.iter().filter(|(n, _)| **n != to && **n != state.record.live);
            let others: Vec<_> = others.map(|(_, running)| Arc::clone(running)).collect();
            (state.record.clone(), state.stored.clone(), live, next, others)
        };
        let name = before.name().to_string();
        let now = self.inner.clock.now_ms();
        let lease = i64::try_from(before.spec.swap.warm_lease.as_millis()).unwrap_or(i64::MAX);
        let mut after = before.clone();
        after.live = to;
        for generation in &mut after.generations {
            if generation.number == to {
                generation.phase = Phase::Live;
                generation.warm_until_ms = None;
                after.spec.config.clone_from(&generation.config);
                after.spec.plugin = generation.plugin.to_string();
            } else if generation.number == before.live {
                generation.phase = Phase::Warm;
                generation.warm_until_ms = Some(now.saturating_add(lease));
            } else if generation.phase == Phase::Warm {
                // One warm generation at a time: an older one's lease ends here.
                generation.warm_until_ms = Some(now);
            }
        }
        if let Some((began, records)) = deployment.state.lock().replay_began.get(&to) {
            let seconds = self.inner.clock.monotonic().saturating_sub(*began).as_secs_f64();
            let done = next.records().saturating_sub(*records) as f64;
            after.replay_rate = (seconds > 0.0 && done > 0.0).then(|| (done / seconds).round());
        }
        let began = self.inner.clock.monotonic();
        let timeout = Duration::from_millis(self.inner.config.tasks.flip_timeout_ms);
        let flip = Flip {
            log: &self.inner.log,
            before: &before,
            stored: &stored,
            after,
            live: &live,
            next: &next,
            others: &others,
            clock: &*self.inner.clock,
            timeout,
        };
        let after = flip.run()?;
        crash_point("flip-done");
        let pause = self.inner.clock.monotonic().saturating_sub(began);
        let mut state = deployment.state.lock();
        state.stored = after.encode();
        state.record = after;
        state.last_pause = Some(pause);
        state.replay_began.remove(&to);
        let message = format!(
            "generation {to} of {name} is live; live tasks were held for {:.1} ms",
            pause.as_secs_f64() * 1e3
        );
        self.inner.events.tell(kind, &name, Some(to.0), message);
        self.inner.attention.raise(state.record.id);
        Ok(())
    }

    /// Turns down a candidate that has caught up.
    ///
    /// # Errors
    /// When there is none.
    pub fn reject(&self, name: &str) -> Result<DeploymentStatus, Error> {
        self.end_candidate(name, Phase::Rejected, "rejected")
    }

    /// Calls off a swap.
    ///
    /// # Errors
    /// When there is none.
    pub fn cancel(&self, name: &str) -> Result<DeploymentStatus, Error> {
        self.end_candidate(name, Phase::Cancelled, "cancelled")
    }

    fn end_candidate(
        &self,
        name: &str,
        phase: Phase,
        kind: &str,
    ) -> Result<DeploymentStatus, Error> {
        let deployment = self.find(name)?;
        let _operation = begin(&deployment)?;
        let candidate = deployment.state.lock().record.candidate().map(|g| (g.number, g.phase));
        let Some((number, current)) = candidate else { return Err(no_candidate(name)) };
        if phase == Phase::Rejected && current == Phase::Replaying {
            let message =
                format!("generation {number} of {name} is still replaying: cancel it instead");
            return Err(Error::new(Kind::Conflict, "not_caught_up", message));
        }
        self.end_generation(&deployment, number, phase, None)?;
        let message = format!("generation {number} of {name} is {kind}");
        self.inner.events.tell(kind, name, Some(number.0), message);
        self.deployment(name)
    }
}

fn no_candidate(name: &str) -> Error {
    let message = format!("{name} has no candidate: nothing is being swapped");
    Error::new(Kind::Conflict, "no_candidate", message)
}
