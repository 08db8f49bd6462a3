//! Making a generation: what a plugin and a deployment must agree on, and the logs it gets.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::record::{DeploymentRecord, GenerationLogs, GenerationRecord, OutputLog};
use super::running::{parse_limits, topic};
use super::spec::check_config_size;
use super::{Approve, DeploymentSpec, Error, Kind, OnPoison, Phase, Registry, StartAt};
use crate::log::{Commit, LogKind, TopicChange, TopicFormat, TopicState};
use crate::plugin::{Plugin, check_config};
use crate::types::{Digest, GenerationNumber, Offset, PartitionId, TopicName};

/// What a new generation is made from.
pub(super) struct Draft<'a> {
    pub plugin: &'a Arc<Plugin>,
    pub digest: Digest,
    pub config: serde_json::Value,
    pub from: StartAt,
    pub approve: Approve,
    pub reason: Option<String>,
    pub phase: Phase,
}

impl Registry {
    /// A deployment's plugin by the digest in its file.
    pub(super) fn plugin_of(&self, digest: &str) -> Result<(Digest, Arc<Plugin>), Error> {
        let digest: Digest = digest.parse().map_err(|e| {
            let message = format!("plugin: {e}; push the file first and give its digest");
            Error::new(Kind::Invalid, "invalid_digest", message)
        })?;
        Ok((digest, self.load_plugin(&digest)?))
    }

    /// Whether plugin and deployment fit: outputs, config, limits.
    pub(super) fn check_fit(
        &self,
        spec: &DeploymentSpec,
        plugin: &Plugin,
        config: &serde_json::Value,
    ) -> Result<(), Error> {
        let description = plugin.description();
        let invalid = |code, message: String| Error::new(Kind::Invalid, code, message);
        let declared: BTreeSet<&str> =
            description.outputs.iter().map(|o| o.name.as_str()).collect();
        let mapped: BTreeSet<&str> = spec.outputs.keys().map(String::as_str).collect();
        if let Some(name) = mapped.difference(&declared).next() {
            let known: Vec<_> = declared.iter().copied().collect();
            return Err(invalid(
                "output_unknown",
                format!(
                    "[outputs] {name}: plugin {} has no such output; it has: {}",
                    description.name,
                    known.join(", ")
                ),
            ));
        }
        if let Some(name) = declared.difference(&mapped).next() {
            return Err(invalid(
                "output_unmapped",
                format!(
                    "plugin {} has an output {name} without a topic: add `{name} = \"…\"` to [outputs]",
                    description.name
                ),
            ));
        }
        check_config_size(config)?;
        if let Some(schema) = &description.config {
            check_config(schema, config)
                .map_err(|e| invalid("invalid_config", format!("[config]: {e}")))?;
        }
        parse_limits(&spec.limits)?;
        Ok(())
    }

    /// Where a generation begins: for each task, the offset in each input.
    pub(super) fn start_offsets(
        &self,
        spec: &DeploymentSpec,
        tasks: u32,
        from: StartAt,
    ) -> Result<Vec<Vec<Offset>>, Error> {
        let inputs = spec.inputs.iter().map(|name| topic(&self.inner.log, name));
        let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
        let start = |partition: u32| {
            let of_topic = |topic: &Arc<crate::log::Topic>| {
                let Some(partition) = topic.partition(PartitionId(partition)) else {
                    return Ok(Offset::ZERO);
                };
                let (start, end) = (partition.start_offset(), partition.end_offset());
                match from {
                    StartAt::Earliest => Ok(start),
                    StartAt::Time(ms) => partition
                        .offset_for_time(ms)
                        .map_err(|e| Error::new(Kind::Internal, "cannot_read", e.to_string())),
                    StartAt::Offset(offset) if (start.0..=end.0).contains(&offset) => {
                        Ok(Offset(offset))
                    }
                    StartAt::Offset(offset) => {
                        let message = format!(
                            "topic {} partition {}: offset {offset} is out of range; it has {start} to {end}",
                            topic.state().name,
                            partition.id()
                        );
                        Err(Error::new(Kind::Invalid, "offset_out_of_range", message))
                    }
                }
            };
            inputs.iter().map(of_topic).collect::<Result<Vec<_>, _>>()
        };
        (0..tasks).map(start).collect()
    }

    /// A generation with its logs, which `commit` creates.
    pub(super) fn draft_generation(
        &self,
        commit: &mut Commit,
        record: &DeploymentRecord,
        draft: Draft<'_>,
    ) -> Result<GenerationRecord, Error> {
        let number = record.next;
        let owner = format!("{} generation {number}", record.name());
        let parent = (number.0 > 1).then_some(record.live);
        let mut log_for = |output: &str, name: &TopicName| -> Result<OutputLog, Error> {
            let partitions = match self.inner.log.topics().get(name) {
                Some(topic) => topic.state().partitions,
                None => record.tasks,
            };
            let what = format!("{owner} output {output}");
            let log = self.new_log(commit, LogKind::Outputs, partitions, what);
            Ok(OutputLog { output: output.to_owned(), topic: name.clone(), log, partitions })
        };
        let outputs = record.spec.outputs.iter().map(|(output, name)| log_for(output, name));
        let outputs = outputs.collect::<Result<Vec<_>, _>>()?;
        let dead_letters = record.dead_letters.as_ref();
        let dead_letters = dead_letters.map(|name| log_for("dead-letters", name)).transpose()?;
        let changelog =
            self.new_log(commit, LogKind::Changelog, record.tasks, format!("{owner} changelog"));
        let journal =
            self.new_log(commit, LogKind::Journal, record.tasks, format!("{owner} journal"));
        let description = draft.plugin.description();
        Ok(GenerationRecord {
            number,
            plugin: draft.digest,
            plugin_name: description.name.clone(),
            plugin_version: description.version.clone(),
            config: draft.config,
            limits: record.spec.limits.clone(),
            engine: env!("CARGO_PKG_VERSION").to_owned(),
            parent,
            from: draft.from.into(),
            start: self.start_offsets(&record.spec, record.tasks, draft.from)?,
            phase: draft.phase,
            approve: draft.approve,
            reason: draft.reason,
            failure: None,
            created_ms: self.inner.clock.now_ms(),
            warm_until_ms: None,
            logs: Some(GenerationLogs { outputs, dead_letters, changelog, journal }),
        })
    }

    /// The topics of a new deployment's outputs, mounting its first generation.
    pub(super) fn claim_topics(
        &self,
        commit: &mut Commit,
        record: &DeploymentRecord,
        logs: &GenerationLogs,
    ) -> Result<(), Error> {
        for output in logs.mounted() {
            let name = &output.topic;
            let taken = |why: &str| {
                let message = format!("output topic {name} {why}: choose another name");
                Error::new(Kind::Conflict, "topic_owned", message)
            };
            let first = Some(1);
            let mut state = match self.inner.log.topics().get(name) {
                None => {
                    let id = crate::types::TopicId(self.inner.log.allocate_id());
                    let format = TopicFormat::Json;
                    TopicState::plain(id, name.clone(), format, output.partitions, output.log)
                }
                Some(topic) => {
                    let state = topic.state();
                    if let Some(owner) = &state.owner {
                        return Err(taken(&format!("is an output of deployment {owner}")));
                    }
                    let ends = (0..state.partitions)
                        .filter_map(|p| topic.partition(PartitionId(p)))
                        .map(|p| (p.start_offset(), p.end_offset()))
                        .collect::<Vec<_>>();
                    let empty = ends.iter().all(|(start, end)| start == end);
                    let mut state = (*state).clone();
                    if state.open_mount().generation.is_none() {
                        if !empty {
                            return Err(taken("holds records of producers"));
                        }
                        // A record that is on its way there must be refused, not lost.
                        let log = state.open_mount().log;
                        let ends = ends.iter().enumerate();
                        let end = ends.map(|(p, (_, end))| (log, PartitionId(p as u32), *end));
                        commit.ends.extend(end);
                        commit.deletes.push(log);
                        state.mounts.iter_mut().for_each(|mount| mount.retired = true);
                    }
                    let mount = state.open_mount();
                    let to =
                        mount.base.iter().zip(&ends).map(|(base, (_, end))| Offset(end.0 - base.0));
                    let from = vec![Offset::ZERO; state.partitions as usize];
                    state.swapped(to.collect(), output.log, first, from)
                }
            };
            state.owner = Some(record.name().to_string());
            let change = if state.version == 1 {
                if let Some(mount) = state.mounts.last_mut() {
                    mount.generation = first;
                }
                TopicChange::Create(state)
            } else {
                TopicChange::Put(state)
            };
            commit.topics.push(change);
        }
        Ok(())
    }

    /// Refuses a deployment whose outputs would come back to its inputs.
    pub(super) fn check_cycle(
        &self,
        spec: &DeploymentSpec,
        owned: &[TopicName],
    ) -> Result<(), Error> {
        let deployments = self.inner.deployments.read();
        let edges: Vec<(Vec<TopicName>, Vec<TopicName>, String)> = deployments
            .values()
            .map(|d| {
                let record = &d.state.lock().record;
                let inputs = record.spec.inputs.clone();
                (inputs, record.owned_topics().cloned().collect(), record.name().to_string())
            })
            .collect();
        let mut reached: Vec<(TopicName, String)> =
            owned.iter().map(|t| (t.clone(), format!("{} → {t}", spec.name))).collect();
        let mut seen = BTreeSet::new();
        while let Some((name, path)) = reached.pop() {
            if spec.inputs.contains(&name) {
                let message = format!(
                    "deployment {} would read what it makes: {path} → {}; break the cycle",
                    spec.name, spec.name
                );
                return Err(Error::new(Kind::Invalid, "cycle", message));
            }
            if !seen.insert(name.clone()) {
                continue;
            }
            for (_, outputs, by) in edges.iter().filter(|(inputs, ..)| inputs.contains(&name)) {
                let next = outputs.iter().map(|t| (t.clone(), format!("{path} → {by} → {t}")));
                reached.extend(next);
            }
        }
        Ok(())
    }

    /// The topic of a deployment's dead letters.
    pub(super) fn dead_letter_topic(spec: &DeploymentSpec) -> Result<Option<TopicName>, Error> {
        if spec.on_poison != OnPoison::DeadLetter {
            return Ok(None);
        }
        let name = format!("{}.dead-letters", spec.name);
        name.parse().map(Some).map_err(|_| {
            let message = format!(
                "deployment name {} is too long: its dead letters go to a topic {name}, and topic names have at most 100 letters",
                spec.name
            );
            Error::new(Kind::Invalid, "invalid_name", message)
        })
    }

    /// The first generation's number.
    pub(super) const FIRST: GenerationNumber = GenerationNumber(1);
}
