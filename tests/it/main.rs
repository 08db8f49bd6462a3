//! The whole host, with real components.
mod bad_input;
mod host;
mod serving;
mod smoke;
