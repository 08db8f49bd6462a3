//! A disk in memory that forgets what was not synced when the host is lost.
//!
//! A write is durable once its file is synced, a name once its folder is; before that, a loss keeps any
//! part of either: single sectors of a file, some of the names. The head keeps the first of the batches
//! that were applied since its last sync.
//!
//! Asked for, the Nth operation fails ([`Fault`]), or it and all after it. Half of a write that fails is
//! done. What a sync that failed should have kept may still be read and is durable no more, whatever is
//! synced later, as after an fsync that failed.
//!
//! **Invariant:** nothing that a host does after it was lost reaches the disk. What a loss keeps is a
//! function of the disk's seed, and which operation fails is a function of the plan and the history.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::storage::{Entry, Error, File, FileSystem, Head, HeadChanges, HeadSee as See};
use crate::threads::scheduler::{self, Random};

/// EIO.
pub const IO_ERROR: i32 = 5;
/// ENOSPC, which only operations meet that may need space.
pub const NO_SPACE: i32 = 28;
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
    /// Whether a sync failed: what was written is never synced any more.
    broken: bool,
}

/// How the disk fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// How many operations succeed before, of those that can fail so.
    pub after: u64,
    /// [`IO_ERROR`] or [`NO_SPACE`].
    pub errno: i32,
    /// Whether all after it fail, too.
    pub lasts: bool,
}

/// An operation that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    pub what: &'static str,
    pub path: PathBuf,
}

impl Failed {
    /// Whether an error names the file, or the folder in which it is.
    pub fn is_named_in(&self, words: &str) -> bool {
        let path = self.path.to_string_lossy();
        let path = path.trim_end_matches(".tmp");
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        // The data directory itself says nothing.
        words.contains(path) || (folder.split('/').count() > 3 && words.contains(folder))
    }
}

/// What an operation does to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Reads,
    /// Gives space back.
    Removes,
    /// May need space.
    Grows,
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
    fault: Option<Fault>,
    /// Whether operations neither count nor fail for now.
    spared: bool,
    failed: Vec<Failed>,
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
            fault: None,
            spared: false,
            failed: Vec::new(),
        })))
    }

    /// Another disk with the same on it, durable, and a seed of its own.
    pub fn copy(&self, seed: u64) -> Self {
        let state = self.state();
        let files = state.files.iter().map(|content| Content {
            bytes: content.bytes.clone(),
            synced: content.bytes.clone(),
            ..Content::default()
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
            fault: None,
            spared: false,
            failed: Vec::new(),
        })))
    }

    /// Has the disk fail, or not any more.
    pub fn plan(&self, fault: Option<Fault>) {
        let mut state = self.state();
        (state.fault, state.spared) = (fault, false);
        state.failed.clear();
    }

    /// Neither counts nor fails what is done within: the reading of checks.
    pub fn spare<T>(&self, within: impl FnOnce() -> T) -> T {
        self.state().spared = true;
        let done = within();
        self.state().spared = false;
        done
    }

    /// Whether it has failed and goes on failing.
    pub fn fails_for_good(&self) -> bool {
        let state = self.state();
        state.fault.is_some() && !state.failed.is_empty()
    }

    /// What has failed since it was planned.
    pub fn failed(&self) -> Vec<Failed> {
        self.state().failed.clone()
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

    /// One operation that fails before it has done anything, if it is its turn.
    fn operate(
        &self,
        what: &'static str,
        effect: Effect,
        path: &Path,
    ) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.begin(what)?;
        state.fails(what, effect, path).map_or(Ok(state), Err)
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
        for content in files.iter_mut() {
            if content.dirty || content.broken {
                content.tear(random);
            }
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
        *self = Self { synced: kept.clone(), bytes: kept, ..Self::default() };
    }

    fn write(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        self.bytes.resize(self.bytes.len().max(end), 0);
        self.bytes[offset..end].copy_from_slice(bytes);
        self.dirty = true;
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

    /// The error of this operation, if it is the one that fails.
    fn fails(&mut self, what: &'static str, effect: Effect, path: &Path) -> Option<io::Error> {
        let fault = self.fault.as_mut().filter(|_| !self.spared)?;
        if fault.errno == NO_SPACE && effect != Effect::Grows {
            return None;
        }
        if let Some(left) = fault.after.checked_sub(1) {
            fault.after = left;
            return None;
        }
        let errno = fault.errno;
        if !fault.lasts {
            self.fault = None;
        }
        self.failed.push(Failed { what, path: path.to_owned() });
        Some(io::Error::from_raw_os_error(errno))
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
    path: PathBuf,
}

impl File for OpenFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.disk.operate("read", Effect::Reads, &self.path)?;
        let bytes = &state.files[self.file].bytes;
        let range = offset as usize..offset as usize + buffer.len();
        buffer.copy_from_slice(bytes.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.begin("write")?;
        let failed = state.fails("write", Effect::Grows, &self.path);
        let done = if failed.is_some() { bytes.len() / 2 } else { bytes.len() };
        state.files[self.file].write(&bytes[..done], offset as usize);
        failed.map_or(Ok(()), Err)
    }

    /// This disk writes when it is asked to sync.
    fn write_back(&self, _: u64, _: u64) {}

    fn write_out(&self, _: u64, _: u64) -> io::Result<()> {
        wait_for_disk();
        let mut state = self.disk.begin("write-out")?;
        let failed = state.fails("write-out", Effect::Grows, &self.path);
        state.files[self.file].broken |= failed.is_some();
        failed.map_or(Ok(()), Err)
    }

    fn sync(&self) -> io::Result<()> {
        wait_for_disk();
        let mut state = self.disk.begin("sync")?;
        let failed = state.fails("sync", Effect::Grows, &self.path);
        let content = &mut state.files[self.file];
        content.broken |= failed.is_some();
        if !content.broken {
            content.synced.clone_from(&content.bytes);
            content.dirty = false;
        }
        failed.map_or(Ok(()), Err)
    }

    fn len(&self) -> io::Result<u64> {
        let state = self.disk.operate("length", Effect::Reads, &self.path)?;
        Ok(state.files[self.file].bytes.len() as u64)
    }
}

fn wait_for_disk() {
    scheduler::sleep(Duration::from_micros(scheduler::random() % SYNC_US));
}

impl FileSystem for Disk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let mut state = self.operate("create", Effect::Grows, path)?;
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
        Ok(Box::new(OpenFile { disk: self.clone(), file, path: path.to_owned() }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let file = self.operate("open", Effect::Reads, path)?.file(path)?;
        Ok(Box::new(OpenFile { disk: self.clone(), file, path: path.to_owned() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.operate("rename", Effect::Grows, from)?;
        let file = state.file(from)?;
        state.change(vec![(from.to_owned(), None), (to.to_owned(), Some(Node::File(file)))])
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.operate("remove", Effect::Removes, path)?;
        state.file(path)?;
        state.change(vec![(path.to_owned(), None)])
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        let state = self.operate("list", Effect::Reads, dir)?;
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
        let mut state = self.operate("create folder", Effect::Grows, dir)?;
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
        let failed = state.fails("sync folder", Effect::Grows, dir);
        let State { synced, unsynced, .. } = &mut *state;
        for renaming in unsynced.iter_mut() {
            let (inside, elsewhere): (Vec<_>, Vec<_>) =
                renaming.drain(..).partition(|(path, _)| path.parent() == Some(dir));
            if failed.is_none() {
                rename(synced, inside);
            }
            *renaming = elsewhere;
        }
        unsynced.retain(|renaming| !renaming.is_empty());
        failed.map_or(Ok(()), Err)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.operate("ask for free space of", Effect::Reads, path).map(|_| FREE_BYTES)
    }

    fn open_head(&self, dir: &Path) -> Result<Box<dyn Head>, Error> {
        self.create_dir_all(dir).map_err(Error::io("open", dir))?;
        let opened = self.operate("open head", Effect::Grows, dir);
        let mut state = opened.map_err(Error::io("open", dir))?;
        state.heads.entry(dir.to_owned()).or_default();
        Ok(Box::new(DiskHead { disk: self.clone(), dir: dir.to_owned() }))
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Send + Sync>>> {
        let free = self.operate("lock", Effect::Grows, path)?.locked.insert(path.to_owned());
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
    fn read<T>(&self, then: impl FnOnce(&mut HeadContent) -> T) -> Result<T, Error> {
        let state = self.disk.operate("read", Effect::Reads, &self.dir);
        let mut state = state.map_err(Error::io("read", &self.dir))?;
        Ok(then(state.heads.entry(self.dir.clone()).or_default()))
    }

    /// Hands on whether the operation fails, too, as it may have done something even then.
    fn write(
        &self,
        what: &'static str,
        then: impl FnOnce(&mut HeadContent, bool),
    ) -> Result<(), Error> {
        let mut state = self.disk.begin(what).map_err(Error::io("use", &self.dir))?;
        let failed = state.fails(what, Effect::Grows, &self.dir);
        then(state.heads.entry(self.dir.clone()).or_default(), failed.is_some());
        failed.map_or(Ok(()), |e| Err(Error::io(what, &self.dir)(e)))
    }
}

impl Head for DiskHead {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        self.read(|head| head.now.get(key).cloned())
    }

    fn scan(&self, prefix: &[u8], see: See<'_>) -> Result<(), Error> {
        let found: Vec<_> = self.read(|head| {
            let from = head.now.range(prefix.to_vec()..);
            let found = from.take_while(|(key, _)| key.starts_with(prefix));
            found.map(|(key, value)| (key.clone(), value.clone())).collect()
        })?;
        found.iter().try_for_each(|(key, value)| see(key, value))
    }

    fn apply(&self, changes: HeadChanges) -> Result<(), Error> {
        self.write("write", |head, _| {
            change(&mut head.now, changes.clone());
            head.unsynced.push(changes);
        })
    }

    fn sync(&self) -> Result<(), Error> {
        wait_for_disk();
        self.write("sync", |head, fails| match fails {
            true => head.unsynced.clear(),
            false => head.keep(head.unsynced.len()),
        })
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
