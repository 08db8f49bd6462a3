//! Immutable Arrow IPC files of blocks, for log segments and state checkpoints.
//!
//! A file is an ordinary Arrow IPC file (pyarrow opens it as it is) with lz4 bodies. Its footer's
//! custom metadata has one key, [`INDEX_KEY`]: eight hexadecimal digits of the crc32c of what
//! follows, a space, and a JSON object with the caller's metadata and, for each block, its byte
//! range, crc32c, rows and the caller's metadata. Reads go by that index, one block at a time.
//!
//! **Invariant:** a file has its name only once it is complete and synced, and never changes then. No
//! byte of a block is used before the block's crc32c was checked.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_ipc::convert::IpcSchemaEncoder;
use arrow_ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteOptions, write_message};
use arrow_ipc::{FooterBuilder, MetadataVersion};
use arrow_schema::{ArrowError, Schema, SchemaRef};
use flatbuffers::FlatBufferBuilder;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::arrow_block::{self, BlockWriter, Column};
use super::fs::{File, FileSystem};
use super::{memory, packed};
use crate::threads::quietly;

/// The key of the footer's custom metadata under which the index lies.
pub const INDEX_KEY: &str = "anabranch";
/// Ends the name of a file that is being written.
pub const TEMPORARY_SUFFIX: &str = ".tmp";
/// Bytes that are gathered before they are written.
const WRITE_BYTES: usize = 256 << 10;
/// How a file begins, up to where its schema is aligned, and ends.
pub(super) const MAGIC_AT_BEGIN: &[u8] = b"ARROW1\0\0";
pub(super) const MAGIC: &[u8] = b"ARROW1";
/// A message that is none.
const END_OF_STREAM: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
/// Footers beyond this are taken for damage.
const MAX_FOOTER_BYTES: u64 = 256 << 20;

/// Why a file could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ArrowFileError {
    /// The disk refused.
    #[error("cannot {what} {path}: {source}; check the disk")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The bytes are not what was written.
    #[error("{path} is damaged: {detail}; restore it from a backup")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The columns cannot be written.
    #[error("cannot write columns to {path}: {source}")]
    Columns {
        /// The file.
        path: PathBuf,
        /// Arrow's answer.
        source: ArrowError,
    },
}

/// Where a block lies and what it holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Block {
    /// Position of its first byte in the file.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// crc32c of these bytes.
    pub crc32c: u32,
    /// Number of rows.
    pub rows: u64,
    /// What the writer said of it.
    pub metadata: Value,
}

#[derive(Debug, Serialize, Deserialize)]
struct Index {
    version: u32,
    metadata: Value,
    blocks: Vec<Block>,
}

/// How a file goes to the disk while it grows. A sync of any file waits for all that the disk was given
/// before, whoever gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// As fast as it is made.
    Full,
    /// A piece of [`PIECE_BYTES`] at a time, taken by the disk before the next one is written: no commit then
    /// waits for more than that.
    Gentle,
}

/// Bytes of a piece.
const PIECE_BYTES: usize = 1 << 20;

/// Gathers bytes, counts them and sums them up on their way to the disk.
struct Sink {
    file: Box<dyn File>,
    pace: Pace,
    /// Bytes that the disk has taken, where it is asked.
    taken: u64,
    buffer: Vec<u8>,
    written: u64,
    crc: u32,
}

impl Sink {
    fn position(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }
}

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        if self.buffer.len() + bytes.len() >= WRITE_BYTES {
            let from = self.written;
            self.flush()?;
            for piece in bytes.chunks(PIECE_BYTES) {
                self.file.write_at(piece, self.written)?;
                self.written += piece.len() as u64;
                let length = self.written - self.taken;
                if self.pace == Pace::Gentle && length >= PIECE_BYTES as u64 {
                    self.file.write_out(self.taken, length)?;
                    self.taken = self.written;
                }
            }
            if self.pace == Pace::Full {
                self.file.write_back(from, self.written - from);
            }
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_at(&self.buffer, self.written)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

/// Writes one file. Dropped before [`ArrowFileWriter::finish`], it leaves nothing.
pub struct ArrowFileWriter {
    fs: Arc<dyn FileSystem>,
    path: PathBuf,
    schema: Schema,
    /// `None` once finished.
    sink: Option<Sink>,
    writer: BlockWriter,
    blocks: Vec<Block>,
    /// The same as Arrow's own footer has it.
    places: Vec<arrow_ipc::Block>,
}

impl ArrowFileWriter {
    /// Begins the file `path`, under a temporary name.
    pub fn create(
        fs: &Arc<dyn FileSystem>,
        path: &Path,
        schema: &Schema,
        pace: Pace,
    ) -> Result<Self, ArrowFileError> {
        let temporary = temporary(path);
        let file = fs.create(&temporary).map_err(disk("create", &temporary))?;
        let buffer = Vec::with_capacity(WRITE_BYTES);
        let mut sink = Sink { file, pace, taken: 0, buffer, written: 0, crc: 0 };
        let begun = (|| {
            sink.write_all(MAGIC_AT_BEGIN)?;
            let options = IpcWriteOptions::default();
            let schema = IpcDataGenerator::default().schema_to_bytes_with_dictionary_tracker(
                schema,
                &mut DictionaryTracker::new(true),
                &options,
            );
            write_message(&mut sink, schema, &options)
        })();
        begun.map_err(|e| failed(path, e))?;
        let (fs, path, schema) = (Arc::clone(fs), path.to_owned(), schema.clone());
        let (writer, blocks, places) = (BlockWriter::take(), Vec::new(), Vec::new());
        Ok(Self { fs, path, schema, sink: Some(sink), writer, blocks, places })
    }

    /// Adds the rows of `parts`, batches of the file's columns, as one block.
    pub fn write(&mut self, parts: &[RecordBatch], metadata: Value) -> Result<(), ArrowFileError> {
        let Some(sink) = &mut self.sink else { return Ok(()) };
        let message = self.writer.encode(parts).map_err(|detail| {
            let source = ArrowError::InvalidArgumentError(detail);
            ArrowFileError::Columns { path: self.path.clone(), source }
        })?;
        let offset = sink.position();
        sink.crc = 0;
        let written = sink.write_all(message.header).and_then(|()| sink.write_all(message.body));
        written.map_err(disk("write", &self.path))?;
        let (header, body) = (message.header.len() as i32, message.body.len() as i64);
        self.places.push(arrow_ipc::Block::new(offset as i64, header, body));
        let (length, crc32c, rows) = (sink.position() - offset, sink.crc, message.rows as u64);
        self.blocks.push(Block { offset, length, crc32c, rows, metadata });
        Ok(())
    }

    /// Bytes written so far.
    pub fn size_bytes(&self) -> u64 {
        self.sink.as_ref().map_or(0, Sink::position)
    }

    /// Completes the file, makes it durable and gives it its name; returns its length in bytes, and what
    /// [`ArrowFile::index_crc32c`] will say.
    pub fn finish(mut self, metadata: Value) -> Result<(u64, u32), ArrowFileError> {
        let Some(mut sink) = self.sink.take() else { return Ok((0, 0)) };
        std::mem::take(&mut self.writer).give();
        let blocks = std::mem::take(&mut self.blocks);
        let index = Index { version: 1, metadata, blocks };
        let json = serde_json::to_string(&index).expect("an index has only string keys");
        let crc = crc32c::crc32c(json.as_bytes());
        let result = (|| {
            let footer = footer(&self.schema, &self.places, &format!("{crc:08x} {json}"));
            let written =
                [&END_OF_STREAM[..], &footer, &(footer.len() as u32).to_le_bytes(), MAGIC]
                    .into_iter()
                    .try_for_each(|bytes| sink.write_all(bytes))
                    .and_then(|()| sink.flush());
            written.map_err(disk("write", &self.path))?;
            let temporary = temporary(&self.path);
            sink.file.sync().map_err(disk("sync", &temporary))?;
            self.fs.rename(&temporary, &self.path).map_err(disk("rename", &temporary))?;
            let dir = self.path.parent().unwrap_or(Path::new("."));
            self.fs.sync_dir(dir).map_err(disk("sync", dir))?;
            Ok((sink.position(), crc))
        })();
        if result.is_err() {
            // The first error is the one to tell; what is left over is quarantined at the next open.
            let _ = self.fs.remove(&temporary(&self.path));
        }
        result
    }
}

/// The footer of a file.
pub(super) fn footer(schema: &Schema, places: &[arrow_ipc::Block], index: &str) -> Vec<u8> {
    let mut fbb = FlatBufferBuilder::new();
    let blocks = fbb.create_vector(places);
    let schema = IpcSchemaEncoder::new().schema_to_fb_offset(&mut fbb, schema);
    let index = [(INDEX_KEY.to_owned(), index.to_owned())].into();
    let index = arrow_ipc::convert::metadata_to_fb(&mut fbb, &index);
    let mut footer = FooterBuilder::new(&mut fbb);
    footer.add_version(MetadataVersion::V5);
    footer.add_schema(schema);
    footer.add_recordBatches(blocks);
    footer.add_custom_metadata(index);
    let footer = footer.finish();
    fbb.finish(footer, None);
    fbb.finished_data().to_vec()
}

impl Drop for ArrowFileWriter {
    fn drop(&mut self) {
        if self.sink.is_some() {
            let _ = self.fs.remove(&temporary(&self.path));
        }
    }
}

/// A complete file, open for reading. Shared between readers.
pub struct ArrowFile {
    file: Box<dyn File>,
    path: PathBuf,
    schema: SchemaRef,
    metadata: Value,
    blocks: Vec<Block>,
    index_crc32c: u32,
}

impl ArrowFile {
    /// Opens `path` and reads its index.
    pub fn open(fs: &dyn FileSystem, path: &Path) -> Result<Self, ArrowFileError> {
        let file = fs.open(path).map_err(disk("open", path))?;
        let bad = |detail: &str| damaged(path, detail);
        let length = file.len().map_err(disk("read", path))?;
        let mut tail = [0; 10];
        let tail_at = length.checked_sub(10).ok_or_else(|| bad("it is too short"))?;
        file.read_at(&mut tail, tail_at).map_err(disk("read", path))?;
        let footer_bytes = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
        if &tail[4..] != b"ARROW1" || footer_bytes > tail_at.min(MAX_FOOTER_BYTES) {
            return Err(bad("it does not end as an Arrow file does"));
        }
        let mut footer = vec![0; footer_bytes as usize];
        file.read_at(&mut footer, tail_at - footer_bytes).map_err(disk("read", path))?;
        let footer = arrow_ipc::root_as_footer(&footer).map_err(|e| bad(&e.to_string()))?;
        let mut pairs = footer.custom_metadata().into_iter().flatten();
        let index = pairs.find(|pair| pair.key() == Some(INDEX_KEY)).and_then(|pair| pair.value());
        let index = index.ok_or_else(|| bad("its footer has no index"))?;
        let (crc, json) = index.split_once(' ').unwrap_or_default();
        let index_crc32c = crc32c::crc32c(json.as_bytes());
        if u32::from_str_radix(crc, 16) != Ok(index_crc32c) {
            return Err(bad("the crc32c of its index does not match"));
        }
        let index: Index = serde_json::from_str(json).map_err(|e| bad(&e.to_string()))?;
        let schema = footer.schema().ok_or_else(|| bad("its footer has no schema"))?;
        // Arrow panics at types that it does not know.
        let schema = quietly(|| arrow_ipc::convert::fb_to_schema(schema));
        let schema = Arc::new(schema.map_err(|_| bad("its schema is none of Arrow's"))?);
        let inside = |b: &Block| b.offset.checked_add(b.length).is_some_and(|end| end <= length);
        if index.version != 1 || !index.blocks.iter().all(inside) {
            return Err(bad("its index is of another version or points outside the file"));
        }
        let (metadata, blocks) = (index.metadata, index.blocks);
        Ok(Self { file, path: path.to_owned(), schema, metadata, blocks, index_crc32c })
    }

    /// crc32c of the index, which holds those of all blocks: two files that differ in content differ here.
    pub fn index_crc32c(&self) -> u32 {
        self.index_crc32c
    }

    /// The columns.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// What the writer said of the file.
    pub fn metadata(&self) -> &Value {
        &self.metadata
    }

    /// The blocks, in order.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads, checks and decompresses block `index`.
    ///
    /// # Panics
    /// When there is no such block.
    pub fn read(&self, index: usize) -> Result<RecordBatch, ArrowFileError> {
        self.read_columns(index, &|_| Column::Stored)
    }

    /// The same, each column as `column` says of its index. The bytes of all are checked.
    ///
    /// # Panics
    /// When there is no such block.
    pub fn read_columns(
        &self,
        index: usize,
        column: &dyn Fn(usize) -> Column,
    ) -> Result<RecordBatch, ArrowFileError> {
        let block = &self.blocks[index];
        let bad = |detail: &str| damaged(&self.path, &format!("block {index}: {detail}"));
        let length = usize::try_from(block.length).map_err(|_| bad("its length cannot be"))?;
        packed::sweep();
        let mut bytes = memory::take(length);
        self.file.read_at(&mut bytes, block.offset).map_err(disk("read", &self.path))?;
        if crc32c::crc32c(&bytes) != block.crc32c {
            return Err(bad("its crc32c does not match"));
        }
        arrow_block::read(&Arc::new(bytes), &self.schema, column).map_err(|detail| bad(&detail))
    }
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(TEMPORARY_SUFFIX);
    PathBuf::from(name)
}

fn disk(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ArrowFileError {
    let path = path.to_owned();
    move |source| ArrowFileError::Io { what, path, source }
}

fn failed(path: &Path, error: ArrowError) -> ArrowFileError {
    match error {
        ArrowError::IoError(_, source) => disk("write", path)(source),
        source => ArrowFileError::Columns { path: path.to_owned(), source },
    }
}

fn damaged(path: &Path, detail: &str) -> ArrowFileError {
    ArrowFileError::Damaged { path: path.to_owned(), detail: detail.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::OsFileSystem;
    use arrow_array::{ArrayRef, BinaryArray};
    use serde_json::json;

    fn rows(from: u8) -> RecordBatch {
        let column: BinaryArray =
            (from..from + 50).map(|i| (i % 7 > 0).then(|| vec![i; 9])).collect();
        RecordBatch::try_from_iter_with_nullable([("key", Arc::new(column) as ArrayRef, true)])
            .unwrap()
    }

    #[test]
    fn blocks_come_back_and_every_flipped_byte_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.arrow");
        let fs: Arc<dyn FileSystem> = Arc::new(OsFileSystem);
        let mut writer =
            ArrowFileWriter::create(&fs, &path, &rows(0).schema(), Pace::Gentle).unwrap();
        writer.write(&[rows(0)], json!({"n": 0})).unwrap();
        writer.write(&[rows(100)], json!({"n": 1})).unwrap();
        let (length, crc) = writer.finish(json!({"kind": "test"})).unwrap();
        assert_eq!(length, std::fs::metadata(&path).unwrap().len());
        let file = ArrowFile::open(fs.as_ref(), &path).unwrap();
        assert_eq!((file.metadata(), file.index_crc32c()), (&json!({"kind": "test"}), crc));
        assert_eq!((file.read(0).unwrap(), file.read(1).unwrap()), (rows(0), rows(100)));
        assert_eq!((file.blocks().len(), &file.blocks()[1].metadata), (2, &json!({"n": 1})));
        let good = std::fs::read(&path).unwrap();
        for at in file.blocks()[0].offset..file.blocks()[0].offset + file.blocks()[0].length {
            let mut bad = good.clone();
            bad[at as usize] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            let file = ArrowFile::open(fs.as_ref(), &path).unwrap();
            assert!(file.read(0).is_err(), "byte {at} changed and not found");
        }
        for cut in [0, 5, 10, good.len() / 2, good.len() - 1] {
            std::fs::write(&path, &good[..cut]).unwrap();
            assert!(ArrowFile::open(fs.as_ref(), &path).is_err(), "cut at {cut} and not found");
        }
    }

    #[test]
    fn what_goes_to_the_disk_in_pieces_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let fs: Arc<dyn FileSystem> = Arc::new(OsFileSystem);
        let mut random = fastrand::Rng::with_seed(1);
        let column = |bytes: usize| -> BinaryArray {
            [Some((0..bytes).map(|_| random.u8(..)).collect::<Vec<u8>>())].iter().collect()
        };
        let sizes = [10, 2 * PIECE_BYTES + 1, PIECE_BYTES / 2, PIECE_BYTES / 2, PIECE_BYTES];
        let rows = sizes.map(column).map(|column| {
            RecordBatch::try_from_iter_with_nullable([("key", Arc::new(column) as ArrayRef, true)])
                .unwrap()
        });
        for pace in [Pace::Full, Pace::Gentle] {
            let path = dir.path().join(format!("{pace:?}.arrow"));
            let mut writer = ArrowFileWriter::create(&fs, &path, &rows[0].schema(), pace).unwrap();
            for rows in &rows {
                writer.write(std::slice::from_ref(rows), Value::Null).unwrap();
            }
            writer.finish(Value::Null).unwrap();
            let file = ArrowFile::open(fs.as_ref(), &path).unwrap();
            for (index, rows) in rows.iter().enumerate() {
                assert_eq!(&file.read(index).unwrap(), rows, "{pace:?} {index}");
            }
        }
    }

    #[test]
    fn an_unfinished_file_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let fs: Arc<dyn FileSystem> = Arc::new(OsFileSystem);
        let path = dir.path().join("a.arrow");
        let mut writer =
            ArrowFileWriter::create(&fs, &path, &rows(0).schema(), Pace::Gentle).unwrap();
        writer.write(&[rows(0)], Value::Null).unwrap();
        drop(writer);
        assert_eq!(fs.list(dir.path()).unwrap(), []);
    }
}
