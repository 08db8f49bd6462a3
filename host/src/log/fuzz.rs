//! What fuzzing feeds of this module: appends in the head and segment files that are not what was
//! written.

use std::path::Path;

use super::codec::{decode, encode};
use super::columns::from_columns;
use crate::storage::{ArrowFile, FileSystem};
use crate::types::RecordsBuilder;

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

/// Reads the file at `path` as a segment, to its end or to what is wrong with it. Returns its records.
pub fn segment(fs: &dyn FileSystem, path: &Path) -> Option<usize> {
    let file = ArrowFile::open(fs, path).ok()?;
    let mut records = 0;
    for index in 0..file.blocks().len() {
        records += from_columns(&file.read(index).ok()?)?.len();
    }
    Some(records)
}
