//! How far deployments are: the status table, and waiting with a progress bar.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use super::client::Error;
use super::commands::{Context, deployment, shaped};
use super::print::{count, duration, table};
use crate::deployment::{DeploymentStatus, GenerationStatus, Phase};

/// Between two looks at the host while something is awaited.
const POLL: Duration = Duration::from_millis(200);
/// The bar of bytes, with rate and time left.
const BYTE_BAR: &str = "{prefix} {wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
/// The bar of a replay.
const BAR: &str = "{prefix} {wide_bar} {percent:>3} %  {msg}";

/// `status`: once, or again and again.
pub fn status(context: &Context, name: Option<&str>, watch: bool) -> Result<(), Error> {
    let terminal = std::io::stdout().is_terminal();
    let mut before = Value::Null;
    loop {
        let now: Value = match name {
            Some(name) => context.client.get(&deployment(name, ""), &[])?,
            None => context.client.get("/v1/deployments", &[])?,
        };
        if now != before {
            let all: Vec<DeploymentStatus> =
                if name.is_some() { vec![shaped(&now)?] } else { shaped(&now)? };
            context.print(&now, || {
                // Home, then clear what is below: the table stays in its place.
                let clear = if watch && terminal { "\x1b[H\x1b[J" } else { "" };
                format!("{clear}{}", describe(&all, name.is_some()))
            })?;
            before = now;
        }
        if !watch {
            return Ok(());
        }
        std::thread::sleep(POLL);
    }
}

/// The status table; of one deployment with `all` its generations and what went wrong.
fn describe(deployments: &[DeploymentStatus], all: bool) -> String {
    let mut rows = Vec::new();
    let mut notes = String::new();
    for status in deployments {
        for generation in status.generations.iter().filter(|g| all || g.phase.runs()) {
            rows.push(row(status, generation));
            if let Some(failure) = &generation.failure {
                notes += &format!("{} generation {}: {failure}\n", status.name, generation.number);
            }
            for task in &generation.tasks {
                if let Some(failure) = &task.failure {
                    notes += &format!("{} partition {}: {failure}\n", status.name, task.partition);
                }
                if let Some(reason) = &task.stands_back {
                    notes += &format!(
                        "{} generation {} partition {} stands back: {reason}\n",
                        status.name, generation.number, task.partition
                    );
                }
            }
        }
        if let Some(pause) = status.last_pause_ms.filter(|_| all) {
            notes += &format!("{}: the last flip held its tasks for {pause:.1} ms\n", status.name);
        }
    }
    let headings =
        ["DEPLOYMENT", "GEN", "PHASE", "PLUGIN", "PROCESSED", "BEHIND", "PER SECOND", "LEFT"];
    table(&headings, &rows) + &notes
}

fn row(status: &DeploymentStatus, generation: &GenerationStatus) -> Vec<String> {
    let progress = &generation.progress;
    let phase = serde_json::to_value(generation.phase).unwrap_or_default();
    let phase = phase.as_str().unwrap_or_default();
    let paused = status.paused && generation.phase == Phase::Live;
    vec![
        status.name.clone(),
        generation.number.to_string(),
        if paused { format!("{phase}, paused") } else { phase.to_owned() },
        format!("{} {}", generation.plugin_name, generation.plugin_version),
        count(progress.records),
        count(progress.remaining),
        count(progress.rate.max(0.0) as u64),
        progress.eta_seconds.map_or_else(String::new, duration),
    ]
}

/// Waits until the live generation has processed what its inputs hold.
pub fn wait_until_current(context: &Context, name: &str) -> Result<(), Error> {
    let bar = Bar::new(context);
    loop {
        let value: Value = context.client.get(&deployment(name, ""), &[])?;
        let status: DeploymentStatus = shaped(&value)?;
        let live = find(&status, status.live)?;
        bar.show(name, live);
        let failed = live.tasks.iter().find_map(|task| task.failure.as_ref());
        if let Some(failure) = live.failure.as_ref().or(failed) {
            bar.finish();
            return Err(Error::Failed(format!("{name} stopped: {failure}")));
        }
        if live.progress.remaining == 0 && live.tasks.iter().all(|task| task.state != "starting") {
            bar.finish();
            let records = count(live.progress.records);
            return context.print(&value, || {
                format!("{name} is live, generation {}; {records} records processed\n", status.live)
            });
        }
        std::thread::sleep(POLL);
    }
}

/// Shows the replay of a candidate until it is live, waits for approval (if `manual`), or has failed.
pub fn wait_for_swap(
    context: &Context,
    name: &str,
    generation: u64,
    manual: bool,
) -> Result<(), Error> {
    let bar = Bar::new(context);
    loop {
        let value: Value = context.client.get(&deployment(name, ""), &[])?;
        let status: DeploymentStatus = shaped(&value)?;
        let candidate = find(&status, u32::try_from(generation).unwrap_or_default())?;
        bar.show(name, candidate);
        let say = |text: String| {
            bar.finish();
            context.print(&value, || text)
        };
        let why = candidate.failure.clone().unwrap_or_else(|| "no reason was given".to_owned());
        match candidate.phase {
            Phase::Live => {
                let pause = status.last_pause_ms.unwrap_or_default();
                return say(format!(
                    "generation {generation} of {name} is live; the flip held its tasks for {pause:.1} ms\n"
                ));
            }
            Phase::CaughtUp if manual => {
                return say(format!(
                    "generation {generation} of {name} has caught up: anabranch promote {name}, or reject\n"
                ));
            }
            Phase::Failed => {
                bar.finish();
                return Err(Error::Failed(format!(
                    "generation {generation} of {name} failed: {why}"
                )));
            }
            Phase::Cancelled | Phase::Rejected => {
                bar.finish();
                let how = if candidate.phase == Phase::Rejected { "rejected" } else { "cancelled" };
                return Err(Error::Gate(format!("generation {generation} of {name} was {how}")));
            }
            // Another operator may have rolled back, or swapped again, while this one waited.
            Phase::Warm | Phase::Retired => {
                return say(format!(
                    "generation {generation} of {name} went live, and is no more\n"
                ));
            }
            Phase::Replaying | Phase::CaughtUp => std::thread::sleep(POLL),
        }
    }
}

fn find(status: &DeploymentStatus, number: u32) -> Result<&GenerationStatus, Error> {
    let found = status.generations.iter().find(|generation| generation.number == number);
    found.ok_or_else(|| {
        Error::Failed(format!("{} has no generation {number} any more", status.name))
    })
}

/// A bar on standard error, where that is a terminal and `json` was not asked for.
fn drawn(json: bool, template: &str) -> ProgressBar {
    let target = match std::io::stderr().is_terminal() && !json {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(None, target);
    bar.set_style(ProgressStyle::with_template(template).expect("a test parses the templates"));
    bar
}

/// The bar of work that is counted in bytes; it goes when it is dropped.
pub struct ByteBar {
    bar: ProgressBar,
}

impl ByteBar {
    /// A bar that says what is done.
    pub fn new(json: bool, what: &'static str) -> Self {
        let bar = drawn(json, BYTE_BAR);
        bar.set_prefix(what);
        Self { bar }
    }

    /// Shows how many bytes of how many are done.
    pub fn show(&self, done: u64, total: u64) {
        self.bar.set_length(total.max(done));
        self.bar.set_position(done);
    }
}

impl Drop for ByteBar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// The bar of a generation.
struct Bar {
    bar: ProgressBar,
}

impl Bar {
    fn new(context: &Context) -> Self {
        Self { bar: drawn(context.json, BAR) }
    }

    fn show(&self, name: &str, generation: &GenerationStatus) {
        let progress = &generation.progress;
        self.bar.set_prefix(format!("{name} g{}", generation.number));
        let rate = count(progress.rate.max(0.0) as u64);
        let left = progress.eta_seconds.map_or_else(|| "-".to_owned(), duration);
        let records = count(progress.records);
        self.bar.set_message(format!("{records} records, {rate}/s, {left} left"));
        self.bar.set_length(progress.records + progress.remaining);
        self.bar.set_position(progress.records);
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
        // A bar that was never drawn leaves nothing behind.
        let _ = std::io::stderr().flush();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status() -> DeploymentStatus {
        let generation = |number: u32, phase: &str, remaining: u64| {
            json!({
                "number": number, "phase": phase, "plugin": "sha256:0", "plugin_name": "p",
                "plugin_version": "1.0.0", "from": "earliest", "created_at": "",
                "failure": (phase == "failed").then_some("trap in partition 0"),
                "progress": {"records": 1000, "remaining": remaining, "rate": 50.0, "eta_seconds": 4.0},
                "tasks": [{
                    "partition": 3, "inputs": [7], "state": "running",
                    "stands_back": (phase == "live").then_some("it is slow"),
                }],
            })
        };
        shaped(&json!({
            "name": "d", "live": 1, "candidate": 2, "paused": true, "last_pause_ms": 1.25,
            "spec": {"name": "d", "plugin": "sha256:0", "inputs": ["t"]},
            "generations": [
                generation(1, "live", 0), generation(2, "replaying", 200), generation(3, "failed", 7),
            ],
        }))
        .unwrap()
    }

    #[test]
    fn the_table_shows_what_runs_and_all_of_one() {
        let table = describe(&[status()], false);
        assert_eq!(table.lines().count(), 4, "{table}");
        assert!(table.ends_with("d generation 1 partition 3 stands back: it is slow\n"), "{table}");
        assert!(table.contains("live, paused") && table.contains("4.0 s"), "{table}");
        let table = describe(&[status()], true);
        assert!(table.contains("d generation 3: trap in partition 0\n"), "{table}");
        assert!(table.ends_with("held its tasks for 1.2 ms\n"), "{table}");
    }

    #[test]
    fn the_bar_can_be_drawn() {
        ProgressStyle::with_template(BAR).unwrap();
        ProgressStyle::with_template(BYTE_BAR).unwrap();
    }
}
