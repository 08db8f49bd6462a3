//! Records as Arrow streams, in and out.
//!
//! In, columns go by their names; `value` must be there, the others may be missing or null:
//!
//! | column | types | null or missing |
//! |---|---|---|
//! | `value`, `key` | binary or utf8, plain or large | a tombstone; no key |
//! | `timestamp` | timestamp of any unit, or int64 milliseconds | the host's time |
//! | `headers` | list of struct of `name` utf8 and `value` binary | none |
//! | `partition` | int32 or uint32 | that of the key |
//! | `offset` | any | not used: what was read can be appended again |
//!
//! Out: `offset` u64, `timestamp` ms UTC, `key` and `value` binary, `headers`, as in a segment file.
//!
//! **Invariant:** all or nothing, as with JSON. Nothing of a stream is used before its sizes and its
//! schema were checked; columns of another name or type are refused, never guessed at.

use arrow_array::cast::AsArray as _;
use arrow_array::types::{
    Int32Type, Int64Type, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType, UInt32Type,
};
use arrow_array::{Array, BinaryArray, Int64Array, RecordBatch};
use arrow_buffer::OffsetBuffer;
use arrow_ipc::Message;
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{ArrowError, DataType, Schema, SchemaRef, TimeUnit};
use serde::de::IgnoredAny;

use super::decode::{DecodeError, Decoded, Decoder, HEADER_ENTRY_BYTES, Wrong};
use crate::log::{TopicFormat as Format, segment_columns, segment_schema};
use crate::storage::{claimed_bytes, read_batch};
use crate::threads::quietly;
use crate::types::{Batch, Headers, PartitionId, Records, RecordsBuilder, concat_records};

/// The media type of an Arrow stream.
pub const ARROW_STREAM: &str = "application/vnd.apache.arrow.stream";

/// How many columns the host looks at; beyond it a schema is refused unread.
const MAX_COLUMNS: usize = 64;

impl Decoder {
    /// Records from an Arrow stream.
    ///
    /// # Errors
    /// Where the body is no such stream, is larger unpacked than `max_bytes`, or has other columns; and at
    /// the first record that is refused.
    pub fn arrow(&self, body: &[u8], max_bytes: usize) -> Result<Decoded, DecodeError> {
        let max_bytes = max_bytes.min(i32::MAX as usize);
        let mut frames = Frames { rest: body, schema: None, unpacked: 0, max_bytes };
        let (mut parts, mut partitions, mut count) = (Vec::new(), Vec::new(), 0);
        loop {
            let here = in_batch(parts.len() + 1);
            let Some(rows) = frames.next().map_err(&here)? else { break };
            let records = self.columns(&rows).map_err(&here)?;
            self.check(&records, count)?;
            if let Some(column) = rows.column_by_name("partition") {
                self.add_partitions(&mut partitions, column)?;
            }
            count += records.len();
            parts.push(records);
        }
        // All batches have the column or none has.
        let partitions = (partitions.len() == count && count > 0).then_some(partitions);
        let records = concat_records(&parts).unwrap_or_else(|| RecordsBuilder::default().finish());
        Ok(Decoded { records, partitions })
    }

    /// The columns of a batch as those of records, without a copy where the types are the log's.
    fn columns(&self, rows: &RecordBatch) -> Result<Records, String> {
        let n = rows.num_rows();
        let bytes = |name| rows.column_by_name(name).map(|column| binary(column));
        let values = bytes("value").ok_or("it has no column value")?;
        let keys = bytes("key").unwrap_or_else(|| BinaryArray::new_null(n));
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
            let size = |(name, value): (&str, Option<&[u8]>)| {
                HEADER_ENTRY_BYTES + name.len() + value.map_or(0, <[u8]>::len)
            };
            headers.get(row).map(size).sum()
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

/// What is left of a stream, message by message.
struct Frames<'a> {
    rest: &'a [u8],
    /// Once its message was read.
    schema: Option<SchemaRef>,
    /// Bytes of all buffers so far, unpacked.
    unpacked: u64,
    max_bytes: usize,
}

impl<'a> Frames<'a> {
    /// The next batch; `None` at the end, which may be left out.
    fn next(&mut self) -> Result<Option<RecordBatch>, String> {
        while let Some((message, body)) = self.message()? {
            let Some(schema) = &self.schema else {
                let schema = message.header_as_schema().ok_or("it does not begin with a schema")?;
                // Arrow panics at types that it does not know.
                let read = quietly(|| arrow_ipc::convert::fb_to_schema(schema));
                let read = read.map_err(|_| "its schema is none of Arrow's")?;
                check_schema(&read)?;
                self.schema = Some(read.into());
                continue;
            };
            let batch = message.header_as_record_batch();
            let batch = batch.ok_or("there is a message that is no record batch")?;
            // Before memory is asked for.
            self.unpacked = self.unpacked.saturating_add(claimed_bytes(batch, body));
            if self.unpacked > self.max_bytes as u64 {
                return Err(too_large(self.max_bytes));
            }
            return read_batch(batch, body, schema).map(Some);
        }
        match self.schema {
            Some(_) => Ok(None),
            None => Err("it is empty: there is no schema".to_owned()),
        }
    }

    /// The next message and its body.
    fn message(&mut self) -> Result<Option<(Message<'a>, &'a [u8])>, String> {
        let cut_off = || match self.schema {
            Some(_) => "the stream is cut off".to_owned(),
            None => NO_STREAM.to_owned(),
        };
        if self.rest.is_empty() {
            return Ok(None);
        }
        let rest = self.rest.strip_prefix(&[0xff; 4]).unwrap_or(self.rest);
        let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(cut_off)?;
        let length = u32::from_le_bytes(*length) as usize;
        if length == 0 {
            return match rest.is_empty() {
                true => Ok(None),
                false => Err("there are bytes after its end".to_owned()),
            };
        }
        let (message, rest) = rest.split_at_checked(length).ok_or_else(cut_off)?;
        let message = arrow_ipc::root_as_message(message).map_err(|_| NO_STREAM)?;
        let length = usize::try_from(message.bodyLength()).map_err(|_| NO_STREAM)?;
        let (body, rest) = rest.split_at_checked(length).ok_or_else(cut_off)?;
        self.rest = rest;
        Ok(Some((message, body)))
    }
}

fn too_large(max_bytes: usize) -> String {
    format!(
        "unpacked it is larger than {max_bytes} bytes; send it in parts, or raise max_body_bytes in [http]"
    )
}

const NO_STREAM: &str = "this is no Arrow stream (a file in Arrow's or Feather's format is none; pyarrow.ipc.new_stream writes one)";

/// Refuses columns that records have not, and types that theirs cannot be made of.
fn check_schema(schema: &Schema) -> Result<(), String> {
    use DataType::{Binary, Int32, Int64, LargeBinary, LargeUtf8, List, Timestamp, UInt32, Utf8};
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
            ("key" | "value", Binary | Utf8 | LargeBinary | LargeUtf8)
            | ("timestamp", Timestamp(..) | Int64)
            | ("partition", Int32 | UInt32)
            | ("offset", DataType::UInt64 | Int64) => continue,
            ("headers", List(item)) if is_header(item.data_type()) => continue,
            ("key" | "value", _) => "binary or utf8 (or their large forms)",
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
fn binary(column: &dyn Array) -> BinaryArray {
    match column.data_type() {
        DataType::Binary => column.as_binary::<i32>().clone(),
        DataType::Utf8 => BinaryArray::from(column.as_string::<i32>().clone()),
        DataType::LargeBinary => column.as_binary::<i64>().iter().collect(),
        // No other passes `check_schema`; what is copied was counted as unpacked.
        _ => column.as_string::<i64>().iter().collect(),
    }
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
    let ends = lists.value_offsets();
    let (from, to) = (ends[0], ends[lists.len()]);
    let entries = lists.values().as_struct().slice(from as usize, (to - from) as usize);
    let names = entries.column(0).as_string::<i32>();
    if lists.null_count() > 0 || entries.null_count() > 0 || names.null_count() > 0 {
        return Err(
            "its headers hold a null that is no value; a record without any has an empty list"
                .to_owned(),
        );
    }
    if from == to {
        return Ok(None);
    }
    let ends = OffsetBuffer::new(ends.iter().map(|end| end - from).collect());
    Ok(Some(Headers::new(ends, names.clone(), entries.column(1).as_binary::<i32>().clone())))
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

    use arrow_array::{
        ArrayRef, Int32Array, LargeStringArray, StringArray, TimestampMicrosecondArray,
    };
    use arrow_ipc::CompressionType;
    use arrow_ipc::writer::IpcWriteOptions;

    use super::super::Limits;
    use super::*;
    use crate::types::Offset;

    const LIMITS: Limits = Limits { key_bytes: 16, value_bytes: 400, header_bytes: 24 };

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
        let decoded = decoder(Format::Bytes).arrow(&body, 1 << 20).unwrap();
        assert_eq!((decoded.records, decoded.partitions), (records, None));
        let nothing = stream(&[("value", text(&[None]))]);
        let end = nothing.len();
        for cut in [end - 8, end] {
            let decoded = decoder(Format::Json).arrow(&nothing[..cut], 1 << 20);
            assert_eq!(decoded.unwrap().records.len(), 1, "the end may be left out");
        }
    }

    #[test]
    fn other_types_are_taken_as_what_they_mean() {
        let values = LargeStringArray::from(vec!["1", "\"a value\""]);
        let times = TimestampMicrosecondArray::from(vec![Some(-1), None]);
        let partitions = Int32Array::from(vec![None, Some(2)]);
        for compression in [None, Some(CompressionType::LZ4_FRAME)] {
            let columns: [(&str, ArrayRef); 4] = [
                ("timestamp", Arc::new(times.clone())),
                ("value", Arc::new(values.clone())),
                ("partition", Arc::new(partitions.clone())),
                ("key", text(&[Some("a"), None])),
            ];
            let body = stream_with(&columns, compression).unwrap();
            let decoded = decoder(Format::Json).arrow(&body, 1 << 20).unwrap();
            let records = decoded.records;
            assert_eq!(records.timestamps[..], [-1, 5]);
            assert_eq!(records.values.value(1), b"\"a value\"");
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
            let error = decoder(Format::Json).arrow(&body, 2_000).unwrap_err();
            assert_eq!(error.code, code, "{error}");
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn what_claims_less_than_it_holds_is_refused() {
        let value = "8".repeat(390);
        let honest = stream_with(
            &[("value", text(&[Some(&value), Some(&value)]))],
            Some(CompressionType::LZ4_FRAME),
        );
        let honest = honest.unwrap();
        assert!(decoder(Format::Json).arrow(&honest, 2_000).is_ok());
        let claim = 390_u64.to_le_bytes();
        let at = honest.windows(8).rposition(|bytes| bytes == claim).unwrap();
        for claim in [1, 389, 391, u64::from(u32::MAX), u64::MAX - 1] {
            let mut body = honest.clone();
            body[at..at + 8].copy_from_slice(&claim.to_le_bytes());
            assert!(decoder(Format::Json).arrow(&body, 1 << 40).is_err(), "{claim}");
        }
    }

    #[test]
    fn nothing_is_dropped_behind_what_is_malformed() {
        let body = stream(&[("value", text(&[Some("1"), Some("2")]))]);
        // Before the second batch: a marker more than there may be.
        let marker = |from: usize| {
            let found = body[from..].windows(4).position(|bytes| bytes == [0xff; 4]);
            from + found.unwrap()
        };
        let second = marker(marker(4) + 4);
        let twice = [&body[..second], &[0xff; 4], &body[second..]].concat();
        let error = decoder(Format::Json).arrow(&twice, 1 << 20).unwrap_err();
        assert_eq!(error.code, "malformed_stream", "{error}");
        let more = [&body[..], &body[..]].concat();
        assert!(decoder(Format::Json).arrow(&more, 1 << 20).is_err());
    }
}
