//! The conversation of an enrolled node with its control plane: events and the time go in, actions come out. Pure.
//!
//! Two requests may be out at a time, and neither holds up anything else: the long-poll for the state document, and one
//! of key change, registration or report, in that order. What the control plane does not answer changes nothing here:
//! the state in force stays in force, for ever.
use super::confirm::{Trial, TrialEvidence, TrialVerdict};
use super::document::Refusal;
use super::events::{Action, ControlTimes, Event, NodeObservation, PollResult, SignedState};
use super::identity::RejectedState;
use super::rotation::{Rotation, RotationAction};
use super::status::{ControlOutage, ControlStatus};
use super::wire::Outcome;
use spoke_model::backoff::{Backoff, JitterRng};
use spoke_model::key::PublicKey;
use spoke_model::time::Boot;
use spoke_update::notice::Notice;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

mod messages;
use messages::clip;

#[cfg(test)]
mod tests;

/// Most actions of one event: an echo to each hub and a few more.
pub const MAX_ACTIONS: usize = 24;
/// Between echoes while something is to be proven.
const ECHO_EVERY: Duration = Duration::from_millis(250);
/// A trial shorter than this is not reported by itself.
const BRIEF: Duration = Duration::from_secs(2);
/// Between reports that have a reason.
const REPORT_PAUSE: Duration = Duration::from_secs(1);
/// First and longest wait after the control plane did not answer.
const LOST: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(120));
/// First and longest wait after it answered with what is not acceptable.
const REFUSED: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(900));
/// A poll that brought nothing is repeated within this: a server that stops answers all of its nodes at once.
const SCATTER_MS: u64 = 1_000;

/// Actions of one event.
pub type Actions = heapless::Vec<Action, MAX_ACTIONS>;

#[derive(Clone, Copy, Debug)]
enum Poll {
    Out,
    At(Boot),
}

/// Generation in force, what became of the last one received and why; health and updates.
type ReportContent = (u64, Outcome, Option<String>, bool, Option<Notice>);

#[derive(Debug)]
enum Sending {
    Key,
    Register(Option<Boot>),
    Report(Box<ReportContent>, u64),
}

#[derive(Debug)]
struct OnTrial {
    trial: Trial,
    candidate: Arc<SignedState>,
    /// Echoes from here on were sent after it was applied.
    proof_from: Option<u16>,
    answered: bool,
}

/// The machine.
#[derive(Debug)]
pub struct ControlClient {
    times: ControlTimes,
    rng: JitterRng,
    in_force: Option<Arc<SignedState>>,
    rejected: Option<RejectedState>,
    refused: Option<String>,
    trial: Option<OnTrial>,
    rotation: Rotation,
    rotated: Option<Result<PublicKey, String>>,
    seen: NodeObservation,
    poll: Poll,
    lost: Backoff,
    bad: Backoff,
    sending: Option<Sending>,
    send_lost: Backoff,
    registered: Option<Boot>,
    register_at: Boot,
    report_at: Boot,
    /// No report before this, whatever the reason.
    report_floor: Boot,
    reported: Option<ReportContent>,
    drift_reported: u64,
    seq: u16,
    echo_at: Boot,
    last_answer: Option<Boot>,
    outage: Option<ControlOutage>,
}

impl ControlClient {
    /// A machine with what was kept: the state in force, the one taken back, and the key.
    pub fn new(
        now: Boot,
        seed: u64,
        times: ControlTimes,
        in_force: Option<SignedState>,
        rejected: Option<RejectedState>,
        key: PublicKey,
    ) -> Self {
        Self {
            times,
            rng: JitterRng::new(seed),
            in_force: in_force.map(Arc::new),
            rejected,
            refused: None,
            trial: None,
            rotation: Rotation::idle(key),
            rotated: None,
            seen: NodeObservation::default(),
            poll: Poll::At(now),
            lost: Backoff::new(LOST.0, LOST.1),
            bad: Backoff::new(REFUSED.0, REFUSED.1),
            sending: None,
            send_lost: Backoff::new(LOST.0, LOST.1),
            registered: None,
            register_at: now,
            report_at: now,
            report_floor: now,
            reported: None,
            drift_reported: 0,
            seq: 0,
            echo_at: now,
            last_answer: None,
            outage: None,
        }
    }

    /// Goes on with a change of keys that a restart has interrupted. `switching`: it had been remembered.
    pub fn resume_rotation(&mut self, now: Boot, new: PublicKey, switching: bool) -> Option<Action> {
        if switching {
            let wanted = self.rotation.resume(now, new);
            return Some(self.rotation_action(wanted));
        }
        self.rotation.begin(now, new);
        None
    }

    /// The state in force.
    pub const fn in_force(&self) -> Option<&Arc<SignedState>> {
        self.in_force.as_ref()
    }

    /// The key in use, as far as it is proven.
    pub const fn key(&self) -> PublicKey {
        self.rotation.key()
    }

    /// Why a change of keys cannot begin now.
    pub fn may_rotate(&self) -> Result<(), &'static str> {
        let Some(state) = &self.in_force else { return Err("the node has no state of its control plane yet") };
        if state.hubs().is_empty() {
            return Err(
                "only a node with a hub can change its key: nodes pin a hub's key; add another hub, then remove this one",
            );
        }
        if self.rotation.busy() {
            return Err("a change of keys is under way already: see `spoke status`");
        }
        if !self.seen.up {
            return Err("the hub does not answer, so the new key could not be proven: wait until the tunnel is up");
        }
        Ok(())
    }

    /// Takes an event; returns what is to be done, in this order.
    pub fn handle(&mut self, now: Boot, event: Event) -> Actions {
        let mut out = Actions::new();
        match event {
            Event::Tick => {}
            Event::Observed(seen) => {
                self.rotation.seen(seen.key, self.seq);
                self.seen = *seen;
            }
            Event::Echoed { from, seq } => self.echoed(now, from, seq, &mut out),
            Event::PollEnded(polled) => self.polled(now, polled, &mut out),
            Event::SendEnded(answer) => self.answered(now, &answer, &mut out),
            Event::Rotate(new) => {
                self.rotated = None;
                self.rotation.begin(now, new);
            }
            Event::Remembered(done) => {
                let wanted = self.rotation.remembered(now, done);
                self.rotate(wanted, &mut out);
            }
        }
        let wanted = self.rotation.tick(now);
        self.rotate(wanted, &mut out);
        self.judge(now, &mut out);
        if let Poll::At(at) = self.poll
            && now >= at
        {
            self.poll = Poll::Out;
            let hold = self.last_answer.is_some() && self.outage.is_none();
            push(&mut out, Action::Poll { after: self.newest(), hold });
        }
        self.send(now, &mut out);
        self.echo(now, &mut out);
        out
    }

    /// When [`Event::Tick`] is due.
    pub fn deadline(&self) -> Option<Boot> {
        let poll = match self.poll {
            Poll::Out => None,
            Poll::At(at) => Some(at),
        };
        let send = (self.sending.is_none() && self.in_force.is_some()).then(|| {
            let news = self.news().map(|at| at.max(self.report_floor));
            let register = self.registration().map(|_| self.register_at);
            [Some(self.report_at.max(self.report_floor)), news, register].into_iter().flatten().min()
        });
        let trial = self.trial.as_ref().and_then(|t| t.trial.deadline());
        let rotation = self.rotation.deadline().filter(|_| self.sending.is_none() || self.rotation.wants_echo());
        let echo = self.wants_echo().then_some(self.echo_at);
        [poll, send.flatten(), trial, rotation, echo].into_iter().flatten().min()
    }

    /// For health and `spoke status`.
    pub fn status(&self) -> ControlStatus {
        let (generation, outcome, reason, ..) = self.said();
        ControlStatus {
            enrolled: true,
            generation,
            outcome: Some(outcome),
            reason,
            last_answer: self.last_answer,
            outage: self.outage.clone(),
            key_change: self.rotation.phase(),
            key_changed: self.rotated.clone(),
            ..ControlStatus::default()
        }
    }

    fn newest(&self) -> u64 {
        let have = self.in_force.as_ref().map_or(0, |c| c.document.generation);
        let tried = self.trial.as_ref().map_or(0, |t| t.trial.generation());
        have.max(tried).max(self.rejected.as_ref().map_or(0, |r| r.generation))
    }

    fn polled(&mut self, now: Boot, polled: PollResult, out: &mut Actions) {
        let scatter = Duration::from_millis(self.rng.next_u64() % SCATTER_MS);
        match polled {
            PollResult::Nothing => {
                self.listened(now);
                self.bad.reset();
                self.poll = Poll::At(now + scatter);
            }
            PollResult::Again => self.poll = Poll::At(now),
            PollResult::State(candidate) => {
                self.listened(now);
                self.offer(now, *candidate, out);
            }
            PollResult::Refused(refusal) => {
                self.listened(now);
                self.refuse(now, &refusal);
            }
            PollResult::Failed(why) => {
                // At the first loss anywhere within the spread, then with growing waits.
                let mut wait = self.lost.fail(&mut self.rng);
                if self.lost.failures() == 1 {
                    let spread = u64::try_from(self.times.spread.as_millis()).unwrap_or(u64::MAX).max(1);
                    wait += Duration::from_millis(self.rng.next_u64() % spread);
                }
                self.lose(now, &why);
                self.poll = Poll::At(now + wait);
            }
        }
    }

    fn offer(&mut self, now: Boot, candidate: SignedState, out: &mut Actions) {
        let (got, have) = (candidate.document.generation, self.newest());
        if got <= have {
            return self.refuse(now, &Refusal::Older { got, have });
        }
        self.refused = None;
        self.bad.reset();
        self.poll = Poll::At(now);
        // A trial that is overtaken leaves its question open: the hub has to answer through this one too.
        let was_up = self.seen.up || self.trial.as_ref().is_some_and(|t| t.trial.hub_was_up());
        let trial = Trial::begin(now, got, self.times.confirm_within, was_up, self.in_force.is_some());
        let candidate = Arc::new(candidate);
        push(out, Action::Publish(candidate.clone()));
        self.trial = Some(OnTrial { trial, candidate, proof_from: None, answered: false });
        self.seen.applied = false;
        self.seen.trouble = None;
        self.echo_at = now;
    }

    fn refuse(&mut self, now: Boot, refusal: &Refusal) {
        self.refused = Some(refusal.to_string());
        self.poll = Poll::At(now + self.bad.fail(&mut self.rng));
    }

    fn listened(&mut self, now: Boot) {
        self.lost.reset();
        self.last_answer = Some(now);
        self.outage = None;
    }

    fn lose(&mut self, now: Boot, why: &str) {
        let since = self.outage.as_ref().map_or(now, |a| a.since);
        self.outage = Some(ControlOutage { since, reason: clip(why) });
    }

    /// What is on trial is decided.
    fn judge(&mut self, now: Boot, out: &mut Actions) {
        let Some(t) = &mut self.trial else { return };
        if !self.seen.applied {
            (t.proof_from, t.answered) = (None, false);
        } else if t.proof_from.is_none() {
            t.proof_from = Some(self.seq);
            self.echo_at = now;
        }
        let evidence = TrialEvidence { applied: self.seen.applied, answered: t.answered };
        let expects_hub = !t.candidate.hubs().is_empty();
        match t.trial.judge(now, evidence, expects_hub, self.seen.trouble.as_deref()) {
            TrialVerdict::Open => {}
            TrialVerdict::Keep => {
                push(out, Action::Keep(t.candidate.clone()));
                self.in_force = Some(t.candidate.clone());
                self.trial = None;
                // What a later one overtakes needs no memory.
                self.report_at = now;
            }
            TrialVerdict::Revert(reason) => {
                let rejected = RejectedState { generation: t.trial.generation(), reason };
                push(out, Action::Reject(rejected.clone()));
                if let Some(back) = &self.in_force {
                    push(out, Action::Publish(back.clone()));
                }
                self.rejected = Some(rejected);
                self.trial = None;
                self.seen.applied = false;
                self.report_at = now;
            }
        }
    }

    fn echoed(&mut self, now: Boot, from: IpAddr, seq: u16, out: &mut Actions) {
        let of = |c: &SignedState| c.hubs().iter().any(|h| h.address == from);
        if let Some(t) = &mut self.trial
            && t.proof_from.is_some_and(|first| seq.wrapping_sub(first) < 0x8000)
            && of(&t.candidate)
        {
            t.answered = true;
        }
        if self.in_force.as_deref().is_some_and(of) {
            let wanted = self.rotation.echoed(now, seq);
            self.rotate(wanted, out);
        }
    }

    fn rotate(&mut self, wanted: Option<RotationAction>, out: &mut Actions) {
        if let Some(wanted) = wanted {
            let action = self.rotation_action(wanted);
            push(out, action);
        }
    }

    fn rotation_action(&mut self, wanted: RotationAction) -> Action {
        match wanted {
            RotationAction::Remember => Action::Remember,
            RotationAction::Use(which) => {
                self.echo_at = Boot::default();
                Action::Use(which)
            }
            RotationAction::Finish => {
                self.rotated = Some(Ok(self.rotation.key()));
                // The control plane is to hear that the node is connected with its new key.
                self.registered = None;
                Action::FinishKey
            }
            RotationAction::Abandon(why) => {
                self.rotated = Some(Err(why.clone()));
                Action::AbandonKey(why)
            }
        }
    }

    fn wants_echo(&self) -> bool {
        self.rotation.wants_echo() || self.trial.as_ref().is_some_and(|t| t.proof_from.is_some() && !t.answered)
    }

    fn echo(&mut self, now: Boot, out: &mut Actions) {
        if !self.wants_echo() || now < self.echo_at {
            return;
        }
        self.echo_at = now + ECHO_EVERY;
        let asked = self.trial.as_ref().map(|t| &t.candidate).or(self.in_force.as_ref());
        for hub in asked.map_or(&[][..], |c| c.hubs()) {
            push(out, Action::Echo { to: hub.address, seq: self.seq });
        }
        self.seq = self.seq.wrapping_add(1);
    }
}

/// Cannot overflow: see [`MAX_ACTIONS`].
fn push(out: &mut Actions, action: Action) {
    let _ = out.push(action);
}
