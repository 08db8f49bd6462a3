//! Anabranch: a stream processing host whose transforms are WebAssembly plugins.
//!
//! ARCHITECTURE.md leads through the modules; each of them says what it owns. Imports go down only:
//! `server` > `deployment` > `task` > `log` | `state` | `plugin` > `storage` > `types`, `clock`,
//! `config`.
// Who reads these pages works on the host, and makes them with its private modules.
#![allow(rustdoc::private_intra_doc_links)]
#![warn(missing_docs)]

pub mod cli;
pub mod clock;
pub mod config;
pub mod deployment;
pub mod log;
pub mod plugin;
pub mod server;
#[cfg(test)]
#[path = "../../tests/simulation/mod.rs"]
mod simulation;
pub mod state;
pub mod storage;
pub mod task;
mod threads;
pub mod types;
