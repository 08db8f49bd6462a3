//! `cargo xtask simulate`: many histories of a whole host in simulation, each from one seed, beyond
//! those that `cargo xtask test` runs.

use anyhow::Result;

use crate::guests;
use crate::steps::{Steps, cargo};

/// What `cargo xtask simulate` takes.
pub const USAGE: &str = "\
Usage: cargo xtask simulate [--histories N] [--seed S]

  --histories N  histories to run (10,000)
  --seed S       the seed of the first; each further one has the next number (drawn by lot and printed)

One history again, with every step:
  SEED=17 cargo test -p anabranch --lib simulation::one -- --nocapture";

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    histories: u64,
    seed: Option<u64>,
}

impl Options {
    /// Reads arguments; `None` where they are not understood.
    pub fn parse(arguments: &[&str]) -> Option<Self> {
        let mut options = Self { histories: 10_000, seed: None };
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            match *word {
                "--histories" => options.histories = words.next()?.parse().ok()?,
                "--seed" => options.seed = Some(words.next()?.parse().ok()?),
                _ => return None,
            }
        }
        (options.histories > 0).then_some(options)
    }
}

/// Builds host and guests, and runs the histories.
///
/// # Errors
/// When something cannot be built, or a history fails; what is printed names its seed.
pub fn run(options: Options) -> Result<()> {
    let mut steps = Steps::default();
    guests::build_in(&mut steps)?;
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!("seed {seed}");
    let words = "test --workspace --lib -- --exact simulation::many --nocapture";
    let words: Vec<&str> = words.split(' ').collect();
    let mut histories = cargo(&words);
    histories.env("HISTORIES", options.histories.to_string()).env("SEED", seed.to_string());
    steps.run("simulate", &mut histories)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read() {
        let expected = Options { histories: 7, seed: Some(3) };
        assert_eq!(Options::parse(&["--histories", "7", "--seed", "3"]), Some(expected));
        for wrong in [&["--seed"][..], &["--histories", "0"], &["7"]] {
            assert_eq!(Options::parse(wrong), None, "{wrong:?}");
        }
    }
}
