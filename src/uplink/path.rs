//! The way to a hub outside of the tunnel, as the kernel would route a packet.
use std::net::IpAddr;

/// The way to an address. Two equal values mean that nothing which concerns the uplink has changed: lifetimes of addresses,
/// other links and other routes are not part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// There is a route.
    Via {
        /// Index of the interface.
        link: u32,
        /// The interface has a carrier.
        carrier: bool,
        /// How often its carrier came or went: a flap that has ended is a change, too.
        carrier_changes: u32,
        /// Source address of a packet.
        source: Option<IpAddr>,
        /// The router.
        gateway: Option<IpAddr>,
    },
    /// No route, although an interface has a carrier and an address.
    NoRoute,
    /// No interface with a carrier has an address of the family.
    NoAddress,
    /// No interface has a carrier.
    NoCarrier,
}

impl Path {
    /// A packet would leave the machine.
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Via { carrier: true, .. })
    }
}
