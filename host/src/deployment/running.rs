//! A generation's tasks while they run.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::record::{DeploymentRecord, GenerationRecord};
use super::{Error, Kind, OnPoison};
use crate::log::{Log, Subscription, Topic};
use crate::plugin::{Limits, Plugin};
use crate::task::{
    Class, CommitMode, Cursor, Environment, OutputSpec, Poison, Role, RunState, Task, TaskShared,
    TaskSpec, Workers, cursor_key,
};
use crate::threads::Mutex;
use crate::types::{GenerationNumber, Offset, PartitionId, TopicName};

/// How long a task may take to end after the call it was in was given up.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a call may go on after its task was asked to end.
const CALL_GRACE: Duration = Duration::from_secs(5);

/// How long a sum of positions is remembered to tell the rate.
const RATE_WINDOW: Duration = Duration::from_secs(5);

/// Records processed at moments of the last seconds.
#[derive(Debug, Default)]
pub struct RateMeter {
    samples: Mutex<VecDeque<(Duration, u64)>>,
}

impl RateMeter {
    /// Notes that `records` were done at `now`, and tells the rate since the window began.
    pub fn sample(&self, now: Duration, records: u64) -> f64 {
        let mut samples = self.samples.lock();
        while samples.len() > 1 && now.saturating_sub(samples[0].0) > RATE_WINDOW {
            samples.pop_front();
        }
        if samples
            .back()
            .is_none_or(|(at, _)| now.saturating_sub(*at) >= Duration::from_millis(100))
        {
            samples.push_back((now, records));
        }
        let (then, before) = samples[0];
        let seconds = now.saturating_sub(then).as_secs_f64();
        if seconds > 0.0 { records.saturating_sub(before) as f64 / seconds } else { 0.0 }
    }
}

/// The tasks of a generation.
pub struct RunningGeneration {
    /// One a source partition.
    pub tasks: Vec<Arc<TaskShared>>,
    /// The plugin they run.
    pub plugin: Arc<Plugin>,
    /// The topics they read.
    pub inputs: Vec<Arc<Topic>>,
    /// How fast they are.
    pub rate: RateMeter,
    /// Wake the tasks when inputs grow; dropped with the generation.
    _wakes: Vec<Subscription>,
}

/// Asks all tasks of some generations to end, and waits for them; calls that take long are given up.
/// Says whether all have ended.
pub fn stop_all<'a>(generations: impl IntoIterator<Item = &'a Arc<RunningGeneration>>) -> bool {
    let tasks: Vec<_> = generations.into_iter().flat_map(|running| &running.tasks).collect();
    tasks.iter().for_each(|task| task.request_stop());
    let have_ended = |patience| {
        tasks.iter().all(|task| task.wait_for(patience, |run| matches!(run, RunState::Stopped(_))))
    };
    if have_ended(CALL_GRACE) {
        return true;
    }
    tasks.iter().for_each(|task| task.give_up());
    let ended = have_ended(STOP_TIMEOUT);
    if !ended {
        tracing::warn!("tasks did not end within {STOP_TIMEOUT:?}; their commits are fenced");
    }
    ended
}

/// What it takes to run tasks.
pub struct Launch<'a> {
    /// What tasks share.
    pub env: &'a Arc<Environment>,
    /// Who steps them.
    pub workers: &'a Workers,
    /// Told when a task commits or changes its state.
    pub on_change: Arc<dyn Fn() + Send + Sync>,
}

impl RunningGeneration {
    /// Starts the tasks of a generation: those of `leader` say how far they may read, unless it is
    /// the live one itself.
    ///
    /// # Errors
    /// When an input topic is gone or the catalogue cannot be read.
    pub fn start(
        launch: &Launch<'_>,
        record: &DeploymentRecord,
        generation: &GenerationRecord,
        plugin: Arc<Plugin>,
        leader: Option<&RunningGeneration>,
    ) -> Result<Self, Error> {
        let log = &launch.env.log;
        let inputs = record.spec.inputs.iter().map(|name| topic(log, name));
        let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
        let mut cursors = Vec::new();
        for partition in 0..record.tasks {
            cursors.push(read_cursor(log, record, generation, PartitionId(partition))?);
        }
        let files = !cursors.iter().flatten().any(|(cursor, _)| cursor.head);
        let mode = CommitMode::new(files, cursors.len());
        let (mut tasks, mut wakes) = (Vec::new(), Vec::new());
        for (partition, stored) in cursors.into_iter().enumerate() {
            let partition = PartitionId(partition as u32);
            let start = &generation.start[partition.0 as usize];
            let spec = task_spec(record, generation, &plugin, &inputs, start, partition, &mode)?;
            let on_change = Arc::clone(&launch.on_change);
            let (mut cursor, bytes) = match stored {
                Some((cursor, bytes)) => (cursor, Some(bytes)),
                None => (Cursor::default(), None),
            };
            if cursor.inputs.is_empty() {
                cursor.inputs.clone_from(start);
            }
            let role = leader.map_or(Role::Live, |leader| {
                Role::Follow(Arc::clone(&leader.tasks[partition.0 as usize]))
            });
            let class = if leader.is_some() { Class::Replay } else { Class::Live };
            let journal = (spec.journal, start.clone());
            let shared = TaskShared::new(
                spec.generation,
                partition,
                journal,
                cursor,
                bytes,
                role,
                move || on_change(),
            );
            // Before anything can wake it: one that is paused takes no step.
            if record.paused && generation.number == record.live {
                shared.set_hold(true);
            }
            let task = Task::new(Arc::new(spec), Arc::clone(launch.env), Arc::clone(&shared));
            shared.set_handle(launch.workers.add(Box::new(task), class));
            for input in &inputs {
                let weak: Weak<TaskShared> = Arc::downgrade(&shared);
                let wake = Box::new(move || {
                    if let Some(task) = weak.upgrade() {
                        task.wake();
                    }
                });
                if let Some(partition) = input.partition(partition) {
                    wakes.push(partition.subscribe(wake));
                }
            }
            tasks.push(shared);
        }
        tasks.iter().for_each(|task| task.wake());
        Ok(Self { tasks, plugin, inputs, rate: RateMeter::default(), _wakes: wakes })
    }

    /// Why the first of its tasks that failed did.
    pub fn failure(&self) -> Option<String> {
        self.tasks.iter().find_map(|task| match task.run_state() {
            RunState::Stopped(reason) if !reason.is_empty() => Some(reason),
            _ => None,
        })
    }

    /// Whether every task has been as far as it may read.
    pub fn has_caught_up(&self) -> bool {
        self.tasks.iter().all(|task| task.has_caught_up())
    }

    /// Input records processed and committed.
    pub fn records(&self) -> u64 {
        self.tasks.iter().map(|task| task.cursor().records).sum()
    }

    /// Input records between what is committed and how far the tasks may read.
    pub fn remaining(&self) -> u64 {
        let left = self.tasks.iter().map(|task| {
            let bound = task.bound();
            let inputs = self.inputs.iter().zip(task.positions()).enumerate();
            let left = inputs.filter_map(|(i, (topic, position))| {
                let partition = topic.partition(task.partition)?;
                let to = bound.as_ref().map_or_else(|| partition.end_offset(), |b| b[i]);
                // A position whose mount is gone has nothing left that could be counted.
                Some(partition.count_between(position, to).unwrap_or_default())
            });
            left.sum::<u64>()
        });
        left.sum()
    }
}

/// A topic by name.
pub fn topic(log: &Log, name: &TopicName) -> Result<Arc<Topic>, Error> {
    log.topics().get(name).ok_or_else(|| topic_not_found(name))
}

/// The refusal for a topic that is not there.
pub fn topic_not_found(name: &TopicName) -> Error {
    let message =
        format!("there is no topic {name}: see `anabranch topic list`, or create it first");
    Error::new(Kind::NotFound, "topic_not_found", message)
}

type StoredCursor = Option<(Cursor, Vec<u8>)>;

fn read_cursor(
    log: &Log,
    record: &DeploymentRecord,
    generation: &GenerationRecord,
    partition: PartitionId,
) -> Result<StoredCursor, Error> {
    let key = cursor_key(record.generation_id(generation.number), partition);
    let damaged = |e: &dyn std::fmt::Display| {
        let name = record.name();
        let number = generation.number;
        let message = format!("cursor of {name} generation {number} partition {partition}: {e}");
        Error::new(Kind::Internal, "catalogue_damaged", message)
    };
    let Some(bytes) = log.metadata_get(&key).map_err(|e| damaged(&e))? else { return Ok(None) };
    let cursor = Cursor::decode(&bytes).map_err(|e| damaged(&e))?;
    Ok(Some((cursor, bytes)))
}

fn task_spec(
    record: &DeploymentRecord,
    generation: &GenerationRecord,
    plugin: &Arc<Plugin>,
    inputs: &[Arc<Topic>],
    start: &[Offset],
    partition: PartitionId,
    mode: &Arc<CommitMode>,
) -> Result<TaskSpec, Error> {
    let GenerationNumber(number) = generation.number;
    let Some(logs) = &generation.logs else {
        let message = format!("generation {number} of {} is retired", record.name());
        return Err(Error::new(Kind::Gone, "generation_retired", message));
    };
    let output = |log: &super::record::OutputLog| OutputSpec {
        log: Some(log.log),
        partitions: log.partitions,
    };
    let by_name: BTreeMap<&str, OutputSpec> =
        logs.outputs.iter().map(|log| (log.output.as_str(), output(log))).collect();
    let unmapped = OutputSpec { log: None, partitions: 1 };
    let declared = plugin.description().outputs.iter();
    let seed = xxhash_rust::xxh3::xxh3_64_with_seed(
        record.name().as_str().as_bytes(),
        u64::from(partition.0),
    );
    Ok(TaskSpec {
        deployment: record.name().to_string(),
        generation: record.generation_id(generation.number),
        partition,
        inputs: inputs.to_vec(),
        start: start.to_vec(),
        outputs: declared
            .map(|o| by_name.get(o.name.as_str()).copied().unwrap_or(unmapped))
            .collect(),
        poison: match (record.spec.on_poison, &logs.dead_letters) {
            (OnPoison::DeadLetter, Some(log)) => Poison::DeadLetter(output(log)),
            (OnPoison::DeadLetter, None) | (OnPoison::Skip, _) => Poison::Skip,
            (OnPoison::Stop, _) => Poison::Stop,
        },
        changelog: logs.changelog,
        journal: logs.journal,
        plugin: Arc::clone(plugin),
        config: generation.config.clone(),
        limits: parse_limits(&generation.limits)?,
        seed,
        mode: Arc::clone(mode),
    })
}

/// The limits that a deployment gives, over the host's defaults.
///
/// # Errors
/// When one is unknown, not a number, or out of its range.
pub fn parse_limits(given: &serde_json::Map<String, serde_json::Value>) -> Result<Limits, Error> {
    let invalid = |e: String| Error::new(Kind::Invalid, "invalid_limits", format!("[limits]: {e}"));
    let limits: Limits = serde_json::from_value(serde_json::Value::Object(given.clone()))
        .map_err(|e| invalid(e.to_string()))?;
    limits.check().map_err(invalid)?;
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_known_and_within_their_range() {
        let parse = |given: serde_json::Value| {
            let given = given.as_object().unwrap().clone();
            parse_limits(&given).map_err(|error| error.to_string())
        };
        assert_eq!(parse(serde_json::json!({"deadline_ms": 500})).unwrap().deadline_ms, 500);
        for (given, said) in [
            (serde_json::json!({"memory": 1}), "unknown field"),
            (serde_json::json!({"memory_bytes": 0}), "limit memory_bytes is 0, it must be between"),
            (serde_json::json!({"deadline_ms": i64::MAX}), "limit deadline_ms is"),
            (
                serde_json::json!({"commit_bytes_per_call": 1_u64 << 40}),
                "limit commit_bytes_per_call",
            ),
        ] {
            let error = parse(given).unwrap_err();
            assert!(error.starts_with("[limits]: ") && error.contains(said), "{error}");
        }
    }

    #[test]
    fn rates_are_over_the_window() {
        let meter = RateMeter::default();
        let at = Duration::from_millis;
        meter.sample(at(0), 0);
        assert_eq!(meter.sample(at(1_000), 500), 500.0);
        for second in 2..=20 {
            meter.sample(at(second * 1_000), 500 * second);
        }
        assert_eq!(meter.sample(at(20_500), 10_250), 500.0);
        assert_eq!(meter.sample(at(60_000), 10_250), 0.0);
    }
}
