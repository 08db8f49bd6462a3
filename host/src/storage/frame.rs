//! How a value lies in sled: framed with length, sequence and crc32c, and cut when it is large.
//!
//! A frame is `crc32c: u32`, `kind: u8`, `sequence: u64`, `length: u32`, then `length` bytes of
//! payload, all little-endian. The crc covers the key and everything behind itself, so that a value
//! under a wrong key is found out too. A payload that does not fit into [`MAX_VALUE_BYTES`] lies in
//! chunks under keys of their own ([`chunk_key`]), and its key holds the total length and the
//! number of chunks.
//!
//! **Invariant:** no value handed to sled is longer than [`MAX_VALUE_BYTES`]: beyond that sled
//! writes files that it never syncs.

/// The longest value, frame included, in bytes.
pub(super) const MAX_VALUE_BYTES: usize = 64 * 1024;
/// Length of a frame without its payload, in bytes.
pub(super) const FRAME_BYTES: usize = 17;
/// The longest payload of one frame, in bytes.
pub(super) const MAX_PAYLOAD_BYTES: usize = MAX_VALUE_BYTES - FRAME_BYTES;
/// First byte of the keys of chunks; no other key begins with it.
pub(super) const CHUNK_PREFIX: u8 = b'~';

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The whole value.
    Whole = 0,
    /// Total length (u64) and number of chunks (u32) of a value that lies in chunks.
    Chunked = 1,
    /// One chunk.
    Chunk = 2,
}

/// A frame that was checked.
pub(super) struct Frame<'a> {
    pub kind: Kind,
    pub sequence: u64,
    pub payload: &'a [u8],
}

/// The frame of `payload` under `key`.
pub(super) fn encode(key: &[u8], kind: Kind, sequence: u64, payload: &[u8]) -> Vec<u8> {
    debug_assert!(payload.len() <= MAX_PAYLOAD_BYTES);
    let mut frame = Vec::with_capacity(FRAME_BYTES + payload.len());
    frame.extend_from_slice(&[0; 4]);
    frame.push(kind as u8);
    frame.extend_from_slice(&sequence.to_le_bytes());
    frame.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    frame.extend_from_slice(payload);
    let crc = checksum(key, &frame[4..]);
    frame[..4].copy_from_slice(&crc.to_le_bytes());
    frame
}

/// Checks what lies under `key`; the error says what is wrong with it.
pub(super) fn decode<'a>(key: &[u8], frame: &'a [u8]) -> Result<Frame<'a>, &'static str> {
    let Some((head, payload)) = frame.split_at_checked(FRAME_BYTES) else {
        return Err("it is shorter than a frame");
    };
    let crc = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    if crc != checksum(key, &frame[4..]) {
        return Err("its crc32c does not match");
    }
    let mut sequence = [0; 8];
    sequence.copy_from_slice(&head[5..13]);
    let length = u32::from_le_bytes([head[13], head[14], head[15], head[16]]);
    if length as usize != payload.len() {
        return Err("its length does not match");
    }
    let kind = match head[4] {
        0 => Kind::Whole,
        1 => Kind::Chunked,
        2 => Kind::Chunk,
        _ => return Err("its kind is unknown"),
    };
    Ok(Frame { kind, sequence: u64::from_le_bytes(sequence), payload })
}

/// The key of chunk `index` of the value under `key`.
pub(super) fn chunk_key(key: &[u8], index: u32) -> Vec<u8> {
    let mut chunk = Vec::with_capacity(key.len() + 7);
    chunk.push(CHUNK_PREFIX);
    chunk.extend_from_slice(&(key.len() as u16).to_be_bytes());
    chunk.extend_from_slice(key);
    chunk.extend_from_slice(&index.to_be_bytes());
    chunk
}

/// The key whose value the chunk under `chunk` belongs to.
pub(super) fn chunk_owner(chunk: &[u8]) -> Option<&[u8]> {
    let length = u16::from_be_bytes([*chunk.get(1)?, *chunk.get(2)?]) as usize;
    (chunk.len() == length + 7).then(|| &chunk[3..3 + length])
}

/// The payload of a [`Kind::Chunked`] frame.
pub(super) fn encode_chunked(total_bytes: u64, chunks: u32) -> [u8; 12] {
    let mut payload = [0; 12];
    payload[..8].copy_from_slice(&total_bytes.to_le_bytes());
    payload[8..].copy_from_slice(&chunks.to_le_bytes());
    payload
}

/// Total length in bytes and number of chunks.
pub(super) fn decode_chunked(payload: &[u8]) -> Option<(u64, u32)> {
    let (total, chunks) = payload.split_at_checked(8)?;
    Some((u64::from_le_bytes(total.try_into().ok()?), u32::from_le_bytes(chunks.try_into().ok()?)))
}

fn checksum(key: &[u8], rest: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_found() {
        let frame = encode(b"key", Kind::Whole, 7, b"payload");
        let whole = decode(b"key", &frame).unwrap();
        assert_eq!((whole.kind, whole.sequence, whole.payload), (Kind::Whole, 7, &b"payload"[..]));
        assert!(decode(b"kez", &frame).is_err());
        for bit in 0..frame.len() * 8 {
            let mut bad = frame.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(b"key", &bad).is_err(), "bit {bit} flipped and not found");
        }
    }

    /// The bytes of format version 1.
    #[test]
    fn golden_bytes_of_version_1_hold() {
        let whole = "571499310002010000000000000300000076616c";
        assert_eq!(hex::encode(encode(b"key", Kind::Whole, 258, b"val")), whole);
        assert_eq!(hex::encode(chunk_key(b"key", 258)), "7e00036b657900000102");
        assert_eq!(hex::encode(encode_chunked(258, 3)), "020100000000000003000000");
    }

    #[test]
    fn chunk_keys_name_their_owner() {
        assert_eq!(chunk_owner(&chunk_key(b"h123", 9)), Some(&b"h123"[..]));
        assert_eq!(chunk_owner(b"~\0\x05abc"), None);
    }
}
