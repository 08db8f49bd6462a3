//! Restoring a backup into a data directory that is not there yet.
//!
//! Everything is copied, checked and synced beside the target, then renamed into place.
//!
//! **Invariant:** the target is not there, or complete, whenever the process ends; until it is there, no
//! host begins a new store in its place. One restore of a target runs at a time. Offsets that may have
//! been given out after the backup are never given out again.

use std::collections::BTreeSet;
use std::io;
use std::path::{Component, Path};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::backup::{BACKUP_HEAD, BackupStatus, Meter};
use super::events::rfc3339;
use super::{Error, Kind};
use crate::clock::Clock;
use crate::log::{Image, restored};
use crate::storage::{
    self, AboutHead, ArrowFileError, Entries, FileSystem, copy_file, create_dir, not_replaceable,
    read_head_copy, remove_folder, replace_head, restoring,
};

/// Restores the backup in `source` as the data directory `data`; says what is in it.
///
/// # Errors
/// When the backup is damaged or incomplete, the target is not empty, or the disk refuses. The target
/// is as it was then.
pub fn restore(
    source: &Path,
    data: &Path,
    fs: &Arc<dyn FileSystem>,
    clock: &dyn Clock,
    meter: &Meter,
) -> Result<BackupStatus, Error> {
    let begun = clock.monotonic();
    let (about, entries) = read_backup(source, &**fs)?;
    let unfinished = restoring(data);
    create_dir(&unfinished, &**fs).map_err(refused)?;
    let lock_path = unfinished.join("lock");
    let lock = fs.lock(&lock_path).map_err(failed("lock", &lock_path))?;
    // It goes along into its place, and keeps hosts away until all is durable.
    let Some(_lock) = lock else {
        let message =
            format!("{} is being restored by another process: wait for it", data.display());
        return Err(Error::new(Kind::Conflict, "restore_under_way", message));
    };
    let now_ms = clock.now_ms();
    let why = format!("the host was restored from a backup of {}", rfc3339(about.written_ms));
    let head = restored(&entries, now_ms, &why);
    let total = about.files.iter().map(|f| f.size_bytes).sum();
    meter.total_bytes.store(total, Ordering::Relaxed);
    let made = check_target(data, &**fs)
        // What a restore that was ended left is this program's own and never was a data directory.
        .and_then(|()| clear(&unfinished, &**fs))
        .and_then(|()| copy_files(&**fs, source, &about, &unfinished, meter))
        .and_then(|()| {
            let (id, sequence) = (about.store_id(), about.sequence);
            replace_head(&unfinished, fs, id, sequence, &head).map_err(refused)
        })
        .and_then(|_| put_in_place(&unfinished, data, &**fs));
    if let Err(error) = made {
        // What is left over would keep hosts away; if it stays, they say how to be rid of it.
        let _ = remove_folder(&unfinished);
        return Err(error);
    }
    let ends = Image::read(&entries).topic_ends();
    let topics = ends
        .into_iter()
        .map(|end| (end.topic.to_string(), end.partitions.iter().map(|p| p.0).collect()));
    Ok(BackupStatus {
        path: data.display().to_string(),
        state: "done".to_owned(),
        total_bytes: total,
        done_bytes: total,
        copied_bytes: total,
        files: about.files.len() as u64,
        sequence: about.sequence,
        taken_at: Some(rfc3339(about.written_ms)),
        seconds: Some(clock.monotonic().saturating_sub(begun).as_secs_f64()),
        topics: topics.collect(),
        failure: None,
    })
}

/// What a finished backup says of itself, and its head.
fn read_backup(source: &Path, fs: &dyn FileSystem) -> Result<(AboutHead, Entries), Error> {
    read_head_copy(fs, &source.join(BACKUP_HEAD)).map_err(|e| {
        let place = source.display();
        let message = match &e {
            ArrowFileError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                format!(
                    "{place} holds no finished backup: there is no {BACKUP_HEAD}, which comes last; name the folder of another, or make it again"
                )
            }
            _ => format!("{place} is no backup that can be restored: {e}"),
        };
        Error::new(Kind::Invalid, "not_a_backup", message)
    })
}

/// Refuses a target that holds anything, or could not be replaced when all is copied.
fn check_target(data: &Path, fs: &dyn FileSystem) -> Result<(), Error> {
    match fs.list(data) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed("use", data)(e)),
        Ok(there) if there.is_empty() => {}
        Ok(_) => return Err(not_empty(data)),
    }
    match not_replaceable(data).map_err(failed("look at", data))? {
        None => Ok(()),
        Some(what) => Err(stays_as_it_is(data, what)),
    }
}

fn stays_as_it_is(data: &Path, what: &str) -> Error {
    let message = format!(
        "{} is {what}, which cannot be replaced in one step: name a directory that is not there, below it or elsewhere",
        data.display()
    );
    Error::new(Kind::Conflict, "target_not_replaceable", message)
}

fn not_empty(data: &Path) -> Error {
    let message = format!(
        "{} is not empty: choose a directory that does not exist, or stop what runs there and move it away first",
        data.display()
    );
    Error::new(Kind::Conflict, "target_not_empty", message)
}

/// Removes everything in `unfinished` but its lock.
fn clear(unfinished: &Path, fs: &dyn FileSystem) -> Result<(), Error> {
    for entry in fs.list(unfinished).map_err(failed("list", unfinished))? {
        let path = unfinished.join(&entry.name);
        match entry.is_dir {
            true => remove_folder(&path).map_err(refused)?,
            false if entry.name == "lock" => {}
            false => fs.remove(&path).map_err(failed("remove", &path))?,
        }
    }
    Ok(())
}

/// Gives a directory that was made its name, durably.
fn put_in_place(unfinished: &Path, data: &Path, fs: &dyn FileSystem) -> Result<(), Error> {
    fs.rename(unfinished, data).map_err(|e| not_put_in_place(data, e))?;
    let parent = data.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs.sync_dir(parent).map_err(failed("sync", parent))
}

/// Why the target was not replaced. A folder that is mounted from the same disk is found only now.
fn not_put_in_place(data: &Path, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::DirectoryNotEmpty => not_empty(data),
        io::ErrorKind::ResourceBusy | io::ErrorKind::CrossesDevices => {
            stays_as_it_is(data, "a mount point")
        }
        _ => failed("rename to", data)(error),
    }
}

fn refused(error: storage::Error) -> Error {
    Error::new(Kind::Unavailable, "restore_failed", error.to_string())
}

/// Copies the files of a backup to `to`, durable, each checked against its sum.
fn copy_files(
    fs: &dyn FileSystem,
    source: &Path,
    about: &AboutHead,
    target: &Path,
    meter: &Meter,
) -> Result<(), Error> {
    let mut folders = BTreeSet::from([target.to_owned(), target.join("segments")]);
    for folder in ["segments", "checkpoints", "plugins"] {
        let folder = target.join(folder);
        fs.create_dir_all(&folder).map_err(failed("create", &folder))?;
    }
    for file in &about.files {
        let (from, to) = (source.join(&file.path), target.join(&file.path));
        let mut parts = Path::new(&file.path).components();
        if !parts.all(|part| matches!(part, Component::Normal(_))) {
            let message = format!(
                "{} names a file outside the backup: {:?}",
                source.join(BACKUP_HEAD).display(),
                file.path
            );
            return Err(Error::new(Kind::Invalid, "not_a_backup", message));
        }
        let folder = to.parent().unwrap_or(target).to_owned();
        fs.create_dir_all(&folder).map_err(failed("create", &folder))?;
        let opened = fs.open(&from).map_err(|e| {
            let message = format!(
                "cannot open {}: {e}; if a backup was made into this folder meanwhile, restore it again, else restore another",
                from.display()
            );
            Error::new(Kind::Unavailable, "restore_failed", message)
        })?;
        let copied = copy_file(fs, &*opened, &to, &mut |bytes| meter.add(bytes));
        let (size_bytes, crc32c) = copied.map_err(failed("copy", &from))?;
        if (size_bytes, crc32c) != (file.size_bytes, file.crc32c) {
            let message = format!(
                "{} is damaged: it has {size_bytes} bytes with crc32c {crc32c:08x}, and should have {} with {:08x}; restore another backup",
                from.display(),
                file.size_bytes,
                file.crc32c
            );
            return Err(Error::new(Kind::Invalid, "backup_damaged", message));
        }
        folders.insert(folder);
    }
    for folder in &folders {
        fs.sync_dir(folder).map_err(failed("sync", folder))?;
    }
    Ok(())
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let message = format!("cannot {what} {}", path.display());
    move |e| {
        let message =
            format!("{message}: {e}; check that there is space and that it may be written");
        Error::new(Kind::Unavailable, "restore_failed", message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_that_cannot_be_replaced_is_told_from_a_disk_that_refuses() {
        let told = |errno| not_put_in_place(Path::new("/d"), io::Error::from_raw_os_error(errno));
        // EBUSY, EXDEV, ENOTEMPTY, ENOSPC.
        for (errno, code) in [
            (16, "target_not_replaceable"),
            (18, "target_not_replaceable"),
            (39, "target_not_empty"),
            (28, "restore_failed"),
        ] {
            assert_eq!(told(errno).code, code, "{}", told(errno));
        }
        assert!(told(16).message.contains("/d is a mount point"), "{}", told(16));
    }
}
