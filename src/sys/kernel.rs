//! The kernel's network state, read whole and changed by whole plans.
use crate::net::key::PublicKey;
use crate::net::plan::Step;
use crate::net::state::{Counters, IfName, Observed};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;

mod conversation;
mod events;
mod netlink;
mod route;
mod wireguard;

pub use netlink::{CounterSocket, Netlink};

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
    fn counters(
        &mut self,
        link: &IfName,
    ) -> impl Future<Output = Result<Option<BTreeMap<PublicKey, PeerCounters>>, KernelError>> + Send;
}

/// Counters of a peer and where it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerCounters {
    /// Counters.
    pub counters: Counters,
    /// The endpoint in use.
    pub endpoint: Option<std::net::SocketAddr>,
}
