//! The one thread that commits: it checks, gives out offsets, writes, syncs, publishes, answers.
//!
//! Commits that wait are taken as a group: one batch each, one sync for all. The order of
//! publication is the order of application.
//!
//! **Invariant:** offsets are given out under the catalogue's lock and nowhere else; nothing is
//! published and nobody is answered before the sync that covers it. After a failure of storage,
//! every commit is refused.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arrow_array::Array;

use super::codec;
use super::commit::{Commit, CommitError, Committed, LogSpec, TopicChange};
use super::direct::SealedSegment;
use super::handle::{PartitionRecord, Shared};
use super::keys;
use super::partition::{Partition, Run, State};
use super::sealer;
use super::segment::Segment;
use super::snapshot::LogSnapshot;
use super::topics::TopicState;
use crate::storage::{WriteBatch, crash_point};
use crate::threads::{Receiver, Sender};
use crate::types::{LogId, Offset, PartitionId, Records, TopicId, TopicName};

/// Commits in one group, at most.
const GROUP_COMMITS: usize = 256;
/// Bytes of a group, about: the commit that reaches it is its last.
const GROUP_BYTES: usize = 16 << 20;
/// Bytes of one commit: one batch of sled is built in memory.
const COMMIT_BYTES: usize = 128 << 20;
/// With more than this many budgets of records in the head, commits wait for the sealer…
const STALL_HEADS: u64 = 2;
/// … but no longer than this for each group.
const STALL: Duration = Duration::from_millis(500);
/// What a byte of a commit takes on disk before anything of it is given back: in the head's own log, which
/// sled writes anew as it clears it, in the file that it is sealed into, and in a copy of the head.
const BYTES_ON_DISK: u64 = 4;
/// What a byte that the head holds will still take: in a file, and in a copy of the head.
const OWED_BYTES: u64 = 2;

type Answer = Box<dyn FnOnce(Result<Committed, CommitError>) + Send>;

/// What is called with the outcome of a commit. Dropped without one, it says that the log is closed:
/// nobody waits for ever.
pub(super) struct Done(Option<Answer>);

impl Done {
    pub(super) fn new(
        answer: impl FnOnce(Result<Committed, CommitError>) + Send + 'static,
    ) -> Self {
        Self(Some(Box::new(answer)))
    }

    fn answer(mut self, result: Result<Committed, CommitError>) {
        if let Some(answer) = self.0.take() {
            answer(result);
        }
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        if let Some(answer) = self.0.take() {
            let reason = "the host is shutting down".to_owned();
            answer(Err(CommitError::Stopped { reason }));
        }
    }
}

/// Work for the committer.
pub(super) enum Request {
    /// A commit.
    Commit(Box<Commit>, Done),
    /// Durable records of the head now lie in a segment.
    Seal(LogId, PartitionId, Arc<Segment>, Done),
    /// Take a snapshot once the group that it came with is durable.
    Snapshot(Sender<Result<LogSnapshot, CommitError>>),
    /// Answer all before this, then end.
    Close(Sender<()>),
}

/// What is applied, which runs ahead of what is published by a group.
#[derive(Default)]
pub(super) struct Catalog {
    pub logs: HashMap<LogId, LogSpec>,
    pub partitions: HashMap<(LogId, PartitionId), Assigned>,
    pub topics: HashMap<TopicId, Arc<TopicState>>,
    pub names: HashMap<TopicName, TopicId>,
    /// The stored counter of ids.
    pub stored_id: u64,
}

/// What was applied to a partition.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Assigned {
    /// The next offset to give out.
    pub next: Offset,
    pub record: PartitionRecord,
}

/// What becomes visible after the sync.
#[expect(clippy::large_enum_variant, reason = "nearly all effects are the large one")]
enum Effect {
    Created(LogSpec),
    Deleted(LogId, u32),
    Appended(LogId, PartitionId, Run),
    Sealed(LogId, PartitionId, Arc<Segment>),
    Direct(SealedSegment),
    Truncated(LogId, PartitionId, Offset, Vec<Offset>),
    Topic(Arc<TopicState>),
    TopicDeleted(TopicId),
}

struct Applied {
    committed: Committed,
    effects: Vec<Effect>,
    done: Done,
}

/// The body of the committer thread.
pub(super) fn run(shared: &Arc<Shared>, requests: &Receiver<Request>) {
    // All is there that was acknowledged, so the head as it was before this start is let go of. A failure
    // stops the storage, which says so to every commit.
    let _ = shared.storage.sync();
    loop {
        // Producers that outrun the sealer wait here, a group at a time. What it asks for is urgent.
        let full = shared.head_bytes() > STALL_HEADS * shared.config.head_bytes;
        let sealed = full.then(|| requests.recv_urgent(STALL)).flatten();
        let Some(first) = sealed.or_else(|| requests.recv()) else { return };
        let (mut close, mut snapshot) = (None, None);
        let mut group = Vec::new();
        let mut free_space = FreeSpace { bytes: None };
        let mut bytes = 0;
        let mut request = Some(first);
        while let Some(taken) = request.take() {
            match taken {
                Request::Commit(commit, done) => {
                    bytes += commit.size_bytes();
                    match apply(shared, *commit, &mut free_space) {
                        Ok((committed, effects)) => {
                            crash_point("commit-applied");
                            group.push(Applied { committed, effects, done });
                        }
                        Err(refusal) => done.answer(Err(refusal)),
                    }
                }
                Request::Seal(log, partition, segment, done) => {
                    match apply_seal(shared, log, partition, segment) {
                        Ok(effect) => {
                            let (committed, effects) = (Committed::default(), vec![effect]);
                            group.push(Applied { committed, effects, done });
                        }
                        Err(refusal) => done.answer(Err(refusal)),
                    }
                }
                Request::Snapshot(answer) => snapshot = Some(answer),
                Request::Close(answer) => close = Some(answer),
            }
            let last = close.is_some() || snapshot.is_some();
            if !last && group.len() < GROUP_COMMITS && bytes < GROUP_BYTES {
                request = requests.try_recv();
            }
        }
        finish(shared, group);
        if let Some(answer) = snapshot {
            // Who asked may have gone.
            let _ = answer.send(LogSnapshot::take(shared));
        }
        if let Some(answer) = close {
            let _ = answer.send(());
            return;
        }
    }
}

/// Syncs, publishes and answers a group.
fn finish(shared: &Shared, group: Vec<Applied>) {
    if group.is_empty() {
        return;
    }
    let begun = shared.clock.monotonic();
    let synced = shared.storage.sync();
    crash_point("commit-synced");
    let sync_us = shared.clock.monotonic().saturating_sub(begun).as_micros() as u64;
    if let Err(e) = synced {
        let error = CommitError::Stopped { reason: e.to_string() };
        for applied in group {
            applied.done.answer(Err(error.clone()));
        }
        return;
    }
    let mut stats = shared.stats.lock();
    stats.commits += group.len() as u64;
    stats.groups += 1;
    stats.sync_us += sync_us;
    stats.longest_sync_us = stats.longest_sync_us.max(sync_us);
    drop(stats);
    let mut touched: Vec<Arc<Partition>> = Vec::new();
    let mut answers = Vec::with_capacity(group.len());
    for applied in group {
        for effect in applied.effects {
            publish(shared, effect, &mut touched);
        }
        answers.push((applied.done, applied.committed));
    }
    touched.sort_by_key(|p| (p.log(), p.id()));
    touched.dedup_by_key(|p| (p.log(), p.id()));
    for partition in touched {
        partition.announce();
    }
    shared.wake_sealer();
    crash_point("commit-published");
    for (done, committed) in answers {
        done.answer(Ok(committed));
    }
}

fn publish(shared: &Shared, effect: Effect, touched: &mut Vec<Arc<Partition>>) {
    match effect {
        Effect::Created(spec) => {
            let mut registry = shared.registry.write();
            for p in (0..spec.partitions).map(PartitionId) {
                registry.insert((spec.id, p), Partition::new(spec.id, p, State::default()));
            }
        }
        Effect::Deleted(log, partitions) => {
            for p in (0..partitions).map(PartitionId) {
                let gone = shared.registry.write().remove(&(log, p));
                if let Some(partition) = gone {
                    let mut state = partition.state.write();
                    state.deleted = true;
                    shared.let_go_later(state.segments.drain(..).collect());
                    let end = state.tail.len();
                    drop_runs(shared, &partition, &mut state, end);
                    drop(state);
                    touched.push(partition);
                }
            }
        }
        Effect::Appended(log, p, run) => {
            if let Some(partition) = shared.partition(log, p) {
                let mut state = partition.state.write();
                state.published = state.published.max(run.next());
                shared.head_grows(run.held_bytes());
                state.tail.push_back(run);
                drop(state);
                touched.push(partition);
            }
        }
        Effect::Sealed(log, p, segment) => {
            if let Some(partition) = shared.partition(log, p) {
                let mut state = partition.state.write();
                let sealed = state.run_at(segment.entry.next);
                shared.head_shrinks(state.tail.drain(..sealed).map(|run| run.held_bytes()).sum());
                state.add_segment(segment);
            }
        }
        Effect::Direct(mut sealed) => {
            sealed.reservation.settled = true;
            if let Some(partition) = shared.partition(sealed.log(), sealed.partition()) {
                let mut state = partition.state.write();
                state.reserved.remove(&sealed.reservation.first);
                state.published = state.published.max(sealed.segment.entry.next);
                state.add_segment(Arc::clone(&sealed.segment));
                drop(state);
                touched.push(partition);
            }
        }
        Effect::Truncated(log, p, start, segments) => {
            if let Some(partition) = shared.partition(log, p) {
                let mut state = partition.state.write();
                state.log_start = state.log_start.max(start);
                let is_gone = |segment: &Arc<Segment>| segments.contains(&segment.entry.first);
                let (gone, left) = state.segments.drain(..).partition(is_gone);
                state.segments = left;
                shared.let_go_later(gone);
                let gone = state.run_at(start);
                drop_runs(shared, &partition, &mut state, gone);
                drop(state);
                touched.push(partition);
            }
        }
        Effect::Topic(state) => shared.topics.publish(state, &shared.registry),
        Effect::TopicDeleted(id) => shared.topics.unpublish(id),
    }
}

/// Forgets the first `count` runs; their keys go later.
fn drop_runs(shared: &Shared, partition: &Partition, state: &mut State, count: usize) {
    let gone: Vec<Run> = state.tail.drain(..count).collect();
    shared.head_shrinks(gone.iter().map(|run| run.held_bytes()).sum());
    shared.remove_later(sealer::head_keys(partition, &gone));
}

/// Writes down that records of the head lie in `segment` now.
fn apply_seal(
    shared: &Shared,
    log: LogId,
    partition: PartitionId,
    segment: Arc<Segment>,
) -> Result<Effect, CommitError> {
    let mut catalog = shared.catalog.lock();
    let unknown = CommitError::UnknownPartition { log, partition };
    let assigned = catalog.partitions.get_mut(&(log, partition)).ok_or(unknown)?;
    assigned.record.head_start = assigned.record.head_start.max(segment.entry.next);
    let mut batch = WriteBatch::default();
    batch.put(keys::segment(log, partition, segment.entry.first), json(&segment.entry));
    batch.put(keys::partition(log, partition), json(&assigned.record));
    store_next_id(shared, &mut catalog, &mut batch);
    segment.keep();
    let applied = shared.storage.apply(batch);
    applied.map_err(|e| CommitError::Stopped { reason: e.to_string() })?;
    Ok(Effect::Sealed(log, partition, segment))
}

/// Checks a commit and writes it, as one batch.
fn apply(
    shared: &Shared,
    commit: Commit,
    free_space: &mut FreeSpace,
) -> Result<(Committed, Vec<Effect>), CommitError> {
    // After a failure the catalogue holds what was never written: nothing may be judged by it.
    let running = shared.storage.check_running();
    running.map_err(|e| CommitError::Stopped { reason: e.to_string() })?;
    // Outlives the catalogue's lock, also in a panic: a reservation among the effects takes the lock when
    // it is dropped.
    let mut effects = Vec::new();
    let mut catalog = shared.catalog.lock();
    check(shared, &catalog, &commit)?;
    if commit.appends.iter().any(|a| !a.records.is_empty()) {
        free_space.take(shared, commit.size_bytes() as u64)?;
    }
    if commit.changes_structure() {
        shared.structure.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }
    let (batch, committed) = stage(shared, &mut catalog, commit, &mut effects);
    let applied = shared.storage.apply(batch);
    drop(catalog);
    // What was staged in the catalogue is wrong then, but storage takes no commit any more.
    applied.map_err(|e| CommitError::Stopped { reason: e.to_string() })?;
    Ok((committed, effects))
}

/// Everything that can refuse a commit; changes nothing.
fn check(shared: &Shared, catalog: &Catalog, commit: &Commit) -> Result<(), CommitError> {
    let invalid = |reason: String| Err(CommitError::Invalid { reason });
    if commit.size_bytes() > COMMIT_BYTES {
        return invalid(format!("it holds more than {COMMIT_BYTES} bytes; split it"));
    }
    let foreign = |key: &[u8]| !key.first().is_some_and(|first| keys::METADATA.contains(first));
    for guard in &commit.guards {
        let found = shared.storage.get(&guard.key);
        let found = found.map_err(|e| CommitError::Unread { reason: e.to_string() })?;
        if found != guard.expected {
            return Err(CommitError::Fenced { key: guard.key.escape_ascii().to_string() });
        }
    }
    for (log, partition, end) in &commit.ends {
        if catalog.partitions.get(&(*log, *partition)).is_some_and(|p| p.next != *end) {
            return Err(CommitError::Fenced {
                key: format!("end of log {log} partition {partition}"),
            });
        }
    }
    if let Some((key, _)) = commit.metadata.iter().find(|(key, _)| foreign(key)) {
        return invalid(format!("metadata key \"{}\" is not reserved", key.escape_ascii()));
    }
    for (i, spec) in commit.creates.iter().enumerate() {
        let again = commit.creates[..i].iter().any(|other| other.id == spec.id);
        if catalog.logs.contains_key(&spec.id) || again || spec.partitions == 0 {
            return invalid(format!("log {} exists already or has no partition", spec.id));
        }
    }
    let partitions = |log: LogId| {
        let new = commit.creates.iter().find(|spec| spec.id == log);
        let there = new.or_else(|| catalog.logs.get(&log)).map(|spec| spec.partitions);
        there.filter(|_| !commit.deletes.contains(&log))
    };
    let exists = |log: LogId, partition: PartitionId| match partitions(log) {
        Some(count) if partition.0 < count => Ok(()),
        _ => Err(CommitError::UnknownPartition { log, partition }),
    };
    for log in &commit.deletes {
        if !catalog.logs.contains_key(log) {
            return Err(CommitError::UnknownPartition { log: *log, partition: PartitionId(0) });
        }
    }
    for append in &commit.appends {
        exists(append.log, append.partition)?;
    }
    for sealed in &commit.segments {
        exists(sealed.log(), sealed.partition())?;
    }
    for &(log, partition, start) in &commit.truncates {
        exists(log, partition)?;
        let durable = shared.partition(log, partition).map(|p| p.durable_offset());
        if durable.is_none_or(|durable| start > durable) {
            return invalid(format!("log {log}/{partition} does not reach offset {start}"));
        }
    }
    check_topics(catalog, commit, partitions)
}

fn check_topics(
    catalog: &Catalog,
    commit: &Commit,
    partitions: impl Fn(LogId) -> Option<u32>,
) -> Result<(), CommitError> {
    let mut seen: Vec<TopicId> = Vec::new();
    let mut freed: Vec<&TopicName> = Vec::new();
    let mut taken: Vec<&TopicName> = Vec::new();
    for change in &commit.topics {
        let id = match change {
            TopicChange::Create(state) | TopicChange::Put(state) => state.id,
            TopicChange::Delete(id) => *id,
        };
        if seen.contains(&id) {
            let reason = format!("topic {id} is changed twice");
            return Err(CommitError::Invalid { reason });
        }
        seen.push(id);
        let current = catalog.topics.get(&id);
        match (change, current) {
            (TopicChange::Create(state), None) => {
                let name = &state.name;
                let in_use = catalog.names.contains_key(name) && !freed.contains(&name);
                if in_use || taken.contains(&name) {
                    return Err(CommitError::NameTaken { topic: name.clone() });
                }
                taken.push(name);
            }
            (TopicChange::Create(state), Some(_)) => {
                return Err(CommitError::NameTaken { topic: state.name.clone() });
            }
            (TopicChange::Put(state), Some(current)) => {
                if state.version != current.version + 1 {
                    let (topic, current) = (current.name.clone(), current.version);
                    return Err(CommitError::Conflict { topic, current });
                }
                if state.name != current.name || state.partitions != current.partitions {
                    let reason = format!("topic {}: name and partitions are fixed", current.name);
                    return Err(CommitError::Invalid { reason });
                }
            }
            (TopicChange::Delete(_), Some(current)) => freed.push(&current.name),
            (_, None) => return Err(CommitError::UnknownTopic { topic: id }),
        }
        if let TopicChange::Create(state) | TopicChange::Put(state) = change {
            let short = |log| partitions(log).is_none_or(|count| count < state.partitions);
            let missing = state.mounts.iter().find(|m| !m.retired && short(m.log));
            let missing = missing.map(|m| format!("topic {} mounts no log {}", state.name, m.log));
            if let Some(reason) = state.fault().or(missing) {
                return Err(CommitError::Invalid { reason });
            }
        }
    }
    Ok(())
}

/// Gives out offsets and writes down what a checked commit changes.
fn stage(
    shared: &Shared,
    catalog: &mut Catalog,
    commit: Commit,
    effects: &mut Vec<Effect>,
) -> (WriteBatch, Committed) {
    let (mut batch, mut committed) = (WriteBatch::default(), Committed::default());
    let append_ms = shared.clock.now_ms();
    for spec in commit.creates {
        batch.put(keys::log(spec.id), json(&spec));
        for p in (0..spec.partitions).map(PartitionId) {
            catalog.partitions.insert((spec.id, p), Assigned::default());
        }
        effects.push(Effect::Created(spec.clone()));
        catalog.logs.insert(spec.id, spec);
    }
    for append in commit.appends {
        let (log, partition) = (append.log, append.partition);
        let next = &mut catalog.partitions.entry((log, partition)).or_default().next;
        let first = *next;
        *next = Offset(first.0 + append.records.len() as u64);
        committed.appended.push((first, *next));
        if !append.records.is_empty() {
            let encoded = codec::encode(&append.records, append_ms);
            let records = compact(append.records, &encoded);
            batch.put(keys::head(log, partition, first), encoded);
            let run = Run::new(first, records, append_ms);
            effects.push(Effect::Appended(log, partition, run));
        }
    }
    for sealed in commit.segments {
        let (log, partition) = (sealed.log(), sealed.partition());
        let (first, next) = sealed.range();
        batch.put(keys::segment(log, partition, first), json(&sealed.segment.entry));
        let assigned = catalog.partitions.entry((log, partition)).or_default();
        if assigned.next == sealed.reservation.end {
            assigned.next = next;
        }
        sealed.segment.keep();
        effects.push(Effect::Direct(sealed));
    }
    for (log, partition, start) in commit.truncates {
        let record = &mut catalog.partitions.entry((log, partition)).or_default().record;
        record.log_start = record.log_start.max(start);
        batch.put(keys::partition(log, partition), json(record));
        let gone = segments_before(shared, log, partition, start);
        for first in &gone {
            batch.delete(keys::segment(log, partition, *first));
        }
        effects.push(Effect::Truncated(log, partition, start, gone));
    }
    for change in commit.topics {
        match change {
            TopicChange::Create(state) | TopicChange::Put(state) => {
                batch.put(keys::topic(state.id), json(&state));
                let state = Arc::new(state);
                catalog.names.insert(state.name.clone(), state.id);
                catalog.topics.insert(state.id, Arc::clone(&state));
                effects.push(Effect::Topic(state));
            }
            TopicChange::Delete(id) => {
                batch.delete(keys::topic(id));
                if let Some(state) = catalog.topics.remove(&id) {
                    catalog.names.retain(|name, owner| *owner != id || *name != state.name);
                }
                effects.push(Effect::TopicDeleted(id));
            }
        }
    }
    for log in commit.deletes {
        if let Some(spec) = catalog.logs.remove(&log) {
            batch.delete(keys::log(log));
            for p in (0..spec.partitions).map(PartitionId) {
                batch.delete(keys::partition(log, p));
                for first in segments_before(shared, log, p, Offset::LIMIT) {
                    batch.delete(keys::segment(log, p, first));
                }
                catalog.partitions.remove(&(log, p));
            }
            effects.push(Effect::Deleted(log, spec.partitions));
        }
    }
    for (key, value) in commit.metadata {
        match value {
            Some(value) => batch.put(key, value),
            None => batch.delete(key),
        }
    }
    store_next_id(shared, catalog, &mut batch);
    (batch, committed)
}

/// The same records without what their buffers hold beside them: builders leave kilobytes of room,
/// and a slice holds all it was cut from.
fn compact(records: Records, encoded: &[u8]) -> Records {
    let headers = records.headers.as_ref().map_or(0, |h| h.as_list().get_buffer_memory_size());
    let (keys, values) = (&records.keys, &records.values);
    let held = keys.get_buffer_memory_size() + values.get_buffer_memory_size() + headers;
    match held > 2 * records.size_bytes() + 512 {
        true => codec::decode(encoded).map_or(records, |(exact, _)| exact),
        false => records,
    }
}

/// Ids that were given out are stored with the first commit after them, hence before any use.
fn store_next_id(shared: &Shared, catalog: &mut Catalog, batch: &mut WriteBatch) {
    let next_id = shared.next_id.load(std::sync::atomic::Ordering::SeqCst);
    if next_id != catalog.stored_id {
        batch.put(keys::NEXT_ID, next_id.to_le_bytes());
        catalog.stored_id = next_id;
    }
}

/// First offsets of the published segments that end at or before `end`.
fn segments_before(
    shared: &Shared,
    log: LogId,
    partition: PartitionId,
    end: Offset,
) -> Vec<Offset> {
    let Some(partition) = shared.partition(log, partition) else { return Vec::new() };
    let state = partition.state.read();
    state.segments.iter().filter(|s| s.entry.next <= end).map(|s| s.entry.first).collect()
}

fn json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain structs with string keys are always JSON")
}

/// What the disk has left for a group of commits: asked for each, as a second of writing can be more than
/// what has to stay free.
struct FreeSpace {
    /// Once it was asked, with what the head will still take then.
    bytes: Option<(u64, u64)>,
}

impl FreeSpace {
    /// Takes room for a commit of `size_bytes`, if enough stays free beside it.
    fn take(&mut self, shared: &Shared, size_bytes: u64) -> Result<(), CommitError> {
        let ask = || {
            let free = shared.fs.free_bytes(shared.storage.dir()).unwrap_or(u64::MAX);
            (free, shared.head_bytes() * OWED_BYTES)
        };
        let (free_bytes, owed) = self.bytes.unwrap_or_else(ask);
        self.bytes = Some((free_bytes, owed));
        let takes_bytes = size_bytes.saturating_mul(BYTES_ON_DISK);
        let min_free_bytes = shared.config.min_free_bytes;
        let left = free_bytes.saturating_sub(takes_bytes);
        if left.saturating_sub(owed) < min_free_bytes {
            let takes_bytes = takes_bytes.saturating_add(owed);
            return Err(CommitError::DiskFull { free_bytes, takes_bytes, min_free_bytes });
        }
        self.bytes = Some((left, owed));
        Ok(())
    }
}
