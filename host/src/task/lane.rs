//! Lanes: the records that one source partition gives to one partition of one output.
//!
//! A lane's records are ordered by (source offset, ordinal), whatever order they have in the output
//! that lanes share. Its hash chain is a number that two runs over the same input agree on exactly
//! when they made the same records, so runs are compared without reading their outputs.

use arrow_array::{Array, BinaryArray};
use xxhash_rust::xxh3::xxh3_64;

use crate::types::Records;

/// A lane's hash chain after `records`, which begin where `chain` ended.
///
/// Each record extends the chain by a hash of its own: xxh3-64 (Collet) of key, value and headers, mixed
/// with timestamp, source and ordinal; null and empty differ. Cuts leave no trace. Only the last step of a
/// record waits for the record before it.
pub fn extend_chain(chain: u64, records: &Records) -> u64 {
    (0..records.len()).fold(chain, |chain, i| mix(chain, record_hash(records, i)))
}

#[inline]
fn record_hash(records: &Records, i: usize) -> u64 {
    let mut hash = records.timestamps[i].cast_unsigned();
    if let Some(sources) = &records.sources {
        hash = mix(hash, sources.offsets[i]);
        let (input, partition) = (sources.inputs[i], sources.partitions[i]);
        hash = mix(hash, (u64::from(input) << 32) | u64::from(partition));
        hash = mix(hash, u64::from(sources.ordinals[i]));
    }
    let (key, value) = (column_hash(&records.keys, i), column_hash(&records.values, i));
    hash = mix(mix(hash, key), value);
    if let Some(headers) = &records.headers {
        for (name, value) in headers.get(i) {
            hash = mix(hash, xxh3_64(name.as_bytes()));
            hash = mix(hash, value.map_or(NULL, xxh3_64));
        }
    }
    hash
}

/// Stands for the hash of what is null.
const NULL: u64 = 1;

fn column_hash(column: &BinaryArray, i: usize) -> u64 {
    if column.is_null(i) { NULL } else { xxh3_64(column.value(i)) }
}

/// A cheap, order-sensitive combination of two numbers (the multiply-and-fold of wyhash, Wang Yi).
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ 0xa076_1d64_78bd_642f) * u128::from(b ^ 0xe703_7ed1_a0b4_28db);
    (product as u64) ^ ((product >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::RecordsBuilder;

    fn records(rows: &[(i64, Option<&str>, Option<&str>)]) -> Records {
        let mut builder = RecordsBuilder::default();
        for (time, key, value) in rows {
            builder.push(*time, key.map(str::as_bytes), value.map(str::as_bytes), []);
        }
        builder.finish()
    }

    #[test]
    fn cutting_a_lane_leaves_no_trace() {
        let all = records(&[(1, Some("a"), Some("x")), (2, None, None), (3, Some(""), Some(""))]);
        let whole = extend_chain(0, &all);
        for cut in 0..=3 {
            let first = extend_chain(0, &all.slice(0, cut));
            assert_eq!(extend_chain(first, &all.slice(cut, 3 - cut)), whole);
        }
    }

    #[test]
    fn any_difference_changes_the_chain() {
        let base = extend_chain(0, &records(&[(1, Some("a"), Some("x")), (1, None, Some("y"))]));
        for other in [
            [(1, None, Some("y")), (1, Some("a"), Some("x"))],
            [(2, Some("a"), Some("x")), (1, None, Some("y"))],
            [(1, Some("a"), Some("x")), (1, Some(""), Some("y"))],
            [(1, Some("ax"), Some("")), (1, None, Some("y"))],
            [(1, Some("a"), None), (1, None, Some("y"))],
        ] {
            assert_ne!(extend_chain(0, &records(&other)), base, "{other:?}");
        }
    }
}
