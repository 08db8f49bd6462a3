//! Which partition a key belongs to: murmur2, as Kafka's clients choose.

use super::PartitionId;

/// The partition of `key` among `partitions`: `toPositive(murmur2(key)) % partitions`, the default
/// partitioner of Apache Kafka's clients (`org.apache.kafka.common.utils.Utils`).
pub fn partition_of_key(key: &[u8], partitions: u32) -> PartitionId {
    PartitionId((murmur2(key) & 0x7fff_ffff) % partitions.max(1))
}

/// MurmurHash2 (Appleby, 2008), 32 bits, with Kafka's seed.
fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    let mut h = SEED ^ (data.len() as u32);
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k = (k ^ (k >> 24)).wrapping_mul(M);
        h = h.wrapping_mul(M) ^ k;
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        let tail = rest.iter().rev().fold(0, |word, &byte| (word << 8) | u32::from(byte));
        h = (h ^ tail).wrapping_mul(M);
    }
    h = (h ^ (h >> 13)).wrapping_mul(M);
    h ^ (h >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of Kafka's own `UtilsTest.testMurmur2`.
    #[test]
    fn murmur2_agrees_with_kafka() {
        // The partitions are those of seven, by `Utils.toPositive`.
        let cases: [(&[u8], i32); 6] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            (b"abc", 479_470_107),
        ];
        for (key, hash) in cases {
            assert_eq!(murmur2(key) as i32, hash, "{}", String::from_utf8_lossy(key));
        }
        let partitions = cases.map(|(key, _)| partition_of_key(key, 7).0);
        assert_eq!(partitions, [3, 0, 1, 0, 3, 4]);
    }

    #[test]
    fn partitions_are_in_range() {
        assert!((0..1000u32).all(|k| partition_of_key(&k.to_le_bytes(), 7).0 < 7));
        assert_eq!(partition_of_key(b"x", 1), PartitionId(0));
    }
}
