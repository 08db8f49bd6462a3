//! Results depend on the input alone: not on batches, workers, restarts or when code was swapped.
//!
//! Every case runs the same seeded input through real components and compares stores and outputs with
//! a plain computation.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::support::{Client, Host, guest_path, seed};

/// Records of a case.
const RECORDS: usize = 12_000;

/// Keys they have.
const KEYS: usize = 500;

/// Seeded records with keys; some are refused by the plugin, as they have none.
fn input(seed: u64) -> Vec<Value> {
    let mut random = fastrand::Rng::with_seed(seed);
    let record = |i: usize| match random.usize(0..100) {
        0 => json!({ "value": i, "timestamp": i }),
        _ => json!({ "key": format!("k{}", random.usize(0..KEYS)), "value": i, "timestamp": i }),
    };
    (0..RECORDS).map(record).collect()
}

/// How often each key occurs.
fn plain_counts(input: &[Value]) -> BTreeMap<String, i64> {
    let mut counts = BTreeMap::new();
    for key in input.iter().filter_map(|record| record["key"].as_str()) {
        *counts.entry(key.to_owned()).or_default() += 1;
    }
    counts
}

fn store_counts(client: &Client, deployment: &str, generation: u32) -> BTreeMap<String, i64> {
    let mut counts = BTreeMap::new();
    for entry in client.store(deployment, "counts", generation) {
        let key = entry["key"].as_str().unwrap().to_owned();
        let old = counts.insert(key, entry["value"].as_i64().unwrap());
        assert!(old.is_none(), "{entry} is in two partitions");
    }
    counts
}

/// The values of each key in an output topic, in order.
fn outputs(client: &Client, topic: &str, partitions: u32) -> BTreeMap<String, Vec<i64>> {
    let mut values: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for partition in 0..partitions {
        for record in client.records(topic, partition) {
            let key = record["key"].as_str().unwrap().to_owned();
            values.entry(key).or_default().push(number(&record["value"]));
        }
    }
    values
}

/// A count as the plugin writes it: 8 bytes, little-endian, shown as base64.
fn number(value: &Value) -> i64 {
    if let Some(number) = value.as_i64() {
        return number;
    }
    let bytes = anabranch_key::base64_decode(value["$bytes"].as_str().unwrap()).unwrap();
    i64::from_le_bytes(bytes.try_into().unwrap())
}

/// As `assert_eq`, but names the first keys that differ instead of printing all.
fn assert_same<T: PartialEq + std::fmt::Debug>(
    found: &BTreeMap<String, T>,
    expected: &BTreeMap<String, T>,
    what: &str,
) {
    let keys = found.keys().chain(expected.keys().filter(|key| !found.contains_key(*key)));
    let differ = keys.filter(|key| found.get(*key) != expected.get(*key));
    let differ: Vec<_> =
        differ.take(3).map(|key| (key, found.get(key), expected.get(key))).collect();
    assert!(differ.is_empty(), "{what}: (key, found, expected) {differ:?}");
}

/// Stores, outputs and dead letters of a generation of the count, against the plain computation.
fn assert_exact(client: &Client, name: &str, generation: u32, input: &[Value], partitions: u32) {
    let expected = plain_counts(input);
    assert_same(&store_counts(client, name, generation), &expected, "store");
    let status = client.status(name);
    if status["live"] == generation {
        let sequences: BTreeMap<String, Vec<i64>> =
            expected.iter().map(|(key, n)| (key.clone(), (1..=*n).collect())).collect();
        assert_same(&outputs(client, &format!("{name}-out"), partitions), &sequences, "outputs");
        // With their values, though the plugin ignores them and is given none.
        let values = |records: Vec<&Value>| -> BTreeSet<String> {
            records.iter().map(|record| record["value"].to_string()).collect()
        };
        let refused: Vec<_> = input.iter().filter(|record| record["key"].is_null()).collect();
        let letters = |p| client.records(&format!("{name}.dead-letters"), p);
        let letters: Vec<_> = (0..partitions).flat_map(letters).collect();
        assert_eq!(letters.len(), refused.len(), "dead letters");
        assert_eq!(values(letters.iter().collect()), values(refused), "values of dead letters");
    }
}

fn deploy(client: &Client, name: &str, guest: &str, input: &str) {
    let plugin = client.push(guest);
    let spec = json!({
        "name": name, "plugin": plugin, "inputs": [input],
        "outputs": { "counts": format!("{name}-out") },
    });
    client.put(&format!("/v1/deployments/{name}"), &spec).ok();
}

fn produce(client: &Client, input: &[Value], chunk: usize) {
    for records in input.chunks(chunk) {
        client.append("in", records);
    }
}

#[test]
fn batches_and_workers_leave_no_trace() {
    let seed = seed();
    let input = input(seed);
    for (batch, workers) in [("1", "1"), ("7", "2"), ("4096", "1"), ("100000", "4")] {
        let environment =
            [("ANABRANCH_TASKS_BATCH_MAX_RECORDS", batch), ("ANABRANCH_TASKS_WORKERS", workers)];
        let mut host = Host::start_with(&environment);
        let client = host.client();
        client.partitions("in", 3);
        deploy(&client, "count", "count", "in");
        produce(&client, &input, 1_500);
        client.wait_processed("count", 1, RECORDS as u64);
        assert_exact(&client, "count", 1, &input, 3);
        host.stop();
    }
}

#[test]
fn a_replay_equals_a_fresh_run_while_records_keep_coming() {
    let seed = seed();
    let input = input(seed);
    // Most of the replay goes to files of its own, as one of a long history does.
    let host = Host::start_with(&[
        ("ANABRANCH_TASKS_NEAR_END_RECORDS", "100"),
        ("ANABRANCH_TASKS_REPLAY_COMMIT_BYTES", "20000"),
    ]);
    let client = host.client();
    client.partitions("in", 3);
    deploy(&client, "count", "count", "in");
    let (first, second) = input.split_at(RECORDS / 2);
    produce(&client, first, 1_000);
    let digest = client.push("count");
    client.post("/v1/deployments/count/swap", &json!({ "plugin": digest })).ok();
    produce(&client, second, 200);
    client.wait_live("count", 2);
    for generation in [1, 2] {
        client.wait_processed("count", generation, RECORDS as u64);
        assert_exact(&client, "count", generation, &input, 3);
    }
    client.post("/v1/deployments/count/rollback", &json!({})).ok();
    produce(&client, first, 500);
    let mut all = input.clone();
    all.extend_from_slice(first);
    for generation in [1, 2] {
        client.wait_processed("count", generation, all.len() as u64);
        assert_exact(&client, "count", generation, &all, 3);
    }
}

#[test]
fn a_kill_anywhere_leaves_no_trace() {
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let input = input(seed);
    let dir = tempfile::tempdir().unwrap();
    let environment = [
        ("ANABRANCH_TASKS_BATCH_MAX_RECORDS", "64"),
        ("ANABRANCH_TASKS_CHECKPOINT_BYTES", "4096"),
        ("ANABRANCH_STORAGE_HEAD_BYTES", "200000"),
    ];
    let mut host = Host::on(dir.path(), &environment);
    host.partitions("in", 2);
    deploy(&host, "count", "count", "in");
    for records in input.chunks(RECORDS / 6) {
        for few in records.chunks(250) {
            host.append("in", few);
        }
        std::thread::sleep(std::time::Duration::from_millis(random.u64(0..40)));
        host.kill();
        host = Host::on(dir.path(), &environment);
    }
    let client = host.client();
    client.wait_processed("count", 1, RECORDS as u64);
    assert_exact(&client, "count", 1, &input, 2);
    host.stop();
    let host = Host::on(dir.path(), &[]);
    host.wait_processed("count", 1, RECORDS as u64);
    assert_exact(&host, "count", 1, &input, 2);
}

#[test]
fn two_chained_deployments_equal_a_plain_computation() {
    let seed = seed();
    let input = input(seed);
    let host = Host::start();
    let client = host.client();
    client.partitions("in", 3);
    // The second counts the updates of the first: as many for each key as the first counts records.
    deploy(&client, "first", "count", "in");
    deploy(&client, "second", "count", "first-out");
    produce(&client, &input, 1_000);
    let keyed = input.iter().filter(|record| !record["key"].is_null()).count() as u64;
    client.wait_processed("first", 1, RECORDS as u64);
    client.wait_processed("second", 1, keyed);
    assert_exact(&client, "first", 1, &input, 3);
    assert_same(&store_counts(&client, "second", 1), &plain_counts(&input), "second");
    // A swap of the first: the second reads on over the marker, and sees nothing twice.
    let digest = client.push("count");
    client.post("/v1/deployments/first/swap", &json!({ "plugin": digest })).ok();
    client.wait_live("first", 2);
    produce(&client, &input, 1_000);
    client.wait_processed("second", 1, 2 * keyed);
    let doubled = plain_counts(&input).into_iter().map(|(key, n)| (key, 2 * n)).collect();
    assert_same(&store_counts(&client, "second", 1), &doubled, "second, after a swap");
}

#[test]
fn deployment_files_and_guests_are_where_the_readme_says() {
    assert!(guest_path("flights_delays_v1").exists() && guest_path("flights_delays_v2").exists());
}

#[test]
fn stream_time_is_that_of_the_records() {
    let mut random = fastrand::Rng::with_seed(seed());
    let times: Vec<i64> = (0..1_500).map(|_| random.i64(0..1_000_000)).collect();
    for batch in ["1", "7", "100000"] {
        let dir = tempfile::tempdir().unwrap();
        let settings = [("ANABRANCH_TASKS_BATCH_MAX_RECORDS", batch)];
        let mut host = Host::on(dir.path(), &settings);
        host.topic("in", &json!({"format": "utf8"}));
        let outputs = json!({"out": "out", "other": "other"});
        host.deploy("e", "fixture_echo_record", &["in"], &outputs);
        for some in times.chunks(500) {
            let row = |time| json!({"value": "time", "timestamp": time});
            host.append("in", &some.iter().map(row).collect::<Vec<_>>());
            host.kill();
            host = Host::on(dir.path(), &settings);
        }
        host.wait_processed("e", 1, times.len() as u64);
        let out = host.records("out", 0);
        assert_eq!(out.len(), times.len());
        let mut highest = None;
        for (record, time) in out.iter().zip(&times) {
            let seen = String::from_utf8(crate::hostile::value_of(record)).unwrap();
            assert_eq!(seen, format!("{highest:?}"));
            highest = highest.max(Some(*time));
        }
    }
}
