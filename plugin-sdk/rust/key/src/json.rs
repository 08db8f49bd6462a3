//! Keys as people and HTTP clients write them, by the types that their store declares.
//!
//! **Invariant:** a text names exactly one key: `parse_text(show_text(key)) == key` for every key
//! without nulls in a single utf8 part.

use serde_json::Value;

use crate::{Error, Part, PartType, decode_as, encode};

/// A key as JSON: a single utf8 part as a string, otherwise an array of parts. Bytes are base64, and
/// numbers that JSON has not are the strings `NaN`, `Infinity` and `-Infinity`.
pub fn to_json(key: &[u8], types: &[PartType]) -> Result<Value, Error> {
    let mut parts: Vec<Value> = decode_as(key, types)?.iter().map(part_to_json).collect();
    Ok(match (types, parts.len()) {
        ([PartType::Utf8], 1) => parts.remove(0),
        _ => Value::Array(parts),
    })
}

/// A key as one line of text, as in a URL: a single utf8 part plainly, otherwise a JSON array.
pub fn show_text(key: &[u8], types: &[PartType]) -> Result<String, Error> {
    Ok(match to_json(key, types)? {
        Value::String(text) => text,
        value => value.to_string(),
    })
}

/// The key that `text` names, written as [`show_text`] writes it. An array may be shorter than the list
/// of types: the result is then a prefix of keys.
pub fn parse_text(text: &str, types: &[PartType]) -> Result<Vec<u8>, Error> {
    if types == [PartType::Utf8] {
        return Ok(encode(&[Part::Utf8(text.into())]));
    }
    let error = |help: String| Error::Text { text: text.chars().take(120).collect(), help };
    let shape = || {
        let types: Vec<_> = types.iter().map(|t| t.as_str()).collect();
        format!("write a JSON array of [{}]", types.join(", "))
    };
    let values: Vec<Value> = serde_json::from_str(text).map_err(|_| error(shape()))?;
    if values.len() > types.len() {
        return Err(error(shape()));
    }
    let mut parts = Vec::new();
    for (value, t) in values.iter().zip(types) {
        let part = part_from_json(value, *t);
        parts.push(part.ok_or_else(|| error(format!("{value} is not a {t}; {}", shape())))?);
    }
    Ok(encode(&parts))
}

fn part_to_json(part: &Part<'_>) -> Value {
    match part {
        Part::Null => Value::Null,
        Part::Bytes(bytes) => base64_encode(bytes).into(),
        Part::Utf8(text) => text.as_ref().into(),
        Part::I64(number) => (*number).into(),
        Part::F64(number) if number.is_nan() => "NaN".into(),
        Part::F64(f64::INFINITY) => "Infinity".into(),
        Part::F64(f64::NEG_INFINITY) => "-Infinity".into(),
        Part::F64(number) => (*number).into(),
        Part::Bool(value) => (*value).into(),
    }
}

fn part_from_json(value: &Value, t: PartType) -> Option<Part<'_>> {
    Some(match (t, value) {
        (_, Value::Null) => Part::Null,
        (PartType::Utf8, Value::String(text)) => Part::Utf8(text.as_str().into()),
        (PartType::Bytes, Value::String(text)) => Part::Bytes(base64_decode(text)?.into()),
        (PartType::I64, Value::Number(number)) => Part::I64(number.as_i64()?),
        (PartType::F64, Value::Number(number)) => Part::F64(number.as_f64()?),
        (PartType::F64, Value::String(text)) => Part::F64(match text.as_str() {
            "NaN" => f64::NAN,
            "Infinity" => f64::INFINITY,
            "-Infinity" => f64::NEG_INFINITY,
            _ => return None,
        }),
        (PartType::Bool, Value::Bool(value)) => Part::Bool(*value),
        _ => return None,
    })
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64 with padding (RFC 4648, section 4).
pub fn base64_encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let mut three = [0; 3];
        three[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for i in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * i)) as usize & 63] as char;
            text.push(if i <= chunk.len() { digit } else { '=' });
        }
    }
    text
}

/// The bytes of a base64 text with padding; `None` for what [`base64_encode`] does not write.
pub fn base64_decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for chunk in text.as_bytes().chunks(4) {
        let mut bits = 0;
        for &letter in chunk {
            let digit = ALPHABET.iter().position(|&l| l == letter);
            bits = bits << 6 | digit.or((letter == b'=').then_some(0))? as u32;
        }
        let padding = chunk.iter().rev().take_while(|&&l| l == b'=').count();
        bytes.extend_from_slice(&bits.to_be_bytes()[1..4 - padding.min(2)]);
    }
    (base64_encode(&bytes) == text).then_some(bytes)
}
