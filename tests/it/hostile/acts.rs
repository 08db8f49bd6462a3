//! What guests do wrong while they run: the record at fault goes to the dead letters with the reason,
//! its neighbours go through, and nothing of the failed call is left.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::modules::record::{HAS_VALUE, HEADERS, IS_REJECTED, TEXT, VALUE, point, set};
use super::modules::{HARMLESS, Module, record_module};
use super::{Good, dead_letters, deploy, send, value_of};
use crate::support::{Host, wait_until};

/// Limits that are reached soon.
fn small() -> Value {
    json!({
        "fuel_per_call": 20_000_000, "fuel_per_start": 100_000_000, "memory_bytes": 8 << 20,
        "state_bytes_per_call": 8 << 20, "state_keys_per_call": 50_000,
    })
}

#[test]
fn a_poisoned_record_is_stopped_alone() {
    let host = Host::start_noting(&[]);
    let mut good = Good::deploy(&host);
    let digest = host.push("fixture_hostile");
    let fuel = "exceeded its units of fuel of 40000000 (limit fuel_per_call)";
    let cases = [
        ("loop", fuel),
        ("recursion", "call stack exhausted"),
        ("memory", "exceeded its bytes of memory of 16777216 (limit memory_bytes)"),
        ("trap", "`unreachable` instruction executed; before that it logged: panicked at"),
        ("error", "returned an error: poison was seen"),
        ("poison:trap-late", "after half of the work"),
        ("poison:giant", "exceeded its bytes of output of 33554432 (limit output_bytes_per_call)"),
        ("poison:ends-fall", "output out: the values: "),
        ("poison:ends-lie", "output out: the values: "),
        ("poison:ends-overflow", "output out: the values: "),
        ("poison:source-range", "output out: "),
        ("poison:partition-range", "output out: partition 4294967295 of a topic with 1"),
        ("poison:rejection-range", "rejection 4294967295 is outside a batch of 1 records"),
        (
            "poison:metric-names",
            "exceeded its number of different metrics of 128 (limit metrics_per_call)",
        ),
        ("poison:host-calls", fuel),
        ("poison:log-flood", fuel),
        ("poison:state-keys", "exceeded its "),
        (
            "poison:state-values",
            "exceeded its bytes of state of 16777216 (limit state_bytes_per_call)",
        ),
    ];
    let name = |act: &str| act.replace(':', "-");
    for (act, _) in cases {
        let limits = match act {
            "poison:giant" => json!({"output_bytes_per_call": 16 << 20}),
            _ => small(),
        };
        deploy(&host, &name(act), &digest, act, &limits);
        send(&host, &name(act), &["a", "poison", "b"]);
    }
    for (act, says) in cases {
        let name = name(act);
        host.wait_processed(&name, 1, 3);
        wait_until("the dead letter is there", || !dead_letters(&host, &name).is_empty());
        let letters = dead_letters(&host, &name);
        println!("{act}: {letters:?}");
        let [(reason, value)] = &letters[..] else { panic!("{act}: {letters:?}") };
        assert_eq!(value, "poison", "{act}");
        assert!(reason.contains(says), "{act}: {reason}");
        let out = host.records(&format!("{name}-out"), 0);
        let values: Vec<_> = out.iter().map(value_of).collect();
        assert_eq!(values, [b"a", b"b"], "{act}");
        assert_eq!(host.store(&name, "store", 1), Vec::<Value>::new(), "{act} left state behind");
    }
    let metrics = host.get("/metrics").text;
    assert!(!metrics.contains("left_behind"), "a failed call's metric was counted");
    assert!(!host.said().contains("left behind"), "a failed call's line was logged");
    good.stays_exact(&host, 2_000);
}

#[test]
fn a_deadline_stops_the_task_and_blames_no_record() {
    let host = Host::start();
    let mut good = Good::deploy(&host);
    let limits = json!({"deadline_ms": 200, "fuel_per_call": 1_u64 << 50});
    deploy(&host, "late", &host.push("fixture_hostile"), "loop", &limits);
    send(&host, "late", &["a", "poison", "b"]);
    let failure = || {
        let status = host.status("late");
        status["generations"][0]["tasks"][0]["failure"].as_str().unwrap_or_default().to_owned()
    };
    wait_until("the deadline stops the task", || failure().contains("(limit deadline_ms)"));
    assert!(dead_letters(&host, "late").is_empty());
    good.stays_exact(&host, 1_000);
}

#[test]
fn growth_in_process_is_stopped() {
    let host = Host::start();
    let mut good = Good::deploy(&host);
    let cases = [
        (
            "grow-memory",
            Module {
                process: "(loop $l (drop (memory.grow (i32.const 64))) (br $l)) (i32.const 1024)",
                ..HARMLESS
            },
            "(limit memory_bytes)",
        ),
        (
            "grow-tables",
            Module {
                items: "(table $a 0 funcref) (table $b 0 funcref) (table $c 0 funcref) (table $d 0 funcref) (table $e 0 funcref)",
                process: "(loop $l
                    (drop (table.grow $a (ref.null func) (i32.const 1000)))
                    (drop (table.grow $b (ref.null func) (i32.const 1000)))
                    (drop (table.grow $c (ref.null func) (i32.const 1000)))
                    (drop (table.grow $d (ref.null func) (i32.const 1000)))
                    (drop (table.grow $e (ref.null func) (i32.const 1000)))
                    (br $l)) (i32.const 1024)",
                ..HARMLESS
            },
            "(limit memory_bytes)",
        ),
        (
            "recurse",
            Module {
                items: "(func $r (call $r) (call $r))",
                process: "(call $r) (i32.const 1024)",
                ..HARMLESS
            },
            "call stack exhausted",
        ),
        ("address", Module { process: "(i32.const -4)", ..HARMLESS }, "out of bounds"),
    ];
    let limits = json!({"memory_bytes": 8 << 20});
    for (name, module, says) in cases {
        let pushed = host.send("POST", "/v1/plugins", "application/wasm", &module.build());
        let digest = pushed.ok()["digest"].as_str().unwrap().to_owned();
        deploy(&host, name, &digest, "", &limits);
        send(&host, name, &["only"]);
        host.wait_processed(name, 1, 1);
        wait_until("the dead letter is there", || !dead_letters(&host, name).is_empty());
        let (reason, _) = dead_letters(&host, name).remove(0);
        println!("{name}: {reason}");
        assert!(reason.contains(says), "{name}: {reason}");
    }
    good.stays_exact(&host, 2_000);
}

/// Deploys a module of the record world over a topic of its own.
fn deploy_rows(host: &Host, name: &str, module: &[u8], limits: &Value) {
    let pushed = host.send("POST", "/v1/plugins", "application/wasm", module);
    let digest = pushed.ok()["digest"].as_str().unwrap().to_owned();
    let input = format!("{name}-in");
    host.topic(&input, &json!({"format": "utf8"}));
    let spec = json!({
        "name": name, "plugin": digest, "inputs": [input],
        "outputs": {"o": format!("{name}-out")}, "limits": limits,
    });
    host.put(&format!("/v1/deployments/{name}"), &spec).ok();
}

#[test]
fn what_costs_a_guest_little_and_the_host_much_is_charged_to_the_guest() {
    let host = Host::start();
    let mut good = Good::deploy(&host);
    let metric =
        "(import \"anabranch:plugin/metrics@0.1.0\" \"add\" (func $add (param i32 i32 i64)))";
    let name = "(call $add (i32.const 65536) (i32.const 10000000) (i64.const 1))";
    let value = set(HAS_VALUE, 1) + &point(VALUE, 3 << 20);
    let cases = [
        // A few instructions point to a million headers, none of which has a byte.
        (
            "headers",
            record_module("", 400, &point(HEADERS, 1_000_000)),
            json!({"output_bytes_per_call": 2 << 20}),
            "bytes of output of 4194304 (limit output_bytes_per_call)",
        ),
        (
            "reason",
            record_module("", 400, &(set(IS_REJECTED, 1) + &point(TEXT, 20_000_000))),
            json!({"fuel_per_call": 2_000_000}),
            "units of fuel of 4000000 (limit fuel_per_call)",
        ),
        ("metric", record_module(metric, 400, name), json!({}), "metrics.add: "),
        // More than a commit takes is more than a call may make, alone as well.
        (
            "commit",
            record_module("", 400, &value),
            json!({"commit_bytes_per_call": 2 << 20}),
            "bytes of outputs and state changes of 2097152 (limit commit_bytes_per_call)",
        ),
    ];
    for (name, module, limits, says) in cases {
        deploy_rows(&host, name, &module, &limits);
        send(&host, name, &["a", "b"]);
        host.wait_processed(name, 1, 2);
        wait_until("the dead letters are there", || dead_letters(&host, name).len() == 2);
        for (reason, _) in dead_letters(&host, name) {
            println!("{name}: {:.200}", reason);
            assert!(reason.contains(says) && reason.len() < 2_000, "{name}: {reason:.2000}");
        }
    }
    good.stays_exact(&host, 1_000);
}

#[test]
fn a_batch_that_makes_more_than_a_commit_holds_is_committed_in_parts() {
    let host = Host::start();
    // 140 MB of what is there when it is deployed, and again of one request.
    let grow = record_module("", 8, &(set(HAS_VALUE, 1) + &point(VALUE, 100_000)));
    deploy_rows(&host, "grow", &grow, &json!({}));
    for round in 1..=2 {
        send(&host, "grow", &vec!["x"; 1_400]);
        host.wait_processed("grow", 1, 1_400 * round);
    }
    let made = || host.get("/v1/topics/grow-out").ok()["partitions"][0]["records"].clone();
    wait_until("its outputs are there", || made() == json!(2_800));
    assert!(dead_letters(&host, "grow").is_empty());
    let status = host.status("grow");
    assert!(status["generations"][0]["tasks"][0]["failure"].is_null(), "{status}");
    // What a swap makes of all of it is the same.
    let digest = status["spec"]["plugin"].clone();
    host.post("/v1/deployments/grow/swap", &json!({"plugin": digest})).ok();
    host.wait_live("grow", 2);
    wait_until("its outputs are there", || made() == json!(2_800));
    let first = host.get("/v1/topics/grow-out/partitions/0/records?limit=1");
    assert!(first.status == 200 && first.text.len() > 100_000, "{:.200}", first.text);
}

#[test]
fn what_cannot_start_stops_its_own_task() {
    let host = Host::start();
    let mut good = Good::deploy(&host);
    let digest = host.push("fixture_hostile");
    let cases = [
        ("init-loop", "units of fuel of 100000000 (limit fuel_per_start)"),
        ("init-memory", "bytes of memory of 8388608 (limit memory_bytes)"),
        ("init-trap", "before that it logged: panicked at"),
        ("init-error", "returned an error: no such thing"),
        ("init-state", "init and describe cannot read or write state"),
        ("init-time", "init and describe see neither time nor seed"),
        ("add:state", "(limit store_memory_bytes)"),
    ];
    for (act, says) in cases {
        let name = act.replace(':', "-");
        let mut limits = small();
        limits["store_memory_bytes"] = json!(10 << 20);
        deploy(&host, &name, &digest, act, &limits);
        let mut failure = Value::Null;
        wait_until("the task fails", || {
            send(&host, &name, &["a"]);
            failure = host.status(&name)["generations"][0]["tasks"][0]["failure"].clone();
            failure.is_string()
        });
        println!("{act}: {failure}");
        assert!(failure.as_str().unwrap().contains(says), "{act}: {failure}");
    }
    good.stays_exact(&host, 2_000);
}

#[test]
fn a_call_that_may_last_for_hours_ends_with_its_deployment() {
    let mut host = Host::start();
    let digest = host.push("fixture_hostile");
    let hours = json!({"fuel_per_call": 1_u64 << 50, "deadline_ms": 3_600_000});
    for name in ["one", "two"] {
        deploy(&host, name, &digest, "loop", &hours);
        send(&host, name, &["a", "poison"]);
    }
    for name in ["one", "two"] {
        wait_until("it is in its call", || {
            host.status(name)["generations"][0]["tasks"][0]["state"] == "running"
        });
    }
    let began = Instant::now();
    assert_eq!(host.ask("DELETE", "/v1/deployments/one", &[], b"").unwrap().status, 204);
    host.stop();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(60), "{took:?}");
}
