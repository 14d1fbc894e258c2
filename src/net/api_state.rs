//! What was set on this node through the agent API: a fact like any other, merged by `derive`.
//!
//! The configuration and the control plane own what they declare; what stands here comes on top and never wins over them.
use ipnet::IpNet;
use spoke_model::interface_name::IfName;
use spoke_model::key::{PresharedKey, PublicKey, SecretKey};
use spoke_model::nets::Nets;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Everything set through the API, by interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiState {
    /// Interfaces that something was set on.
    pub links: BTreeMap<IfName, ApiStateLink>,
}

/// What was set on one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiStateLink {
    /// The interface itself, where it exists only by the API.
    pub device: Option<Arc<Device>>,
    /// Brought down through the API.
    pub down: bool,
    /// Peers by key; shared, so that a copy of ten thousand with one difference is cheap.
    pub peers: BTreeMap<PublicKey, Arc<ApiStatePeer>>,
}

impl ApiStateLink {
    /// Nothing is set: as good as absent.
    pub fn is_empty(&self) -> bool {
        self.device.is_none() && !self.down && self.peers.is_empty()
    }
}

/// An interface that exists only by the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its key.
    pub private_key: SecretKey,
    /// UDP port; `None`: the kernel chooses.
    pub listen_port: Option<u16>,
    /// Mark on encrypted packets; 0 is none.
    pub fwmark: u32,
    /// Addresses with their prefix length.
    pub addresses: BTreeSet<IpNet>,
    /// Bytes; `None`: the default.
    pub mtu: Option<u32>,
    /// Resolvers, kept for the clients that ask; the node does not use them.
    pub dns: Vec<IpAddr>,
    /// Where routes to the peers go.
    pub table: Table,
}

/// `Table` of a `wg-quick` file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Table {
    /// The main table; default routes are left out, since they would catch the tunnel's own packets.
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
    /// Where to send; `None` leaves it to the peer to come.
    pub endpoint: Option<SocketAddr>,
}
