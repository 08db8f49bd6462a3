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

#[cfg(test)]
mod tests {
    use anabranch_plugin::testing::{assert_cut_independent, record};
    use serde_json::json;

    use super::*;

    #[test]
    fn records_arrive_as_they_came() {
        let plain = [record("k", "v").at(7), record(None, None).at(-1), record("", "")];
        let with_headers = [
            record("k", "v"),
            record("k", None).header("trace", "1").header("trace", None).partition(2),
            record(None, "v").header("", ""),
        ];
        for records in [plain, with_headers] {
            let outcome = assert_cut_independent::<Passthrough>(&json!({}), &records, 1);
            let sent = &outcome.outputs["records"];
            assert_eq!(sent.len(), records.len());
            assert_eq!(
                sent[1].key,
                if sent[1].headers.is_empty() { None } else { Some(b"k".to_vec()) }
            );
            assert_eq!(
                (sent[0].value.as_deref(), sent[1].value.as_deref()),
                (Some(&b"v"[..]), None)
            );
            assert_eq!(outcome.rejections, []);
        }
        let outcome = assert_cut_independent::<Passthrough>(
            &json!({}),
            &[record("k", "v").at(5).header("a", "1").header("a", None), record("k", "w")],
            1,
        );
        let sent = &outcome.outputs["records"];
        assert_eq!(sent[0].timestamp, 5);
        assert_eq!(
            sent[0].headers,
            [("a".to_owned(), Some(b"1".to_vec())), ("a".to_owned(), None)]
        );
        assert_eq!(sent[1].headers, []);
    }
}
