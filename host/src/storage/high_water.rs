//! The high-water mark: the sequence of the last durable step, in a small file beside the head, by which
//! a lost tail of the head is found.
//!
//! **Invariant:** a mark is never higher than what is durable; a torn write leaves the one before it.

use std::io;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::fs::{File, FileSystem};
use crate::threads::Mutex;

/// There are two slots a sector apart, written in turn: a torn write spoils only one.
const SLOT_BYTES: u64 = 512;

/// The file, open.
pub(super) struct HighWater {
    path: PathBuf,
    file: Mutex<Box<dyn File>>,
}

impl HighWater {
    /// The mark of the data directory `dir`.
    ///
    /// # Errors
    /// When it is not there or the disk refuses.
    pub fn open(dir: &Path, fs: &dyn FileSystem) -> Result<Self, Error> {
        let path = dir.join("high-water");
        let file = fs.open(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::Damaged {
                place: path.display().to_string(),
                detail: "it is not there".to_owned(),
            },
            _ => Error::io("open", &path)(e),
        })?;
        Ok(Self { path, file: Mutex::new(file) })
    }

    /// A new one, without a mark.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn create(dir: &Path, fs: &dyn FileSystem) -> Result<Self, Error> {
        let path = dir.join("high-water");
        let file = fs.create(&path).map_err(Error::io("create", &path))?;
        Ok(Self { path, file: Mutex::new(file) })
    }

    /// Marks `sequence`. Not synced each time: a mark that is too low after a power cut is still true.
    pub fn write(&self, sequence: u64, store_id: u64) -> Result<(), Error> {
        let mut slot = [0; 20];
        slot[..8].copy_from_slice(&sequence.to_le_bytes());
        slot[8..16].copy_from_slice(&store_id.to_le_bytes());
        let crc = crc32c::crc32c(&slot[..16]);
        slot[16..].copy_from_slice(&crc.to_le_bytes());
        let written = self.file.lock().write_at(&slot, (sequence % 2) * SLOT_BYTES);
        written.map_err(Error::io("write", &self.path))
    }

    /// Makes what was marked durable.
    pub fn sync(&self) -> Result<(), Error> {
        self.file.lock().sync().map_err(Error::io("sync", &self.path))
    }

    /// The highest sequence that was marked.
    ///
    /// # Errors
    /// When neither slot is whole.
    pub fn read(&self) -> Result<u64, Error> {
        let (file, mut mark) = (self.file.lock(), None);
        for at in [0, SLOT_BYTES] {
            let mut slot = [0; 20];
            match file.read_at(&mut slot, at) {
                // The file ends before a slot that was never written.
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => continue,
                read => read.map_err(Error::io("read", &self.path))?,
            }
            let (number, crc) = slot.split_at(16);
            if crc == crc32c::crc32c(number).to_le_bytes() {
                let sequence = number.first_chunk().copied().map(u64::from_le_bytes);
                mark = mark.max(sequence);
            }
        }
        mark.ok_or_else(|| Error::Damaged {
            place: self.path.display().to_string(),
            detail: "neither of its two slots has a valid crc32c".to_owned(),
        })
    }
}
