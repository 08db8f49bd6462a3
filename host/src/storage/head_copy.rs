//! A copy of a head in a file: every key and value as of one commit.
//!
//! A host writes one beside its head from time to time, from which a lost head is made again; a backup
//! begins with one, which also names the files that belong to it. It is an Arrow file of two columns,
//! `key` and `value`, sorted by key, and says in its metadata whose head it is and as of when.
//!
//! **Invariant:** a copy is complete or not there. Nothing of it is used before its crc32c was checked.

use std::path::Path;
use std::sync::Arc;

use arrow_array::builder::BinaryBuilder;
use arrow_array::cast::AsArray;
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, Schema};
use serde::{Deserialize, Serialize};

use super::arrow_file::{ArrowFile, ArrowFileError, ArrowFileWriter, Pace};
use super::fs::FileSystem;
use super::repair::Entries;

/// The copy's name in the data directory.
pub const HEAD_COPY: &str = "head-copy.arrow";

/// The version of what this module writes.
const VERSION: u32 = 1;
/// Bytes of keys and values of one block, about.
const BLOCK_BYTES: usize = 4 << 20;

/// What a copy says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AboutHead {
    /// Always `head`.
    pub kind: String,
    /// Of this format.
    pub version: u32,
    /// The store id, 16 hexadecimal digits.
    pub store: String,
    /// Everything up to this commit is in it, and nothing of later ones.
    pub sequence: u64,
    /// Wall time of the copy, in milliseconds since the Unix epoch.
    pub written_ms: i64,
    /// Of a backup: the files that belong to it.
    pub files: Vec<FileSum>,
}

/// A file of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSum {
    /// Below the data directory, and below that of the backup.
    pub path: String,
    /// Its length.
    pub size_bytes: u64,
    /// Of all its bytes.
    pub crc32c: u32,
}

impl AboutHead {
    /// Of a head as of `sequence`.
    pub fn new(store_id: u64, sequence: u64, written_ms: i64, files: Vec<FileSum>) -> Self {
        let (kind, store) = ("head".to_owned(), format!("{store_id:016x}"));
        Self { kind, version: VERSION, store, sequence, written_ms, files }
    }

    /// The store id.
    pub fn store_id(&self) -> u64 {
        u64::from_str_radix(&self.store, 16).unwrap_or_default()
    }
}

fn schema() -> Schema {
    let column = |name| Field::new(name, DataType::Binary, false);
    Schema::new(vec![column("key"), column("value")])
}

/// Writes a copy to `path`, in the place of one that was there; returns its length in bytes.
///
/// # Errors
/// When the disk refuses; a copy that was there stays.
pub fn write_head_copy<'a>(
    fs: &Arc<dyn FileSystem>,
    path: &Path,
    about: &AboutHead,
    entries: impl Iterator<Item = (&'a [u8], std::borrow::Cow<'a, [u8]>)>,
) -> Result<u64, ArrowFileError> {
    let schema = Arc::new(schema());
    let mut file = ArrowFileWriter::create(fs, path, &schema, Pace::Gentle)?;
    let (mut keys, mut values, mut bytes) = (BinaryBuilder::new(), BinaryBuilder::new(), 0);
    let mut flush = |keys: &mut BinaryBuilder, values: &mut BinaryBuilder| {
        let columns: Vec<ArrayRef> = vec![Arc::new(keys.finish()), Arc::new(values.finish())];
        let rows = RecordBatch::try_new(Arc::clone(&schema), columns)
            .map_err(|source| ArrowFileError::Columns { path: path.to_owned(), source })?;
        file.write(&[rows], serde_json::Value::Null)
    };
    for (key, value) in entries {
        bytes += key.len() + value.len();
        keys.append_value(key);
        values.append_value(&value);
        if bytes >= BLOCK_BYTES {
            flush(&mut keys, &mut values)?;
            bytes = 0;
        }
    }
    if bytes > 0 {
        flush(&mut keys, &mut values)?;
    }
    let about = serde_json::to_value(about).expect("a plain struct is always JSON");
    file.finish(about).map(|(size_bytes, _)| size_bytes)
}

/// Reads what a copy says of itself, its entries, and the length of its file.
///
/// # Errors
/// When it is not there, damaged, or of another version.
pub fn read_head_copy(
    fs: &dyn FileSystem,
    path: &Path,
) -> Result<(AboutHead, Entries), ArrowFileError> {
    let (about, file) = open(fs, path)?;
    let mut entries = Entries::new();
    for index in 0..file.blocks().len() {
        let rows = file.read(index)?;
        let (keys, values) = (rows.column(0).as_binary::<i32>(), rows.column(1).as_binary::<i32>());
        for row in 0..rows.num_rows() {
            entries.insert(keys.value(row).to_vec(), values.value(row).to_vec());
        }
    }
    Ok((about, entries))
}

/// Reads what a copy says of itself.
///
/// # Errors
/// As [`read_head_copy`].
pub fn read_about_head(fs: &dyn FileSystem, path: &Path) -> Result<AboutHead, ArrowFileError> {
    Ok(open(fs, path)?.0)
}

fn open(fs: &dyn FileSystem, path: &Path) -> Result<(AboutHead, ArrowFile), ArrowFileError> {
    let file = ArrowFile::open(fs, path)?;
    let bad = |detail: String| ArrowFileError::Damaged { path: path.to_owned(), detail };
    let about: AboutHead = serde_json::from_value(file.metadata().clone())
        .map_err(|e| bad(format!("it is no copy of a head: {e}")))?;
    if about.kind != "head" || file.schema().fields() != schema().fields() {
        return Err(bad("it is no copy of a head".to_owned()));
    }
    if about.version != VERSION {
        let found = about.version;
        return Err(bad(format!("it is of version {found}, and this host reads {VERSION}")));
    }
    Ok((about, file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::OsFileSystem;
    use crate::storage::arrow_file::Block;

    /// The bytes of version 1. `ANABRANCH_BLESS=1` writes them anew, which is right only together with a
    /// new version.
    #[test]
    fn golden_bytes_of_version_1_hold() {
        let golden =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/v1/head-copy.arrow");
        let dir = tempfile::tempdir().unwrap();
        let (fs, path): (Arc<dyn FileSystem>, _) = (Arc::new(OsFileSystem), dir.path().join("c"));
        let entries: Entries = [(b"a".to_vec(), b"1".to_vec()), (b"b".to_vec(), vec![7; 9])].into();
        let file = FileSum { path: "segments/1/a".to_owned(), size_bytes: 3, crc32c: 9 };
        let about = AboutHead::new(0xfe, 12, 1_700_000_000_000, vec![file]);
        let all = entries.iter().map(|(k, v)| (k.as_slice(), v.as_slice().into()));
        write_head_copy(&fs, &path, &about, all).unwrap();
        let written = std::fs::read(&path).unwrap();
        if std::env::var_os("ANABRANCH_BLESS").is_some() {
            std::fs::write(&golden, &written).unwrap();
        }
        assert!(std::fs::read(&golden).unwrap() == written, "these are not the bytes of version 1");
        assert_eq!(read_head_copy(fs.as_ref(), &golden).unwrap(), (about, entries));
    }

    #[test]
    fn a_copy_comes_back_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let (fs, path): (Arc<dyn FileSystem>, _) = (Arc::new(OsFileSystem), dir.path().join("c"));
        let mut entries: Entries =
            (0..300u32).map(|i| (i.to_be_bytes().to_vec(), vec![i as u8; 40_000])).collect();
        entries.insert(b"empty".to_vec(), Vec::new());
        let file = FileSum { path: "segments/1/a".to_owned(), size_bytes: 3, crc32c: 9 };
        let about = AboutHead::new(7, 12, -1, vec![file]);
        let write = |entries: &Entries| {
            let all = entries.iter().map(|(k, v)| (k.as_slice(), v.as_slice().into()));
            write_head_copy(&fs, &path, &about, all).unwrap()
        };
        write(&Entries::new());
        assert!(read_head_copy(fs.as_ref(), &path).unwrap().1.is_empty());
        let length = write(&entries);
        let blocks = ArrowFile::open(fs.as_ref(), &path).unwrap().blocks().to_vec();
        assert!(blocks.len() > 1);
        let whole = read_head_copy(fs.as_ref(), &path).unwrap();
        assert_eq!(whole, (about, entries));
        let good = std::fs::read(&path).unwrap();
        assert_eq!(good.len() as u64, length);
        for at in (0..good.len()).step_by(good.len() / 50) {
            let mut bad = good.clone();
            bad[at] ^= 16;
            std::fs::write(&path, &bad).unwrap();
            let read = read_head_copy(fs.as_ref(), &path);
            // What Arrow's readers have beside the blocks may differ, and nobody who restores looks at it.
            let in_block = |b: &Block| (b.offset..b.offset + b.length).contains(&(at as u64));
            let is_beside = !blocks.iter().any(in_block);
            assert!(read.map_or(true, |read| is_beside && read == whole), "byte {at} changed");
        }
    }
}
