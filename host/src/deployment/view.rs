//! What the registry shows of deployments: status and metrics.

use super::events::rfc3339;
use super::metrics::{GenerationLabels, PartitionLabels};
use super::record::GenerationRecord;
use super::registry::DeploymentState;
use super::running::RunningGeneration;
use super::{DeploymentStatus, Error, GenerationStatus, Progress, Registry, TaskStatus};
use crate::task::{Apart, RunState};
use crate::types::PartitionId;

impl Registry {
    /// A deployment as it is now.
    ///
    /// # Errors
    /// When there is none.
    pub fn deployment(&self, name: &str) -> Result<DeploymentStatus, Error> {
        let deployment = self.find(name)?;
        let state = deployment.state.lock();
        Ok(self.deployment_status(&state))
    }

    /// All deployments, by name.
    pub fn deployments(&self) -> Vec<DeploymentStatus> {
        let deployments: Vec<_> = self.inner.deployments.read().values().cloned().collect();
        deployments.iter().map(|d| self.deployment_status(&d.state.lock())).collect()
    }

    fn deployment_status(&self, state: &DeploymentState) -> DeploymentStatus {
        let record = &state.record;
        let generations = record.generations.iter().map(|generation| {
            let running = state.running.get(&generation.number);
            self.generation_status(generation, running.map(AsRef::as_ref))
        });
        DeploymentStatus {
            name: record.name().to_string(),
            spec: record.spec.clone(),
            live: record.live.0,
            candidate: record.candidate().map(|g| g.number.0),
            warm: record.warm().map(|g| g.number.0),
            paused: record.paused,
            last_pause_ms: state.last_pause.map(|pause| pause.as_secs_f64() * 1e3),
            generations: generations.collect(),
        }
    }

    fn generation_status(
        &self,
        generation: &GenerationRecord,
        running: Option<&RunningGeneration>,
    ) -> GenerationStatus {
        GenerationStatus {
            number: generation.number.0,
            phase: generation.phase,
            plugin: generation.plugin.to_string(),
            plugin_name: generation.plugin_name.clone(),
            plugin_version: generation.plugin_version.clone(),
            parent: generation.parent.map(|n| n.0),
            from: generation.from.clone(),
            reason: generation.reason.clone(),
            failure: generation.failure.clone(),
            created_at: rfc3339(generation.created_ms),
            warm_until: generation.warm_until_ms.map(rfc3339),
            progress: running.map_or_else(Progress::default, |running| self.progress(running)),
            tasks: running.map_or_else(Vec::new, tasks),
        }
    }

    fn progress(&self, running: &RunningGeneration) -> Progress {
        let (records, remaining) = (running.records(), running.remaining());
        let rate = running.rate.sample(self.inner.clock.monotonic(), records);
        let eta_seconds = (remaining > 0 && rate > 0.0).then(|| remaining as f64 / rate);
        Progress { records, remaining, rate, eta_seconds }
    }

    /// The text of `/metrics`.
    pub fn metrics(&self) -> String {
        let metrics = &self.inner.metrics;
        let (head, stats) = (self.inner.log.head_bytes(), self.inner.log.stats());
        metrics.head_bytes.set(head as i64);
        let budget = self.inner.config.storage.head_bytes;
        metrics.seal_backlog.set(head.saturating_sub(budget) as i64);
        metrics.syncs.set(stats.groups, stats.sync_us);
        metrics.segment_bytes.clear();
        for topic in self.inner.log.topics().list() {
            let state = topic.state();
            for partition in (0..state.partitions).filter_map(|p| topic.partition(PartitionId(p))) {
                let labels =
                    PartitionLabels { topic: state.name.to_string(), partition: partition.id().0 };
                let gauge = metrics.segment_bytes.get_or_create(&labels);
                gauge.set(partition.file_bytes() as i64);
            }
        }
        if let Ok(free) = self.inner.file_system.free_bytes(&self.inner.config.data.dir) {
            metrics.disk_free.set(free as i64);
        }
        for family in
            [&metrics.lag, &metrics.state_bytes, &metrics.instances, &metrics.standing_back]
        {
            family.clear();
        }
        metrics.lag_seconds.clear();
        metrics.replay_progress.clear();
        metrics.swap_pause.clear();
        let deployments: Vec<_> = self.inner.deployments.read().values().cloned().collect();
        for deployment in deployments {
            let state = deployment.state.lock();
            let name = state.record.name().to_string();
            let labels = |generation| GenerationLabels { deployment: name.clone(), generation };
            for (number, running) in &state.running {
                let progress = self.progress(running);
                let labels = labels(number.0);
                metrics.lag.get_or_create(&labels).set(progress.remaining as i64);
                let bytes = super::stores::state_bytes(running);
                metrics.state_bytes.get_or_create(&labels).set(bytes as i64);
                let behind = running.tasks.iter().map(|task| task.behind_since()).min().flatten();
                let seconds = match behind {
                    Some(since) if progress.remaining > 0 => {
                        self.inner.clock.monotonic().saturating_sub(since).as_secs_f64()
                    }
                    _ => 0.0,
                };
                metrics.lag_seconds.get_or_create(&labels).set(seconds);
                let alive = running.tasks.iter().filter(|task| task.has_instance()).count();
                metrics.instances.get_or_create(&labels).set(alive as i64);
                let apart = running.tasks.iter().filter(|task| task.apart().is_some()).count();
                metrics.standing_back.get_or_create(&labels).set(apart as i64);
                let all = (progress.records + progress.remaining).max(1);
                let ratio = progress.records as f64 / all as f64;
                metrics.replay_progress.get_or_create(&labels).set(ratio);
            }
            if let Some(pause) = state.last_pause {
                let labels = labels(state.record.live.0);
                metrics.swap_pause.get_or_create(&labels).set(pause.as_secs_f64());
            }
        }
        metrics.render()
    }
}

fn tasks(running: &RunningGeneration) -> Vec<TaskStatus> {
    let task = |task: &std::sync::Arc<crate::task::TaskShared>| {
        let (state, failure) = match task.run_state() {
            RunState::Starting => ("starting", None),
            RunState::Running => ("running", None),
            RunState::Idle => ("idle", None),
            RunState::Held => ("held", None),
            RunState::Blocked(reason) => ("waiting", Some(reason)),
            RunState::Stopped(reason) if reason.is_empty() => ("stopped", None),
            RunState::Stopped(reason) => ("failed", Some(reason)),
        };
        let stands_back = task.apart().map(|apart| match apart {
            Apart::Long => "its last batch took half a second or more",
            Apart::Wasteful => "most of its time goes to calls that fail or say more than is kept",
        });
        TaskStatus {
            partition: task.partition.0,
            inputs: task.positions().into_iter().map(|o| o.0).collect(),
            state: state.to_owned(),
            failure,
            stands_back: stands_back.map(str::to_owned),
        }
    };
    running.tasks.iter().map(task).collect()
}

#[cfg(test)]
impl Registry {
    /// Where the tasks of a generation began: for each, the offset in each input.
    pub(crate) fn starts_of(&self, name: &str, generation: u32) -> Vec<Vec<crate::types::Offset>> {
        let deployment = self.find(name).unwrap();
        let state = deployment.state.lock();
        let number = crate::types::GenerationNumber(generation);
        state.record.generation(number).unwrap().start.clone()
    }
}
