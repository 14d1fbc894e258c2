//! Membership of the fleet: enrolment, approval, removal, key rotation, and the operators' settings.
//!
//! Each function is one transaction. `decide`, `node_change` and `network_change` are pure.
pub mod decide;
pub mod enrol;
pub mod key_rotation;
pub mod network_change;
pub mod networks;
pub mod node_change;
pub mod node_test;
pub mod nodes;
pub mod operator_keys;
pub mod releases;
pub mod tokens;

use crate::store::StoreError;
use crate::store::lease::LeaseError;
use crate::store::network::BadNetwork;
use crate::store::node::NodeState;
use ipnet::IpNet;
use spoke_model::address::HostPort;
use spoke_model::node_id::NodeId;
use std::net::IpAddr;

/// A kind of thing that a request names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entity {
    /// A network.
    Network,
    /// A node or hub.
    Node,
    /// A node of the network named in the same request.
    NodeInNetwork,
    /// A token that is not revoked.
    Token,
    /// A key of an operator that is not revoked.
    OperatorKey,
    /// The desired release of a network or node.
    Release,
}

impl std::fmt::Display for Entity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Network => "network",
            Self::Node => "node",
            Self::NodeInNetwork => "node in this network with id",
            Self::Token => "token in force with id",
            Self::OperatorKey => "key in force",
            Self::Release => "desired release of",
        })
    }
}

/// Nodes named at most; the others are counted.
const MAX_NAMES: usize = 20;

/// The names of these nodes with a verb: `edge-1 has`, `edge-1, edge-2 and 30 more have`.
pub fn names(nodes: &[NodeId], one: &str, several: &str) -> String {
    let named: Vec<_> = nodes.iter().take(MAX_NAMES).map(NodeId::as_str).collect();
    let more = match nodes.len().saturating_sub(named.len()) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{}{more} {}", named.join(", "), if nodes.len() == 1 { one } else { several })
}

/// Why a request about the fleet was refused. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A field of an enrolment.
    #[error(transparent)]
    Field(#[from] spoke_enroll::wire::BadField),
    /// A value of an operator's request.
    #[error("{field} must be {expected}")]
    Value {
        /// The field.
        field: &'static str,
        /// What it accepts.
        expected: &'static str,
    },
    /// A release that no device could install.
    #[error("{0}")]
    Release(String),
    /// Settings of a network.
    #[error(transparent)]
    Network(#[from] BadNetwork),
    /// The enrolment token; its fault is not disclosed.
    #[error("the enrolment token is not valid for this node")]
    BadToken,
    /// Another device holds the node id.
    #[error("node id {node} is taken by a device with another key")]
    NodeIdTaken {
        /// The node id.
        node: NodeId,
        /// What the refused device may learn of the holder; null: nothing.
        existing: serde_json::Value,
    },
    /// Another node holds the key.
    #[error("the key belongs to another node: generate a new one")]
    KeyTaken,
    /// The node was removed from the fleet.
    #[error("node {0} was removed from the fleet; only a token bound to it enrols it again: `token create --node {0}`")]
    Removed(NodeId),
    /// No such entity.
    #[error("there is no {0} {1:?}")]
    NotFound(Entity, String),
    /// The name is in use.
    #[error("{0} {1} exists already")]
    Exists(Entity, String),
    /// Only a pending node can be approved.
    #[error("node {node} is {}, not pending", state.as_str())]
    NotPending {
        /// The node.
        node: NodeId,
        /// Its state.
        state: NodeState,
    },
    /// A switch to a key that was not announced.
    #[error("announce the key before switching to it")]
    KeyNotAnnounced,
    /// The address asked for a hub.
    #[error("{0} is leased to another node, or not a host of the network")]
    AddressTaken(IpAddr),
    /// A change that moves a hub away from where its nodes connect to it.
    #[error(
        "nodes connect to hub {hub} at {endpoint}, and {nodes} in use: disable the hub, then move it with `hub move`, then enable it"
    )]
    HubInUse {
        /// The hub.
        hub: NodeId,
        /// Where it is announced.
        endpoint: HostPort,
        /// The nodes with a verb.
        nodes: String,
    },
    /// Nodes that may still connect to a hub that is to be moved.
    #[error(
        "hub {hub} is not moved: {nodes} not yet kept a state without it; wait, disable these nodes, or give --lose-nodes"
    )]
    HubNotLeft {
        /// The hub.
        hub: NodeId,
        /// The nodes with a verb.
        nodes: String,
    },
    /// Only a hub has an endpoint.
    #[error("{0} is not a hub")]
    NotAHub(NodeId),
    /// A pool that overlaps one of another network.
    #[error("pool {pool} overlaps {other} of network {network}: a host in both could not tell their addresses apart")]
    PoolOverlap {
        /// The pool.
        pool: IpNet,
        /// The other pool.
        other: IpNet,
        /// The other network.
        network: String,
    },
    /// A network to be removed that has nodes.
    #[error("network {network} is not removed: {nodes} in it; remove them first with `node remove`")]
    NetworkInUse {
        /// The network.
        network: String,
        /// Its nodes with a verb.
        nodes: String,
    },
    /// A request that names no network, where there are several.
    #[error("name the network with --network: there are {0}")]
    WhichNetwork(String),
    /// A request that names no network, where there is none.
    #[error("there is no network yet: create one with `network create`")]
    NoNetwork,
    /// A change of the pool that a lease would not survive.
    #[error("the address of node {0} would be outside of the pool, or reserved")]
    LeaseOutsidePool(String),
    /// An address could not be leased.
    #[error(transparent)]
    Lease(LeaseError),
    /// The entity was changed since the operator read it: these settings differ.
    #[error("it was changed since you read it: {}", .0.join(", "))]
    Changed(Vec<&'static str>),
    /// The store.
    #[error(transparent)]
    Store(StoreError),
}

impl RegistryError {
    /// Whether the request was at fault, and not the store.
    pub const fn is_bad_input(&self) -> bool {
        match self {
            Self::Field(_)
            | Self::Value { .. }
            | Self::Release(_)
            | Self::Network(_)
            | Self::BadToken
            | Self::NodeIdTaken { .. }
            | Self::KeyTaken
            | Self::Removed(_)
            | Self::NotFound(..)
            | Self::Exists(..)
            | Self::NotPending { .. }
            | Self::KeyNotAnnounced
            | Self::AddressTaken(_)
            | Self::HubInUse { .. }
            | Self::HubNotLeft { .. }
            | Self::NotAHub(_)
            | Self::PoolOverlap { .. }
            | Self::NetworkInUse { .. }
            | Self::WhichNetwork(_)
            | Self::NoNetwork
            | Self::LeaseOutsidePool(_)
            | Self::Changed(_) => true,
            Self::Lease(_) | Self::Store(_) => false,
        }
    }

    fn node_not_found(id: &NodeId) -> Self {
        Self::NotFound(Entity::Node, id.to_string())
    }
}

impl From<StoreError> for RegistryError {
    fn from(e: StoreError) -> Self {
        match e {
            StoreError::UniqueViolation(_) => Self::KeyTaken,
            StoreError::Changed(fields) => Self::Changed(fields),
            other => Self::Store(other),
        }
    }
}

impl From<LeaseError> for RegistryError {
    fn from(e: LeaseError) -> Self {
        match e {
            LeaseError::Store(e) => e.into(),
            LeaseError::Exhausted { .. } | LeaseError::Pool(_) => Self::Lease(e),
        }
    }
}

/// When something made at `now_ms` expires; `lifetime_secs` of `None` is `default_ms`, 0 is never.
fn expires(lifetime_secs: Option<u64>, default_ms: i64, now_ms: i64) -> Option<i64> {
    let lifetime = match lifetime_secs {
        Some(0) => return None,
        Some(secs) => i64::try_from(secs.saturating_mul(1000)).unwrap_or(i64::MAX),
        None => default_ms,
    };
    Some(now_ms.saturating_add(lifetime))
}

/// Repeats a transaction that conflicted with another one, four times at most.
macro_rules! retry_conflicts {
    ($attempt:expr) => {{
        let mut left = 4u8;
        loop {
            match $attempt.await {
                Err(RegistryError::Store(crate::store::StoreError::TransactionConflict(_))) if left > 0 => left -= 1,
                other => break other,
            }
        }
    }};
}
pub(crate) use retry_conflicts;
