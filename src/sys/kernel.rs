//! The kernel's network state: complete observations, changes by plan.
//!
//! [`Netlink`] is the real implementation. It holds three sockets open: rtnetlink for links, addresses and routes,
//! generic netlink for WireGuard, and one for rtnetlink's multicast groups. `tests/kernel/conformance.rs` is the
//! specification of an implementation; the kernel in memory (`sim::kernel`) passes it too.
//!
//! # Kernel behaviour and how it is handled
//! - A change of a removed peer would recreate it: every change but the one that creates carries `UPDATE_ONLY`.
//! - A request holds at most 64 KiB, an answer less: allowed-ips of a peer are sent and read in parts, and merged.
//! - A request that fails half-way leaves the rest undone: it is split, so that each refused step is known.
//! - A link cannot be created with an alias: it is created and marked under another name, then renamed.
//! - Removing an IPv4 address removes others of its network, and all IPv4 routes with the last one: they are restored.
//! - `EACCES` for an IPv6 address or route means that IPv6 is disabled there, not that a privilege is missing.
//! - `EEXIST` may refer to another program's route: it counts as done only if the identical route is there.
//! - A dump may be interrupted by a change: it is repeated. An observation is complete or an error.
//! - Of two equal connected routes the older one wins: ours have a high metric, so that the order of boot decides nothing.
//! - WireGuard and nftables announce nothing: drift of peers and tables is found by the periodic resync.
//!
//! # Why not `wireguard-control`
//! Measured with version 2.0.0 in the test kernel (6.12), it fails four cases of the suite: an endpoint set on a
//! removed peer recreates the peer (no `UPDATE_ONLY`); a peer with 3,000 allowed-ips cannot be set ("encoded peer
//! (84044 bytes) is too large"); the same peer set by `wg` is read as eleven peers with 127 to 289 allowed-ips each;
//! `apply()` on a missing link creates one, which is not marked as ours. `Debug` of its keys prints private keys. It
//! blocks without a time limit, opens a socket and looks the family up for every message (one change took 3.7 ms among
//! 1,000 peers and 8.0 ms among 10,000), is LGPL-2.1 in a static binary, and brings the netlink crates a second time
//! (620 KB). `netlink-packet-wireguard` shares rtnetlink's crates and leaves the socket to us.
use spoke_model::condition::Code;
use spoke_model::error_chain::ErrorChain;
use spoke_model::interface_name::IfName;
use spoke_model::key::PublicKey;
use spoke_net::plan::Step;
use spoke_net::state::{Counters, Egress, Observed};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::IpAddr;

mod body;
mod conversation;
#[cfg(feature = "sim")]
pub mod datagram;
mod events;
mod filter;
mod netlink;
mod nftables;
mod path;
mod refusal;
mod route;
mod rtnetlink;
mod wireguard;

pub use netlink::{CounterSocket, Netlink};
pub use path::PathSocket;
pub use wireguard::has_wireguard;

/// Why the kernel could not be read or changed. `errno` is kept in the source.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Reading failed.
    #[error("cannot read {what} from the kernel")]
    Observe {
        /// Links, addresses, routes or a WireGuard device.
        what: String,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// A step was refused.
    #[error("the kernel refused: {step}")]
    Refused {
        /// The step as text, free of secrets.
        step: String,
        /// What the errno means for this step.
        cause: Cause,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The process lacks `CAP_NET_ADMIN`. A process that has it and gets EPERM or EACCES for one object does not end for it.
    #[error(
        "not allowed to change the network: run as root or give the process CAP_NET_ADMIN (systemd: AmbientCapabilities=CAP_NET_ADMIN)"
    )]
    NoPrivilege,
    /// The kernel has no WireGuard.
    #[error(
        "this kernel has no WireGuard: load the module (modprobe wireguard) or install a kernel that has it (5.6 or later)"
    )]
    NoWireGuard,
    /// The netlink connection is gone.
    #[error("the netlink connection to the kernel was closed")]
    Disconnected,
}

/// Why the kernel refused a step, where an errno alone misleads.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// As the errno says.
    #[error("")]
    Errno,
    /// `EACCES` for an IPv6 address or route.
    #[error("IPv6 is disabled on {0}")]
    Ipv6Disabled(IfName),
    /// `EEXIST` for a route.
    #[error("{holder} has a route to {to} already")]
    RouteHeld {
        /// The destination.
        to: ipnet::IpNet,
        /// The interface, with the routing protocol.
        holder: String,
    },
    /// `EADDRINUSE` for the port of an interface.
    #[error("UDP port {port} is in use by {holder}")]
    PortInUse {
        /// The port.
        port: u16,
        /// An interface, a process or a user.
        holder: String,
    },
}

/// Whether a retry may help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Later.
    Later,
    /// Not before something outside of the process has changed.
    Never,
}

impl KernelError {
    /// Whether a retry may help.
    pub const fn retry(&self) -> Retry {
        match self {
            Self::Observe { .. } | Self::Refused { .. } | Self::Disconnected => Retry::Later,
            Self::NoPrivilege | Self::NoWireGuard => Retry::Never,
        }
    }

    /// The code of the condition that a refused step is.
    pub const fn code(&self) -> Code {
        match self {
            Self::Refused { cause: Cause::Ipv6Disabled(_), .. } => Code::Ipv6Disabled,
            Self::Refused { cause: Cause::RouteHeld { .. }, .. } => Code::RouteConflict,
            Self::Refused { cause: Cause::PortInUse { .. }, .. } => Code::PortInUse,
            Self::Refused { cause: Cause::Errno, .. }
            | Self::Observe { .. }
            | Self::NoPrivilege
            | Self::NoWireGuard
            | Self::Disconnected => Code::ApplyFailed,
        }
    }

    /// The kernel's reason in words, without the step.
    pub fn reason(&self) -> String {
        match self {
            Self::Refused { cause: Cause::Errno, source, .. } => source.to_string(),
            Self::Refused { cause, source, .. } => format!("{cause}: {source}"),
            Self::Observe { .. } | Self::NoPrivilege | Self::NoWireGuard | Self::Disconnected => {
                ErrorChain(self).to_string()
            }
        }
    }
}

/// Result of applying a plan.
#[derive(Debug, Default)]
pub struct Applied {
    /// Indices of the steps that succeeded.
    pub done: Vec<usize>,
    /// Indices of the steps that failed, with the reason. Steps on an interface that could not be created fail with it.
    pub failed: Vec<(usize, KernelError)>,
}

/// The kernel's network state. One task owns it and is the only writer.
pub trait Kernel: Send + 'static {
    /// Reads the interfaces in `wanted` and every interface marked as ours, complete or not at all.
    fn observe(&mut self, wanted: &BTreeSet<IfName>) -> impl Future<Output = Result<Observed, KernelError>> + Send;

    /// Applies the steps in order, in as few messages as possible, and continues after a failure.
    ///
    /// A change of a removed peer succeeds and does not recreate it; removing what is absent and adding what is present
    /// succeed.
    fn apply(&mut self, steps: &[Step]) -> impl Future<Output = Applied> + Send;

    /// Where the system's look-up for an address leads.
    fn egress(&mut self, _to: IpAddr) -> impl Future<Output = Egress> + Send {
        std::future::ready(Egress::Unknown)
    }

    /// Resolves when something *may* have changed: links, addresses, routes. Bursts are merged.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;
}

/// Reads one interface's counters; changes nothing.
pub trait ReadCounters: Send + 'static {
    /// Counters by peer, with the endpoint in use. `Ok(None)`: there is no such WireGuard interface.
    fn counters(&mut self, link: &IfName) -> impl Future<Output = Result<Option<LinkCounters>, KernelError>> + Send;
}

/// Reads the way to an address outside of the tunnel; sends nothing.
pub trait ReadPath: Send + 'static {
    /// The way to `to`.
    fn path(
        &mut self,
        to: std::net::IpAddr,
    ) -> impl Future<Output = Result<spoke_uplink::path::Path, KernelError>> + Send;
}

/// A WireGuard interface and the counters of its peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// The kernel's index of the interface, never reused: a recreated interface of the same name has another one.
    pub index: u32,
    /// By peer.
    pub peers: BTreeMap<PublicKey, PeerCounters>,
}

/// Counters and endpoint of a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerCounters {
    /// Counters.
    pub counters: Counters,
    /// The endpoint in use.
    pub endpoint: Option<std::net::SocketAddr>,
}
