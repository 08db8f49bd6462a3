//! Anabranch: a stream processing host whose transforms are WebAssembly plugins.
#![warn(missing_docs)]
pub mod clock;
pub mod plugin;
pub mod types;
