//! Deployments: what runs which plugin over which topics, in which generation.

mod error;
mod registry;
mod spec;
mod status;

pub use error::{Error, Kind};
pub use registry::{CreateTopic, Produced, Registry, StoreQuery, StoreScan};
pub use spec::{Approve, DeploymentSpec, OnPoison, StartAt, StateFrom, SwapRequest, SwapSpec};
pub use status::*;
