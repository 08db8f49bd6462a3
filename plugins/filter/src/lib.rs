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
