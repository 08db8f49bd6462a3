//! The one encoding of state keys, which every language's SDK and the host share: a subset of
//! FoundationDB's tuple layer
//! (<https://github.com/apple/foundationdb/blob/main/design/tuple.md>), specified byte by byte in
//! `host/docs/state-encoding.md`.
//!
//! **Invariant:** the order of encoded keys, byte by byte, is the order of their parts, so that a scan
//! of bytes is a scan of values. **Invariant:** a key has one encoding: whatever decodes encodes to the
//! same bytes again. **Invariant:** an encoded list of parts is a prefix of every longer list that
//! begins with the same parts, and of no other.

#![warn(missing_docs)]

#[cfg(feature = "json")]
mod json;

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

#[cfg(feature = "json")]
pub use json::{base64_decode, base64_encode, parse_text, show_text, to_json};

const NULL: u8 = 0x00;
const BYTES: u8 = 0x01;
const UTF8: u8 = 0x02;
const ZERO: u8 = 0x14;
const F64: u8 = 0x21;
const FALSE: u8 = 0x26;
const TRUE: u8 = 0x27;
const ESCAPE: u8 = 0xff;

/// Why bytes, a type's name or a text are not a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes end within a part.
    #[error("the key ends in the middle of its part {part}")]
    Truncated {
        /// The part, counted from 0.
        part: usize,
    },
    /// A byte that begins no part.
    #[error("part {part} of the key begins with {code:#04x}, which is no type of a key part")]
    UnknownType {
        /// The part, counted from 0.
        part: usize,
        /// The byte.
        code: u8,
    },
    /// An integer that is not in its shortest form, or does not fit 64 bits.
    #[error("part {part} of the key is an integer in a form that the encoding does not write")]
    NotCanonical {
        /// The part, counted from 0.
        part: usize,
    },
    /// A text that is not UTF-8.
    #[error("part {part} of the key should be text and is not UTF-8")]
    NotUtf8 {
        /// The part, counted from 0.
        part: usize,
    },
    /// Parts that are not what the store declares.
    #[error("the key does not fit its store: expected {expected}, found {found}")]
    Mismatch {
        /// The declared types.
        expected: String,
        /// What the key is instead.
        found: String,
    },
    /// Text from outside that is no key of these types.
    #[error("{text:?} is not a key of this store: {help}")]
    Text {
        /// The beginning of the text.
        text: String,
        /// What to write instead.
        help: String,
    },
    /// A name that is no type.
    #[error("{0:?} is not a type of a key part: use utf8, bytes, i64, f64 or bool")]
    TypeName(String),
}

/// The type of a key's part, as stores declare it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PartType {
    /// UTF-8 text, in the order of its bytes (which is that of its code points).
    Utf8,
    /// Bytes.
    Bytes,
    /// A signed integer of 64 bits.
    I64,
    /// A floating-point number in IEEE 754's total order: -0 before 0, NaN at the ends.
    F64,
    /// false before true.
    Bool,
}

impl PartType {
    /// The name that `describe` uses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Utf8 => "utf8",
            Self::Bytes => "bytes",
            Self::I64 => "i64",
            Self::F64 => "f64",
            Self::Bool => "bool",
        }
    }
}

impl fmt::Display for PartType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for PartType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        [Self::Utf8, Self::Bytes, Self::I64, Self::F64, Self::Bool]
            .into_iter()
            .find(|t| t.as_str() == name)
            .ok_or_else(|| Error::TypeName(name.chars().take(40).collect()))
    }
}

/// One part of a key.
#[derive(Debug, Clone, PartialEq)]
pub enum Part<'a> {
    /// No value; before all others.
    Null,
    /// Bytes.
    Bytes(Cow<'a, [u8]>),
    /// Text.
    Utf8(Cow<'a, str>),
    /// An integer.
    I64(i64),
    /// A floating-point number.
    F64(f64),
    /// A truth value.
    Bool(bool),
}

impl Part<'_> {
    /// The part's type; `None` for null.
    pub fn part_type(&self) -> Option<PartType> {
        match self {
            Self::Null => None,
            Self::Bytes(_) => Some(PartType::Bytes),
            Self::Utf8(_) => Some(PartType::Utf8),
            Self::I64(_) => Some(PartType::I64),
            Self::F64(_) => Some(PartType::F64),
            Self::Bool(_) => Some(PartType::Bool),
        }
    }

    /// Appends the part's encoding to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => push_null(out),
            Self::Bytes(bytes) => push_bytes(out, bytes),
            Self::Utf8(text) => push_utf8(out, text),
            Self::I64(number) => push_i64(out, *number),
            Self::F64(number) => push_f64(out, *number),
            Self::Bool(value) => push_bool(out, *value),
        }
    }
}

/// The encoding of a list of parts.
pub fn encode(parts: &[Part<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    parts.iter().for_each(|part| part.encode(&mut out));
    out
}

/// The parts of an encoded key.
pub fn decode(key: &[u8]) -> Result<Vec<Part<'_>>, Error> {
    let mut reader = Reader::new(key);
    let mut parts = Vec::new();
    while !reader.is_at_end() {
        parts.push(reader.next_part()?);
    }
    Ok(parts)
}

/// The parts of an encoded key, which must be of the declared types (any of them may be null).
pub fn decode_as<'a>(key: &'a [u8], types: &[PartType]) -> Result<Vec<Part<'a>>, Error> {
    let parts = decode(key)?;
    let fits = parts.len() == types.len()
        && parts.iter().zip(types).all(|(part, t)| part.part_type().is_none_or(|p| p == *t));
    if fits {
        return Ok(parts);
    }
    let found = parts.iter().map(|p| p.part_type().map_or("null", PartType::as_str));
    Err(Error::Mismatch { expected: list(types.iter().map(|t| t.as_str())), found: list(found) })
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    format!("[{}]", names.collect::<Vec<_>>().join(", "))
}

/// The least key after all keys that begin with the parts of `prefix`: the `end` of a scan.
pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    // No part begins with 0xff, so this is above every longer list of parts.
    end.push(ESCAPE);
    end
}

/// Appends a null.
pub fn push_null(out: &mut Vec<u8>) {
    out.push(NULL);
}

/// Appends bytes.
pub fn push_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(BYTES);
    push_terminated(out, bytes);
}

/// Appends text.
pub fn push_utf8(out: &mut Vec<u8>, text: &str) {
    out.push(UTF8);
    push_terminated(out, text.as_bytes());
}

/// Whether text is encoded as it is, and a zero behind it: ASCII without zeros. Of many texts at once it is
/// told faster than of each.
pub fn is_plain(texts: &[u8]) -> bool {
    texts.is_ascii() && find_zero(texts).is_none()
}

/// Appends text that [`is_plain`].
#[inline]
pub fn push_plain(out: &mut Vec<u8>, text: &[u8]) {
    out.push(UTF8);
    append(out, text);
    out.push(0);
}

/// Appends `bytes`, each zero followed by 0xff, and a zero at the end.
fn push_terminated(out: &mut Vec<u8>, bytes: &[u8]) {
    let mut rest = bytes;
    while let Some(zero) = find_zero(rest) {
        append(out, &rest[..=zero]);
        out.push(ESCAPE);
        rest = &rest[zero + 1..];
    }
    append(out, rest);
    out.push(0);
}

/// The place of the first zero. Keys have none as a rule, and words tell so.
fn find_zero(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    let has_zero = |word: &[u8; 8]| {
        let word = u64::from_ne_bytes(*word);
        word.wrapping_sub(ONES) & !word & (ONES << 7) != 0
    };
    let (words, rest) = bytes.as_chunks::<8>();
    if !words.iter().any(has_zero) && !rest.contains(&0) {
        return None;
    }
    bytes.iter().position(|&byte| byte == 0)
}

/// Appends `bytes`. In a sandbox a copy whose length the compiler does not know is a call to the host,
/// which for a few bytes costs more than all else that is done with them: these are moved in words.
#[inline]
pub fn append(out: &mut Vec<u8>, bytes: &[u8]) {
    let n = bytes.len();
    let (first, last) = match (bytes.first_chunk::<8>(), bytes.last_chunk::<8>()) {
        (Some(first), Some(last)) if n < 16 => (u64::from_le_bytes(*first), *last),
        (Some(_), Some(_)) => return append_many(out, bytes),
        _ => (last_word(bytes), [0; 8]),
    };
    out.reserve(16);
    // SAFETY: there is room for two words, in which all bytes are: from the front, and up to the end.
    unsafe {
        let room = out.as_mut_ptr().add(out.len());
        room.cast::<[u8; 8]>().write(first.to_le_bytes());
        if n > 8 {
            room.add(n - 8).cast::<[u8; 8]>().write(last);
        }
        out.set_len(out.len() + n);
    }
}

/// Appends sixteen bytes or more.
fn append_many(out: &mut Vec<u8>, bytes: &[u8]) {
    const FEW: usize = 128;
    if bytes.len() > FEW {
        return out.extend_from_slice(bytes);
    }
    out.reserve(bytes.len());
    let word = |at: usize| bytes[at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
    // SAFETY: there is room for the bytes, and what is written ends where they do.
    unsafe {
        let room = out.as_mut_ptr().add(out.len());
        let put = |at: usize, word: u64| room.add(at).cast::<[u8; 8]>().write(word.to_le_bytes());
        // Two words a round: the compiler makes a loop of one the very copy that this is not to be.
        for at in (0..bytes.len() - 15).step_by(16) {
            put(at, word(at));
            put(at + 8, word(at + 8));
        }
        put(bytes.len() - 16, word(bytes.len() - 16));
        put(bytes.len() - 8, word(bytes.len() - 8));
        out.set_len(out.len() + bytes.len());
    }
}

/// Appends the first `length` bytes, at most all, of words that are written lowest byte first.
#[inline]
pub fn append_words(out: &mut Vec<u8>, &[a, b, c]: &[u64; 3], length: usize) {
    assert!(length <= 24);
    out.reserve(24);
    let room = out.spare_capacity_mut().as_mut_ptr().cast::<[u8; 8]>();
    // SAFETY: there is room for all words, and no more than they are is counted in.
    unsafe {
        room.write(a.to_le_bytes());
        room.add(1).write(b.to_le_bytes());
        room.add(2).write(c.to_le_bytes());
        out.set_len(out.len() + length);
    }
}

/// What is behind the last whole word of eight bytes: a word of its own, lowest byte first, zero beyond.
#[inline]
pub fn last_word(bytes: &[u8]) -> u64 {
    let n = bytes.len();
    let byte = |i: usize| u64::from(bytes[i]) << (8 * i);
    let half = |half: &[u8; 4]| u64::from(u32::from_le_bytes(*half));
    match (n % 8, bytes.last_chunk::<8>(), bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
        (0, ..) => 0,
        (rest, Some(last), ..) => u64::from_le_bytes(*last) >> (64 - 8 * rest),
        // Two halves that overlap, and bytes of which some are the same.
        (_, None, Some(first), Some(last)) => half(first) | half(last) << (8 * (n - 4)),
        (..) => byte(0) | byte(n / 2) | byte(n - 1),
    }
}

/// Appends an integer: its length and sign in the type byte, then the shortest big-endian form, of
/// which negative numbers take the one's complement.
pub fn push_i64(out: &mut Vec<u8>, number: i64) {
    let magnitude = number.unsigned_abs();
    let length = 8 - magnitude.leading_zeros() as usize / 8;
    let (code, bytes) = if number < 0 {
        (ZERO - length as u8, (!magnitude).to_be_bytes())
    } else {
        (ZERO + length as u8, magnitude.to_be_bytes())
    };
    out.push(code);
    out.extend_from_slice(&bytes[8 - length..]);
}

/// Appends a floating-point number: big-endian, all bits flipped if negative, else only the sign.
pub fn push_f64(out: &mut Vec<u8>, number: f64) {
    let bits = number.to_bits();
    let flipped = if bits >> 63 == 1 { !bits } else { bits | 1 << 63 };
    out.push(F64);
    out.extend_from_slice(&flipped.to_be_bytes());
}

/// Appends a truth value.
pub fn push_bool(out: &mut Vec<u8>, value: bool) {
    out.push(if value { TRUE } else { FALSE });
}

/// Reads an encoded key part by part.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
    part: usize,
}

impl<'a> Reader<'a> {
    /// A reader at the beginning of `key`.
    pub fn new(key: &'a [u8]) -> Self {
        Self { rest: key, part: 0 }
    }

    /// Whether all parts were read.
    pub fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next part; an error at the end and for bytes that the encoding does not write.
    pub fn next_part(&mut self) -> Result<Part<'a>, Error> {
        let part = self.part;
        let (&code, rest) = self.rest.split_first().ok_or(Error::Truncated { part })?;
        self.rest = rest;
        let value = match code {
            NULL => Part::Null,
            BYTES => Part::Bytes(self.terminated()?),
            UTF8 => Part::Utf8(self.text()?),
            0x0c..=0x1c => Part::I64(self.integer(code)?),
            F64 => {
                let bits = u64::from_be_bytes(self.take()?);
                let bits = if bits >> 63 == 1 { bits & !(1 << 63) } else { !bits };
                Part::F64(f64::from_bits(bits))
            }
            FALSE => Part::Bool(false),
            TRUE => Part::Bool(true),
            code => return Err(Error::UnknownType { part, code }),
        };
        self.part += 1;
        Ok(value)
    }

    fn take(&mut self) -> Result<[u8; 8], Error> {
        let (bytes, rest) =
            self.rest.split_first_chunk().ok_or(Error::Truncated { part: self.part })?;
        self.rest = rest;
        Ok(*bytes)
    }

    fn terminated(&mut self) -> Result<Cow<'a, [u8]>, Error> {
        let mut joined: Cow<'a, [u8]> = Cow::Borrowed(&[]);
        loop {
            let zero = self.rest.iter().position(|&b| b == 0);
            let zero = zero.ok_or(Error::Truncated { part: self.part })?;
            let escaped = self.rest.get(zero + 1) == Some(&ESCAPE);
            let piece = &self.rest[..zero + usize::from(escaped)];
            self.rest = &self.rest[zero + 1 + usize::from(escaped)..];
            match &mut joined {
                Cow::Borrowed([]) if !escaped => joined = Cow::Borrowed(piece),
                joined => joined.to_mut().extend_from_slice(piece),
            }
            if !escaped {
                return Ok(joined);
            }
        }
    }

    fn text(&mut self) -> Result<Cow<'a, str>, Error> {
        let error = Error::NotUtf8 { part: self.part };
        match self.terminated()? {
            Cow::Borrowed(bytes) => {
                std::str::from_utf8(bytes).map(Cow::Borrowed).map_err(|_| error)
            }
            Cow::Owned(bytes) => String::from_utf8(bytes).map(Cow::Owned).map_err(|_| error),
        }
    }

    fn integer(&mut self, code: u8) -> Result<i64, Error> {
        let part = self.part;
        let negative = code < ZERO;
        let length = code.abs_diff(ZERO) as usize;
        let bytes = self.rest.get(..length).ok_or(Error::Truncated { part })?;
        self.rest = &self.rest[length..];
        let mut all = if negative { [0xff; 8] } else { [0; 8] };
        all[8 - length..].copy_from_slice(bytes);
        let bits = u64::from_be_bytes(all);
        let magnitude = if negative { !bits } else { bits };
        let number = if negative {
            0i64.checked_sub_unsigned(magnitude)
        } else {
            i64::try_from(magnitude).ok()
        };
        let shortest = 8 - magnitude.leading_zeros() as usize / 8 == length;
        number.filter(|_| shortest).ok_or(Error::NotCanonical { part })
    }
}

#[cfg(test)]
mod tests;
