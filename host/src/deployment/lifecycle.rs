//! The life of a deployment: deploy, start, pause, delete, and the end of a generation.
//!
//! **Invariant:** a generation that ends takes its logs, stores and cursors with it and nothing else.

use std::sync::Arc;
use std::time::Duration;

use super::generation::Draft;
use super::record::{DeploymentRecord, GenerationRecord};
use super::registry::{Deployment, DeploymentState};
use super::running::{Launch, RunningGeneration, stop_all, topic};
use super::{Approve, DeploymentSpec, DeploymentStatus, Error, Kind, Phase, Registry, StartAt};
use crate::log::{Commit, Guard, TopicChange};
use crate::storage::crash_point;
use crate::task::{checkpoint_files, checkpoint_prefix, cursor_prefix, remove_checkpoint};
use crate::threads::MutexGuard;
use crate::types::{DeploymentId, DeploymentName, GenerationNumber};

/// Generations that ended and are still listed.
const REMEMBERED_GENERATIONS: usize = 50;

impl Registry {
    /// Reads all deployments and starts what runs of them.
    pub(super) fn start_deployments(&self) -> Result<(), Error> {
        let (mut records, mut damaged) = (Vec::new(), None);
        let scanned = self.inner.log.metadata_scan(b"d", |_, value| {
            match serde_json::from_slice::<DeploymentRecord>(&value) {
                Ok(record) => records.push((record, value)),
                Err(error) => damaged = Some(error.to_string()),
            }
        });
        if let Some(e) = scanned.map_err(|e| e.to_string()).err().or(damaged) {
            return Err(Error::new(Kind::Internal, "catalogue_damaged", e));
        }
        for (record, stored) in records {
            let name = record.name().clone();
            let deployment = Deployment::new(record, stored);
            self.inner.deployments.write().insert(name, Arc::clone(&deployment));
            self.start_or_note(&deployment);
        }
        Ok(())
    }

    /// Starts what should run of a deployment. What cannot start says so in its status, and `resume`
    /// tries again.
    fn start_or_note(&self, deployment: &Deployment) {
        let mut state = deployment.state.lock();
        // What failed before may not fail again; in the catalogue it stays until it is settled.
        let generations = state.record.generations.iter_mut();
        generations.filter(|g| g.phase.runs()).for_each(|generation| generation.failure = None);
        if !self.inner.safe
            && let Err(error) = self.start_running(&mut state)
        {
            tracing::error!(deployment = %state.record.name(), "cannot start: {error}");
            let live = state.record.live;
            if let Some(generation) = state.record.generation_mut(live) {
                generation.failure = Some(error.to_string());
            }
        }
        self.inner.attention.raise(state.record.id);
    }

    /// Starts the tasks of every generation that should run and does not: the live one first.
    pub(super) fn start_running(&self, state: &mut DeploymentState) -> Result<(), Error> {
        let live = state.record.live;
        self.start_generation(state, live)?;
        let others: Vec<GenerationNumber> = state
            .record
            .generations
            .iter()
            .filter(|g| g.phase.runs() && g.number != live)
            .map(|g| g.number)
            .collect();
        others.into_iter().try_for_each(|number| self.start_generation(state, number))
    }

    fn start_generation(
        &self,
        state: &mut DeploymentState,
        number: GenerationNumber,
    ) -> Result<(), Error> {
        if state.running.contains_key(&number) {
            return Ok(());
        }
        let Some(generation) = state.record.generation(number) else { return Ok(()) };
        let plugin = self.load_plugin(&generation.plugin)?;
        let live = state.record.live;
        let leader = (number != live).then(|| state.running.get(&live)).flatten();
        let leader = leader.map(AsRef::as_ref);
        let (attention, id) = (Arc::clone(&self.inner.attention), state.record.id);
        let launch = Launch {
            env: &self.inner.env,
            workers: &self.inner.workers,
            on_change: Arc::new(move || attention.raise(id)),
        };
        let running = RunningGeneration::start(&launch, &state.record, generation, plugin, leader)?;
        if matches!(generation.phase, Phase::Replaying | Phase::CaughtUp) {
            let began = (self.inner.clock.monotonic(), running.records());
            state.replay_began.insert(number, began);
        }
        state.running.insert(number, Arc::new(running));
        Ok(())
    }

    /// A deployment by name.
    pub(super) fn find(&self, name: &str) -> Result<Arc<Deployment>, Error> {
        let not_found = || {
            let message = format!(
                "there is no deployment {name:?}: see `anabranch status`, or deploy it first"
            );
            Error::new(Kind::NotFound, "deployment_not_found", message)
        };
        let name: DeploymentName = name.parse().map_err(|_| not_found())?;
        self.inner.deployments.read().get(&name).cloned().ok_or_else(not_found)
    }

    /// Creates a deployment; the same one again changes nothing.
    ///
    /// # Errors
    /// When it does not fit its plugin or topics, makes a cycle, or another has the name.
    pub fn deploy(&self, spec: &DeploymentSpec) -> Result<DeploymentStatus, Error> {
        self.ready()?;
        let _naming = self.inner.naming.lock();
        if let Ok(existing) = self.find(spec.name.as_str()) {
            if existing.state.lock().record.spec == *spec {
                return self.deployment(spec.name.as_str());
            }
            let message = format!(
                "deployment {} exists and is not the same: use swap to change its plugin or config, or delete it first",
                spec.name
            );
            return Err(Error::new(Kind::Conflict, "deployment_exists", message));
        }
        let _basis_stays = self.inner.basis.read();
        let (digest, plugin) = self.plugin_of(&spec.plugin)?;
        self.check_fit(spec, &plugin, &spec.config)?;
        let tasks = self.task_count(spec)?;
        let dead_letters = Self::dead_letter_topic(spec)?;
        let mut record = DeploymentRecord {
            id: DeploymentId(self.inner.log.allocate_id()),
            spec: spec.clone(),
            live: Self::FIRST,
            paused: false,
            next: Self::FIRST,
            tasks,
            dead_letters,
            replay_rate: None,
            generations: Vec::new(),
        };
        let owned: Vec<_> = record.owned_topics().cloned().collect();
        let distinct: std::collections::BTreeSet<_> = owned.iter().collect();
        if distinct.len() < owned.len() {
            let message = "[outputs]: two outputs have the same topic; give each its own";
            return Err(Error::new(Kind::Invalid, "topic_owned", message));
        }
        self.check_cycle(spec, &owned)?;
        let mut commit = Commit::default();
        let draft = Draft {
            plugin: &plugin,
            digest,
            config: spec.config.clone(),
            from: StartAt::Earliest,
            approve: Approve::Auto,
            reason: None,
            phase: Phase::Live,
        };
        let generation = self.draft_generation(&mut commit, &record, draft)?;
        if let Some(logs) = &generation.logs {
            self.claim_topics(&mut commit, &record, logs)?;
        }
        record.generations.push(generation);
        record.next = GenerationNumber(2);
        let key = DeploymentRecord::key(record.id);
        let stored = record.encode();
        commit.guards.push(Guard { key: key.clone(), expected: None });
        commit.metadata.push((key, Some(stored.clone())));
        self.commit(commit)?;
        let deployment = Deployment::new(record, stored);
        self.inner.deployments.write().insert(spec.name.clone(), Arc::clone(&deployment));
        let message = format!("{} runs plugin {digest}", spec.name);
        self.inner.events.tell("deployed", spec.name.as_str(), Some(1), message);
        self.start_or_note(&deployment);
        self.deployment(spec.name.as_str())
    }

    /// One task for each partition of the input that has most.
    fn task_count(&self, spec: &DeploymentSpec) -> Result<u32, Error> {
        if spec.inputs.is_empty() {
            let message = "inputs: name at least one topic to read";
            return Err(Error::new(Kind::Invalid, "no_inputs", message));
        }
        let mut count = 0;
        for (i, name) in spec.inputs.iter().enumerate() {
            if spec.inputs[..i].contains(name) {
                let message = format!("inputs: {name} is named twice");
                return Err(Error::new(Kind::Invalid, "invalid_inputs", message));
            }
            count = count.max(topic(&self.inner.log, name)?.state().partitions);
        }
        Ok(count)
    }

    /// Deletes a deployment with its generations and stores. The topics of its outputs stay, with what
    /// the live generation made.
    ///
    /// # Errors
    /// When there is none, or another deployment reads its outputs.
    pub fn delete_deployment(&self, name: &str) -> Result<(), Error> {
        let _naming = self.inner.naming.lock();
        let deployment = self.find(name)?;
        let _operation = begin(&deployment)?;
        let running = deployment.state.lock().running.clone();
        let state = deployment.state.lock();
        for owned in state.record.owned_topics() {
            let own = |reader: &DeploymentName| reader != state.record.name();
            if let Some(reader) = self.reader_of_other(owned, &state.record).filter(own) {
                let message = format!(
                    "deployment {reader} reads {owned}, an output of {name}: delete it first"
                );
                return Err(Error::new(Kind::Conflict, "deployment_in_use", message));
            }
        }
        drop(state);
        stop_all(running.values());
        let mut state = deployment.state.lock();
        state.running.clear();
        let mut commit = Commit::default();
        for generation in &state.record.generations {
            let Some(logs) = &generation.logs else { continue };
            let live = generation.number == state.record.live;
            let kept: Vec<_> =
                if live { logs.mounted().map(|o| o.log).collect() } else { Vec::new() };
            commit.deletes.extend(logs.all().into_iter().filter(|log| !kept.contains(log)));
            self.forget_tasks(&mut commit, &state.record, generation);
        }
        for owned in state.record.owned_topics() {
            let mut topic = (*topic(&self.inner.log, owned)?.state()).clone();
            topic.version += 1;
            topic.owner = None;
            let open = topic.open_mount().log;
            // Logs of a deployment that had the topic before, which nobody else would delete.
            let older = topic.mounts.iter().filter(|m| !m.retired && m.log != open).map(|m| m.log);
            for log in older {
                if !commit.deletes.contains(&log) {
                    commit.deletes.push(log);
                }
            }
            topic.mounts.iter_mut().filter(|m| m.log != open).for_each(|m| m.retired = true);
            commit.topics.push(TopicChange::Put(topic));
        }
        commit.metadata.push((DeploymentRecord::key(state.record.id), None));
        let files = self.checkpoint_files(&state.record, |_| true);
        if let Err(error) = self.commit(commit) {
            // It is there as before, and goes on.
            drop(state);
            self.start_or_note(&deployment);
            return Err(error);
        }
        files.iter().for_each(|file| remove_checkpoint(&self.inner.env, file));
        self.inner.deployments.write().remove(state.record.name());
        self.inner.events.tell("deleted", name, None, format!("{name} is gone"));
        Ok(())
    }

    /// A deployment other than `record` that reads a topic.
    fn reader_of_other(
        &self,
        name: &crate::types::TopicName,
        record: &DeploymentRecord,
    ) -> Option<DeploymentName> {
        let deployments = self.inner.deployments.read();
        deployments.iter().find_map(|(other, deployment)| {
            // The caller holds its own deployment's state.
            if other == record.name() {
                return None;
            }
            deployment.state.lock().record.spec.inputs.contains(name).then(|| other.clone())
        })
    }

    /// Adds the removal of a generation's cursors and checkpoints to `commit`.
    fn forget_tasks(
        &self,
        commit: &mut Commit,
        record: &DeploymentRecord,
        generation: &GenerationRecord,
    ) {
        let id = record.generation_id(generation.number);
        for prefix in [cursor_prefix(id), checkpoint_prefix(id)] {
            let mut keys = Vec::new();
            // What cannot be read now stays behind: a few small keys that nothing reads again.
            drop(self.inner.log.metadata_scan(&prefix, |key, _| keys.push(key.to_vec())));
            commit.metadata.extend(keys.into_iter().map(|key| (key, None)));
        }
    }

    /// The files of the checkpoints of some of a deployment's generations.
    fn checkpoint_files(
        &self,
        record: &DeploymentRecord,
        of: impl Fn(GenerationNumber) -> bool,
    ) -> Vec<std::path::PathBuf> {
        let generations = record.generations.iter().filter(|g| of(g.number));
        let ids = generations.map(|g| record.generation_id(g.number));
        ids.flat_map(|id| checkpoint_files(&self.inner.env, id)).collect()
    }

    /// Ends a generation that is not live: tasks, cursors, logs, mounts.
    pub(super) fn end_generation(
        &self,
        deployment: &Arc<Deployment>,
        number: GenerationNumber,
        phase: Phase,
        failure: Option<String>,
    ) -> Result<(), Error> {
        let running = deployment.state.lock().running.get(&number).cloned();
        if let Some(running) = running {
            stop_all([&running]);
        }
        crash_point("end-stopped");
        let mut state = deployment.state.lock();
        let ended = self.record_end(&mut state, number, phase, failure);
        if ended.is_err() && phase != Phase::Failed {
            // It is there as before, so it must not stand still: it may become the live one.
            state.running.remove(&number);
            if let Err(error) = self.start_generation(&mut state, number) {
                let name = state.record.name();
                tracing::warn!(deployment = %name, "generation {number} cannot go on: {error}");
            }
        }
        ended
    }

    /// Ends a generation whose tasks have ended.
    fn record_end(
        &self,
        state: &mut DeploymentState,
        number: GenerationNumber,
        phase: Phase,
        failure: Option<String>,
    ) -> Result<(), Error> {
        let mut after = state.record.clone();
        let mut commit = Commit::default();
        let mut logs = None;
        if let Some(generation) = after.generation_mut(number) {
            generation.phase = phase;
            generation.failure = failure;
            generation.warm_until_ms = None;
            logs = generation.logs.take();
        }
        if let Some(generation) = state.record.generation(number) {
            self.forget_tasks(&mut commit, &state.record, generation);
        }
        if let Some(logs) = logs {
            commit.deletes = logs.all();
            for output in logs.mounted() {
                let mut topic = (*topic(&self.inner.log, &output.topic)?.state()).clone();
                if topic.mounts.iter().any(|m| m.log == output.log) {
                    topic.version += 1;
                    topic.mounts.iter_mut().filter(|m| m.log == output.log).for_each(|m| {
                        m.retired = true;
                    });
                    commit.topics.push(TopicChange::Put(topic));
                }
            }
        }
        let over = after.generations.iter().filter(|g| !g.phase.runs()).count();
        let mut drop_oldest = over.saturating_sub(REMEMBERED_GENERATIONS);
        after.generations.retain(|g| {
            let forget = drop_oldest > 0 && !g.phase.runs();
            drop_oldest -= usize::from(forget);
            !forget
        });
        let files = self.checkpoint_files(&state.record, |n| n == number);
        self.store(state, after, commit)?;
        crash_point("end-recorded");
        files.iter().for_each(|file| remove_checkpoint(&self.inner.env, file));
        state.running.remove(&number);
        state.replay_began.remove(&number);
        Ok(())
    }

    /// Holds the live tasks until [`Registry::resume`].
    ///
    /// # Errors
    /// When there is no such deployment.
    pub fn pause(&self, name: &str) -> Result<DeploymentStatus, Error> {
        self.set_paused(name, true)
    }

    /// Lets the live tasks go on, and starts again those that had failed.
    ///
    /// # Errors
    /// When there is no such deployment, or its tasks cannot be started.
    pub fn resume(&self, name: &str) -> Result<DeploymentStatus, Error> {
        self.set_paused(name, false)
    }

    fn set_paused(&self, name: &str, paused: bool) -> Result<DeploymentStatus, Error> {
        let deployment = self.find(name)?;
        let _operation = begin(&deployment)?;
        let mut state = deployment.state.lock();
        let live = state.record.live;
        let failed = state.running.get(&live).is_none_or(|r| r.failure().is_some());
        if state.record.paused != paused || failed {
            let mut after = state.record.clone();
            after.paused = paused;
            if let Some(generation) = after.generation_mut(live) {
                generation.failure = None;
            }
            self.store(&mut state, after, Commit::default())?;
            if failed && !paused {
                drop(state);
                self.restart(&deployment);
                state = deployment.state.lock();
            }
            if let Some(running) = state.running.get(&live) {
                running.tasks.iter().for_each(|task| task.set_hold(paused));
            }
            let kind = if paused { "paused" } else { "resumed" };
            self.inner.events.tell(kind, name, Some(live.0), format!("{name} is {kind}"));
        }
        drop(state);
        self.deployment(name)
    }

    /// Starts all tasks anew: the live ones, and those that follow them.
    fn restart(&self, deployment: &Deployment) {
        let running = deployment.state.lock().running.clone();
        stop_all(running.values());
        deployment.state.lock().running.clear();
        self.start_or_note(deployment);
    }

    /// Puts a deployment's next record into the catalogue, with what else `commit` holds.
    pub(super) fn store(
        &self,
        state: &mut DeploymentState,
        after: DeploymentRecord,
        mut commit: Commit,
    ) -> Result<(), Error> {
        let key = DeploymentRecord::key(after.id);
        let stored = after.encode();
        commit.guards.push(Guard { key: key.clone(), expected: Some(state.stored.clone()) });
        commit.metadata.push((key, Some(stored.clone())));
        self.commit(commit)?;
        (state.record, state.stored) = (after, stored);
        Ok(())
    }
}

/// Takes the deployment for a change, or tells that someone else has it.
pub(super) fn begin(deployment: &Deployment) -> Result<MutexGuard<'_, ()>, Error> {
    deployment.operation.try_lock_for(Duration::from_millis(50)).ok_or_else(|| {
        let message = "someone else is changing this deployment right now: look at its status, then try again";
        Error::new(Kind::Conflict, "operation_under_way", message)
    })
}
