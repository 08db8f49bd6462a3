//! Plugins: WebAssembly components in a sandbox, from the bytes that were pushed to checked columns.
//!
//! [`Runtime::admit`] decides whether bytes are a plugin; [`Runtime::load`] compiles one;
//! [`Plugin::instantiate`] starts it and [`Instance::process`] hands it a batch. `task` builds on
//! this: it owns the batches, the overlay behind [`StateAccess`], the halving and the policies.
//!
//! **Invariant:** this is the only place that names wasmtime. Nothing that a guest returns leaves
//! this module unchecked, and nothing a guest does costs more than its [`Limits`]. The module knows
//! neither the log nor the state stores.

mod admit;
mod cache;
mod call;
mod columns;
mod compile;
mod contract;
mod description;
mod engine;
#[doc(hidden)]
pub mod fuzz;
mod imports;
mod instance;
mod limits;
#[cfg(feature = "native")]
pub mod native;
mod rows;
mod schema;
#[cfg(test)]
mod tests;

pub use admit::{Admitted, Refusal};
pub use call::{
    AccessError, CallError, CallOutput, Fault, Input, Level, Metric, MetricChange, OutputColumns,
    Page, Run, StateAccess,
};
pub use compile::{ChildLimits, CompileError, SUBCOMMAND, Work, child};
pub use description::{
    Description, DescriptionError, KeyPart, OutputDeclaration, OutputKind, StoreDeclaration,
    ValueFormat,
};
pub use engine::{Error, Plugin, Runtime};
pub use imports::steers;
pub use instance::Instance;
pub use limits::{Cancel, Limits};
pub use schema::{SchemaError, check_config};
