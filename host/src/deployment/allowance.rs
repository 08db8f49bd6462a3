//! How often something may happen: a second's worth at once, and then as fast as the rate says.

use std::time::Duration;

/// What is left of an allowance; full at first.
#[derive(Debug, Default, Clone, Copy)]
pub struct Allowance {
    /// What was used of a second's worth, as of `counted`.
    used: f64,
    counted: Duration,
}

impl Allowance {
    /// Takes one, at `now` and with `rate` a second; how long until there is one, if there is none.
    pub fn take(&mut self, now: Duration, rate: u32) -> Result<(), Duration> {
        let rate = f64::from(rate);
        let passed = now.saturating_sub(self.counted).as_secs_f64();
        self.used = (self.used - passed * rate).max(0.0);
        self.counted = now;
        if self.used + 1.0 > rate.max(1.0) {
            let missing = self.used + 1.0 - rate.max(1.0);
            return Err(Duration::from_secs_f64((missing / rate.max(1e-9)).min(3_600.0)));
        }
        self.used += 1.0;
        Ok(())
    }

    /// Whether it is full again at `now`, as if it had never been asked.
    pub fn is_full(&self, now: Duration, rate: u32) -> bool {
        let passed = now.saturating_sub(self.counted).as_secs_f64();
        self.used <= passed * f64::from(rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_may_come_at_once_and_more_as_time_passes() {
        let mut allowance = Allowance::default();
        let at = Duration::from_millis;
        let taken = |allowance: &mut Allowance, now| {
            (0..100).take_while(|_| allowance.take(now, 10).is_ok()).count()
        };
        assert_eq!(taken(&mut allowance, at(5_000)), 10);
        let wait = allowance.take(at(5_000), 10).unwrap_err();
        assert!((at(99)..=at(101)).contains(&wait), "{wait:?}");
        assert_eq!(taken(&mut allowance, at(5_350)), 3);
        assert!(!allowance.is_full(at(6_000), 10) && allowance.is_full(at(6_351), 10));
        assert_eq!(taken(&mut allowance, at(3_600_000)), 10, "an hour is no savings");
        assert_eq!(taken(&mut allowance, at(1_000)), 0, "nor is a clock that goes back");
    }
}
