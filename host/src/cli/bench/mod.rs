//! `bench`: what this host does on this machine, measured from outside.
//!
//! A real `serve` of the same program, in a directory of its own, is given records over HTTP and
//! deployments of the plugins in plugins/bench; figures come from its answers, its metrics, and what the
//! kernel says of its process. [`report`] holds rows and bars; `host/docs/performance.md` says what each
//! bar means.
//!
//! **Invariant:** nothing here reaches into the host but by what any user could ask.

mod data;
mod disk;
mod host;
mod jobs;
mod large;
mod live;
mod replay;
mod report;
#[cfg(feature = "native")]
pub mod sandbox;
mod traffic;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use self::data::{Shape, Spread};
use self::disk::Volume;
use self::host::Workshop;
use self::jobs::{JOBS, Job};
use self::replay::Replays;
use self::report::{Report, Row};
use super::args;
use super::client::Error;
use super::commands::Context;

/// The longest that all of it may take.
const LIMIT: Duration = Duration::from_secs(3 * 3600);
/// The same with `--quick`.
const QUICK_LIMIT: Duration = Duration::from_secs(180);
/// What is measured beside the jobs.
const MEASURES: [&str; 7] = ["disk", "workers", "ingest", "latency", "swaps", "scale", "idle"];
/// Threads that take less of a record are not shown.
const LEAST_NS: f64 = 1.0;
/// The progress bar of a step.
const BAR: &str = "{prefix:32} {wide_bar} {percent:>3} %  {per_sec}";

/// Runs the command.
pub fn run(context: &Context, args: &args::Bench) -> Result<(), Error> {
    let known = || JOBS.iter().map(|job| job.name).chain(MEASURES);
    if let Some(unknown) = args.job.iter().find(|name| known().all(|known| known != name.as_str()))
    {
        let known: Vec<_> = known().collect();
        let known = known.join(", ");
        return Err(Error::Usage(format!("--job {unknown}: there is none; there are {known}")));
    }
    let replayed = |name: &str| JOBS.iter().any(|job| job.name == name);
    if args.records.is_some()
        && let Some(other) = args.job.iter().find(|name| !replayed(name))
    {
        let message =
            format!("--job {other}: with --records only jobs are replayed; leave one out");
        return Err(Error::Usage(message));
    }
    let bench = Bench::open(context, args)?;
    let wanted = |name: &str| args.job.is_empty() || args.job.iter().any(|job| job == name);
    bench.report(|bench, report| bench.measure(&wanted, report))
}

/// Where the plugins are.
pub fn guest_dir(args: &args::Bench) -> PathBuf {
    args.plugins.clone().unwrap_or_else(jobs::usual_plugins)
}

/// What all measurements share.
struct Bench<'a> {
    context: &'a Context,
    workshop: Workshop,
    /// Where the plugins are.
    plugins: PathBuf,
    /// Whether sizes are tiny.
    quick: bool,
    seed: u64,
    /// Records of the replays that are all that is measured.
    records: Option<u64>,
    /// Workers of their host.
    replay_workers: usize,
}

impl<'a> Bench<'a> {
    /// A directory to work in.
    fn open(context: &'a Context, args: &args::Bench) -> Result<Self, Error> {
        let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
        let limit = if args.quick { QUICK_LIMIT } else { LIMIT };
        Ok(Self {
            context,
            workshop: Workshop::open(&parent, limit, context.clock.clone())?,
            plugins: guest_dir(args),
            quick: args.quick,
            seed: args.seed,
            records: args.records,
            replay_workers: args.workers.map_or_else(cores, |workers| workers as usize),
        })
    }

    /// Measures, and prints what came of it: also what was measured before something failed, or before
    /// the benchmark was told to end, which ends the process.
    fn report(
        self,
        measure: impl FnOnce(&Self, &mut Report) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let volume = Volume::of(self.workshop.dir());
        let mut report = Report { volume, unsealed: self.quick, ..Report::default() };
        let done = measure(&self, &mut report);
        let printed = match report.rows.is_empty() {
            true => Ok(()),
            false => self.context.print(&report.json(), || report.text()),
        };
        self.workshop.close(done.is_err());
        done.and(printed)
    }

    /// Everything that is wanted.
    fn measure(&self, wanted: &dyn Fn(&str) -> bool, report: &mut Report) -> Result<(), Error> {
        if let Some(records) = self.records {
            return self.measure_replays(records, wanted, report);
        }
        self.measure_jobs(wanted, report)?;
        for measure in MEASURES.into_iter().filter(|measure| wanted(measure)) {
            match measure {
                "disk" => self.measure_disk(report)?,
                "workers" => self.measure_workers(report)?,
                "ingest" => self.measure_ingest(report)?,
                "latency" => self.measure_latency(report)?,
                "swaps" => self.measure_swaps(report)?,
                "scale" => self.measure_scale(report)?,
                _ => self.measure_idle(report)?,
            }
        }
        Ok(())
    }

    /// How often a measurement is repeated.
    fn runs(&self) -> usize {
        if self.quick { 1 } else { 3 }
    }

    /// `full`, or `quick` with `--quick`.
    fn sized<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// Worker threads of a host that is not told: one a core.
    fn workers(&self) -> usize {
        cores()
    }

    /// A bar on standard error, where that is a terminal.
    fn bar(&self, what: &str, length: u64) -> ProgressBar {
        if self.context.json || !std::io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template(BAR).expect("a test parses the template");
        bar.with_style(style).with_prefix(what.to_owned())
    }

    /// The replay rate of each wanted job over one history such as other systems are given, and where its
    /// processor time goes.
    fn measure_replays(
        &self,
        records: u64,
        wanted: &dyn Fn(&str) -> bool,
        report: &mut Report,
    ) -> Result<(), Error> {
        let keys = (100_000, Spread::Uniform);
        let shape = Shape { record_bytes: 100, keys: keys.0, spread: keys.1 };
        let workers = self.replay_workers;
        let host = self.workshop.start("replays", &[("TASKS_WORKERS", workers.to_string())])?;
        self.produce_history(&host, "history", 1, shape, records)?;
        self.seal(&host)?;
        for job in JOBS.into_iter().filter(|job| wanted(job.name)) {
            let Replays { rates, processor_ns } = self.replays(&host, &job, "history", records)?;
            let job = job.label(keys);
            report.rows.push(Row::new(&job, "replay", "records/s", workers, rates));
            let mut threads: Vec<Row> = processor_ns
                .into_iter()
                .map(|(thread, ns)| {
                    Row::new(&job, &format!("processor, {thread}"), "ns/record", workers, ns)
                })
                .filter(|row| row.median >= LEAST_NS)
                .collect();
            threads.sort_by(|a, b| b.median.total_cmp(&a.median));
            report.rows.extend(threads);
        }
        host.discard();
        Ok(())
    }

    /// The replay rate of each wanted job by size of records, partitions and keys.
    fn measure_jobs(
        &self,
        wanted: &dyn Fn(&str) -> bool,
        report: &mut Report,
    ) -> Result<(), Error> {
        let wanted: Vec<Job> = JOBS.into_iter().filter(|job| wanted(job.name)).collect();
        let mut keys: Vec<_> = wanted.iter().flat_map(|job| job.keys).copied().collect();
        keys.sort_by_key(|(keys, spread)| (*keys, *spread as u8));
        keys.dedup();
        let sizes = self.sized(&[(100, 2_000_000), (1_024, 1_000_000)][..], &[(100, 20_000)]);
        for &(record_bytes, records) in sizes {
            for &partitions in self.sized(&[1, 2, 4][..], &[2]) {
                for &(keys, spread) in self.sized(&keys[..], &keys[..keys.len().min(1)]) {
                    let shape = Shape { record_bytes, keys, spread };
                    let host = self.workshop.start("jobs", &[])?;
                    self.produce_history(&host, "history", partitions, shape, records)?;
                    self.seal(&host)?;
                    for job in wanted.iter().filter(|job| job.keys.contains(&(keys, spread))) {
                        let rates = self.replays(&host, job, "history", records)?.rates;
                        let label = job.label((keys, spread));
                        let row = Row::new(&label, "replay", "records/s", self.workers(), rates);
                        report.rows.push(Row { record_bytes, partitions, ..row });
                    }
                    host.discard();
                }
            }
        }
        Ok(())
    }
}

/// Cores of this machine.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_can_be_drawn() {
        ProgressStyle::with_template(BAR).unwrap();
    }
}
