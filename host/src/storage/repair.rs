//! Putting a new head in the place of a damaged one.
//!
//! The new head is made whole below `repair.tmp`, renamed to `repair`, and then its parts are moved into
//! place; the old head goes to quarantine. While `repair` is there, no host opens the directory, and
//! [`finish`] takes the moving up where it ended.
//!
//! A restore makes a data directory in the same way, beside its target ([`restoring`]); while that is
//! there and the target is not, no host begins a new store in its place.
//!
//! **Invariant:** a process that is ended at any point leaves the old head in its place, or a repair
//! that can be finished. The old head is never deleted.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::crash::crash_point;
use super::error::Error;
use super::fs::{CHANGE, FileSystem};
use super::opening::OLD;
use super::set_aside;
use super::store::{Storage, WriteBatch};

const FINISHED: &str = "repair";
const UNFINISHED: &str = "repair.tmp";
/// Ends the name of a data directory that is being restored.
const RESTORING: &str = ".anabranch-restoring";
/// Bytes of one batch of a head that is being made.
const BATCH_BYTES: usize = 1 << 20;

/// Keys and values of a head.
pub type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

/// Whether a repair was begun and must be finished.
///
/// # Errors
/// When the directory cannot be looked at.
pub fn is_pending(dir: &Path, fs: &dyn FileSystem) -> Result<bool, Error> {
    is_folder(&dir.join(FINISHED), fs)
}

/// Where the data directory `dir` is made when it is restored.
pub fn restoring(dir: &Path) -> PathBuf {
    // Without a slash at its end, if it has one.
    let mut name = dir.components().collect::<PathBuf>().into_os_string();
    name.push(RESTORING);
    name.into()
}

/// Refuses a directory that is not there, or holds no store, because its restore did not come to its end.
pub(super) fn refuse_unfinished_restore(dir: &Path, fs: &dyn FileSystem) -> Result<(), Error> {
    let unfinished = restoring(dir);
    if !is_folder(&unfinished, fs)? || is_there(&dir.join("format"))? {
        return Ok(());
    }
    Err(Error::Restoring { dir: dir.to_owned(), unfinished })
}

fn is_folder(path: &Path, fs: &dyn FileSystem) -> Result<bool, Error> {
    match fs.list(path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io("list", path)(e)),
    }
}

/// Why the empty folder `path` cannot be replaced by another in one step, if so.
///
/// # Errors
/// When it cannot be looked at.
pub fn not_replaceable(path: &Path) -> io::Result<Option<&'static str>> {
    let about = std::fs::symlink_metadata(path)?;
    if about.is_symlink() {
        return Ok(Some("a link"));
    }
    let above = std::fs::metadata(path.join(".."))?;
    Ok((above.dev() != about.dev()).then_some("a mount point"))
}

/// Makes a data directory at `dir`, which has no head, of a store that was before: durable.
///
/// # Errors
/// When the disk refuses.
pub fn create_head(
    dir: &Path,
    fs: &Arc<dyn FileSystem>,
    store_id: u64,
    sequence: u64,
    entries: &Entries,
) -> Result<(), Error> {
    let storage = Storage::create_again(dir, fs, store_id, sequence)?;
    let (mut batch, mut bytes) = (WriteBatch::default(), 0);
    for (key, value) in entries {
        bytes += key.len() + value.len();
        batch.put(key.as_slice(), value.as_slice());
        if bytes >= BATCH_BYTES {
            storage.apply(std::mem::take(&mut batch))?;
            bytes = 0;
        }
    }
    storage.apply(batch)?;
    storage.close()
}

/// Makes a new head for `dir` and puts it in place; the old one goes to quarantine. Returns its name
/// there, if there was one.
///
/// # Errors
/// When the disk refuses.
pub fn replace_head(
    dir: &Path,
    fs: &Arc<dyn FileSystem>,
    store_id: u64,
    sequence: u64,
    entries: &Entries,
) -> Result<Option<String>, Error> {
    let (unfinished, finished) = (dir.join(UNFINISHED), dir.join(FINISHED));
    remove_folder(&unfinished)?;
    create_head(&unfinished, fs, store_id, sequence, entries)?;
    fs.sync_dir(&unfinished).map_err(Error::io("sync", &unfinished))?;
    fs.rename(&unfinished, &finished).map_err(Error::io("rename", &unfinished))?;
    fs.sync_dir(dir).map_err(Error::io("sync", dir))?;
    finish(dir, fs.as_ref())
}

/// Moves the parts of a finished repair into place; what was moved before is left alone. Returns the
/// name of the old head in quarantine, if it was moved there now.
///
/// # Errors
/// When the disk refuses.
pub fn finish(dir: &Path, fs: &dyn FileSystem) -> Result<Option<String>, Error> {
    let (finished, head) = (dir.join(FINISHED), dir.join("head"));
    let mut set_aside = None;
    if is_there(&finished.join("head"))? {
        // The next start would take the original of a start that was refused for the head.
        for old in [head.clone(), dir.join(OLD)] {
            if is_there(&old)? {
                set_aside = Some(quarantine_head(dir, fs, &old)?);
            }
        }
        let from = finished.join("head");
        fs.rename(&from, &head).map_err(Error::io("move", &from))?;
    }
    for name in ["high-water", "format"] {
        let from = finished.join(name);
        if is_there(&from)? {
            fs.rename(&from, &dir.join(name)).map_err(Error::io("move", &from))?;
        }
    }
    // A name that moves from one folder to another is sure of its place when both are synced.
    for folder in [dir, &finished] {
        fs.sync_dir(folder).map_err(Error::io("sync", folder))?;
    }
    remove_folder(&finished)?;
    fs.sync_dir(dir).map_err(Error::io("sync", dir))?;
    Ok(set_aside)
}

/// Moves a head to quarantine; returns its name there.
fn quarantine_head(dir: &Path, fs: &dyn FileSystem, head: &Path) -> Result<String, Error> {
    let quarantine = dir.join("quarantine");
    let to = set_aside(fs, head, &quarantine, "head")?;
    fs.sync_dir(&quarantine).map_err(Error::io("sync", &quarantine))?;
    Ok(to.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default())
}

fn is_there(path: &Path) -> Result<bool, Error> {
    path.try_exists().map_err(Error::io("look for", path))
}

/// Removes a folder of this host's own making with all that is in it.
pub fn remove_folder(path: &Path) -> Result<(), Error> {
    crash_point(CHANGE);
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}
