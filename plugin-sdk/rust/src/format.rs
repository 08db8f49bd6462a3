//! How values are written: the formats that the host knows too, so that it can show what is stored.
//!
//! **Invariant:** what a format writes it reads back; `host/docs/state-encoding.md` specifies the bytes.

use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// A value's format: `String`, `Vec<u8>`, `i64`, `f64` and [`Json<T>`].
///
/// What is passed in is [`Ref`](Format::Ref) (`&str`, `&[u8]`, `i64`, `f64`, `&T`), what comes out is
/// [`Owned`](Format::Owned) (`String`, `Vec<u8>`, `i64`, `f64`, `T`).
pub trait Format {
    /// The name that `describe` gives to the host.
    const NAME: &'static str;
    /// A value that was read.
    type Owned;
    /// A value to be written.
    type Ref<'a>: Copy;

    /// A value as it is written.
    fn borrow(value: &Self::Owned) -> Self::Ref<'_>;

    /// Appends the value's bytes to `out`; `false` where the value is null.
    fn encode(value: Self::Ref<'_>, out: &mut Vec<u8>) -> Result<bool>;

    /// The value of these bytes.
    fn decode(bytes: &[u8]) -> Result<Self::Owned>;
}

/// JSON through serde: `Store<String, Json<Delays>>` holds `Delays`. Only a marker; there are no values
/// of this type.
pub struct Json<T>(PhantomData<T>);

impl<T: Serialize + DeserializeOwned + 'static> Format for Json<T> {
    const NAME: &'static str = "json";
    type Owned = T;
    type Ref<'a> = &'a T;

    #[inline]
    fn borrow(value: &T) -> &T {
        value
    }

    #[inline]
    fn encode(value: &T, out: &mut Vec<u8>) -> Result<bool> {
        write_json(value, out)
    }

    #[inline]
    fn decode(bytes: &[u8]) -> Result<T> {
        let read = match str::from_utf8(bytes) {
            Ok(text) => crate::json::read(text),
            Err(_) => serde_json::from_slice(bytes),
        };
        read.map_err(|e| Error::new(format_args!("the value is not the JSON expected: {e}")))
    }
}

/// Appends a value as JSON.
pub(crate) fn write_json<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> Result<bool> {
    crate::json::write(value, out)
        .map_err(|e| Error::new(format_args!("the value cannot be written as JSON: {e}")))?;
    Ok(true)
}

impl Format for String {
    const NAME: &'static str = "utf8";
    type Owned = String;
    type Ref<'a> = &'a str;

    #[inline]
    fn borrow(value: &String) -> &str {
        value
    }

    #[inline]
    fn encode(value: &str, out: &mut Vec<u8>) -> Result<bool> {
        anabranch_key::append(out, value.as_bytes());
        Ok(true)
    }

    #[inline]
    fn decode(bytes: &[u8]) -> Result<String> {
        Ok(std::str::from_utf8(bytes)?.to_owned())
    }
}

impl Format for Vec<u8> {
    const NAME: &'static str = "bytes";
    type Owned = Vec<u8>;
    type Ref<'a> = &'a [u8];

    #[inline]
    fn borrow(value: &Vec<u8>) -> &[u8] {
        value
    }

    #[inline]
    fn encode(value: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        anabranch_key::append(out, value);
        Ok(true)
    }

    #[inline]
    fn decode(bytes: &[u8]) -> Result<Vec<u8>> {
        Ok(bytes.to_vec())
    }
}

macro_rules! number_format {
    ($type:ty, $name:literal) => {
        impl Format for $type {
            const NAME: &'static str = $name;
            type Owned = $type;
            type Ref<'a> = $type;

            #[inline]
            fn borrow(value: &$type) -> $type {
                *value
            }

            #[inline]
            fn encode(value: $type, out: &mut Vec<u8>) -> Result<bool> {
                out.extend_from_slice(&value.to_le_bytes());
                Ok(true)
            }

            #[inline]
            fn decode(bytes: &[u8]) -> Result<$type> {
                let bytes = bytes.try_into().map_err(|_| {
                    let length = bytes.len();
                    Error::new(format_args!("{} takes 8 bytes, not {length}", $name))
                })?;
                Ok(<$type>::from_le_bytes(bytes))
            }
        }
    };
}
number_format!(i64, "i64");
number_format!(f64, "f64");

/// No key: `Output<(), Json<T>>` sends records without one.
impl Format for () {
    const NAME: &'static str = "bytes";
    type Owned = ();
    type Ref<'a> = ();

    #[inline]
    fn borrow((): &()) {}

    #[inline]
    fn encode((): (), _: &mut Vec<u8>) -> Result<bool> {
        Ok(false)
    }

    #[inline]
    fn decode(_: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// A key that may be missing, or a value that may be a tombstone.
impl<F: Format> Format for Option<F> {
    const NAME: &'static str = F::NAME;
    type Owned = Option<F::Owned>;
    type Ref<'a> = Option<F::Ref<'a>>;

    #[inline]
    fn borrow(value: &Option<F::Owned>) -> Option<F::Ref<'_>> {
        value.as_ref().map(F::borrow)
    }

    #[inline]
    fn encode(value: Option<F::Ref<'_>>, out: &mut Vec<u8>) -> Result<bool> {
        value.map_or(Ok(false), |value| F::encode(value, out))
    }

    #[inline]
    fn decode(bytes: &[u8]) -> Result<Option<F::Owned>> {
        F::decode(bytes).map(Some)
    }
}
