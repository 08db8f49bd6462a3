//! What is new and what is true: the commit head and catalogue, and the files it lists.
//!
//! [`Storage`] is the head: atomic batches of keys and values, durable in groups. Large immutable
//! things are files behind [`FileSystem`], Arrow IPC format.
//!
//! **Invariant:** only this module names sled, and only `fs` calls the operating system for files
//! (sled itself does so too, on its own).

mod frame;
mod fs;
mod store;

pub use fs::{Entry, File, FileSystem, OsFileSystem};
pub use store::{Error, Storage, WriteBatch};
