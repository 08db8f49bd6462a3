//! What happens in which round: a function of the seed alone.
//!
//! The phases come in turn, each cycle in an order of its own, so that each gets its share of the
//! kills whatever the number of rounds.

use fastrand::Rng;

/// The points of the host at which it is killed by name, with the group that they belong to. The
/// names are those of `storage::crash_point`.
const POINTS: [(&str, &str); 28] = [
    ("append", "append-placed"),
    ("append", "append-durable"),
    ("commit", "task-commit"),
    ("commit", "commit-applied"),
    ("commit", "commit-synced"),
    ("commit", "commit-published"),
    ("seal", "seal-written"),
    ("seal", "seal-recorded"),
    ("seal", "seal-removed"),
    ("checkpoint", "checkpoint-written"),
    ("checkpoint", "checkpoint-recorded"),
    ("push", "push-admitted"),
    ("push", "push-written"),
    ("push", "push-recorded"),
    ("swap", "swap-drafted"),
    ("swap", "swap-recorded"),
    ("swap", "replay-files-written"),
    ("swap", "caught-up"),
    ("swap", "caught-up-recorded"),
    ("swap", "flip-held"),
    ("swap", "flip-reached"),
    ("swap", "flip-committed"),
    ("swap", "flip-done"),
    ("swap", "end-stopped"),
    ("swap", "end-recorded"),
    ("open", "open-head"),
    ("open", "open-set-aside"),
    ("open", "open-started"),
];

/// Rounds of a cycle that kill at any moment instead of at a point.
const ANYTIME: usize = 4;

/// Rounds that one data directory lives through, at least and at most.
const BATCH_ROUNDS: std::ops::RangeInclusive<u64> = 20..=40;

/// Where a kill goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// At a point: its group and name.
    Point(&'static str, &'static str),
    /// Soon after its start, while it makes up for the kill before.
    Recovering,
    /// Soon after it was asked to stop, before it has.
    Stopping,
    /// At any moment of the load.
    Anytime,
}

impl Phase {
    /// All phases, in the order of the table.
    pub fn all() -> impl Iterator<Item = Self> {
        let points = POINTS.iter().map(|(group, name)| Self::Point(group, name));
        points.chain([Self::Recovering, Self::Stopping, Self::Anytime])
    }

    /// The group and the name of the table.
    pub fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Point(group, name) => (group, name),
            Self::Recovering => ("open", "soon after"),
            Self::Stopping => ("stop", "soon after"),
            Self::Anytime => ("any", "any moment"),
        }
    }
}

/// A round.
#[derive(Debug)]
pub struct Round {
    /// Where the host is killed.
    pub phase: Phase,
    /// Chance for everything else in the round.
    pub random: Rng,
}

/// A data directory and the rounds that it lives through.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Its first round.
    pub first: u64,
    /// The first round of the next batch.
    pub next: u64,
    /// Settings of its host, by environment variable.
    pub settings: Vec<(&'static str, String)>,
}

/// All rounds of a seed, counted from 1.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    seed: u64,
}

impl Plan {
    /// The plan of a seed.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// Chance that belongs to one thing, and does not depend on what was drawn for another.
    fn random(self, what: u64, number: u64) -> Rng {
        let mut random = Rng::with_seed(self.seed ^ what.rotate_left(32));
        let own = random.u64(..) ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Rng::with_seed(own)
    }

    /// A round.
    pub fn round(self, number: u64) -> Round {
        let mut cycle: Vec<Phase> = Phase::all().collect();
        cycle.extend(std::iter::repeat_n(Phase::Anytime, ANYTIME - 1));
        let length = cycle.len() as u64;
        self.random(1, (number - 1) / length).shuffle(&mut cycle);
        let phase = cycle[((number - 1) % length) as usize];
        Round { phase, random: self.random(2, number) }
    }

    /// The batch of a round.
    pub fn batch(self, round: u64) -> Batch {
        let (mut first, mut index) = (1, 0);
        loop {
            let mut random = self.random(3, index);
            let next = first + random.u64(BATCH_ROUNDS);
            if round < next {
                return Batch { first, next, settings: settings(&mut random) };
            }
            (first, index) = (next, index + 1);
        }
    }
}

/// Sizes so small that sealing, checkpoints and replays to files happen in every round.
pub fn settings(random: &mut Rng) -> Vec<(&'static str, String)> {
    let mut choose = |of: &[u64]| of[random.usize(0..of.len())].to_string();
    vec![
        ("ANABRANCH_STORAGE_HEAD_BYTES", choose(&[60_000, 120_000, 240_000])),
        ("ANABRANCH_STORAGE_MIN_FREE_BYTES", choose(&[1 << 20])),
        ("ANABRANCH_SEGMENTS_TARGET_BYTES", choose(&[30_000, 100_000, 1_000_000])),
        ("ANABRANCH_TASKS_WORKERS", choose(&[1, 2, 3])),
        ("ANABRANCH_TASKS_BATCH_MAX_RECORDS", choose(&[37, 150, 1_000])),
        ("ANABRANCH_TASKS_REPLAY_COMMIT_BYTES", choose(&[20_000, 200_000])),
        ("ANABRANCH_TASKS_NEAR_END_RECORDS", choose(&[100, 50_000])),
        ("ANABRANCH_TASKS_CHECKPOINT_BYTES", choose(&[4_000, 16_000])),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn each_phase_gets_at_least_20_kills_of_1000() {
        for seed in [1, 2, 77] {
            let mut kills: BTreeMap<Phase, u64> = BTreeMap::new();
            (1..=1_000)
                .for_each(|n| *kills.entry(Plan::new(seed).round(n).phase).or_default() += 1);
            assert_eq!(kills.len(), Phase::all().count());
            assert!(kills.values().all(|count| *count >= 20), "{kills:?}");
        }
    }

    #[test]
    fn batches_follow_each_other_without_a_gap() {
        let plan = Plan::new(5);
        let mut expected = 1;
        for round in 1..=500 {
            let batch = plan.batch(round);
            if round == batch.first {
                assert_eq!(batch.first, expected);
                expected = batch.next;
            }
            assert!((batch.first..batch.next).contains(&round));
        }
    }
}
