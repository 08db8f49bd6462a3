//! What fuzzing feeds of this module: columns, and whole results, as a guest may return them.

use std::sync::Arc;

use arrow_array::Array as _;

use super::call::{CallOutput, Input, Run};
use super::columns::{EntryLimit, check_sources, into_binary, into_headers};
use super::contract::types::{Output, Rejection};
use super::contract::{BytesColumnResult, HeaderColumn, Results};
use super::description::Description;
use super::imports::HostState;
use super::instance::{new_host, take_results};
use super::limits::Limits;
use crate::types::{Batch, Offset, RecordsBuilder};

/// Takes `data` as a guest's column: a byte that says how many entries are claimed, whether there is a
/// validity and how many ends there are; then ends of four bytes; then validity and data. What is
/// accepted must be readable to its last byte.
///
/// # Panics
/// When it is not: a finding.
pub fn output_columns(data: &[u8]) {
    let Some(([entries, flags, ends], rest)) = data.split_first_chunk::<3>() else { return };
    let (n, ends) = (usize::from(*entries), usize::from(*ends).min(rest.len() / 4));
    let (ends, rest) = rest.split_at(ends * 4);
    let number = |four: &[u8]| four.iter().fold(0_u32, |n, &byte| n << 8 | u32::from(byte));
    let ends: Vec<u32> = ends.chunks_exact(4).map(number).collect();
    let (validity, rest) = match flags & 1 {
        0 => (None, rest),
        _ => {
            let (validity, rest) = rest.split_at(rest.len().min(n.div_ceil(8)));
            (Some(validity.to_vec()), rest)
        }
    };
    if let Err(error) = check_sources(&ends, n) {
        assert!(!error.is_empty());
    } else {
        assert!(ends.is_sorted() && ends.iter().all(|&source| (source as usize) < n));
    }
    let column = BytesColumnResult { ends, data: rest.to_vec(), validity };
    let Ok(column) = into_binary(column, n, EntryLimit::key(&Limits::default())) else { return };
    assert_eq!(column.len(), n);
    let bytes: usize = column.iter().flatten().map(<[u8]>::len).sum();
    assert_eq!(bytes, rest.len(), "bytes that belong to no entry");
    assert!((0..n).all(|i| column.is_valid(i) || column.value(i).is_empty()));
}

/// Takes `data` as all that a call returns, headers included, for a batch of a few records and a plugin of
/// two outputs. What is accepted must be readable to its last byte, and keep the contract.
///
/// # Panics
/// When it does not: a finding.
pub fn results(data: &[u8]) {
    let mut guest = Guest(data);
    let n = usize::from(guest.byte() % 8);
    let mut rows = RecordsBuilder::default();
    (0..n).for_each(|i| rows.push(i as i64, Some(b"key"), Some(b"value"), []));
    let input = Input {
        batch: Batch::contiguous(Offset(0), rows.finish()),
        runs: vec![Run { input: 0, partition: 0, count: n as u32 }],
        stream_time_ms: None,
        seed: 0,
    };
    let mut host = host();
    for _ in 0..guest.byte() % 3 {
        let headers = guest.headers();
        let headers = into_headers(headers, &host.limits).ok();
        host.call.headers_out.push(headers);
    }
    let outputs = guest.list(Guest::output);
    let rejections = guest.list(|guest| Rejection { index: guest.number(), reason: guest.text() });
    let mut output = CallOutput::default();
    let taken = take_results(Results { outputs, rejections }, &input, &mut host, &mut output);
    if let Err(error) = taken {
        assert!(!error.to_string().is_empty());
        return;
    }
    let mut seen = Vec::new();
    for columns in &output.outputs {
        let len = columns.len();
        assert!(len > 0 && columns.output < 2 && !seen.contains(&columns.output));
        seen.push(columns.output);
        assert!(columns.sources.is_sorted() && columns.sources.iter().all(|&i| (i as usize) < n));
        assert!(columns.keys.len() == len && columns.values.len() == len);
        let bytes = columns.keys.iter().chain(&columns.values).flatten().map(<[u8]>::len);
        assert!(bytes.sum::<usize>() <= data.len() + n * "keyvalue".len());
        assert!(columns.timestamps.as_ref().is_none_or(|times| times.len() == len));
        assert!(columns.partitions.as_ref().is_none_or(|chosen| chosen.len() == len));
        if let Some(headers) = &columns.headers {
            assert_eq!(headers.len(), len);
            let sizes = (0..len)
                .flat_map(|i| headers.get(i))
                .map(|(name, value)| name.chars().count() + value.map_or(0, <[u8]>::len));
            assert!(sizes.sum::<usize>() <= data.len());
        }
    }
    assert!(output.rejections.is_sorted_by(|(a, _), (b, _)| a < b));
    assert!(
        output.rejections.iter().all(|(i, reason)| (*i as usize) < n && !reason.contains('\u{1b}'))
    );
}

/// A host of a plugin with the outputs `a` and `b`.
fn host() -> HostState {
    let words = r#"{"anabranch": "0.1", "name": "p", "version": "1", "outputs": [
        {"name": "a", "kind": "stream"}, {"name": "b", "kind": "table"}]}"#;
    let description = Description::parse(words).expect("it keeps the rules");
    let limits = Limits { key_bytes: 64, value_bytes: 64, ..Limits::default() };
    new_host(Arc::new(description), &limits, crate::clock::SystemClock::shared())
}

/// A guest that says what bytes say; where they end, nothing.
struct Guest<'a>(&'a [u8]);

impl Guest<'_> {
    fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *byte
    }

    /// Mostly small.
    fn number(&mut self) -> u32 {
        match self.byte() {
            0xff => u32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()]),
            byte => byte.into(),
        }
    }

    fn list<T>(&mut self, mut each: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.byte() % 16).map(|_| each(self)).collect()
    }

    fn text(&mut self) -> String {
        String::from_utf8_lossy(&self.list(Self::byte)).into_owned()
    }

    fn option<T>(&mut self, some: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.byte() & 1 == 1).then(|| some(self))
    }

    fn column(&mut self) -> BytesColumnResult {
        BytesColumnResult {
            ends: self.list(Self::number),
            data: self.list(Self::byte),
            validity: self.option(|guest| guest.list(Self::byte)),
        }
    }

    fn headers(&mut self) -> HeaderColumn {
        HeaderColumn { ends: self.list(Self::number), names: self.column(), values: self.column() }
    }

    fn output(&mut self) -> Output {
        Output {
            name: self.text(),
            sources: self.list(Self::number),
            keys: self.column(),
            values: self.column(),
            timestamps: self.option(|guest| guest.list(|guest| guest.number().into())),
            partitions: self.option(|guest| guest.list(Self::number)),
        }
    }
}
