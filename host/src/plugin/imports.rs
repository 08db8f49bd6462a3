//! The host's side of a plugin's imports, and what one call may spend on them.
//!
//! **Invariant:** every import charges the call before it does any work, so that a guest cannot make
//! the host work for free; what an import is given is checked before it is used. Logs, metrics and
//! headers gather in [`CallScope`] and reach the caller only if the call succeeds.

use arrow_array::{Array, BinaryArray};
use wasmtime::ResourceLimiter;
use wasmtime::component::HasData;

use super::call::{AccessError, CallError, Level, Metric, MetricChange, Page, StateAccess};
use super::columns::{
    EntryLimit, headers_to_result, into_binary, into_headers, into_present, to_result,
};
use super::contract::{
    BytesColumnResult, HeaderColumn, headers, log, metrics, rows, state, stream_time, types,
};
use super::description::{Description, KeyPart};
use super::limits::{Deadline, Limits};
use crate::types::Headers;

/// Fuel of any call to the host: what a crossing costs beside the guest's own instructions.
const FUEL_PER_HOST_CALL: u64 = 500;
/// Fuel of each key that state looks at.
const FUEL_PER_KEY: u64 = 100;
/// Bytes that a host call moves for a unit of fuel.
const BYTES_PER_FUEL: u64 = 4;
/// Bytes of one column that state gives, so that an Arrow array's offsets can hold one value more.
const MAX_COLUMN_BYTES: u32 = 1 << 30;

type Result<T> = wasmtime::Result<T>;

/// Counts the guest's memory and holds it to its limit.
pub struct MemoryMeter {
    used_bytes: u64,
    limit_bytes: u64,
}

/// Core instances, tables and memories that a component may have: an adapter or two, not thousands.
const MAX_ITEMS: usize = 256;
/// Entries of one table. A large guest has some ten thousand functions.
const MAX_TABLE_ENTRIES: usize = 1 << 20;
/// Bytes of a table's entry.
const TABLE_ENTRY_BYTES: usize = 8;

impl MemoryMeter {
    pub fn new(limits: &Limits) -> Self {
        Self { used_bytes: 0, limit_bytes: limits.memory_bytes }
    }

    pub fn used_bytes(&self) -> u64 {
        self.used_bytes
    }
}

impl ResourceLimiter for MemoryMeter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> Result<bool> {
        // The module's own maximum: `memory.grow` gives -1, on every machine.
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let used = self.used_bytes.saturating_add((desired - current) as u64);
        if used > self.limit_bytes {
            let error = CallError::limit("bytes of memory", "memory_bytes", self.limit_bytes);
            return Err(error.into());
        }
        self.used_bytes = used;
        Ok(true)
    }

    /// A machine out of memory must not look to the guest like a limit: what it would do then is no
    /// record's fault and differs from machine to machine.
    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> Result<()> {
        match error.downcast_ref::<std::io::Error>() {
            Some(_) => refuse(CallError::Host(format!("no memory for a guest: {error}").into())),
            None => Ok(()),
        }
    }

    /// Tables are the host's memory as much as memories are, and count as such.
    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> Result<bool> {
        if desired > MAX_TABLE_ENTRIES || maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let bytes = |entries: usize| entries * TABLE_ENTRY_BYTES;
        self.memory_growing(bytes(current), bytes(desired), None)
    }

    fn instances(&self) -> usize {
        MAX_ITEMS
    }

    fn tables(&self) -> usize {
        MAX_ITEMS
    }

    fn memories(&self) -> usize {
        MAX_ITEMS
    }
}

/// What is known and gathered while a call runs.
#[derive(Default)]
pub struct CallScope {
    /// State; `None` while the guest starts.
    pub state: Option<Box<dyn StateAccess>>,
    /// Headers of the records at hand.
    pub headers_in: Option<Headers>,
    /// Keys of the records at hand; `None` where a call has one record, or none.
    pub keys_in: Option<BinaryArray>,
    /// How many different keys of its own a batch was told to have, by store.
    pub own_entries: Vec<u32>,
    /// Stream time and seed; `None` while the guest starts.
    pub time: Option<StreamTime>,
    /// Whether the call may set headers by output.
    pub sets_headers: bool,
    /// Headers set, by output.
    pub headers_out: Vec<Option<Headers>>,
    /// Lines logged.
    pub logs: Vec<(Level, String)>,
    /// Bytes of lines logged.
    pub log_bytes: u64,
    /// Bytes of lines dropped.
    pub dropped_log_bytes: u64,
    /// Metrics changed.
    pub metrics: Vec<MetricChange>,
    /// Fuel spent on host calls.
    pub fuel: u64,
    /// Calls to the host so far.
    pub host_calls: u64,
    /// Keys that state looked at.
    pub state_keys: u64,
    /// Bytes given to and taken from state, scans aside.
    pub state_bytes: u64,
    /// Bytes that scans returned.
    pub scan_bytes: u64,
}

/// What a call knows of time.
#[derive(Clone, Copy)]
pub struct StreamTime {
    pub before_ms: Option<i64>,
    pub seed: u64,
}

/// What a wasmtime store holds for an instance.
pub struct HostState {
    pub description: std::sync::Arc<Description>,
    pub limits: Limits,
    pub memory: MemoryMeter,
    /// Name and amount of the fuel that the current call was given.
    pub fuel_limit: (&'static str, u64),
    /// When the current call must have returned.
    pub deadline: Deadline,
    pub call: CallScope,
}

/// Names [`HostState`] to the generated bindings.
pub struct Imports;

impl HasData for Imports {
    type Data<'a> = &'a mut HostState;
}

fn refuse<T>(error: CallError) -> Result<T> {
    Err(error.into())
}

fn broken<T>(import: &str, what: impl std::fmt::Display) -> Result<T> {
    refuse(CallError::invalid(format!("{import}: {what}")))
}

fn host_failed(error: AccessError) -> wasmtime::Error {
    CallError::Host(error).into()
}

/// Adds `amount` to a counter of the call unless that exceeds its limit.
fn spend(
    counter: &mut u64,
    amount: u64,
    what: &'static str,
    name: &'static str,
    limit: u64,
) -> Result<()> {
    *counter = counter.saturating_add(amount);
    if *counter > limit { refuse(CallError::limit(what, name, limit)) } else { Ok(()) }
}

impl HostState {
    /// What a call that has used up its fuel fails with.
    pub fn out_of_fuel(&self) -> CallError {
        let (name, limit) = self.fuel_limit;
        CallError::limit("units of fuel", name, limit)
    }

    /// Charges for bytes that the host reads for the guest.
    pub fn charge_bytes(&mut self, bytes: usize) -> std::result::Result<(), CallError> {
        self.burn(bytes as u64 / BYTES_PER_FUEL)
    }

    fn burn(&mut self, fuel: u64) -> std::result::Result<(), CallError> {
        self.call.fuel = self.call.fuel.saturating_add(fuel);
        if self.call.fuel > self.fuel_limit.1 { Err(self.out_of_fuel()) } else { Ok(()) }
    }

    fn charge(&mut self, keys: u64, bytes: u64) -> Result<()> {
        let fuel = FUEL_PER_HOST_CALL
            .saturating_add(keys.saturating_mul(FUEL_PER_KEY))
            .saturating_add(bytes / BYTES_PER_FUEL);
        self.burn(fuel)?;
        // A guest comes back for its slices of fuel, and a few instructions can make the host work long.
        self.deadline.check()?;
        let limit = self.limits.host_calls_per_call;
        let calls = &mut self.call.host_calls;
        spend(calls, 1, "number of host calls", "host_calls_per_call", limit)
    }

    fn charge_state(&mut self, keys: u64, bytes: u64) -> Result<()> {
        self.charge(keys, bytes)?;
        let limit = self.limits.state_keys_per_call;
        let counter = &mut self.call.state_keys;
        spend(counter, keys, "number of state keys", "state_keys_per_call", limit)?;
        let limit = self.limits.state_bytes_per_call;
        let counter = &mut self.call.state_bytes;
        spend(counter, bytes, "bytes of state", "state_bytes_per_call", limit)
    }

    /// Bytes of state that the call may still be given.
    fn state_bytes_left(&self) -> u32 {
        let left = self.limits.state_bytes_per_call.saturating_sub(self.call.state_bytes);
        u32::try_from(left).unwrap_or(u32::MAX).min(MAX_COLUMN_BYTES)
    }

    /// What the guest sees of state in `store`.
    fn access(&mut self, import: &str, store: u32) -> Result<&mut dyn StateAccess> {
        if store as usize >= self.description.stores.len() {
            return broken(import, format_args!("there is no store {store}; open gives handles"));
        }
        match self.call.state.as_deref_mut() {
            Some(state) => Ok(state),
            None => broken(import, "init and describe cannot read or write state"),
        }
    }

    fn time(&mut self, import: &str) -> Result<StreamTime> {
        self.charge(0, 0)?;
        match self.call.time {
            Some(time) => Ok(time),
            None => broken(import, "init and describe see neither time nor seed"),
        }
    }

    fn metric(&mut self, import: &str, name: String, change: Metric) -> Result<()> {
        self.charge(0, name.len() as u64)?;
        if !is_metric_name(&name) {
            return broken(
                import,
                format_args!("{:?} is not [a-z][a-z0-9_]{{0,63}}", shown(&name)),
            );
        }
        let Some(known) = self.call.metrics.iter_mut().find(|metric| metric.name == name) else {
            let limit = self.limits.metrics_per_call;
            if self.call.metrics.len() as u64 >= limit {
                let what = "number of different metrics";
                return refuse(CallError::limit(what, "metrics_per_call", limit));
            }
            self.call.metrics.push(MetricChange { name, change });
            return Ok(());
        };
        known.change = match (known.change, change) {
            (Metric::Add(sum), Metric::Add(delta)) => Metric::Add(sum.saturating_add(delta)),
            (Metric::Set(_), Metric::Set(value)) => Metric::Set(value),
            (Metric::Add(_), Metric::Set(_)) | (Metric::Set(_), Metric::Add(_)) => {
                return broken(import, format_args!("{name} is both a counter and a gauge"));
            }
        };
        Ok(())
    }
}

fn is_metric_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    (1..=64).contains(&bytes.len())
        && bytes[0].is_ascii_lowercase()
        && bytes.iter().all(|&b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

fn bytes_of(column: &BytesColumnResult) -> u64 {
    column.data.len() as u64
}

/// What headers take, their positions included: empty ones are not free.
fn header_bytes(headers: &HeaderColumn) -> u64 {
    let positions = headers.ends.len() + headers.names.ends.len() + headers.values.ends.len();
    bytes_of(&headers.names) + bytes_of(&headers.values) + 4 * positions as u64
}

fn keys_of(column: &BytesColumnResult) -> u64 {
    column.ends.len().saturating_sub(1) as u64
}

impl types::Host for HostState {}

impl rows::Host for HostState {}

impl headers::Host for HostState {
    fn get(&mut self) -> Result<Option<HeaderColumn>> {
        let column = self.call.headers_in.as_ref().map(headers_to_result);
        self.charge(0, column.as_ref().map_or(0, header_bytes))?;
        Ok(column)
    }

    fn set(
        &mut self,
        output: String,
        headers: HeaderColumn,
    ) -> Result<std::result::Result<(), String>> {
        self.charge(0, header_bytes(&headers))?;
        if !self.call.sets_headers {
            let what = "only process of the columnar world may call it; \
                        the record world gives headers with each record";
            return broken("headers.set", what);
        }
        let Some(index) = self.description.output_index(&output) else {
            return Ok(Err(self.description.unknown_output(&output)));
        };
        let headers = match into_headers(headers, &self.limits) {
            Ok(headers) => headers,
            Err(error) => return broken("headers.set", error),
        };
        self.call.headers_out.resize(self.description.outputs.len(), None);
        self.call.headers_out[index] = Some(headers);
        Ok(Ok(()))
    }
}

impl state::Host for HostState {
    fn open(&mut self, name: String) -> Result<std::result::Result<u32, String>> {
        self.charge(0, name.len() as u64)?;
        let stores = &self.description.stores;
        let found = stores.iter().position(|store| store.name == name);
        Ok(found.map(|i| i as u32).ok_or_else(|| {
            let names: Vec<_> = stores.iter().map(|store| store.name.as_str()).collect();
            let name = shown(&name);
            format!("store {name:?} is not declared by describe, which names {names:?}")
        }))
    }

    fn get_many(&mut self, store: u32, keys: BytesColumnResult) -> Result<BytesColumnResult> {
        const NAME: &str = "state.get-many";
        self.charge_state(keys_of(&keys), bytes_of(&keys))?;
        let keys = match into_present(keys, EntryLimit::key(&self.limits)) {
            Ok(keys) => keys,
            Err(error) => return broken(NAME, format_args!("the keys: {error}")),
        };
        let left = self.state_bytes_left();
        let state = self.access(NAME, store)?;
        let values = state.get_many(store, &keys, left).map_err(host_failed)?;
        let (asked, found) = (keys.len(), values.len());
        let values = to_result(&values);
        self.charge_state(0, bytes_of(&values))?;
        if found != asked {
            return if bytes_of(&values) > u64::from(left) {
                let limit = self.limits.state_bytes_per_call;
                refuse(CallError::limit("bytes of state", "state_bytes_per_call", limit))
            } else {
                Err(host_failed(format!("{found} values came for {asked} keys").into()))
            };
        }
        Ok(values)
    }

    fn put_many(
        &mut self,
        store: u32,
        keys: BytesColumnResult,
        values: BytesColumnResult,
    ) -> Result<()> {
        const NAME: &str = "state.put-many";
        self.charge_state(keys_of(&keys), bytes_of(&keys) + bytes_of(&values))?;
        let keys = match into_present(keys, EntryLimit::key(&self.limits)) {
            Ok(keys) => keys,
            Err(error) => return broken(NAME, format_args!("the keys: {error}")),
        };
        let values = match into_present(values, EntryLimit::value(&self.limits)) {
            Ok(values) => values,
            Err(error) => return broken(NAME, format_args!("the values: {error}")),
        };
        if keys.len() != values.len() {
            let what = format!("{} values for {} keys", values.len(), keys.len());
            return broken(NAME, what);
        }
        self.access(NAME, store)?.put_many(store, &keys, &values).map_err(host_failed)
    }

    fn delete_many(&mut self, store: u32, keys: BytesColumnResult) -> Result<()> {
        const NAME: &str = "state.delete-many";
        self.charge_state(keys_of(&keys), bytes_of(&keys))?;
        let keys = match into_present(keys, EntryLimit::key(&self.limits)) {
            Ok(keys) => keys,
            Err(error) => return broken(NAME, format_args!("the keys: {error}")),
        };
        self.access(NAME, store)?.delete_many(store, &keys).map_err(host_failed)
    }

    fn get_own(&mut self, store: u32) -> Result<state::OwnEntries> {
        const NAME: &str = "state.get-own";
        let Some(keys) = self.call.keys_in.clone() else {
            return broken(NAME, "only process of the columnar world may call it");
        };
        self.charge_state(keys.len() as u64, 0)?;
        self.access(NAME, store)?;
        let text = match self.description.stores[store as usize].key[..] {
            [KeyPart::Utf8] => true,
            [KeyPart::Bytes] => false,
            _ => return broken(NAME, "the store's keys are not one part of type utf8 or bytes"),
        };
        let left = self.state_bytes_left();
        let state = self.access(NAME, store)?;
        let (entries, values) = state.get_own(store, &keys, text, left).map_err(host_failed)?;
        let values = to_result(&values);
        self.charge_state(0, bytes_of(&values) + 4 * entries.len() as u64)?;
        let of_store = store as usize;
        let known = self.call.own_entries.len().max(of_store + 1);
        self.call.own_entries.resize(known, 0);
        self.call.own_entries[of_store] = keys_of(&values) as u32;
        Ok(state::OwnEntries { entries, values })
    }

    fn put_own(&mut self, store: u32, entries: Vec<u32>, values: BytesColumnResult) -> Result<()> {
        const NAME: &str = "state.put-own";
        self.charge_state(entries.len() as u64, bytes_of(&values) + 4 * entries.len() as u64)?;
        let values = match into_binary(values, entries.len(), EntryLimit::value(&self.limits)) {
            Ok(values) => values,
            Err(error) => return broken(NAME, format_args!("the values: {error}")),
        };
        let known = self.call.own_entries.get(store as usize).copied().unwrap_or(0);
        if let Some(entry) = entries.iter().find(|entry| **entry >= known) {
            let what = format_args!("entry {entry}, where get-own gave {known} of store {store}");
            return broken(NAME, what);
        }
        self.access(NAME, store)?.put_own(store, entries, values).map_err(host_failed)
    }

    fn scan(
        &mut self,
        store: u32,
        start: Vec<u8>,
        end: Option<Vec<u8>>,
        limit: u32,
    ) -> Result<state::Page> {
        let bytes = start.len() + end.as_ref().map_or(0, Vec::len);
        self.charge_state(0, bytes as u64)?;
        let limits = (self.limits.scan_page_entries.min(limit), self.limits.scan_page_bytes);
        let state = self.access("state.scan", store)?;
        if limit == 0 {
            let none = to_result(&arrow_array::BinaryArray::new_null(0));
            return Ok(state::Page { keys: none.clone(), values: none, next: Some(start) });
        }
        let page = state.scan(store, &start, end.as_deref(), limits.0, limits.1);
        let Page { keys, values, next } = page.map_err(host_failed)?;
        let (entries, keys, values) = (keys.len() as u64, to_result(&keys), to_result(&values));
        let bytes = bytes_of(&keys) + bytes_of(&values);
        self.charge(entries, bytes)?;
        let counter = &mut self.call.state_keys;
        let most = self.limits.state_keys_per_call;
        spend(counter, entries, "number of state keys", "state_keys_per_call", most)?;
        let counter = &mut self.call.scan_bytes;
        let most = self.limits.scan_bytes_per_call;
        spend(counter, bytes, "bytes of scans", "scan_bytes_per_call", most)?;
        Ok(state::Page { keys, values, next })
    }
}

impl stream_time::Host for HostState {
    fn before_batch(&mut self) -> Result<Option<i64>> {
        Ok(self.time("stream-time.before-batch")?.before_ms)
    }

    fn seed(&mut self) -> Result<u64> {
        Ok(self.time("stream-time.seed")?.seed)
    }
}

impl log::Host for HostState {
    fn write(&mut self, level: log::Level, message: String) -> Result<()> {
        let bytes = message.len() as u64;
        self.charge(0, bytes)?;
        if self.call.log_bytes.saturating_add(bytes) > self.limits.log_bytes_per_call {
            self.call.dropped_log_bytes = self.call.dropped_log_bytes.saturating_add(bytes);
            return Ok(());
        }
        // An empty line is not free: it takes its place in the list.
        self.call.log_bytes += bytes.max(16);
        let level = match level {
            log::Level::Debug => Level::Debug,
            log::Level::Info => Level::Info,
            log::Level::Warn => Level::Warn,
            log::Level::Error => Level::Error,
        };
        self.call.logs.push((level, printable(&message)));
        Ok(())
    }
}

impl metrics::Host for HostState {
    fn add(&mut self, name: String, delta: u64) -> Result<()> {
        self.metric("metrics.add", name, Metric::Add(delta))
    }

    fn set(&mut self, name: String, value: f64) -> Result<()> {
        self.metric("metrics.set", name, Metric::Set(value))
    }
}

/// The most bytes of a guest's text that an error or a rejection keeps.
const MAX_REASON_BYTES: usize = 1024;

/// Whether a letter steers a terminal, or the order in which it shows others.
pub fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
}

/// `text` without control characters, and without those that break or turn lines, so that no line
/// forges another and no terminal is steered.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if steers(c) { ' ' } else { c }).collect()
}

/// The same, cut to what an error or a rejection keeps.
pub fn reason(text: &str) -> String {
    printable(&text[..text.floor_char_boundary(MAX_REASON_BYTES)])
}

/// The most letters of a name that a guest made up which are shown.
const MAX_NAME_CHARS: usize = 120;

/// A guest's name for something, to be told that it is none.
pub fn shown(name: &str) -> String {
    name.chars().take(MAX_NAME_CHARS).collect()
}
