//! Histories and replays: how fast a job goes through what a topic holds.

use std::collections::BTreeMap;
use std::time::Duration;

use crossbeam_channel::bounded;
use serde_json::{Value, json};

use super::Bench;
use super::data::{Generator, Shape};
use super::host::Host;
use super::jobs::Job;
use crate::cli::client::Error;
use crate::cli::commands::{deployment, shaped, topic};
use crate::deployment::DeploymentStatus;

/// Bytes of a produce request: as the command line sends them.
const REQUEST_BYTES: usize = 2 << 20;
/// Producers at once, so that one is encoded while another becomes durable.
const PRODUCERS: usize = 2;
/// Between two looks at a replay.
const LOOK: Duration = Duration::from_millis(5);
/// The same while much is left.
const SELDOM: Duration = Duration::from_millis(100);
/// Longest time without any progress.
const STALLED: Duration = Duration::from_secs(120);
/// Partitions of the topic that pushes a history out of the head.
const FILLER_PARTITIONS: u32 = 64;

impl Bench<'_> {
    /// Creates a topic and produces `records` of `shape` into it.
    pub fn produce_history(
        &self,
        host: &Host,
        name: &str,
        partitions: u32,
        shape: Shape,
        records: u64,
    ) -> Result<(), Error> {
        host.client()
            .put(&topic(name, ""), &json!({"partitions": partitions, "format": "json"}))?;
        let bar = self.bar(&format!("producing {name}"), records);
        let each = (REQUEST_BYTES / (shape.record_bytes + 32)).max(1) as u64;
        let (sender, bodies) = bounded::<(u64, Vec<u8>)>(PRODUCERS);
        let seed = self.seed;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut generator = Generator::new(shape, seed);
                let mut left = records;
                while left > 0 {
                    let now = each.min(left);
                    left -= now;
                    // A producer that failed takes no more.
                    if sender.send((now, generator.ndjson(now as usize))).is_err() {
                        return;
                    }
                }
            });
            let producers: Vec<_> = (0..PRODUCERS)
                .map(|_| {
                    let (bodies, bar) = (bodies.clone(), &bar);
                    scope.spawn(move || -> Result<(), Error> {
                        for (count, body) in bodies {
                            let path = topic(name, "/records");
                            host.client().post(&path, "application/x-ndjson", &body)?;
                            bar.inc(count);
                        }
                        Ok(())
                    })
                })
                .collect();
            drop(bodies);
            producers.into_iter().try_for_each(|producer| {
                producer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        })?;
        bar.finish_and_clear();
        Ok(())
    }

    /// Has what was produced so far sealed into files: produces into many small partitions of another
    /// topic, as much as the head may hold, because the largest partitions are sealed first.
    pub fn seal(&self, host: &Host) -> Result<(), Error> {
        if self.quick {
            return Ok(());
        }
        let shape = Shape { record_bytes: 1000, keys: 1, spread: super::data::Spread::Uniform };
        let body = json!({"partitions": FILLER_PARTITIONS, "format": "json"});
        host.client().put(&topic("filler", ""), &body)?;
        let mut generator = Generator::new(shape, self.seed);
        let mut lines = Vec::new();
        for _ in 0..1_000 {
            let value = generator.ndjson(1);
            // Without a key, a whole request goes to one partition, the next to the next.
            let at = value.windows(8).position(|text| text == b"\"value\":").unwrap_or_default();
            lines.push(b'{');
            lines.extend_from_slice(&value[at..]);
        }
        for _ in 0..FILLER_PARTITIONS + FILLER_PARTITIONS / 4 {
            host.client().post(&topic("filler", "/records"), "application/x-ndjson", &lines)?;
        }
        let begun = self.workshop.clock.monotonic();
        while host.metric("anabranch_seal_backlog_bytes")? > 0.0 {
            if self.workshop.clock.monotonic() - begun > STALLED {
                return Err(Error::Failed("the host does not seal its head".to_owned()));
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Deploys `job` under `name` over topic `input`, from its beginning; waits until all `records` are
    /// committed. Returns the seconds from the request until the last commit was seen.
    pub fn deploy_and_wait(
        &self,
        host: &Host,
        job: &Job,
        name: &str,
        input: &str,
        records: u64,
    ) -> Result<f64, Error> {
        let digest = job.push(host.client(), &self.plugins)?;
        let output = format!("{name}-out");
        let spec = job.deployment(name, &digest, input, &output);
        let path = deployment(name, "");
        let bar = self.bar(&format!("{} over {input}", job.name), records);
        let begun = self.workshop.clock.monotonic();
        host.client().put(&path, &spec)?;
        let (mut seen, mut moved) = (0, begun);
        loop {
            let now = self.workshop.clock.monotonic();
            let status: Value = host.client().get(&path, &[])?;
            let status: DeploymentStatus = shaped(&status)?;
            let live = status.generations.iter().find(|g| g.number == status.live);
            let done = live.map_or(0, |live| live.progress.records);
            if done >= records {
                bar.finish_and_clear();
                return Ok((self.workshop.clock.monotonic() - begun).as_secs_f64());
            }
            let failure = live.and_then(|live| {
                live.failure.clone().or_else(|| live.tasks.iter().find_map(|t| t.failure.clone()))
            });
            if let Some(failure) = failure {
                return Err(Error::Failed(format!("{name} stopped: {failure}")));
            }
            let mut pause = LOOK;
            if done > seen {
                // Seldom while much is left, as an answer takes what a thousand records take.
                let left = (now - begun).mul_f64((records - done) as f64 / done as f64);
                pause = (left / 4).clamp(LOOK, SELDOM);
                (seen, moved) = (done, now);
                bar.set_position(done);
            } else if now - moved > STALLED {
                return Err(Error::Failed(format!("{name} stands still at {done} of {records}")));
            }
            std::thread::sleep(pause);
        }
    }

    /// Deletes a deployment and its output.
    pub fn undeploy(&self, host: &Host, name: &str) -> Result<(), Error> {
        host.client().delete(&deployment(name, ""))?;
        host.client().delete(&topic(&format!("{name}-out"), ""))
    }

    /// Replays `job` over `input` several times, after one time that does not count.
    pub fn replays(
        &self,
        host: &Host,
        job: &Job,
        input: &str,
        records: u64,
    ) -> Result<Replays, Error> {
        let mut replays = Replays::default();
        for run in 0..=self.runs() {
            let name = format!("{}-{run}", job.name);
            let before = host.processor_ns();
            let seconds = self.deploy_and_wait(host, job, &name, input, records)?;
            let after = host.processor_ns();
            self.undeploy(host, &name)?;
            if run > 0 {
                replays.rates.push(records as f64 / seconds);
                for (thread, ran) in after {
                    let ran = ran.saturating_sub(before.get(&thread).copied().unwrap_or_default());
                    let each = ran as f64 / records as f64;
                    replays.processor_ns.entry(thread).or_default().push(each);
                }
            }
        }
        Ok(replays)
    }
}

/// What was seen of several replays.
#[derive(Default)]
pub struct Replays {
    /// Records a second of each.
    pub rates: Vec<f64>,
    /// By the names of threads, the processor time of each replay in nanoseconds a record.
    pub processor_ns: BTreeMap<String, Vec<f64>>,
}
