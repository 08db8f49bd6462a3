//! The calls alone: nanoseconds a record in the sandbox and natively, batches of 4,096.

use std::sync::Arc;
use std::time::Duration;

use anabranch::cli::{BenchArgs, SandboxCall, guest_dir};
use anabranch::clock::SystemClock;
use anabranch::plugin::{AccessError, Input, Limits, Page, Plugin, Run, Runtime, StateAccess};
use anabranch::state::{Overlay, StoreSet};
use anabranch::types::{Batch, RecordsBuilder};
use anyhow::Context as _;
use arrow_array::BinaryArray;
use parking_lot::Mutex;
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
    let (inputs, clock, state) = (inputs(), SystemClock::shared(), State::default());
    let mut repeats = Vec::new();
    // The first warms up, and fills the stores.
    for repeat in 0..=REPEATS {
        let mut took = Duration::ZERO;
        for round in 0..rounds {
            let begun = clock.monotonic();
            let (result, _) =
                instance.process(&inputs[round % inputs.len()], Box::new(state.clone()));
            took += clock.monotonic() - begun;
            anyhow::ensure!(result?.rejections.is_empty(), "{job}: a record was refused");
            state.apply();
        }
        if repeat > 0 {
            repeats.push(took.as_nanos() as f64 / (rounds * RECORDS) as f64);
        }
    }
    Ok(repeats)
}

/// Batches that hold nearly all of 100,000 keys, each once.
fn inputs() -> Vec<Input> {
    const KEYS: u64 = 100_000;
    let batch = |first: u64| {
        let mut rows = RecordsBuilder::default();
        for i in first..first + RECORDS as u64 {
            let level = if i % 10 < 3 { "warn" } else { "info" };
            let value = format!(
                r#"{{"level":"{level}","user":{},"amount":{},"note":"delivery 7f invoice 12 express aa bulk 01 "}}"#,
                10_000 + i * 7 % 89_989,
                1_000 + i % 9_000
            );
            let key = format!("k{:07}", i * 7_919 % KEYS);
            rows.push(i as i64, Some(key.as_bytes()), Some(value.as_bytes()), []);
        }
        let offsets = (first..first + RECORDS as u64).collect();
        Input {
            batch: Batch { offsets, records: rows.finish() },
            runs: vec![Run { input: 0, partition: 0, count: RECORDS as u32 }],
            stream_time_ms: None,
            seed: 1,
        }
    };
    (0..KEYS / RECORDS as u64).map(|at| batch(at * RECORDS as u64)).collect()
}

/// The host's stores, as a task hands them to a call; the same for both ways.
#[derive(Clone)]
struct State(Arc<Mutex<(StoreSet, Overlay)>>);

impl Default for State {
    fn default() -> Self {
        Self(Arc::new(Mutex::new((StoreSet::new(1), Overlay::new(1)))))
    }
}

impl State {
    /// Takes over what a call changed, as a task does after it.
    fn apply(&self) {
        let (stores, overlay) = &mut *self.0.lock();
        stores.apply(std::mem::replace(overlay, Overlay::new(1)));
        drop(stores.take_changes());
    }
}

impl StateAccess for State {
    fn get_many(
        &mut self,
        store: u32,
        keys: &BinaryArray,
        limit_bytes: u32,
    ) -> Result<BinaryArray, AccessError> {
        let (stores, overlay) = &mut *self.0.lock();
        Ok(overlay.get_many(stores, store as usize, keys, limit_bytes as usize))
    }

    fn put_many(
        &mut self,
        store: u32,
        keys: &BinaryArray,
        values: &BinaryArray,
    ) -> Result<(), AccessError> {
        self.0.lock().1.put_many(store as usize, keys.clone(), values.clone());
        Ok(())
    }

    fn delete_many(&mut self, store: u32, keys: &BinaryArray) -> Result<(), AccessError> {
        self.0.lock().1.delete_many(store as usize, keys);
        Ok(())
    }

    fn get_own(
        &mut self,
        store: u32,
        keys: &BinaryArray,
        text: bool,
        limit_bytes: u32,
    ) -> Result<(Vec<u32>, BinaryArray), AccessError> {
        let (stores, overlay) = &mut *self.0.lock();
        Ok(overlay.get_own(stores, store as usize, keys, text, limit_bytes as usize))
    }

    fn put_own(
        &mut self,
        store: u32,
        entries: Vec<u32>,
        values: BinaryArray,
    ) -> Result<(), AccessError> {
        self.0.lock().1.put_own(store as usize, entries, values);
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
