//! Records as Arrow streams, in and out.
//!
//! In, columns go by their names; `value` must be there, the others may be missing or null:
//!
//! | column | types | null or missing |
//! |---|---|---|
//! | `value`, `key` | binary or utf8, plain, large or view | a tombstone; no key |
//! | `timestamp` | timestamp of any unit, or int64 milliseconds | the host's time |
//! | `headers` | list of struct of `name` utf8 and `value` binary | none |
//! | `partition` | int32 or uint32 | that of the key |
//! | `offset` | any | not used: what was read can be appended again |
//!
//! Out: `offset` u64, `timestamp` ms UTC, `key` and `value` binary, `headers`, as in a segment file.
//!
//! **Invariant:** all or nothing, as with JSON. Nothing of a stream is used before its sizes and its
//! schema were checked; columns of another name or type are refused, never guessed at.

use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow_array::builder::BinaryBuilder;
use arrow_array::cast::AsArray as _;
use arrow_array::types::{
    Int32Type, Int64Type, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType, UInt32Type,
};
use arrow_array::{Array, BinaryArray, Int64Array, RecordBatch};
use arrow_buffer::{Buffer, OffsetBuffer};
use arrow_ipc::reader::StreamDecoder;
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{ArrowError, DataType, Schema, SchemaRef, TimeUnit};
use bytes::Bytes;
use serde::de::IgnoredAny;

use super::decode::{DecodeError, Decoded, Decoder, Wrong};
use crate::log::{TopicFormat as Format, segment_columns, segment_schema};
use crate::types::{Batch, Headers, PartitionId, Records, RecordsBuilder, concat_records};

/// The media type of an Arrow stream.
pub const ARROW_STREAM: &str = "application/vnd.apache.arrow.stream";

/// How many columns the host looks at; beyond it a schema is refused unread.
const MAX_COLUMNS: usize = 64;

impl Decoder {
    /// Records from an Arrow stream, whose buffers they share.
    ///
    /// # Errors
    /// Where the body is no such stream, is larger unpacked than `max_bytes`, or has other columns; and at
    /// the first record that is refused.
    pub fn arrow(&self, body: Bytes, max_bytes: usize) -> Result<Decoded, DecodeError> {
        let max_bytes = max_bytes.min(i32::MAX as usize);
        let schema = check_frames(&body, max_bytes).map_err(in_batch(1))?;
        let mut decoder = StreamDecoder::new();
        let mut rest = Buffer::from(body);
        let mut partitions = schema.column_with_name("partition").map(|_| Vec::new());
        let (mut parts, mut count, mut bytes) = (Vec::new(), 0, 0);
        loop {
            let here = in_batch(parts.len() + 1);
            let Some(rows) = decode(&mut decoder, &mut rest).map_err(&here)? else { break };
            let records = self.columns(&rows, max_bytes).map_err(&here)?;
            bytes += records.keys.value_data().len() + records.values.value_data().len();
            if bytes > max_bytes {
                return Err(here(too_large(max_bytes)));
            }
            self.check(&records, count)?;
            if let (Some(all), Some(column)) = (&mut partitions, rows.column_by_name("partition")) {
                self.add_partitions(all, column)?;
            }
            count += records.len();
            parts.push(records);
        }
        let records = concat_records(&parts).unwrap_or_else(|| RecordsBuilder::default().finish());
        Ok(Decoded { records, partitions })
    }

    /// The columns of a batch as those of records, without a copy where the types are the log's.
    fn columns(&self, rows: &RecordBatch, max_bytes: usize) -> Result<Records, String> {
        let n = rows.num_rows();
        let bytes = |name| rows.column_by_name(name).map(|column| binary(column, max_bytes));
        let values = bytes("value").ok_or("it has no column value")??;
        let keys = bytes("key").unwrap_or_else(|| Ok(BinaryArray::new_null(n)))?;
        let timestamps = match rows.column_by_name("timestamp") {
            None => vec![self.now_ms; n].into(),
            Some(column) => {
                let column = milliseconds(column)?;
                match column.null_count() {
                    0 => column.values().clone(),
                    _ => column.iter().map(|ms| ms.unwrap_or(self.now_ms)).collect(),
                }
            }
        };
        let headers = rows.column_by_name("headers").map(|column| headers(column)).transpose()?;
        Ok(Records { timestamps, keys, values, headers: headers.flatten(), sources: None })
    }

    /// Adds to `all` the partition that each record of `column` chose.
    fn add_partitions(
        &self,
        all: &mut Vec<Option<PartitionId>>,
        column: &dyn Array,
    ) -> Result<(), DecodeError> {
        let chosen: Vec<Option<i64>> = match column.data_type() {
            DataType::Int32 => column.as_primitive::<Int32Type>().iter().map(wide).collect(),
            _ => column.as_primitive::<UInt32Type>().iter().map(wide).collect(),
        };
        for chosen in chosen {
            let record = all.len() + 1;
            let partition = chosen.map(|chosen| {
                let known = u32::try_from(chosen).ok().filter(|&p| p < self.partitions);
                known.map(PartitionId).ok_or_else(|| Wrong::partition(chosen, self.partitions))
            });
            all.push(partition.transpose().map_err(|wrong| wrong.at("record", record))?);
        }
        Ok(())
    }

    /// Holds records to the limits and the topic's format; `first` records came before.
    fn check(&self, records: &Records, first: usize) -> Result<(), DecodeError> {
        for row in 0..records.len() {
            let checked = self.check_row(records, row);
            checked.map_err(|wrong| wrong.at("record", first + row + 1))?;
        }
        Ok(())
    }

    fn check_row(&self, records: &Records, row: usize) -> Result<(), Wrong> {
        let key = records.keys.is_valid(row).then(|| records.keys.value(row));
        let value = records.values.is_valid(row).then(|| records.values.value(row));
        let header_bytes = records.headers.as_ref().map_or(0, |headers| {
            headers.get(row).map(|(name, value)| name.len() + value.map_or(0, <[u8]>::len)).sum()
        });
        let sizes = [
            ("key", key.map_or(0, <[u8]>::len), self.limits.key_bytes),
            ("value", value.map_or(0, <[u8]>::len), self.limits.value_bytes),
            ("headers", header_bytes, self.limits.header_bytes),
        ];
        if let Some((what, size, limit)) = sizes.into_iter().find(|(_, size, limit)| size > limit) {
            return Err(Wrong::too_large(what, size, limit));
        }
        if self.format == Format::Bytes {
            return Ok(());
        }
        let text = |what, bytes: Option<_>| {
            bytes.map(std::str::from_utf8).transpose().map_err(|_| {
                Wrong::record(format!("the {what} is not UTF-8, as the topic's format asks"))
            })
        };
        text("key", key)?;
        match text("value", value)? {
            Some(value) if self.format == Format::Json => {
                serde_json::from_str::<IgnoredAny>(value).map(drop).map_err(|error| {
                    Wrong::record(format!(
                        "the value is not JSON, as the topic's format asks: {error}"
                    ))
                })
            }
            _ => Ok(()),
        }
    }
}

fn wide(number: Option<impl Into<i64>>) -> Option<i64> {
    number.map(Into::into)
}

fn in_batch(number: usize) -> impl Fn(String) -> DecodeError {
    move |reason| Wrong::stream(reason).at("record batch", number)
}

/// Looks at the frames of a stream before anything of it is used: its schema, and how large it will be
/// when it is unpacked, which every buffer says of itself.
fn check_frames(body: &[u8], max_bytes: usize) -> Result<Schema, String> {
    let mut schema = None;
    let mut unpacked = 0_u64;
    let mut rest = body;
    while !rest.is_empty() {
        let cut_off = match schema {
            Some(_) => "the stream is cut off",
            None => NO_STREAM,
        };
        let (word, after) = rest.split_first_chunk::<4>().ok_or(cut_off)?;
        rest = after;
        if word == &[0xff; 4] {
            continue;
        }
        let length = u32::from_le_bytes(*word) as usize;
        if length == 0 {
            match rest.is_empty() {
                true => break,
                false => return Err("there are bytes after its end".to_owned()),
            }
        }
        let (message, after) = rest.split_at_checked(length).ok_or(cut_off)?;
        let message = arrow_ipc::root_as_message(message).map_err(|_| NO_STREAM)?;
        let length = usize::try_from(message.bodyLength()).map_err(|_| NO_STREAM)?;
        let (data, after) = after.split_at_checked(length).ok_or(cut_off)?;
        rest = after;
        if schema.is_none() {
            let first = message.header_as_schema().ok_or("it does not begin with a schema")?;
            // Arrow panics at types that it does not know.
            let read = catch_unwind(|| arrow_ipc::convert::fb_to_schema(first));
            let read = read.map_err(|_| "its schema is none of Arrow's")?;
            check_schema(&read)?;
            schema = Some(read);
        }
        let Some(batch) = message.header_as_record_batch() else { continue };
        if batch.compression().is_some() {
            for buffer in batch.buffers().into_iter().flatten() {
                let at = usize::try_from(buffer.offset()).ok();
                let size = at.and_then(|at| data.get(at..)?.first_chunk::<8>());
                let size = size.map_or(0, |size| i64::from_le_bytes(*size).max(0) as u64);
                unpacked = unpacked.saturating_add(size);
            }
        }
        if unpacked > max_bytes as u64 {
            return Err(too_large(max_bytes));
        }
    }
    schema.ok_or_else(|| "it is empty: there is no schema".to_owned())
}

fn too_large(max_bytes: usize) -> String {
    format!(
        "unpacked it is larger than {max_bytes} bytes; send it in parts, or raise max_body_bytes in [http]"
    )
}

const NO_STREAM: &str = "this is no Arrow stream (a file in Arrow's or Feather's format is none; pyarrow.ipc.new_stream writes one)";

/// The next batch; `None` at the end of the stream.
fn decode(decoder: &mut StreamDecoder, rest: &mut Buffer) -> Result<Option<RecordBatch>, String> {
    // Arrow panics where a message is not what its schema says.
    let decoded = catch_unwind(AssertUnwindSafe(|| decoder.decode(rest)));
    match decoded {
        Ok(Ok(rows)) => Ok(rows),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("its columns are not those of its schema".to_owned()),
    }
}

/// Refuses columns that records have not, and types that theirs cannot be made of.
fn check_schema(schema: &Schema) -> Result<(), String> {
    use DataType::{
        Binary, BinaryView, Int32, Int64, LargeBinary, LargeUtf8, List, Timestamp, UInt32, Utf8,
        Utf8View,
    };
    let fields = schema.fields();
    if fields.len() > MAX_COLUMNS {
        return Err(format!("it has {} columns", fields.len()));
    }
    for (index, field) in fields.iter().enumerate() {
        let (name, kind) = (field.name().as_str(), field.data_type());
        if fields.iter().take(index).any(|before| before.name() == name) {
            return Err(format!("it has two columns {name}"));
        }
        let wanted = match (name, kind) {
            ("key" | "value", Binary | Utf8 | LargeBinary | LargeUtf8 | BinaryView | Utf8View)
            | ("timestamp", Timestamp(..) | Int64)
            | ("partition", Int32 | UInt32)
            | ("offset", DataType::UInt64 | Int64) => continue,
            ("headers", List(item)) if is_header(item.data_type()) => continue,
            ("key" | "value", _) => "binary or utf8",
            ("timestamp", _) => "a timestamp or int64 milliseconds",
            ("partition", _) => "int32 or uint32",
            ("offset", _) => "uint64 or int64",
            ("headers", _) => "a list of structs of name (utf8) and value (binary)",
            _ => {
                return Err(format!(
                    "it has a column {name:?}; columns are value, key, timestamp, headers and partition"
                ));
            }
        };
        return Err(format!("its column {name} is {kind}; it must be {wanted}"));
    }
    match schema.column_with_name("value") {
        Some(_) => Ok(()),
        None => Err("it has no column value".to_owned()),
    }
}

fn is_header(kind: &DataType) -> bool {
    let DataType::Struct(fields) = kind else { return false };
    let found: Vec<_> = fields.iter().map(|f| (f.name().as_str(), f.data_type())).collect();
    found == [("name", &DataType::Utf8), ("value", &DataType::Binary)]
}

/// A column of bytes or text as bytes.
fn binary(column: &dyn Array, max_bytes: usize) -> Result<BinaryArray, String> {
    match column.data_type() {
        DataType::Binary => Ok(column.as_binary::<i32>().clone()),
        DataType::Utf8 => Ok(BinaryArray::from(column.as_string::<i32>().clone())),
        DataType::LargeBinary => copied(column.as_binary::<i64>().iter(), max_bytes),
        DataType::LargeUtf8 => copied(texts(column.as_string::<i64>().iter()), max_bytes),
        DataType::BinaryView => copied(column.as_binary_view().iter(), max_bytes),
        _ => copied(texts(column.as_string_view().iter()), max_bytes),
    }
}

fn texts<'a>(of: impl Iterator<Item = Option<&'a str>>) -> impl Iterator<Item = Option<&'a [u8]>> {
    of.map(|text| text.map(str::as_bytes))
}

/// Views may share bytes, so that a small body may hold much.
fn copied<'a>(
    of: impl Iterator<Item = Option<&'a [u8]>>,
    max_bytes: usize,
) -> Result<BinaryArray, String> {
    let (mut column, mut bytes) = (BinaryBuilder::new(), 0);
    for entry in of {
        bytes += entry.map_or(0, <[u8]>::len);
        if bytes > max_bytes {
            return Err(too_large(max_bytes));
        }
        column.append_option(entry);
    }
    Ok(column.finish())
}

/// A column of times in milliseconds, rounded down.
fn milliseconds(column: &dyn Array) -> Result<Int64Array, String> {
    use DataType::{Int64, Timestamp};
    let scaled = match column.data_type() {
        Int64 => Some(column.as_primitive::<Int64Type>().clone()),
        Timestamp(TimeUnit::Millisecond, _) => {
            Some(column.as_primitive::<TimestampMillisecondType>().reinterpret_cast())
        }
        Timestamp(TimeUnit::Second, _) => {
            let seconds = column.as_primitive::<TimestampSecondType>();
            seconds.try_unary(|s| s.checked_mul(1_000).ok_or(())).ok()
        }
        Timestamp(TimeUnit::Microsecond, _) => {
            let micros = column.as_primitive::<TimestampMicrosecondType>();
            Some(micros.unary(|us| us.div_euclid(1_000)))
        }
        Timestamp(TimeUnit::Nanosecond, _) => {
            let nanos = column.as_primitive::<TimestampNanosecondType>();
            Some(nanos.unary(|ns| ns.div_euclid(1_000_000)))
        }
        _ => None,
    };
    scaled.ok_or_else(|| "its column timestamp is out of range".to_owned())
}

/// A column of headers; `None` when no record has any.
fn headers(column: &dyn Array) -> Result<Option<Headers>, String> {
    let lists = column.as_list::<i32>();
    let entries = lists.values().as_struct();
    let names = entries.column(0).as_string::<i32>();
    if lists.null_count() > 0 || entries.null_count() > 0 || names.null_count() > 0 {
        return Err(
            "its headers hold a null that is no value; a record without any has an empty list"
                .to_owned(),
        );
    }
    let ends = lists.value_offsets();
    let (from, to) = (ends[0], ends[lists.len()]);
    if from == to {
        return Ok(None);
    }
    let ends = OffsetBuffer::new(ends.iter().map(|end| end - from).collect());
    let (from, length) = (from as usize, (to - from) as usize);
    let values = entries.column(1).as_binary::<i32>();
    Ok(Some(Headers::new(ends, names.slice(from, length), values.slice(from, length))))
}

/// Writes the records of one partition as an Arrow stream, piece by piece.
pub struct ArrowShower {
    schema: SchemaRef,
    writer: StreamWriter<Vec<u8>>,
}

impl ArrowShower {
    /// A stream, whose first piece begins with its schema.
    ///
    /// # Errors
    /// None that is known: memory takes everything.
    pub fn open() -> Result<Self, ArrowError> {
        let schema = segment_schema(false);
        let writer = StreamWriter::try_new(Vec::new(), &schema)?;
        Ok(Self { schema, writer })
    }

    /// Adds a batch.
    ///
    /// # Errors
    /// As with [`ArrowShower::open`].
    pub fn batch(&mut self, batch: &Batch) -> Result<(), ArrowError> {
        self.writer.write(&segment_columns(batch, &self.schema)?)
    }

    /// Adds the end of the stream.
    ///
    /// # Errors
    /// As with [`ArrowShower::open`].
    pub fn finish(&mut self) -> Result<(), ArrowError> {
        self.writer.finish()
    }

    /// What was written since the last call.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(self.writer.get_mut())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::builder::StringViewBuilder;
    use arrow_array::{ArrayRef, Int32Array, StringArray, TimestampMicrosecondArray};
    use arrow_ipc::CompressionType;
    use arrow_ipc::writer::IpcWriteOptions;

    use super::super::Limits;
    use super::*;
    use crate::types::Offset;

    const LIMITS: Limits = Limits { key_bytes: 16, value_bytes: 400, header_bytes: 16 };

    fn decoder(format: Format) -> Decoder {
        Decoder { format, partitions: 3, limits: LIMITS, now_ms: 5 }
    }

    fn stream_with(
        columns: &[(&str, ArrayRef)],
        compression: Option<CompressionType>,
    ) -> Result<Vec<u8>, ArrowError> {
        let rows = RecordBatch::try_from_iter(columns.iter().cloned())?;
        let options = IpcWriteOptions::default().try_with_compression(compression)?;
        let mut stream = StreamWriter::try_new_with_options(Vec::new(), &rows.schema(), options)?;
        stream.write(&rows.slice(0, 1))?;
        stream.write(&rows.slice(1, rows.num_rows() - 1))?;
        stream.finish()?;
        stream.into_inner()
    }

    fn stream(columns: &[(&str, ArrayRef)]) -> Vec<u8> {
        stream_with(columns, None).unwrap()
    }

    fn text(entries: &[Option<&str>]) -> ArrayRef {
        Arc::new(StringArray::from_iter(entries))
    }

    #[test]
    fn what_is_shown_is_taken() {
        let mut rows = RecordsBuilder::default();
        rows.push(7, Some(b"k"), Some(b"\xff"), []);
        rows.push(-1, None, None, [("h".to_owned(), None), ("h".to_owned(), Some(vec![0]))]);
        rows.push(i64::MAX, Some(b""), Some(b""), []);
        let records = rows.finish();
        let batch = Batch::contiguous(Offset(9), records.clone());
        let mut shower = ArrowShower::open().unwrap();
        shower.batch(&batch.slice(0, 2)).unwrap();
        let mut body = shower.take();
        shower.batch(&batch.slice(2, 1)).unwrap();
        shower.finish().unwrap();
        body.extend(shower.take());
        let decoded = decoder(Format::Bytes).arrow(body.into(), 1 << 20).unwrap();
        assert_eq!((decoded.records, decoded.partitions), (records, None));
        let nothing = stream(&[("value", text(&[None]))]);
        let end = nothing.len();
        for cut in [end - 8, end] {
            let decoded = decoder(Format::Json).arrow(nothing[..cut].to_vec().into(), 1 << 20);
            assert_eq!(decoded.unwrap().records.len(), 1, "the end may be left out");
        }
    }

    #[test]
    fn other_types_are_taken_as_what_they_mean() {
        let mut views = StringViewBuilder::new();
        views.append_value("1");
        views.append_value("\"a value that is longer than a view\"");
        let times = TimestampMicrosecondArray::from(vec![Some(-1), None]);
        let partitions = Int32Array::from(vec![None, Some(2)]);
        for compression in [None, Some(CompressionType::LZ4_FRAME)] {
            let columns: [(&str, ArrayRef); 4] = [
                ("timestamp", Arc::new(times.clone())),
                ("value", Arc::new(views.finish_cloned())),
                ("partition", Arc::new(partitions.clone())),
                ("key", text(&[Some("a"), None])),
            ];
            let body = stream_with(&columns, compression).unwrap();
            let decoded = decoder(Format::Json).arrow(body.into(), 1 << 20).unwrap();
            let records = decoded.records;
            assert_eq!(records.timestamps[..], [-1, 5]);
            assert_eq!(records.values.value(1), b"\"a value that is longer than a view\"");
            assert_eq!((records.keys.value(0), records.keys.is_null(1)), (&b"a"[..], true));
            assert_eq!(decoded.partitions, Some(vec![None, Some(PartitionId(2))]));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let numbers = |n: &[i32]| Arc::new(Int32Array::from(n.to_vec())) as ArrayRef;
        let good = || ("value", text(&[Some("1"), Some("2")]));
        let long = "7".repeat(401);
        let cases: [(Vec<u8>, &str, &str); 10] = [
            (b"ARROW1\0\0 and so on".to_vec(), "malformed_stream", "no Arrow stream"),
            (Vec::new(), "malformed_stream", "no schema"),
            (stream(&[good()])[..400].to_vec(), "malformed_stream", "cut off"),
            (stream(&[("key", text(&[Some("1"), None]))]), "malformed_stream", "no column value"),
            (stream(&[good(), ("ke", numbers(&[1, 2]))]), "malformed_stream", "column \"ke\""),
            (stream(&[("value", numbers(&[1, 2]))]), "malformed_stream", "value is Int32"),
            (
                stream(&[good(), ("partition", numbers(&[0, 3]))]),
                "partition_out_of_range",
                "record 2: partition 3",
            ),
            (
                stream(&[("value", text(&[Some("1"), Some("no")]))]),
                "malformed_record",
                "record 2: the value is not JSON",
            ),
            (
                stream(&[("value", text(&[Some("1"), Some(&long)]))]),
                "record_too_large",
                "the value has 401 bytes, the limit is 400",
            ),
            (
                stream_with(
                    &[("value", text(&[Some("1"), Some(&"8".repeat(5_000))]))],
                    Some(CompressionType::LZ4_FRAME),
                )
                .unwrap(),
                "malformed_stream",
                "larger than 2000 bytes",
            ),
        ];
        for (body, code, says) in cases {
            let error = decoder(Format::Json).arrow(body.into(), 2_000).unwrap_err();
            assert_eq!(error.code, code, "{error}");
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn views_of_the_same_bytes_are_counted_each() {
        let mut views = StringViewBuilder::new();
        let block = views.append_block("9".repeat(300).into_bytes().into());
        for _ in 0..100 {
            views.try_append_view(block, 0, 300).unwrap();
        }
        let body = stream(&[("value", Arc::new(views.finish()))]);
        let error = decoder(Format::Json).arrow(body.into(), 10_000).unwrap_err();
        assert!(error.to_string().contains("larger than 10000 bytes"), "{error}");
    }
}
