//! The driver: feeds records to a plugin in batches and keeps what comes of it.
//!
//! **Invariant:** what comes back is checked as the host checks it, so a plugin that passes here does not
//! fail there for its columns.

use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use serde_json::Value;

use crate::bindings::{self, HeaderColumn, Results, Run};
use crate::column::{Column, ColumnBuilder};
use crate::instance::{Instance, describe};
use crate::testing::host::{TestHost, World};
use crate::testing::records::{Refused, SentRecord, TestRecord};
use crate::{Error, Format, Key, Level, Plugin, Result};

/// The seed of random numbers in tests.
const SEED: u64 = 0x5eed;

/// Runs a plugin natively: records in; outputs, stores, rejections and logs out.
pub struct TestDriver<P> {
    config: String,
    host: Rc<TestHost>,
    /// Gone after a call that failed.
    instance: Option<Instance<P>>,
    /// The next offset by input and partition.
    next_offsets: HashMap<(u32, u32), u64>,
    batch_records: usize,
    /// Where batches are cut, if at random.
    cuts: Option<fastrand::Rng>,
    sent: BTreeMap<String, Vec<SentRecord>>,
    refused: Vec<Refused>,
    reads: usize,
}

/// A record with its place.
type Placed = (TestRecord, u64);

impl<P: Plugin> TestDriver<P> {
    /// A plugin with this configuration, empty stores, and nothing sent yet.
    pub fn new(config: Value) -> Result<Self> {
        let description: Value = serde_json::from_str(&describe::<P>("test", "0.0.0"))?;
        let host = Rc::new(TestHost::default());
        *host.world.borrow_mut() = World::new(&description, SEED);
        let mut driver = Self {
            config: config.to_string(),
            host,
            instance: None,
            next_offsets: HashMap::new(),
            batch_records: usize::MAX,
            cuts: None,
            sent: BTreeMap::new(),
            refused: Vec::new(),
            reads: 0,
        };
        driver.renew()?;
        Ok(driver)
    }

    /// Cuts batches after this many records.
    pub fn batches_of(mut self, records: usize) -> Self {
        self.batch_records = records.max(1);
        self
    }

    /// Cuts batches at random places, and throws the instance away between some of them, as the host may.
    pub fn cut_at_random(mut self, seed: u64) -> Self {
        self.cuts = Some(fastrand::Rng::with_seed(seed));
        self
    }

    /// Processes one record, as a batch of its own.
    pub fn send(&mut self, record: TestRecord) {
        self.send_all([record]);
    }

    /// Processes records, in one batch unless cuts were asked for.
    pub fn send_all(&mut self, records: impl IntoIterator<Item = TestRecord>) {
        let mut placed: Vec<Placed> = Vec::new();
        for record in records {
            let next = self.next_offsets.entry((record.input, record.partition)).or_default();
            placed.push((record, *next));
            *next += 1;
        }
        let mut rest = placed.as_slice();
        while !rest.is_empty() {
            let limit = self.batch_records.min(rest.len());
            let count = self.cuts.as_mut().map_or(limit, |random| random.usize(1..=limit));
            if self.cuts.as_mut().is_some_and(|random| random.u32(0..4) == 0) {
                self.instance = None;
            }
            self.process(&rest[..count]);
            rest = &rest[count..];
        }
    }

    /// What was sent to an output so far.
    ///
    /// # Panics
    /// When the plugin declares no such output.
    pub fn outputs(&self, output: &str) -> &[SentRecord] {
        let declared = self.host.world.borrow().output_names.iter().any(|name| name == output);
        assert!(declared, "the plugin declares no output {output:?}");
        self.sent.get(output).map_or(&[], Vec::as_slice)
    }

    /// The entries of a store, in the order of keys.
    ///
    /// # Panics
    /// When the plugin declares no such store, or one of other types.
    pub fn store<K: Key, V: Format>(&self, store: &str) -> Vec<(K, V::Owned)> {
        let world = self.host.world.borrow();
        let number = world.store_names.iter().position(|name| name == store);
        let number = number.unwrap_or_else(|| panic!("the plugin declares no store {store:?}"));
        let entry = |(key, value): (&Vec<u8>, &Vec<u8>)| -> Result<_> {
            Ok((crate::key::decode(key)?, V::decode(value)?))
        };
        let entries: Result<Vec<_>> = world.stores[number].iter().map(entry).collect();
        entries.unwrap_or_else(|error| panic!("the store {store:?} has other types: {error}"))
    }

    /// The records that were refused, in order.
    pub fn rejections(&self) -> &[Refused] {
        &self.refused
    }

    /// The lines of the log.
    pub fn logs(&self) -> Vec<(Level, String)> {
        self.host.world.borrow().logs.clone()
    }

    /// What a counter has come to.
    pub fn counter(&self, name: &str) -> u64 {
        self.host.world.borrow().counters.get(name).copied().unwrap_or_default()
    }

    /// What a gauge was set to.
    pub fn gauge(&self, name: &str) -> Option<f64> {
        self.host.world.borrow().gauges.get(name).copied()
    }

    /// How often the plugin went to the host to read state: what batching keeps low.
    pub fn reads(&self) -> usize {
        self.reads
    }

    /// All that came of the records so far, to be compared with another run.
    pub fn outcome(&self) -> Outcome {
        let world = self.host.world.borrow();
        let stores = world.store_names.iter().cloned().zip(world.stores.iter().cloned());
        Outcome {
            outputs: self.sent.clone(),
            stores: stores.collect(),
            rejections: self.refused.clone(),
            logs: world.logs.clone(),
            counters: world.counters.clone(),
        }
    }

    fn renew(&mut self) -> Result<()> {
        let host = Rc::clone(&self.host);
        let instance = Instance::new(host, self.config.clone()).map_err(Error::new)?;
        self.instance = Some(instance);
        Ok(())
    }

    /// Processes a batch; halves it if the call fails.
    fn process(&mut self, records: &[Placed]) {
        match self.call(records) {
            Ok(results) => {
                let mut world = self.host.world.borrow_mut();
                let headers = std::mem::take(&mut world.call.headers_out);
                self.reads += world.call.reads;
                world.commit();
                world.see(records.iter().map(|(record, _)| record.timestamp));
                drop(world);
                self.keep(records, results, &headers);
            }
            Err(reason) => {
                self.host.world.borrow_mut().roll_back();
                self.instance = None;
                match records {
                    [only] => {
                        // It was seen all the same: stream time must not hang on how it failed.
                        self.host.world.borrow_mut().see([only.0.timestamp]);
                        self.refused.push(refused(only, reason));
                    }
                    _ => {
                        let (first, second) = records.split_at(records.len() / 2);
                        self.process(first);
                        self.process(second);
                    }
                }
            }
        }
    }

    fn call(&mut self, records: &[Placed]) -> Result<Results, String> {
        if self.instance.is_none() {
            self.renew().map_err(|error| error.to_string())?;
        }
        let instance = self.instance.as_ref().ok_or("the plugin could not be made")?;
        self.host.world.borrow_mut().call.headers_in = headers(records);
        let batch = batch(records, self.host.world.borrow().ignores_values);
        catch_unwind(AssertUnwindSafe(|| instance.process(batch))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            Err(format!("panicked: {}", text.unwrap_or_default()))
        })
    }

    /// Checks and keeps what a call gave back.
    fn keep(
        &mut self,
        records: &[Placed],
        results: Results,
        headers: &BTreeMap<String, HeaderColumn>,
    ) {
        for output in results.outputs {
            let declared = self.host.world.borrow().output_names.contains(&output.name);
            assert!(declared, "the plugin sent to {:?}, which it does not declare", output.name);
            let (keys, values) = (Column::new(&output.keys), Column::new(&output.values));
            let n = output.sources.len();
            assert!(output.sources.is_sorted(), "sources fall in output {:?}", output.name);
            assert_eq!((keys.len(), values.len()), (n, n), "columns of {:?} differ", output.name);
            assert!(output.timestamps.as_ref().is_none_or(|column| column.len() == n));
            assert!(output.partitions.as_ref().is_none_or(|column| column.len() == n));
            let headers = headers.get(&output.name);
            assert!(headers.is_none_or(|column| column.ends.len() == n + 1));
            let sent = self.sent.entry(output.name).or_default();
            for (i, &source) in output.sources.iter().enumerate() {
                let (from, offset) = &records[source as usize];
                sent.push(SentRecord {
                    key: keys.get(i).map(<[u8]>::to_vec),
                    value: values.get(i).map(<[u8]>::to_vec),
                    timestamp: output.timestamps.as_ref().map_or(from.timestamp, |t| t[i]),
                    partition: output.partitions.as_ref().map(|partitions| partitions[i]),
                    headers: headers.map_or_else(Vec::new, |column| headers_of(column, i)),
                    source: (from.input, from.partition, *offset),
                });
            }
        }
        let indexes: Vec<_> = results.rejections.iter().map(|r| r.index).collect();
        assert!(indexes.is_sorted_by(|a, b| a < b), "rejections do not rise: {indexes:?}");
        for rejection in results.rejections {
            self.refused.push(refused(&records[rejection.index as usize], rejection.reason));
        }
    }
}

fn refused((record, offset): &Placed, reason: String) -> Refused {
    Refused { input: record.input, partition: record.partition, offset: *offset, reason }
}

fn batch(records: &[Placed], ignores_values: bool) -> bindings::Batch {
    let (mut keys, mut values) = (ColumnBuilder::default(), ColumnBuilder::default());
    let mut runs: Vec<Run> = Vec::new();
    for (record, _) in records {
        keys.push(record.key.as_deref());
        values.push(record.value.as_deref().filter(|_| !ignores_values));
        let (input, partition) = (record.input, record.partition);
        match runs.last_mut() {
            Some(run) if (run.input, run.partition) == (input, partition) => run.count += 1,
            _ => runs.push(Run { input, partition, count: 1 }),
        }
    }
    bindings::Batch {
        offsets: records.iter().map(|(_, offset)| *offset).collect(),
        timestamps: records.iter().map(|(record, _)| record.timestamp).collect(),
        keys: keys.finish(),
        values: values.finish(),
        runs,
    }
}

fn headers(records: &[Placed]) -> Option<HeaderColumn> {
    let (mut names, mut values) = (ColumnBuilder::default(), ColumnBuilder::default());
    let mut ends = vec![0];
    for (record, _) in records {
        for (name, value) in &record.headers {
            names.push(Some(name.as_bytes()));
            values.push(value.as_deref());
        }
        ends.push(names.len() as u32);
    }
    let any = names.len() > 0;
    any.then(|| HeaderColumn { ends, names: names.finish(), values: values.finish() })
}

fn headers_of(column: &HeaderColumn, i: usize) -> Vec<(String, Option<Vec<u8>>)> {
    let (names, values) = (Column::new(&column.names), Column::new(&column.values));
    let name = |j| String::from_utf8_lossy(names.get(j).unwrap_or_default()).into_owned();
    (column.ends[i] as usize..column.ends[i + 1] as usize)
        .map(|j| (name(j), values.get(j).map(<[u8]>::to_vec)))
        .collect()
}

/// All that came of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// What was sent, by output.
    pub outputs: BTreeMap<String, Vec<SentRecord>>,
    /// Encoded keys and values, by store.
    pub stores: BTreeMap<String, BTreeMap<Vec<u8>, Vec<u8>>>,
    /// The records that were refused.
    pub rejections: Vec<Refused>,
    /// The lines of the log.
    pub logs: Vec<(Level, String)>,
    /// The counters.
    pub counters: BTreeMap<String, u64>,
}

/// Runs the same records whole, one by one, and cut at random places from `seed` on, and asserts that all
/// runs come out the same, as the host demands of a plugin. Returns the outcome.
///
/// # Panics
/// When they do not, naming the cut.
pub fn assert_cut_independent<P: Plugin>(
    config: &Value,
    records: &[TestRecord],
    seed: u64,
) -> Outcome {
    let run = |name: &str, prepare: &dyn Fn(TestDriver<P>) -> TestDriver<P>| {
        let driver = TestDriver::new(config.clone());
        let driver = driver.unwrap_or_else(|error| panic!("the plugin does not start: {error}"));
        let mut driver = prepare(driver);
        driver.send_all(records.iter().cloned());
        (name.to_owned(), driver.outcome())
    };
    let (_, whole) = run("whole", &|driver| driver);
    let mut others = vec![run("one by one", &|driver| driver.batches_of(1))];
    for seed in seed..seed + 8 {
        let cut =
            |driver: TestDriver<P>| driver.cut_at_random(seed).batches_of(1 + records.len() / 3);
        others.push(run(&format!("cut at random with seed {seed}"), &cut));
    }
    for (name, outcome) in others {
        assert_eq!(outcome, whole, "{name} (left) differs from one batch (right)");
    }
    whole
}
