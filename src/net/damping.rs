//! Repairs against another program that keeps changing the same object: they become ever rarer, so that neither the machine nor
//! the audit trail pays for the quarrel.
//!
//! Whatever the driver applied although the desired state was the same is given to [`Damping::repaired`]; the plan of a later
//! pass goes through [`Damping::hold`] before it is applied. A changed desired state and a requested repair go by without.
use crate::plan::object::StepObject;
use crate::plan::{AllowedIps, Plan, Step};
use spoke_model::interface_name::IfName;
use spoke_model::time::Boot;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Repairs of an object in a row that are made at once.
const FREE: u32 = 5;
/// Longest time between two repairs of a row, beyond the wait.
const ROW: Duration = Duration::from_secs(60);
/// The wait after the first repair that is not free; it doubles.
const FIRST: Duration = Duration::from_secs(1);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(300);
/// The longest wait where the interface carries nothing without the step.
const LONGEST_STRUCTURAL: Duration = Duration::from_secs(30);
/// The longest wait of a step that takes access away.
const LONGEST_REVOKING: Duration = Duration::from_secs(5);

/// The objects that were repaired lately.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Damping(BTreeMap<StepObject, Row>);

/// Repairs of one object in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    repairs: u32,
    since: Boot,
    last: Boot,
    wait: Duration,
}

impl Damping {
    /// Takes the repair of a step that was applied at `now`.
    pub fn repaired(&mut self, step: &Step, now: Boot) {
        let fresh = Row { repairs: 0, since: now, last: now, wait: Duration::ZERO };
        let row = self.0.entry(step.object()).or_insert(fresh);
        row.repairs = row.repairs.saturating_add(1);
        row.last = now;
        row.wait = match row.repairs.checked_sub(FREE) {
            None => Duration::ZERO,
            Some(n) => FIRST.saturating_mul(1 << n.min(16)).min(longest(step)),
        };
    }

    /// Moves the steps that are to wait from the plan's steps to [`Plan::damped`], and forgets rows that have ended.
    pub fn hold(&mut self, plan: &mut Plan, now: Boot) {
        self.0.retain(|_, row| now.since(row.last) < row.wait + ROW);
        if self.0.is_empty() {
            return;
        }
        let waits = |step: &Step| self.0.get(&step.object()).is_some_and(|row| now.since(row.last) < row.wait);
        let carriers = |s: &&Step| matches!(s, Step::CreateLink { .. } | Step::SetUp { up: true, .. }) && waits(s);
        let without: BTreeSet<IfName> = plan.steps.iter().filter(carriers).map(|s| s.link().clone()).collect();
        let (damped, steps) = std::mem::take(&mut plan.steps)
            .into_iter()
            .partition(|s| waits(s) || (without.contains(s.link()) && !revokes(s)));
        (plan.damped, plan.steps) = (damped, steps);
    }

    /// Whether another program keeps changing what the step changes.
    pub fn contested(&self, step: &Step) -> bool {
        self.0.get(&step.object()).is_some_and(|row| row.repairs > FREE)
    }

    /// What another program keeps changing, with the number of repairs and when the first was.
    pub fn contests(&self) -> impl Iterator<Item = (&StepObject, u32, Boot)> {
        self.0.iter().filter(|(_, row)| row.repairs > FREE).map(|(object, row)| (object, row.repairs, row.since))
    }
}

const fn revokes(step: &Step) -> bool {
    match step {
        Step::RemovePeer { .. } | Step::SetForwarding { .. } => true,
        Step::SetPeer { change, .. } => matches!(change.allowed_ips, AllowedIps::Replace(_)),
        _ => false,
    }
}

const fn longest(step: &Step) -> Duration {
    if revokes(step) {
        LONGEST_REVOKING
    } else if step.is_structural() {
        LONGEST_STRUCTURAL
    } else {
        LONGEST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> IfName {
        "wg0".parse().unwrap()
    }

    fn mtu() -> Step {
        Step::SetMtu { link: link(), mtu: 1280 }
    }

    fn plan(steps: &[Step]) -> Plan {
        Plan { steps: steps.to_vec(), ..Plan::default() }
    }

    /// Repairs of a program that undoes each one at once, over `secs` seconds.
    fn quarrel(step: &Step, secs: u64) -> (u32, Damping) {
        let (mut damping, mut repairs) = (Damping::default(), 0);
        for tenth in 0..secs * 10 {
            let now = Boot::from_secs(1) + Duration::from_millis(tenth * 100);
            let mut plan = plan(std::slice::from_ref(step));
            damping.hold(&mut plan, now);
            assert_eq!(plan.steps.len() + plan.damped.len(), 1, "no step is lost");
            for step in &plan.steps {
                damping.repaired(step, now);
                repairs += 1;
            }
        }
        (repairs, damping)
    }

    #[test]
    fn repairs_against_another_program_become_rare() {
        let (in_a_minute, damping) = quarrel(&mtu(), 60);
        assert!((6..=12).contains(&in_a_minute), "{in_a_minute}");
        let contests: Vec<_> = damping.contests().map(|(o, n, at)| (o.subject(), n, at)).collect();
        assert_eq!(contests, [("wg0 mtu".to_owned(), in_a_minute, Boot::from_secs(1))]);
        let (in_a_day, _) = quarrel(&mtu(), 86_400);
        assert!(in_a_day < 310, "{in_a_day}");
    }

    #[test]
    fn removed_access_waits_for_seconds_only() {
        let peer = Step::RemovePeer { link: link(), peer: spoke_model::key::PublicKey([1; 32]) };
        let (repairs, _) = quarrel(&peer, 600);
        assert!(repairs >= 600 / 5, "{repairs}");
    }

    #[test]
    fn single_repairs_are_made_at_once() {
        let mut damping = Damping::default();
        for minutes in 0..50 {
            let now = Boot::from_secs(minutes * 90);
            let mut plan = plan(&[mtu()]);
            damping.hold(&mut plan, now);
            assert!(plan.damped.is_empty());
            damping.repaired(&mtu(), now);
        }
        assert_eq!(damping.contests().count(), 0);
    }

    #[test]
    fn interface_that_waits_takes_its_steps_along() {
        let create = Step::CreateLink { link: link(), mtu: 1280 };
        let (_, mut damping) = quarrel(&create, 60);
        let last = damping.0.values().next().unwrap().last;
        let revoked = Step::RemovePeer { link: link(), peer: spoke_model::key::PublicKey([1; 32]) };
        let other = Step::SetMtu { link: "wg1".parse().unwrap(), mtu: 1280 };
        let mut plan = plan(&[create, revoked.clone(), mtu(), other.clone()]);
        damping.hold(&mut plan, last);
        assert_eq!(plan.steps, [revoked, other]);
    }
}
