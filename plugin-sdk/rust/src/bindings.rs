//! The bindings that wit-bindgen generates from `wit/`, and the host as seen through them.
//!
//! **Invariant:** this is the only module that calls the generated imports. It is public because the
//! `plugin!` macro expands to its `export!`; an author has no need of it.

#![allow(missing_docs)]

wit_bindgen::generate!({
    path: "../../wit",
    world: "column-plugin",
    pub_export_macro: true,
    default_bindings_module: "anabranch_plugin::bindings",
});

pub use anabranch::plugin::headers::HeaderColumn;
pub use anabranch::plugin::state::{OwnEntries, Page};
pub use anabranch::plugin::types::{BytesColumn, Output, Rejection, Run};

/// The real host, for a guest in its sandbox.
#[cfg(target_arch = "wasm32")]
pub(crate) struct Imports;

#[cfg(target_arch = "wasm32")]
impl crate::host::Host for Imports {
    fn headers(&self) -> Option<HeaderColumn> {
        anabranch::plugin::headers::get()
    }

    fn set_headers(&self, output: &str, headers: &HeaderColumn) -> Result<(), String> {
        anabranch::plugin::headers::set(output, headers)
    }

    fn open(&self, store: &str) -> Result<u32, String> {
        anabranch::plugin::state::open(store)
    }

    fn get_many(&self, store: u32, keys: &BytesColumn) -> BytesColumn {
        anabranch::plugin::state::get_many(store, keys)
    }

    fn put_many(&self, store: u32, keys: &BytesColumn, values: &BytesColumn) {
        anabranch::plugin::state::put_many(store, keys, values);
    }

    fn delete_many(&self, store: u32, keys: &BytesColumn) {
        anabranch::plugin::state::delete_many(store, keys);
    }

    fn get_own(&self, store: u32, _: &BytesColumn, _: bool) -> OwnEntries {
        anabranch::plugin::state::get_own(store)
    }

    fn put_own(&self, store: u32, entries: &[u32], values: &BytesColumn) {
        anabranch::plugin::state::put_own(store, entries, values);
    }

    fn scan(&self, store: u32, start: &[u8], end: Option<&[u8]>, limit: u32) -> Page {
        anabranch::plugin::state::scan(store, start, end, limit)
    }

    fn time_before_batch(&self) -> Option<i64> {
        anabranch::plugin::stream_time::before_batch()
    }

    fn seed(&self) -> u64 {
        anabranch::plugin::stream_time::seed()
    }

    fn log(&self, level: crate::Level, message: &str) {
        use anabranch::plugin::log::Level;
        let level = match level {
            crate::Level::Debug => Level::Debug,
            crate::Level::Info => Level::Info,
            crate::Level::Warn => Level::Warn,
            crate::Level::Error => Level::Error,
        };
        anabranch::plugin::log::write(level, message);
    }

    fn add(&self, counter: &str, delta: u64) {
        anabranch::plugin::metrics::add(counter, delta);
    }

    fn set(&self, gauge: &str, value: f64) {
        anabranch::plugin::metrics::set(gauge, value);
    }
}
