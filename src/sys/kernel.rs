//! The kernel's network state, read whole and changed by whole plans.
//!
//! [`Netlink`] is the real one. It talks over three sockets that stay open: rtnetlink for links, addresses and routes,
//! generic netlink for WireGuard, and one that rtnetlink announces changes on. The suite in `tests/kernel/conformance.rs`
//! says what an implementation must do; the kernel in memory (`sim::kernel`) passes it too.
//!
//! # What the kernel does on its own, and how it is met
//! - A change of a peer that is gone would bring it back: every change but the one that creates carries `UPDATE_ONLY`.
//! - One request holds 64 KiB at most, one answer less: allowed-ips of a peer are sent and read in pieces, and merged.
//! - A request that fails half-way leaves the rest undone: it is taken apart, so that each refused step is known by itself.
//! - No alias can be given to a link as it is created: it is created and marked under another name, then renamed.
//! - Removing an IPv4 address takes others of its network along, and all IPv4 routes with the last: they are put back.
//! - "Exists" may mean somebody else's route: it counts as done only if the very same is there.
//! - A dump may be interrupted by a change: it is taken again. An observation is complete or an error.
//! - WireGuard announces nothing: drift of peers is found by the periodic look. So is that of our nftables tables.
//!
//! # Why not `wireguard-control`
//! It was the first choice, and was measured with version 2.0.0 in the test kernel (6.12). Four cases of the suite cannot be met
//! with it: an endpoint set on a peer that was removed a moment ago brought the peer back (it has no `UPDATE_ONLY`); a peer
//! with 3,000 allowed-ips could not be set at all ("encoded peer (84044 bytes) is too large"); the same peer set by `wg` was
//! read as eleven peers with 127 to 289 allowed-ips each; and `apply()` on a link that is not there created one, which then
//! is not marked as ours. `Debug` of its keys prints them, private ones too. Besides it blocks without a time limit, opens a
//! socket and looks the family up for every message (one change took 3.7 ms among 1,000 peers and 8.0 ms among 10,000), is
//! LGPL-2.1 in a static binary, and brings the netlink crates a second time (620 KB). `netlink-packet-wireguard` is of
//! rtnetlink's own family, shares its crates, and leaves the conversation to us.
use spoke_model::interface_name::IfName;
use spoke_model::key::PublicKey;
use spoke_net::plan::Step;
use spoke_net::state::{Counters, Observed};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;

mod conversation;
mod events;
mod filter;
mod netlink;
mod route;
mod wireguard;

pub use netlink::{CounterSocket, Netlink};
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
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The process may not change the network.
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
    #[error("the connection to the kernel is gone")]
    Disconnected,
}

/// Whether trying the same again may help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Later.
    Later,
    /// Not before somebody changed something outside of the process.
    Never,
}

impl KernelError {
    /// Whether trying the same again may help.
    pub const fn retry(&self) -> Retry {
        match self {
            Self::Observe { .. } | Self::Refused { .. } | Self::Disconnected => Retry::Later,
            Self::NoPrivilege | Self::NoWireGuard => Retry::Never,
        }
    }
}

/// What became of a plan.
#[derive(Debug, Default)]
pub struct Applied {
    /// Indices of the steps that were done.
    pub done: Vec<usize>,
    /// Indices of the steps that failed, with the reason. Steps on an interface that could not be created fail with it.
    pub failed: Vec<(usize, KernelError)>,
}

/// The kernel's network state. One task owns it and is the only writer. Implementations hold no opinion.
pub trait Kernel: Send + 'static {
    /// Reads the interfaces in `wanted` and every interface marked as ours, complete or not at all.
    fn observe(&mut self, wanted: &BTreeSet<IfName>) -> impl Future<Output = Result<Observed, KernelError>> + Send;

    /// Applies the steps in order, in as few messages as it can, and goes on after a failure.
    ///
    /// A change of a peer that is not there any more is not a failure and does not bring it back; removing what is gone
    /// and adding what is there succeed.
    fn apply(&mut self, steps: &[Step]) -> impl Future<Output = Applied> + Send;

    /// Resolves when something *may* have changed: links, addresses, routes. Carries no payload; bursts come as one.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;
}

/// Reads one interface's counters; needs no right to change anything and never does.
pub trait ReadCounters: Send + 'static {
    /// Counters by peer, with the endpoint in use. `Ok(None)`: there is no such WireGuard interface.
    fn counters(&mut self, link: &IfName) -> impl Future<Output = Result<Option<LinkCounters>, KernelError>> + Send;
}

/// A WireGuard interface and the counters of its peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// The kernel's index of the interface, never given twice: another one under the same name is another interface.
    pub index: u32,
    /// By peer.
    pub peers: BTreeMap<PublicKey, PeerCounters>,
}

/// Counters of a peer and where it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerCounters {
    /// Counters.
    pub counters: Counters,
    /// The endpoint in use.
    pub endpoint: Option<std::net::SocketAddr>,
}
