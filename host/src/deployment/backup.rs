//! Backups: a copy of a data directory as of one commit, made while the host goes on.
//!
//! A backup is a folder: a copy of the head, and the files that it names. The head is a snapshot of the
//! log; files are immutable and held by it, so producers and tasks go on. A backup into a folder that
//! holds an older one of the same store copies only what is new.
//!
//! **Invariant:** the copy of the head is written last, in one rename: a backup that was begun and not
//! finished leaves the one before it as it was. A folder that holds anything else is not touched, nor is
//! one into which another backup is being made.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::events::rfc3339;
use super::record::PluginRecord;
use super::{Error, Kind, Registry};
use crate::clock::Clock;
use crate::log::{Image, Log, LogSnapshot};
use crate::storage::{
    AboutHead, File, FileSum, FileSystem, TEMPORARY_SUFFIX, copy_file, create_dir, read_about_head,
    write_head_copy,
};
use crate::task::CheckpointManifest;
use crate::threads::{self, Mutex};
use crate::types::BackupName;

/// The copy of the head in a backup.
pub const BACKUP_HEAD: &str = "backup.arrow";
/// What lies in the folder of a backup beside its head, and nothing else does: files, and the lock of
/// whoever makes one.
const OWN: [&str; 4] = ["segments", "checkpoints", "plugins", LOCK];
const LOCK: &str = "lock";
/// How often a snapshot is taken anew because a checkpoint that it names was replaced meanwhile.
const TRIES: usize = 100;

/// How far a backup is, or what it holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BackupStatus {
    /// Its folder, on the host's machine.
    pub path: String,
    /// `running`, `done` or `failed`.
    pub state: String,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Bytes of all its files.
    pub total_bytes: u64,
    /// Bytes of those that are there.
    pub done_bytes: u64,
    /// Bytes that were copied; the others were there from the backup before.
    pub copied_bytes: u64,
    /// Number of its files.
    pub files: u64,
    /// The last commit that is in it.
    pub sequence: u64,
    /// Of which moment it is: everything that was acknowledged before is in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taken_at: Option<String>,
    /// How long it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// For each topic, where its partitions end in it.
    pub topics: BTreeMap<String, Vec<u64>>,
}

/// Counters of what is under way.
#[derive(Debug, Default)]
pub struct Meter {
    /// Bytes that there are.
    pub total_bytes: AtomicU64,
    /// Bytes that are done.
    pub done_bytes: AtomicU64,
}

impl Meter {
    /// Counts bytes as done.
    pub fn add(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The backup that is under way, or was last.
pub(super) struct Backups {
    /// The disk without what stops the host: a backup's own may fail.
    fs: Arc<dyn FileSystem>,
    last: Mutex<Option<(BackupName, Arc<Meter>, BackupStatus)>>,
}

impl Backups {
    /// None yet; they are made on `fs`.
    pub fn on(fs: Arc<dyn FileSystem>) -> Self {
        Self { fs, last: Mutex::default() }
    }
}

impl Registry {
    /// Starts a backup into the folder `name` of the configured directory, beside everything else.
    ///
    /// # Errors
    /// When none is configured, or one is under way.
    pub fn start_backup(&self, name: &str) -> Result<BackupStatus, Error> {
        self.ready()?;
        let (name, path) = self.backup_path(name)?;
        let meter: Arc<Meter> = Arc::default();
        let mut last = self.inner.backups.last.lock();
        if let Some((other, ..)) = last.as_ref().filter(|(_, _, status)| status.state == "running")
        {
            let message = format!("backup {other} is under way: wait for it, then ask again");
            return Err(Error::new(Kind::Conflict, "backup_under_way", message));
        }
        let shown = path.display().to_string();
        let begun = BackupStatus { path: shown, state: "running".to_owned(), ..Default::default() };
        *last = Some((name, Arc::clone(&meter), begun.clone()));
        drop(last);
        let registry = self.clone();
        let work = move || {
            let inner = &registry.inner;
            let made = back_up(&inner.log, &inner.backups.fs, &*inner.clock, &path, &meter);
            let status = match made {
                Ok(status) => {
                    tracing::info!(path = status.path, sequence = status.sequence, "backed up");
                    status
                }
                Err(error) => {
                    tracing::error!("backup to {}: {error}", path.display());
                    let failure = Some(error.to_string());
                    let (path, state) = (path.display().to_string(), "failed".to_owned());
                    BackupStatus { path, state, failure, ..Default::default() }
                }
            };
            if let Some(last) = &mut *inner.backups.last.lock() {
                last.2 = status;
            }
        };
        let thread = threads::spawn("backup".to_owned(), work);
        thread.map_err(|e| {
            *self.inner.backups.last.lock() = None;
            let message = format!("cannot start a thread: {e}");
            Error::new(Kind::Unavailable, "cannot_start", message)
        })?;
        Ok(begun)
    }

    /// How far a backup is, or what it holds.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn backup(&self, name: &str) -> Result<BackupStatus, Error> {
        let (name, path) = self.backup_path(name)?;
        if let Some((_, meter, status)) =
            self.inner.backups.last.lock().as_ref().filter(|(last, ..)| *last == name)
        {
            let mut status = status.clone();
            if status.state == "running" {
                status.total_bytes = meter.total_bytes.load(Ordering::Relaxed);
                status.done_bytes = meter.done_bytes.load(Ordering::Relaxed);
            }
            return Ok(status);
        }
        let about = read_about_head(&*self.inner.backups.fs, &path.join(BACKUP_HEAD));
        let about = about.map_err(|_| {
            let message = format!("there is no backup {name} in {}", path.display());
            Error::new(Kind::NotFound, "backup_not_found", message)
        })?;
        Ok(describe(&path, &about))
    }

    fn backup_path(&self, name: &str) -> Result<(BackupName, PathBuf), Error> {
        let name: BackupName =
            name.parse().map_err(|e| Error::new(Kind::Invalid, "invalid_name", format!("{e}")))?;
        let dir = &self.inner.config.backup.dir;
        if dir.as_os_str().is_empty() {
            let message = "this host makes no backups: name a directory for them under [backup] dir in its configuration, or stop it and use `anabranch backup DEST --data DIR`";
            return Err(Error::new(Kind::Refused, "backups_off", message));
        }
        let path = dir.join(name.as_str());
        Ok((name, path))
    }
}

/// What a finished backup holds.
fn describe(path: &Path, about: &AboutHead) -> BackupStatus {
    let total = about.files.iter().map(|f| f.size_bytes).sum();
    BackupStatus {
        path: path.display().to_string(),
        state: "done".to_owned(),
        total_bytes: total,
        done_bytes: total,
        files: about.files.len() as u64,
        sequence: about.sequence,
        taken_at: Some(rfc3339(about.written_ms)),
        ..Default::default()
    }
}

/// Copies what `log` holds now to the folder `dest`.
///
/// # Errors
/// When the folder cannot be used or the disk refuses. A backup that was there before stays.
pub fn back_up(
    log: &Log,
    fs: &Arc<dyn FileSystem>,
    clock: &dyn Clock,
    dest: &Path,
    meter: &Meter,
) -> Result<BackupStatus, Error> {
    let begun = clock.monotonic();
    let Taken { snapshot, open, at_ms } = take(log, &**fs, clock)?;
    let (before, _lock) = prepare(&**fs, dest, snapshot.store_id)?;
    let segments = snapshot.segment_files().map(|(path, bytes)| (path, bytes, None));
    let files: Vec<Held> = open.into_iter().chain(segments).collect();
    meter.total_bytes.store(files.iter().map(|(_, bytes, _)| bytes).sum(), Ordering::Relaxed);
    let (sums, copied_bytes) = copy_files(&**fs, &log.dir(), dest, files, &before, meter)?;
    let about = AboutHead::new(snapshot.store_id, snapshot.sequence, at_ms, sums);
    write_head_copy(fs, &dest.join(BACKUP_HEAD), &about, snapshot.entries()).map_err(refused)?;
    let keep: BTreeSet<&str> = about.files.iter().map(|f| f.path.as_str()).collect();
    for path in before.keys().filter(|path| !keep.contains(path.as_str())) {
        // Left behind it does no harm: no restore looks at it.
        let _ = fs.remove(&dest.join(path));
    }
    let entries = snapshot.entries().map(|(k, v)| (k.to_vec(), v.into_owned())).collect();
    let ends = Image::read(&entries).topic_ends().into_iter();
    let numbers = |end: crate::log::TopicEnd| {
        (end.topic.to_string(), end.partitions.iter().map(|p| p.0).collect())
    };
    Ok(BackupStatus {
        copied_bytes,
        seconds: Some(clock.monotonic().saturating_sub(begun).as_secs_f64()),
        topics: ends.map(numbers).collect(),
        ..describe(dest, &about)
    })
}

/// Copies `files` from `data` to `dest`, durable, but for those that are there from `before`; how many
/// bytes were copied.
fn copy_files(
    fs: &dyn FileSystem,
    data: &Path,
    dest: &Path,
    files: Vec<Held>,
    before: &BTreeMap<String, FileSum>,
    meter: &Meter,
) -> Result<(Vec<FileSum>, u64), Error> {
    let (mut sums, mut folders, mut copied_bytes) = (Vec::new(), BTreeSet::new(), 0);
    for (path, bytes, held) in files {
        let (from, to) = (data.join(&path), dest.join(&path));
        let there = before.get(&path).filter(|sum| {
            let length = fs.open(&to).and_then(|file| file.len());
            sum.size_bytes == bytes && length.is_ok_and(|length| length == bytes)
        });
        if let Some(sum) = there {
            meter.add(bytes);
            sums.push(sum.clone());
            continue;
        }
        let folder = to.parent().unwrap_or(dest).to_owned();
        fs.create_dir_all(&folder).map_err(failed("create", &folder))?;
        let source = held.map_or_else(|| fs.open(&from), Ok).map_err(failed("open", &from))?;
        let copied = copy_file(fs, &*source, &to, &mut |bytes| meter.add(bytes));
        let (size_bytes, crc32c) = copied.map_err(failed("copy to", &to))?;
        if size_bytes != bytes {
            let message = format!(
                "{} has {size_bytes} bytes and should have {bytes}: stop the host and run `anabranch doctor`",
                from.display()
            );
            return Err(Error::new(Kind::Internal, "backup_failed", message));
        }
        // The names of folders must last, too.
        folders.extend([dest.to_owned(), dest.join("segments"), folder]);
        copied_bytes += size_bytes;
        sums.push(FileSum { path, size_bytes, crc32c });
    }
    for folder in &folders {
        fs.sync_dir(folder).map_err(failed("sync", folder))?;
    }
    sums.sort_by(|a, b| a.path.cmp(&b.path));
    Ok((sums, copied_bytes))
}

/// A file of a backup: where it lies, its length, and the file itself where it may lose its name.
type Held = (String, u64, Option<Box<dyn File>>);

/// A snapshot, and what it names beside the segments that it holds itself.
struct Taken {
    snapshot: LogSnapshot,
    open: Vec<Held>,
    /// Everything that was acknowledged before this time is in it.
    at_ms: i64,
}

/// Takes a snapshot. Checkpoints are opened at once: when they are replaced, their bytes stay until they
/// are closed.
fn take(log: &Log, fs: &dyn FileSystem, clock: &dyn Clock) -> Result<Taken, Error> {
    let data = log.dir();
    let mut replaced = String::new();
    for _ in 0..TRIES {
        let at_ms = clock.now_ms();
        let snapshot = log.snapshot().map_err(super::registry::commit_refused)?;
        match files(&snapshot, fs, &data) {
            Ok(open) => return Ok(Taken { snapshot, open, at_ms }),
            Err((path, e)) if e.kind() == io::ErrorKind::NotFound => replaced = path,
            Err((path, e)) => return Err(failed("open", &data.join(path))(e)),
        }
    }
    let message = format!(
        "{replaced} is named by the catalogue and not there: stop the host and run `anabranch doctor`"
    );
    Err(Error::new(Kind::Internal, "backup_failed", message))
}

fn files(
    snapshot: &LogSnapshot,
    fs: &dyn FileSystem,
    data: &Path,
) -> Result<Vec<Held>, (String, io::Error)> {
    let mut files = Vec::new();
    for (key, value) in snapshot.catalogue() {
        let path = match key.first() {
            Some(b'k') => serde_json::from_slice::<CheckpointManifest>(value)
                .ok()
                .map(|manifest| format!("checkpoints/{}", manifest.file)),
            Some(b'w') => serde_json::from_slice::<PluginRecord>(value)
                .ok()
                .map(|record| format!("plugins/{}.wasm", record.digest.hex())),
            _ => None,
        };
        let Some(path) = path else { continue };
        let opened = fs.open(&data.join(&path)).and_then(|file| Ok((file.len()?, file)));
        match opened {
            Ok((bytes, file)) => files.push((path, bytes, Some(file))),
            Err(e) => return Err((path, e)),
        }
    }
    Ok(files)
}

/// What is in the folder of a backup already, by path, and the lock on it.
type Prepared = (BTreeMap<String, FileSum>, Option<Box<dyn Send + Sync>>);

/// Looks whether `dest` can take a backup of the store, and takes it for this one.
fn prepare(fs: &dyn FileSystem, dest: &Path, store_id: u64) -> Result<Prepared, Error> {
    let entries = match fs.list(dest) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        listed => listed.map_err(failed("list", dest))?,
    };
    let own = |name: &str| {
        OWN.contains(&name) || name.strip_suffix(TEMPORARY_SUFFIX).unwrap_or(name) == BACKUP_HEAD
    };
    if let Some(other) = entries.iter().find(|entry| !own(&entry.name)) {
        let message = format!(
            "{} holds {:?}, which is no part of a backup: choose an empty folder, or one that holds a backup of this store",
            dest.display(),
            other.name
        );
        return Err(Error::new(Kind::Conflict, "backup_occupied", message));
    }
    // Its name must last as what is in it does.
    create_dir(dest, fs).map_err(refused)?;
    let segments = dest.join("segments");
    fs.create_dir_all(&segments).map_err(failed("create", &segments))?;
    let lock = take_folder(fs, dest)?;
    let entries = fs.list(dest).map_err(failed("list", dest))?;
    if !entries.iter().any(|entry| entry.name == BACKUP_HEAD) {
        return Ok((BTreeMap::new(), lock));
    }
    let about = read_about_head(fs, &dest.join(BACKUP_HEAD)).map_err(|e| {
        let message = format!("the backup in {} cannot be added to: {e}", dest.display());
        Error::new(Kind::Conflict, "backup_occupied", message)
    })?;
    if about.store_id() != store_id {
        let message = format!(
            "{} holds a backup of another store ({}, and this is {store_id:016x}): choose another folder",
            dest.display(),
            about.store
        );
        return Err(Error::new(Kind::Conflict, "backup_occupied", message));
    }
    Ok((about.files.into_iter().map(|sum| (sum.path.clone(), sum)).collect(), lock))
}

/// Takes the folder until the lock is dropped; `None` where the disk knows no locks.
fn take_folder(fs: &dyn FileSystem, dest: &Path) -> Result<Option<Box<dyn Send + Sync>>, Error> {
    let path = dest.join(LOCK);
    match fs.lock(&path) {
        Ok(Some(lock)) => Ok(Some(lock)),
        Ok(None) => {
            let message = format!(
                "another backup is being made into {}: wait for it, or choose another folder",
                dest.display()
            );
            Err(Error::new(Kind::Conflict, "backup_under_way", message))
        }
        Err(e) if e.kind() == io::ErrorKind::Unsupported => Ok(None),
        Err(e) => Err(failed("lock", &path)(e)),
    }
}

fn refused(error: impl ToString) -> Error {
    Error::new(Kind::Unavailable, "backup_failed", error.to_string())
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let message = format!("cannot {what} {}", path.display());
    move |e| {
        let message =
            format!("{message}: {e}; check that there is space and that it may be written");
        refused(message)
    }
}
