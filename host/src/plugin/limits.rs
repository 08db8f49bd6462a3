//! What a call may cost: every budget with its unit, default and reason.
//!
//! **Invariant:** budgets are per call and constant. None depends on the batch, on the machine or on
//! what was left over by an earlier call, so that a record's verdict does not depend on its
//! neighbours. `memory_bytes` alone spans the calls of an instance, because guest memory does; that
//! is why a verdict is only ever passed in a fresh instance. The last three bound what the host keeps
//! of all calls together, and no record is ever judged by them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::call::CallError;
use crate::clock::SharedClock;

/// The most that one call may add to a commit of the log, which holds 128 MiB: beside it there is room for
/// what was gathered before.
const MAX_COMMIT_BYTES: u64 = 96 << 20;

/// Budgets of a plugin. A deployment sets any of them; the rest keep their defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Linear memory of an instance in bytes, all its memories together. 256 MiB: Python and
    /// JavaScript guests need tens of megabytes before the first record.
    pub memory_bytes: u64,
    /// Fuel of one call, about one unit an instruction, host calls included. 1e9 is one to two seconds
    /// of work: hundreds of times what a batch of 4,096 records usually takes, and short enough that
    /// the dozen failures of a halving end within seconds. A batch that honestly needs more is halved
    /// and goes through.
    pub fuel_per_call: u64,
    /// Fuel for instantiation, `init` and `describe`, each. 5e9: interpreters set themselves up here.
    pub fuel_per_start: u64,
    /// Wall time of one call in milliseconds, the last resort: it stops the task and never blames a
    /// record. 60 s is far beyond what `fuel_per_call` allows, even on a busy machine.
    pub deadline_ms: u64,
    /// Bytes of keys, values and headers that one call may return. 64 MiB, some dozens of times a
    /// batch.
    pub output_bytes_per_call: u64,
    /// Records that one call may return, over all outputs. 2^20, 256 for each record of a batch.
    pub output_records_per_call: u64,
    /// Bytes of all that one call makes, as a commit has them: outputs, state changes and reasons of
    /// rejections, and some tens for each. 96 MiB, its most, fits a commit with what was gathered before;
    /// a batch that makes more is halved.
    pub commit_bytes_per_call: u64,
    /// Bytes of one key. 64 KiB: keys are held in memory and in indexes.
    pub key_bytes: u64,
    /// Bytes of one value. 8 MiB: larger things belong in an object store, with a reference here.
    pub value_bytes: u64,
    /// Calls from the guest to the host. 2^20: a get and a put for each record and more.
    pub host_calls_per_call: u64,
    /// Keys read, written and deleted. 2^22, as many as a call can carry with room for scans.
    pub state_keys_per_call: u64,
    /// Bytes of keys and values given to and taken from state, scans aside. 256 MiB.
    pub state_bytes_per_call: u64,
    /// Bytes of keys and values that scans return. 64 MiB; a page holds at most
    /// `scan_page_bytes`.
    pub scan_bytes_per_call: u64,
    /// Bytes after which a scan's page ends (a page holds one entry at least). 1 MiB.
    pub scan_page_bytes: u32,
    /// Entries of a scan's page. 4,096, as many as a batch.
    pub scan_page_entries: u32,
    /// Bytes of log lines. 64 KiB; what is beyond is dropped and counted, and the call goes on.
    pub log_bytes_per_call: u64,
    /// Different metrics of one call. 64: each becomes a time series.
    pub metrics_per_call: u64,
    /// Different metrics of a generation. 256; further ones are dropped and counted.
    pub metrics_per_generation: u64,
    /// Bytes of log lines, those about poison records included, that a generation adds to the host's
    /// log in a second. 64 KiB; what is beyond is dropped and counted.
    pub log_bytes_per_second: u64,
    /// Memory of a task's stores in bytes: keys, values, and some for each entry. 1 GiB; beyond it the
    /// task stops.
    pub store_memory_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        const MIB: u64 = 1 << 20;
        Self {
            memory_bytes: 256 * MIB,
            fuel_per_call: 1_000_000_000,
            fuel_per_start: 5_000_000_000,
            deadline_ms: 60_000,
            output_bytes_per_call: 64 * MIB,
            output_records_per_call: MIB,
            commit_bytes_per_call: MAX_COMMIT_BYTES,
            key_bytes: 64 << 10,
            value_bytes: 8 * MIB,
            host_calls_per_call: MIB,
            state_keys_per_call: 4 * MIB,
            state_bytes_per_call: 256 * MIB,
            scan_bytes_per_call: 64 * MIB,
            scan_page_bytes: 1 << 20,
            scan_page_entries: 4_096,
            log_bytes_per_call: 64 << 10,
            metrics_per_call: 64,
            metrics_per_generation: 256,
            log_bytes_per_second: 64 << 10,
            store_memory_bytes: 1 << 30,
        }
    }
}

impl Limits {
    /// Checks that the budgets make sense together. The error names the limit and its range.
    pub fn check(&self) -> Result<(), String> {
        const GIB: u64 = 1 << 30;
        let ranges = [
            ("memory_bytes", self.memory_bytes, 1 << 20, 4 * GIB),
            ("fuel_per_call", self.fuel_per_call, 1_000_000, 1 << 50),
            ("fuel_per_start", self.fuel_per_start, 1_000_000, 1 << 50),
            ("deadline_ms", self.deadline_ms, 100, 3_600_000),
            // Twice as much, in which a record is judged, is still what a column of bytes can hold.
            ("output_bytes_per_call", self.output_bytes_per_call, 1 << 10, GIB - 1),
            ("output_records_per_call", self.output_records_per_call, 1, 1 << 24),
            ("commit_bytes_per_call", self.commit_bytes_per_call, 1 << 10, MAX_COMMIT_BYTES),
            ("key_bytes", self.key_bytes, 16, 1 << 20),
            ("value_bytes", self.value_bytes, 16, GIB / 2),
            ("host_calls_per_call", self.host_calls_per_call, 1, 1 << 32),
            ("state_keys_per_call", self.state_keys_per_call, 1, 1 << 32),
            ("state_bytes_per_call", self.state_bytes_per_call, 1 << 10, GIB),
            ("scan_bytes_per_call", self.scan_bytes_per_call, 1 << 10, GIB),
            ("scan_page_bytes", self.scan_page_bytes.into(), 1 << 10, GIB / 4),
            ("scan_page_entries", self.scan_page_entries.into(), 1, 1 << 20),
            ("log_bytes_per_call", self.log_bytes_per_call, 0, 64 << 20),
            ("metrics_per_call", self.metrics_per_call, 0, 10_000),
            ("metrics_per_generation", self.metrics_per_generation, 0, 100_000),
            ("log_bytes_per_second", self.log_bytes_per_second, 0, GIB),
            ("store_memory_bytes", self.store_memory_bytes, 1 << 10, 1 << 40),
        ];
        match ranges.iter().find(|(_, value, least, most)| value < least || value > most) {
            None => Ok(()),
            Some((name, value, least, most)) => {
                Err(format!("limit {name} is {value}, it must be between {least} and {most}"))
            }
        }
    }

    /// Whether what a call made fits a commit.
    pub fn check_commit(&self, bytes: usize) -> Result<(), CallError> {
        if bytes as u64 <= self.commit_bytes_per_call {
            return Ok(());
        }
        let what = "bytes of outputs and state changes";
        Err(CallError::limit(what, "commit_bytes_per_call", self.commit_bytes_per_call))
    }

    /// The budgets under which a single record is judged: twice those of an ordinary call, so that a
    /// record is never condemned for what a fresh instance costs. Sizes of one key or value and the
    /// shape of a scan's pages stay: results depend on them; and so does the size of a commit.
    pub fn verdict(&self) -> Self {
        Self {
            memory_bytes: self.memory_bytes.saturating_mul(2),
            fuel_per_call: self.fuel_per_call.saturating_mul(2),
            fuel_per_start: self.fuel_per_start.saturating_mul(2),
            deadline_ms: self.deadline_ms.saturating_mul(2),
            output_bytes_per_call: self.output_bytes_per_call.saturating_mul(2),
            output_records_per_call: self.output_records_per_call.saturating_mul(2),
            host_calls_per_call: self.host_calls_per_call.saturating_mul(2),
            state_keys_per_call: self.state_keys_per_call.saturating_mul(2),
            state_bytes_per_call: self.state_bytes_per_call.saturating_mul(2),
            scan_bytes_per_call: self.scan_bytes_per_call.saturating_mul(2),
            metrics_per_call: self.metrics_per_call.saturating_mul(2),
            ..self.clone()
        }
    }
}

/// Says that nobody waits for an instance's calls any more: the one under way is given up. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Says so, for good.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// When the call at hand must have returned.
#[derive(Clone)]
pub(super) struct Deadline {
    clock: SharedClock,
    at: Duration,
    deadline_ms: u64,
    pub cancel: Cancel,
}

impl Deadline {
    /// A deadline by `clock`, of a call that begins now.
    pub(super) fn new(clock: SharedClock, deadline_ms: u64) -> Self {
        let cancel = Cancel::default();
        let mut deadline = Self { clock, at: Duration::ZERO, deadline_ms, cancel };
        deadline.restart();
        deadline
    }

    /// A call begins.
    pub(super) fn restart(&mut self) {
        self.at = self.clock.monotonic().saturating_add(Duration::from_millis(self.deadline_ms));
    }

    /// Fails once the time is over, or nobody waits.
    pub(super) fn check(&self) -> Result<(), CallError> {
        if self.cancel.0.load(Ordering::Relaxed) {
            return Err(CallError::Cancelled);
        }
        if self.clock.monotonic() < self.at {
            return Ok(());
        }
        Err(CallError::Deadline { deadline_ms: self.deadline_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_doubles_what_a_call_may_cost_and_nothing_that_shapes_results() {
        let (once, twice) = (Limits::default(), Limits::default().verdict());
        assert_eq!(twice.fuel_per_call, 2 * once.fuel_per_call);
        assert_eq!(twice.memory_bytes, 2 * once.memory_bytes);
        assert_eq!(twice.log_bytes_per_call, once.log_bytes_per_call);
        assert_eq!(twice.scan_page_entries, once.scan_page_entries);
        assert_eq!(twice.value_bytes, once.value_bytes);
    }

    #[test]
    fn limits_out_of_range_are_named() {
        assert_eq!(Limits::default().check(), Ok(()));
        let limits = Limits { value_bytes: 1 << 40, ..Limits::default() };
        assert!(limits.check().unwrap_err().starts_with("limit value_bytes is 1099511627776"));
    }

    #[test]
    fn what_is_not_given_keeps_its_default_and_unknown_limits_are_refused() {
        let limits: Limits = serde_json::from_str(r#"{"memory_bytes": 1048576}"#).unwrap();
        assert_eq!(limits, Limits { memory_bytes: 1 << 20, ..Limits::default() });
        assert!(serde_json::from_str::<Limits>(r#"{"memroy_bytes": 1}"#).is_err());
    }
}
