//! What the catalogue keeps of a deployment: one value, so that a flip is one write.

use serde::{Deserialize, Serialize};

use super::{Approve, DeploymentSpec, Phase};
use crate::types::{
    DeploymentId, DeploymentName, Digest, GenerationId, GenerationNumber, LogId, Offset, TopicName,
};

/// A deployment, as it stands in the catalogue under `d` and its id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeploymentRecord {
    /// Never used again.
    pub id: DeploymentId,
    /// What the user asked for; plugin and config of the live generation.
    pub spec: DeploymentSpec,
    /// The live generation.
    pub live: GenerationNumber,
    /// Whether the live tasks are held.
    pub paused: bool,
    /// The number of the next generation.
    pub next: GenerationNumber,
    /// Source partitions: one task each.
    pub tasks: u32,
    /// The topic of dead letters, if the policy makes any.
    pub dead_letters: Option<TopicName>,
    /// Records a second of the last replay, for estimates.
    pub replay_rate: Option<f64>,
    /// Oldest first.
    pub generations: Vec<GenerationRecord>,
}

/// A generation. Everything but its phase is immutable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerationRecord {
    /// Counted from 1.
    pub number: GenerationNumber,
    /// The plugin.
    pub plugin: Digest,
    /// Its name, as it describes itself.
    pub plugin_name: String,
    /// Its version, as it describes itself.
    pub plugin_version: String,
    /// Handed to `init`.
    pub config: serde_json::Value,
    /// The limits that the user gave.
    pub limits: serde_json::Map<String, serde_json::Value>,
    /// The version of the host that made it.
    pub engine: String,
    /// The generation that was live when it was made.
    pub parent: Option<GenerationNumber>,
    /// Where it began, in the user's words.
    pub from: String,
    /// Where it began: for each task, the offset in each input.
    pub start: Vec<Vec<Offset>>,
    /// Where it is in its life.
    pub phase: Phase,
    /// Whether it goes live by itself.
    pub approve: Approve,
    /// Why it was made.
    pub reason: Option<String>,
    /// Why it failed.
    pub failure: Option<String>,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_ms: i64,
    /// When its warm lease ends.
    pub warm_until_ms: Option<i64>,
    /// Its logs; gone once it is retired.
    pub logs: Option<GenerationLogs>,
}

/// The physical logs of a generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerationLogs {
    /// For each output that the plugin declares, in its order.
    pub outputs: Vec<OutputLog>,
    /// Dead letters.
    pub dead_letters: Option<OutputLog>,
    /// State changes, a partition a task.
    pub changelog: LogId,
    /// What each commit took, a partition a task.
    pub journal: LogId,
}

impl GenerationLogs {
    /// Outputs and dead letters.
    pub fn mounted(&self) -> impl Iterator<Item = &OutputLog> {
        self.outputs.iter().chain(&self.dead_letters)
    }

    /// All logs.
    pub fn all(&self) -> Vec<LogId> {
        let mounted = self.mounted().map(|o| o.log);
        mounted.chain([self.changelog, self.journal]).collect()
    }
}

/// The log behind one output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutputLog {
    /// The output's name.
    pub output: String,
    /// The topic whose name mounts it when the generation is live.
    pub topic: TopicName,
    /// The log.
    pub log: LogId,
    /// Its partitions, those of the topic.
    pub partitions: u32,
}

impl DeploymentRecord {
    /// The catalogue key.
    pub fn key(id: DeploymentId) -> Vec<u8> {
        let mut key = vec![b'd'];
        key.extend_from_slice(&id.0.to_be_bytes());
        key
    }

    /// The bytes that stand in the catalogue.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a record of strings and numbers always encodes")
    }

    /// The deployment's name.
    pub fn name(&self) -> &DeploymentName {
        &self.spec.name
    }

    /// A generation by number.
    pub fn generation(&self, number: GenerationNumber) -> Option<&GenerationRecord> {
        self.generations.iter().find(|g| g.number == number)
    }

    /// A generation by number, to change its phase.
    pub fn generation_mut(&mut self, number: GenerationNumber) -> Option<&mut GenerationRecord> {
        self.generations.iter_mut().find(|g| g.number == number)
    }

    /// The candidate, if a swap is under way.
    pub fn candidate(&self) -> Option<&GenerationRecord> {
        let candidate =
            |g: &&GenerationRecord| matches!(g.phase, Phase::Replaying | Phase::CaughtUp);
        self.generations.iter().find(candidate)
    }

    /// The warm generation whose lease lasts longest: the one that was live before.
    pub fn warm(&self) -> Option<&GenerationRecord> {
        let warm = self.generations.iter().filter(|g| g.phase == Phase::Warm);
        warm.max_by_key(|g| g.warm_until_ms)
    }

    /// The id of a generation.
    pub fn generation_id(&self, number: GenerationNumber) -> GenerationId {
        GenerationId { deployment: self.id, number }
    }

    /// All topics that it owns.
    pub fn owned_topics(&self) -> impl Iterator<Item = &TopicName> {
        self.spec.outputs.values().chain(&self.dead_letters)
    }
}

/// A plugin that was pushed, as it stands in the catalogue under `w` and its digest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PluginRecord {
    /// Digest of the bytes that were pushed.
    pub digest: Digest,
    /// How many they were.
    pub size_bytes: u64,
    /// When, in milliseconds since the Unix epoch.
    pub pushed_ms: i64,
    /// What the plugin says of itself.
    pub description: serde_json::Value,
    /// Digest of the component that was made of those bytes, which is the file. Not there in records of
    /// before it was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub component: Option<Digest>,
}

impl PluginRecord {
    /// What is wrong with `bytes` as the plugin's file, if anything is.
    pub fn fault(&self, bytes: &[u8]) -> Option<&'static str> {
        match self.component {
            Some(digest) if digest != Digest::of(bytes) => {
                Some("it is not the component that was admitted: its digest is another")
            }
            None if !bytes.starts_with(b"\0asm") => Some("it is no WebAssembly"),
            _ => None,
        }
    }

    /// The catalogue key.
    pub fn key(digest: &Digest) -> Vec<u8> {
        let mut key = vec![b'w'];
        key.extend_from_slice(digest.hex().as_bytes());
        key
    }
}
