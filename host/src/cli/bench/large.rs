//! Figures of size: long histories, many deployments, two workers.

use std::time::Duration;

use super::Bench;
use super::data::{Generator, KEY_BYTES, Shape, Spread, compressed_numbers};
use super::host::Host;
use super::jobs::{Job, job};
use super::report::{Bar, Report, Row, median};
use crate::cli::client::Error;
use crate::cli::commands::deployment;

/// Records of 100 bytes over 100,000 keys.
const PLAIN: Shape = Shape { record_bytes: 100, keys: 100_000, spread: Spread::Uniform };
/// Records that each idle deployment has read before it has nothing to do.
const QUIET_RECORDS: u64 = 100;
/// Longest time in which they read them.
const STALLED: Duration = Duration::from_secs(120);
/// Clients that deploy at once.
const DEPLOYERS: u64 = 4;
/// A million bytes.
const MB: f64 = 1e6;

impl Bench<'_> {
    /// Bar 7: a history ten times as long.
    pub fn measure_scale(&self, report: &mut Report) -> Result<(), Error> {
        let job = job("pass-through")?;
        let mut typical = Vec::new();
        for records in self.sized([5_000_000, 50_000_000], [20_000, 60_000]) {
            let host = self.workshop.start("scale", &[])?;
            self.produce_history(&host, "history", 2, PLAIN, records)?;
            self.seal(&host)?;
            self.deploy_and_wait(&host, &job, "scale", "history", records)?;
            let (disk, head) = host.disk_bytes();
            // It keeps what it has; each of these goes before the next one.
            let rates = self.replays(&host, &job, "history", records)?.rates;
            let (_, peak) = host.memory_bytes();
            host.stop()?;
            let mut ready = Vec::new();
            for left in (0..self.runs()).rev() {
                let host = self.workshop.start("scale", &[])?;
                ready.push(host.ready_seconds);
                match left {
                    0 => host.discard(),
                    _ => host.stop()?,
                }
            }
            typical.push(median(&rates));
            if let [short, long] = typical[..] {
                report.bars.extend([
                    Bar::at_least("7", "scale/replay rate", long / short, 0.9, "ratio"),
                    Bar::at_most("7", "scale/ready", median(&ready), 1.0, "s"),
                    Bar::at_most("7", "scale/memory", peak as f64 / MB, 400.0, "MB"),
                ]);
            }
            // The input, and the output, which is the input again.
            let compressed = 2.0 * self.compressed_bytes(PLAIN, records);
            let numbers = self.compressed_numbers(PLAIN, records);
            let files = disk.saturating_sub(head) as f64;
            if typical.len() == 2 {
                let what = "scale/disk without the head, compressed data";
                report.bars.push(Bar::at_most("7", what, files / compressed, 1.3, "ratio"));
            }
            let figures = [
                ("replay", "records/s", rates),
                ("memory, highest", "MB", vec![peak as f64 / MB]),
                ("disk", "MB", vec![disk as f64 / MB]),
                ("disk of the head", "MB", vec![head as f64 / MB]),
                ("compressed data", "MB", vec![compressed / MB]),
                ("compressed offsets and ends", "MB", vec![numbers / MB]),
                ("ready after", "s", ready),
            ];
            let name = format!("scale-{}k", records / 1_000);
            for (measure, unit, values) in figures {
                let row = Row::new(&name, measure, unit, self.workers(), values);
                report.rows.push(Row { partitions: 2, ..row });
            }
        }
        Ok(())
    }

    /// What records take compressed, by those at the beginning.
    fn compressed_bytes(&self, shape: Shape, records: u64) -> f64 {
        const SAMPLE: u64 = 100_000;
        let sample = records.min(SAMPLE);
        let bytes = Generator::new(shape, self.seed).compressed_bytes(sample as usize);
        bytes as f64 * records as f64 / sample as f64
    }

    /// What offsets and ends take compressed: those of keys and of values in input and output, and the
    /// output's of its sources.
    fn compressed_numbers(&self, shape: Shape, records: u64) -> f64 {
        // A block of a segment has no more.
        const SAMPLE: usize = 32_768;
        let [offsets, value_ends] = compressed_numbers(shape.record_bytes, SAMPLE);
        let [_, key_ends] = compressed_numbers(KEY_BYTES, SAMPLE);
        let all = 3 * offsets + 2 * (key_ends + value_ends);
        all as f64 * records as f64 / SAMPLE as f64
    }

    /// Bar 8: what deployments cost that have nothing to do.
    pub fn measure_idle(&self, report: &mut Report) -> Result<(), Error> {
        let (busy, records) = (job("pass-through")?, self.sized(10_000_000, 20_000));
        let host = self.workshop.start("idle", &[])?;
        self.produce_history(&host, "history", 2, PLAIN, records)?;
        self.seal(&host)?;
        let alone = self.replays(&host, &busy, "history", records)?.rates;
        host.stop()?;
        // A host that has done nothing yet: what replays have left in memory would hide what idle ones
        // take.
        let host = self.workshop.start("idle", &[])?;
        self.produce_history(&host, "quiet", 1, PLAIN, QUIET_RECORDS)?;
        let (before, _) = host.memory_bytes();
        let count = self.sized(1_000, 10);
        self.deploy_idle(&host, &job("count")?, count)?;
        let (after, _) = host.memory_bytes();
        let beside = self.replays(&host, &busy, "history", records)?.rates;
        let each = after.saturating_sub(before) as f64 / count as f64 / MB;
        let ratio = median(&beside) / median(&alone);
        for (name, rates) in [("busy alone", alone), ("busy beside idle", beside)] {
            let row = Row::new(name, "replay", "records/s", self.workers(), rates);
            report.rows.push(Row { partitions: 2, ..row });
        }
        report.rows.push(Row::new("idle", "memory each", "MB", self.workers(), vec![each]));
        report.bars.extend([
            Bar::at_most("8", "idle/memory each", each, 1.0, "MB"),
            // What lies within the noise of the same replay, run again.
            Bar::at_least("8", "idle/rate of a busy one", ratio, 0.95, "ratio"),
        ]);
        host.discard();
        Ok(())
    }

    /// Deploys `job` `count` times over the topic `quiet`, and waits until each has read it.
    fn deploy_idle(&self, host: &Host, job: &Job, count: u64) -> Result<(), Error> {
        let digest = job.push(host.client(), &self.plugins)?;
        let bar = self.bar("deploying what is idle", count);
        std::thread::scope(|scope| {
            let deploy = |first| {
                let (digest, bar) = (&digest, &bar);
                scope.spawn(move || -> Result<(), Error> {
                    for number in (first..count).step_by(DEPLOYERS as usize) {
                        let name = format!("idle-{number}");
                        let spec = job.deployment(&name, digest, "quiet", &format!("{name}-out"));
                        host.client().put(&deployment(&name, ""), &spec)?;
                        bar.inc(1);
                    }
                    Ok(())
                })
            };
            let deployers: Vec<_> = (0..DEPLOYERS).map(deploy).collect();
            deployers.into_iter().try_for_each(|deployer| {
                deployer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        })?;
        bar.finish_and_clear();
        let begun = self.workshop.clock.monotonic();
        while host.metric("anabranch_lag_records")? > 0.0 {
            if self.workshop.clock.monotonic() - begun > STALLED {
                return Err(Error::Failed("deployments do not read what is there".to_owned()));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Bar 3: one host with two workers and two partitions against two hosts of one each, on a core of
    /// their own. The speed-ups are over one such copy alone, so their ratio is that of the rates.
    pub fn measure_workers(&self, report: &mut Report) -> Result<(), Error> {
        let records = self.sized(2_000_000, 20_000);
        let one = [("TASKS_WORKERS", "1".to_owned())];
        for name in ["pass-through", "json-map"] {
            let job = job(name)?;
            let host = self.workshop.start("two", &[("TASKS_WORKERS", "2".to_owned())])?;
            self.produce_history(&host, "history", 2, PLAIN, 2 * records)?;
            self.seal(&host)?;
            let together = self.replays(&host, &job, "history", 2 * records)?.rates;
            host.discard();
            let copies = [0, 1].map(|core| -> Result<Host, Error> {
                let host = self.workshop.start_on(&format!("copy-{core}"), &one, Some(core))?;
                self.produce_history(&host, "history", 1, PLAIN, records)?;
                self.seal(&host)?;
                Ok(host)
            });
            let [first, second] = copies;
            let (first, second) = (first?, second?);
            let alone = self.replays(&first, &job, "history", records)?.rates;
            let rates = std::thread::scope(|scope| -> Result<Vec<f64>, Error> {
                let other = scope.spawn(|| self.replays(&second, &job, "history", records));
                let mine = self.replays(&first, &job, "history", records)?.rates;
                let other =
                    other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                Ok(mine.iter().zip(other.rates).map(|(a, b)| a + b).collect())
            })?;
            let ratio = median(&together) / median(&rates);
            let figures = [
                ("two workers", 2, 2, together),
                ("one copy", 1, 1, alone),
                ("two copies", 2, 2, rates),
            ];
            for (what, workers, partitions, rates) in figures {
                let label = format!("{name}, {what}");
                let row = Row::new(&label, "replay", "records/s", workers, rates);
                report.rows.push(Row { partitions, ..row });
            }
            let what = format!("workers/{name}");
            report.bars.push(Bar::at_least("3", &what, ratio, 0.85, "ratio"));
            first.discard();
            second.discard();
        }
        Ok(())
    }
}
