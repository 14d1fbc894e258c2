//! Steps that the kernel refuses. Each is a condition of its own: neither the interface nor the process depends on it.
use spoke_config::effective::Effective;
use spoke_model::condition::{Code, Condition};
use spoke_model::interface_name::IfName;
use spoke_model::time::Boot;
use spoke_net::damping::Damping;
use spoke_net::duplicate::Duplicates;
use spoke_net::plan::Step;
use spoke_net::state::Desired;
use std::collections::{BTreeMap, BTreeSet};

/// Conditions of one code that are listed one by one; the others are counted.
const MAX_CONDITIONS: usize = 8;

/// A step that the kernel refused in the last pass and that is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The step.
    pub step: Step,
    /// The condition it is.
    pub code: Code,
    /// The step as text.
    pub what: String,
    /// The kernel's reason in words.
    pub reason: String,
    /// When it was first refused.
    pub since: Boot,
    /// Sequence number of the configuration in force at that time.
    pub sequence: Option<u64>,
}

/// The refusals of a pass that are still left, with their beginning. A refused step that is no longer left was resolved by a
/// later step, or its interface is gone.
pub(super) fn remaining(before: &[Refusal], refused: Vec<Refusal>, left: &[Step]) -> Vec<Refusal> {
    let left: BTreeMap<_, &Step> = left.iter().map(|s| (s.object(), s)).collect();
    let known: BTreeMap<_, &Refusal> = before.iter().map(|r| (r.step.object(), r)).collect();
    let mut out: BTreeMap<_, Refusal> = BTreeMap::new();
    for refusal in refused {
        let Some((object, step)) = left.get_key_value(&refusal.step.object()) else { continue };
        let mut refusal = Refusal { step: (*step).clone(), ..refusal.clone() };
        if let Some(known) = known.get(object).filter(|k| k.step == refusal.step) {
            (refusal.since, refusal.sequence) = (known.since, known.sequence);
        }
        out.insert(object.clone(), refusal);
    }
    out.into_values().collect()
}

/// A condition for each refusal. Where an interface cannot be created or brought up, its other steps fail for that reason
/// and are left out.
pub(super) fn conditions(refused: &[Refusal]) -> Vec<Condition> {
    let blocks = |r: &&Refusal| matches!(r.step, Step::CreateLink { .. } | Step::SetUp { up: true, .. });
    let blocked: BTreeSet<&IfName> = refused.iter().filter(blocks).map(|r| r.step.link()).collect();
    let listed = refused.iter().filter(|r| blocks(r) || !blocked.contains(r.step.link()));
    let mut by_code: BTreeMap<Code, Vec<&Refusal>> = BTreeMap::new();
    listed.for_each(|r| by_code.entry(r.code).or_default().push(r));
    let mut out = Vec::new();
    for (code, refused) in by_code {
        for refusal in refused.iter().take(MAX_CONDITIONS) {
            let detail = format!("{}: {}", refusal.what, refusal.reason);
            out.push(Condition::new(code, refusal.since, detail).about(refusal.step.object().to_string()));
        }
        if let Some(next) = refused.get(MAX_CONDITIONS) {
            let detail = format!("{} more of this kind", refused.len() - MAX_CONDITIONS);
            out.push(Condition::new(code, next.since, detail).about("more"));
        }
    }
    out
}

/// A condition for each object that another program keeps changing.
pub(super) fn contests(damping: &Damping) -> Vec<Condition> {
    let all = damping.contests().map(|(object, repairs, since)| {
        let subject = object.subject();
        let detail = format!("something else keeps changing {subject}: repaired {repairs} times");
        Condition::new(Code::Contested, since, detail).about(subject)
    });
    all.take(MAX_CONDITIONS).collect()
}

/// A condition for each peer that two devices seem to be.
pub(super) fn duplicates(found: &Duplicates, config: Option<&Effective>) -> Vec<Condition> {
    let all = found.found().map(|(link, key, e)| {
        let peer = config.and_then(|c| c.interface(link)?.peer(key));
        let name = peer.and_then(|p| p.name.as_deref().or(p.node_id.as_ref().map(|n| n.as_str())));
        let ([a, b], name) = (e.both, name.unwrap_or("without a name"));
        let detail = format!("peer {name} ({}) on {link} is used from {a} and {b} by turns", key.short());
        Condition::new(Code::DuplicateIdentity, e.since, detail).about(format!("{link} {key}"))
    });
    all.take(MAX_CONDITIONS).collect()
}

/// A condition for each interface and peer whose key cannot be read.
pub(super) fn key_faults(desired: &Desired, at: Boot) -> Vec<Condition> {
    let links = desired.key_faults.iter().map(|(link, why)| {
        Condition::new(Code::KeyUnreadable, at, format!("{link} is left as it is: {why}")).about(link.to_string())
    });
    let peers = desired.links.iter().flat_map(|(link, want)| {
        want.peers.iter().filter_map(move |(key, peer)| Some((link, key, peer.key_fault.as_ref()?)))
    });
    let mut listed = peers.map(|(link, key, why)| {
        let detail = format!("peer {key} on {link} is not set up without its preshared key: {why}");
        Condition::new(Code::KeyUnreadable, at, detail).about(format!("{link} {key}"))
    });
    let mut out: Vec<Condition> = links.collect();
    out.extend(listed.by_ref().take(MAX_CONDITIONS));
    let more = listed.count();
    if more > 0 {
        let detail = format!("{more} more peers without their preshared keys");
        out.push(Condition::new(Code::KeyUnreadable, at, detail).about("more"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use spoke_net::state::Route;

    fn route(n: u8) -> Step {
        let to = format!("10.{n}.0.0/16").parse().unwrap();
        Step::AddRoute { link: "wg0".parse().unwrap(), route: Route { to, table: 254, metric: 0 } }
    }

    fn refusal(step: Step, at: u64) -> Refusal {
        let (what, reason) = (format!("{step:?}"), "no".to_owned());
        Refusal { step, code: Code::RouteConflict, what, reason, since: Boot::from_secs(at), sequence: Some(at) }
    }

    #[test]
    fn lasting_refusal_keeps_its_beginning() {
        let before = [refusal(route(1), 1), refusal(route(2), 1)];
        let now = vec![refusal(route(1), 9), refusal(route(3), 9), refusal(route(4), 9)];
        let kept = remaining(&before, now, &[route(1), route(3)]);
        let kept: Vec<_> = kept.into_iter().map(|r| (r.step, r.sequence)).collect();
        assert_eq!(kept, [(route(1), Some(1)), (route(3), Some(9))]);
    }

    #[test]
    fn many_refusals_are_counted() {
        let refused: Vec<_> = (0..20).map(|n| refusal(route(n), 1)).collect();
        let conditions = conditions(&refused);
        assert_eq!(conditions.len(), MAX_CONDITIONS + 1);
        assert_eq!(conditions.last().unwrap().detail, "12 more of this kind");
        let objects: BTreeSet<_> = conditions.iter().map(|c| c.object.clone()).collect();
        assert_eq!(objects.len(), conditions.len());
    }

    #[test]
    fn interface_that_stays_down_is_the_only_reason() {
        let up = refusal(Step::SetUp { link: "wg0".parse().unwrap(), up: true }, 1);
        let conditions = conditions(&[refusal(route(1), 1), up]);
        assert!(conditions.len() == 1 && conditions[0].detail.contains("SetUp"), "{conditions:?}");
    }
}
