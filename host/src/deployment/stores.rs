//! Questions about state: one key, or a range, of a generation's stores.
//!
//! An answer names the generation and the input offsets that it stands for, and is handed out only
//! once that state is durable.

use std::sync::Arc;
use std::time::Duration;

use anabranch_key::{PartType, parse_text, prefix_end, push_utf8, to_json};
use base64::Engine as _;
use serde_json::Value;

use super::running::RunningGeneration;
use super::{
    Error, Kind, Registry, StoreAnswer, StoreEntry, StorePage, StorePosition, StoreStatus,
};
use crate::plugin::{KeyPart, StoreDeclaration, ValueFormat};
use crate::state::PageLimit;
use crate::task::{RunState, TaskShared};
use crate::types::GenerationNumber;

/// How long an answer may wait for its state to become durable.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of keys and values on one page.
const PAGE_BYTES: usize = 8 << 20;

/// Where to look for one key.
#[derive(Debug, Clone, Default)]
pub struct StoreQuery {
    /// The generation; the live one when absent.
    pub generation: Option<u32>,
    /// The task's partition; all when absent.
    pub partition: Option<u32>,
    /// The key: plain text for a key of one utf8 part, else a JSON array of its parts.
    pub key: String,
}

/// Which entries to list.
#[derive(Debug, Clone, Default)]
pub struct StoreScan {
    /// The generation; the live one when absent.
    pub generation: Option<u32>,
    /// The task's partition; all, one after the other, when absent.
    pub partition: Option<u32>,
    /// Keys that begin so: text for a key of one utf8 part, else a JSON array of the leading parts.
    pub prefix: Option<String>,
    /// The first key.
    pub start: Option<String>,
    /// The key before which the list ends.
    pub end: Option<String>,
    /// Most entries.
    pub limit: usize,
    /// Where an earlier page ended.
    pub cursor: Option<String>,
}

/// A store of a running generation.
struct Found {
    running: Arc<RunningGeneration>,
    generation: GenerationNumber,
    index: usize,
    store: StoreDeclaration,
    tasks: Vec<Arc<TaskShared>>,
}

/// Bytes of a generation's stores.
pub(super) fn state_bytes(running: &RunningGeneration) -> u64 {
    running.tasks.iter().map(|task| task.state_bytes()).sum()
}

impl Registry {
    fn running_generation(
        &self,
        deployment: &str,
        generation: Option<u32>,
    ) -> Result<(GenerationNumber, Arc<RunningGeneration>), Error> {
        let found = self.find(deployment)?;
        let state = found.state.lock();
        let number = generation.map_or(state.record.live, GenerationNumber);
        let running = state.running.get(&number).cloned();
        running.map(|running| (number, running)).ok_or_else(|| {
            let message = match state.record.generation(number) {
                None => format!("{deployment} has no generation {number}"),
                Some(_) => {
                    format!("generation {number} of {deployment} does not run: its stores are gone")
                }
            };
            Error::new(Kind::NotFound, "generation_not_found", message)
        })
    }

    fn find_store(
        &self,
        deployment: &str,
        store: &str,
        generation: Option<u32>,
        partition: Option<u32>,
    ) -> Result<Found, Error> {
        let (generation, running) = self.running_generation(deployment, generation)?;
        let stores = &running.plugin.description().stores;
        let Some(index) = stores.iter().position(|s| s.name == store) else {
            let known: Vec<_> = stores.iter().map(|s| s.name.as_str()).collect();
            let message =
                format!("{deployment} has no store {store:?}; it has: {}", known.join(", "));
            return Err(Error::new(Kind::NotFound, "store_not_found", message));
        };
        let chosen = |task: &&Arc<TaskShared>| partition.is_none_or(|p| task.partition.0 == p);
        let tasks: Vec<_> = running.tasks.iter().filter(chosen).cloned().collect();
        if tasks.is_empty() {
            let most = running.tasks.len() - 1;
            let message = format!("{deployment} has partitions 0 to {most}");
            return Err(Error::new(Kind::NotFound, "partition_not_found", message));
        }
        let store = stores[index].clone();
        Ok(Found { running, generation, index, store, tasks })
    }

    /// The stores of a deployment's live generation.
    ///
    /// # Errors
    /// When there is no such deployment, or it does not run.
    pub fn stores(&self, deployment: &str) -> Result<Vec<StoreStatus>, Error> {
        let (_, running) = self.running_generation(deployment, None)?;
        let stores = running.plugin.description().stores.iter().enumerate();
        let status = stores.map(|(index, store)| {
            let sizes = running.tasks.iter().map(|task| task.store_size(index));
            let (entries, size_bytes) = sizes.fold((0, 0), |(n, b), (m, c)| (n + m, b + c));
            StoreStatus {
                name: store.name.clone(),
                version: store.version,
                key: store.key.iter().map(text_of).collect(),
                value: text_of(&store.value),
                entries,
                size_bytes,
            }
        });
        Ok(status.collect())
    }

    /// The value of one key.
    ///
    /// # Errors
    /// When deployment, store, generation, partition or key is not there.
    pub fn store_get(
        &self,
        deployment: &str,
        store: &str,
        query: &StoreQuery,
    ) -> Result<StoreAnswer<StoreEntry>, Error> {
        let found = self.find_store(deployment, store, query.generation, query.partition)?;
        let key = parse_key(&found.store, &query.key)?;
        for task in &found.tasks {
            let (value, position) =
                ask(task, |stores| stores.get(found.index, &key).map(<[u8]>::to_vec))?;
            if let Some(value) = value {
                return Ok(StoreAnswer {
                    generation: found.generation.0,
                    inputs: vec![position],
                    answer: entry(&found.store, &key, &value, task.partition.0),
                });
            }
        }
        let message = format!(
            "store {store} of {deployment} (generation {}, {} partitions) has no key {:?}",
            found.generation,
            found.running.tasks.len(),
            query.key
        );
        Err(Error::new(Kind::NotFound, "key_not_found", message))
    }

    /// Entries of a store, in key order within each partition.
    ///
    /// # Errors
    /// When deployment, store, generation or partition is not there, or a bound cannot be read.
    pub fn store_scan(
        &self,
        deployment: &str,
        store: &str,
        scan: &StoreScan,
    ) -> Result<StoreAnswer<StorePage>, Error> {
        let found = self.find_store(deployment, store, scan.generation, scan.partition)?;
        let (mut start, mut end) = (Vec::new(), None);
        if let Some(prefix) = &scan.prefix {
            start = parse_prefix(&found.store, prefix)?;
            end = Some(prefix_end(&start));
        }
        if let Some(text) = &scan.start {
            start = start.max(parse_key(&found.store, text)?);
        }
        if let Some(text) = &scan.end {
            let bound = parse_key(&found.store, text)?;
            end = Some(end.map_or(bound.clone(), |end| end.min(bound)));
        }
        let resume = scan.cursor.as_deref().map(parse_cursor).transpose()?;
        let mut left = scan.limit.max(1);
        let (mut entries, mut inputs, mut cursor) = (Vec::new(), Vec::new(), None);
        for task in &found.tasks {
            let partition = task.partition.0;
            let mut from = start.clone();
            match &resume {
                Some((at, _)) if *at > partition => continue,
                Some((at, key)) if *at == partition => from.clone_from(key),
                _ => {}
            }
            if left == 0 {
                cursor = Some(show_cursor(partition, &from));
                break;
            }
            let limit = PageLimit { entries: left, bytes: PAGE_BYTES };
            let (page, position) =
                ask(task, |stores| stores.scan(found.index, &from, end.as_deref(), limit))?;
            inputs.push(position);
            left -= arrow_array::Array::len(&page.keys);
            for (key, value) in page.keys.iter().zip(page.values.iter()) {
                let (key, value) = (key.unwrap_or_default(), value.unwrap_or_default());
                entries.push(entry(&found.store, key, value, partition));
            }
            if let Some(next) = page.next {
                cursor = Some(show_cursor(partition, &next));
                break;
            }
        }
        let answer = StorePage { entries, cursor };
        Ok(StoreAnswer { generation: found.generation.0, inputs, answer })
    }
}

fn ask<T>(
    task: &TaskShared,
    question: impl FnOnce(&mut crate::state::StoreSet) -> T,
) -> Result<(T, StorePosition), Error> {
    let unavailable = |why: String| {
        let message = format!("partition {}: {why}", task.partition);
        Error::new(Kind::Unavailable, "state_not_ready", message)
    };
    if let RunState::Stopped(reason) = task.run_state() {
        return Err(unavailable(format!("the task has stopped: {reason}")));
    }
    let (answer, offsets) = task.query(QUERY_TIMEOUT, question).ok_or_else(|| {
        unavailable(
            "its state is not durable yet: the task is starting or replaying, try again".into(),
        )
    })?;
    let offsets = offsets.into_iter().map(|o| o.0).collect();
    Ok((answer, StorePosition { partition: task.partition.0, offsets }))
}

fn part_types(store: &StoreDeclaration) -> Vec<PartType> {
    let part = |part: &KeyPart| match part {
        KeyPart::Utf8 => PartType::Utf8,
        KeyPart::I64 => PartType::I64,
        KeyPart::F64 => PartType::F64,
        KeyPart::Bytes => PartType::Bytes,
        KeyPart::Bool => PartType::Bool,
    };
    store.key.iter().map(part).collect()
}

fn parse_key(store: &StoreDeclaration, text: &str) -> Result<Vec<u8>, Error> {
    parse_text(text, &part_types(store)).map_err(|e| bad_key(store, text, &e))
}

/// The bytes with which keys begin that `text` begins.
fn parse_prefix(store: &StoreDeclaration, text: &str) -> Result<Vec<u8>, Error> {
    let types = part_types(store);
    if types == [PartType::Utf8] {
        let mut bytes = Vec::new();
        push_utf8(&mut bytes, text);
        // Without the terminator, the encoding of a text is a prefix of what it begins.
        bytes.pop();
        return Ok(bytes);
    }
    let parts = serde_json::from_str::<Vec<Value>>(text).map_or(1, |parts| parts.len());
    let leading = &types[..parts.clamp(1, types.len())];
    let text = match serde_json::from_str::<Vec<Value>>(text).ok().as_deref() {
        Some([Value::String(one)]) if leading == [PartType::Utf8] => one.clone(),
        _ => text.to_owned(),
    };
    parse_text(&text, leading).map_err(|e| bad_key(store, &text, &e))
}

fn bad_key(store: &StoreDeclaration, text: &str, error: &anabranch_key::Error) -> Error {
    let parts: Vec<_> = store.key.iter().map(text_of).collect();
    let message = format!(
        "{text:?} is no key of store {} (parts: {}): {error}",
        store.name,
        parts.join(", ")
    );
    Error::new(Kind::Invalid, "invalid_key", message)
}

/// The name of a declared type, as the plugin's description writes it.
fn text_of<T: serde::Serialize>(declared: &T) -> String {
    let value = serde_json::to_value(declared).ok();
    value.and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

/// An entry in the store's declared form; bytes that do not fit it are shown as `{"$bytes": base64}`.
fn entry(store: &StoreDeclaration, key: &[u8], value: &[u8], partition: u32) -> StoreEntry {
    let key = to_json(key, &part_types(store)).unwrap_or_else(|_| raw(key));
    StoreEntry { key, value: show_value(store.value, value), partition }
}

fn show_value(format: ValueFormat, value: &[u8]) -> Value {
    let shown = match format {
        ValueFormat::Json => serde_json::from_slice(value).ok(),
        ValueFormat::Utf8 => std::str::from_utf8(value).ok().map(Value::from),
        ValueFormat::I64 => value.try_into().ok().map(i64::from_le_bytes).map(Value::from),
        ValueFormat::F64 => value.try_into().ok().map(f64::from_le_bytes).map(Value::from),
        ValueFormat::Bytes => None,
    };
    shown.unwrap_or_else(|| raw(value))
}

fn raw(bytes: &[u8]) -> Value {
    let text = base64::engine::general_purpose::STANDARD.encode(bytes);
    Value::Object([("$bytes".to_owned(), Value::from(text))].into_iter().collect())
}

fn show_cursor(partition: u32, key: &[u8]) -> String {
    format!("{partition}.{}", hex::encode(key))
}

fn parse_cursor(text: &str) -> Result<(u32, Vec<u8>), Error> {
    let parsed = text
        .split_once('.')
        .and_then(|(partition, key)| Some((partition.parse().ok()?, hex::decode(key).ok()?)));
    parsed.ok_or_else(|| {
        let message = format!("{text:?} is no cursor: give the one that the last page ended with");
        Error::new(Kind::Invalid, "invalid_cursor", message)
    })
}
