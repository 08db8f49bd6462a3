//! Restoring a backup into a data directory that is not there yet.
//!
//! Everything is copied, checked and synced beside the target, then renamed into place.
//!
//! **Invariant:** the target is not there, or complete, whenever the process ends. Offsets that may have
//! been given out after the backup are never given out again.

use std::collections::BTreeSet;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::backup::{BACKUP_HEAD, BackupStatus, Meter};
use super::events::rfc3339;
use super::{Error, Kind};
use crate::clock::Clock;
use crate::log::{Image, restored};
use crate::storage::{
    AboutHead, FileSystem, copy_file, create_head, read_head_copy, remove_folder,
};

/// Ends the name of a directory that is being restored.
const UNFINISHED: &str = ".anabranch-restoring";

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
    let head = source.join(BACKUP_HEAD);
    let (about, entries) = read_head_copy(&**fs, &head).map_err(|e| {
        let message = format!("{} is no backup that can be restored: {e}", source.display());
        Error::new(Kind::Invalid, "not_a_backup", message)
    })?;
    match fs.list(data) {
        Ok(there) if there.is_empty() => {}
        Ok(_) => {
            let message = format!(
                "{} is not empty: choose a directory that does not exist, or move this one away first",
                data.display()
            );
            return Err(Error::new(Kind::Conflict, "target_not_empty", message));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed("use", data)(e)),
    }
    // Without a slash at its end, if it has one.
    let mut name = data.components().collect::<PathBuf>().into_os_string();
    name.push(UNFINISHED);
    let unfinished = PathBuf::from(name);
    // Of a restore that was ended: it is this program's own, and never was a data directory.
    remove_folder(&unfinished)
        .map_err(|e| Error::new(Kind::Unavailable, "restore_failed", e.to_string()))?;
    let now_ms = clock.now_ms();
    let why = format!("the host was restored from a backup of {}", rfc3339(about.written_ms));
    let ends = Image::read(&entries).topic_ends();
    create_head(
        &unfinished,
        fs,
        about.store_id(),
        about.sequence,
        &restored(&entries, now_ms, &why),
    )
    .map_err(|e| Error::new(Kind::Unavailable, "restore_failed", e.to_string()))?;
    let total = about.files.iter().map(|f| f.size_bytes).sum();
    meter.total_bytes.store(total, Ordering::Relaxed);
    copy_files(&**fs, source, &about, &unfinished, meter)?;
    fs.rename(&unfinished, data).map_err(failed("rename to", data))?;
    let parent = data.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs.sync_dir(parent).map_err(failed("sync", parent))?;
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
        let opened = fs.open(&from).map_err(failed("open", &from))?;
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
