//! A trial: from the first start of a new slot to its commit, or to the old slot with a reason.
//!
//! ```text
//!                 healthy for `settle`
//!  Watching ───────────────────────────────► Commit
//!     │ not healthy when `patience` is over
//!     ├─ the way out works without the tunnel ──► Reject: this system is bad
//!     ├─ nothing answers at all, before `outage` ─► wait: it may be the network's fault
//!     └─ … still, after `outage` ───────────────► Retreat: ask the old system, once
//!
//!  on the old slot after a retreat:
//!  online   → the old system reaches the hub and the new one did not: Reject
//!  offline  → an outage: nobody is to blame; when we are online again the trial is Resumed, `resumes` times at most
//! ```
//! So a short outage costs nothing, a long one costs one restart, and no outage makes two systems take turns.
use heapless::Vec;
use serde::{Deserialize, Serialize};
use spoke_config::update::Rules;
use spoke_model::time::Boot;

/// What the supervisor and the network look like at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeResult {
    /// The hub answers through the tunnel, and the control plane was reached where there is one.
    pub connected: bool,
    /// The last pass over the kernel was clean.
    pub clean: bool,
    /// Something beyond our own network answered without the tunnel: the way out works.
    pub outside: bool,
}

/// Where a trial stands; kept on the state partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// The new system runs and is watched.
    Trial,
    /// The old system runs: the new one met an outage, and we look whether we meet it too.
    Retreated,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrialEvent {
    /// A look at supervisor and network.
    Seen(ProbeResult),
    /// The deadline passed.
    Timeout,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrialAction {
    /// The new system is good: commit its slot.
    Commit,
    /// The new system is bad: give up its slot, keep the reason, start the old one if it does not run already.
    Reject(RejectReason),
    /// Start the old system to see whether it does better; nothing is decided.
    Retreat,
    /// An outage is over: put the new slot on trial again.
    Resume,
}

/// Why a new system was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RejectReason {
    /// It does not become healthy though the way out works.
    NotHealthy,
    /// It had no way out where the old system has one.
    NoWayOut,
    /// Outages ended every one of its trials.
    TooManyOutages,
    /// It did not come up: the boot loader went back to the old slot.
    DidNotStart,
    /// It was committed, and later it could not be kept running.
    KeptFailing,
    /// A person took it back.
    ByHand,
}

impl RejectReason {
    /// For people.
    pub const fn text(self) -> &'static str {
        match self {
            Self::NotHealthy => "it did not become healthy although the network outside answered",
            Self::NoWayOut => "it reached nothing outside, and the old system did right after it",
            Self::TooManyOutages => "each of its trials ended in an outage of the network",
            Self::DidNotStart => "it did not stay up: the boot loader went back to the old system",
            Self::KeptFailing => {
                "after its commit it could not be kept running any more, and the other system was taken"
            }
            Self::ByHand => "it was taken back by hand",
        }
    }
}

/// Watches one trial.
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
    /// A trial found in `stage` at this start; `resumes` is how often it was resumed before.
    pub const fn new(now: Boot, rules: Rules, stage: Stage, resumes: u8) -> Self {
        Self { rules, stage, resumes, began: now, healthy_since: None, outside: false, done: false }
    }

    /// When [`TrialEvent::Timeout`] is due.
    pub fn deadline(&self) -> Option<Boot> {
        if self.done {
            return None;
        }
        match self.stage {
            Stage::Trial => {
                let end = self.began + if self.outside { self.rules.patience } else { self.rules.outage };
                Some(self.healthy_since.map_or(end, |since| since + self.rules.settle))
            }
            Stage::Retreated => None,
        }
    }

    /// Takes an event in.
    pub fn handle(&mut self, now: Boot, event: TrialEvent) -> Vec<TrialAction, 2> {
        let mut actions = Vec::new();
        if !self.done {
            match event {
                TrialEvent::Seen(sight) => self.see(now, sight),
                TrialEvent::Timeout => {}
            }
            if let Some(action) = self.decide(now, event) {
                self.done = true;
                let _ = actions.push(action);
            }
        }
        actions
    }

    fn see(&mut self, now: Boot, sight: ProbeResult) {
        // Once outside answered, its silence later is not this system's excuse: patience counts.
        self.outside |= sight.outside || sight.connected;
        self.healthy_since = match (sight.connected && sight.clean, self.healthy_since) {
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
                TrialEvent::Seen(sight) if sight.connected || sight.outside => {
                    // How soon tells outage from bad image: an outage does not end in the moments of a restart.
                    if now.since(self.began) < self.rules.patience {
                        Some(TrialAction::Reject(RejectReason::NoWayOut))
                    } else if self.resumes >= self.rules.resumes {
                        Some(TrialAction::Reject(RejectReason::TooManyOutages))
                    } else {
                        Some(TrialAction::Resume)
                    }
                }
                TrialEvent::Seen(_) | TrialEvent::Timeout => None,
            },
        }
    }
}

#[cfg(test)]
mod tests;
