//! A trial: from the first start of a new slot to its commit, or back to the old slot with a reason.
//!
//! ```text
//! in the new slot (Stage::Trial):
//!                 healthy for `settle`
//!  Watching ───────────────────────────────► Commit
//!     │ not healthy
//!     ├─ a host outside answered, after `patience` ──► Reject: the new system is bad
//!     └─ no host outside answered, after `outage` ───► Retreat: start the old system, once
//!
//! in the old slot after a retreat (Stage::Retreated):
//!  online within `patience` ───► Reject: the old system reaches what the new one did not
//!  online later ───────────────► Resume the trial, at most `resumes` times; then Reject
//!  offline ────────────────────► wait without limit
//! ```
//! A short outage costs nothing, a long one a single reboot, and no outage makes the two systems alternate.
//!
//! # Driver contract
//! [`Trial::new`], then [`TrialEvent::Probed`] every few seconds with the time of the probe, and [`TrialEvent::Tick`]
//! when [`Trial::deadline`] has passed. At most one action is ever returned; with it the trial is over and the deadline
//! `None`. Nothing is random, so there is no seed.
use heapless::Vec;
use serde::{Deserialize, Serialize};
use spoke_config::update::Rules;
use spoke_model::deadline::Deadline;
use spoke_model::time::Boot;

/// State of supervisor and network at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeResult {
    /// The hub answers through the tunnel, and the control plane, if configured, was reached.
    pub connected: bool,
    /// The last reconcile pass was clean.
    pub clean: bool,
    /// A host outside answered without the tunnel.
    pub outside: bool,
}

/// Stage of a trial; stored on the state partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// The new system runs.
    Trial,
    /// The old system runs, to find out whether it meets the same outage.
    Retreated,
}

/// Input of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrialEvent {
    /// The result of a probe.
    Probed(ProbeResult),
    /// The deadline has passed.
    Tick,
}

/// Output of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrialAction {
    /// Commit the new slot.
    Commit,
    /// Reject the new slot and store the reason; start the old system unless it runs.
    Reject(RejectReason),
    /// Start the old system; the trial remains open.
    Retreat,
    /// The outage is over: start the new slot on trial again.
    Resume,
}

/// Why a new system was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RejectReason {
    /// It did not become healthy although a host outside answered.
    NotHealthy,
    /// It reached no host outside, and the old system did.
    NoWayOut,
    /// Each of its trials ended in an outage.
    TooManyOutages,
    /// The boot loader returned to the old slot.
    DidNotStart,
    /// It was committed and later could not be kept running.
    KeptFailing,
    /// The operator rolled it back.
    ByHand,
}

impl RejectReason {
    /// Description for people.
    pub const fn text(self) -> &'static str {
        match self {
            Self::NotHealthy => "it did not become healthy although the network outside answered",
            Self::NoWayOut => "it reached nothing outside, and the old system did right after it",
            Self::TooManyOutages => "each of its trials ended in an outage of the network",
            Self::DidNotStart => "it did not stay up: the boot loader returned to the old system",
            Self::KeptFailing => "it could not be kept running after its commit, and the other system was started",
            Self::ByHand => "it was rolled back by the operator",
        }
    }
}

/// What a deadline of a trial is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrialDeadline {
    /// Healthy for `settle`: commit.
    Settle,
    /// Not healthy although a host outside answered: reject.
    Patience,
    /// No host outside answered: retreat.
    Outage,
}

/// One trial.
#[derive(Debug)]
pub struct Trial {
    rules: Rules,
    stage: Stage,
    resumes: u8,
    began: Boot,
    healthy_since: Option<Boot>,
    outside: bool,
    done: bool,
}

impl Trial {
    /// A trial in `stage` at this boot, resumed `resumes` times before.
    pub const fn new(now: Boot, rules: Rules, stage: Stage, resumes: u8) -> Self {
        Self { rules, stage, resumes, began: now, healthy_since: None, outside: false, done: false }
    }

    /// When [`TrialEvent::Tick`] is due; `None` after the action, and in the old slot, where only a probe decides.
    pub fn deadline(&self) -> Option<Deadline<TrialDeadline>> {
        match self.stage {
            Stage::Trial if !self.done => Some(match self.healthy_since {
                Some(since) => Deadline::new(since + self.rules.settle, TrialDeadline::Settle),
                None if self.outside => Deadline::new(self.began + self.rules.patience, TrialDeadline::Patience),
                None => Deadline::new(self.began + self.rules.outage, TrialDeadline::Outage),
            }),
            Stage::Trial | Stage::Retreated => None,
        }
    }

    /// Processes one event.
    pub fn handle(&mut self, now: Boot, event: TrialEvent) -> Vec<TrialAction, 1> {
        let mut actions = Vec::new();
        if !self.done {
            match event {
                TrialEvent::Probed(probe) => self.record(now, probe),
                TrialEvent::Tick => {}
            }
            if let Some(action) = self.decide(now, event) {
                self.done = true;
                let _ = actions.push(action);
            }
        }
        actions
    }

    fn record(&mut self, now: Boot, probe: ProbeResult) {
        // Once a host outside answered, a later outage does not extend the time.
        self.outside |= probe.outside || probe.connected;
        self.healthy_since = match (probe.connected && probe.clean, self.healthy_since) {
            (true, Some(since)) => Some(since),
            (true, None) => Some(now),
            (false, Some(_) | None) => None,
        };
    }

    fn decide(&self, now: Boot, event: TrialEvent) -> Option<TrialAction> {
        match self.stage {
            Stage::Trial => {
                let ran = now.since(self.began);
                match self.healthy_since {
                    Some(since) if now.since(since) >= self.rules.settle => Some(TrialAction::Commit),
                    Some(_) => None,
                    None if self.outside && ran >= self.rules.patience => {
                        Some(TrialAction::Reject(RejectReason::NotHealthy))
                    }
                    None if !self.outside && ran >= self.rules.outage => Some(TrialAction::Retreat),
                    None => None,
                }
            }
            Stage::Retreated => match event {
                TrialEvent::Probed(probe) if probe.connected || probe.outside => {
                    // An outage rarely ends just during the reboot: online at once means that the image is bad.
                    if now.since(self.began) < self.rules.patience {
                        Some(TrialAction::Reject(RejectReason::NoWayOut))
                    } else if self.resumes >= self.rules.resumes {
                        Some(TrialAction::Reject(RejectReason::TooManyOutages))
                    } else {
                        Some(TrialAction::Resume)
                    }
                }
                TrialEvent::Probed(_) | TrialEvent::Tick => None,
            },
        }
    }
}

#[cfg(test)]
mod tests;
