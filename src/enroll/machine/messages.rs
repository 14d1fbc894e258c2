//! Messages of the control client: which one is due, and what its result means.
use super::{Actions, BRIEF_TRIAL, ControlClient, Poll, REPORT_PAUSE, ReportContent, Sending, push};
use crate::document::WantedHub;
use crate::events::{Action, Message, SendResult};
use crate::wire::Outcome;
use spoke_model::time::Boot;

impl ControlClient {
    /// Sends the most urgent message that is due, if none is out: key change, registration, report.
    pub(super) fn send_due(&mut self, now: Boot, out: &mut Actions) {
        if self.sending.is_some() {
            return;
        }
        if let Some((step, key)) = self.rotation.due_request(now) {
            self.sending = Some(Sending::Key);
            return push(out, Action::Send(Message::Key(step, key)));
        }
        if self.in_force.is_none() {
            return;
        }
        if now >= self.register_at
            && let Some(hub_endpoint) = self.hub_to_register()
        {
            self.sending = Some(Sending::Register { connected_since: self.observed.connected_since });
            return push(out, Action::Send(Message::Register { hub_endpoint }));
        }
        let changed = self.report_due().is_some_and(|at| now >= at);
        if now >= self.report_floor && (now >= self.report_at || changed) {
            let content = Box::new(self.report_content());
            let ReportContent { generation, outcome, reason, .. } = (*content).clone();
            let drift = u32::try_from(self.observed.drift.saturating_sub(self.drift_reported)).unwrap_or(u32::MAX);
            self.sending = Some(Sending::Report { content, drift: self.observed.drift });
            push(out, Action::Send(Message::Report { generation, outcome, reason, drift }));
        }
    }

    /// The endpoint of the hub in use, if this connection to it is not registered yet.
    pub(super) fn hub_to_register(&self) -> Option<String> {
        let observed = &self.observed;
        let new = observed.up && observed.connected_since.is_some() && observed.connected_since != self.registered;
        let state = self.in_force.as_ref().filter(|_| new)?;
        let in_use = |h: &&WantedHub| Some(h.node_id.as_str()) == observed.hub.as_deref();
        state.hubs().iter().find(in_use).map(|h| h.endpoint.to_string())
    }

    /// When a report is due because its content has changed; `None`: it has not.
    pub(super) fn report_due(&self) -> Option<Boot> {
        let reported = self.reported.as_ref()?;
        if *reported == self.report_content() {
            return None;
        }
        let open = self.on_trial.as_ref().filter(|t| !t.trial.accepted());
        Some(open.map_or(Boot::default(), |t| t.trial.began() + BRIEF_TRIAL))
    }

    pub(super) fn handle_send(&mut self, now: Boot, result: &SendResult, out: &mut Actions) {
        let taken = match result {
            SendResult::Taken | SendResult::Ready(_) | SendResult::Refused(_) => {
                // The control plane answers again: end the poll's backoff.
                if let (Some(_), Poll::At(_)) = (&self.outage, self.poll) {
                    self.poll = Poll::At(now);
                }
                self.send_backoff.reset();
                !matches!(result, SendResult::Refused(_))
            }
            SendResult::Again | SendResult::Unsent(_) | SendResult::Failed(_) => false,
        };
        let mut retry_at = || match result {
            SendResult::Again => now,
            _ => now + self.send_backoff.fail(&mut self.rng),
        };
        match self.sending.take() {
            Some(Sending::Key) => {
                let wanted = self.rotation.handle_result(now, result);
                self.rotate(now, wanted, out);
            }
            Some(Sending::Register { connected_since }) if taken => self.registered = connected_since,
            Some(Sending::Register { .. }) => self.register_at = retry_at(),
            Some(Sending::Report { content, drift }) if taken => {
                self.reported = Some(*content);
                self.drift_reported = drift;
                self.report_at = now + self.rng.jitter(self.times.report_every);
                self.report_floor = now + REPORT_PAUSE;
            }
            Some(Sending::Report { .. }) => {
                self.report_at = retry_at();
                self.report_floor = self.report_at;
            }
            None => {}
        }
    }

    pub(super) fn report_content(&self) -> ReportContent {
        let in_force = self.in_force.as_ref().map_or(0, |s| s.document.generation);
        let (healthy, update) = (self.observed.healthy, self.observed.update.clone());
        let content = |generation, outcome, reason: Option<&str>| ReportContent {
            generation,
            outcome,
            reason: reason.map(clip),
            healthy,
            update,
        };
        if let Some(t) = self.on_trial.as_ref().filter(|t| t.trial.accepted() && !self.unproved) {
            return content(t.trial.generation(), Outcome::Applied, None);
        }
        if let Some(t) = self.on_trial.as_ref().filter(|t| !t.trial.accepted()) {
            let generation = if self.observed.applied { t.trial.generation() } else { in_force };
            return content(generation, Outcome::Trial, self.observed.problem.as_deref());
        }
        match (&self.refused, self.rejected.as_ref().filter(|r| r.generation > in_force)) {
            (Some(reason), _) => content(in_force, Outcome::Refused, Some(reason)),
            (None, Some(rejected)) => content(in_force, Outcome::Reverted, Some(&rejected.reason)),
            (None, None) => content(in_force, Outcome::Applied, None),
        }
    }
}

/// At most as many printable characters as the control plane accepts.
pub(super) fn clip(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(250).collect()
}
