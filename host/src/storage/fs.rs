//! The file-system seam: the few operations that the host asks of a disk.
//!
//! **Invariant:** all files of the host but sled's own pass through [`FileSystem`], and it opens the head
//! that sled keeps, so that a simulated disk can stand in for all of it. A write is durable only after [`File::sync`], a name only
//! after [`FileSystem::sync_dir`] on its folder.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::crash::crash_point;
use super::error::Error;
use super::head::{Head, SledHead};

/// An open file. Reads and writes name their position; there is no cursor.
pub trait File: Send + Sync {
    /// Fills `buffer` from `offset`; an end of file on the way is an error.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Has the disk begin with `length` bytes from `offset` on, which were written and will be synced, so
    /// that the sync of another file does not wait for all of them at once.
    fn write_back(&self, offset: u64, length: u64);
    /// Writes `length` bytes from `offset` on to the disk and waits until it has taken them: what is synced
    /// next need not wait for them. They are not durable: the disk may hold them in memory, and the file's
    /// length is not written. An error is one of [`File::sync`].
    fn write_out(&self, offset: u64, length: u64) -> io::Result<()>;
    /// Makes what was written durable.
    fn sync(&self) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file holds no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// One entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name within the folder.
    pub name: String,
    /// Whether it is a folder itself.
    pub is_dir: bool,
    /// Length in bytes.
    pub size_bytes: u64,
}

/// A disk, with the head on it.
pub trait FileSystem: Send + Sync {
    /// Creates a file for reading and writing; one that exists is emptied.
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>>;
    /// Opens an existing file for reading, and for writing where the disk allows it.
    fn open(&self, path: &Path) -> io::Result<Box<dyn File>>;
    /// Renames a file, replacing what has the new name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// The entries of a folder, sorted by name.
    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>>;
    /// Creates a folder and those above it.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Bytes that can still be written to the disk that holds `path`.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
    /// Opens the head in the folder `dir`, or creates it.
    fn open_head(&self, dir: &Path) -> Result<Box<dyn Head>, Error>;
    /// Takes the file `path` for this process until the guard is dropped; `None` if another has it.
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Send + Sync>>>;
}

/// Passed before every change of a file or folder that the host makes itself.
pub(super) const CHANGE: &str = "disk-change";

/// The operating system's files.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsFileSystem;

impl File for fs::File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        crash_point(CHANGE);
        self.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        crash_point(CHANGE);
        self.sync_all()
    }

    fn write_back(&self, offset: u64, length: u64) {
        // What Linux does where it is told that bytes are not needed and they are not on the disk yet:
        // it writes them, and they stay in memory. Advice has no outcome that could matter.
        let length = std::num::NonZeroU64::new(length);
        let _ = rustix::fs::fadvise(self, offset, length, rustix::fs::Advice::DontNeed);
    }

    fn write_out(&self, offset: u64, length: u64) -> io::Result<()> {
        crash_point(CHANGE);
        #[cfg(target_os = "linux")]
        {
            use std::os::fd::AsRawFd as _;
            let how = libc::SYNC_FILE_RANGE_WAIT_BEFORE
                | libc::SYNC_FILE_RANGE_WRITE
                | libc::SYNC_FILE_RANGE_WAIT_AFTER;
            let (offset, length) = (offset as libc::off64_t, length as libc::off64_t);
            // SAFETY: takes no memory, and the file is open as long as it is borrowed.
            if unsafe { libc::sync_file_range(self.as_raw_fd(), offset, length, how) } == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            // Other file systems may not know it.
            if !matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL | libc::ESPIPE)) {
                return Err(error);
            }
        }
        self.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl FileSystem for OsFileSystem {
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        crash_point(CHANGE);
        let mut options = fs::OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(Box::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        match fs::OpenOptions::new().read(true).write(true).open(path) {
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                Ok(Box::new(fs::File::open(path)?))
            }
            opened => Ok(Box::new(opened?)),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        crash_point(CHANGE);
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        crash_point(CHANGE);
        fs::remove_file(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            // Through a link, as it is opened through; one that leads nowhere is what it is.
            let metadata = match fs::metadata(entry.path()).or_else(|_| entry.metadata()) {
                Ok(metadata) => metadata,
                // Removed or renamed since its name was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            entries.push(Entry {
                name: entry.file_name().to_string_lossy().into_owned(),
                is_dir: metadata.is_dir(),
                size_bytes: metadata.len(),
            });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        crash_point(CHANGE);
        fs::create_dir_all(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        crash_point(CHANGE);
        fs::File::open(dir)?.sync_all()
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn open_head(&self, dir: &Path) -> Result<Box<dyn Head>, Error> {
        Ok(Box::new(SledHead::open(dir)?))
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Send + Sync>>> {
        let mut options = fs::OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path)?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}

/// Creates a directory, durable with the folders above it that did not exist. Of a data directory that is
/// there only a host that was killed at its very first start may not have synced the name; of another it
/// is synced again.
///
/// # Errors
/// When the disk refuses.
pub fn create_dir(dir: &Path, fs: &dyn FileSystem) -> Result<(), Error> {
    let is_missing = |dir: &&Path| !dir.as_os_str().is_empty() && fs.list(dir).is_err();
    let missing = dir.ancestors().take_while(is_missing).count();
    let occupied = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            io::Error::other("what has that name is no directory, or a link that leads nowhere")
        }
        _ => error,
    };
    fs.create_dir_all(dir).map_err(occupied).map_err(Error::io("create", dir))?;
    let is_new = missing > 0 || fs.open(&dir.join("format")).is_err();
    let above = dir.ancestors().skip(1).take(if is_new { missing.max(1) } else { 0 });
    for folder in above {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        match fs.sync_dir(folder) {
            // Whoever made it there may do that.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied && missing == 0 => {}
            synced => synced.map_err(Error::io("sync", folder))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_folder_is_listed_while_files_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let [stays, goes, comes] = ["stays", "goes", "comes"].map(|name| dir.path().join(name));
        fs::write(&stays, "").unwrap();
        fs::write(&goes, "").unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("link")).unwrap();
        let done = AtomicBool::new(false);
        let there = |entries: &[Entry], name| entries.iter().any(|entry| entry.name == name);
        let wrong = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    fs::rename(&goes, &comes).unwrap();
                    fs::rename(&comes, &goes).unwrap();
                }
            });
            let mut listed = (0..20_000).map(|_| OsFileSystem.list(dir.path()));
            let wrong = listed.find(|listed| match listed {
                Ok(entries) => !there(entries, "stays") || !there(entries, "link"),
                Err(_) => true,
            });
            done.store(true, Ordering::Relaxed);
            wrong
        });
        assert!(wrong.is_none(), "{wrong:?}");
    }

    #[test]
    fn a_directory_in_whose_place_is_something_else() {
        let dir = tempfile::tempdir().unwrap();
        let (link, file) = (dir.path().join("link"), dir.path().join("file"));
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        std::fs::write(&file, "").unwrap();
        for path in [&link, &file] {
            let error = create_dir(path, &OsFileSystem).unwrap_err().to_string();
            assert!(error.contains("a link that leads nowhere"), "{error}");
        }
    }
}
