//! JSON as `serde_json` reads and writes it, at less cost in a sandbox.
//!
//! `serde_json` looks at each byte of a string, names of fields included, and each step of a loop has a price
//! in a guest. Here a string is looked at in words of eight bytes, and so is a number. What is rare or intricate is left to
//! `serde_json`.
//!
//! **Invariant:** what [`write()`] appends is what `serde_json::to_vec` gives, and what [`read()`] gives is
//! what `serde_json::from_str` does, errors included.

mod read;
mod write;

pub(crate) use read::read;
pub(crate) use write::write;

/// A word of which each byte is 1.
const ONES: u64 = u64::from_le_bytes([1; 8]);

/// How the names of structs begin in which `serde_json` hides text that is JSON as it is.
const VERBATIM: &str = "$serde_json::private::";

/// The high bit of each byte of a word that cannot be in a string as it is: control characters, quotes and
/// backslashes. A byte above such a byte may have it, too. Bytes beyond ASCII have none.
#[inline]
fn special(word: u64) -> u64 {
    let control = word.wrapping_sub(0x20 * ONES);
    let quote = (word ^ (0x22 * ONES)).wrapping_sub(ONES);
    let backslash = (word ^ (0x5c * ONES)).wrapping_sub(ONES);
    (control | quote | backslash) & !word & (0x80 * ONES)
}
