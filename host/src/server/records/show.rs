//! Records as JSON, NDJSON and server-sent events.
//!
//! **Invariant:** what is written holds no line break within a record, whatever its bytes, so that
//! lines and events stay whole.

use std::io::Write as _;

use arrow_array::Array as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::value::RawValue;

use crate::log::TopicFormat as Format;
use crate::types::{Batch, Offset, PartitionId};

/// Shows the records of one partition.
#[derive(Debug, Clone, Copy)]
pub struct Shower {
    /// How keys and values are shown.
    pub format: Format,
    /// The partition.
    pub partition: PartitionId,
}

impl Shower {
    /// Appends record `i` of `batch` to `out`, as one JSON object without a line break.
    pub fn record(&self, out: &mut Vec<u8>, batch: &Batch, i: usize) {
        let records = &batch.records;
        out.extend_from_slice(b"{\"key\":");
        match records.keys.is_valid(i) {
            true => self.key(out, records.keys.value(i)),
            false => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(b",\"value\":");
        match records.values.is_valid(i) {
            true => self.value(out, records.values.value(i)),
            false => out.extend_from_slice(b"null"),
        }
        print(out, format_args!(",\"timestamp\":{}", records.timestamps[i]));
        let headers = records.headers.as_ref().filter(|headers| !headers.range(i).is_empty());
        if let Some(headers) = headers {
            for (n, (name, value)) in headers.get(i).enumerate() {
                out.extend_from_slice(if n == 0 { b",\"headers\":[[" } else { b",[" });
                quote(out, name);
                out.push(b',');
                match value {
                    Some(value) => text(out, value),
                    None => out.extend_from_slice(b"null"),
                }
                out.push(b']');
            }
            out.push(b']');
        }
        let offset = batch.offsets[i];
        print(out, format_args!(",\"partition\":{},\"offset\":{offset}}}", self.partition));
    }

    fn key(&self, out: &mut Vec<u8>, key: &[u8]) {
        match self.format {
            Format::Json | Format::Utf8 => text(out, key),
            Format::Bytes => quote(out, &BASE64.encode(key)),
        }
    }

    fn value(&self, out: &mut Vec<u8>, value: &[u8]) {
        match self.format {
            Format::Json => json(out, value),
            Format::Utf8 => text(out, value),
            Format::Bytes => quote(out, &BASE64.encode(value)),
        }
    }
}

/// Appends a server-sent event: `next` is the position that `Last-Event-ID` resumes from; `data`
/// must write no line break.
pub fn show_event(out: &mut Vec<u8>, next: Offset, kind: &str, data: impl FnOnce(&mut Vec<u8>)) {
    print(out, format_args!("id: {next}\nevent: {kind}\ndata: "));
    data(out);
    out.extend_from_slice(b"\n\n");
}

/// JSON as it is; line breaks, which valid JSON has only between its tokens, become spaces.
fn json(out: &mut Vec<u8>, bytes: &[u8]) {
    match serde_json::from_slice::<&RawValue>(bytes) {
        Ok(raw) => {
            let from = out.len();
            out.extend_from_slice(raw.get().as_bytes());
            for byte in out[from..].iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')) {
                *byte = b' ';
            }
        }
        Err(_) => encoded(out, bytes),
    }
}

fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => quote(out, text),
        Err(_) => encoded(out, bytes),
    }
}

fn encoded(out: &mut Vec<u8>, bytes: &[u8]) {
    print(out, format_args!("{{\"$bytes\":\"{}\"}}", BASE64.encode(bytes)));
}

fn quote(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("writing text to memory does not fail");
}

fn print(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to memory does not fail");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::RecordsBuilder;

    fn shown(format: Format, key: Option<&[u8]>, value: Option<&[u8]>) -> String {
        let mut rows = RecordsBuilder::default();
        rows.push(5, key, value, []);
        let batch = Batch::contiguous(Offset(17), rows.finish());
        let mut out = Vec::new();
        Shower { format, partition: PartitionId(2) }.record(&mut out, &batch, 0);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn formats_show_keys_and_values() {
        let tail = ",\"timestamp\":5,\"partition\":2,\"offset\":17}";
        type Case<'a> = (Format, Option<&'a [u8]>, Option<&'a [u8]>, &'a str);
        let cases: [Case<'_>; 7] = [
            (
                Format::Json,
                Some(b"AA"),
                Some(b"{\"a\": 1.50}"),
                r#"{"key":"AA","value":{"a": 1.50}"#,
            ),
            (Format::Json, None, None, r#"{"key":null,"value":null"#),
            (
                Format::Json,
                Some(b"17"),
                Some(b"{\n\"a\":1\r\n}"),
                r#"{"key":"17","value":{ "a":1  }"#,
            ),
            (
                Format::Json,
                Some(b"\xff"),
                Some(b"{no"),
                r#"{"key":{"$bytes":"/w=="},"value":{"$bytes":"e25v"}"#,
            ),
            (Format::Utf8, Some(b"a\"b"), Some(b"l\n"), r#"{"key":"a\"b","value":"l\n""#),
            (Format::Utf8, Some(b""), Some(b"\xff"), r#"{"key":"","value":{"$bytes":"/w=="}"#),
            (Format::Bytes, Some(b"\x00"), Some(b"\x01"), r#"{"key":"AA==","value":"AQ==""#),
        ];
        for (format, key, value, expected) in cases {
            assert_eq!(shown(format, key, value), format!("{expected}{tail}"));
        }
    }

    #[test]
    fn headers_are_shown_in_order() {
        let mut rows = RecordsBuilder::default();
        rows.push(1, None, None, [("t".into(), Some(b"1".to_vec())), ("t".into(), None)]);
        let batch = Batch::contiguous(Offset(0), rows.finish());
        let mut out = Vec::new();
        Shower { format: Format::Json, partition: PartitionId(0) }.record(&mut out, &batch, 0);
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains(r#""headers":[["t","1"],["t",null]],"partition""#), "{text}");
    }

    #[test]
    fn events_name_the_next_position() {
        let mut out = Vec::new();
        show_event(&mut out, Offset(18), "record", |out| out.extend_from_slice(b"{}"));
        assert_eq!(out, b"id: 18\nevent: record\ndata: {}\n\n");
    }
}
