//! The parts of the data path, each alone: `cargo bench -p anabranch --bench parts`.
//!
//! Append, group commit, seal, scan, a call across the sandbox's boundary by batch size, access to state,
//! a checkpoint, and compression. What they make together is what `anabranch bench` measures.

use std::path::Path;
use std::sync::Arc;

use anabranch::clock::{SharedClock, SystemClock};
use anabranch::log::{Append, Commit, Log, LogConfig, LogKind, LogSpec, SegmentWriter};
use anabranch::plugin::{AccessError, Input, Limits, Page, Run, Runtime, StateAccess};
use anabranch::state::{Changes, Overlay, StoreSet, checkpoint};
use anabranch::storage::lz4::{BLOCK_BYTES, Compressed, Compressor};
use anabranch::storage::{FileSystem, OsFileSystem, Pace, Storage};
use anabranch::types::{Batch, LogId, Offset, PartitionId, Records, RecordsBuilder};
use arrow_array::BinaryArray;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use serde_json::json;
use tempfile::TempDir;

const P0: PartitionId = PartitionId(0);

/// `count` records of 100 bytes with keys of 8.
fn records(count: usize) -> Records {
    let mut rows = RecordsBuilder::default();
    for i in 0..count {
        let value = format!(
            r#"{{"level":"info","user":{},"amount":{},"note":"delivery 7f invoice 12 express aa bulk "}}"#,
            10_000 + i * 7 % 89_989,
            1_000 + i % 9_000
        );
        let key = format!("k{:07}", i * 7_919 % 100_000);
        rows.push(i as i64, Some(key.as_bytes()), Some(value.as_bytes()), []);
    }
    rows.finish()
}

/// A log of one partition in a directory that goes with it.
fn log() -> (Log, LogId, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let fs: Arc<dyn FileSystem> = Arc::new(OsFileSystem);
    let clock: SharedClock = SystemClock::shared();
    let storage = Storage::open(dir.path(), &fs, &clock).unwrap();
    let log = Log::open(Arc::new(storage), fs, clock, LogConfig::default()).unwrap();
    let id = LogId(log.allocate_id());
    let spec = LogSpec { id, kind: LogKind::Records, partitions: 1, owner: "bench".to_owned() };
    log.commit_blocking(Commit { creates: vec![spec], ..Commit::default() }).unwrap();
    (log, id, dir)
}

fn append(log: LogId, records: Records) -> Commit {
    Commit { appends: vec![Append { log, partition: P0, records }], ..Commit::default() }
}

/// Writes `records` as a segment file, `times` over, and commits it.
fn seal(log: &Log, id: LogId, records: &Records, times: u64) {
    let reserved = log.reserve(id, P0, records.len() as u64 * times).unwrap();
    let mut writer = SegmentWriter::new(reserved, Pace::Full);
    (0..times).for_each(|_| writer.append(records).unwrap());
    let segments = writer.finish().unwrap().into_iter().collect();
    log.commit_blocking(Commit { segments, ..Commit::default() }).unwrap();
}

fn the_log(c: &mut Criterion) {
    let mut group = c.benchmark_group("log");
    group.sample_size(20);
    let (head, id, _dir) = log();
    for count in [1, 1_000, 10_000] {
        let records = records(count);
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::new("append, durable", count), |b| {
            b.iter(|| head.commit_blocking(append(id, records.clone())).unwrap());
        });
    }
    const COMMITS: usize = 64;
    let small = records(100);
    group.throughput(Throughput::Elements((COMMITS * small.len()) as u64));
    group.bench_function(format!("group commit of {COMMITS} appends of 100"), |b| {
        b.iter(|| {
            let (sender, done) = std::sync::mpsc::channel();
            for _ in 0..COMMITS {
                let sender = sender.clone();
                head.commit(append(id, small.clone()), move |result| {
                    result.unwrap();
                    sender.send(()).unwrap();
                });
            }
            done.iter().take(COMMITS).for_each(drop);
        });
    });
    let block = records(32_768);
    let (files, id, _dir) = log();
    group.throughput(Throughput::Elements(4 * block.len() as u64));
    group.bench_function("seal a file of 131,072", |b| b.iter(|| seal(&files, id, &block, 4)));
    let (scanned, id, _dir) = log();
    seal(&scanned, id, &block, 16);
    group.throughput(Throughput::Elements(16 * block.len() as u64));
    group.bench_function("scan 524,288 from a file", |b| {
        b.iter(|| {
            let mut reader = scanned.partition(id, P0).unwrap().reader();
            let (mut at, mut seen) = (Offset(0), 0);
            while let Some(batch) = reader.read(at, Offset::LIMIT, 4_096, 4 << 20).unwrap() {
                at = batch.next_offset().unwrap();
                seen += batch.len();
            }
            assert_eq!(seen, 16 * block.len());
        });
    });
    group.finish();
}

/// No stores at all.
struct NoState;

impl StateAccess for NoState {
    fn get_many(&mut self, _: u32, _: &BinaryArray, _: u32) -> Result<BinaryArray, AccessError> {
        Err("no state".into())
    }

    fn put_many(&mut self, _: u32, _: &BinaryArray, _: &BinaryArray) -> Result<(), AccessError> {
        Err("no state".into())
    }

    fn delete_many(&mut self, _: u32, _: &BinaryArray) -> Result<(), AccessError> {
        Err("no state".into())
    }

    fn get_own(
        &mut self,
        _: u32,
        _: &BinaryArray,
        _: bool,
        _: u32,
    ) -> Result<(Vec<u32>, BinaryArray), AccessError> {
        Err("no state".into())
    }

    fn put_own(&mut self, _: u32, _: Vec<u32>, _: BinaryArray) -> Result<(), AccessError> {
        Err("no state".into())
    }

    fn scan(
        &mut self,
        _: u32,
        _: &[u8],
        _: Option<&[u8]>,
        _: u32,
        _: u32,
    ) -> Result<Page, AccessError> {
        Err("no state".into())
    }
}

fn the_boundary(c: &mut Criterion) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../target/wasm32-unknown-unknown/guest/bench_maps.wasm");
    let bytes = std::fs::read(&file)
        .unwrap_or_else(|error| panic!("{}: {error}; run cargo xtask guests", file.display()));
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::new(dir.path()).unwrap();
    let admitted = runtime.admit(&bytes).unwrap();
    let plugin = runtime.load(admitted.digest, &admitted.component).unwrap();
    let mut group = c.benchmark_group("call");
    for job in ["pass-through", "filter", "json-map"] {
        for count in [1, 16, 256, 4_096] {
            let config = json!({"job": job});
            let mut instance = plugin.instantiate(&config, &Limits::default()).unwrap();
            let input = Input {
                batch: Batch { offsets: (0..count as u64).collect(), records: records(count) },
                runs: vec![Run { input: 0, partition: 0, count: count as u32 }],
                stream_time_ms: None,
                seed: 1,
            };
            group.throughput(Throughput::Elements(count as u64));
            group.bench_function(BenchmarkId::new(job, count), |b| {
                b.iter(|| instance.process(&input, Box::new(NoState)).0.unwrap());
            });
        }
    }
    group.finish();
}

fn the_state(c: &mut Criterion) {
    const BATCH: usize = 4_096;
    const KEYS: usize = 100_000;
    let key = |i: usize| Some(format!("k{:07}", i * 7_919 % KEYS));
    let keys = |from: usize, count: usize| -> BinaryArray {
        (from..from + count).map(key).collect::<Vec<_>>().iter().map(Option::as_ref).collect()
    };
    let values = |count: usize| -> BinaryArray { (0..count).map(|_| Some([7; 8])).collect() };
    let mut stores = StoreSet::new(1);
    let mut all = Overlay::new(1);
    all.put_many(0, keys(0, KEYS), values(KEYS));
    stores.apply(all);
    drop(stores.take_changes());
    let (asked, written) = (keys(17, BATCH), values(BATCH));
    let mut group = c.benchmark_group("state");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("get 4,096 of 100,000", |b| {
        let mut overlay = Overlay::new(1);
        b.iter(|| overlay.get_many(&stores, 0, &asked, 1 << 30));
    });
    group.bench_function("put 4,096 of 100,000", |b| {
        b.iter(|| {
            let mut overlay = Overlay::new(1);
            overlay.put_many(0, asked.clone(), written.clone());
            stores.apply(overlay);
        });
    });
    group.sample_size(20);
    group.throughput(Throughput::Elements(KEYS as u64));
    let dir = tempfile::tempdir().unwrap();
    let fs: Arc<dyn FileSystem> = Arc::new(OsFileSystem);
    let path = dir.path().join("checkpoint.arrow");
    group.bench_function("checkpoint of 100,000, synced", |b| {
        let changes = || {
            let (mut stores, mut all) = (StoreSet::new(1), Overlay::new(1));
            all.put_many(0, keys(0, KEYS), values(KEYS));
            stores.apply(all);
            let (keys, values) = stores.take_changes();
            let mut changes = Changes::default();
            changes.push(&keys, values);
            changes
        };
        b.iter_batched(
            changes,
            |changes| {
                // One that was left by the run before.
                let _ = std::fs::remove_file(&path);
                checkpoint::write(&fs, &path, None, &changes, json!({})).unwrap()
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

/// Two blocks of values like those of `anabranch bench`, with what they become in the names.
fn the_compression(c: &mut Criterion) {
    let mut random = fastrand::Rng::with_seed(1);
    let blocks = [0, 1].map(|_| {
        let mut block = String::new();
        while block.len() < BLOCK_BYTES {
            let (user, amount) = (random.u32(..100_000), random.u32(..10_000));
            block += &format!(r#"{{"level":"info","user":{user},"amount":{amount},"note":""#);
            for _ in 0..4 {
                let word = ["delivery ", "invoice ", "customs ", "express "][random.usize(..4)];
                block += &format!("{word}{:02x} ", random.u8(..));
            }
            block += "\"}";
        }
        block.truncate(BLOCK_BYTES);
        block.into_bytes()
    });
    let mut group = c.benchmark_group("lz4");
    group.throughput(Throughput::Bytes(2 * BLOCK_BYTES as u64));
    let mut compressor = Compressor::default();
    let mut out: Box<[Compressed; 2]> = Box::new([[0; _]; 2]);
    let mut ours = || {
        let [x, y] = &mut *out;
        for (i, block) in blocks.iter().enumerate() {
            compressor.block(i).copy_from_slice(block);
        }
        compressor.compress([BLOCK_BYTES; 2], [x, y]).iter().sum::<usize>()
    };
    let name = format!("compress two blocks, to {} bytes", ours());
    group.bench_function(BenchmarkId::new(name, "both at once"), |b| b.iter(&mut ours));
    let mut theirs_out = vec![0; lz4_flex::block::get_maximum_output_size(BLOCK_BYTES)];
    let mut theirs = || {
        let compress = |block: &Vec<u8>| {
            lz4_flex::block::compress_into(block, &mut theirs_out).expect("there is room")
        };
        blocks.iter().map(compress).sum::<usize>()
    };
    let name = format!("compress two blocks, to {} bytes", theirs());
    group.bench_function(BenchmarkId::new(name, "lz4_flex"), |b| b.iter(&mut theirs));
    group.finish();
}

criterion_group!(benches, the_log, the_boundary, the_state, the_compression);
criterion_main!(benches);
