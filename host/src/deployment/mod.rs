//! Deployments: what runs which plugin over which topics, in which generation.
//!
//! [`Registry`] is the host's one front. Behind it: [`topics`] takes what is produced, [`lifecycle`]
//! changes what is deployed, [`swaps`] which generation is live, [`flip`] is the one atomic step between
//! two, [`controller`] does what is due without being asked, [`running`] holds the tasks, [`plugins`]
//! what they run, [`stores`] and [`view`] answer questions, [`record`] is what the catalogue keeps. [`access`] and [`tokens`] know who may do what, [`audit`] writes it down.

mod access;
mod allowance;
mod audit;
mod backup;
mod consistency;
mod controller;
mod doctor;
mod error;
mod events;
mod exam;
mod flip;
mod generation;
mod guests;
mod head_copies;
mod lifecycle;
mod metrics;
mod plugins;
mod record;
mod registry;
mod restore;
mod running;
mod spec;
mod status;
mod stores;
mod swaps;
mod tokens;
mod topics;
mod view;

pub use access::{Caller, Role, TopicPattern};
pub use allowance::Allowance;
pub use audit::{Audit, AuditEntry};
pub use backup::{BackupStatus, Meter, back_up};
pub use doctor::{Finding, LostRange, Orders, Report, examine};
pub use error::{Error, Kind};
pub use metrics::{HttpMetrics, RefusalLabel};
pub use registry::Registry;
pub use restore::restore;
pub use spec::{Approve, DeploymentSpec, OnPoison, StartAt, StateFrom, SwapRequest, SwapSpec};
pub use status::*;
pub use stores::{StoreQuery, StoreScan};
pub use tokens::{CreateToken, TokenMade, TokenRecord, TokenStatus, claimed_id};
pub use topics::{CreateTopic, PartitionEnd, ProduceDone, Produced};
