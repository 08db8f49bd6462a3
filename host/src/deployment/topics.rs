//! Topics and what producers append to them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow_array::Array as _;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::metrics::PartitionLabels;
use super::registry::{Deployment, commit_refused};
use super::running::topic;
use super::{Error, Kind, PartitionStatus, Registry, TopicStatus};
use crate::log::{
    Append, Commit, CommitError, Committed, LogKind, Retention, Topic, TopicChange, TopicFormat,
    TopicState,
};
use crate::storage::crash_point;
use crate::types::{
    DeploymentName, LogId, Offset, PartitionId, Records, TopicId, TopicName, partition_of_key,
    take_records,
};

/// What a topic is created with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateTopic {
    /// Its partitions, for its whole life.
    #[serde(default = "one")]
    pub partitions: u32,
    /// How keys and values are shown and taken.
    #[serde(default)]
    #[schema(value_type = String)]
    pub format: TopicFormat,
    /// What may go; recorded, not yet enforced.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub retention: Retention,
}

fn one() -> u32 {
    1
}

/// What became of a produce request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Produced {
    /// Records appended.
    pub appended: u64,
    /// For each partition that got any: its next offset after them.
    pub partitions: BTreeMap<u32, PartitionEnd>,
}

/// Where a partition ends after a produce request.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PartitionEnd {
    /// The next offset to be written.
    pub next_offset: u64,
}

/// What to do once a produce request is durable, or refused.
pub type ProduceDone = Box<dyn FnOnce(Result<Produced, Error>) + Send>;

impl Registry {
    /// Creates a topic; the same request again changes nothing.
    ///
    /// # Errors
    /// When the name is taken by a topic that differs, or the request is beyond a limit.
    pub fn create_topic(
        &self,
        name: &TopicName,
        options: &CreateTopic,
    ) -> Result<TopicStatus, Error> {
        let _naming = self.inner.naming.lock();
        if let Some(topic) = self.inner.log.topics().get(name) {
            let state = topic.state();
            if (state.partitions, state.format) == (options.partitions, options.format) {
                return self.topic(name);
            }
            let message = format!(
                "topic {name} exists with {} partitions and format {:?}: delete it first, or choose another name",
                state.partitions, state.format
            );
            return Err(Error::new(Kind::Conflict, "topic_exists", message));
        }
        let most = self.inner.config.storage.max_partitions;
        if options.partitions == 0 || options.partitions > most {
            let message = format!(
                "topic {name}: {} partitions; a topic has 1 to {most} (storage.max_partitions)",
                options.partitions
            );
            return Err(Error::new(Kind::Invalid, "invalid_partitions", message));
        }
        let mut commit = Commit::default();
        let mut state = self.plain_topic(&mut commit, name, options.partitions, options.format);
        state.retention = options.retention.clone();
        commit.topics.push(TopicChange::Create(state));
        self.commit(commit)?;
        self.topic(name)
    }

    /// A topic of producers, whose log `commit` creates.
    fn plain_topic(
        &self,
        commit: &mut Commit,
        name: &TopicName,
        partitions: u32,
        format: TopicFormat,
    ) -> TopicState {
        let log = self.new_log(commit, LogKind::Records, partitions, format!("topic {name}"));
        let id = TopicId(self.inner.log.allocate_id());
        TopicState::plain(id, name.clone(), format, partitions, log)
    }

    /// A topic as others see it.
    ///
    /// # Errors
    /// When there is none.
    pub fn topic(&self, name: &TopicName) -> Result<TopicStatus, Error> {
        Ok(topic_status(&self.topic_handle(name)?))
    }

    /// A topic to read from.
    ///
    /// # Errors
    /// When there is none.
    pub fn topic_handle(&self, name: &TopicName) -> Result<Arc<Topic>, Error> {
        topic(&self.inner.log, name)
    }

    /// All topics, by name.
    pub fn topics(&self) -> Vec<TopicStatus> {
        self.inner.log.topics().list().iter().map(topic_status).collect()
    }

    /// Deletes a topic and its records.
    ///
    /// # Errors
    /// When there is none, or a deployment reads or owns it.
    pub fn delete_topic(&self, name: &TopicName) -> Result<(), Error> {
        let _naming = self.inner.naming.lock();
        let state = self.topic_handle(name)?.state();
        if let Some(owner) = &state.owner {
            let message = format!(
                "topic {name} is an output of deployment {owner}: delete the deployment first"
            );
            return Err(Error::new(Kind::Conflict, "topic_in_use", message));
        }
        if let Some(reader) = self.reader_of(name) {
            let message = format!("deployment {reader} reads topic {name}: delete it first");
            return Err(Error::new(Kind::Conflict, "topic_in_use", message));
        }
        let logs: BTreeSet<LogId> =
            state.mounts.iter().filter(|m| !m.retired).map(|m| m.log).collect();
        self.commit(Commit {
            deletes: logs.into_iter().collect(),
            topics: vec![TopicChange::Delete(state.id)],
            ..Commit::default()
        })
    }

    /// A deployment that reads a topic.
    pub(super) fn reader_of(&self, name: &TopicName) -> Option<DeploymentName> {
        let deployments = self.inner.deployments.read();
        let reads = |d: &&Arc<Deployment>| d.state.lock().record.spec.inputs.contains(name);
        deployments.values().find(reads).map(|d| d.state.lock().record.name().clone())
    }

    /// Appends records: to the partition that `partitions` names for each, else by key, else all to
    /// one. Does not block; `done` is called once they are durable, on the committer's thread.
    pub fn produce(
        &self,
        name: &TopicName,
        records: Records,
        partitions: Option<&[Option<PartitionId>]>,
        done: ProduceDone,
    ) {
        match self.place(name, records, partitions) {
            Err(error) => done(Err(error)),
            Ok(appends) => {
                let placed: Vec<_> =
                    appends.iter().map(|a| (a.partition, a.records.len() as u64)).collect();
                let (metrics, topic) = (Arc::clone(&self.inner.metrics), name.to_string());
                let (clock, asked) = (Arc::clone(&self.inner.clock), self.inner.clock.monotonic());
                let commit = Commit { appends, ..Commit::default() };
                let finish = move |result: Result<Committed, CommitError>| {
                    metrics.commits.add(clock.monotonic().saturating_sub(asked));
                    let produced = result.map_err(commit_refused).map(|committed| {
                        let mut partitions = BTreeMap::new();
                        for ((partition, count), (_, next)) in placed.iter().zip(committed.appended)
                        {
                            let PartitionId(partition) = *partition;
                            let labels = PartitionLabels { topic: topic.clone(), partition };
                            metrics.produced.get_or_create(&labels).inc_by(*count);
                            partitions.insert(partition, PartitionEnd { next_offset: next.0 });
                        }
                        Produced { appended: placed.iter().map(|(_, n)| n).sum(), partitions }
                    });
                    crash_point("append-durable");
                    done(produced);
                };
                crash_point("append-placed");
                self.inner.log.commit(commit, Box::new(finish));
            }
        }
    }

    /// Which records go to which partition.
    fn place(
        &self,
        name: &TopicName,
        records: Records,
        partitions: Option<&[Option<PartitionId>]>,
    ) -> Result<Vec<Append>, Error> {
        self.ready()?;
        let state = self.topic_handle(name)?.state();
        if let Some(owner) = &state.owner {
            let message = format!(
                "topic {name} is an output of deployment {owner}: only its plugin writes there"
            );
            return Err(Error::new(Kind::Conflict, "topic_owned", message));
        }
        let mount = state.open_mount();
        if mount.generation.is_some() {
            let message = format!(
                "topic {name} holds the outputs of a deployment that was deleted: produce to another topic"
            );
            return Err(Error::new(Kind::Conflict, "topic_owned", message));
        }
        let log = mount.log;
        let append = |partition, records| Append { log, partition, records };
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let count = state.partitions;
        if count == 1 && partitions.is_none() {
            return Ok(vec![append(PartitionId(0), records)]);
        }
        let sticky = PartitionId(self.inner.sticky.fetch_add(1, Ordering::Relaxed) % count);
        let mut rows = vec![Vec::new(); count as usize];
        for row in 0..records.len() {
            let chosen = partitions.and_then(|p| p[row]);
            let partition = match chosen {
                Some(partition) if partition.0 >= count => {
                    let message = format!(
                        "record {row}: topic {name} has partitions 0 to {}, not {partition}",
                        count - 1
                    );
                    return Err(Error::new(Kind::Invalid, "no_such_partition", message));
                }
                Some(partition) => partition,
                None if records.keys.is_valid(row) => {
                    partition_of_key(records.keys.value(row), count)
                }
                None => sticky,
            };
            rows[partition.0 as usize].push(row as u32);
        }
        let used = rows.iter().enumerate().filter(|(_, rows)| !rows.is_empty());
        Ok(used
            .map(|(p, rows)| append(PartitionId(p as u32), take_records(&records, rows)))
            .collect())
    }
}

fn topic_status(topic: &Arc<Topic>) -> TopicStatus {
    let state = topic.state();
    let partitions = (0..state.partitions).filter_map(|p| topic.partition(PartitionId(p)));
    TopicStatus {
        name: state.name.to_string(),
        id: state.id.0,
        format: serde_json::to_value(state.format)
            .ok()
            .and_then(|v| v.as_str().map(str::to_owned))
            .unwrap_or_default(),
        owner: state.owner.clone(),
        generation: state.open_mount().generation,
        partitions: partitions
            .map(|p| {
                let (start, end): (Offset, Offset) = (p.start_offset(), p.end_offset());
                PartitionStatus {
                    partition: p.id().0,
                    log_start_offset: start.0,
                    end_offset: end.0,
                    records: p.count_between(start, end).unwrap_or_default(),
                    size_bytes: p.size_bytes(),
                }
            })
            .collect(),
    }
}
