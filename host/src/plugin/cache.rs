//! Compiled plugins on disk, so that a plugin is compiled once per digest and engine.
//!
//! A file holds the SHA-256 of what follows, then what wasmtime serialised. Its name is the digest of
//! the component and a hash of engine version, configuration and CPU features.
//!
//! **Invariant:** compiled code is trusted, so it is only ever taken from this directory, which is
//! private to the host's user, and only when its checksum holds. Nothing here is the truth about
//! anything: an entry that is missing, corrupt or unreadable is compiled again, and one that cannot
//! be written costs a compilation at the next start. That is why these files, alone in the host, do
//! not go through the file-system seam: losing any of them at any moment is allowed.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest as _, Sha256};

const CHECKSUM_BYTES: usize = 32;

/// The directory of compiled plugins.
pub struct Cache {
    directory: PathBuf,
    writes: AtomicU64,
}

impl Cache {
    /// Opens the directory, made when missing, and takes all rights of others away.
    pub fn open(directory: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
        Ok(Self { directory: directory.to_owned(), writes: AtomicU64::new(0) })
    }

    fn path(&self, key: &str) -> PathBuf {
        self.directory.join(format!("{key}.cwasm"))
    }

    /// The entry's bytes; `None` when it is missing, unreadable or corrupt.
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        let mut bytes = fs::read(self.path(key)).ok()?;
        if bytes.len() < CHECKSUM_BYTES {
            return None;
        }
        let code = bytes.split_off(CHECKSUM_BYTES);
        (Sha256::digest(&code)[..] == bytes[..]).then_some(code)
    }

    /// A file without a name, as private as the entries: it goes when it is closed, whoever dies first.
    pub fn scratch(&self) -> io::Result<fs::File> {
        tempfile::tempfile_in(&self.directory)
    }

    /// Writes an entry: whole under its name, or not at all.
    pub fn put(&self, key: &str, code: &[u8]) -> io::Result<()> {
        let n = self.writes.fetch_add(1, Ordering::Relaxed);
        let partial = self.directory.join(format!("{key}.{n}.partial"));
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&partial)?;
        file.write_all(&Sha256::digest(code))?;
        file.write_all(code)?;
        drop(file);
        fs::rename(&partial, self.path(key))
    }

    /// Removes all entries whose keys begin with `prefix`.
    pub fn remove_all(&self, prefix: &str) {
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                // One that stays is taken by nobody.
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Removes an entry that turned out not to load.
    pub fn remove(&self, key: &str) {
        // Gone or not, the entry is written anew next.
        let _ = fs::remove_file(self.path(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(&directory.path().join("compiled")).unwrap();
        assert_eq!(cache.get("k"), None);
        cache.put("k", b"code").unwrap();
        assert_eq!(cache.get("k").as_deref(), Some(&b"code"[..]));

        for key in ["ab-1", "ab-2", "b-1"] {
            cache.put(key, b"").unwrap();
        }
        cache.remove_all("ab");
        assert_eq!(
            ["ab-1", "ab-2", "b-1"].map(|key| cache.get(key).is_some()),
            [false, false, true]
        );

        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&cache.directory), 0o700);
        assert_eq!(mode(&cache.path("k")), 0o600);

        let mut bytes = fs::read(cache.path("k")).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(cache.path("k"), &bytes).unwrap();
        assert_eq!(cache.get("k"), None, "a flipped bit was taken");
        fs::write(cache.path("k"), &bytes[..20]).unwrap();
        assert_eq!(cache.get("k"), None, "a torn entry was taken");
    }
}
