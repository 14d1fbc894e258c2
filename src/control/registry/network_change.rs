//! A change of a network's settings. Pure.
use crate::store::network::{Access, Network};
use ipnet::IpNet;
use serde::Deserialize;
use spoke_config::policy::GrantsPolicy;
use std::net::IpAddr;

/// What a network with access by NFT needs.
pub const NO_CONTRACT: &str = "nft needs a [grants] section in the configuration that names the contract";

/// A change of a network's settings; absent leaves a value.
#[derive(Clone, Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkChange {
    /// IPv4 addresses of its nodes.
    #[schema(value_type = Option<String>)]
    pub pool4: Option<IpNet>,
    /// IPv6 addresses of its nodes.
    #[schema(value_type = Option<String>)]
    pub pool6: Option<IpNet>,
    /// Addresses never leased to a node.
    #[schema(value_type = Option<Vec<String>>)]
    pub reserved: Option<Vec<IpAddr>>,
    /// Resolvers inside the tunnel.
    #[schema(value_type = Option<Vec<String>>)]
    pub dns: Option<Vec<IpAddr>>,
    /// Bytes; 0: the node chooses.
    pub mtu: Option<u32>,
    /// Seconds; 0 is off.
    pub keepalive: Option<u16>,
    /// Whether hubs forward from node to node.
    pub forwarding: Option<bool>,
    /// Whether an operator must approve each node.
    pub approval: Option<bool>,
    /// Who may be a peer.
    pub access: Option<Access>,
    /// How long the address of a removed node stays unused, in seconds.
    pub quarantine_secs: Option<u64>,
    /// The `[grants]` section for nodes without one of their own, with the same keys; `{}` removes it.
    #[schema(value_type = Option<Object>)]
    pub grants: Option<GrantsPolicy>,
}

impl NetworkChange {
    /// Whether it needs a contract in the control plane's configuration: without one no node would be admitted.
    pub fn needs_contract(&self) -> bool {
        self.access == Some(Access::Nft)
    }

    /// Changes `network`.
    pub fn apply(self, network: &mut Network) {
        network.pool4 = self.pool4.or(network.pool4);
        network.pool6 = self.pool6.or(network.pool6);
        network.mtu = self.mtu.or(network.mtu).filter(|m| *m != 0);
        network.keepalive = self.keepalive.unwrap_or(network.keepalive);
        network.forwarding = self.forwarding.unwrap_or(network.forwarding);
        network.approval = self.approval.unwrap_or(network.approval);
        network.access = self.access.unwrap_or(network.access);
        network.quarantine_secs = self.quarantine_secs.unwrap_or(network.quarantine_secs);
        if let Some(reserved) = self.reserved {
            network.reserved = reserved;
        }
        if let Some(dns) = self.dns {
            network.dns = dns;
        }
        if let Some(policy) = self.grants {
            network.grants = Some(policy).filter(|p| !p.is_empty());
        }
    }
}
