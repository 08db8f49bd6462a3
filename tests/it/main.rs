//! The whole host, with real components: each module tests one promise.

mod access;
mod arrow;
mod backup;
mod bad_input;
mod crash;
mod floors;
mod fuzz;
mod golden;
mod hostile;
mod interrupted;
mod properties;
mod recovery;
mod serving;
mod support;
mod swap;
