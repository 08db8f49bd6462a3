//! What the host says of its deployments: the shapes behind `status`, the HTTP surface and events.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::spec::DeploymentSpec;

/// Where a generation is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// A candidate that replays history.
    Replaying,
    /// A candidate that has caught up and waits for approval.
    CaughtUp,
    /// The generation whose outputs are read under the deployment's names.
    Live,
    /// Was live; keeps consuming until its lease ends, so that a rollback is one flip.
    Warm,
    /// Was live once; its stores and outputs are gone.
    Retired,
    /// Stopped by a failure; for a candidate, the live generation never noticed.
    Failed,
    /// A candidate that was called off while replaying.
    Cancelled,
    /// A candidate that was turned down at the gate.
    Rejected,
}

impl Phase {
    /// Whether tasks run in this phase.
    pub fn runs(self) -> bool {
        matches!(self, Self::Replaying | Self::CaughtUp | Self::Live | Self::Warm)
    }
}

/// How far a generation is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// Input records processed and committed by this generation.
    pub records: u64,
    /// Input records still ahead of it: to the live generation's position, or to the end if live.
    pub remaining: u64,
    /// Records a second, over the last seconds.
    pub rate: f64,
    /// Seconds left at that rate; absent when nothing is left or nothing moves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<f64>,
}

/// One task of a generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TaskStatus {
    /// Source partition.
    pub partition: u32,
    /// Next offset to be read from each input, committed.
    pub inputs: Vec<u64>,
    /// `starting`, `running`, `idle`, `held`, `waiting`, `stopped` or `failed`.
    pub state: String,
    /// Why it failed, or what it waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Why it stands back behind the tasks of others, where it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stands_back: Option<String>,
}

/// One generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GenerationStatus {
    /// Counted from 1.
    pub number: u32,
    /// Where it is in its life.
    pub phase: Phase,
    /// Digest of its plugin.
    pub plugin: String,
    /// The plugin's name.
    pub plugin_name: String,
    /// The plugin's version.
    pub plugin_version: String,
    /// The generation that was live when it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<u32>,
    /// Where it began to read: `earliest`, an offset or a time.
    pub from: String,
    /// Why it was made, in its maker's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// When it was made, RFC 3339.
    pub created_at: String,
    /// When its warm lease ends, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_until: Option<String>,
    /// How far it is.
    pub progress: Progress,
    /// Its tasks; empty when none run.
    pub tasks: Vec<TaskStatus>,
}

/// One deployment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeploymentStatus {
    /// Its name.
    pub name: String,
    /// What it was deployed with; the plugin is that of the live generation.
    #[schema(value_type = Object)]
    pub spec: DeploymentSpec,
    /// The live generation.
    pub live: u32,
    /// The candidate, if a swap is under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub candidate: Option<u32>,
    /// The warm generation, to which a rollback goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm: Option<u32>,
    /// Whether it is paused.
    pub paused: bool,
    /// How long the last flip held the live tasks, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_pause_ms: Option<f64>,
    /// All its generations, oldest first.
    pub generations: Vec<GenerationStatus>,
}

/// What a swap is expected to take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Preflight {
    /// Input records to replay.
    pub records: u64,
    /// Bytes of input to replay, before compression.
    pub input_bytes: u64,
    /// Seconds at the rate of the deployment's last replay; absent when there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// Bytes of memory for state, as the live generation holds.
    pub memory_bytes: u64,
    /// Bytes on disk for outputs and state, as the live generation holds.
    pub disk_bytes: u64,
    /// Bytes free on disk.
    pub free_disk_bytes: u64,
}

/// What a swap answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SwapStarted {
    /// The candidate's number.
    pub generation: u32,
    /// What it is expected to take.
    pub preflight: Preflight,
}

/// A plugin that was pushed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PluginStatus {
    /// Digest of the bytes that were pushed.
    pub digest: String,
    /// Its name, as it describes itself.
    pub name: String,
    /// Its version, as it describes itself.
    pub version: String,
    /// The bytes that were pushed.
    pub size_bytes: u64,
    /// When, RFC 3339.
    pub pushed_at: String,
    /// Its own description: stores, outputs, config schema.
    #[schema(value_type = Object)]
    pub description: serde_json::Value,
}

/// A topic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TopicStatus {
    /// Its name.
    pub name: String,
    /// Its id: a topic that is made again under the name has another.
    pub id: u64,
    /// How its keys and values are shown and taken: `json`, `utf8` or `bytes`.
    pub format: String,
    /// The deployment whose output it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The generation that `earliest` reads, for outputs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    /// Its partitions.
    pub partitions: Vec<PartitionStatus>,
}

/// A partition of a topic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PartitionStatus {
    /// Counted from 0.
    pub partition: u32,
    /// Where `earliest` reads.
    pub log_start_offset: u64,
    /// The next offset to be written; everything before it is durable.
    pub end_offset: u64,
    /// Records from start to end.
    pub records: u64,
    /// Bytes that they take.
    pub size_bytes: u64,
}

/// Something that happened to a deployment, as `/v1/events` tells it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Rises with every event, across restarts of the host too.
    pub id: u64,
    /// When, RFC 3339.
    pub at: String,
    /// `deployed`, `swap-started`, `caught-up`, `promoted`, `rolled-back`, `rejected`, `cancelled`,
    /// `failed`, `retired`, `paused`, `resumed` or `deleted`.
    pub kind: String,
    /// The deployment.
    pub deployment: String,
    /// The generation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    /// More, for people.
    pub message: String,
}

/// An answer about state: which generation, and the input offsets that it stands for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StoreAnswer<T> {
    /// The generation whose store this is.
    pub generation: u32,
    /// For each partition that was asked: the next offset of each input.
    pub inputs: Vec<StorePosition>,
    /// The answer.
    #[serde(flatten)]
    pub answer: T,
}

/// What a partition of a store stands for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StorePosition {
    /// The task's source partition.
    pub partition: u32,
    /// The next offset of each input: all before it are in the state.
    pub offsets: Vec<u64>,
}

/// An entry of a store, shown by the store's declared format.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StoreEntry {
    /// The key.
    #[schema(value_type = Object)]
    pub key: serde_json::Value,
    /// The value.
    #[schema(value_type = Object)]
    pub value: serde_json::Value,
    /// The task partition that holds it.
    pub partition: u32,
}

/// A page of a store's entries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StorePage {
    /// Entries, in key order within each partition.
    pub entries: Vec<StoreEntry>,
    /// Ask with this `cursor` for more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// A store, as its plugin declares it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StoreStatus {
    /// Its name.
    pub name: String,
    /// Version of its schema.
    pub version: u32,
    /// Types of its key's parts.
    pub key: Vec<String>,
    /// Format of its values.
    pub value: String,
    /// Entries, over all partitions.
    pub entries: u64,
    /// Bytes of keys and values, over all partitions.
    pub size_bytes: u64,
}
