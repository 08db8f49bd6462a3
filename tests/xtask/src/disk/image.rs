//! Images: what a disk may hold after a loss of power.
//!
//! Durable changes are there. Of the others each sector of 512 bytes holds any of the states that it has
//! had since, whatever its neighbours hold: so writes are lost, torn and reordered. A file's
//! length is any of those that it has had since, and what was never written within it is zeros or
//! anything. A name is changed or not, whatever other names are.
//!
//! **Invariant:** a sector never holds a later write without the earlier ones to the same sector: the
//! kernel writes pages, not calls.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context as _, Result};
use fastrand::Rng;

use super::model::{Disk, FileNode, Id, Node, ROOT, set_name};

/// What the disk writes at once.
const SECTOR_BYTES: u64 = 512;

/// What is kept of what is not durable.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Policy {
    /// Nothing.
    Nothing,
    /// All of it, as after a kill.
    Everything,
    /// Each change whole or not, by lot.
    Some(f64),
    /// Each sector of each change by itself, by lot.
    Torn(f64),
    /// What came before a moment, by lot.
    Early,
    /// What came after a moment, by lot.
    Late,
}

impl Policy {
    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing unsynced",
            Self::Everything => "everything",
            Self::Some(_) => "some writes",
            Self::Torn(_) => "torn",
            Self::Early => "early writes",
            Self::Late => "late writes",
        }
    }

    /// One by lot, the harshest most often.
    pub fn draw(random: &mut Rng) -> Self {
        match random.u32(0..10) {
            0..3 => Self::Nothing,
            3 => Self::Everything,
            4 => Self::Early,
            5..7 => Self::Late,
            7 => Self::Some(random.f64()),
            _ => Self::Torn(random.f64()),
        }
    }
}

/// Files by path; folders have no content.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Image(BTreeMap<String, Option<Vec<u8>>>);

/// Decides what is kept.
struct Chooser<'a> {
    policy: Policy,
    random: &'a mut Rng,
    /// The moment of [`Policy::Early`] and [`Policy::Late`].
    moment: u64,
    /// What was never written is anything instead of zeros.
    stale: bool,
}

impl Chooser<'_> {
    fn whole(&mut self, at: u64) -> bool {
        match self.policy {
            Policy::Nothing => false,
            Policy::Everything => true,
            Policy::Some(share) | Policy::Torn(share) => self.random.f64() < share,
            Policy::Early => at < self.moment,
            Policy::Late => at >= self.moment,
        }
    }
}

impl Disk {
    /// An image of the disk as it may be now.
    pub fn image(&self, policy: Policy, random: &mut Rng) -> Image {
        let first = self.pending().min().unwrap_or(0);
        let moment = random.u64(first..=self.pending().max().unwrap_or(0).max(first));
        let stale = policy != Policy::Everything && random.u32(0..4) == 0;
        let mut chooser = Chooser { policy, random, moment, stale };
        let mut names: HashMap<Id, BTreeMap<String, (u64, Option<Id>)>> = HashMap::new();
        for (id, node) in self.nodes.iter().enumerate() {
            if let Node::Folder(folder) = node {
                names.insert(id, folder.durable.clone());
            }
        }
        for renaming in &self.renamings {
            if chooser.whole(renaming.at) {
                for (folder, name, id) in &renaming.changes {
                    let known = names.entry(*folder).or_default();
                    set_name(known, renaming.at, name.clone(), *id);
                }
            }
        }
        let mut image = Image::default();
        self.collect(ROOT, "", &names, &mut chooser, &mut image);
        image
    }

    /// When the changes that are not durable were made.
    fn pending(&self) -> impl Iterator<Item = u64> {
        let files = self.nodes.iter().filter_map(|node| match node {
            Node::File(file) => Some(file),
            Node::Folder(_) => None,
        });
        let changes = files.flat_map(|file| file.pending.iter().map(|change| change.at));
        changes.chain(self.renamings.iter().map(|renaming| renaming.at))
    }

    fn collect(
        &self,
        folder: Id,
        path: &str,
        names: &HashMap<Id, BTreeMap<String, (u64, Option<Id>)>>,
        chooser: &mut Chooser<'_>,
        image: &mut Image,
    ) {
        for (name, (_, id)) in names.get(&folder).into_iter().flatten() {
            let Some(id) = id else { continue };
            let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            match &self.nodes[*id] {
                Node::File(file) => {
                    image.0.insert(path, Some(content(file, chooser)));
                }
                Node::Folder(_) => {
                    image.0.insert(path.clone(), None);
                    self.collect(*id, &path, names, chooser, image);
                }
            }
        }
    }
}

/// What a file may hold.
fn content(file: &FileNode, chooser: &mut Chooser<'_>) -> Vec<u8> {
    if file.pending.is_empty() || chooser.policy == Policy::Nothing {
        return file.durable.clone();
    }
    // The last change that each sector has of those to it: it has those before it, too.
    let mut last: HashMap<u64, usize> = HashMap::new();
    for (index, change) in file.pending.iter().enumerate() {
        let whole = chooser.whole(change.at);
        for sector in sectors(change.offset, change.data.len()) {
            let kept = match chooser.policy {
                Policy::Torn(share) => chooser.random.f64() < share,
                _ => whole,
            };
            if kept {
                last.insert(sector, index);
            }
        }
    }
    let lengths = |of: usize| match of {
        0 => file.durable.len() as u64,
        of => file.pending[of - 1].length,
    };
    let length = match chooser.policy {
        Policy::Everything => lengths(file.pending.len()),
        _ if chooser.random.bool() => lengths(file.pending.len()),
        _ => lengths(chooser.random.usize(0..=file.pending.len())),
    };
    let mut content = file.durable.clone();
    let end = file.pending.iter().map(|change| change.length).max().unwrap_or(0);
    let never_written = content.len().next_multiple_of(SECTOR_BYTES as usize);
    content.resize(content.len().max(end as usize), 0);
    if chooser.stale && never_written < content.len() {
        chooser.random.fill(&mut content[never_written..]);
    }
    for (index, change) in file.pending.iter().enumerate() {
        for sector in sectors(change.offset, change.data.len()) {
            if last.get(&sector).is_some_and(|last| index <= *last) {
                let begin = change.offset.max(sector * SECTOR_BYTES);
                let end =
                    (change.offset + change.data.len() as u64).min((sector + 1) * SECTOR_BYTES);
                let from = (begin - change.offset) as usize..(end - change.offset) as usize;
                let to = begin as usize..end as usize;
                if content.len() < to.end {
                    content.resize(to.end, 0);
                }
                content[to].copy_from_slice(&change.data[from]);
            }
        }
    }
    content.resize(length as usize, 0);
    content
}

/// The sectors that some bytes lie in.
fn sectors(offset: u64, length: usize) -> std::ops::Range<u64> {
    let end = offset + length as u64;
    offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES).max(offset / SECTOR_BYTES)
}

impl Image {
    /// What lies below `root` now, of the entry `name`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(root: &Path, name: &str) -> Result<Self> {
        fn read(path: &Path, name: String, image: &mut Image) -> Result<()> {
            if !path.is_dir() {
                image.0.insert(name, Some(std::fs::read(path)?));
                return Ok(());
            }
            image.0.insert(name.clone(), None);
            for entry in std::fs::read_dir(path)? {
                let entry = entry?;
                let below = format!("{name}/{}", entry.file_name().to_string_lossy());
                read(&entry.path(), below, image)?;
            }
            Ok(())
        }
        let mut image = Self::default();
        read(&root.join(name), name.to_owned(), &mut image)?;
        Ok(image)
    }

    /// Writes it below `root`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, root: &Path) -> Result<()> {
        std::fs::create_dir_all(root)?;
        for (path, content) in &self.0 {
            let path = root.join(path);
            match content {
                None => std::fs::create_dir(&path),
                Some(content) => std::fs::write(&path, content),
            }
            .with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    /// All files: path and content.
    pub fn files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().filter_map(|(path, content)| Some((&**path, &**content.as_ref()?)))
    }

    /// The first path at which two images differ, if one does.
    pub fn differs(&self, other: &Self) -> Option<String> {
        let mut paths = self.0.keys().chain(other.0.keys());
        let path = paths.find(|path| self.0.get(*path) != other.0.get(*path))?;
        let size = |image: &Self| match image.0.get(path) {
            None => "not there".to_owned(),
            Some(None) => "a folder".to_owned(),
            Some(Some(content)) => format!("{} bytes", content.len()),
        };
        Some(format!("{path}: {} and {}", size(self), size(other)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::recording::Event;
    use super::*;

    fn open(handle: u64, path: &str, create: bool) -> Event {
        Event::Open { handle, path: path.to_owned(), create, empty: false }
    }

    fn sync(disk: &mut Disk, handle: u64) {
        disk.apply(Event::SyncBegin { handle, data_only: false }).unwrap();
        disk.apply(Event::SyncEnd { handle, data_only: false }).unwrap();
    }

    fn write(disk: &mut Disk, handle: u64, offset: u64, byte: u8, count: usize) {
        let data = vec![byte; count];
        disk.apply(Event::Write { handle, offset, data }).unwrap();
    }

    /// A folder with a synced file `f` of 1,024 bytes 1, over which 2 and then 3 were written.
    fn disk() -> Disk {
        let empty = tempfile::tempdir().unwrap();
        let mut disk = Disk::load(empty.path(), |_| false).unwrap();
        disk.apply(open(1, "", false)).unwrap();
        disk.apply(open(2, "f", true)).unwrap();
        write(&mut disk, 2, 0, 1, 1024);
        sync(&mut disk, 2);
        sync(&mut disk, 1);
        write(&mut disk, 2, 0, 2, 1024);
        write(&mut disk, 2, 256, 3, 768);
        disk
    }

    fn file(disk: &Disk, policy: Policy, seed: u64) -> Option<Vec<u8>> {
        disk.image(policy, &mut Rng::with_seed(seed)).0.remove("f").flatten()
    }

    #[test]
    fn what_is_synced_stays_and_what_is_not_may_go() {
        let disk = disk();
        assert_eq!(file(&disk, Policy::Nothing, 1).unwrap(), vec![1; 1024]);
        let all = file(&disk, Policy::Everything, 1).unwrap();
        assert_eq!((&all[..256], &all[256..]), (&[2; 256][..], &[3; 768][..]));
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let torn = file(&disk, Policy::Torn(0.5), seed).unwrap();
            for (at, sector) in torn.chunks(512).enumerate() {
                // 3 without the 2 that was written before it to the same sector cannot be.
                let legal = [vec![1; 512], vec![2; 512], all[at * 512..][..512].to_vec()];
                let state = legal.iter().position(|legal| legal == sector);
                seen.insert((at, state.expect("a state that the sector never had")));
            }
        }
        assert_eq!(seen.len(), 6, "each sector is seen in each of its states: {seen:?}");
    }

    #[test]
    fn a_name_is_there_only_after_its_folder_was_synced() {
        let mut disk = disk();
        disk.apply(open(3, "new", true)).unwrap();
        sync(&mut disk, 3);
        let names = |disk: &Disk, policy| -> Vec<String> {
            disk.image(policy, &mut Rng::with_seed(3)).0.into_keys().collect()
        };
        assert_eq!(names(&disk, Policy::Nothing), ["f"]);
        assert_eq!(names(&disk, Policy::Everything), ["f", "new"]);
        let rename = Event::Rename { from: "new".to_owned(), to: "f".to_owned() };
        disk.apply(rename).unwrap();
        assert_eq!(file(&disk, Policy::Nothing, 1).unwrap(), vec![1; 1024]);
        assert!(file(&disk, Policy::Everything, 1).unwrap().is_empty());
        sync(&mut disk, 1);
        assert!(file(&disk, Policy::Nothing, 1).unwrap().is_empty());
    }

    #[test]
    fn a_sync_covers_what_was_written_before_it_began() {
        let mut disk = disk();
        disk.apply(Event::SyncBegin { handle: 2, data_only: true }).unwrap();
        write(&mut disk, 2, 0, 4, 512);
        disk.apply(Event::SyncEnd { handle: 2, data_only: true }).unwrap();
        let durable = file(&disk, Policy::Nothing, 1).unwrap();
        assert_eq!((&durable[..256], &durable[256..]), (&[2; 256][..], &[3; 768][..]));
    }

    #[test]
    fn an_ignored_sync_makes_nothing_durable() {
        let empty = tempfile::tempdir().unwrap();
        let mut disk = Disk::load(empty.path(), |sync| sync.path == "f").unwrap();
        disk.apply(open(1, "", false)).unwrap();
        disk.apply(open(2, "f", true)).unwrap();
        write(&mut disk, 2, 0, 1, 10);
        sync(&mut disk, 2);
        sync(&mut disk, 1);
        assert!(file(&disk, Policy::Nothing, 1).unwrap().is_empty());
    }
}
