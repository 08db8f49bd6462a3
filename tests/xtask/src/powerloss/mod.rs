//! `cargo xtask powerloss`: what a loss of power may leave of a host's disk is rebuilt and opened, image
//! after image, and must hold everything that was acknowledged.
//!
//! A round records all that a host does to its disk while producers, readers and an operator work, and
//! while it is stopped and started again. At moments of the recording images are rebuilt
//! (`disk/image.rs`), opened by a host and inspected as after a kill: against what the clients had been
//! told by then, and a plain computation. One image is what the next round's host begins with.
//!
//! Then the test is tested: for each kind of sync that the host makes, the recording is read as if these
//! syncs had never been made, which is what would be recorded if the call were not there, and some
//! image must be found wanting. One of them is really taken out of a host, too. Backup, restore and repair
//! are recorded, lost and tested in the same way (`commands.rs`).
//!
//! **Invariant:** whatever the recorder did not see would make an image pass that should not: at the end
//! of each recording all of it together must be the real files, byte by byte.

mod check;
mod commands;
mod lifetime;
mod syncs;

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use fastrand::Rng;

use self::check::{Checker, Verdict};
use self::lifetime::{Known, Lifetime};
use crate::crash::plan::settings;
use crate::disk::{self, Disk, Event, Image, Policy, Position, Recording, Setting};

/// What `cargo xtask powerloss` takes.
pub const USAGE: &str = "\
Usage: cargo xtask powerloss [--rounds N] [--images M] [--seed S]

  --rounds N   recordings to make, each after the first on an image of the one before (3)
  --images M   images of each recording (12); of a command, as many again of its end
  --seed S     what decides sizes, load, moments and images (drawn by lot and printed)";

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    rounds: u64,
    images: usize,
    seed: Option<u64>,
}

impl Options {
    /// Reads arguments; `None` where they are not understood.
    pub fn parse(arguments: &[&str]) -> Option<Self> {
        let mut options = Self { rounds: 3, images: 12, seed: None };
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            match *word {
                "--rounds" => options.rounds = words.next()?.parse().ok()?,
                "--images" => options.images = words.next()?.parse().ok()?,
                "--seed" => options.seed = Some(words.next()?.parse().ok()?),
                _ => return None,
            }
        }
        (options.rounds > 0 && options.images > 0).then_some(options)
    }
}

/// Builds host, guests and interposer, and runs the rounds.
///
/// # Errors
/// When something cannot be built or run, when an image lacks what was acknowledged, or when a missing
/// sync goes unnoticed.
pub fn run(options: Options) -> Result<()> {
    let Setting { library, seed, dir } = disk::set_up("powerloss", options.seed)?;
    let mut known = Known::default();
    let mut base: Option<Image> = None;
    for round in 1..=options.rounds {
        let began = Instant::now();
        let mut random = Rng::with_seed(seed ^ round.rotate_left(40));
        let settings = settings(&mut random);
        let home = dir.join(format!("round-{round}"));
        let lifetime = Lifetime::record(&library, &home, &settings, base, known, &mut random)?;
        let recorded = began.elapsed().as_secs_f64();
        let checker = Checker::new(&dir.join("image"), settings);
        let mut next = None;
        let mut seen: Vec<(String, usize)> = Vec::new();
        let moments = lifetime.moments(options.images, &mut random)?;
        let images = moments.len();
        lifetime.replay(|_| false, &moments, |disk, at| {
            let policy = Policy::draw(&mut random);
            let image = disk.image(policy, &mut random);
            count(&mut seen, policy.name());
            if let Verdict::Wrong(what) = checker.check(&image, &lifetime, at)? {
                bail!(
                    "round {round} of seed {seed}: an image ({}) of what was written up to byte {at} of \
                     {}: {what}; the image is kept in {}",
                    policy.name(), lifetime.recording.display(), checker.home().display()
                );
            }
            if at >= lifetime.settled && (next.is_none() || random.u32(0..3) == 0) {
                next = Some((image, at));
            }
            Ok(true)
        })?;
        println!(
            "round {round}: {} records acknowledged, {} MiB recorded in {recorded:.1} s, {images} images \
             ({}) opened in {:.1} s: nothing that was acknowledged is missing",
            lifetime.journal.acknowledged(),
            std::fs::metadata(&lifetime.recording)?.len() >> 20,
            seen.iter().map(|(name, n)| format!("{n} {name}")).collect::<Vec<_>>().join(", "),
            began.elapsed().as_secs_f64() - recorded,
        );
        if round == 1 {
            syncs::prove(&lifetime, &checker, seed)?;
            let left_out = dir.join("left-out");
            syncs::prove_left_out(&library, &left_out, &checker, &mut random)?;
            std::fs::remove_dir_all(&left_out)?;
            commands::prove(&library, &home, &lifetime, options.images, &mut random)?;
        }
        let (image, at) = match next {
            Some(next) => next,
            None => break,
        };
        known = lifetime.known_at(at);
        base = Some(image);
        std::fs::remove_dir_all(&home)?;
    }
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

fn count(counts: &mut Vec<(String, usize)>, name: &str) {
    match counts.iter_mut().find(|(known, _)| known == name) {
        Some((_, count)) => *count += 1,
        None => counts.push((name.to_owned(), 1)),
    }
}

/// Compares the end of a recording with the real files.
fn is_complete(recording: &Path, base: Option<&Image>, home: &Path, scratch: &Path) -> Result<()> {
    let mut disk = loaded(base, scratch, |_| false)?;
    let mut recording = Recording::open(recording)?;
    while let Some((event, _)) = recording.next()? {
        disk.apply(event)?;
    }
    let rebuilt = disk.image(Policy::Everything, &mut Rng::with_seed(0));
    let real = Image::of(home, disk::DATA)?;
    let differs = rebuilt.differs(&real);
    ensure!(differs.is_none(), "recorded and real differ: {}", differs.unwrap_or_default());
    Ok(())
}

/// Where a recording stands after each event, and after those that are made rarely.
fn events(recording: &Path) -> Result<(Vec<Position>, Vec<Position>)> {
    let (mut all, mut rare) = (Vec::new(), Vec::new());
    let mut recording = Recording::open(recording)?;
    while let Some((event, at)) = recording.next()? {
        all.push(at);
        match event {
            Event::Open { create: false, .. } | Event::Write { .. } => {}
            Event::SyncBegin { .. } | Event::SyncEnd { data_only: true, .. } => {}
            _ => rare.push(at),
        }
    }
    Ok((all, rare))
}

/// Reads a recording over `base` as if the syncs that `ignored` picks had never been made, and hands the
/// disk to `see` at each of these moments, until it has seen enough.
fn replay(
    base: Option<&Image>,
    recording: &Path,
    scratch: &Path,
    ignored: impl Fn(disk::Sync<'_>) -> bool + 'static,
    moments: &[Position],
    mut see: impl FnMut(&Disk, Position) -> Result<bool>,
) -> Result<()> {
    let mut disk = loaded(base, scratch, ignored)?;
    let mut recording = Recording::open(recording)?;
    let mut next = recording.next()?;
    for moment in moments {
        while let Some((event, end)) = next.take_if(|(_, end)| *end <= *moment) {
            debug_assert!(end <= *moment);
            disk.apply(event)?;
            next = recording.next()?;
        }
        if !see(&disk, *moment)? {
            break;
        }
    }
    Ok(())
}

/// A disk that holds `base`.
fn loaded(
    base: Option<&Image>,
    scratch: &Path,
    ignored: impl Fn(disk::Sync<'_>) -> bool + 'static,
) -> Result<Disk> {
    if scratch.exists() {
        std::fs::remove_dir_all(scratch)?;
    }
    std::fs::create_dir_all(scratch)?;
    if let Some(base) = base {
        base.write(scratch)?;
    }
    let disk = Disk::load(scratch, ignored);
    std::fs::remove_dir_all(scratch)?;
    disk
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read() {
        let expected = Options { rounds: 7, images: 9, seed: Some(3) };
        let words = ["--rounds", "7", "--seed", "3", "--images", "9"];
        assert_eq!(Options::parse(&words), Some(expected));
        for wrong in [&["--rounds"][..], &["--images", "0"], &["--seed", "x"], &["50"]] {
            assert_eq!(Options::parse(wrong), None, "{wrong:?}");
        }
    }
}
