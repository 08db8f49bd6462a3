//! Columns across the boundary: Arrow to what is lowered, and what was lifted to Arrow, checked.
//!
//! **Invariant:** a column that leaves [`into_binary`] satisfies the WIT contract of `bytes-column`
//! in full, so that no reader of an Arrow array can meet an offset that falls or points outside.
//! Going in copies nothing but offsets that do not start at 0; coming out moves the guest's lists
//! into Arrow buffers after one pass over `ends`.

use std::borrow::Cow;

use arrow_array::{Array, BinaryArray};
use arrow_buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};

use super::contract::{BytesColumnParam, BytesColumnResult, HeaderColumn};
use super::limits::Limits;
use crate::types::Headers;

/// A column on its way in, holding what had to be rebased.
pub struct Lowered<'a> {
    ends: Cow<'a, [u32]>,
    data: &'a [u8],
    validity: Option<Buffer>,
}

impl<'a> Lowered<'a> {
    pub fn new(column: &'a BinaryArray) -> Self {
        let ends: &[u32] = column.offsets().inner().inner().typed_data();
        let (first, last) = (ends[0], ends[ends.len() - 1]);
        let ends = if first == 0 {
            Cow::Borrowed(ends)
        } else {
            Cow::Owned(ends.iter().map(|end| end - first).collect())
        };
        let nulls = column.nulls().filter(|nulls| nulls.null_count() > 0);
        Self {
            ends,
            data: &column.value_data()[first as usize..last as usize],
            validity: nulls.map(|nulls| nulls.inner().sliced()),
        }
    }

    pub fn as_param(&self) -> BytesColumnParam<'_> {
        BytesColumnParam {
            ends: &self.ends,
            data: self.data,
            validity: self.validity.as_ref().map(|bits| bits.as_slice()),
        }
    }
}

/// A copy of a column, for what an import returns.
pub fn to_result(column: &BinaryArray) -> BytesColumnResult {
    let lowered = Lowered::new(column);
    BytesColumnResult {
        ends: lowered.ends.to_vec(),
        data: lowered.data.to_vec(),
        validity: lowered.validity.map(|bits| bits.to_vec()),
    }
}

/// The longest entry that a column may have.
#[derive(Clone, Copy)]
pub struct EntryLimit {
    name: &'static str,
    bytes: u64,
}

impl EntryLimit {
    pub fn key(limits: &Limits) -> Self {
        Self { name: "key_bytes", bytes: limits.key_bytes }
    }

    pub fn value(limits: &Limits) -> Self {
        Self { name: "value_bytes", bytes: limits.value_bytes }
    }

    /// Whether an entry of `bytes` is allowed; the error names the limit.
    pub fn check(self, bytes: usize) -> Result<(), String> {
        if bytes as u64 <= self.bytes {
            return Ok(());
        }
        Err(format!("an entry has {bytes} bytes, the limit {} is {}", self.name, self.bytes))
    }
}

/// Checks `ends` against what they index: n + 1 of them, the first 0, none below the one before, the
/// last `len`, which fits an i32. Returns the longest distance.
fn check_ends(ends: &[u32], len: usize) -> Result<u32, String> {
    let [first, .., last] = ends else {
        return match ends {
            [0] if len == 0 => Ok(0),
            [end] => Err(format!(
                "the only end is {end} over {len} bytes or entries: it must be 0, and so must they"
            )),
            _ => Err("ends are empty: even a column without entries has the end 0".into()),
        };
    };
    if *first != 0 {
        return Err(format!("ends begin with {first} instead of 0"));
    }
    // One branch-free pass: the position of a fault is looked for only when there is one.
    let (mut falls, mut longest) = (false, 0);
    for pair in ends.windows(2) {
        falls |= pair[1] < pair[0];
        longest = longest.max(pair[1].wrapping_sub(pair[0]));
    }
    if falls {
        let at = ends.windows(2).position(|pair| pair[1] < pair[0]).unwrap_or(0);
        return Err(format!("ends fall from {} to {} at entry {at}", ends[at], ends[at + 1]));
    }
    if *last as usize != len {
        return Err(format!("the last end is {last}, but there are {len}"));
    }
    if i32::try_from(*last).is_err() {
        return Err(format!("the last end is {last}: it must stay below 2^31"));
    }
    Ok(longest)
}

fn into_offsets(ends: Vec<u32>) -> OffsetBuffer<i32> {
    let len = ends.len();
    // Checked before: begins with 0, never falls, below 2^31, so the bits mean the same as i32.
    OffsetBuffer::new(ScalarBuffer::new(Buffer::from_vec(ends), 0, len))
}

/// Checks a guest's column of `n` entries and moves it into an Arrow array.
pub fn into_binary(
    column: BytesColumnResult,
    n: usize,
    limit: EntryLimit,
) -> Result<BinaryArray, String> {
    let BytesColumnResult { ends, data, validity } = column;
    if ends.len() != n + 1 {
        return Err(format!("it has {} ends where {n} entries need {}", ends.len(), n + 1));
    }
    let longest = check_ends(&ends, data.len())?;
    limit.check(longest as usize)?;
    let nulls = match validity {
        None => None,
        Some(bits) if bits.len() < n.div_ceil(8) => {
            let (have, need) = (bits.len(), n.div_ceil(8));
            return Err(format!("its validity has {have} bytes where {n} entries need {need}"));
        }
        Some(bits) => Some(NullBuffer::new(BooleanBuffer::new(Buffer::from_vec(bits), 0, n))),
    };
    let nulls = nulls.filter(|nulls| nulls.null_count() > 0);
    if let Some(nulls) = &nulls {
        let full = |i: usize| nulls.is_null(i) && ends[i + 1] != ends[i];
        if let Some(i) = (0..n).find(|&i| full(i)) {
            return Err(format!("entry {i} is null but not empty"));
        }
    }
    let data = Buffer::from_vec(data);
    BinaryArray::try_new(into_offsets(ends), data, nulls).map_err(|error| error.to_string())
}

/// The same for a column whose length is its own and that must not hold nulls (keys of state calls).
pub fn into_present(column: BytesColumnResult, limit: EntryLimit) -> Result<BinaryArray, String> {
    let n = column.ends.len().saturating_sub(1);
    let column = into_binary(column, n, limit)?;
    if column.null_count() > 0 {
        return Err("it holds nulls".into());
    }
    Ok(column)
}

/// Headers on their way in.
pub fn headers_to_result(headers: &Headers) -> HeaderColumn {
    let ends = headers.as_list().value_offsets();
    let (from, to) = (ends[0] as usize, ends[ends.len() - 1] as usize);
    let names: BinaryArray = headers.names().slice(from, to - from).into();
    HeaderColumn {
        ends: ends.iter().map(|end| (end - ends[0]) as u32).collect(),
        names: to_result(&names),
        values: to_result(&headers.values().slice(from, to - from)),
    }
}

/// Checks a guest's headers of any number of records.
pub fn into_headers(column: HeaderColumn, limits: &Limits) -> Result<Headers, String> {
    let HeaderColumn { ends, names, values } = column;
    let entries = names.ends.len().saturating_sub(1);
    check_ends(&ends, entries).map_err(|error| format!("the headers: {error}"))?;
    let key = EntryLimit::key(limits);
    let names = into_present(names, key).map_err(|error| format!("the header names: {error}"))?;
    let names = arrow_array::StringArray::try_from_binary(names)
        .map_err(|_| "the header names: not all are UTF-8".to_owned())?;
    let values = into_binary(values, entries, EntryLimit::value(limits))
        .map_err(|error| format!("the header values: {error}"))?;
    Ok(Headers::new(into_offsets(ends), names, values))
}

/// The column that came in where the guest gave it back as it was: it lies in memory once then, and is
/// written as it was read. Otherwise `column`.
pub fn shared_if_same(column: BinaryArray, came_in: &BinaryArray) -> BinaryArray {
    let (given, own) = (column.value_offsets(), came_in.value_offsets());
    let (first, last) = (own[0] as usize, own[own.len() - 1] as usize);
    let same = given.len() == own.len()
        && column.nulls().is_none()
        && came_in.nulls().is_none_or(|nulls| nulls.null_count() == 0)
        && given[given.len() - 1] as usize == last - first
        && given.iter().zip(own).fold(true, |same, (a, b)| same & (a + own[0] == *b))
        && column.value_data()[..last - first] == came_in.value_data()[first..last];
    if same { came_in.clone() } else { column }
}

/// Checks that `sources` never fall and stay below `n`.
pub fn check_sources(sources: &[u32], n: usize) -> Result<(), String> {
    let falls = sources.windows(2).fold(false, |falls, pair| falls | (pair[1] < pair[0]));
    if falls {
        let at = sources.windows(2).position(|pair| pair[1] < pair[0]).unwrap_or(0);
        return Err(format!("sources fall from {} to {}", sources[at], sources[at + 1]));
    }
    match sources.last() {
        Some(&last) if last as usize >= n => {
            Err(format!("source {last} is outside a batch of {n} records"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, ManualClock};

    const LIMIT: EntryLimit = EntryLimit { name: "value_bytes", bytes: 1 << 20 };

    fn random_column(random: &ManualClock) -> BinaryArray {
        let row = |i: u64| {
            let (dice, len) = (random.random() % 4, random.random() % 9);
            (dice != 0).then(|| vec![i as u8; len as usize])
        };
        (0..random.random() % 40).map(row).collect()
    }

    #[test]
    fn any_slice_of_any_column_crosses_unchanged() {
        for seed in 0..500 {
            let random = ManualClock::new(0, seed);
            let column = random_column(&random);
            let start = random.random() as usize % (column.len() + 1);
            let len = random.random() as usize % (column.len() - start + 1);
            let slice = column.slice(start, len);
            let back = into_binary(to_result(&slice), len, LIMIT).unwrap();
            assert_eq!(back, slice, "seed {seed}, {start}+{len}");
        }
    }

    /// The contract of `bytes-column`, word for word.
    fn is_valid(column: &BytesColumnResult, n: usize) -> bool {
        let present = |i: usize| match &column.validity {
            None => true,
            Some(bits) => bits[i / 8] >> (i % 8) & 1 == 1,
        };
        column.ends.len() == n + 1
            && column.validity.as_ref().is_none_or(|bits| 8 * bits.len() >= n)
            && column.ends[0] == 0
            && (0..n).all(|i| column.ends[i] <= column.ends[i + 1])
            && (0..n).all(|i| present(i) || column.ends[i] == column.ends[i + 1])
            && column.ends[n] as usize == column.data.len()
    }

    #[test]
    fn what_is_taken_is_exactly_what_the_contract_allows() {
        let mut taken = 0;
        for seed in 0..5_000 {
            let random = ManualClock::new(0, seed);
            let mut column = to_result(&random_column(&random));
            let n = (column.ends.len() - 1)
                .saturating_add_signed(random.random().is_multiple_of(9).into());
            let at = random.random() as usize;
            match random.random() % 6 {
                0 => {
                    let at = at % column.ends.len();
                    column.ends[at] = (random.random() % 50) as u32;
                }
                1 => column.data.push(1),
                2 => drop(column.data.pop()),
                3 => drop(column.ends.pop()),
                4 => column.validity = Some(vec![random.random() as u8; at % 6]),
                _ => {}
            }
            let valid = is_valid(&column, n);
            assert_eq!(
                into_binary(column.clone(), n, LIMIT).is_ok(),
                valid,
                "seed {seed}: {column:?}"
            );
            taken += u32::from(valid);
        }
        assert!((500..4_000).contains(&taken), "{taken} of 5000: too few or too many are valid");
    }

    #[test]
    fn what_comes_back_as_it_was_is_what_came_in() {
        let whole = BinaryArray::from_iter_values((0..100u8).map(|i| vec![i; i as usize % 7]));
        let came_in = whole.slice(10, 50);
        let back = into_binary(to_result(&came_in), 50, LIMIT).unwrap();
        let shared = shared_if_same(back, &came_in);
        assert_eq!(shared.value_data().as_ptr(), whole.value_data().as_ptr());
        assert_eq!(shared, came_in);
        for other in
            [whole.slice(10, 49), whole.slice(11, 50), random_column(&ManualClock::new(0, 1))]
        {
            let column = into_binary(to_result(&other), other.len(), LIMIT).unwrap();
            let kept = shared_if_same(column, &came_in);
            assert_ne!(kept.value_data().as_ptr(), whole.value_data().as_ptr());
            assert_eq!(kept, other);
        }
    }

    #[test]
    fn sources_are_in_range_and_never_fall() {
        for good in [&[][..], &[0], &[0, 0, 2], &[2]] {
            assert_eq!(check_sources(good, 3), Ok(()));
        }
        for bad in [&[3][..], &[1, 0], &[0, 2, 1], &[u32::MAX]] {
            assert!(check_sources(bad, 3).is_err(), "{bad:?}");
        }
        assert!(check_sources(&[0], 0).is_err());
    }
}
