//! What an operator sets for one node in place of its configuration and its network's.
//!
//! Absent inherits; 0 is a value: a keepalive of 0 is off, a listen port of 0 is a random one, an MTU of 0 the default; an
//! empty list is a value too.
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use spoke_model::wireguard::MTU_RANGE;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// The longest accepted set of allowed-ips of one peer.
pub const MAX_ALLOWED_IPS: usize = 4_096;

/// Most resolvers.
pub const MAX_DNS: usize = 8;

/// Overrides of one node, applied by `derive` to the interface that the control plane decides about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Overrides {
    /// UDP port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen_port: Option<u16>,
    /// Resolvers inside the tunnel, for the program that sets up name resolution.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<Vec<IpAddr>>,
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Seconds between keepalives, for every peer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keepalive: Option<u16>,
    /// Networks routed to the hub in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_allowed_ips: Option<BTreeSet<IpNet>>,
}

/// Why overrides cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OverrideError {
    /// Out of range.
    #[error("the overriding MTU {0} is not 0 or 576 to 65455")]
    Mtu(u32),
    /// Too long a list.
    #[error("more than {MAX_DNS} overriding resolvers")]
    TooManyResolvers,
    /// A network with host bits.
    #[error("the overriding allowed-ip {0} is not canonical")]
    NotCanonical(IpNet),
    /// Too long a list.
    #[error("more than {MAX_ALLOWED_IPS} overriding allowed-ips")]
    TooManyAllowedIps,
}

impl Overrides {
    /// Nothing is overridden.
    pub const INHERITED: Self =
        Self { listen_port: None, dns: None, mtu: None, keepalive: None, endpoint_allowed_ips: None };

    /// Whether everything is inherited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether they can be applied.
    pub fn check(&self) -> Result<(), OverrideError> {
        if let Some(mtu) = self.mtu.filter(|m| *m != 0 && !MTU_RANGE.contains(m)) {
            return Err(OverrideError::Mtu(mtu));
        }
        if self.dns.as_ref().is_some_and(|d| d.len() > MAX_DNS) {
            return Err(OverrideError::TooManyResolvers);
        }
        let nets = self.endpoint_allowed_ips.iter().flatten();
        if let Some(net) = nets.clone().find(|n| n.trunc() != **n) {
            return Err(OverrideError::NotCanonical(*net));
        }
        match nets.count() > MAX_ALLOWED_IPS {
            true => Err(OverrideError::TooManyAllowedIps),
            false => Ok(()),
        }
    }
}
