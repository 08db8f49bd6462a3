//! Bare JSON lines: the value is the line, key and timestamp are fields of it.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::decode::Wrong;

/// Which top-level fields of a bare value are its record's key and timestamp.
#[derive(Debug, Clone, Default)]
pub struct RawFields {
    /// The field that is the key.
    pub key: Option<String>,
    /// The field that is the timestamp.
    pub timestamp: Option<String>,
}

/// A bare value and the JSON text of the fields that were asked for.
pub(super) struct Found<'a> {
    pub(super) value: &'a str,
    pub(super) key: Option<&'a str>,
    pub(super) timestamp: Option<&'a str>,
}

/// Checks that `text` is one JSON value and finds the fields, which must be there.
pub(super) fn raw_fields<'a>(text: &'a str, fields: &RawFields) -> Result<Found<'a>, Wrong> {
    if fields.key.is_none() && fields.timestamp.is_none() {
        let value: &RawValue = serde_json::from_str(text)?;
        return Ok(Found { value: value.get(), key: None, timestamp: None });
    }
    let text = text.trim_ascii();
    if !text.starts_with('{') {
        return Err(Wrong::record("not a JSON object, so it has no fields for key and timestamp"));
    }
    let mut parser = serde_json::Deserializer::from_str(text);
    let (key, timestamp) = Fields(fields).deserialize(&mut parser)?;
    parser.end()?;
    let must = |name: &Option<String>, found: Option<&'a str>| match name {
        Some(name) if found.is_none() => Err(Wrong::record(format!("there is no field {name:?}"))),
        _ => Ok(found),
    };
    Ok(Found {
        value: text,
        key: must(&fields.key, key)?,
        timestamp: must(&fields.timestamp, timestamp)?,
    })
}

struct Fields<'f>(&'f RawFields);

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = (Option<&'de str>, Option<&'de str>);

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = (Option<&'de str>, Option<&'de str>);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut key, mut timestamp) = (None, None);
        while let Some(Name(name)) = map.next_key()? {
            let is_key = self.0.key.as_deref() == Some(&*name);
            let is_timestamp = self.0.timestamp.as_deref() == Some(&*name);
            if is_key || is_timestamp {
                let raw = map.next_value::<&RawValue>()?.get();
                key = if is_key { Some(raw) } else { key };
                timestamp = if is_timestamp { Some(raw) } else { timestamp };
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok((key, timestamp))
    }
}

/// A field's name, borrowed where it holds no escapes.
struct Name<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> serde::Deserialize<'de> for Name<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Name<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a field's name")
            }

            fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(name)))
            }

            fn visit_str<E>(self, name: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(name.to_owned())))
            }
        }
        from.deserialize_str(Text)
    }
}
