//! The command line: a client of a host for everything but `serve`, and the tools of an operator
//! whose host is stopped.
//!
//! [`Cli`] says what can be said, [`run`] does it. Commands talk to the host over HTTP only; what
//! they share with it are the shapes of requests and answers. Only `recovery` opens a data directory.
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
mod recovery;
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
