//! Opens sled so that neither a loss of power nor a read that fails takes anything, and leaves it so that
//! the next start is quick.
//!
//! sled recovers in place. It takes a read that fails for the end of its log and writes on from there;
//! and it overwrites with zeros what its newest snapshot does not need, although it never syncs the
//! folder in which that snapshot got its name. So it is given a copy. The original stays, as
//! `head.old`, until the copy is durable and the storage above has found all that was acknowledged in
//! it, which it says by its first sync.
//!
//! Its settings, too, sled writes once and never syncs, nor the names of its files: that is done here.
//!
//! A start copies sled's file and reads all of it, and most of that is what sled no longer needs: under
//! load it takes new room sooner than it finds the old again. So a head that is closed is written anew
//! where that makes it small.
//!
//! **Invariant:** where `head.old` is, no sync was made since the copy took its place, so that it is the
//! truth. `head.copy` is never believed. Only where there is no space for a copy sled opens the
//! original.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::Error;
use super::head::{guarded, sled_error};

/// Cannot be changed for a database that exists. With it, values of 64 KiB stay out of sled's blobs.
const SEGMENT_BYTES: usize = 8 << 20;
const CACHE_BYTES: u64 = 64 << 20;
/// How often, and how long in all, sled's own lock is waited for.
const LOCK_TRIES: u32 = 500;
const LOCK_WAIT: Duration = Duration::from_millis(10);
/// The file of sled's settings.
pub(super) const SETTINGS: &str = "conf";
/// Ends the name of a snapshot that is being written.
const UNFINISHED: &str = ".generating";
/// How much is put into a new head at a time.
const REWRITE_BATCH_BYTES: usize = 1 << 20;
/// Where a copy is made, and what is no longer needed goes, beside the head.
const COPY: &str = "head.copy";
/// Where the original waits, beside the head.
pub(super) const OLD: &str = "head.old";

/// sled, open in a folder. At its end it panics where it cannot sync; what was acknowledged is durable.
pub(super) struct Sled {
    /// There until the end.
    db: Option<sled::Db>,
    head: PathBuf,
}

impl Deref for Sled {
    type Target = sled::Db;

    fn deref(&self) -> &sled::Db {
        self.db.as_ref().expect("only the end takes it")
    }
}

impl Drop for Sled {
    fn drop(&mut self) {
        let db = self.db.take();
        let ended = guarded(&self.head, || {
            drop(db);
            Ok(())
        });
        if let Err(error) = ended {
            tracing::warn!("closing: {error}");
        }
    }
}

/// Opens sled in the folder `head`, or creates it.
pub(super) fn open(head: &Path) -> Result<Sled, Error> {
    // That file is the last that a new data directory gets: nothing was acknowledged before.
    if !is_there(&head.with_file_name("format"))? {
        // A loss of power may have left half of the settings, and sled believes what it finds.
        remove(&head.join(SETTINGS))?;
        let db = open_sled(head)?;
        make_durable(head)?;
        return Ok(db);
    }
    let (copy, old) = (head.with_file_name(COPY), head.with_file_name(OLD));
    remove_folder(&copy)?;
    if is_there(&old)? {
        remove_folder(head)?;
        rename(&old, head)?;
    }
    if !is_there(&head.join("db"))? {
        let (place, detail) = (head.display().to_string(), "it is not there".to_owned());
        return Err(Error::Damaged { place, detail });
    }
    // A snapshot that was being written makes sled refuse to open.
    for name in names(head)?.iter().filter(|name| name.ends_with(UNFINISHED)) {
        remove(&head.join(name))?;
    }
    match open_copy(head, &copy) {
        // Not where the original could not be synced: what cannot be copied is whole.
        Err(Error::Io { what, path, source })
            if source.kind() == io::ErrorKind::StorageFull
                && (what == "copy" || path.starts_with(&copy)) =>
        {
            tracing::warn!(
                "no space for a copy of {}: a loss of power before the host is ready would damage it",
                head.display()
            );
            remove_folder(&copy)?;
            open_sled(head)
        }
        opened => {
            let db = opened?;
            replace(head)?;
            Ok(db)
        }
    }
}

/// Lets go of the original: the storage has found in `head` what it must hold.
pub(super) fn confirm(head: &Path) -> Result<(), Error> {
    let (copy, old) = (head.with_file_name(COPY), head.with_file_name(OLD));
    if is_there(&old)? {
        rename(&old, &copy)?;
        if let Err(error) = remove_folder(&copy) {
            tracing::warn!("{error}; the next start removes it");
        }
    }
    Ok(())
}

/// Makes a durable copy of what `db`, open in `head`, has now, without what it no longer needs; returns
/// whether there is one. There is none where it would not be half as large. Once `db` is closed,
/// [`replace`] and [`confirm`] let it take the head's place.
pub(super) fn rewrite(db: &sled::Db, head: &Path) -> Result<bool, Error> {
    let (copy, file) = (head.with_file_name(COPY), head.join("db"));
    let file_bytes =
        std::fs::metadata(&file).map_err(Error::io("read the length of", &file))?.len();
    // Two segments are as little as sled takes.
    let is_smaller = |bytes: u64| 2 * (bytes + 2 * SEGMENT_BYTES as u64) <= file_bytes;
    if !is_smaller(0) {
        return Ok(false);
    }
    remove_folder(&copy)?;
    let refused = |what| move |error| sled_error(what, head, error);
    let fresh = open_sled(&copy)?;
    let (mut batch, mut batch_bytes, mut bytes, mut keys) = (sled::Batch::default(), 0, 0, 0);
    for entry in db.iter() {
        let (key, value) = entry.map_err(refused("read"))?;
        batch_bytes += key.len() + value.len();
        keys += 1;
        batch.insert(key, value);
        if batch_bytes >= REWRITE_BATCH_BYTES {
            bytes += std::mem::take(&mut batch_bytes) as u64;
            if !is_smaller(bytes) {
                drop(fresh);
                remove_folder(&copy)?;
                return Ok(false);
            }
            fresh.apply_batch(std::mem::take(&mut batch)).map_err(refused("write"))?;
        }
    }
    fresh.apply_batch(batch).map_err(refused("write"))?;
    fresh.flush().map_err(refused("write"))?;
    let written = fresh.len();
    drop(fresh);
    make_durable(&copy)?;
    if written != keys {
        let (place, detail) = (copy.display().to_string(), format!("{written} of {keys} keys"));
        return Err(Error::Damaged { place, detail });
    }
    Ok(true)
}

/// The copy takes the head's place, and the original stays until [`confirm`].
pub(super) fn replace(head: &Path) -> Result<(), Error> {
    rename(head, &head.with_file_name(OLD))?;
    rename(&head.with_file_name(COPY), head)
}

/// Opens a durable copy of what sled has in `head`.
fn open_copy(head: &Path, copy: &Path) -> Result<Sled, Error> {
    // A host that was killed may have left what is not synced. It will be shown, so it must stay.
    make_durable(head)?;
    std::fs::create_dir(copy).map_err(Error::io("create", copy))?;
    for name in names(head)? {
        let from = head.join(&name);
        if !from.is_dir() {
            std::fs::copy(&from, copy.join(&name)).map_err(Error::io("copy", &from))?;
        }
    }
    let db = open_sled(copy).map_err(|error| match error {
        // What is wrong with a copy is wrong with what was copied.
        Error::Damaged { detail, .. } => {
            Error::Damaged { place: head.display().to_string(), detail }
        }
        other => other,
    })?;
    make_durable(copy)?;
    Ok(db)
}

/// Makes durable all files in a folder of sled's, and their names.
fn make_durable(head: &Path) -> Result<(), Error> {
    names(head)?.iter().try_for_each(|name| sync(&head.join(name)))?;
    sync(head)
}

fn open_sled(head: &Path) -> Result<Sled, Error> {
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
        if opened.is_some() {
            return Ok(Sled { db: opened, head: head.to_owned() });
        }
        tries_left -= 1;
        std::thread::sleep(LOCK_WAIT);
    }
}

/// Whether sled's file is locked; sled says so in words only.
fn is_lock(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Other && error.to_string().contains("acquire lock")
}

/// Whether something is there; what cannot be looked for is not said to be missing.
fn is_there(path: &Path) -> Result<bool, Error> {
    path.try_exists().map_err(Error::io("look for", path))
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

fn remove(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(Error::io("remove", path)),
    }
}

fn remove_folder(path: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(Error::io("remove", path)),
    }
}

/// Renames a folder, durably.
fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    std::fs::rename(from, to).map_err(Error::io("rename", from))?;
    from.parent().map_or(Ok(()), sync)
}

/// Syncs a file or folder.
fn sync(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|file| file.sync_all()).map_err(Error::io("sync", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::head::{Head as _, SledHead};

    #[test]
    fn a_head_that_is_closed_becomes_small_and_keeps_all_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let head = dir.path().join("head");
        let length = || std::fs::metadata(head.join("db")).unwrap().len();
        let open = SledHead::open(&head).unwrap();
        // What is written over and over takes room; how soon sled finds it again is up to its threads.
        let mut last = 0;
        while length() <= 5 * SEGMENT_BYTES as u64 {
            last += 1_u8;
            let changes = (0..16_u8).map(|key| (vec![key], Some(vec![last; 60_000])));
            open.apply(changes.collect()).unwrap();
        }
        let dead = (1..16_u8).map(|key| (vec![key], None));
        open.apply(dead.collect()).unwrap();
        open.sync().unwrap();
        let before = length();
        drop(open);
        assert!(length() <= before / 2, "{before} {}", length());
        assert!(!dir.path().join(OLD).exists() && !dir.path().join(COPY).exists());
        std::fs::write(dir.path().join("format"), "").unwrap();
        let open = SledHead::open(&head).unwrap();
        let mut found = Vec::new();
        open.scan(b"", &mut |key, value| {
            found.push((key.to_vec(), value.to_vec()));
            Ok(())
        })
        .unwrap();
        assert_eq!(found, [(vec![0], vec![last; 60_000])]);
    }

    #[test]
    fn a_head_that_was_being_written_anew_opens_wherever_that_ended() {
        let home = tempfile::tempdir().unwrap();
        for step in 0..5 {
            let dir = home.path().join(step.to_string());
            std::fs::create_dir(&dir).unwrap();
            let (head, copy) = (dir.join("head"), dir.join(COPY));
            let db = open_sled(&head).unwrap();
            for round in 0..48_u8 {
                (0..16_u8).for_each(|key| drop(db.insert([key], vec![round; 60_000]).unwrap()));
            }
            db.flush().unwrap();
            assert!(rewrite(&db, &head).unwrap());
            drop(db);
            std::fs::write(dir.join("format"), "").unwrap();
            match step {
                0 => std::fs::remove_file(copy.join("conf")).unwrap(),
                1 => {}
                2 => rename(&head, &dir.join(OLD)).unwrap(),
                3 => replace(&head).unwrap(),
                _ => {
                    replace(&head).unwrap();
                    rename(&dir.join(OLD), &copy).unwrap();
                    std::fs::remove_file(copy.join("db")).unwrap();
                }
            }
            let open = SledHead::open(&head).unwrap();
            let mut next = 0;
            open.scan(b"", &mut |key, value| {
                assert_eq!((key, value), (&[next][..], &[47; 60_000][..]), "{step}");
                next += 1;
                Ok(())
            })
            .unwrap();
            assert_eq!(next, 16, "{step}");
            open.sync().unwrap();
            assert!(!dir.join(OLD).exists() && !copy.exists(), "{step}");
        }
    }

    #[test]
    fn what_no_sync_confirmed_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let (head, old) = (dir.path().join("head"), dir.path().join(OLD));
        let put = |value: &[u8]| vec![(b"k".to_vec(), Some(value.to_vec()))];
        let first = SledHead::open(&head).unwrap();
        first.apply(put(b"1")).unwrap();
        first.sync().unwrap();
        drop(first);
        std::fs::write(dir.path().join("format"), "").unwrap();
        let unconfirmed = SledHead::open(&head).unwrap();
        unconfirmed.apply(put(b"2")).unwrap();
        drop(unconfirmed);
        assert!(old.exists());
        let confirmed = SledHead::open(&head).unwrap();
        assert_eq!(confirmed.get(b"k").unwrap(), Some(b"1".to_vec()));
        confirmed.apply(put(b"3")).unwrap();
        confirmed.sync().unwrap();
        assert!(!old.exists());
        drop(confirmed);
        assert_eq!(SledHead::open(&head).unwrap().get(b"k").unwrap(), Some(b"3".to_vec()));
    }
}
