//! Native tests of plugins: records in; outputs, stores, rejections and logs out.
//!
//! The plugin and everything of this crate above the host's boundary is the code that runs in the
//! sandbox; only the host is another.
//!
//! **Invariant:** [`TestDriver`] treats a failing call as the host does: nothing of it stays, the batch is
//! halved and tried in a fresh instance, and a record that fails alone is refused.

mod driver;
mod host;
mod records;

pub use driver::{Outcome, TestDriver, assert_cut_independent};
pub use records::{Bytes, Refused, SentRecord, TestRecord, record};
