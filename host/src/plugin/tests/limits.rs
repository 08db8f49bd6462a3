//! Each limit stops a guest, in words that name the limit, and leaves the engine as it was.

use serde_json::json;

use super::super::{CallError, Fault, Limits};
use super::support::{MemoryState, call, input, instance, load, numbered};
use crate::types::{Records, RecordsBuilder};

fn poisoned() -> Records {
    let mut rows = RecordsBuilder::default();
    for value in ["a", "poison", "b"] {
        rows.push(1, None, Some(value.as_bytes()), []);
    }
    rows.finish()
}

fn small() -> Limits {
    Limits { fuel_per_call: 10_000_000, memory_bytes: 8 << 20, ..Limits::default() }
}

fn fault(mode: &str, limits: &Limits) -> String {
    let mut guest = instance("hostile", &json!(mode), limits);
    let error = call(&mut guest, poisoned()).map(|output| output.outputs).unwrap_err();
    assert!(error.is_guest_fault(), "{mode}: {error}");
    // The engine is as good as new: what the poisoned call was in works for others.
    call(&mut instance("hostile", &json!("none"), &small()), poisoned()).unwrap();
    error.to_string()
}

#[test]
fn a_poisoned_record_stops_the_call_and_nothing_else() {
    let cases = [
        ("loop", "exceeded its units of fuel of 10000000 (limit fuel_per_call)"),
        ("memory", "exceeded its bytes of memory of 8388608 (limit memory_bytes)"),
        ("recursion", "it trapped: wasm trap: call stack exhausted"),
        ("error", "returned an error: poison was seen"),
    ];
    for (mode, part) in cases {
        let error = fault(mode, &small());
        assert!(error.contains(part), "{mode}: {error}");
    }
    let trap = fault("trap", &small());
    assert!(trap.contains("wasm `unreachable` instruction executed"), "{trap}");
    assert!(trap.contains("before that it logged: panicked at"), "{trap}");
    assert!(trap.contains("poison was seen"), "{trap}");
}

#[test]
fn host_calls_are_not_free() {
    let cases = [
        (
            "host-calls",
            Limits::default(),
            "number of host calls of 1048576 (limit host_calls_per_call)",
        ),
        ("host-calls", small(), "units of fuel of 10000000 (limit fuel_per_call)"),
        (
            "state-flood",
            Limits::default(),
            "bytes of state of 268435456 (limit state_bytes_per_call)",
        ),
        ("scan-flood", Limits::default(), "bytes of scans of 67108864 (limit scan_bytes_per_call)"),
        (
            "scan-flood",
            Limits { state_keys_per_call: 30, ..Limits::default() },
            "number of state keys of 30 (limit state_keys_per_call)",
        ),
        (
            "log",
            Limits { output_bytes_per_call: 5, ..Limits::default() },
            "bytes of output of 5 (limit output_bytes_per_call)",
        ),
    ];
    for (mode, limits, part) in cases {
        let error = fault(mode, &limits);
        assert!(error.contains(part), "{mode}: {error}");
    }
}

#[test]
fn starting_has_limits_too() {
    let limits = Limits { fuel_per_start: 10_000_000, memory_bytes: 8 << 20, ..Limits::default() };
    let cases = [
        ("init-loop", "units of fuel of 10000000 (limit fuel_per_start)"),
        ("init-memory", "bytes of memory of 8388608 (limit memory_bytes)"),
        ("init-trap", "before that it logged: panicked at"),
        ("init-error", "returned an error: no such thing"),
        ("init-state", "state.get-many: init and describe cannot read or write state"),
        ("init-time", "stream-time.before-batch: init and describe see neither time nor seed"),
    ];
    for (mode, part) in cases {
        let plugin = load("hostile");
        let error = plugin.instantiate(&json!(mode), &limits).map(|_| ()).unwrap_err();
        assert!(error.is_guest_fault(), "{mode}: {error}");
        assert!(error.to_string().contains(part), "{mode}: {error}");
    }
    let tiny = Limits { memory_bytes: 1 << 10, ..Limits::default() };
    let error = load("hostile").instantiate(&json!(""), &tiny).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("limit memory_bytes"), "{error}");
}

#[test]
fn the_deadline_blames_no_record() {
    let limits = Limits {
        fuel_per_call: u64::MAX / 4,
        host_calls_per_call: u64::MAX,
        deadline_ms: 20,
        ..Limits::default()
    };
    for mode in ["loop", "host-calls"] {
        let mut guest = instance("hostile", &json!(mode), &limits);
        let error = call(&mut guest, poisoned()).map(|output| output.outputs).unwrap_err();
        match &error {
            CallError::Deadline { deadline_ms: 20 } => assert!(!error.is_guest_fault()),
            other => panic!("{mode}: {other}"),
        }
    }
}

#[test]
fn a_verdict_has_room_for_what_just_failed() {
    // What echo costs on this batch decides the limit: one unit less fails, and its verdict does not.
    let mut echo = instance("echo", &json!({}), &Limits::default());
    let used = call(&mut echo, numbered(100)).unwrap().fuel_used;
    let tight = Limits { fuel_per_call: used - 1, ..Limits::default() };
    let error = call(&mut instance("echo", &json!({}), &tight), numbered(100)).unwrap_err();
    match error {
        CallError::Guest(Fault::Limit { name: "fuel_per_call", limit, .. }) => {
            assert_eq!(limit, used - 1)
        }
        other => panic!("{other}"),
    }
    let output = call(&mut instance("echo", &json!({}), &tight.verdict()), numbered(100)).unwrap();
    assert_eq!(output.fuel_used, used, "fuel is not the same for the same call");
    let exact = Limits { fuel_per_call: used, ..Limits::default() };
    call(&mut instance("echo", &json!({}), &exact), numbered(100)).unwrap();
}

#[test]
fn memory_can_be_watched() {
    let mut echo = instance("echo", &json!({}), &Limits::default());
    let before = echo.memory_bytes();
    call(&mut echo, numbered(100_000)).unwrap();
    assert!(
        before > 0 && echo.memory_bytes() > before + (1 << 20),
        "{before} {}",
        echo.memory_bytes()
    );
}

#[test]
fn an_input_whose_runs_do_not_add_up_is_the_hosts_fault() {
    let mut echo = instance("echo", &json!({}), &Limits::default());
    let mut given = input(numbered(3));
    given.runs[0].count = 2;
    let error = echo.process(&given, Box::<MemoryState>::default()).0.unwrap_err();
    assert!(!error.is_guest_fault());
    assert!(
        error.to_string().contains("runs add up to 2 records where the batch has 3"),
        "{error}"
    );
}
