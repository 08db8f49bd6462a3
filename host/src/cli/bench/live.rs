//! Live figures: ingest, latency, and swaps under traffic.

use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};

use super::Bench;
use super::data::{Generator, Shape, Spread};
use super::disk::{DiskProbe, Syncs};
use super::host::Host;
use super::jobs::job;
use super::report::{Bar, Report, Row, median, percentile};
use super::traffic::{Seen, Traffic, Witnesses};
use crate::cli::client::Error;
use crate::cli::commands::{deployment, topic};

/// Records of 100 bytes over 100,000 keys.
const PLAIN: Shape = Shape { record_bytes: 100, keys: 100_000, spread: Spread::Uniform };
/// Records of a request of the ingest.
const INGEST_RECORDS: usize = 10_000;
/// Longest time of one swap.
const SWAP_LIMIT: Duration = Duration::from_secs(300);
/// What is looked at of a swap: from when it was asked for until so long after its generation was seen live.
const AFTERWARDS_US: u64 = 500_000;
/// What differs by less between little and much history is the same: medians of spans without any swap
/// differ by as much from one minute to the next.
const SAME_MS: f64 = 10.0;
/// A sync of the probe that takes longer counts as a stop of the disk.
const STOP_MS: f64 = 5.0;

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
        let syncs_ms = probe.stop()?.millis();
        let followed = traffic.stop()?.follower;
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
            let goal = factor * median(&syncs_ms) + 2.0;
            report.bars.push(Bar::at_most("5", &format!("latency/{name}"), row.median, goal, "ms"));
            report.rows.push(row);
        }
        let longest = windows.iter().map(|latencies| percentile(latencies, 1.0)).collect();
        report.rows.push(Row::new("latency", "longest", "ms", self.workers(), longest));
        report.rows.push(Row::new("latency", "fdatasync", "ms", self.workers(), syncs_ms.into()));
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
            let goal = (5.0 * swaps.syncs.millis()[1]).max(20.0);
            let what = format!("{name}/excess gap");
            report.bars.push(Bar::at_most("6", &what, swaps.excess_ms(longest), goal, "ms"));
            typical.push(swaps.excess_ms(median));
            if let [little, much] = typical[..] {
                let what = "swap/typical excess gap, much history against little";
                let apart = (much - little).abs();
                report.bars.push(Bar::at_most("6", what, apart, SAME_MS, "ms"));
            }
            let mut row = |measure: &str, unit: &str, runs: Vec<f64>| {
                report.rows.push(Row::new(&name, measure, unit, self.workers(), runs));
            };
            row("longest gap, follower", "ms", millis(&swaps.during.follower));
            row("longest gap, producer", "ms", millis(&swaps.during.producer));
            row("without a swap, follower", "ms", millis(&swaps.without.follower));
            row("without a swap, producer", "ms", millis(&swaps.without.producer));
            row("fdatasync", "ms", swaps.syncs.millis().into());
            row("fdatasync within the longest gap", "ms", vec![swaps.sync_within_longest_ms()]);
            let undisturbed = swaps.excess_without_stops_ms();
            row("swaps without a stop of the disk", "swaps", vec![undisturbed.len() as f64]);
            row("excess gap of these", "ms", undisturbed);
            row("swap", "ms", swaps.took);
            row("pause", "ms", swaps.pauses);
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
        let count = self.sized(30, 2);
        let digest = filter.push(host.client(), &self.plugins)?;
        let bar = self.bar(&format!("swaps over {records} records"), count);
        let (mut spans, mut took, mut pauses) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..count {
            let request = json!({"plugin": digest, "from": "earliest", "approve": "auto"});
            let (started, from_us) = self.begin_swap(host, &request)?;
            pauses.push(self.await_swap(host, &started["generation"])?);
            let live_us = traffic.now_us();
            took.push((live_us - from_us) as f64 / 1e3);
            spans.push((from_us, live_us + AFTERWARDS_US));
            // So that what is looked at of the next swap is that swap's alone.
            self.let_run(&traffic, "", 2.0 * AFTERWARDS_US as f64 / 1e6)?;
            bar.inc(1);
        }
        bar.finish_and_clear();
        // As often, for as long as a swap took.
        let span_us = median(&took) as u64 * 1_000 + AFTERWARDS_US;
        let quiet_from = traffic.now_us();
        let seconds = count as f64 * span_us as f64 / 1e6;
        self.let_run(&traffic, "swaps: without a swap", seconds)?;
        let starts = (0..count).map(|span| quiet_from + span * span_us);
        let quiet: Vec<_> = starts.map(|from| (from, from + span_us)).collect();
        let syncs = probe.stop()?;
        let seen = traffic.stop()?;
        let (during, without) = (Gaps::within(&seen, &spans), Gaps::within(&seen, &quiet));
        Ok(Swaps { during, without, took, pauses, syncs })
    }

    /// Asks for a swap, again while the host is still busy with the end of the one before. Returns its
    /// answer and when it was asked, in microseconds of the clock.
    fn begin_swap(&self, host: &Host, request: &Value) -> Result<(Value, u64), Error> {
        let (path, body) = (deployment("live", "/swap"), request.to_string());
        let begun = self.workshop.clock.monotonic();
        loop {
            let asked_us = self.workshop.clock.monotonic().as_micros() as u64;
            match host.client().post(&path, "application/json", body.as_bytes()) {
                Err(Error::Refused { status: 409, .. })
                    if self.workshop.clock.monotonic() - begun < SWAP_LIMIT =>
                {
                    std::thread::sleep(Duration::from_millis(20));
                }
                result => return Ok((result?, asked_us)),
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

/// A time in which somebody saw nothing, in microseconds of the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Gap {
    from_us: u64,
    to_us: u64,
}

impl Gap {
    /// The longest between two of `seen`, which are in order, within a span of time; from its beginning
    /// and to its end too.
    fn longest(seen: &[Seen], (from_us, to_us): (u64, u64)) -> Self {
        let within = seen.iter().map(|seen| seen.at_us).filter(|at| (from_us..to_us).contains(at));
        let (mut last, mut longest) = (from_us, Self { from_us, to_us: from_us });
        for at in within.chain([to_us]) {
            longest = longest.longer(Self { from_us: last, to_us: at });
            last = at;
        }
        longest
    }

    fn longer(self, other: Self) -> Self {
        if other.us() > self.us() { other } else { self }
    }

    fn us(self) -> u64 {
        self.to_us - self.from_us
    }
}

fn millis(gaps: &[Gap]) -> Vec<f64> {
    gaps.iter().map(|gap| gap.us() as f64 / 1e3).collect()
}

/// The longest gap that was seen in each of some spans of time.
struct Gaps {
    follower: Vec<Gap>,
    /// Of the producer whose gap is longest.
    producer: Vec<Gap>,
}

impl Gaps {
    fn within(seen: &Witnesses, spans: &[(u64, u64)]) -> Self {
        let follower = |span: &(u64, u64)| Gap::longest(&seen.follower, *span);
        let producer = |span: &(u64, u64)| {
            let gaps = seen.producers.iter().map(|seen| Gap::longest(seen, *span));
            gaps.reduce(Gap::longer).expect("there are producers")
        };
        Self {
            follower: spans.iter().map(follower).collect(),
            producer: spans.iter().map(producer).collect(),
        }
    }
}

/// What swaps did.
struct Swaps {
    during: Gaps,
    without: Gaps,
    /// How long each took, in milliseconds.
    took: Vec<f64>,
    /// How long each held the live tasks, in milliseconds.
    pauses: Vec<f64>,
    syncs: Syncs,
}

impl Swaps {
    /// What `pick` takes of the gaps during swaps, beyond the median without one: a follower's or a
    /// producer's, whichever is more.
    fn excess_ms(&self, pick: fn(&[f64]) -> f64) -> f64 {
        let excess =
            |during: &[Gap], without: &[Gap]| pick(&millis(during)) - median(&millis(without));
        let follower = excess(&self.during.follower, &self.without.follower);
        follower.max(excess(&self.during.producer, &self.without.producer)).max(0.0)
    }

    /// What the disk took meanwhile, at the longest, for a sync that nobody waited for.
    fn sync_within_longest_ms(&self) -> f64 {
        let gaps = self.during.follower.iter().chain(&self.during.producer);
        let longest = gaps.copied().reduce(Gap::longer);
        longest.map_or(0.0, |gap| self.sync_within_ms(gap))
    }

    fn sync_within_ms(&self, gap: Gap) -> f64 {
        self.syncs.longest_ms(gap.from_us, gap.to_us)
    }

    /// Of each swap in whose longest gap the probe met no stop of the disk: that gap beyond the median without
    /// a swap, a follower's or a producer's, whichever is more.
    fn excess_without_stops_ms(&self) -> Vec<f64> {
        let usual_ms = [&self.without.follower, &self.without.producer].map(|g| median(&millis(g)));
        let swaps = self.during.follower.iter().zip(&self.during.producer);
        let gaps = swaps.map(|(follower, producer)| [*follower, *producer]);
        let undisturbed =
            gaps.filter(|gaps| gaps.iter().all(|gap| self.sync_within_ms(*gap) <= STOP_MS));
        let excess = |gaps: [Gap; 2]| {
            let excess =
                gaps.iter().zip(usual_ms).map(|(gap, usual)| gap.us() as f64 / 1e3 - usual);
            excess.fold(0.0, f64::max)
        };
        undisturbed.map(excess).collect()
    }
}

fn longest(gaps: &[f64]) -> f64 {
    percentile(gaps, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_found_within_the_span_and_at_its_edges() {
        let seen: Vec<Seen> =
            [0, 1_000, 2_000, 7_000, 8_000].map(|at_us| Seen { at_us, due_us: 0 }).to_vec();
        let longest = |from_us, to_us| {
            let gap = Gap::longest(&seen, (from_us, to_us));
            (gap.from_us, gap.to_us)
        };
        assert_eq!(longest(0, 8_500), (2_000, 7_000));
        assert_eq!(longest(0, 2_500), (0, 1_000));
        assert_eq!(longest(7_500, 20_000), (8_000, 20_000));
    }
}
