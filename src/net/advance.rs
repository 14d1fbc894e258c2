//! The observation that follows from an applied step, by the kernel's rules.
//!
//! With thousands of peers an observation costs far more than a change. A pass soon after a clean one may therefore plan
//! against the last observation, advanced by the acknowledged steps; the next full observation verifies it.
use super::plan::{AllowedIps, PeerChange, Step};
use super::state::{Observed, ObservedLink};
use spoke_model::key::PublicKey;

/// Advances `observed` by one acknowledged step. Counters and a new random port appear with the next observation.
pub fn advance(observed: &mut Observed, step: &Step) {
    match step {
        Step::DeleteLink { link } => {
            observed.links.remove(link);
        }
        Step::CreateLink { link, mtu } => {
            let fresh = ObservedLink { wireguard: true, ours: true, mtu: *mtu, ..ObservedLink::default() };
            observed.links.insert(link.clone(), fresh);
        }
        Step::SetDevice { private_key, listen_port, fwmark, .. } => with(observed, step, |l| {
            if let Some(key) = private_key {
                // The kernel removes a peer with the interface's own key.
                l.peers.remove(&key.public());
                l.public_key = Some(key.public());
            }
            if let Some(port) = listen_port.filter(|p| *p != 0) {
                l.listen_port = port;
            }
            if let Some(mark) = fwmark {
                l.fwmark = *mark;
            }
        }),
        Step::SetForwarding { link, forwarding } => match forwarding {
            Some(new) => {
                observed.forwarding.insert(link.clone(), Some(new.clone()));
            }
            None => {
                observed.forwarding.remove(link);
            }
        },
        Step::RemovePeer { peer, .. } => with(observed, step, |l| {
            l.peers.remove(peer);
        }),
        Step::SetPeer { peer, change, .. } => with(observed, step, |l| set_peer(l, *peer, change)),
        Step::SetMtu { mtu, .. } => with(observed, step, |l| l.mtu = *mtu),
        Step::RemoveRoute { route, .. } => with(observed, step, |l| {
            l.routes.remove(route);
        }),
        Step::RemoveAddress { address, .. } => with(observed, step, |l| {
            l.addresses.remove(address);
            l.unrouted.remove(address);
        }),
        Step::AddAddress { address, .. } => with(observed, step, |l| {
            l.addresses.insert(*address);
        }),
        Step::AddConnected { address, .. } => with(observed, step, |l| {
            l.unrouted.remove(address);
        }),
        Step::RemoveConnected { address, .. } => with(observed, step, |l| {
            l.unrouted.insert(*address);
        }),
        Step::SetUp { up, .. } => with(observed, step, |l| {
            if l.up && !up {
                l.routes.clear();
                l.unrouted.clear();
                l.addresses.retain(|a| a.addr().is_ipv4());
            }
            l.up = *up;
        }),
        Step::AddRoute { route, .. } => with(observed, step, |l| {
            l.routes.insert(*route);
        }),
    }
}

fn with(observed: &mut Observed, step: &Step, change: impl FnOnce(&mut ObservedLink)) {
    if let Some(link) = observed.links.get_mut(step.link()) {
        change(link);
    }
}

fn set_peer(link: &mut ObservedLink, key: PublicKey, change: &PeerChange) {
    if link.public_key == Some(key) || (!change.create && !link.peers.contains_key(&key)) {
        return;
    }
    if let AllowedIps::Add(nets) | AllowedIps::Replace(nets) = &change.allowed_ips {
        // The kernel moves a network to the last peer that claims it.
        for (other, peer) in &mut link.peers {
            if *other != key && peer.allowed_ips.iter().any(|n| nets.contains(n)) {
                peer.allowed_ips = peer.allowed_ips.without(nets);
            }
        }
    }
    let peer = link.peers.entry(key).or_default();
    match &change.allowed_ips {
        AllowedIps::Keep => {}
        AllowedIps::Add(nets) => peer.allowed_ips = peer.allowed_ips.and(nets),
        AllowedIps::Replace(nets) => peer.allowed_ips.clone_from(nets),
    }
    if let Some(preshared_key) = &change.preshared_key {
        peer.preshared_key.clone_from(preshared_key);
    }
    if let Some(keepalive) = change.keepalive {
        peer.keepalive = keepalive;
    }
    if let Some(endpoint) = change.endpoint {
        peer.endpoint = Some(endpoint.addr);
    }
}
