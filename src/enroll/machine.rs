//! The conversation of an enrolled node with its control plane. No clock, no I/O.
//!
//! ```text
//! long-poll:  Waiting ──deadline──► Poll out ──nothing──► Waiting (≤ 1 s)
//!                ▲                     │ failed, refused ──► Waiting (backoff)
//!                │                     ▼ newer state
//! state:      In force ◄──keep── On trial (recorded) ──revert, restart──► In force (the previous one)
//! messages:   Idle ──key change, registration or report due──► one message out ──result──► Idle
//! key:        see [`super::rotation`]
//! ```
//! The long-poll and one message may be out at the same time, and neither waits for the other. While the control plane
//! does not answer, the state in force stays in force, without limit.
//!
//! # Driver contract
//! [`ControlClient::new`], then [`ControlClient::resume_trial`] if a trial is recorded on disk, then
//! [`ControlClient::resume_rotation`] if a change of keys is, then [`Event::Tick`]. Perform all actions of a call in order before the next one. Each `Poll` is answered by one
//! [`Event::PollEnded`], each `Send` by one [`Event::SendEnded`], `RecordSwitch` by [`Event::SwitchRecorded`], at any
//! later time; echo replies may be missing. After `Publish` send a new [`Event::Observed`] before anything else that
//! depends on it. Publish [`ControlClient::status`] after each call. Sleep until [`ControlClient::deadline`] and send
//! `Tick`; an early or late `Tick` is harmless.
use super::confirm::RejectedState;
use super::document::Refusal;
use super::events::{Action, ControlTimes, Event, NodeObservation, PollResult, SignedState};
use super::rotation::{Rotation, RotationAction};
use super::status::{ControlOutage, ControlStatus, KeyChange, OutageCause};
use super::wire::Outcome;
use spoke_model::backoff::{Backoff, JitterRng};
use spoke_model::deadline::Deadline;
use spoke_model::key::PublicKey;
use spoke_model::time::Boot;
use spoke_update::notice::Notice;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

mod messages;
mod trial;
use messages::clip;
use trial::{OnTrial, Rounds, SetAside};

#[cfg(test)]
mod tests;

/// Most actions of one event: an echo to each hub and a few more.
pub const MAX_ACTIONS: usize = 32;
/// Period of echoes while something has to be proven.
const ECHO_PERIOD: Duration = Duration::from_millis(250);
/// Period after [`FREQUENT_ECHOES`] without an answer: a hub that never answers costs at most 1,440 echoes a day.
const SLOW_ECHO_PERIOD: Duration = Duration::from_secs(60);
/// Shortest time between new keys for refused handshakes.
const RENEW_PAUSE: Duration = Duration::from_secs(1800);
/// First and longest wait after such a change was abandoned: the hub may only have been late to report.
const RENEW_BACKOFF: (Duration, Duration) = (Duration::from_secs(30), RENEW_PAUSE);
/// How long a state on trial is proved with the short period.
const FREQUENT_ECHOES: Duration = Duration::from_secs(60);
/// A trial shorter than this is not reported by itself.
const BRIEF_TRIAL: Duration = Duration::from_secs(2);
/// Shortest time between reports.
const REPORT_PAUSE: Duration = Duration::from_secs(1);
/// First and longest wait after the control plane did not answer.
const OUTAGE_BACKOFF: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(120));
/// First and longest wait after a document that was refused.
const REFUSED_BACKOFF: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(900));
/// Longest wait of a removed node before it asks again.
const REMOVED_POLL: Duration = Duration::from_secs(900);
/// A poll that brought nothing is repeated after a random wait below this: a server that stops answers all nodes at
/// once.
const SCATTER_MS: u64 = 1_000;

/// Actions of one event, in the order to perform them.
pub type Actions = heapless::Vec<Action, MAX_ACTIONS>;

/// What a deadline of the control client is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlDeadline {
    /// Poll for a newer state.
    Poll,
    /// Send a report.
    Report,
    /// Register the hub connection.
    Register,
    /// The state on trial has not been confirmed in time.
    TrialEnds,
    /// The change of keys has a request to send or a timeout.
    Rotation,
    /// Send an echo.
    Echo,
}

/// Why a change of keys cannot begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RotationRefused {
    /// Not enrolled, or no state received.
    #[error("the node has no state of its control plane yet")]
    NoState,
    /// A hub, or a node of a network without one.
    #[error("only a node with a hub can change its key: nodes pin a hub's key; add another hub, then remove this one")]
    NoHub,
    /// One at a time.
    #[error("a change of keys is under way already: see `spoke status`")]
    InProgress,
    /// The new key could not be proven.
    #[error("the hub does not answer, so the new key could not be proven: wait until the tunnel is up")]
    HubUnreachable,
}

#[derive(Clone, Copy, Debug)]
enum Poll {
    Out,
    At(Boot),
}

/// Content of a report. An unchanged content is not reported again.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ReportContent {
    generation: u64,
    outcome: Outcome,
    reason: Option<String>,
    healthy: bool,
    update: Option<Notice>,
}

#[derive(Debug)]
enum Sending {
    Key,
    Register { connected_since: Option<Boot> },
    Report { content: Box<ReportContent>, drift: u64 },
}

/// The machine.
#[derive(Debug)]
pub struct ControlClient {
    times: ControlTimes,
    rng: JitterRng,
    in_force: Option<Arc<SignedState>>,
    rejected: Option<RejectedState>,
    refused: Option<String>,
    on_trial: Option<OnTrial>,
    /// The hub has not answered through the state in force: there was none before it.
    unproved: bool,
    /// A generation, and how often its trial was begun.
    attempts: Option<(u64, u32)>,
    set_aside: Option<SetAside>,
    rounds: Rounds,
    /// No new key for refused handshakes before this.
    renew_at: Boot,
    renew_backoff: Backoff,
    rotation: Rotation,
    key_changed: Option<KeyChange>,
    observed: NodeObservation,
    poll: Poll,
    poll_backoff: Backoff,
    refused_backoff: Backoff,
    sending: Option<Sending>,
    send_backoff: Backoff,
    /// `connected_since` of the connection last registered.
    registered: Option<Boot>,
    register_at: Boot,
    report_at: Boot,
    /// No report before this, whatever the reason.
    report_floor: Boot,
    reported: Option<ReportContent>,
    drift_reported: u64,
    echo_seq: u16,
    echo_at: Boot,
    last_answer: Option<Boot>,
    outage: Option<ControlOutage>,
}

impl ControlClient {
    /// A machine with what is on disk: the state in force, the rejected one, and the key.
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
            on_trial: None,
            unproved: false,
            attempts: None,
            set_aside: None,
            rounds: Rounds::new(),
            renew_at: now,
            renew_backoff: Backoff::new(RENEW_BACKOFF.0, RENEW_BACKOFF.1),
            rotation: Rotation::idle(key),
            key_changed: None,
            observed: NodeObservation::default(),
            poll: Poll::At(now),
            poll_backoff: Backoff::new(OUTAGE_BACKOFF.0, OUTAGE_BACKOFF.1),
            refused_backoff: Backoff::new(REFUSED_BACKOFF.0, REFUSED_BACKOFF.1),
            sending: None,
            send_backoff: Backoff::new(OUTAGE_BACKOFF.0, OUTAGE_BACKOFF.1),
            registered: None,
            register_at: now,
            report_at: now,
            report_floor: now,
            reported: None,
            drift_reported: 0,
            echo_seq: 0,
            echo_at: now,
            last_answer: None,
            outage: None,
        }
    }

    /// Continues a change of keys that a restart interrupted. `switching`: the switch had been recorded.
    pub fn resume_rotation(&mut self, now: Boot, new: PublicKey, switching: bool) -> Option<Action> {
        if switching {
            let wanted = self.rotation.resume(now, new);
            return Some(self.rotation_action(now, wanted));
        }
        self.rotation.begin(now, new);
        None
    }

    /// The state in force.
    pub const fn in_force(&self) -> Option<&Arc<SignedState>> {
        self.in_force.as_ref()
    }

    /// The state in force if the hub has answered through it, or if there is no hub to answer.
    pub fn proved(&self) -> Option<&Arc<SignedState>> {
        self.in_force.as_ref().filter(|_| !self.unproved)
    }

    /// The key last proven.
    pub const fn key(&self) -> PublicKey {
        self.rotation.key()
    }

    /// Whether a change of keys can begin.
    pub fn check_rotation(&self) -> Result<(), RotationRefused> {
        let state = self.in_force.as_ref().ok_or(RotationRefused::NoState)?;
        if state.hubs().is_empty() {
            return Err(RotationRefused::NoHub);
        }
        if self.rotation.in_progress() {
            return Err(RotationRefused::InProgress);
        }
        // Hubs learn a key through the control plane, and a new one has no handshakes in the future.
        if self.observed.up || self.observed.stamps_ahead { Ok(()) } else { Err(RotationRefused::HubUnreachable) }
    }

    /// Takes an event; returns what to do, in this order.
    pub fn handle(&mut self, now: Boot, event: Event) -> Actions {
        let mut out = Actions::new();
        match event {
            Event::Tick => {}
            Event::Observed(observed) => {
                self.rotation.observe_key(observed.key, self.echo_seq);
                self.rounds.observe(&observed);
                self.observed = *observed;
            }
            Event::EchoReply { from, seq } => self.handle_echo(now, from, seq, &mut out),
            Event::PollEnded(result) => self.handle_poll(now, result, &mut out),
            Event::SendEnded(result) => self.handle_send(now, &result, &mut out),
            Event::Rotate(new) => {
                self.key_changed = None;
                self.rotation.begin(now, new);
            }
            Event::SwitchRecorded(done) => {
                let wanted = self.rotation.handle_recorded(now, done);
                self.rotate(now, wanted, &mut out);
            }
        }
        let wanted = self.rotation.tick(now);
        self.rotate(now, wanted, &mut out);
        self.decide_trial(now, &mut out);
        self.settle_rejection(now, &mut out);
        self.renew_key(now, &mut out);
        if let Poll::At(at) = self.poll
            && now >= at
        {
            self.poll = Poll::Out;
            let hold = self.last_answer.is_some() && self.outage.is_none();
            push(&mut out, Action::Poll { after: self.newest_generation(), hold });
        }
        self.send_due(now, &mut out);
        self.send_echoes(now, &mut out);
        out
    }

    /// When [`Event::Tick`] is due next, and what for.
    pub fn deadline(&self) -> Option<Deadline<ControlDeadline>> {
        let poll = match self.poll {
            Poll::Out => None,
            Poll::At(at) => Some(at),
        };
        let idle = self.sending.is_none();
        let may_report = idle && self.in_force.is_some();
        let report = match self.report_due() {
            Some(changed) => changed.min(self.report_at),
            None => self.report_at,
        };
        let rotation = self.rotation.deadline().filter(|_| idle || self.rotation.wants_echo());
        [
            (ControlDeadline::Poll, poll),
            (ControlDeadline::TrialEnds, self.on_trial.as_ref().and_then(|t| t.trial.deadline())),
            (ControlDeadline::Rotation, rotation),
            (ControlDeadline::Echo, self.wants_echo().then_some(self.echo_at)),
            (ControlDeadline::Register, self.hub_to_register().filter(|_| may_report).map(|_| self.register_at)),
            (ControlDeadline::Report, may_report.then_some(report.max(self.report_floor))),
        ]
        .into_iter()
        .filter_map(|(reason, at)| Some(Deadline::new(at?, reason)))
        .reduce(Deadline::min)
    }

    /// For health and `spoke status`.
    pub fn status(&self) -> ControlStatus {
        let ReportContent { generation, outcome, reason, .. } = self.report_content();
        ControlStatus {
            enrolled: true,
            generation,
            outcome: Some(outcome),
            reason,
            last_answer: self.last_answer,
            outage: self.outage.clone(),
            key_change: self.rotation.phase(),
            key_changed: self.key_changed.clone(),
            ..ControlStatus::default()
        }
    }

    /// The newest generation ever received, whatever became of it; that of a state on trial which takes a later one back.
    fn newest_generation(&self) -> u64 {
        if let Some(t) = self.on_trial.as_ref().filter(|t| t.state.document.supersedes.is_some()) {
            return t.trial.generation();
        }
        let in_force = self.in_force.as_ref().map_or(0, |s| s.document.generation);
        let on_trial = self.on_trial.as_ref().map_or(0, |t| t.trial.generation());
        in_force.max(on_trial).max(self.rejected.as_ref().map_or(0, |r| r.generation))
    }

    fn handle_poll(&mut self, now: Boot, result: PollResult, out: &mut Actions) {
        let scatter = Duration::from_millis(self.rng.next_u64() % SCATTER_MS);
        match result {
            PollResult::Nothing => {
                self.record_answer(now, scatter);
                self.refused_backoff.reset();
                self.poll = Poll::At(now + scatter);
            }
            PollResult::Again => self.poll = Poll::At(now),
            PollResult::State(state) => {
                self.record_answer(now, scatter);
                self.handle_offer(now, *state, out);
            }
            PollResult::Refused(refusal) => {
                self.record_answer(now, scatter);
                self.record_refusal(now, &refusal);
            }
            PollResult::Removed => {
                let cause = OutageCause::Removed;
                let since = self.outage.as_ref().filter(|o| o.cause == cause).map_or(now, |o| o.since);
                let reason = "the node was removed from the fleet".to_owned();
                self.outage = Some(ControlOutage { since, reason, cause });
                self.poll = Poll::At(now + self.rng.jitter(REMOVED_POLL));
            }
            PollResult::Failed(why, cause) => {
                // The first wait is spread: a control plane that stops loses all of its nodes at once.
                let mut wait = self.poll_backoff.fail(&mut self.rng);
                if self.poll_backoff.failures() == 1 {
                    let spread = u64::try_from(self.times.spread.as_millis()).unwrap_or(u64::MAX).max(1);
                    wait += Duration::from_millis(self.rng.next_u64() % spread);
                }
                let since = self.outage.as_ref().filter(|o| o.cause == cause).map_or(now, |o| o.since);
                self.outage = Some(ControlOutage { since, reason: clip(&why), cause });
                self.poll = Poll::At(now + wait);
            }
        }
    }

    /// A hub that refuses handshakes of the future refuses them until that time has come: with a new key there are none.
    fn renew_key(&mut self, now: Boot, out: &mut Actions) {
        let refused = self.observed.stamps_ahead && !self.observed.up && self.rounds.has_failed();
        let reachable = self.outage.is_none() && self.last_answer.is_some();
        if refused && reachable && now >= self.renew_at && self.check_rotation().is_ok() {
            self.renew_at = now + RENEW_PAUSE;
            push(out, Action::RenewKey);
        }
    }

    fn record_refusal(&mut self, now: Boot, refusal: &Refusal) {
        self.refused = Some(refusal.to_string());
        self.poll = Poll::At(now + self.refused_backoff.fail(&mut self.rng));
    }

    fn record_answer(&mut self, now: Boot, scatter: Duration) {
        self.poll_backoff.reset();
        // Messages that failed meanwhile: a node that changes its key waits only a minute for its hub's report.
        if self.send_backoff.failures() > 0 {
            for at in [&mut self.register_at, &mut self.report_at, &mut self.report_floor] {
                *at = (now + scatter).min(*at);
            }
        }
        self.last_answer = Some(now);
        self.outage = None;
    }

    fn handle_echo(&mut self, now: Boot, from: IpAddr, seq: u16, out: &mut Actions) {
        let is_hub_of = |s: &SignedState| s.hubs().iter().any(|h| h.address == from);
        if let Some(t) = &mut self.on_trial
            && t.proof_from.is_some_and(|first| seq.wrapping_sub(first) < 0x8000)
            && is_hub_of(&t.state)
        {
            t.answered = true;
        }
        if self.in_force.as_deref().is_some_and(is_hub_of) {
            let wanted = self.rotation.handle_echo(now, seq);
            self.rotate(now, wanted, out);
        }
    }

    fn rotate(&mut self, now: Boot, wanted: Option<RotationAction>, out: &mut Actions) {
        if let Some(wanted) = wanted {
            let action = self.rotation_action(now, wanted);
            push(out, action);
        }
    }

    fn rotation_action(&mut self, now: Boot, wanted: RotationAction) -> Action {
        match wanted {
            RotationAction::RecordSwitch => Action::RecordSwitch,
            RotationAction::UseKey(slot) => {
                self.echo_at = Boot::default();
                Action::UseKey(slot)
            }
            RotationAction::Finish => {
                self.key_changed = Some(KeyChange::Changed(self.rotation.key()));
                // The connection is registered again, with the new key.
                self.registered = None;
                self.renew_backoff.reset();
                Action::FinishKey
            }
            RotationAction::Abandon(why) => {
                self.key_changed = Some(KeyChange::Abandoned(why.clone()));
                self.renew_at = (now + self.renew_backoff.fail(&mut self.rng)).min(self.renew_at);
                Action::AbandonKey(why)
            }
        }
    }

    fn wants_echo(&self) -> bool {
        // An accepted state has time: the uplink looks for the hub.
        let wants = |t: &OnTrial| t.proof_from.is_some() && !t.answered && (self.observed.up || !t.trial.accepted());
        self.rotation.wants_echo() || self.on_trial.as_ref().is_some_and(wants)
    }

    fn send_echoes(&mut self, now: Boot, out: &mut Actions) {
        if !self.wants_echo() || now < self.echo_at {
            return;
        }
        let since = self.on_trial.as_ref().filter(|_| !self.rotation.wants_echo()).map_or(now, |t| t.trial.began());
        let frequent =
            now < since + FREQUENT_ECHOES || self.observed.connected_since.is_some_and(|at| now < at + FREQUENT_ECHOES);
        self.echo_at = now + if frequent { ECHO_PERIOD } else { SLOW_ECHO_PERIOD };
        let state = self.on_trial.as_ref().map(|t| &t.state).or(self.in_force.as_ref());
        for hub in state.map_or(&[][..], |s| s.hubs()) {
            push(out, Action::Echo { to: hub.address, seq: self.echo_seq });
        }
        self.echo_seq = self.echo_seq.wrapping_add(1);
    }
}

/// Cannot overflow: see [`MAX_ACTIONS`].
fn push(out: &mut Actions, action: Action) {
    let _ = out.push(action);
}
