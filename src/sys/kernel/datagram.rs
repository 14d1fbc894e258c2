//! One datagram through every reader of the kernel's dumps; for the fuzz target `netlink` and its replay.
use super::conversation::{Message, split};
use super::wireguard::{Depth, DeviceState};
use super::{events, filter, path, route, wireguard};

/// What a datagram was understood as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readers {
    /// Messages in it.
    pub messages: usize,
    /// Links read.
    pub links: usize,
    /// Addresses read.
    pub addresses: usize,
    /// Routes read, ours and connected ones.
    pub routes: usize,
    /// Peers of a WireGuard device.
    pub peers: usize,
    /// Networks of those peers.
    pub allowed_ips: usize,
}

/// Reads a datagram, whole or cut.
pub fn read(datagram: &[u8]) -> Readers {
    let mut found = Readers::default();
    let mut device = DeviceState::default();
    let _ = split(datagram, |_, message: Message<'_>, end| {
        found.messages += 1;
        if end.is_none() {
            found.links += usize::from(route::read_link(&message).is_ok_and(|l| !l.name.is_empty()));
            found.addresses += route::read_address_message(message.payload);
            found.routes += route::read_route_message(message.payload);
            let _ = path::read_link(&message);
            filter::read_any(message.payload);
            let attributes = message.payload.get(wireguard::GENL_HEADER..).unwrap_or_default();
            let _ = wireguard::read_device(&mut device, attributes, Depth::Whole);
        }
        Ok(())
    });
    let _ = events::is_relevant(datagram);
    found.peers = device.peers.len();
    found.allowed_ips = device.peers.values().map(|p| p.allowed_ips.len()).sum();
    found
}
