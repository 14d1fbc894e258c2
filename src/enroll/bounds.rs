//! How far the control plane may go on this device: networks and hubs of a state document. Pure.
use super::document::{Incompatible, StateDocument};
use ipnet::IpNet;
use spoke_config::control::Control;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether the document stays within what the device allows a control plane.
pub(crate) fn check_bounds(
    control: &Control,
    document: &StateDocument,
    enrolled: Option<&[IpNet]>,
) -> Result<(), Incompatible> {
    let within = |allowed: &[IpNet], net: &IpNet| allowed.iter().any(|a| a.contains(net));
    let outside = match (&control.allow_networks, enrolled) {
        (Some(allowed), _) => document.networks().find(|net| !within(allowed, net)).map(Incompatible::Network),
        (None, Some(enrolled)) => {
            let new = document.networks().find(|net| is_public(net) && !within(enrolled, net));
            new.map(Incompatible::NewNetwork)
        }
        (None, None) => None,
    };
    if let Some(outside) = outside {
        return Err(outside);
    }
    if let Some(keys) = &control.hub_keys {
        let mut hubs = document.interfaces.iter().flat_map(|i| &i.hubs);
        if let Some(other) = hubs.find(|h| !keys.contains(&h.public_key)) {
            return Err(Incompatible::HubKey { hub: other.node_id.clone(), key: other.public_key });
        }
    }
    Ok(())
}

impl StateDocument {
    /// Every network that the document uses for an address or routes to a peer.
    pub(crate) fn networks(&self) -> impl Iterator<Item = IpNet> {
        self.interfaces.iter().flat_map(|interface| {
            let hubs = interface.hubs.iter().flat_map(|h| h.allowed_ips.iter().copied().chain([h.address.into()]));
            let peers = interface.peers.iter().flat_map(|p| p.allowed_ips.iter().copied());
            let overridden = interface.overrides.endpoint_allowed_ips.iter().flatten().copied();
            interface.addresses.iter().map(IpNet::trunc).chain(hubs).chain(peers).chain(overridden)
        })
    }
}

/// Networks that the Internet does not route: private, shared, link-local, of benchmarks and of documentation (RFC 6890).
const NOT_PUBLIC: [(IpAddr, u8); 12] = [
    (IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0)), 8),
    (IpAddr::V4(Ipv4Addr::new(100, 64, 0, 0)), 10),
    (IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), 16),
    (IpAddr::V4(Ipv4Addr::new(172, 16, 0, 0)), 12),
    (IpAddr::V4(Ipv4Addr::new(192, 0, 2, 0)), 24),
    (IpAddr::V4(Ipv4Addr::new(192, 168, 0, 0)), 16),
    (IpAddr::V4(Ipv4Addr::new(198, 18, 0, 0)), 15),
    (IpAddr::V4(Ipv4Addr::new(198, 51, 100, 0)), 24),
    (IpAddr::V4(Ipv4Addr::new(203, 0, 113, 0)), 24),
    (IpAddr::V6(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0)), 7),
    (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10),
    (IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0)), 32),
];

/// Whether some of the network is of the Internet.
pub(crate) fn is_public(net: &IpNet) -> bool {
    !NOT_PUBLIC.iter().any(|(address, length)| IpNet::new(*address, *length).is_ok_and(|own| own.contains(net)))
}
