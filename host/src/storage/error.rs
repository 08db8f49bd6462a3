//! Why the storage did not do it, and the way out.

use std::io;
use std::path::{Path, PathBuf};

use super::store::FORMAT_VERSION;

/// Why the storage did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error(
        "cannot {what} {path}: {source}; check that it is where it should be and no file of another kind, is writable, and has space"
    )]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// Another host has the directory.
    #[error(
        "the data directory {dir} is in use by another host, or by a backup, doctor or restore that is at work: stop it, wait for it, or choose another directory"
    )]
    Locked {
        /// The data directory.
        dir: PathBuf,
    },
    /// The directory belongs to something else, or to another version.
    #[error(
        "{dir} is not a data directory that this host can use: {detail}; `anabranch doctor --data {dir}` says more, or restore a backup"
    )]
    Format {
        /// The data directory.
        dir: PathBuf,
        /// What was found instead.
        detail: String,
    },
    /// The directory was written by a host of another version.
    #[error(
        "{dir} has format version {found}, and this is anabranch {}, which reads version {FORMAT_VERSION}: run the version that wrote it, or choose another directory with --data",
        env!("CARGO_PKG_VERSION")
    )]
    Version {
        /// The data directory.
        dir: PathBuf,
        /// Its version.
        found: String,
    },
    /// Bytes on disk are not what was written.
    #[error(
        "{place} is damaged: {detail}; `anabranch doctor --data DIR` says what is lost and repairs, or restore a backup"
    )]
    Damaged {
        /// File or key.
        place: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The head ends before what was acknowledged.
    #[error(
        "{dir}/head has lost commits: it ends at commit {found}, but {acknowledged} was acknowledged; `anabranch doctor --data {dir}` says what is lost and repairs, or restore a backup"
    )]
    LostTail {
        /// The data directory.
        dir: PathBuf,
        /// The last commit that is there.
        found: u64,
        /// The last commit that was made durable.
        acknowledged: u64,
    },
    /// A repair has made a new head and was ended before the head was in its place.
    #[error(
        "a repair of {dir} was interrupted: finish it with `anabranch doctor --data {dir} --repair`"
    )]
    Repairing {
        /// The data directory.
        dir: PathBuf,
    },
    /// A restore was ended, or is at work, and the directory has no store yet.
    #[error(
        "a restore of {dir} was interrupted or is under way: run `anabranch restore BACKUP --data {dir}` again, or remove {unfinished} to begin without it"
    )]
    Restoring {
        /// The data directory.
        dir: PathBuf,
        /// Where it is made.
        unfinished: PathBuf,
    },
    /// An earlier write failed, and that is final.
    #[error(
        "storage stopped after a failed write ({reason}): check the disk, then restart the host"
    )]
    Stopped {
        /// The first failure.
        reason: String,
    },
}

impl Error {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}
