//! What we want of the kernel and what it has, in one vocabulary.
//!
//! What the kernel learns by itself (a roamed endpoint, handshakes, counters) exists only on the observed side: it is
//! status, never drift.
use ipnet::IpNet;
use serde::Serialize;
use spoke_config::interface::DriftPolicy;
use spoke_model::interface_name::IfName;
use spoke_model::key::{PresharedKey, PublicKey, SecretKey};
use spoke_model::nets::Nets;
use spoke_model::time::Boot;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The routing protocol number that marks our routes (`ip route show proto 157`); unassigned in iproute2's `rt_protos`.
pub const ROUTE_PROTOCOL: u8 = 157;

/// The link alias that marks an interface we created, so that a later run may also delete it.
pub const OWNED_ALIAS: &str = "managed by spoke";

/// The longest accepted set of peers of one interface.
pub const MAX_PEERS: usize = 65_536;

/// Where a peer is to be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Address and UDP port.
    pub addr: SocketAddr,
    /// Raised by whoever decides on the endpoint to have the same address set once more (the peer may have roamed).
    pub attempt: u64,
}

/// A peer as wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Extra symmetric key, if both sides have one.
    pub preshared_key: Option<PresharedKey>,
    /// Canonical networks (no host bits) routed to and accepted from this peer.
    pub allowed_ips: Nets,
    /// Seconds between keepalives; 0 is off.
    pub keepalive: u16,
    /// Where to send; `None` leaves it to the peer to come to us.
    pub endpoint: Option<Endpoint>,
}

/// The UDP port an interface listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenPort {
    /// This port.
    Fixed(u16),
    /// Whatever the kernel chose; a raised `epoch` has it choose anew, which gets past a stuck NAT binding.
    Random {
        /// Count of renewals asked for since the process started.
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
}

/// One WireGuard interface as wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The interface's own key.
    pub private_key: SecretKey,
    /// UDP port.
    pub listen_port: ListenPort,
    /// Mark on the encrypted packets; 0 is none.
    pub fwmark: u32,
    /// Largest packet inside the tunnel, in bytes.
    pub mtu: u32,
    /// Our addresses, with their prefix length.
    pub addresses: BTreeSet<IpNet>,
    /// Peers by public key; no prefix is in two of them.
    pub peers: BTreeMap<PublicKey, Peer>,
    /// Routes to the peers' allowed-ips.
    pub routes: BTreeSet<Route>,
    /// Administratively up.
    pub up: bool,
    /// What may be done about drift.
    pub policy: DriftPolicy,
    /// Whether peers that we never set are removed; `None`: only from an interface we made, never from one we adopted.
    pub remove_unknown: Option<bool>,
    /// Resolvers inside the tunnel, for whoever sets up name resolution: nothing of the kernel.
    pub dns: Vec<IpAddr>,
    /// Raised to have the interface deleted and made anew: the last rung of the recovery ladder.
    pub rebuild: u32,
}

/// What may pass through this machine from one peer of an interface to another.
///
/// Kept in an nftables table of our own, `inet spoke-IFACE`; rules of others are neither read nor written, and what they
/// drop stays dropped. Whether the machine forwards at all is its own setting (`net.ipv4.ip_forward`) and not ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// Peers may reach each other.
    pub open: bool,
    /// Networks, aggregated, whose peers are shut off from the others all the same; empty unless `open`.
    pub isolated: BTreeSet<IpNet>,
}

/// Everything we want of the kernel. Built and checked by `derive` alone; never changed afterwards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Grows by one with every change of content.
    pub generation: u64,
    /// Wanted interfaces by name.
    pub links: BTreeMap<IfName, Link>,
    /// Where forwarding between peers is ours to decide: on the interfaces of a hub.
    pub forwarding: BTreeMap<IfName, Forwarding>,
}

/// A peer as the kernel reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedPeer {
    /// Extra symmetric key.
    pub preshared_key: Option<PresharedKey>,
    /// Networks routed to it.
    pub allowed_ips: Nets,
    /// Seconds between keepalives; 0 is off.
    pub keepalive: u16,
    /// Where it was last seen, or was told to be.
    pub endpoint: Option<SocketAddr>,
    /// Status, not state.
    pub counters: Counters,
}

/// What the kernel counts for one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Wall-clock time of the last handshake since the epoch, by the clock as it stood then; `None`: never.
    pub last_handshake: Option<Duration>,
    /// Bytes received.
    pub rx: u64,
    /// Bytes sent.
    pub tx: u64,
}

/// An interface as the kernel reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedLink {
    /// Kernel index.
    pub index: u32,
    /// False: an interface of this name exists and is not WireGuard. It is never touched.
    pub wireguard: bool,
    /// Carries [`OWNED_ALIAS`].
    pub ours: bool,
    /// Administratively up.
    pub up: bool,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// Public half of the key it holds; `None`: no key.
    pub public_key: Option<PublicKey>,
    /// UDP port; 0 while down and never set.
    pub listen_port: u16,
    /// Mark on encrypted packets; 0 is none.
    pub fwmark: u32,
    /// Addresses with their prefix length.
    pub addresses: BTreeSet<IpNet>,
    /// Peers by public key.
    pub peers: BTreeMap<PublicKey, ObservedPeer>,
    /// Routes of our protocol through it; others are not ours to see.
    pub routes: BTreeSet<Route>,
}

/// What the kernel has, of the interfaces that are wanted or ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// When it was read.
    pub at: Boot,
    /// By name. An interface that does not exist is absent.
    pub links: BTreeMap<IfName, ObservedLink>,
    /// WireGuard interfaces of somebody else: neither wanted nor ours, and nothing to touch.
    pub foreign: BTreeSet<IfName>,
    /// Our tables; `None`: there is one, and somebody has changed it.
    pub forwarding: BTreeMap<IfName, Option<Forwarding>>,
}

/// What the reconcile task remembers of its own deeds, because the kernel cannot tell.
///
/// Empty after a restart, which is safe: an epoch of 0 asks for nothing, and an endpoint that differs is set once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Endpoints as last set by us.
    pub endpoints: BTreeMap<(IfName, PublicKey), Endpoint>,
    /// Port renewals done.
    pub ports: BTreeMap<IfName, u32>,
    /// Rebuilds done.
    pub rebuilds: BTreeMap<IfName, u32>,
    /// Peers we set, so that a peer we no longer want is told from one we never knew.
    pub owned: BTreeMap<IfName, BTreeSet<PublicKey>>,
    /// The last repair asked for and carried out.
    pub repaired: u64,
}
