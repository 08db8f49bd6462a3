//! The record world: a batch handed over one record a call, its results gathered into columns.
//!
//! **Invariant:** what the guest sees of a record does not depend on the batch around it: stream time
//! is that of just before the record, and headers are the record's own.

use arrow_array::Array;
use arrow_array::builder::{ArrayBuilder as _, BinaryBuilder, StringBuilder};
use arrow_buffer::OffsetBuffer;
use wasmtime::Store;

use super::call::{CallError, CallOutput, Input, OutputColumns};
use super::columns::EntryLimit;
use super::contract::{HeaderParam, InputRecord, OutputRecord, RecordPlugin, Verdict};
use super::imports::{HostState, reason};
use super::instance::{HEADER_BYTES, OutputBudget, call_error, drive, returned};
use super::limits::Limits;
use crate::types::Headers;

/// An output's records as they come.
#[derive(Default)]
struct Gathered {
    sources: Vec<u32>,
    keys: BinaryBuilder,
    values: BinaryBuilder,
    timestamps: Vec<Option<i64>>,
    partitions: Vec<Option<u32>>,
    header_ends: Vec<i32>,
    header_names: StringBuilder,
    header_values: BinaryBuilder,
}

/// Processes every record of `input` in turn.
pub fn process(
    plugin: &RecordPlugin,
    store: &mut Store<HostState>,
    input: &Input,
    output: &mut CallOutput,
) -> Result<(), CallError> {
    let limits = store.data().limits.clone();
    let outputs = store.data().description.outputs.len();
    let mut gathered: Vec<Gathered> = (0..outputs).map(|_| Gathered::default()).collect();
    let mut budget = OutputBudget::default();
    let records = &input.batch.records;
    let all_headers = store.data_mut().call.headers_in.take();
    let rows = input.runs.iter().flat_map(|run| std::iter::repeat_n(run, run.count as usize));
    for (i, run) in rows.enumerate() {
        let mut headers = Vec::new();
        if let Some(all) = &all_headers {
            headers.extend(all.get(i).map(|(name, value)| HeaderParam { name, value }));
            let own = || Headers::from_list(all.as_list().slice(i, 1));
            store.data_mut().call.headers_in = (!headers.is_empty()).then(own);
        }
        let record = InputRecord {
            input: run.input,
            partition: run.partition,
            offset: input.batch.offsets[i],
            timestamp: records.timestamps[i],
            key: records.keys.is_valid(i).then(|| records.keys.value(i)),
            value: records.values.is_valid(i).then(|| records.values.value(i)),
            headers: &headers,
        };
        let verdict = drive(store, |store| plugin.call_process_record(store, record));
        let verdict = verdict.map_err(|error| call_error(error, store.data()))?;
        // A guest can point to much with few instructions, and the host has read it all.
        store.data_mut().charge_bytes(size_bytes(&verdict))?;
        match verdict.map_err(|text| returned(&text))? {
            Verdict::Rejected(text) => output.rejections.push((i as u32, reason(&text))),
            Verdict::Done(rows) => {
                for row in rows {
                    let Some(index) = store.data().description.output_index(&row.output) else {
                        let what = store.data().description.unknown_output(&row.output);
                        return Err(CallError::invalid(what));
                    };
                    check_row(&row, &mut budget, &limits)?;
                    gathered[index].push(i as u32, row);
                }
            }
        }
        advance_stream_time(store.data_mut(), records.timestamps[i]);
    }
    let columns = gathered.into_iter().enumerate().filter(|(_, rows)| !rows.sources.is_empty());
    let finish = |(index, rows): (usize, Gathered)| rows.finish(index, &records.timestamps);
    output.outputs.extend(columns.map(finish));
    Ok(())
}

/// What the host has read of a guest's memory for it.
fn size_bytes(verdict: &Result<Verdict, String>) -> usize {
    let row = |row: &OutputRecord| {
        let texts = row.headers.iter().map(|header| {
            HEADER_BYTES + header.name.len() + header.value.as_ref().map_or(0, Vec::len)
        });
        let cells = [&row.key, &row.value].into_iter().flatten().map(Vec::len);
        row.output.len() + texts.sum::<usize>() + cells.sum::<usize>()
    };
    match verdict {
        Ok(Verdict::Done(rows)) => rows.iter().map(row).sum(),
        Ok(Verdict::Rejected(text)) | Err(text) => text.len(),
    }
}

fn advance_stream_time(host: &mut HostState, timestamp_ms: i64) {
    if let Some(time) = &mut host.call.time {
        time.before_ms = time.before_ms.max(Some(timestamp_ms));
    }
}

fn check_row(
    row: &OutputRecord,
    budget: &mut OutputBudget,
    limits: &Limits,
) -> Result<(), CallError> {
    let len = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
    let (key, value) = (len(&row.key), len(&row.value));
    let mut checked = EntryLimit::key(limits).check(key);
    checked = checked.and(EntryLimit::value(limits).check(value));
    let mut headers = 0;
    for header in &row.headers {
        checked = checked.and(EntryLimit::key(limits).check(header.name.len()));
        checked = checked.and(EntryLimit::value(limits).check(len(&header.value)));
        headers += HEADER_BYTES + header.name.len() + len(&header.value);
    }
    checked.map_err(|what| CallError::invalid(format!("output {}: {what}", row.output)))?;
    budget.add(1, key + value + headers, limits)
}

impl Gathered {
    fn push(&mut self, source: u32, row: OutputRecord) {
        self.sources.push(source);
        self.keys.append_option(row.key);
        self.values.append_option(row.value);
        self.timestamps.push(row.timestamp);
        self.partitions.push(row.partition);
        for header in row.headers {
            self.header_names.append_value(header.name);
            self.header_values.append_option(header.value);
        }
        // The output budget keeps the number of headers far below 2^31.
        self.header_ends.push(self.header_values.len() as i32);
    }

    fn finish(mut self, output: usize, input_timestamps: &[i64]) -> OutputColumns {
        let own_time = self.timestamps.iter().any(Option::is_some);
        let times = self.timestamps.iter().zip(&self.sources);
        let timestamps = own_time.then(|| {
            times.map(|(own, &source)| own.unwrap_or(input_timestamps[source as usize])).collect()
        });
        let chosen = self.partitions.iter().any(Option::is_some);
        let headers = (!self.header_values.is_empty()).then(|| {
            let ends: Vec<i32> = std::iter::once(0).chain(self.header_ends).collect();
            let (names, values) = (self.header_names.finish(), self.header_values.finish());
            Headers::new(OffsetBuffer::new(ends.into()), names, values)
        });
        OutputColumns {
            output,
            sources: self.sources,
            keys: self.keys.finish(),
            values: self.values.finish(),
            timestamps,
            partitions: chosen.then_some(self.partitions),
            headers,
        }
    }
}
