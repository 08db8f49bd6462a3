//! Sends every record on as it came: key, value, timestamp and headers. Output `records`.

use anabranch_plugin::{Batch, Output, Plugin, Record, Result, Setup, plugin};

/// Sends every record on as it came.
pub struct Passthrough {
    records: Output<Vec<u8>, Vec<u8>>,
}

impl Plugin for Passthrough {
    fn new(setup: &mut Setup) -> Result<Self> {
        Ok(Self { records: setup.stream("records") })
    }

    fn process(&self, record: &Record<'_>) -> Result<()> {
        self.records.forward(record)
    }

    /// The same for a whole batch: a copy of its columns.
    fn process_batch(&self, batch: &Batch) -> Result<()> {
        self.records.forward_range(batch, 0..batch.len())
    }
}

plugin!(Passthrough);
