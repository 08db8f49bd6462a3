//! Anabranch: a stream processing host whose transforms are WebAssembly plugins.
//!
//! ARCHITECTURE.md leads through the modules; each of them says what it owns. Imports go down only:
//! `server` > `deployment` > `task` > `log` | `state` | `plugin` > `storage` > `types`, `clock`,
//! `config`.
#![warn(missing_docs)]

pub mod cli;
pub mod clock;
pub mod config;
pub mod deployment;
pub mod log;
pub mod plugin;
pub mod server;
pub mod state;
pub mod storage;
pub mod task;
pub mod types;
