//! `cargo xtask faults`: the Nth operation of a host on its disk fails, and bits of its files flip.
//!
//! In a run one operation fails with EIO or ENOSPC, or it and all after it, or a write comes short: while
//! a host starts on a directory with records and two deployments, takes records and swaps a plugin. It
//! may refuse and it may end, but only with an error that names the place; it must not panic, hang, or
//! take writes after a failed sync. Then a host starts on the same directory without a fault, and has
//! everything that was acknowledged.
//!
//! For bits, one bit of one file of a stopped host is flipped. A host either finds out and names the
//! place, or shows everything as it was.
//!
//! **Invariant:** what is asked for, at which operation it fails and which bit flips is a function of the
//! seed; how the threads of the host meet is not.

mod flips;
mod nth;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use fastrand::Rng;

use crate::crash::host::{Home, Host, Start};
use crate::crash::journal::Journal;
use crate::crash::load::{Load, PADDING};
use crate::crash::operator::Told;
use crate::crash::plan::settings;
use crate::crash::rounds::set_up;
use crate::disk::{self, DATA, Image, Setting};

/// What `cargo xtask faults` takes.
pub const USAGE: &str = "\
Usage: cargo xtask faults [--runs N | --at N | --all] [--flips M] [--seed S]

  --runs N    operations that fail, chosen by lot (20)
  --at N      the Nth operation, in each way
  --all       the first, the second, the third … operation, in each way, until a run is clean: some
              thousand runs, half a second each, as many at once as there are processors
  --flips M   bits that flip, by turns in each kind of file (30)
  --seed S    what decides operations and bits (drawn by lot and printed)";

/// Records that the directory holds before anything fails.
const RECORDS: u64 = 300;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    runs: u64,
    at: Option<u64>,
    all: bool,
    flips: u64,
    seed: Option<u64>,
}

impl Options {
    /// Reads arguments; `None` where they are not understood.
    pub fn parse(arguments: &[&str]) -> Option<Self> {
        let mut options = Self { runs: 20, at: None, all: false, flips: 30, seed: None };
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            match *word {
                "--runs" => options.runs = words.next()?.parse().ok()?,
                "--at" => options.at = Some(words.next()?.parse().ok()?),
                "--all" => options.all = true,
                "--flips" => options.flips = words.next()?.parse().ok()?,
                "--seed" => options.seed = Some(words.next()?.parse().ok()?),
                _ => return None,
            }
        }
        Some(options)
    }
}

/// A directory as a stopped host left it, and what its clients know.
struct Base {
    image: Image,
    journal: Journal,
    told: Told,
    settings: Vec<(&'static str, String)>,
}

/// Builds host, guests and interposer, and runs everything.
///
/// # Errors
/// When something cannot be built or run, or a host did what it must not.
pub fn run(options: Options) -> Result<()> {
    let setting = disk::set_up("faults", options.seed)?;
    let Setting { seed, dir, .. } = &setting;
    let base = Base::make(&dir.join("base"), &mut Rng::with_seed(*seed))?;
    let began = Instant::now();
    let told = match options.at {
        Some(n) => nth::one(&base, &setting, n)?,
        None if options.all => nth::all(&base, &setting)?,
        None => nth::some(&base, &setting, options.runs)?,
    };
    println!("{told}, in {:.1} s", began.elapsed().as_secs_f64());
    nth::hangs(&base, &setting)?;
    let began = Instant::now();
    let told = flips::run(&base, dir, *seed, options.flips)?;
    println!("{told}, in {:.1} s", began.elapsed().as_secs_f64());
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

impl Base {
    fn make(dir: &Path, random: &mut Rng) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let settings = settings(random);
        let mut home = Home::new(dir, settings.clone());
        let (journal, mut told) = (Arc::<Journal>::default(), Told::default());
        for fresh in [true, false] {
            let Start::Ready(host) = home.start()? else { bail!("a host does not start") };
            if fresh {
                set_up(&host.client, &mut told, |_| ())?;
            }
            let load = Load::start(&host.client, &journal, random, &[0, 0], PADDING);
            let before = journal.acknowledged();
            let began = Instant::now();
            while journal.acknowledged() - before < RECORDS {
                ensure!(began.elapsed() < Duration::from_secs(60), "too little is acknowledged");
                std::thread::sleep(Duration::from_millis(1));
            }
            let stopped = host.stop();
            load.finish();
            stopped?;
        }
        let journal = Arc::into_inner(journal).context("a client is still at work")?;
        Ok(Self { image: Image::of(dir, DATA)?, journal, told, settings })
    }
}

/// Writes the base into an empty home.
fn fresh_home(base: &Image, home: &Path) -> Result<()> {
    if home.exists() {
        std::fs::remove_dir_all(home)?;
    }
    base.write(home)
}

/// What the log of a host says of a panic.
fn panicked(home: &Path) -> Result<Option<String>> {
    for entry in std::fs::read_dir(home)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            let text = std::fs::read_to_string(&path)?;
            let line = text.lines().find(|line| line.contains("panicked at"));
            if let Some(line) = line {
                return Ok(Some(format!("{}: {line}", path.display())));
            }
        }
    }
    Ok(None)
}

/// Everything that the hosts of a home said.
fn said(home: &Path) -> Result<String> {
    let mut all = String::new();
    for entry in std::fs::read_dir(home)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            all += &std::fs::read_to_string(&path)?;
        }
    }
    Ok(all)
}

/// Asks a host to stop, and sees that it ends.
fn ends(host: Host) -> Result<()> {
    host.ask_to_stop()?;
    host.end_within(Duration::from_secs(60)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read() {
        let expected = Options { runs: 7, at: Some(4), all: true, flips: 9, seed: Some(3) };
        let words = ["--runs", "7", "--at", "4", "--all", "--flips", "9", "--seed", "3"];
        assert_eq!(Options::parse(&words), Some(expected));
        for wrong in [&["--runs"][..], &["--flips", "y"], &["--seed", "x"], &["50"]] {
            assert_eq!(Options::parse(wrong), None, "{wrong:?}");
        }
    }
}
