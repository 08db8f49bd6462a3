//! What fuzzing feeds of this module: columns as a guest may return them.

use arrow_array::Array as _;

use super::columns::{EntryLimit, check_sources, into_binary};
use super::contract::BytesColumnResult;
use super::limits::Limits;

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
