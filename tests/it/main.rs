//! The whole host, with real components: each module tests one promise.

mod properties;
mod support;
