//! The HTTP surface and the life of a serving host.
//!
//! Connections are accepted and secured within limits (`connection`, `tls`, `rates`, `patience`). A
//! request passes the layers (`layers`: id, who asks, gate, problems) and what its route declares
//! (`access`), its input is taken by extractors that refuse what they do not know (`extract`), and its
//! handler asks the registry. Records are read from the log's topics directly (`fetch`); everything else
//! is the registry's to answer.
//!
//! **Invariant:** this floor keeps no state of its own but what a connection needs; it never blocks
//! an async thread.

mod access;
mod app;
mod backups;
mod connection;
mod deployments;
mod extract;
mod fetch;
#[doc(hidden)]
pub mod fuzz;
mod layers;
mod operations;
mod patience;
mod plugins;
mod problem;
mod rates;
mod records;
mod router;
mod serve;
mod stores;
mod stream;
mod tls;
mod tokens;
mod topics;

pub use serve::{Error, serve};
