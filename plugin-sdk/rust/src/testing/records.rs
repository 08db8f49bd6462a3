//! Records as tests write and read them.
//!
//! **Invariant:** nothing is lost on the way: what a test does not state is null, zero or empty.

use serde::de::DeserializeOwned;

use crate::{Error, Format, Result};

/// A key or value in a test: made from text, bytes, JSON, or `None` for null.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bytes(pub Option<Vec<u8>>);

impl From<&str> for Bytes {
    fn from(text: &str) -> Self {
        Self(Some(text.as_bytes().to_vec()))
    }
}

impl From<String> for Bytes {
    fn from(text: String) -> Self {
        Self(Some(text.into_bytes()))
    }
}

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Self {
        Self(Some(bytes.to_vec()))
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Some(bytes))
    }
}

impl From<serde_json::Value> for Bytes {
    fn from(value: serde_json::Value) -> Self {
        Self(Some(value.to_string().into_bytes()))
    }
}

impl From<Option<&str>> for Bytes {
    fn from(text: Option<&str>) -> Self {
        Self(text.map(|text| text.as_bytes().to_vec()))
    }
}

/// A record to be processed; made by [`record`].
#[derive(Debug, Clone)]
pub struct TestRecord {
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) timestamp: i64,
    pub(crate) input: u32,
    pub(crate) partition: u32,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
}

/// A record with this key and value, at time 0, of partition 0 of the first input. The driver counts
/// offsets.
pub fn record(key: impl Into<Bytes>, value: impl Into<Bytes>) -> TestRecord {
    TestRecord {
        key: key.into().0,
        value: value.into().0,
        timestamp: 0,
        input: 0,
        partition: 0,
        headers: Vec::new(),
    }
}

impl TestRecord {
    /// The record at this time, in milliseconds since the Unix epoch.
    pub fn at(mut self, timestamp_ms: i64) -> Self {
        self.timestamp = timestamp_ms;
        self
    }

    /// The record in this partition.
    pub fn partition(mut self, partition: u32) -> Self {
        self.partition = partition;
        self
    }

    /// The record of this input of the deployment.
    pub fn input(mut self, input: u32) -> Self {
        self.input = input;
        self
    }

    /// The record with one more header.
    pub fn header(mut self, name: &str, value: impl Into<Bytes>) -> Self {
        self.headers.push((name.to_owned(), value.into().0));
        self
    }
}

/// A record that the plugin sent.
#[derive(Debug, Clone, PartialEq)]
pub struct SentRecord {
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The value; `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    /// Milliseconds since the Unix epoch.
    pub timestamp: i64,
    /// The partition, where the plugin chose it.
    pub partition: Option<u32>,
    /// The headers in order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// Input, partition and offset of the record that it comes from.
    pub source: (u32, u32, u64),
}

impl SentRecord {
    /// The key as text.
    pub fn key_str(&self) -> Result<&str> {
        Ok(std::str::from_utf8(self.key.as_deref().ok_or_else(|| Error::new("no key"))?)?)
    }

    /// The value as JSON.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        Ok(serde_json::from_slice(self.some_value()?)?)
    }

    /// The value, read by its format: `sent.decode::<i64>()`.
    pub fn decode<F: Format>(&self) -> Result<F::Owned> {
        F::decode(self.some_value()?)
    }

    fn some_value(&self) -> Result<&[u8]> {
        self.value.as_deref().ok_or_else(|| Error::new("the record is a tombstone"))
    }
}

/// A record that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Which of the deployment's inputs it came from.
    pub input: u32,
    /// Its partition.
    pub partition: u32,
    /// Its offset.
    pub offset: u64,
    /// Why.
    pub reason: String,
}
