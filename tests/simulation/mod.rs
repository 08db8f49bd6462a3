//! The whole host in simulation: short histories, each from one seed.
//!
//! The host is the real one, from the registry down: its threads under a scheduler that runs one at a
//! time (`host/src/threads/scheduler.rs`), on a disk and a head in memory that forget what was not
//! synced ([`disk`]), with real plugins. A [`history`] has a few lives of a host, most of which end by
//! its loss at any step, while [`clients`] append, read and swap; then everything is compared with a
//! plain recomputation ([`check`]).
//!
//! `SEED=17 cargo test -p anabranch --lib simulation::one -- --nocapture` runs one history again and
//! prints every step; `HISTORIES=20000 SEED=1` in front of `simulation::many` runs more of them.
//!
//! **Invariant:** the same seed makes the same history, to the last step.

mod check;
mod clients;
mod disk;
mod history;
mod scheduler;

use std::sync::atomic::{AtomicU64, Ordering};

use self::disk::NO_SPACE;
pub use self::disk::{Disk, Fault, IO_ERROR};
use self::history::{Outcome, every_operation, run};
use crate::threads::Bug;

/// Histories that CI runs. A planted bug must show within as many.
const CI_HISTORIES: u64 = 2_000;
/// The first seed of CI.
const CI_SEED: u64 = 1;

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Runs the histories of `seeds` on as many threads as there are processors, until one fails.
fn run_all(first: u64, count: u64, bug: Option<Bug>) -> (u64, Option<(u64, Outcome)>, Totals) {
    let (next, totals) = (AtomicU64::new(first), parking_lot::Mutex::new(Totals::default()));
    let failed = parking_lot::Mutex::new(None::<(u64, Outcome)>);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..processors {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    let over = failed.lock().as_ref().is_some_and(|(least, _)| *least < seed);
                    if seed >= first + count || over {
                        return;
                    }
                    let outcome = run(seed, bug, false);
                    totals.lock().add(&outcome);
                    if outcome.failure.is_some() {
                        let mut failed = failed.lock();
                        if failed.as_ref().is_none_or(|(least, _)| seed < *least) {
                            *failed = Some((seed, outcome));
                        }
                    }
                }
            });
        }
    });
    let ran = next.into_inner().min(first + count) - first;
    (ran, failed.into_inner(), totals.into_inner())
}

/// What some histories came to.
#[derive(Debug, Default)]
struct Totals {
    histories: u64,
    lives: u64,
    steps: u64,
    acknowledged: u64,
    flips: u64,
}

impl Totals {
    fn add(&mut self, outcome: &Outcome) {
        self.histories += 1;
        self.lives += outcome.lives;
        self.steps += outcome.steps;
        self.acknowledged += outcome.acknowledged;
        self.flips += outcome.flips;
    }
}

/// `HISTORIES` histories from `SEED` on, or those of CI: none may fail.
#[test]
fn many() {
    let first = variable("SEED").unwrap_or(CI_SEED);
    let count = variable("HISTORIES").unwrap_or(CI_HISTORIES);
    let (_, failed, totals) = run_all(first, count, None);
    println!("{totals:?}");
    if let Some((seed, Outcome { failure: Some(failure), .. })) = failed {
        panic!("SEED={seed} fails {failure}");
    }
    assert!(totals.acknowledged > 10 * count && totals.lives > count, "{totals:?}");
}

/// One history, with every step.
#[test]
fn one() {
    let seed = variable("SEED");
    let outcome = run(seed.unwrap_or(CI_SEED), None, seed.is_some());
    assert_eq!(outcome.failure, None, "{outcome:?}");
}

/// The first, the second, the third … operation of the disk fails, in each way, until a life is clean.
/// `SEED=1 ERRNO=5 LASTS=0 AFTER=50` has that one fail alone, and prints every step.
#[test]
fn every_operation_of_the_disk_fails_once() {
    let seed = variable("SEED").unwrap_or(CI_SEED);
    if let Some(after) = variable("AFTER") {
        let errno = variable("ERRNO").map_or(IO_ERROR, |errno| errno as i32);
        let way = (errno, variable("LASTS") == Some(1));
        every_operation(seed, way, None, Some(after)).unwrap();
        return;
    }
    std::thread::scope(|scope| {
        for errno in [IO_ERROR, NO_SPACE] {
            scope.spawn(move || {
                for lasts in [false, true] {
                    let operations = every_operation(seed, (errno, lasts), None, None).unwrap();
                    println!("error {errno}, lasting: {lasts}: {operations} operations");
                    assert!(operations > 100, "SEED={seed}: {operations} operations");
                }
            });
        }
    });
}

/// A host that does not heed a failed sync of its head acknowledges what is lost.
#[test]
fn an_unheeded_sync_is_found() {
    let found = every_operation(CI_SEED, (IO_ERROR, false), Some(Bug::UnheededSync), None);
    let found = found.expect_err("it is not found");
    println!("{found}");
    assert!(found.contains("sync"), "another operation shows it: {found}");
}

#[test]
fn the_same_seed_makes_the_same_history() {
    for seed in CI_SEED..CI_SEED + 20 {
        assert_eq!(run(seed, None, false), run(seed, None, false), "SEED={seed}");
    }
    let traces: std::collections::BTreeSet<_> =
        (CI_SEED..CI_SEED + 5).map(|seed| run(seed, None, false).trace).collect();
    assert_eq!(traces.len(), 5, "seeds make no difference");
}

#[test]
fn a_lost_fsync_is_found() {
    is_found(Bug::LostFsync);
}

#[test]
fn a_double_commit_is_found() {
    is_found(Bug::DoubleCommit);
}

#[test]
fn a_flip_before_catch_up_is_found() {
    is_found(Bug::EarlyFlip);
}

fn is_found(bug: Bug) {
    let (ran, failed, _) = run_all(CI_SEED, CI_HISTORIES, Some(bug));
    let Some((seed, outcome)) = failed else { panic!("{bug:?} is not found in {ran} histories") };
    if let Some(failure) = &outcome.failure {
        println!("{bug:?}: SEED={seed}, one of {ran} histories, fails {failure}");
    }
    assert_eq!(run(seed, Some(bug), false), outcome, "SEED={seed} with {bug:?} is not repeated");
}
