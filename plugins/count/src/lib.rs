//! Counts records by key.
//!
//! Input: any records with a key of text. Store `counts` and output `counts` (a table): the number of
//! records of each key so far, as i64. A record without a key is refused.

use anabranch_plugin::{Output, Plugin, Record, Result, Setup, Store, plugin};

/// Counts records by key.
pub struct Count {
    counts: Store<String, i64>,
    updates: Output<String, i64>,
}

impl Plugin for Count {
    fn new(setup: &mut Setup) -> Result<Self> {
        Ok(Self { counts: setup.store("counts"), updates: setup.table("counts") })
    }

    fn process(&self, record: &Record<'_>) -> Result<()> {
        let key = record.key_str()?;
        let count = self.counts.update(key, |count| *count += 1)?;
        self.updates.send(key, count)
    }
}

plugin!(Count);
