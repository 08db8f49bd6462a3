//! Records at the edge: from JSON or Arrow streams into columns, and back.
//!
//! As JSON:
//!
//! | format | a key is taken and shown as | a value is taken and shown as |
//! |---|---|---|
//! | `json` | text; a key that is no string is taken as its JSON text | any JSON, its bytes kept as sent |
//! | `utf8` | a string | a string |
//! | `bytes` | base64 in a string | base64 in a string |
//!
//! A null value is a tombstone; a null or missing key is no key. Bytes that the format cannot show
//! (a plugin may write anything) are shown as `{"$bytes": "<base64>"}`. A key is always shown as
//! text, so that its type does not depend on its bytes (`"9E"` is a carrier, `9E1` a number).

mod arrow;
mod decode;
mod raw;
mod show;

pub use arrow::{ARROW_STREAM, ArrowShower};
pub use decode::{DecodeError, Decoder, Limits};
pub use raw::RawFields;
pub use show::{Shower, show_event};
