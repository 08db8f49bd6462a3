//! Segments: immutable files of one partition's records.
//!
//! **Invariant:** the offsets of a segment lie in `first..next` and belong to no other segment or run.
//! A file that no commit named, or that a commit removed, goes when its last holder does.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use super::columns::{self, Wanted};
use super::reader::{ReadError, fitting, joinable};
use crate::storage::{ArrowFile, ArrowFileError, ArrowFileWriter, Column, FileSystem, Flaw, Pace};
use crate::threads::Mutex;
use crate::types::{Batch, LogId, Offset, PartitionId, Records};

/// Records of one block, at most.
const BLOCK_RECORDS: usize = 32_768;
/// Bytes of one block before compression, at most, unless one record alone is larger.
const BLOCK_BYTES: usize = 4 << 20;

/// What the manifest says of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SegmentEntry {
    /// Below the folder of segments.
    pub file: String,
    pub first: Offset,
    pub next: Offset,
    pub records: u64,
    /// Before compression.
    pub size_bytes: u64,
    pub file_bytes: u64,
    pub min_timestamp: i64,
    pub max_timestamp: i64,
    /// Wall time of the last append in it: what retention goes by.
    pub append_ms: i64,
}

/// What the file says of a block.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct BlockIndex {
    pub first: Offset,
    pub next: Offset,
    pub min_timestamp: i64,
    pub max_timestamp: i64,
    pub append_ms: i64,
}

/// What the file says of itself.
#[derive(Debug, Serialize, Deserialize)]
struct FileMetadata {
    kind: String,
    store: String,
    log: LogId,
    partition: PartitionId,
    sequence: u64,
    first: Offset,
    next: Offset,
}

/// A segment that was opened.
pub(super) struct OpenSegment {
    file: ArrowFile,
    pub blocks: Vec<BlockIndex>,
}

/// A segment. Its file is opened at the first read.
pub(super) struct Segment {
    fs: Arc<dyn FileSystem>,
    path: PathBuf,
    pub entry: SegmentEntry,
    opened: Mutex<Option<Arc<OpenSegment>>>,
    kept: AtomicBool,
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Segment({}, {}..{})", self.path.display(), self.entry.first, self.entry.next)
    }
}

impl Segment {
    /// A segment that the manifest names.
    pub(super) fn listed(fs: Arc<dyn FileSystem>, dir: &Path, entry: SegmentEntry) -> Self {
        let path = dir.join(&entry.file);
        Self { fs, path, entry, opened: Mutex::new(None), kept: AtomicBool::new(true) }
    }

    /// From now on a commit names the file.
    pub(super) fn keep(&self) {
        self.kept.store(true, Ordering::SeqCst);
    }

    /// A commit removed the segment: the file goes with its last reader.
    pub(super) fn doom(&self) {
        self.kept.store(false, Ordering::SeqCst);
    }

    /// The opened file.
    pub(super) fn open(&self) -> Result<Arc<OpenSegment>, ReadError> {
        let mut opened = self.opened.lock();
        if let Some(open) = &*opened {
            return Ok(Arc::clone(open));
        }
        let file = ArrowFile::open(self.fs.as_ref(), &self.path);
        let file = file.map_err(|e| self.corrupt(0, &e.to_string()))?;
        let blocks = file.blocks().iter().enumerate().map(|(i, block)| {
            serde_json::from_value(block.metadata.clone())
                .map_err(|e| self.corrupt(i, &e.to_string()))
        });
        let blocks = blocks.collect::<Result<Vec<BlockIndex>, ReadError>>()?;
        let open = Arc::new(OpenSegment { file, blocks });
        *opened = Some(Arc::clone(&open));
        Ok(open)
    }

    /// Reads what is wanted of block `index`.
    pub(super) fn read(&self, index: usize, wanted: Wanted) -> Result<Batch, ReadError> {
        let open = self.open()?;
        let BlockIndex { first, next, .. } = open.blocks[index];
        let records = open.file.blocks()[index].rows;
        let has_gaps = first.0.checked_add(records) != Some(next.0);
        let rows = open.file.read_columns(index, &|column| match column {
            0 if !has_gaps => Column::Rising(first.0),
            column => wanted.column(column),
        });
        let rows = rows.map_err(|e| self.corrupt(index, &e.to_string()))?;
        if rows.num_rows() as u64 != records {
            return Err(self.corrupt(index, "it has other rows than the file's index says"));
        }
        columns::from_columns(&rows)
            .ok_or_else(|| self.corrupt(index, "its columns are not those of a segment"))
    }

    /// The number of records at and after `from` and before `to`.
    pub(super) fn count_between(&self, from: Offset, to: Offset) -> Result<u64, ReadError> {
        if to <= self.entry.first || from >= self.entry.next {
            return Ok(0);
        }
        if from <= self.entry.first && to >= self.entry.next {
            return Ok(self.entry.records);
        }
        let open = self.open()?;
        let mut count = 0;
        for (i, block) in open.blocks.iter().enumerate() {
            let rows = open.file.blocks()[i].rows;
            let (a, b) = (from.max(block.first), to.min(block.next));
            if a >= b {
                continue;
            }
            count += match (a, b) == (block.first, block.next) {
                true => rows,
                false if block.next.0 - block.first.0 == rows => b.0 - a.0,
                false => self.read(i, Wanted::NONE)?.from_offset(a).before_offset(b).len() as u64,
            };
        }
        Ok(count)
    }

    fn corrupt(&self, block: usize, detail: &str) -> ReadError {
        ReadError::Corrupt { path: self.path.clone(), block, detail: detail.to_owned() }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if !self.kept.load(Ordering::SeqCst)
            && let Err(e) = self.fs.remove(&self.path)
        {
            let path = self.path.display();
            tracing::warn!("cannot remove segment {path}: {e}; the next start sets it aside");
        }
    }
}

/// What a file says and holds, every byte of it checked.
pub(super) struct ExaminedSegment {
    pub store: String,
    pub log: LogId,
    pub partition: PartitionId,
    pub entry: SegmentEntry,
    /// Whether its records have sources: a generation made them.
    pub sources: bool,
}

/// Reads all of `file`, a name below the folder `dir` of all segments; `each` is told of bytes as they
/// are read.
pub(super) fn examine(
    fs: &dyn FileSystem,
    dir: &Path,
    file: &str,
    each: &mut dyn FnMut(u64),
) -> Result<ExaminedSegment, Flaw> {
    let path = dir.join(file);
    let file_bytes = fs.open(&path).and_then(|f| f.len()).map_err(|e| match e.kind() {
        // It was listed a moment ago.
        io::ErrorKind::NotFound => Flaw::Unread("it vanished while it was looked at".to_owned()),
        _ => e.into(),
    })?;
    let opened = ArrowFile::open(fs, &path)?;
    let about: FileMetadata = serde_json::from_value(opened.metadata().clone())
        .map_err(|e| Flaw::Damage(format!("its metadata are not those of a segment: {e}")))?;
    let mut entry = SegmentEntry {
        file: file.to_owned(),
        first: about.first,
        next: about.first,
        records: 0,
        size_bytes: 0,
        file_bytes,
        min_timestamp: i64::MAX,
        max_timestamp: i64::MIN,
        append_ms: i64::MIN,
    };
    let mut sources = false;
    for (i, block) in opened.blocks().iter().enumerate() {
        let bad = |detail: &str| Flaw::Damage(format!("block {i}: {detail}"));
        let index: BlockIndex =
            serde_json::from_value(block.metadata.clone()).map_err(|e| bad(&e.to_string()))?;
        let batch = columns::from_columns(&opened.read(i)?)
            .ok_or_else(|| bad("its columns are not those of a segment"))?;
        each(block.length);
        let rises = batch.offsets.windows(2).all(|pair| pair[0] < pair[1]);
        let (first, last) = (batch.offsets.first(), batch.offsets.last());
        let inside = first.is_some_and(|o| *o == index.first.0 && *o >= entry.next.0)
            && last.is_some_and(|o| {
                o.checked_add(1) == Some(index.next.0) && index.next <= about.next
            });
        if !rises || !inside || batch.len() as u64 != block.rows {
            return Err(bad("its offsets are not those that it says"));
        }
        sources |= batch.records.sources.is_some();
        entry.next = index.next;
        entry.records += block.rows;
        entry.size_bytes += batch.records.size_bytes() as u64;
        entry.min_timestamp = entry.min_timestamp.min(index.min_timestamp);
        entry.max_timestamp = entry.max_timestamp.max(index.max_timestamp);
        entry.append_ms = entry.append_ms.max(index.append_ms);
    }
    if about.kind != "segment" || entry.next != about.next {
        return Err(Flaw::Damage("it does not end where it says".to_owned()));
    }
    let FileMetadata { store, log, partition, .. } = about;
    Ok(ExaminedSegment { store, log, partition, entry, sources })
}

/// Where a new segment file lies and whose it is.
pub(super) struct SegmentPlace {
    pub fs: Arc<dyn FileSystem>,
    /// The folder of all segments.
    pub dir: PathBuf,
    pub store_id: u64,
    pub log: LogId,
    pub partition: PartitionId,
    /// Makes the name unique.
    pub file_id: u64,
    /// Of the storage, when the file was begun.
    pub sequence: u64,
    /// Whether records have sources.
    pub sources: bool,
    pub pace: Pace,
}

/// Writes a segment file block by block.
pub(super) struct SegmentFile {
    place: SegmentPlace,
    writer: ArrowFileWriter,
    schema: arrow_schema::SchemaRef,
    pending: Vec<(Offset, Records)>,
    pending_records: usize,
    pending_bytes: usize,
    entry: SegmentEntry,
}

impl SegmentFile {
    /// Begins the file of records at and after `first`.
    pub(super) fn create(place: SegmentPlace, first: Offset) -> Result<Self, ArrowFileError> {
        let file =
            format!("{}/{}-{:016}-{:x}.arrow", place.log, place.partition, first.0, place.file_id);
        let path = place.dir.join(&file);
        let folder = place.dir.join(place.log.to_string());
        let create = place.fs.create_dir_all(&folder).and_then(|()| place.fs.sync_dir(&place.dir));
        create.map_err(|source| ArrowFileError::Io { what: "create", path: folder, source })?;
        let schema = columns::schema(place.sources);
        let writer = ArrowFileWriter::create(&place.fs, &path, &schema, place.pace)?;
        let entry = SegmentEntry {
            file,
            first,
            next: first,
            records: 0,
            size_bytes: 0,
            file_bytes: 0,
            min_timestamp: i64::MAX,
            max_timestamp: i64::MIN,
            append_ms: i64::MIN,
        };
        let (pending, pending_records, pending_bytes) = (Vec::new(), 0, 0);
        Ok(Self { place, writer, schema, pending, pending_records, pending_bytes, entry })
    }

    /// Adds records whose offsets follow each other from `first`, beyond all before.
    pub(super) fn append(
        &mut self,
        mut first: Offset,
        records: &Records,
        append_ms: i64,
    ) -> Result<(), ArrowFileError> {
        self.entry.append_ms = self.entry.append_ms.max(append_ms);
        let mut rest = records.clone();
        while !rest.is_empty() {
            let fits = self.pending.first().is_none_or(|(_, head)| joinable(head, &rest));
            if !fits || self.pending_records >= BLOCK_RECORDS || self.pending_bytes >= BLOCK_BYTES {
                self.flush()?;
            }
            let (rows, bytes) =
                (BLOCK_RECORDS - self.pending_records, BLOCK_BYTES - self.pending_bytes);
            let take = fitting(&rest, rows, bytes);
            let part = rest.slice(0, take);
            rest = rest.slice(take, rest.len() - take);
            self.pending_records += take;
            self.pending_bytes += part.size_bytes();
            self.pending.push((first, part));
            first = Offset(first.0 + take as u64);
        }
        Ok(())
    }

    /// Bytes of records so far, before compression.
    pub(super) fn size_bytes(&self) -> u64 {
        self.entry.size_bytes + self.pending_bytes as u64
    }

    /// Writes out what was gathered for a block.
    pub(super) fn flush(&mut self) -> Result<(), ArrowFileError> {
        let parts = std::mem::take(&mut self.pending);
        let (Some((first, _)), Some((last, records))) = (parts.first(), parts.last()) else {
            return Ok(());
        };
        let (first, next) = (*first, Offset(last.0 + records.len() as u64));
        let times = || parts.iter().flat_map(|(_, records)| &records.timestamps).copied();
        let min_timestamp = times().min().unwrap_or(i64::MAX);
        let max_timestamp = times().max().unwrap_or(i64::MIN);
        let append_ms = self.entry.append_ms;
        let index = BlockIndex { first, next, min_timestamp, max_timestamp, append_ms };
        let columns = parts.into_iter().map(|(first, records)| {
            columns::to_columns(&Batch::contiguous(first, records), &self.schema)
        });
        let columns = columns.collect::<Result<Vec<_>, _>>().map_err(|source| {
            ArrowFileError::Columns { path: PathBuf::from(&self.entry.file), source }
        })?;
        let index = serde_json::to_value(index).expect("a plain struct is always JSON");
        self.writer.write(&columns, index)?;
        self.entry.next = next;
        self.entry.records += self.pending_records as u64;
        self.entry.size_bytes += self.pending_bytes as u64;
        self.entry.min_timestamp = self.entry.min_timestamp.min(min_timestamp);
        self.entry.max_timestamp = self.entry.max_timestamp.max(max_timestamp);
        (self.pending_records, self.pending_bytes) = (0, 0);
        Ok(())
    }

    /// Completes the file, durable. It goes with the segment unless a commit keeps it.
    pub(super) fn finish(mut self) -> Result<Segment, ArrowFileError> {
        self.flush()?;
        let metadata = FileMetadata {
            kind: "segment".to_owned(),
            store: format!("{:016x}", self.place.store_id),
            log: self.place.log,
            partition: self.place.partition,
            sequence: self.place.sequence,
            first: self.entry.first,
            next: self.entry.next,
        };
        let metadata = serde_json::to_value(metadata).expect("a plain struct is always JSON");
        (self.entry.file_bytes, _) = self.writer.finish(metadata)?;
        let segment = Segment::listed(self.place.fs, &self.place.dir, self.entry);
        segment.doom();
        Ok(segment)
    }
}
