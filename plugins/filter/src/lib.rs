//! Lets through the records whose JSON value has a number within bounds.
//!
//! Config: `{"field": "distance", "min": 1000, "max": 2500}`; either bound may be missing. Output `kept`:
//! the records as they came. A record without the field, or with something else than a number there, is
//! dropped; one whose value is not a JSON object is refused.

use anabranch_plugin::{Output, Plugin, Record, Result, Setup, plugin};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// What a deployment configures.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    field: String,
    #[serde(default = "lowest")]
    min: f64,
    #[serde(default = "highest")]
    max: f64,
}

fn lowest() -> f64 {
    f64::NEG_INFINITY
}

fn highest() -> f64 {
    f64::INFINITY
}

/// Lets through the records whose JSON value has a number within bounds.
pub struct Filter {
    kept: Output<Vec<u8>, Vec<u8>>,
    config: Config,
}

impl Plugin for Filter {
    fn new(setup: &mut Setup) -> Result<Self> {
        let kept = setup.stream("kept");
        setup.config_schema(json!({
            "type": "object",
            "properties": {
                "field": {"type": "string"},
                "min": {"type": "number"},
                "max": {"type": "number"},
            },
            "required": ["field"],
            "additionalProperties": false,
        }));
        Ok(Self { kept, config: setup.config()? })
    }

    fn process(&self, record: &Record<'_>) -> Result<()> {
        let value: Map<String, Value> = record.json()?;
        let number = value.get(&self.config.field).and_then(Value::as_f64);
        match number {
            Some(n) if n >= self.config.min && n <= self.config.max => self.kept.forward(record),
            _ => Ok(()),
        }
    }
}

plugin!(Filter);

#[cfg(test)]
mod tests {
    use anabranch_plugin::testing::{TestDriver, assert_cut_independent, record};

    use super::*;

    #[test]
    fn records_within_bounds_are_kept() {
        let records: Vec<_> =
            (0..100).map(|n| record(None, json!({"n": n, "text": "7"})).at(n)).collect();
        let config = json!({"field": "n", "min": 10, "max": 12.5});
        let outcome = assert_cut_independent::<Filter>(&config, &records, 1);
        let kept: Vec<_> = outcome.outputs["kept"].iter().map(|r| r.timestamp).collect();
        assert_eq!(kept, [10, 11, 12]);
        for field in ["text", "missing"] {
            let outcome = assert_cut_independent::<Filter>(&json!({"field": field}), &records, 1);
            assert_eq!(outcome.outputs.len(), 0, "{field}");
        }
    }

    #[test]
    fn what_is_not_json_is_refused() {
        let mut driver = TestDriver::<Filter>::new(json!({"field": "n"})).unwrap();
        driver.send_all([
            record(None, "nonsense"),
            record(None, json!({"n": 1})),
            record(None, None),
        ]);
        let refused: Vec<_> = driver.rejections().iter().map(|r| r.offset).collect();
        assert_eq!((driver.outputs("kept").len(), refused), (1, vec![0, 2]));
    }

    #[test]
    fn an_unknown_setting_is_an_error() {
        let error = TestDriver::<Filter>::new(json!({"field": "n", "mim": 1})).err();
        let error = error.map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("unknown field `mim`"), "{error}");
    }
}
