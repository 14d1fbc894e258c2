//! A limit of an endpoint, learnt from its refusals and tried again after a time: no refusal counts for ever.
use spoke_model::time::Boot;
use std::time::Duration;

/// First wait until more is tried again; twice as long after each refusal.
const WAIT: Duration = Duration::from_secs(600);
/// Longest wait.
const WAIT_MAX: Duration = Duration::from_secs(6 * 3600);

/// The limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LearntLimit {
    max: u64,
    value: u64,
    wait: Duration,
    raise_at: Boot,
}

impl LearntLimit {
    /// No limit is known below `max`.
    pub fn new(max: u64) -> Self {
        Self { max: max.max(1), value: max.max(1), wait: WAIT, raise_at: Boot::default() }
    }

    /// As [`LearntLimit::new`].
    pub fn of(max: usize) -> Self {
        Self::new(max as u64)
    }

    /// The limit now. Doubles each time its wait is over.
    pub fn get(&mut self, now: Boot) -> u64 {
        if self.value < self.max && now >= self.raise_at {
            self.value = self.value.saturating_mul(2).min(self.max);
            self.raise_at = now + self.wait;
        }
        self.value
    }

    /// As [`LearntLimit::get`].
    pub fn size(&mut self, now: Boot) -> usize {
        usize::try_from(self.get(now)).unwrap_or(usize::MAX)
    }

    /// More than `value` was refused.
    pub fn lower(&mut self, value: u64, now: Boot) {
        self.value = value.clamp(1, self.max);
        self.raise_at = now + self.wait;
        self.wait = self.wait.saturating_mul(2).min(WAIT_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_is_learnt_and_tried_again() {
        let at = |secs| Boot::from_secs(secs);
        let mut limit = LearntLimit::new(20);
        assert_eq!(limit.get(at(0)), 20);
        limit.lower(2, at(0));
        assert_eq!((limit.get(at(1)), limit.get(at(599))), (2, 2));
        assert_eq!(limit.get(at(600)), 4);
        limit.lower(2, at(600));
        assert_eq!((limit.get(at(1799)), limit.get(at(1800))), (2, 4), "longer after each refusal");
        let mut day = 0;
        for secs in (2_000..2_000 + 86_400).step_by(60) {
            if limit.get(at(secs)) > 2 {
                limit.lower(2, at(secs));
                day += 1;
            }
        }
        assert!(day <= 8, "{day} refused requests a day");
    }

    #[test]
    fn single_refusals_do_not_add_up() {
        // Six time-outs, one an hour: the limit recovers in between and at the end.
        let mut limit = LearntLimit::of(35);
        for hour in 0..6 {
            let now = Boot::from_secs(3600 * hour);
            let half = limit.get(now) / 2;
            limit.lower(half, now);
        }
        let mut last = 0;
        for hour in 6..60 {
            last = limit.get(Boot::from_secs(3600 * hour));
        }
        assert_eq!(last, 35);
    }
}
