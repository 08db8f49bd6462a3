//! The command line: a client of a host for everything but `serve`.
//!
//! [`Cli`] says what can be said, [`run`] does it. Commands talk to the host over HTTP only; what
//! they share with it are the shapes of requests and answers.
//!
//! **Invariant:** results go to standard output, everything else (progress, notes, errors) to
//! standard error; with `--json` each result is one line of JSON.

mod args;
mod batches;
mod bench;
mod client;
mod commands;
mod consume;
mod follow;
mod print;
mod produce;
mod progress;
mod token;

pub use args::{Bench as BenchArgs, Cli, Command, CompilePlugin, Serve};
#[cfg(feature = "native")]
pub use bench::guest_dir;
#[cfg(feature = "native")]
pub use bench::sandbox::SandboxCall;
pub use client::Error;
pub use commands::run;
#[cfg(feature = "native")]
pub use commands::sandbox;
