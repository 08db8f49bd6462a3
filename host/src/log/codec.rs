//! Records as bytes: how an append lies in the head.
//!
//! Columns as they are in memory, little-endian, so that writing and reading are copies. Offsets are
//! not stored: an append's records follow each other from the offset in its key.
//!
//! **Invariant:** decoding checks every length and position, and never panics on any bytes.

use arrow_array::{Array, BinaryArray, StringArray};
use arrow_buffer::{ArrowNativeType, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};

use crate::types::{GenerationNumber, Headers, Records, Sources};

const VERSION: u8 = 1;
const HAS_HEADERS: u8 = 1;
const HAS_SOURCES: u8 = 2;

/// One append and the wall time of its commit.
pub(super) fn encode(records: &Records, append_ms: i64) -> Vec<u8> {
    let mut out = Vec::with_capacity(records.size_bytes() + records.len() + 64);
    let flags = if records.headers.is_some() { HAS_HEADERS } else { 0 }
        | if records.sources.is_some() { HAS_SOURCES } else { 0 };
    out.extend_from_slice(&[VERSION, flags, 0, 0]);
    out.extend_from_slice(&(records.len() as u32).to_le_bytes());
    out.extend_from_slice(&append_ms.to_le_bytes());
    put_numbers(&mut out, &records.timestamps);
    put_binary(&mut out, &records.keys);
    put_binary(&mut out, &records.values);
    if let Some(headers) = &records.headers {
        let ends = headers.as_list().value_offsets();
        let (from, to) = (ends[0], ends[ends.len() - 1]);
        put_ends(&mut out, ends);
        let names = headers.names().slice(from as usize, (to - from) as usize);
        put_ends(&mut out, names.value_offsets());
        put_data(&mut out, names.value_offsets(), names.value_data());
        put_binary(&mut out, &headers.values().slice(from as usize, (to - from) as usize));
    }
    if let Some(sources) = &records.sources {
        out.extend_from_slice(&sources.generation.0.to_le_bytes());
        put_numbers(&mut out, &sources.inputs);
        put_numbers(&mut out, &sources.partitions);
        put_numbers(&mut out, &sources.offsets);
        put_numbers(&mut out, &sources.ordinals);
    }
    out
}

/// The reverse of [`encode`]; `None` when the bytes are not an append.
pub(super) fn decode(bytes: &[u8]) -> Option<(Records, i64)> {
    let mut input = Input(bytes);
    let [version, flags, 0, 0] = *input.take(4)? else { return None };
    if version != VERSION || flags & !(HAS_HEADERS | HAS_SOURCES) != 0 {
        return None;
    }
    let rows = u32::from_le_bytes(input.array()?) as usize;
    let append_ms = i64::from_le_bytes(input.array()?);
    let timestamps = input.numbers::<i64>(rows)?;
    let keys = input.binary(rows)?;
    let values = input.binary(rows)?;
    let headers = match flags & HAS_HEADERS {
        0 => None,
        _ => {
            let ends = input.ends(rows)?;
            let entries = *ends.last()? as usize;
            let name_ends = input.ends(entries)?;
            let data = Buffer::from(input.take(*name_ends.last()? as usize)?);
            let names = StringArray::try_new(name_ends, data, None).ok()?;
            Some(Headers::new(ends, names, input.binary(entries)?))
        }
    };
    let sources = match flags & HAS_SOURCES {
        0 => None,
        _ => Some(Sources {
            generation: GenerationNumber(u32::from_le_bytes(input.array()?)),
            inputs: input.numbers(rows)?,
            partitions: input.numbers(rows)?,
            offsets: input.numbers(rows)?,
            ordinals: input.numbers(rows)?,
        }),
    };
    let records = Records { timestamps, keys, values, headers, sources };
    input.0.is_empty().then_some((records, append_ms))
}

fn put_numbers<T: ArrowNativeType>(out: &mut Vec<u8>, numbers: &ScalarBuffer<T>) {
    const { assert!(cfg!(target_endian = "little"), "columns are stored as they are in memory") };
    out.extend_from_slice(numbers.inner().as_slice());
}

/// n ends, counted from 0; the 0 before them is not stored.
fn put_ends(out: &mut Vec<u8>, ends: &[i32]) {
    for end in &ends[1..] {
        out.extend_from_slice(&(end - ends[0]).to_le_bytes());
    }
}

fn put_data(out: &mut Vec<u8>, ends: &[i32], data: &[u8]) {
    out.extend_from_slice(&data[ends[0] as usize..ends[ends.len() - 1] as usize]);
}

/// 1 and a bitmap of n bits if there are nulls, else 0; then n ends; then the data.
fn put_binary(out: &mut Vec<u8>, column: &BinaryArray) {
    match column.nulls().filter(|nulls| nulls.null_count() > 0) {
        Some(nulls) => {
            out.push(1);
            let start = out.len();
            out.resize(start + column.len().div_ceil(8), 0);
            for i in nulls.valid_indices() {
                out[start + i / 8] |= 1 << (i % 8);
            }
        }
        None => out.push(0),
    }
    put_ends(out, column.value_offsets());
    put_data(out, column.value_offsets(), column.value_data());
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn numbers<T: ArrowNativeType>(&mut self, rows: usize) -> Option<ScalarBuffer<T>> {
        // Buffer::from copies into an aligned allocation.
        let buffer = Buffer::from(self.take(rows.checked_mul(size_of::<T>())?)?);
        Some(ScalarBuffer::new(buffer, 0, rows))
    }

    fn ends(&mut self, rows: usize) -> Option<OffsetBuffer<i32>> {
        let bytes = self.take(rows.checked_mul(4)?)?;
        let mut ends = Vec::with_capacity(rows + 1);
        let mut last = 0;
        ends.push(last);
        for end in bytes.chunks_exact(4) {
            let end = i32::from_le_bytes(end.try_into().ok()?);
            if end < last {
                return None;
            }
            ends.push(end);
            last = end;
        }
        Some(OffsetBuffer::new(ends.into()))
    }

    fn binary(&mut self, rows: usize) -> Option<BinaryArray> {
        let nulls = match self.take(1)? {
            [0] => None,
            [1] => {
                let bits = Buffer::from(self.take(rows.div_ceil(8))?);
                Some(NullBuffer::new(arrow_buffer::BooleanBuffer::new(bits, 0, rows)))
            }
            _ => return None,
        };
        let ends = self.ends(rows)?;
        let data = Buffer::from(self.take(*ends.last()? as usize)?);
        BinaryArray::try_new(ends, data, nulls).ok()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::types::RecordsBuilder;

    /// Records with every feature: nulls, empties, repeated headers, extremes, sources.
    pub(in crate::log) fn sample() -> Records {
        let mut rows = RecordsBuilder::default();
        rows.push(i64::MIN, Some(b"a"), Some(b"one"), []);
        rows.push(0, None, None, [("h".into(), Some(b"1".to_vec())), ("h".into(), None)]);
        rows.push(i64::MAX, Some(b""), Some(&[0xff; 300]), [("".into(), Some(vec![]))]);
        let mut records = rows.finish();
        records.sources = Some(Sources {
            generation: GenerationNumber(u32::MAX),
            inputs: vec![0, 1, u32::MAX].into(),
            partitions: vec![0, 2, u32::MAX].into(),
            offsets: vec![0, 3, u64::MAX].into(),
            ordinals: vec![0, 1, u32::MAX].into(),
        });
        records
    }

    #[test]
    fn appends_round_trip_whole_and_sliced() {
        let all = sample();
        for (start, len) in [(0, 3), (1, 2), (1, 1), (0, 1), (3, 0)] {
            let part = all.slice(start, len);
            let (back, append_ms) = decode(&encode(&part, -5)).unwrap();
            assert_eq!((back, append_ms), (part, -5), "rows {start}+{len}");
        }
        let plain = Records { headers: None, sources: None, ..all };
        assert_eq!(decode(&encode(&plain, 0)).unwrap().0, plain);
    }

    #[test]
    fn cut_or_changed_bytes_never_panic() {
        let bytes = encode(&sample(), 1);
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut]).is_none(), "cut at {cut} was taken");
        }
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x80;
            let _ = decode(&bad);
        }
    }
}
