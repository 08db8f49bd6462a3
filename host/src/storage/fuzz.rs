//! What fuzzing feeds of this module: values as they may lie in a damaged head, and files whose sums are
//! right and nothing else needs to be.

use arrow_schema::Schema;
use serde_json::{Value, json};

use super::arrow_file::{MAGIC, MAGIC_AT_BEGIN, footer};
use super::frame::{Kind, chunk_owner, decode, decode_chunked, encode};

/// A file of the columns of `schema` in which all sums are right. `data` is a line of JSON (what the file
/// says of itself and of its block, and the block's number of rows) and the block.
pub fn summed(schema: &Schema, data: &[u8]) -> Option<Vec<u8>> {
    let end = data.iter().position(|byte| *byte == b'\n')?;
    let (line, block) = (&data[..end], &data[end + 1..]);
    let (metadata, said, rows): (Value, Value, u64) = serde_json::from_slice(line).ok()?;
    let crc = crc32c::crc32c(block);
    let mut file = MAGIC_AT_BEGIN.to_vec();
    let block_index = json!({
        "offset": file.len(), "length": block.len(), "crc32c": crc, "rows": rows, "metadata": said,
    });
    let index = json!({ "version": 1, "metadata": metadata, "blocks": [block_index] }).to_string();
    let index = format!("{:08x} {index}", crc32c::crc32c(index.as_bytes()));
    let footer = footer(schema, &[], &index);
    file.extend_from_slice(block);
    file.extend_from_slice(&footer);
    file.extend_from_slice(&(footer.len() as u32).to_le_bytes());
    file.extend_from_slice(MAGIC);
    Some(file)
}

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
