//! The example plugins, written with the SDK, in the real sandbox.

use std::path::Path;

use serde_json::{Value, json};

use super::super::{Instance, Limits};
use super::support::{MemoryState, RUNTIME, input};
use crate::types::{Records, RecordsBuilder};

/// The bytes of a built example.
fn example(package: &str) -> Vec<u8> {
    let file = format!("../target/wasm32-unknown-unknown/guest/{}.wasm", package.replace('-', "_"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    std::fs::read(&path).unwrap_or_else(|error| {
        panic!(
            "{}: {error}; build it with: cargo build --profile guest --target wasm32-unknown-unknown -p {package}",
            path.display()
        )
    })
}

fn start(package: &str, config: &Value) -> Instance {
    let admitted = RUNTIME.0.admit(&example(package)).unwrap();
    let plugin = RUNTIME.0.load(admitted.digest, &admitted.component).unwrap();
    plugin.instantiate(config, &Limits::default()).unwrap()
}

/// Calls an instance with batches of `cut` records, and hands the state from one to the next. Returns
/// the rows of the one output, the rejected records and the state's entries.
type Outcome = (Vec<(Vec<u8>, Vec<u8>)>, Vec<u32>, Vec<(Vec<u8>, Vec<u8>)>);

fn run(instance: &mut Instance, records: &Records, cut: usize) -> Outcome {
    let mut state: Box<dyn super::super::StateAccess> = Box::<MemoryState>::default();
    let (mut rows, mut rejected) = (Vec::new(), Vec::new());
    for start in (0..records.len()).step_by(cut) {
        let part = records.slice(start, cut.min(records.len() - start));
        let (result, back) = instance.process(&input(part), state);
        state = back;
        let output = result.unwrap();
        rejected.extend(output.rejections.iter().map(|(i, _)| start as u32 + i));
        for columns in output.outputs {
            let bytes = |column: &arrow_array::BinaryArray, i| column.value(i).to_vec();
            rows.extend(
                (0..columns.len()).map(|i| (bytes(&columns.keys, i), bytes(&columns.values, i))),
            );
        }
    }
    let page = state.scan(0, &[], None, 10_000, 1 << 20).unwrap();
    let entries = page.keys.iter().zip(&page.values);
    let entries = entries.map(|(key, value)| (key.unwrap().to_vec(), value.unwrap().to_vec()));
    (rows, rejected, entries.collect())
}

const CUTS: [usize; 4] = [1, 7, 100, 1_000];

#[test]
fn records_pass_through_and_are_counted_wherever_batches_are_cut() {
    let mut records = RecordsBuilder::default();
    for i in 0..1_000 {
        let key = format!("key-{}", i * i % 37);
        let key = (i % 100 != 50).then_some(key.as_bytes());
        records.push(i, key, Some(format!("value {i}").as_bytes()), []);
    }
    let records = records.finish();
    let mut counts = std::collections::BTreeMap::<Vec<u8>, i64>::new();
    let keys = records.keys.iter().flatten();
    let expected: Vec<_> = keys
        .map(|key| {
            let count = counts.entry(key.to_vec()).or_default();
            *count += 1;
            (key.to_vec(), count.to_le_bytes().to_vec())
        })
        .collect();
    for cut in CUTS {
        let (rows, rejected, _) = run(&mut start("passthrough", &json!({})), &records, cut);
        let values: Vec<_> = rows.iter().map(|(_, value)| Some(value.as_slice())).collect();
        assert_eq!(values, records.values.iter().collect::<Vec<_>>());
        assert!(rejected.is_empty());

        let (rows, rejected, entries) = run(&mut start("count", &json!({})), &records, cut);
        assert_eq!(rows, expected, "cut at {cut}");
        assert_eq!(rejected, (50..1_000).step_by(100).collect::<Vec<u32>>());
        let stored = counts.iter().map(|(key, count)| {
            ([b"\x02", &key[..], b"\x00"].concat(), count.to_le_bytes().to_vec())
        });
        assert_eq!(entries, stored.collect::<Vec<_>>());
    }
}

#[test]
fn a_filter_keeps_what_its_configuration_says() {
    let mut records = RecordsBuilder::default();
    (0..100).for_each(|i| records.push(i, None, Some(format!("{{\"n\":{i}}}").as_bytes()), []));
    let mut filter = start("filter", &json!({"field": "n", "min": 90, "max": 95}));
    let (rows, rejected, _) = run(&mut filter, &records.finish(), 33);
    assert_eq!((rows.len(), rejected.len()), (6, 0));
}

/// Both versions over flights of three carriers, every fifth of which never left.
#[test]
fn both_versions_of_flights_delays_are_exact() {
    let mut records = RecordsBuilder::default();
    let mut last = std::collections::BTreeMap::new();
    for i in 0..1_000_i64 {
        let carrier = ["AA", "B6", "UA"][i as usize % 3];
        let delay = (i % 5 != 0).then_some(i % 60 - 15);
        let value = json!({"carrier": carrier, "dep_delay": delay}).to_string();
        records.push(i, Some(carrier.as_bytes()), Some(value.as_bytes()), []);
        let all: &mut Vec<Option<i64>> = last.entry(carrier).or_default();
        all.push(delay);
    }
    let records = records.finish();
    for (package, counts_cancelled) in [("flights-delays-v1", false), ("flights-delays-v2", true)] {
        for cut in CUTS {
            let (rows, rejected, _) = run(&mut start(package, &json!({})), &records, cut);
            assert_eq!((rows.len(), rejected.len()), (1_000, 0));
            for (carrier, delays) in &last {
                let newest = rows.iter().rev().find(|(key, _)| key == carrier.as_bytes()).unwrap();
                let row: Value = serde_json::from_slice(&newest.1).unwrap();
                let left: Vec<i64> = match counts_cancelled {
                    true => delays.iter().copied().flatten().collect(),
                    false => delays.iter().map(|delay| delay.unwrap_or(0)).collect(),
                };
                let late = left.iter().filter(|&&minutes| minutes > 15).count();
                let expected = json!({
                    "flights": delays.len(),
                    "cancelled": delays.len() - left.len(),
                    "mean_delay_minutes": left.iter().sum::<i64>() as f64 / left.len() as f64,
                    "late_share": late as f64 / left.len() as f64,
                });
                // Read from its text like the row: a parser may miss the nearest number, twice alike.
                let expected: Value = serde_json::from_str(&expected.to_string()).unwrap();
                assert_eq!(row, expected, "{package}, {carrier}, cut at {cut}");
            }
        }
    }
}

/// What the examples cost a record, printed.
#[test]
fn examples_are_measured() {
    let clock = crate::clock::SystemClock::shared();
    let mut records = RecordsBuilder::default();
    for i in 0..4_096_i64 {
        let key = format!("k{:06}", i * 7_919 % 100_000);
        let value = json!({"n": i, "dep_delay": i % 60, "text": "x".repeat(70)}).to_string();
        records.push(i, Some(key.as_bytes()), Some(value.as_bytes()), []);
    }
    let given = input(records.finish());
    let filter = json!({"field": "n", "max": 1_228});
    for (package, config) in [
        ("passthrough", json!({})),
        ("filter", filter),
        ("count", json!({})),
        ("flights-delays-v2", json!({})),
    ] {
        let mut instance = start(package, &config);
        let mut state: Option<Box<dyn super::super::StateAccess>> = None;
        let best_ns = (0..20).map(|_| {
            let before = state.take().unwrap_or_else(|| Box::<MemoryState>::default());
            let begin = clock.monotonic();
            let (result, back) = instance.process(&given, before);
            let taken = clock.monotonic() - begin;
            state = Some(back);
            assert!(!result.unwrap().outputs.is_empty());
            taken.as_nanos() / 4_096
        });
        println!("{package:20} {:6} ns a record", best_ns.min().unwrap_or_default());
    }
}
