//! Opening: the catalogue, the manifest and the head, brought back from storage.
//!
//! **Invariant:** files that the manifest does not name are set aside and reported, never removed;
//! a manifest that is empty beside files, or that names a file which is not there, refuses to open.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use super::codec;
use super::commit::LogSpec;
use super::committer::{Assigned, Catalog};
use super::handle::{Error, LogConfig, PartitionRecord, Shared};
use super::keys;
use super::lost::Lost;
use super::partition::{Partition, Registry, Run, State};
use super::sealer::Task;
use super::segment::{Segment, SegmentEntry};
use super::topics::{TopicState, Topics};
use crate::clock::SharedClock;
use crate::storage::{self, FileSystem, Storage, WriteBatch, crash_point};
use crate::threads::{Mutex, Sender};
use crate::types::{LogId, PartitionId};

/// The folder of all segments, below the data directory.
pub(super) const SEGMENTS_DIR: &str = "segments";
/// Where files go that nobody knows.
const QUARANTINE_DIR: &str = "quarantine";

/// Reads the catalogue and the head, and removes what a crash left half removed.
pub(super) fn recover(
    storage: Arc<Storage>,
    fs: Arc<dyn FileSystem>,
    clock: SharedClock,
    config: LogConfig,
    tasks: Sender<Task>,
) -> Result<Shared, Error> {
    let mut catalog = Catalog::default();
    for spec in load::<LogSpec>(&storage, keys::LOGS)? {
        catalog.logs.insert(spec.1.id, spec.1);
    }
    for (_, state) in load::<TopicState>(&storage, keys::TOPICS)? {
        catalog.names.insert(state.name.clone(), state.id);
        catalog.topics.insert(state.id, Arc::new(state));
    }
    let next_id = match storage.get(keys::NEXT_ID)? {
        None => 1,
        Some(bytes) => u64::from_le_bytes(
            bytes.try_into().map_err(|_| damaged(keys::NEXT_ID, "it is not a number"))?,
        ),
    };
    catalog.stored_id = next_id;
    let registry: Arc<Registry> = Arc::default();
    let mut garbage = WriteBatch::default();
    let mut states = load_partitions(&storage, &catalog, &mut garbage)?;
    load_lost(&storage, &mut states, &mut garbage)?;
    let quarantined = load_segments(&storage, &fs, &catalog, &mut states, &mut garbage)?;
    crash_point("open-set-aside");
    load_head(&storage, &mut states, &mut garbage)?;
    if !garbage.is_empty() {
        storage.apply(garbage)?;
    }
    let mut head_bytes = 0;
    for ((log, partition), (record, state)) in states {
        head_bytes += state.tail.iter().map(Run::held_bytes).sum::<u64>();
        let assigned = Assigned { next: state.published, record };
        catalog.partitions.insert((log, partition), assigned);
        registry.write().insert((log, partition), Partition::new(log, partition, state));
    }
    let topics = Topics::default();
    for state in catalog.topics.values() {
        topics.publish(Arc::clone(state), &registry);
    }
    Ok(Shared {
        storage,
        fs,
        clock,
        config,
        catalog: Mutex::new(catalog),
        registry,
        topics,
        next_id: AtomicU64::new(next_id),
        head_bytes: AtomicU64::new(head_bytes),
        tasks,
        check_waits: AtomicBool::new(false),
        closing: AtomicBool::new(false),
        structure: AtomicU64::new(0),
        quarantined,
        stats: Mutex::default(),
    })
}

type States = HashMap<(LogId, PartitionId), (PartitionRecord, State)>;

fn load_partitions(
    storage: &Storage,
    catalog: &Catalog,
    garbage: &mut WriteBatch,
) -> Result<States, Error> {
    let mut states = States::new();
    for spec in catalog.logs.values() {
        for p in (0..spec.partitions).map(PartitionId) {
            states.insert((spec.id, p), Default::default());
        }
    }
    for (key, record) in load::<PartitionRecord>(storage, keys::PARTITIONS)? {
        let id = keys::parse_partition(&key).ok_or_else(|| damaged(&key, "the key is cut off"))?;
        match states.get_mut(&id) {
            Some((known, state)) => {
                *known = record;
                state.log_start = record.log_start;
                state.published = record.log_start.max(record.head_start);
            }
            None => garbage.delete(key),
        }
    }
    Ok(states)
}

fn load_lost(
    storage: &Storage,
    states: &mut States,
    garbage: &mut WriteBatch,
) -> Result<(), Error> {
    for (key, lost) in load::<Lost>(storage, keys::LOST)? {
        let id = keys::parse_positioned(&key).ok_or_else(|| damaged(&key, "the key is cut off"))?;
        match states.get_mut(&(id.0, id.1)) {
            Some((_, state)) => {
                state.published = state.published.max(lost.next);
                state.lost.insert(id.2, lost);
            }
            None => garbage.delete(key),
        }
    }
    Ok(())
}

/// Takes the segments that the manifest names and sets other files aside; returns these.
fn load_segments(
    storage: &Storage,
    fs: &Arc<dyn FileSystem>,
    catalog: &Catalog,
    states: &mut States,
    garbage: &mut WriteBatch,
) -> Result<Vec<PathBuf>, Error> {
    let dir = storage.dir().join(SEGMENTS_DIR);
    fs.create_dir_all(&dir).map_err(|source| io("create", &dir, source))?;
    let mut files: HashMap<String, u64> = HashMap::new();
    for folder in fs.list(&dir).map_err(|source| io("list", &dir, source))? {
        if !folder.is_dir {
            files.insert(folder.name, folder.size_bytes);
            continue;
        }
        let path = dir.join(&folder.name);
        for file in fs.list(&path).map_err(|source| io("list", &path, source))? {
            files.insert(format!("{}/{}", folder.name, file.name), file.size_bytes);
        }
    }
    if catalog.logs.is_empty() && files.keys().any(|name| name.ends_with(".arrow")) {
        let detail = "segments are there, but the manifest knows no log".to_owned();
        return Err(Error::Files { path: dir, detail });
    }
    let mut named = HashSet::new();
    for (key, entry) in load::<SegmentEntry>(storage, keys::SEGMENTS)? {
        let id = keys::parse_positioned(&key).ok_or_else(|| damaged(&key, "the key is cut off"))?;
        let Some((_, state)) = states.get_mut(&(id.0, id.1)) else {
            garbage.delete(key);
            continue;
        };
        if files.get(&entry.file) != Some(&entry.file_bytes) {
            let detail = "the manifest names this segment, but it is missing or cut off".to_owned();
            return Err(Error::Files { path: dir.join(&entry.file), detail });
        }
        named.insert(entry.file.clone());
        state.published = state.published.max(entry.next);
        state.segments.push(Arc::new(Segment::listed(Arc::clone(fs), &dir, entry)));
    }
    let unknown = files.into_keys().filter(|name| !named.contains(name));
    set_aside(storage.dir(), fs.as_ref(), unknown.collect())
}

/// Moves files below the folder of segments into quarantine.
fn set_aside(
    data: &Path,
    fs: &dyn FileSystem,
    mut names: Vec<String>,
) -> Result<Vec<PathBuf>, Error> {
    let mut moved = Vec::new();
    let quarantine = data.join(QUARANTINE_DIR);
    names.sort();
    for name in names {
        let from = data.join(SEGMENTS_DIR).join(&name);
        let to = storage::set_aside(fs, &from, &quarantine, &name.replace('/', "-"))?;
        tracing::warn!("{} is not in the manifest: moved to {}", from.display(), to.display());
        moved.push(to);
    }
    Ok(moved)
}

fn load_head(
    storage: &Storage,
    states: &mut States,
    garbage: &mut WriteBatch,
) -> Result<(), Error> {
    let mut fault = None;
    storage.scan(&[keys::HEAD], |key, value| {
        let Some((log, partition, first)) = keys::parse_positioned(key) else {
            fault.get_or_insert_with(|| damaged(key, "the key is cut off"));
            return;
        };
        let Some((record, state)) = states.get_mut(&(log, partition)) else {
            garbage.delete(key);
            return;
        };
        if first < record.head_start {
            garbage.delete(key);
            return;
        }
        match codec::decode(&value) {
            Some((records, append_ms)) => {
                let run = Run::new(first, records, append_ms);
                state.published = state.published.max(run.next());
                match run.next() <= state.log_start {
                    true => garbage.delete(key),
                    false => state.tail.push_back(run),
                }
            }
            None => {
                fault.get_or_insert_with(|| damaged(key, "it is not an append"));
            }
        }
    })?;
    fault.map_or(Ok(()), Err)
}

fn load<T: serde::de::DeserializeOwned>(
    storage: &Storage,
    prefix: u8,
) -> Result<Vec<(Vec<u8>, T)>, Error> {
    let mut found = Vec::new();
    let mut fault = None;
    storage.scan(&[prefix], |key, value| match serde_json::from_slice(&value) {
        Ok(parsed) => found.push((key.to_vec(), parsed)),
        Err(e) => {
            fault.get_or_insert_with(|| damaged(key, &e.to_string()));
        }
    })?;
    fault.map_or(Ok(found), Err)
}

fn damaged(key: &[u8], detail: &str) -> Error {
    Error::Damaged { key: key.escape_ascii().to_string(), detail: detail.to_owned() }
}

fn io(what: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::Io { what, path: path.to_owned(), source }
}
