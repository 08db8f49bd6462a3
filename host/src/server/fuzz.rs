//! What fuzzing feeds of this module: bodies of produce requests.

use super::records::{ArrowShower, Decoder, Limits};
use crate::log::TopicFormat;
use crate::types::{Batch, Offset};

/// Takes `data` as a body, in each format and form. What is taken is within its limits, and comes back
/// the same when it is shown as an Arrow stream; such a stream with one byte changed is a body, too.
///
/// # Panics
/// When it is not: a finding.
pub fn bodies(data: &[u8]) {
    let limits = Limits { key_bytes: 64, value_bytes: 256, header_bytes: 64 };
    for format in [TopicFormat::Json, TopicFormat::Utf8, TopicFormat::Bytes] {
        let decoder = Decoder { format, partitions: 3, limits, now_ms: 5 };
        let arrow = decoder.arrow(data, 1 << 16);
        for decoded in [decoder.ndjson(data, None), decoder.array(data, None), arrow] {
            match decoded {
                Ok(decoded) => {
                    let records = &decoded.records;
                    let mut shower = ArrowShower::open().expect("memory takes everything");
                    let batch = Batch::contiguous(Offset(7), records.clone());
                    let written = shower.batch(&batch).and_then(|()| shower.finish());
                    written.expect("what was taken can be shown");
                    let mut shown = shower.take();
                    // Bytes that JSON has a way to say may be no JSON.
                    let back = decoder.arrow(&shown, 1 << 20).map(|back| back.records);
                    let any = format != TopicFormat::Bytes && back.is_err();
                    assert!(any || back.as_ref().ok() == Some(records), "{back:?} {records:?}");
                    let at = data.len() * 977 % shown.len();
                    shown[at] ^= data.first().copied().unwrap_or_default();
                    drop(decoder.arrow(&shown, 1 << 16));
                    let most = |column: &arrow_array::BinaryArray| {
                        column.iter().flatten().map(<[u8]>::len).max().unwrap_or(0)
                    };
                    assert!(most(&records.keys) <= 64 && most(&records.values) <= 256);
                    let chosen = decoded.partitions.iter().flatten().flatten();
                    assert!(chosen.into_iter().all(|partition| partition.0 < 3));
                }
                Err(error) => assert!(!error.to_string().contains('\u{1b}'), "{error:?}"),
            }
        }
    }
}
