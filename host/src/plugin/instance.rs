//! An instance at work: start it, hand it batches, check what it gives back.
//!
//! **Invariant:** each call starts with the same budgets and leaves nothing behind in the host but
//! the guest's own memory. After a failed call the instance refuses further ones: its memory is in
//! no state to rely on.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use arrow_array::Array as _;
use wasmtime::{Store, Trap};

use super::call::{CallError, CallOutput, Fault, Input, Level, OutputColumns, Run, StateAccess};
use super::columns::{EntryLimit, Lowered, check_sources, into_binary, shared_if_same};
use super::contract::types::{Batch as GuestBatch, Output as GuestOutput, Run as GuestRun};
use super::contract::{ColumnPlugin, RecordPlugin, Results};
use super::description::Description;
use super::imports::{CallScope, HostState, StreamTime, reason};
use super::limits::{Deadline, Limits};
use super::rows;
use crate::clock::SharedClock;
use crate::types::column_bytes;

/// Fuel after which a guest comes back to have the time looked at: a millisecond of work or less, unless
/// it waits for memory at each step. So neither a function nor a loop of a guest has to ask for the time
/// itself, as it would with wasmtime's epochs.
const SLICE_FUEL: u64 = 1_000_000;

/// The guest's exports, by world.
pub(super) enum Guest {
    /// Whole batches.
    Column(ColumnPlugin),
    /// A record a call.
    Record(RecordPlugin),
    /// No component at all, but the same code in this process.
    #[cfg(feature = "native")]
    Native(Box<dyn super::native::NativeInstance>),
}

impl Guest {
    /// Calls `init`.
    pub fn init(&self, store: &mut Store<HostState>, config: &str) -> Result<(), CallError> {
        let result = match self {
            Self::Column(plugin) => drive(store, |store| plugin.call_init(store, config)),
            Self::Record(plugin) => drive(store, |store| plugin.call_init(store, config)),
            #[cfg(feature = "native")]
            Self::Native(native) => Ok(native.init(config)),
        };
        result.map_err(|error| call_error(error, store.data()))?.map_err(|text| returned(&text))
    }

    /// Calls `describe`.
    pub fn describe(&self, store: &mut Store<HostState>) -> Result<String, CallError> {
        let result = match self {
            Self::Column(plugin) => drive(store, |store| plugin.call_describe(store)),
            Self::Record(plugin) => drive(store, |store| plugin.call_describe(store)),
            // Its component has been asked before.
            #[cfg(feature = "native")]
            Self::Native(_) => Ok(String::new()),
        };
        result.map_err(|error| call_error(error, store.data()))
    }
}

/// A running plugin: one thread's, and thrown away after a failure.
pub struct Instance {
    store: Store<HostState>,
    guest: Guest,
    failed: bool,
}

/// Workers share a plugin, and each moves its instances as it likes.
const _: () = {
    const fn moves<T: Send>() {}
    const fn is_shared<T: Send + Sync>() {}
    moves::<Instance>();
    is_shared::<super::engine::Plugin>();
    is_shared::<super::engine::Runtime>();
};

impl Instance {
    pub(super) fn new(store: Store<HostState>, guest: Guest) -> Self {
        Self { store, guest, failed: false }
    }

    /// The guest's memory in bytes: what the recycling watermark looks at.
    pub fn memory_bytes(&self) -> u64 {
        self.store.data().memory.used_bytes()
    }

    /// The lines that `init` logged; empty when asked again.
    pub fn take_start_logs(&mut self) -> Vec<(Level, String)> {
        std::mem::take(&mut self.store.data_mut().call.logs)
    }

    /// Processes a batch under the instance's limits. The state comes back whatever happens; its
    /// changes count only when the call succeeded.
    pub fn process(
        &mut self,
        input: &Input,
        state: Box<dyn StateAccess>,
    ) -> (Result<CallOutput, CallError>, Box<dyn StateAccess>) {
        if self.failed {
            let error = "a call was made into an instance that has failed; make a new one";
            return (Err(CallError::Host(error.into())), state);
        }
        let is_columnar = matches!(self.guest, Guest::Column(_));
        self.store.data_mut().call = CallScope {
            state: Some(state),
            headers_in: input.batch.records.headers.clone(),
            time: Some(StreamTime { before_ms: input.stream_time_ms, seed: input.seed }),
            keys_in: is_columnar.then(|| input.batch.records.keys.clone()),
            sets_headers: is_columnar,
            ..CallScope::default()
        };
        let limits = self.store.data().limits.clone();
        let result = arm(&mut self.store, ("fuel_per_call", limits.fuel_per_call))
            .and_then(|()| self.run(input, &limits));
        self.failed = result.is_err();
        let call = std::mem::take(&mut self.store.data_mut().call);
        let state = call.state.expect("put there above and only borrowed since");
        (result, state)
    }

    fn run(&mut self, input: &Input, limits: &Limits) -> Result<CallOutput, CallError> {
        check_runs(input)?;
        let mut output = CallOutput::default();
        match &self.guest {
            Guest::Column(plugin) => {
                let results = process_columns(plugin, &mut self.store, input)?;
                let host = self.store.data_mut();
                take_results(results, input, host, &mut output)?;
            }
            #[cfg(feature = "native")]
            Guest::Native(native) => {
                let host = self.store.data_mut();
                let state = host.call.state.take().expect("put there for this call");
                let (results, state) = native.process(input, state);
                host.call.state = Some(state);
                take_results(results.map_err(|text| returned(&text))?, input, host, &mut output)?;
            }
            Guest::Record(plugin) => {
                rows::process(plugin, &mut self.store, input, &mut output)?;
            }
        }
        let left = self.store.get_fuel().map_err(|error| CallError::Host(error.into()))?;
        let used = limits.fuel_per_call - left;
        output.fuel_used = used.saturating_add(self.store.data().call.fuel);
        if output.fuel_used > limits.fuel_per_call {
            return Err(self.store.data().out_of_fuel());
        }
        let call = &mut self.store.data_mut().call;
        output.logs = std::mem::take(&mut call.logs);
        output.dropped_log_bytes = call.dropped_log_bytes;
        output.metrics = std::mem::take(&mut call.metrics);
        Ok(output)
    }
}

/// Gives fuel (a limit's name and amount) and time to what is called next.
pub(super) fn arm(
    store: &mut Store<HostState>,
    fuel: (&'static str, u64),
) -> Result<(), CallError> {
    store.set_fuel(fuel.1).map_err(|error| CallError::Host(error.into()))?;
    let host = store.data_mut();
    host.fuel_limit = fuel;
    host.deadline.restart();
    Ok(())
}

/// Calls into a guest, on this thread and until it returns. It comes back for each [`SLICE_FUEL`], and is
/// given up there once its time is over.
pub(super) fn drive<'a, T, F: Future<Output = wasmtime::Result<T>>>(
    store: &'a mut Store<HostState>,
    call: impl FnOnce(&'a mut Store<HostState>) -> F,
) -> wasmtime::Result<T> {
    let deadline = store.data().deadline.clone();
    let mut call = pin!(call(store));
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(result) = call.as_mut().poll(&mut context) {
            return result;
        }
        deadline.check()?;
    }
}

/// What a failed call means.
pub(super) fn call_error(error: wasmtime::Error, host: &HostState) -> CallError {
    let error = match error.downcast::<CallError>() {
        Ok(error) => return error,
        Err(error) => error,
    };
    match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => host.out_of_fuel(),
        Some(trap) => {
            let last = host.call.logs.iter().rev().find(|(level, _)| *level == Level::Error);
            let said = last.map_or(String::new(), |(_, line)| {
                format!("; before that it logged: {}", reason(line))
            });
            CallError::Guest(Fault::Trap { reason: format!("{trap}{said}") })
        }
        // What remains are values that cannot be lifted: bad pointers, bad UTF-8, too much of it.
        None => CallError::invalid(format!("{error:#}")),
    }
}

pub(super) fn returned(text: &str) -> CallError {
    CallError::Guest(Fault::Returned(reason(text)))
}

fn check_runs(input: &Input) -> Result<(), CallError> {
    let n = input.batch.len();
    let sum: usize = input.runs.iter().map(|run| run.count as usize).sum();
    if n == sum {
        return Ok(());
    }
    Err(CallError::Host(format!("runs add up to {sum} records where the batch has {n}").into()))
}

fn process_columns(
    plugin: &ColumnPlugin,
    store: &mut Store<HostState>,
    input: &Input,
) -> Result<Results, CallError> {
    let records = &input.batch.records;
    let (keys, values) = (Lowered::new(&records.keys), Lowered::new(&records.values));
    let guest_run =
        |run: &Run| GuestRun { input: run.input, partition: run.partition, count: run.count };
    let runs: Vec<GuestRun> = input.runs.iter().map(guest_run).collect();
    let batch = GuestBatch {
        offsets: &input.batch.offsets,
        timestamps: &records.timestamps,
        keys: keys.as_param(),
        values: values.as_param(),
        runs: &runs,
    };
    let result = drive(store, |store| plugin.call_process(store, batch));
    result.map_err(|error| call_error(error, store.data()))?.map_err(|text| returned(&text))
}

/// Checks what `process` returned for `input` and moves it into `output`.
pub(super) fn take_results(
    results: Results,
    input: &Input,
    host: &mut HostState,
    output: &mut CallOutput,
) -> Result<(), CallError> {
    let mut budget = OutputBudget::default();
    for columns in results.outputs {
        let Some(index) = host.description.output_index(&columns.name) else {
            return Err(CallError::invalid(host.description.unknown_output(&columns.name)));
        };
        let headers = host.call.headers_out.get_mut(index).and_then(Option::take);
        if output.outputs.iter().any(|seen| seen.output == index) {
            let name = &host.description.outputs[index].name;
            return Err(CallError::invalid(format!("output {name} is returned twice")));
        }
        let mut columns = take_columns(index, columns, input, host)?;
        if let Some(headers) = headers {
            if headers.len() != columns.len() {
                return Err(CallError::invalid(format!(
                    "output {} has {} records and headers for {}",
                    host.description.outputs[index].name,
                    columns.len(),
                    headers.len()
                )));
            }
            columns.headers = (!headers.names().value_offsets().len() > 1).then_some(headers);
        }
        budget.spend(&columns, &host.limits)?;
        output.outputs.push(columns);
    }
    let orphan =
        host.call.headers_out.iter().position(|h| h.as_ref().is_some_and(|h| !h.is_empty()));
    if let Some(index) = orphan {
        let name = &host.description.outputs[index].name;
        return Err(CallError::invalid(format!(
            "headers were set for output {name}, which has no records"
        )));
    }
    let mut next = 0;
    for rejection in results.rejections {
        check_rejection(rejection.index, next, input.batch.len())?;
        next = rejection.index + 1;
        output.rejections.push((rejection.index, reason(&rejection.reason)));
    }
    output.outputs.retain(|columns| !columns.is_empty());
    Ok(())
}

fn check_rejection(index: u32, next: u32, n: usize) -> Result<(), CallError> {
    if index < next {
        return Err(CallError::invalid(format!(
            "rejections do not rise: {index} comes after {}",
            next - 1
        )));
    }
    if index as usize >= n {
        return Err(CallError::invalid(format!(
            "rejection {index} is outside a batch of {n} records"
        )));
    }
    Ok(())
}

fn take_columns(
    index: usize,
    columns: GuestOutput,
    input: &Input,
    host: &HostState,
) -> Result<OutputColumns, CallError> {
    let name = columns.name;
    let invalid =
        |what: &str, error: String| CallError::invalid(format!("output {name}: {what}{error}"));
    let m = columns.sources.len();
    check_sources(&columns.sources, input.batch.len()).map_err(|error| invalid("", error))?;
    let keys = into_binary(columns.keys, m, EntryLimit::key(&host.limits))
        .map_err(|error| invalid("the keys: ", error))?;
    let values = into_binary(columns.values, m, EntryLimit::value(&host.limits))
        .map_err(|error| invalid("the values: ", error))?;
    let agree = |what: &str, len: Option<usize>| match len {
        Some(len) if len != m => Err(invalid("", format!("{len} {what} for {m} sources"))),
        _ => Ok(()),
    };
    agree("timestamps", columns.timestamps.as_ref().map(Vec::len))?;
    agree("partitions", columns.partitions.as_ref().map(Vec::len))?;
    Ok(OutputColumns {
        output: index,
        sources: columns.sources,
        keys: shared_if_same(keys, &input.batch.records.keys),
        values: shared_if_same(values, &input.batch.records.values),
        timestamps: columns.timestamps,
        partitions: columns.partitions.map(|all| all.into_iter().map(Some).collect()),
        headers: None,
    })
}

/// Bytes that a header counts for beside its name and value, as in the log: empty ones are not free.
pub(super) const HEADER_BYTES: usize = 8;

/// What a call has returned so far.
#[derive(Default)]
pub(super) struct OutputBudget {
    records: u64,
    bytes: u64,
}

impl OutputBudget {
    /// Counts a whole output.
    pub fn spend(&mut self, columns: &OutputColumns, limits: &Limits) -> Result<(), CallError> {
        let headers = columns.headers.as_ref().map_or(0, |headers| {
            let (names, values) = (headers.names(), headers.values());
            HEADER_BYTES * names.len() + names.value_data().len() + values.value_data().len()
        });
        let bytes = column_bytes(&columns.keys) + column_bytes(&columns.values) + headers;
        self.add(columns.len(), bytes, limits)
    }

    /// Counts `records` of `bytes` in all.
    pub fn add(&mut self, records: usize, bytes: usize, limits: &Limits) -> Result<(), CallError> {
        self.records += records as u64;
        self.bytes += bytes as u64;
        let (most_records, most) = (limits.output_records_per_call, limits.output_bytes_per_call);
        if self.records > most_records {
            let what = "number of output records";
            return Err(CallError::limit(what, "output_records_per_call", most_records));
        }
        if self.bytes > most {
            return Err(CallError::limit("bytes of output", "output_bytes_per_call", most));
        }
        Ok(())
    }
}

/// What the host holds for an instance under `limits`.
pub(super) fn new_host(
    description: Arc<Description>,
    limits: &Limits,
    clock: SharedClock,
) -> HostState {
    HostState {
        description,
        limits: limits.clone(),
        memory: super::imports::MemoryMeter::new(limits),
        fuel_limit: ("fuel_per_start", limits.fuel_per_start),
        deadline: Deadline::new(clock, limits.deadline_ms),
        call: CallScope::default(),
    }
}

/// A store for an instance under `limits`.
pub(super) fn new_store(
    engine: &wasmtime::Engine,
    description: Arc<Description>,
    limits: &Limits,
    clock: SharedClock,
) -> Store<HostState> {
    let mut store = Store::new(engine, new_host(description, limits, clock));
    store.fuel_async_yield_interval(Some(SLICE_FUEL)).expect("the engine counts fuel");
    store.limiter(|host| &mut host.memory);
    // One transfer to the host may hold what a call may return and its columns of numbers, or what
    // state may be given.
    let numbers = limits.output_records_per_call.saturating_mul(64);
    let most =
        limits.output_bytes_per_call.saturating_add(numbers).max(limits.state_bytes_per_call);
    store.set_hostcall_fuel(usize::try_from(most.saturating_add(1 << 20)).unwrap_or(usize::MAX));
    store
}
