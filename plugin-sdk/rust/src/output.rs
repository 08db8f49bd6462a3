//! Outputs: what a plugin sends, collected in columns.
//!
//! **Invariant:** the records of an output are in the order of the records they come from, so that what a
//! record sent is the end of the columns and can be cut off. **Invariant:** an output chooses partitions
//! for all of its records or for none, because the contract has one column for them.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::rc::Rc;

use anabranch_key::append;
use serde::Serialize;

use crate::bindings::{self, HeaderColumn};
use crate::call::Call;
use crate::column::ColumnBuilder;
use crate::format::write_json;
use crate::host::Host;
use crate::{Batch, Error, Format, Record, Result};

/// An output, made by [`Setup::stream`](crate::Setup::stream) or [`Setup::table`](crate::Setup::table):
/// `Output<String, Json<Row>>`; `Output<(), String>` for records without a key, and
/// `Output<Option<String>, ..>` where some have none.
pub struct Output<K, V> {
    buffer: Rc<RefCell<OutputBuffer>>,
    call: Rc<Call>,
    types: PhantomData<fn(K, V)>,
}

/// What a record may be given besides key and value.
#[derive(Debug, Clone, Default)]
pub struct Options<'a> {
    timestamp: Option<i64>,
    partition: Option<u32>,
    headers: Vec<(&'a str, Option<&'a [u8]>)>,
}

impl<'a> Options<'a> {
    /// Nothing special: the timestamp of the record at hand, no headers.
    pub fn new() -> Self {
        Self::default()
    }

    /// The timestamp, in milliseconds since the Unix epoch.
    pub fn timestamp(mut self, timestamp_ms: i64) -> Self {
        self.timestamp = Some(timestamp_ms);
        self
    }

    /// The partition; only, and then always, for an output made by
    /// [`choosing_partitions`](Output::choosing_partitions).
    pub fn partition(mut self, partition: u32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// Adds a header; names may repeat.
    pub fn header(mut self, name: &'a str, value: Option<&'a [u8]>) -> Self {
        self.headers.push((name, value));
        self
    }
}

impl<K: Format, V: Format> Output<K, V> {
    pub(crate) fn new(buffer: Rc<RefCell<OutputBuffer>>, call: Rc<Call>) -> Self {
        Self { buffer, call, types: PhantomData }
    }

    /// The plugin itself chooses the partition of every record of this output.
    pub fn choosing_partitions(self) -> Self {
        self.buffer.borrow_mut().chooses_partitions = true;
        self
    }

    /// Sends a record that comes from the record at hand.
    #[inline]
    pub fn send(&self, key: K::Ref<'_>, value: V::Ref<'_>) -> Result<()> {
        self.send_with(key, value, &Options::default())
    }

    /// Sends a record with a timestamp, partition or headers of its own.
    #[inline]
    pub fn send_with(
        &self,
        key: K::Ref<'_>,
        value: V::Ref<'_>,
        options: &Options<'_>,
    ) -> Result<()> {
        self.buffer.borrow_mut().push(
            &self.call,
            |out| K::encode(key, out),
            |out| V::encode(value, out),
            options,
        )
    }

    /// Sends a value as JSON, whatever the output's type of values: one that borrows from the record, say.
    pub fn send_json<T: Serialize + ?Sized>(&self, key: K::Ref<'_>, value: &T) -> Result<()> {
        self.buffer.borrow_mut().push(
            &self.call,
            |out| K::encode(key, out),
            |out| write_json(value, out),
            &Options::default(),
        )
    }

    /// Sends a tombstone: in a table, the row of `key` is gone.
    pub fn delete(&self, key: K::Ref<'_>) -> Result<()> {
        let nothing = |_: &mut Vec<u8>| Ok(false);
        let options = Options::default();
        self.buffer.borrow_mut().push(&self.call, |out| K::encode(key, out), nothing, &options)
    }

    /// Sends the record on as it is: key, value, timestamp and headers, whatever the output's types.
    pub fn forward(&self, record: &Record<'_>) -> Result<()> {
        self.call.check_values()?;
        if !record.has_headers_in_batch() {
            return self.forward_with(record, &Options::default());
        }
        let headers: Vec<_> = record.headers().collect();
        let headers = headers.iter().map(|(name, value)| (name.as_ref(), *value)).collect();
        self.forward_with(record, &Options { headers, ..Options::default() })
    }

    #[inline]
    fn forward_with(&self, record: &Record<'_>, options: &Options<'_>) -> Result<()> {
        let bytes = |column: Option<&[u8]>, out: &mut Vec<u8>| {
            append(out, column.unwrap_or_default());
            Ok(column.is_some())
        };
        self.buffer.borrow_mut().push(
            &self.call,
            |out| bytes(record.key(), out),
            |out| bytes(record.value(), out),
            options,
        )
    }

    /// Sends a range of a batch's records on as they are, in a few copies whatever their number: for
    /// [`Plugin::process_batch`](crate::Plugin::process_batch).
    pub fn forward_range(&self, batch: &Batch, range: Range<usize>) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        // Fetches the headers, if any, for the whole batch.
        if batch.record(range.start).has_headers_in_batch() {
            for index in range {
                self.call.enter(index);
                self.forward(&batch.record(index))?;
            }
            self.call.leave();
            return Ok(());
        }
        self.call.check_values()?;
        self.buffer.borrow_mut().extend(batch, range)
    }
}

/// The records of an output in this call.
pub(crate) struct OutputBuffer {
    name: String,
    chooses_partitions: bool,
    /// Index of the record in the batch that each comes from.
    sources: Vec<u32>,
    keys: ColumnBuilder,
    values: ColumnBuilder,
    /// Present once a timestamp was given.
    timestamps: Option<Vec<i64>>,
    partitions: Vec<u32>,
    /// Present once a header was given.
    headers: Option<Headers>,
}

#[derive(Default)]
struct Headers {
    /// One end an output record, without the 0 at the beginning.
    ends: Vec<u32>,
    names: ColumnBuilder,
    values: ColumnBuilder,
}

impl OutputBuffer {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            chooses_partitions: false,
            sources: Vec::new(),
            keys: ColumnBuilder::default(),
            values: ColumnBuilder::default(),
            timestamps: None,
            partitions: Vec::new(),
            headers: None,
        }
    }

    #[inline]
    fn push(
        &mut self,
        call: &Call,
        key: impl FnOnce(&mut Vec<u8>) -> Result<bool>,
        value: impl FnOnce(&mut Vec<u8>) -> Result<bool>,
        options: &Options<'_>,
    ) -> Result<()> {
        let source = call.index()?;
        self.check_order(source)?;
        self.check_partition(options.partition.is_some())?;
        self.keys.push_with(key)?;
        if let Err(error) = self.values.push_with(value) {
            self.keys.truncate(self.sources.len());
            return Err(error);
        }
        if options.timestamp.is_some() || self.timestamps.is_some() {
            let input = call.input()?;
            let of_source = |source: u32| input.batch.timestamps[source as usize];
            let sources = &self.sources;
            self.timestamps
                .get_or_insert_with(|| sources.iter().map(|&s| of_source(s)).collect())
                .push(options.timestamp.unwrap_or_else(|| of_source(source)));
        }
        self.partitions.extend(options.partition);
        if !options.headers.is_empty() || self.headers.is_some() {
            let headers = self.headers.get_or_insert_default();
            headers.ends.resize(self.sources.len(), headers.names.len() as u32);
            for (name, value) in &options.headers {
                headers.names.push(Some(name.as_bytes()));
                headers.values.push(*value);
            }
            headers.ends.push(headers.names.len() as u32);
        }
        self.sources.push(source);
        Ok(())
    }

    fn extend(&mut self, batch: &Batch, range: Range<usize>) -> Result<()> {
        self.check_order(range.start as u32)?;
        self.check_partition(false)?;
        self.keys.extend(batch.keys(), range.clone());
        self.values.extend(batch.values(), range.clone());
        if let Some(timestamps) = &mut self.timestamps {
            timestamps.extend_from_slice(&batch.timestamps()[range.clone()]);
        }
        self.sources.extend(range.start as u32..range.end as u32);
        if let Some(headers) = &mut self.headers {
            headers.ends.resize(self.sources.len(), headers.names.len() as u32);
        }
        Ok(())
    }

    #[inline]
    fn check_order(&self, source: u32) -> Result<()> {
        if self.sources.last().is_some_and(|&last| last > source) {
            return Err(Error::new(format_args!(
                "output {:?}: records must be sent in the order of the records they come from",
                self.name
            )));
        }
        Ok(())
    }

    #[inline]
    fn check_partition(&self, given: bool) -> Result<()> {
        match (self.chooses_partitions, given) {
            (true, false) => Err(Error::new(format_args!(
                "output {:?} chooses partitions: give one with every record",
                self.name
            ))),
            (false, true) => Err(Error::new(format_args!(
                "output {:?} does not choose partitions: call choosing_partitions() in `new`",
                self.name
            ))),
            _ => Ok(()),
        }
    }

    /// Drops what record `index` sent.
    pub(crate) fn drop_record(&mut self, index: u32) {
        let n = self.sources.partition_point(|&source| source < index);
        if n == self.sources.len() {
            return;
        }
        self.sources.truncate(n);
        self.keys.truncate(n);
        self.values.truncate(n);
        self.timestamps.iter_mut().for_each(|timestamps| timestamps.truncate(n));
        self.partitions.truncate(n);
        if let Some(headers) = &mut self.headers {
            headers.ends.truncate(n);
            let rows = headers.ends.last().map_or(0, |&end| end as usize);
            headers.names.truncate(rows);
            headers.values.truncate(rows);
        }
    }

    /// The output of this call, if anything was sent; headers go to the host. Empty afterwards.
    pub(crate) fn finish(&mut self, host: &dyn Host) -> Result<Option<bindings::Output>> {
        if self.sources.is_empty() {
            return Ok(None);
        }
        // The next call mostly sends as much.
        let empty = Self {
            chooses_partitions: self.chooses_partitions,
            sources: Vec::with_capacity(self.sources.len()),
            keys: ColumnBuilder::like(&self.keys),
            values: ColumnBuilder::like(&self.values),
            ..Self::new(&self.name)
        };
        let done = std::mem::replace(self, empty);
        if let Some(mut headers) = done.headers.filter(|headers| headers.names.len() > 0) {
            headers.ends.insert(0, 0);
            let column = HeaderColumn {
                ends: headers.ends,
                names: headers.names.finish(),
                values: headers.values.finish(),
            };
            host.set_headers(&done.name, &column).map_err(Error::new)?;
        }
        Ok(Some(bindings::Output {
            name: done.name,
            sources: done.sources,
            keys: done.keys.finish(),
            values: done.values.finish(),
            timestamps: done.timestamps,
            partitions: done.chooses_partitions.then_some(done.partitions),
        }))
    }
}
