//! Looking at a head without trusting it: what an operator's tools do, not a host.
//!
//! sled writes when it opens, so the head is copied first and the copy is opened: what is examined
//! stays as it was, also where the disk cannot be written.
//!
//! **Invariant:** the directory that is examined is not changed. Every value handed on was checked
//! against its crc32c; every key whose value was not intact is handed on as such. Nothing is called
//! damaged but what was read and is wrong, or is known not to be there.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::arrow_file::ArrowFileError;
use super::error::Error;
use super::frame;
use super::fs::{Entry, FileSystem};
use super::high_water::HighWater;
use super::opening::{OLD, SETTINGS};
use super::store::{STORE_ID_KEY, TIP_KEY, assemble, read_format};

/// What must be writable where the head is copied to: a segment of sled's.
const PROBE_BYTES: usize = 8 << 20;

/// What keeps something on disk from being taken as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flaw {
    /// It is not there, or what was read of it is not what was written.
    Damage(String),
    /// The system did not let it be read: what it holds is not known, and may be whole.
    Unread(String),
}

impl Flaw {
    /// What sled says of its own files: it answers to bytes that it does not expect with errors of
    /// reading that the system knows nothing of.
    fn of_head(error: Error) -> Self {
        match error {
            Error::Io { source, .. } if source.raw_os_error().is_none() => {
                Self::Damage(source.to_string())
            }
            other => other.into(),
        }
    }
}

impl From<io::Error> for Flaw {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::{InvalidData, InvalidInput, NotFound, UnexpectedEof};
        // Of what is not there or ends too early everything was seen. A position that no file can have
        // was itself read from a file.
        match error.kind() {
            NotFound => Self::Damage("it is not there".to_owned()),
            UnexpectedEof | InvalidInput | InvalidData => Self::Damage(error.to_string()),
            _ => Self::Unread(error.to_string()),
        }
    }
}

impl From<Error> for Flaw {
    /// Without what to do about it: whoever examines knows better.
    fn from(error: Error) -> Self {
        match error {
            Error::Io { source, .. } => source.into(),
            Error::Damaged { detail, .. } | Error::Format { detail, .. } => Self::Damage(detail),
            other => Self::Damage(other.to_string()),
        }
    }
}

impl From<ArrowFileError> for Flaw {
    /// As above.
    fn from(error: ArrowFileError) -> Self {
        match error {
            ArrowFileError::Io { source, .. } => source.into(),
            ArrowFileError::Damaged { detail, .. } => Self::Damage(detail),
            other => Self::Damage(other.to_string()),
        }
    }
}

/// The entries of the folder `name` in `dir`; none where it is known not to be there.
///
/// # Errors
/// When one of the two cannot be listed.
pub fn list_folder(fs: &dyn FileSystem, dir: &Path, name: &str) -> io::Result<Vec<Entry>> {
    match fs.list(&dir.join(name)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let there = fs.list(dir)?.iter().any(|entry| entry.name == name);
            if there { Err(e) } else { Ok(Vec::new()) }
        }
        listed => listed,
    }
}

/// What lies in a data directory beside the values of its head.
#[derive(Debug, Default)]
pub struct Examined {
    /// The store id in the file `format`, if there is one.
    pub format: Option<u64>,
    /// The store id in the head.
    pub store_id: Option<u64>,
    /// The last commit in the head.
    pub tip: Option<u64>,
    /// The last commit that was acknowledged.
    pub high_water: Option<u64>,
    /// What [`Error::Version`] says, if the directory is of another version.
    pub other_version: Option<String>,
    /// What is wrong, each with its place.
    pub faults: Vec<(PathBuf, Flaw)>,
    /// Whether every key of the head was seen: false where sled could not open it or broke off.
    pub complete: bool,
}

/// The head of a data directory, copied to `scratch` to be opened there.
pub struct HeadExam {
    dir: PathBuf,
    /// The file of sled's settings as it was found. It is not used for the examination, but a host that
    /// starts believes it.
    settings: Option<Vec<u8>>,
    scratch: tempfile::TempDir,
    /// Taken for as long as the copy is used.
    _lock: File,
}

/// How the names of folders of copies begin.
const SCRATCH: &str = "anabranch-doctor-";
/// What such a folder may hold: the copy, and what [`HeadExam::blame`] writes.
const IN_SCRATCH: [&str; 2] = ["head", "probe"];

impl HeadExam {
    /// Copies the head of `dir` into a new folder below `scratch`, which goes with the examination.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn copy(dir: &Path, scratch: &Path) -> Result<Self, Error> {
        remove_left_over(scratch);
        let (made, lock) = make_scratch(scratch)
            .map_err(Error::io("create a folder (see --scratch) below", scratch))?;
        let is_there = |path: &Path| path.try_exists().map_err(Error::io("look for", path));
        // A start that was refused or ended leaves the original beside what it was recovered to.
        let (head, old) = (dir.join("head"), dir.join(OLD));
        let head = if is_there(&old)? { old } else { head };
        if is_there(&head)? {
            copy_folder(&head, &made.path().join("head"))?;
        }
        let settings = std::fs::read(made.path().join("head").join(SETTINGS)).ok();
        Ok(Self { dir: dir.to_owned(), settings, scratch: made, _lock: lock })
    }

    /// Hands every key of the head to `see`, with the sequence of its commit and its value, or with
    /// what is wrong with it.
    pub fn run(
        &self,
        fs: &dyn FileSystem,
        mut see: impl FnMut(&[u8], Result<(u64, Vec<u8>), String>),
    ) -> Examined {
        let mut found = Examined::default();
        let missing = || Flaw::Damage("it is not there".to_owned());
        match read_format(&self.dir, fs) {
            Ok(Some(id)) => found.format = Some(id),
            Ok(None) => found.faults.push((self.dir.join("format"), missing())),
            Err(e @ Error::Version { .. }) => {
                found.other_version = Some(e.to_string());
                return found;
            }
            Err(e) => found.faults.push((self.dir.join("format"), e.into())),
        }
        match HighWater::open(&self.dir, fs).and_then(|mark| mark.read()) {
            Ok(mark) => found.high_water = Some(mark),
            Err(e) => found.faults.push((self.dir.join("high-water"), e.into())),
        }
        let place = self.dir.join("head");
        let copy = self.scratch.path().join("head");
        match copy.join("db").try_exists() {
            Ok(true) => {}
            Ok(false) => {
                found.faults.push((place.join("db"), missing()));
                return found;
            }
            Err(e) => {
                found.faults.push((copy.join("db"), e.into()));
                return found;
            }
        }
        let head = match fs.open_head(&copy) {
            Ok(head) => head,
            Err(e) => {
                found.faults.push(self.blame(place, Flaw::of_head(e)));
                return found;
            }
        };
        found.complete = true;
        if self.has_wrong_settings(&copy) {
            let problem = "it is not what a host writes there, and keeps hosts from starting";
            found.faults.push((place.join(SETTINGS), Flaw::Damage(problem.to_owned())));
        }
        // A damaged page ends a scan; what begins with another byte may lie on intact ones.
        for first in 0..=u8::MAX {
            let scanned = head.scan(&[first], &mut |key, stored| {
                if first == frame::CHUNK_PREFIX {
                    return Ok(());
                }
                match assemble(&*head, key, stored) {
                    Ok((sequence, value)) => {
                        let number = value.as_slice().try_into().ok().map(u64::from_le_bytes);
                        match key {
                            TIP_KEY => found.tip = number,
                            STORE_ID_KEY => found.store_id = number,
                            _ => see(key, Ok((sequence, value))),
                        }
                    }
                    Err(e) => match Flaw::of_head(e) {
                        Flaw::Damage(problem) => see(key, Err(problem)),
                        unread => found.faults.push((copy.clone(), unread)),
                    },
                }
                Ok(())
            });
            if let Err(e) = scanned {
                found.complete = false;
                found.faults.push(self.blame(place.clone(), Flaw::of_head(e)));
            }
        }
        found
    }

    /// Whether sled's settings are others than it has just written in `copy`, where they were left out.
    /// It ignores the beginning of a file.
    fn has_wrong_settings(&self, copy: &Path) -> bool {
        const IGNORED_BYTES: usize = 8;
        let right = std::fs::read(copy.join(SETTINGS));
        match (&self.settings, right) {
            (Some(found), Ok(right)) => found.len() > IGNORED_BYTES && *found != right,
            _ => false,
        }
    }

    /// What is wrong with the copy of the head is wrong with the head, unless it lies where the copy
    /// was made: sled writes there, and where it cannot it fails in the same way.
    fn blame(&self, head: PathBuf, flaw: Flaw) -> (PathBuf, Flaw) {
        let scratch = self.scratch.path();
        let probe = scratch.join("probe");
        let written = std::fs::write(&probe, vec![0; PROBE_BYTES]);
        match (written.and_then(|()| File::open(&probe)?.sync_all()), flaw) {
            (Err(e), _) => (scratch.to_owned(), Flaw::Unread(format!("{e}; see --scratch"))),
            (Ok(()), flaw @ Flaw::Unread(_)) => (scratch.to_owned(), flaw),
            (Ok(()), flaw) => (head, flaw),
        }
    }
}

/// Makes a folder below `scratch` and takes it.
fn make_scratch(scratch: &Path) -> io::Result<(tempfile::TempDir, File)> {
    loop {
        let made = tempfile::Builder::new().prefix(SCRATCH).tempdir_in(scratch)?;
        let lock = File::open(made.path())?;
        // Another doctor may have found it before it was taken, and removed it. Where nothing can be
        // taken, none does.
        let is_found = matches!(lock.try_lock(), Err(TryLockError::WouldBlock));
        if !is_found && made.path().try_exists()? {
            return Ok((made, lock));
        }
    }
}

/// Removes what doctors that were killed left below `scratch`: copies of heads, which nobody uses.
fn remove_left_over(scratch: &Path) {
    for entry in std::fs::read_dir(scratch).into_iter().flatten().flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(SCRATCH)
            && entry.file_type().is_ok_and(|kind| kind.is_dir());
        let Some(lock) = is_ours.then(|| File::open(entry.path()).ok()).flatten() else { continue };
        let mut inside = std::fs::read_dir(entry.path()).into_iter().flatten();
        let is_known = |inside: io::Result<std::fs::DirEntry>| {
            inside.is_ok_and(|file| IN_SCRATCH.iter().any(|name| file.file_name() == *name))
        };
        if inside.all(is_known) && lock.try_lock().is_ok() {
            let path = entry.path();
            match std::fs::remove_dir_all(&path) {
                Ok(()) => tracing::info!("removed {}, which a killed doctor left", path.display()),
                Err(e) => tracing::warn!("cannot remove {}: {e}; remove it", path.display()),
            }
        }
    }
}

fn copy_folder(from: &Path, to: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(to).map_err(Error::io("create (see --scratch)", to))?;
    for entry in std::fs::read_dir(from).map_err(Error::io("list", from))? {
        let entry = entry.map_err(Error::io("list", from))?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(Error::io("look at", &path))?;
        if kind.is_dir() {
            copy_folder(&path, &target)?;
            continue;
        }
        let mut source = File::open(&path).map_err(Error::io("read", &path))?;
        let mut copy =
            File::create(&target).map_err(Error::io("create (see --scratch)", &target))?;
        let copied = io::copy(&mut source, &mut copy);
        copied.map_err(Error::io("copy to a scratch folder (see --scratch)", &path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_doctor_left_is_removed_and_nothing_else() {
        let (scratch, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let below = |path: &str| scratch.path().join(path);
        for file in ["anabranch-doctor-left/head/db", "anabranch-doctor-mine/notes", "head/db"] {
            std::fs::create_dir_all(below(file).parent().unwrap()).unwrap();
            std::fs::write(below(file), "x").unwrap();
        }
        let at_work = HeadExam::copy(data.path(), scratch.path()).unwrap();
        let in_use = at_work.scratch.path().to_owned();
        drop(HeadExam::copy(data.path(), scratch.path()).unwrap());
        assert!(!below("anabranch-doctor-left").exists(), "what was left is there");
        assert!(in_use.exists() && below("anabranch-doctor-mine/notes").exists());
        assert!(below("head/db").exists());
        drop(at_work);
        assert!(!in_use.exists(), "a doctor that ends leaves nothing");
    }
}
