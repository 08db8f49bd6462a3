//! What the benchmark produces: records from a seed.
//!
//! A record has a key of 8 bytes (`k0000017`) and a JSON value of exactly the bytes asked for, whose
//! columns compress two to three times; 30 % of the values are of level `warn`.
//!
//! **Invariant:** the same seed and shape give the same records on every machine.

use std::io::Write as _;
use std::sync::Arc;

use arrow_array::builder::BinaryBuilder;
use arrow_array::{ArrayRef, RecordBatch};
use arrow_ipc::writer::StreamWriter;

use crate::clock::{Clock as _, ManualClock};

/// Words of the notes: enough of them that values differ, few enough that they compress.
const WORDS: [&str; 16] = [
    "delivery", "invoice", "customs", "express", "returned", "partial", "priority", "standard",
    "weekend", "overseas", "damaged", "insured", "bulk", "gift", "pickup", "locker",
];

/// Bytes of a block that is compressed, as in segments.
const BLOCK_BYTES: usize = 64 << 10;
/// Bytes of a key: `k` and seven digits.
pub const KEY_BYTES: usize = 8;

/// How keys are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// Each key as often as any other.
    Uniform,
    /// Key `n` about 1/n as often as the first (Zipf's law with exponent 1, in its continuous form).
    Zipf,
}

/// What records look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of a value; at least 80.
    pub record_bytes: usize,
    /// Different keys.
    pub keys: u64,
    /// How often each occurs.
    pub spread: Spread,
}

/// An endless supply of records.
pub struct Generator {
    shape: Shape,
    random: Arc<ManualClock>,
}

impl Generator {
    /// Records of this shape, from this seed.
    pub fn new(shape: Shape, seed: u64) -> Self {
        Self { shape, random: ManualClock::new(0, seed) }
    }

    /// The next `records` as NDJSON, a record a line.
    pub fn ndjson(&mut self, records: usize) -> Vec<u8> {
        let mut body = Vec::with_capacity(records * (self.shape.record_bytes + 32));
        for _ in 0..records {
            let key = self.key();
            write!(body, r#"{{"key":"k{key:07}","value":"#).expect("memory takes everything");
            self.value(&mut body);
            body.extend_from_slice(b"}\n");
        }
        body
    }

    /// The next `records` as an Arrow stream of one batch, of `key` and `value`.
    pub fn arrow(&mut self, records: usize) -> Vec<u8> {
        let (mut keys, mut values) = (BinaryBuilder::new(), BinaryBuilder::new());
        let mut value = Vec::new();
        for _ in 0..records {
            keys.append_value(format!("k{:07}", self.key()));
            value.clear();
            self.value(&mut value);
            values.append_value(&value);
        }
        let columns: [(&str, ArrayRef); 2] =
            [("key", Arc::new(keys.finish())), ("value", Arc::new(values.finish()))];
        let written = RecordBatch::try_from_iter(columns).and_then(|rows| {
            let mut stream = StreamWriter::try_new(Vec::new(), &rows.schema())?;
            stream.write(&rows)?;
            stream.into_inner()
        });
        written.expect("two columns of one length, into memory")
    }

    /// Bytes that the next `records` take in columns of keys and values, in blocks that are compressed one
    /// by one: what a log of them cannot do without.
    pub fn compressed_bytes(&mut self, records: usize) -> usize {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for _ in 0..records {
            write!(keys, "k{:07}", self.key()).expect("memory takes everything");
            self.value(&mut values);
        }
        compressed(&keys) + compressed(&values)
    }

    fn key(&self) -> u64 {
        let (random, keys) = (self.random.random(), self.shape.keys);
        match self.shape.spread {
            Spread::Uniform => random % keys,
            Spread::Zipf => {
                let unit = (random >> 11) as f64 / (1u64 << 53) as f64;
                ((keys as f64).powf(unit) as u64 - 1).min(keys - 1)
            }
        }
    }

    /// Appends a value of `record_bytes`.
    fn value(&self, body: &mut Vec<u8>) {
        let end = body.len() + self.shape.record_bytes - 2;
        let random = self.random.random();
        let level = if random % 10 < 3 { "warn" } else { "info" };
        let (user, amount) = ((random >> 8) % 100_000, (random >> 32) % 10_000);
        write!(body, r#"{{"level":"{level}","user":{user},"amount":{amount},"note":""#)
            .expect("memory takes everything");
        while body.len() < end {
            let mut random = self.random.random();
            for _ in 0..4 {
                body.extend_from_slice(WORDS[(random % 16) as usize].as_bytes());
                random >>= 4;
                write!(body, " {:02x} ", random % 256).expect("memory takes everything");
                random >>= 8;
            }
        }
        body.truncate(end);
        body.extend_from_slice(b"\"}");
    }
}

fn compressed(column: &[u8]) -> usize {
    column.chunks(BLOCK_BYTES).map(|block| lz4_flex::block::compress(block).len()).sum()
}

/// Bytes that columns of offsets, 8 bytes a record, and of the ends of values of `value_bytes`, 4 bytes a
/// record as Arrow has them, take in such blocks. They hold as much as where a record is and how long it
/// is, and lz4, which copies four bytes or more at a time, does not find it.
pub fn compressed_numbers(value_bytes: usize, records: usize) -> [usize; 2] {
    let offsets: Vec<_> = (0..records as u64).flat_map(u64::to_le_bytes).collect();
    let ends: Vec<_> =
        (0..=records).flat_map(|i| ((i * value_bytes) as u32).to_le_bytes()).collect();
    [compressed(&offsets), compressed(&ends)]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Value;

    use super::*;

    fn lines(shape: Shape, seed: u64, records: usize) -> Vec<Value> {
        let body = Generator::new(shape, seed).ndjson(records);
        let lines = body.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
    }

    #[test]
    fn values_have_their_bytes_and_are_warnings_in_three_of_ten() {
        for record_bytes in [80, 100, 1024] {
            let shape = Shape { record_bytes, keys: 100, spread: Spread::Uniform };
            let body = Generator::new(shape, 7).ndjson(1);
            let value = &body[r#"{"key":"k0000000","value":"#.len()..body.len() - 2];
            assert_eq!(value.len(), record_bytes, "{}", String::from_utf8_lossy(value));
            let lines = lines(shape, 7, 2_000);
            let warnings = lines.iter().filter(|line| line["value"]["level"] == "warn").count();
            assert!((500..700).contains(&warnings), "{warnings}");
            assert_eq!(lines[0], serde_json::from_slice::<Value>(&body).unwrap());
        }
    }

    #[test]
    fn keys_are_spread_as_asked() {
        let counts = |spread| {
            let shape = Shape { record_bytes: 100, keys: 1_000, spread };
            let mut counts = BTreeMap::<String, u32>::new();
            for line in lines(shape, 1, 20_000) {
                *counts.entry(line["key"].as_str().unwrap().to_owned()).or_default() += 1;
            }
            counts
        };
        let uniform = counts(Spread::Uniform);
        assert!(uniform.len() > 990 && uniform.values().all(|&count| count < 60));
        let zipf = counts(Spread::Zipf);
        // ln 2 / ln 1000 of all are the first key.
        assert!((1_700..2_300).contains(&zipf["k0000000"]), "{}", zipf["k0000000"]);
        assert!(zipf.len() > 500);
    }
}
