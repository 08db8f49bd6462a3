//! Typed keys of stores, written by the order-preserving encoding of `anabranch-key`.
//!
//! **Invariant:** keys of a store sort, in the host and in scans, as their Rust values do.

use anabranch_key::{Part, PartType, Reader};

use crate::{Error, Result};

/// The key of a store: `String`, `Vec<u8>`, `i64`, `f64`, `bool`, or a tuple of up to four of them.
///
/// What is passed in is [`Ref`](Key::Ref): `&str`, `&[u8]`, numbers and truth values themselves, and
/// tuples of these, as in `store.get(("AA", 7))`.
pub trait Key: Sized {
    /// A key to look up.
    type Ref<'a>: Copy;

    /// Appends the types of the key's parts.
    fn part_types(types: &mut Vec<PartType>);

    /// Appends the encoding.
    fn encode(key: Self::Ref<'_>, out: &mut Vec<u8>);

    /// The key whose parts come next.
    fn decode(parts: &mut Reader<'_>) -> Result<Self>;

    /// The text or bytes of a key that is nothing else, as the key of a record may be.
    fn single<'a>(_: Self::Ref<'a>) -> Option<&'a [u8]> {
        None
    }
}

macro_rules! part_key {
    ($type:ty, $reference:ty, $variant:ident, $push:ident, |$value:ident| $owned:expr $(, $single:item)?) => {
        impl Key for $type {
            type Ref<'a> = $reference;

            fn part_types(types: &mut Vec<PartType>) {
                types.push(PartType::$variant);
            }

            fn encode(key: Self::Ref<'_>, out: &mut Vec<u8>) {
                anabranch_key::$push(out, key);
            }

            fn decode(parts: &mut Reader<'_>) -> Result<Self> {
                match parts.next_part()? {
                    Part::$variant($value) => Ok($owned),
                    other => Err(Error::new(format_args!(
                        "a key in the store should have a part of type {}, found {other:?}",
                        PartType::$variant
                    ))),
                }
            }

            $($single)?
        }
    };
}
part_key!(
    String,
    &'a str,
    Utf8,
    push_utf8,
    |text| text.into_owned(),
    #[inline]
    fn single<'k>(key: Self::Ref<'k>) -> Option<&'k [u8]> {
        Some(key.as_bytes())
    }
);
part_key!(
    Vec<u8>,
    &'a [u8],
    Bytes,
    push_bytes,
    |bytes| bytes.into_owned(),
    #[inline]
    fn single<'k>(key: Self::Ref<'k>) -> Option<&'k [u8]> {
        Some(key)
    }
);
part_key!(i64, i64, I64, push_i64, |number| number);
part_key!(f64, f64, F64, push_f64, |number| number);
part_key!(bool, bool, Bool, push_bool, |value| value);

macro_rules! tuple_key {
    ($($part:ident $name:ident),+) => {
        impl<$($part: Key),+> Key for ($($part,)+) {
            type Ref<'a> = ($($part::Ref<'a>,)+);

            fn part_types(types: &mut Vec<PartType>) {
                $($part::part_types(types);)+
            }

            fn encode(($($name,)+): Self::Ref<'_>, out: &mut Vec<u8>) {
                $($part::encode($name, out);)+
            }

            fn decode(parts: &mut Reader<'_>) -> Result<Self> {
                Ok(($($part::decode(parts)?,)+))
            }
        }
    };
}
tuple_key!(A a);
tuple_key!(A a, B b);
tuple_key!(A a, B b, C c);
tuple_key!(A a, B b, C c, D d);

/// The key of these bytes, all of them.
pub(crate) fn decode<K: Key>(bytes: &[u8]) -> Result<K> {
    let mut parts = Reader::new(bytes);
    let key = K::decode(&mut parts)?;
    if !parts.is_at_end() {
        return Err(Error::new("a key in the store has more parts than its type"));
    }
    Ok(key)
}
