//! State set through the agent API: a fact that `derive` merges. Configuration and control plane take precedence over it.
use ipnet::IpNet;
use spoke_model::interface_name::IfName;
use spoke_model::key::{PresharedKey, PublicKey, SecretKey};
use spoke_model::nets::Nets;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Everything set through the API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiState {
    /// By interface.
    pub links: BTreeMap<IfName, ApiStateLink>,
}

/// State of one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiStateLink {
    /// The interface itself, if only the API declares it.
    pub device: Option<Arc<Device>>,
    /// Administratively down.
    pub down: bool,
    /// Peers by key; shared, so that copying ten thousand with one difference is cheap.
    pub peers: BTreeMap<PublicKey, Arc<ApiStatePeer>>,
}

impl ApiStateLink {
    /// Nothing is set.
    pub fn is_empty(&self) -> bool {
        self.device.is_none() && !self.down && self.peers.is_empty()
    }
}

/// An interface declared by the API only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Private key.
    pub private_key: SecretKey,
    /// UDP port; `None`: the kernel chooses.
    pub listen_port: Option<u16>,
    /// Mark on encrypted packets; 0 is none.
    pub fwmark: u32,
    /// Addresses with their prefix length.
    pub addresses: BTreeSet<IpNet>,
    /// Bytes; `None`: the default.
    pub mtu: Option<u32>,
    /// Resolvers; stored for clients, not used by the node.
    pub dns: Vec<IpAddr>,
    /// Search domains; stored for clients, not used by the node.
    pub dns_search: Vec<String>,
    /// Table of the routes to the peers.
    pub table: Table,
    /// Whether a peer's network may lie inside another peer's.
    pub nested_allowed_ips: bool,
}

/// `Table` of a `wg-quick` file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Table {
    /// The main table, without default routes, which would capture the tunnel's own packets.
    #[default]
    Auto,
    /// No routes.
    Off,
    /// This table.
    Number(u32),
}

/// A peer set through the API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiStatePeer {
    /// Extra symmetric key.
    pub preshared_key: Option<PresharedKey>,
    /// Canonical networks.
    pub allowed_ips: Nets,
    /// Seconds; 0 is off.
    pub keepalive: u16,
    /// Endpoint; `None`: the peer initiates.
    pub endpoint: Option<SocketAddr>,
}
