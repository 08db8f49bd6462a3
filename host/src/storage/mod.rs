//! What is new and what is true: the commit head and catalogue, and the files it lists.
//!
//! [`Storage`] is the head: atomic batches of keys and values, durable in groups. Large immutable
//! things are Arrow IPC files ([`ArrowFile`]) behind [`FileSystem`].
//!
//! **Invariant:** only this module names sled, and only `fs` calls the operating system for files
//! (sled itself does so too, on its own).

mod arrow_file;
mod frame;
mod fs;
mod store;

pub use arrow_file::{
    ArrowFile, ArrowFileError, ArrowFileWriter, Block, INDEX_KEY, TEMPORARY_SUFFIX,
};
pub use fs::{Entry, File, FileSystem, OsFileSystem};
pub use store::{Error, Storage, WriteBatch};
