//! Arrow, as another program reads and writes it: pyarrow opens sealed segments and finds in every column
//! what the host serves; and it appends and reads records over HTTP.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anabranch_key::base64_decode;
use serde_json::{Value, json};

use crate::support::{Host, root, target, wait_until};

/// A Python that has pyarrow, in a place of its own that is made once.
fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(bring_python)
}

fn bring_python() -> PathBuf {
    let venv = target().join("pyarrow-venv");
    let python = venv.join("bin/python");
    let has_pyarrow = || {
        let probe = Command::new(&python).args(["-c", "import pyarrow"]).output();
        probe.is_ok_and(|output| output.status.success())
    };
    if !has_pyarrow() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv));
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "pyarrow"]));
        assert!(
            has_pyarrow(),
            "{} has no pyarrow: delete it, to have it made again",
            venv.display()
        );
    }
    python
}

/// Runs a command that must succeed; what it printed.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| {
        panic!("cannot run {command:?}: {error}; install python3 with venv and pip")
    });
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    assert!(
        output.status.success(),
        "{command:?} failed: {error}{out}\npython3 with venv and pip must be installed, and reach PyPI once"
    );
    out
}

/// Compares a segment with what it must hold.
fn compare(segment: &Path, expected: &Path) {
    let said = run(Command::new(python())
        .arg(root().join("tests/pyarrow_check.py"))
        .args([segment, expected]));
    print!("{said}");
}

/// Records of all shapes, each with a timestamp of its own.
fn input() -> Vec<Value> {
    let key = |i: i64| match i % 7 {
        0 => Value::Null,
        1 => json!(""),
        2 => json!("AP+A/w=="),
        _ => json!("a2V5"),
    };
    let value = |i: i64| match i % 5 {
        0 => Value::Null,
        1 => json!(""),
        2 => json!("/".repeat(4 * (i as usize % 400))),
        _ => json!("dmFsdWU="),
    };
    let headers = |i: i64| match i % 4 {
        0 => json!([]),
        1 => json!([["h", "1"], ["h", null], ["h", "1"]]),
        2 => json!([["", ""], ["ünï", "ço∂é"]]),
        _ => json!([["only", null]]),
    };
    let timestamp = |i: i64| match i {
        0 => i64::MIN,
        1 => i64::MAX,
        2 => -1,
        _ => 1_357_034_400_000 + i,
    };
    let record = |i: i64| {
        json!({
            "key": key(i), "value": value(i), "timestamp": timestamp(i), "headers": headers(i),
            "partition": i % 2,
        })
    };
    (0..3_000).map(record).collect()
}

/// A record of the HTTP API, as tests/pyarrow_check.py wants it.
fn expected(record: &Value, source: &Value) -> Value {
    let hexed = |text: &Value| text.as_str().map(|text| hex(&base64_decode(text).unwrap()));
    let headers = record["headers"].as_array().into_iter().flatten();
    let headers: Vec<Value> = headers
        .map(|header| json!([header[0], header[1].as_str().map(|text| hex(text.as_bytes()))]))
        .collect();
    json!({
        "offset": record["offset"], "timestamp": record["timestamp"],
        "key": hexed(&record["key"]), "value": hexed(&record["value"]),
        "headers": headers, "source": source,
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The sealed segments of a log's partition, by first offset: the offset after the last, and the file.
fn segments(folder: &Path, partition: u32) -> BTreeMap<u64, (u64, PathBuf)> {
    let files = std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    let mut found = BTreeMap::new();
    for file in files.filter(|file| file.extension().is_some_and(|ending| ending == "arrow")) {
        let name: Vec<u64> = (file.file_name().unwrap().to_str().unwrap().split('-').take(2))
            .map(|number| number.parse().unwrap())
            .collect();
        if name[0] == u64::from(partition) {
            let bytes = std::fs::read(&file).unwrap();
            let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(64 << 10)..]);
            let about = text.rsplit("\"metadata\":{").find(|part| part.contains("\"kind\""));
            let next = about.unwrap().split("\"next\":").nth(1).unwrap();
            let next = next.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap();
            found.insert(name[1], (next, file));
        }
    }
    found
}

/// The folder of a log: the first that was made, of those whose records have sources or have none.
fn log(data: &Path, with_sources: bool) -> PathBuf {
    let mut found = None;
    wait_until("there are segments of the log", || {
        let folders = std::fs::read_dir(data.join("segments")).into_iter().flatten();
        let mut folders: Vec<PathBuf> = folders.map(|folder| folder.unwrap().path()).collect();
        folders.sort_by_key(|f| f.file_name().unwrap().to_str().unwrap().parse::<u64>().unwrap());
        found = folders.into_iter().find(|folder| {
            let first = segments(folder, 0).into_values().next();
            first.is_some_and(|(_, file)| {
                let bytes = std::fs::read(file).unwrap();
                let column = b"source_ordinal";
                bytes.windows(column.len()).any(|window| window == column) == with_sources
            })
        });
        found.is_some()
    });
    found.unwrap()
}

/// Waits until the larger part of a log's partition is sealed, then compares every segment of it with
/// `records`, which the host served; `source` says where each came from.
fn check(folder: &Path, partition: u32, records: &[Value], source: impl Fn(&Value) -> Value) {
    let sealed = || segments(folder, partition);
    wait_until(&format!("partition {partition} is sealed in {}", folder.display()), || {
        sealed().values().last().is_some_and(|(next, _)| *next * 2 > records.len() as u64)
    });
    let dir = tempfile::tempdir().unwrap();
    let mut at = 0;
    for (first, (next, file)) in sealed() {
        assert_eq!(first, at, "segments follow one another");
        at = next;
        // A topic's offsets begin at its mount's base, a log's at 0.
        let lines = records.iter().enumerate().take(next as usize).skip(first as usize).map(
            |(offset, record)| {
                let mut line = expected(record, &source(record));
                line["offset"] = json!(offset);
                format!("{line}\n")
            },
        );
        let path = dir.path().join(format!("{partition}-{first}.ndjson"));
        std::fs::write(&path, lines.collect::<String>()).unwrap();
        compare(&file, &path);
    }
}

#[test]
fn pyarrow_reads_in_segments_what_the_host_serves() {
    let host = Host::start_with(&[("ANABRANCH_STORAGE_HEAD_BYTES", "20000")]);
    let bytes = |partitions: u32| json!({ "partitions": partitions, "format": "bytes" });
    host.topic("in", &bytes(2));
    host.topic("out", &bytes(1));
    host.deploy("copy", "passthrough", &["in"], &json!({ "records": "out" }));
    let input = input();
    for some in input.chunks(500) {
        host.append("in", some);
    }
    host.wait_processed("copy", 1, input.len() as u64);

    // No two records have the same timestamp, so it says where a copy came from.
    let mut places = BTreeMap::new();
    let folder = log(&host.data(), false);
    for partition in [0, 1] {
        let records = host.records("in", partition);
        let sent: Vec<&Value> = input.iter().filter(|r| r["partition"] == partition).collect();
        for (served, sent) in records.iter().zip(&sent) {
            let mut sent = expected(sent, &Value::Null);
            sent["offset"] = served["offset"].clone();
            assert_eq!(expected(served, &Value::Null), sent);
        }
        assert_eq!(records.len(), sent.len());
        check(&folder, partition, &records, |_| Value::Null);
        for record in &records {
            let place = json!([1, 0, partition, record["offset"], 0]);
            assert_eq!(places.insert(record["timestamp"].as_i64().unwrap(), place), None);
        }
    }
    let copies = host.records("out", 0);
    assert_eq!((places.len(), copies.len()), (input.len(), input.len()));
    let source = |copy: &Value| places[&copy["timestamp"].as_i64().unwrap()].clone();
    check(&log(&host.data(), true), 0, &copies, source);
}

#[test]
fn pyarrow_reads_the_golden_segment() {
    let golden = root().join("tests/golden/v1/log");
    compare(&golden.join("segment.arrow"), &golden.join("segment.ndjson"));
}

#[test]
fn pyarrow_appends_and_reads_over_http() {
    let host = Host::start();
    host.topic("in", &json!({ "partitions": 2, "format": "json" }));
    host.topic("out", &json!({ "partitions": 1, "format": "json" }));
    host.deploy("copy", "passthrough", &["in"], &json!({ "records": "out" }));
    run(Command::new(python()).arg(root().join("tests/pyarrow_http.py")).arg(host.url()));
    // What was appended as columns is shown as JSON, and the other way round.
    let records = host.records("in", 1);
    assert_eq!(records[0]["value"], json!({ "n": 1 }));
    assert_eq!(records[0]["headers"], json!([["h", "\u{fc}"], ["h", null]]));
    host.wait_processed("copy", 1, 2_500);
}
