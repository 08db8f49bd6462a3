//! The whole host, with real components.
mod smoke;
