//! Commit-confirm: a new state is on trial until the hub has answered through it; else the previous one comes back. Pure.
//!
//! ```text
//! Settled ──offer──► Trial ──applied and answered──► keep ──► Settled
//!                     │ └──applied, nothing to lose──► keep ──► Settled
//!                     └──deadline, or cannot be applied──► back to the previous one; never tried again
//! ```
//! A hub that was lost before the change proves nothing about it: then it is enough that the state was applied, because
//! going back would give back nothing. A machine without a hub (a hub itself, or a node whose network has none yet) is in
//! the same place. A state that the kernel or `derive` refuses is taken back wherever there is one to go back to.
use spoke_model::time::Boot;
use std::time::Duration;

/// What is known of the state that was published last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrialEvidence {
    /// A pass that began with it left nothing of it undone.
    pub applied: bool,
    /// The hub has answered an echo that was sent after that pass.
    pub answered: bool,
}

/// A trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trial {
    generation: u64,
    began: Boot,
    within: Duration,
    /// The hub answered before.
    hub_was_up: bool,
    has_previous: bool,
}

/// How a trial stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrialVerdict {
    /// Not decided.
    Open,
    /// Persist it.
    Keep,
    /// Publish the previous one, and do not try this one again.
    Revert(String),
}

impl Trial {
    /// A trial that begins now. `hub_was_up` and `has_previous` say whether there is something to lose.
    pub const fn begin(now: Boot, generation: u64, within: Duration, hub_was_up: bool, has_previous: bool) -> Self {
        Self { generation, began: now, within, hub_was_up, has_previous }
    }

    /// Which generation is on trial.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// When it began.
    pub const fn began(&self) -> Boot {
        self.began
    }

    /// The hub answered before it, so that it has to answer again.
    pub const fn hub_was_up(&self) -> bool {
        self.hub_was_up
    }

    /// When it ends at the latest, if it can end by itself.
    pub fn deadline(&self) -> Option<Boot> {
        self.has_previous.then(|| self.began + self.within)
    }

    /// How it stands. `expects_hub`: the state has a hub to reach. `trouble`: why it was not applied.
    pub fn judge(&self, now: Boot, evidence: TrialEvidence, expects_hub: bool, trouble: Option<&str>) -> TrialVerdict {
        let nothing_to_lose = !expects_hub || !self.hub_was_up || !self.has_previous;
        if evidence.applied && (evidence.answered || nothing_to_lose) {
            return TrialVerdict::Keep;
        }
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return TrialVerdict::Open;
        }
        let within = spoke_model::duration::show_duration(self.within);
        TrialVerdict::Revert(match (evidence.applied, trouble) {
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
    const APPLIED: TrialEvidence = TrialEvidence { applied: true, answered: false };
    const PROVEN: TrialEvidence = TrialEvidence { applied: true, answered: true };
    const NOTHING: TrialEvidence = TrialEvidence { applied: false, answered: false };

    #[test]
    fn a_change_that_loses_the_hub_is_taken_back_and_says_why() {
        let trial = Trial::begin(Boot::from_secs(100), 7, WITHIN, true, true);
        assert_eq!(trial.judge(Boot::from_secs(101), APPLIED, true, None), TrialVerdict::Open);
        assert_eq!(trial.judge(Boot::from_secs(101), PROVEN, true, None), TrialVerdict::Keep);
        let TrialVerdict::Revert(why) = trial.judge(Boot::from_secs(160), APPLIED, true, None) else { panic!() };
        assert!(why.contains("generation 7") && why.contains("1m"), "{why}");
        let TrialVerdict::Revert(why) = trial.judge(Boot::from_secs(160), NOTHING, true, Some("overlap")) else {
            panic!()
        };
        assert!(why.contains("overlap"), "{why}");
    }

    #[test]
    fn with_nothing_to_lose_it_is_enough_that_it_was_applied() {
        for (was_up, previous) in [(false, true), (true, false), (false, false)] {
            let trial = Trial::begin(Boot::default(), 1, WITHIN, was_up, previous);
            assert_eq!(trial.judge(Boot::default(), APPLIED, true, None), TrialVerdict::Keep);
        }
        let hub = Trial::begin(Boot::default(), 1, WITHIN, true, true);
        assert_eq!(hub.judge(Boot::default(), APPLIED, false, None), TrialVerdict::Keep, "a hub has no hub");
    }

    #[test]
    fn what_cannot_be_applied_is_taken_back_wherever_there_is_a_way_back() {
        let hub = Trial::begin(Boot::default(), 9, WITHIN, false, true);
        let verdict = hub.judge(Boot::from_secs(60), NOTHING, false, Some("two peers claim one address"));
        assert!(matches!(verdict, TrialVerdict::Revert(why) if why.contains("two peers")));
        let first = Trial::begin(Boot::default(), 1, WITHIN, false, false);
        assert_eq!(first.judge(Boot::from_secs(10_000), NOTHING, true, None), TrialVerdict::Open, "it goes on trying");
    }

    proptest! {
        #[test]
        fn nothing_unapplied_is_ever_kept_and_nothing_is_reverted_early(
            at in 0u64..200, answered: bool, hub: bool, was_up: bool, previous: bool,
        ) {
            let trial = Trial::begin(Boot::default(), 1, WITHIN, was_up, previous);
            let verdict = trial.judge(Boot::from_secs(at), TrialEvidence { applied: false, answered }, hub, None);
            prop_assert_ne!(&verdict, &TrialVerdict::Keep);
            if at < 60 || !previous {
                prop_assert_eq!(verdict, TrialVerdict::Open);
            }
        }
    }
}
