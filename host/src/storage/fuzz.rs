//! What fuzzing feeds of this module: values as they may lie in a damaged head.

use super::frame::{Kind, chunk_owner, decode, decode_chunked, encode};

/// Takes `data` as what lies under a key, and what it would be with one bit flipped.
///
/// # Panics
/// When a frame does not come back as it was written, or a flipped bit goes unnoticed: findings.
pub fn head_value(data: &[u8]) {
    if let Ok(frame) = decode(b"key", data) {
        assert_eq!(encode(b"key", frame.kind, frame.sequence, frame.payload), data);
        if let (Kind::Chunked, Some((bytes, chunks))) = (frame.kind, decode_chunked(frame.payload))
        {
            assert!(bytes == 0 || chunks > 0 || frame.payload.len() == 12);
        }
    }
    // Whatever it is, it has an owner or none.
    let _ = chunk_owner(data);
    let Some((&at, payload)) = data.split_first() else { return };
    let mut frame = encode(b"key", Kind::Whole, 7, payload);
    let back = decode(b"key", &frame);
    assert!(back.is_ok_and(|back| back.payload == payload && back.sequence == 7));
    let bit = usize::from(at) % (frame.len() * 8);
    frame[bit / 8] ^= 1 << (bit % 8);
    assert!(decode(b"key", &frame).is_err(), "bit {bit} was flipped");
}
