//! Commit-confirm: a new state is on trial until the hub has answered through it; otherwise the previous one is
//! restored. Pure; driven by [`super::machine`].
//!
//! ```text
//! Settled ──offer──► Trial ──applied and answered──► keep ──► Settled
//!                     │ └──applied, nothing to lose──► keep ──► Settled
//!                     └──deadline──► previous state restored; this one is never tried again
//! ```
//! If the hub was down before the change, applying the state is enough: a missing reply proves nothing about the
//! change, and reverting would regain nothing. The same holds for a machine without a hub (a hub itself, or a node
//! whose network has none yet). A state that the kernel or `derive` refuses is reverted if there is a previous one.
use spoke_model::time::Boot;
use std::time::Duration;

/// What is known about the state published last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrialEvidence {
    /// A reconcile pass that began with it left nothing of it undone.
    pub applied: bool,
    /// The hub has answered an echo that was sent after that pass.
    pub answered: bool,
}

/// A trial of one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateTrial {
    generation: u64,
    began: Boot,
    within: Duration,
    /// The hub answered before.
    hub_was_up: bool,
    has_previous: bool,
}

/// Result of a trial so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrialVerdict {
    /// Undecided.
    Open,
    /// Keep the state.
    Keep,
    /// Restore the previous one and never try this one again; the reason is for operators.
    Revert(String),
}

impl StateTrial {
    /// A trial that begins now. `hub_was_up` and `has_previous`: whether reverting can regain anything.
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

    /// The hub answered before, so it has to answer again.
    pub const fn hub_was_up(&self) -> bool {
        self.hub_was_up
    }

    /// When it is reverted; `None`: there is nothing to revert to.
    pub fn deadline(&self) -> Option<Boot> {
        self.has_previous.then(|| self.began + self.within)
    }

    /// Judges the trial. `expects_hub`: the state has a hub. `problem`: why it could not be applied.
    pub fn judge(&self, now: Boot, evidence: TrialEvidence, expects_hub: bool, problem: Option<&str>) -> TrialVerdict {
        let nothing_to_lose = !expects_hub || !self.hub_was_up || !self.has_previous;
        if evidence.applied && (evidence.answered || nothing_to_lose) {
            return TrialVerdict::Keep;
        }
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return TrialVerdict::Open;
        }
        let within = spoke_model::duration::show_duration(self.within);
        TrialVerdict::Revert(match (evidence.applied, problem) {
            (true, _) => format!("the hub did not answer through generation {} within {within}", self.generation),
            (false, Some(problem)) => format!("generation {} could not be applied: {problem}", self.generation),
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
    fn state_that_loses_the_hub_is_reverted() {
        let trial = StateTrial::begin(Boot::from_secs(100), 7, WITHIN, true, true);
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
    fn applied_is_enough_with_nothing_to_lose() {
        for (was_up, previous) in [(false, true), (true, false), (false, false)] {
            let trial = StateTrial::begin(Boot::default(), 1, WITHIN, was_up, previous);
            assert_eq!(trial.judge(Boot::default(), APPLIED, true, None), TrialVerdict::Keep);
        }
        let hub = StateTrial::begin(Boot::default(), 1, WITHIN, true, true);
        assert_eq!(hub.judge(Boot::default(), APPLIED, false, None), TrialVerdict::Keep, "a hub has no hub");
    }

    #[test]
    fn unapplied_state_is_reverted_to_the_previous() {
        let hub = StateTrial::begin(Boot::default(), 9, WITHIN, false, true);
        let verdict = hub.judge(Boot::from_secs(60), NOTHING, false, Some("two peers claim one address"));
        assert!(matches!(verdict, TrialVerdict::Revert(why) if why.contains("two peers")));
        let first = StateTrial::begin(Boot::default(), 1, WITHIN, false, false);
        assert_eq!(
            first.judge(Boot::from_secs(10_000), NOTHING, true, None),
            TrialVerdict::Open,
            "retried without limit"
        );
    }

    proptest! {
        #[test]
        fn unapplied_is_never_kept_nor_reverted_early(
            at in 0u64..200, answered: bool, hub: bool, was_up: bool, previous: bool,
        ) {
            let trial = StateTrial::begin(Boot::default(), 1, WITHIN, was_up, previous);
            let verdict = trial.judge(Boot::from_secs(at), TrialEvidence { applied: false, answered }, hub, None);
            prop_assert_ne!(&verdict, &TrialVerdict::Keep);
            if at < 60 || !previous {
                prop_assert_eq!(verdict, TrialVerdict::Open);
            }
        }
    }
}
