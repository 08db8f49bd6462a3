//! The demo in the order in which it is told.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::flights::{ByCarrier, Flight, Reading, january, parse, running, totals};
use super::host::{Host, Process};
use super::rows::{of_output, of_store, same_history};
use super::tables::{count, same, show, show_both};
use crate::check::BUILD_HOST;
use crate::guests;
use crate::steps::{Steps, cargo, guest_dir, root, target};

/// Flights that are history when version 1 is deployed; the others arrive during the swap.
const HISTORY: usize = 20_000;

/// At which the others arrive, in records a second.
const RATE: &str = "700";

/// How long anything may take that takes a second.
const PATIENCE: Duration = Duration::from_secs(120);

const DEPLOYMENT: &str = "flight-delays";

/// Runs the demo.
///
/// # Errors
/// What did not work, or which figure differs.
pub fn run() -> Result<()> {
    let mut steps = Steps::default();
    guests::build_in(&mut steps)?;
    steps.run("host", &mut cargo(&BUILD_HOST))?;
    let flights = target().join("demo");
    std::fs::create_dir_all(&flights)?;
    let dir = tempfile::Builder::new().prefix("host-").tempdir_in(&flights)?;
    let started = Instant::now();
    let mut story = Story::begin(dir.path(), &flights)?;
    let told = story.tell();
    told.with_context(|| format!("the end of the host's log:\n{}", story.host.log_tail()))?;
    let checked = story.checked;
    let stopped = story.host.stop()?;
    println!("the host stopped within {} ms of being asked", stopped.as_millis());
    let seconds = started.elapsed().as_secs_f64();
    println!("\nAll {} figures are those of a plain computation. {seconds:.0} s.", count(checked));
    try_next(&flights);
    Ok(())
}

struct Story<'a> {
    host: Host,
    dir: &'a Path,
    flights: Vec<Flight>,
    checked: usize,
}

impl<'a> Story<'a> {
    /// Unpacks January and starts a host. All of January is left in `keep` for the reader.
    fn begin(dir: &'a Path, keep: &Path) -> Result<Self> {
        let lines = january()?;
        std::fs::write(keep.join("flights-2013-01.ndjson"), &lines)?;
        let cut: usize = lines.split_inclusive('\n').take(HISTORY).map(str::len).sum();
        std::fs::write(dir.join("history.ndjson"), &lines[..cut])?;
        std::fs::write(dir.join("today.ndjson"), &lines[cut..])?;
        let file = std::fs::read_to_string(root().join("plugins/flights-delays/deployment.toml"))?;
        let there = guest_dir();
        let file = file.replace(
            "../../target/wasm32-unknown-unknown/guest",
            there.to_str().context("the target directory's path is not text")?,
        );
        std::fs::write(dir.join("deployment.toml"), file)?;
        title("A host on a fresh directory, and 20,000 flights of history");
        println!("$ anabranch serve --listen 127.0.0.1:0");
        let host = Host::start(dir)?;
        println!("  ready at {}", host.url);
        Ok(Self { host, dir, flights: parse(&lines)?, checked: 0 })
    }

    fn tell(&mut self) -> Result<()> {
        self.history()?;
        let (mut producer, follower) = self.today()?;
        self.swap(&mut producer)?;
        self.back_and_forth(&mut producer)?;
        title("The end of January: both versions on the same flights");
        producer.end("the producer")?;
        self.compare()?;
        self.follower(follower)
    }

    fn history(&mut self) -> Result<()> {
        let host = &self.host;
        host.show(&["topic", "create", "flights", "--partitions", "4"])?;
        let file = self.path("history.ndjson")?;
        host.show(&["produce", "flights", &file, "--key", "carrier", "--timestamp", "time_hour"])?;
        title("Version 1 takes a flight that never left for one that left on time");
        host.show(&["deploy", &self.path("deployment.toml")?, "--wait"])?;
        println!("$ anabranch store scan {DEPLOYMENT} delays");
        let found = self.figures(1)?;
        show(&found);
        self.check("version 1 on history", &found, HISTORY, Reading::OnTime)
    }

    /// The rest of January begins to arrive, and someone follows the results.
    fn today(&self) -> Result<(Process, Process)> {
        title("January goes on: 700 flights a second arrive while the plugin is swapped");
        let file = self.path("today.ndjson")?;
        let follow = ["consume", "delays-by-carrier", "--follow"];
        let follower = self.host.background(&follow, &self.dir.join("followed.ndjson"))?;
        let produce = [
            "produce",
            "flights",
            &file,
            "--key",
            "carrier",
            "--timestamp",
            "time_hour",
            "--rate",
            RATE,
        ];
        let producer = self.host.background(&produce, &self.dir.join("produced.txt"))?;
        let deadline = Instant::now() + PATIENCE;
        while self.arrived()? <= HISTORY {
            ensure!(Instant::now() < deadline, "no flight arrived");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok((producer, follower))
    }

    fn swap(&self, producer: &mut Process) -> Result<()> {
        let before = self.arrived()?;
        let plugin = guest_dir().join("flights_delays_v2.wasm");
        let plugin = plugin.to_str().context("the target directory's path is not text")?;
        self.host.show(&[
            "swap",
            DEPLOYMENT,
            "--plugin",
            plugin,
            "--reason",
            "cancelled flights",
        ])?;
        let deadline = Instant::now() + PATIENCE;
        let mut shown = String::new();
        let status = loop {
            let status = self.host.ask(&["status", DEPLOYMENT])?;
            let generations = status["generations"].as_array().context("no generations")?;
            let candidate =
                generations.iter().find(|g| g["number"] == 2).context("no candidate")?;
            let line = progress(candidate);
            if line != shown {
                println!("  {line}");
                shown = line;
            }
            if let Some(failure) = candidate["failure"].as_str() {
                bail!("version 2 failed: {failure}");
            }
            if status["live"] == 2 {
                break status;
            }
            ensure!(Instant::now() < deadline, "the swap did not end: {status}");
            std::thread::sleep(Duration::from_millis(10));
        };
        println!("  the flip held the live tasks for {}", pause(&status)?);
        let now = self.arrived()?;
        let more = if producer.runs() { ", and more to come" } else { "" };
        println!("  {} flights arrived meanwhile{more}", count(now - before));
        Ok(())
    }

    /// Version 1 is kept warm for a while: going back is a flip, and so is going forward again.
    fn back_and_forth(&self, producer: &mut Process) -> Result<()> {
        title("Back to version 1, which kept consuming, and forward again");
        for live in [1, 2] {
            println!("$ anabranch rollback {DEPLOYMENT}");
            let status = self.host.ask(&["rollback", DEPLOYMENT])?;
            ensure!(status["live"] == live, "generation {} is live, not {live}", status["live"]);
            println!("  version {live} is live; the flip took {}", pause(&status)?);
            // Some flights see each version.
            let arrived = self.arrived()?;
            while producer.runs() && self.arrived()? < arrived + 350 {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    fn compare(&mut self) -> Result<()> {
        self.caught_up()?;
        let all = self.flights.len();
        let (one, two) = (self.figures(1)?, self.figures(2)?);
        show_both(&one, &two);
        self.check("version 1 on all flights", &one, all, Reading::OnTime)?;
        self.check("version 2 on all flights", &two, all, Reading::Cancelled)?;
        let name = ["consume", "delays-by-carrier"];
        for (live, reading) in [(2, Reading::Cancelled), (1, Reading::OnTime)] {
            let rows = of_output(&self.host.lines(&name)?)?;
            self.checked += same_history(&rows, &running(&self.flights, reading))
                .with_context(|| format!("delays-by-carrier under version {live}"))?;
            println!(
                "  under version {live}, delays-by-carrier tells all of January as that version sees it: {} rows",
                count(rows.len())
            );
            self.host.ask(&["rollback", DEPLOYMENT])?;
        }
        Ok(())
    }

    /// Someone who followed the results across all of this saw every flight once.
    fn follower(&self, follower: Process) -> Result<()> {
        let path = self.dir.join("followed.ndjson");
        let all = self.flights.len();
        let deadline = Instant::now() + PATIENCE;
        let text = loop {
            let text = std::fs::read_to_string(&path)?;
            if text.lines().count() >= all && text.ends_with('\n') {
                break text;
            }
            let seen = text.lines().count();
            ensure!(Instant::now() < deadline, "a follower saw {seen} of {all} rows");
            std::thread::sleep(Duration::from_millis(20));
        };
        follower.kill();
        let rows = of_output(&text)?;
        let mut expected = totals(&[], Reading::OnTime);
        for row in &rows {
            let figures = expected.entry(row.carrier.clone()).or_default();
            figures.flights += 1;
            ensure!(
                row.flights == figures.flights,
                "a follower saw {}'s flight {} where {} was due",
                row.carrier,
                row.flights,
                figures.flights
            );
        }
        ensure!(rows.len() == all, "a follower saw {} rows of {all}", rows.len());
        println!(
            "  a follower that stayed on through swap and rollbacks saw each of {} flights once, in order",
            count(all)
        );
        Ok(())
    }

    /// Waits until both generations have read all flights.
    fn caught_up(&self) -> Result<()> {
        let topic = self.host.ask(&["topic", "describe", "flights"])?;
        let partitions = topic["partitions"].as_array().context("no partitions")?;
        let ends: Vec<(&Value, &Value)> =
            partitions.iter().map(|p| (&p["partition"], &p["end_offset"])).collect();
        let deadline = Instant::now() + PATIENCE;
        for generation in ["1", "2"] {
            loop {
                let store = self.store(generation)?;
                let at = store["inputs"].as_array().context("no positions")?;
                let read = |(partition, end): &(&Value, &Value)| {
                    at.iter().any(|p| p["partition"] == **partition && p["offsets"][0] == **end)
                };
                if ends.iter().all(read) {
                    break;
                }
                ensure!(
                    Instant::now() < deadline,
                    "generation {generation} did not read all flights: {at:?}, the topic ends at {ends:?}"
                );
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    fn check(
        &mut self,
        what: &str,
        found: &ByCarrier,
        flights: usize,
        reading: Reading,
    ) -> Result<()> {
        self.checked += same(what, found, &totals(&self.flights[..flights], reading))?;
        Ok(())
    }

    fn figures(&self, generation: u32) -> Result<ByCarrier> {
        of_store(&self.store(&generation.to_string())?)
    }

    fn store(&self, generation: &str) -> Result<Value> {
        self.host.ask(&["store", "scan", DEPLOYMENT, "delays", "--generation", generation])
    }

    /// Flights in the topic.
    fn arrived(&self) -> Result<usize> {
        let topic = self.host.ask(&["topic", "describe", "flights"])?;
        let partitions = topic["partitions"].as_array().context("no partitions")?;
        let records = partitions.iter().filter_map(|p| p["records"].as_u64()).sum::<u64>();
        Ok(usize::try_from(records)?)
    }

    fn path(&self, name: &str) -> Result<String> {
        let path = self.dir.join(name);
        Ok(path.to_str().context("the target directory's path is not text")?.to_owned())
    }
}

fn title(text: &str) {
    println!("\n══ {text}");
}

fn progress(candidate: &Value) -> String {
    let phase = candidate["phase"].as_str().unwrap_or_default();
    if phase == "caught-up" {
        return "version 2 has caught up".to_owned();
    }
    let number = |name: &str| candidate["progress"][name].as_f64().unwrap_or_default();
    let (done, left) = (number("records"), number("remaining"));
    let percent = if done + left > 0.0 { 100.0 * done / (done + left) } else { 0.0 };
    let eta = match candidate["progress"]["eta_seconds"].as_f64() {
        Some(seconds) => format!(", {seconds:.1} s left"),
        None => String::new(),
    };
    format!(
        "version 2 is {phase}: {:>6} flights, {percent:>3.0} %, {}/s{eta}",
        count(done as usize),
        count(number("rate") as usize)
    )
}

fn pause(status: &Value) -> Result<String> {
    let pause = status["last_pause_ms"].as_f64().context("the flip's pause was not measured")?;
    Ok(format!("{pause:.1} ms"))
}

fn try_next(flights: &Path) {
    let (bin, guests) = (target().join("debug"), guest_dir());
    let short = |path: &Path| path.strip_prefix(root()).unwrap_or(path).display().to_string();
    println!(
        "
Try next, from {root}:
  export PATH=\"{bin}:$PATH\"
  anabranch serve                                    # a host of your own, data in ./anabranch-data
and in a second terminal:
  anabranch topic create flights --partitions 4
  anabranch produce flights {flights}/flights-2013-01.ndjson --key carrier --timestamp time_hour --rate 500 &
  anabranch deploy plugins/flights-delays/deployment.toml
  anabranch consume delays-by-carrier --follow --format table &
  anabranch swap flight-delays --plugin {guests}/flights_delays_v2.wasm --wait
  anabranch status flight-delays --watch
and change plugins/flights-delays/v2/src/lib.rs, `cargo xtask guests`, swap again.",
        root = root().display(),
        bin = bin.display(),
        flights = short(flights),
        guests = short(&guests),
    );
}
