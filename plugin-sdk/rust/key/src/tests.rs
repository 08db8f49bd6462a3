//! Golden bytes, order and round trips of the key encoding.

use std::cmp::Ordering;

use super::*;

/// Examples that FoundationDB's specification gives, and the ends of each type.
#[test]
fn bytes_are_those_of_the_specification() {
    let cases: &[(Part<'_>, &[u8])] = &[
        (Part::Null, b"\x00"),
        (Part::Bytes(b"foo\x00bar"[..].into()), b"\x01foo\x00\xffbar\x00"),
        (Part::Utf8("F\u{d4}O\u{0}bar".into()), b"\x02F\xc3\x94O\x00\xffbar\x00"),
        (Part::Utf8("".into()), b"\x02\x00"),
        (Part::I64(0), b"\x14"),
        (Part::I64(1), b"\x15\x01"),
        (Part::I64(255), b"\x15\xff"),
        (Part::I64(256), b"\x16\x01\x00"),
        (Part::I64(-1), b"\x13\xfe"),
        (Part::I64(-5_551_212), b"\x11\xab\x4b\x93"),
        (Part::I64(i64::MAX), b"\x1c\x7f\xff\xff\xff\xff\xff\xff\xff"),
        (Part::I64(i64::MIN), b"\x0c\x7f\xff\xff\xff\xff\xff\xff\xff"),
        (Part::F64(1.0), b"\x21\xbf\xf0\x00\x00\x00\x00\x00\x00"),
        (Part::F64(-1.0), b"\x21\x40\x0f\xff\xff\xff\xff\xff\xff"),
        (Part::Bool(false), b"\x26"),
        (Part::Bool(true), b"\x27"),
    ];
    for (part, bytes) in cases {
        assert_eq!(encode(std::slice::from_ref(part)), *bytes, "{part:?}");
        assert_eq!(decode(bytes).as_deref(), Ok(std::slice::from_ref(part)), "{bytes:x?}");
    }
}

fn rank(part: &Part<'_>) -> u8 {
    part.part_type().map_or(0, |t| match t {
        PartType::Bytes => 1,
        PartType::Utf8 => 2,
        PartType::I64 => 3,
        PartType::F64 => 4,
        PartType::Bool => 5,
    })
}

/// The order that values have without any encoding.
fn compare(a: &Part<'_>, b: &Part<'_>) -> Ordering {
    match (a, b) {
        (Part::Bytes(a), Part::Bytes(b)) => a.cmp(b),
        (Part::Utf8(a), Part::Utf8(b)) => a.cmp(b),
        (Part::I64(a), Part::I64(b)) => a.cmp(b),
        (Part::F64(a), Part::F64(b)) => a.total_cmp(b),
        (Part::Bool(a), Part::Bool(b)) => a.cmp(b),
        _ => rank(a).cmp(&rank(b)),
    }
}

fn compare_lists(a: &[Part<'_>], b: &[Part<'_>]) -> Ordering {
    let first = a.iter().zip(b).map(|(a, b)| compare(a, b)).find(|o| o.is_ne());
    first.unwrap_or(a.len().cmp(&b.len()))
}

fn random_part(random: &mut fastrand::Rng) -> Part<'static> {
    let integer = random.i64(..) >> random.u32(0..64);
    match random.u32(0..12) {
        0 => Part::Null,
        1 => Part::Bool(random.bool()),
        2..5 => Part::I64(integer),
        5 => Part::F64(f64::from_bits(random.u64(..))),
        6 => Part::F64([0.0, -0.0, f64::NAN, f64::INFINITY, integer as f64][random.usize(0..5)]),
        7..9 => Part::Bytes(random_bytes(random).into()),
        _ => {
            let letters = ['\0', '\u{1}', 'a', 'b', '\u{7f}', 'ä', '\u{ffff}', '\u{10ffff}'];
            let length = random.usize(0..4);
            let text: String = (0..length).map(|_| letters[random.usize(0..8)]).collect();
            Part::Utf8(text.into())
        }
    }
}

fn random_bytes(random: &mut fastrand::Rng) -> Vec<u8> {
    let length = random.usize(0..4);
    (0..length).map(|_| [0, 1, 0xfe, 0xff][random.usize(0..4)]).collect()
}

#[test]
fn byte_order_is_value_order_and_keys_round_trip() {
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..50_000 {
        let mut list = || -> Vec<_> {
            let length = random.usize(0..4);
            (0..length).map(|_| random_part(&mut random)).collect()
        };
        let (a, b) = (list(), list());
        let (x, y) = (encode(&a), encode(&b));
        assert_eq!(x.cmp(&y), compare_lists(&a, &b), "seed {seed}: {a:?} and {b:?}");
        let back = decode(&x).unwrap();
        assert_eq!(compare_lists(&back, &a), Ordering::Equal, "seed {seed}: {a:?}");
        let prefixed = b.len() >= a.len() && compare_lists(&a, &b[..a.len()]).is_eq();
        assert_eq!(x <= y && y < prefix_end(&x), prefixed, "seed {seed}: {a:?} and {b:?}");
    }
}

/// Whatever decodes is written in the one way that encodes it.
#[test]
fn random_bytes_decode_only_to_themselves() {
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let codes = [0, 1, 2, 0x0c, 0x11, 0x13, 0x14, 0x15, 0x16, 0x1c, 0x21, 0x26, 0x27, 0x7f, 0xff];
    let mut decoded = 0;
    for _ in 0..200_000 {
        let length = random.usize(0..10);
        let bytes: Vec<u8> = (0..length).map(|_| codes[random.usize(0..codes.len())]).collect();
        if let Ok(parts) = decode(&bytes) {
            decoded += 1;
            assert_eq!(encode(&parts), bytes, "seed {seed}");
        }
    }
    assert!(decoded > 1_000, "only {decoded} keys were valid: the test tests nothing");
}

#[test]
fn broken_keys_are_named() {
    let cases: &[(&[u8], Error)] = &[
        (b"\x02abc", Error::Truncated { part: 0 }),
        (b"\x14\x16\x01", Error::Truncated { part: 1 }),
        (b"\x21\x00", Error::Truncated { part: 0 }),
        (b"\x05", Error::UnknownType { part: 0, code: 5 }),
        (b"\x15\x00", Error::NotCanonical { part: 0 }),
        (b"\x1c\xff\xff\xff\xff\xff\xff\xff\xff", Error::NotCanonical { part: 0 }),
        (b"\x0c\x7f\xff\xff\xff\xff\xff\xff\xfe", Error::NotCanonical { part: 0 }),
        (b"\x02\xff\x00", Error::NotUtf8 { part: 0 }),
    ];
    for (bytes, error) in cases {
        assert_eq!(decode(bytes).as_ref(), Err(error), "{bytes:x?}");
    }
}

#[cfg(feature = "json")]
#[test]
fn keys_are_shown_and_parsed_as_text() {
    use PartType::{Bool, Bytes, F64, I64, Utf8};
    let part = |text: &'static str| Part::Utf8(text.into());
    let cases: Vec<(Vec<Part<'_>>, &[PartType], &str)> = vec![
        (vec![part("AA")], &[Utf8], "AA"),
        (vec![part("[1]")], &[Utf8], "[1]"),
        (vec![part("AA"), Part::I64(-7)], &[Utf8, I64], r#"["AA",-7]"#),
        (vec![Part::I64(i64::MIN)], &[I64], "[-9223372036854775808]"),
        (vec![Part::F64(0.5), Part::Bool(true)], &[F64, Bool], "[0.5,true]"),
        (vec![Part::F64(f64::INFINITY)], &[F64], r#"["Infinity"]"#),
        (vec![Part::Bytes(b"\x00\xff"[..].into())], &[Bytes], r#"["AP8="]"#),
        (vec![Part::Null, part("x")], &[I64, Utf8], r#"[null,"x"]"#),
    ];
    for (parts, types, text) in cases {
        let key = encode(&parts);
        assert_eq!(show_text(&key, types).as_deref(), Ok(text));
        assert_eq!(parse_text(text, types).as_ref(), Ok(&key), "{text}");
    }
    assert_eq!(parse_text(r#"["AA"]"#, &[Utf8, I64]), Ok(encode(&[part("AA")])));
    for bad in ["AA", "[1]", r#"["a",1.5]"#, r#"["a",1,2]"#, "{}"] {
        let error = parse_text(bad, &[Utf8, I64]).unwrap_err();
        assert!(error.to_string().contains("JSON array of [utf8, i64]"), "{bad}: {error}");
    }
    assert!(parse_text(r#"["AP8"]"#, &[Bytes]).is_err(), "base64 without padding was taken");
    let error = to_json(&encode(&[Part::I64(1)]), &[Utf8]).unwrap_err();
    assert_eq!(error.to_string(), "the key does not fit its store: expected [utf8], found [i64]");
}

#[cfg(feature = "json")]
#[test]
fn base64_round_trips() {
    for (bytes, text) in [
        (&b""[..], ""),
        (b"f", "Zg=="),
        (b"fo", "Zm8="),
        (b"foo", "Zm9v"),
        (b"\xfb\xff\xfe", "+//+"),
    ] {
        assert_eq!(base64_encode(bytes), text);
        assert_eq!(base64_decode(text).as_deref(), Some(bytes));
    }
    for bad in ["Zg", "Zg=", "Z===", "====", "Zh==", "Zg==Zg==", "ä"] {
        assert_eq!(base64_decode(bad), None, "{bad}");
    }
}

#[test]
fn bytes_of_any_number_are_appended_as_they_are() {
    let bytes: Vec<u8> = (1..=200).collect();
    for length in 0..=bytes.len() {
        let mut out = vec![0xff; length % 9];
        append(&mut out, &bytes[..length]);
        assert_eq!(
            out,
            [vec![0xff; length % 9], bytes[..length].to_vec()].concat(),
            "{length} bytes"
        );
    }
}

#[test]
fn words_are_appended_as_their_bytes() {
    let words = [0x0807_0605_0403_0201, 0x100f_0e0d_0c0b_0a09, 0x1817_1615_1413_1211];
    let bytes: Vec<u8> = (1..=24).collect();
    for length in 0..=24 {
        let mut out = vec![0xff; 3];
        append_words(&mut out, &words, length);
        assert_eq!(out, [&[0xff; 3], &bytes[..length]].concat(), "{length} bytes");
    }
}

#[test]
fn plain_text_is_encoded_as_any_text() {
    for text in ["", "k", "seven77", "eight888", "a user's name of some length"] {
        let (mut plain, mut any) = (Vec::new(), Vec::new());
        push_plain(&mut plain, text.as_bytes());
        push_utf8(&mut any, text);
        assert_eq!(plain, any);
        assert!(is_plain(text.as_bytes()));
    }
    assert!(!is_plain("größer".as_bytes()) && !is_plain(b"a\0b"));
}
