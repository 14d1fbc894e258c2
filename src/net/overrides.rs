//! What an operator sets for one node in place of what its configuration says.
//!
//! Absent inherits; 0 is a value: a keepalive of 0 is off, a listen port of 0 is a random one, an MTU of 0 the default.
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Overrides of one node, applied by `derive` to the interface of its uplink, or to every interface of a hub.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Overrides {
    /// UDP port.
    pub listen_port: Option<u16>,
    /// Resolvers inside the tunnel, for whoever sets up name resolution.
    pub dns: Option<Vec<IpAddr>>,
    /// Bytes.
    pub mtu: Option<u32>,
    /// Seconds between keepalives, for every peer.
    pub keepalive: Option<u16>,
    /// What is routed to the hub in use.
    pub endpoint_allowed_ips: Option<BTreeSet<IpNet>>,
}
