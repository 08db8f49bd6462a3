//! What comes in: a batch of records, and one record of it.
//!
//! **Invariant:** reading a record copies nothing; headers, stream time and the seed are asked of the
//! host once a batch, and only if someone wants them.

use std::borrow::Cow;
use std::ops::Range;
use std::rc::Rc;

use serde::Deserialize;

use crate::bindings::Run;
use crate::call::{Call, Input};
use crate::{Column, Error, Result};

/// The records of one call, in columns. Where a batch begins and ends means nothing: results must not
/// depend on it.
pub struct Batch {
    input: Rc<Input>,
    call: Rc<Call>,
}

impl Batch {
    pub(crate) fn new(input: Rc<Input>, call: Rc<Call>) -> Self {
        Self { input, call }
    }

    /// The number of records.
    pub fn len(&self) -> usize {
        self.input.batch.offsets.len()
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The offsets, rising within each input partition.
    pub fn offsets(&self) -> &[u64] {
        &self.input.batch.offsets
    }

    /// The timestamps in milliseconds since the Unix epoch.
    pub fn timestamps(&self) -> &[i64] {
        &self.input.batch.timestamps
    }

    /// The keys.
    pub fn keys(&self) -> Column<'_> {
        Column::new(&self.input.batch.keys)
    }

    /// The values; null is a tombstone. Panics where the plugin
    /// [ignores values](crate::Setup::ignore_values).
    pub fn values(&self) -> Column<'_> {
        self.call.check_values().unwrap();
        Column::new(&self.input.batch.values)
    }

    /// Record `i`. Panics past the end.
    pub fn record(&self, i: usize) -> Record<'_> {
        assert!(i < self.len(), "record {i} of a batch of {}", self.len());
        Record { batch: self, index: i }
    }

    /// Calls `process` for each record in order, and refuses those for which it returns an error: their
    /// outputs and state changes are undone.
    pub fn each(&self, process: impl FnMut(&Record<'_>) -> Result<()>) -> Result<()> {
        self.each_in(0..self.len(), process)
    }

    /// [`each`](Self::each) for a range of records.
    pub fn each_in(
        &self,
        range: Range<usize>,
        mut process: impl FnMut(&Record<'_>) -> Result<()>,
    ) -> Result<()> {
        for index in range {
            self.call.enter(index);
            match process(&Record { batch: self, index }) {
                Ok(()) => self.call.commit(),
                Err(error) => self.call.reject(index, error.to_string())?,
            }
        }
        self.call.leave();
        Ok(())
    }

    /// Refuses record `i`, as an error in [`each`](Self::each) does.
    pub fn reject(&self, i: usize, reason: impl std::fmt::Display) -> Result<()> {
        self.call.reject(i, reason.to_string())
    }

    fn run_of(&self, index: usize) -> Option<&Run> {
        let mut first = 0;
        self.input.batch.runs.iter().find(|run| {
            first += run.count as usize;
            index < first
        })
    }
}

/// A record that came in.
#[derive(Clone, Copy)]
pub struct Record<'a> {
    batch: &'a Batch,
    index: usize,
}

impl<'a> Record<'a> {
    /// The key, if it has one.
    #[inline]
    pub fn key(&self) -> Option<&'a [u8]> {
        self.batch.keys().get(self.index)
    }

    /// The key as text; an error where there is none or it is not UTF-8.
    #[inline]
    pub fn key_str(&self) -> Result<&'a str> {
        let keys = self.batch.keys();
        let all_text = *self.batch.input.keys_are_text.get_or_init(|| keys.is_text());
        keys.text(self.index, all_text).ok_or_else(|| match keys.is_valid(self.index) {
            true => Error::new("the record's key is not UTF-8"),
            false => Error::new("the record has no key"),
        })
    }

    /// The value; `None` is a tombstone. Panics where the plugin
    /// [ignores values](crate::Setup::ignore_values).
    #[inline]
    pub fn value(&self) -> Option<&'a [u8]> {
        let value = Column::new(&self.batch.input.batch.values).get(self.index);
        // Looked at only here: what is ignored is null.
        if value.is_none() {
            self.batch.call.check_values().unwrap();
        }
        value
    }

    /// The value as text; an error for a tombstone and where it is not UTF-8.
    #[inline]
    pub fn text(&self) -> Result<&'a str> {
        let values = Column::new(&self.batch.input.batch.values);
        let all_text = *self.batch.input.values_are_text.get_or_init(|| values.is_text());
        values.text(self.index, all_text).ok_or_else(|| match values.is_valid(self.index) {
            true => Error::new("the record's value is not UTF-8"),
            false => match self.batch.call.check_values() {
                Ok(()) => Error::new("the record is a tombstone: it has no value"),
                Err(ignored) => ignored,
            },
        })
    }

    /// The value as JSON; an error for a tombstone and for what is not a `T`. A `T` may borrow from the
    /// record.
    pub fn json<T: Deserialize<'a>>(&self) -> Result<T> {
        crate::json::read(self.text()?)
            .map_err(|e| Error::new(format_args!("the record's value is not as expected: {e}")))
    }

    /// Milliseconds since the Unix epoch.
    #[inline]
    pub fn timestamp(&self) -> i64 {
        self.batch.input.batch.timestamps[self.index]
    }

    /// Its offset in its partition.
    #[inline]
    pub fn offset(&self) -> u64 {
        self.batch.input.batch.offsets[self.index]
    }

    /// Which of the deployment's inputs it comes from, counted from 0.
    pub fn input(&self) -> u32 {
        self.batch.run_of(self.index).map_or(0, |run| run.input)
    }

    /// The partition of that input.
    pub fn partition(&self) -> u32 {
        self.batch.run_of(self.index).map_or(0, |run| run.partition)
    }

    /// Whether any record of its batch has headers.
    pub(crate) fn has_headers_in_batch(&self) -> bool {
        let host = &self.batch.call.host;
        self.batch.input.headers.get_or_init(|| host.headers()).is_some()
    }

    /// The headers in order.
    pub fn headers(&self) -> HeaderIter<'a> {
        let host = &self.batch.call.host;
        let headers = self.batch.input.headers.get_or_init(|| host.headers()).as_ref();
        let columns = headers.map(|h| (Column::new(&h.names), Column::new(&h.values)));
        let range =
            headers.map_or(0..0, |h| h.ends[self.index] as usize..h.ends[self.index + 1] as usize);
        HeaderIter { columns, range }
    }

    /// The last header of this name, as Kafka's clients read them.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers().filter(|(n, _)| n == name).last().and_then(|(_, value)| value)
    }

    /// Stream time: the highest timestamp of all records up to and including this one, in milliseconds
    /// since the Unix epoch. The only clock that a replay sees tick as the live stream did.
    pub fn stream_time(&self) -> i64 {
        let input = &self.batch.input;
        input.stream_times.get_or_init(|| {
            let mut highest = self.batch.call.host.time_before_batch().unwrap_or(i64::MIN);
            let times = input.batch.timestamps.iter().map(|&timestamp| {
                highest = highest.max(timestamp);
                highest
            });
            times.collect()
        })[self.index]
    }

    /// Random numbers that belong to this record: the same at every replay, and independent of those of
    /// any other record.
    pub fn random(&self) -> Random {
        let call = &self.batch.call;
        let mut random = Random(*call.seed.get_or_init(|| call.host.seed()));
        for part in [u64::from(self.input()), u64::from(self.partition()), self.offset()] {
            random.0 = random.next_u64() ^ part;
        }
        random
    }
}

/// The headers of a record: name and value, in order; names may repeat.
#[derive(Clone)]
pub struct HeaderIter<'a> {
    columns: Option<(Column<'a>, Column<'a>)>,
    range: Range<usize>,
}

impl<'a> Iterator for HeaderIter<'a> {
    type Item = (Cow<'a, str>, Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        let (names, values) = self.columns?;
        let i = self.range.next()?;
        Some((String::from_utf8_lossy(names.get(i).unwrap_or_default()), values.get(i)))
    }
}

/// Random numbers by SplitMix64 (Steele, Lea, Flood 2014): not for secrets.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to below `limit`; 0 if that is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(limit)) >> 64) as u64
    }

    /// A number from 0 to below 1.
    pub fn next_f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}
