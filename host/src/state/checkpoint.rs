//! Checkpoints: a task's stores at a position of its changelog, in an immutable file.
//!
//! A checkpoint is written from the one before it and the changelog since, never from memory: the
//! task goes on meanwhile. Rows are sorted by store, then by key; columns are `store` (u16), `key`
//! and `value` (binary).
//!
//! The changelog before a checkpoint is let go of with the commit that names it. So that commit also keeps
//! the checkpoint's checksum: it is all that is left to compare the file with.
//!
//! **Invariant:** a checkpoint holds no deleted key, and each key once. None is used that is not, to the
//! last entry, the one that was written.

use std::path::Path;
use std::sync::Arc;

use arrow_array::builder::{BinaryBuilder, UInt16Builder};
use arrow_array::cast::AsArray;
use arrow_array::types::UInt16Type;
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{ArrowError, DataType, Field, Schema};
use serde_json::{Value, json};

use super::{ChangeError, Changes, changelog_key};
use crate::storage::{ArrowFile, ArrowFileError, ArrowFileWriter, FileSystem, Flaw, Pace};

/// Most rows of a block.
const BLOCK_ROWS: usize = 32_768;

/// Most bytes of keys and values of a block.
const BLOCK_BYTES: usize = 4 << 20;

/// Why a checkpoint could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be written or read.
    #[error(transparent)]
    File(#[from] ArrowFileError),
    /// The changelog names no store.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// A whole checkpoint, and another than was asked for.
    #[error(
        "{path} is another checkpoint than the one that was written: the checksum of its index is {found:08x} and should be {expected:08x}; restore it from a backup"
    )]
    Other {
        /// The file.
        path: String,
        /// What it is.
        found: u32,
        /// What it should be.
        expected: u32,
    },
    /// The columns are not those of a checkpoint.
    #[error("{path} is no checkpoint: {detail}; restore it from a backup")]
    Columns {
        /// The file.
        path: String,
        /// What is wrong.
        detail: String,
    },
}

impl From<Error> for Flaw {
    fn from(error: Error) -> Self {
        match error {
            Error::File(error) => error.into(),
            other => Self::Damage(other.to_string()),
        }
    }
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Entries of all stores.
    pub entries: u64,
    /// Length of the file.
    pub size_bytes: u64,
    /// Of the file's index, which holds those of all entries.
    pub crc32c: u32,
}

/// A checkpoint to be read.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The file.
    pub path: &'a Path,
    /// What [`Written`] said of it, if that is known.
    pub crc32c: Option<u32>,
}

/// The columns of a checkpoint.
pub fn schema() -> Schema {
    Schema::new(vec![
        Field::new("store", DataType::UInt16, false),
        Field::new("key", DataType::Binary, false),
        Field::new("value", DataType::Binary, false),
    ])
}

/// Writes `path`: the checkpoint `base`, if there is one, with `changes` applied. `about` is kept in
/// the file's footer.
///
/// # Errors
/// When either file cannot be read or written; nothing is left under `path` then.
pub fn write(
    fs: &Arc<dyn FileSystem>,
    path: &Path,
    base: Option<Source<'_>>,
    changes: &Changes,
    about: Value,
) -> Result<Written, Error> {
    let mut blocks = BlockWriter::create(fs, path)?;
    let mut changes = changes.sorted().peekable();
    if let Some(base) = base {
        read(&**fs, base, |key, value| {
            while let Some((changed, new)) = changes.next_if(|(changed, _)| *changed < key) {
                blocks.push_change(changed, new)?;
            }
            match changes.next_if(|(changed, _)| *changed == key) {
                Some((changed, new)) => blocks.push_change(changed, new),
                None => blocks.push_change(key, Some(value)),
            }
        })?;
    }
    for (changed, new) in changes {
        blocks.push_change(changed, new)?;
    }
    blocks.finish(about)
}

/// Hands each entry of a checkpoint to `each`: store, key, value. Returns what its writer said about it.
///
/// # Errors
/// When the file cannot be read, is damaged, or is another; some entries may have been handed on.
pub fn load(
    fs: &dyn FileSystem,
    source: Source<'_>,
    mut each: impl FnMut(usize, &[u8], &[u8]),
) -> Result<Value, Error> {
    read(fs, source, |full, value| {
        let (store, key) = changelog_key::split(full)?;
        each(store, key, value);
        Ok(())
    })
}

/// Hands each entry to `each`, by changelog key.
fn read(
    fs: &dyn FileSystem,
    Source { path, crc32c }: Source<'_>,
    mut each: impl FnMut(&[u8], &[u8]) -> Result<(), Error>,
) -> Result<Value, Error> {
    let file = ArrowFile::open(fs, path)?;
    let found = file.index_crc32c();
    if let Some(expected) = crc32c.filter(|expected| *expected != found) {
        return Err(Error::Other { path: path.display().to_string(), found, expected });
    }
    if file.schema().fields() != schema().fields() {
        let detail = format!("its columns are {:?}", file.schema().fields());
        return Err(Error::Columns { path: path.display().to_string(), detail });
    }
    let mut full = Vec::new();
    for index in 0..file.blocks().len() {
        let rows = file.read(index)?;
        let stores = rows.column(0).as_primitive::<UInt16Type>();
        let (keys, values) = (rows.column(1).as_binary::<i32>(), rows.column(2).as_binary::<i32>());
        for row in 0..rows.num_rows() {
            full.clear();
            full.extend_from_slice(&stores.value(row).to_be_bytes());
            full.extend_from_slice(keys.value(row));
            each(&full, values.value(row))?;
        }
    }
    Ok(file.metadata()["about"].clone())
}

/// Gathers rows into blocks.
struct BlockWriter {
    path: String,
    schema: Arc<Schema>,
    file: ArrowFileWriter,
    stores: UInt16Builder,
    keys: BinaryBuilder,
    values: BinaryBuilder,
    rows: usize,
    bytes: usize,
    entries: u64,
}

impl BlockWriter {
    fn create(fs: &Arc<dyn FileSystem>, path: &Path) -> Result<Self, Error> {
        let schema = Arc::new(schema());
        Ok(Self {
            path: path.display().to_string(),
            file: ArrowFileWriter::create(fs, path, &schema, Pace::Gentle)?,
            schema,
            stores: UInt16Builder::new(),
            keys: BinaryBuilder::new(),
            values: BinaryBuilder::new(),
            rows: 0,
            bytes: 0,
            entries: 0,
        })
    }

    /// Adds an entry by its changelog key, unless it is a deletion.
    fn push_change(&mut self, full: &[u8], value: Option<&[u8]>) -> Result<(), Error> {
        let Some(value) = value else { return Ok(()) };
        let (store, key) = changelog_key::split(full)?;
        // A key carries its store's index as a u16.
        self.stores.append_value(store as u16);
        self.keys.append_value(key);
        self.values.append_value(value);
        self.rows += 1;
        self.bytes += key.len() + value.len();
        self.entries += 1;
        if self.rows >= BLOCK_ROWS || self.bytes >= BLOCK_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        if self.rows == 0 {
            return Ok(());
        }
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.stores.finish()),
            Arc::new(self.keys.finish()),
            Arc::new(self.values.finish()),
        ];
        let rows =
            RecordBatch::try_new(Arc::clone(&self.schema), columns).map_err(|e: ArrowError| {
                Error::Columns { path: self.path.clone(), detail: e.to_string() }
            })?;
        self.file.write(&[rows], Value::Null)?;
        (self.rows, self.bytes) = (0, 0);
        Ok(())
    }

    fn finish(mut self, about: Value) -> Result<Written, Error> {
        self.flush()?;
        let about = json!({ "kind": "checkpoint", "entries": self.entries, "about": about });
        let (size_bytes, crc32c) = self.file.finish(about)?;
        Ok(Written { entries: self.entries, size_bytes, crc32c })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use arrow_array::BinaryArray;

    use super::*;
    use crate::storage::OsFileSystem;

    type Entries = BTreeMap<(usize, Vec<u8>), Vec<u8>>;

    fn entries(path: &Path) -> Entries {
        let mut entries = Entries::new();
        load(&OsFileSystem, Source { path, crc32c: None }, |store, key, value| {
            let old = entries.insert((store, key.to_vec()), value.to_vec());
            assert!(old.is_none(), "a key twice");
        })
        .unwrap();
        entries
    }

    fn full(store: usize, key: &[u8]) -> Vec<u8> {
        let mut full = Vec::new();
        changelog_key::join(store, key, &mut full);
        full
    }

    fn column(row: Option<Vec<u8>>) -> BinaryArray {
        [row].iter().collect()
    }

    #[test]
    fn checkpoints_on_checkpoints_equal_a_plain_map() {
        let dir = tempfile::tempdir().unwrap();
        let fs: Arc<dyn FileSystem> = Arc::new(OsFileSystem);
        let seed = 11;
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut plain, mut base): (_, Option<(std::path::PathBuf, u32)>) = (Entries::new(), None);
        for round in 0..6 {
            let mut changes = Changes::default();
            for _ in 0..random.usize(0..2_000) {
                let (store, key) = (random.usize(0..3), vec![random.u8(..); random.usize(0..3)]);
                let value = random.bool().then(|| vec![random.u8(..); random.usize(0..20)]);
                changes.push(&column(Some(full(store, &key))), column(value.clone()));
                match value {
                    Some(value) => plain.insert((store, key), value),
                    None => plain.remove(&(store, key)),
                };
            }
            let path = dir.path().join(format!("{round}.arrow"));
            let of = |(path, crc32c)| Source { path, crc32c: Some(crc32c) };
            let old = base.as_ref().map(|(path, crc)| of((path, *crc)));
            let written = write(&fs, &path, old, &changes, json!({})).unwrap();
            assert_eq!(entries(&path), plain, "seed {seed} round {round}");
            assert_eq!(written.entries, plain.len() as u64);
            if let Some((other, _)) = &base {
                let source = Source { path: other, crc32c: Some(written.crc32c) };
                let refused = load(&*fs, source, |_, _, _| panic!("it is another")).unwrap_err();
                assert!(matches!(refused, Error::Other { .. }), "{refused}");
            }
            base = Some((path, written.crc32c));
        }
    }

    #[test]
    fn a_damaged_checkpoint_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let fs: Arc<dyn FileSystem> = Arc::new(OsFileSystem);
        let path = dir.path().join("c.arrow");
        let mut changes = Changes::default();
        changes.push(&column(Some(full(0, b"key"))), column(Some(vec![7; 100])));
        write(&fs, &path, None, &changes, json!({})).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(100).position(|w| w == [7; 100]).unwrap_or(bytes.len() / 3);
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let source = Source { path: &path, crc32c: None };
        let error = load(&*fs, source, |_, _, _| ()).unwrap_err().to_string();
        assert!(error.contains("c.arrow"), "{error}");
    }
}
