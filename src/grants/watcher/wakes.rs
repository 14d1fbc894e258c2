//! Polls that a subscription brings forward. Anyone who sends on it causes them, so they are bounded: it never decides, and
//! costs no more than another poll for each.
use spoke_model::time::Boot;
use std::time::Duration;

/// Polls in a row; one more for each poll interval.
const BURST: u32 = 10;
/// Time between two of them.
const SPACING: Duration = Duration::from_secs(2);
/// Polls for one wake-up: the endpoints of the quorum may have the block later than the subscription's.
const ATTEMPTS: u8 = 3;

#[derive(Debug)]
pub(super) struct Wakes {
    left: u32,
    refilled: Boot,
    attempts: u8,
    not_before: Boot,
    /// Woken since the poll in progress began.
    again: bool,
}

impl Wakes {
    pub(super) const fn new(now: Boot) -> Self {
        Self { left: BURST, refilled: now, attempts: 0, not_before: now, again: false }
    }

    pub(super) const fn woken(&mut self) {
        self.attempts = ATTEMPTS;
        self.again = true;
    }

    /// When the next poll should begin, if one is to be brought forward.
    pub(super) fn due(&mut self, now: Boot, interval: Duration) -> Option<Boot> {
        while self.left < BURST && now.since(self.refilled) >= interval {
            self.left += 1;
            self.refilled += interval;
        }
        if self.left == BURST {
            self.refilled = now;
        }
        (self.attempts > 0 && self.left > 0).then(|| self.not_before.max(now))
    }

    /// A poll begins, brought forward or not.
    pub(super) fn begin(&mut self, now: Boot, brought_forward: bool) {
        self.again = false;
        self.attempts = self.attempts.saturating_sub(1);
        self.not_before = now + SPACING;
        self.left = self.left.saturating_sub(u32::from(brought_forward));
    }

    /// A poll has read new events of the contract: they are what it was woken for, unless it was woken meanwhile.
    pub(super) const fn found(&mut self) {
        if !self.again {
            self.attempts = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLL: Duration = Duration::from_secs(120);

    /// Polls brought forward in `secs` while it is woken all the time.
    fn flooded(secs: u64) -> u32 {
        let mut wakes = Wakes::new(Boot::default());
        let mut polls = 0;
        for tenth in 0..10 * secs {
            let now = Boot::from_duration(Duration::from_millis(100 * tenth));
            wakes.woken();
            if wakes.due(now, POLL).is_some_and(|at| now >= at) {
                wakes.begin(now, true);
                polls += 1;
            }
        }
        polls
    }

    #[test]
    fn flood_of_wake_ups_costs_a_poll_for_each_interval() {
        assert_eq!(flooded(1), 1);
        assert!((9..=10).contains(&flooded(20)), "{}", flooded(20));
        let day = flooded(86_400);
        assert!((720..=730).contains(&day), "{day}");
    }

    #[test]
    fn event_that_is_not_there_yet_is_looked_for_again() {
        let at = Boot::from_secs;
        let mut wakes = Wakes::new(at(0));
        assert_eq!(wakes.due(at(10), POLL), None);
        wakes.woken();
        assert_eq!(wakes.due(at(10), POLL), Some(at(10)));
        wakes.begin(at(10), true);
        assert_eq!(wakes.due(at(11), POLL), Some(at(12)));
        wakes.begin(at(12), true);
        wakes.woken();
        wakes.found();
        assert_eq!(wakes.due(at(13), POLL), Some(at(14)), "woken while it polled");
        wakes.begin(at(14), true);
        wakes.found();
        assert_eq!(wakes.due(at(20), POLL), None);
    }
}
