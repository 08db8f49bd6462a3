//! The records that all systems replay, as columns.
//!
//! **Invariant:** they are those of `anabranch bench` (host/src/cli/bench/data.rs) and of
//! `peers.Records`, byte by byte; [`checksum`] tells whether they are.

/// Bytes of a key, such as `k0000017`.
pub const KEY_BYTES: usize = 8;
/// Bytes of a value.
pub const VALUE_BYTES: usize = 100;
/// Different keys, each as likely as any other.
pub const KEYS: u64 = 100_000;
/// What the values that the filter keeps begin with: 30 % of them.
pub const KEPT: &[u8] = br#"{"level":"warn""#;

const SEED: u64 = 1;
const WORDS: [&str; 16] = [
    "delivery", "invoice", "customs", "express", "returned", "partial", "priority", "standard",
    "weekend", "overseas", "damaged", "insured", "bulk", "gift", "pickup", "locker",
];

/// An endless supply of records.
pub struct Generator(u64);

impl Default for Generator {
    fn default() -> Self {
        Self(SEED)
    }
}

impl Generator {
    /// SplitMix64 (Steele, Lea and Flood, 2014).
    fn random(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Appends the next record's key and value.
    pub fn next(&mut self, keys: &mut Vec<u8>, values: &mut Vec<u8>) {
        use std::io::Write as _;
        write!(keys, "k{:07}", self.random() % KEYS).expect("memory takes everything");
        let end = values.len() + VALUE_BYTES - 2;
        let random = self.random();
        let level = if random % 10 < 3 { "warn" } else { "info" };
        let (user, amount) = ((random >> 8) % 100_000, (random >> 32) % 10_000);
        write!(values, r#"{{"level":"{level}","user":{user},"amount":{amount},"note":""#)
            .expect("memory takes everything");
        while values.len() < end {
            let mut random = self.random();
            for _ in 0..4 {
                values.extend_from_slice(WORDS[(random % 16) as usize].as_bytes());
                random >>= 4;
                write!(values, " {:02x} ", random % 256).expect("memory takes everything");
                random >>= 8;
            }
        }
        values.truncate(end);
        values.extend_from_slice(b"\"}");
    }
}

/// A column of bytes: where each cell ends, and the cells one after the other.
#[derive(Default)]
pub struct Column {
    /// One more than there are cells; the first is 0.
    pub ends: Vec<u32>,
    /// The cells.
    pub bytes: Vec<u8>,
}

impl Column {
    /// Forgets the cells, not the room.
    pub fn clear(&mut self) {
        self.ends.clear();
        self.ends.push(0);
        self.bytes.clear();
    }

    /// Ends the cell whose bytes were appended.
    pub fn end(&mut self) {
        self.ends.push(self.bytes.len() as u32);
    }

    /// Appends a cell.
    pub fn push(&mut self, cell: &[u8]) {
        self.bytes.extend_from_slice(cell);
        self.end();
    }

    /// The cells.
    pub fn cells(&self) -> impl Iterator<Item = &[u8]> {
        self.ends.windows(2).map(|ends| &self.bytes[ends[0] as usize..ends[1] as usize])
    }
}

/// Records in columns.
#[derive(Default)]
pub struct Batch {
    /// Keys.
    pub keys: Column,
    /// Values.
    pub values: Column,
}

impl Batch {
    /// Forgets the records, not the room.
    pub fn clear(&mut self) {
        self.keys.clear();
        self.values.clear();
    }

    /// The next `records`.
    pub fn generate(from: &mut Generator, records: usize) -> Self {
        let mut batch = Self::default();
        batch.clear();
        for _ in 0..records {
            from.next(&mut batch.keys.bytes, &mut batch.values.bytes);
            batch.keys.end();
            batch.values.end();
        }
        batch
    }
}

/// CRC-32 of the first 10,000 records, key and value one after the other.
pub fn checksum() -> u32 {
    let batch = Batch::generate(&mut Generator::default(), 10_000);
    let mut crc = crc32fast::Hasher::new();
    for (key, value) in batch.keys.cells().zip(batch.values.cells()) {
        crc.update(key);
        crc.update(value);
    }
    crc.finalize()
}
