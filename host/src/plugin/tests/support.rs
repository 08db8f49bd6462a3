//! What the tests share: built guests, a runtime, a store in memory, batches.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use anabranch_key::{Part, encode};
use arrow_array::BinaryArray;
use serde_json::Value;

use super::super::{
    AccessError, Admitted, CallError, CallOutput, Input, Instance, Limits, Page, Plugin, Run,
    Runtime, StateAccess,
};
use crate::types::{Batch, Offset, Records, RecordsBuilder};

/// The bytes of a built guest.
pub fn guest(name: &str) -> Vec<u8> {
    let file =
        format!("../target/wasm32-unknown-unknown/guest/fixture_{}.wasm", name.replace('-', "_"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    std::fs::read(&path).unwrap_or_else(|error| {
        panic!(
            "{}: {error}; build it with: cargo build --profile guest --target wasm32-unknown-unknown -p fixture-{name}",
            path.display()
        )
    })
}

/// One runtime for all tests, with a cache that goes when the process ends.
pub static RUNTIME: LazyLock<(Runtime, tempfile::TempDir)> = LazyLock::new(|| {
    let directory = tempfile::tempdir().unwrap();
    (Runtime::new(directory.path()).unwrap(), directory)
});

pub fn admit(name: &str) -> Admitted {
    RUNTIME.0.admit(&guest(name)).unwrap()
}

pub fn load(name: &str) -> Arc<Plugin> {
    let admitted = admit(name);
    RUNTIME.0.load(admitted.digest, &admitted.component).unwrap()
}

pub fn instance(name: &str, config: &Value, limits: &Limits) -> Instance {
    load(name).instantiate(config, limits).unwrap()
}

/// Records `0..n` with offsets 100, 102, …, keys `k0`, … and values `v0`, …
pub fn numbered(n: usize) -> Records {
    let mut rows = RecordsBuilder::default();
    for i in 0..n {
        rows.push(
            1000 + i as i64,
            Some(format!("k{i}").as_bytes()),
            Some(format!("v{i}").as_bytes()),
            [],
        );
    }
    rows.finish()
}

pub fn input(records: Records) -> Input {
    let n = records.len();
    let offsets: Vec<u64> = (0..n as u64).map(|i| 100 + 2 * i).collect();
    assert!(offsets.last().is_none_or(|&last| last < Offset::LIMIT.0));
    Input {
        batch: Batch { offsets: offsets.into(), records },
        runs: vec![Run { input: 0, partition: 3, count: n as u32 }],
        stream_time_ms: Some(500),
        seed: 42,
    }
}

/// Stores in memory.
#[derive(Default)]
pub struct MemoryState {
    pub stores: BTreeMap<u32, BTreeMap<Vec<u8>, Vec<u8>>>,
    /// The keys of the batch at hand, in the order of their numbers.
    pub own: Vec<Vec<u8>>,
    pub broken: bool,
}

impl MemoryState {
    fn check(&self) -> Result<(), AccessError> {
        if self.broken { Err("the disk is gone".into()) } else { Ok(()) }
    }
}

impl StateAccess for MemoryState {
    fn get_many(
        &mut self,
        store: u32,
        keys: &BinaryArray,
        limit_bytes: u32,
    ) -> Result<BinaryArray, AccessError> {
        self.check()?;
        let store = self.stores.entry(store).or_default();
        let (mut values, mut bytes) = (Vec::new(), 0);
        for key in keys {
            if bytes > limit_bytes as usize {
                break;
            }
            let value = store.get(key.unwrap()).map(Vec::as_slice);
            bytes += value.map_or(0, <[u8]>::len);
            values.push(value);
        }
        Ok(values.into_iter().collect())
    }

    fn put_many(
        &mut self,
        store: u32,
        keys: &BinaryArray,
        values: &BinaryArray,
    ) -> Result<(), AccessError> {
        self.check()?;
        let rows = keys.iter().zip(values).map(|(k, v)| (k.unwrap().to_vec(), v.unwrap().to_vec()));
        self.stores.entry(store).or_default().extend(rows);
        Ok(())
    }

    fn delete_many(&mut self, store: u32, keys: &BinaryArray) -> Result<(), AccessError> {
        self.check()?;
        let store = self.stores.entry(store).or_default();
        keys.iter().for_each(|key| drop(store.remove(key.unwrap())));
        Ok(())
    }

    fn get_own(
        &mut self,
        store: u32,
        keys: &BinaryArray,
        text: bool,
        limit_bytes: u32,
    ) -> Result<(Vec<u32>, BinaryArray), AccessError> {
        self.own.clear();
        let number = |key: Option<&[u8]>| {
            let key = match key {
                Some(key) if text => encode(&[Part::Utf8(std::str::from_utf8(key).ok()?.into())]),
                Some(key) => encode(&[Part::Bytes(key.into())]),
                None => return None,
            };
            let known = self.own.iter().position(|own| *own == key);
            Some(known.unwrap_or_else(|| {
                self.own.push(key);
                self.own.len() - 1
            }) as u32)
        };
        let numbers = keys.iter().map(number).map(|n| n.unwrap_or(u32::MAX)).collect();
        let own: BinaryArray = self.own.iter().map(Some).collect();
        Ok((numbers, self.get_many(store, &own, limit_bytes)?))
    }

    fn put_own(
        &mut self,
        store: u32,
        entries: Vec<u32>,
        values: BinaryArray,
    ) -> Result<(), AccessError> {
        self.check()?;
        let store = self.stores.entry(store).or_default();
        for (&entry, value) in entries.iter().zip(&values) {
            let key = self.own[entry as usize].clone();
            match value {
                Some(value) => drop(store.insert(key, value.to_vec())),
                None => drop(store.remove(&key)),
            }
        }
        Ok(())
    }

    fn scan(
        &mut self,
        store: u32,
        start: &[u8],
        end: Option<&[u8]>,
        limit: u32,
        limit_bytes: u32,
    ) -> Result<Page, AccessError> {
        self.check()?;
        let end = end.map_or(Bound::Unbounded, Bound::Excluded);
        let store = self.stores.entry(store).or_default();
        let mut range = store.range::<[u8], _>((Bound::Included(start), end)).peekable();
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while entries.len() < limit as usize && bytes < limit_bytes as usize {
            let Some(entry) = range.next() else { break };
            bytes += entry.0.len() + entry.1.len();
            entries.push(entry);
        }
        Ok(Page {
            keys: BinaryArray::from_iter_values(entries.iter().map(|entry| entry.0)),
            values: BinaryArray::from_iter_values(entries.iter().map(|entry| entry.1)),
            next: range.peek().map(|entry| entry.0.clone()),
        })
    }
}

/// A call without state worth looking at.
pub fn call(instance: &mut Instance, records: Records) -> Result<CallOutput, CallError> {
    instance.process(&input(records), Box::new(MemoryState::default())).0
}
