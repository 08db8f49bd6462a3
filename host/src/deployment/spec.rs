//! What a user says of a deployment: the deployment file.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Error, Kind};
use crate::types::{DeploymentName, TopicName};

/// A deployment as its file describes it (TOML in a file, JSON over HTTP).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeploymentSpec {
    /// The deployment's name.
    #[schema(value_type = String)]
    pub name: DeploymentName,
    /// The plugin: the digest of one that was pushed. In a file also a path, which the command line
    /// pushes and replaces by its digest.
    pub plugin: String,
    /// The topics that it reads, in the order that the plugin sees as input indexes.
    #[schema(value_type = Vec<String>)]
    pub inputs: Vec<TopicName>,
    /// What becomes of a record that the plugin cannot process.
    #[serde(default)]
    pub on_poison: OnPoison,
    /// The plugin's output names and the topics that they become.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    pub outputs: BTreeMap<String, TopicName>,
    /// Handed to the plugin's `init` as JSON.
    #[serde(default = "empty_object")]
    #[schema(value_type = Object)]
    pub config: serde_json::Value,
    /// Limits of one call; those left out have the host's defaults.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub limits: serde_json::Map<String, serde_json::Value>,
    /// How its plugin is swapped.
    #[serde(default)]
    pub swap: SwapSpec,
}

fn empty_object() -> serde_json::Value {
    serde_json::Value::Object(serde_json::Map::new())
}

/// Bytes of a config as JSON: it is in every answer about its deployment, and handed to each instance.
const MAX_CONFIG_BYTES: usize = 1 << 20;
/// Bytes of the reason of a swap, which is kept with its generation.
const MAX_REASON_BYTES: usize = 4 << 10;

/// Checks that a config is not too large.
pub(super) fn check_config_size(config: &serde_json::Value) -> Result<(), Error> {
    let bytes = config.to_string().len();
    if bytes <= MAX_CONFIG_BYTES {
        return Ok(());
    }
    let message = format!(
        "[config] has {bytes} bytes, the limit is {MAX_CONFIG_BYTES}: put what is large into a topic that the plugin reads, or into the plugin"
    );
    Err(Error::new(Kind::Invalid, "invalid_config", message))
}

/// What becomes of a record that the plugin cannot process or refuses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnPoison {
    /// It goes to the topic `<deployment>.dead-letters`, with the reason.
    #[default]
    DeadLetter,
    /// It is counted and left out.
    Skip,
    /// The generation stops with the reason.
    Stop,
}

/// `[swap]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SwapSpec {
    /// How long the old generation is kept warm for a rollback: `30s`, `10m`, `1h`, `2d`.
    #[serde(with = "span")]
    #[schema(value_type = String)]
    pub warm_lease: Duration,
}

impl Default for SwapSpec {
    fn default() -> Self {
        Self { warm_lease: Duration::from_secs(3600) }
    }
}

/// Where a new generation begins to read its inputs: `earliest`, an offset, or a time (RFC 3339).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum StartAt {
    /// The beginning of history.
    #[default]
    Earliest,
    /// This offset in every partition.
    Offset(u64),
    /// The first record at or after this time, in milliseconds since the Unix epoch.
    Time(i64),
}

impl std::str::FromStr for StartAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "earliest" {
            return Ok(Self::Earliest);
        }
        if let Ok(offset) = text.parse() {
            return Ok(Self::Offset(offset));
        }
        let time = text.parse::<jiff::Timestamp>().map_err(|_| {
            format!(
                "{text:?} is no place to start: say earliest, an offset such as 1000, or a time such as 2013-01-01T00:00:00Z"
            )
        })?;
        Ok(Self::Time(time.as_millisecond()))
    }
}

impl TryFrom<String> for StartAt {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<StartAt> for String {
    fn from(start: StartAt) -> String {
        match start {
            StartAt::Earliest => "earliest".to_owned(),
            StartAt::Offset(offset) => offset.to_string(),
            StartAt::Time(ms) => jiff::Timestamp::from_millisecond(ms)
                .map_or_else(|_| ms.to_string(), |time| time.to_string()),
        }
    }
}

/// Whether a candidate goes live by itself once it has caught up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Approve {
    /// At once.
    #[default]
    Auto,
    /// When someone promotes it.
    Manual,
}

/// Where a candidate's state comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum StateFrom {
    /// From replaying history.
    #[default]
    Replay,
}

/// A request to swap a deployment's plugin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SwapRequest {
    /// The digest of the new plugin.
    pub plugin: String,
    /// A new configuration; the live generation's when left out.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub config: Option<serde_json::Value>,
    /// Where the state comes from.
    #[serde(default)]
    pub state: StateFrom,
    /// Where to begin.
    #[serde(default)]
    #[schema(value_type = String)]
    pub from: StartAt,
    /// Who decides.
    #[serde(default)]
    pub approve: Approve,
    /// Why, for the record.
    #[serde(default)]
    pub reason: Option<String>,
}

impl SwapRequest {
    /// Checks that the reason is not too long.
    pub(super) fn check_reason(&self) -> Result<(), Error> {
        let bytes = self.reason.as_ref().map_or(0, String::len);
        if bytes <= MAX_REASON_BYTES {
            return Ok(());
        }
        let message = format!("the reason has {bytes} bytes, the limit is {MAX_REASON_BYTES}");
        Err(Error::new(Kind::Invalid, "invalid_reason", message))
    }
}

pub(super) mod span {
    //! Durations as people write them.

    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(span: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{}s", span.as_secs()))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        parse(&String::deserialize(from)?).map_err(serde::de::Error::custom)
    }

    /// A number and `s`, `m`, `h` or `d`.
    pub fn parse(text: &str) -> Result<Duration, String> {
        let (number, unit) =
            text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        let seconds = match unit {
            "s" => Some(1),
            "m" => Some(60),
            "h" => Some(3_600),
            "d" => Some(86_400),
            _ => None,
        };
        let total = number.parse::<u64>().ok().zip(seconds).and_then(|(n, s)| n.checked_mul(s));
        total.map(Duration::from_secs).ok_or_else(|| {
            format!("{text:?} is not a duration: write a number and s, m, h or d, such as \"1h\"")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_file_is_read() {
        let spec: DeploymentSpec = toml::from_str(
            r#"
            name = "flight-delays"
            plugin = "flights_delays.wasm"
            inputs = ["flights"]
            on_poison = "dead-letter"
            [outputs]
            delays = "delays-by-carrier"
            [config]
            late_minutes = 15
            [limits]
            fuel_per_call = 1
            [swap]
            warm_lease = "90m"
            "#,
        )
        .unwrap();
        assert_eq!(spec.swap.warm_lease.as_secs(), 5_400);
        assert_eq!(spec.config["late_minutes"], 15);
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<DeploymentSpec>(&json).unwrap(), spec);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("name='a'\nplugin='p'\ninputs=[]\ninput=['x']", "unknown field `input`"),
            ("name='A'\nplugin='p'\ninputs=[]", "deployment name \"A\""),
            ("name='a'\nplugin='p'\ninputs=[]\n[swap]\nwarm_lease='1 week'", "1 week"),
        ] {
            let error = toml::from_str::<DeploymentSpec>(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn starts_round_trip() {
        for text in ["earliest", "17", "2013-01-01T10:00:00Z"] {
            assert_eq!(String::from(text.parse::<StartAt>().unwrap()), text);
        }
        assert!("yesterday".parse::<StartAt>().is_err());
    }
}
