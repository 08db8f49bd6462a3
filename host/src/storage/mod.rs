//! What is new and what is true: the commit head and catalogue, and the files it lists.
//!
//! [`Storage`] is the head: atomic batches of keys and values, durable in groups. Large immutable
//! things are Arrow IPC files ([`ArrowFile`]) behind [`FileSystem`].
//!
//! **Invariant:** only this module names sled, and only `fs` calls the operating system for files
//! (sled itself does so too, on its own).

mod arrow_block;
mod arrow_file;
mod crash;
mod frame;
mod fs;
#[doc(hidden)]
pub mod fuzz;
mod head;
mod machine;
mod opening;
mod packed;
mod stopper;
mod store;

pub use arrow_block::{claimed_bytes, read_batch};
pub use arrow_file::{
    ArrowFile, ArrowFileError, ArrowFileWriter, Block, INDEX_KEY, TEMPORARY_SUFFIX,
};
pub use crash::crash_point;
pub use fs::{Entry, File, FileSystem, OsFileSystem};
pub use head::{Changes as HeadChanges, Head, See as HeadSee};
pub use machine::{available_memory_bytes, stand_back};
pub use packed::release as release_read_memory;
pub use store::{Error, Storage, WriteBatch};

/// Writes a file whole: under a temporary name, synced, renamed, and the folder synced.
///
/// # Errors
/// When the disk refuses; nothing is left under `path` then.
pub fn write_file(
    fs: &dyn FileSystem,
    path: &std::path::Path,
    bytes: &[u8],
) -> std::io::Result<()> {
    let temporary = path.with_extension("tmp");
    let file = fs.create(&temporary)?;
    file.write_at(bytes, 0)?;
    file.sync()?;
    fs.rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |dir| fs.sync_dir(dir))
}

/// Reads a file whole.
///
/// # Errors
/// When it is not there or cannot be read.
pub fn read_file(fs: &dyn FileSystem, path: &std::path::Path) -> std::io::Result<Vec<u8>> {
    let file = fs.open(path)?;
    let len = usize::try_from(file.len()?).map_err(std::io::Error::other)?;
    let mut bytes = vec![0; len];
    file.read_at(&mut bytes, 0)?;
    Ok(bytes)
}
