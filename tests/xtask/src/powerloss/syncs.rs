//! The test of the test: each kind of sync, left out, is found missing.

use std::path::Path;

use anyhow::{Result, bail};
use fastrand::Rng;

use super::check::{Checker, Verdict};
use super::lifetime::{Known, Lifetime};
use crate::disk::{Policy, Sync};

/// Images that are opened for one kind of sync before it is said to go unnoticed.
pub const TRIES: usize = 12;

/// A kind of sync: its name, and which syncs are of it.
pub type Kind = (&'static str, fn(Sync<'_>) -> bool);

/// All syncs that a promise rests on.
const KINDS: [Kind; 13] = [
    ("the head's file, by each commit", |s| s.path == "data/head/db" && s.data_only),
    ("the head's folder", |s| s.is_dir && s.path.starts_with("data/head")),
    ("the head's settings", |s| s.path.ends_with("/conf")),
    ("the head's snapshot", |s| s.path.contains("/snap.")),
    ("the high-water mark, when it is made", |s| s.path == "data/high-water"),
    ("the file named format", |s| s.path == "data/format.tmp"),
    ("the data directory", |s| s.path == "data"),
    ("the folder that the data directory is in", |s| s.path.is_empty()),
    ("segments", |s| s.path.starts_with("data/segments/") && !s.is_dir),
    ("the folders of segments", |s| s.path.starts_with("data/segments") && s.is_dir),
    ("checkpoints", |s| s.path.starts_with("data/checkpoints/") && !s.is_dir),
    ("the folder of checkpoints", |s| s.path == "data/checkpoints"),
    ("plugins", |s| s.path.starts_with("data/plugins")),
];

/// Reads a recording without each kind of sync in turn.
///
/// # Errors
/// When one is not missed.
pub fn prove(lifetime: &Lifetime, checker: &Checker, seed: u64) -> Result<()> {
    let mut unnoticed = Vec::new();
    for (number, (name, is_ignored)) in KINDS.into_iter().enumerate() {
        let mut random = Rng::with_seed(seed.rotate_left(17) ^ number as u64);
        let answers: Vec<_> =
            lifetime.answers().into_iter().filter(|at| *at >= lifetime.settled).collect();
        let mut moments: Vec<_> =
            (0..TRIES).filter_map(|_| random.choice(&answers).copied()).collect();
        moments.sort_unstable();
        moments.reverse();
        let (mut caught, mut tries) = (None, 0);
        for at in moments {
            lifetime.replay(is_ignored, &[at], |disk, at| {
                let policy = if tries % 2 == 1 { Policy::Late } else { Policy::Nothing };
                let image = disk.image(policy, &mut random);
                tries += 1;
                if let Verdict::Wrong(what) = checker.check(&image, lifetime, at)? {
                    caught = Some((policy, at, what));
                }
                Ok(false)
            })?;
            if caught.is_some() {
                break;
            }
        }
        match caught {
            Some((policy, at, what)) => println!(
                "without syncs of {name}: caught by image {tries} ({}, byte {at}): {what}",
                policy.name()
            ),
            None => unnoticed.push(name),
        }
    }
    if !unnoticed.is_empty() {
        bail!("seed {seed}: nobody misses syncs of {}", unnoticed.join(", nor of "));
    }
    Ok(())
}

/// Records a host that really leaves out the sync of the head's file, and opens what is left of it after
/// its last answer.
///
/// # Errors
/// When that is not missed.
pub fn prove_left_out(
    library: &Path,
    home: &Path,
    checker: &Checker,
    random: &mut Rng,
) -> Result<()> {
    let mut settings = checker.settings().to_vec();
    settings.push(("ANABRANCH_LEAVE_OUT", "head-sync".to_owned()));
    let known = Known::default();
    let lifetime = Lifetime::record(library, home, &settings, None, known, random)?;
    let answers = lifetime.answers();
    for at in answers.iter().rev().step_by(answers.len() / TRIES + 1) {
        let mut caught = None;
        lifetime.replay(
            |_| false,
            &[*at],
            |disk, at| {
                let image = disk.image(Policy::Nothing, random);
                if let Verdict::Wrong(what) = checker.check(&image, &lifetime, at)? {
                    caught = Some(what);
                }
                Ok(false)
            },
        )?;
        if let Some(what) = caught {
            println!("a host that leaves out the sync of the head's file: caught: {what}");
            return Ok(());
        }
    }
    bail!("nobody misses the sync that a host left out")
}
