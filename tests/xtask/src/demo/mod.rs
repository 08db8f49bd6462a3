//! `cargo xtask demo`: January's flights through a plugin that is swapped while they stream.
//!
//! It works as a user would, with the `anabranch` binary alone, and compares every figure that the
//! host gives with a plain computation of its own.
//!
//! **Invariant:** no figure is compared before the host has read all that it is compared with, so
//! the outcome does not depend on how fast anything is.

mod flights;
mod host;
mod rows;
mod story;
mod tables;

pub use story::run;
