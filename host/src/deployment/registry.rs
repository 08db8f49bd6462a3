//! The host's one front: everything that HTTP and the command line can ask for.
#![allow(missing_docs, unused_variables)] // being written: signatures first

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    DeploymentSpec, DeploymentStatus, Error, Event, PluginStatus, StoreAnswer, StoreEntry,
    StorePage, StoreStatus, SwapRequest, SwapStarted, TopicStatus,
};
use crate::config::Config;
use crate::types::{Digest, Offset, PartitionId, Records, TopicName};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateTopic {
    #[serde(default = "one")]
    pub partitions: u32,
    /// json, utf8 or bytes
    #[serde(default = "json")]
    pub format: String,
    /// recorded, not yet enforced
    #[serde(default)]
    #[schema(value_type = Object)]
    pub retention: Option<serde_json::Value>,
}
fn one() -> u32 {
    1
}
fn json() -> String {
    "json".into()
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Produced {
    pub appended: u64,
    /// partition -> next_offset after this append
    pub partitions: BTreeMap<u32, u64>,
}

pub struct StoreQuery {
    pub generation: Option<u32>,
    pub partition: Option<u32>,
    pub key: String,
}
pub struct StoreScan {
    pub generation: Option<u32>,
    pub partition: Option<u32>,
    pub prefix: Option<String>,
    pub start: Option<String>,
    pub end: Option<String>,
    pub limit: usize,
    pub cursor: Option<String>,
}

/// Cheap to clone. Calls block unless said otherwise: async callers use spawn_blocking.
#[derive(Clone)]
pub struct Registry {}

impl Registry {
    /// Opens the data directory and starts log, workers and all deployments (none with `safe`).
    pub fn open(config: &Config, safe: bool) -> Result<Self, Error> {
        todo!()
    }
    /// Drains tasks, checkpoints, closes. Idempotent.
    pub fn close(&self) -> Result<(), Error> {
        todo!()
    }
    /// Err says why not (stopping, storage failed).
    pub fn ready(&self) -> Result<(), Error> {
        todo!()
    }

    pub fn create_topic(
        &self,
        name: &TopicName,
        options: &CreateTopic,
    ) -> Result<TopicStatus, Error> {
        todo!()
    }
    pub fn topic(&self, name: &TopicName) -> Result<TopicStatus, Error> {
        todo!()
    }
    pub fn topics(&self) -> Vec<TopicStatus> {
        todo!()
    }
    pub fn delete_topic(&self, name: &TopicName) -> Result<(), Error> {
        todo!()
    }

    /// Appends records; `partitions` has one entry a record where the producer chose one. Async: the
    /// callback is called once durable, on the committer thread.
    pub fn produce(
        &self,
        topic: &TopicName,
        records: Records,
        partitions: Option<Vec<Option<PartitionId>>>,
        done: Box<dyn FnOnce(Result<Produced, Error>) + Send>,
    ) {
        todo!()
    }
    // reading goes through log::Topic / TopicReader:
    // pub fn topic_handle(&self, name: &TopicName) -> Result<Arc<log::Topic>, Error>

    pub fn push_plugin(&self, bytes: &[u8]) -> Result<PluginStatus, Error> {
        todo!()
    }
    pub fn plugins(&self) -> Vec<PluginStatus> {
        todo!()
    }
    pub fn plugin(&self, digest: &Digest) -> Result<PluginStatus, Error> {
        todo!()
    }

    /// PUT: creates; the same spec again is a no-op; another spec is a conflict that says to swap.
    pub fn deploy(&self, spec: &DeploymentSpec) -> Result<DeploymentStatus, Error> {
        todo!()
    }
    pub fn deployment(&self, name: &str) -> Result<DeploymentStatus, Error> {
        todo!()
    }
    pub fn deployments(&self) -> Vec<DeploymentStatus> {
        todo!()
    }
    pub fn delete_deployment(&self, name: &str) -> Result<(), Error> {
        todo!()
    }
    pub fn swap(&self, name: &str, request: &SwapRequest) -> Result<SwapStarted, Error> {
        todo!()
    }
    pub fn promote(&self, name: &str) -> Result<DeploymentStatus, Error> {
        todo!()
    }
    pub fn reject(&self, name: &str) -> Result<DeploymentStatus, Error> {
        todo!()
    }
    pub fn cancel(&self, name: &str) -> Result<DeploymentStatus, Error> {
        todo!()
    }
    pub fn rollback(&self, name: &str) -> Result<DeploymentStatus, Error> {
        todo!()
    }
    pub fn pause(&self, name: &str) -> Result<DeploymentStatus, Error> {
        todo!()
    }
    pub fn resume(&self, name: &str) -> Result<DeploymentStatus, Error> {
        todo!()
    }

    pub fn stores(&self, deployment: &str) -> Result<Vec<StoreStatus>, Error> {
        todo!()
    }
    pub fn store_get(
        &self,
        deployment: &str,
        store: &str,
        query: &StoreQuery,
    ) -> Result<StoreAnswer<StoreEntry>, Error> {
        todo!()
    }
    pub fn store_scan(
        &self,
        deployment: &str,
        store: &str,
        scan: &StoreScan,
    ) -> Result<StoreAnswer<StorePage>, Error> {
        todo!()
    }

    pub fn subscribe_events(&self) -> tokio::sync::broadcast::Receiver<Arc<Event>> {
        todo!()
    }
    /// Events after `id` that are still remembered, for Last-Event-ID.
    pub fn events_after(&self, id: u64) -> Vec<Arc<Event>> {
        todo!()
    }

    /// The text of `/metrics`.
    pub fn metrics(&self) -> String {
        todo!()
    }
}
