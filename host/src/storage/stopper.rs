//! A disk whose first failed sync is its last.
//!
//! After a failed sync nobody knows what is on disk: the kernel may have dropped the pages that it could
//! not write, and a second sync would say that all is well. So nothing is written any more, whichever
//! file it was, until the host is started again and has looked.
//!
//! **Invariant:** after a failed sync no file is created, written, synced or renamed. Reading goes on, and
//! so does removing, which takes only what no commit names.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::error::Error;
use super::fs::{Entry, File, FileSystem};
use super::head::Head;
use crate::threads::Mutex;

/// Why nothing is written any more; shared by all that could.
#[derive(Default)]
pub(super) struct Stop(Mutex<Option<String>>);

impl Stop {
    /// The first reason; `None` while things are written.
    pub(super) fn reason(&self) -> Option<String> {
        self.0.lock().clone()
    }

    /// Stops everything; a reason that was there first stays.
    pub(super) fn stop(&self, reason: &dyn std::fmt::Display) {
        self.0.lock().get_or_insert_with(|| reason.to_string());
    }

    fn check(&self) -> io::Result<()> {
        let stopped = |reason| Err(io::Error::other(format!("writing has stopped ({reason})")));
        self.reason().map_or(Ok(()), stopped)
    }

    fn sync(&self, path: &Path, synced: io::Result<()>) -> io::Result<()> {
        synced.inspect_err(|e| self.stop(&format!("cannot sync {}: {e}", path.display())))
    }
}

/// A file system that stops at the first failed sync.
pub(super) struct StoppingFileSystem {
    pub(super) inner: Arc<dyn FileSystem>,
    pub(super) stop: Arc<Stop>,
}

struct StoppingFile {
    inner: Box<dyn File>,
    path: std::path::PathBuf,
    stop: Arc<Stop>,
}

impl File for StoppingFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.stop.check()?;
        self.inner.write_at(bytes, offset)
    }

    fn write_back(&self, offset: u64, length: u64) {
        self.inner.write_back(offset, length);
    }

    fn write_out(&self, offset: u64, length: u64) -> io::Result<()> {
        self.stop.check()?;
        self.stop.sync(&self.path, self.inner.write_out(offset, length))
    }

    fn sync(&self) -> io::Result<()> {
        self.stop.check()?;
        self.stop.sync(&self.path, self.inner.sync())
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
}

impl StoppingFileSystem {
    fn file(&self, path: &Path, inner: Box<dyn File>) -> Box<dyn File> {
        Box::new(StoppingFile { inner, path: path.to_owned(), stop: Arc::clone(&self.stop) })
    }
}

impl FileSystem for StoppingFileSystem {
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        self.stop.check()?;
        Ok(self.file(path, self.inner.create(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        Ok(self.file(path, self.inner.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.stop.check()?;
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        self.inner.list(dir)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.stop.check()?;
        self.inner.create_dir_all(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.stop.check()?;
        self.stop.sync(dir, self.inner.sync_dir(dir))
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.inner.free_bytes(path)
    }

    fn open_head(&self, dir: &Path) -> Result<Box<dyn Head>, Error> {
        self.inner.open_head(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Send + Sync>>> {
        self.inner.lock(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::storage::{OsFileSystem, Storage, WriteBatch};

    #[test]
    fn a_failed_sync_of_any_file_is_final_until_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let os: Arc<dyn FileSystem> = Arc::new(OsFileSystem);
        let storage = Storage::open(dir.path(), &os, &SystemClock::shared()).unwrap();
        let fs = storage.file_system();
        let before = fs.create(&dir.path().join("before")).unwrap();
        // A head that a close would write anew: nearly all it had is gone.
        let rounds = 0..64_u8;
        for round in rounds.clone() {
            let mut large = WriteBatch::default();
            (0..16_u8).for_each(|key| large.put([b'e', round, key], vec![round; 60_000]));
            storage.apply(large).unwrap();
        }
        let mut gone = WriteBatch::default();
        rounds.for_each(|round| (0..16_u8).for_each(|key| gone.delete([b'e', round, key])));
        storage.apply(gone).unwrap();
        let mut batch = WriteBatch::default();
        batch.put(*b"d", *b"1");
        storage.apply(batch.clone()).unwrap();
        storage.sync().unwrap();
        // A device has nothing to sync, and says so.
        fs.open(Path::new("/dev/null")).unwrap().sync().unwrap_err();
        for refused in [storage.apply(batch.clone()).map(drop), storage.sync()] {
            let refused = refused.unwrap_err().to_string();
            assert!(refused.contains("/dev/null"), "{refused}");
        }
        assert!(storage.failure().is_some());
        for refused in [
            before.write_at(b"x", 0),
            before.sync(),
            fs.create(&dir.path().join("after")).map(drop),
            fs.rename(&dir.path().join("before"), &dir.path().join("after")),
            fs.sync_dir(dir.path()),
        ] {
            let refused = refused.unwrap_err().to_string();
            assert!(refused.contains("/dev/null"), "{refused}");
        }
        assert_eq!(storage.get(b"d").unwrap(), Some(b"1".to_vec()));
        let db = dir.path().join("head/db");
        let length = std::fs::metadata(&db).unwrap().len();
        assert!(length > 40 << 20, "{length} bytes are too few");
        drop((storage, before));
        assert_eq!(std::fs::metadata(&db).unwrap().len(), length);
        let storage = Storage::open(dir.path(), &os, &SystemClock::shared()).unwrap();
        storage.apply(batch).unwrap();
    }
}
