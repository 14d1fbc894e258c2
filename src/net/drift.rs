//! Drift: unknown, missing and mismatched peers, field by field.
//!
//! Allowed-ips are compared as sets, the preshared key is shown as a digest. What the kernel learns (a roamed endpoint,
//! handshakes, counters) is never drift.
use super::plan::{Plan, Step};
use super::render;
use super::state::{Desired, Link, ListenPort, Observed, ObservedLink, ObservedPeer, Peer};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use spoke_model::interface_name::IfName;
use spoke_model::key::{PresharedKey, PublicKey};
use spoke_model::nets::Nets;
use spoke_model::time::Wall;
use std::collections::{BTreeMap, BTreeSet};

/// A peer that exists and is not desired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnknownPeer {
    /// Public key.
    pub public_key: PublicKey,
    /// Networks, canonical.
    pub allowed_ips: Vec<IpNet>,
    /// Endpoint.
    pub endpoint: Option<String>,
    /// Seconds; 0 is off.
    pub persistent_keepalive: u16,
}

/// A desired peer that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingPeer {
    /// Public key.
    pub public_key: PublicKey,
    /// Name, if any.
    pub name: Option<String>,
    /// Networks, canonical.
    pub allowed_ips: Vec<IpNet>,
    /// The public key as text.
    pub peer_id: String,
}

/// One value that differs; text, number, list or null, depending on the field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mismatch {
    /// `allowed_ips`, `persistent_keepalive` or `preshared_key`; of an interface `up`, `mtu`, `listen_port`, ….
    pub field: String,
    /// Desired value.
    pub expected: serde_json::Value,
    /// Observed value.
    pub actual: serde_json::Value,
}

/// A peer that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MismatchedPeer {
    /// Public key.
    pub public_key: PublicKey,
    /// Name, if any.
    pub name: Option<String>,
    /// The public key as text.
    pub peer_id: String,
    /// The differences.
    pub mismatches: Vec<Mismatch>,
}

/// Counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Unknown peers.
    pub unknown_count: usize,
    /// Missing peers.
    pub missing_count: usize,
    /// Mismatched peers.
    pub mismatched_count: usize,
    /// Sum of these and of the interfaces' own differences.
    pub total_issues: usize,
}

/// The drift of one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkDrift {
    /// Whether there is a difference.
    pub has_drift: bool,
    /// Unknown peers.
    pub unknown_peers: Vec<UnknownPeer>,
    /// Missing peers.
    pub missing_peers: Vec<MissingPeer>,
    /// Mismatched peers.
    pub mismatched_peers: Vec<MismatchedPeer>,
    /// Differences of the interface itself.
    pub interface_mismatches: Vec<Mismatch>,
    /// Counts.
    pub summary: Summary,
}

/// The drift of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriftReport {
    /// The node's id.
    pub node_id: Option<String>,
    /// Whether there is a difference.
    pub has_drift: bool,
    /// Unknown peers of all interfaces.
    pub unknown_peers: Vec<UnknownPeer>,
    /// Missing peers.
    pub missing_peers: Vec<MissingPeer>,
    /// Mismatched peers.
    pub mismatched_peers: Vec<MismatchedPeer>,
    /// Counts over all interfaces.
    pub summary: Summary,
    /// The same by interface.
    pub interfaces: BTreeMap<IfName, LinkDrift>,
    /// Time of the observation, RFC 3339.
    pub detected_at: String,
    /// The last drifts, oldest first.
    pub history: Vec<Drifted>,
}

/// A difference that was found although the desired state had not changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drifted {
    /// Time, RFC 3339, by the wall clock at that time.
    pub time: String,
    /// The interface.
    pub interface: IfName,
    /// Whether it was repaired; otherwise the policy held it.
    pub repaired: bool,
    /// Counts.
    pub summary: Summary,
    /// The first steps of the repair, as text.
    pub steps: Vec<String>,
}

/// Steps kept of one drift.
const MAX_STEPS: usize = 8;

/// The drifts of an observation. `found` is the plan against it; `left` the plan left by the previous pass, whose held and
/// refused steps were reported already. `repaired`: the previous pass left nothing but refused steps and the desired state is
/// unchanged, so every other step is drift.
pub fn found(
    desired: &Desired,
    observed: &Observed,
    found: &Plan,
    left: &Plan,
    repaired: bool,
    at: Wall,
) -> Vec<Drifted> {
    let mut links: BTreeMap<&IfName, bool> = BTreeMap::new();
    if found.held != left.held {
        links.extend(found.held.iter().map(|s| (s.link(), false)));
    }
    let refused: BTreeSet<_> = left.steps.iter().map(Step::object).collect();
    let new = |s: &&Step| !refused.contains(&s.object());
    if repaired {
        links.extend(found.steps.iter().filter(new).map(|s| (s.link(), true)));
    }
    let event = |(name, repaired): (&IfName, bool)| {
        let want = desired.links.get(name)?;
        let steps = if repaired { &found.steps } else { &found.held };
        let of_link = |s: &&Step| s.link() == name && (!repaired || new(s));
        Some(Drifted {
            time: at.to_string(),
            interface: name.clone(),
            repaired,
            summary: link(want, observed.links.get(name), &Names::new()).summary,
            steps: steps.iter().filter(of_link).take(MAX_STEPS).map(|s| render::step(s, observed)).collect(),
        })
    };
    links.into_iter().filter_map(event).collect()
}

/// Names of peers.
pub type Names = BTreeMap<PublicKey, String>;

/// The drift of every desired interface; the caller adds the history.
pub fn report(desired: &Desired, observed: &Observed, names: &Names, node_id: Option<String>, at: Wall) -> DriftReport {
    let mut out = DriftReport { node_id, detected_at: at.to_string(), ..DriftReport::default() };
    for (name, want) in &desired.links {
        let drift = link(want, observed.links.get(name), names);
        out.has_drift |= drift.has_drift;
        out.unknown_peers.extend(drift.unknown_peers.iter().cloned());
        out.missing_peers.extend(drift.missing_peers.iter().cloned());
        out.mismatched_peers.extend(drift.mismatched_peers.iter().cloned());
        out.summary.unknown_count += drift.summary.unknown_count;
        out.summary.missing_count += drift.summary.missing_count;
        out.summary.mismatched_count += drift.summary.mismatched_count;
        out.summary.total_issues += drift.summary.total_issues;
        out.interfaces.insert(name.clone(), drift);
    }
    out
}

/// The drift of one interface; if it does not exist, all its peers are missing.
pub fn link(want: &Link, have: Option<&ObservedLink>, names: &Names) -> LinkDrift {
    let blank = ObservedLink::default();
    let seen = have.unwrap_or(&blank);
    let mut out = LinkDrift { interface_mismatches: device(want, have), ..LinkDrift::default() };
    for (key, peer) in seen.peers.iter().filter(|(k, _)| !want.peers.contains_key(*k)) {
        out.unknown_peers.push(UnknownPeer {
            public_key: *key,
            allowed_ips: peer.allowed_ips.iter().copied().collect(),
            endpoint: peer.endpoint.map(|e| e.to_string()),
            persistent_keepalive: peer.keepalive,
        });
    }
    for (key, peer) in &want.peers {
        let (name, peer_id) = (names.get(key).cloned(), key.to_string());
        match seen.peers.get(key) {
            None if peer.key_fault.is_some() => {}
            None => out.missing_peers.push(MissingPeer {
                public_key: *key,
                name,
                allowed_ips: peer.allowed_ips.iter().copied().collect(),
                peer_id,
            }),
            Some(there) => {
                let mismatches = mismatches(peer, there);
                if !mismatches.is_empty() {
                    out.mismatched_peers.push(MismatchedPeer { public_key: *key, name, peer_id, mismatches });
                }
            }
        }
    }
    out.summary = Summary {
        unknown_count: out.unknown_peers.len(),
        missing_count: out.missing_peers.len(),
        mismatched_count: out.mismatched_peers.len(),
        total_issues: out.unknown_peers.len()
            + out.missing_peers.len()
            + out.mismatched_peers.len()
            + out.interface_mismatches.len(),
    };
    out.has_drift = out.summary.total_issues > 0;
    out
}

fn mismatches(want: &Peer, have: &ObservedPeer) -> Vec<Mismatch> {
    let mut out = Vec::new();
    if want.allowed_ips != have.allowed_ips {
        out.push(mismatch("allowed_ips", nets(&want.allowed_ips), nets(&have.allowed_ips)));
    }
    if want.keepalive != have.keepalive {
        out.push(mismatch("persistent_keepalive", want.keepalive, have.keepalive));
    }
    let kept = want.key_fault.is_some() && have.preshared_key.is_some();
    if !kept && want.preshared_key != have.preshared_key {
        let shown = |k: &Option<PresharedKey>| k.as_ref().map(digest);
        out.push(mismatch("preshared_key", shown(&want.preshared_key), shown(&have.preshared_key)));
    }
    out
}

fn device(want: &Link, have: Option<&ObservedLink>) -> Vec<Mismatch> {
    let Some(have) = have else { return vec![mismatch("exists", true, false)] };
    let mut out = Vec::new();
    let public = want.private_key.public();
    if have.public_key != Some(public) {
        out.push(mismatch("public_key", public.to_string(), have.public_key.map(|k| k.to_string())));
    }
    if let ListenPort::Fixed(port) = want.listen_port
        && port != have.listen_port
    {
        out.push(mismatch("listen_port", port, have.listen_port));
    }
    let (mtu, mark) = want.mtu_and_mark(have);
    if mark != have.fwmark {
        out.push(mismatch("fwmark", mark, have.fwmark));
    }
    if mtu != have.mtu {
        out.push(mismatch("mtu", mtu, have.mtu));
    }
    if want.up != have.up {
        out.push(mismatch("up", want.up, have.up));
    }
    if want.addresses != have.addresses {
        out.push(mismatch("addresses", nets(&want.addresses.clone().into()), nets(&have.addresses.clone().into())));
    }
    let unrouted: Nets = want.addresses.intersection(&have.unrouted).copied().collect();
    if want.up && !unrouted.is_empty() {
        out.push(mismatch("connected_routes", nets(&unrouted), Vec::<String>::new()));
    }
    if want.up && want.routes != have.routes {
        let shown = |r: &BTreeSet<super::state::Route>| -> Vec<String> { r.iter().map(ToString::to_string).collect() };
        out.push(mismatch("routes", shown(&want.routes), shown(&have.routes)));
    }
    out
}

fn mismatch(field: &str, expected: impl Into<serde_json::Value>, actual: impl Into<serde_json::Value>) -> Mismatch {
    Mismatch { field: field.to_owned(), expected: expected.into(), actual: actual.into() }
}

fn nets(nets: &Nets) -> Vec<String> {
    nets.iter().map(ToString::to_string).collect()
}

/// A digest of a preshared key, for comparison.
pub fn digest(key: &PresharedKey) -> String {
    use std::fmt::Write as _;
    let digest = ring::digest::digest(&ring::digest::SHA256, key.reveal());
    digest.as_ref().iter().take(8).fold("sha256:".to_owned(), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}

#[cfg(test)]
mod tests;
