//! Anabranch's own rows, as `anabranch bench` prints them.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::arguments::Job;
use super::arguments::System;
use super::child::{Child, tied};
use super::command::Shop;
use super::report::{Row, VALUE_BYTES};
use crate::steps::{cargo, guest_dir, root, target};

/// What the command must be able to do: as many records as the peers have, and one worker.
const OPTIONS: [&str; 2] = ["--records", "--workers"];

/// How long a release build may take.
const BUILD: Duration = Duration::from_secs(2400);

/// How long the jobs may take.
const RUN: Duration = Duration::from_secs(900);

/// Builds the host as a release, and the plugins.
///
/// # Errors
/// When one does not compile, or the host has no `bench` that can be compared.
pub fn build(shop: &Shop) -> Result<()> {
    shop.say("cargo builds the host as a release, and the plugins");
    let release = cargo(&["build", "--release", "--package", "anabranch"]);
    Child::start("host", below_watch(&release), &shop.run)?.end(BUILD)?;
    let mut guests = tied(std::env::current_exe()?);
    guests.arg("guests").current_dir(root());
    Child::start("guests", guests, &shop.run)?.end(BUILD)?;
    let mut help = program();
    let help = help.args(["bench", "--help"]).stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&help.stdout);
    ensure!(
        help.status.success() && OPTIONS.iter().all(|option| text.contains(option)),
        "anabranch bench is not built: this host has no `bench` with {}; name the other systems with --system",
        OPTIONS.join(" and ")
    );
    Ok(())
}

/// Measures the jobs.
///
/// # Errors
/// When the bench fails, or does not say what it was asked.
pub fn rows(shop: &Shop, jobs: &[Job], records: u64) -> Result<Vec<Row>> {
    let jobs: Vec<Job> = jobs.iter().copied().filter(|job| System::Anabranch.does(*job)).collect();
    let mut bench = below_watch(&program());
    bench.args(["bench", "--json", "--workers", "1", "--records", &records.to_string()]);
    bench.args(jobs.iter().flat_map(|job| ["--job", name(*job)]));
    bench.arg("--plugins").arg(guest_dir()).arg("--dir").arg(&shop.run);
    let said = Child::start("anabranch", bench, &shop.run)?.end(RUN)?;
    let said: Value = serde_json::from_str(&said).context("what anabranch bench printed")?;
    jobs.into_iter().map(|job| row(&said, job)).collect()
}

/// The row of a job among all that were printed.
fn row(said: &Value, job: Job) -> Result<Row> {
    let rows = said["rows"].as_array().context("anabranch bench printed no rows")?;
    let fits = |row: &&Value| {
        row["job"] == label(job)
            && row["measure"] == "replay"
            && row["record_bytes"] == VALUE_BYTES
            && row["partitions"] == 1
            && row["workers"] == 1
    };
    let Some(row) = rows.iter().find(fits) else {
        bail!("anabranch bench has no replay of {} by one worker", label(job));
    };
    let runs = row["runs"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
    Ok(Row::new(System::Anabranch, job, runs))
}

/// What `anabranch bench --job` calls it.
fn name(job: Job) -> &'static str {
    match job {
        Job::PassThrough | Job::Filter | Job::JsonMap => job.name(),
        Job::Count | Job::CountRocksdb => "count",
    }
}

/// What its rows call it.
fn label(job: Job) -> &'static str {
    match job {
        Job::PassThrough | Job::Filter | Job::JsonMap => job.name(),
        Job::Count | Job::CountRocksdb => "count-100k-uniform",
    }
}

/// The host, built as a release.
fn program() -> Command {
    let mut command = Command::new(target().join("release/anabranch"));
    command.current_dir(root());
    command
}

/// A command that ends with this process.
fn below_watch(command: &Command) -> Command {
    let mut below = tied(command.get_program());
    below.args(command.get_args()).current_dir(root());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => below.env(name, value),
            None => below.env_remove(name),
        };
    }
    below
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_row_is_that_of_one_worker_and_one_partition() {
        let row_of = |workers: u32, partitions: u32, rate: f64| {
            json!({"job": "count-100k-uniform", "measure": "replay", "record_bytes": 100,
                   "workers": workers, "partitions": partitions, "runs": [rate]})
        };
        let said = json!({"rows": [row_of(2, 1, 1.0), row_of(1, 2, 2.0), row_of(1, 1, 3.0)]});
        assert_eq!(row(&said, Job::Count).unwrap().runs, [3.0]);
        let error = row(&said, Job::Filter).unwrap_err().to_string();
        assert!(error.contains("no replay of filter"), "{error}");
    }
}
