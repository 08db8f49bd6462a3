//! The command: what is built, in which order all is measured, and when it is enough.

use std::cell::Cell;
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::anabranch;
use super::arguments::{Arguments, Job, System};
use super::jvm::Kafka;
use super::local::{Bytewax, Fluvio, Native};
use super::report::{Row, json, text};
use crate::steps::target;

/// After this long nothing more is begun that would take it beyond.
const BUDGET: Duration = Duration::from_secs(30 * 60);

/// Records that the systems take that work from memory; they are warm sooner.
const FROM_MEMORY: u64 = 5_000_000;

/// Where everything is, and what all share.
pub struct Shop {
    /// What is built and installed, kept.
    pub dir: PathBuf,
    /// Files of this run; the next one begins without them.
    pub run: PathBuf,
    begun: Instant,
    data: Cell<Option<u64>>,
    /// Held as long as this runs.
    _lock: File,
}

impl Shop {
    fn open() -> Result<Self> {
        let dir = target().join("peers");
        let run = dir.join("run");
        std::fs::create_dir_all(&dir)?;
        let lock = File::create(dir.join("lock"))?;
        lock.try_lock().with_context(|| {
            format!("another bench-peers works in {}: wait until it has ended", dir.display())
        })?;
        if run.exists() {
            std::fs::remove_dir_all(&run).with_context(|| run.display().to_string())?;
        }
        std::fs::create_dir_all(&run)?;
        Ok(Self { dir, run, begun: Instant::now(), data: Cell::new(None), _lock: lock })
    }

    /// Shows progress, on standard error.
    pub fn say(&self, what: &str) {
        let seconds = self.begun.elapsed().as_secs();
        eprintln!("{:>3}:{:02}  {what}", seconds / 60, seconds % 60);
    }

    /// That a system's records are those of all others, by their checksum.
    ///
    /// # Errors
    /// When they are not.
    pub fn same_data(&self, who: &str, said: &Value) -> Result<()> {
        let data = said["data"].as_u64().with_context(|| format!("{who} names no checksum"))?;
        let first = self.data.get().unwrap_or(data);
        ensure!(data == first, "{who} has other records than those before it: {data}, not {first}");
        self.data.set(Some(first));
        Ok(())
    }
}

/// The systems that are measured, ready to run.
struct Systems {
    kafka: Option<Kafka>,
    native: Option<Native>,
    bytewax: Option<Bytewax>,
    fluvio: Option<Fluvio>,
}

/// Runs the command that was typed with these `words` after its name.
///
/// # Errors
/// What is not installed or did not work.
pub fn run(arguments: &Arguments, words: &[&str]) -> Result<()> {
    let command = format!("cargo xtask bench-peers {}", words.join(" "));
    let shop = Shop::open()?;
    let rows = measure(&shop, arguments)?;
    std::fs::remove_dir_all(&shop.run)?;
    if arguments.json {
        println!("{:#}", json(&rows, command.trim_end()));
    } else {
        println!("\n{}", text(&rows, command.trim_end()));
    }
    Ok(())
}

fn measure(shop: &Shop, arguments: &Arguments) -> Result<Vec<Row>> {
    let asked = |system: System| arguments.systems.contains(&system);
    let does = |system: System| asked(system) && arguments.jobs.iter().any(|job| system.does(*job));
    if does(System::Anabranch) {
        anabranch::build(shop)?;
    }
    // Bytewax reads what the native program writes.
    let native = (does(System::Native) || does(System::Bytewax)).then(|| Native::open(shop));
    let native = native.transpose()?;
    let bytewax = match &native {
        Some(native) if does(System::Bytewax) => Some(Bytewax::open(shop, native)?),
        _ => None,
    };
    let fluvio = does(System::Fluvio).then(|| Fluvio::open(shop)).transpose()?;
    let mut rows = Vec::new();
    if does(System::Anabranch) {
        shop.say("anabranch bench replays");
        rows = anabranch::rows(shop, &arguments.jobs, arguments.records)?;
    }
    // All downloads and builds are done; the broker stands last, so that it takes nothing from others.
    let started = Instant::now();
    let on_kafka = arguments.systems.iter().any(|system| system.on_kafka());
    let kafka = on_kafka.then(|| Kafka::open(shop, arguments.records)).transpose()?;
    let systems = Systems { kafka, native, bytewax, fluvio };
    let mut plan = Vec::new();
    for &job in &arguments.jobs {
        let systems = arguments.systems.iter().filter(|system| system.does(job));
        let systems = systems.filter(|system| **system != System::Anabranch);
        plan.extend(systems.map(|system| (*system, job, Duration::ZERO)));
    }
    let first = rows.len();
    rows.extend(plan.iter().map(|(system, job, _)| Row::new(*system, *job, Vec::new())));
    for round in 0..arguments.rounds {
        for (at, (system, job, took)) in plan.iter_mut().enumerate() {
            if round > 0 && started.elapsed() + *took > BUDGET {
                continue;
            }
            let run = Instant::now();
            let rate = systems.run(shop, *system, *job, arguments.records)?;
            *took = run.elapsed();
            shop.say(&format!("{:<20}{:<20}{:>10.0} K/s", system.name(), job.name(), rate / 1e3));
            rows[first + at].runs.push(rate);
        }
    }
    if first > 0 && arguments.rounds > 1 {
        // Before the others and after them, as the machine is not the same all the time.
        drop(systems);
        shop.say("anabranch bench replays again");
        let again = anabranch::rows(shop, &arguments.jobs, arguments.records)?;
        for (row, again) in rows.iter_mut().zip(again) {
            row.runs.extend(again.runs);
        }
    }
    Ok(rows)
}

impl Systems {
    /// Measures a system at a job once; records a second.
    fn run(&self, shop: &Shop, system: System, job: Job, records: u64) -> Result<f64> {
        let opened = || format!("{} was not opened", system.name());
        let said = match system {
            System::KafkaStreams | System::Flink => {
                self.kafka.as_ref().with_context(opened)?.replay(system, job, records)?
            }
            _ => {
                let records = records.min(FROM_MEMORY);
                let said = match system {
                    System::Bytewax => {
                        self.bytewax.as_ref().with_context(opened)?.run(shop, job, records)
                    }
                    System::Fluvio => {
                        self.fluvio.as_ref().with_context(opened)?.run(shop, job, records)
                    }
                    _ => self.native.as_ref().with_context(opened)?.run(shop, job, records),
                }?;
                shop.same_data(system.name(), &said)?;
                said
            }
        };
        let number = |name: &str| {
            let found = said[name].as_f64().filter(|number| *number > 0.0);
            found.with_context(|| format!("{} says no {name}: {said}", system.name()))
        };
        Ok(number("records")? / number("seconds")?)
    }
}
