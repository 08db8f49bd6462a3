//! Joining columns end to end, for readers and committers that meet many small batches.

use arrow_array::{Array, BinaryArray, ListArray};
use arrow_buffer::{ArrowNativeType, ScalarBuffer};
use arrow_select::concat::concat;

use super::{Batch, Headers, Records, Sources};

/// All `parts` in order, copied; a single part is handed back as it is, and none give `None`.
///
/// # Panics
/// When a column would pass 2 GiB, here and below: callers bound what they join. Parts must all have
/// sources or none have, and sources of one generation.
pub fn concat_records(parts: &[Records]) -> Option<Records> {
    let [first, rest @ ..] = parts else { return None };
    if rest.is_empty() {
        return Some(first.clone());
    }
    let headers = parts.iter().any(|p| p.headers.is_some()).then(|| {
        let lists: Vec<ListArray> = parts
            .iter()
            .map(|p| match &p.headers {
                Some(headers) => headers.as_list().clone(),
                None => Headers::none(p.len()).as_list().clone(),
            })
            .collect();
        Headers::from_list(concat_columns(&lists.iter().collect::<Vec<_>>()))
    });
    let sources = first.sources.as_ref().map(|head| {
        let all: Vec<&Sources> = parts.iter().filter_map(|p| p.sources.as_ref()).collect();
        Sources {
            generation: head.generation,
            inputs: concat_numbers(all.iter().map(|s| &s.inputs)),
            partitions: concat_numbers(all.iter().map(|s| &s.partitions)),
            offsets: concat_numbers(all.iter().map(|s| &s.offsets)),
            ordinals: concat_numbers(all.iter().map(|s| &s.ordinals)),
        }
    });
    Some(Records {
        timestamps: concat_numbers(parts.iter().map(|p| &p.timestamps)),
        keys: concat_columns::<BinaryArray>(&parts.iter().map(|p| &p.keys).collect::<Vec<_>>()),
        values: concat_columns::<BinaryArray>(&parts.iter().map(|p| &p.values).collect::<Vec<_>>()),
        headers,
        sources,
    })
}

fn concat_columns<T: Array + Clone + 'static>(columns: &[&T]) -> T {
    let columns: Vec<&dyn Array> = columns.iter().map(|c| *c as &dyn Array).collect();
    let joined = concat(&columns).expect("columns of one type, below 2 GiB, can be joined");
    joined.as_any().downcast_ref::<T>().expect("joining keeps the type").clone()
}

fn concat_numbers<'a, T: ArrowNativeType>(
    columns: impl Iterator<Item = &'a ScalarBuffer<T>>,
) -> ScalarBuffer<T> {
    let mut joined = Vec::new();
    for column in columns {
        joined.extend_from_slice(column);
    }
    joined.into()
}

/// All of `parts` in order, copied; a single part is handed back as it is, and none give `None`.
pub fn concat_batches(parts: &[Batch]) -> Option<Batch> {
    if let [one] = parts {
        return Some(one.clone());
    }
    let records: Vec<Records> = parts.iter().map(|p| p.records.clone()).collect();
    let offsets = concat_numbers(parts.iter().map(|p| &p.offsets));
    Some(Batch { offsets, records: concat_records(&records)? })
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
        let joined = concat_batches(&parts).unwrap();
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
