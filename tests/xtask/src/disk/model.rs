//! What of a recording is durable, and what is not yet.
//!
//! The model is POSIX read strictly: a write is durable once a sync of its file that began after it has
//! ended, and a name once a sync of its folder has. A rename between two folders waits for both.
//! sync_file_range promises nothing. What is not durable may be there or not, see [`super::Policy`].
//!
//! **Invariant:** a change is durable here only if every disk that keeps its word has it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::recording::Event;

/// A file or folder, by its place in the disk's list; the first is the root.
pub(super) type Id = usize;

/// The folder that everything is below.
pub(super) const ROOT: Id = 0;

/// A sync that was done, as whoever ignores some of them sees it.
#[derive(Debug, Clone, Copy)]
pub struct Sync<'a> {
    /// The file or folder, by the name under which it was opened.
    pub path: &'a str,
    /// Whether it is a folder.
    pub is_dir: bool,
    /// Whether it was fdatasync.
    pub data_only: bool,
}

/// A change of a file that is not durable.
pub(super) struct Change {
    pub at: u64,
    pub offset: u64,
    pub data: Vec<u8>,
    /// Length of the file after it.
    pub length: u64,
}

/// A file.
#[derive(Default)]
pub(super) struct FileNode {
    pub durable: Vec<u8>,
    pub pending: Vec<Change>,
    /// With all changes.
    length: u64,
}

/// A folder.
#[derive(Default)]
pub(super) struct Folder {
    /// With all changes.
    names: BTreeMap<String, Id>,
    /// When each name changed last, durably, and what it stands for.
    pub durable: BTreeMap<String, (u64, Option<Id>)>,
}

pub(super) enum Node {
    File(FileNode),
    Folder(Folder),
}

/// Changes of names that are durable together.
pub(super) struct Renaming {
    pub at: u64,
    pub changes: Vec<(Id, String, Option<Id>)>,
    /// Folders that were not synced since.
    waits_for: BTreeSet<Id>,
}

type Ignored = Box<dyn Fn(Sync<'_>) -> bool>;

/// A disk, as far as it was recorded.
pub struct Disk {
    pub(super) nodes: Vec<Node>,
    pub(super) renamings: Vec<Renaming>,
    /// What each handle stands for, and the name that it was opened by.
    handles: HashMap<u64, (Id, String)>,
    /// When the syncs that are under way on a handle began.
    begun: HashMap<u64, Vec<u64>>,
    /// Counts events.
    at: u64,
    ignored: Ignored,
}

impl Disk {
    /// A disk that holds what lies below `root`, all of it durable; syncs that `ignored` picks are
    /// taken as never made.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub fn load(root: &Path, ignored: impl Fn(Sync<'_>) -> bool + 'static) -> Result<Self> {
        let mut disk = Self {
            nodes: vec![Node::Folder(Folder::default())],
            renamings: Vec::new(),
            handles: HashMap::new(),
            begun: HashMap::new(),
            at: 0,
            ignored: Box::new(ignored),
        };
        disk.load_folder(ROOT, root)?;
        Ok(disk)
    }

    fn load_folder(&mut self, folder: Id, path: &Path) -> Result<()> {
        for entry in std::fs::read_dir(path).with_context(|| path.display().to_string())? {
            let entry = entry?;
            let is_dir = entry.file_type()?.is_dir();
            let node = match is_dir {
                true => Node::Folder(Folder::default()),
                false => {
                    let durable = std::fs::read(entry.path())?;
                    let length = durable.len() as u64;
                    Node::File(FileNode { durable, length, pending: Vec::new() })
                }
            };
            let id = self.add(node);
            let name = entry.file_name().to_string_lossy().into_owned();
            let held = self.folder(folder)?;
            held.names.insert(name.clone(), id);
            held.durable.insert(name, (0, Some(id)));
            if is_dir {
                self.load_folder(id, &entry.path())?;
            }
        }
        Ok(())
    }

    fn add(&mut self, node: Node) -> Id {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn folder(&mut self, id: Id) -> Result<&mut Folder> {
        match &mut self.nodes[id] {
            Node::Folder(folder) => Ok(folder),
            Node::File(_) => bail!("a file is used as a folder"),
        }
    }

    fn file(&mut self, handle: u64) -> Result<&mut FileNode> {
        let (id, path) = self.handles.get(&handle).context("a handle that was never opened")?;
        match &mut self.nodes[*id] {
            Node::File(file) => Ok(file),
            Node::Folder(_) => bail!("{path} is written as a file"),
        }
    }

    /// The folder of a path and the name in it.
    fn split<'p>(&mut self, path: &'p str) -> Result<(Id, &'p str)> {
        match path.rsplit_once('/') {
            None => Ok((ROOT, path)),
            Some((above, name)) => Ok((self.find(above)?, name)),
        }
    }

    fn find(&mut self, path: &str) -> Result<Id> {
        let mut id = ROOT;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let there = self.folder(id)?.names.get(name).copied();
            id = there.with_context(|| format!("{path} is used and was never made"))?;
        }
        Ok(id)
    }

    /// Takes the next event.
    ///
    /// # Errors
    /// When it does not fit to those before it: then something was not recorded.
    pub fn apply(&mut self, event: Event) -> Result<()> {
        self.at += 1;
        match event {
            Event::Open { handle, path, create, empty } => {
                let id = match create {
                    true => {
                        let id = self.add(Node::File(FileNode::default()));
                        let (folder, name) = self.split(&path)?;
                        self.rename(vec![(folder, name.to_owned(), Some(id))])?;
                        id
                    }
                    false => self.find(&path)?,
                };
                self.begun.remove(&handle);
                self.handles.insert(handle, (id, path));
                if empty && !create {
                    self.truncate(handle, 0)?;
                }
            }
            Event::Write { handle, offset, data } => {
                let at = self.at;
                let file = self.file(handle)?;
                file.length = file.length.max(offset + data.len() as u64);
                file.pending.push(Change { at, offset, data, length: file.length });
            }
            Event::Truncate { handle, length } => self.truncate(handle, length)?,
            Event::SyncBegin { handle, .. } => {
                self.begun.entry(handle).or_default().push(self.at);
            }
            Event::SyncEnd { handle, data_only } => self.synced(handle, data_only)?,
            Event::Rename { from, to } => {
                let id = self.find(&from)?;
                let ((a, old), (b, new)) = (self.split(&from)?, self.split(&to)?);
                self.rename(vec![(a, old.to_owned(), None), (b, new.to_owned(), Some(id))])?;
            }
            Event::Unlink { path } | Event::RemoveDir { path } => {
                let (folder, name) = self.split(&path)?;
                self.rename(vec![(folder, name.to_owned(), None)])?;
            }
            Event::MakeDir { path } => {
                let id = self.add(Node::Folder(Folder::default()));
                let (folder, name) = self.split(&path)?;
                self.rename(vec![(folder, name.to_owned(), Some(id))])?;
            }
        }
        Ok(())
    }

    /// What is cut off reads as zeros if the file grows again.
    fn truncate(&mut self, handle: u64, length: u64) -> Result<()> {
        let at = self.at;
        let file = self.file(handle)?;
        let data = vec![0; file.length.saturating_sub(length) as usize];
        file.length = length;
        file.pending.push(Change { at, offset: length, data, length });
        Ok(())
    }

    fn rename(&mut self, changes: Vec<(Id, String, Option<Id>)>) -> Result<()> {
        for (folder, name, id) in &changes {
            let names = &mut self.folder(*folder)?.names;
            match id {
                Some(id) => names.insert(name.clone(), *id),
                None => names.remove(name),
            };
        }
        let waits_for = changes.iter().map(|(folder, ..)| *folder).collect();
        self.renamings.push(Renaming { at: self.at, changes, waits_for });
        Ok(())
    }

    fn synced(&mut self, handle: u64, data_only: bool) -> Result<()> {
        // Of two syncs of one handle it is not known which ended: the one that promises less.
        let begun = self.begun.get_mut(&handle).filter(|begun| !begun.is_empty());
        let began = begun.context("a sync ended that never began")?.remove(0);
        let (id, path) = &self.handles[&handle];
        let (id, is_dir) = (*id, matches!(self.nodes[*id], Node::Folder(_)));
        if (self.ignored)(Sync { path, is_dir, data_only }) {
            return Ok(());
        }
        match &mut self.nodes[id] {
            Node::File(file) => {
                let done = file.pending.partition_point(|change| change.at < began);
                for change in file.pending.drain(..done) {
                    put(&mut file.durable, &change);
                    file.durable.resize(change.length as usize, 0);
                }
            }
            Node::Folder(_) => {
                for renaming in self.renamings.iter_mut().filter(|r| r.at < began) {
                    renaming.waits_for.remove(&id);
                }
                let (done, waiting) = std::mem::take(&mut self.renamings)
                    .into_iter()
                    .partition(|renaming| renaming.waits_for.is_empty());
                self.renamings = waiting;
                let done: Vec<Renaming> = done;
                for renaming in done {
                    for (folder, name, id) in renaming.changes {
                        let known = &mut self.folder(folder)?.durable;
                        set_name(known, renaming.at, name, id);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Changes a name unless a later change of it is known.
pub(super) fn set_name(
    known: &mut BTreeMap<String, (u64, Option<Id>)>,
    at: u64,
    name: String,
    id: Option<Id>,
) {
    if known.get(&name).is_none_or(|(last, _)| *last <= at) {
        known.insert(name, (at, id));
    }
}

/// Puts a change's bytes where they belong.
fn put(content: &mut Vec<u8>, change: &Change) {
    let (from, end) = (change.offset as usize, change.offset as usize + change.data.len());
    if content.len() < end {
        content.resize(end, 0);
    }
    content[from..end].copy_from_slice(&change.data);
}
