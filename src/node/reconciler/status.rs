//! What the reconciler reports.
use super::MAX_HISTORY;
use super::refusal::Refusal;
use serde::Serialize;
use spoke_api::health::summary::Since;
use spoke_config::effective::Effective;
use spoke_model::condition::{Code, Condition};
use spoke_model::interface_name::IfName;
use spoke_model::key::PublicKey;
use spoke_model::time::{Boot, Wall};
use spoke_net::ages::Handshakes;
use spoke_net::api_state::ApiState;
use spoke_net::drift::Drifted;
use spoke_net::plan::{Plan, Step};
use spoke_net::state::{Desired, Observed};
use std::collections::VecDeque;
use std::sync::Arc;

/// Why a step was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// The desired state changed.
    Change,
    /// The kernel differed from a state reached before.
    Drift,
}

/// One applied or refused step, for people and the audit trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AppliedStep {
    /// Boot clock.
    pub at: Boot,
    /// Wall clock at that time.
    pub wall: Wall,
    /// Cause.
    pub cause: Cause,
    /// Another program keeps undoing it.
    pub contested: bool,
    /// The peer concerned.
    pub peer: Option<PublicKey>,
    /// The step as text, with the value it replaced.
    pub what: String,
    /// The kernel's error, if it refused.
    pub error: Option<String>,
}

/// Published after each pass.
#[derive(Clone, Debug, Default)]
pub struct NetStatus {
    /// Completed passes since start.
    pub passes: u64,
    /// When the last pass ended.
    pub at: Boot,
    /// The last pass left no difference, apart from held steps.
    pub clean: bool,
    /// A pass was completed since start.
    pub ready: bool,
    /// Every step that the last pass left was refused by the kernel: nothing is to be done but to try again.
    pub settled: bool,
    /// Desired state.
    pub desired: Arc<Desired>,
    /// Observed state at the end of the last pass.
    pub observed: Arc<Observed>,
    /// Times of the handshakes.
    pub handshakes: Arc<Handshakes>,
    /// Remaining differences: refused, held by policy, or blocked.
    pub left: Arc<Plan>,
    /// The steps left that the kernel refused.
    pub refused: Vec<Refusal>,
    /// Why it is not clean.
    pub conditions: Vec<Condition>,
    /// The last steps, oldest first.
    pub history: VecDeque<AppliedStep>,
    /// Steps applied because the desired state changed.
    pub changes: u64,
    /// Steps applied against drift.
    pub repairs: u64,
    /// Steps the kernel refused.
    pub failures: u64,
    /// The API state of the last pass, applied or refused.
    pub api_state: Arc<ApiState>,
    /// Sequence number of the last repair carried out.
    pub repaired: u64,
    /// The configuration in force when the last pass began.
    pub effective: Option<Arc<Effective>>,
    /// The last drifts, oldest first.
    pub drifts: VecDeque<Drifted>,
    /// Drifts since start.
    pub drift_count: u64,
    /// Drifts held by policy.
    pub drifts_left: u64,
    /// Since when the interfaces and peers have been as they are.
    pub since: Since,
}

/// The steps of one pass, which are published with its observation.
#[derive(Debug, Default)]
pub(super) struct PassSteps {
    /// The last of them, oldest first.
    pub(super) applied: Vec<AppliedStep>,
    /// Steps applied because the desired state changed.
    pub(super) changes: u64,
    /// Steps applied against drift.
    pub(super) repairs: u64,
    /// Steps the kernel refused.
    pub(super) failures: u64,
}

impl NetStatus {
    /// Counters and history in one: who sees a repair counted finds its step.
    pub(super) fn record(&mut self, steps: PassSteps) {
        self.changes += steps.changes;
        self.repairs += steps.repairs;
        self.failures += steps.failures;
        self.history.extend(steps.applied);
        let excess = self.history.len().saturating_sub(MAX_HISTORY);
        self.history.drain(..excess);
    }

    /// Whether every desired interface is up, and whether every desired peer is in the kernel.
    fn reached(&self) -> (bool, bool) {
        let links = || self.desired.links.iter().map(|(name, want)| (want, self.observed.links.get(name)));
        let up = links().all(|(_, have)| have.is_some_and(|h| h.wireguard && h.up));
        let complete = links().all(|(want, have)| have.map_or(0, |h| h.peers.len()) >= want.peers.len());
        (up, complete)
    }

    /// Takes the end of a pass at `now`. What was so before keeps its beginning.
    pub(super) fn observe(&mut self, now: Boot, clean: bool, desired: Arc<Desired>, observed: Arc<Observed>) {
        let (before, was_clean) = (self.reached(), self.clean);
        (self.clean, self.desired, self.observed) = (clean, desired, observed);
        let after = self.reached();
        let first = self.passes == 0;
        let begin = |since: &mut Boot, changed: bool| {
            if first || changed {
                *since = now;
            }
        };
        begin(&mut self.since.clean, was_clean != clean);
        begin(&mut self.since.up, before.0 != after.0);
        begin(&mut self.since.complete, before.1 != after.1);
        (self.passes, self.at) = (self.passes + 1, now);
    }

    /// The sequence number of the configuration that the last pass began with.
    pub fn sequence(&self) -> Option<u64> {
        self.effective.as_ref().map(|e| e.sequence())
    }

    /// As [`NetStatus::sequence`], if that pass put it into force on `interface`.
    ///
    /// A step that the kernel refuses does not count, unless the interface carries nothing without it and it was not refused
    /// before that configuration: a route that the LAN has, or IPv6 that is disabled, must not keep out every later state.
    pub fn applied(&self, interface: &IfName) -> Option<u64> {
        let sequence = self.sequence()?;
        let invalid = self.conditions.iter().any(|c| c.code == Code::DesiredInvalid);
        let blocked = self.left.blocked.iter().any(|b| b.link() == interface);
        let undone = |step: &Step| match self.refused.iter().find(|r| r.step == *step) {
            Some(refusal) => step.is_structural() && refusal.sequence == Some(sequence),
            None => true,
        };
        let undone = self.left.steps.iter().any(|s| s.link() == interface && undone(s));
        (!invalid && !blocked && !undone).then_some(sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spoke_net::state::ObservedLink;

    #[test]
    fn beginnings_change_with_what_they_are_of() {
        let observed = |up| {
            let link = ObservedLink { wireguard: true, up, ..ObservedLink::default() };
            Arc::new(Observed { links: [("wg0".parse().unwrap(), link)].into(), ..Observed::default() })
        };
        let want = spoke_net::state::Link {
            private_key: spoke_model::key::SecretKey::clamped([1; 32]),
            listen_port: spoke_net::state::ListenPort::Fixed(51820),
            port_fallback: false,
            fwmark: 0,
            mtu: 1280,
            defaults: (false, false),
            addresses: Default::default(),
            peers: Default::default(),
            routes: Default::default(),
            up: true,
            policy: spoke_config::interface::DriftPolicy::Enforce,
            remove_unknown: None,
            dns: Vec::new(),
            rebuild: 0,
        };
        let links = [("wg0".parse().unwrap(), want)].into();
        let desired = Arc::new(Desired { links, ..Desired::default() });
        let mut s = NetStatus::default();
        for (at, clean, up) in
            [(5, true, true), (9, true, true), (12, true, false), (15, false, false), (20, false, false)]
        {
            s.observe(Boot::from_secs(at), clean, desired.clone(), observed(up));
        }
        let since = s.since;
        assert_eq!(
            (since.complete, since.up, since.clean),
            (Boot::from_secs(5), Boot::from_secs(12), Boot::from_secs(15))
        );
    }
}
