//! The calls alone: nanoseconds a record in the sandbox and natively, batches of 4,096.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anabranch::cli::{BenchArgs, SandboxCall, guest_dir};
use anabranch::clock::SystemClock;
use anabranch::plugin::{AccessError, Input, Limits, Page, Plugin, Run, Runtime, StateAccess};
use anabranch::types::{Batch, RecordsBuilder};
use anyhow::Context as _;
use arrow_array::BinaryArray;
use serde_json::json;

const RECORDS: usize = 4_096;
const ROUNDS: usize = 200;
const REPEATS: usize = 5;

/// Measures each job in both ways.
pub fn measure(args: &BenchArgs) -> anyhow::Result<Vec<SandboxCall>> {
    let dir = tempfile::tempdir()?;
    let runtime = Runtime::new(dir.path())?;
    let load = |file: &str| -> anyhow::Result<Arc<Plugin>> {
        let path = guest_dir(args).join(format!("{file}.wasm"));
        let bytes = std::fs::read(&path);
        let bytes = bytes.with_context(|| format!("{}: run cargo xtask guests", path.display()))?;
        let admitted = runtime.admit(&bytes)?;
        Ok(runtime.load(admitted.digest, &admitted.component)?)
    };
    let jobs = [
        ("pass-through", "bench_maps"),
        ("filter", "bench_maps"),
        ("json-map", "bench_maps"),
        ("count", "bench_counts"),
    ];
    let sandboxed = jobs.map(|(_, file)| load(file));
    super::native::register();
    let native = jobs.map(|(_, file)| load(file));
    let rounds = if args.quick { 5 } else { ROUNDS };
    let mut calls = Vec::new();
    for (((job, _), sandboxed), native) in jobs.into_iter().zip(sandboxed).zip(native) {
        let guest_ns = time(&*sandboxed?, job, rounds)?;
        let native_ns = time(&*native?, job, rounds)?;
        calls.push(SandboxCall { job: job.to_owned(), guest_ns, native_ns });
    }
    Ok(calls)
}

/// Nanoseconds a record, of each repeat.
fn time(plugin: &Plugin, job: &str, rounds: usize) -> anyhow::Result<Vec<f64>> {
    let mut instance = plugin.instantiate(&json!({"job": job}), &Limits::default())?;
    let input = input();
    let clock = SystemClock::shared();
    let mut state: Box<dyn StateAccess> = Box::<Counts>::default();
    let mut repeats = Vec::new();
    // The first warms up.
    for repeat in 0..=REPEATS {
        let begun = clock.monotonic();
        for _ in 0..rounds {
            let (result, back) = instance.process(&input, state);
            state = back;
            anyhow::ensure!(result?.rejections.is_empty(), "{job}: a record was refused");
        }
        let ns = (clock.monotonic() - begun).as_nanos() as f64 / (rounds * RECORDS) as f64;
        if repeat > 0 {
            repeats.push(ns);
        }
    }
    Ok(repeats)
}

fn input() -> Input {
    let mut rows = RecordsBuilder::default();
    for i in 0..RECORDS as u64 {
        let level = if i % 10 < 3 { "warn" } else { "info" };
        let value = format!(
            r#"{{"level":"{level}","user":{},"amount":{},"note":"delivery 7f invoice 12 express aa bulk 01 "}}"#,
            10_000 + i * 7 % 89_989,
            1_000 + i % 9_000
        );
        let key = format!("k{:07}", i * 7_919 % 100_000);
        rows.push(i as i64, Some(key.as_bytes()), Some(value.as_bytes()), []);
    }
    Input {
        batch: Batch { offsets: (0..RECORDS as u64).collect(), records: rows.finish() },
        runs: vec![Run { input: 0, partition: 0, count: RECORDS as u32 }],
        stream_time_ms: None,
        seed: 1,
    }
}

/// Stores that a call may ask; the same for both ways.
#[derive(Default)]
struct Counts {
    entries: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The keys of the batch at hand, in the order of their numbers.
    own: Vec<Vec<u8>>,
}

impl StateAccess for Counts {
    fn get_many(&mut self, _: u32, keys: &BinaryArray, _: u32) -> Result<BinaryArray, AccessError> {
        Ok(keys.iter().map(|key| self.entries.get(key?).map(Vec::as_slice)).collect())
    }

    fn put_many(
        &mut self,
        _: u32,
        keys: &BinaryArray,
        values: &BinaryArray,
    ) -> Result<(), AccessError> {
        for (key, value) in keys.iter().flatten().zip(values.iter().flatten()) {
            self.entries.insert(key.to_vec(), value.to_vec());
        }
        Ok(())
    }

    fn delete_many(&mut self, _: u32, keys: &BinaryArray) -> Result<(), AccessError> {
        keys.iter().flatten().for_each(|key| drop(self.entries.remove(key)));
        Ok(())
    }

    fn get_own(
        &mut self,
        _: u32,
        keys: &BinaryArray,
        _: bool,
        _: u32,
    ) -> Result<(Vec<u32>, BinaryArray), AccessError> {
        self.own.clear();
        let mut numbers = HashMap::new();
        let numbered = keys.iter().flatten().map(|key| {
            *numbers.entry(key.to_vec()).or_insert_with_key(|key| {
                self.own.push(key.clone());
                self.own.len() as u32 - 1
            })
        });
        let numbered = numbered.collect();
        let values = self.own.iter().map(|key| self.entries.get(key).map(Vec::as_slice)).collect();
        Ok((numbered, values))
    }

    fn put_own(
        &mut self,
        _: u32,
        entries: Vec<u32>,
        values: BinaryArray,
    ) -> Result<(), AccessError> {
        for (&entry, value) in entries.iter().zip(values.iter().flatten()) {
            self.entries.insert(self.own[entry as usize].clone(), value.to_vec());
        }
        Ok(())
    }

    fn scan(
        &mut self,
        _: u32,
        _: &[u8],
        _: Option<&[u8]>,
        _: u32,
        _: u32,
    ) -> Result<Page, AccessError> {
        Err("the benchmark's jobs do not scan".into())
    }
}
