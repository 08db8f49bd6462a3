//! Joining columns end to end, for readers and committers that meet many small batches.

use arrow_array::{Array, BinaryArray, ListArray, cast::AsArray};
use arrow_buffer::ScalarBuffer;

use super::{Batch, Headers, Records, Sources};

/// All of `parts` in order, copied; a single part is handed back as it is.
///
/// # Panics
/// When a column would pass 2 GiB, or some parts have sources and others do not: callers bound and
/// sort what they join.
pub fn concat_records(parts: &[Records]) -> Records {
    if let [one] = parts {
        return one.clone();
    }
    let headers = parts.iter().any(|p| p.headers.is_some()).then(|| {
        let lists: Vec<ListArray> = parts
            .iter()
            .map(|p| p.headers.as_ref().map_or_else(|| Headers::none(p.len()), Clone::clone))
            .map(|h| h.as_list().clone())
            .collect();
        let lists: Vec<&dyn Array> = lists.iter().map(|l| l as &dyn Array).collect();
        let joined = arrow_select::concat::concat(&lists).expect("lists of one type, bounded");
        Headers::from_list(joined.as_list::<i32>().clone())
    });
    Records {
        timestamps: parts.iter().flat_map(|p| p.timestamps.iter().copied()).collect(),
        keys: concat_columns(parts.iter().map(|p| &p.keys)),
        values: concat_columns(parts.iter().map(|p| &p.values)),
        headers,
        sources: parts.iter().any(|p| p.sources.is_some()).then(|| concat_sources(parts)),
    }
}

/// All of `parts` in order, copied; a single part is handed back as it is. Panics as
/// [`concat_records`] does.
pub fn concat_batches(parts: &[Batch]) -> Batch {
    if let [one] = parts {
        return one.clone();
    }
    let records: Vec<Records> = parts.iter().map(|p| p.records.clone()).collect();
    Batch {
        offsets: parts.iter().flat_map(|p| p.offsets.iter().copied()).collect(),
        records: concat_records(&records),
    }
}

fn concat_columns<'a>(columns: impl Iterator<Item = &'a BinaryArray>) -> BinaryArray {
    let columns: Vec<&dyn Array> = columns.map(|c| c as &dyn Array).collect();
    if columns.is_empty() {
        return BinaryArray::new_null(0);
    }
    let joined = arrow_select::concat::concat(&columns).expect("columns of one type, bounded");
    joined.as_binary::<i32>().clone()
}

fn concat_sources(parts: &[Records]) -> Sources {
    let sources = || parts.iter().map(|p| p.sources.as_ref().expect("all parts have sources"));
    let join = |of: fn(&Sources) -> &ScalarBuffer<u32>| -> ScalarBuffer<u32> {
        sources().flat_map(|s| of(s).iter().copied()).collect()
    };
    Sources {
        generation: sources().next().map(|s| s.generation).unwrap_or_default(),
        inputs: join(|s| &s.inputs),
        partitions: join(|s| &s.partitions),
        offsets: sources().flat_map(|s| s.offsets.iter().copied()).collect(),
        ordinals: join(|s| &s.ordinals),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Offset, RecordsBuilder};

    #[test]
    fn cutting_and_joining_gives_the_same() {
        let mut rows = RecordsBuilder::default();
        rows.push(1, Some(b"a"), Some(b"one"), []);
        rows.push(2, None, None, [("h".into(), Some(b"1".to_vec())), ("h".into(), None)]);
        rows.push(3, Some(b""), Some(b""), []);
        let batch = Batch::contiguous(Offset(5), rows.finish());
        let parts = [batch.slice(0, 1), batch.slice(1, 0), batch.slice(1, 2)];
        let joined = concat_batches(&parts);
        assert_eq!(joined.offsets, batch.offsets);
        assert_eq!(
            (&joined.records.keys, &joined.records.values),
            (&batch.records.keys, &batch.records.values)
        );
        let headers = joined.records.headers.unwrap();
        assert_eq!(headers.get(1).count(), 2);
        assert_eq!(headers.get(2).count(), 0);
    }
}
