//! A host in memory: stores with an overlay of the call at hand, logs and metrics.
//!
//! **Invariant:** what a call did is seen by its own reads at once and by everyone only after `commit`;
//! after `roll_back` it never was.

use std::cell::RefCell;
use std::collections::BTreeMap;

use serde_json::Value;

use crate::Level;
use crate::bindings::{BytesColumn, HeaderColumn, OwnEntries, Page};
use crate::column::{Column, ColumnBuilder};
use crate::host::Host;

/// The host answers a scan with at most this many entries, so that tests see pages.
const PAGE_ENTRIES: usize = 7;

type Bytes = Vec<u8>;

#[derive(Default)]
pub(crate) struct TestHost {
    pub(crate) world: RefCell<World>,
}

/// What has taken effect, and the call at hand.
#[derive(Default)]
pub(crate) struct World {
    /// Declared stores and outputs by name.
    pub(crate) store_names: Vec<String>,
    pub(crate) output_names: Vec<String>,
    pub(crate) ignores_values: bool,
    pub(crate) stores: Vec<BTreeMap<Bytes, Bytes>>,
    pub(crate) logs: Vec<(Level, String)>,
    pub(crate) counters: BTreeMap<String, u64>,
    pub(crate) gauges: BTreeMap<String, f64>,
    pub(crate) highest_timestamp: Option<i64>,
    pub(crate) seed: u64,
    pub(crate) call: Overlay,
}

/// What the call at hand did.
#[derive(Default)]
pub(crate) struct Overlay {
    pub(crate) headers_in: Option<HeaderColumn>,
    pub(crate) headers_out: BTreeMap<String, HeaderColumn>,
    changes: BTreeMap<(usize, Bytes), Option<Bytes>>,
    logs: Vec<(Level, String)>,
    counters: Vec<(String, u64)>,
    gauges: Vec<(String, f64)>,
    /// Host calls, for tests of batching.
    pub(crate) reads: usize,
    /// The batch's own keys, as a store numbered them.
    own: BTreeMap<u32, Vec<Bytes>>,
}

impl World {
    pub(crate) fn new(description: &Value, seed: u64) -> Self {
        let names = |what: &str| -> Vec<String> {
            let list = description[what].as_array().into_iter().flatten();
            list.filter_map(|d| Some(d["name"].as_str()?.to_owned())).collect()
        };
        let store_names = names("stores");
        let stores = store_names.iter().map(|_| BTreeMap::new()).collect();
        let (output_names, ignores_values) =
            (names("outputs"), description["ignores_values"] == true);
        Self { stores, store_names, output_names, ignores_values, seed, ..Self::default() }
    }

    pub(crate) fn commit(&mut self) {
        let call = std::mem::take(&mut self.call);
        for ((store, key), value) in call.changes {
            match value {
                Some(value) => self.stores[store].insert(key, value),
                None => self.stores[store].remove(&key),
            };
        }
        self.logs.extend(call.logs);
        for (name, delta) in call.counters {
            *self.counters.entry(name).or_default() += delta;
        }
        self.gauges.extend(call.gauges);
    }

    /// Records at these times are done with.
    pub(crate) fn see(&mut self, timestamps: impl IntoIterator<Item = i64>) {
        self.highest_timestamp = self.highest_timestamp.max(timestamps.into_iter().max());
    }

    pub(crate) fn roll_back(&mut self) {
        self.call = Overlay::default();
    }

    fn get(&self, store: usize, key: &[u8]) -> Option<&[u8]> {
        match self.call.changes.get(&(store, key.to_vec())) {
            Some(change) => change.as_deref(),
            None => self.stores[store].get(key).map(Vec::as_slice),
        }
    }
}

fn present<'a>(column: Column<'a>, i: usize) -> &'a [u8] {
    column.get(i).unwrap_or_else(|| panic!("entry {i} is null where the contract forbids it"))
}

impl Host for TestHost {
    fn headers(&self) -> Option<HeaderColumn> {
        self.world.borrow().call.headers_in.clone()
    }

    fn set_headers(&self, output: &str, headers: &HeaderColumn) -> Result<(), String> {
        let mut world = self.world.borrow_mut();
        if !world.output_names.iter().any(|name| name == output) {
            return Err(format!("the output {output:?} is not declared"));
        }
        world.call.headers_out.insert(output.to_owned(), headers.clone());
        Ok(())
    }

    fn open(&self, store: &str) -> Result<u32, String> {
        let world = self.world.borrow();
        let number = world.store_names.iter().position(|name| name == store);
        number.map(|n| n as u32).ok_or_else(|| format!("the store {store:?} is not declared"))
    }

    fn get_many(&self, store: u32, keys: &BytesColumn) -> BytesColumn {
        let mut world = self.world.borrow_mut();
        world.call.reads += 1;
        let mut values = ColumnBuilder::default();
        let keys = Column::new(keys);
        (0..keys.len()).for_each(|i| values.push(world.get(store as usize, present(keys, i))));
        values.finish()
    }

    fn put_many(&self, store: u32, keys: &BytesColumn, values: &BytesColumn) {
        let mut world = self.world.borrow_mut();
        let (keys, values) = (Column::new(keys), Column::new(values));
        assert_eq!(keys.len(), values.len(), "put-many of other values than keys");
        for i in 0..keys.len() {
            let key = (store as usize, present(keys, i).to_vec());
            world.call.changes.insert(key, Some(present(values, i).to_vec()));
        }
    }

    fn delete_many(&self, store: u32, keys: &BytesColumn) {
        let mut world = self.world.borrow_mut();
        let keys = Column::new(keys);
        for i in 0..keys.len() {
            world.call.changes.insert((store as usize, present(keys, i).to_vec()), None);
        }
    }

    fn get_own(&self, store: u32, keys: &BytesColumn, text: bool) -> OwnEntries {
        let mut world = self.world.borrow_mut();
        world.call.reads += 1;
        let (mut numbers, mut own) = (BTreeMap::new(), Vec::new());
        let mut number = |key: Option<&[u8]>| {
            let mut encoded = Vec::new();
            match (key, text) {
                (None, _) => return u32::MAX,
                (Some(key), false) => anabranch_key::push_bytes(&mut encoded, key),
                (Some(key), true) => match std::str::from_utf8(key) {
                    Ok(text) => anabranch_key::push_utf8(&mut encoded, text),
                    Err(_) => return u32::MAX,
                },
            }
            *numbers.entry(encoded.clone()).or_insert_with(|| {
                own.push(encoded);
                own.len() as u32 - 1
            })
        };
        let entries = Column::new(keys).iter().map(&mut number).collect();
        let mut values = ColumnBuilder::default();
        own.iter().for_each(|key| values.push(world.get(store as usize, key)));
        world.call.own.insert(store, own);
        OwnEntries { entries, values: values.finish() }
    }

    fn put_own(&self, store: u32, entries: &[u32], values: &BytesColumn) {
        let mut world = self.world.borrow_mut();
        assert_eq!(
            entries.len(),
            Column::new(values).len(),
            "put-own of other values than entries"
        );
        for (&entry, value) in entries.iter().zip(Column::new(values).iter()) {
            let key = world.call.own[&store][entry as usize].clone();
            world.call.changes.insert((store as usize, key), value.map(<[u8]>::to_vec));
        }
    }

    fn scan(&self, store: u32, start: &[u8], end: Option<&[u8]>, limit: u32) -> Page {
        let world = self.world.borrow();
        let mut all = world.stores[store as usize].clone();
        for ((of, key), value) in &world.call.changes {
            match value {
                _ if *of != store as usize => {}
                Some(value) => drop(all.insert(key.clone(), value.clone())),
                None => drop(all.remove(key)),
            }
        }
        let mut found = all
            .into_iter()
            .filter(|(key, _)| key.as_slice() >= start && end.is_none_or(|end| &key[..] < end));
        let (mut keys, mut values) = (ColumnBuilder::default(), ColumnBuilder::default());
        for (key, value) in found.by_ref().take(PAGE_ENTRIES.min(limit as usize)) {
            keys.push(Some(&key));
            values.push(Some(&value));
        }
        let next = found.next().map(|(key, _)| key);
        Page { keys: keys.finish(), values: values.finish(), next }
    }

    fn time_before_batch(&self) -> Option<i64> {
        self.world.borrow().highest_timestamp
    }

    fn seed(&self) -> u64 {
        self.world.borrow().seed
    }

    fn log(&self, level: Level, message: &str) {
        self.world.borrow_mut().call.logs.push((level, message.to_owned()));
    }

    fn add(&self, counter: &str, delta: u64) {
        self.world.borrow_mut().call.counters.push((counter.to_owned(), delta));
    }

    fn set(&self, gauge: &str, value: f64) {
        self.world.borrow_mut().call.gauges.push((gauge.to_owned(), value));
    }
}
