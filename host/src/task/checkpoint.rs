//! Checkpoints of a task's stores: when to write one, where the newest is, and loading it.
//!
//! A checkpoint is due when the changelog has grown past the configured size and past the last
//! checkpoint: rewriting a large store costs no more than twice what was written to it.

use std::path::{Path, PathBuf};

use arrow_array::BinaryArray;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Environment;
use crate::log::{Commit, CommitError, Guard};
use crate::state::{Changes, StoreSet, changelog_key, checkpoint};
use crate::storage::{crash_point, set_aside};
use crate::types::{GenerationId, LogId, Offset, PartitionId};

/// Where a task's newest checkpoint is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The file's name in the directory of checkpoints.
    pub file: String,
    /// The next record of the changelog that is not in it.
    pub changelog: Offset,
    /// Entries of all stores.
    pub entries: u64,
    /// Length of the file.
    pub size_bytes: u64,
    /// Of its index, which holds those of all entries. Not there in those written before it was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crc32c: Option<u32>,
}

impl Manifest {
    /// The file, `path`, as it has to be.
    pub fn source<'a>(&self, path: &'a Path) -> checkpoint::Source<'a> {
        checkpoint::Source { path, crc32c: self.crc32c }
    }
}

/// A task, as far as its state is concerned.
#[derive(Debug, Clone, Copy)]
pub struct StateOf {
    /// The generation.
    pub generation: GenerationId,
    /// The source partition.
    pub partition: PartitionId,
    /// The changelog.
    pub changelog: LogId,
}

/// The catalogue key under which all checkpoints of a generation stand.
pub fn checkpoint_prefix(generation: GenerationId) -> Vec<u8> {
    let mut key = super::cursor_prefix(generation);
    key[0] = b'k';
    key
}

impl StateOf {
    fn key(&self) -> Vec<u8> {
        let mut key = checkpoint_prefix(self.generation);
        key.extend_from_slice(&self.partition.0.to_be_bytes());
        key
    }

    /// The newest checkpoint, and its bytes in the catalogue.
    fn newest(&self, env: &Environment) -> Result<Option<(Manifest, Vec<u8>)>, String> {
        let Some(bytes) = env.log.metadata_get(&self.key()).map_err(|e| e.to_string())? else {
            return Ok(None);
        };
        let manifest = serde_json::from_slice(&bytes).map_err(|e| format!("manifest: {e}"))?;
        Ok(Some((manifest, bytes)))
    }

    /// The stores as of the changelog's end: the newest checkpoint and the changelog since.
    ///
    /// # Errors
    /// When either cannot be read, in words.
    pub fn restore(&self, env: &Environment, stores: usize) -> Result<StoreSet, String> {
        // A checkpoint that was under way when the task was stopped may take this one's place, and
        // its file and changelog with it, while it is being read.
        loop {
            let newest = self.newest(env)?;
            let restored = self.restore_from(env, stores, newest.as_ref().map(|(m, _)| m));
            if self.newest(env)? == newest {
                return restored;
            }
        }
    }

    fn restore_from(
        &self,
        env: &Environment,
        stores: usize,
        newest: Option<&Manifest>,
    ) -> Result<StoreSet, String> {
        let mut set = StoreSet::new(stores);
        let mut next = Offset::ZERO;
        if let Some(manifest) = newest {
            let path = env.checkpoint_dir.join(&manifest.file);
            checkpoint::load(&*env.file_system, manifest.source(&path), |store, key, value| {
                set.restore(store, key, Some(value));
            })
            .map_err(|e| e.to_string())?;
            next = manifest.changelog;
        }
        self.read_changelog(env, next, |keys, values| {
            for (key, value) in keys.iter().zip(&values) {
                let split = changelog_key::split(key.unwrap_or_default());
                let (store, key) = split.map_err(|e| e.to_string())?;
                set.restore(store, key, value);
            }
            Ok(())
        })?;
        Ok(set)
    }

    /// Hands the changelog from `next` on to `each`, as columns of keys and values; returns where it ended.
    fn read_changelog(
        &self,
        env: &Environment,
        mut next: Offset,
        mut each: impl FnMut(BinaryArray, BinaryArray) -> Result<(), String>,
    ) -> Result<Offset, String> {
        let changelog = env.log.partition(self.changelog, self.partition);
        let changelog = changelog.ok_or("its changelog is not there")?;
        let (mut reader, end) = (changelog.reader(), changelog.durable_offset());
        while let Some(batch) =
            reader.read(next, end, usize::MAX, 8 << 20).map_err(|e| e.to_string())?
        {
            next = batch.next_offset().unwrap_or(end);
            each(batch.records.keys, batch.records.values)?;
        }
        Ok(end)
    }

    /// Whether the changelog is long enough for a checkpoint.
    ///
    /// # Errors
    /// When the catalogue cannot be read.
    pub fn is_due(&self, env: &Environment, least_bytes: u64) -> Result<bool, String> {
        let size = env.log.partition(self.changelog, self.partition).map_or(0, |p| p.size_bytes());
        if size < least_bytes {
            return Ok(false);
        }
        let last = self.newest(env)?.map_or(0, |(manifest, _)| manifest.size_bytes);
        Ok(size >= last)
    }

    /// Writes a checkpoint of what is durable, makes it the newest, and lets go of the changelog
    /// before it. A crash at any point leaves the one before it the newest.
    ///
    /// # Errors
    /// When it cannot be written, in words; the one before it stays the newest.
    pub fn take(&self, env: &Environment) -> Result<(), String> {
        let newest = self.newest(env)?;
        let next = newest.as_ref().map_or(Offset::ZERO, |(manifest, _)| manifest.changelog);
        let mut changes = Changes::default();
        let end = self.read_changelog(env, next, |keys, values| {
            changes.push(&keys, values);
            Ok(())
        })?;
        if changes.is_empty() {
            return Ok(());
        }
        let GenerationId { deployment, number } = self.generation;
        // Never the name of another checkpoint, even of one that is being written beside this one.
        let id = env.log.allocate_id();
        let file = format!("{deployment}-{number}-{}-{end}-{id}.arrow", self.partition);
        let base = newest.as_ref().map(|(manifest, _)| env.checkpoint_dir.join(&manifest.file));
        let path = env.checkpoint_dir.join(&file);
        let about = about(self.generation, self.partition, end);
        let old = newest.as_ref().zip(base.as_deref()).map(|((m, _), path)| m.source(path));
        let written = checkpoint::write(&env.file_system, &path, old, &changes, about)
            .map_err(|e| e.to_string())?;
        let manifest = Manifest {
            file,
            changelog: end,
            entries: written.entries,
            size_bytes: written.size_bytes,
            crc32c: Some(written.crc32c),
        };
        crash_point("checkpoint-written");
        let value = serde_json::to_vec(&manifest).map_err(|e| e.to_string())?;
        let commit = Commit {
            guards: vec![Guard { key: self.key(), expected: newest.map(|(_, bytes)| bytes) }],
            truncates: vec![(self.changelog, self.partition, end)],
            metadata: vec![(self.key(), Some(value))],
            ..Commit::default()
        };
        let committed = env.log.commit_blocking(commit);
        crash_point("checkpoint-recorded");
        // Whichever of the two is not the newest now is of no more use. After a failure of storage
        // that is not known: both stay.
        let useless = match &committed {
            Ok(_) => base,
            Err(CommitError::Stopped { .. }) => None,
            Err(_) => Some(path),
        };
        if let Some(path) = useless {
            remove(env, &path);
        }
        committed.map(|_| ()).map_err(|e| e.to_string())
    }
}

/// What a checkpoint says of itself: whose state it is, and up to where in the changelog.
pub fn about(
    GenerationId { deployment, number }: GenerationId,
    partition: PartitionId,
    changelog: Offset,
) -> serde_json::Value {
    json!({
        "deployment": deployment, "generation": number, "partition": partition,
        "changelog": changelog,
    })
}

/// The files of a generation's checkpoints.
pub fn checkpoint_files(env: &Environment, generation: GenerationId) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let scanned = env.log.metadata_scan(&checkpoint_prefix(generation), |_, value| {
        if let Ok(manifest) = serde_json::from_slice::<Manifest>(&value) {
            files.push(env.checkpoint_dir.join(manifest.file));
        }
    });
    if let Err(error) = scanned {
        tracing::warn!(%generation, "cannot list checkpoints: {error}");
    }
    files
}

/// Sets aside the files in the directory of checkpoints that no manifest names: what a crash left
/// behind. Nothing unknown is deleted.
///
/// # Errors
/// When the catalogue or the directory cannot be read.
pub fn quarantine_checkpoints(env: &Environment, quarantine: &Path) -> Result<usize, String> {
    let mut known = std::collections::BTreeSet::new();
    let scanned = env.log.metadata_scan(b"k", |_, value| {
        if let Ok(manifest) = serde_json::from_slice::<Manifest>(&value) {
            known.insert(manifest.file);
        }
    });
    scanned.map_err(|e| e.to_string())?;
    let failed = |what: &'static str, path: &Path| {
        let path = path.display().to_string();
        move |e: std::io::Error| format!("cannot {what} {path}: {e}; check the disk")
    };
    let dir = &env.checkpoint_dir;
    let entries = env.file_system.list(dir).map_err(failed("list", dir))?;
    let unknown = entries.into_iter().filter(|e| !e.is_dir && !known.contains(&e.name));
    let mut moved = 0;
    for entry in unknown {
        let from = dir.join(&entry.name);
        let to = set_aside(&*env.file_system, &from, quarantine, &entry.name)
            .map_err(|error| error.to_string())?;
        tracing::warn!(
            "{} is no checkpoint that is known: moved to {}",
            from.display(),
            to.display()
        );
        moved += 1;
    }
    Ok(moved)
}

/// Removes a checkpoint's file that nothing names any more. One that cannot be removed is set aside
/// at the next start.
pub fn remove(env: &Environment, path: &Path) {
    if let Err(error) = env.file_system.remove(path) {
        tracing::warn!("cannot remove {}: {error}", path.display());
    }
}
