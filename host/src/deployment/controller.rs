//! The controller: promotes candidates that have caught up, ends those that failed, retires warm
//! generations whose lease has ended, and wakes tasks that could not commit. It sleeps until a task
//! has something to tell or something is due.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::lifecycle::begin;
use super::record::{GenerationLogs, GenerationRecord};
use super::registry::{Deployment, DeploymentState};
use super::{Approve, Error, Kind, Phase, Registry};
use crate::log::{Commit, Mount};
use crate::storage::crash_point;
use crate::task::RunState;
use crate::types::{DeploymentId, GenerationNumber, LogId, Offset, TopicName};

/// How long the controller sleeps when it knows of nothing that is due sooner.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// How soon it first tries again what could not be done; each further try waits twice as long.
const FIRST_RETRY: Duration = Duration::from_millis(50);

/// The longest wait between two tries.
const LAST_RETRY: Duration = Duration::from_secs(5);

/// What a deployment needs next.
enum Next {
    Nothing,
    /// A generation is over: as one that failed, for a reason, or as one that is retired.
    End(GenerationNumber, Option<String>),
    LiveFailed(String),
    CaughtUp(GenerationNumber),
    Flip(GenerationNumber),
}

/// A deployment that is to be looked at again without being asked.
struct Due {
    at: Duration,
    /// How long the last wait was, if the deployment's last need could not be met.
    retry: Option<Duration>,
}

impl Registry {
    /// Runs until the registry is closed.
    pub(super) fn control(&self) {
        let mut due: BTreeMap<DeploymentId, Due> = BTreeMap::new();
        loop {
            let now = self.inner.clock.monotonic();
            let first = due.values().map(|due| due.at.saturating_sub(now)).min();
            let sleep = first.unwrap_or(LONGEST_SLEEP).min(LONGEST_SLEEP);
            let Some(raised) = self.inner.attention.take(sleep) else { return };
            let now = self.inner.clock.monotonic();
            let deployments = self.inner.deployments.read();
            due.retain(|id, due| due.at > now || deployments.values().any(|d| d.id == *id));
            // What could not be done is tried again in its time, however often tasks commit.
            let waits = |due: &Due| due.retry.is_some() && due.at > now;
            let wanted = |id: &DeploymentId| match due.get(id) {
                Some(due) => due.at <= now || (raised.contains(id) && !waits(due)),
                None => raised.contains(id),
            };
            // Of the others, of which there may be thousands, none is touched.
            let attended: Vec<_> =
                deployments.values().filter(|d| wanted(&d.id)).cloned().collect();
            drop(deployments);
            for deployment in attended {
                let done = self.attend(&deployment);
                let before = due.remove(&deployment.id).and_then(|due| due.retry);
                if let Some(next) = self.next_due(&deployment, done, before) {
                    due.insert(deployment.id, next);
                }
            }
        }
    }

    /// When to look at a deployment again.
    fn next_due(
        &self,
        deployment: &Deployment,
        done: bool,
        before: Option<Duration>,
    ) -> Option<Due> {
        let now = self.inner.clock.monotonic();
        if !done {
            let wait = before.map_or(FIRST_RETRY, |wait| (wait * 2).min(LAST_RETRY));
            return Some(Due { at: now + wait, retry: Some(wait) });
        }
        let state = deployment.state.lock();
        let blocked = |run| matches!(run, RunState::Blocked(_));
        let tasks = || state.running.values().flat_map(|running| &running.tasks);
        if tasks().any(|task| blocked(task.run_state())) {
            return Some(Due { at: now + Duration::from_secs(1), retry: None });
        }
        let now_ms = self.inner.clock.now_ms();
        let left = state.record.generations.iter().filter_map(|g| {
            if warm_failure(&state, g).is_some() {
                return Some(0);
            }
            Some(g.warm_until_ms?.saturating_sub(now_ms).max(0).unsigned_abs())
        });
        // One that is over and still there waits for those who read what it would take away.
        let wait = match left.min()? {
            0 => Duration::from_secs(1),
            left => Duration::from_millis(left),
        };
        Some(Due { at: now + wait, retry: None })
    }

    /// Does what a deployment needs; `false` if it could not be done now.
    fn attend(&self, deployment: &Arc<Deployment>) -> bool {
        for running in deployment.state.lock().running.values() {
            for task in &running.tasks {
                if matches!(task.run_state(), RunState::Blocked(_)) {
                    task.wake();
                }
            }
        }
        loop {
            if matches!(self.next_for(deployment), Next::Nothing) {
                return true;
            }
            let Ok(_operation) = begin(deployment) else { return false };
            let done = match self.next_for(deployment) {
                Next::Nothing => return true,
                next => self.act(deployment, next),
            };
            if let Err(error) = done {
                let name = deployment.state.lock().record.name().to_string();
                tracing::warn!(deployment = name, "will be tried again: {error}");
                return false;
            }
        }
    }

    fn act(&self, deployment: &Arc<Deployment>, next: Next) -> Result<(), Error> {
        let name = deployment.state.lock().record.name().to_string();
        match next {
            Next::Nothing => Ok(()),
            Next::Flip(number) => self.flip(deployment, number, "promoted"),
            Next::End(number, reason) => {
                // A generation that is being made may begin where nobody is seen to read yet.
                let Some(_stays) = self.inner.basis.try_write() else {
                    let message = "a generation is being made, which may read what would go";
                    return Err(Error::new(Kind::Conflict, "operation_under_way", message));
                };
                if !matches!(self.next_for(deployment), Next::End(still, _) if still == number) {
                    return Ok(());
                }
                let (phase, kind, what) = match &reason {
                    Some(reason) => (Phase::Failed, "failed", format!("failed: {reason}")),
                    None => (Phase::Retired, "retired", "is retired".to_owned()),
                };
                self.end_generation(deployment, number, phase, reason)?;
                let message = format!("generation {number} of {name} {what}");
                self.inner.events.tell(kind, &name, Some(number.0), message);
                Ok(())
            }
            Next::LiveFailed(reason) => {
                let mut state = deployment.state.lock();
                let mut after = state.record.clone();
                let live = after.live;
                let message = format!("the live generation {live} of {name} stopped: {reason}");
                if let Some(generation) = after.generation_mut(live) {
                    generation.failure = Some(reason);
                }
                self.store(&mut state, after, Commit::default())?;
                self.inner.events.tell("failed", &name, Some(live.0), message);
                Ok(())
            }
            Next::CaughtUp(number) => {
                let mut state = deployment.state.lock();
                let mut after = state.record.clone();
                if let Some(generation) = after.generation_mut(number) {
                    generation.phase = Phase::CaughtUp;
                }
                crash_point("caught-up");
                self.store(&mut state, after, Commit::default())?;
                crash_point("caught-up-recorded");
                let message = format!("generation {number} of {name} has caught up");
                self.inner.events.tell("caught-up", &name, Some(number.0), message);
                Ok(())
            }
        }
    }

    fn next_for(&self, deployment: &Deployment) -> Next {
        let over: Vec<_> = {
            let state = deployment.state.lock();
            let next = next_of_tasks(&state);
            if !matches!(next, Next::Nothing) {
                return next;
            }
            let now = self.inner.clock.now_ms();
            let over = |g: &GenerationRecord| {
                let failure = warm_failure(&state, g);
                let is_over =
                    g.phase == Phase::Warm && g.warm_until_ms.is_some_and(|end| end <= now);
                if failure.is_none() && !is_over {
                    return None;
                }
                let logs = g.logs.iter().flat_map(GenerationLogs::mounted);
                let logs: Vec<_> = logs.map(|o| (o.topic.clone(), o.log)).collect();
                Some((g.number, failure, logs))
            };
            state.record.generations.iter().filter_map(over).collect()
        };
        let may_go = |logs: &[(TopicName, LogId)]| {
            !logs.iter().any(|(topic, log)| self.is_read(topic, *log))
        };
        match over.into_iter().find(|(_, _, logs)| may_go(logs)) {
            Some((number, failure, _)) => Next::End(number, failure),
            None => Next::Nothing,
        }
    }

    /// Whether a task of any deployment still has records of a log to read under a topic's name.
    fn is_read(&self, name: &TopicName, log: LogId) -> bool {
        let Some(topic) = self.inner.log.topics().get(name) else { return false };
        let mounts = topic.state().mounts.clone();
        let deployments: Vec<_> = self.inner.deployments.read().values().cloned().collect();
        deployments.iter().any(|deployment| {
            let state = deployment.state.lock();
            let inputs = &state.record.spec.inputs;
            let Some(input) = inputs.iter().position(|input| input == name) else { return false };
            // Where one stands that does not run, for want of its plugin or in safe mode, is not known here.
            let runs = |g: &GenerationRecord| state.running.contains_key(&g.number);
            if !state.record.generations.iter().filter(|g| g.phase.runs()).all(runs) {
                return true;
            }
            let tasks = state.running.values().flat_map(|running| &running.tasks);
            tasks.into_iter().any(|task| {
                let (at, p) = (task.positions()[input], task.partition.0 as usize);
                mounts.iter().any(|mount| mount.log == log && has_left(mount, p, at))
            })
        })
    }
}

/// Whether a reader that stands at `at` still has to read of a mount's partition: it stands in it, or
/// before it, from where it comes over the marker to the records after that.
fn has_left(mount: &Mount, partition: usize, at: Offset) -> bool {
    let (Some(base), Some(from)) = (mount.base.get(partition), mount.from.get(partition)) else {
        return false;
    };
    let end = mount.to.as_ref().map_or(Offset::LIMIT, |to| Offset(base.0 + to[partition].0));
    let next = if at < *base { Offset(base.0 + from.0) } else { at };
    next < end
}

/// Why a warm generation failed, if it did. It is not over before what it made was read.
pub(super) fn warm_failure(
    state: &DeploymentState,
    generation: &GenerationRecord,
) -> Option<String> {
    let running = state.running.get(&generation.number)?;
    if generation.phase == Phase::Warm { running.failure() } else { None }
}

/// What the tasks of a deployment ask for.
fn next_of_tasks(state: &DeploymentState) -> Next {
    let live = state.running.get(&state.record.live);
    // While the live tasks are far behind, their commits are large and would be held long.
    let settled = live.is_some_and(|live| {
        let stopped = |run| matches!(run, RunState::Stopped(_));
        let near = |task: &crate::task::TaskShared| task.cursor().head || task.has_caught_up();
        live.tasks.iter().all(|task| near(task) || stopped(task.run_state()))
    });
    for generation in state.record.generations.iter().filter(|g| g.phase.runs()) {
        let Some(running) = state.running.get(&generation.number) else { continue };
        if let Some(reason) = running.failure() {
            match generation.phase {
                Phase::Live if generation.failure.is_none() => return Next::LiveFailed(reason),
                Phase::Live | Phase::Warm => {}
                _ => return Next::End(generation.number, Some(reason)),
            }
        }
        let ready = running.has_caught_up() && settled;
        match (generation.phase, generation.approve) {
            (Phase::Replaying, _) if ready => return Next::CaughtUp(generation.number),
            (Phase::CaughtUp, Approve::Auto) if ready => return Next::Flip(generation.number),
            _ => {}
        }
    }
    Next::Nothing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_read_by_those_in_it_and_those_who_come_to_it() {
        let mount = |from, to: Option<u64>| Mount {
            log: LogId(1),
            generation: Some(2),
            base: vec![Offset(10)],
            from: vec![Offset(from)],
            to: to.map(|to| vec![Offset(to)]),
            retired: false,
        };
        for (from, to, at, left) in [
            (3, Some(5), 9, true),
            (3, Some(5), 10, true),
            (3, Some(5), 14, true),
            (3, Some(5), 15, false),
            (5, Some(5), 9, false),
            (5, Some(5), 14, true),
            (3, None, 99, true),
        ] {
            assert_eq!(has_left(&mount(from, to), 0, Offset(at)), left, "{from} {to:?} {at}");
        }
        assert!(!has_left(&mount(3, None), 1, Offset(0)));
    }
}
