//! A disk in memory that forgets what was not synced when the host is lost.
//!
//! A write is durable once its file is synced, a name once its folder is; before that, a loss keeps any
//! part of either: single sectors of a file, some of the names. The head keeps the first of the batches
//! that were applied since its last sync.
//!
//! Asked for, one write or sync of the head fails. What that sync should have kept may then be read and is
//! durable no more, as after an fsync that failed.
//!
//! **Invariant:** nothing that a host does after it was lost reaches the disk. What a loss keeps is a
//! function of the disk's seed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::storage::{Entry, Error, File, FileSystem, Head, HeadChanges, HeadSee as See};
use crate::threads::scheduler::{self, Random};

/// What a fault says.
pub const FAULT: &str = "the disk failed, as planned";
/// What a disk writes at once.
const SECTOR_BYTES: usize = 512;
/// How much of the disk is free: enough.
const FREE_BYTES: u64 = 1 << 40;
/// How long a sync takes, at most.
const SYNC_US: u64 = 3_000;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Node {
    Folder,
    /// Index into the files.
    File(usize),
}

#[derive(Default)]
struct Content {
    bytes: Vec<u8>,
    synced: Vec<u8>,
    dirty: bool,
}

/// A change of names that a loss may undo: paths and what they then are.
type Renaming = Vec<(PathBuf, Option<Node>)>;

#[derive(Default)]
struct HeadContent {
    now: BTreeMap<Vec<u8>, Vec<u8>>,
    synced: BTreeMap<Vec<u8>, Vec<u8>>,
    unsynced: Vec<HeadChanges>,
}

impl HeadContent {
    fn keep(&mut self, batches: usize) {
        for changes in self.unsynced.drain(..batches) {
            change(&mut self.synced, changes);
        }
    }
}

fn change(map: &mut BTreeMap<Vec<u8>, Vec<u8>>, changes: HeadChanges) {
    for (key, value) in changes {
        match value {
            Some(value) => drop(map.insert(key, value)),
            None => drop(map.remove(&key)),
        }
    }
}

struct State {
    random: Random,
    names: BTreeMap<PathBuf, Node>,
    synced: BTreeMap<PathBuf, Node>,
    unsynced: Vec<Renaming>,
    files: Vec<Content>,
    heads: BTreeMap<PathBuf, HeadContent>,
    locked: BTreeSet<PathBuf>,
    /// How many more writes and syncs of the head succeed before one fails.
    until_fault: Option<u64>,
}

/// The disk. Clones are the same one.
#[derive(Clone)]
pub struct Disk(Arc<Mutex<State>>);

impl Disk {
    /// An empty disk.
    pub fn new(seed: u64) -> Self {
        let root = BTreeMap::from([(PathBuf::from("/"), Node::Folder)]);
        Self(Arc::new(Mutex::new(State {
            random: Random(seed),
            names: root.clone(),
            synced: root,
            unsynced: Vec::new(),
            files: Vec::new(),
            heads: BTreeMap::new(),
            locked: BTreeSet::new(),
            until_fault: None,
        })))
    }

    /// Another disk with the same on it, durable, and a seed of its own.
    pub fn copy(&self, seed: u64) -> Self {
        let state = self.state();
        let files = state.files.iter().map(|content| Content {
            bytes: content.bytes.clone(),
            synced: content.bytes.clone(),
            dirty: false,
        });
        let heads = state.heads.iter().map(|(dir, head)| {
            let (now, synced) = (head.now.clone(), head.now.clone());
            (dir.clone(), HeadContent { now, synced, unsynced: Vec::new() })
        });
        Self(Arc::new(Mutex::new(State {
            random: Random(seed),
            names: state.names.clone(),
            synced: state.names.clone(),
            unsynced: Vec::new(),
            files: files.collect(),
            heads: heads.collect(),
            locked: BTreeSet::new(),
            until_fault: None,
        })))
    }

    /// Has a write or sync of the head fail after so many, or none any more.
    pub fn fail_after(&self, operations: Option<u64>) {
        self.state().until_fault = operations;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One operation; none after the host was lost.
    fn begin(&self, what: &str) -> io::Result<MutexGuard<'_, State>> {
        scheduler::pass(what);
        if scheduler::is_over() {
            return Err(io::Error::other("the host was lost"));
        }
        Ok(self.state())
    }

    /// Loses what was not synced, or some of it.
    pub fn lose(&self) {
        let mut state = self.state();
        let State { random, names, synced, unsynced, files, heads, locked, .. } = &mut *state;
        locked.clear();
        let mut undone: BTreeSet<PathBuf> = BTreeSet::new();
        for renaming in unsynced.drain(..) {
            let follows = renaming.iter().any(|(path, _)| undone.contains(path));
            if follows || random.one_in(2) {
                undone.extend(renaming.into_iter().map(|(path, _)| path));
                continue;
            }
            rename(synced, renaming);
        }
        // A folder that is gone took with it what was in it.
        let whole = synced.clone();
        synced.retain(|path, _| path.ancestors().all(|above| whole.contains_key(above)));
        names.clone_from(synced);
        for content in files.iter_mut().filter(|content| content.dirty) {
            content.tear(random);
        }
        heads.retain(|dir, _| names.contains_key(dir));
        for head in heads.values_mut() {
            let kept = random.below(head.unsynced.len() as u64 + 1) as usize;
            head.keep(kept);
            head.unsynced.clear();
            head.now.clone_from(&head.synced);
        }
    }
}

impl Content {
    /// Each sector is as it was synced, or as it was last written.
    fn tear(&mut self, random: &mut Random) {
        let (old, new) = (std::mem::take(&mut self.synced), std::mem::take(&mut self.bytes));
        let (short, long) = (old.len().min(new.len()), old.len().max(new.len()));
        let len = short + random.below((long - short) as u64 + 1) as usize;
        let mut kept = vec![0; len];
        for at in (0..len).step_by(SECTOR_BYTES) {
            let from = if random.one_in(2) { &old } else { &new };
            let end = (at + SECTOR_BYTES).min(len);
            if let Some(there) = from.get(at..end.min(from.len())) {
                kept[at..at + there.len()].copy_from_slice(there);
            }
        }
        (self.synced, self.bytes, self.dirty) = (kept.clone(), kept, false);
    }
}

fn rename(names: &mut BTreeMap<PathBuf, Node>, renaming: Renaming) {
    for (path, node) in renaming {
        match node {
            Some(node) => drop(names.insert(path, node)),
            None => drop(names.remove(&path)),
        }
    }
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{} is not there", path.display()))
}

impl State {
    fn file(&self, path: &Path) -> io::Result<usize> {
        match self.names.get(path) {
            Some(Node::File(file)) => Ok(*file),
            _ => Err(not_found(path)),
        }
    }

    fn change(&mut self, renaming: Renaming) -> io::Result<()> {
        for (path, _) in &renaming {
            if path.parent().is_some_and(|parent| self.names.get(parent) != Some(&Node::Folder)) {
                return Err(not_found(path));
            }
        }
        rename(&mut self.names, renaming.clone());
        self.unsynced.push(renaming);
        Ok(())
    }
}

struct OpenFile {
    disk: Disk,
    file: usize,
}

impl File for OpenFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.disk.begin("read")?;
        let bytes = &state.files[self.file].bytes;
        let range = offset as usize..offset as usize + buffer.len();
        buffer.copy_from_slice(bytes.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.begin("write")?;
        let content = &mut state.files[self.file];
        let end = offset as usize + bytes.len();
        content.bytes.resize(content.bytes.len().max(end), 0);
        content.bytes[offset as usize..end].copy_from_slice(bytes);
        content.dirty = true;
        Ok(())
    }

    /// This disk writes when it is asked to sync.
    fn write_back(&self, _: u64, _: u64) {}

    fn sync(&self) -> io::Result<()> {
        wait_for_disk();
        let mut state = self.disk.begin("sync")?;
        let content = &mut state.files[self.file];
        content.synced.clone_from(&content.bytes);
        content.dirty = false;
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.begin("length")?.files[self.file].bytes.len() as u64)
    }
}

fn wait_for_disk() {
    scheduler::sleep(Duration::from_micros(scheduler::random() % SYNC_US));
}

impl FileSystem for Disk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let mut state = self.begin("create")?;
        let file = match state.file(path) {
            Ok(file) => {
                state.files[file].bytes.clear();
                state.files[file].dirty = true;
                file
            }
            Err(_) => {
                let file = state.files.len();
                state.change(vec![(path.to_owned(), Some(Node::File(file)))])?;
                state.files.push(Content::default());
                file
            }
        };
        Ok(Box::new(OpenFile { disk: self.clone(), file }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let file = self.begin("open")?.file(path)?;
        Ok(Box::new(OpenFile { disk: self.clone(), file }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.begin("rename")?;
        let file = state.file(from)?;
        state.change(vec![(from.to_owned(), None), (to.to_owned(), Some(Node::File(file)))])
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.begin("remove")?;
        state.file(path)?;
        state.change(vec![(path.to_owned(), None)])
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        let state = self.begin("list")?;
        if !state.names.contains_key(dir) {
            return Err(not_found(dir));
        }
        let inside = state.names.iter().filter(|(path, _)| path.parent() == Some(dir));
        Ok(inside
            .map(|(path, node)| Entry {
                name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                is_dir: *node == Node::Folder,
                size_bytes: match node {
                    Node::Folder => 0,
                    Node::File(file) => state.files[*file].bytes.len() as u64,
                },
            })
            .collect())
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.begin("create folder")?;
        let mut above: Vec<_> = dir.ancestors().collect();
        above.reverse();
        for folder in above {
            if !state.names.contains_key(folder) {
                state.change(vec![(folder.to_owned(), Some(Node::Folder))])?;
            }
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        wait_for_disk();
        let mut state = self.begin("sync folder")?;
        let State { synced, unsynced, .. } = &mut *state;
        for renaming in unsynced.iter_mut() {
            let (inside, elsewhere): (Vec<_>, Vec<_>) =
                renaming.drain(..).partition(|(path, _)| path.parent() == Some(dir));
            rename(synced, inside);
            *renaming = elsewhere;
        }
        unsynced.retain(|renaming| !renaming.is_empty());
        Ok(())
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        Ok(FREE_BYTES)
    }

    fn open_head(&self, dir: &Path) -> Result<Box<dyn Head>, Error> {
        self.create_dir_all(dir).map_err(Error::io("open", dir))?;
        let mut state = self.begin("open head").map_err(Error::io("open", dir))?;
        state.heads.entry(dir.to_owned()).or_default();
        Ok(Box::new(DiskHead { disk: self.clone(), dir: dir.to_owned() }))
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Send + Sync>>> {
        let free = self.begin("lock")?.locked.insert(path.to_owned());
        let lock = Lock { disk: self.clone(), path: path.to_owned() };
        Ok(free.then(|| Box::new(lock) as Box<dyn Send + Sync>))
    }
}

struct Lock {
    disk: Disk,
    path: PathBuf,
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.disk.state().locked.remove(&self.path);
    }
}

struct DiskHead {
    disk: Disk,
    dir: PathBuf,
}

impl DiskHead {
    fn with<T>(&self, what: &str, then: impl FnOnce(&mut HeadContent) -> T) -> Result<T, Error> {
        let mut state = self.disk.begin(what).map_err(Error::io("use", &self.dir))?;
        Ok(then(state.heads.entry(self.dir.clone()).or_default()))
    }

    /// Whether this write or sync is the one that fails.
    fn fails(&self) -> bool {
        let mut state = self.disk.state();
        let left = state.until_fault;
        state.until_fault = left.and_then(|left| left.checked_sub(1));
        left == Some(0)
    }

    fn fault(&self, what: &'static str) -> Error {
        Error::io(what, &self.dir)(io::Error::other(FAULT))
    }
}

impl Head for DiskHead {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        self.with("head get", |head| head.now.get(key).cloned())
    }

    fn scan(&self, prefix: &[u8], see: See<'_>) -> Result<(), Error> {
        let found: Vec<_> = self.with("head scan", |head| {
            let from = head.now.range(prefix.to_vec()..);
            let found = from.take_while(|(key, _)| key.starts_with(prefix));
            found.map(|(key, value)| (key.clone(), value.clone())).collect()
        })?;
        found.iter().try_for_each(|(key, value)| see(key, value))
    }

    fn apply(&self, changes: HeadChanges) -> Result<(), Error> {
        let fails = self.fails();
        self.with("head apply", |head| {
            change(&mut head.now, changes.clone());
            head.unsynced.push(changes);
        })?;
        if fails { Err(self.fault("write")) } else { Ok(()) }
    }

    fn sync(&self) -> Result<(), Error> {
        wait_for_disk();
        let fails = self.fails();
        self.with("head sync", |head| match fails {
            true => head.unsynced.clear(),
            false => head.keep(head.unsynced.len()),
        })?;
        if fails { Err(self.fault("sync")) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::write_file;

    #[test]
    fn a_loss_keeps_what_was_synced_and_at_most_parts_of_the_rest() {
        let (mut torn, mut undone, mut kept) = (0, 0, 0);
        for seed in 0..200 {
            let disk = Disk::new(seed);
            disk.create_dir_all(Path::new("/d")).unwrap();
            disk.sync_dir(Path::new("/")).unwrap();
            write_file(&disk, Path::new("/d/whole"), &[7; 2_000]).unwrap();
            let file = disk.create(Path::new("/d/half")).unwrap();
            file.write_at(&[1; 2_000], 0).unwrap();
            file.sync().unwrap();
            file.write_at(&[2; 2_000], 0).unwrap();
            disk.lose();
            let whole = crate::storage::read_file(&disk, Path::new("/d/whole")).unwrap();
            assert_eq!(whole, [7; 2_000]);
            let Ok(half) = crate::storage::read_file(&disk, Path::new("/d/half")) else {
                undone += 1;
                continue;
            };
            assert!(half.iter().all(|byte| [1, 2].contains(byte)), "{half:?}");
            match half.iter().filter(|byte| **byte == 2).count() {
                2_000 => kept += 1,
                0 => {}
                _ => torn += 1,
            }
        }
        assert!(torn > 50 && undone > 50 && kept > 0, "{torn} torn, {undone} undone, {kept} kept");
    }

    #[test]
    fn a_folder_takes_with_it_what_was_in_it() {
        let lost = (0..50).any(|seed| {
            let disk = Disk::new(seed);
            disk.create_dir_all(Path::new("/d")).unwrap();
            write_file(&disk, Path::new("/d/file"), b"x").unwrap();
            disk.lose();
            disk.open(Path::new("/d/file")).is_err()
        });
        assert!(lost);
    }
}
