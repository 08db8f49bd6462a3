//! What fuzzing feeds of this module: appends in the head, heads and segment files that are not what was
//! written.

use std::path::Path;
use std::sync::Arc;

use arrow_schema::SchemaRef;
use serde_json::Value;

use super::codec::{decode, encode};
use super::columns::{self, Wanted};
use super::image::Image;
use super::segment::{Segment, examine};
use crate::storage::{ArrowFile, Entries, FileSystem};
use crate::types::{Batch, Offset, RecordsBuilder};

/// Takes `data` as an append in the head; and as records, whose append is read back, whole and with
/// one byte changed.
///
/// # Panics
/// When records do not come back as they were: a finding.
pub fn head_append(data: &[u8]) {
    if let Some((records, append_ms)) = decode(data) {
        // A bitmap without a null may be left out, so the bytes need not be the same.
        assert!(decode(&encode(&records, append_ms)).is_some_and(|(back, _)| back == records));
    }
    let Some((&[at, by], data)) = data.split_first_chunk::<2>() else { return };
    let mut rows = RecordsBuilder::default();
    for row in data.chunks(5) {
        let (key, value) = row.split_at(row.len() / 2);
        let header = (row[0] & 1 == 1).then(|| ("h".repeat(usize::from(row[0] % 7)), None));
        rows.push(i64::from(row[0]), Some(key), (row.len() == 5).then_some(value), header);
    }
    let records = rows.finish();
    let mut bytes = encode(&records, 9);
    assert!(decode(&bytes).is_some_and(|(back, at)| back == records && at == 9));
    let at = usize::from(at) * bytes.len() / 256;
    bytes[at] ^= by;
    if let Some((records, append_ms)) = decode(&bytes) {
        assert!(decode(&encode(&records, append_ms)).is_some_and(|(back, _)| back == records));
    }
}

/// Takes `data` as keys and values of a head: each a byte and two, little-endian, that are their lengths,
/// then the bytes.
///
/// # Panics
/// When a tool that looks at them would: a finding.
pub fn head_image(mut data: &[u8]) {
    let mut entries = Entries::new();
    while let Some(([key, low, high], rest)) = data.split_first_chunk::<3>() {
        let value = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (value, rest) = rest.split_at(value);
        let (key, rest) = rest.split_at(usize::from(*key).min(rest.len()));
        data = rest;
        // Each partition costs memory, in a host too.
        let said: Option<Value> = serde_json::from_slice(value).ok();
        let partitions = said.and_then(|said| said.get("partitions")?.as_u64());
        if partitions.is_none_or(|partitions| partitions <= 1_000) {
            entries.insert(key.to_vec(), value.to_vec());
        }
    }
    let image = Image::read(&entries);
    let _ = (image.check(), image.topic_ends());
    for (log, partition) in image.partitions.keys() {
        assert!(!image.name(*log, *partition).is_empty());
        assert!(image.bounds(*log, *partition).is_some_and(|(start, end)| start <= end));
    }
}

/// The columns of a segment, with or without sources.
pub fn segment_schema(sources: bool) -> SchemaRef {
    columns::schema(sources)
}

/// Reads the file `dir`/`name` as a segment, to its end or to what is wrong with it: as a tool that takes
/// nothing for granted, and as a host that has it in its manifest.
///
/// # Panics
/// When what was read is not what it says: a finding.
pub fn segment(fs: &Arc<dyn FileSystem>, dir: &Path, name: &str) {
    if let Ok(file) = ArrowFile::open(&**fs, &dir.join(name)) {
        for index in 0..file.blocks().len() {
            let Ok(rows) = file.read(index) else { continue };
            let Some(batch) = columns::from_columns(&rows) else { continue };
            let only = file.read_columns(index, &|column| Wanted::NONE.column(column));
            let only = only.ok().and_then(|rows| columns::from_columns(&rows));
            let Batch { offsets, records } = batch;
            let expected = Batch { offsets, records: Wanted::NONE.of(records.clone()) };
            assert_eq!(only, Some(expected), "block {index}");
            let back = decode(&encode(&records, 9));
            assert!(back.is_some_and(|(back, _)| back == records), "block {index}");
        }
    }
    let Ok(examined) = examine(&**fs, dir, name, &mut |_| ()) else { return };
    let entry = examined.entry;
    let (first, next, records) = (entry.first, entry.next, entry.records);
    let segment = Segment::listed(Arc::clone(fs), dir, entry);
    let middle = Offset(first.0.midpoint(next.0));
    let count = |from, to| segment.count_between(from, to).expect("it was read a moment ago");
    assert_eq!(count(first, middle) + count(middle, next), records);
}
