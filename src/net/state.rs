//! Desired and observed state of the kernel, in one vocabulary.
//!
//! What the kernel learns (a roamed endpoint, handshakes, counters) exists on the observed side only: status, never drift.
use ipnet::IpNet;
use serde::Serialize;
use spoke_config::interface::DriftPolicy;
use spoke_model::interface_name::IfName;
use spoke_model::key::{PresharedKey, PublicKey, SecretKey};
use spoke_model::nets::Nets;
use spoke_model::time::Boot;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Routing protocol number of our routes (`ip route show proto 157`); unassigned in iproute2's `rt_protos`.
pub const ROUTE_PROTOCOL: u8 = 157;

/// Link alias of an interface we created, so that a later process may delete it.
pub const OWNED_ALIAS: &str = "managed by spoke";

/// Most peers of one interface.
pub const MAX_PEERS: usize = 65_536;

/// Endpoint of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Address and UDP port.
    pub addr: SocketAddr,
    /// Incremented to have the same address set again, since the peer may have roamed.
    pub attempt: u64,
}

/// A desired peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Extra symmetric key, if both sides have one.
    pub preshared_key: Option<PresharedKey>,
    /// Canonical networks (no host bits) routed to and accepted from this peer.
    pub allowed_ips: Nets,
    /// Seconds between keepalives; 0 is off.
    pub keepalive: u16,
    /// Endpoint; `None`: the peer initiates.
    pub endpoint: Option<Endpoint>,
    /// Why its preshared key cannot be read. Such a peer is never created; the one that the kernel has keeps its preshared key,
    /// and is removed if it has none.
    pub key_fault: Option<Arc<str>>,
}

/// The UDP port an interface listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenPort {
    /// This port.
    Fixed(u16),
    /// Chosen by the kernel; a higher `epoch` makes it choose again, which gets past a stuck NAT binding.
    Random {
        /// Renewals requested since the process started.
        epoch: u32,
    },
}

impl Default for ListenPort {
    fn default() -> Self {
        Self::Random { epoch: 0 }
    }
}

/// A route of ours (protocol [`ROUTE_PROTOCOL`]) through one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Route {
    /// Destination, canonical.
    pub to: IpNet,
    /// Routing table.
    pub table: u32,
    /// Priority among routes to the same network, lower first; 0: the kernel's default (IPv4 0, IPv6 1024).
    #[serde(skip_serializing_if = "is_default_metric")]
    pub metric: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
const fn is_default_metric(metric: &u32) -> bool {
    *metric == 0
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} table {}", self.to, self.table)?;
        if self.metric == 0 { Ok(()) } else { write!(f, " metric {}", self.metric) }
    }
}

/// A network that is connected to an interface which is not ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Name of the interface.
    pub link: String,
    /// Our address in the network.
    pub address: IpAddr,
}

/// Where the system's look-up for an address leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Egress {
    /// Not known.
    Unknown,
    /// Nowhere.
    Unreachable,
    /// Into this interface.
    Link(String),
}

/// A desired WireGuard interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The interface's own key.
    pub private_key: SecretKey,
    /// UDP port.
    pub listen_port: ListenPort,
    /// A random port serves while the fixed one is in use by another program. Not on a hub, which its nodes would not find.
    pub port_fallback: bool,
    /// Mark on the encrypted packets; 0 is none.
    pub fwmark: u32,
    /// Largest packet inside the tunnel, in bytes.
    pub mtu: u32,
    /// MTU and mark are defaults: an interface that another program made keeps its own.
    pub defaults: (bool, bool),
    /// Our addresses, with their prefix length.
    pub addresses: BTreeSet<IpNet>,
    /// Peers by public key; no prefix is in two of them.
    pub peers: BTreeMap<PublicKey, Peer>,
    /// Routes to the peers' allowed-ips.
    pub routes: BTreeSet<Route>,
    /// Administratively up.
    pub up: bool,
    /// Drift policy.
    pub policy: DriftPolicy,
    /// Whether unknown peers are removed; `None`: only from an interface we created, not from an adopted one.
    pub remove_unknown: Option<bool>,
    /// Resolvers inside the tunnel; not applied to the kernel.
    pub dns: Vec<IpAddr>,
    /// Incremented to have the interface recreated: the last rung of the recovery ladder.
    pub rebuild: u32,
}

impl Link {
    /// The MTU and the mark that an interface is to have.
    pub fn mtu_and_mark(&self, have: &ObservedLink) -> (u32, u32) {
        // IPv6 needs the default.
        let usable = have.mtu >= self.mtu || self.addresses.iter().all(|a| a.addr().is_ipv4());
        let mtu = if self.defaults.0 && !have.ours && usable { have.mtu } else { self.mtu };
        let mark = if self.defaults.1 && !have.ours { have.fwmark } else { self.fwmark };
        (mtu, mark)
    }
}

/// Forwarding between the peers of an interface.
///
/// Enforced by our own nftables table `inet spoke-IFACE`; other tables are neither read nor written. Whether the machine
/// forwards at all (`net.ipv4.ip_forward`) is not our setting.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// Peers may reach each other.
    pub open: bool,
    /// Aggregated networks whose peers are isolated nevertheless; empty unless `open`.
    pub isolated: BTreeSet<IpNet>,
}

/// The desired state of the kernel. Built and validated by `derive` only; immutable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Incremented with every change of content.
    pub generation: u64,
    /// Desired interfaces by name.
    pub links: BTreeMap<IfName, Link>,
    /// Forwarding between peers, on the interfaces of a hub.
    pub forwarding: BTreeMap<IfName, Forwarding>,
    /// Interfaces whose private key cannot be read, with the reason: they are left as they are.
    pub key_faults: BTreeMap<IfName, Arc<str>>,
}

/// A peer reported by the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedPeer {
    /// Extra symmetric key.
    pub preshared_key: Option<PresharedKey>,
    /// Networks routed to it.
    pub allowed_ips: Nets,
    /// Seconds between keepalives; 0 is off.
    pub keepalive: u16,
    /// Its endpoint: set or roamed.
    pub endpoint: Option<SocketAddr>,
    /// Counters.
    pub counters: Counters,
}

/// Counters of one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Time of the last handshake since the epoch, by the wall clock at that time; `None`: never.
    pub last_handshake: Option<Duration>,
    /// Bytes received.
    pub rx: u64,
    /// Bytes sent.
    pub tx: u64,
}

/// An interface reported by the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedLink {
    /// Kernel index.
    pub index: u32,
    /// False: an interface of another kind has this name; it is never changed.
    pub wireguard: bool,
    /// Carries [`OWNED_ALIAS`].
    pub ours: bool,
    /// Administratively up.
    pub up: bool,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// Bytes received and sent since it was created.
    pub traffic: (u64, u64),
    /// Public key; `None`: no private key is set.
    pub public_key: Option<PublicKey>,
    /// UDP port; 0 if never set and down.
    pub listen_port: u16,
    /// Mark on encrypted packets; 0 is none.
    pub fwmark: u32,
    /// Addresses with their prefix length.
    pub addresses: BTreeSet<IpNet>,
    /// Those whose connected route is missing or has another metric than ours. Empty while the interface is down.
    pub unrouted: BTreeSet<IpNet>,
    /// Peers by public key.
    pub peers: BTreeMap<PublicKey, ObservedPeer>,
    /// Routes of [`ROUTE_PROTOCOL`] through it.
    pub routes: BTreeSet<Route>,
}

/// The observed state of the interfaces that are desired or ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// When it was observed.
    pub at: Boot,
    /// By name; an interface that does not exist is absent.
    pub links: BTreeMap<IfName, ObservedLink>,
    /// Foreign WireGuard interfaces: neither desired nor ours, never changed.
    pub foreign: BTreeSet<IfName>,
    /// Networks connected to interfaces that are not ours.
    pub networks: BTreeMap<IpNet, Neighbour>,
    /// Gateways of the default routes and of the routes to the endpoints.
    pub gateways: BTreeSet<IpAddr>,
    /// Our nftables tables; `None`: modified by another process.
    pub forwarding: BTreeMap<IfName, Option<Forwarding>>,
}

/// What the reconciler has applied and the kernel does not report.
///
/// Empty after a restart, which is safe: an epoch of 0 requests nothing, and an endpoint that differs is set once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Endpoints as last set.
    pub endpoints: BTreeMap<(IfName, PublicKey), Endpoint>,
    /// Port renewals done.
    pub ports: BTreeMap<IfName, u32>,
    /// Rebuilds done.
    pub rebuilds: BTreeMap<IfName, u32>,
    /// Peers we set: distinguishes a peer that is no longer desired from an unknown one.
    pub owned: BTreeMap<IfName, BTreeSet<PublicKey>>,
    /// Sequence number of the last repair carried out.
    pub repaired: u64,
    /// Addresses we set, on interfaces that we did not create.
    pub addresses: BTreeMap<IfName, BTreeSet<IpNet>>,
    /// Fixed ports that were refused because another program has them.
    pub busy_ports: BTreeMap<IfName, u16>,
}
