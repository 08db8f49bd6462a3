//! The jobs of `anabranch bench` that keep no state. The config names one: `{"job": "filter"}`.
//!
//! Input: records with a key of text and a value such as
//! `{"level":"info","user":17,"amount":259,"note":"…"}`. Output: `out`.
//!
//! | job | what it sends |
//! |---|---|
//! | `pass-through` | every record as it came |
//! | `filter` | the records of level `warn`, told without parsing them |
//! | `json-map` | for each value, parsed, another: its user, its level, its amount with tax |
//! | `flat-map` | every value three times, under keys of their own |

use anabranch_plugin::{Batch, Output, Plugin, Record, Result, Setup, plugin};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// What the values that `filter` keeps begin with.
const KEPT: &[u8] = br#"{"level":"warn""#;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Job {
    PassThrough,
    Filter,
    JsonMap,
    FlatMap,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    job: Job,
}

/// The value of a record.
#[derive(Deserialize)]
struct Sale<'a> {
    level: &'a str,
    user: u64,
    amount: u64,
}

/// The value that `json-map` sends.
#[derive(Serialize)]
struct Taxed<'a> {
    user: u64,
    level: &'a str,
    amount_with_tax: u64,
}

/// A plugin that does one of the jobs.
pub struct Maps {
    job: Job,
    out: Output<Vec<u8>, Vec<u8>>,
}

impl Plugin for Maps {
    fn new(setup: &mut Setup) -> Result<Self> {
        let out = setup.stream("out");
        setup.config_schema(json!({
            "type": "object",
            "properties": {
                "job": {"type": "string", "enum": ["pass-through", "filter", "json-map", "flat-map"]},
            },
            "required": ["job"],
            "additionalProperties": false,
        }));
        let Config { job } = setup.config()?;
        Ok(Self { job, out })
    }

    fn process(&self, record: &Record<'_>) -> Result<()> {
        match self.job {
            Job::PassThrough => self.out.forward(record),
            Job::Filter => self.filter(record),
            Job::JsonMap => self.json_map(record),
            Job::FlatMap => self.flat_map(record),
        }
    }

    /// A loop for each job. What passes through whole goes as columns.
    fn process_batch(&self, batch: &Batch) -> Result<()> {
        match self.job {
            Job::PassThrough => self.out.forward_range(batch, 0..batch.len()),
            Job::Filter => batch.each(|record| self.filter(record)),
            Job::JsonMap => batch.each(|record| self.json_map(record)),
            Job::FlatMap => batch.each(|record| self.flat_map(record)),
        }
    }
}

impl Maps {
    fn filter(&self, record: &Record<'_>) -> Result<()> {
        match record.value() {
            Some(value) if value.starts_with(KEPT) => self.out.forward(record),
            _ => Ok(()),
        }
    }

    fn json_map(&self, record: &Record<'_>) -> Result<()> {
        let Sale { level, user, amount } = record.json()?;
        let taxed = Taxed { user, level, amount_with_tax: amount + amount / 5 };
        self.out.send_json(record.key().unwrap_or_default(), &taxed)
    }

    fn flat_map(&self, record: &Record<'_>) -> Result<()> {
        let (key, value) = (record.key_str()?, record.value().unwrap_or_default());
        let parts = ["a", "b", "c"];
        parts.iter().try_for_each(|part| self.out.send(format!("{key}-{part}").as_bytes(), value))
    }
}

plugin!(Maps);

#[cfg(test)]
mod tests {
    use anabranch_plugin::testing::{SentRecord, TestRecord, assert_cut_independent, record};
    use serde_json::Value;

    use super::*;

    fn run(job: &str) -> Vec<SentRecord> {
        let value = |i: usize| {
            let level = if i.is_multiple_of(3) { "warn" } else { "info" };
            format!(r#"{{"level":"{level}","user":{i},"amount":100,"note":"x"}}"#)
        };
        let records: Vec<TestRecord> = (0..30).map(|i| record(format!("k{i}"), value(i))).collect();
        let outcome = assert_cut_independent::<Maps>(&json!({"job": job}), &records, 1);
        assert_eq!(outcome.rejections, []);
        outcome.outputs["out"].clone()
    }

    #[test]
    fn each_job_sends_what_it_says() {
        assert_eq!(run("pass-through").len(), 30);
        let kept: Vec<_> = run("filter").iter().map(|sent| sent.source.2).collect();
        assert_eq!(kept, (0..30).step_by(3).collect::<Vec<_>>());
        let mapped = &run("json-map")[3];
        let expected = json!({"user": 3, "level": "warn", "amount_with_tax": 120});
        assert_eq!((mapped.key_str().unwrap(), mapped.json::<Value>().unwrap()), ("k3", expected));
        let tagged = run("flat-map");
        assert_eq!((tagged.len(), tagged[4].key_str().unwrap()), (90, "k1-b"));
    }
}
