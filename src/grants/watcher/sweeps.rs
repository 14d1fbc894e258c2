//! How often an event that concerns every grant has all candidates verified: anyone may be able to cause such events,
//! and each costs a verification of the whole fleet.
use crate::jsonrpc::{BlockRef, GrantEvent};
use spoke_model::time::Boot;
use std::time::Duration;

/// Sweeps at once.
const BURST: u32 = 4;
/// One more in this time.
const REFILL: Duration = Duration::from_secs(3600);

#[derive(Debug)]
pub(super) struct Sweeps {
    left: u32,
    refilled: Boot,
    /// The newest event that was held back.
    held: Option<GrantEvent>,
    /// Its block is read again in later polls.
    applied: Option<BlockRef>,
}

impl Sweeps {
    pub(super) const fn new(now: Boot) -> Self {
        Self { left: BURST, refilled: now, held: None, applied: None }
    }

    /// The event to apply for `events`, if one is allowed now.
    pub(super) fn take(&mut self, now: Boot, events: Vec<GrantEvent>) -> Option<GrantEvent> {
        let known = self.applied;
        let new = events.into_iter().filter(|e| known.is_none_or(|known| e.block > known));
        self.held = new.chain(self.held.take()).max_by_key(|e| e.block);
        while self.left < BURST && now.since(self.refilled) >= REFILL {
            self.left += 1;
            self.refilled += REFILL;
        }
        if self.left == BURST {
            self.refilled = now;
        }
        if self.held.is_none() || self.left == 0 {
            return None;
        }
        self.left -= 1;
        let event = self.held.take();
        self.applied = event.as_ref().map(|e| e.block);
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jsonrpc::Subject;

    #[test]
    fn a_day_of_events_costs_a_few_sweeps() {
        let event = |number| GrantEvent { block: BlockRef { number, ..BlockRef::default() }, subject: Subject::Anyone };
        let mut sweeps = Sweeps::new(Boot::default());
        let mut applied = Vec::new();
        for minute in 0..1440 {
            let now = Boot::from_secs(60 * minute);
            applied.extend(sweeps.take(now, vec![event(minute)]).map(|e| e.block.number));
        }
        assert!((26..=28).contains(&applied.len()), "{applied:?}");
        // The last one is applied without a further event.
        let rest = sweeps.take(Boot::from_secs(2 * 86_400), Vec::new());
        assert_eq!(rest.map(|e| e.block.number), Some(1439));
        assert_eq!(sweeps.take(Boot::from_secs(2 * 86_400), Vec::new()), None);
    }
}
