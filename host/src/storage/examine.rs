//! Looking at a head without trusting it: what an operator's tools do, not a host.
//!
//! sled writes when it opens, so the head is copied first and the copy is opened: what is examined
//! stays as it was, also where the disk cannot be written.
//!
//! **Invariant:** the directory that is examined is not changed. Every value handed on was checked
//! against its crc32c; every key whose value was not intact is handed on as such.

use std::path::{Path, PathBuf};

use super::frame;
use super::fs::FileSystem;
use super::opening::OLD;
use super::store::{Error, STORE_ID_KEY, TIP_KEY, assemble, read_format, read_high_water};

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
    pub faults: Vec<(PathBuf, String)>,
    /// Whether every key of the head was seen: false where sled could not open it or broke off.
    pub complete: bool,
}

/// The head of a data directory, copied to `scratch` to be opened there.
pub struct HeadExam {
    dir: PathBuf,
    scratch: tempfile::TempDir,
}

impl HeadExam {
    /// Copies the head of `dir` into a new folder below `scratch`, which goes with the examination.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn copy(dir: &Path, scratch: &Path) -> Result<Self, Error> {
        let made = tempfile::Builder::new().prefix("anabranch-doctor-").tempdir_in(scratch);
        let made = made.map_err(Error::io("create a folder below", scratch))?;
        // A start that was refused or ended leaves the original beside what it was recovered to.
        let (head, old) = (dir.join("head"), dir.join(OLD));
        let head = if old.exists() { old } else { head };
        if head.exists() {
            copy_folder(&head, &made.path().join("head"))
                .map_err(Error::io("copy the head to a scratch folder: see --scratch:", &head))?;
        }
        Ok(Self { dir: dir.to_owned(), scratch: made })
    }

    /// Hands every key of the head to `see`, with the sequence of its commit and its value, or with
    /// what is wrong with it.
    pub fn run(
        &self,
        fs: &dyn FileSystem,
        mut see: impl FnMut(&[u8], Result<(u64, Vec<u8>), String>),
    ) -> Examined {
        let mut found = Examined::default();
        match read_format(&self.dir, fs) {
            Ok(Some(id)) => found.format = Some(id),
            Ok(None) => {
                let place = self.dir.join("format");
                found.faults.push((place, "it is not there".to_owned()));
            }
            Err(e @ Error::Version { .. }) => {
                found.other_version = Some(e.to_string());
                return found;
            }
            Err(e) => found.faults.push((self.dir.join("format"), in_short(e))),
        }
        match read_high_water(&self.dir, fs) {
            Ok(mark) => found.high_water = Some(mark),
            Err(e) => found.faults.push((self.dir.join("high-water"), in_short(e))),
        }
        let place = self.dir.join("head");
        let copy = self.scratch.path().join("head");
        if !copy.join("db").exists() {
            found.faults.push((place.join("db"), "it is not there".to_owned()));
            return found;
        }
        let head = match fs.open_head(&copy) {
            Ok(head) => head,
            Err(e) => {
                found.faults.push((place, in_short(e)));
                return found;
            }
        };
        found.complete = true;
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
                    Err(e) => see(key, Err(in_short(e))),
                }
                Ok(())
            });
            if let Err(e) = scanned {
                found.complete = false;
                found.faults.push((place.clone(), in_short(e)));
            }
        }
        found
    }
}

/// What is wrong, without what to do about it: whoever examines knows better.
fn in_short(error: Error) -> String {
    match error {
        Error::Damaged { detail, .. } | Error::Format { detail, .. } => detail,
        other => other.to_string(),
    }
}

fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
