//! Bodies of a produce request into columns.
//!
//! **Invariant:** all or nothing: the first malformed line refuses the whole body, by its number.
//! Value bytes of `json` topics are kept as they were sent; nothing is parsed into a tree.

use std::borrow::Cow;
use std::fmt::Display;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::raw::{RawFields, raw_fields};
use crate::log::TopicFormat as Format;
use crate::types::{PartitionId, Records, RecordsBuilder};

/// What a header counts beside its name and value: empty ones are not free.
pub(super) const HEADER_ENTRY_BYTES: usize = 8;

/// What one record may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Largest key in bytes.
    pub key_bytes: usize,
    /// Largest value in bytes.
    pub value_bytes: usize,
    /// Most bytes of a record's header names and values, and [`HEADER_ENTRY_BYTES`] for each.
    pub header_bytes: usize,
}

/// Turns bodies into records for one topic.
#[derive(Debug, Clone, Copy)]
pub struct Decoder {
    /// How keys and values are taken.
    pub format: Format,
    /// The topic's partitions; a record may choose one of them.
    pub partitions: u32,
    /// What one record may hold.
    pub limits: Limits,
    /// The timestamp of records that carry none.
    pub now_ms: i64,
}

/// What a body held.
#[derive(Debug)]
pub struct Decoded {
    /// The records.
    pub records: Records,
    /// The partition that each record chose; `None` when none did.
    pub partitions: Option<Vec<Option<PartitionId>>>,
}

/// Why a body was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {line}{}: {reason}; nothing of this request was appended",
    .column.map(|c| format!(", column {c}")).unwrap_or_default())]
pub struct DecodeError {
    /// A stable code: `malformed_record`, `malformed_stream`, `record_too_large` or
    /// `partition_out_of_range`.
    pub code: &'static str,
    /// `line`; `record` for a JSON array or an Arrow stream; `record batch`.
    pub what: &'static str,
    /// Counted from 1.
    pub line: usize,
    /// Counted from 1, where known.
    pub column: Option<usize>,
    /// What is wrong.
    pub reason: String,
}

/// What is wrong with one record, whose place is not known yet.
pub(super) struct Wrong {
    code: &'static str,
    column: Option<usize>,
    reason: String,
}

impl Wrong {
    pub(super) fn record(reason: impl Into<String>) -> Self {
        Self { code: "malformed_record", column: None, reason: reason.into() }
    }

    pub(super) fn too_large(what: &str, size: usize, limit: usize) -> Self {
        let reason = format!("the {what} has {size} bytes, the limit is {limit}");
        Self { code: "record_too_large", column: None, reason }
    }

    pub(super) fn stream(reason: impl Into<String>) -> Self {
        Self { code: "malformed_stream", column: None, reason: reason.into() }
    }

    pub(super) fn partition(partition: impl Display, count: u32) -> Self {
        let reason = format!("partition {partition} is not one of the topic's {count} (from 0)");
        Self { code: "partition_out_of_range", column: None, reason }
    }

    pub(super) fn at(self, what: &'static str, line: usize) -> DecodeError {
        DecodeError { code: self.code, what, line, column: self.column, reason: self.reason }
    }
}

impl From<serde_json::Error> for Wrong {
    fn from(error: serde_json::Error) -> Self {
        let text = error.to_string();
        let suffix = format!(" at line {} column {}", error.line(), error.column());
        let reason = text.strip_suffix(&suffix).unwrap_or(&text).to_owned();
        let column = (error.column() > 0).then_some(error.column());
        Self { code: "malformed_record", column, reason }
    }
}

/// A record as a line of JSON shows it. `offset` is taken and not used, so that what was consumed
/// can be produced again.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    #[serde(borrow, default)]
    key: Option<&'a RawValue>,
    #[serde(borrow)]
    value: &'a RawValue,
    #[serde(borrow, default)]
    timestamp: Option<&'a RawValue>,
    #[serde(borrow, default)]
    headers: Vec<(Cow<'a, str>, HeaderValue)>,
    #[serde(default)]
    partition: Option<u32>,
    #[serde(default, rename = "offset")]
    _offset: IgnoredAny,
}

/// A header as columns take it.
type NamedHeader = (String, Option<Vec<u8>>);

/// A header's value: text, nothing, or bytes.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a header's value is a string, null or {\"$bytes\": \"<base64>\"}")]
enum HeaderValue {
    Text(String),
    Bytes {
        #[serde(rename = "$bytes")]
        bytes: String,
    },
    Null,
}

impl Decoder {
    /// Records from NDJSON: one record a line or, with `raw`, one bare value a line. Blank lines
    /// count and are left out.
    ///
    /// # Errors
    /// At the first line that is not a record.
    pub fn ndjson(&self, body: &[u8], raw: Option<&RawFields>) -> Result<Decoded, DecodeError> {
        let text = utf8(body)?;
        let mut rows = Rows::new(self);
        for (index, line) in text.split('\n').enumerate() {
            let line = line.trim_ascii();
            if !line.is_empty() {
                rows.add(line, raw).map_err(|wrong| wrong.at("line", index + 1))?;
            }
        }
        Ok(rows.finish())
    }

    /// Records from a JSON array: of records or, with `raw`, of bare values.
    ///
    /// # Errors
    /// Where the body is not an array, and at its first element that is not a record.
    pub fn array(&self, body: &[u8], raw: Option<&RawFields>) -> Result<Decoded, DecodeError> {
        let text = utf8(body)?;
        let elements: Vec<&RawValue> = serde_json::from_str(text).map_err(|error| {
            let line = error.line().max(1);
            Wrong::from(error).at("line", line)
        })?;
        let mut rows = Rows::new(self);
        for (index, element) in elements.iter().enumerate() {
            rows.add(element.get(), raw).map_err(|wrong| wrong.at("record", index + 1))?;
        }
        Ok(rows.finish())
    }
}

/// The body as text; the error names the line of the first byte that is none.
fn utf8(body: &[u8]) -> Result<&str, DecodeError> {
    std::str::from_utf8(body).map_err(|error| {
        let before = &body[..error.valid_up_to()];
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
        let column = before.iter().rev().take_while(|&&byte| byte != b'\n').count() + 1;
        Wrong { code: "malformed_record", column: Some(column), reason: "not UTF-8".to_owned() }
            .at("line", line)
    })
}

/// Columns under construction.
struct Rows<'a> {
    decoder: &'a Decoder,
    columns: RecordsBuilder,
    partitions: Option<Vec<Option<PartitionId>>>,
}

impl<'a> Rows<'a> {
    fn new(decoder: &'a Decoder) -> Self {
        Self { decoder, columns: RecordsBuilder::default(), partitions: None }
    }

    fn add(&mut self, text: &str, raw: Option<&RawFields>) -> Result<(), Wrong> {
        match raw {
            None => self.add_record(text),
            Some(fields) => self.add_raw(text, fields),
        }
    }

    fn add_record(&mut self, text: &str) -> Result<(), Wrong> {
        let line: Line<'_> = serde_json::from_str(text)?;
        let decoder = self.decoder;
        let key = line.key.map(|raw| decoder.key(raw.get())).transpose()?.flatten();
        let value = decoder.value(line.value.get())?;
        let timestamp = match line.timestamp {
            Some(raw) => timestamp_ms(raw.get())?,
            None => decoder.now_ms,
        };
        let headers = decoder.headers(line.headers)?;
        self.partition(line.partition)?;
        self.columns.push(timestamp, key.as_deref(), value.as_deref(), headers);
        Ok(())
    }

    fn add_raw(&mut self, text: &str, fields: &RawFields) -> Result<(), Wrong> {
        let decoder = self.decoder;
        let found = raw_fields(text, fields)?;
        let key = found.key.map(|raw| decoder.key(raw)).transpose()?.flatten();
        let timestamp = found.timestamp.map(timestamp_ms).transpose()?;
        let value = decoder.value(found.value)?;
        let timestamp = timestamp.unwrap_or(decoder.now_ms);
        self.columns.push(timestamp, key.as_deref(), value.as_deref(), []);
        Ok(())
    }

    /// Notes the partition that the next record chose.
    fn partition(&mut self, chosen: Option<u32>) -> Result<(), Wrong> {
        let count = self.decoder.partitions;
        if let Some(partition) = chosen.filter(|&p| p >= count) {
            return Err(Wrong::partition(partition, count));
        }
        if chosen.is_some() || self.partitions.is_some() {
            let partitions = self.partitions.get_or_insert_default();
            partitions.resize(self.columns.len(), None);
            partitions.push(chosen.map(PartitionId));
        }
        Ok(())
    }

    fn finish(mut self) -> Decoded {
        Decoded { records: self.columns.finish(), partitions: self.partitions }
    }
}

impl Decoder {
    fn key<'b>(&self, raw: &'b str) -> Result<Option<Cow<'b, [u8]>>, Wrong> {
        let key = match self.format {
            _ if raw == "null" => return Ok(None),
            Format::Json if !raw.starts_with('"') => Cow::Borrowed(raw.as_bytes()),
            Format::Json | Format::Utf8 => into_bytes(string("key", raw)?),
            Format::Bytes => Cow::Owned(base64("key", raw)?),
        };
        within("key", key, self.limits.key_bytes)
    }

    fn value<'b>(&self, raw: &'b str) -> Result<Option<Cow<'b, [u8]>>, Wrong> {
        let value = match self.format {
            _ if raw == "null" => return Ok(None),
            Format::Json => Cow::Borrowed(raw.as_bytes()),
            Format::Utf8 => into_bytes(string("value", raw)?),
            Format::Bytes => Cow::Owned(base64("value", raw)?),
        };
        within("value", value, self.limits.value_bytes)
    }

    fn headers(&self, given: Vec<(Cow<'_, str>, HeaderValue)>) -> Result<Vec<NamedHeader>, Wrong> {
        let mut headers = Vec::with_capacity(given.len());
        let mut size = 0;
        for (name, value) in given {
            let value = match value {
                HeaderValue::Null => None,
                HeaderValue::Text(text) => Some(text.into_bytes()),
                HeaderValue::Bytes { bytes } => Some(BASE64.decode(&bytes).map_err(|error| {
                    Wrong::record(format!("header {name:?} is not base64: {error}"))
                })?),
            };
            size += HEADER_ENTRY_BYTES + name.len() + value.as_ref().map_or(0, Vec::len);
            headers.push((name.into_owned(), value));
        }
        if size > self.limits.header_bytes {
            return Err(Wrong::too_large("headers", size, self.limits.header_bytes));
        }
        Ok(headers)
    }
}

fn within<'b>(
    what: &str,
    bytes: Cow<'b, [u8]>,
    limit: usize,
) -> Result<Option<Cow<'b, [u8]>>, Wrong> {
    if bytes.len() > limit {
        return Err(Wrong::too_large(what, bytes.len(), limit));
    }
    Ok(Some(bytes))
}

fn into_bytes(text: Cow<'_, str>) -> Cow<'_, [u8]> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

/// The text of a JSON string, borrowed where it holds no escapes.
fn string<'b>(what: &str, raw: &'b str) -> Result<Cow<'b, str>, Wrong> {
    match raw.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        None => Err(Wrong::record(format!("the {what} must be a string, not {}", excerpt(raw)))),
        Some(text) if !text.contains('\\') => Ok(Cow::Borrowed(text)),
        Some(_) => Ok(Cow::Owned(serde_json::from_str(raw)?)),
    }
}

fn base64(what: &str, raw: &str) -> Result<Vec<u8>, Wrong> {
    let text = string(what, raw)?;
    BASE64
        .decode(&*text)
        .map_err(|error| Wrong::record(format!("the {what} is not base64: {error}")))
}

/// Milliseconds since the Unix epoch, from a whole number of them or a string in RFC 3339.
pub(super) fn timestamp_ms(raw: &str) -> Result<i64, Wrong> {
    if let Ok(ms) = raw.parse() {
        return Ok(ms);
    }
    let text = raw.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let time = text.and_then(|text| text.parse::<jiff::Timestamp>().ok());
    time.map(jiff::Timestamp::as_millisecond).ok_or_else(|| {
        Wrong::record(format!(
            "timestamp {} is neither whole milliseconds since 1970 nor a time such as \"2013-01-01T10:00:00Z\"",
            excerpt(raw)
        ))
    })
}

/// The beginning of `raw`, for an error message.
pub(super) fn excerpt(raw: &str) -> String {
    match raw.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &raw[..end]),
        None => raw.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoder(format: Format) -> Decoder {
        let limits = Limits { key_bytes: 8, value_bytes: 60, header_bytes: 30 };
        Decoder { format, partitions: 4, limits, now_ms: 77 }
    }

    fn rows(decoded: &Decoded) -> Vec<(i64, Option<String>, Option<String>)> {
        let records = &decoded.records;
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        let columns = records.keys.iter().zip(records.values.iter()).zip(&records.timestamps[..]);
        columns.map(|((k, v), &t)| (t, k.map(text), v.map(text))).collect()
    }

    fn row(t: i64, k: Option<&str>, v: Option<&str>) -> (i64, Option<String>, Option<String>) {
        (t, k.map(str::to_owned), v.map(str::to_owned))
    }

    #[test]
    fn json_keeps_value_bytes_and_takes_string_keys_plain() {
        let body = concat!(
            "{\"key\": \"AA\", \"value\": {\"a\" : 1.50}, \"timestamp\": 5}\r\n",
            "\n",
            "{\"value\": null}\n",
            "{\"key\": {\"x\":1}, \"value\": \"t\", \"timestamp\": \"1970-01-01T00:00:01Z\", \"offset\": 9}\n",
            "{\"key\": \"a\\\"b\", \"value\": 1, \"partition\": 3}",
        );
        let decoded = decoder(Format::Json).ndjson(body.as_bytes(), None).unwrap();
        assert_eq!(
            rows(&decoded),
            [
                row(5, Some("AA"), Some("{\"a\" : 1.50}")),
                row(77, None, None),
                row(1000, Some("{\"x\":1}"), Some("\"t\"")),
                row(77, Some("a\"b"), Some("1")),
            ]
        );
        let chosen = decoded.partitions.unwrap();
        assert_eq!(chosen, [None, None, None, Some(PartitionId(3))]);
    }

    #[test]
    fn headers_keep_order_and_repeats() {
        let body = r#"{"value":1,"headers":[["t","1"],["t",null],["b",{"$bytes":"AP8="}]]}"#;
        let decoded = decoder(Format::Json).ndjson(body.as_bytes(), None).unwrap();
        let headers = decoded.records.headers.unwrap();
        let expected = [("t", Some(&b"1"[..])), ("t", None), ("b", Some(&[0u8, 255][..]))];
        assert_eq!(headers.get(0).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn other_formats_take_strings() {
        let body = br#"[{"key":"k","value":"v\n"},{"value":"AAE="}]"#;
        let text = decoder(Format::Utf8).array(body, None).unwrap();
        assert_eq!(rows(&text)[0], row(77, Some("k"), Some("v\n")));
        let bytes = decoder(Format::Bytes).ndjson(br#"{"value":"AAE="}"#, None).unwrap();
        assert_eq!(bytes.records.values.value(0), [0, 1]);
    }

    #[test]
    fn raw_lines_give_key_and_timestamp() {
        let fields = RawFields { key: Some("c".into()), timestamp: Some("t".into()) };
        let body =
            "{\"t\":\"1970-01-01T00:00:02Z\",\"n\":{\"c\":0},\"c\":\"UA\"}\n{\"c\":null,\"t\":3}";
        let decoded = decoder(Format::Json).ndjson(body.as_bytes(), Some(&fields));
        let rows = rows(&decoded.unwrap());
        assert_eq!((rows[0].0, rows[0].1.as_deref()), (2000, Some("UA")));
        assert_eq!(rows[1], row(3, None, Some("{\"c\":null,\"t\":3}")));
        let bare = decoder(Format::Json).ndjson(b" 17 \n", Some(&RawFields::default())).unwrap();
        assert_eq!(bare.records.values.value(0), b"17");
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let raw = RawFields { key: Some("c".into()), timestamp: Some("t".into()) };
        let cases: [(Format, &str, Option<&RawFields>, &str); 16] = [
            (
                Format::Json,
                "{\"value\":1}\n{\"value\":}",
                None,
                "line 2, column 10: expected value",
            ),
            (Format::Json, "{\"value\":1,\"valeu\":2}", None, "unknown field `valeu`"),
            (Format::Json, "{\"value\":1,\"value\":2}", None, "duplicate field `value`"),
            (Format::Json, "{\"key\":\"a\"}", None, "missing field `value`"),
            (Format::Json, "7", None, "line 1"),
            (Format::Json, "{\"value\":1,\"partition\":4}", None, "partition 4 is not one of"),
            (Format::Json, "{\"value\":1,\"timestamp\":1.5}", None, "timestamp 1.5 is neither"),
            (Format::Json, "{\"value\":1,\"timestamp\":\"now\"}", None, "timestamp \"now\""),
            (Format::Json, "{\"value\":1,\"key\":\"123456789\"}", None, "key has 9 bytes"),
            (Format::Json, "{\"value\":1,\"headers\":[[\"n\",7]]}", None, "a header's value is"),
            (
                Format::Json,
                "{\"value\":1,\"headers\":[[\"n\",\"1234567890123456789012\"]]}",
                None,
                "headers has",
            ),
            (Format::Utf8, "{\"value\":1}", None, "the value must be a string, not 1"),
            (Format::Bytes, "{\"value\":\"a\"}", None, "the value is not base64"),
            (Format::Json, "{\"c\":1}", Some(&raw), "no field \"t\""),
            (Format::Json, "{\"t\":1,\"c\":1}\n[]", Some(&raw), "line 2: not a JSON object"),
            (Format::Json, "{\"t\":1,\"c\":1} x", Some(&raw), "trailing characters"),
        ];
        for (format, body, raw, expected) in cases {
            let error = decoder(format).ndjson(body.as_bytes(), raw).unwrap_err().to_string();
            assert!(error.contains(expected), "{body}: {error}");
        }
        let large = format!("{{\"value\":\"{}\"}}", "x".repeat(70));
        let error = decoder(Format::Json).ndjson(large.as_bytes(), None).unwrap_err();
        assert_eq!((error.code, error.line), ("record_too_large", 1));
    }

    #[test]
    fn broken_bodies_are_named() {
        let decoder = decoder(Format::Json);
        let error = decoder.ndjson(b"{\"value\":1}\n{\"value\":\"\xff\"}", None).unwrap_err();
        assert_eq!((error.line, error.column, error.reason.as_str()), (2, Some(11), "not UTF-8"));
        let error = decoder.array(b"[{\"value\":1},\n{]", None).unwrap_err();
        assert_eq!((error.what, error.line), ("line", 2));
        let error = decoder.array(b"[{\"value\":1},{\"v\":1}]", None).unwrap_err();
        assert_eq!((error.what, error.line), ("record", 2));
        assert!(decoder.array(b"{\"value\":1}", None).is_err());
        assert!(decoder.array(b"[]", None).unwrap().records.is_empty());
    }
}
