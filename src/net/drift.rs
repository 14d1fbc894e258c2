//! Drift as data: which peers are unknown, missing or mismatched, field by field.
//!
//! Compared are allowed-ips as sets, keepalive, and the preshared key by digest. What the kernel learns (a roamed
//! endpoint, handshakes, counters) is never drift.
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

/// A peer nobody asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnknownPeer {
    /// Identity.
    pub public_key: PublicKey,
    /// Networks, canonical.
    pub allowed_ips: Vec<IpNet>,
    /// Where it is.
    pub endpoint: Option<String>,
    /// Seconds; 0 is off.
    pub persistent_keepalive: u16,
}

/// A peer that should be there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingPeer {
    /// Identity.
    pub public_key: PublicKey,
    /// Name, where it has one.
    pub name: Option<String>,
    /// Networks, canonical.
    pub allowed_ips: Vec<IpNet>,
    /// The peer's id: its key in text.
    pub peer_id: String,
}

/// One value that differs. The values are text, numbers, lists or null, as the field is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mismatch {
    /// `allowed_ips`, `persistent_keepalive` or `preshared_key`; of an interface `up`, `mtu`, `listen_port`, ….
    pub field: String,
    /// What is wanted.
    pub expected: serde_json::Value,
    /// What is there.
    pub actual: serde_json::Value,
}

/// A peer that is there and differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MismatchedPeer {
    /// Identity.
    pub public_key: PublicKey,
    /// Name, where it has one.
    pub name: Option<String>,
    /// The peer's id: its key in text.
    pub peer_id: String,
    /// What differs.
    pub mismatches: Vec<Mismatch>,
}

/// Counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Peers nobody asked for.
    pub unknown_count: usize,
    /// Peers that should be there.
    pub missing_count: usize,
    /// Peers that differ.
    pub mismatched_count: usize,
    /// All of them, and what differs of the interfaces themselves.
    pub total_issues: usize,
}

/// The drift of one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkDrift {
    /// Whether anything differs.
    pub has_drift: bool,
    /// Peers nobody asked for.
    pub unknown_peers: Vec<UnknownPeer>,
    /// Peers that should be there.
    pub missing_peers: Vec<MissingPeer>,
    /// Peers that differ.
    pub mismatched_peers: Vec<MismatchedPeer>,
    /// What differs of the interface itself.
    pub interface_mismatches: Vec<Mismatch>,
    /// Counts.
    pub summary: Summary,
}

/// The drift of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriftReport {
    /// Name of the node.
    pub node_id: Option<String>,
    /// Whether anything differs anywhere.
    pub has_drift: bool,
    /// Peers nobody asked for, over all interfaces.
    pub unknown_peers: Vec<UnknownPeer>,
    /// Peers that should be there.
    pub missing_peers: Vec<MissingPeer>,
    /// Peers that differ.
    pub mismatched_peers: Vec<MismatchedPeer>,
    /// Counts over all interfaces.
    pub summary: Summary,
    /// The same by interface.
    pub interfaces: BTreeMap<IfName, LinkDrift>,
    /// When the kernel was looked at, RFC 3339.
    pub detected_at: String,
    /// The last drifts and what was done about them, oldest first.
    pub history: Vec<Drifted>,
}

/// A difference that was found although nothing wanted had changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drifted {
    /// When, RFC 3339, by the clock as it stood.
    pub time: String,
    /// The interface.
    pub interface: IfName,
    /// Whether it was to be repaired at once; else policy left it alone.
    pub repaired: bool,
    /// How much differed.
    pub summary: Summary,
    /// The steps that mend it, as text: the first few.
    pub steps: Vec<String>,
}

/// Steps told of one drift.
const TOLD: usize = 8;

/// The drifts that a look has found. `found` is what it would take to mend them, `left` what the look before left alone:
/// that was told already. `repaired`: nothing wanted has changed since all was well, so every step is against drift.
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
    if repaired {
        links.extend(found.steps.iter().map(|s| (s.link(), true)));
    }
    let event = |(name, repaired): (&IfName, bool)| {
        let want = desired.links.get(name)?;
        let steps = if repaired { &found.steps } else { &found.held };
        let of_link = |s: &&Step| s.link() == name;
        Some(Drifted {
            time: at.to_string(),
            interface: name.clone(),
            repaired,
            summary: link(want, observed.links.get(name), &Names::new()).summary,
            steps: steps.iter().filter(of_link).take(TOLD).map(|s| render::step(s, observed)).collect(),
        })
    };
    links.into_iter().filter_map(event).collect()
}

/// Names of peers, for people.
pub type Names = BTreeMap<PublicKey, String>;

/// The drift of every wanted interface; the history is the caller's to add.
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

/// The drift of one interface; one that does not exist misses all its peers.
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
    if want.preshared_key != have.preshared_key {
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
    if want.fwmark != have.fwmark {
        out.push(mismatch("fwmark", want.fwmark, have.fwmark));
    }
    if want.mtu != have.mtu {
        out.push(mismatch("mtu", want.mtu, have.mtu));
    }
    if want.up != have.up {
        out.push(mismatch("up", want.up, have.up));
    }
    if want.addresses != have.addresses {
        out.push(mismatch("addresses", nets(&want.addresses.clone().into()), nets(&have.addresses.clone().into())));
    }
    if want.up && want.routes != have.routes {
        let shown = |r: &BTreeSet<super::state::Route>| -> Vec<String> {
            r.iter().map(|r| format!("{} table {}", r.to, r.table)).collect()
        };
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

/// A preshared key as it may be shown: enough to compare, not enough to use.
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
