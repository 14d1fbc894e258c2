//! Plans as text: for `spoke plan`, the log and the audit records.
use super::plan::{AllowedIps, PeerChange, Plan, Step};
use super::state::{Forwarding, Observed, ObservedPeer};
use spoke_model::key::PublicKey;
use spoke_model::nets::Nets;
use std::fmt::Write as _;

/// The line of an empty plan.
pub const NOTHING: &str = "nothing to do";

/// One line per step in the order of the plan, then the held steps, then the blocked interfaces.
pub fn plan(plan: &Plan, observed: &Observed) -> String {
    let mut out = String::new();
    for step in &plan.steps {
        let _ = writeln!(out, "{}", self::step(step, observed));
    }
    for step in &plan.held {
        let _ = writeln!(out, "(held) {}", self::step(step, observed));
    }
    for blocked in &plan.blocked {
        let _ = writeln!(out, "(blocked) {blocked}");
    }
    for overlap in &plan.overlaps {
        let _ = writeln!(out, "(overlap) {overlap}");
    }
    if out.is_empty() {
        let _ = writeln!(out, "{NOTHING}");
    }
    out
}

/// One step, with the value it replaces. Shows no private or preshared key.
pub fn step(step: &Step, observed: &Observed) -> String {
    let have = observed.links.get(step.link());
    match step {
        Step::DeleteLink { link } => format!("{link}: delete interface"),
        Step::CreateLink { link, mtu } => format!("{link}: create interface, mtu {mtu}"),
        Step::SetDevice { link, private_key, listen_port, fwmark } => {
            let mut parts = Vec::new();
            if let Some(key) = private_key {
                parts.push(match have.and_then(|h| h.public_key).filter(|old| *old != key.public()) {
                    Some(old) => format!("private key (public {} → {})", old.short(), key.public().short()),
                    None => format!("private key (public {})", key.public().short()),
                });
            }
            match (listen_port, have) {
                (Some(0), _) => parts.push("listen port → new random port".to_owned()),
                (Some(port), Some(h)) => parts.push(format!("listen port {} → {port}", h.listen_port)),
                (Some(port), None) => parts.push(format!("listen port {port}")),
                (None, _) => {}
            }
            if let Some(mark) = fwmark {
                parts.push(format!("fwmark {:#x} → {mark:#x}", have.map_or(0, |h| h.fwmark)));
            }
            format!("{link}: set {}", parts.join(", "))
        }
        Step::SetForwarding { link, forwarding } => {
            let show = |f: Option<&Forwarding>| match f {
                None => "unmanaged".to_owned(),
                Some(Forwarding { open: false, .. }) => "off".to_owned(),
                Some(Forwarding { isolated, .. }) if isolated.is_empty() => "on".to_owned(),
                Some(Forwarding { isolated, .. }) => {
                    format!("on, isolated {}", nets(&isolated.iter().copied().collect()))
                }
            };
            let old = match observed.forwarding.get(link) {
                Some(None) => "modified by another process".to_owned(),
                seen => show(seen.and_then(Option::as_ref)),
            };
            format!("{link}: forwarding between peers {old} → {}", show(forwarding.as_ref()))
        }
        Step::RemovePeer { link, peer } => format!("{link}: remove peer {}", peer.short()),
        Step::SetPeer { link, peer, change } => {
            self::peer(link.as_str(), *peer, change, have.and_then(|h| h.peers.get(peer)))
        }
        Step::SetMtu { link, mtu } => format!("{link}: mtu {} → {mtu}", have.map_or(0, |h| h.mtu)),
        Step::RemoveRoute { link, route } => format!("{link}: remove route {route}"),
        Step::RemoveAddress { link, address } => format!("{link}: remove address {address}"),
        Step::AddAddress { link, address } => format!("{link}: add address {address}"),
        Step::AddConnected { link, address } => format!("{link}: add the connected route of {address}"),
        Step::RemoveConnected { link, address } => format!("{link}: remove the connected route of {address}"),
        Step::SetUp { link, up } => format!("{link}: bring {}", if *up { "up" } else { "down" }),
        Step::AddRoute { link, route } => format!("{link}: add route {route}"),
    }
}

fn peer(link: &str, key: PublicKey, change: &PeerChange, have: Option<&ObservedPeer>) -> String {
    let mut parts = Vec::new();
    let arrow = |old: String, new: String| if change.create { new } else { format!("{old} → {new}") };
    match &change.allowed_ips {
        AllowedIps::Keep => {}
        AllowedIps::Add(more) => parts.push(format!("allowed-ips + {}", nets(more))),
        AllowedIps::Replace(all) => {
            let old = have.map(|h| nets(&h.allowed_ips)).unwrap_or_default();
            parts.push(format!("allowed-ips {}", arrow(old, nets(all))));
        }
    }
    if let Some(endpoint) = change.endpoint {
        let old = have.and_then(|h| h.endpoint).map_or_else(|| "none".to_owned(), |e| e.to_string());
        parts.push(format!("endpoint {}", arrow(old, endpoint.addr.to_string())));
    }
    if let Some(keepalive) = change.keepalive {
        let show = |k: u16| if k == 0 { "off".to_owned() } else { format!("{k}s") };
        parts.push(format!("keepalive {}", arrow(show(have.map_or(0, |h| h.keepalive)), show(keepalive))));
    }
    match &change.preshared_key {
        None => {}
        Some(Some(_)) => parts.push("preshared key set".to_owned()),
        Some(None) => parts.push("preshared key removed".to_owned()),
    }
    format!("{link}: {} peer {}: {}", if change.create { "add" } else { "set" }, key.short(), parts.join(", "))
}

/// The first four networks and their number.
fn nets(nets: &Nets) -> String {
    if nets.is_empty() {
        return "none".to_owned();
    }
    let mut text = nets.iter().take(4).map(ToString::to_string).collect::<Vec<_>>().join(",");
    if nets.len() > 4 {
        let _ = write!(text, ",… ({} in all)", nets.len());
    }
    text
}
