//! `produce`: lines into records, in requests of some megabytes, one after the other.
//!
//! **Invariant:** records keep the order of their lines. A line that the host refuses is named by its
//! file and its number there; what was acknowledged before it stays.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use super::args::{LineFormat, Produce};
use super::batches::{self, Batch};
use super::client::{Error, segment};
use super::commands::{Context, shaped, topic};
use super::print::{count, duration};
use crate::deployment::{Produced, TopicStatus};

/// With `--rate`, how many requests a second records are spread over.
const PACES: u64 = 20;
/// The bar where all sizes are known, and where they are not.
const SIZED: &str = "{wide_bar} {percent:>3} %  {msg}, {eta} left";
const UNSIZED: &str = "{spinner} {msg}";

/// Runs the command.
pub fn run(context: &Context, args: &Produce) -> Result<(), Error> {
    let fields = args.key.is_some() || args.timestamp.is_some();
    if fields && args.format != LineFormat::Ndjson {
        return Err(Error::Usage(
            "--key and --timestamp name fields of JSON values: leave them out, or say --format ndjson"
                .to_owned(),
        ));
    }
    let found: Value = context.client.get(&topic(&args.topic, ""), &[])?;
    let format = shaped::<TopicStatus>(&found)?.format;
    let sources: Vec<Option<PathBuf>> = match args.files.as_slice() {
        [] => vec![None],
        files => files.iter().map(|file| (file.as_os_str() != "-").then(|| file.clone())).collect(),
    };
    let max_lines = args.rate.map_or(u64::MAX, |rate| (rate / PACES).max(1));
    let bar = progress_bar(&sources, context.json);
    let started = context.clock.monotonic();
    let mut total = Produced { appended: 0, partitions: Default::default() };
    let path = path(args);
    for batch in batches::read(sources.clone(), max_lines) {
        let batch = batch?;
        pace(context, args.rate, total.appended, started);
        let body = match args.format {
            LineFormat::Lines => records_of_lines(&batch.text, &format),
            LineFormat::Ndjson | LineFormat::Records => batch.text.clone(),
        };
        let sent = context.client.post(&path, "application/x-ndjson", &body);
        let produced = sent.map_err(|error| {
            bar.finish_and_clear();
            explain(error, &batch, &sources, total.appended)
        })?;
        let produced: Produced = shaped(&produced)?;
        total.appended += produced.appended;
        total.partitions.extend(produced.partitions);
        let rate =
            total.appended as f64 / (context.clock.monotonic() - started).as_secs_f64().max(0.001);
        bar.set_message(format!("{} records, {}/s", count(total.appended), count(rate as u64)));
        bar.set_position(batch.end_bytes);
    }
    bar.finish_and_clear();
    let seconds = (context.clock.monotonic() - started).as_secs_f64();
    let summary = json!({
        "topic": args.topic, "appended": total.appended, "seconds": seconds,
        "partitions": total.partitions,
    });
    context.print(&summary, || {
        let rate = count((total.appended as f64 / seconds.max(0.001)) as u64);
        let appended = count(total.appended);
        format!(
            "{appended} records appended to {} in {} ({rate}/s)\n",
            args.topic,
            duration(seconds)
        )
    })
}

/// Where and how the lines are sent.
fn path(args: &Produce) -> String {
    let mut path = topic(&args.topic, "/records");
    if args.format == LineFormat::Ndjson {
        path += "?values=raw";
        for (name, field) in [("key", &args.key), ("timestamp", &args.timestamp)] {
            if let Some(field) = field {
                path += &format!("&{name}={}", segment(field));
            }
        }
    }
    path
}

/// Waits until `appended` records are due at `rate`.
fn pace(context: &Context, rate: Option<u64>, appended: u64, started: Duration) {
    if let Some(rate) = rate {
        let due = started + Duration::from_secs_f64(appended as f64 / rate as f64);
        std::thread::sleep(due.saturating_sub(context.clock.monotonic()));
    }
}

/// Each line as a record whose value is its text.
fn records_of_lines(text: &[u8], format: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() * 2);
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let value = match format {
            "bytes" => BASE64.encode(line),
            _ => String::from_utf8_lossy(line).into_owned(),
        };
        out.extend_from_slice(json!({"value": value}).to_string().as_bytes());
        out.push(b'\n');
    }
    out
}

/// The error of a batch in the words of its file.
fn explain(error: Error, batch: &Batch, sources: &[Option<PathBuf>], before: u64) -> Error {
    let name = match &sources[batch.source] {
        Some(path) => path.display().to_string(),
        None => "standard input".to_owned(),
    };
    let kept = format!("; the {} records sent before are appended", count(before));
    match error {
        Error::Refused { status, detail, mut problem } => {
            let detail = match (problem["line"].as_u64(), problem["reason"].as_str()) {
                (Some(line), Some(reason)) => {
                    let line = batch.first_line + line - 1;
                    let reason = format!("{name} line {line}: {reason}{kept}");
                    problem["line"] = line.into();
                    problem["file"] = name.into();
                    reason
                }
                _ => format!("{name} from line {}: {detail}{kept}", batch.first_line),
            };
            Error::Refused { status, detail, problem }
        }
        Error::Unreachable { url, reason } => {
            let from = batch.first_line;
            let to = from + batch.lines - 1;
            let reason =
                format!("{reason} ({name}: lines {from} to {to} may or may not be appended{kept})");
            Error::Unreachable { url, reason }
        }
        other => other,
    }
}

/// A bar on standard error where that is a terminal: with the time left where all sizes are known.
fn progress_bar(sources: &[Option<PathBuf>], json: bool) -> ProgressBar {
    if json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let length = |path: &Option<PathBuf>| {
        let data = std::fs::metadata(path.as_ref()?).ok()?;
        data.is_file().then_some(data.len())
    };
    let total: Option<u64> = sources.iter().map(length).sum();
    let template = if total.is_some() { SIZED } else { UNSIZED };
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
    bar.with_style(ProgressStyle::with_template(template).expect("a test parses both templates"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_can_be_drawn() {
        for template in [SIZED, UNSIZED] {
            ProgressStyle::with_template(template).unwrap();
        }
    }

    #[test]
    fn lines_become_values() {
        assert_eq!(
            records_of_lines(b"a \"b\"\r\n\nc", "json"),
            b"{\"value\":\"a \\\"b\\\"\"}\n{\"value\":\"\"}\n{\"value\":\"c\"}\n"
        );
        assert_eq!(records_of_lines(b"\xff\n", "bytes"), b"{\"value\":\"/w==\"}\n");
    }

    #[test]
    fn a_refused_line_is_named_by_its_file() {
        let batch = Batch { first_line: 5_001, lines: 100, ..Batch::default() };
        let problem = json!({"line": 12, "reason": "expected value"});
        let refused = Error::Refused { status: 400, detail: "line 12: …".into(), problem };
        let error = explain(refused, &batch, &[Some("x.ndjson".into())], 5_000);
        assert_eq!(
            error.to_string(),
            "x.ndjson line 5012: expected value; the 5,000 records sent before are appended"
        );
        assert_eq!(error.exit_code(), 2);
    }
}
