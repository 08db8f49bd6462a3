//! What comes back: both worlds exact, and every rule of the contract enforced.

use serde_json::json;

use super::super::{CallOutput, Limits, OutputColumns};
use super::support::{call, input, instance, numbered};
use crate::types::{Records, RecordsBuilder};

fn with_everything() -> Records {
    let mut rows = RecordsBuilder::default();
    let header = |name: &str, value: Option<&[u8]>| (name.to_owned(), value.map(<[u8]>::to_vec));
    rows.push(1, Some(b"a"), Some(b"one"), [header("x", Some(b"1")), header("x", None)]);
    rows.push(-2, None, None, []);
    rows.push(3, Some(b""), Some(b""), [header("\u{e9}", Some(b""))]);
    rows.push(i64::MAX, Some(&[0, 255]), None, []);
    rows.push(5, None, Some(&[7; 300]), []);
    for i in 0..20 {
        rows.push(10 + i, (i % 3 == 0).then_some(b"key"), (i % 4 != 0).then_some(b"value"), []);
    }
    rows.finish()
}

fn only(output: CallOutput) -> OutputColumns {
    let [columns] = <[_; 1]>::try_from(output.outputs).unwrap();
    columns
}

fn rows_of(
    headers: &Option<crate::types::Headers>,
    n: usize,
) -> Vec<Vec<(String, Option<Vec<u8>>)>> {
    let own = |i| {
        let all = headers.iter().flat_map(move |headers| headers.get(i));
        all.map(|(name, value)| (name.to_owned(), value.map(<[u8]>::to_vec))).collect()
    };
    (0..n).map(own).collect()
}

#[test]
fn the_columnar_world_gives_back_what_it_took_wherever_the_batch_is_cut() {
    let mut echo = instance("echo", &json!({}), &Limits::default());
    let all = with_everything();
    for (start, len) in [(0, 25), (0, 1), (1, 1), (1, 4), (3, 22), (9, 11), (24, 1), (7, 0)] {
        let part = all.slice(start, len);
        let output = call(&mut echo, part.clone()).unwrap();
        assert!(output.fuel_used > 0 && output.rejections.is_empty());
        if len == 0 {
            assert!(output.outputs.is_empty());
            continue;
        }
        let columns = only(output);
        assert_eq!(columns.sources, (0..len as u32).collect::<Vec<_>>());
        assert_eq!((columns.keys, columns.values), (part.keys, part.values), "{start}+{len}");
        assert_eq!(rows_of(&columns.headers, len), rows_of(&part.headers, len));
        assert_eq!((columns.timestamps, columns.partitions), (None, None));
    }
}

#[test]
fn the_record_world_gives_back_what_it_took_wherever_the_batch_is_cut() {
    let mut echo = instance("echo-record", &json!({}), &Limits::default());
    let all = with_everything();
    for (start, len) in [(0, 25), (0, 1), (1, 4), (3, 22), (9, 11)] {
        let part = all.slice(start, len);
        let columns = only(call(&mut echo, part.clone()).unwrap());
        assert_eq!(columns.output, 1);
        assert_eq!(columns.sources, (0..len as u32).collect::<Vec<_>>());
        assert_eq!((&columns.keys, &columns.values), (&part.keys, &part.values));
        assert_eq!(rows_of(&columns.headers, len), rows_of(&part.headers, len));
        let partitions = columns.partitions.unwrap_or_else(|| vec![None; len]);
        let unkeyed: Vec<_> = part.keys.iter().map(|key| key.is_none().then_some(3)).collect();
        assert_eq!(partitions, unkeyed);
    }
}

#[test]
fn the_record_world_sees_stream_time_per_record_and_may_refuse_and_retime() {
    let mut echo = instance("echo-record", &json!({}), &Limits::default());
    let mut rows = RecordsBuilder::default();
    for (timestamp, value) in
        [(900, "time"), (700, "reject"), (800, "time"), (901, "x"), (1, "time")]
    {
        rows.push(timestamp, None, Some(value.as_bytes()), []);
    }
    let mut given = input(rows.finish());
    given.batch.offsets = vec![1, 2, 3, 4, 6].into();
    let output = echo.process(&given, Box::<super::support::MemoryState>::default()).0.unwrap();
    assert_eq!(output.rejections, [(1, "asked to".to_owned())]);
    let columns = only(output);
    assert_eq!(columns.sources, [0, 2, 3, 4]);
    let seen: Vec<_> = columns.values.iter().map(|v| String::from_utf8_lossy(v.unwrap())).collect();
    assert_eq!(seen, ["Some(500)", "Some(900)", "x", "Some(901)"]);
    assert_eq!(columns.timestamps, Some(vec![901, 801, 901, 1]));
}
