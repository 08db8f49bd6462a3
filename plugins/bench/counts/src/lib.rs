//! The jobs of `anabranch bench` that count records by key. The config names one: `{"job": "count"}`.
//!
//! Input: any records with a key of text. Store `counts`: the number of records of each key so far.
//! Output `out`: with job `count`, each new count, so one record for each that comes in; with job
//! `count-per-key`, a key when it is first seen, so one record for each key.

use anabranch_plugin::{Output, Plugin, Record, Result, Setup, Store, plugin};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Job {
    Count,
    CountPerKey,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    job: Job,
}

/// Counts records by key.
pub struct Counts {
    job: Job,
    counts: Store<String, i64>,
    out: Output<String, i64>,
}

impl Plugin for Counts {
    fn new(setup: &mut Setup) -> Result<Self> {
        let (counts, out) = (setup.store("counts"), setup.table("out"));
        setup.ignore_values();
        setup.config_schema(json!({
            "type": "object",
            "properties": {"job": {"type": "string", "enum": ["count", "count-per-key"]}},
            "required": ["job"],
            "additionalProperties": false,
        }));
        let Config { job } = setup.config()?;
        Ok(Self { job, counts, out })
    }

    fn process(&self, record: &Record<'_>) -> Result<()> {
        let key = record.key_str()?;
        let count = self.counts.update(key, |count| *count += 1)?;
        match self.job {
            Job::CountPerKey if count > 1 => Ok(()),
            Job::Count | Job::CountPerKey => self.out.send(key, count),
        }
    }
}

plugin!(Counts);

#[cfg(test)]
mod tests {
    use anabranch_plugin::testing::{TestRecord, assert_cut_independent, record};

    use super::*;

    #[test]
    fn each_job_counts_and_sends_what_it_says() {
        let records: Vec<TestRecord> =
            (0..30).map(|i| record(format!("k{}", i % 10), "")).collect();
        for (job, expected) in [("count", 30), ("count-per-key", 10)] {
            let outcome = assert_cut_independent::<Counts>(&json!({"job": job}), &records, 1);
            assert_eq!(outcome.outputs["out"].len(), expected, "{job}");
            let counts: Vec<_> = outcome.stores["counts"].values().collect();
            assert!(counts.len() == 10 && counts.windows(2).all(|pair| pair[0] == pair[1]));
        }
    }
}
