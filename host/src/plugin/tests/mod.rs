//! Tests of the sandbox with real guests, which `tests/fixtures/` holds.
//!
//! **Invariant:** a guest that is not built fails the test and names the command; nothing is skipped.

mod admission;
mod examples;
mod limits;
mod measure;
mod results;
mod state;
mod support;
