//! Transitions and status of the session.
use super::super::ladder::Rung;
use super::super::liveness::PeerActivity;
use super::super::status::{Code, MAX_HISTORY, Standby, State, Transition, UplinkFault, UplinkStatus};
use super::{Actions, Phase, Session, SessionAction, act};
use spoke_model::time::Boot;

impl Session {
    /// The status after the last event.
    pub const fn status(&self) -> &UplinkStatus {
        &self.status
    }

    /// Enters a phase and reports the transition.
    pub(super) fn enter(
        &mut self,
        now: Boot,
        phase: Phase,
        hub: usize,
        code: Code,
        rung: Option<Rung>,
        out: &mut Actions,
    ) {
        let from = self.state();
        self.phase = phase;
        let hub = self.hubs.get(hub).map(|h| h.name.clone()).unwrap_or_default();
        let transition = Transition { at: now, from, to: self.state(), hub, code, rung };
        // Every attempt passes through `Resolving`; kept, it would displace the other entries.
        if transition.to != State::Resolving || rung.is_some() {
            if self.status.history.len() >= MAX_HISTORY {
                self.status.history.pop_front();
            }
            self.status.history.push_back(transition.clone());
        }
        act(out, SessionAction::Report(transition));
    }

    /// Sets the fault; an existing one with the same code keeps its `since`.
    pub(super) fn set_fault(&mut self, now: Boot, hub: usize, code: Code) {
        let name = self.hubs.get(hub).map_or("", |h| h.name.as_str());
        let since = self.status.fault.as_ref().filter(|f| f.code == code).map_or(now, |f| f.since);
        let fault = UplinkFault { since, code, detail: format!("hub {name}: {}", code.detail()) };
        self.status.last_fault = Some(fault.clone());
        self.status.fault = Some(fault);
    }

    /// Updates the status.
    pub(super) fn refresh(&mut self) {
        let active = self.seen.get(self.active);
        let counters = active.and_then(PeerActivity::counters);
        let up = match self.phase {
            Phase::Up { since } => Some(since),
            Phase::Starting | Phase::Waiting { .. } | Phase::Resolving { .. } | Phase::Connecting(_) => None,
        };
        let watched = self.watch.as_ref().and_then(|w| {
            let (hub, _) = w.standby()?;
            Some(Standby { hub: self.hubs.get(hub)?.name.clone(), good_since: w.good().map(|(_, _, since)| since) })
        });
        let unanswered = active.and_then(PeerActivity::echo_since);
        let s = &mut self.status;
        s.state = match self.phase {
            Phase::Starting => State::Starting,
            Phase::Waiting { .. } => State::Waiting,
            Phase::Resolving { .. } => State::Resolving,
            Phase::Connecting(_) => State::Connecting,
            Phase::Up { .. } => State::Up,
        };
        s.hub = self.hubs.get(self.active).map(|h| h.name.clone());
        s.endpoint = self.endpoint.map(|e| e.addr);
        s.connected_since = up;
        // An echo sent less than `probe_after` ago may still be answered.
        s.hub_answers = up.is_some()
            && unanswered.is_none_or(|at| {
                self.echoed_at.is_none_or(|e| e <= at || e.since(at) < self.config.uplink.probe_after)
            });
        s.handshake_at = active.and_then(PeerActivity::handshake_at).or(up);
        (s.rx, s.tx) = counters.map_or((0, 0), |c| (c.rx, c.tx));
        s.failures = self.backoff.failures();
        s.next_attempt = match self.phase {
            Phase::Waiting { until, .. } => Some(until),
            Phase::Starting | Phase::Resolving { .. } | Phase::Connecting(_) | Phase::Up { .. } => None,
        };
        s.standby = watched;
    }
}
