//! Picking rows out of columns.

use arrow_array::builder::BinaryBuilder;
use arrow_array::{Array, BinaryArray, StringArray};
use arrow_buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};

use super::{Headers, Records, Sources};

/// The rows of `records` at `rows`, copied.
///
/// # Panics
/// When an index is out of range, here and below: callers validate.
pub fn take_records(records: &Records, rows: &[u32]) -> Records {
    let pick = |column: &ScalarBuffer<u32>| -> ScalarBuffer<u32> {
        rows.iter().map(|r| column[*r as usize]).collect()
    };
    Records {
        timestamps: rows.iter().map(|r| records.timestamps[*r as usize]).collect(),
        keys: take_column(&records.keys, rows),
        values: take_column(&records.values, rows),
        headers: records.headers.as_ref().map(|h| take_headers(h, rows, |_| Vec::new())),
        sources: records.sources.as_ref().map(|s| Sources {
            generation: s.generation,
            inputs: pick(&s.inputs),
            partitions: pick(&s.partitions),
            offsets: rows.iter().map(|r| s.offsets[*r as usize]).collect(),
            ordinals: pick(&s.ordinals),
        }),
    }
}

/// The headers of `rows`, each followed by those that `more` gives for its position.
pub fn take_headers(
    headers: &Headers,
    rows: &[u32],
    more: impl Fn(usize) -> Vec<(String, String)>,
) -> Headers {
    let (mut ends, mut names, mut values) = (vec![0i32], Vec::new(), BinaryBuilder::new());
    for (i, row) in rows.iter().enumerate() {
        for (name, value) in headers.get(*row as usize) {
            names.push(name.to_owned());
            values.append_option(value);
        }
        for (name, value) in more(i) {
            names.push(name);
            values.append_value(value);
        }
        ends.push(names.len() as i32);
    }
    Headers::new(OffsetBuffer::new(ends.into()), StringArray::from(names), values.finish())
}

/// The rows of `column` at `indexes`, copied.
pub fn take_column(column: &BinaryArray, indexes: &[u32]) -> BinaryArray {
    let mut ends = Vec::with_capacity(indexes.len() + 1);
    let from = column.value_offsets();
    let mut total = 0i32;
    ends.push(0);
    for &i in indexes {
        let i = i as usize;
        total += from[i + 1] - from[i];
        ends.push(total);
    }
    let mut data = Vec::with_capacity(total as usize);
    for &i in indexes {
        data.extend_from_slice(column.value(i as usize));
    }
    let validity = column
        .nulls()
        .map(|nulls| NullBuffer::from_iter(indexes.iter().map(|&i| nulls.is_valid(i as usize))));
    BinaryArray::new(OffsetBuffer::new(ends.into()), data.into(), validity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taken_rows_keep_nulls_and_order() {
        let values = BinaryArray::from_iter([Some(&b"one"[..]), None, Some(b"")]);
        let taken = take_column(&values, &[2, 1, 0, 0]);
        let rows: Vec<_> = taken.iter().collect();
        assert_eq!(rows, [Some(&b""[..]), None, Some(b"one"), Some(b"one")]);
    }
}
