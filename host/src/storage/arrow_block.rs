//! Blocks of an Arrow file: columns as a record batch message with lz4 bodies, and back.
//!
//! arrow-ipc does the same with fresh buffers for every column of every batch, which costs more than
//! the codec: here columns are gathered from several batches straight into blocks of 64 KiB that stay in
//! the cache, and decompressed straight into the buffer that an array keeps. Blocks that are written as
//! they were read are copied ([`packed`]).
//!
//! **Invariant:** what is written is an ordinary Arrow IPC message: any reader of Arrow takes it. What
//! is read may be anything: sizes are checked before memory is asked for, arrays before they are used.

use std::io::Read as _;
use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, make_array, new_null_array};
use arrow_buffer::{BooleanBufferBuilder, Buffer};
use arrow_data::{ArrayData, ArrayDataBuilder};
use arrow_ipc::{
    BodyCompressionBuilder, BodyCompressionMethod, CompressionType, FieldNode, MessageBuilder,
    MessageHeader, MetadataVersion, RecordBatchBuilder,
};
use arrow_schema::{DataType, SchemaRef};
use flatbuffers::FlatBufferBuilder;

use super::lz4::{self, BLOCK_BYTES, Compressed, Compressor};
use super::{memory, numbers, packed};

/// An lz4 frame of independent blocks of at most 64 KiB, without sums: magic, flags, size, and a sum of
/// these two.
const FRAME_HEADER: [u8; 7] = [0x04, 0x22, 0x4d, 0x18, 0x60, 0x40, 0x82];
/// Set in the length of a block that is stored as it is.
const STORED: u32 = 1 << 31;
/// Stands for the length of a buffer that is stored as it is.
const NOT_COMPRESSED: i64 = -1;
/// lz4 makes of a byte no more than this.
const MAX_RATIO: usize = 255;
/// Where buffers and messages begin.
const ALIGNMENT: usize = 8;
/// Precedes the length of a message.
const CONTINUATION: [u8; 4] = [0xff; 4];

/// Most writers that wait to be used, and the largest of them.
const MOST_WRITERS: usize = 4;
const MOST_WRITER_BYTES: usize = 8 << 20;

/// Writers that nobody uses at the moment; of the whole process, as memory is.
static WRITERS: Mutex<Vec<BlockWriter>> = Mutex::new(Vec::new());

/// Writes messages; what it needs for one is used again for the next.
pub struct BlockWriter {
    metadata: FlatBufferBuilder<'static>,
    nodes: Vec<FieldNode>,
    buffers: Vec<arrow_ipc::Buffer>,
    header: Vec<u8>,
    body: Vec<u8>,
    /// Holds bytes of the buffer at hand that are not compressed yet: no more than two blocks.
    compressor: Compressor,
    /// How many.
    gathered: usize,
    compressed: Box<[Compressed; 2]>,
    ends: Vec<u8>,
}

impl Default for BlockWriter {
    fn default() -> Self {
        Self {
            metadata: FlatBufferBuilder::default(),
            nodes: Vec::new(),
            buffers: Vec::new(),
            header: Vec::new(),
            body: Vec::new(),
            compressor: Compressor::default(),
            gathered: 0,
            compressed: Box::new([[0; _]; 2]),
            ends: Vec::new(),
        }
    }
}

/// A message as it lies in a file, one after the other.
pub struct Message<'a> {
    /// The number of rows.
    pub rows: usize,
    /// Where the buffers lie, behind a marker and its own length.
    pub header: &'a [u8],
    /// The buffers.
    pub body: &'a [u8],
}

impl BlockWriter {
    /// One that was used before, if there is one.
    pub fn take() -> Self {
        WRITERS.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    /// For whoever takes one next.
    pub fn give(self) {
        let mut writers = WRITERS.lock().unwrap_or_else(PoisonError::into_inner);
        if writers.len() < MOST_WRITERS && self.body.capacity() <= MOST_WRITER_BYTES {
            writers.push(self);
        }
    }

    /// Lets go of all that nobody uses.
    pub fn clear() {
        drop(std::mem::take(&mut *WRITERS.lock().unwrap_or_else(PoisonError::into_inner)));
    }

    /// Makes one message of all rows of `parts`, batches of one schema.
    ///
    /// # Errors
    /// When a column is of a type that files do not have.
    pub fn encode(&mut self, parts: &[RecordBatch]) -> Result<Message<'_>, String> {
        let rows = parts.iter().map(RecordBatch::num_rows).sum();
        self.nodes.clear();
        self.buffers.clear();
        self.body.clear();
        for i in 0..parts.first().map_or(0, RecordBatch::num_columns) {
            let columns: Vec<_> = parts.iter().map(|rows| rows.column(i).to_data()).collect();
            self.column(&columns)?;
        }
        self.message(rows);
        let message = self.metadata.finished_data();
        let length = (message.len() + 8).next_multiple_of(ALIGNMENT);
        self.header.clear();
        self.header.extend_from_slice(&CONTINUATION);
        self.header.extend_from_slice(&(length as u32 - 8).to_le_bytes());
        self.header.extend_from_slice(message);
        self.header.resize(length, 0);
        Ok(Message { rows, header: &self.header, body: &self.body })
    }

    fn message(&mut self, rows: usize) {
        let fbb = &mut self.metadata;
        fbb.reset();
        let nodes = fbb.create_vector(&self.nodes);
        let buffers = fbb.create_vector(&self.buffers);
        let compression = {
            let mut compression = BodyCompressionBuilder::new(fbb);
            compression.add_method(BodyCompressionMethod::BUFFER);
            compression.add_codec(CompressionType::LZ4_FRAME);
            compression.finish()
        };
        let header = {
            let mut batch = RecordBatchBuilder::new(fbb);
            batch.add_length(rows as i64);
            batch.add_nodes(nodes);
            batch.add_buffers(buffers);
            batch.add_compression(compression);
            batch.finish().as_union_value()
        };
        let mut message = MessageBuilder::new(fbb);
        message.add_version(MetadataVersion::V5);
        message.add_header_type(MessageHeader::RecordBatch);
        message.add_bodyLength(self.body.len() as i64);
        message.add_header(header);
        let message = message.finish();
        fbb.finish(message, None);
    }

    /// Adds a column, and those below it, of which each of `parts` has some rows.
    fn column(&mut self, parts: &[ArrayData]) -> Result<(), String> {
        let rows = parts.iter().map(ArrayData::len).sum();
        let nulls: usize = parts.iter().map(ArrayData::null_count).sum();
        self.nodes.push(FieldNode::new(rows as i64, nulls as i64));
        if nulls == 0 {
            self.buffer([]);
        } else {
            let mut bits = BooleanBufferBuilder::new(rows);
            for part in parts {
                match part.nulls() {
                    Some(nulls) => bits.append_buffer(nulls.inner()),
                    None => bits.append_n(part.len(), true),
                }
            }
            self.buffer([bits.finish().inner().as_slice()]);
        }
        let Some(first) = parts.first() else { return Ok(()) };
        let kind = first.data_type();
        match kind {
            DataType::Binary | DataType::Utf8 => {
                let ranges = self.ends(parts);
                let data = parts
                    .iter()
                    .zip(&ranges)
                    .map(|(part, (from, to))| &part.buffers()[1].as_slice()[*from..*to]);
                self.buffer(data);
            }
            DataType::List(_) => {
                let ranges = self.ends(parts);
                let children = parts
                    .iter()
                    .zip(&ranges)
                    .map(|(part, (from, to))| part.child_data()[0].slice(*from, to - from));
                self.column(&children.collect::<Vec<_>>())?;
            }
            DataType::Struct(fields) => {
                for i in 0..fields.len() {
                    // A slice of structs has slices of what is below.
                    let children = parts.iter().map(|part| part.child_data()[i].clone());
                    self.column(&children.collect::<Vec<_>>())?;
                }
            }
            kind => {
                let width = kind.primitive_width().ok_or_else(|| format!("no file has {kind}"))?;
                self.buffer(parts.iter().map(|part| {
                    let (from, to) = (part.offset(), part.offset() + part.len());
                    &part.buffers()[0].as_slice()[from * width..to * width]
                }));
            }
        }
        Ok(())
    }

    /// Adds the positions at which the entries of `parts` end, of all parts together; returns which
    /// positions of its own each part begins and ends with.
    fn ends(&mut self, parts: &[ArrayData]) -> Vec<(usize, usize)> {
        let mut bytes = std::mem::take(&mut self.ends);
        bytes.clear();
        bytes.extend_from_slice(&0_i32.to_le_bytes());
        let (mut ranges, mut base) = (Vec::with_capacity(parts.len()), 0);
        for part in parts {
            if part.is_empty() {
                ranges.push((0, 0));
                continue;
            }
            let ends = part.buffers()[0].typed_data::<i32>();
            let ends = &ends[part.offset()..=part.offset() + part.len()];
            let (first, last) = (ends[0], ends[part.len()]);
            let moved = base - first;
            bytes.extend(ends[1..].iter().flat_map(|end| (end + moved).to_le_bytes()));
            base += last - first;
            ranges.push((first as usize, last as usize));
        }
        self.buffer([bytes.as_slice()]);
        self.ends = bytes;
        ranges
    }

    /// Adds a buffer that holds `parts` one after the other.
    fn buffer<'a>(&mut self, parts: impl IntoIterator<Item = &'a [u8]>) {
        let start = self.body.len();
        self.body.extend_from_slice(&[0; 8]);
        self.body.extend_from_slice(&FRAME_HEADER);
        let mut frame = Frame { length: 0, stored: 0, copied: false };
        let mut parts = parts.into_iter().peekable();
        while let Some(part) = parts.next() {
            let Some((packed, mut range)) = packed::find(part) else {
                self.gather(part, &mut frame);
                continue;
            };
            // What was cut apart on the way is one piece again.
            while let Some(next) = parts.peek()
                && next.as_ptr().addr() == packed.bytes(range.clone()).as_ptr_range().end.addr()
                && range.end + next.len() <= packed.len()
            {
                range.end += next.len();
                parts.next();
            }
            match packed.blocks_in(&range) {
                None => self.gather(packed.bytes(range), &mut frame),
                Some((blocks, whole)) => {
                    self.gather(packed.bytes(range.start..whole.start), &mut frame);
                    self.flush_gathered(&mut frame);
                    self.body.extend_from_slice(blocks);
                    frame.length += whole.len();
                    frame.copied = true;
                    self.gather(packed.bytes(whole.end..range.end), &mut frame);
                }
            }
        }
        self.flush_gathered(&mut frame);
        let Frame { length, stored, copied } = frame;
        let mut claimed = length as i64;
        if length == 0 {
            self.body.truncate(start);
        } else if stored == length && !copied {
            // Not one block became smaller: without the frame readers need no copy.
            unframe(&mut self.body, start + 8);
            claimed = NOT_COMPRESSED;
        } else {
            self.body.extend_from_slice(&[0; 4]);
        }
        if length > 0 {
            self.body[start..start + 8].copy_from_slice(&claimed.to_le_bytes());
        }
        let written = self.body.len() - start;
        self.buffers.push(arrow_ipc::Buffer::new(start as i64, written as i64));
        self.body.resize(self.body.len().next_multiple_of(ALIGNMENT), 0);
    }

    /// Adds bytes to a frame, in blocks.
    fn gather(&mut self, mut part: &[u8], frame: &mut Frame) {
        frame.length += part.len();
        while !part.is_empty() {
            let (i, at) = (self.gathered / BLOCK_BYTES, self.gathered % BLOCK_BYTES);
            let (some, rest) = part.split_at(part.len().min(BLOCK_BYTES - at));
            self.compressor.block(i)[at..at + some.len()].copy_from_slice(some);
            self.gathered += some.len();
            part = rest;
            if self.gathered == 2 * BLOCK_BYTES {
                self.flush_gathered(frame);
            }
        }
    }

    /// Makes blocks of what was gathered.
    fn flush_gathered(&mut self, frame: &mut Frame) {
        let gathered = std::mem::take(&mut self.gathered);
        let lengths = [gathered.min(BLOCK_BYTES), gathered.saturating_sub(BLOCK_BYTES)];
        let [x, y] = &mut *self.compressed;
        let mut of_numbers = |i: usize, out: &mut Compressed| {
            numbers::compress(&self.compressor.block(i)[..lengths[i]], out)
        };
        let numbers = [of_numbers(0, x), of_numbers(1, y)];
        let others = [0, 1].map(|i| if numbers[i].is_none() { lengths[i] } else { 0 });
        let others = self.compressor.compress(others, [x, y]);
        for i in 0..2 {
            let block = &self.compressor.block(i)[..lengths[i]];
            let compressed = &self.compressed[i][..numbers[i].unwrap_or(others[i])];
            frame.stored += frame_block(block, compressed, &mut self.body);
        }
    }
}

/// What a frame holds so far.
struct Frame {
    /// Bytes before compression.
    length: usize,
    /// Those of them that are stored as they are.
    stored: usize,
    /// Whether blocks were copied, which may have any length.
    copied: bool,
}

/// Appends one block of a frame; returns how many of its bytes are stored as they are.
fn frame_block(block: &[u8], compressed: &[u8], out: &mut Vec<u8>) -> usize {
    if block.is_empty() {
        return 0;
    }
    let stored = compressed.len() >= block.len();
    let (bytes, flag) = if stored { (block, STORED) } else { (compressed, 0) };
    out.extend_from_slice(&(bytes.len() as u32 | flag).to_le_bytes());
    out.extend_from_slice(bytes);
    if stored { block.len() } else { 0 }
}

/// Makes of a frame at `start`, of stored blocks alone, the bytes that it holds.
fn unframe(body: &mut Vec<u8>, start: usize) {
    let (mut from, mut to) = (start + FRAME_HEADER.len(), start);
    while from < body.len() {
        let length = (body.len() - from - 4).min(BLOCK_BYTES);
        body.copy_within(from + 4..from + 4 + length, to);
        (from, to) = (from + 4 + length, to + length);
    }
    body.truncate(to);
}

/// What becomes of a column that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// It is decompressed.
    Stored,
    /// Nobody wants it: it comes as nulls, which its type must allow.
    Unwanted,
    /// What it holds is known, so it is not decompressed: numbers of eight bytes, of which the first is this
    /// and each is one more than the one before.
    Rising(u64),
}

/// Reads a message of the columns of `schema`, each as `column` says of its index; one at least is stored.
///
/// # Errors
/// What is wrong with it.
pub fn read(
    message: &Arc<Vec<u8>>,
    schema: &SchemaRef,
    column: &dyn Fn(usize) -> Column,
) -> Result<RecordBatch, String> {
    let header = message.get(4..8).and_then(|bytes| bytes.try_into().ok());
    let header = header.map_or(0, |bytes| u32::from_le_bytes(bytes) as usize);
    let rest = message.get(8..).unwrap_or_default();
    let (header, body) = rest.split_at_checked(header).ok_or("its header is cut off")?;
    let root = arrow_ipc::root_as_message(header).map_err(|error| error.to_string())?;
    let batch = root.header_as_record_batch().ok_or("it is no record batch")?;
    read_columns(batch, body, schema, column, Some((message, message.len() - body.len())))
}

/// Reads the columns of `schema` that `batch` finds in `body`; nothing of `body` is kept.
///
/// # Errors
/// What is wrong with it.
pub fn read_batch(
    batch: arrow_ipc::RecordBatch<'_>,
    body: &[u8],
    schema: &SchemaRef,
) -> Result<RecordBatch, String> {
    read_columns(batch, body, schema, &|_| Column::Stored, None)
}

/// Reads columns; `message`, if it may be kept, holds `body` from a position on.
fn read_columns(
    batch: arrow_ipc::RecordBatch<'_>,
    body: &[u8],
    schema: &SchemaRef,
    column: &dyn Fn(usize) -> Column,
    message: Option<(&Arc<Vec<u8>>, usize)>,
) -> Result<RecordBatch, String> {
    let compressed = match batch.compression() {
        None => false,
        Some(how) if how.codec() == CompressionType::LZ4_FRAME => true,
        Some(how) => return Err(format!("it is compressed by {:?}, not lz4", how.codec())),
    };
    let (nodes, buffers) =
        (batch.nodes().into_iter().flatten(), batch.buffers().into_iter().flatten());
    let mut columns = Columns { nodes, buffers, body, compressed, message };
    let fields = schema.fields().iter().enumerate();
    let mut stored = Vec::with_capacity(schema.fields().len());
    for (i, field) in fields.clone() {
        let read = match column(i) {
            Column::Stored => columns.next(field.data_type()).map(make_array).map(Ok),
            Column::Unwanted | Column::Rising(_) => columns.skip(field.data_type()).map(Err),
        };
        stored.push(read.map_err(|error| format!("column {}: {error}", field.name()))?);
    }
    // What a column says of itself is believed where another has as many rows.
    let read_rows = stored.iter().find_map(|read| read.as_ref().ok()).map_or(0, |read| read.len());
    let mut arrays: Vec<ArrayRef> = Vec::with_capacity(stored.len());
    for ((i, field), read) in fields.zip(stored) {
        let array = read.or_else(|rows| match column(i) {
            _ if rows != read_rows as i64 => {
                Err(format!("it has {rows} rows instead of {read_rows}"))
            }
            Column::Rising(first) => rising(field.data_type(), first, read_rows, message),
            _ => Ok(new_null_array(field.data_type(), read_rows)),
        });
        arrays.push(array.map_err(|error| format!("column {}: {error}", field.name()))?);
    }
    let rows = usize::try_from(batch.length()).map_err(|_| "it has less than no rows")?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(SchemaRef::clone(schema), arrays, &options)
        .map_err(|error| error.to_string())
}

/// The bytes that the buffers of `batch` have when they are read, as they say themselves; what is read
/// is never more.
pub fn claimed_bytes(batch: arrow_ipc::RecordBatch<'_>, body: &[u8]) -> u64 {
    let claimed = |place: &arrow_ipc::Buffer| {
        let length = place.length().max(0) as u64;
        let start = usize::try_from(place.offset()).ok().filter(|_| batch.compression().is_some());
        let claim = start.and_then(|start| body.get(start..)?.first_chunk::<8>());
        let claim = claim.map_or(0, |claim| i64::from_le_bytes(*claim).max(0) as u64);
        claim.max(length)
    };
    batch.buffers().into_iter().flatten().map(claimed).fold(0, u64::saturating_add)
}

/// What is left of a message, column by column.
struct Columns<'a, N, B> {
    nodes: N,
    buffers: B,
    body: &'a [u8],
    compressed: bool,
    /// What `body` lies in, and where it begins there.
    message: Option<(&'a Arc<Vec<u8>>, usize)>,
}

impl<'a, N, B> Columns<'a, N, B>
where
    N: Iterator<Item = &'a FieldNode>,
    B: Iterator<Item = &'a arrow_ipc::Buffer>,
{
    fn next(&mut self, kind: &DataType) -> Result<ArrayData, String> {
        let node = self.nodes.next().ok_or("it is missing")?;
        let rows = usize::try_from(node.length()).map_err(|_| "it has less than no rows")?;
        let validity = self.buffer()?;
        let validity = (node.null_count() > 0).then_some(validity);
        if validity.as_ref().is_some_and(|bits| bits.len() < rows.div_ceil(8)) {
            return Err("its validity is cut off".to_owned());
        }
        let array = ArrayDataBuilder::new(kind.clone()).len(rows).null_bit_buffer(validity);
        let array = match kind {
            DataType::Binary | DataType::Utf8 | DataType::LargeBinary | DataType::LargeUtf8 => {
                let width = match kind {
                    DataType::LargeBinary | DataType::LargeUtf8 => size_of::<i64>(),
                    _ => size_of::<i32>(),
                };
                let ends = whole_numbers(self.buffer()?, width);
                array.add_buffer(ends).add_buffer(self.buffer()?)
            }
            DataType::List(field) => {
                let ends = whole_numbers(self.buffer()?, size_of::<i32>());
                array.add_buffer(ends).add_child_data(self.next(field.data_type())?)
            }
            DataType::Struct(fields) => {
                let children = fields.iter().map(|field| self.next(field.data_type()));
                array.child_data(children.collect::<Result<_, _>>()?)
            }
            kind => match kind.primitive_width() {
                Some(width) => array.add_buffer(whole_numbers(self.buffer()?, width)),
                None => return Err(format!("columns of {kind} are not read")),
            },
        };
        array.align_buffers(true).build().map_err(|error| error.to_string())
    }

    /// Passes over a column; returns how many rows it says that it has.
    fn skip(&mut self, kind: &DataType) -> Result<i64, String> {
        let node = self.nodes.next().ok_or("it is missing")?;
        let mut buffers = 0..match kind {
            DataType::Binary => 3,
            kind if kind.is_primitive() => 2,
            kind => return Err(format!("columns of {kind} are always read")),
        };
        match buffers.all(|_| self.buffers.next().is_some()) {
            true => Ok(node.length()),
            false => Err("it is missing".to_owned()),
        }
    }

    fn buffer(&mut self) -> Result<Buffer, String> {
        let place = self.buffers.next().ok_or("it is missing")?;
        let range = usize::try_from(place.offset()).ok().zip(usize::try_from(place.length()).ok());
        let range = range.and_then(|(at, length)| Some(at..at.checked_add(length)?));
        let at = range.as_ref().map_or(0, |range| range.start);
        let bytes = range.and_then(|range| self.body.get(range)).ok_or("it is cut off")?;
        if bytes.is_empty() || !self.compressed {
            return Ok(Buffer::from(bytes));
        }
        let (length, frame) = bytes.split_first_chunk::<8>().ok_or("it is cut off")?;
        let length = i64::from_le_bytes(*length);
        if length == NOT_COMPRESSED {
            return Ok(Buffer::from(frame));
        }
        let length = usize::try_from(length).ok().filter(|l| *l <= frame.len() * MAX_RATIO);
        let length = length.ok_or("its length cannot be")?;
        let mut blocks = Vec::new();
        let bytes = Buffer::from_vec(decompress(frame, length, &mut blocks)?);
        if let Some((message, body)) = self.message {
            // Behind the length.
            let frame_at = body + at + 8;
            blocks.iter_mut().for_each(|(_, at)| *at += frame_at);
            packed::remember(&bytes, message, blocks);
        }
        Ok(bytes)
    }
}

/// A column of `rows` numbers that rise by one from `first`. Where there is a message that may be kept, its
/// memory is used again as that of what is read is.
fn rising(
    kind: &DataType,
    first: u64,
    rows: usize,
    message: Option<(&Arc<Vec<u8>>, usize)>,
) -> Result<ArrayRef, String> {
    let mut bytes = memory::take(rows * size_of::<u64>());
    let (numbers, _) = bytes.as_chunks_mut();
    for (i, number) in numbers.iter_mut().enumerate() {
        *number = first.wrapping_add(i as u64).to_le_bytes();
    }
    let bytes = Buffer::from_vec(bytes);
    if let Some((message, _)) = message {
        packed::remember(&bytes, message, Vec::new());
    }
    let array = ArrayDataBuilder::new(kind.clone()).len(rows).add_buffer(bytes);
    array.align_buffers(true).build().map(make_array).map_err(|error| error.to_string())
}

/// A buffer without the part of a number at its end, at which Arrow panics.
fn whole_numbers(buffer: Buffer, width: usize) -> Buffer {
    let length = buffer.len() - buffer.len() % width;
    if length == buffer.len() { buffer } else { buffer.slice_with_length(0, length) }
}

/// The `length` bytes that a frame holds. Of a frame as they are written here also where each block
/// begins, in these bytes and in the frame, and where the last one ends.
fn decompress(
    frame: &[u8],
    length: usize,
    blocks: &mut Vec<(usize, usize)>,
) -> Result<Vec<u8>, String> {
    let Some(mut rest) = frame.strip_prefix(&FRAME_HEADER) else {
        let mut bytes = Vec::with_capacity(length);
        let frame = lz4_flex::frame::FrameDecoder::new(frame);
        let read = frame.take(length as u64 + 1).read_to_end(&mut bytes);
        return match read {
            Ok(read) if read == length => Ok(bytes),
            Ok(read) => Err(format!("it has {read} bytes instead of {length}")),
            Err(error) => Err(error.to_string()),
        };
    };
    let mut bytes = memory::take(length);
    let mut at = 0;
    loop {
        blocks.push((at, frame.len() - rest.len()));
        let (word, after) = rest.split_first_chunk::<4>().ok_or("it is cut off")?;
        let word = u32::from_le_bytes(*word);
        if word == 0 {
            break;
        }
        let block = (word & !STORED) as usize;
        let (block, after) = after.split_at_checked(block).ok_or("it is cut off")?;
        rest = after;
        let to = &mut bytes[at..];
        at += if word & STORED != 0 {
            let to = to.get_mut(..block.len()).ok_or("it is too long")?;
            to.copy_from_slice(block);
            block.len()
        } else {
            lz4::decompress(block, to).ok_or("its compressed bytes are damaged")?
        };
    }
    match at == length {
        true => Ok(bytes),
        false => Err(format!("it has {at} bytes instead of {length}")),
    }
}

#[cfg(test)]
mod tests {
    use arrow_array::builder::{BinaryBuilder, ListBuilder, StringBuilder, StructBuilder};
    use arrow_array::{TimestampMillisecondArray, UInt64Array};
    use arrow_ipc::reader::StreamReader;
    use arrow_ipc::writer::{IpcWriteOptions, StreamWriter};
    use arrow_schema::{Field, Fields};
    use arrow_select::concat::concat_batches;

    use super::*;

    fn read(message: &Arc<Vec<u8>>, schema: &SchemaRef) -> Result<RecordBatch, String> {
        super::read(message, schema, &|_| Column::Stored)
    }

    /// Rows of all types that files have.
    fn rows(random: &mut fastrand::Rng, n: usize) -> RecordBatch {
        let headers = Fields::from(vec![
            Field::new("name", DataType::Utf8, false),
            Field::new("value", DataType::Binary, true),
        ]);
        let (mut values, mut lists) =
            (BinaryBuilder::new(), ListBuilder::new(StructBuilder::from_fields(headers, 0)));
        let plain = random.bool();
        for _ in 0..n {
            let length = random.usize(..300);
            let byte = random.u8(..);
            let value: Vec<u8> = match random.u8(..3) {
                0 => vec![byte; length],
                1 => (0..length).map(|_| random.u8(..)).collect(),
                _ => b"abcdefgh".repeat(length / 8),
            };
            values.append_option((plain || random.u8(..9) > 0).then_some(value));
            for _ in 0..random.usize(..3) {
                let entry = lists.values();
                let name = entry.field_builder::<StringBuilder>(0).unwrap();
                name.append_value(format!("n{byte}"));
                let value = entry.field_builder::<BinaryBuilder>(1).unwrap();
                value.append_option(random.bool().then_some([byte]));
                entry.append(true);
            }
            lists.append(true);
        }
        let base = random.u64(..1 << 50);
        let numbers: UInt64Array = (base..base + n as u64).collect();
        let times: TimestampMillisecondArray = (0..n).map(|_| random.bool().then_some(7)).collect();
        RecordBatch::try_from_iter_with_nullable([
            ("numbers", Arc::new(numbers) as ArrayRef, false),
            ("values", Arc::new(values.finish()), true),
            ("lists", Arc::new(lists.finish()), false),
            ("times", Arc::new(times), true),
        ])
        .unwrap()
    }

    #[test]
    fn arrow_reads_what_is_written_and_what_arrow_writes_is_read() {
        let seed = crate::clock::test_seed();
        let mut random = fastrand::Rng::with_seed(seed);
        let mut writer = BlockWriter::default();
        for _ in 0..60 {
            let parts: Vec<RecordBatch> = (0..random.usize(1..4))
                .map(|_| {
                    let n = random.usize(..1_200);
                    let rows = rows(&mut random, n);
                    let from = random.usize(..=n);
                    rows.slice(from, random.usize(..=n - from))
                })
                .collect();
            let schema = parts[0].schema();
            let whole = concat_batches(&schema, &parts).unwrap();
            let message = writer.encode(&parts).unwrap();
            let ours = [message.header, message.body].concat();
            assert_eq!(message.rows, whole.num_rows());
            assert_eq!(read(&Arc::new(ours.clone()), &schema).unwrap(), whole);

            let options = IpcWriteOptions::default();
            let options = options.try_with_compression(Some(CompressionType::LZ4_FRAME)).unwrap();
            let mut stream =
                StreamWriter::try_new_with_options(Vec::new(), &schema, options).unwrap();
            let begin = stream.get_ref().len();
            stream.write(&whole).unwrap();
            let theirs = stream.get_ref().clone();
            assert_eq!(read(&Arc::new(theirs[begin..].to_vec()), &schema).unwrap(), whole);

            let swapped = [&theirs[..begin], &ours].concat();
            let mut back = StreamReader::try_new(&swapped[..], None).unwrap();
            assert_eq!(back.next().unwrap().unwrap(), whole);

            // Whatever is changed, it is refused or is something else, and nobody panics.
            let mut bad = ours;
            for _ in 0..20 {
                let at = random.usize(..bad.len());
                bad[at] ^= 1 << random.u8(..8);
                drop(read(&Arc::new(bad.clone()), &schema));
                drop(read(&Arc::new(bad[..at].to_vec()), &schema));
            }
        }
    }

    #[test]
    fn what_was_read_is_written_again_without_being_compressed() {
        let value =
            |i: u32| format!("{i:>9} {}", "some text ".repeat(i as usize % 40)).into_bytes();
        let values = arrow_array::BinaryArray::from_iter_values((0..20_000).map(value));
        let rows = RecordBatch::try_from_iter([("value", Arc::new(values) as ArrayRef)]).unwrap();
        let schema = rows.schema();
        let mut writer = BlockWriter::default();
        let message = writer.encode(std::slice::from_ref(&rows)).unwrap();
        let read_rows = read(&Arc::new([message.header, message.body].concat()), &schema).unwrap();
        // A gap, and what was cut apart: 7,000 rows lie together, then 9,000.
        let cuts = [(100, 3_000), (3_100, 4_000), (9_000, 9_000)];
        let parts = |rows: &RecordBatch| cuts.map(|(from, n)| rows.slice(from, n));
        let (fresh, whole) = (parts(&rows), concat_batches(&schema, &parts(&rows)).unwrap());
        let compressed = writer.encode(&fresh).unwrap().body.to_vec();
        let message = writer.encode(&parts(&read_rows)).unwrap();
        // Blocks begin elsewhere, so they are others; but none is lost or comes twice.
        assert_ne!(message.body, compressed);
        let ours = [message.header, message.body].concat();
        assert_eq!(read(&Arc::new(ours.clone()), &schema).unwrap(), whole);
        let mut stream = StreamWriter::try_new(Vec::new(), &schema).unwrap();
        let begin = stream.get_ref().len();
        stream.write(&whole).unwrap();
        let stream = [&stream.get_ref()[..begin], &ours].concat();
        assert_eq!(
            StreamReader::try_new(&stream[..], None).unwrap().next().unwrap().unwrap(),
            whole
        );
    }

    #[test]
    fn columns_that_are_not_stored_have_the_rows_that_there_are() {
        let columns = |key: &[&[u8]]| {
            let number = Arc::new(UInt64Array::from(vec![7; 3])) as ArrayRef;
            let key = Arc::new(arrow_array::BinaryArray::from_vec(key.to_vec())) as ArrayRef;
            [("number", number, false), ("key", key, true)]
        };
        let rows = RecordBatch::try_from_iter_with_nullable(columns(&[b"a", b"", b"c"])).unwrap();
        let mut writer = BlockWriter::default();
        let message = writer.encode(std::slice::from_ref(&rows)).unwrap();
        let bytes = Arc::new([message.header, message.body].concat());
        let schema = rows.schema();
        let key_unwanted = |column| if column == 0 { Column::Stored } else { Column::Unwanted };
        let found = super::read(&bytes, &schema, &key_unwanted).unwrap();
        assert_eq!(found.column(0), rows.column(0));
        assert_eq!((found.column(1).len(), found.column(1).null_count()), (3, 3));
        let known = |column| if column == 0 { Column::Rising(5) } else { Column::Stored };
        let found = super::read(&bytes, &schema, &known).unwrap();
        let rising: ArrayRef = Arc::new(UInt64Array::from(vec![5, 6, 7]));
        assert_eq!((found.column(0), found.column(1)), (&rising, rows.column(1)));
        // With one row less than it should have, and gone.
        writer.nodes.clear();
        writer.buffers.clear();
        writer.body.clear();
        for (i, length) in [(0, 3), (1, 2)] {
            writer.column(&[rows.column(i).slice(0, length).to_data()]).unwrap();
        }
        writer.message(3);
        let mut message = [&[0; 8], writer.metadata.finished_data(), &writer.body].concat();
        let length = writer.metadata.finished_data().len() as u32;
        message[4..8].copy_from_slice(&length.to_le_bytes());
        let message = Arc::new(message);
        let error = super::read(&message, &schema, &key_unwanted).unwrap_err();
        assert_eq!(error, "column key: it has 2 rows instead of 3");
        let error = super::read(&message, &schema, &known).unwrap_err();
        assert_eq!(error, "column number: it has 3 rows instead of 2");
    }

    #[test]
    fn a_part_of_a_number_at_the_end_is_no_number_and_no_panic() {
        let whole = Buffer::from_vec(vec![1_u8; 16]);
        assert_eq!(whole_numbers(whole.clone(), 8).len(), 16);
        for length in 8..16 {
            assert_eq!(whole_numbers(whole.slice_with_length(0, length), 8).len(), 8);
        }
        // Positions of five entries and a half, as a message may claim them.
        let ends: Vec<u8> = (0..6).flat_map(i32::to_le_bytes).chain([1, 2]).collect();
        let data = ArrayDataBuilder::new(DataType::Binary).len(5);
        let data = data.add_buffer(whole_numbers(Buffer::from_vec(ends), 4));
        assert!(data.add_buffer(Buffer::from_vec(vec![7; 5])).align_buffers(true).build().is_ok());
    }
}
