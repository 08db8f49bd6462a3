//! What comes back: both worlds exact, and every rule of the contract enforced.

use serde_json::json;

use super::super::{CallOutput, Level, Limits, Metric, MetricChange, OutputColumns};
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

/// What the hostile guest's call gives in a mode, over eleven records.
fn hostile(mode: &str) -> Result<CallOutput, String> {
    let mut guest = instance("hostile", &json!(mode), &Limits::default());
    call(&mut guest, numbered(11)).map_err(|error| {
        assert!(error.is_guest_fault(), "{mode}: {error}");
        let again = call(&mut guest, numbered(1)).unwrap_err();
        assert!(!again.is_guest_fault(), "{mode}: a failed instance was used again");
        error.to_string()
    })
}

#[test]
fn every_rule_of_the_contract_is_enforced() {
    let cases = [
        ("ends-empty", "output out: the keys: it has 0 ends where 11 entries need 12"),
        ("ends-first", "output out: the keys: ends begin with 1 instead of 0"),
        ("ends-fall", "output out: the keys: ends fall from 4 to 2 at entry 1"),
        ("ends-last", "output out: the values: the last end is 24, but there are 23"),
        ("ends-short", "output out: the values: the last end is 23, but there are 24"),
        ("ends-count", "output out: the values: it has 11 ends where 11 entries need 12"),
        (
            "validity-short",
            "output out: the values: its validity has 0 bytes where 11 entries need 2",
        ),
        ("null-not-empty", "output out: the values: entry 1 is null but not empty"),
        ("big-key", "output out: the keys: an entry has 65537 bytes, the limit key_bytes is 65536"),
        ("big-value", "the values: an entry has 8388609 bytes, the limit value_bytes is 8388608"),
        ("giant", "bytes of output of 67108864 (limit output_bytes_per_call)"),
        ("many", "number of output records of 1048576 (limit output_records_per_call)"),
        ("sources-fall", "output out: sources fall from 1 to 0"),
        ("sources-range", "output out: source 11 is outside a batch of 11 records"),
        ("sources-count", "output out: the keys: it has 12 ends where 10 entries need 11"),
        (
            "undeclared",
            "output \"elsewhere\" is not declared by describe, which names [\"out\", \"side\"]",
        ),
        ("twice", "output out is returned twice"),
        ("timestamps-count", "output out: 1 timestamps for 11 sources"),
        ("partitions-count", "output out: 1 partitions for 11 sources"),
        ("rejections-repeat", "rejections do not rise: 1 comes after 1"),
        ("rejections-fall", "rejections do not rise: 1 comes after 2"),
        ("rejections-range", "rejection 1000000 is outside a batch of 11 records"),
        ("headers-count", "output out has 11 records and headers for 1"),
        ("headers-orphan", "headers were set for output out, which has no records"),
        ("headers-ends", "headers.set: the headers: the last end is 2, but there are 1"),
        ("headers-null-name", "headers.set: the header names: it holds nulls"),
        ("headers-utf8", "headers.set: the header names: not all are UTF-8"),
        ("metrics-name", "metrics.add: \"Bad-Name\" is not [a-z][a-z0-9_]{0,63}"),
        ("metrics-kind", "metrics.set: both is both a counter and a gauge"),
        ("metrics-many", "number of different metrics of 64 (limit metrics_per_call)"),
        ("store-unknown", "state.get-many: there is no store 7"),
        ("state-null-key", "state.put-many: the keys: it holds nulls"),
        ("state-null-value", "state.put-many: the values: it holds nulls"),
        ("state-lengths", "state.put-many: 0 values for 1 keys"),
        ("state-ends", "state.get-many: the keys: the last end is 9, but there are 1"),
        ("state-big-key", "state.get-many: the keys: an entry has 65537 bytes"),
    ];
    for (mode, part) in cases {
        let error = hostile(mode).map(|output| output.outputs).unwrap_err();
        assert!(error.contains(part), "{mode}: {error}");
    }
}

#[test]
fn what_the_contract_allows_is_taken() {
    for mode in ["validity-good", "headers-undeclared", "store-undeclared"] {
        let columns = only(hostile(mode).unwrap());
        assert_eq!(
            (columns.keys, columns.values),
            (numbered(11).keys, numbered(11).values),
            "{mode}"
        );
        assert_eq!(columns.headers, None);
    }
    assert!(hostile("none").unwrap().outputs.is_empty());
    let timestamps = only(hostile("timestamps").unwrap()).timestamps.unwrap();
    assert_eq!(timestamps, (0..11).collect::<Vec<i64>>());
    let partitions = only(hostile("partitions").unwrap()).partitions.unwrap();
    assert_eq!(partitions, (0..11).map(Some).collect::<Vec<Option<u32>>>());
    let rejections = hostile("rejections").unwrap().rejections;
    assert_eq!(rejections.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [0, 2]);
    // Reasons are cut to a kibibyte, and their control characters do not get through.
    assert_eq!(rejections[0].1, "x ".repeat(512));
}

#[test]
fn logs_and_metrics_come_back_clean_and_summed() {
    let output = hostile("log").unwrap();
    assert_eq!(output.logs, [(Level::Info, "two lines  [31m".to_owned())]);
    let flood = hostile("log-flood").unwrap();
    assert_eq!(flood.logs.len(), (64 << 10) / 100);
    assert_eq!(flood.dropped_log_bytes, 1_000_000 - 100 * flood.logs.len() as u64);
    let change = |name: &str, change| MetricChange { name: name.into(), change };
    let expected = [change("seen_total", Metric::Add(5)), change("level", Metric::Set(1.5))];
    assert_eq!(hostile("metrics").unwrap().metrics, expected);
}

#[test]
fn what_init_logs_is_kept() {
    let mut guest = instance("hostile", &json!("init-log"), &Limits::default());
    assert_eq!(guest.take_start_logs(), [(Level::Info, "started".to_owned())]);
    assert!(call(&mut guest, numbered(1)).unwrap().logs.is_empty());
}

#[test]
fn the_record_world_is_held_to_the_same_rules() {
    let cases = [
        ("error", "returned an error: asked to"),
        ("lost", "output \"elsewhere\" is not declared by describe"),
        ("large", "output out: an entry has 8388609 bytes, the limit value_bytes is 8388608"),
        ("flood", "bytes of output of 67108864 (limit output_bytes_per_call)"),
        ("set", "headers.set: only process of the columnar world may call it"),
    ];
    for (value, part) in cases {
        let mut rows = RecordsBuilder::default();
        for value in ["a", value, "b"] {
            rows.push(1, None, Some(value.as_bytes()), []);
        }
        let mut echo = instance("echo-record", &json!({}), &Limits::default());
        let error = call(&mut echo, rows.finish()).map(|output| output.outputs).unwrap_err();
        assert!(error.is_guest_fault() && error.to_string().contains(part), "{value}: {error}");
    }
}
