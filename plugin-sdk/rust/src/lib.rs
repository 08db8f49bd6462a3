//! Write Anabranch plugins in Rust.
//!
//! A plugin is a type that implements [`Plugin`]: `new` declares its stores and outputs, `process`
//! takes one record. State and outputs are typed through serde and look like plain calls; underneath
//! they are batched, so that a batch of thousands of records crosses the sandbox's boundary a few times.
//!
//! ```
//! use anabranch_plugin::{Output, Plugin, Record, Result, Setup, Store, plugin};
//!
//! struct Count {
//!     counts: Store<String, i64>,
//!     updates: Output<String, i64>,
//! }
//!
//! impl Plugin for Count {
//!     fn new(setup: &mut Setup) -> Result<Self> {
//!         // Counting looks at keys alone.
//!         setup.ignore_values();
//!         Ok(Self { counts: setup.store("counts"), updates: setup.table("counts") })
//!     }
//!
//!     fn process(&self, record: &Record) -> Result<()> {
//!         let key = record.key_str()?;
//!         let count = self.counts.update(key, |count| *count += 1)?;
//!         self.updates.send(key, count)
//!     }
//! }
//!
//! plugin!(Count);
//!
//! use anabranch_plugin::testing::{TestDriver, record};
//! let mut driver = TestDriver::<Count>::new(serde_json::json!({})).unwrap();
//! driver.send(record("AA", "{}"));
//! driver.send(record("AA", "{}"));
//! assert_eq!(driver.store::<String, i64>("counts"), [("AA".to_owned(), 2)]);
//! ```
//!
//! **Invariant:** a record that `process` refuses with an error has had no effect on stores or outputs.
//! **Invariant:** nothing here depends on where the host cuts batches. **Invariant:** only `bindings`
//! knows the generated code's calls; all else speaks to the host through one trait, which tests replace.

#![warn(missing_docs)]

mod batch;
pub mod bindings;
mod call;
mod column;
mod error;
mod format;
mod host;
mod instance;
mod json;
mod key;
mod metrics;
#[cfg(not(target_arch = "wasm32"))]
#[doc(hidden)]
pub mod native;
mod output;
mod plugin;
mod setup;
mod store;
mod store_cache;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;

pub use batch::{Batch, HeaderIter, Random, Record};
pub use column::Column;
pub use error::{Error, Result};
pub use format::{Format, Json};
pub use host::{Level, log};
pub use key::Key;
pub use metrics::{Counter, Gauge};
pub use output::{Options, Output};
pub use plugin::Plugin;
pub use setup::Setup;
pub use store::{Scan, Store};

#[doc(hidden)]
pub mod __private {
    //! What the `plugin!` macro expands to; not for use by hand.
    pub use crate::instance::{Slot, describe};
}
