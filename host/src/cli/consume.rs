//! `consume`: pages up to the end, or a stream for each partition that survives reconnects.
//!
//! **Invariant:** a follower that loses its host goes on exactly after the last record it printed:
//! each record of a partition is printed once, in order.

use std::io::{BufReader, IsTerminal as _, Write};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::args::{Consume, RecordFormat};
use super::client::{Client, Error};
use super::commands::{Context, shaped, topic};
use super::follow::{ServerEvent, next_event};
use super::print::{cell, time, visible};
use crate::deployment::TopicStatus;

/// Between two attempts to reach a host that went away, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Runs the command.
pub fn run(context: &Context, args: &Consume) -> Result<(), Error> {
    let found: Value = context.client.get(&topic(&args.topic, ""), &[])?;
    let status: TopicStatus = shaped(&found)?;
    let all = status.partitions.iter().map(|p| p.partition);
    let partitions: Vec<u32> = all.filter(|p| args.partition.is_none_or(|q| q == *p)).collect();
    if partitions.is_empty() {
        return Err(Error::Usage(format!(
            "topic {} has {} partitions, counted from 0: there is no partition {}",
            args.topic,
            status.partitions.len(),
            args.partition.unwrap_or_default()
        )));
    }
    let format = if context.json { RecordFormat::Records } else { args.format };
    let mut printer = Printer {
        out: std::io::BufWriter::new(std::io::stdout().lock()),
        format,
        text_values: status.format == "utf8",
        terminal: std::io::stdout().is_terminal(),
        left: args.limit.unwrap_or(usize::MAX),
    };
    if format == RecordFormat::Table {
        writeln!(
            printer.out,
            "{:>4}  {:>10}  {:<24}  {:<16}  VALUE",
            "PART", "OFFSET", "TIME", "KEY"
        )?;
    }
    match args.follow {
        true => follow(context, args, &partitions, &mut printer),
        false => pages(context, args, &partitions, &mut printer),
    }
}

/// Prints what is there, one partition after the other.
fn pages(
    context: &Context,
    args: &Consume,
    partitions: &[u32],
    printer: &mut Printer<impl Write>,
) -> Result<(), Error> {
    for partition in partitions {
        let path = topic(&args.topic, &format!("/partitions/{partition}/records"));
        let mut from = args.from.clone();
        // Where the partition ended at the first look: a busy topic has an end, too.
        let mut until = None;
        while printer.left > 0 {
            let mut query = vec![("from", from)];
            query.extend((printer.left < usize::MAX).then(|| ("limit", printer.left.to_string())));
            let (body, next, end) = context.client.page(&path, &query)?;
            for line in body.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
                printer.record(&String::from_utf8_lossy(line))?;
            }
            from = next.to_string();
            if next >= *until.get_or_insert(end) {
                break;
            }
        }
    }
    Ok(printer.out.flush()?)
}

/// Prints what comes, of all partitions as it comes.
fn follow(
    context: &Context,
    args: &Consume,
    partitions: &[u32],
    printer: &mut Printer<impl Write>,
) -> Result<(), Error> {
    let (sender, received) = channel();
    for partition in partitions {
        let (client, sender, partition) = (context.client.clone(), sender.clone(), *partition);
        let path = topic(&args.topic, &format!("/partitions/{partition}/records"));
        let from = args.from.clone();
        std::thread::spawn(move || {
            let ended = follow_partition(&client, partition, &path, from, &sender);
            // Nobody listens any more once the limit is reached.
            let _ = sender.send((partition, Err(ended)));
        });
    }
    drop(sender);
    while printer.left > 0 {
        let Ok((partition, event)) = received.recv() else { break };
        let event = event?;
        match &*event.kind {
            "record" => printer.record(&event.data)?,
            "swap" => note_swap(context, partition, &event.data),
            "error" => {
                let problem: Value = serde_json::from_str(&event.data).unwrap_or_default();
                let detail = cell(&problem["detail"]);
                return Err(Error::Refused { status: 410, detail, problem });
            }
            // The host's first event tells the position alone, for those who lose it at once.
            _ => {}
        }
        // A burst is printed in one piece, a single record at once.
        printer.out.flush()?;
    }
    Ok(printer.out.flush()?)
}

fn note_swap(context: &Context, partition: u32, data: &str) {
    if context.json {
        eprintln!(
            "{}",
            json!({"partition": partition, "swap": serde_json::from_str::<Value>(data).ok()})
        );
        return;
    }
    let swap: Value = serde_json::from_str(data).unwrap_or_default();
    eprintln!(
        "partition {partition}: generation {} took over from {}; it goes on at offset {}",
        swap["generation_to"], swap["generation_from"], swap["next_offset"]
    );
}

type Events = Sender<(u32, Result<ServerEvent, Error>)>;

/// Sends the events of a partition, through reconnects; returns why it cannot go on.
fn follow_partition(
    client: &Client,
    partition: u32,
    path: &str,
    from: String,
    to: &Events,
) -> Error {
    let mut last: Option<String> = None;
    let mut pause = RETRY.0;
    let mut reached = false;
    loop {
        let query = [("from", from.clone()), ("follow", "true".to_owned())];
        match client.events(path, &query, last.as_deref()) {
            Ok(stream) => {
                (reached, pause) = (true, RETRY.0);
                let mut stream = BufReader::new(stream);
                // A stream that ends or breaks off is taken up again.
                while let Ok(Some(event)) = next_event(&mut stream) {
                    last = event.id.clone().or(last);
                    if to.send((partition, Ok(event))).is_err() {
                        return Error::BrokenPipe;
                    }
                }
            }
            // A host that was there comes back; one that never was is an error.
            Err(Error::Unreachable { .. }) if reached => {}
            Err(Error::Refused { status: 503, .. }) if reached => {}
            Err(error) => return error,
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(RETRY.1);
    }
}

/// Prints records in a format.
struct Printer<W> {
    out: W,
    format: RecordFormat,
    /// Whether values are text, to be printed without quotes.
    text_values: bool,
    /// Whether values go to a terminal, which what is in them must not steer.
    terminal: bool,
    left: usize,
}

/// What is printed of a record.
#[derive(Deserialize)]
struct Shown<'a> {
    #[serde(borrow)]
    key: Option<&'a RawValue>,
    #[serde(borrow)]
    value: Option<&'a RawValue>,
    timestamp: i64,
    partition: u32,
    offset: u64,
}

impl<W: Write> Printer<W> {
    /// Prints a record, given as a line of JSON, unless the limit is reached.
    fn record(&mut self, line: &str) -> Result<(), Error> {
        if self.left == 0 {
            return Ok(());
        }
        self.left -= 1;
        if self.format == RecordFormat::Records {
            return Ok(writeln!(self.out, "{line}")?);
        }
        let shown: Shown<'_> = serde_json::from_str(line)
            .map_err(|error| Error::Failed(format!("a record that is not understood: {error}")))?;
        let text = |raw: Option<&RawValue>, plain: bool| {
            let raw = raw.map_or("null", RawValue::get);
            match plain.then(|| serde_json::from_str::<String>(raw)) {
                Some(Ok(text)) => text,
                _ => raw.to_owned(),
            }
        };
        let value = text(shown.value, self.text_values);
        match self.format {
            RecordFormat::Values if self.terminal => writeln!(self.out, "{}", visible(&value))?,
            RecordFormat::Values => writeln!(self.out, "{value}")?,
            _ => writeln!(
                self.out,
                "{:>4}  {:>10}  {:<24}  {:<16}  {}",
                shown.partition,
                shown.offset,
                time(shown.timestamp),
                visible(&text(shown.key, true)),
                visible(&value)
            )?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(format: RecordFormat, text_values: bool, line: &str) -> String {
        let mut printer =
            Printer { out: Vec::new(), format, text_values, terminal: false, left: 1 };
        printer.record(line).unwrap();
        printer.record(line).unwrap();
        String::from_utf8(printer.out).unwrap()
    }

    #[test]
    fn records_are_printed_up_to_the_limit() {
        let line = r#"{"key":"AA","value":"x\ny","timestamp":0,"partition":1,"offset":7}"#;
        assert_eq!(printed(RecordFormat::Records, false, line), format!("{line}\n"));
        assert_eq!(printed(RecordFormat::Values, false, line), "\"x\\ny\"\n");
        assert_eq!(printed(RecordFormat::Values, true, line), "x\ny\n");
        let steering =
            r#"{"key":"\u001b[1m","value":"\u202e","timestamp":0,"partition":1,"offset":7}"#;
        let row = printed(RecordFormat::Table, true, steering);
        assert!(row.ends_with("\\u{1b}[1m         \\u{202e}\n"), "{row}");
        let row = printed(RecordFormat::Table, false, line);
        assert_eq!(
            row,
            "   1           7  1970-01-01T00:00:00Z      AA                \"x\\ny\"\n"
        );
    }
}
