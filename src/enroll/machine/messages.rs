//! What the node tells its control plane of itself, one message at a time, and what comes of the answers.
use super::{Actions, BRIEF, ControlClient, Poll, REPORT_PAUSE, ReportContent, Sending, push};
use crate::document::WantedHub;
use crate::events::{Action, Message, SendResult};
use crate::wire::Outcome;
use spoke_model::time::Boot;

impl ControlClient {
    pub(super) fn send(&mut self, now: Boot, out: &mut Actions) {
        if self.sending.is_some() {
            return;
        }
        if let Some((step, key)) = self.rotation.ask(now) {
            self.sending = Some(Sending::Key);
            return push(out, Action::Send(Message::Key(step, key)));
        }
        if self.in_force.is_none() {
            return;
        }
        if now >= self.register_at
            && let Some(hub_endpoint) = self.registration()
        {
            self.sending = Some(Sending::Register(self.seen.connected_since));
            return push(out, Action::Send(Message::Register { hub_endpoint }));
        }
        let news = self.news().is_some_and(|at| now >= at);
        if now >= self.report_floor && (now >= self.report_at || news) {
            let said = self.said();
            let (generation, outcome, reason, ..) = said.clone();
            let drift = u32::try_from(self.seen.drift.saturating_sub(self.drift_reported)).unwrap_or(u32::MAX);
            self.sending = Some(Sending::Report(Box::new(said), self.seen.drift));
            push(out, Action::Send(Message::Report { generation, outcome, reason, drift }));
        }
    }

    /// Where the hub is that has to be told of.
    pub(super) fn registration(&self) -> Option<String> {
        let news = self.seen.up && self.seen.connected_since.is_some() && self.seen.connected_since != self.registered;
        let state = self.in_force.as_ref().filter(|_| news)?;
        let used = |h: &&WantedHub| Some(h.node_id.as_str()) == self.seen.hub.as_deref();
        state.hubs().iter().find(used).map(|h| h.endpoint.to_string())
    }

    /// When what was last reported is not true any more.
    pub(super) fn news(&self) -> Option<Boot> {
        let said = self.reported.as_ref()?;
        if *said == self.said() {
            return None;
        }
        // Most trials are over before anybody could look.
        Some(self.trial.as_ref().map_or(Boot::default(), |t| t.trial.began() + BRIEF))
    }

    pub(super) fn answered(&mut self, now: Boot, answer: &SendResult, out: &mut Actions) {
        let taken = match answer {
            SendResult::Taken | SendResult::Ready(_) | SendResult::Refused(_) => {
                // It is there again: whoever waits to poll need not wait any longer.
                if let (Some(_), Poll::At(_)) = (&self.outage, self.poll) {
                    self.poll = Poll::At(now);
                }
                self.send_lost.reset();
                !matches!(answer, SendResult::Refused(_))
            }
            SendResult::Again | SendResult::Unsent(_) | SendResult::Failed(_) => false,
        };
        let mut later = || match answer {
            SendResult::Again => now,
            _ => now + self.send_lost.fail(&mut self.rng),
        };
        match self.sending.take() {
            Some(Sending::Key) => {
                let wanted = self.rotation.answered(now, answer);
                self.rotate(wanted, out);
            }
            Some(Sending::Register(at)) if taken => self.registered = at,
            Some(Sending::Register(_)) => self.register_at = later(),
            Some(Sending::Report(said, drift)) if taken => {
                self.reported = Some(*said);
                self.drift_reported = drift;
                self.report_at = now + self.rng.jitter(self.times.report_every);
                self.report_floor = now + REPORT_PAUSE;
            }
            Some(Sending::Report(..)) => {
                self.report_at = later();
                self.report_floor = self.report_at;
            }
            None => {}
        }
    }

    pub(super) fn said(&self) -> ReportContent {
        let have = self.in_force.as_ref().map_or(0, |c| c.document.generation);
        let (healthy, update) = (self.seen.healthy, self.seen.update.clone());
        if let Some(t) = &self.trial {
            let generation = if self.seen.applied { t.trial.generation() } else { have };
            return (generation, Outcome::Trial, self.seen.trouble.as_deref().map(clip), healthy, update);
        }
        match (&self.refused, self.rejected.as_ref().filter(|r| r.generation > have)) {
            (Some(reason), _) => (have, Outcome::Refused, Some(clip(reason)), healthy, update),
            (None, Some(r)) => (have, Outcome::Reverted, Some(clip(&r.reason)), healthy, update),
            (None, None) => (have, Outcome::Applied, None, healthy, update),
        }
    }
}

/// The control plane takes so many printable characters.
pub(super) fn clip(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(250).collect()
}
