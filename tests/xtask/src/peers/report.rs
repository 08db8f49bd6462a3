//! What was measured, as a table or as one JSON document.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::arguments::{Job, System};
use super::bars;
use crate::steps::root;

/// Bytes of a record's value.
pub const VALUE_BYTES: usize = 100;

/// A system at a job: records a second, of each run.
#[derive(Debug, Clone)]
pub struct Row {
    /// What ran.
    pub system: System,
    /// What it did.
    pub job: Job,
    /// Records a second.
    pub runs: Vec<f64>,
}

impl Row {
    /// A row.
    pub fn new(system: System, job: Job, runs: Vec<f64>) -> Self {
        Self { system, job, runs }
    }

    /// The median of the runs; of an even number, the mean of the two in the middle.
    pub fn median(&self) -> f64 {
        let mut runs = self.runs.clone();
        runs.sort_by(f64::total_cmp);
        let last = runs.len().saturating_sub(1);
        let at = |at: usize| runs.get(at).copied().unwrap_or_default();
        (at(last / 2) + at(last.div_ceil(2))) / 2.0
    }

    /// What Anabranch does, and need not do where others do.
    fn our_advantages(&self) -> &'static str {
        match self.job {
            Job::PassThrough => {
                "from its own sealed segments; outputs and position exactly once, synced to disk; blocks of columns that come back unchanged are copied as they are, others compress again"
            }
            Job::Count | Job::CountRocksdb => {
                "from its own sealed segments; outputs, state and position exactly once, synced to disk; values, which the count ignores, are not decompressed, others decompress all"
            }
            Job::Filter | Job::JsonMap => {
                "from its own sealed segments; outputs and position exactly once, synced to disk"
            }
        }
    }

    /// What was measured, and what is unequal about it.
    fn measure(&self) -> (&'static str, &'static str) {
        match self.system {
            System::Anabranch => ("replay", self.our_advantages()),
            System::KafkaStreams => (
                "replay",
                "from a Kafka log, another process over loopback; exactly once (v2), a commit a second; Kafka does not sync to disk before it confirms; no sandbox",
            ),
            System::Flink => (
                "replay",
                "from a Kafka log, another process over loopback; exactly once, a checkpoint a second, not synced; Kafka does not sync to disk before it confirms; the count on a second thread; no sandbox",
            ),
            System::Bytewax => ("from memory", "no log, nothing written, nothing durable"),
            System::Fluvio => {
                ("from memory", "encoded batches, no log, nothing written, nothing durable")
            }
            System::Native => {
                ("from memory", "columns, no sandbox, no log, nothing written, nothing durable")
            }
        }
    }
}

/// A goal and whether it is reached.
#[derive(Debug)]
pub struct Bar {
    /// Its number in host/docs/performance.md.
    pub id: &'static str,
    /// What is judged.
    pub name: String,
    /// Anabranch's rate over the peer's.
    pub value: f64,
    /// What it should be at least.
    pub goal: f64,
    /// Whether the peer was itself.
    pub counts: bool,
    /// Whether the goal is reached by a run that counts.
    pub holds: bool,
}

/// All as one JSON document.
pub fn json(rows: &[Row], command: &str) -> Value {
    let row = |row: &Row| {
        let (measure, unequal) = row.measure();
        let health = bars::health(rows, row);
        json!({
            "system": row.system.name(),
            "job": row.job.name(),
            "record_bytes": VALUE_BYTES,
            "partitions": 1,
            "workers": 1,
            "measure": measure,
            "median": row.median(),
            "unit": "records/s",
            "runs": row.runs,
            "unequal": unequal,
            "to_native": health.map(|health| health.to_native),
            "to_native_usual": health.map(|health| health.usual),
        })
    };
    let bar = |bar: &Bar| {
        json!({
            "id": bar.id,
            "name": bar.name,
            "value": bar.value,
            "goal": bar.goal,
            "bound": "at least",
            "unit": "ratio",
            "counts": bar.counts,
            "holds": bar.holds,
        })
    };
    json!({
        "machine": machine(),
        "command": command,
        "commit": commit(),
        "rows": rows.iter().map(row).collect::<Vec<_>>(),
        "bars": bars::bars(rows).iter().map(bar).collect::<Vec<_>>(),
    })
}

/// All for people.
pub fn text(rows: &[Row], command: &str) -> String {
    let mut text = format!("machine  {}\ncommand  {command}\ncommit   {}\n\n", machine(), commit());
    let mut line = |cells: [&str; 7]| {
        let [system, job, median, runs, to_native, usual, measure] = cells;
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{system:<20}{job:<20}{median:>12}{runs:>6}{to_native:>11}{usual:>9}  {measure}"
        );
    };
    line(["SYSTEM", "JOB", "K RECORDS/S", "RUNS", "OF NATIVE", "USUAL", "MEASURED"]);
    for row in rows {
        let health = bars::health(rows, row);
        let percent = |part: f64| format!("{:.2} %", part * 100.0);
        line([
            row.system.name(),
            row.job.name(),
            &format!("{:.0}", row.median() / 1e3),
            &row.runs.len().to_string(),
            &health.map_or_else(String::new, |health| percent(health.to_native)),
            &health.map_or_else(String::new, |health| percent(health.usual)),
            &format!("{}: {}", row.measure().0, row.measure().1),
        ]);
    }
    for bar in bars::bars(rows) {
        let holds = match (bar.counts, bar.holds) {
            (false, _) => "does not count: the peer was not itself",
            (true, true) => "holds",
            (true, false) => "does not hold",
        };
        let _ = writeln!(
            text,
            "bar {}  {:<40}{:>8.1} of {:>4.1}  {holds}",
            bar.id, bar.name, bar.value, bar.goal
        );
    }
    text
}

/// The machine in one line.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cpu = field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "processor".to_owned());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = field(&read("/proc/meminfo"), "MemTotal")
        .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok())
        .map_or_else(String::new, |kibibytes| format!(", {} GiB of memory", kibibytes >> 20));
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{cpu}, {cores} cores{memory}, Linux {}", kernel.trim())
}

/// What is checked out.
fn commit() -> String {
    let mut git = std::process::Command::new("git");
    git.args(["describe", "--always", "--dirty"]).current_dir(root());
    let out = git.output().ok().filter(|out| out.status.success());
    out.map_or_else(
        || "unknown".to_owned(),
        |out| String::from_utf8_lossy(&out.stdout).trim().to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_lies_in_the_middle() {
        for (runs, median) in [(vec![3.0, 1.0, 2.0], 2.0), (vec![5.0, 4.0], 4.5), (vec![7.0], 7.0)]
        {
            assert_eq!(Row::new(System::Flink, Job::Filter, runs).median(), median);
        }
    }

    #[test]
    fn rows_and_bars_have_the_agreed_shape() {
        let rows = [
            Row::new(System::Anabranch, Job::Filter, vec![9e6]),
            Row::new(System::Native, Job::Filter, vec![100e6]),
            Row::new(System::Flink, Job::Filter, vec![0.9e6]),
        ];
        let said = json(&rows, "x");
        assert_eq!(said["rows"][2]["median"], 0.9e6);
        assert_eq!(said["rows"][2]["system"], "flink");
        assert_eq!(said["rows"][2]["to_native"], 0.009);
        assert_eq!(said["bars"][0]["name"], "filter x flink");
        assert_eq!(
            (&said["bars"][0]["goal"], &said["bars"][0]["holds"]),
            (&json!(5.0), &json!(true))
        );
        let text = text(&rows, "x");
        assert!(text.contains("bar 2  filter x flink") && text.contains("0.90 %"), "{text}");
    }
}
