//! State through the boundary: get, put, delete and paged scans, and what becomes of a broken store.

use std::sync::{Arc, Mutex};

use arrow_array::BinaryArray;
use serde_json::json;

use super::super::{AccessError, Limits, Page, StateAccess};
use super::support::{MemoryState, input, instance};
use crate::types::RecordsBuilder;

/// Memory state that a test can look into after it was handed over.
struct Shared(Arc<Mutex<MemoryState>>);

impl StateAccess for Shared {
    fn get_many(
        &mut self,
        store: u32,
        keys: &BinaryArray,
        limit_bytes: u32,
    ) -> Result<BinaryArray, AccessError> {
        self.0.lock().unwrap().get_many(store, keys, limit_bytes)
    }

    fn put_many(
        &mut self,
        store: u32,
        keys: &BinaryArray,
        values: &BinaryArray,
    ) -> Result<(), AccessError> {
        self.0.lock().unwrap().put_many(store, keys, values)
    }

    fn delete_many(&mut self, store: u32, keys: &BinaryArray) -> Result<(), AccessError> {
        self.0.lock().unwrap().delete_many(store, keys)
    }

    fn get_own(
        &mut self,
        store: u32,
        keys: &BinaryArray,
        text: bool,
        limit_bytes: u32,
    ) -> Result<(Vec<u32>, BinaryArray), AccessError> {
        self.0.lock().unwrap().get_own(store, keys, text, limit_bytes)
    }

    fn put_own(
        &mut self,
        store: u32,
        entries: Vec<u32>,
        values: BinaryArray,
    ) -> Result<(), AccessError> {
        self.0.lock().unwrap().put_own(store, entries, values)
    }

    fn scan(
        &mut self,
        store: u32,
        start: &[u8],
        end: Option<&[u8]>,
        limit: u32,
        limit_bytes: u32,
    ) -> Result<Page, AccessError> {
        self.0.lock().unwrap().scan(store, start, end, limit, limit_bytes)
    }
}

fn rows(rows: &[(&str, &str)]) -> super::super::Input {
    let mut builder = RecordsBuilder::default();
    for (key, value) in rows {
        builder.push(1, Some(key.as_bytes()), Some(value.as_bytes()), []);
    }
    input(builder.finish())
}

#[test]
fn counts_survive_instances_because_they_live_in_the_store() {
    let held = Arc::new(Mutex::new(MemoryState::default()));
    let mut state: Box<dyn StateAccess> = Box::new(Shared(Arc::clone(&held)));
    let batches = [
        rows(&[("a", ""), ("b", ""), ("a", ""), ("c", ""), ("d", "")]),
        rows(&[("e", ""), ("b", "forget"), ("a", ""), ("f", ""), ("g", "")]),
    ];
    for batch in &batches {
        let mut guest = instance("stateful", &json!({}), &Limits::default());
        let (result, back) = guest.process(batch, state);
        result.unwrap();
        state = back;
    }
    let counts: Vec<_> = held.lock().unwrap().stores[&1].clone().into_iter().collect();
    let expected = [("a", 3), ("c", 1), ("d", 1), ("e", 1), ("f", 1), ("g", 1)];
    let expected =
        expected.map(|(k, n): (&str, u64)| (k.as_bytes().to_vec(), n.to_be_bytes().to_vec()));
    assert_eq!(counts, expected);

    let mut guest = instance("stateful", &json!({}), &Limits::default());
    let (result, _) = guest.process(&rows(&[("x", "forget"), ("y", "all")]), state);
    let output = result.unwrap().outputs.remove(0);
    assert_eq!(output.sources, vec![1; 6]);
    let keys: Vec<_> = output.keys.iter().map(|key| key.unwrap().to_vec()).collect();
    assert_eq!(keys, ["a", "c", "d", "e", "f", "g"].map(|key| key.as_bytes().to_vec()));
}

#[test]
fn a_broken_store_is_the_hosts_fault_and_comes_back() {
    let state = MemoryState { broken: true, ..MemoryState::default() };
    let held = Arc::new(Mutex::new(state));
    let mut guest = instance("stateful", &json!({}), &Limits::default());
    let (result, _) = guest.process(&rows(&[("a", "")]), Box::new(Shared(Arc::clone(&held))));
    let error = result.map(|output| output.outputs).unwrap_err();
    assert!(!error.is_guest_fault());
    assert!(error.to_string().contains("the disk is gone"), "{error}");
}
