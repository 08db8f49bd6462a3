//! What the head is kept in: a small ordered map on disk, behind four operations.
//!
//! In a host it is sled. A simulated disk has one of its own, so that a crash can take from it what was
//! not synced; one suite of tests holds both to the same.
//!
//! **Invariant:** changes that are applied together are there together, whatever happens; a crash takes
//! at most the last ones, and none that was applied before a sync that succeeded.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::crash::is_left_out;
use super::error::Error;
use super::opening::{self, Sled};
use crate::threads::quietly;

/// Keys that change, each to a value or to nothing.
pub type Changes = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// Is shown a key and its value.
pub type See<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<(), Error>;

/// An ordered map on disk. Any error of a write or sync is final for its caller.
pub trait Head: Send + Sync {
    /// The value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error>;

    /// Shows all keys that begin with `prefix` and their values, in the order of keys, until `see` fails.
    fn scan(&self, prefix: &[u8], see: See<'_>) -> Result<(), Error>;

    /// Makes all changes at once. Durable after [`Head::sync`].
    fn apply(&self, changes: Changes) -> Result<(), Error>;

    /// Makes everything applied before the call durable.
    fn sync(&self) -> Result<(), Error>;

    /// Nothing is written any more, also when it is dropped: the disk has failed elsewhere.
    fn leave(&self) {}
}

/// sled. Its flush ends in sync_file_range, which is no fsync: we do that on a descriptor of our own.
pub struct SledHead {
    /// There until it is dropped.
    db: Option<Sled>,
    db_file: std::fs::File,
    dir: PathBuf,
    /// Whether it was synced since it was opened.
    is_confirmed: AtomicBool,
    /// Whether it did not do what it was told, or the disk failed elsewhere.
    has_failed: AtomicBool,
}

impl SledHead {
    /// Opens the database in the folder `dir`, or creates it.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let db = opening::open(dir)?;
        let db_path = dir.join("db");
        let db_file = std::fs::OpenOptions::new().read(true).write(true).open(&db_path);
        let db_file = db_file.map_err(Error::io("open", &db_path))?;
        let (is_confirmed, has_failed) = (AtomicBool::new(false), AtomicBool::new(false));
        Ok(Self { db: Some(db), db_file, dir: dir.to_owned(), is_confirmed, has_failed })
    }

    fn db(&self) -> &sled::Db {
        self.db.as_ref().expect("only the end takes it")
    }

    fn refused(&self, what: &'static str) -> impl Fn(sled::Error) -> Error {
        move |error| sled_error(what, &self.dir, error)
    }

    fn changed<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        result.inspect_err(|_| self.has_failed.store(true, Ordering::SeqCst))
    }

    fn flush(&self) -> Result<(), Error> {
        guarded(&self.dir, || self.db().flush().map_err(self.refused("write")))?;
        if !is_left_out("head-sync") {
            self.db_file.sync_data().map_err(Error::io("sync", &self.dir.join("db")))?;
        }
        if !self.is_confirmed.load(Ordering::SeqCst) {
            opening::confirm(&self.dir)?;
            self.is_confirmed.store(true, Ordering::SeqCst);
        }
        Ok(())
    }
}

impl Head for SledHead {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let found = guarded(&self.dir, || self.db().get(key).map_err(self.refused("read")))?;
        Ok(found.map(|value| value.to_vec()))
    }

    fn scan(&self, prefix: &[u8], see: See<'_>) -> Result<(), Error> {
        guarded(&self.dir, || {
            self.db().scan_prefix(prefix).try_for_each(|entry| {
                let (key, value) = entry.map_err(self.refused("read"))?;
                see(&key, &value)
            })
        })
    }

    fn apply(&self, changes: Changes) -> Result<(), Error> {
        let mut batch = sled::Batch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        let apply = || self.db().apply_batch(batch).map_err(self.refused("write"));
        self.changed(guarded(&self.dir, apply))
    }

    fn sync(&self) -> Result<(), Error> {
        self.changed(self.flush())
    }

    fn leave(&self) {
        self.has_failed.store(true, Ordering::SeqCst);
    }
}

impl Drop for SledHead {
    fn drop(&mut self) {
        let Some(db) = self.db.take() else { return };
        // Nothing is made of a head in which not everything was found, or that refused something.
        let is_sound =
            self.is_confirmed.load(Ordering::SeqCst) && !self.has_failed.load(Ordering::SeqCst);
        // Nothing that was acknowledged needs what is done here.
        let ended = guarded(&self.dir, || {
            let is_rewritten = is_sound && opening::rewrite(&db, &self.dir)?;
            drop(db);
            if is_rewritten {
                opening::replace(&self.dir)?;
                opening::confirm(&self.dir)?;
            }
            Ok(())
        });
        if let Err(error) = ended {
            tracing::warn!("closing: {error}");
        }
    }
}

/// sled panics on bytes that it does not expect, and on some failures of the disk; that is an answer, not
/// a reason to go down.
pub(super) fn guarded<T>(head: &Path, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    quietly(work).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        let detail = text.unwrap_or("the database panicked").to_owned();
        Err(Error::Damaged { place: head.display().to_string(), detail })
    })
}

/// What sled refused to do with its files in `head`.
pub(super) fn sled_error(what: &'static str, head: &Path, error: sled::Error) -> Error {
    match error {
        sled::Error::Io(source) => Error::io(what, head)(source),
        other => {
            let detail = match other {
                sled::Error::Corruption { .. } => "sled read what it has not written".to_owned(),
                other => other.to_string(),
            };
            Error::Damaged { place: head.display().to_string(), detail }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::simulation::Disk;
    use crate::storage::FileSystem as _;
    use crate::threads::scheduler::Random;

    type Map = BTreeMap<Vec<u8>, Vec<u8>>;
    /// Changes in one batch: a key changes once.
    type Batch = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

    fn all(head: &dyn Head, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut found = Vec::new();
        head.scan(prefix, &mut |key, value| {
            found.push((key.to_vec(), value.to_vec()));
            Ok(())
        })
        .unwrap();
        found
    }

    /// What any head does: batches against a plain map, and after each end of the one that was open a
    /// state that is no older than the last sync.
    fn contract(seed: u64, end: impl Fn(Option<Box<dyn Head>>) -> Box<dyn Head>) {
        let mut random = Random(seed);
        let mut head = end(None);
        // The states since the last sync, the newest last.
        let mut states = vec![Map::new()];
        for _ in 0..200 {
            let mut state = states[states.len() - 1].clone();
            let change = |random: &mut Random| {
                let key = vec![b'a' + random.below(3) as u8, random.below(9) as u8];
                let value = vec![random.draw() as u8; random.below(100) as usize];
                (key, (!random.one_in(3)).then_some(value))
            };
            let changes: Batch = (0..random.below(5)).map(|_| change(&mut random)).collect();
            for (key, value) in changes.clone() {
                match value {
                    Some(value) => drop(state.insert(key, value)),
                    None => drop(state.remove(&key)),
                }
            }
            head.apply(changes.into_iter().collect()).unwrap();
            states.push(state);
            if random.one_in(5) {
                head.sync().unwrap();
                states.drain(..states.len() - 1);
            }
            if random.one_in(20) {
                head = end(Some(head));
                let found: Map = all(&*head, b"").into_iter().collect();
                let known = states.iter().rposition(|state| *state == found);
                let known = known.unwrap_or_else(|| panic!("seed {seed}: {found:?} never was"));
                states = vec![states[known].clone()];
            }
            let state = &states[states.len() - 1];
            let expected: Vec<_> = state.clone().into_iter().collect();
            assert_eq!(all(&*head, b""), expected, "seed {seed}");
            let some: Vec<_> = expected.into_iter().filter(|(key, _)| key[0] == b'b').collect();
            assert_eq!(all(&*head, b"b"), some, "seed {seed}");
            assert_eq!(head.get(b"b\x03").unwrap().as_ref(), state.get(&b"b\x03"[..]));
        }
        let stopped = head.scan(b"", &mut |_, _| {
            Err(Error::Stopped { reason: "by the one that sees".to_owned() })
        });
        assert!(stopped.is_err() || all(&*head, b"").is_empty());
    }

    #[test]
    fn sled_keeps_the_contract() {
        for seed in 0..3 {
            let dir = tempfile::tempdir().unwrap();
            contract(seed, |before| {
                drop(before);
                Box::new(SledHead::open(dir.path()).unwrap())
            });
        }
    }

    #[test]
    fn a_simulated_head_keeps_the_contract_also_when_it_is_lost() {
        for seed in 0..20 {
            let disk = Disk::new(seed);
            contract(seed, |before| {
                let head = disk.open_head(Path::new("/head")).unwrap();
                disk.sync_dir(Path::new("/")).unwrap();
                if before.is_some() {
                    disk.lose();
                }
                head
            });
        }
    }
}
