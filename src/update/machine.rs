//! A trial: from the first start of a new slot to its commit, or back to the old slot with a reason.
//!
//! ```text
//! in the new slot (Stage::Trial):
//!                 healthy for `settle`
//!  Watching ───────────────────────────────► Commit
//!     │ not healthy
//!     ├─ a host outside answered, after `patience`
//!     │    ├─ no pass was completed ────────────────► Reject: the new system is bad
//!     │    └─ hub or control plane is missing ──────► Compare: start the old system
//!     └─ no host outside answered, after `outage` ──► Retreat: start the old system, once
//!
//! in the old slot (Stage::Retreated); "back" is to reach a host outside, or after Compare to be healthy:
//!  back, the first time ─────────────────► Resume the trial: the outage may have ended during the restart
//!  back within `patience`, later ────────► Reject: the old system reaches what the new one did not
//!  back after `patience` ────────────────► Resume, at most `resumes` times; then Reject, not shunned
//!  not back ─────────────────────────────► wait without limit
//! ```
//! A short outage costs nothing, a long one of the WAN, the hub or the control plane a reboot or two, and no outage makes the
//! two systems alternate.
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
    /// The last reconcile pass was clean and the tunnel is up.
    pub clean: bool,
    /// The supervisor completes passes, whatever they find: this system can be kept running.
    pub passes: bool,
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
    /// No host outside answers: start the old system; the trial remains open.
    Retreat,
    /// The hub or the control plane does not answer: start the old system to see whether it does there; the trial remains open.
    Compare,
    /// The outage is over: start the new slot on trial again.
    Resume,
}

/// Why a new system was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RejectReason {
    /// It did not become healthy although a host outside answered; where it reached no hub, the old system did.
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
    /// Whether the version is not tried again by itself; outages are no fault of the image.
    pub const fn is_of_the_image(self) -> bool {
        !matches!(self, Self::TooManyOutages)
    }

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
    /// Not healthy although a host outside answered: reject or compare.
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
    compare: bool,
    began: Boot,
    healthy_since: Option<Boot>,
    outside: bool,
    passes: bool,
    done: bool,
}

impl Trial {
    /// A trial in `stage` at this boot, resumed `resumes` times before; `compare`: the old system runs to be compared.
    pub const fn new(now: Boot, rules: Rules, stage: Stage, resumes: u8, compare: bool) -> Self {
        Self {
            rules,
            stage,
            resumes,
            compare,
            began: now,
            healthy_since: None,
            outside: false,
            passes: false,
            done: false,
        }
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
        self.passes |= probe.passes;
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
                    None if self.outside && ran >= self.rules.patience => Some(if self.passes {
                        TrialAction::Compare
                    } else {
                        TrialAction::Reject(RejectReason::NotHealthy)
                    }),
                    None if !self.outside && ran >= self.rules.outage => Some(TrialAction::Retreat),
                    None => None,
                }
            }
            Stage::Retreated => match event {
                TrialEvent::Probed(probe) if self.is_back(probe) => {
                    let quick = now.since(self.began) < self.rules.patience;
                    Some(match self.resumes {
                        // The same outage meets a whole fleet: for some nodes it ends during this restart.
                        0 => TrialAction::Resume,
                        _ if quick => TrialAction::Reject(if self.compare {
                            RejectReason::NotHealthy
                        } else {
                            RejectReason::NoWayOut
                        }),
                        n if n >= self.rules.resumes => TrialAction::Reject(RejectReason::TooManyOutages),
                        _ => TrialAction::Resume,
                    })
                }
                TrialEvent::Probed(_) | TrialEvent::Tick => None,
            },
        }
    }

    /// Whether the old system reaches what the new one did not.
    const fn is_back(&self, probe: ProbeResult) -> bool {
        if self.compare { probe.connected && probe.clean } else { probe.connected || probe.outside }
    }
}

#[cfg(test)]
mod tests;
