//! What a task did with its time, and whether it has to stand back for it.

use std::time::Duration;

/// A step of this length is long: ten times what a batch usually takes, and short enough that whoever
/// waits behind it hardly notices.
pub const LONG_STEP: Duration = Duration::from_millis(500);

/// How long a step may look for records at fault before what is left of its batch waits for another
/// turn: many times as long as one call that fails usually takes, so that little is looked for twice.
pub const LONG_SEARCH: Duration = Duration::from_secs(2);

/// A task stands back while more than half of its time of late was wasted, if that was so long: a bad
/// record now and then, or one in a large batch, takes less.
const MUCH_WASTED: Duration = Duration::from_millis(100);

/// What counts as of late: at this age, the time that a task spent counts half.
const HALF_LIFE: Duration = Duration::from_secs(2);

/// What a task did with its time.
#[derive(Default)]
pub struct Account {
    /// Time that it has had, as its queue counts it: see `Ready`.
    pub had: Duration,
    /// Whether its last step was long.
    long: bool,
    /// Time spent of late, and the part of it that was wasted.
    busy: Duration,
    wasted: Duration,
    /// When what had been spent by then was last halved.
    halved: Duration,
}

impl Account {
    /// Enters a step that ended at `now`.
    pub fn enter(&mut self, now: Duration, busy: Duration, wasted: Duration) {
        self.age(now);
        self.long = busy >= LONG_STEP;
        self.had += busy;
        self.busy += busy;
        self.wasted += wasted;
    }

    fn age(&mut self, now: Duration) {
        let halvings = now.saturating_sub(self.halved).as_millis() / HALF_LIFE.as_millis();
        if halvings > 0 {
            let parts = 1 << halvings.min(31);
            (self.busy, self.wasted, self.halved) = (self.busy / parts, self.wasted / parts, now);
        }
    }

    /// Which tasks that stand back it belongs to at `now`, if to any.
    pub fn apart(&mut self, now: Duration) -> Option<Apart> {
        self.age(now);
        let wasteful = self.wasted >= MUCH_WASTED && self.wasted > self.busy / 2;
        match (self.long, wasteful) {
            (true, _) => Some(Apart::Long),
            (false, true) => Some(Apart::Wasteful),
            (false, false) => None,
        }
    }
}

/// Why a task stands back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Apart {
    /// Its last step was long.
    Long,
    /// It wastes most of its time.
    Wasteful,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wastes_most_of_its_time_stands_back_until_it_does_better() {
        let ms = Duration::from_millis;
        let mut account = Account::default();
        // What a bad record in a batch takes is half of the batch's time, or too little to matter.
        account.enter(ms(1), ms(1), ms(1));
        assert_eq!(account.apart(ms(1)), None);
        let mut account = Account::default();
        for step in 1..=100 {
            account.enter(ms(10 * step), ms(10), ms(5));
            assert_eq!(account.apart(ms(10 * step)), None);
        }
        let mut account = Account::default();
        account.enter(ms(120), ms(120), ms(110));
        assert_eq!(account.apart(ms(120)), Some(Apart::Wasteful));
        account.enter(ms(240), ms(120), ms(0));
        assert_eq!(account.apart(ms(240)), None);
        account.enter(ms(360), ms(120), ms(120));
        assert_eq!(account.apart(ms(360)), Some(Apart::Wasteful));
        account.enter(ms(900), LONG_STEP, LONG_STEP);
        assert_eq!(account.apart(ms(900)), Some(Apart::Long));
        // In time what was wasted is forgotten.
        account.enter(ms(1_000), ms(1), ms(1));
        assert_eq!(account.apart(ms(1_000)), Some(Apart::Wasteful));
        assert_eq!(account.apart(ms(60_000)), None);
    }
}
