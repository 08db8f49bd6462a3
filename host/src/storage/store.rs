//! The head: a bounded commit log and catalogue.
//!
//! [`Storage::apply`] makes one atomic step, [`Storage::sync`] makes all steps before it durable: the
//! head's own sync ([`Head`]), then the sequence of the last durable step into a small file of our own,
//! by which a lost tail is found at open.
//!
//! **Invariant:** one head, one data directory lock. A failure to write or sync is
//! final: the storage refuses everything from then on, because the kernel may have dropped the
//! pages it could not write. Nothing read from sled is used before its frame is checked.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::error::Error;
use super::frame::{self, Kind, MAX_PAYLOAD_BYTES};
use super::fs::{FileSystem, create_dir};
use super::head::Head;
use super::head_copy::HEAD_COPY;
use super::high_water::HighWater;
use super::repair;
use super::stopper::{Stop, StoppingFileSystem};
use super::watch::Watch;
use crate::clock::SharedClock;
use crate::threads::{self, Bug, RwLock};

/// The version of everything below the data directory; formats.md describes it.
pub const FORMAT_VERSION: u32 = 1;

pub(super) const TIP_KEY: &[u8] = b"m/tip";
pub(super) const STORE_ID_KEY: &[u8] = b"m/store-id";

/// Keys and values that change together. A later change of a key replaces an earlier one.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct WriteBatch {
    changes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl WriteBatch {
    /// Sets `key` to `value`.
    pub fn put(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.changes.insert(key.into(), Some(value.into()));
    }

    /// Removes `key`; nothing happens if it is not there.
    pub fn delete(&mut self, key: impl Into<Vec<u8>>) {
        self.changes.insert(key.into(), None);
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

struct State {
    /// Sequence of the last applied batch.
    sequence: u64,
    /// Keys whose values lie in chunks, and in how many.
    chunked: HashMap<Vec<u8>, u32>,
}

/// The head of one data directory, open.
pub struct Storage {
    dir: PathBuf,
    store_id: u64,
    head: Box<dyn Head>,
    /// Written between batches only: a reader that holds it sees whole batches.
    state: RwLock<State>,
    high_water: HighWater,
    /// The disk, which stops when this storage does, and the other way round.
    fs: Arc<dyn FileSystem>,
    stop: Arc<Stop>,
    /// Once somebody waits for this storage.
    watch: OnceLock<Watch>,
    /// Dropped last, so that the head is closed before another host may enter.
    _lock: Box<dyn Send + Sync>,
}

impl Storage {
    /// Opens the data directory, or creates it where there is none.
    pub fn open(dir: &Path, fs: &Arc<dyn FileSystem>, clock: &SharedClock) -> Result<Self, Error> {
        Self::open_or_create(dir, fs, || (clock.random() | 1, 0))
    }

    /// Creates a data directory for a store that was before: its id goes on, and so do the
    /// sequences of its commits, beyond `sequence`.
    pub fn create_again(
        dir: &Path,
        fs: &Arc<dyn FileSystem>,
        store_id: u64,
        sequence: u64,
    ) -> Result<Self, Error> {
        Self::open_or_create(dir, fs, || (store_id, sequence))
    }

    /// Opens as [`Storage::open`] does, in a process that ends when the head does not come back within
    /// `patience`: from being opened, a write, a sync or the read of a value.
    ///
    /// # Errors
    /// Those of [`Storage::open`], and when the machine gives no thread for it.
    pub fn open_watched(
        dir: &Path,
        fs: &Arc<dyn FileSystem>,
        clock: &SharedClock,
        patience: Duration,
    ) -> Result<Self, Error> {
        let head = dir.join("head");
        let place = head.clone();
        let watch = Watch::start(Arc::clone(clock), patience, move |what| {
            tracing::error!(
                "{what} of {} has not come back within {} ms: the host ends, as nobody knows what is on disk; check the disk, then start it again, or raise storage.sync_timeout_ms if the disk is that slow",
                place.display(),
                patience.as_millis()
            );
            std::process::exit(1);
        });
        let watch = watch.map_err(Error::io("watch", &head))?;
        let storage = watch.during("the opening", || Self::open(dir, fs, clock))?;
        // The first stays.
        let _ = storage.watch.set(watch);
        Ok(storage)
    }

    /// `identity`: store id and last sequence of a store that is created.
    fn open_or_create(
        dir: &Path,
        fs: &Arc<dyn FileSystem>,
        identity: impl FnOnce() -> (u64, u64),
    ) -> Result<Self, Error> {
        let stop = Arc::new(Stop::default());
        let (inner, stops) = (Arc::clone(fs), Arc::clone(&stop));
        let fs: Arc<dyn FileSystem> = Arc::new(StoppingFileSystem { inner, stop: stops });
        repair::refuse_unfinished_restore(dir, fs.as_ref())?;
        create_dir(dir, fs.as_ref())?;
        let lock_path = dir.join("lock");
        let lock = fs.lock(&lock_path).map_err(Error::io("lock", &lock_path))?;
        let lock = lock.ok_or_else(|| Error::Locked { dir: dir.to_owned() })?;
        let format = read_format(dir, fs.as_ref())?;
        if repair::is_pending(dir, fs.as_ref())? {
            return Err(Error::Repairing { dir: dir.to_owned() });
        }
        if format.is_none() {
            refuse_remains(dir, fs.as_ref())?;
        }
        let head = fs.open_head(&dir.join("head"))?;
        let (tip, store_id) = (read_number(&*head, TIP_KEY)?, read_number(&*head, STORE_ID_KEY)?);
        let high_water = match format {
            Some(_) => HighWater::open(dir, fs.as_ref())?,
            None if tip.is_some_and(|tip| tip > 1) => {
                let detail = "commits are there, but the file named format is not".to_owned();
                return Err(Error::Format { dir: dir.to_owned(), detail });
            }
            None => HighWater::create(dir, fs.as_ref())?,
        };
        let (new_id, last) = match format {
            Some(named) => (named, tip.unwrap_or(0)),
            None => identity(),
        };
        let mut storage = Self {
            dir: dir.to_owned(),
            store_id: store_id.unwrap_or(new_id),
            head,
            state: RwLock::new(State { sequence: last, chunked: HashMap::new() }),
            high_water,
            fs: Arc::clone(&fs),
            stop,
            watch: OnceLock::new(),
            _lock: lock,
        };
        match format {
            Some(store_id) => storage.check(store_id, tip)?,
            None => storage.create(fs.as_ref())?,
        }
        storage.find_chunks()?;
        Ok(storage)
    }

    /// The random number that names this store in all its files.
    pub fn store_id(&self) -> u64 {
        self.store_id
    }

    /// The disk, for all files beside the head: a sync of any that fails stops this storage for good.
    pub fn file_system(&self) -> Arc<dyn FileSystem> {
        Arc::clone(&self.fs)
    }

    /// The data directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Sequence of the last applied batch.
    pub fn sequence(&self) -> u64 {
        self.state.read().sequence
    }

    /// The value of `key`.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let _whole = self.state.read();
        self.in_time("a read", || {
            let Some(stored) = self.head.get(key)? else { return Ok(None) };
            Ok(Some(assemble(&*self.head, key, &stored)?.1))
        })
    }

    /// Shows all keys that begin with `prefix` and their values, in the order of keys.
    pub fn scan(&self, prefix: &[u8], mut see: impl FnMut(&[u8], Vec<u8>)) -> Result<(), Error> {
        let _whole = self.state.read();
        self.head.scan(prefix, &mut |key, stored| {
            if key.first() != Some(&frame::CHUNK_PREFIX) {
                see(key, assemble(&*self.head, key, stored)?.1);
            }
            Ok(())
        })
    }

    /// Makes all changes of `batch` at once; returns its sequence. Durable after [`Storage::sync`].
    pub fn apply(&self, batch: WriteBatch) -> Result<u64, Error> {
        self.check_running()?;
        let mut state = self.state.write();
        let sequence = state.sequence + 1;
        let mut changes = Vec::with_capacity(batch.changes.len() + 1);
        for (key, value) in batch.changes {
            debug_assert!(key.first() != Some(&frame::CHUNK_PREFIX));
            let old_chunks = state.chunked.remove(&key).unwrap_or(0);
            let mut new_chunks = 0;
            match value {
                None => changes.push((key.clone(), None)),
                Some(value) if value.len() <= MAX_PAYLOAD_BYTES => {
                    let framed = frame::encode(&key, Kind::Whole, sequence, &value);
                    changes.push((key.clone(), Some(framed)));
                }
                Some(value) => {
                    for chunk in value.chunks(MAX_PAYLOAD_BYTES) {
                        let name = frame::chunk_key(&key, new_chunks);
                        let framed = frame::encode(&name, Kind::Chunk, sequence, chunk);
                        changes.push((name, Some(framed)));
                        new_chunks += 1;
                    }
                    let head = frame::encode_chunked(value.len() as u64, new_chunks);
                    let framed = frame::encode(&key, Kind::Chunked, sequence, &head);
                    changes.push((key.clone(), Some(framed)));
                }
            }
            for index in new_chunks..old_chunks {
                changes.push((frame::chunk_key(&key, index), None));
            }
            if new_chunks > 0 {
                state.chunked.insert(key, new_chunks);
            }
        }
        let tip = sequence.to_le_bytes();
        changes.push((TIP_KEY.to_vec(), Some(frame::encode(TIP_KEY, Kind::Whole, sequence, &tip))));
        let applied = self.in_time("a write", || self.head.apply(changes));
        applied.map_err(|e| self.stopped(e))?;
        state.sequence = sequence;
        Ok(sequence)
    }

    /// Makes every batch applied before the call durable. A failure is final.
    pub fn sync(&self) -> Result<(), Error> {
        self.check_running()?;
        let sequence = self.sequence();
        if !threads::has(Bug::LostFsync) {
            let synced = self.in_time("a sync", || self.head.sync());
            synced.or_else(|e| match threads::has(Bug::UnheededSync) {
                true => Ok(()),
                false => Err(self.stopped(e)),
            })?;
        }
        self.high_water.write(sequence, self.store_id).map_err(|e| self.stopped(e))
    }

    fn in_time<T>(&self, what: &'static str, work: impl FnOnce() -> T) -> T {
        match self.watch.get() {
            Some(watch) => watch.during(what, work),
            None => work(),
        }
    }

    /// Syncs a last time. Dropping the storage without it loses nothing that was acknowledged.
    pub fn close(self) -> Result<(), Error> {
        self.sync()?;
        self.high_water.sync()
    }

    /// Why the storage has stopped for good; `None` while it takes writes.
    pub fn failure(&self) -> Option<String> {
        self.stop.reason()
    }

    /// Refuses when the storage has stopped for good.
    pub fn check_running(&self) -> Result<(), Error> {
        self.stop.reason().map_or(Ok(()), |reason| Err(Error::Stopped { reason }))
    }

    fn stopped(&self, error: Error) -> Error {
        self.stop.stop(&error);
        error
    }

    /// First use of a directory. The file `format` comes last: without it nothing was acknowledged.
    fn create(&mut self, fs: &dyn FileSystem) -> Result<(), Error> {
        let mut batch = WriteBatch::default();
        batch.put(STORE_ID_KEY, self.store_id.to_le_bytes());
        self.apply(batch)?;
        self.high_water.write(0, self.store_id)?;
        self.sync()?;
        self.high_water.sync()?;
        let head = self.dir.join("head");
        fs.sync_dir(&head).map_err(Error::io("sync", &head))?;
        // The name of what was made before: a loss of power may keep any name and lose another.
        fs.sync_dir(&self.dir).map_err(Error::io("sync", &self.dir))?;
        let (path, temporary) = (self.dir.join("format"), self.dir.join("format.tmp"));
        let text = format!("anabranch {FORMAT_VERSION} {:016x}\n", self.store_id);
        let write = || {
            let file = fs.create(&temporary)?;
            file.write_at(text.as_bytes(), 0)?;
            file.sync()?;
            fs.rename(&temporary, &path)?;
            fs.sync_dir(&self.dir)
        };
        write().map_err(Error::io("write", &path))
    }

    /// Later uses: what sled holds must be the same store, and not end before what was promised.
    fn check(&self, store_id: u64, tip: Option<u64>) -> Result<(), Error> {
        let acknowledged = self.high_water.read()?;
        let found = tip.unwrap_or(0);
        if found < acknowledged.max(1) {
            return Err(Error::LostTail { dir: self.dir.clone(), found, acknowledged });
        }
        if store_id != self.store_id {
            let (a, b) = (store_id, self.store_id);
            let detail = format!("file format names store {a:016x}, the head store {b:016x}");
            return Err(Error::Format { dir: self.dir.clone(), detail });
        }
        Ok(())
    }

    fn find_chunks(&mut self) -> Result<(), Error> {
        let mut chunked = HashMap::new();
        self.head.scan(&[frame::CHUNK_PREFIX], &mut |key, _| {
            let owner = frame::chunk_owner(key)
                .ok_or_else(|| damaged(key, "it is not the key of a chunk"))?;
            *chunked.entry(owner.to_vec()).or_insert(0) += 1;
            Ok(())
        })?;
        self.state.get_mut().chunked = chunked;
        Ok(())
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        if self.failure().is_some() {
            self.head.leave();
        }
    }
}

/// Refuses a directory without the file `format` in which there is something of a store that had one: it
/// was lost, and a new store in its place would write over what is left.
fn refuse_remains(dir: &Path, fs: &dyn FileSystem) -> Result<(), Error> {
    let left = |what: &str| {
        let detail = format!("{what}, but the file named format is not");
        Err(Error::Format { dir: dir.to_owned(), detail })
    };
    for folder in ["segments", "plugins", "checkpoints"] {
        let path = dir.join(folder);
        let there = match fs.list(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            listed => listed.map_err(Error::io("list", &path))?,
        };
        if !there.is_empty() {
            return left(&format!("{folder} are there"));
        }
    }
    for entry in fs.list(dir).map_err(Error::io("list", dir))? {
        if entry.name == HEAD_COPY {
            return left("a copy of the head is there");
        }
    }
    // The first start, killed, leaves a mark of its own first step at most.
    match HighWater::open(dir, fs).and_then(|mark| mark.read()) {
        Ok(mark) if mark > 1 => left(&format!("commits up to {mark} were acknowledged")),
        _ => Ok(()),
    }
}

/// The value behind the frame under `key`, put together where it lies in chunks, and its sequence.
pub(super) fn assemble(
    head: &dyn Head,
    key: &[u8],
    stored: &[u8],
) -> Result<(u64, Vec<u8>), Error> {
    let first = decode(key, stored)?;
    match first.kind {
        Kind::Whole => Ok((first.sequence, first.payload.to_vec())),
        Kind::Chunk => Err(damaged(key, "a chunk lies where a value should")),
        Kind::Chunked => {
            let (total_bytes, chunks) = frame::decode_chunked(first.payload)
                .ok_or_else(|| damaged(key, "its chunk count is cut off"))?;
            let mut value = Vec::with_capacity(total_bytes as usize);
            for index in 0..chunks {
                let name = frame::chunk_key(key, index);
                let stored = head.get(&name)?;
                let stored = stored.ok_or_else(|| damaged(key, "a chunk is missing"))?;
                let chunk = decode(&name, &stored)?;
                if chunk.sequence != first.sequence || chunk.kind != Kind::Chunk {
                    return Err(damaged(key, "a chunk belongs to another commit"));
                }
                value.extend_from_slice(chunk.payload);
            }
            if value.len() as u64 != total_bytes {
                return Err(damaged(key, "its chunks do not add up"));
            }
            Ok((first.sequence, value))
        }
    }
}

/// The store id in the file `format`; `None` where there is no such file.
pub(super) fn read_format(dir: &Path, fs: &dyn FileSystem) -> Result<Option<u64>, Error> {
    let path = dir.join("format");
    let file = match fs.open(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(Error::io("open", &path))?,
    };
    let mut text = vec![0; file.len().map_err(Error::io("read", &path))?.min(1024) as usize];
    file.read_at(&mut text, 0).map_err(Error::io("read", &path))?;
    let text = String::from_utf8_lossy(&text);
    let words: Vec<&str> = text.split_whitespace().collect();
    let version = FORMAT_VERSION.to_string();
    match words[..] {
        ["anabranch", found, id] if found == version && id.len() == 16 => {
            u64::from_str_radix(id, 16).ok().map(Some)
        }
        ["anabranch", found, _] if found != version && found.parse::<u32>().is_ok() => {
            let (dir, found) = (dir.to_owned(), found.to_owned());
            return Err(Error::Version { dir, found });
        }
        _ => None,
    }
    .ok_or_else(|| Error::Damaged {
        place: path.display().to_string(),
        detail: format!("it says {:?}", text.trim()),
    })
}

fn read_number(head: &dyn Head, key: &[u8]) -> Result<Option<u64>, Error> {
    let Some(stored) = head.get(key)? else { return Ok(None) };
    let number = decode(key, &stored)?.payload.try_into();
    let number = number.map_err(|_| damaged(key, "it is not a number of 8 bytes"))?;
    Ok(Some(u64::from_le_bytes(number)))
}

fn decode<'a>(key: &[u8], stored: &'a [u8]) -> Result<frame::Frame<'a>, Error> {
    frame::decode(key, stored).map_err(|detail| damaged(key, detail))
}

fn damaged(key: &[u8], detail: &str) -> Error {
    Error::Damaged {
        place: format!("the value of key \"{}\" in the head", key.escape_ascii()),
        detail: detail.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{ManualClock, SystemClock};
    use crate::storage::OsFileSystem;

    fn open(dir: &Path) -> Result<Storage, Error> {
        let fs: Arc<dyn FileSystem> = Arc::new(OsFileSystem);
        Storage::open(dir, &fs, &SystemClock::shared())
    }

    fn put(key: &[u8], value: &[u8]) -> WriteBatch {
        let mut batch = WriteBatch::default();
        batch.put(key, value);
        batch
    }

    #[test]
    fn values_of_every_size_survive_a_reopen() {
        let dir = tempfile::tempdir().unwrap();
        let sizes = [0, 1, MAX_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES + 1, 300_000];
        let value = |size: usize| (0..size).map(|i| i as u8).collect::<Vec<_>>();
        let storage = open(dir.path()).unwrap();
        for size in sizes {
            storage.apply(put(format!("d{size}").as_bytes(), &value(size))).unwrap();
        }
        let id = storage.store_id();
        storage.close().unwrap();
        let storage = open(dir.path()).unwrap();
        assert_eq!(storage.store_id(), id);
        for size in sizes {
            assert_eq!(storage.get(format!("d{size}").as_bytes()).unwrap(), Some(value(size)));
        }
        let mut seen = 0;
        storage.scan(b"d", |_, _| seen += 1).unwrap();
        assert_eq!(seen, sizes.len());
        let mut batch = WriteBatch::default();
        for size in sizes {
            batch.delete(format!("d{size}"));
        }
        storage.apply(batch).unwrap();
        let mut left = Vec::new();
        let mut see = |key: &[u8], _: &[u8]| {
            left.push(key.to_vec());
            Ok(())
        };
        storage.head.scan(b"", &mut see).unwrap();
        assert_eq!(left, [STORE_ID_KEY, TIP_KEY], "chunks outlived their value");
    }

    #[test]
    fn a_new_directory_outlives_a_loss_with_those_above_it() {
        for seed in 0..30 {
            let disk = crate::simulation::Disk::new(seed);
            let (fs, clock) =
                (Arc::new(disk.clone()) as Arc<dyn FileSystem>, SystemClock::shared());
            let dir = Path::new("/srv/data/anabranch");
            let storage = Storage::open(dir, &fs, &clock).unwrap();
            storage.apply(put(b"d", b"1")).unwrap();
            storage.sync().unwrap();
            drop(storage);
            disk.lose();
            let storage = Storage::open(dir, &fs, &clock).unwrap();
            assert_eq!(storage.get(b"d").unwrap(), Some(b"1".to_vec()), "seed {seed}");
        }
    }

    #[test]
    fn a_failure_is_final() {
        use crate::simulation::{Disk, Fault, IO_ERROR};
        let disk = Disk::new(1);
        let (fs, clock) = (Arc::new(disk.clone()) as Arc<dyn FileSystem>, SystemClock::shared());
        let storage = Storage::open(Path::new("/data"), &fs, &clock).unwrap();
        storage.apply(put(b"d", b"1")).unwrap();
        disk.plan(Some(Fault { after: 0, errno: IO_ERROR, lasts: false }));
        assert!(storage.sync().is_err());
        // The disk would take it now; what the kernel dropped would not be there.
        assert!(matches!(storage.sync(), Err(Error::Stopped { .. })));
        assert!(matches!(storage.apply(put(b"e", b"2")), Err(Error::Stopped { .. })));
    }

    #[test]
    fn a_second_host_is_told_where_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let _first = open(dir.path()).unwrap();
        let second = open(dir.path()).err().map(|e| e.to_string()).unwrap();
        assert!(second.contains(&dir.path().display().to_string()), "{second}");
        assert!(second.contains("another host"), "{second}");
    }

    #[test]
    fn a_lost_tail_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let storage = open(dir.path()).unwrap();
        storage.apply(put(b"d", b"1")).unwrap();
        storage.high_water.write(storage.sequence() + 1, storage.store_id).unwrap();
        storage.sync().unwrap();
        storage.high_water.write(9, storage.store_id).unwrap();
        drop(storage);
        let error = open(dir.path()).err().unwrap();
        assert!(matches!(error, Error::LostTail { found: 2, acknowledged: 9, .. }), "{error}");
    }

    /// A head of several of sled's segments, in which a bit flips: whoever opens it finds an error, or all
    /// of it. sled takes such a bit for the end of its log, or panics; the high-water mark tells.
    #[test]
    fn a_flipped_bit_anywhere_in_a_long_head_hides_no_key() {
        const SEED: u64 = 3;
        let mut random = crate::threads::scheduler::Random(SEED);
        let (dir, mut keys) = (tempfile::tempdir().unwrap(), BTreeMap::new());
        let storage = open(dir.path()).unwrap();
        for commit in 0..4_000 {
            let mut batch = WriteBatch::default();
            for _ in 0..8 {
                let key = format!("d{}", random.below(9_000)).into_bytes();
                if random.one_in(8) {
                    keys.remove(&key);
                    batch.delete(key);
                } else {
                    let value = vec![random.draw() as u8; random.below(1_500) as usize];
                    keys.insert(key.clone(), value.clone());
                    batch.put(key, value);
                }
            }
            storage.apply(batch).unwrap();
            if commit % 10 == 0 {
                storage.sync().unwrap();
            }
        }
        storage.close().unwrap();
        let bytes = std::fs::read(dir.path().join("head/db")).unwrap();
        assert!(bytes.len() > 16 << 20, "{} bytes are too few segments", bytes.len());
        let everything = |storage: &Storage| {
            let mut found = BTreeMap::new();
            storage.scan(b"d", |key, value| drop(found.insert(key.to_vec(), value)))?;
            Ok::<_, Error>(found)
        };
        let copy = |with: &[u8]| {
            let to = tempfile::tempdir().unwrap();
            std::fs::create_dir(to.path().join("head")).unwrap();
            for entry in std::fs::read_dir(dir.path().join("head")).unwrap() {
                let name = entry.unwrap().file_name();
                let from = dir.path().join("head").join(&name);
                if from.is_file() && name != "db" {
                    std::fs::copy(from, to.path().join("head").join(name)).unwrap();
                }
            }
            for name in ["format", "high-water"] {
                std::fs::copy(dir.path().join(name), to.path().join(name)).unwrap();
            }
            std::fs::write(to.path().join("head/db"), with).unwrap();
            to
        };
        let whole = copy(&bytes);
        assert!(everything(&open(whole.path()).unwrap()).unwrap() == keys);
        let (mut noticed, mut harmless) = (0, 0);
        for flip in 0..30 {
            let bit = random.below(bytes.len() as u64 * 8) as usize;
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let dir = copy(&bad);
            match open(dir.path()).and_then(|storage| everything(&storage)) {
                Ok(found) if found == keys => harmless += 1,
                Ok(_) => panic!("seed {SEED}, flip {flip}: bit {bit} hid keys and nobody noticed"),
                Err(error) => {
                    assert!(error.to_string().contains("head"), "{error}");
                    noticed += 1;
                }
            }
        }
        assert!(noticed > 0 && harmless > 0, "{noticed} noticed, {harmless} harmless");
    }

    #[test]
    fn another_format_and_half_a_directory_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let storage = open(dir.path()).unwrap();
        storage.apply(put(b"d", b"1")).unwrap();
        storage.close().unwrap();
        let format = dir.path().join("format");
        let text = std::fs::read_to_string(&format).unwrap();
        std::fs::write(&format, text.replace("anabranch 1", "anabranch 2")).unwrap();
        let error = open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("format version 2"), "{error}");
        std::fs::remove_file(&format).unwrap();
        let error = open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("format is not"), "{error}");
        std::fs::write(&format, text).unwrap();
        assert_eq!(open(dir.path()).unwrap().get(b"d").unwrap(), Some(b"1".to_vec()));
    }

    #[test]
    fn what_is_left_of_a_lost_store_keeps_a_new_one_away() {
        let lost = |remains: &dyn Fn(&Path)| {
            let dir = tempfile::tempdir().unwrap();
            let storage = open(dir.path()).unwrap();
            storage.close().unwrap();
            std::fs::remove_dir_all(dir.path().join("head")).unwrap();
            std::fs::remove_file(dir.path().join("format")).unwrap();
            remains(dir.path());
            let before = std::fs::read(dir.path().join("high-water")).ok();
            let opened = open(dir.path()).map(|_| ()).map_err(|error| error.to_string());
            if opened.is_err() {
                assert!(!dir.path().join("head").exists());
                assert_eq!(std::fs::read(dir.path().join("high-water")).ok(), before);
            }
            opened
        };
        // A first start that was killed leaves no more.
        assert_eq!(lost(&|_| ()), Ok(()));
        let acknowledged = |dir: &Path| {
            HighWater::open(dir, &OsFileSystem).unwrap().write(7, 1).unwrap();
        };
        assert!(lost(&acknowledged).unwrap_err().contains("commits up to 7 were acknowledged"));
        let copied = |dir: &Path| std::fs::write(dir.join(HEAD_COPY), "").unwrap();
        assert!(lost(&copied).unwrap_err().contains("a copy of the head is there"));
        for folder in ["segments", "plugins", "checkpoints"] {
            let filled = |dir: &Path| {
                std::fs::create_dir(dir.join(folder)).unwrap();
                std::fs::write(dir.join(folder).join("a"), "").unwrap();
            };
            assert!(lost(&filled).unwrap_err().contains(&format!("{folder} are there")));
        }
    }

    #[test]
    fn damage_in_the_head_is_an_error_and_no_panic() {
        let dir = tempfile::tempdir().unwrap();
        let storage = open(dir.path()).unwrap();
        for i in 0..200u32 {
            storage.apply(put(&i.to_be_bytes(), &[7; 1000])).unwrap();
        }
        storage.close().unwrap();
        let db = dir.path().join("head/db");
        let mut bytes = std::fs::read(&db).unwrap();
        for byte in bytes.iter_mut().skip(1000).step_by(97) {
            *byte ^= 0x55;
        }
        std::fs::write(&db, bytes).unwrap();
        let fs: Arc<dyn FileSystem> = Arc::new(OsFileSystem);
        let clock: SharedClock = ManualClock::new(0, 1);
        assert!(Storage::open(dir.path(), &fs, &clock).is_err());
    }
}
