//! Runs a plugin over batches: the call, its overlay, halving, and the verdict on a single record.
//!
//! **Invariant:** a call that fails leaves nothing behind but a fresh instance; only a record that
//! failed alone, in a fresh instance and with twice the budget, is poison.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrow_array::BinaryArray;

use super::account::LONG_SEARCH;
use super::source::slice_input;
use super::{TaskShared, TaskSpec};
use crate::clock::SharedClock;
use crate::plugin::{
    AccessError, CallError, CallOutput, Fault, Input, Instance, Limits, Page, StateAccess,
};
use crate::state::{Overlay, PageLimit};
use crate::threads::Mutex;

/// Why a task cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The policy is `stop` and a record is poison.
    #[error(
        "input {input} partition {partition} offset {offset}: {reason}; the policy is to stop: swap to a plugin that can process this record, or deploy with on_poison = \"dead-letter\" or \"skip\""
    )]
    Poison {
        /// Index of the input.
        input: u32,
        /// Partition of the input.
        partition: u32,
        /// Offset of the record.
        offset: u64,
        /// What the plugin did.
        reason: String,
    },
    /// The plugin could not be started, or the host failed it.
    #[error("{0}")]
    Plugin(CallError),
    /// The stores have outgrown their limit.
    #[error(
        "its stores take {bytes} bytes of memory, more than {limit} (limit store_memory_bytes): what was committed stays; swap to a plugin that keeps less, or to the same one with a higher limit"
    )]
    Stores {
        /// What they take.
        bytes: u64,
        /// What they may.
        limit: u64,
    },
    /// It was asked to stop between the calls that it takes to find the record at fault, or in one that
    /// takes long.
    #[error("stopped")]
    Stopped,
    /// Input, changelog or checkpoint cannot be read.
    #[error("{0}")]
    Read(String),
    /// The commit was refused.
    #[error("the commit was refused: {0}")]
    Commit(String),
}

impl Failure {
    /// That of a call in which no record is at fault.
    fn of_call(error: CallError) -> Self {
        match error {
            CallError::Cancelled => Self::Stopped,
            error => Self::Plugin(error),
        }
    }
}

/// What became of a part of a batch.
pub enum Outcome {
    /// The plugin processed it, and the time it took.
    Done(CallOutput, Duration),
    /// A single record that the plugin cannot process.
    Poison(String),
}

/// A plugin with the instance at hand.
pub struct Processor {
    spec: Arc<TaskSpec>,
    shared: Arc<TaskShared>,
    recycle_bytes: u64,
    clock: SharedClock,
    instance: Option<Instance>,
    /// Instances started since the last commit was built.
    pub started: u32,
    /// Time wasted since the last step was accounted for: in calls that failed, in starting an instance
    /// in place of theirs, and in calls that said more than is kept.
    pub wasted: Duration,
    /// Whether the last call failed.
    after_failure: bool,
}

impl Processor {
    /// A processor without an instance yet.
    pub fn new(
        spec: Arc<TaskSpec>,
        shared: Arc<TaskShared>,
        recycle_bytes: u64,
        clock: SharedClock,
    ) -> Self {
        Self {
            spec,
            shared,
            recycle_bytes,
            clock,
            instance: None,
            started: 0,
            wasted: Duration::ZERO,
            after_failure: false,
        }
    }

    /// Processes `input`, in as many calls as it takes, and hands each part and its outcome to
    /// `keep` in order, after the part's state changes were applied. Ends with the part at which `keep`
    /// says `false`, as no more may be gathered before a commit, or at which it has looked for records
    /// at fault for [`LONG_SEARCH`]. Returns how many records it took.
    ///
    /// # Errors
    /// When the failure is not one record's: no instance, a deadline, or `keep` refuses.
    pub fn process(
        &mut self,
        input: Input,
        mut keep: impl FnMut(&Input, Outcome) -> Result<bool, Failure>,
    ) -> Result<usize, Failure> {
        let mut rest = vec![input];
        let mut stream_time = rest[0].stream_time_ms;
        let mut taken = 0;
        let (began, mut failed) = (self.clock.monotonic(), false);
        while let Some(mut part) = rest.pop() {
            if failed && self.shared.is_stopping() {
                return Err(Failure::Stopped);
            }
            part.stream_time_ms = stream_time;
            let goes_on = match self.call(&part, &self.spec.limits.clone(), false)? {
                Ok((output, took)) => keep(&part, Outcome::Done(output, took))?,
                Err(_) if part.batch.len() > 1 => {
                    failed = true;
                    let half = part.batch.len() / 2;
                    rest.push(slice_input(&part, half, part.batch.len() - half));
                    rest.push(slice_input(&part, 0, half));
                    continue;
                }
                Err(_) => match self.call(&part, &self.spec.limits.verdict(), true)? {
                    Ok((output, took)) => keep(&part, Outcome::Done(output, took))?,
                    Err(reason) => keep(&part, Outcome::Poison(reason))?,
                },
            };
            taken += part.batch.len();
            let is_long = failed && self.clock.monotonic().saturating_sub(began) >= LONG_SEARCH;
            if !goes_on || is_long {
                break;
            }
            let highest = part.batch.records.timestamps.iter().max().copied();
            stream_time = stream_time.max(highest);
        }
        Ok(taken)
    }

    /// One call, and the time it took. Its state changes are applied if it succeeds; a guest's fault is
    /// the inner error.
    fn call(
        &mut self,
        input: &Input,
        limits: &Limits,
        fresh: bool,
    ) -> Result<Result<(CallOutput, Duration), String>, Failure> {
        if fresh || self.instance.as_ref().is_some_and(|i| i.memory_bytes() > self.recycle_bytes) {
            self.instance = None;
        }
        let mut began = self.clock.monotonic();
        let mut start_logs = Vec::new();
        let mut instance = match self.instance.take() {
            Some(instance) => instance,
            None => {
                self.started += 1;
                let plugin = &self.spec.plugin;
                let cancel = &self.shared.cancel;
                let started = plugin.instantiate_until(&self.spec.config, limits, cancel);
                let mut instance = started.map_err(Failure::of_call)?;
                start_logs = instance.take_start_logs();
                if self.after_failure {
                    let now = self.clock.monotonic();
                    self.wasted += now.saturating_sub(began);
                    began = now;
                }
                instance
            }
        };
        let stores = self.spec.plugin.description().stores.len();
        let overlay = Arc::new(Mutex::new(Overlay::new(stores)));
        let access = CallState { shared: Arc::clone(&self.shared), overlay: Arc::clone(&overlay) };
        let (result, _access) = instance.process(input, Box::new(access));
        let result = result.and_then(|output| match self.misplaced(&output) {
            Some(reason) => Err(CallError::Guest(Fault::Invalid(reason))),
            None => limits
                .check_commit(output.size_bytes() + overlay.lock().size_bytes())
                .map(|()| output),
        });
        let took = self.clock.monotonic().saturating_sub(began);
        let outcome = match result {
            Ok(mut output) => {
                let overlay = std::mem::replace(&mut *overlay.lock(), Overlay::new(0));
                self.apply(overlay, input)?;
                output.logs.splice(..0, start_logs);
                // An instance that was started with a doubled budget gives its verdict only.
                self.instance = (!fresh).then_some(instance);
                Ok(Ok((output, took)))
            }
            Err(error) if error.is_guest_fault() => {
                self.wasted += took;
                Ok(Err(error.to_string()))
            }
            Err(error) => Err(Failure::of_call(error)),
        };
        self.after_failure = matches!(outcome, Ok(Err(_)));
        self.shared.instance.store(self.instance.is_some(), Ordering::Relaxed);
        outcome
    }

    /// Takes over the state changes of a call, unless the stores grow too large.
    fn apply(&self, overlay: Overlay, input: &Input) -> Result<(), Failure> {
        let mut working = self.shared.working.write();
        working.apply(overlay, input);
        let (bytes, limit) = (working.stores.memory_bytes(), self.spec.limits.store_memory_bytes);
        if bytes > limit { Err(Failure::Stores { bytes, limit }) } else { Ok(()) }
    }

    /// Whether an output names a partition that its topic does not have.
    fn misplaced(&self, output: &CallOutput) -> Option<String> {
        output.outputs.iter().find_map(|columns| {
            let partitions = self.spec.outputs[columns.output].partitions;
            let mut chosen = columns.partitions.as_ref()?.iter().flatten();
            let wrong = chosen.find(|p| **p >= partitions)?;
            let name = &self.spec.plugin.description().outputs[columns.output].name;
            Some(format!("output {name}: partition {wrong} of a topic with {partitions}"))
        })
    }
}

/// A call's view of the task's stores.
struct CallState {
    shared: Arc<TaskShared>,
    overlay: Arc<Mutex<Overlay>>,
}

impl StateAccess for CallState {
    fn get_many(
        &mut self,
        store: u32,
        keys: &BinaryArray,
        limit_bytes: u32,
    ) -> Result<BinaryArray, AccessError> {
        let working = self.shared.working.read();
        let (store, limit) = (store as usize, limit_bytes as usize);
        Ok(self.overlay.lock().get_many(&working.stores, store, keys, limit))
    }

    fn put_many(
        &mut self,
        store: u32,
        keys: &BinaryArray,
        values: &BinaryArray,
    ) -> Result<(), AccessError> {
        self.overlay.lock().put_many(store as usize, keys.clone(), values.clone());
        Ok(())
    }

    fn delete_many(&mut self, store: u32, keys: &BinaryArray) -> Result<(), AccessError> {
        self.overlay.lock().delete_many(store as usize, keys);
        Ok(())
    }

    fn get_own(
        &mut self,
        store: u32,
        keys: &BinaryArray,
        text: bool,
        limit_bytes: u32,
    ) -> Result<(Vec<u32>, BinaryArray), AccessError> {
        let mut working = self.shared.working.write();
        let (store, limit) = (store as usize, limit_bytes as usize);
        Ok(self.overlay.lock().get_own(&mut working.stores, store, keys, text, limit))
    }

    fn put_own(
        &mut self,
        store: u32,
        entries: Vec<u32>,
        values: BinaryArray,
    ) -> Result<(), AccessError> {
        self.overlay.lock().put_own(store as usize, entries, values);
        Ok(())
    }

    fn scan(
        &mut self,
        store: u32,
        start: &[u8],
        end: Option<&[u8]>,
        limit: u32,
        limit_bytes: u32,
    ) -> Result<Page, AccessError> {
        let mut working = self.shared.working.write();
        let limit = PageLimit { entries: limit as usize, bytes: limit_bytes as usize };
        let mut overlay = self.overlay.lock();
        let page = overlay.scan(&mut working.stores, store as usize, start, end, limit);
        Ok(Page { keys: page.keys, values: page.values, next: page.next })
    }
}
