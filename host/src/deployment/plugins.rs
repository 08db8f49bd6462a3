//! Plugins that were pushed: admitted, kept by digest as file and record, loaded when a task needs them.

use std::path::PathBuf;
use std::sync::Arc;

use super::events::rfc3339;
use super::record::PluginRecord;
use super::registry::commit_refused;
use super::{Error, Kind, PluginStatus, Registry};
use crate::log::{Commit, CommitError};
use crate::plugin::{CompileError, Plugin, Refusal};
use crate::storage::{self, crash_point};
use crate::types::Digest;

/// Bytes of the disk for each of a plugin's: the component, its machine code, and both while they are made.
const PLUGIN_ON_DISK: u64 = 6;

impl Registry {
    /// Takes a plugin: checks it, keeps it by its digest. One that is known is kept again if its file is
    /// lost or damaged.
    ///
    /// # Errors
    /// When it is no plugin, or asks for what is not granted.
    pub fn push_plugin(&self, bytes: &[u8]) -> Result<PluginStatus, Error> {
        let digest = Digest::of(bytes);
        if let Ok(known) = self.plugin(&digest)
            && self.read_plugin(&digest).is_ok()
        {
            return Ok(known);
        }
        self.check_room(bytes.len())?;
        let admitted = self.inner.runtime.admit(bytes).map_err(plugin_refused)?;
        let record = PluginRecord {
            digest: admitted.digest,
            size_bytes: bytes.len() as u64,
            pushed_ms: self.inner.clock.now_ms(),
            description: serde_json::to_value(&admitted.description).unwrap_or_default(),
            component: Some(Digest::of(&admitted.component)),
        };
        let path = self.plugin_path(&admitted.digest);
        crash_point("push-admitted");
        storage::write_file(&*self.inner.file_system, &path, &admitted.component).map_err(|e| {
            let message = format!("cannot write {}: {e}", path.display());
            Error::new(Kind::Unavailable, "cannot_write", message)
        })?;
        crash_point("push-written");
        let value = serde_json::to_vec(&record).unwrap_or_default();
        self.commit(Commit {
            metadata: vec![(PluginRecord::key(&record.digest), Some(value))],
            ..Commit::default()
        })?;
        crash_point("push-recorded");
        let status = plugin_status(&record);
        self.inner.plugins.write().insert(record.digest, record);
        Ok(status)
    }

    /// Refuses a plugin of `bytes` where too little of the disk would stay free.
    fn check_room(&self, bytes: usize) -> Result<(), Error> {
        let (config, file_system) = (&self.inner.config, &self.inner.file_system);
        let free_bytes = file_system.free_bytes(&config.data.dir).unwrap_or(u64::MAX);
        let takes_bytes = (bytes as u64).saturating_mul(PLUGIN_ON_DISK);
        let min_free_bytes = config.storage.min_free_bytes;
        match free_bytes.saturating_sub(takes_bytes) >= min_free_bytes {
            true => Ok(()),
            false => Err(commit_refused(CommitError::DiskFull {
                free_bytes,
                takes_bytes,
                min_free_bytes,
            })),
        }
    }

    /// Deletes a plugin that no generation runs.
    ///
    /// # Errors
    /// When there is none, or one runs it.
    pub fn delete_plugin(&self, digest: &Digest) -> Result<(), Error> {
        let _used_by_nobody_new = self.inner.basis.write();
        self.plugin(digest)?;
        let component = self.inner.plugins.read().get(digest).and_then(|record| record.component);
        let deployments: Vec<_> = self.inner.deployments.read().values().cloned().collect();
        for deployment in deployments {
            let state = deployment.state.lock();
            let mut generations = state.record.generations.iter();
            if let Some(runs) = generations.find(|g| g.phase.runs() && g.plugin == *digest) {
                let message = format!(
                    "generation {} of deployment {} runs plugin {digest}: swap it or delete the deployment first; a warm one goes when its lease ends",
                    runs.number,
                    state.record.name()
                );
                return Err(Error::new(Kind::Conflict, "plugin_in_use", message));
            }
        }
        self.commit(Commit {
            metadata: vec![(PluginRecord::key(digest), None)],
            ..Commit::default()
        })?;
        self.inner.plugins.write().remove(digest);
        self.inner.loaded.lock().remove(digest);
        let path = self.plugin_path(digest);
        if let Err(error) = self.inner.file_system.remove(&path) {
            tracing::warn!("cannot remove {}, which nothing needs: {error}", path.display());
        }
        if let Some(component) = component {
            self.inner.runtime.forget(&component);
        }
        Ok(())
    }

    /// All plugins, by digest.
    pub fn plugins(&self) -> Vec<PluginStatus> {
        self.inner.plugins.read().values().map(plugin_status).collect()
    }

    /// A plugin by digest.
    ///
    /// # Errors
    /// When it was never pushed.
    pub fn plugin(&self, digest: &Digest) -> Result<PluginStatus, Error> {
        self.inner.plugins.read().get(digest).map(plugin_status).ok_or_else(|| {
            let message = format!("there is no plugin {digest}: push it first");
            Error::new(Kind::NotFound, "plugin_not_found", message)
        })
    }

    /// A plugin, compiled and ready.
    pub(super) fn load_plugin(&self, digest: &Digest) -> Result<Arc<Plugin>, Error> {
        self.plugin(digest)?;
        let mut loaded = self.inner.loaded.lock();
        if let Some(plugin) = loaded.get(digest) {
            return Ok(Arc::clone(plugin));
        }
        let bytes = self.read_plugin(digest)?;
        let plugin = self.inner.runtime.load(*digest, &bytes);
        let plugin = plugin.map_err(|e| self.plugin_damaged(digest, &e))?;
        loaded.insert(*digest, Arc::clone(&plugin));
        Ok(plugin)
    }

    /// The file of a plugin that is known, as it was admitted.
    fn read_plugin(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        let path = self.plugin_path(digest);
        let bytes = storage::read_file(&*self.inner.file_system, &path);
        let bytes = bytes.map_err(|e| self.plugin_damaged(digest, &e))?;
        let fault = self.inner.plugins.read().get(digest).and_then(|known| known.fault(&bytes));
        fault.map_or(Ok(bytes), |fault| Err(self.plugin_damaged(digest, &fault)))
    }

    fn plugin_damaged(&self, digest: &Digest, why: &dyn std::fmt::Display) -> Error {
        let path = self.plugin_path(digest);
        let message =
            format!("plugin {digest} at {}: {why}; push the plugin again", path.display());
        Error::new(Kind::Internal, "plugin_damaged", message)
    }

    fn plugin_path(&self, digest: &Digest) -> PathBuf {
        self.inner.config.data.dir.join("plugins").join(format!("{}.wasm", digest.hex()))
    }

    /// Reads the catalogue's plugins when the host starts.
    pub(super) fn read_plugins(&self) -> Result<(), Error> {
        let mut plugins = self.inner.plugins.write();
        let mut damaged = None;
        let scanned = self.inner.log.metadata_scan(b"w", |_, value| {
            match serde_json::from_slice::<PluginRecord>(&value) {
                Ok(record) => drop(plugins.insert(record.digest, record)),
                Err(error) => damaged = Some(error.to_string()),
            }
        });
        match scanned.map_err(|e| e.to_string()).err().or(damaged) {
            Some(e) => Err(Error::new(Kind::Internal, "catalogue_damaged", e)),
            None => Ok(()),
        }
    }
}

/// The refusal of a plugin: what can be mended, what is beyond a limit, what is not the plugin's fault.
fn plugin_refused(refusal: Refusal) -> Error {
    let (kind, code) = match &refusal {
        Refusal::Compile(CompileError::Host(_)) => (Kind::Unavailable, "compiler_unavailable"),
        Refusal::Compile(CompileError::Limit { .. }) | Refusal::TooLarge { .. } => {
            (Kind::Refused, "plugin_too_costly")
        }
        _ => (Kind::Invalid, "plugin_refused"),
    };
    Error::new(kind, code, format!("plugin refused: {refusal}"))
}

fn plugin_status(record: &PluginRecord) -> PluginStatus {
    let text = |field: &str| record.description[field].as_str().unwrap_or_default().to_owned();
    PluginStatus {
        digest: record.digest.to_string(),
        name: text("name"),
        version: text("version"),
        size_bytes: record.size_bytes,
        pushed_at: rfc3339(record.pushed_ms),
        description: record.description.clone(),
    }
}
