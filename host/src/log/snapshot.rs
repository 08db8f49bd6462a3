//! A head as of one commit, taken from a log that goes on.
//!
//! The committer takes it between two groups: what is applied is then what is durable. Appends are
//! immutable and shared, so that it takes as long as reading the catalogue does; they are encoded by
//! whoever writes the snapshot to a file.
//!
//! **Invariant:** while a snapshot is held, the segments that it names stay.

use std::borrow::Cow;
use std::sync::Arc;

use super::codec;
use super::commit::CommitError;
use super::committer::Request;
use super::handle::{Log, Shared};
use super::keys;
use super::partition::Run;
use super::recovery::SEGMENTS_DIR;
use super::segment::Segment;
use crate::storage::Entries;
use crate::threads::channel;

/// A head as of one commit.
pub struct LogSnapshot {
    /// The store.
    pub store_id: u64,
    /// The last commit that is in it.
    pub sequence: u64,
    /// Everything but appends.
    catalogue: Entries,
    appends: Vec<(Vec<u8>, Run)>,
    segments: Vec<Arc<Segment>>,
}

impl LogSnapshot {
    /// Only for the committer's thread, with no group under way.
    pub(super) fn take(shared: &Shared) -> Result<Self, CommitError> {
        let stopped = |reason: String| CommitError::Stopped { reason };
        if let Some(reason) = shared.storage.failure() {
            return Err(stopped(reason));
        }
        let mut catalogue = Entries::new();
        let kinds = [keys::TOPICS, keys::LOGS, keys::PARTITIONS, keys::SEGMENTS, keys::LOST];
        for kind in kinds.iter().chain(keys::METADATA).chain(&keys::NEXT_ID[..1]) {
            let scanned = shared.storage.scan(&[*kind], |key, value| {
                catalogue.insert(key.to_vec(), value);
            });
            scanned.map_err(|e| stopped(e.to_string()))?;
        }
        let (mut appends, mut segments) = (Vec::new(), Vec::new());
        for ((log, id), partition) in &*shared.registry.read() {
            let state = partition.state.read();
            let key = |run: &Run| keys::head(*log, *id, run.first);
            appends.extend(state.tail.iter().map(|run| (key(run), run.clone())));
            segments.extend(state.segments.iter().cloned());
        }
        appends.sort_by(|a, b| a.0.cmp(&b.0));
        let (store_id, sequence) = (shared.storage.store_id(), shared.storage.sequence());
        Ok(Self { store_id, sequence, catalogue, appends, segments })
    }

    /// Everything but appends: the catalogue with its manifest.
    pub fn catalogue(&self) -> &Entries {
        &self.catalogue
    }

    /// All keys and values; they are encoded as they are asked for.
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], Cow<'_, [u8]>)> {
        let catalogue = self.catalogue.iter().map(|(k, v)| (k.as_slice(), Cow::from(v)));
        let appends = self.appends.iter().map(|(key, run)| {
            (key.as_slice(), Cow::from(codec::encode(&run.records, run.append_ms)))
        });
        catalogue.chain(appends)
    }

    /// The files of its segments, below the data directory, and their lengths in bytes.
    pub fn segment_files(&self) -> impl Iterator<Item = (String, u64)> {
        self.segments
            .iter()
            .map(|s| (format!("{SEGMENTS_DIR}/{}", s.entry.file), s.entry.file_bytes))
    }
}

impl Log {
    /// The head as of a commit between those before and those after the call.
    ///
    /// # Errors
    /// When storage has failed, or the log is closed.
    pub fn snapshot(&self) -> Result<LogSnapshot, CommitError> {
        let (answer, taken) = channel();
        let closed = || CommitError::Stopped { reason: "the host is shutting down".to_owned() };
        self.request(Request::Snapshot(answer)).map_err(|_| closed())?;
        taken.recv().unwrap_or_else(|| Err(closed()))
    }

    /// The data directory.
    pub fn dir(&self) -> std::path::PathBuf {
        self.shared().storage.dir().to_owned()
    }

    /// Counts commits that changed logs, topics, deployments or plugins.
    pub fn structure(&self) -> u64 {
        self.shared().structure.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// Sequence of the last commit that was applied.
    pub fn sequence(&self) -> u64 {
        self.shared().storage.sequence()
    }
}
