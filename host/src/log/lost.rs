//! Ranges of offsets whose records were lost, and are said to be.
//!
//! A restore or a repair that cannot bring records back writes down which offsets are gone. Nobody gets
//! them again, and a reader that stands among them is told instead of being led past them.
//!
//! **Invariant:** a range is never given up as long as its log exists.

use serde::{Deserialize, Serialize};

use crate::types::Offset;

/// Offsets that a new end of a partition keeps away from the last one that is known to a copy of its
/// head. What was acknowledged after the copy is not known, but it was in the head or in files that were
/// looked at, and a head of this many records would hold 32 GiB of timestamps alone. Offsets below 2^53
/// have room for two million such skips.
pub(super) const SKIP: u64 = 1 << 32;

/// A range, by its first offset in the key of the head.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// The first offset after it.
    pub next: Offset,
    /// Wall time when it was written down, in milliseconds since the Unix epoch.
    pub noted_ms: i64,
    /// What happened.
    pub why: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What lies under a key `x` in version 1.
    #[test]
    fn golden_bytes_of_version_1_hold() {
        let lost = Lost { next: Offset(9), noted_ms: -1, why: "a disk".to_owned() };
        let golden = r#"{"next":9,"noted_ms":-1,"why":"a disk"}"#;
        assert_eq!(serde_json::to_string(&lost).unwrap(), golden);
        assert_eq!(serde_json::from_str::<Lost>(golden).unwrap(), lost);
    }
}
