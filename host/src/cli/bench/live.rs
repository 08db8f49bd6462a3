//! Live figures: ingest, latency, and swaps under traffic.

use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};

use super::Bench;
use super::data::{Generator, Shape, Spread};
use super::disk::DiskProbe;
use super::host::Host;
use super::jobs::job;
use super::report::{Bar, Report, Row, median, percentile};
use super::traffic::{Seen, Traffic};
use crate::cli::client::Error;
use crate::cli::commands::{deployment, topic};

/// Records of 100 bytes over 100,000 keys.
const PLAIN: Shape = Shape { record_bytes: 100, keys: 100_000, spread: Spread::Uniform };
/// Records of a request of the ingest.
const INGEST_RECORDS: usize = 10_000;
/// Longest time of one swap.
const SWAP_LIMIT: Duration = Duration::from_secs(300);
/// What is looked at before and after the moment at which a swap's new generation was seen live.
const FLIP_US: (u64, u64) = (1_000_000, 500_000);

impl Bench<'_> {
    /// Bar 4: records a second that producers on the same cores have made durable.
    pub fn measure_ingest(&self, report: &mut Report) -> Result<(), Error> {
        type Body = fn(&mut Generator, usize) -> Vec<u8>;
        let forms: [(&str, &str, Body, f64); 2] = [
            ("ndjson", "application/x-ndjson", Generator::ndjson, 3e5),
            ("arrow", "application/vnd.apache.arrow.stream", Generator::arrow, 6e5),
        ];
        for (form, media_type, body, goal) in forms {
            let mut generator = Generator::new(PLAIN, self.seed);
            let bodies: Vec<_> = (0..16).map(|_| body(&mut generator, INGEST_RECORDS)).collect();
            let name = format!("ingest/{form}");
            let rates = self.ingest_rates(&name, media_type, &bodies)?;
            let label = format!("ingest-{form}");
            let row = Row::new(&label, "ingest", "records/s", self.workers(), rates);
            report.bars.push(Bar::at_least("4", &name, row.median, goal, "records/s"));
            report.rows.push(row);
        }
        Ok(())
    }

    /// Durable records a second, by window, of two producers that send `bodies` over and over.
    fn ingest_rates(
        &self,
        name: &str,
        media_type: &str,
        bodies: &[Vec<u8>],
    ) -> Result<Vec<f64>, Error> {
        const PRODUCERS: usize = 2;
        let host = self.workshop.start("ingest", &[])?;
        host.client().put(&topic("ingest", ""), &json!({"partitions": 1, "format": "json"}))?;
        let window = self.sized(2.0, 0.2);
        let windows = self.sized(6, 2);
        let bar = self.bar(name, windows as u64);
        let clock = &self.workshop.clock;
        let begun = clock.monotonic();
        let counts = Mutex::new(vec![0_u64; windows]);
        std::thread::scope(|scope| {
            let produce = |_| {
                scope.spawn(|| -> Result<(), Error> {
                    for body in bodies.iter().cycle() {
                        host.client().post(&topic("ingest", "/records"), media_type, body)?;
                        let at = ((clock.monotonic() - begun).as_secs_f64() / window) as usize;
                        bar.set_position(at as u64);
                        match counts.lock().unwrap_or_else(|lock| lock.into_inner()).get_mut(at) {
                            Some(count) => *count += INGEST_RECORDS as u64,
                            None => break,
                        }
                    }
                    Ok(())
                })
            };
            let producers: Vec<_> = (0..PRODUCERS).map(produce).collect();
            producers.into_iter().try_for_each(|producer| {
                producer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        })?;
        bar.finish_and_clear();
        host.discard();
        let counts = counts.into_inner().unwrap_or_else(|lock| lock.into_inner());
        // The first window warms up.
        Ok(counts[1..].iter().map(|&count| count as f64 / window).collect())
    }

    /// Bar 5: from the moment a record was due to be produced until a follower of the output has it.
    pub fn measure_latency(&self, report: &mut Report) -> Result<(), Error> {
        let host = self.workshop.start("latency", &[])?;
        host.client().put(&topic("in", ""), &json!({"partitions": 1, "format": "json"}))?;
        self.deploy_and_wait(&host, &job("pass-through")?, "live", "in", 0)?;
        let clock = &self.workshop.clock;
        let traffic = Traffic::start(host.client(), clock, "in", "live-out", 5_000)?;
        // The first second warms up.
        self.let_run(&traffic, "latency: warming up", self.sized(2.0, 0.2))?;
        let (probe, from_us) = (DiskProbe::start(self.workshop.dir(), clock), traffic.now_us());
        self.let_run(&traffic, "latency at 5,000 records/s", self.sized(30.0, 0.5))?;
        let sync_ms = probe.stop()?;
        let (_, followed) = traffic.stop()?;
        let window_us = self.sized(5_000_000, 500_000);
        let mut windows: Vec<Vec<f64>> = Vec::new();
        for seen in followed.iter().filter(|seen| seen.due_us >= from_us) {
            let window = ((seen.due_us - from_us) / window_us) as usize;
            windows.resize_with(windows.len().max(window + 1), Vec::new);
            windows[window].push(seen.at_us.saturating_sub(seen.due_us) as f64 / 1e3);
        }
        // A window that has hardly begun says nothing.
        windows.retain(|latencies| latencies.len() > 100);
        for (share, name, factor) in [(0.5, "p50", 6.0), (0.99, "p99", 15.0)] {
            let runs = windows.iter().map(|latencies| percentile(latencies, share)).collect();
            let row = Row::new("latency", name, "ms", self.workers(), runs);
            let goal = factor * sync_ms + 2.0;
            report.bars.push(Bar::at_most("5", &format!("latency/{name}"), row.median, goal, "ms"));
            report.rows.push(row);
        }
        report.rows.push(Row::new("latency", "fdatasync", "ms", self.workers(), vec![sync_ms]));
        host.discard();
        Ok(())
    }

    /// Bar 6: what followers and producers notice of swaps, with little and with much history.
    pub fn measure_swaps(&self, report: &mut Report) -> Result<(), Error> {
        let mut typical = Vec::new();
        for records in self.sized([1_000_000, 20_000_000], [20_000, 60_000]) {
            let host = self.workshop.start("swaps", &[])?;
            let swaps = self.swap_under_traffic(&host, records)?;
            let name = format!("swap-{}k", records / 1_000);
            let mut row = |measure: &str, runs: Vec<f64>| {
                report.rows.push(Row::new(&name, measure, "ms", self.workers(), runs));
            };
            let goal = (5.0 * swaps.sync_ms).max(20.0);
            let longest = |gaps: &[f64]| gaps.iter().copied().fold(0.0, f64::max);
            let excess = longest(&swaps.follower).max(longest(&swaps.producer)) - swaps.without_ms;
            typical.push(median(&swaps.follower).max(median(&swaps.producer)));
            row("longest gap, follower", swaps.follower);
            row("longest gap, producer", swaps.producer);
            row("longest gap without a swap", swaps.without);
            row("pause", swaps.pauses);
            row("fdatasync", vec![swaps.sync_ms]);
            let what = format!("{name}/excess gap");
            report.bars.push(Bar::at_most("6", &what, excess.max(0.0), goal, "ms"));
            if let [little, much] = typical[..] {
                let what = "swap/gap with much history beyond that with little";
                report.bars.push(Bar::at_most("6", what, (much - little).max(0.0), goal, "ms"));
            }
            host.discard();
        }
        Ok(())
    }

    fn swap_under_traffic(&self, host: &Host, records: u64) -> Result<Swaps, Error> {
        let (clock, filter) = (&self.workshop.clock, job("filter")?);
        self.produce_history(host, "in", 1, PLAIN, records)?;
        self.seal(host)?;
        self.deploy_and_wait(host, &filter, "live", "in", records)?;
        let rate = self.sized(20_000, 2_000);
        let traffic = Traffic::start(host.client(), clock, "in", "live-out", rate)?;
        let probe = DiskProbe::start(self.workshop.dir(), clock);
        self.let_run(&traffic, "swaps: warming up", self.sized(2.0, 0.2))?;
        let quiet_from = traffic.now_us();
        let (count, window) = (self.sized(30, 2), FLIP_US.0 + FLIP_US.1);
        // As long as is looked at around each flip, as often.
        let quiet = count as f64 * window as f64 / 1e6;
        self.let_run(&traffic, "swaps: without a swap", self.sized(quiet, 0.5))?;
        let quiet_to = traffic.now_us();
        let digest = filter.push(host.client(), &self.plugins)?;
        let bar = self.bar(&format!("swaps over {records} records"), count);
        let (mut live_us, mut pauses) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let request = json!({"plugin": digest, "from": "earliest", "approve": "auto"});
            let started = self.begin_swap(host, &request)?;
            pauses.push(self.await_swap(host, &started["generation"])?);
            live_us.push(traffic.now_us());
            // So that what is looked at around the next flip is of that swap alone.
            self.let_run(&traffic, "", self.sized(window as f64 / 1e6, 0.5))?;
            bar.inc(1);
        }
        bar.finish_and_clear();
        let sync_ms = probe.stop()?;
        let (acknowledged, followed) = traffic.stop()?;
        let around = |seen: &[Seen]| -> Vec<f64> {
            let from = |at: u64| quiet_from.max(at - FLIP_US.0);
            live_us.iter().map(|&at| longest_gap_ms(seen, from(at), at + FLIP_US.1)).collect()
        };
        let quiet = |seen: &[Seen]| -> Vec<f64> {
            let spans = ((quiet_to - quiet_from) / window).max(1);
            let starts = (0..spans).map(|span| quiet_from + span * window);
            starts.map(|from| longest_gap_ms(seen, from, from + window)).collect()
        };
        let (follower, producer) = (around(&followed), around(&acknowledged));
        let (quiet_follower, quiet_producer) = (quiet(&followed), quiet(&acknowledged));
        let without_ms = median(&quiet_follower).max(median(&quiet_producer));
        let without = quiet_follower.into_iter().zip(quiet_producer);
        let without = without.map(|(followed, produced)| f64::max(followed, produced)).collect();
        Ok(Swaps { follower, producer, without, without_ms, pauses, sync_ms })
    }

    /// Asks for a swap, again while the host is still busy with the end of the one before.
    fn begin_swap(&self, host: &Host, request: &Value) -> Result<Value, Error> {
        let (path, body) = (deployment("live", "/swap"), request.to_string());
        let begun = self.workshop.clock.monotonic();
        loop {
            match host.client().post(&path, "application/json", body.as_bytes()) {
                Err(Error::Refused { status: 409, .. })
                    if self.workshop.clock.monotonic() - begun < SWAP_LIMIT =>
                {
                    std::thread::sleep(Duration::from_millis(20));
                }
                result => return result,
            }
        }
    }

    /// Waits until the candidate is live; returns the pause that the host says it made, in
    /// milliseconds.
    fn await_swap(&self, host: &Host, generation: &Value) -> Result<f64, Error> {
        let begun = self.workshop.clock.monotonic();
        loop {
            let status: Value = host.client().get(&deployment("live", ""), &[])?;
            if &status["live"] == generation {
                return Ok(status["last_pause_ms"].as_f64().unwrap_or_default());
            }
            let all = status["generations"].as_array().into_iter().flatten();
            let failed =
                all.filter(|g| &g["number"] == generation).find_map(|g| g["failure"].as_str());
            if let Some(failure) = failed {
                return Err(Error::Failed(format!("the swap failed: {failure}")));
            }
            if self.workshop.clock.monotonic() - begun > SWAP_LIMIT {
                return Err(Error::Failed(format!("no swap within {} s", SWAP_LIMIT.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Lets traffic flow for some seconds.
    fn let_run(&self, traffic: &Traffic, what: &str, seconds: f64) -> Result<(), Error> {
        let steps = (seconds * 10.0).ceil() as u64;
        let bar = self.bar(what, steps);
        for _ in 0..steps {
            std::thread::sleep(Duration::from_secs_f64(seconds / steps as f64));
            bar.inc(1);
            if traffic.has_failed() {
                break;
            }
        }
        bar.finish_and_clear();
        Ok(())
    }
}

/// What swaps did, a value each, in milliseconds.
struct Swaps {
    follower: Vec<f64>,
    producer: Vec<f64>,
    /// Of each span without a swap, a follower's or a producer's, whichever is longer.
    without: Vec<f64>,
    /// What the longest is compared with: the median of spans without a swap.
    without_ms: f64,
    pauses: Vec<f64>,
    sync_ms: f64,
}

/// The longest time between two of `seen`, which are in order, within a span of time; from its
/// beginning and to its end too.
fn longest_gap_ms(seen: &[Seen], from_us: u64, to_us: u64) -> f64 {
    let within = seen.iter().map(|seen| seen.at_us).filter(|at| (from_us..to_us).contains(at));
    let (mut last, mut longest) = (from_us, 0);
    for at in within.chain([to_us]) {
        longest = longest.max(at - last);
        last = at;
    }
    longest as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_found_within_the_span_and_at_its_edges() {
        let seen: Vec<Seen> =
            [0, 1_000, 2_000, 7_000, 8_000].map(|at_us| Seen { at_us, due_us: 0 }).to_vec();
        assert_eq!(longest_gap_ms(&seen, 0, 8_500), 5.0);
        assert_eq!(longest_gap_ms(&seen, 0, 2_500), 1.0);
        assert_eq!(longest_gap_ms(&seen, 7_500, 20_000), 12.0);
    }
}
