//! What was measured and what is thereby judged: rows, bars, and how both are printed.

use serde::Serialize;
use serde_json::{Value, json};

use super::disk::Volume;
use crate::cli::print::{count, size, table};

/// A figure: the median of several runs.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What ran.
    pub job: String,
    /// Bytes of a record's value.
    pub record_bytes: usize,
    /// Partitions of the input.
    pub partitions: u32,
    /// Workers of the host.
    pub workers: usize,
    /// What was measured.
    pub measure: String,
    /// The median of `runs`.
    pub median: f64,
    /// The unit of `median` and `runs`.
    pub unit: String,
    /// Each run.
    pub runs: Vec<f64>,
}

impl Row {
    /// A row of the 100-byte records that most are about; 1 partition.
    pub fn new(job: &str, measure: &str, unit: &str, workers: usize, runs: Vec<f64>) -> Self {
        let (job, measure, unit) = (job.to_owned(), measure.to_owned(), unit.to_owned());
        let median = median(&runs);
        Self { job, record_bytes: 100, partitions: 1, workers, measure, median, unit, runs }
    }
}

/// A goal and whether it is reached.
#[derive(Debug, Clone, Serialize)]
pub struct Bar {
    /// Its number in host/docs/performance.md.
    pub id: String,
    /// What is judged.
    pub name: String,
    /// What was measured.
    pub value: f64,
    /// What it should be.
    pub goal: f64,
    /// `at least` or `at most`.
    pub bound: &'static str,
    /// The unit of value and goal; `ratio` for none.
    pub unit: &'static str,
    /// Whether value is on the right side of goal.
    pub holds: bool,
}

impl Bar {
    /// A value that should not be below its goal.
    pub fn at_least(id: &str, name: &str, value: f64, goal: f64, unit: &'static str) -> Self {
        let (id, name) = (id.to_owned(), name.to_owned());
        Self { id, name, value, goal, bound: "at least", unit, holds: value >= goal }
    }

    /// A value that should not be above its goal.
    pub fn at_most(id: &str, name: &str, value: f64, goal: f64, unit: &'static str) -> Self {
        let (id, name) = (id.to_owned(), name.to_owned());
        Self { id, name, value, goal, bound: "at most", unit, holds: value <= goal }
    }
}

/// All that a run of the benchmark found.
#[derive(Debug, Default)]
pub struct Report {
    /// Figures.
    pub rows: Vec<Row>,
    /// Goals.
    pub bars: Vec<Bar>,
    /// Where the data lay.
    pub volume: Volume,
    /// Whether histories were too small to be sealed into files.
    pub unsealed: bool,
}

impl Report {
    fn durability(&self) -> String {
        let Volume { filesystem, in_memory } = &self.volume;
        match in_memory {
            true => format!(
                "none: data on {filesystem}, which is memory; name a directory on a disk with --dir"
            ),
            false => format!(
                "every commit is synced (fdatasync) before it is acknowledged or seen; data on {filesystem}"
            ),
        }
    }

    fn cache(&self) -> &'static str {
        match self.unsealed {
            true => "warm: histories are small and in the host's memory, plugins are compiled",
            false => {
                "warm: histories were just written and sealed into files, and replayed once before what counts; plugins are compiled"
            }
        }
    }

    /// The report as one JSON document.
    pub fn json(&self) -> Value {
        json!({
            "machine": machine(),
            "command": command(),
            "commit": COMMIT,
            "build": build(),
            "durability": self.durability(),
            "cache": self.cache(),
            "rows": self.rows,
            "bars": self.bars,
        })
    }

    /// The report for people.
    pub fn text(&self) -> String {
        let mut text = format!(
            "machine     {}\ncommand     {}\ncommit      {COMMIT}, {}\ndurability  {}\ncache       {}\n\n",
            machine(),
            command(),
            build(),
            self.durability(),
            self.cache(),
        );
        let rows: Vec<Vec<String>> = self.rows.iter().map(row).collect();
        text += &table(
            &[
                "JOB",
                "BYTES",
                "PARTITIONS",
                "WORKERS",
                "MEASURE",
                "MEDIAN",
                "UNIT",
                "LOWEST",
                "HIGHEST",
            ],
            &rows,
        );
        if !self.bars.is_empty() {
            let bars: Vec<Vec<String>> = self.bars.iter().map(bar).collect();
            text += "\n";
            text += &table(&["BAR", "WHAT", "VALUE", "", "GOAL", "UNIT", ""], &bars);
        }
        text
    }
}

/// The commit that the program was built from.
const COMMIT: &str = env!("ANABRANCH_COMMIT");

fn row(row: &Row) -> Vec<String> {
    let edge =
        |pick: fn(f64, f64) -> f64| row.runs.iter().copied().reduce(pick).unwrap_or_default();
    vec![
        row.job.clone(),
        row.record_bytes.to_string(),
        row.partitions.to_string(),
        row.workers.to_string(),
        row.measure.clone(),
        number(row.median),
        row.unit.clone(),
        number(edge(f64::min)),
        number(edge(f64::max)),
    ]
}

fn bar(bar: &Bar) -> Vec<String> {
    let holds = if bar.holds { "holds" } else { "MISSED" };
    vec![
        bar.id.clone(),
        bar.name.clone(),
        number(bar.value),
        bar.bound.to_owned(),
        number(bar.goal),
        bar.unit.to_owned(),
        holds.to_owned(),
    ]
}

/// A figure with three digits that mean something.
fn number(value: f64) -> String {
    match value.abs() {
        1_000.0.. => count(value.round().max(0.0) as u64),
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The middle value; the mean of the two middle ones of an even number; 0 of none.
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

/// The value below which a share of all lies, between neighbours where it falls between them.
pub fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = share * last as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

/// Processor, cores, memory and kernel.
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
        .map_or_else(String::new, |kilobytes| format!(", {} of memory", size(kilobytes << 10)));
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{cpu}, {cores} cores{memory}, Linux {}", kernel.trim())
}

/// The command as it was typed.
fn command() -> String {
    let mut words: Vec<String> = std::env::args().collect();
    if let Some(program) = words.first_mut() {
        let name = std::path::Path::new(program.as_str()).file_name();
        *program = name.map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    }
    words.join(" ")
}

/// Which build this is: figures of others than release builds mean little.
fn build() -> &'static str {
    if cfg!(debug_assertions) { "a debug build: figures mean little" } else { "a release build" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_percentiles_lie_between_neighbours() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0]), 2.5);
        let hundred: Vec<f64> = (0..=100).map(f64::from).collect();
        assert_eq!(percentile(&hundred, 0.99), 99.0);
    }

    #[test]
    fn bars_hold_on_their_side_of_the_goal() {
        let holds = [
            Bar::at_least("1", "x", 0.9, 0.85, "ratio").holds,
            Bar::at_least("1", "x", 0.8, 0.85, "ratio").holds,
            Bar::at_most("1", "x", 0.8, 0.85, "ratio").holds,
            Bar::at_most("1", "x", 0.9, 0.85, "ratio").holds,
        ];
        assert_eq!(holds, [true, false, true, false]);
    }

    #[test]
    fn the_document_has_the_promised_shape() {
        let report = Report {
            rows: vec![Row::new("filter", "replay", "records/s", 2, vec![1.0, 3.0, 2.0])],
            bars: vec![Bar::at_least("1", "sandbox/filter", 0.88, 0.85, "ratio")],
            ..Report::default()
        };
        let json = report.json();
        for field in ["machine", "command", "commit", "durability", "cache"] {
            assert!(json[field].as_str().is_some_and(|text| !text.is_empty()), "{field}");
        }
        let row = &json["rows"][0];
        assert_eq!((&row["job"], &row["measure"]), (&json!("filter"), &json!("replay")));
        assert_eq!((&row["median"], &row["runs"]), (&json!(2.0), &json!([1.0, 3.0, 2.0])));
        let bar = &json["bars"][0];
        assert_eq!((&bar["id"], &bar["holds"]), (&json!("1"), &json!(true)));
        assert!(report.text().contains("sandbox/filter"));
    }
}
