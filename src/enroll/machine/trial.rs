//! The trial of a state: its begin, its verdict, the restart during one, and a rejection that proved to be the hub's fault.
use super::{Actions, ControlClient, Poll, push};
use crate::confirm::{Before, RejectedState, StateTrial, TrialEvidence, TrialRecord, TrialVerdict};
use crate::document::Refusal;
use crate::events::{Action, NodeObservation, SignedState};
use spoke_model::time::Boot;
use std::sync::Arc;

/// Restarts during one trial that are not held against a state while the hub was down before it.
const MAX_ATTEMPTS: u32 = 3;
/// Most rounds of the ladder that one state gets before the other has its turn.
const MAX_PATIENCE: u64 = 64;

#[derive(Debug)]
pub(super) struct OnTrial {
    pub(super) trial: StateTrial,
    pub(super) state: Arc<SignedState>,
    /// Echoes from this number on were sent after the state was applied.
    pub(super) proof_from: Option<u16>,
    pub(super) answered: bool,
    patience: u64,
}

/// A state that was reverted because the hub did not answer.
#[derive(Debug)]
pub(super) struct SetAside {
    state: Arc<SignedState>,
    patience: u64,
}

/// Failed rounds of the ladder since the last [`Rounds::restart`].
#[derive(Debug)]
pub(super) struct Rounds {
    seen: u64,
    /// The round in progress began after the restart.
    whole: bool,
    failed: u64,
}

impl Rounds {
    /// The hub session begins with the state in force.
    pub(super) const fn new() -> Self {
        Self { seen: 0, whole: true, failed: 0 }
    }

    /// Another state is published. While the tunnel is up no round is in progress.
    fn restart(&mut self, up: bool) {
        (self.failed, self.whole) = (0, up);
    }

    pub(super) const fn has_failed(&self) -> bool {
        self.failed > 0
    }

    pub(super) fn observe(&mut self, observed: &NodeObservation) {
        if observed.up {
            (self.failed, self.whole) = (0, true);
        } else if observed.rounds < self.seen {
            // A new session counts from zero.
            self.whole = true;
            self.failed += observed.rounds;
        } else {
            let new = observed.rounds - self.seen;
            self.failed += if self.whole { new } else { new.saturating_sub(1) };
            self.whole |= new > 0;
        }
        self.seen = observed.rounds;
    }
}

impl OnTrial {
    /// Stored already, unproved.
    fn is_of(&self, in_force: Option<&Arc<SignedState>>) -> bool {
        in_force.is_some_and(|s| s.document.generation == self.trial.generation())
    }
}

impl ControlClient {
    /// A trial was recorded when the process started: the restart ended it.
    pub fn resume_trial(&mut self, now: Boot, record: TrialRecord) -> Actions {
        let mut out = Actions::new();
        let in_force = self.in_force.as_ref().map(|s| s.document.generation);
        match in_force.map(|have| record.generation.cmp(&have)) {
            Some(std::cmp::Ordering::Equal) => {
                self.unproved = true;
                self.prove_adopted(now);
            }
            Some(std::cmp::Ordering::Greater) => {
                let innocent = record.before == Before::Down && record.attempts < MAX_ATTEMPTS;
                self.attempts = Some((record.generation, record.attempts));
                self.unproved = record.unproved_before;
                if !innocent {
                    let generation = record.generation;
                    let reason = format!(
                        "the node was restarted while generation {generation} was on trial, before the hub answered through it"
                    );
                    let rejected = RejectedState { generation, reason, unanswered: true };
                    push(&mut out, Action::Reject(rejected.clone()));
                    self.rejected = Some(rejected);
                }
                self.end_record(now, &mut out);
            }
            Some(std::cmp::Ordering::Less) | None => push(&mut out, Action::ForgetTrial),
        }
        out
    }

    pub(super) fn handle_offer(&mut self, now: Boot, state: SignedState, out: &mut Actions) {
        let (got, have) = (state.document.generation, self.newest_generation());
        if let Err(refusal) = state.document.check_generation(have) {
            return self.record_refusal(now, &refusal);
        }
        if got < have {
            // Reverted before: the state that it is to replace is the better one.
            if self.rejected.as_ref().is_some_and(|r| r.generation == got) {
                return self.record_refusal(now, &Refusal::Older { got, have });
            }
            self.rejected = None;
        }
        self.refused = None;
        self.refused_backoff.reset();
        self.poll = Poll::At(now);
        self.set_aside = None;
        let before = self.hub_before();
        self.begin_trial(now, Arc::new(state), before, 1, out);
    }

    /// The hub under the state before the one that comes next.
    fn hub_before(&self) -> Before {
        if self.observed.up {
            return Before::Up;
        }
        // A superseded trial was not proved: the hub has to answer as it did before that one.
        if let Some(t) = self.on_trial.as_ref().filter(|t| !t.is_of(self.in_force.as_ref())) {
            return t.trial.before();
        }
        let no_hub = self.in_force.as_ref().is_none_or(|s| s.hubs().is_empty());
        if no_hub || self.rounds.failed > 0 { Before::Down } else { Before::Unknown }
    }

    fn begin_trial(&mut self, now: Boot, state: Arc<SignedState>, before: Before, patience: u64, out: &mut Actions) {
        let generation = state.document.generation;
        let began = self.attempts.filter(|(g, _)| *g == generation).map_or(0, |(_, n)| n);
        let attempts = began.saturating_add(1);
        self.attempts = Some((generation, attempts));
        let unproved_before = self.unproved;
        push(out, Action::RecordTrial { generation, before, attempts, unproved_before });
        push(out, Action::Publish(state.clone()));
        let trial = StateTrial::begin(now, generation, self.times.confirm_within, before, self.in_force.is_some());
        let trial = trial.with_patience(patience);
        self.on_trial = Some(OnTrial { trial, state, proof_from: None, answered: false, patience });
        self.published(now);
    }

    /// Another state is in the kernel from here on.
    fn published(&mut self, now: Boot) {
        self.observed.applied = false;
        self.observed.problem = None;
        self.rounds.restart(self.observed.up);
        self.echo_at = now;
    }

    /// Waits for the hub's answer through the state in force, which was stored without it.
    fn prove_adopted(&mut self, now: Boot) {
        let Some(state) = self.in_force.clone().filter(|_| self.unproved) else { return };
        let trial = StateTrial::of_adopted(now, state.document.generation, self.times.confirm_within);
        self.on_trial = Some(OnTrial { trial, state, proof_from: None, answered: false, patience: 1 });
    }

    pub(super) fn decide_trial(&mut self, now: Boot, out: &mut Actions) {
        let Some(t) = &mut self.on_trial else { return };
        if !self.observed.applied {
            (t.proof_from, t.answered) = (None, false);
        } else if t.proof_from.is_none() {
            t.proof_from = Some(self.echo_seq);
            self.echo_at = now;
        }
        let evidence = TrialEvidence {
            applied: self.observed.applied,
            answered: t.answered,
            up: self.observed.up,
            rounds: self.rounds.failed,
        };
        let expects_hub = !t.state.hubs().is_empty();
        let verdict = t.trial.judge(now, evidence, expects_hub, self.observed.problem.as_deref());
        let state = t.state.clone();
        match verdict {
            TrialVerdict::Open => return,
            TrialVerdict::Keep => {
                self.on_trial = None;
                if self.unproved && self.in_force.as_ref().is_some_and(|s| Arc::ptr_eq(s, &state)) {
                    push(out, Action::ForgetTrial);
                } else {
                    push(out, Action::Keep(state.clone()));
                }
                self.unproved = false;
                self.in_force = Some(state);
            }
            TrialVerdict::Adopt => self.adopt(now, state, out),
            // The one stored is no better.
            TrialVerdict::Accept if self.unproved => self.adopt(now, state, out),
            TrialVerdict::Accept => {}
            TrialVerdict::Revert { reason, unanswered } => self.revert(now, reason, unanswered, out),
        }
        self.report_at = now;
    }

    fn adopt(&mut self, now: Boot, state: Arc<SignedState>, out: &mut Actions) {
        push(out, Action::Adopt(state.clone()));
        self.in_force = Some(state);
        self.unproved = true;
        let proof = self.on_trial.take().map(|t| (t.proof_from, t.answered));
        self.prove_adopted(now);
        if let (Some(t), Some(proof)) = (&mut self.on_trial, proof) {
            (t.proof_from, t.answered) = proof;
        }
    }

    fn revert(&mut self, now: Boot, reason: String, unanswered: bool, out: &mut Actions) {
        let Some(t) = self.on_trial.take() else { return };
        let rejected = RejectedState { generation: t.trial.generation(), reason, unanswered };
        push(out, Action::Reject(rejected.clone()));
        self.rejected = Some(rejected);
        self.set_aside = unanswered.then_some(SetAside { state: t.state, patience: t.patience });
        self.end_record(now, out);
        if let Some(previous) = self.in_force.clone() {
            push(out, Action::Publish(previous));
        }
        self.published(now);
    }

    /// The record of a trial that has failed: deleted, or that of the unproved state in force again.
    fn end_record(&mut self, now: Boot, out: &mut Actions) {
        let generation = self.in_force.as_ref().map(|s| s.document.generation);
        match generation.filter(|_| self.unproved) {
            Some(generation) => {
                let (before, attempts, unproved_before) = (Before::Unknown, 1, false);
                push(out, Action::RecordTrial { generation, before, attempts, unproved_before });
                self.prove_adopted(now);
            }
            None => push(out, Action::ForgetTrial),
        }
    }

    /// A rejection for want of an answer stands once the hub answers through the state before, and is lifted if it does
    /// not answer through that one for as long.
    pub(super) fn settle_rejection(&mut self, now: Boot, out: &mut Actions) {
        let in_force = self.in_force.as_ref().map_or(0, |s| s.document.generation);
        let Some(rejected) = self.rejected.as_mut().filter(|r| r.unanswered && r.generation > in_force) else { return };
        if !self.observed.applied || self.on_trial.as_ref().is_some_and(|t| !t.is_of(self.in_force.as_ref())) {
            return;
        }
        if self.observed.up {
            rejected.unanswered = false;
            push(out, Action::ConfirmRejection(rejected.clone()));
            self.set_aside = None;
            return;
        }
        let patience = self.set_aside.as_ref().map_or(1, |s| s.patience);
        if self.rounds.failed < patience {
            return;
        }
        self.rejected = None;
        push(out, Action::LiftRejection);
        match self.set_aside.take() {
            Some(SetAside { state, patience }) => {
                self.begin_trial(now, state, Before::Down, (2 * patience).min(MAX_PATIENCE), out);
            }
            None if matches!(self.poll, Poll::At(_)) => self.poll = Poll::At(now),
            None => {}
        }
    }
}
