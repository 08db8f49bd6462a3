//! Columns of nullable byte strings: a view of those that came in, a builder for those that go out.
//!
//! **Invariant:** what [`ColumnBuilder`] finishes is valid by the contract: ends begin at 0, never fall
//! and end at the length of the data, and null entries are empty.

use std::ops::Range;

use crate::bindings::BytesColumn;

/// A column of a batch, borrowed: `ends` positions in `data`, and a bit an entry where some are null.
#[derive(Debug, Clone, Copy)]
pub struct Column<'a> {
    ends: &'a [u32],
    data: &'a [u8],
    validity: Option<&'a [u8]>,
}

impl<'a> Column<'a> {
    pub(crate) fn new(column: &'a BytesColumn) -> Self {
        Self { ends: &column.ends, data: &column.data, validity: column.validity.as_deref() }
    }

    /// The number of entries.
    #[inline]
    pub fn len(&self) -> usize {
        self.ends.len().saturating_sub(1)
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether entry `i` is there, not null.
    #[inline]
    pub fn is_valid(&self, i: usize) -> bool {
        self.validity.is_none_or(|bits| bits[i / 8] >> (i % 8) & 1 == 1)
    }

    /// Entry `i`; `None` where it is null. Panics past the end.
    #[inline]
    pub fn get(&self, i: usize) -> Option<&'a [u8]> {
        let bytes = &self.data[self.ends[i] as usize..self.ends[i + 1] as usize];
        self.is_valid(i).then_some(bytes)
    }

    /// Whether every entry is UTF-8.
    pub(crate) fn is_text(&self) -> bool {
        let is_boundary = |end: &u32| {
            self.data.get(*end as usize).is_none_or(|byte| !(0x80..0xc0).contains(byte))
        };
        is_ascii(self.data)
            || (std::str::from_utf8(self.data).is_ok() && self.ends.iter().all(is_boundary))
    }

    /// Entry `i` as text; `None` where it is null or not UTF-8. `all_text` is what
    /// [`is_text`](Self::is_text) said of this column.
    #[inline]
    pub(crate) fn text(&self, i: usize, all_text: bool) -> Option<&'a str> {
        let entry = self.get(i)?;
        match all_text {
            // SAFETY: all entries were found to be UTF-8, and a column that came in never changes.
            true => Some(unsafe { std::str::from_utf8_unchecked(entry) }),
            false => std::str::from_utf8(entry).ok(),
        }
    }

    /// The entries in order.
    pub fn iter(self) -> impl Iterator<Item = Option<&'a [u8]>> {
        (0..self.len()).map(move |i| self.get(i))
    }

    /// The positions in [`data`](Self::data): one more than there are entries.
    pub fn ends(&self) -> &'a [u32] {
        self.ends
    }

    /// The bytes of all entries, one after the other.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }
}

/// Whether all bytes are ASCII, looked at in vectors: a batch's values are many.
#[cfg(target_arch = "wasm32")]
#[target_feature(enable = "simd128")]
fn is_ascii(bytes: &[u8]) -> bool {
    use std::arch::wasm32::{u8x16_bitmask, u64x2, v128_or};
    let word = |half: &[u8]| half.first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
    let vector = |chunk: &[u8]| u64x2(word(chunk), word(&chunk[8..]));
    let (chunks, rest) = bytes.as_chunks::<64>();
    let all = chunks.iter().fold(u64x2(0, 0), |all, chunk| {
        let [a, b, c, d] = [0, 16, 32, 48].map(|at| vector(&chunk[at..at + 16]));
        v128_or(all, v128_or(v128_or(a, b), v128_or(c, d)))
    });
    u8x16_bitmask(all) == 0 && rest.is_ascii()
}

#[cfg(not(target_arch = "wasm32"))]
fn is_ascii(bytes: &[u8]) -> bool {
    bytes.is_ascii()
}

/// A column that is being written.
#[derive(Debug)]
pub(crate) struct ColumnBuilder {
    ends: Vec<u32>,
    data: Vec<u8>,
    /// Present once an entry was null.
    validity: Option<Vec<u8>>,
}

impl Default for ColumnBuilder {
    fn default() -> Self {
        Self { ends: vec![0], data: Vec::new(), validity: None }
    }
}

impl ColumnBuilder {
    /// Room for so many entries of so many bytes together.
    pub(crate) fn with_capacity(entries: usize, bytes: usize) -> Self {
        let mut ends = Vec::with_capacity(entries + 1);
        ends.push(0);
        Self { ends, data: Vec::with_capacity(bytes), validity: None }
    }

    /// Room for what `before` held.
    pub(crate) fn like(before: &Self) -> Self {
        Self::with_capacity(before.len(), before.data.len())
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len() - 1
    }

    #[inline]
    pub(crate) fn push(&mut self, entry: Option<&[u8]>) {
        anabranch_key::append(&mut self.data, entry.unwrap_or_default());
        self.seal(entry.is_some());
    }

    /// Adds an entry of the first `length` bytes of words, lowest byte first.
    #[inline]
    pub(crate) fn push_words(&mut self, words: &[u64; 3], length: usize) {
        anabranch_key::append_words(&mut self.data, words, length);
        self.seal(true);
    }

    /// Adds an entry that `write` appends; `false` from it is null, and an error adds nothing.
    #[inline]
    pub(crate) fn push_with<E>(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>) -> Result<bool, E>,
    ) -> Result<(), E> {
        let start = self.data.len();
        match write(&mut self.data) {
            Ok(valid) => {
                if !valid {
                    self.data.truncate(start);
                }
                self.seal(valid);
                Ok(())
            }
            Err(error) => {
                self.data.truncate(start);
                Err(error)
            }
        }
    }

    #[inline]
    fn seal(&mut self, valid: bool) {
        let i = self.len();
        self.ends.push(end(self.data.len()));
        if !valid {
            self.nulls();
        }
        if let Some(bits) = &mut self.validity {
            set_bit(bits, i, valid);
        }
    }

    /// Makes room for nulls: all entries so far, but for the newest, are valid.
    fn nulls(&mut self) {
        let n = self.ends.len() - 1;
        self.validity.get_or_insert_with(|| vec![0xff; n.div_ceil(8)]);
    }

    /// Adds entries `range` of `from`, by as few copies as they are columns.
    pub(crate) fn extend(&mut self, from: Column<'_>, range: Range<usize>) {
        let ends = &from.ends[range.start..=range.end];
        let (first, last) = (ends[0], ends[ends.len() - 1]);
        let base = end(self.data.len());
        let n = self.len();
        self.data.extend_from_slice(&from.data[first as usize..last as usize]);
        end(self.data.len());
        self.ends.extend(ends[1..].iter().map(|e| e - first + base));
        if from.validity.is_some() {
            self.validity.get_or_insert_with(|| vec![0xff; n.div_ceil(8)]);
        }
        if let Some(bits) = &mut self.validity {
            range.enumerate().for_each(|(i, j)| set_bit(bits, n + i, from.is_valid(j)));
        }
    }

    /// Drops all entries from `n` on.
    pub(crate) fn truncate(&mut self, n: usize) {
        self.ends.truncate(n + 1);
        self.data.truncate(self.ends[n] as usize);
        if let Some(bits) = &mut self.validity {
            bits.truncate(n.div_ceil(8));
        }
    }

    pub(crate) fn finish(self) -> BytesColumn {
        BytesColumn { ends: self.ends, data: self.data, validity: self.validity }
    }
}

/// A length as a position.
#[inline]
fn end(length: usize) -> u32 {
    assert!(length < 1 << 31, "a call wrote 2 GiB into one column: send less for each record");
    length as u32
}

#[inline]
fn set_bit(bits: &mut Vec<u8>, i: usize, valid: bool) {
    if bits.len() <= i / 8 {
        bits.resize(i / 8 + 1, 0);
    }
    let mask = 1 << (i % 8);
    bits[i / 8] = if valid { bits[i / 8] | mask } else { bits[i / 8] & !mask };
}
