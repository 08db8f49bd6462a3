//! JSON as it is written.
//!
//! A string is copied in words, and a field's name, which the compiler knows, costs next to nothing. Strings
//! with escapes, numbers with a fraction and keys of maps are left to `serde_json`.

use anabranch_key::{append, last_word};
use serde::Serialize;
use serde::ser::{
    SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant, Serializer,
};
use serde_json::Error;

use super::{ONES, VERBATIM, special};

type Result<T = ()> = std::result::Result<T, Error>;

/// Appends a value as JSON. Where it fails, part of the value may have been written.
pub(crate) fn write<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> Result {
    value.serialize(Writer(out))
}

/// Whether a string is written as it is, between quotes: it has no control characters, quotes or backslashes.
#[inline]
fn is_plain(text: &[u8]) -> bool {
    let (words, rest) = text.as_chunks::<8>();
    let found = words.iter().fold(0, |found, word| found | special(u64::from_le_bytes(*word)));
    let blank = (0x20 * ONES) << (8 * rest.len());
    found | special(last_word(text) | blank) == 0
}

/// Appends parts whose lengths the compiler knows, which it makes a few words of, looking for room once.
#[inline(always)]
fn join<const N: usize>(out: &mut Vec<u8>, parts: [&[u8]; N]) {
    let bytes = parts.iter().map(|part| part.len()).sum();
    out.reserve(bytes);
    // SAFETY: there is room for all of them, and what the length then covers was written.
    unsafe {
        let mut to = out.as_mut_ptr().add(out.len());
        for part in parts {
            to.copy_from_nonoverlapping(part.as_ptr(), part.len());
            to = to.add(part.len());
        }
        out.set_len(out.len() + bytes);
    }
}

/// Appends a number of eight digits at most, all of which are found at once.
#[inline]
fn append_digits(out: &mut Vec<u8>, number: u32) {
    // Two numbers of four digits in a word, then four of two, then eight digits, the first lowest.
    let fours = u64::from(number / 10_000) | u64::from(number % 10_000) << 32;
    let hundreds = ((fours * 10_486) >> 20) & 0x0000_007f_0000_007f;
    let twos = hundreds | (fours - hundreds * 100) << 16;
    let tens = ((twos * 103) >> 10) & 0x000f_000f_000f_000f;
    let digits = tens | (twos - tens * 10) << 8;
    // Without zeros before the first digit that is none; the last one stays.
    let zeros = (digits.trailing_zeros() / 8).min(7);
    let letters = (digits | (0x30 * ONES)) >> (8 * zeros);
    out.extend_from_slice(&letters.to_le_bytes());
    out.truncate(out.len() - zeros as usize);
}

/// Writes one value.
struct Writer<'a>(&'a mut Vec<u8>);

impl<'a> Writer<'a> {
    #[inline]
    fn text(self, text: &str) -> Result {
        if !is_plain(text.as_bytes()) {
            return self.by_serde_json(text);
        }
        self.0.push(b'"');
        append(self.0, text.as_bytes());
        self.0.push(b'"');
        Ok(())
    }

    #[inline]
    fn integer<T: itoa::Integer + Copy>(self, integer: T) -> Result
    where
        u32: TryFrom<T>,
    {
        match u32::try_from(integer) {
            Ok(few) if few < 100_000_000 => append_digits(self.0, few),
            _ => append(self.0, itoa::Buffer::new().format(integer).as_bytes()),
        }
        Ok(())
    }

    #[inline]
    fn word(self, word: &'static str) -> Result {
        append(self.0, word.as_bytes());
        Ok(())
    }

    fn by_serde_json<T: Serialize + ?Sized>(self, value: &T) -> Result {
        serde_json::to_writer(self.0, value)
    }

    /// What is between `open` and `close`, which ends it.
    #[inline]
    fn parts(self, open: u8, close: &'static str) -> Parts<'a> {
        self.0.push(open);
        Parts { out: self.0, first: true, verbatim: false, close }
    }

    /// The beginning of a variant that holds something.
    fn variant(self, variant: &'static str) -> Result<Writer<'a>> {
        self.0.push(b'{');
        Writer(self.0).text(variant)?;
        self.0.push(b':');
        Ok(self)
    }
}

/// Writes the parts of a value.
struct Parts<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
    /// The one part is text, and it is the value.
    verbatim: bool,
    close: &'static str,
}

impl Parts<'_> {
    #[inline]
    fn comma(&mut self) {
        if !self.first {
            self.out.push(b',');
        }
        self.first = false;
    }

    #[inline]
    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result {
        self.comma();
        value.serialize(Writer(self.out))
    }

    /// Within the code that serde derives, where the name is known.
    #[inline(always)]
    fn field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result {
        if self.verbatim {
            return self.text_within(value);
        }
        if is_plain(name.as_bytes()) {
            let open: &[u8] = if self.first { b"\"" } else { b",\"" };
            self.first = false;
            join(self.out, [open, name.as_bytes(), b"\":"]);
        } else {
            self.comma();
            Writer(self.out).by_serde_json(name)?;
            self.out.push(b':');
        }
        value.serialize(Writer(self.out))
    }

    #[cold]
    fn text_within<T: Serialize + ?Sized>(&mut self, value: &T) -> Result {
        let start = self.out.len();
        value.serialize(Writer(self.out))?;
        let text: String = serde_json::from_slice(&self.out[start..])?;
        self.out.truncate(start);
        self.out.extend_from_slice(text.as_bytes());
        Ok(())
    }

    #[inline]
    fn close(self) -> Result {
        Writer(self.out).word(self.close)
    }
}

macro_rules! integers {
    ($($method:ident: $type:ty),*) => {
        $(
            #[inline]
            fn $method(self, integer: $type) -> Result {
                self.integer(integer)
            }
        )*
    };
}

macro_rules! by_serde_json {
    ($($method:ident: $type:ty),*) => {
        $(
            fn $method(self, value: $type) -> Result {
                self.by_serde_json(&value)
            }
        )*
    };
}

impl<'a> Serializer for Writer<'a> {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Parts<'a>;
    type SerializeTuple = Parts<'a>;
    type SerializeTupleStruct = Parts<'a>;
    type SerializeTupleVariant = Parts<'a>;
    type SerializeMap = Parts<'a>;
    type SerializeStruct = Parts<'a>;
    type SerializeStructVariant = Parts<'a>;

    integers!(
        serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64,
        serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64
    );

    by_serde_json!(
        serialize_i128: i128, serialize_u128: u128, serialize_f32: f32, serialize_f64: f64
    );

    #[inline]
    fn serialize_bool(self, value: bool) -> Result {
        self.word(if value { "true" } else { "false" })
    }

    fn serialize_char(self, value: char) -> Result {
        self.text(value.encode_utf8(&mut [0; 4]))
    }

    #[inline]
    fn serialize_str(self, text: &str) -> Result {
        self.text(text)
    }

    fn serialize_bytes(self, bytes: &[u8]) -> Result {
        self.by_serde_json(bytes)
    }

    #[inline]
    fn serialize_none(self) -> Result {
        self.word("null")
    }

    #[inline]
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result {
        self.word("null")
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result {
        self.word("null")
    }

    #[inline]
    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result {
        self.text(variant)
    }

    #[inline]
    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result {
        let writer = self.variant(variant)?;
        value.serialize(Writer(writer.0))?;
        writer.word("}")
    }

    #[inline]
    fn serialize_seq(self, _: Option<usize>) -> Result<Parts<'a>> {
        Ok(self.parts(b'[', "]"))
    }

    fn serialize_tuple(self, _: usize) -> Result<Parts<'a>> {
        Ok(self.parts(b'[', "]"))
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Parts<'a>> {
        Ok(self.parts(b'[', "]"))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Parts<'a>> {
        Ok(self.variant(variant)?.parts(b'[', "]}"))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Parts<'a>> {
        Ok(self.parts(b'{', "}"))
    }

    #[inline]
    fn serialize_struct(self, name: &'static str, _: usize) -> Result<Parts<'a>> {
        if name.starts_with(VERBATIM) {
            return Ok(Parts { out: self.0, first: true, verbatim: true, close: "" });
        }
        Ok(self.parts(b'{', "}"))
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Parts<'a>> {
        Ok(self.variant(variant)?.parts(b'{', "}}"))
    }
}

macro_rules! parts {
    ($($trait:ident: $method:ident($($name:ident: $type:ty)?) = $write:ident),*) => {
        $(
            impl $trait for Parts<'_> {
                type Ok = ();
                type Error = Error;

                #[inline(always)]
                fn $method<T: Serialize + ?Sized>(&mut self, $($name: $type,)? value: &T) -> Result {
                    self.$write($($name,)? value)
                }

                #[inline]
                fn end(self) -> Result {
                    self.close()
                }
            }
        )*
    };
}

parts!(
    SerializeSeq: serialize_element() = element,
    SerializeTuple: serialize_element() = element,
    SerializeTupleStruct: serialize_field() = element,
    SerializeTupleVariant: serialize_field() = element,
    SerializeStruct: serialize_field(name: &'static str) = field,
    SerializeStructVariant: serialize_field(name: &'static str) = field
);

impl SerializeMap for Parts<'_> {
    type Ok = ();
    type Error = Error;

    /// A key may be much else than a string: `serde_json` begins a map with it, and the beginning becomes
    /// what is due here.
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result {
        let start = self.out.len();
        serde_json::Serializer::new(&mut *self.out).serialize_map(None)?.serialize_key(key)?;
        if self.first {
            self.out.remove(start);
        } else {
            self.out[start] = b',';
        }
        self.first = false;
        Ok(())
    }

    #[inline]
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result {
        self.out.push(b':');
        value.serialize(Writer(self.out))
    }

    fn end(self) -> Result {
        self.close()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json, value::RawValue};

    use super::*;

    #[track_caller]
    fn same<T: Serialize + ?Sized>(value: &T) {
        let mut out = b"before".to_vec();
        write(value, &mut out).unwrap();
        let expected = serde_json::to_string(value).unwrap();
        assert_eq!(std::str::from_utf8(&out).unwrap(), format!("before{expected}"));
    }

    #[derive(Serialize)]
    enum Kind {
        Unit,
        New(u8),
        Tuple(bool, char),
        Fields { a: Option<i8>, b: () },
    }

    #[derive(Serialize)]
    struct Pair(i128, f32);

    #[derive(Serialize)]
    struct Empty {}

    #[derive(Serialize)]
    struct Named<'a> {
        #[serde(rename = "a \"name\" \\ é")]
        odd: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        skipped: Option<u8>,
        #[serde(flatten)]
        rest: BTreeMap<i32, f64>,
        kinds: Vec<Kind>,
    }

    #[test]
    fn digits_are_those_of_the_number() {
        let edges = (0..8).flat_map(|power| {
            let ten = 10_u32.pow(power);
            [ten - 1, ten, ten + 1]
        });
        for number in edges.chain((0..100_000_000).step_by(997)).chain([99_999_999]) {
            let mut out = b"x".to_vec();
            append_digits(&mut out, number);
            assert_eq!(String::from_utf8(out).unwrap(), format!("x{number}"));
        }
    }

    #[test]
    fn every_shape_is_as_serde_json_writes_it() {
        let kinds =
            vec![Kind::Unit, Kind::New(7), Kind::Tuple(true, '"'), Kind::Fields { a: None, b: () }];
        let rest = BTreeMap::from([(-1, 1.5), (0, f64::NAN), (7, 1e300)]);
        same(&Named { odd: "\u{1}", skipped: None, rest, kinds });
        same(&Pair(i128::MIN, 0.1));
        same(&Empty {});
        same(&(i8::MIN, u8::MAX, i16::MIN, u16::MAX, i32::MIN, u32::MAX, i64::MIN, u64::MAX));
        same(&(u128::MAX, f64::MIN_POSITIVE, -0.0, f32::INFINITY, 'ß', (), [(); 0]));
        same(&BTreeMap::from([("a", 1), ("\n", 2)]));
        same(&BTreeMap::from([(Some('x'), vec![Some(1), None]), (Some('y'), vec![])]));
        same(&BTreeMap::from([(false, BTreeMap::<u64, ()>::new()), (true, BTreeMap::new())]));
        same(&json!({"a": [1, -1, 2.5, null, true, {"b": {}}], "": "é\u{7f}\u{2028}"}));
        same(&serde_json::from_str::<Value>("[18446744073709551615, 1e-7, [[]]]").unwrap());
        same(&RawValue::from_string("{ \"as\" : \"it is\" }".to_owned()).unwrap());
        let keys = BTreeMap::from([(vec![1], 1)]);
        let error = write(&keys, &mut Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), serde_json::to_vec(&keys).unwrap_err().to_string());
    }

    #[test]
    fn strings_of_every_length_are_escaped_where_they_must_be() {
        for length in 0..40 {
            same(&"x".repeat(length));
            for at in 0..length {
                for odd in (0..=0x20).chain([0x21, 0x22, 0x23, 0x5b, 0x5c, 0x5d, 0x7f, 0xe9]) {
                    let odd = char::from(odd);
                    let around = ['a', '!', '\u{7f}', '\u{80}'][(length + at) % 4];
                    let text: String =
                        (0..length).map(|i| if i == at { odd } else { around }).collect();
                    same(&text);
                }
            }
        }
    }
}
