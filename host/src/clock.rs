//! Time and randomness: the only place of the host that asks the machine for either.
//!
//! **Invariant:** nothing outside this module calls `SystemTime::now`, `Instant::now` or a source of
//! random numbers; a simulation that replaces [`Clock`] decides both. Secrets alone it does not decide:
//! what a seed makes can be guessed ([`secret`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Where time and randomness come from.
pub trait Clock: Send + Sync {
    /// Wall time in milliseconds since the Unix epoch.
    fn now_ms(&self) -> i64;

    /// Time since some fixed moment; never goes back.
    fn monotonic(&self) -> Duration;

    /// The next random number.
    fn random(&self) -> u64;
}

/// A clock that the whole host shares.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's clock and randomness.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// The machine's clock, to share.
    pub fn shared() -> SharedClock {
        Arc::new(Self { start: Instant::now() })
    }
}

impl Clock for SystemClock {
    fn now_ms(&self) -> i64 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        since.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn random(&self) -> u64 {
        fastrand::u64(..)
    }
}

/// Bytes that nobody can guess, from the kernel: for tokens.
///
/// # Errors
/// When the kernel has none.
pub fn secret() -> std::io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    // At most 256 bytes come whole or not at all: getrandom(2).
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes)
}

/// A clock that stands still until it is moved, with random numbers from a seed.
#[derive(Debug)]
pub struct ManualClock {
    now_ms: AtomicI64,
    random: AtomicU64,
}

impl ManualClock {
    /// A clock that shows `now_ms` and draws random numbers from `seed`.
    pub fn new(now_ms: i64, seed: u64) -> Arc<Self> {
        Arc::new(Self { now_ms: AtomicI64::new(now_ms), random: AtomicU64::new(seed) })
    }

    /// Moves time on by `ms` milliseconds.
    pub fn advance_ms(&self, ms: u32) {
        self.now_ms.fetch_add(i64::from(ms), Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now_ms(&self) -> i64 {
        self.now_ms.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.now_ms().max(0).unsigned_abs())
    }

    /// SplitMix64 (Steele, Lea and Flood, 2014).
    fn random(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.random.fetch_add(STEP, Ordering::SeqCst).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// The seed of a test that makes histories up: that of `ANABRANCH_SEED`, or a new one. It is printed, as the
/// test may fail.
#[cfg(test)]
pub fn test_seed() -> u64 {
    let seed = std::env::var("ANABRANCH_SEED").ok().and_then(|s| s.parse().ok());
    let seed = seed.unwrap_or_else(|| SystemClock::shared().random());
    println!("ANABRANCH_SEED={seed}");
    seed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_all_new() {
        let secrets: std::collections::BTreeSet<_> = (0..100).map(|_| secret().unwrap()).collect();
        assert_eq!(secrets.len(), 100);
        assert!(!secrets.contains(&[0; 32]));
    }

    #[test]
    fn manual_clocks_with_one_seed_agree() {
        let (a, b) = (ManualClock::new(7, 42), ManualClock::new(7, 42));
        a.advance_ms(3);
        assert_eq!(a.now_ms(), 10);
        assert_eq!([a.random(), a.random()], [b.random(), b.random()]);
    }
}
