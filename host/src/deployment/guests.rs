//! How much of what plugins say is kept: log lines by the second, metrics by their names.
//!
//! **Invariant:** a generation that says too much costs its own words only; each generation has an
//! allowance of its own, and nothing here changes what a call returns.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::metrics::GenerationLabels;
use crate::clock::{SharedClock, SystemClock};
use crate::threads::Mutex;

/// What a line costs beside its text: the host adds time, level and names.
const LINE_BYTES: u64 = 64;

/// What a generation has said.
#[derive(Default)]
struct Said {
    /// Bytes that it may still log, as of `counted`: at most a second's.
    allowance: u64,
    counted: Option<Duration>,
    missed_lines: u64,
    metrics: BTreeSet<String>,
}

/// All generations' allowances.
pub struct Guests {
    clock: SharedClock,
    said: Mutex<BTreeMap<GenerationLabels, Said>>,
}

impl Default for Guests {
    fn default() -> Self {
        Self::new(SystemClock::shared())
    }
}

impl Guests {
    /// Nobody has said anything.
    pub fn new(clock: SharedClock) -> Self {
        Self { clock, said: Mutex::default() }
    }

    /// Whether a generation that may log `bytes_per_second` may log `bytes` now. If so, the number of
    /// lines that it was refused since the last one.
    pub fn may_say(
        &self,
        who: &GenerationLabels,
        bytes: u64,
        bytes_per_second: u64,
    ) -> Option<u64> {
        let now = self.clock.monotonic();
        let mut all = self.said.lock();
        let said = all.entry(who.clone()).or_default();
        let earned = match said.counted {
            None => bytes_per_second,
            Some(before) => {
                let us = now.saturating_sub(before).as_micros().min(1_000_000);
                (u128::from(bytes_per_second) * us / 1_000_000) as u64
            }
        };
        // Time that has earned nothing yet is not forgotten.
        if earned > 0 {
            said.counted = Some(now);
            said.allowance = said.allowance.saturating_add(earned).min(bytes_per_second);
        }
        let cost = bytes.saturating_add(LINE_BYTES);
        if cost > said.allowance {
            said.missed_lines += 1;
            return None;
        }
        said.allowance -= cost;
        Some(std::mem::take(&mut said.missed_lines))
    }

    /// Whether a generation that may have `most` metrics may have one of this name.
    pub fn may_name(&self, who: &GenerationLabels, name: &str, most: u64) -> bool {
        let mut all = self.said.lock();
        let metrics = &mut all.entry(who.clone()).or_default().metrics;
        if metrics.contains(name) {
            return true;
        }
        let room = (metrics.len() as u64) < most;
        if room {
            metrics.insert(name.to_owned());
        }
        room
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    fn who(generation: u32) -> GenerationLabels {
        GenerationLabels { deployment: "d".to_owned(), generation }
    }

    #[test]
    fn each_generation_has_a_second_of_words() {
        let clock = ManualClock::new(1_000, 1);
        let guests = Guests::new(clock.clone());
        let say = |who: &GenerationLabels| guests.may_say(who, 36, 1_000);
        let (one, two) = (who(1), who(2));
        assert!((0..10).all(|_| say(&one) == Some(0)));
        assert_eq!([say(&one), say(&one)], [None, None]);
        assert_eq!(say(&two), Some(0), "another's words are its own");
        clock.advance_ms(100);
        assert_eq!(say(&one), Some(2), "and says what was missed");
        assert_eq!(say(&one), None);
        clock.advance_ms(3_600_000);
        assert_eq!((0..100).filter(|_| say(&one).is_some()).count(), 10, "silence is no savings");
        assert_eq!(guests.may_say(&two, 2_000, 1_000), None, "one line of two seconds");
    }

    #[test]
    fn names_are_counted_once() {
        let guests = Guests::new(ManualClock::new(0, 1));
        let name = |name: &str| guests.may_name(&who(1), name, 2);
        assert_eq!([name("a"), name("b"), name("c"), name("a")], [true, true, false, true]);
        assert!(guests.may_name(&who(2), "c", 2));
    }
}
