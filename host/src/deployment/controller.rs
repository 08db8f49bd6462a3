//! The controller: promotes candidates that have caught up, ends those that failed, and retires warm
//! generations whose lease has ended. It sleeps until a task has something to tell or a lease ends.

use std::sync::Arc;
use std::time::Duration;

use super::lifecycle::begin;
use super::registry::Deployment;
use super::{Approve, Phase, Registry};
use crate::storage::crash_point;
use crate::types::GenerationNumber;

/// How long the controller sleeps when it knows of nothing that ends sooner.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// How soon it tries again what someone else's operation kept it from.
const RETRY: Duration = Duration::from_millis(100);

/// What a deployment needs next.
enum Next {
    Nothing,
    Fail(GenerationNumber, String),
    LiveFailed(String),
    CaughtUp(GenerationNumber),
    Flip(GenerationNumber),
    Retire(GenerationNumber),
}

impl Registry {
    /// Runs until the registry is closed.
    pub(super) fn control(&self) {
        let mut sleep = LONGEST_SLEEP;
        while let Some(raised) = self.inner.attention.take(sleep) {
            sleep = LONGEST_SLEEP;
            let deployments: Vec<_> = self.inner.deployments.read().values().cloned().collect();
            for deployment in deployments {
                let (id, wait) = {
                    let state = deployment.state.lock();
                    let now = self.inner.clock.now_ms();
                    let leases = state.record.generations.iter().filter_map(|g| g.warm_until_ms);
                    let wait =
                        leases.min().map(|end| end.saturating_sub(now).max(0).unsigned_abs());
                    (state.record.id, wait.map(Duration::from_millis))
                };
                if (raised.contains(&id) || wait == Some(Duration::ZERO))
                    && !self.attend(&deployment)
                {
                    self.inner.attention.raise(id);
                    sleep = sleep.min(RETRY);
                    std::thread::sleep(Duration::from_millis(5));
                }
                sleep = wait.map_or(sleep, |wait| sleep.min(wait));
            }
        }
    }

    /// Does what a deployment needs; `false` if it could not be done now.
    fn attend(&self, deployment: &Arc<Deployment>) -> bool {
        loop {
            let next = self.next_for(deployment);
            if matches!(next, Next::Nothing) {
                return true;
            }
            let Ok(_operation) = begin(deployment) else { return false };
            let name = deployment.state.lock().record.name().to_string();
            let done = match self.next_for(deployment) {
                Next::Nothing => return true,
                Next::Fail(number, reason) => {
                    let message = format!("generation {number} of {name} failed: {reason}");
                    self.inner.events.tell("failed", &name, Some(number.0), message);
                    self.end_generation(deployment, number, Phase::Failed, Some(reason))
                }
                Next::LiveFailed(reason) => {
                    let mut state = deployment.state.lock();
                    let mut after = state.record.clone();
                    let live = after.live;
                    if let Some(generation) = after.generation_mut(live) {
                        generation.failure = Some(reason.clone());
                    }
                    let message = format!("the live generation {live} of {name} stopped: {reason}");
                    self.inner.events.tell("failed", &name, Some(live.0), message);
                    self.store(&mut state, after, crate::log::Commit::default())
                }
                Next::CaughtUp(number) => {
                    let mut state = deployment.state.lock();
                    let mut after = state.record.clone();
                    if let Some(generation) = after.generation_mut(number) {
                        generation.phase = Phase::CaughtUp;
                    }
                    let message = format!("generation {number} of {name} has caught up");
                    self.inner.events.tell("caught-up", &name, Some(number.0), message);
                    crash_point("caught-up");
                    let stored = self.store(&mut state, after, crate::log::Commit::default());
                    crash_point("caught-up-recorded");
                    stored
                }
                Next::Flip(number) => self.flip(deployment, number, "promoted"),
                Next::Retire(number) => {
                    let message = format!("generation {number} of {name} is retired");
                    let retired = self.end_generation(deployment, number, Phase::Retired, None);
                    self.inner.events.tell("retired", &name, Some(number.0), message);
                    retired
                }
            };
            if let Err(error) = done {
                tracing::warn!(deployment = name, "will be tried again: {error}");
                return false;
            }
        }
    }

    fn next_for(&self, deployment: &Deployment) -> Next {
        let state = deployment.state.lock();
        let record = &state.record;
        for generation in record.generations.iter().filter(|g| g.phase.runs()) {
            let Some(running) = state.running.get(&generation.number) else { continue };
            if let Some(reason) = running.failure() {
                if generation.phase != Phase::Live {
                    return Next::Fail(generation.number, reason);
                }
                if generation.failure.is_none() {
                    return Next::LiveFailed(reason);
                }
            }
            let caught_up = running.has_caught_up();
            match (generation.phase, generation.approve) {
                (Phase::Replaying, _) if caught_up => return Next::CaughtUp(generation.number),
                (Phase::CaughtUp, Approve::Auto) => return Next::Flip(generation.number),
                _ => {}
            }
        }
        let now = self.inner.clock.now_ms();
        let over = record
            .generations
            .iter()
            .find(|g| g.phase == Phase::Warm && g.warm_until_ms.is_some_and(|end| end <= now));
        over.map_or(Next::Nothing, |g| Next::Retire(g.number))
    }
}
