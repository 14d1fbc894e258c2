//! Backoff after failures: exponential, bounded, jittered, unlimited in number.
use std::time::Duration;

/// Random numbers for jitter (splitmix64); not for secrets.
#[derive(Clone, Debug)]
pub struct JitterRng(u64);

impl JitterRng {
    /// The same seed gives the same numbers.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub const fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A duration evenly spread over `base / 2 ..= base · 3 / 2`.
    pub fn jitter(&mut self, base: Duration) -> Duration {
        let half = base / 2;
        let width = u64::try_from(base.as_nanos()).unwrap_or(u64::MAX);
        let offset = if width == 0 { 0 } else { self.next_u64() % width.saturating_add(1).max(1) };
        half.saturating_add(Duration::from_nanos(offset))
    }
}

/// Waits of `min(initial · 2ᵏ, max)` times a random 0.5 to 1.5. `k` is the number of failures since the last reset.
#[derive(Clone, Debug)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// No failure yet.
    pub const fn new(initial: Duration, max: Duration) -> Self {
        Self { initial, max, failures: 0 }
    }

    /// The unjittered wait after the next failure.
    pub fn base(&self) -> Duration {
        // `max` is reached long before 2³¹; the shift must not overflow.
        self.initial.saturating_mul(1 << self.failures.min(31)).min(self.max)
    }

    /// Counts a failure; returns the wait after it.
    pub fn fail(&mut self, rng: &mut JitterRng) -> Duration {
        let wait = rng.jitter(self.base());
        self.failures = self.failures.saturating_add(1);
        wait
    }

    /// The next failure waits `initial` again.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last reset.
    pub const fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn waits_stay_within_bounds(
            initial in 1u64..10_000_000, span in 0u64..10_000_000, seed in any::<u64>(), rounds in 1usize..200,
        ) {
            let (initial, max) = (Duration::from_micros(initial), Duration::from_micros(initial + span));
            let (mut backoff, mut rng) = (Backoff::new(initial, max), JitterRng::new(seed));
            for k in 0..rounds {
                let base = backoff.base();
                prop_assert_eq!(base, initial.saturating_mul(1 << k.min(31)).min(max));
                let wait = backoff.fail(&mut rng);
                prop_assert!(wait >= base / 2 && wait <= base * 3 / 2, "{wait:?} of {base:?}");
            }
            backoff.reset();
            prop_assert_eq!(backoff.base(), initial);
        }
    }

    #[test]
    fn jitter_fills_the_whole_range() {
        let mut rng = JitterRng::new(1);
        let base = Duration::from_secs(10);
        let waits: Vec<_> = (0..10_000).map(|_| rng.jitter(base).as_secs_f64()).collect();
        assert!(waits.iter().any(|w| *w < 5.1) && waits.iter().any(|w| *w > 14.9));
        let mean = waits.iter().sum::<f64>() / 10_000.0;
        assert!((9.8..10.2).contains(&mean), "{mean}");
    }

    #[test]
    fn extremes_do_not_overflow() {
        let mut backoff = Backoff::new(Duration::MAX, Duration::MAX);
        let mut rng = JitterRng::new(3);
        for _ in 0..100 {
            backoff.fail(&mut rng);
        }
        assert_eq!(JitterRng::new(0).jitter(Duration::ZERO), Duration::ZERO);
    }
}
