//! Records in columns: the one layout from disk through the sandbox to the wire.
//!
//! [`Records`] are columns without a position; a log gives them offsets and they become a [`Batch`].
//! Both are handles on shared, immutable Arrow buffers: cloning and slicing copy nothing.
//!
//! **Invariant:** all columns of a value have the same length, and value offsets start at 0 only
//! where a column was built so; readers go through the arrays' own accessors.

use std::sync::Arc;

use arrow_array::builder::BinaryBuilder;
use arrow_array::{Array, ArrayRef, BinaryArray, ListArray, StringArray, StructArray};
use arrow_buffer::{OffsetBuffer, ScalarBuffer};
use arrow_schema::{DataType, Field, Fields};

use super::{GenerationNumber, Offset};

/// Where each record of an output came from: input record and ordinal among its outputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Sources {
    /// The generation that made the records.
    pub generation: GenerationNumber,
    /// Index into the generation's inputs, one a record.
    pub inputs: ScalarBuffer<u32>,
    /// Partition of that input, one a record.
    pub partitions: ScalarBuffer<u32>,
    /// Offset in that partition, one a record.
    pub offsets: ScalarBuffer<u64>,
    /// 0 for the first record that the source gave to this output, then 1, 2, …
    pub ordinals: ScalarBuffer<u32>,
}

impl Sources {
    fn slice(&self, start: usize, len: usize) -> Self {
        Self {
            generation: self.generation,
            inputs: self.inputs.slice(start, len),
            partitions: self.partitions.slice(start, len),
            offsets: self.offsets.slice(start, len),
            ordinals: self.ordinals.slice(start, len),
        }
    }
}

/// Headers of n records: a list column of (name, value), where a value may be null.
#[derive(Debug, Clone, PartialEq)]
pub struct Headers(ListArray);

impl Headers {
    /// The Arrow fields of one header: `name` (utf8, never null) and `value` (binary, nullable).
    pub fn fields() -> Fields {
        Fields::from(vec![
            Field::new("name", DataType::Utf8, false),
            Field::new("value", DataType::Binary, true),
        ])
    }

    /// The Arrow field of a list's entries.
    pub fn item_field() -> Arc<Field> {
        Arc::new(Field::new("item", DataType::Struct(Self::fields()), false))
    }

    /// From `ends` (n + 1 positions, the first 0, rising) over header names and values.
    ///
    /// # Panics
    /// When `ends` do not fall within names and values, or these differ in length: callers validate.
    pub fn new(ends: OffsetBuffer<i32>, names: StringArray, values: BinaryArray) -> Self {
        let entries = StructArray::new(
            Self::fields(),
            vec![Arc::new(names) as ArrayRef, Arc::new(values) as ArrayRef],
            None,
        );
        Self(ListArray::new(Self::item_field(), ends, Arc::new(entries), None))
    }

    /// From an Arrow list column of the type that [`Headers::item_field`] gives.
    pub fn from_list(list: ListArray) -> Self {
        Self(list)
    }

    /// `n` records without a header.
    pub fn none(n: usize) -> Self {
        Self::new(OffsetBuffer::new_zeroed(n), StringArray::new_null(0), BinaryArray::new_null(0))
    }

    /// The column itself.
    pub fn as_list(&self) -> &ListArray {
        &self.0
    }

    /// The number of records.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Names of all entries, through which [`Headers::range`] points.
    pub fn names(&self) -> &StringArray {
        let column = self.entries().column(0).as_any().downcast_ref();
        column.expect("the first field is utf8, by construction")
    }

    /// Values of all entries, through which [`Headers::range`] points.
    pub fn values(&self) -> &BinaryArray {
        let column = self.entries().column(1).as_any().downcast_ref();
        column.expect("the second field is binary, by construction")
    }

    /// Bytes of names, values and positions.
    pub fn size_bytes(&self) -> usize {
        let ends = self.0.value_offsets();
        let (from, to) = (ends[0] as usize, ends[ends.len() - 1] as usize);
        let (names, values) = (self.names(), self.values());
        let text = names.value_offsets()[to] - names.value_offsets()[from];
        let data = values.value_offsets()[to] - values.value_offsets()[from];
        (text + data) as usize + 8 * (to - from) + 4 * (ends.len() - 1)
    }

    /// Which entries belong to record `i`.
    pub fn range(&self, i: usize) -> std::ops::Range<usize> {
        let ends = self.0.value_offsets();
        ends[i] as usize..ends[i + 1] as usize
    }

    /// The headers of record `i`, in order.
    pub fn get(&self, i: usize) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        let (names, values) = (self.names(), self.values());
        self.range(i).map(move |e| (names.value(e), values.is_valid(e).then(|| values.value(e))))
    }

    fn entries(&self) -> &StructArray {
        let entries = self.0.values().as_any().downcast_ref();
        entries.expect("entries are structs, by construction")
    }
}

/// n records in columns, not yet in a log.
#[derive(Debug, Clone, PartialEq)]
pub struct Records {
    /// Milliseconds since the Unix epoch.
    pub timestamps: ScalarBuffer<i64>,
    /// Keys; null where a record has none.
    pub keys: BinaryArray,
    /// Values; null is a tombstone.
    pub values: BinaryArray,
    /// Headers; `None` when no record has any.
    pub headers: Option<Headers>,
    /// Where the records came from; `None` for what a producer appended.
    pub sources: Option<Sources>,
}

impl Records {
    /// The number of records.
    pub fn len(&self) -> usize {
        self.timestamps.len()
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.timestamps.is_empty()
    }

    /// Records `start..start + len`, without copying.
    pub fn slice(&self, start: usize, len: usize) -> Self {
        Self {
            timestamps: self.timestamps.slice(start, len),
            keys: self.keys.slice(start, len),
            values: self.values.slice(start, len),
            headers: self.headers.as_ref().map(|h| Headers(h.0.slice(start, len))),
            sources: self.sources.as_ref().map(|s| s.slice(start, len)),
        }
    }

    /// The bytes that the records hold in keys, values, headers and fixed columns: what budgets count.
    pub fn size_bytes(&self) -> usize {
        let headers = self.headers.as_ref().map_or(0, Headers::size_bytes);
        let sources = if self.sources.is_some() { 20 * self.len() } else { 0 };
        column_bytes(&self.keys) + column_bytes(&self.values) + 16 * self.len() + headers + sources
    }
}

/// Records with their offsets in one partition of a log. Offsets rise strictly; gaps are allowed.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// One offset a record.
    pub offsets: ScalarBuffer<u64>,
    /// The records.
    pub records: Records,
}

impl Batch {
    /// Records that were given consecutive offsets from `base`.
    pub fn contiguous(base: Offset, records: Records) -> Self {
        let offsets = (base.0..base.0 + records.len() as u64).collect::<Vec<_>>();
        Self { offsets: offsets.into(), records }
    }

    /// The number of records.
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// Records `start..start + len`, without copying.
    pub fn slice(&self, start: usize, len: usize) -> Self {
        Self { offsets: self.offsets.slice(start, len), records: self.records.slice(start, len) }
    }

    /// The offset of the first record; `None` when empty.
    pub fn first_offset(&self) -> Option<Offset> {
        self.offsets.first().copied().map(Offset)
    }

    /// One past the offset of the last record; `None` when empty.
    pub fn next_offset(&self) -> Option<Offset> {
        self.offsets.last().map(|o| Offset(o + 1))
    }

    /// The records at and after `from`, without copying.
    pub fn from_offset(&self, from: Offset) -> Self {
        let start = self.offsets.partition_point(|&o| o < from.0);
        self.slice(start, self.len() - start)
    }

    /// The records before `to`, without copying.
    pub fn before_offset(&self, to: Offset) -> Self {
        self.slice(0, self.offsets.partition_point(|&o| o < to.0))
    }
}

/// The bytes of data that a (possibly sliced) column refers to.
pub fn column_bytes(column: &BinaryArray) -> usize {
    let ends = column.value_offsets();
    (ends[ends.len() - 1] - ends[0]) as usize
}

/// Builds [`Records`] a row at a time, for the edges where rows come in.
#[derive(Debug, Default)]
pub struct RecordsBuilder {
    timestamps: Vec<i64>,
    keys: BinaryBuilder,
    values: BinaryBuilder,
    header_ends: Vec<i32>,
    header_names: Vec<String>,
    header_values: Vec<Option<Vec<u8>>>,
}

impl RecordsBuilder {
    /// Adds a record.
    pub fn push(
        &mut self,
        timestamp_ms: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: impl IntoIterator<Item = (String, Option<Vec<u8>>)>,
    ) {
        self.timestamps.push(timestamp_ms);
        self.keys.append_option(key);
        self.values.append_option(value);
        for (name, value) in headers {
            self.header_names.push(name);
            self.header_values.push(value);
        }
        self.header_ends.push(self.header_names.len() as i32);
    }

    /// The number of records so far.
    pub fn len(&self) -> usize {
        self.timestamps.len()
    }

    /// Whether nothing was added yet.
    pub fn is_empty(&self) -> bool {
        self.timestamps.is_empty()
    }

    /// The records added so far; the builder is empty afterwards.
    pub fn finish(&mut self) -> Records {
        let header_ends = std::mem::take(&mut self.header_ends);
        let names = std::mem::take(&mut self.header_names);
        let values = std::mem::take(&mut self.header_values);
        let headers = (!names.is_empty()).then(|| {
            let ends: Vec<i32> = std::iter::once(0).chain(header_ends).collect();
            Headers::new(
                OffsetBuffer::new(ends.into()),
                StringArray::from(names),
                values.iter().map(Option::as_deref).collect(),
            )
        });
        Records {
            timestamps: std::mem::take(&mut self.timestamps).into(),
            keys: self.keys.finish(),
            values: self.values.finish(),
            headers,
            sources: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Records {
        let mut rows = RecordsBuilder::default();
        rows.push(1, Some(b"a"), Some(b"one"), []);
        rows.push(2, None, None, [("h".into(), Some(b"1".to_vec())), ("h".into(), None)]);
        rows.push(3, Some(b""), Some(b""), [("g".into(), Some(vec![]))]);
        rows.finish()
    }

    #[test]
    fn slices_keep_rows_whole() {
        let tail = sample().slice(1, 2);
        assert_eq!(tail.len(), 2);
        assert!(tail.keys.is_null(0) && tail.values.is_null(0));
        assert_eq!(tail.keys.value(1), b"");
        let headers = tail.headers.unwrap();
        assert_eq!(headers.get(0).collect::<Vec<_>>(), [("h", Some(&b"1"[..])), ("h", None)]);
        assert_eq!(headers.get(1).collect::<Vec<_>>(), [("g", Some(&b""[..]))]);
    }

    #[test]
    fn batches_are_cut_by_offset() {
        let batch = Batch { offsets: vec![5, 7, 9].into(), records: sample() };
        assert_eq!(batch.from_offset(Offset(6)).first_offset(), Some(Offset(7)));
        assert_eq!(batch.before_offset(Offset(9)).next_offset(), Some(Offset(8)));
        assert!(batch.from_offset(Offset(10)).is_empty());
    }

    #[test]
    fn sizes_count_only_the_slice() {
        let all = sample();
        assert_eq!(all.slice(0, 1).size_bytes() + all.slice(1, 2).size_bytes(), all.size_bytes());
    }
}
