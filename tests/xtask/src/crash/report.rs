//! Figures of a run: progress while it goes on, the table of kills at its end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::journal::Journal;
use super::operator::Told;
use super::plan::Phase;
use super::rounds::Failure;

/// How often progress is told.
const EVERY: Duration = Duration::from_secs(10);

/// So many aims at a phase without a kill there mean that its point is passed no more.
const SEVERAL: u64 = 3;

/// From so many aims on half of them must be kills.
const MANY: u64 = 10;

/// What has been done so far.
pub struct Report {
    seed: u64,
    first: u64,
    planned: u64,
    began: Instant,
    told: Instant,
    rounds: u64,
    /// Kills by the phase that the host was killed in, as it proved.
    kills: BTreeMap<Phase, u64>,
    /// Rounds by the phase that they aimed at.
    aims: BTreeMap<Phase, u64>,
    /// Rounds whose host did not come to its point in time, and was killed elsewhere.
    missed: u64,
    acknowledged: u64,
    /// The fewest records that a round acknowledged.
    least: u64,
    /// Operators' requests that were acknowledged.
    swaps: usize,
    flips: u64,
    pushes: usize,
    /// Records that readers were shown as they came.
    seen: usize,
    /// Records that were compared after a kill, each time that they were.
    compared: u64,
}

impl Report {
    /// A report of `planned` rounds from `first` on.
    pub fn new(seed: u64, first: u64, planned: u64) -> Self {
        let now = Instant::now();
        Self {
            seed,
            first,
            planned,
            began: now,
            told: now,
            rounds: 0,
            kills: Phase::all().map(|phase| (phase, 0)).collect(),
            aims: BTreeMap::new(),
            missed: 0,
            acknowledged: 0,
            least: u64::MAX,
            swaps: 0,
            flips: 0,
            pushes: 0,
            seen: 0,
            compared: 0,
        }
    }

    /// Notes a kill: where it was aimed, and where the host died, if it did.
    pub fn killed(&mut self, aimed: Phase, killed: Option<Phase>, acknowledged: u64) {
        if let Some(killed) = killed {
            *self.kills.entry(killed).or_default() += 1;
        }
        *self.aims.entry(aimed).or_default() += 1;
        self.missed += u64::from(Some(aimed) != killed);
        self.acknowledged += acknowledged;
        self.least = self.least.min(acknowledged);
    }

    /// Notes the end of a batch: what its clients were told and shown.
    pub fn batch_ends(&mut self, journal: &Journal, told: &Told, compared: u64) {
        self.swaps += told.swaps.len();
        self.flips += told.flips;
        self.pushes += told.pushes.len();
        self.seen += journal.sightings().len();
        self.compared += compared;
    }

    /// Notes the end of a round, and tells of it now and then.
    pub fn round_ends(&mut self) {
        self.rounds += 1;
        if self.told.elapsed() >= EVERY {
            self.told = Instant::now();
            let each = self.began.elapsed().as_secs_f64() / self.rounds as f64;
            let left = each * (self.planned - self.rounds.min(self.planned)) as f64;
            eprintln!(
                "round {} of {}: {each:.2} s a round, {} records acknowledged, {:.0} s left",
                self.rounds, self.planned, self.acknowledged, left
            );
        }
    }

    /// The phases in which too few kills came about to prove anything: none of several that were aimed, or
    /// less than half of many.
    pub fn unproven(&self) -> Vec<String> {
        let too_few = |(phase, &aims): (&Phase, &u64)| {
            let kills = self.kills.get(phase).copied().unwrap_or_default();
            let is_named = matches!(phase, Phase::Point(..));
            let few = (kills == 0 && aims >= SEVERAL) || (kills < aims / 2 && aims >= MANY);
            let (group, name) = phase.names();
            (is_named && few).then(|| format!("{group}, {name}: {kills} kills of {aims} aimed"))
        };
        self.aims.iter().filter_map(too_few).collect()
    }

    /// The table of kills, and what was seen.
    pub fn show(&self, failure: Option<&Failure>) {
        println!("\nkills by phase, seed {}:", self.seed);
        for (group, name, count) in self.rows() {
            println!("  {group:<12}{name:<24}{count:>6}");
        }
        let seconds = self.began.elapsed().as_secs_f64();
        println!(
            "{} rounds in {seconds:.0} s; {} records acknowledged, {} in the round with fewest; {} kills \
             missed their point",
            self.rounds,
            self.acknowledged,
            self.least(),
            self.missed
        );
        println!(
            "acknowledged to operators: {} swaps, {} promotions and rollbacks by hand, {} plugins; \
             {} records shown to readers as they came; {} records compared",
            self.swaps, self.flips, self.pushes, self.seen, self.compared
        );
        match failure {
            None => println!("no violation"),
            Some(failure) => {
                println!("\nseed {} round {}: violations", self.seed, failure.round);
                for violation in failure.violations.iter().take(10) {
                    println!("  {violation}");
                }
                let more = failure.violations.len().saturating_sub(10);
                if more > 0 {
                    println!("  and {more} more");
                }
                println!("data, logs and journal: {}", failure.kept.display());
                println!("run its batch again:    {}", self.again(failure));
            }
        }
    }

    /// The same as one JSON document.
    pub fn json(&self, failure: Option<&Failure>) -> Value {
        let kills: Vec<_> = self
            .rows()
            .map(|(group, name, count)| json!({ "group": group, "phase": name, "kills": count }))
            .collect();
        let failure = failure.map(|failure| {
            let violations: Vec<_> = failure.violations.iter().map(ToString::to_string).collect();
            json!({
                "round": failure.round, "violations": violations, "kept": failure.kept,
                "again": self.again(failure),
            })
        });
        json!({
            "seed": self.seed, "from": self.first, "rounds": self.rounds, "kills": kills,
            "missed": self.missed, "acknowledged": self.acknowledged,
            "acknowledged_least": self.least(), "swaps": self.swaps, "flips": self.flips,
            "pushes": self.pushes, "seen": self.seen, "compared": self.compared,
            "seconds": self.began.elapsed().as_secs_f64(), "failure": failure,
        })
    }

    fn least(&self) -> u64 {
        if self.rounds == 0 { 0 } else { self.least }
    }

    fn rows(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        Phase::all().map(|phase| {
            let (group, name) = phase.names();
            (group, name, self.kills.get(&phase).copied().unwrap_or(0))
        })
    }

    fn again(&self, failure: &Failure) -> String {
        let rounds = failure.round - failure.first + 1;
        format!("cargo xtask crash --seed {} --from {} --rounds {rounds}", self.seed, failure.first)
    }
}
