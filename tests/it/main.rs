//! The whole host, with real components: each module tests one promise.

mod bad_input;
mod host;
mod properties;
mod serving;
mod support;
