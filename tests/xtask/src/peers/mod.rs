//! `cargo xtask bench-peers`: systems that a user would pick instead, on the same records and machine.
//!
//! It installs and builds what it needs below `target/peers` (from tests/peers), measures each system on
//! each job, and puts Anabranch's replay beside them. host/docs/performance.md says what is unequal.
//!
//! **Invariant:** no process that it started outlives it, however it ends ([`child`]), and each has a
//! time limit.

mod anabranch;
mod arguments;
mod bars;
mod child;
mod command;
mod jvm;
mod local;
mod report;

pub use arguments::{Arguments, USAGE};
pub use command::run;
