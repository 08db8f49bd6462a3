//! Records of the topic that producers write to, as they are sent and as they come back.

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::value::RawValue;

/// A record that was read from the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its offset.
    pub offset: u64,
    /// The number that stands in its value, if one does.
    pub id: Option<u64>,
    /// All of it, as [`text`] writes it.
    pub text: String,
    /// Its key.
    pub key: Option<String>,
    /// Its timestamp, in milliseconds.
    pub timestamp: i64,
}

/// A record in JSON, as the host shows it; parts whose bytes count are kept as they came.
#[derive(Debug, Deserialize)]
pub struct Shown<'a> {
    /// The key.
    pub key: Option<String>,
    /// The value.
    #[serde(borrow)]
    pub value: &'a RawValue,
    /// The timestamp, in milliseconds.
    pub timestamp: i64,
    /// The headers, if there are any.
    #[serde(borrow)]
    pub headers: Option<&'a RawValue>,
    /// The offset.
    pub offset: u64,
}

impl<'a> Shown<'a> {
    /// Reads a line.
    ///
    /// # Errors
    /// When it is no record.
    pub fn read(line: &'a str) -> Result<Self> {
        serde_json::from_str(line).with_context(|| format!("no record: {line}"))
    }

    /// The record as an entry of the producers' topic.
    pub fn entry(&self) -> Entry {
        #[derive(Deserialize)]
        struct Value {
            id: u64,
        }
        let id = serde_json::from_str::<Value>(self.value.get()).ok().map(|value| value.id);
        let headers = self.headers.map(RawValue::get);
        let key = self.key.as_deref();
        let text = text(key, self.value.get(), self.timestamp, headers);
        Entry { offset: self.offset, id, text, key: self.key.clone(), timestamp: self.timestamp }
    }
}

/// A record as a line of a produce request. Two records are the same if their texts are.
pub fn text(key: Option<&str>, value: &str, timestamp: i64, headers: Option<&str>) -> String {
    let key = key.map_or_else(|| "null".to_owned(), |key| format!("\"{key}\""));
    let headers = headers.map_or_else(String::new, |headers| format!(",\"headers\":{headers}"));
    format!("{{\"key\":{key},\"value\":{value},\"timestamp\":{timestamp}{headers}}}")
}
