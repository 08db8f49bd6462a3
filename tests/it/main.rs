//! The whole host, with real components: each module tests one promise.

mod floors;
mod properties;
mod support;
