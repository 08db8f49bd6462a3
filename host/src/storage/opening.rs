//! Opens sled so that a loss of power at any moment of it loses nothing.
//!
//! sled recovers in place: it reads its log on from the newest snapshot of its page table, writes a new
//! snapshot, and then overwrites with zeros each segment of its log that the snapshot does not need. It
//! never syncs the folder in which the snapshot got its name. If the zeros reach the disk and the name
//! does not, the log ends where the zeros begin, and all is lost. So the snapshot is made from a copy
//! first and given to sled, durable, before sled may touch the log itself.
//!
//! Its settings, too, sled writes once and never syncs, nor the names of its files: that is done here,
//! before anything is acknowledged.
//!
//! **Invariant:** sled never opens a log of more than one segment whose newest snapshot is not durable
//! and complete, but where there is no space for the copy. What is copied is never believed: it is
//! removed at the next start at the latest.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::head::{guarded, sled_error};
use super::store::Error;

/// Cannot be changed for a database that exists. With it, values of 64 KiB stay out of sled's blobs.
const SEGMENT_BYTES: usize = 8 << 20;
const CACHE_BYTES: u64 = 64 << 20;
/// How often, and how long in all, sled's own lock is waited for.
const LOCK_TRIES: u32 = 500;
const LOCK_WAIT: Duration = Duration::from_millis(10);
/// sled's files: its log, its settings, and the names of its snapshots, which rise.
const LOG: &str = "db";
const SETTINGS: &str = "conf";
const SNAPSHOT: &str = "snap.";
/// Ends the name of a snapshot that is being written.
const UNFINISHED: &str = ".generating";
/// Where the copy lies, beside the head.
const COPY: &str = "head.copy";

/// Opens sled in the folder `head`, or creates it.
pub(super) fn open(head: &Path) -> Result<sled::Db, Error> {
    // That file is the last that a new data directory gets: nothing was acknowledged before.
    let is_new = !head.with_file_name("format").exists();
    let copy = head.with_file_name(COPY);
    if copy.exists() {
        std::fs::remove_dir_all(&copy).map_err(Error::io("remove", &copy))?;
    }
    if is_new {
        // A loss of power may have left half of the settings, and sled believes what it finds.
        remove(&head.join(SETTINGS))?;
    }
    // A snapshot that was being written makes sled refuse to open. It is always a copy.
    for name in names(head)?.iter().filter(|name| name.ends_with(UNFINISHED)) {
        remove(&head.join(name))?;
    }
    let log_bytes = std::fs::metadata(head.join(LOG)).map_or(0, |about| about.len());
    if log_bytes > SEGMENT_BYTES as u64 {
        match take_snapshot(head, &copy) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::StorageFull => {
                tracing::warn!(
                    "no space for a copy of {}: until the host is ready a loss of power would damage it",
                    head.display()
                );
                remove_copy(&copy);
            }
            taken => taken?,
        }
    }
    let db = open_sled(head)?;
    if is_new {
        sync(&head.join(SETTINGS))?;
        sync(head)?;
    }
    Ok(db)
}

/// Brings the newest snapshot up to the end of the log, durably, without a change to the log.
fn take_snapshot(head: &Path, copy: &Path) -> Result<(), Error> {
    std::fs::create_dir(copy).map_err(Error::io("create", copy))?;
    let known = snapshots(head)?;
    for name in known.iter().map(String::as_str).chain([LOG, SETTINGS]) {
        let from = head.join(name);
        std::fs::copy(&from, copy.join(name)).map_err(Error::io("copy", &from))?;
    }
    drop(open_sled(copy).map_err(|error| match error {
        // What is wrong with a copy is wrong with what was copied.
        Error::Damaged { detail, .. } => {
            Error::Damaged { place: head.display().to_string(), detail }
        }
        other => other,
    })?);
    if let Some(newest) = snapshots(copy)?.pop().filter(|newest| !known.contains(newest)) {
        let unfinished = head.join(format!("{newest}{UNFINISHED}"));
        std::fs::copy(copy.join(&newest), &unfinished).map_err(Error::io("write", &unfinished))?;
        sync(&unfinished)?;
        let path = head.join(newest);
        std::fs::rename(&unfinished, &path).map_err(Error::io("write", &path))?;
        sync(head)?;
    }
    remove_copy(copy);
    // Older ones, which sled removes only when it writes one itself.
    let all = snapshots(head)?;
    all[..all.len().saturating_sub(1)].iter().try_for_each(|name| remove(&head.join(name)))
}

/// What cannot be removed now is removed at the next start.
fn remove_copy(copy: &Path) {
    if let Err(error) = std::fs::remove_dir_all(copy) {
        tracing::warn!("cannot remove {}: {error}", copy.display());
    }
}

fn open_sled(head: &Path) -> Result<sled::Db, Error> {
    // The directory is this process's alone by now. Who may still hold sled's own lock is a thread of
    // a sled that was just closed here: it lets go by itself, but drop does not wait for it.
    let mut tries_left = LOCK_TRIES;
    loop {
        let opened = guarded(head, || {
            let config = sled::Config::new()
                .path(head)
                .segment_size(SEGMENT_BYTES)
                .cache_capacity(CACHE_BYTES)
                .flush_every_ms(None);
            match config.open() {
                Ok(db) => Ok(Some(db)),
                Err(sled::Error::Io(source)) if is_lock(&source) && tries_left > 0 => Ok(None),
                Err(other) => Err(sled_error("open", head, other)),
            }
        })?;
        if let Some(db) = opened {
            return Ok(db);
        }
        tries_left -= 1;
        std::thread::sleep(LOCK_WAIT);
    }
}

/// Whether sled's file is locked; sled says so in words only.
fn is_lock(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Other && error.to_string().contains("acquire lock")
}

/// The complete snapshots, the newest last.
fn snapshots(head: &Path) -> Result<Vec<String>, Error> {
    let complete = |name: &String| name.starts_with(SNAPSHOT) && !name.ends_with(UNFINISHED);
    Ok(names(head)?.into_iter().filter(complete).collect())
}

/// The names in a folder, sorted; none where there is no such folder.
fn names(dir: &Path) -> Result<Vec<String>, Error> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io("list", dir))?,
    };
    let name = |entry: io::Result<std::fs::DirEntry>| {
        entry.map(|entry| entry.file_name().to_string_lossy().into_owned())
    };
    let mut names: Vec<String> =
        entries.map(name).collect::<io::Result<_>>().map_err(Error::io("list", dir))?;
    names.sort();
    Ok(names)
}

fn remove(path: &PathBuf) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(Error::io("remove", path)),
    }
}

/// Syncs a file or folder.
fn sync(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|file| file.sync_all()).map_err(Error::io("sync", path))
}
