//! JSON as it is read.
//!
//! A [`Reader`] knows what most values are made of: objects, arrays, strings without escapes, integers,
//! literals. A part of any other kind (a string with escapes, a number with a fraction) is found and given to
//! `serde_json`; and where anything is not as expected, `serde_json` reads the whole text anew and says so.

use serde::Deserialize;
use serde::de::value::BorrowedStrDeserializer;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Error;

use super::{ONES, VERBATIM, special};

/// How deep arrays and objects are read here. `serde_json` allows a little more.
const DEEPEST: u32 = 100;

/// The digits of the longest integers that are read here: none of so many is beyond a `u64`.
const DIGITS: usize = 19;

/// The value of a text that is JSON.
pub(crate) fn read<'de, T: Deserialize<'de>>(text: &'de str) -> Result<T, Error> {
    let mut reader = Reader { text, at: 0, depth: 0 };
    match T::deserialize(&mut reader) {
        Ok(value) if reader.peek().is_none() => Ok(value),
        _ => serde_json::from_str(text),
    }
}

/// A text was not read to its end here. Why, `serde_json` says.
#[derive(Debug)]
struct Unread;

impl std::fmt::Display for Unread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("not read")
    }
}

impl std::error::Error for Unread {}

impl de::Error for Unread {
    fn custom<T: std::fmt::Display>(_: T) -> Self {
        Self
    }
}

impl From<Error> for Unread {
    fn from(_: Error) -> Self {
        Self
    }
}

type Read<T = ()> = Result<T, Unread>;

/// A string of a text.
enum Text<'de> {
    /// What is between its quotes, as it is.
    Plain(&'de str),
    /// All of it, with its quotes: it has escapes.
    Escaped(&'de str),
}

/// Reads a text from its beginning.
struct Reader<'de> {
    text: &'de str,
    /// The byte that comes next.
    at: usize,
    /// How many arrays and objects it is in.
    depth: u32,
}

impl<'de> Reader<'de> {
    #[inline]
    fn byte(&self, at: usize) -> Option<u8> {
        self.text.as_bytes().get(at).copied()
    }

    /// The next byte that is not blank; `None` at the end.
    #[inline]
    fn peek(&mut self) -> Option<u8> {
        match self.byte(self.at) {
            Some(byte) if byte > b' ' => Some(byte),
            _ => self.behind_blanks(),
        }
    }

    #[inline(never)]
    fn behind_blanks(&mut self) -> Option<u8> {
        loop {
            match self.byte(self.at) {
                Some(b' ' | b'\n' | b'\t' | b'\r') => self.at += 1,
                other => return other,
            }
        }
    }

    #[inline]
    fn expect(&mut self, byte: u8) -> Read {
        (self.peek() == Some(byte)).then(|| self.at += 1).ok_or(Unread)
    }

    #[inline]
    fn literal(&mut self, literal: &str) -> Read {
        self.peek();
        let found = self.text.as_bytes()[self.at..].starts_with(literal.as_bytes());
        found.then(|| self.at += literal.len()).ok_or(Unread)
    }

    /// The next byte, from `at`, that cannot be in a string as it is.
    #[inline]
    fn end_of_plain(&self, mut at: usize) -> Read<usize> {
        let bytes = self.text.as_bytes();
        while let Some(word) = bytes.get(at..).and_then(|rest| rest.first_chunk()) {
            let found = special(u64::from_le_bytes(*word));
            if found != 0 {
                return Ok(at + found.trailing_zeros() as usize / 8);
            }
            at += 8;
        }
        let is_special = |byte: &u8| matches!(byte, 0..0x20 | b'"' | b'\\');
        let rest = bytes.get(at..).ok_or(Unread)?;
        rest.iter().position(is_special).map(|found| at + found).ok_or(Unread)
    }

    #[inline]
    fn string(&mut self) -> Read<Text<'de>> {
        self.expect(b'"')?;
        let start = self.at;
        let end = self.end_of_plain(start)?;
        if self.byte(end) != Some(b'"') {
            return self.escaped(start, end);
        }
        self.at = end + 1;
        // SAFETY: it is between two quotes of the text, which are letters of their own.
        Ok(Text::Plain(unsafe { self.text.get_unchecked(start..end) }))
    }

    /// The string that begins before `start`, of which `at` is the first byte that is special.
    #[cold]
    fn escaped(&mut self, start: usize, mut at: usize) -> Read<Text<'de>> {
        while self.byte(at) == Some(b'\\') {
            at = self.end_of_plain(at + 2)?;
        }
        (self.byte(at) == Some(b'"')).then_some(()).ok_or(Unread)?;
        self.at = at + 1;
        self.text.get(start - 1..self.at).map(Text::Escaped).ok_or(Unread)
    }

    #[inline]
    fn visit_string<V: Visitor<'de>>(&mut self, visitor: V) -> Read<V::Value> {
        match self.string()? {
            Text::Plain(text) => visitor.visit_borrowed_str(text),
            Text::Escaped(json) => by_serde_json(json, |json| json.deserialize_str(visitor)),
        }
    }

    #[inline]
    fn visit_number<V: Visitor<'de>>(&mut self, visitor: V) -> Read<V::Value> {
        let negative = self.peek() == Some(b'-');
        let start = self.at + usize::from(negative);
        let (mut end, mut number) = self.first_digits(start);
        // Else something else follows.
        if end == start || end == start + 8 {
            while let Some(digit @ b'0'..=b'9') = self.byte(end) {
                number = number.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
                end += 1;
            }
        }
        let digits = end - start;
        // Also a number with a zero before it, which is none; and -0, which is not an integer.
        let odd = digits == 0
            || digits >= DIGITS + usize::from(!negative)
            || (digits > 1 || negative) && self.byte(start) == Some(b'0')
            || matches!(self.byte(end), Some(b'.' | b'e' | b'E'));
        if odd {
            return self.visit_odd_number(visitor);
        }
        self.at = end;
        match negative {
            true => visitor.visit_i64(-(number as i64)),
            false => visitor.visit_u64(number),
        }
    }

    /// The end of the digits at `at`, of eight at most, and their number; `at` and 0 where fewer than
    /// eight bytes are left.
    #[inline]
    fn first_digits(&self, at: usize) -> (usize, u64) {
        let Some(word) = self.text.as_bytes().get(at..).and_then(|rest| rest.first_chunk()) else {
            return (at, 0);
        };
        let digits = u64::from_le_bytes(*word) ^ (0x30 * ONES);
        // The high bit of each byte that is no digit, and perhaps of some behind the first of them.
        let others = (digits.wrapping_add(0x76 * ONES) | digits) & (0x80 * ONES);
        let bits = others.trailing_zeros() & !7;
        if bits == 0 {
            return (at, 0);
        }
        // Zeros before them make them eight; then neighbours are joined three times.
        let pairs =
            ((digits << (64 - bits)).wrapping_mul(10 << 8 | 1) >> 8) & 0x00ff_00ff_00ff_00ff;
        let fours = (pairs.wrapping_mul(100 << 16 | 1) >> 16) & 0x0000_ffff_0000_ffff;
        (at + bits as usize / 8, fours.wrapping_mul(10_000 << 32 | 1) >> 32)
    }

    #[cold]
    fn visit_odd_number<V: Visitor<'de>>(&mut self, visitor: V) -> Read<V::Value> {
        let rest = &self.text[self.at..];
        let other = |c: char| !matches!(c, '0'..='9' | '-' | '+' | '.' | 'e' | 'E');
        let number = &rest[..rest.find(other).unwrap_or(rest.len())];
        self.at += number.len();
        by_serde_json(number, |json| json.deserialize_any(visitor))
    }

    #[inline]
    fn visit_array<V: Visitor<'de>>(&mut self, visitor: V) -> Read<V::Value> {
        let value = self.within(b'[', |parts| visitor.visit_seq(parts))?;
        self.expect(b']')?;
        Ok(value)
    }

    #[inline]
    fn visit_object<V: Visitor<'de>>(&mut self, visitor: V) -> Read<V::Value> {
        let value = self.within(b'{', |parts| visitor.visit_map(parts))?;
        self.expect(b'}')?;
        Ok(value)
    }

    #[inline]
    fn within<T>(&mut self, open: u8, read: impl FnOnce(Parts<'_, 'de>) -> Read<T>) -> Read<T> {
        self.expect(open)?;
        self.depth += 1;
        (self.depth < DEEPEST).then_some(()).ok_or(Unread)?;
        let value = read(Parts { reader: self, first: true })?;
        self.depth -= 1;
        Ok(value)
    }

    /// Reads a value of any kind that nobody wants.
    #[inline]
    fn skip(&mut self) -> Read {
        match self.peek() {
            Some(b'"') => match self.string()? {
                Text::Plain(_) => Ok(()),
                Text::Escaped(json) => {
                    by_serde_json(json, |json| json.deserialize_ignored_any(IgnoredAny)).map(drop)
                }
            },
            _ => self.deserialize_any(IgnoredAny).map(drop),
        }
    }

    /// Has the next value read by `serde_json`.
    fn whole<T>(&mut self, read: impl FnOnce(&mut Json<'de>) -> Result<T, Error>) -> Read<T> {
        self.peek();
        let start = self.at;
        self.skip()?;
        by_serde_json(&self.text[start..self.at], read)
    }
}

type Json<'de> = serde_json::Deserializer<serde_json::de::StrRead<'de>>;

/// What `read` makes of a text that is one value.
#[cold]
fn by_serde_json<'de, T>(
    text: &'de str,
    read: impl FnOnce(&mut Json<'de>) -> Result<T, Error>,
) -> Read<T> {
    let mut json = serde_json::Deserializer::from_str(text);
    let value = read(&mut json)?;
    json.end()?;
    Ok(value)
}

macro_rules! visit {
    ($($visit:ident: $($method:ident($($name:ident: $type:ty),*))*;)*) => {
        $($(
            #[inline]
            fn $method<V: Visitor<'de>>(self, $($name: $type,)* visitor: V) -> Read<V::Value> {
                self.$visit(visitor)
            }
        )*)*
    };
}

macro_rules! whole {
    ($($method:ident)*) => {
        $(
            fn $method<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
                self.whole(|json| json.$method(visitor))
            }
        )*
    };
}

impl<'de> Deserializer<'de> for &mut Reader<'de> {
    type Error = Unread;

    visit! {
        visit_number: deserialize_i8() deserialize_i16() deserialize_i32() deserialize_i64()
            deserialize_u8() deserialize_u16() deserialize_u32() deserialize_u64() deserialize_f64();
        visit_string: deserialize_char() deserialize_str() deserialize_string() deserialize_identifier();
        visit_array: deserialize_seq() deserialize_tuple(_length: usize)
            deserialize_tuple_struct(_name: &'static str, _length: usize);
        visit_object: deserialize_map();
    }

    whole!(deserialize_i128 deserialize_u128 deserialize_f32 deserialize_bytes deserialize_byte_buf);

    #[inline]
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        match self.peek() {
            Some(b'"') => self.visit_string(visitor),
            Some(b'{') => self.visit_object(visitor),
            Some(b'[') => self.visit_array(visitor),
            Some(b't' | b'f') => self.deserialize_bool(visitor),
            Some(b'n') => self.deserialize_unit(visitor),
            _ => self.visit_number(visitor),
        }
    }

    #[inline]
    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        let value = self.peek() == Some(b't');
        self.literal(if value { "true" } else { "false" })?;
        visitor.visit_bool(value)
    }

    #[inline]
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        match self.peek() {
            Some(b'n') => self.literal("null").and_then(|()| visitor.visit_none()),
            _ => visitor.visit_some(self),
        }
    }

    #[inline]
    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        self.literal("null")?;
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Read<V::Value> {
        self.deserialize_unit(visitor)
    }

    #[inline]
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Read<V::Value> {
        match name.starts_with(VERBATIM) {
            true => self.whole(|json| json.deserialize_newtype_struct(name, visitor)),
            false => visitor.visit_newtype_struct(self),
        }
    }

    #[inline]
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Read<V::Value> {
        match self.peek() {
            Some(b'[') => self.visit_array(visitor),
            _ => self.visit_object(visitor),
        }
    }

    #[inline]
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Read<V::Value> {
        if self.peek() != Some(b'"') {
            return self.whole(|json| json.deserialize_enum(name, variants, visitor));
        }
        match self.string()? {
            Text::Plain(variant) => visitor.visit_enum(BorrowedStrDeserializer::new(variant)),
            Text::Escaped(json) => {
                by_serde_json(json, |json| json.deserialize_enum(name, variants, visitor))
            }
        }
    }

    #[inline]
    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        self.skip()?;
        visitor.visit_unit()
    }
}

/// The parts of an array or an object.
struct Parts<'a, 'de> {
    reader: &'a mut Reader<'de>,
    first: bool,
}

impl Parts<'_, '_> {
    /// Whether there is another part, which is next then.
    #[inline]
    fn another(&mut self, close: u8) -> Read<bool> {
        let next = self.reader.peek();
        if next == Some(close) {
            return Ok(false);
        }
        if !std::mem::take(&mut self.first) {
            (next == Some(b',')).then(|| self.reader.at += 1).ok_or(Unread)?;
        }
        Ok(true)
    }
}

impl<'de> SeqAccess<'de> for Parts<'_, 'de> {
    type Error = Unread;

    #[inline]
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Read<Option<T::Value>> {
        match self.another(b']')? {
            true => seed.deserialize(&mut *self.reader).map(Some),
            false => Ok(None),
        }
    }
}

impl<'de> MapAccess<'de> for Parts<'_, 'de> {
    type Error = Unread;

    #[inline]
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Read<Option<K::Value>> {
        match self.another(b'}')? {
            true => seed.deserialize(Key(&mut *self.reader)).map(Some),
            false => Ok(None),
        }
    }

    #[inline]
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Read<V::Value> {
        self.reader.expect(b':')?;
        seed.deserialize(&mut *self.reader)
    }
}

/// A key of an object. Where it is wanted as anything but a string, `serde_json` has its ways.
struct Key<'a, 'de>(&'a mut Reader<'de>);

macro_rules! unread {
    ($($method:ident)*) => {
        $(
            fn $method<V: Visitor<'de>>(self, _: V) -> Read<V::Value> {
                Err(Unread)
            }
        )*
    };
}

impl<'de> Deserializer<'de> for Key<'_, 'de> {
    type Error = Unread;

    #[inline]
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        self.0.visit_string(visitor)
    }

    #[inline]
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Read<V::Value> {
        match name.starts_with(VERBATIM) {
            true => Err(Unread),
            false => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        _: V,
    ) -> Read<V::Value> {
        Err(Unread)
    }

    unread! {
        deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128 deserialize_f32
        deserialize_f64 deserialize_bytes deserialize_byte_buf deserialize_option
    }

    serde::forward_to_deserialize_any! {
        char str string unit unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt::Debug;

    use serde_json::Value;
    use serde_json::value::RawValue;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
    #[serde(rename_all = "lowercase")]
    enum Kind {
        Unit,
        New(u8),
        Tuple(bool, char),
        Fields { a: Option<i8> },
    }

    #[expect(dead_code, reason = "only shown")]
    #[derive(Debug, Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(i64),
        Pair(f64, Option<bool>),
        Text(String),
    }

    #[derive(Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
    struct Id<'a>(&'a str);

    #[expect(dead_code, reason = "only shown")]
    #[derive(Debug, Deserialize)]
    struct Sale<'a> {
        level: &'a str,
        user: u64,
        #[serde(borrow)]
        id: Option<Id<'a>>,
    }

    #[expect(dead_code, reason = "only shown")]
    #[derive(Debug, Deserialize)]
    struct Flat {
        a: Value,
        #[serde(flatten)]
        rest: BTreeMap<String, Either>,
    }

    /// What a text is as a `T`, also where that is an error, is what `serde_json` says.
    fn same<'de, T: Debug + Deserialize<'de>>(text: &'de str, seed: u64) {
        let shown = |read: Result<T, Error>| format!("{:?}", read.map_err(|e| e.to_string()));
        let (got, expected) = (shown(read(text)), shown(serde_json::from_str(text)));
        assert_eq!(got, expected, "{text:?}, seed {seed}");
    }

    fn same_as_all(text: &str, seed: u64) {
        same::<Value>(text, seed);
        same::<Kind>(text, seed);
        same::<Vec<Kind>>(text, seed);
        same::<Either>(text, seed);
        same::<Sale<'_>>(text, seed);
        same::<Flat>(text, seed);
        same::<IgnoredAny>(text, seed);
        same::<&RawValue>(text, seed);
        same::<BTreeMap<i8, Vec<Value>>>(text, seed);
        same::<BTreeMap<Id<'_>, Option<()>>>(text, seed);
        same::<BTreeMap<Kind, IgnoredAny>>(text, seed);
        same::<(u8, i64, f32, f64, i128, char)>(text, seed);
        same::<[Option<bool>; 2]>(text, seed);
        same::<&[u8]>(text, seed);
    }

    /// A value of some kind, written as it may be.
    fn value(random: &mut fastrand::Rng, deep: u32) -> String {
        let blank = |random: &mut fastrand::Rng| random.choice(["", "", "", " ", "\n\t"]).unwrap();
        let many = |random: &mut fastrand::Rng, open: &str, close: &str, names: bool| {
            let count = random.u32(0..4);
            let part = |_| {
                let name = [
                    "\"a\"",
                    "\"level\"",
                    "\"user\"",
                    "\"id\"",
                    "\"New\"",
                    "\"fields\"",
                    "\"7\"",
                    "\"\\u0061\"",
                ];
                let name = if names { random.choice(name).unwrap() } else { "" };
                let colon = if names { ":" } else { "" };
                format!(
                    "{}{name}{}{colon}{}",
                    blank(random),
                    blank(random),
                    value(random, deep + 1)
                )
            };
            let parts: Vec<String> = (0..count).map(part).collect();
            format!("{open}{}{}{close}", parts.join(","), blank(random))
        };
        let plain = [
            "0",
            "7",
            "-1",
            "18446744073709551615",
            "18446744073709551616",
            "9999999999999999999",
            "-9223372036854775808",
            "-9223372036854775809",
            "-0",
            "01",
            "1.5",
            "-2e3",
            "1E400",
            "1.",
            "-",
            "true",
            "false",
            "null",
            "nul",
            "\"\"",
            "\"unit\"",
            "\"new\"",
            "\"x\"",
            "\"é and more than a word\"",
            "\"a \\\"word\\\" or two\"",
            "\"\\ud800\"",
            "\"\\ud83d\\ude00\"",
            "\"\\x\"",
            "\"a\nb\"",
            "\"open",
            "\"seven..\"",
            "\"\\\\\"",
            "\"ends with \\",
            "\u{b}",
            "",
        ];
        let value = match random.u32(0..8) {
            0 | 1 if deep < 4 => many(random, "[", "]", false),
            2..=4 if deep < 4 => many(random, "{", "}", true),
            _ => random.choice(plain).unwrap().to_owned(),
        };
        format!("{}{value}{}", blank(random), blank(random))
    }

    /// What texts are spoiled with.
    const ODD: [char; 15] =
        ['[', ']', '{', '}', ':', ',', '"', '\\', ' ', '0', '-', '.', 'e', '\u{1}', 'é'];

    #[test]
    fn digits_end_where_something_else_begins() {
        let digits = |text: &str| Reader { text, at: 0, depth: 0 }.first_digits(1);
        for count in 1..=9 {
            let number = "987654321"[..count].to_owned();
            for behind in
                ["        ", ",1111111", "}       ", "/2222222", ":3333333", "\u{ff}      "]
            {
                let few = count.min(8);
                let expected = (1 + few, number[..few].parse().unwrap());
                assert_eq!(digits(&format!("x{number}{behind}")), expected, "{number}{behind}");
            }
        }
        assert_eq!(digits("x-1234567890"), (1, 0));
        assert_eq!(digits("x1234567"), (1, 0), "fewer than eight bytes are left to others");
    }

    #[test]
    fn every_text_is_what_serde_json_says() {
        for seed in 0..20_000 {
            let random = &mut fastrand::Rng::with_seed(seed);
            let mut text = value(random, 0);
            same_as_all(&text, seed);
            let at = random.usize(0..=text.len());
            if text.is_char_boundary(at) {
                text.insert(at, random.choice(ODD).unwrap());
                same_as_all(&text, seed);
                text.truncate(at);
                same_as_all(&text, seed);
            }
        }
        for depth in [90, 120, 127, 128, 200] {
            same_as_all(&("[".repeat(depth) + &"]".repeat(depth)), 0);
        }
    }

    #[test]
    fn strings_of_every_length_end_where_they_do() {
        for length in 0..40 {
            for at in 0..=length {
                for odd in ["", "é", "\\n", "\\\"", "\\\\", "\"", "\n", "\u{1f}", "\u{7f}", "😀"]
                {
                    let text = format!("[\"{}{odd}{}\"]", "x".repeat(at), "y".repeat(length - at));
                    same::<Vec<&str>>(&text, 0);
                    same::<Vec<String>>(&text, 0);
                }
            }
        }
    }

    /// None of these is left to `serde_json` as a whole.
    #[test]
    fn what_is_usual_is_read_here() {
        fn is_read<'de, T: Debug + Deserialize<'de>>(text: &'de str) {
            let mut reader = Reader { text, at: 0, depth: 0 };
            T::deserialize(&mut reader).unwrap();
            assert_eq!(reader.peek(), None, "{text}");
        }
        is_read::<Sale<'_>>(
            r#"{"level": "warn", "user": 17, "note": "a \"word\"", "more": [1.5, {"x": null}]}"#,
        );
        is_read::<Value>(r#"{"a": [1, -1, 2.5, null, true, {"b": {}}], "": "é\u007f"}"#);
        is_read::<Flat>(r#"{"a": 1, "b": 7, "c": [1.5, true], "d": "x"}"#);
        is_read::<Vec<Kind>>(
            r#"["unit", {"new": 1}, {"tuple": [true, "x"]}, {"fields": {"a": null}}]"#,
        );
        is_read::<(u8, f32, i128, &RawValue)>(r#"[1, 1.5, 7, { "as": "it is" }]"#);
        is_read::<BTreeMap<Id<'_>, Option<()>>>(r#"{"x": null}"#);
    }
}
