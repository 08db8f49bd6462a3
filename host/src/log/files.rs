//! The files of segments as they are, against what the manifest says of them: for tools.
//!
//! **Invariant:** a file is called missing or damaged only if its folder was listed without it, or all
//! that was asked for of it was read.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use super::image::{Image, LogPartition};
use super::recovery::SEGMENTS_DIR;
use super::segment::{ExaminedSegment, SegmentEntry, examine};
use crate::storage::{FileSystem, Flaw, list_folder};

/// Something that is wrong with a file or with what is said of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileFault {
    /// Below the data directory.
    pub path: String,
    /// What is wrong.
    pub flaw: Flaw,
    /// Whether the manifest names it: then its records are missing. Others are only set aside.
    pub listed: bool,
}

/// The files of segments.
#[derive(Default)]
pub struct Files {
    /// By name below the folder of segments.
    pub(super) found: BTreeMap<String, Result<ExaminedSegment, Flaw>>,
}

impl Files {
    /// Names below the folder of segments of the data directory `data`, and their lengths in bytes.
    ///
    /// # Errors
    /// When a folder cannot be listed, with its path; what was not seen then is not known to be lost.
    pub fn list(
        fs: &dyn FileSystem,
        data: &Path,
    ) -> Result<BTreeMap<String, u64>, (PathBuf, io::Error)> {
        let dir = data.join(SEGMENTS_DIR);
        let mut files = BTreeMap::new();
        for folder in list_folder(fs, data, SEGMENTS_DIR).map_err(|e| (dir.clone(), e))? {
            if !folder.is_dir {
                files.insert(folder.name, folder.size_bytes);
                continue;
            }
            let path = dir.join(&folder.name);
            for file in fs.list(&path).map_err(|e| (path, e))? {
                files.insert(format!("{}/{}", folder.name, file.name), file.size_bytes);
            }
        }
        Ok(files)
    }

    /// Reads and checks every byte of the files `names`; `each` is told of bytes as they are read.
    pub fn examine(
        fs: &dyn FileSystem,
        data: &Path,
        names: impl IntoIterator<Item = String>,
        each: &mut dyn FnMut(u64),
    ) -> Self {
        let dir = data.join(SEGMENTS_DIR);
        let found = names.into_iter().map(|name| {
            let examined = examine(fs, &dir, &name, each);
            (name, examined)
        });
        Self { found: found.collect() }
    }

    /// What is wrong with the file of `entry`, if anything is.
    pub(super) fn fault(
        &self,
        id: LogPartition,
        entry: &SegmentEntry,
        store: &str,
    ) -> Option<Flaw> {
        let damage = |problem: String| Some(Flaw::Damage(problem));
        let found = match self.found.get(&entry.file) {
            None => return damage("the manifest names it, and it is not there".to_owned()),
            Some(Err(flaw)) => return Some(flaw.clone()),
            Some(Ok(found)) => found,
        };
        let says = (found.log, found.partition, found.entry.first, found.entry.next);
        let expected = (id.0, id.1, entry.first, entry.next);
        if found.store != store {
            return damage(format!("it belongs to store {}, and this is {store}", found.store));
        }
        let lengths = (found.entry.records, found.entry.file_bytes);
        if says != expected || lengths != (entry.records, entry.file_bytes) {
            return damage("it is not the file that the manifest names".to_owned());
        }
        None
    }

    /// The store that all files belong to which say so, if they agree: 16 hexadecimal digits.
    pub fn store(&self) -> Option<&str> {
        let mut stores = self.found.values().flatten().map(|found| found.store.as_str());
        let first = stores.next()?;
        stores.all(|store| store == first).then_some(first)
    }
}

impl Image {
    /// What is wrong with files that the manifest names, and which files it does not name.
    pub fn check_files(&self, files: &Files, store: &str) -> Vec<FileFault> {
        let mut faults = Vec::new();
        let mut named = BTreeSet::new();
        for (id, partition) in &self.partitions {
            for entry in partition.segments.values() {
                named.insert(&entry.file);
                if let Some(flaw) = files.fault(*id, entry, store) {
                    let path = format!("{SEGMENTS_DIR}/{}", entry.file);
                    faults.push(FileFault { path, flaw, listed: true });
                }
            }
        }
        for (name, found) in files.found.iter().filter(|(name, _)| !named.contains(name)) {
            let unnamed = || Flaw::Damage("the manifest does not name it".to_owned());
            let unread = found.as_ref().err().filter(|flaw| matches!(flaw, Flaw::Unread(_)));
            let flaw = unread.cloned().unwrap_or_else(unnamed);
            let path = format!("{SEGMENTS_DIR}/{name}");
            faults.push(FileFault { path, flaw, listed: false });
        }
        faults
    }
}
