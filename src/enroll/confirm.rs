//! Commit-confirm: a new state is on trial until the hub has answered through it; otherwise the previous one is
//! restored. Pure; driven by [`super::machine`].
//!
//! ```text
//! Settled ──offer, recorded──► Trial ──applied and answered──► keep ──► Settled
//!                               │ ├──applied, no state before──► adopt: stored, unproved until the hub answers
//!                               │ ├──applied, hub down before──► accepted: in force, not stored until the hub answers
//!                               │ └──restart──► failed
//!                               └──time over, and a whole round of the ladder failed──► previous state restored
//! ```
//! The state stored last is the only one a power cut leaves, so nothing but an answer of the hub replaces a proved one.
//! A network without a hub (or a hub itself) has no far end to ask: there, applied is enough. A state that the kernel or
//! `derive` refuses is reverted if there is a previous one.
//!
//! A hub that answers through neither state says nothing about the new one: its rejection is lifted once the previous
//! state has had a whole round as well ([`super::machine`]).
use serde::{Deserialize, Serialize};
use spoke_model::time::{Boot, Wall};
use std::time::Duration;

/// A ladder that never completes a round (no address, no hub name) does not keep a state on trial for longer than this
/// multiple of `confirm_within`.
const LONGEST: u32 = 10;

/// The hub under the state before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Before {
    /// It answered.
    Up,
    /// A whole round of the ladder had failed, or there was no hub to lose.
    Down,
    /// The process had not connected yet: a restart is no proof of an outage.
    #[default]
    Unknown,
}

/// Stored so that a reverted state is not tried again after a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedState {
    /// The reverted one.
    pub generation: u64,
    /// Why.
    pub reason: String,
    /// Only the hub's answer was missing, and the hub has not answered through the state before since: lifted if it
    /// does not answer through that one either.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unanswered: bool,
}

/// Stored before the first step of a state that the hub has not answered through, removed when it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialRecord {
    /// On trial; equal to the stored state's if that was adopted unproved.
    pub generation: u64,
    /// Wall clock at its begin, right or wrong; for operators.
    pub since: Wall,
    /// The hub under the state before.
    pub before: Before,
    /// How often it was begun.
    pub attempts: u32,
    /// The state before is unproved as well.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unproved_before: bool,
}

impl TrialRecord {
    /// Whether the hub has not answered through the stored state of this generation.
    pub const fn leaves_unproved(&self, stored: u64) -> bool {
        self.generation == stored || (self.generation > stored && self.unproved_before)
    }
}

/// What is known about the state published last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrialEvidence {
    /// A reconcile pass that began with it left nothing of it undone.
    pub applied: bool,
    /// The hub has answered an echo that was sent after that pass.
    pub answered: bool,
    /// The uplink reports the tunnel as up.
    pub up: bool,
    /// Whole rounds of the ladder that failed since it was published.
    pub rounds: u64,
}

/// A trial of one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateTrial {
    generation: u64,
    began: Boot,
    within: Duration,
    before: Before,
    has_previous: bool,
    /// Failed rounds after which an accepted state yields to the previous one.
    patience: u64,
    accepted: bool,
    check_at: Option<Boot>,
}

/// Result of a trial so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrialVerdict {
    /// Undecided.
    Open,
    /// Proved: keep the state.
    Keep,
    /// There is no state before: keep it, unproved.
    Adopt,
    /// The hub was down before too: the state is in force, unproved.
    Accept,
    /// Restore the previous one.
    Revert {
        /// For operators.
        reason: String,
        /// It was applied and only the hub's answer is missing.
        unanswered: bool,
    },
}

impl StateTrial {
    /// A trial that begins now. `has_previous`: there is a state to go back to.
    pub fn begin(now: Boot, generation: u64, within: Duration, before: Before, has_previous: bool) -> Self {
        let check_at = has_previous.then_some(now + within);
        Self { generation, began: now, within, before, has_previous, patience: 1, accepted: false, check_at }
    }

    /// The trial of a state that is stored and was never proved.
    pub const fn of_adopted(now: Boot, generation: u64, within: Duration) -> Self {
        let (before, has_previous) = (Before::Down, false);
        Self { generation, began: now, within, before, has_previous, patience: 1, accepted: true, check_at: None }
    }

    /// The same with more patience, for a state that is tried again.
    pub const fn with_patience(self, patience: u64) -> Self {
        Self { patience, ..self }
    }

    /// Which generation is on trial.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// When it began.
    pub const fn began(&self) -> Boot {
        self.began
    }

    /// The hub under the state before.
    pub const fn before(&self) -> Before {
        self.before
    }

    /// In force although unproved.
    pub const fn accepted(&self) -> bool {
        self.accepted
    }

    /// When [`StateTrial::judge`] is due without any event.
    pub const fn deadline(&self) -> Option<Boot> {
        self.check_at
    }

    /// Judges the trial. `expects_hub`: the state has a hub. `problem`: why it could not be applied.
    pub fn judge(
        &mut self,
        now: Boot,
        evidence: TrialEvidence,
        expects_hub: bool,
        problem: Option<&str>,
    ) -> TrialVerdict {
        if evidence.applied && (evidence.answered || !expects_hub) {
            return TrialVerdict::Keep;
        }
        if self.accepted {
            let both_down = self.has_previous && evidence.rounds >= self.patience && !evidence.up;
            return if both_down { self.unanswered() } else { TrialVerdict::Open };
        }
        if evidence.applied && (!self.has_previous || self.before == Before::Down) {
            (self.accepted, self.check_at) = (true, None);
            return if self.has_previous { TrialVerdict::Accept } else { TrialVerdict::Adopt };
        }
        if !self.has_previous || now < self.began + self.within {
            return TrialVerdict::Open;
        }
        if evidence.applied {
            // With the tunnel reported up no round begins, and the hub does not answer through this state.
            let longest = self.began + self.within * LONGEST;
            if evidence.up || evidence.rounds > 0 || now >= longest {
                return self.unanswered();
            }
            self.check_at = Some(longest);
            return TrialVerdict::Open;
        }
        let within = spoke_model::duration::show_duration(self.within);
        let reason = match problem {
            Some(problem) => format!("generation {} could not be applied: {problem}", self.generation),
            None => format!("generation {} was not applied within {within}", self.generation),
        };
        TrialVerdict::Revert { reason, unanswered: false }
    }

    fn unanswered(&self) -> TrialVerdict {
        let within = spoke_model::duration::show_duration(self.within);
        let reason = format!("the hub did not answer through generation {} within {within}", self.generation);
        TrialVerdict::Revert { reason, unanswered: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WITHIN: Duration = Duration::from_secs(60);
    const NOTHING: TrialEvidence = TrialEvidence { applied: false, answered: false, up: false, rounds: 0 };
    const APPLIED: TrialEvidence = TrialEvidence { applied: true, ..NOTHING };
    const PROVED: TrialEvidence = TrialEvidence { answered: true, up: true, ..APPLIED };
    const ROUND_FAILED: TrialEvidence = TrialEvidence { rounds: 1, ..APPLIED };

    fn trial(before: Before, has_previous: bool) -> StateTrial {
        StateTrial::begin(Boot::from_secs(100), 7, WITHIN, before, has_previous)
    }

    fn reverted(verdict: &TrialVerdict) -> Option<(&str, bool)> {
        match verdict {
            TrialVerdict::Revert { reason, unanswered } => Some((reason, *unanswered)),
            _ => None,
        }
    }

    #[test]
    fn state_that_loses_the_hub_is_reverted() {
        for before in [Before::Up, Before::Unknown] {
            let mut t = trial(before, true);
            assert_eq!(t.judge(Boot::from_secs(101), APPLIED, true, None), TrialVerdict::Open);
            assert_eq!(t.judge(Boot::from_secs(101), PROVED, true, None), TrialVerdict::Keep);
            let verdict = t.judge(Boot::from_secs(160), ROUND_FAILED, true, None);
            let (why, unanswered) = reverted(&verdict).unwrap();
            assert!(unanswered && why.contains("generation 7") && why.contains("1m"), "{why}");
            let verdict = t.judge(Boot::from_secs(160), NOTHING, true, Some("overlap"));
            assert!(reverted(&verdict).is_some_and(|(why, unanswered)| why.contains("overlap") && !unanswered));
        }
    }

    #[test]
    fn state_gets_a_whole_round_of_the_ladder() {
        let mut t = trial(Before::Up, true);
        assert_eq!(t.judge(Boot::from_secs(160), APPLIED, true, None), TrialVerdict::Open, "the ladder is at work");
        assert_eq!(t.deadline(), Some(Boot::from_secs(700)));
        assert!(reverted(&t.judge(Boot::from_secs(200), ROUND_FAILED, true, None)).is_some());
        let claims_up = TrialEvidence { up: true, ..APPLIED };
        assert!(reverted(&t.judge(Boot::from_secs(160), claims_up, true, None)).is_some(), "no round will begin");
        assert!(reverted(&t.judge(Boot::from_secs(700), APPLIED, true, None)).is_some(), "a ladder without an end");
    }

    #[test]
    fn unknown_is_not_down() {
        let mut t = trial(Before::Unknown, true);
        assert_eq!(t.judge(Boot::from_secs(101), APPLIED, true, None), TrialVerdict::Open);
        let mut t = trial(Before::Down, true);
        assert_eq!(t.judge(Boot::from_secs(101), APPLIED, true, None), TrialVerdict::Accept);
        assert_eq!((t.accepted(), t.deadline()), (true, None));
        assert_eq!(t.judge(Boot::from_secs(9_000), APPLIED, true, None), TrialVerdict::Open);
        assert!(reverted(&t.judge(Boot::from_secs(9_000), ROUND_FAILED, true, None)).is_some(), "each gets its round");
        assert_eq!(t.judge(Boot::from_secs(9_001), PROVED, true, None), TrialVerdict::Keep);
    }

    #[test]
    fn first_state_is_adopted_and_a_hub_has_no_hub() {
        let mut t = trial(Before::Unknown, false);
        assert_eq!(t.judge(Boot::from_secs(9_999), NOTHING, true, None), TrialVerdict::Open, "retried without limit");
        assert_eq!(t.judge(Boot::from_secs(9_999), APPLIED, true, None), TrialVerdict::Adopt);
        assert_eq!(t.judge(Boot::from_secs(9_999), ROUND_FAILED, true, None), TrialVerdict::Open);
        assert_eq!(trial(Before::Up, true).judge(Boot::from_secs(100), APPLIED, false, None), TrialVerdict::Keep);
    }

    #[test]
    fn unapplied_state_is_reverted_to_the_previous() {
        let verdict =
            trial(Before::Down, true).judge(Boot::from_secs(160), NOTHING, false, Some("two peers claim one"));
        assert!(reverted(&verdict).is_some_and(|(why, _)| why.contains("two peers")));
    }

    proptest! {
        #[test]
        fn unproved_never_replaces_a_proved_one(
            at in 100u64..2_000, applied: bool, up: bool, rounds in 0u64..4,
            before in prop::sample::select(vec![Before::Up, Before::Down, Before::Unknown]),
        ) {
            let mut t = trial(before, true);
            let verdict = t.judge(Boot::from_secs(at), TrialEvidence { applied, answered: false, up, rounds }, true, None);
            prop_assert!(!matches!(verdict, TrialVerdict::Keep | TrialVerdict::Adopt), "{verdict:?}");
            if at < 160 {
                prop_assert_eq!(reverted(&verdict), None);
            }
        }
    }
}
