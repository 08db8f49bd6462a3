//! Topics: names that mount physical logs one after the other.
//!
//! A position in a topic is base + position in the mounted log. Between two mounts lies one marker
//! offset, where a reader is told of the swap and sent on to the new generation's records.
//!
//! **Invariant:** bases only grow, every mount but the last is closed, the last is never retired; a
//! name has one partition count for its life. Rolling back mounts the old log again at a new base.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::ahead::Executor;
use super::columns::Wanted;
use super::partition::{Partition, Registry};
use super::reader::{PartitionReader, ReadError};
use super::signal::{Signal, Subscription};
use crate::threads::{Mutex, RwLock};
use crate::types::{Batch, LogId, Offset, PartitionId, TopicId, TopicName};

/// How keys and values are shown and taken at the edges.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TopicFormat {
    /// JSON text.
    #[default]
    Json,
    /// Text.
    Utf8,
    /// Any bytes.
    Bytes,
}

/// What may go; nothing by default.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Records appended longer ago than this may go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_ms: Option<u64>,
    /// The oldest records may go while a partition holds more bytes than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
}

/// One physical log under a topic's name. The vectors have an entry a partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The log.
    pub log: LogId,
    /// The generation that writes it, if one does.
    pub generation: Option<u32>,
    /// Topic offset of the log's offset 0.
    pub base: Vec<Offset>,
    /// The log's offset where those go on who come over the marker before this mount.
    pub from: Vec<Offset>,
    /// The log's offset at which the mount was closed; `None` while it is open.
    pub to: Option<Vec<Offset>>,
    /// Whether its records may be gone.
    pub retired: bool,
}

/// A topic as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicState {
    /// For ever; a new topic under an old name has a new id.
    pub id: TopicId,
    /// The name.
    pub name: TopicName,
    /// How keys and values are shown.
    pub format: TopicFormat,
    /// Number of partitions.
    pub partitions: u32,
    /// Counts changes, from 1.
    pub version: u64,
    /// The deployment whose output it is; `None` for a topic of producers.
    pub owner: Option<String>,
    /// What may go.
    pub retention: Retention,
    /// The logs, in the order of their bases.
    pub mounts: Vec<Mount>,
}

impl TopicState {
    /// A topic of producers: one open mount of `log` at base 0.
    pub fn plain(
        id: TopicId,
        name: TopicName,
        format: TopicFormat,
        partitions: u32,
        log: LogId,
    ) -> Self {
        let zeros = vec![Offset::ZERO; partitions as usize];
        let (base, from) = (zeros.clone(), zeros);
        let mount = Mount { log, generation: None, base, from, to: None, retired: false };
        let (owner, retention) = (None, Retention::default());
        Self { id, name, format, partitions, version: 1, owner, retention, mounts: vec![mount] }
    }

    /// The last mount, which is open.
    ///
    /// # Panics
    /// When the state was never checked by a commit and has no mount.
    pub fn open_mount(&self) -> &Mount {
        self.mounts.last().expect("a checked topic has a mount")
    }

    /// The next state, in which the open mount is closed at `to` and `log` is mounted from `from` on.
    pub fn swapped(
        &self,
        to: Vec<Offset>,
        log: LogId,
        generation: Option<u32>,
        from: Vec<Offset>,
    ) -> Self {
        let mut next = self.clone();
        next.version += 1;
        let mut base = Vec::with_capacity(to.len());
        if let Some(last) = next.mounts.last_mut() {
            base.extend(last.base.iter().zip(&to).map(|(base, to)| Offset(base.0 + to.0 + 1)));
            last.to = Some(to);
        }
        next.mounts.push(Mount { log, generation, base, from, to: None, retired: false });
        next
    }

    /// What is wrong with the state; `None` if nothing is.
    pub(super) fn fault(&self) -> Option<String> {
        let n = self.partitions as usize;
        let fault = |text: &str| Some(format!("topic {}: {text}", self.name));
        if n == 0 {
            return fault("it needs at least one partition");
        }
        let Some((last, closed)) = self.mounts.split_last() else {
            return fault("it mounts no log");
        };
        let lengths = |m: &Mount| {
            m.base.len() == n && m.from.len() == n && m.to.as_ref().is_none_or(|to| to.len() == n)
        };
        if !self.mounts.iter().all(lengths) {
            return fault("a mount does not have one position a partition");
        }
        if last.to.is_some() || last.retired || closed.iter().any(|m| m.to.is_none()) {
            return fault("the last mount must be open, and all others closed");
        }
        for pair in self.mounts.windows(2) {
            let to = pair[0].to.iter().flatten();
            let ends = pair[0].base.iter().zip(to).map(|(base, to)| base.0.saturating_add(to.0));
            if pair[1].base.iter().zip(ends).any(|(base, end)| base.0 <= end) {
                return fault("a mount begins before the marker of the one before it");
            }
        }
        None
    }
}

/// All topics, as of the last publication.
#[derive(Default)]
pub struct Topics {
    by_name: RwLock<BTreeMap<TopicName, Arc<Topic>>>,
}

impl Topics {
    /// The topic that has the name now.
    pub fn get(&self, name: &TopicName) -> Option<Arc<Topic>> {
        self.by_name.read().get(name).cloned()
    }

    /// All topics by name.
    pub fn list(&self) -> Vec<Arc<Topic>> {
        self.by_name.read().values().cloned().collect()
    }

    pub(super) fn publish(&self, state: Arc<TopicState>, registry: &Arc<Registry>) {
        let known = self.get(&state.name).filter(|topic| topic.id() == state.id);
        match known {
            Some(topic) => {
                *topic.state.write() = state;
                topic.signal.notify();
            }
            None => {
                let name = state.name.clone();
                let registry = Arc::clone(registry);
                let topic = Topic { state: RwLock::new(state), registry, signal: Arc::default() };
                self.by_name.write().insert(name, Arc::new(topic));
            }
        }
    }

    pub(super) fn unpublish(&self, id: TopicId) {
        let mut topics = self.by_name.write();
        let name = topics.values().find(|t| t.id() == id).map(|t| t.state().name.clone());
        let gone = name.and_then(|name| topics.remove(&name));
        drop(topics);
        if let Some(topic) = gone {
            topic.signal.notify();
        }
    }
}

/// A topic. What it mounts changes; who holds it sees the change.
pub struct Topic {
    state: RwLock<Arc<TopicState>>,
    registry: Arc<Registry>,
    signal: Arc<Signal>,
}

impl Topic {
    /// Its id.
    pub fn id(&self) -> TopicId {
        self.state.read().id
    }

    /// What it is now.
    pub fn state(&self) -> Arc<TopicState> {
        Arc::clone(&self.state.read())
    }

    /// One partition; `None` if there is no such number.
    pub fn partition(self: &Arc<Self>, id: PartitionId) -> Option<TopicPartition> {
        (id.0 < self.state().partitions).then(|| TopicPartition { topic: Arc::clone(self), id })
    }

    /// Calls `listener` when the topic itself changed or was deleted.
    pub fn subscribe(&self, listener: Box<dyn Fn() + Send + Sync>) -> Subscription {
        self.signal.subscribe(Arc::from(listener))
    }

    pub(super) fn physical(&self, mount: &Mount, id: PartitionId) -> Option<Arc<Partition>> {
        self.registry.read().get(&(mount.log, id)).cloned()
    }
}

/// One partition of a topic, across its mounts.
#[derive(Clone)]
pub struct TopicPartition {
    topic: Arc<Topic>,
    id: PartitionId,
}

impl TopicPartition {
    /// Its topic.
    pub fn topic(&self) -> &Arc<Topic> {
        &self.topic
    }

    /// Its number.
    pub fn id(&self) -> PartitionId {
        self.id
    }

    /// `earliest`: the first record of the open mount, whose log holds the rebuilt history.
    pub fn start_offset(&self) -> Offset {
        let (base, partition) = self.open();
        Offset(base.0 + partition.map_or(0, |p| p.log_start_offset().0))
    }

    /// `latest`: one past the last record that can be read.
    pub fn end_offset(&self) -> Offset {
        let (base, partition) = self.open();
        Offset(base.0 + partition.map_or(0, |p| p.durable_offset().0))
    }

    /// A reader of its own cache.
    pub fn reader(&self) -> TopicReader {
        TopicReader { partition: self.clone(), physical: None, executor: None, wanted: Wanted::ALL }
    }

    /// Calls `listener` now and after each publication in the mounted log, across swaps.
    pub fn subscribe(&self, listener: Box<dyn Fn() + Send + Sync>) -> Subscription {
        let listener: Arc<dyn Fn() + Send + Sync> = Arc::from(listener);
        let inner = Arc::new(Mutex::new(None));
        let attach = {
            // Holds the topic weakly, whose signal holds this closure.
            let (topic, id) = (Arc::downgrade(&self.topic), self.id);
            let (inner, listener) = (Arc::downgrade(&inner), Arc::clone(&listener));
            move || {
                let (Some(topic), Some(inner)) = (topic.upgrade(), inner.upgrade()) else { return };
                {
                    // Held from the look at the mount on: a slow caller must not undo a newer one.
                    let mut inner = inner.lock();
                    let mounted = topic.physical(topic.state().open_mount(), id);
                    let wake = Arc::clone(&listener);
                    *inner = mounted.map(|p| p.subscribe(Box::new(move || wake())));
                }
                listener();
            }
        };
        let attach = Arc::new(attach);
        let outer = self.topic.signal.subscribe(Arc::clone(&attach) as Arc<_>);
        attach();
        Subscription::of((outer, inner))
    }

    /// Follows a number that changes whenever [`TopicPartition::subscribe`] would call. The
    /// subscription must be kept as long as the receiver is used.
    pub fn watch(&self) -> (tokio::sync::watch::Receiver<u64>, Subscription) {
        let (sender, receiver) = tokio::sync::watch::channel(0);
        let bump = Box::new(move || sender.send_modify(|n| *n += 1));
        (receiver, self.subscribe(bump))
    }

    /// Base and partition of the open mount.
    fn open(&self) -> (Offset, Option<Arc<Partition>>) {
        let state = self.topic.state();
        let mount = state.open_mount();
        (mount.base[self.id.0 as usize], self.topic.physical(mount, self.id))
    }
}

/// What a topic has at a position.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "nearly all reads are records")]
pub enum TopicRead {
    /// Records, with the topic's offsets.
    Records(Batch),
    /// The end of a mount: what follows was made by another generation.
    Swap {
        /// The marker's offset.
        at: Offset,
        /// Where to go on.
        next: Offset,
        /// The generation before.
        generation_from: Option<u32>,
        /// The generation after.
        generation_to: Option<u32>,
    },
    /// Nothing more up to the limit, for now.
    End,
}

/// Reads one partition of a topic.
pub struct TopicReader {
    partition: TopicPartition,
    physical: Option<PartitionReader>,
    executor: Option<Executor>,
    wanted: Wanted,
}

impl TopicReader {
    /// The same, with blocks read ahead by `executor` for whoever reads on and on.
    pub fn read_ahead(self, executor: Option<Executor>) -> Self {
        Self { executor, ..self }
    }

    /// The same, of what is wanted alone.
    pub fn only(self, wanted: Wanted) -> Self {
        Self { wanted, ..self }
    }

    /// Lets go of what it has read; returns whether that was a block of a file.
    pub fn rest(&mut self) -> bool {
        self.physical.take().is_some_and(|reader| reader.holds_block())
    }

    /// What is at and after `from` and before `to`, as much as lies together within the limits.
    pub fn read(
        &mut self,
        from: Offset,
        to: Offset,
        max_records: usize,
        max_bytes: usize,
    ) -> Result<TopicRead, ReadError> {
        let state = self.partition.topic.state();
        let p = self.partition.id.0 as usize;
        let mounts = &state.mounts;
        // Bases rise, and the first is at or below every offset that was ever valid.
        let index = mounts.partition_point(|m| m.base[p] <= from).max(1) - 1;
        let mount = &mounts[index];
        let base = mount.base[p];
        let closed = mount.to.as_ref().map_or(Offset::LIMIT, |to| to[p]);
        let at = Offset(from.0.saturating_sub(base.0));
        // Who stands at the marker has read all of the mount and misses nothing.
        if mount.retired && at < closed {
            let next = self.partition.start_offset();
            return Err(ReadError::Retired { partition: self.partition.id, from, next });
        }
        let to = Offset(to.0.saturating_sub(base.0));
        if at < closed {
            let batch = self.open(mount)?.read(at, to.min(closed), max_records, max_bytes);
            if let Some(batch) = batch.map_err(|e| shift(e, base, from))? {
                return Ok(TopicRead::Records(rebase(batch, base)));
            }
        }
        match mounts.get(index + 1) {
            Some(next) if to > closed => Ok(TopicRead::Swap {
                at: Offset(base.0 + closed.0),
                next: Offset(next.base[p].0 + next.from[p].0),
                generation_from: mount.generation,
                generation_to: next.generation,
            }),
            _ => Ok(TopicRead::End),
        }
    }

    fn open(&mut self, mount: &Mount) -> Result<&mut PartitionReader, ReadError> {
        let TopicPartition { topic, id } = &self.partition;
        let known = self.physical.take().filter(|r| r.partition().log() == mount.log);
        let reader = match known {
            Some(reader) => reader,
            None => {
                let gone = ReadError::Deleted { log: mount.log, partition: *id };
                let mut reader = topic.physical(mount, *id).ok_or(gone)?.reader();
                reader.read_ahead(self.executor.clone());
                reader.only(self.wanted);
                reader
            }
        };
        Ok(self.physical.insert(reader))
    }
}

fn rebase(batch: Batch, base: Offset) -> Batch {
    if base == Offset::ZERO {
        return batch;
    }
    let offsets: Vec<u64> = batch.offsets.iter().map(|o| o + base.0).collect();
    Batch { offsets: offsets.into(), records: batch.records }
}

/// An error about a log's offset as one about the topic's.
fn shift(error: ReadError, base: Offset, from: Offset) -> ReadError {
    let up = |offset: Offset| Offset(base.0 + offset.0);
    match error {
        ReadError::BelowStart { partition, start, .. } => {
            ReadError::BelowStart { partition, from, start: up(start) }
        }
        ReadError::BeyondEnd { partition, end, .. } => {
            ReadError::BeyondEnd { partition, from, end: up(end) }
        }
        ReadError::Lost { partition, next, why, .. } => {
            ReadError::Lost { partition, from, next: up(next), why }
        }
        other => other,
    }
}
