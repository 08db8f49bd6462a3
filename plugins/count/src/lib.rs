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
        setup.ignore_values();
        Ok(Self { counts: setup.store("counts"), updates: setup.table("counts") })
    }

    fn process(&self, record: &Record<'_>) -> Result<()> {
        let key = record.key_str()?;
        let count = self.counts.update(key, |count| *count += 1)?;
        self.updates.send(key, count)
    }
}

plugin!(Count);

#[cfg(test)]
mod tests {
    use anabranch_plugin::testing::{TestDriver, assert_cut_independent, record};
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_are_counted() {
        let mut driver = TestDriver::<Count>::new(json!({})).unwrap();
        driver.send_all([record("b", "1"), record("a", "2"), record("b", "3")]);
        let counts = driver.store::<String, i64>("counts");
        assert_eq!(counts, [("a".to_owned(), 1), ("b".to_owned(), 2)]);
        let sent: Vec<_> =
            driver.outputs("counts").iter().map(|r| r.decode::<i64>().unwrap()).collect();
        assert_eq!(sent, [1, 1, 2]);
    }

    #[test]
    fn a_record_without_a_key_is_refused_alone() {
        let records = [record("a", "1"), record(None, "2"), record("a", "3")];
        let outcome = assert_cut_independent::<Count>(&json!({}), &records, 1);
        assert_eq!(outcome.outputs["counts"].len(), 2);
        assert_eq!(outcome.rejections.len(), 1);
        assert_eq!(outcome.rejections[0].offset, 1);
        assert_eq!(outcome.rejections[0].reason, "the record has no key");
    }

    #[test]
    fn a_batch_reads_its_keys_at_once() {
        let mut driver = TestDriver::<Count>::new(json!({})).unwrap();
        driver.send_all((0..1000).map(|i| record((i % 300).to_string(), "")));
        assert_eq!(driver.reads(), 1);
        driver.send_all((0..1000).map(|i| record((i % 600).to_string(), "")));
        assert_eq!(driver.reads(), 2);
    }
}
