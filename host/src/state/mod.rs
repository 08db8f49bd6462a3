//! Keyed stores: the working set of a task in memory, the changes of a call, and the files that make
//! a restart short.
//!
//! A task owns one [`StoreSet`]. A plugin's call reads through an [`Overlay`], which takes effect only
//! if the call succeeds; what took effect since the last commit goes to the task's changelog. A
//! [`checkpoint`] is the state at a position of the changelog, in a file, made of the one before and
//! the [`Changes`] since; a restart loads the newest and applies the rest of the changelog.
//!
//! **Invariant:** the state of a task is a function of its changelog alone. Nothing here knows the log
//! that holds it, the plugin that writes it, or a clock.

mod changes;
pub mod checkpoint;
mod overlay;
mod own_keys;
mod prefetch;
mod row_index;
mod store;

pub use changes::{ChangeError, Changes, changelog_key};
pub use overlay::Overlay;
pub use store::{Page, PageLimit, StoreSet};
