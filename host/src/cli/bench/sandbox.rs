//! Bar 1: the same pipeline with the plugin in the sandbox and natively. Only the program of
//! `cargo bench --bench sandbox` has native plugins; it calls this.

use super::data::{Shape, Spread};
use super::jobs::job;
use super::report::{Bar, Report, Row, median};
use super::{Bench, Context};
use crate::cli::client::Error;

/// Records of 100 bytes over 100,000 keys.
const PLAIN: Shape = Shape { record_bytes: 100, keys: 100_000, spread: Spread::Uniform };

/// What a job's calls take without a pipeline, in nanoseconds a record, of several repeats.
#[derive(Debug)]
pub struct SandboxCall {
    /// The job.
    pub job: String,
    /// In the sandbox.
    pub guest_ns: Vec<f64>,
    /// Natively.
    pub native_ns: Vec<f64>,
}

/// Measures the pipelines, and prints them beside the `calls`.
///
/// # Errors
/// When a host or a job fails.
pub fn run(
    context: &Context,
    args: &super::args::Bench,
    calls: Vec<SandboxCall>,
) -> Result<(), Error> {
    Bench::open(context, args)?.report(|bench, report| {
        for call in calls {
            for (label, ns) in [("in the sandbox", call.guest_ns), ("natively", call.native_ns)] {
                let job = format!("{}, {label}", call.job);
                report.rows.push(Row::new(&job, "call", "ns/record", 1, ns));
            }
        }
        bench.measure_pipelines(report)
    })
}

impl Bench<'_> {
    /// Both pipelines of each job over one history, in turn, so that neither has the better weather.
    fn measure_pipelines(&self, report: &mut Report) -> Result<(), Error> {
        let records = self.sized(3_000_000, 20_000);
        let host = self.workshop.start("sandbox", &[])?;
        self.produce_history(&host, "history", 1, PLAIN, records)?;
        self.seal(&host)?;
        host.stop()?;
        let goals = [("pass-through", 0.85), ("filter", 0.85), ("json-map", 0.7), ("count", 0.7)];
        let mut rates: Vec<[Vec<f64>; 2]> = goals.iter().map(|_| Default::default()).collect();
        for round in 0..self.runs() {
            for (way, settings) in
                [vec![], vec![("BENCH_NATIVE", "1".to_owned())]].iter().enumerate()
            {
                let host = self.workshop.start("sandbox", settings)?;
                for ((name, _), rates) in goals.iter().zip(&mut rates) {
                    let deployed = format!("{name}-{round}-{way}");
                    for warm in [false, true] {
                        let job = job(name)?;
                        let seconds =
                            self.deploy_and_wait(&host, &job, &deployed, "history", records)?;
                        self.undeploy(&host, &deployed)?;
                        if warm {
                            rates[way].push(records as f64 / seconds);
                        }
                    }
                }
                host.stop()?;
            }
        }
        for ((name, goal), [guest, native]) in goals.into_iter().zip(rates) {
            // Each round's pair ran one after the other.
            let ratios: Vec<f64> = guest.iter().zip(&native).map(|(g, n)| g / n).collect();
            let what = format!("sandbox/{name}");
            report.bars.push(Bar::at_least("1", &what, median(&ratios), goal, "ratio"));
            for (label, rates) in [("in the sandbox", guest), ("natively", native)] {
                let job = format!("{name}, {label}");
                report.rows.push(Row::new(&job, "replay", "records/s", self.workers(), rates));
            }
        }
        Ok(())
    }
}
