//! Commit-confirm: a new state is on trial until the hub has answered through it; else the previous one comes back. Pure.
//!
//! ```text
//! Settled ──offer──► Trial ──clean pass and answered──► keep ──► Settled
//!                     │ └──clean pass, nothing to lose──► keep ──► Settled
//!                     └──deadline, or cannot be applied──► back to the previous one; never tried again
//! ```
//! A hub that was lost before the change proves nothing about it: then a clean pass is enough, because going back would
//! give back nothing. A machine without a hub (a hub itself, or a node whose network has none yet) is in the same place.
use crate::time::Boot;
use std::time::Duration;

/// What is known of the state that was published last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// A pass that began with it left nothing to do.
    pub clean: bool,
    /// The hub has answered an echo since that pass.
    pub answered: bool,
}

/// A trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trial {
    generation: u64,
    deadline: Boot,
    /// The hub answered before, and there is a previous state to go back to.
    revertible: bool,
    within: Duration,
}

/// How a trial stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not decided.
    Open,
    /// Persist it.
    Keep,
    /// Publish the previous one, and do not try this one again.
    Revert(String),
}

impl Trial {
    /// A trial that begins now. `hub_was_up` and `has_previous` say whether there is something to lose.
    pub fn begin(now: Boot, generation: u64, within: Duration, hub_was_up: bool, has_previous: bool) -> Self {
        Self { generation, deadline: now + within, revertible: hub_was_up && has_previous, within }
    }

    /// Which generation is on trial.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// When it ends at the latest, if it ends by itself.
    pub const fn deadline(&self) -> Boot {
        self.deadline
    }

    /// How it stands. `expects_hub`: the state has a hub to reach. `trouble`: why the last pass was not clean.
    pub fn judge(&self, now: Boot, evidence: Evidence, expects_hub: bool, trouble: Option<&str>) -> Verdict {
        if evidence.clean && (evidence.answered || !expects_hub || !self.revertible) {
            return Verdict::Keep;
        }
        if now < self.deadline || !self.revertible {
            return Verdict::Open;
        }
        let within = crate::config::reader::show_duration(self.within);
        Verdict::Revert(match (evidence.clean, trouble) {
            (true, _) => format!("the hub did not answer through generation {} within {within}", self.generation),
            (false, Some(trouble)) => format!("generation {} could not be applied: {trouble}", self.generation),
            (false, None) => format!("generation {} was not applied within {within}", self.generation),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WITHIN: Duration = Duration::from_secs(60);
    const CLEAN: Evidence = Evidence { clean: true, answered: false };
    const PROVEN: Evidence = Evidence { clean: true, answered: true };
    const NOTHING: Evidence = Evidence { clean: false, answered: false };

    #[test]
    fn a_change_that_loses_the_hub_is_taken_back_and_says_why() {
        let trial = Trial::begin(Boot::from_secs(100), 7, WITHIN, true, true);
        assert_eq!(trial.judge(Boot::from_secs(101), CLEAN, true, None), Verdict::Open);
        assert_eq!(trial.judge(Boot::from_secs(101), PROVEN, true, None), Verdict::Keep);
        let Verdict::Revert(why) = trial.judge(Boot::from_secs(160), CLEAN, true, None) else { panic!() };
        assert!(why.contains("generation 7") && why.contains("1m"), "{why}");
        let Verdict::Revert(why) = trial.judge(Boot::from_secs(160), NOTHING, true, Some("overlap")) else { panic!() };
        assert!(why.contains("overlap"), "{why}");
    }

    #[test]
    fn with_nothing_to_lose_a_clean_pass_is_enough() {
        for (was_up, previous) in [(false, true), (true, false), (false, false)] {
            let trial = Trial::begin(Boot::default(), 1, WITHIN, was_up, previous);
            assert_eq!(trial.judge(Boot::default(), CLEAN, true, None), Verdict::Keep);
            assert_eq!(trial.judge(Boot::from_secs(10_000), NOTHING, true, None), Verdict::Open, "it goes on trying");
        }
        let hub = Trial::begin(Boot::default(), 1, WITHIN, true, true);
        assert_eq!(hub.judge(Boot::default(), CLEAN, false, None), Verdict::Keep, "a hub has no hub");
    }

    proptest! {
        #[test]
        fn nothing_unclean_is_ever_kept_and_nothing_is_reverted_early(
            at in 0u64..200, answered: bool, hub: bool, was_up: bool, previous: bool,
        ) {
            let trial = Trial::begin(Boot::default(), 1, WITHIN, was_up, previous);
            let verdict = trial.judge(Boot::from_secs(at), Evidence { clean: false, answered }, hub, None);
            prop_assert_ne!(&verdict, &Verdict::Keep);
            if at < 60 || !was_up || !previous {
                prop_assert_eq!(verdict, Verdict::Open);
            }
        }
    }
}
