//! `cargo xtask crash`: a host under load is killed and started again, round after round, and must have
//! kept every promise each time.
//!
//! A round lets producers, readers and an operator work until at least a thousand records are
//! acknowledged, has the host killed at a named point (or at any moment), starts it again on the same
//! data, waits until it has finished its work, and inspects it over the public API. Truth is the
//! clients' own journal; outputs and stores are computed again from the input by plain code.
//!
//! **Invariant:** a kill is counted for a phase only if the process died by SIGKILL with that point's
//! name as its last line. Rounds, phases, sizes and what clients send are a function of the seed; when
//! the threads of the host and of the clients meet is not.

pub mod client;
mod expected;
pub mod history;
pub mod host;
pub mod inspect;
pub mod journal;
pub mod load;
pub mod operator;
mod outputs;
pub mod plan;
mod record;
mod report;
pub mod rounds;

use anyhow::{Result, bail};

use self::plan::Plan;
use self::report::Report;
use crate::check::BUILD_HOST;
use crate::guests;
use crate::steps::{Steps, cargo, target};

/// What `cargo xtask crash` takes.
pub const USAGE: &str = "\
Usage: cargo xtask crash [--rounds N] [--seed S] [--from ROUND] [--json]

  --rounds N     rounds to run (50)
  --seed S       what decides phases, sizes and load (drawn by lot and printed)
  --from ROUND   the round to begin with, moved back to the first one on its data directory (1)
  --json         figures as one JSON document on standard output";

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    rounds: u64,
    seed: Option<u64>,
    from: u64,
    json: bool,
}

impl Options {
    /// Reads arguments; `None` where they are not understood.
    pub fn parse(arguments: &[&str]) -> Option<Self> {
        let mut options = Self { rounds: 50, seed: None, from: 1, json: false };
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            match *word {
                "--rounds" => options.rounds = words.next()?.parse().ok()?,
                "--seed" => options.seed = Some(words.next()?.parse().ok()?),
                "--from" => options.from = words.next()?.parse().ok()?,
                "--json" => options.json = true,
                _ => return None,
            }
        }
        (options.rounds > 0 && options.from > 0).then_some(options)
    }
}

/// Builds host and guests, and runs the rounds.
///
/// # Errors
/// When something cannot be built or run, or a violation was found; the report names it.
pub fn run(options: Options) -> Result<()> {
    let mut steps = if options.json { Steps::on_stderr() } else { Steps::default() };
    guests::build_in(&mut steps)?;
    steps.run("host", &mut cargo(&BUILD_HOST))?;
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    eprintln!("seed {seed}");
    let plan = Plan::new(seed);
    let first = plan.batch(options.from).first;
    let last = options.from + options.rounds - 1;
    let mut report = Report::new(seed, first, last - first + 1);
    let (mut failure, mut next) = (None, first);
    while next <= last && failure.is_none() {
        let batch = plan.batch(next);
        // The process in the name: two runs of one seed do not meet.
        let name = format!("seed-{seed}-from-{next}-{}", std::process::id());
        let dir = target().join("crash").join(name);
        failure = rounds::run_batch(plan, &batch, last, &dir, &mut report)?;
        next = batch.next;
    }
    match options.json {
        true => println!("{}", report.json(failure.as_ref())),
        false => report.show(failure.as_ref()),
    }
    let unproven = report.unproven();
    match failure {
        None if unproven.is_empty() => Ok(()),
        None => bail!("too few kills came about to prove anything: {}", unproven.join("; ")),
        Some(failure) => bail!(
            "{} violations in round {} of seed {seed}: {}; the data are kept in {}",
            failure.violations.len(),
            failure.round,
            failure.violations[0],
            failure.kept.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read() {
        let expected = Options { rounds: 7, seed: Some(3), from: 41, json: true };
        let words = ["--rounds", "7", "--seed", "3", "--from", "41", "--json"];
        assert_eq!(Options::parse(&words), Some(expected));
        for wrong in [&["--rounds"][..], &["--rounds", "0"], &["--seed", "x"], &["50"]] {
            assert_eq!(Options::parse(wrong), None, "{wrong:?}");
        }
    }
}
