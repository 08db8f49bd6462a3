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
mod error;
mod examine;
mod frame;
mod fs;
#[doc(hidden)]
pub mod fuzz;
mod head;
mod head_copy;
mod high_water;
#[doc(hidden)]
pub mod lz4;
mod machine;
mod memory;
mod numbers;
mod opening;
mod packed;
mod repair;
mod stopper;
mod store;
mod watch;

pub use arrow_block::{Column, claimed_bytes, read_batch};
pub use arrow_file::{
    ArrowFile, ArrowFileError, ArrowFileWriter, Block, INDEX_KEY, Pace, TEMPORARY_SUFFIX,
};
pub use crash::{crash_point, warn_of_tests};
pub use error::Error;
pub use examine::{Examined, Flaw, HeadExam, list_folder};
pub use fs::{Entry, File, FileSystem, OsFileSystem, create_dir};
pub use head::{Changes as HeadChanges, Head, See as HeadSee};
pub use head_copy::{
    AboutHead, FileSum, HEAD_COPY, read_about_head, read_head_copy, write_head_copy,
};
pub use machine::{
    Niceness, ThreadNumber, available_memory_bytes, keep_files_private, return_free_memory,
    stand_back,
};
pub use repair::{
    Entries, create_head, finish as finish_repair, is_pending as repair_is_pending,
    not_replaceable, remove_folder, replace_head, restoring,
};
pub use store::{Storage, WriteBatch};

/// Gives back the memory that files are read into and written from: for whoever has read to the end.
pub fn release_memory() {
    packed::sweep();
    memory::clear();
    arrow_block::BlockWriter::clear();
}

/// Moves what nobody knows, or what is broken, into the folder `quarantine`, as `name` and a number: nothing
/// that is there already is replaced.
///
/// # Errors
/// When the disk refuses; it stays where it was then.
pub fn set_aside(
    fs: &dyn FileSystem,
    from: &std::path::Path,
    quarantine: &std::path::Path,
    name: &str,
) -> Result<std::path::PathBuf, Error> {
    fs.create_dir_all(quarantine).map_err(Error::io("create", quarantine))?;
    let taken = fs.list(quarantine).map_err(Error::io("list", quarantine))?;
    let free = |name: &String| !taken.iter().any(|entry| entry.name == *name);
    // One name more than there are entries.
    let mut names = (0..=taken.len()).map(|n| format!("{name}.{n}"));
    let to = quarantine.join(names.find(free).expect("a name is left"));
    fs.rename(from, &to).map_err(Error::io("move", from))?;
    Ok(to)
}

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

/// Bytes that are read and written at once by [`copy_file`].
const COPY_BYTES: usize = 1 << 20;

/// Length and crc32c of a file; `each` is told of bytes as they are read.
///
/// # Errors
/// When it is not there or cannot be read.
pub fn sum_file(
    fs: &dyn FileSystem,
    path: &std::path::Path,
    each: &mut dyn FnMut(u64),
) -> std::io::Result<(u64, u32)> {
    read_through(&*fs.open(path)?, each, |_, _| Ok(()))
}

/// Copies a file: under a temporary name, synced, then renamed; the folder is not synced. Returns its
/// length and crc32c; `each` is told of bytes as they are copied.
///
/// # Errors
/// When the disk refuses; nothing is left under `to` then.
pub fn copy_file(
    fs: &dyn FileSystem,
    from: &dyn File,
    to: &std::path::Path,
    each: &mut dyn FnMut(u64),
) -> std::io::Result<(u64, u32)> {
    let mut temporary = to.as_os_str().to_owned();
    temporary.push(TEMPORARY_SUFFIX);
    let temporary = std::path::PathBuf::from(temporary);
    let target = fs.create(&temporary)?;
    let sum = read_through(from, each, |bytes, at| target.write_at(bytes, at))?;
    target.sync()?;
    fs.rename(&temporary, to)?;
    Ok(sum)
}

fn read_through(
    file: &dyn File,
    each: &mut dyn FnMut(u64),
    mut hand_on: impl FnMut(&[u8], u64) -> std::io::Result<()>,
) -> std::io::Result<(u64, u32)> {
    let length = file.len()?;
    let (mut at, mut crc) = (0, 0);
    let mut buffer = vec![0; COPY_BYTES.min(length as usize)];
    while at < length {
        let part = (length - at).min(COPY_BYTES as u64) as usize;
        file.read_at(&mut buffer[..part], at)?;
        crc = crc32c::crc32c_append(crc, &buffer[..part]);
        hand_on(&buffer[..part], at)?;
        at += part as u64;
        each(part as u64);
    }
    Ok((length, crc))
}
